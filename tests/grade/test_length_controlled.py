"""Length-controlled win rates: symmetries, a planted preference for length, another solver, and AlpacaEval's files."""

import math
import re
import sys
from typing import Any

import numpy as np
import pytest

from prefopt.errors import MissingExtraError, RecordError, StorageError
from prefopt.grade.length_controlled import (
    BASELINE,
    LengthWeights,
    length_controlled_winrate,
    winrate_between,
)
from prefopt.grade.length_controlled_data import read_difficulty, read_gamed
from prefopt.grade.length_design import GamedRows
from prefopt.grade.logistic import choose_strength, fit_weights
from prefopt.grade.winrate import Bootstrap, Judged


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Case:
    """A judge with logit c + d * length + e * difficulty, and a model that is longer by a random factor."""

    def __init__(self, n, c, d, e=0.0, *, seed=0, longer=(1.2, 3.0), soft=False):
        rng = np.random.default_rng(seed)
        baseline = rng.integers(300, 3000, n)
        model = (baseline * rng.uniform(longer[0], longer[1], n)).astype(int)
        gap = baseline - model
        self.baseline: list[int] = [int(length) for length in np.asarray(baseline)]
        self.model: list[int] = [int(length) for length in np.asarray(model)]
        self.length = np.tanh(gap / gap.std(ddof=1))
        self.difficulty = np.asarray(rng.normal(size=n))
        p = sigmoid(c + d * self.length + e * self.difficulty)
        self.shares = p if soft else (rng.random(n) < p).astype(float)
        self.preferences: list[Judged] = [1 + float(share) for share in self.shares]

    def rate(self, **options):
        options.setdefault("bootstrap", None)
        return length_controlled_winrate(self.preferences, self.model, self.baseline, **options)


