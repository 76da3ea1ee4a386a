"""Losses and gradients of coupled objectives do not depend on how the global batch is cut into parts."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from prefopt.errors import RecordError
from prefopt.objectives import aot, aot_unpaired, bco, beta_dpo, dpo, kto, odpo
from prefopt.objectives.types import Scores
from prefopt.train.coupling import Part, join
from prefopt.train.terms import Term, Terms

CPU = torch.device("cpu")


def forest(records: int = 7, seed: int = 0) -> tuple[list[str], Scores]:
    """Records of two or three responses, with one or two pairs and one answer to another prompt each."""
    g = np.random.default_rng(seed)
    ids, chosen, rejected, group, mismatched = [], [], [], [], []
    for number in range(records):
        first, k = len(group), int(g.integers(2, 4))
        ids.append(f"r{int(g.integers(1_000_000))}")
        group += [number] * (k + 1)
        mismatched += [False] * k + [True]
        chosen += [first] * (k - 1)
        rejected += [first + j for j in range(1, k)]
    count = len(group)
    nan = torch.full((count,), torch.nan, dtype=torch.float64)
    scores = Scores(
        torch.tensor(g.normal(-20, 5, count)), torch.tensor(g.normal(-20, 5, count)), torch.ones(count) * 9,
        torch.tensor(chosen), torch.tensor(rejected), torch.tensor(group), nan, nan, nan,
        torch.zeros(len(chosen)), mismatched=torch.tensor(mismatched),
    )  # fmt: skip
    return ids, scores


def cut(ids: list[str], scores: Scores, groups: list[int]) -> Part:
    """The part with the records numbered `groups`, in that order."""
    responses = torch.cat([torch.nonzero(scores.group == g).flatten() for g in groups])
    place = {int(r): i for i, r in enumerate(responses)}
    pairs = [p for p in range(len(scores.chosen)) if int(scores.chosen[p]) in place]
    pairs.sort(key=lambda p: place[int(scores.chosen[p])])
    number = {g: i for i, g in enumerate(groups)}
    assert scores.reference is not None and scores.mismatched is not None
    part = scores._replace(
        policy=scores.policy[responses], reference=scores.reference[responses], length=scores.length[responses],
        group=torch.tensor([number[int(g)] for g in scores.group[responses]]),
        score=scores.score[responses], rank=scores.rank[responses], label=scores.label[responses],
        chosen=torch.tensor([place[int(scores.chosen[p])] for p in pairs]),
        rejected=torch.tensor([place[int(scores.rejected[p])] for p in pairs]),
        margin=scores.margin[pairs], mismatched=scores.mismatched[responses],
    )  # fmt: skip
    weights = {
        "pairs": torch.tensor([1.0 + int(scores.chosen[p]) % 3 for p in pairs]),
        "responses": (~scores.mismatched[responses]).double(),
    }
    return Part(tuple(ids[g] for g in groups), part, weights)


def gradient(objective, ids, scores, groups: list[list[int]]) -> tuple[float, torch.Tensor, dict]:
    """Weighted loss and its gradient on every response, over several parts of one step."""
    policy = scores.policy.clone().requires_grad_()
    terms = Terms([Term(objective)], seed=3, device=CPU)
    live = [cut(ids, scores._replace(policy=policy), part) for part in groups]
    detached = [part.to(CPU) for part in live] if len(groups) > 1 else []
    total = torch.zeros((), dtype=torch.float64)
    with terms.step(5, detached, first=0):
        for part in live:
            (weighted,) = terms.apply(part)
            total = total + (weighted.losses.loss * weighted.weight).sum()
    return total.item(), torch.autograd.grad(total, policy)[0], terms.state()


OBJECTIVES = [
    partial(aot, beta=0.3), partial(aot_unpaired, beta=0.3, label_smoothing=0.1), partial(bco, beta=0.2),
    partial(beta_dpo, beta=0.2, rho=0.4), partial(kto, beta=0.3, desirable_weight=2.0),
]  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.func.__name__)
@pytest.mark.parametrize(
    "groups", [[[0, 1, 2], [3, 4, 5, 6]], [[6, 2], [5, 0], [1], [4, 3]], [[6, 5, 4, 3, 2, 1, 0]]]
)
def test_parts_add_up_to_the_whole(objective, groups) -> None:
    ids, scores = forest()
    whole = gradient(objective, ids, scores, [list(range(7))])
    parts = gradient(objective, ids, scores, groups)
    assert parts[0] == pytest.approx(whole[0], rel=1e-12)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-10, atol=1e-12)
    assert parts[2].keys() == whole[2].keys()
    for number, state in whole[2].items():
        assert parts[2][number] == pytest.approx(state, rel=1e-12)


def test_sorting_parts_apart_would_be_another_loss() -> None:
    """The control: without the whole batch the parts do not add up."""
    ids, scores = forest()
    whole = gradient(partial(aot, beta=0.3), ids, scores, [list(range(7))])
    apart = [
        gradient(partial(aot, beta=0.3), ids, scores, [part]) for part in ([0, 1, 2], [3, 4, 5, 6])
    ]
    assert abs(sum(loss for loss, _, _ in apart) - whole[0]) > 1e-3


def test_statistics_count_once_a_step_and_only_if_it_ends_well() -> None:
    ids, scores = forest()
    part = cut(ids, scores, list(range(7)))
    terms = Terms([Term(partial(bco, beta=0.2))], seed=0, device=CPU)
    before = terms.state()
    with pytest.raises(RuntimeError), terms.step(0, [], first=0):
        raise RuntimeError(terms.apply(part))
    assert terms.state() == before
    with terms.step(0, [], first=0):
        terms.apply(part)
        terms.apply(part)
    once = terms.state()
    assert once["0"]["count"] > 0 and once != before
    with terms.step(None, [], first=0):
        terms.apply(part)
    terms.apply(part)
    assert terms.state() == once


def test_joining_orders_by_id_and_finds_the_own_part() -> None:
    ids, scores = forest()
    parts = [cut(ids, scores, [6, 2]), cut(ids, scores, [0, 5, 1, 4, 3])]
    whole = join(parts)
    for number, part in enumerate(parts):
        here = whole.scores.policy[whole.responses[number]]
        torch.testing.assert_close(here, part.scores.policy)
        own = whole.scores.policy[whole.scores.chosen][whole.pairs[number]]
        torch.testing.assert_close(own, part.scores.policy[part.scores.chosen])
    other = join(parts[::-1])
    torch.testing.assert_close(whole.scores.policy, other.scores.policy)
    assert torch.equal(whole.scores.chosen, other.scores.chosen)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.func.__name__)
def test_an_evaluation_in_parts_is_that_of_the_whole(objective) -> None:
    ids, scores = forest()
    terms = Terms([Term(objective)], seed=3, device=CPU)
    losses: list[float] = []
    for groups in ([list(range(7))], [[6, 2], [5, 0], [1], [4, 3]]):
        parts = [cut(ids, scores, group) for group in groups]
        with terms.step(None, parts if len(parts) > 1 else [], first=0):
            found = [terms.apply(part)[0] for part in parts]
        losses.append(sum((f.losses.loss * f.weight).sum().item() for f in found))
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


def test_what_an_objective_refuses_names_the_records() -> None:
    ids, scores = forest(2)
    terms = Terms([Term(dpo), Term(odpo, 0.5)], seed=0, device=CPU)
    with pytest.raises(RecordError, match=f"records {ids[0]}, {ids[1]}: odpo: "):
        terms.apply(cut(ids, scores, [0, 1]))


def test_an_empty_part_gives_nothing() -> None:
    ids, scores = forest()
    empty = cut(ids, scores, [0]).scores.each(lambda v: v[:0])
    nothing = Part((), empty, {"pairs": torch.zeros(0), "responses": torch.zeros(0)})
    terms = Terms([Term(partial(aot, beta=0.3))], seed=0, device=CPU)
    parts = [cut(ids, scores, list(range(7))), nothing]
    with terms.step(0, parts, first=1):
        (weighted,) = terms.apply(nothing)
    assert weighted.losses.loss.shape == (0,)
