"""DMPO: the weights of turns and their identities, and the loss against an independent computation on plain rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prefopt.errors import ConfigError
from prefopt.methods.dmpo import METHOD, phi, terms
from prefopt.models.scorer import Scorer
from prefopt.objectives import dpo
from prefopt.objectives.margins import sees_margins_only
from prefopt.objectives.types import Pairs
from prefopt.pack.batch import Layout, collate
from prefopt.records import Message, Response
from tests.methods.trajectories import (
    BAD,
    GOOD,
    TOKENIZER,
    USUAL,
    Models,
    difference,
    examples,
    expected_margin,
    log_ratios_by_turn,
    make_models,
    measure,
    pair,
    pairs_of,
    recipe,
    side,
)

GAMMAS = [0.0, 0.1, 0.7, 0.99, 1.0]
BETA = 0.1


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    ("gamma", "expected", "total"),
    [
        (0.1, [1, 0.09999, 0.00999, 0.00099, 0.00009], 1.11106),
        (0.5, [1, 0.48387, 0.22581, 0.09677, 0.03226], 1.83871),
        (0.7, [1, 0.63939, 0.38697, 0.21027, 0.08658], 2.32321),
        (0.9, [1, 0.75581, 0.53603, 0.33823, 0.16022], 2.79029),
        (0.99, [1, 0.79596, 0.59396, 0.39398, 0.19600], 2.97990),
        (1.0, [1, 0.8, 0.6, 0.4, 0.2], 3.0),
    ],
)
def test_a1_the_table_of_five_turns(gamma: float, expected: list[float], total: float) -> None:
    assert phi(5, gamma).tolist() == pytest.approx(expected, abs=1e-5)
    assert float(phi(5, gamma).sum()) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize(
    ("gamma", "total"), [(0.7, 3.3174), (0.9, 7.2319), (0.99, 10.1661), (1.0, 10.5)]
)
def test_a1_sums_of_twenty_turns(gamma: float, total: float) -> None:
    assert float(phi(20, gamma).sum()) == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.7, 0.9, 0.99, 1 - 1e-9, 1.0])
@pytest.mark.parametrize("turns", [1, 2, 5, 50, 200])
def test_a1_weights_start_at_one_and_fall(gamma: float, turns: int) -> None:
    weights = phi(turns, gamma)
    assert weights[0] == 1.0, "exactly"
    assert np.isfinite(weights).all() and (weights > 0).all()
    assert (np.diff(weights) < 0).all()
    if gamma < 0.999:
        closed = 1 / (1 - gamma) - turns * gamma**turns / (1 - gamma**turns)
        assert float(weights.sum()) == pytest.approx(closed, rel=1e-9)
    else:
        assert float(weights.sum()) == pytest.approx((turns + 1) / 2, abs=1e-4)


def test_a1_limits() -> None:
    ramp = (200 - np.arange(200)) / 200
    for gamma in (1 - 1e-9, 1 - 2**-53, 1.0):
        assert np.abs(phi(200, gamma) - ramp).max() < 1e-6
    for gamma in (0.0, 1e-6, 1e-300, 5e-324):
        assert np.abs(phi(200, gamma) - np.eye(200)[0]).max() < 1.1e-6
    assert np.abs(phi(2000, 0.7)[:20] - 0.7 ** np.arange(20)).max() < 1e-15
    assert phi(1, 0.0).tolist() == phi(1, 0.7).tolist() == phi(1, 1.0).tolist() == [1.0]


@pytest.mark.parametrize("turns", range(1, 51))
def test_a2_weights_are_the_double_sum_over_states(turns: int) -> None:
    values = np.random.default_rng(turns).normal(size=turns)
    for gamma in (0.1, 0.7, 0.99):
        factor = (1 - gamma) / (1 - gamma**turns)
        double = factor * sum(gamma**t * values[: t + 1].sum() for t in range(turns))
        assert float(phi(turns, gamma) @ values) == pytest.approx(double, abs=1e-11)


def test_a3_the_partition_functions_cancel_however_long_the_trajectories_are() -> None:
    """A constant added to the reward of every state moves both sides alike, thanks to the normaliser alone."""
    gamma, constant = 0.7, 3.0
    moved, bare = {}, {}
    for turns in (2, 40):
        mass = (1 - gamma) / (1 - gamma**turns)
        bare[turns] = sum(gamma**t * constant for t in range(turns))
        # A constant in each state is one at the first turn only in terms of increments, which phi weighs.
        moved[turns] = float(phi(turns, gamma) @ (constant * np.eye(turns)[0]))
        assert moved[turns] == pytest.approx(mass * bare[turns], abs=1e-12)
    assert moved[2] == pytest.approx(constant, abs=1e-12) == moved[40]
    assert abs(bare[2] - bare[40]) > 4


@pytest.mark.parametrize("layout", [Layout.TREE, Layout.ROWS])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_loss_is_that_of_plain_rows_and_the_double_sum(
    models: Models, gamma: float, layout: Layout
) -> None:
    record = pair(side("take key", "east"), side("look", "west", "wait", "wait wait", "door"))
    found = measure(models, record, layout=layout, gamma=gamma)
    expected = BETA * expected_margin(models, record, gamma=gamma)
    assert abs(expected) > 1e-2, "the pair says something"
    # 1e-6: weights are float32 in a batch.
    assert float(found.margins) == pytest.approx(expected, abs=1e-6)
    assert float(found.loss) == pytest.approx(math.log1p(math.exp(-expected)), abs=1e-6)


def test_trees_and_rows_agree_although_shared_tokens_weigh_differently(models: Models) -> None:
    (example,) = examples(USUAL)
    token, response = example.tree.incidences()
    shared = np.intersect1d(token[response == 0], token[response == 1])
    weights = np.array(example.weight)
    assert len(shared) == 2, "look and its end"
    both = pair(side("look", "take", "east"), side("look", "take", "west", "wait"))
    (example,) = examples(both)
    token, response = example.tree.incidences()
    weights, turn = np.array(example.weight), example.tree.turn[token]
    again = (turn == 1) & np.isin(token, np.intersect1d(token[response == 0], token[response == 1]))
    assert set(weights[again & (response == 0)]) == {phi(3, 0.7)[1]}
    assert set(weights[again & (response == 1)]) == {phi(4, 0.7)[1]}
    tree, rows = (measure(models, both, layout=layout) for layout in (Layout.TREE, Layout.ROWS))
    assert float(tree.loss) == pytest.approx(float(rows.loss), abs=1e-12)
    assert difference(tree, rows) < 1e-10


@pytest.mark.parametrize("gamma", GAMMAS)
def test_a4_single_turns_are_dpo_for_every_gamma(models: Models, gamma: float) -> None:
    single = pair(side("take key"), side("wait wait door"))
    (chosen,), (rejected,) = (log_ratios_by_turn(models, r) for r in single.responses)
    expected = math.log1p(math.exp(-BETA * (chosen - rejected)))
    assert abs(expected - math.log(2)) > 1e-3
    assert float(measure(models, single, gamma=gamma).loss) == pytest.approx(expected, abs=1e-7)


def test_a4_gamma_0_is_dpo_on_the_first_turn(models: Models) -> None:
    record = pair(side("take", "east"), side("door", "west", "wait"))
    first = pair(side("take"), side("door"))
    assert float(measure(models, record, gamma=0.0).loss) == pytest.approx(
        float(measure(models, first, weighting="dpo").loss), abs=1e-9
    )


def test_a4_weighting_dpo_is_dpo_on_trajectories(models: Models) -> None:
    found = measure(models, USUAL, weighting="dpo")
    chosen, rejected = (math.fsum(log_ratios_by_turn(models, r)) for r in USUAL.responses)
    assert float(found.margins) == pytest.approx(BETA * (chosen - rejected), abs=1e-9)
    assert examples(USUAL, weighting="dpo")[0].weight == ()
    assert abs(float(found.loss - measure(models, USUAL, gamma=1.0).loss)) > 1e-4, "no limit of it"


def test_a5_at_the_reference_the_loss_is_ln_2_exactly(models: Models) -> None:
    found = measure((models[0], models[0]), USUAL, pair(BAD, GOOD, "r2"))
    assert found.each.tolist() == [math.log(2)] * 2
    assert found.margins.tolist() == [0.0] * 2
    assert found.accuracies.tolist() == [0.0] * 2
    alone = measure((models[0], models[0]), USUAL)
    assert max(float(g.abs().max()) for g in alone.gradients.values()) > 1e-3


def test_a6_swapped_sides_have_the_complementary_loss(models: Models) -> None:
    loss = float(measure(models, USUAL).loss)
    swapped = float(measure(models, pair(BAD, GOOD)).loss)
    assert swapped == pytest.approx(-math.log(1 - math.exp(-loss)), abs=1e-9)


def test_a6_gradients_are_finite_differences(models: Models) -> None:
    policy = models[0]
    found = measure(models, USUAL)
    parameters = dict(policy.named_parameters())
    for i, name in enumerate(sorted(found.gradients)[::4]):
        generator = torch.Generator().manual_seed(i)
        value = parameters[name]
        direction = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        losses: list[float] = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                value += step * direction
            losses.append(float(measure(models, USUAL).loss))
            with torch.no_grad():
                value -= step * direction
        slope = (losses[0] - losses[1]) / 2e-5
        assert slope == pytest.approx(
            float((found.gradients[name] * direction).sum()), abs=1e-7, rel=1e-4
        )


def test_a6_logits_of_observations_have_no_gradient(models: Models) -> None:
    """Nothing follows the last hidden states but the head, so theirs is the gradient of the logits."""
    policy, reference = models
    batch = collate([examples(USUAL)], layout=Layout.TREE)
    states: list[torch.Tensor] = []

    def keep(_: object, __: object, output: torch.Tensor) -> None:
        output.retain_grad()
        states.append(output)

    handle = policy.get_submodule("transformer.ln_f").register_forward_hook(keep)
    own = Scorer(policy)(batch).logp
    handle.remove()
    with torch.no_grad():
        frozen = Scorer(reference)(batch).logp
    terms(recipe())[0].objective(pairs_of(batch, own, frozen)).loss.sum().backward()
    gradient = states[0].grad
    assert gradient is not None
    size = gradient[0].abs().amax(-1)
    predicts = torch.zeros(len(size), dtype=torch.bool)
    predicts[batch.predictor] = True
    assert float(size[~predicts].max()) == 0.0 and int((~predicts).sum()) > 20
    assert float(size[predicts].max()) > 1e-3
    words = TOKENIZER.decode(batch.target.tolist())
    assert "seen" not in words and "OK" not in words and "user" not in words


def test_a7_padding_and_other_records_change_nothing(models: Models) -> None:
    others = [pair(side(*["look"] * n), side(*["wait"] * (9 - n)), f"x{n}") for n in range(1, 8)]
    alone = measure(models, USUAL)
    padded = measure(models, USUAL, row_length=300)
    torch.testing.assert_close(padded.each, alone.each, atol=1e-13, rtol=0)
    assert difference(alone, padded) < 1e-12
    together = measure(models, USUAL, *others)
    apart = [measure(models, record) for record in (USUAL, *others)]
    for one, each in zip(apart, together.each.tolist(), strict=True):
        assert each == pytest.approx(float(one.loss), abs=1e-12)
    for name, gradient in together.gradients.items():
        mean = torch.stack([one.gradients[name] for one in apart]).mean(0)
        torch.testing.assert_close(gradient, mean, atol=1e-12, rtol=1e-9)


def test_a8_common_turns_cancel_for_equal_lengths_and_leave_a_rest_for_others(
    models: Models,
) -> None:
    head = ("look", "take key")
    equal = pair(side(*head, "east"), side(*head, "west"))
    ratios = [log_ratios_by_turn(models, r) for r in equal.responses]
    assert ratios[0][:2] == pytest.approx(ratios[1][:2], abs=1e-12) and abs(ratios[0][1]) > 1e-2
    expected = BETA * phi(3, 0.7)[2] * (ratios[0][2] - ratios[1][2])
    assert float(measure(models, equal).margins) == pytest.approx(expected, abs=1e-6)
    longer = pair(side(*head, "east"), side(*head, "west", "wait", "wait"))
    w, l = (log_ratios_by_turn(models, r) for r in longer.responses)  # noqa: E741
    own = phi(3, 0.7)[2] * w[2] - sum(phi(5, 0.7)[t] * l[t] for t in (2, 3, 4))
    rest = (phi(3, 0.7)[1] - phi(5, 0.7)[1]) * w[1]
    assert abs(rest) > 1e-4
    found = float(measure(models, longer).margins)
    assert found == pytest.approx(BETA * (own + rest), abs=1e-6)
    plain = float(measure(models, longer, weighting="dpo").margins)
    assert plain == pytest.approx(BETA * (w[2] - sum(l[2:])), abs=1e-9), "all of it cancels"


def test_a9_junk_turns_of_the_loser_pull_phi_times_what_they_do_under_dpo(models: Models) -> None:
    """At the reference, where both losses have the same slope in their margin."""
    policy = models[0]
    record = pair(GOOD, side("look", "west", *["wait"] * 8))
    slopes: dict[str, torch.Tensor] = {}
    for weighting in ("dmpo", "dpo"):
        batch = collate([examples(record, weighting=weighting)], layout=Layout.TREE)
        logp = Scorer(policy)(batch).logp.detach().requires_grad_()
        dpo(pairs_of(batch, logp, logp.detach()), beta=BETA).loss.sum().backward()
        assert logp.grad is not None
        slopes[weighting] = logp.grad
    (example,) = examples(record)
    tree = example.tree
    turn = torch.as_tensor(tree.turn[tree.scored])
    loser = torch.as_tensor(np.isin(np.nonzero(tree.scored)[0], tree.path(1)))
    for t in range(1, 10):
        junk = loser & (turn == t)
        ratio = slopes["dmpo"][junk] / slopes["dpo"][junk]
        assert torch.allclose(ratio, torch.full_like(ratio, phi(10, 0.7)[t]), rtol=1e-6)
    assert phi(10, 0.7)[9] < 0.02


def test_turns_that_are_not_trained_on_are_no_turns(models: Models) -> None:
    messages = list(side("look", "east", "take", "door").turns)
    messages[2] = Message("assistant", "east", train=False)
    (example,) = examples(pair(Response(turns=tuple(messages)), BAD))
    token, response = example.tree.incidences()
    own = np.array(example.weight)[response == 0]
    turn = example.tree.turn[token][response == 0]
    assert sorted(set(turn.tolist())) == [0, 2, 3]
    weight_of = {int(t): set(own[turn == t].tolist()) for t in set(turn)}
    three = phi(3, 0.7).tolist()
    assert weight_of == {0: {three[0]}, 2: {three[1]}, 3: {three[2]}}


def test_token_weighting_counts_the_agents_tokens() -> None:
    (example,) = examples(USUAL, weighting="token", gamma=0.9)
    _, response = example.tree.incidences()
    for r in (0, 1):
        own = np.array(example.weight)[response == r]
        assert own.tolist() == pytest.approx(phi(len(own), 0.9).tolist(), abs=1e-15)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gamma": 1.5}, "gamma is 1.5; expected a number >= 0 and <= 1"),
        ({"gamma": -0.1}, "gamma is -0.1; expected a number >= 0 and <= 1"),
        ({"weighting": "mean"}, "expected one of dmpo, dpo, token"),
        ({"weighting": "dpo", "gamma": 0.5}, "gamma 0.5 has no effect with weighting dpo: remove it"),
        ({"weighting": "dpo", "turns": "all"}, "turns 'all' has no effect with weighting dpo"),
        ({"weighting": "dpo", "separator_weight": "one"}, "separator_weight 'one' has no effect"),
        ({"loss_type": "simpo"}, "loss_type simpo has a parameter gamma, which is the discount"),
        ({"loss_type": "mmpo", "weighting": "dpo"}, "loss_type mmpo has a parameter gamma"),
        ({"loss_type": "ipo"}, "loss_type ipo has no meaning with weighting dmpo: it looks at more"),
        ({"loss_type": ["dpo", "sft"]}, "loss_type sft has no meaning with weighting dmpo"),
        ({"ld_alpha": 0.5}, "ld_alpha has no meaning with weighting dmpo: remove it, or use"),
        ({"use_weighting": True, "weighting": "token"}, "use_weighting has no meaning with weighting t"),
    ],
)  # fmt: skip
def test_keys_and_objectives_without_a_meaning_are_refused(keys, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(**keys)
    assert message in str(caught.value)


def test_objectives_of_the_margin_are_those_that_see_nothing_else() -> None:
    able = {"dpo", "cdpo", "robust", "hinge", "ipo_sum", "exo", "discopop", "home_advantage"}
    assert all(map(sees_margins_only, able | {"odpo", "dpo_margin", "aot", "beta_dpo"}))
    unable = {"ipo", "dpo_norm", "sppo", "nca", "cal_dpo", "tdpo", "wpo", "ld_dpo", "f_dpo", "kto"}
    assert not any(map(sees_margins_only, unable | {"sft", "simpo", "orpo", "mmpo", "mallows"}))


def test_defaults_are_written_out_and_gamma_reaches_no_objective() -> None:
    assert METHOD.weigh is not None
    config = recipe()
    assert (config.beta, config.gamma, config.turns, config.separator_weight) == (
        0.1, 0.7, "surviving", "turn",
    )  # fmt: skip
    plain = recipe(weighting="dpo")
    assert (plain.gamma, plain.turns, plain.separator_weight) == (None, None, None)
    assert (
        recipe(
            **config.model_dump(mode="json", exclude={"method", "model_name_or_path", "train_file"})
        )
        == config
    )
    empty = Pairs(*[torch.zeros(1)] * len(Pairs._fields))
    for config in (recipe(gamma=0.3), recipe(loss_type=["hinge"])):
        (term,) = terms(config)
        assert float(term.objective(empty).loss) == pytest.approx(
            1.0 if "hinge" in config.loss_type else math.log(2)
        )