def gamed_rows(n, seed=5):
    """Two gamed baselines on n instructions: longer and shorter than the baseline, and worse."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=n)
    lengths = np.concatenate([rng.normal(-1, 0.5, n), rng.normal(1, 0.5, n)])
    shares = np.round(sigmoid(-0.8 * np.tanh(lengths) + rng.normal(size=2 * n)), 6)
    return GamedRows(shares.tolist(), lengths.tolist(), [*hard, *hard])


def least_loss(features, shares, weights, strength, steps=20_000):
    """argmin |w|_1 + C sum(weight * cross-entropy) by accelerated proximal gradient."""
    size = strength * np.linalg.norm(features * np.sqrt(weights)[:, None], 2) ** 2 / 4
    w = ahead = np.zeros(features.shape[1])
    t = 1.0
    for _ in range(steps):
        slope = strength * features.T @ (weights * (sigmoid(features @ ahead) - shares))
        moved = ahead - slope / size
        new = np.sign(moved) * np.maximum(np.abs(moved) - 1 / size, 0)
        if np.abs(new - w).max() < 1e-12:
            return new
        after = (1 + math.sqrt(1 + 4 * t * t)) / 2
        ahead, w, t = new + (t - 1) / after * (new - w), new, after
    return w


# (a)-(e): the acceptance list of the method.
def test_a_model_against_itself_is_at_50():
    lengths = [100 + 7 * i for i in range(60)]
    found = length_controlled_winrate([1.5] * 60, lengths, lengths, bootstrap=Bootstrap(0.95, 5))
    assert (found.value, found.raw) == (50.0, 50.0)
    # Not one win and not one loss of 60: either is at most Wilson's 6.02 percent, each of which counts half.
    assert found.interval == pytest.approx((46.991, 53.009), abs=1e-3)
    assert found.weights == BASELINE == (0.0, 0.0, 0.0)
    fitted = LengthWeights(-1.2, 0.4, 0.7)
    assert winrate_between(fitted, fitted, difficulty=[-1.0, 3.0]) == 50.0
    assert winrate_between(BASELINE, BASELINE) == 50.0


def test_only_draws_are_at_50_whatever_the_lengths():
    case = Case(80, 0, 0)
    case.preferences = [1.5, 0.0, "tie", 1.5] * 20
    assert case.rate().value == 50.0
    assert case.rate(difficulty=case.difficulty.tolist()).value == pytest.approx(50, abs=1e-3)


def test_swapping_sides_turns_the_rate_round():
    case = Case(200, 0.4, -1.0)
    there = case.rate()
    back = length_controlled_winrate(
        [2 - float(share) for share in case.shares],
        case.baseline,
        case.model,
        bootstrap=None,
    )
    assert there.value + back.value == pytest.approx(100, abs=1e-3)
    assert there.raw + back.raw == pytest.approx(100)
    assert there.weights.length == pytest.approx(back.weights.length, abs=1e-3)
    assert there.strength == back.strength


@pytest.mark.parametrize(("c", "d"), [(0.5, -2.5), (-0.5, -2.5), (0.0, 2.0)])
def test_a_planted_preference_for_length_is_taken_out(c, d):
    case = Case(2000, c, d, seed=1, longer=(1.0, 3.0))
    found = case.rate(bootstrap=Bootstrap(resamples=40))
    truth = 100 * sigmoid(c)
    # The judge likes (or dislikes) long answers and the model is always longer: the raw rate is off by far.
    assert abs(found.raw - truth) > 15
    assert found.interval
    assert found.interval.low < truth < found.interval.high
    # Length and model go together, so the rate is known to about 3 points.
    assert abs(found.value - truth) < 6
    assert found.weights.length == pytest.approx(d, abs=0.6)


def test_equal_lengths_leave_the_raw_rate_up_to_the_penalty():
    shares = [1.0] * 42 + [0.0] * 18
    preferences = [1 + share for share in shares]
    found = length_controlled_winrate(preferences, [100] * 60, [90] * 60, bootstrap=None)
    # One coefficient: |w| + C sum(cross-entropy) is least where 60 sigmoid(w) = 42 - 1 / C.
    expected = 100 * (42 - 1 / found.strength) / 60
    assert found.value == pytest.approx(expected, abs=0.01)
    assert found.weights.length == 0.0
    assert found.remarks == (
        "all answers differ by -10 characters from the baseline's: length is not controlled for",
    )


def test_difficulty_explains_what_length_does_not():
    case = Case(1500, 0.3, -1.5, e=1.0, soft=True)
    found = case.rate(difficulty=case.difficulty.tolist())
    # Soft targets without noise: the judge is recovered up to the penalty.
    assert found.weights == pytest.approx((-1.5, 1.0, 0.3), abs=0.02)
    assert found.value == pytest.approx(100 * sigmoid(0.3 + case.difficulty).mean(), abs=0.2)
    assert found.predicted == pytest.approx(
        100 * sigmoid(found.weights.model + found.weights.difficulty * case.difficulty)
    )
    assert found.standard_error == pytest.approx(np.std(found.predicted, ddof=1) / 1500**0.5)


@pytest.mark.parametrize("strength", [0.02, 1.0, 100.0])
def test_another_solver_finds_the_same_weights(strength):
    case, gamed = Case(120, 0.4, -1.0, e=0.5, soft=True), gamed_rows(120)
    real = np.column_stack([case.length, case.difficulty, np.ones(120)])
    other = np.column_stack([np.tanh(gamed.lengths), gamed.difficulty, np.zeros(240)])
    features = np.concatenate([other, real])
    shares = np.concatenate([gamed.shares, case.shares])
    weights = np.concatenate([np.full(240, 0.1), np.ones(120)])
    found = fit_weights(features, shares, weights, strength)
    assert found == pytest.approx(least_loss(features, shares, weights, strength), abs=2e-3)
    # The optimality conditions of the L1 penalty.
    slope = strength * features.T @ (weights * (sigmoid(features @ found) - shares))
    for coefficient, s in zip(found, slope, strict=True):
        slack = 0.02 * max(1, strength)
        assert abs(s + np.sign(coefficient)) < slack if coefficient else abs(s) < 1 + slack


@pytest.mark.slow
@pytest.mark.parametrize("turns", [1, 2])
def test_the_penalty_is_the_one_that_cross_validation_in_scikit_learn_chooses(turns):
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import GroupKFold

    def score(model, features, labels, sample_weight):
        p = np.clip(model.predict_proba(features)[:, 1], 1e-15, 1 - 1e-15)
        return (sample_weight * np.where(labels == 1, np.log(p), np.log(1 - p))).mean()

    settings: dict[str, Any] = {
        "scoring": score,
        "l1_ratios": (1,),
        "use_legacy_attributes": False,
    }
    for seed in range(3):
        case = Case(90, 0.2, -0.4, e=0.2, seed=seed)
        features = np.column_stack([case.length, case.difficulty, np.ones(90)])
        weights = np.random.default_rng(seed).uniform(0.1, 1, 90)
        twice, groups = np.tile(features, (2, 1)), np.tile(np.arange(90) // turns, 2)
        theirs = LogisticRegressionCV(
            cv=list(GroupKFold(5).split(twice, groups=groups)),
            solver="liblinear",
            fit_intercept=False,
            random_state=123,
            **settings,
        ).fit(
            twice,
            np.repeat([1, 0], 90),
            sample_weight=np.concatenate([case.shares * weights, (1 - case.shares) * weights]),
        )
        alone = None if turns == 1 else np.arange(90) // turns
        strength = choose_strength(features, case.shares, weights, groups=alone)
        assert strength == theirs.C_
        found = fit_weights(features, case.shares, weights, strength)
        assert found.tolist() == theirs.coef_[0].tolist()


def test_gamed_rows_weigh_a_tenth_and_pull_their_way():
    case, gamed = Case(60, 0.4, -1.0), gamed_rows(60)
    alone, steadied = case.rate(), case.rate(gamed=gamed)
    assert alone.weights.length != steadied.weights.length
    # Ten copies of the gamed rows and of nothing else outweigh the judge's own preferences.
    many = GamedRows(*(list(column) * 100 for column in gamed))
    pulled = case.rate(gamed=many)
    of_gamed = fit_weights(
        np.tanh(gamed.lengths)[:, None], np.array(gamed.shares), np.ones(120), 1000.0
    )
    assert pulled.weights.length == pytest.approx(of_gamed[0], abs=0.1)
    # Without difficulty of the prompts that of the gamed rows plays no part.
    other = gamed._replace(difficulty=[9.0] * 120)
    assert case.rate(gamed=other).weights == steadied.weights


def test_missing_preferences_are_predicted_but_not_fitted():
    case = Case(100, 0.4, -2.5, e=1.0, soft=True)
    hard = case.difficulty.tolist()
    case.preferences[3], case.preferences[50] = None, "missing"
    found = case.rate(difficulty=hard)
    assert found.missing == 2 and len(found.predicted) == 100
    assert found.raw == pytest.approx(100 * np.delete(case.shares, [3, 50]).mean())
    # The prompts without a preference still say how long answers are.
    case.model[3] += 50_000
    assert case.rate(difficulty=hard).weights.length != found.weights.length
    # Missing gamed rows do nothing.
    gamed = gamed_rows(20)
    gap = GamedRows([*gamed.shares, math.nan], [*gamed.lengths, 9.0], [*gamed.difficulty, 9.0])
    assert case.rate(gamed=gap).weights == case.rate(gamed=gamed).weights


def test_few_prompts_have_a_fixed_penalty():
    case = Case(49, 0.5, -1.0, longer=(0.5, 1.8))
    found = case.rate()
    assert found.strength == 100.0
    assert found.remarks == ("only 49 preferences: C is fixed at 100 instead of chosen",)
    assert Case(50, 0.5, -2.0, longer=(0.5, 1.8)).rate().remarks == ()


@pytest.mark.parametrize(("preference", "raw"), [(2.0, 100.0), (1.0, 0.0)])
@pytest.mark.parametrize(("count", "open_"), [(20, 16.1125), (60, 6.0172)])
def test_winning_or_losing_everything_stays_on_its_side(preference, raw, count, open_, capfd):
    case = Case(count, 0, 0)
    case.preferences = [preference] * count
    found = case.rate(bootstrap=Bootstrap(resamples=3))
    assert found.raw == raw
    # |w| + C n log(1 + e^-w) is least where n sigmoid(-w) = 1 / C; the length term may take a part over.
    assert abs(found.value - raw) < 5
    assert found.interval
    # Wilson's interval of none among so many, since all resamples are alike.
    far, near = sorted(found.interval, key=lambda bound: abs(bound - raw), reverse=True)
    assert near == raw and abs(far - raw) == pytest.approx(open_, abs=1e-3)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_intervals_of_weak_effects_hold_the_truth_and_are_never_a_point():
    # The judge does not look at length, and 57 of 100 are too few for a penalty that leaves any weight in many sets.
    truth, held, nothing = 57.0, 0, 0
    for seed in range(12):
        case = Case(100, math.log(57 / 43), 0, seed=seed, longer=(0.7, 1.8))
        found = case.rate(bootstrap=Bootstrap(resamples=30))
        assert found.interval and found.interval.high - found.interval.low > 5
        held += found.interval.low <= truth <= found.interval.high
        nothing += found.value == 50
    assert held >= 10 and nothing >= 2


def test_a_fit_that_finds_nothing_says_so_and_has_an_interval_all_the_same():
    case = Case(100, 0.28, 0, seed=5, longer=(0.7, 1.8))
    found = case.rate(bootstrap=Bootstrap(resamples=30))
    assert (found.value, found.weights, found.raw) == (50.0, BASELINE, pytest.approx(56.0))
    assert found.remarks == (
        "the penalty left the model a weight of 0, so the rate is 50 by construction (the raw one is 56.0); its "
        "interval is that of fits with C = 100, widened to hold 50",
    )
    assert found.interval
    assert found.interval.low < 50 and found.interval.high > 57


def test_the_interval_holds_the_rate():
    # The penalty leaves nothing, but next to no penalty nearly all resamples are above 50.
    found = Case(100, 0.35, 0, seed=8, longer=(0.7, 1.8)).rate(bootstrap=Bootstrap(resamples=30))
    assert (found.value, found.weights, found.raw) == (50.0, BASELINE, pytest.approx(60.0))
    assert found.interval
    assert found.interval.low == 50.0 and found.interval.high > 65


def test_conversations_with_the_same_share_of_wins_leave_something_open():
    case = Case(60, 0, 0)
    case.preferences = ["win", "loss"] * 30
    found = case.rate(clusters=[at // 2 for at in range(60)], bootstrap=Bootstrap(resamples=5))
    assert found.interval and found.resampled == ()
    # Wilson's interval of none among 30 is up to 11.352 percent, each of which counts half.
    assert found.interval.low <= 44.325 and found.interval.high >= 55.675


def test_the_interval_chooses_the_penalty_again():
    # Found are 62.8 with C = 2.8, but in some resamples every weight is 0.
    found = Case(100, 0.28, 0, seed=1, longer=(0.7, 1.8)).rate(bootstrap=Bootstrap(resamples=40))
    assert found.value > 60 and found.interval
    assert found.interval.low == 50.0


def test_turns_of_a_conversation_are_drawn_and_held_back_together():
    case = Case(120, 1.0, -1.5, longer=(0.5, 1.8))
    few = Bootstrap(resamples=100)
    alone = case.rate(bootstrap=few)
    for column in ("preferences", "model", "baseline"):
        setattr(case, column, [value for value in getattr(case, column) for _ in range(2)])
    apart = case.rate(bootstrap=few)
    together = case.rate(bootstrap=few, clusters=[at // 2 for at in range(240)])
    width = lambda found: found.interval.high - found.interval.low  # noqa: E731
    # Two turns of the same verdict tell no more than one.
    assert width(together) > 1.2 * width(apart)
    assert width(together) == pytest.approx(width(alone), rel=0.2)
    with pytest.raises(ValueError, match="240 preferences and 3 clusters"):
        case.rate(clusters=[1, 2, 3])


def test_too_few_conversations_for_cross_validation_have_a_fixed_penalty():
    case = Case(60, 0.5, -2.0, longer=(0.5, 1.8))
    found = case.rate(clusters=[at % 4 for at in range(60)], bootstrap=Bootstrap(resamples=5))
    assert found.strength == 100.0
    assert found.remarks == ("only 4 clusters of preferences: C is fixed at 100 instead of chosen",)


def test_fits_that_do_not_converge_are_remarked():
    case = Case(400, 0, 0)
    case.preferences = [2.0 if hard > 0.3 else 1.0 for hard in case.difficulty]
    found = case.rate(difficulty=case.difficulty.tolist())
    # liblinear gives up with a warning in the fits to perfectly separated rows that are hardly penalised.
    assert re.fullmatch(r"[1-9]\d? fits of the rate ended before they converged", found.remarks[0])


@pytest.mark.parametrize("wrong", [[True, False, True], [0, 1, 1], [0.0, 1.0, None]])
def test_wins_on_another_scale_are_refused(wrong):
    with pytest.raises(ValueError, match="True is no verdict|are all 0 or 1"):
        length_controlled_winrate(wrong, [1, 2, 3], [3, 2, 1])


def test_what_is_beyond_belief_is_remarked():
    # The judge likes length and little else; AlpacaEval's bounds are 10 points or a quarter of the way.
    case = Case(2000, -1.0, -6.0, longer=(1.0, 3.0))
    found = case.rate()
    low = min(found.raw - found.raw / 4, found.raw - 10)
    assert found.value < low
    assert found.remarks[0].startswith(
        f"the length-controlled win rate {found.value:.1f} is far from the raw one {found.raw:.1f}"
    )


def test_equal_seeds_give_equal_intervals():
    case = Case(60, 0.4, -1.0)
    few = Bootstrap(resamples=10)
    assert case.rate(bootstrap=few) == case.rate(bootstrap=few)


def test_rate_over_another_baseline_is_the_difference_of_weights():
    strong, weak = LengthWeights(-1.0, 0.5, 1.2), LengthWeights(-3.0, 0.1, -0.3)
    expected = 100 * (sigmoid(1.5 - 0.4) + sigmoid(1.5 + 0.8)) / 2
    assert winrate_between(strong, weak, difficulty=[-1.0, 2.0]) == pytest.approx(expected)
    assert winrate_between(weak, strong, difficulty=[-1.0, 2.0]) == pytest.approx(100 - expected)
    with pytest.raises(ValueError, match="weights for difficulty differ by 0.4"):
        winrate_between(strong, weak)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([2, 1], [1], [1, 2]), {}, "2 preferences and 1 lengths of the model"),
        (([2, 1], [1, 2], [1]), {}, "2 preferences and 1 lengths of the baseline"),
        (([2, 1], [1, 2], [1, 2]), {"difficulty": [1.0]}, "2 preferences and 1 difficulties"),
        (
            ([2, 1], [1, 2], [1, 2]),
            {"difficulty": [1.0, math.nan]},
            "difficulties: number 2 is not finite",
        ),
        (([None, None], [1, 2], [1, 2]), {}, "none of 2 preferences is there"),
        (([2, 7], [1, 2], [1, 2]), {}, "the preference 7 is not between 1"),
        (
            ([2, 1], [1, 2], [1, 2]),
            {"gamed": GamedRows([0.5], [1.0, 2.0], [0.0])},
            "gamed rows have 1 shares, 2 lengths and 1 difficulties",
        ),
        (
            ([2, 1], [1, 2], [1, 2]),
            {"gamed": GamedRows([0.5, 1.0], [1.0, math.nan], [0.0, 0.0])},
            "lengths of gamed rows: number 2 is not finite",
        ),
        (
            ([2, 1], [1, 2], [1, 2]),
            {"gamed": GamedRows([0.5], [1.0], [math.inf]), "difficulty": [1.0, 2.0]},
            "difficulties of gamed rows: number 1 is not finite",
        ),
    ],
)
def test_what_cannot_be_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        length_controlled_winrate(*arguments, **options)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'prefopt\[eval\]'"):
        length_controlled_winrate([2, 1], [1, 2], [2, 1])


GAMED = """\
,instruction_difficulty,index,std_delta_len,preference,not_gamed_baseline,model
0,0.5,0,-1.25,0.3,False,verbose
1,-1.5,1,0.75,,False,verbose
2,0.25,0,2.0,1.0,False,concise
"""


def test_file_of_gamed_baselines_is_read_by_column_name(tmp_path):
    (tmp_path / "df_gamed.csv").write_text(GAMED)
    found = read_gamed(tmp_path / "df_gamed.csv")
    assert found.lengths == (-1.25, 0.75, 2.0)
    assert found.difficulty == (0.5, -1.5, 0.25)
    assert found.shares[0] == 0.3 and math.isnan(found.shares[1]) and found.shares[2] == 1.0
    # The first row of an instruction says how hard it is.
    assert read_difficulty(tmp_path / "df_gamed.csv") == {0: 0.5, 1: -1.5}


@pytest.mark.parametrize("header", [",instruction_difficulty", "index,anything", ",0"])
def test_file_of_difficulties_is_read(tmp_path, header):
    (tmp_path / "instruction_difficulty.csv").write_text(f"{header}\n0,0.5\n1,-1.5e-3\n")
    found = read_difficulty(tmp_path / "instruction_difficulty.csv")
    assert found == {0: 0.5, 1: -0.0015}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-1.25", "far", "df_gamed.csv:2: std_delta_len is 'far'; give a number"),
        ("2.0,1.0", "2.0,1.5", "df_gamed.csv:4: the preference is 1.5; in this file it lies"),
        ("std_delta_len", "delta", "df_gamed.csv:2: there is no column std_delta_len, only"),
        ("False,concise", "True,concise", "df_gamed.csv:4: not_gamed_baseline is 'True'"),
    ],
)
def test_broken_files_are_refused_with_their_line(tmp_path, old, new, message):
    (tmp_path / "df_gamed.csv").write_text(GAMED.replace(old, new))
    with pytest.raises(RecordError, match=message):
        read_gamed(tmp_path / "df_gamed.csv")


def test_broken_difficulties_are_refused_with_their_line(tmp_path):
    (tmp_path / "hard.csv").write_text("index,instruction_difficulty\n0.5,1\n")
    with pytest.raises(RecordError, match="hard.csv:2: 0.5 is no number of an instruction"):
        read_difficulty(tmp_path / "hard.csv")
    with pytest.raises(StorageError, match="no such file"):
        read_gamed(tmp_path / "df_gamed.csv")
