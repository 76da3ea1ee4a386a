"""KTO, APO-zero and BCO of single responses: numpy forms, labels, the KL estimate, the running mean, edges."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from prefopt.objectives.types import Scores, needs_of, parameters_of
from prefopt.objectives.unpaired import (
    advance_delta,
    apo_zero_unpaired,
    bco_unpaired,
    desirable,
    kto,
)

ALL = [kto, apo_zero_unpaired, bco_unpaired]
NAN = math.nan


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def given(
    ratio: list[float],
    label: list[float],
    *,
    mismatched: list[bool] | None = None,
    pairs: list[tuple[int, int]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Scores:
    """Responses with these log-ratios over a reference of -3, and labels."""
    n = len(ratio)
    log_ratio = torch.tensor(ratio, dtype=dtype, requires_grad=True)
    missing = torch.full((n,), NAN, dtype=dtype)
    index = torch.tensor(pairs or [], dtype=torch.int64).reshape(-1, 2)
    return Scores(
        policy=log_ratio - 3.0,
        reference=torch.full((n,), -3.0, dtype=dtype),
        length=torch.ones(n, dtype=dtype),
        chosen=index[:, 0],
        rejected=index[:, 1],
        group=torch.arange(n),
        score=missing,
        rank=missing,
        label=torch.tensor(label, dtype=dtype),
        margin=torch.zeros(len(index), dtype=dtype),
        mismatched=None if mismatched is None else torch.tensor(mismatched),
    )


def random_scores(seed: int, n: int = 200):
    """Float64 scores with labels 1, 0 and missing, a quarter of them mismatched, and the numpy arrays."""
    g = np.random.default_rng(seed)
    ratio = g.normal(0.7, 5, n)
    mismatched = g.random(n) < 0.25
    label = np.where(mismatched, NAN, g.choice([1.0, 0.0, NAN], n, p=[0.5, 0.4, 0.1]))
    scores = given(
        ratio.tolist(), label.tolist(), mismatched=mismatched.tolist(), dtype=torch.float64
    )
    # (ratio - 3) + 3 rounds; the arrays hold what the objectives see.
    return scores, (scores.policy.detach().numpy() + 3.0), label, mismatched


def by_label(label, good, bad):
    return np.where(label == 1, good, np.where(label == 0, bad, 0.0))


@pytest.mark.parametrize(
    "parameters", [{"beta": 0.1}, {"beta": 0.6, "desirable_weight": 1.3, "undesirable_weight": 0.4}]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_kto_against_numpy(parameters, seed) -> None:
    scores, ratio, label, mismatched = random_scores(seed)
    z0 = max(0.0, ratio[mismatched].mean())
    beta = parameters["beta"]
    good = parameters.get("desirable_weight", 1.0) * (1 - sigmoid(beta * (ratio - z0)))
    bad = parameters.get("undesirable_weight", 1.0) * (1 - sigmoid(beta * (z0 - ratio)))
    out = kto(scores, **parameters)
    np.testing.assert_allclose(
        out.loss.detach().numpy(), by_label(label, good, bad), rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(out.terms["kl"].numpy(), z0, rtol=0, atol=1e-10)
    for mark, name in ((1, "rewards/chosen"), (0, "rewards/rejected")):
        side = np.where(label == mark, beta * ratio, np.nan)
        np.testing.assert_allclose(out.terms[name].numpy(), side, rtol=0, atol=1e-10)


@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_apo_zero_and_bco_against_numpy(beta) -> None:
    scores, ratio, label, _ = random_scores(2)
    expected = by_label(label, 1 - sigmoid(beta * ratio), sigmoid(beta * ratio))
    loss = apo_zero_unpaired(scores, beta=beta).loss.detach().numpy()
    np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-10)
    for delta in (0.0, -0.7):
        x = beta * ratio - delta
        expected = by_label(label, np.logaddexp(0, -x), np.logaddexp(0, x))
        loss = bco_unpaired(scores, beta=beta, delta=delta).loss.detach().numpy()
        np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-10)


def test_at_the_reference() -> None:
    scores = given([0.0, 0.0, 0.0], [1.0, 0.0, NAN])
    assert kto(scores, desirable_weight=1.5).loss.tolist() == [0.75, 0.5, 0.0]
    assert apo_zero_unpaired(scores).loss.tolist() == [0.5, 0.5, 0.0]
    assert bco_unpaired(scores).loss.tolist() == pytest.approx([math.log(2), math.log(2), 0.0])


def test_literal_values() -> None:
    # z0 = (5 + 1) / 2 = 3: sigma(-0.5 * (4 - 3)) and sigma(0.5 * (-1 - 3))
    scores = given(
        [4.0, -1.0, 5.0, 1.0], [1.0, 0.0, NAN, NAN], mismatched=[False, False, True, True]
    )
    expected = [0.3775406687981454, 0.1192029220221176, 0.0, 0.0]
    assert kto(scores, beta=0.5).loss.tolist() == pytest.approx(expected, rel=1e-6)
    assert kto(scores).terms["kl"].tolist() == [3.0] * 4
    # delta = 1: log(1 + e^-(2 - 1)) and log(1 + e^(-0.5 - 1))
    loss = bco_unpaired(scores, beta=0.5, delta=1.0).loss.tolist()
    assert loss == pytest.approx([0.3132616875182228, 0.2014132779827524, 0.0, 0.0], rel=1e-6)


def test_the_kl_estimate_is_at_least_0_detached_and_0_without_mismatched_answers() -> None:
    label = [1.0, 0.0, NAN]
    below = given([2.0, 1.0, -9.0], label, mismatched=[False, False, True])
    alone = given([2.0, 1.0, -9.0], label)
    nobody = given([2.0, 1.0, -9.0], label, mismatched=[False] * 3)
    expected = apo_zero_unpaired(alone, beta=0.3).loss
    for scores in (below, alone, nobody):
        out = kto(scores, beta=0.3)
        torch.testing.assert_close(out.loss, expected)
        assert out.terms["kl"].tolist() == [0.0] * 3
    above = given([2.0, 1.0, 4.0], label, mismatched=[False, False, True])
    (gradient,) = torch.autograd.grad(kto(above).loss.sum(), above.policy)
    assert gradient[2] == 0


def test_gradients_in_closed_form() -> None:
    scores, ratio, label, mismatched = random_scores(3)
    z0 = max(0.0, ratio[mismatched].mean())
    u = sigmoid(0.3 * (ratio - z0))
    (gradient,) = torch.autograd.grad(kto(scores, beta=0.3).loss.sum(), scores.policy)
    slope = 0.3 * u * (1 - u)
    np.testing.assert_allclose(gradient.numpy(), by_label(label, -slope, slope), rtol=0, atol=1e-12)
    u = sigmoid(0.3 * ratio - 0.2)
    loss = bco_unpaired(scores, beta=0.3, delta=0.2).loss
    (gradient,) = torch.autograd.grad(loss.sum(), scores.policy)
    expected = by_label(label, -0.3 * (1 - u), 0.3 * u)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=1e-12)


def test_labels_decide_and_pairs_stand_in() -> None:
    # 0: labelled against its pair; 1: rejected; 2: chosen and rejected; 3: rejected; 4: nothing; 5: mismatched
    scores = given(
        [0.0] * 6,
        [0.0, NAN, NAN, NAN, NAN, 1.0],
        mismatched=[False] * 5 + [True],
        pairs=[(0, 1), (0, 2), (2, 3)],
    )
    mark = desirable(scores)
    torch.testing.assert_close(mark, torch.tensor([0.0, 0.0, NAN, 0.0, NAN, NAN]), equal_nan=True)
    unlabelled = scores._replace(label=torch.full((6,), NAN))
    assert desirable(unlabelled)[0] == 1
    for objective in ALL:
        loss = objective(scores).loss
        assert (loss > 0).tolist() == [True, True, False, True, False, False]
        (gradient,) = torch.autograd.grad(loss.sum(), scores.policy)
        assert gradient[[2, 4, 5]].tolist() == [0.0] * 3


@pytest.mark.parametrize("objective", ALL)
def test_swapping_marks_mirrors_the_log_ratio(objective) -> None:
    ratio = [3.0, -1.0, 0.5]
    one = objective(given(ratio, [1.0, 0.0, 1.0])).loss
    other = objective(given([-r for r in ratio], [0.0, 1.0, 0.0])).loss
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("objective", ALL)
def test_the_order_of_responses_has_no_influence(objective) -> None:
    scores, _, _, kept = random_scores(4, 60)
    mismatched = torch.from_numpy(kept)
    order = torch.from_numpy(np.random.default_rng(0).permutation(60))
    shuffled = scores._replace(
        policy=scores.policy[order],
        reference=torch.full((60,), -3.0, dtype=torch.float64),
        label=scores.label[order],
        mismatched=mismatched[order],
    )
    torch.testing.assert_close(objective(scores).loss[order], objective(shuffled).loss)


def test_the_running_mean_reward() -> None:
    state = {"delta": torch.tensor(0.0).double(), "count": torch.tensor(0.0).double()}
    first = given([4.0, -1.0, 100.0, 50.0], [1.0, 0.0, NAN, 1.0], mismatched=[False] * 3 + [True])
    state = advance_delta(first, state, beta=0.5)
    assert (state["delta"].item(), state["count"].item()) == (0.75, 2.0)
    state = advance_delta(given([6.0], [1.0]), state, beta=0.5)
    assert (state["delta"].item(), state["count"].item()) == (1.5, 3.0)
    after = advance_delta(given([], []), state, beta=0.5)
    assert (after["delta"].item(), after["count"].item()) == (1.5, 3.0)
    assert all(
        v.dtype == torch.float64 and v.shape == () and not v.requires_grad for v in after.values()
    )
    default = advance_delta(given([6.0], [1.0]), {k: v * 0 for k, v in state.items()})
    assert default["delta"].item() == pytest.approx(0.1 * 6.0)
    running = needs_of(bco_unpaired).running
    assert running is not None and set(running.start) == set(after)
    assert parameters_of(bco_unpaired) == {"beta": 0.1}


@pytest.mark.parametrize("objective", ALL)
def test_edges(objective) -> None:
    extremes = [-1e6, -1e3, 0.0, 1e3, 1e6]
    for label in (0.0, 1.0):
        scores = given(extremes, [label] * 5, mismatched=[False] * 4 + [True])
        loss = objective(scores).loss
        assert loss.dtype == torch.float32 and bool(torch.isfinite(loss).all())
        (gradient,) = torch.autograd.grad(loss.sum(), scores.policy)
        assert bool(torch.isfinite(gradient).all())
    empty = objective(given([], [])).loss
    assert empty.shape == (0,)
    empty.sum().backward()
    half = objective(given([0.5, 1.0], [1.0, 0.0], dtype=torch.bfloat16))
    assert half.loss.dtype == torch.float32
    assert all(t.dtype == torch.float32 and t.shape == (2,) for t in half.terms.values())
    assert not any(t.requires_grad for t in half.terms.values())


@pytest.mark.parametrize("objective", ALL)
def test_nothing_is_read_back_from_the_device(objective) -> None:
    # Meta tensors have no values: whatever would wait for one raises.
    scores = given([1.0, 2.0], [1.0, 0.0], mismatched=[False, True], pairs=[(0, 1)])
    meta = Scores._make(None if v is None else v.to("meta") for v in scores)
    assert objective(meta).loss.device.type == "meta"
    zero = torch.zeros((), dtype=torch.float64, device="meta")
    advance_delta(meta, {"delta": zero, "count": zero})


def test_running_values_may_be_float64() -> None:
    scores = given([1.0, 2.0], [1.0, 0.0])
    delta = torch.tensor(0.25, dtype=torch.float64)
    loss = bco_unpaired(scores, delta=delta).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, bco_unpaired(scores, delta=0.25).loss)


@pytest.mark.parametrize("objective", ALL)
def test_a_missing_reference_is_named(objective) -> None:
    with pytest.raises(ValueError, match=f"^{objective.__name__} needs reference; got None$"):
        objective(given([1.0], [1.0])._replace(reference=None))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(kto, beta=0.0), "kto: beta is 0.0; it must be a finite number > 0"),
        (
            partial(kto, undesirable_weight=-1.0),
            "kto: undesirable_weight is -1.0; it must be a finite number >= 0",
        ),
        (
            partial(apo_zero_unpaired, beta=-0.1),
            "apo_zero_unpaired: beta is -0.1; it must be a finite number > 0",
        ),
        (
            partial(bco_unpaired, beta=NAN),
            "bco_unpaired: beta is nan; it must be a finite number > 0",
        ),
    ],
)
def test_parameters_out_of_range(call, message) -> None:
    with pytest.raises(ValueError) as error:
        call(given([1.0], [1.0]))
    assert str(error.value) == message


def test_needs() -> None:
    need = needs_of(kto)
    assert (need.view, need.mean, need.mismatched, need.coupled) == (
        "responses",
        "responses",
        True,
        True,
    )
    assert not needs_of(apo_zero_unpaired).coupled and needs_of(bco_unpaired).coupled
    assert all(needs_of(objective).annotations == ("labels",) for objective in ALL)
