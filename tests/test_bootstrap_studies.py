"""The studies of Curry-DPO and DICE among the recipes: their arms, what they plant, and what their tables say."""

import importlib
import math
import sys
from pathlib import Path

import pytest

from prefopt.config import parse
from prefopt.methods.base import find_method
from prefopt.records import Message, Pair, Preference, Response

RECIPES = Path(__file__).parents[1] / "recipes"


def scripts(folder, names):
    """The scripts' modules, as `python recipes/.../study.py` finds them."""
    sys.path.insert(0, str(RECIPES / folder))
    try:
        return {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(RECIPES / folder))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def curry():
    return scripts("curry_dpo", ("tables", "study"))


@pytest.fixture(scope="module")
def dice():
    return scripts("dice", ("tables", "arms", "planted", "study"))


def scored(name, *responses):
    prompt = (Message("user", f"Q {name}"),)
    found = tuple(Response(text, score=score) for text, score in responses)
    return Preference(name, prompt, found, (Pair(0, 1),))


RECORDS = [
    scored("a", ("good", 2.0), ("much longer", 1.0)),
    scored("b", ("longer and good", 2.0), ("bad", 1.0)),
    scored("c", ("same", 1.0), ("SAME", 2.0)),
]


def test_labels_follow_length_or_the_oracle_and_lose_their_scores(dice):
    label = dice["planted"].label_with_bias
    by_length, right = label(RECORDS, bias=1.0, seed=0)
    assert [r.pairs for r in by_length] == [(Pair(1, 0),), (Pair(0, 1),), (Pair(1, 0),)]
    assert right == pytest.approx(2 / 3)
    by_oracle, right = label(RECORDS, bias=0.0, seed=0)
    assert [r.pairs for r in by_oracle] == [(Pair(0, 1),), (Pair(0, 1),), (Pair(1, 0),)]
    assert right == 1
    assert all(response.score is None for r in by_length for response in r.responses)


def test_pairs_by_length_leave_out_those_of_equal_length(dice):
    turned = [dice["planted"].longer_chosen(record).pairs for record in RECORDS]
    assert turned == [(Pair(1, 0),), (Pair(0, 1),), ()]


def test_win_rates_with_and_without_the_taste_of_the_judge(dice):
    """The model is worse by 1 everywhere, and longer by 10 or 30 characters, which the judge likes by 0.1 each."""
    planted = dice["planted"]
    model = planted.Outputs((0.0,) * 40, (60, 80) * 20, 0.0, 1.0)
    baseline = planted.Outputs((1.0,) * 40, (50, 50) * 20, 0.0, 1.0)
    found = planted.win_rates(model, baseline, bias=0.1)
    assert found.raw == pytest.approx(100 * (0.5 + 1 / (1 + math.exp(-2))) / 2)
    assert found.true == pytest.approx(100 / (1 + math.e))
    assert found.length_controlled < 50 < found.raw


@pytest.mark.parametrize(
    ("arm", "alpha", "gamma"),
    [("alpha auto", "auto", 0.5), ("alpha 0", 0.0, 0.5), ("gamma 0", "auto", 0), ("gamma 1", "auto", 1)],
)  # fmt: skip
def test_a_later_round_goes_on_from_the_one_before(dice, arm, alpha, gamma):
    arms = dice["arms"]
    common = {
        "method": "dice",
        "model_name_or_path": "dpo",
        "output_dir": "runs",
        "build": {"previous": "sft", "offline": "pairs.jsonl", "rounds": 3, "output_dir": "data"},
    }
    models = [Path("dpo"), Path("one"), Path("two")]
    found = [arms.recipe_of_round(arms.ARMS[arm], k, models[:k], common) for k in (1, 2, 3)]
    assert [c.model_name_or_path for c in found] == ["dpo", "one", "two"]
    assert [c.build.previous for c in found] == ["sft", "dpo", "one"]
    assert [c.build.output_dir for c in found] == [f"data/round-{k}" for k in (1, 2, 3)]
    assert {(c.build.alpha, c.build.gamma, c.build.rounds) for c in found} == {(alpha, gamma, 1)}


def test_table_of_rounds_by_hand(dice):
    def row(arm, seed, *lengths):
        stages = [{"round": k, "length": n, "alpha": 0.002} for k, n in enumerate(lengths, 1)]
        return {"arm": arm, "seed": seed, "stages": stages}

    rows = {
        "alpha auto": [row("alpha auto", 1, 100, 101), row("alpha auto", 2, 102, 103)],
        "alpha 0": [row("alpha 0", 1, 110, 120), row("alpha 0", 2, 112, 124)],
    }
    found = dice["tables"].tables(rows).splitlines()
    assert "| alpha auto | 1 | 2 | 101.0 ± 1.0 | - | - | - | - | - | - |" in found
    assert "| alpha 0 | 2 | 2 | 2.00 ± 0.00 | - | - | - | - | - |" in found, "alpha in thousandths"
    # 19 and 21: mean 20, standard error 1, t(1) 12.706.
    last = next(line for line in found if line.startswith("| alpha 0 - alpha auto |"))
    assert last.startswith("| alpha 0 - alpha auto | +20.0 (+7.3 to +32.7) | 0.032 | - | - |")


def test_every_arm_of_the_curriculum_is_a_recipe(curry):
    method = find_method("curry_dpo")
    common = {"model_name_or_path": "m", "train_file": "ranked.jsonl", "method": "curry_dpo"}
    trained = {arm: own for arm, own in curry["study"].ARMS.items() if arm != "SFT"}
    configs = {arm: parse({**common, **own}, method.config) for arm, own in trained.items()}
    # Arms of one pair make three passes for the one of the others: that is read from `only`.
    only = {arm for arm, config in configs.items() if config.model_dump()["only"]}
    assert only == {a for a in trained if "pair," in a}
    arms = {arm for pair in curry["tables"].CONTRASTS for arm in pair}
    assert arms == trained.keys()


def test_table_of_the_curriculum_by_hand(curry):
    tables = curry["tables"]

    def row(arm, seed, reward, hard):
        return {"arm": arm, "seed": seed, "reward": reward, "kl": 1.0, "easy": 0.5, "hard": hard}

    by_arm = {
        "single run": [row("single run", 1, 1.0, 0.6), row("single run", 2, 1.1, 0.6)],
        "pooled": [row("pooled", 2, 1.0, 0.5), row("pooled", 1, 1.0, 0.5)],
    }
    first = tables.arm_table(by_arm)[2]
    assert first == "| single run | 2 | 1.050 ± 0.050 | 1.000 ± 0.000 | 50.0 ± 0.0 | - | 60.0 ± 0.0 | - |"  # fmt: skip
    (contrast,) = tables.contrast_table(by_arm)[2:]
    # Rewards differ by 0.0 and 0.1: mean 0.05, standard error 0.05, t(1) 12.706.
    assert contrast.startswith("| single run - pooled | +0.050 (-0.585 to +0.685) | 0.500 | ")
