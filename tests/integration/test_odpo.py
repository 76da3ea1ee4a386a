"""What becomes of pairs that ODPO cannot use: ties, inverted and missing scores, and what the rest is averaged over."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from prefopt.config import parse
from prefopt.errors import ConfigError, RecordError
from prefopt.methods.odpo import METHOD, OdpoConfig, scored_pairs
from prefopt.records import Pair, Preference, Response
from prefopt.runs.method import Paired
from tests.integration.runs import Settings, read_json, read_rows, write_rows


def recipe(**changes: Any) -> OdpoConfig:
    raw = {"method": "odpo", "model_name_or_path": "m", "train_file": "d.jsonl", **changes}
    return parse(raw, METHOD.config)


def record(*scores: float | None) -> Preference:
    """The first response chosen against each of the others."""
    responses = tuple(Response(f"text {i}", score=s) for i, s in enumerate(scores))
    pairs = tuple(Pair(0, i) for i in range(1, len(scores)))
    return Preference("r1", "Why?", responses, pairs, origin="d.jsonl:7")


def test_pairs_with_a_gap_stay_as_they_are() -> None:
    given = record(3.0, 2.0, 1.0)
    assert scored_pairs(given, recipe()) is given


@pytest.mark.parametrize(
    ("scores", "changes", "expected"),
    [
        ((2.0, 2.0), {}, "a pair with equal scores left out"),
        ((2.0, 2.0), {"on_ties": "keep"}, [(0, 1)]),
        ((1.0, 2.0), {"on_inverted": "swap"}, [(1, 0)]),
        ((1.0, 2.0), {"on_inverted": "drop"}, "a pair whose rejected response has the higher score left out"),
        ((1.0, None), {"on_missing": "drop"}, "a pair without two scores left out"),
        ((1e39, 1.0), {"on_missing": "drop"}, "a pair without two scores left out"),
        ((3e38, -3e38), {"on_missing": "drop"}, "a pair without two scores left out"),
        ((math.nan, 1.0), {"on_missing": "drop"}, "a pair without two scores left out"),
        ((math.inf, 1.0), {"on_missing": "drop"}, "a pair without two scores left out"),
        ((1.0, None), {"on_missing": "dpo"}, [(0, 1)]),
        ((2.0, 2.0, 1.0), {}, [(0, 2)]),
        ((16777217.0, 16777216.0), {}, "a pair with equal scores left out"),
        ((1.0, 2.0), {"alpha": 0.0}, [(0, 1)]),
        ((1.0, None), {"alpha": 0.0}, [(0, 1)]),
        ((2.0, 3.0, 1.0), {"on_inverted": "swap"}, [(1, 0), (0, 2)]),
    ],
)  # fmt: skip
def test_policies(scores, changes, expected) -> None:
    found = scored_pairs(record(*scores), recipe(**changes))
    if isinstance(found, Paired):
        assert found.notes, "what is changed, or kept without effect, is said in the ledger"
        found = found.preference
    if isinstance(found, Preference):
        found = [(p.chosen, p.rejected) for p in found.pairs]
    assert found == expected


@pytest.mark.parametrize(
    ("scores", "changes", "message"),
    [
        ((1.0, 2.0), {}, "d.jsonl:7: the chosen response has score 1, the rejected one 2; set on_inverted (swap"),
        ((1.0, None), {}, "d.jsonl:7: the chosen response has score 1, the rejected one none; set on_missing (drop"),
        ((2.0, -1.0), {"offset": "log_ratio"}, "scores 2 and -1, and offset log_ratio has no value"),
        ((2.0, 2.0), {"on_ties": "error"}, "the rejected one 2; set on_ties (drop, keep)"),
    ],
)  # fmt: skip
def test_errors_name_the_row_the_scores_and_the_key(scores, changes, message) -> None:
    with pytest.raises(RecordError) as caught:
        scored_pairs(record(*scores), recipe(**changes))
    assert message in str(caught.value)


def test_a_swapped_pair_asks_for_the_opposite_margin() -> None:
    given = record(1.0, 2.0)
    given = replace(given, pairs=(replace(given.pairs[0], margin=0.7),))
    found = scored_pairs(given, recipe(on_inverted="swap"))
    assert isinstance(found, Paired) and found.preference.pairs == (Pair(1, 0, margin=-0.7),)


def test_another_objective_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="loss_type dpo has no odpo: name it, or use method: dpo"):
        recipe(loss_type=["dpo"])
    assert recipe(loss_type=["odpo", "sft"]).loss_type == ["odpo", "sft"]


def scored(scores: list[tuple[float | None, float | None]]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{i}",
            "prompt": f"What is {i} + 4?\n",
            "responses": [{"text": f"The answer is {i + 4}.", "score": a}, {"text": f"{i}", "score": b}],
            "pairs": [{"chosen": 0, "rejected": 1}],
        }
        for i, (a, b) in enumerate(scores)
    ]  # fmt: skip


def first_loss(settings: Settings, **changes: Any) -> float:
    settings = settings.with_(
        method="odpo", beta=0.5, max_steps=1, overwrite_output_dir=True, **changes
    )
    return read_rows(settings.train().folder / "metrics.jsonl")[0]["loss"]


def test_the_first_loss_is_known(settings: Settings, tmp_path) -> None:
    """At the reference: mean log(1 + gap^alpha), over the pairs that are kept only."""
    rows = scored([(3.0, 1.0), (2.0, 2.0), (5.0, 2.0), (1.5, 1.0)])
    settings |= {"train_file": str(write_rows(tmp_path / "s.jsonl", rows))}
    gaps = [2.0, 3.0, 0.5]
    assert first_loss(settings) == pytest.approx(sum(math.log1p(g) for g in gaps) / 3, abs=1e-6)
    assert first_loss(settings, alpha=0.5) == pytest.approx(
        sum(math.log1p(g**0.5) for g in gaps) / 3, abs=1e-6
    )
    # A kept tie is a pair of loss 0 in the mean.
    assert first_loss(settings, on_ties="keep") == pytest.approx(
        sum(math.log1p(g) for g in gaps) / 4, abs=1e-6
    )
    assert first_loss(settings, alpha=0.0, on_ties="keep") == pytest.approx(math.log(2), abs=1e-6)


def test_unscored_pairs_may_be_dpo_pairs(settings: Settings, tmp_path) -> None:
    rows = scored([(3.0, 1.0), (None, 2.0)])
    settings |= {"train_file": str(write_rows(tmp_path / "s.jsonl", rows))}
    expected = (math.log1p(2.0) + math.log(2.0)) / 2
    assert first_loss(settings, on_missing="dpo") == pytest.approx(expected, abs=1e-6)
    assert first_loss(settings, on_missing="drop") == pytest.approx(math.log1p(2.0), abs=1e-6)


def test_the_ledger_says_what_was_left_out(settings: Settings, tmp_path) -> None:
    rows = scored([(3.0, 1.0), (2.0, 2.0), (1.0, 2.0)])
    settings |= {"train_file": str(write_rows(tmp_path / "s.jsonl", rows)), "method": "odpo"}
    done = settings.with_(on_inverted="swap").train()
    ledger = str(read_json(done.folder / "data-ledger.json")["train"])
    assert "a pair with equal scores left out" in ledger
    assert "a pair turned round" in ledger
