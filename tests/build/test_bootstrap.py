"""Pairs by reward minus a penalty on length, and the penalty that is found: acceptance A1 to A6 of DICE."""

from __future__ import annotations

import numpy as np
import pytest

from prefopt.build.bootstrap import (
    Candidates,
    Pairing,
    PairRule,
    choose,
    length_gap,
    scan_fully,
    scan_officially,
)

rng = np.random.default_rng
BEST_WORST = PairRule()


def one(rewards: list[float], texts: list[str]) -> Candidates:
    return Candidates.of([rewards], [[float(len(t)) for t in texts]], [texts])


def biased(
    slope: float, *, prompts: int = 400, samples: int = 8, quality: float = 1.0
) -> Candidates:
    """r = q + slope * length, q independent of length."""
    draw = rng(0)
    lengths = draw.integers(20, 400, (prompts, samples)).astype(float)
    q = quality * draw.normal(size=(prompts, samples))
    texts = [[f"{g} {k}" for k in range(samples)] for g in range(prompts)]
    return Candidates.of((q + slope * lengths).tolist(), lengths.tolist(), texts)


def places(
    candidates: Candidates, alpha: float, rule: PairRule = BEST_WORST
) -> list[tuple[int, int, int]]:
    found = choose(candidates, alpha, rule)
    return list(
        zip(found.group.tolist(), found.chosen.tolist(), found.rejected.tolist(), strict=True)
    )


def test_a1_no_reward_no_pair_and_with_alpha_shortest_against_longest() -> None:
    nothing = one([0.0, 0.0, 0.0], ["abc", "a", "abcdef"])
    found = choose(nothing, 0.0)
    assert (len(found.group), found.close) == (0, 1)
    assert places(nothing, 0.1) == [(0, 1, 2)]
    fit = scan_fully(nothing)
    assert (fit.alpha, fit.curve[0].gap, fit.curve[0].pairs) == (0.0, None, 0)


def test_a2_without_alpha_best_and_worst_by_reward() -> None:
    draw = rng(1)
    rewards, lengths = draw.normal(size=(50, 6)), draw.integers(1, 99, (50, 6)).astype(float)
    texts = [[f"{g} {k}" for k in range(6)] for g in range(50)]
    found = places(Candidates.of(rewards.tolist(), lengths.tolist(), texts), 0.0)
    assert found == [(g, int(np.argmax(r)), int(np.argmin(r))) for g, r in enumerate(rewards)]


def test_a3_a_constant_per_prompt_changes_no_pair() -> None:
    plain = biased(0.01)
    shift = rng(2).integers(-8, 8, (400, 1)).astype(float)
    moved = Candidates(plain.rewards + shift, plain.lengths, plain.texts)
    for alpha in (0.0, 0.01, 0.03):
        assert places(moved, alpha) == places(plain, alpha)


def test_a4_beta_and_alpha_scale_together() -> None:
    plain = biased(0.01)
    doubled = Candidates(4 * plain.rewards, plain.lengths, plain.texts)
    assert places(doubled, 0.04) == places(plain, 0.01)
    # Alpha in the published unit belongs to log-ratios: beta times it to rewards.
    beta, official = 0.125, 0.016
    assert places(
        Candidates(beta * plain.rewards, plain.lengths, plain.texts), beta * official
    ) == (places(plain, official))
    small = scan_officially(Candidates(beta * plain.rewards, plain.lengths, plain.texts), beta=beta)
    assert small.alpha == beta * scan_officially(plain, beta=1.0).alpha
    assert len(small.curve) == len(scan_officially(plain, beta=1.0).curve)


@pytest.mark.parametrize("slope", [0.003, 0.02])
def test_a5_alpha_recovers_a_planted_bias(slope: float) -> None:
    candidates = biased(slope)
    fit = scan_fully(candidates)
    # q alone has a gap of its own by chance: a few per cent of the bias with 400 prompts.
    assert fit.alpha == pytest.approx(slope, abs=4e-4)
    gap = length_gap(candidates, choose(candidates, fit.alpha))
    assert gap is not None
    assert abs(gap) < 0.5, "of lengths from 20 to 400"
    assert scan_officially(candidates, beta=1.0).alpha == pytest.approx(slope, abs=1e-3)


def test_a5_the_true_ranking_comes_back() -> None:
    candidates = biased(0.02)
    quality = candidates.rewards - 0.02 * candidates.lengths
    best = quality.argmax(axis=1)

    def agreement(alpha: float) -> float:
        found = choose(candidates, alpha)
        return float((found.chosen == best[found.group]).mean())

    assert agreement(scan_fully(candidates).alpha) > 0.95
    assert agreement(0.0) < 0.5


def test_a5_two_samples_without_quality_flip_at_the_bias_exactly() -> None:
    lengths = [[3.0, 8.0], [40.0, 10.0], [7.0, 6.0]]
    rewards = [[0.25 * n for n in row] for row in lengths]
    candidates = Candidates.of(rewards, lengths, [["a", "b"]] * 3)
    gaps = [length_gap(candidates, choose(candidates, alpha)) for alpha in (0.2499, 0.25, 0.2501)]
    assert gaps == [12.0, None, -12.0]


def test_a5_a_bias_to_short_answers_needs_a_negative_alpha() -> None:
    candidates = biased(-0.02)
    assert scan_fully(candidates).alpha == 0.0
    assert scan_fully(candidates, allow_negative=True).alpha == pytest.approx(-0.02, abs=4e-4)


def test_a6_the_curve_is_constant_between_changes_of_order_and_best_at_alpha() -> None:
    candidates = biased(0.01, prompts=12, samples=4)
    fit = scan_fully(candidates)
    gaps = {p.alpha: p.gap for p in fit.curve}
    gap, plain = gaps[fit.alpha], gaps[0.0]
    assert gap is not None
    assert plain is not None
    assert abs(gap) <= abs(plain)
    # Exhaustive: 72 places where an order changes, nothing else moves the gap.
    dense = np.linspace(0, 0.1, 4001)
    found = [length_gap(candidates, choose(candidates, a)) for a in dense]
    assert abs(gap) <= min(abs(g) for g in found if g is not None) + 1e-12
    assert len(set(found)) <= 12 * 6 + 1


def test_a6_both_scans_agree_on_a_smooth_curve_and_differ_on_a_bump() -> None:
    smooth = biased(0.02, prompts=4000)
    assert scan_officially(smooth, beta=1.0).alpha == pytest.approx(
        scan_fully(smooth).alpha, abs=1e-3
    )
    # A pair of +2 is lost to min_margin at 0.01, so the mean rises from 6 to 10; at 0.04 it is back as one of -2.
    bump = Candidates.of(
        [[50.0, 0.0], [0.05, 0.0]], [[20.0, 10.0], [12.0, 10.0]], [["a", "b"], ["c", "d"]]
    )
    rule = PairRule(min_margin=0.03)
    official, full = scan_officially(bump, rule, beta=1.0), scan_fully(bump, rule)
    assert official.alpha == 0.0
    assert [official.curve[0].gap, official.curve[-1].gap] == [6.0, 10.0]
    assert len(official.curve) <= 12, "and what lies behind the bump is never seen"
    assert length_gap(bump, choose(bump, full.alpha, rule)) == 4.0


def test_the_signed_gap_of_best_and_worst_only_falls() -> None:
    candidates = biased(0.01, prompts=30)
    gaps = [length_gap(candidates, choose(candidates, a)) for a in np.linspace(-0.1, 0.1, 301)]
    known = [gap for gap in gaps if gap is not None]
    assert known == sorted(known, reverse=True)
    assert known[0] > 0 > known[-1]


def test_equal_texts_and_equal_rewards_are_no_pairs() -> None:
    same = one([0.5, 0.2, 0.1], ["yes", "yes", "yes"])
    assert (len(choose(same, 0.0).group), choose(same, 0.0).equal) == (0, 1)
    tied = one([0.5, 0.5], ["yes", "no!"])
    assert (len(choose(tied, 0.0).group), choose(tied, 0.0).close) == (0, 1)
    one_differs = one([0.5, 0.5, 0.5, 0.1], ["yes", "yes", "yes", "no"])
    assert places(one_differs, 0.0) == [(0, 0, 3)]
    assert places(one_differs, 0.0, PairRule(min_margin=0.4)) == []


def test_margins_that_rounding_can_make_are_ties() -> None:
    rewards, texts = [[5e-8, 0.0], [0.3, 0.1]], [["ab", "cd"], ["ab", "cd"]]
    lengths = [[2.0, 2.0], [2.0, 2.0]]
    noisy = Candidates.of(rewards, lengths, texts, [[3e-8, 3e-8], [3e-8, 3e-8]])
    found = choose(noisy, 0.0)
    assert (found.group.tolist(), found.close) == ([1], 1)
    assert len(choose(Candidates.of(rewards, lengths, texts), 0.0).group) == 2
    wide = choose(noisy, 0.0, BEST_WORST._replace(min_margin=0.5))
    assert wide.close == 2, "min_margin counts where it is more"


def test_topk_pairs_the_ith_best_with_the_ith_worst() -> None:
    five = one([0.1, 0.9, 0.5, 0.3, 0.7], list("abcde"))
    assert places(five, 0.0, PairRule("topk", top=3)) == [(0, 1, 0), (0, 4, 3)]
    assert places(five, 0.0, PairRule("topk", top=1)) == places(five, 0.0)


def test_random_draws_two_by_seed_and_chooses_the_better() -> None:
    many = biased(0.0, prompts=60)
    found = places(many, 0.0, PairRule("random", seed=3))
    assert found == places(many, 0.0, PairRule("random", seed=3))
    assert found != places(many, 0.0, PairRule("random", seed=4))
    assert len(found) == 60
    assert all(many.rewards[g, c] > many.rewards[g, r] for g, c, r in found)
    assert {(g, *sorted((c, r))) for g, c, r in found} == {
        (g, *sorted((c, r))) for g, c, r in places(many, 0.02, PairRule("random", seed=3))
    }


def test_prompts_with_different_numbers_of_answers() -> None:
    ragged = Candidates.of(
        [[0.1, 0.3], [], [0.5], [0.2, 0.9, 0.4]],
        [[1.0, 2.0], [], [1.0], [1.0, 2.0, 3.0]],
        [["a", "b"], [], ["c"], ["d", "e", "f"]],
    )
    for rule in (PairRule(), PairRule("topk", top=1)):
        assert places(ragged, 0.0, rule) == [(0, 1, 0), (3, 1, 0)]
    assert {g for g, _, _ in places(ragged, 0.0, PairRule("random"))} == {0, 3}


def test_no_prompts_at_all() -> None:
    none = Candidates.of([], [], [])
    assert scan_fully(none).alpha == 0.0
    assert scan_officially(none, beta=0.1).alpha == 0.0
    assert length_gap(none, choose(none, 0.0)) is None


@pytest.mark.parametrize("pairing", ["best_worst", "random"])
def test_a_full_scan_finds_the_smallest_gap_behind_plateaus(pairing: Pairing) -> None:
    for seed in range(12):
        draw = np.random.default_rng(seed)
        lengths = draw.integers(1, 40, (15, 6)).astype(float)
        rewards = 0.05 * lengths + draw.standard_normal((15, 6)) ** 3
        texts = np.arange(90).reshape(15, 6).astype(str)
        many = Candidates.of(rewards.tolist(), lengths.tolist(), texts.tolist())
        rule = PairRule(pairing, seed=seed)
        few, all_of_them = scan_fully(many, rule, points=3), scan_fully(many, rule, points=5000)
        found, smallest = (
            length_gap(many, choose(many, fit.alpha, rule)) for fit in (few, all_of_them)
        )
        assert found is not None
        assert smallest is not None
        assert abs(found) == abs(smallest)
        assert len(few.curve) < len(all_of_them.curve)
