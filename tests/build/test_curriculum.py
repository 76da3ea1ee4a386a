"""Pairs of ranked responses, how easy they are, and the stages they become."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefopt.build.curriculum import (
    TOO_LONG,
    UNFIT,
    UNMEASURED,
    Curriculum,
    Measure,
    Unfit,
    make_curriculum,
)
from prefopt.build.difficulty import (
    PairLogps,
    imported,
    logp_gap,
    rank_gap,
    reward_gap,
    score_gap,
)
from prefopt.build.listed_pairs import EQUAL_TEXTS, FEW, NONE_LEFT, REPEATED, TIED, UNSCORED
from prefopt.build.stages import CurriculumRules, stage_of
from prefopt.errors import ConfigError, RecordError
from prefopt.ledger import Ledger
from prefopt.records import Message, Pair, Preference, Response
from prefopt.text.sources import load_preferences

NAN = math.nan


def record(name: str, *scores: float | None, texts: Sequence[str] = ()) -> Preference:
    """Responses named after their record and place."""
    named = texts or [f"{name}{i}" for i in range(len(scores))]
    responses = tuple(Response(t, score=s) for t, s in zip(named, scores, strict=True))
    return Preference(name, f"prompt of {name}", responses, origin=f"d.jsonl:{name}")


def made(
    records: Sequence[Preference],
    measure: Measure = score_gap,
    unfit: Unfit | None = None,
    **rules: Any,
) -> tuple[Curriculum, Ledger]:
    ledger = Ledger("d.jsonl")
    for each in records:
        ledger.enter(each.id)
    made = make_curriculum(records, measure, CurriculumRules(**rules), ledger, unfit=unfit)
    return made, ledger


def stages(records: Sequence[Preference], **options: Any) -> list[list[tuple[str, str]]]:
    """Chosen and rejected texts of each stage."""
    found, _ = made(records, **options)
    return [
        [(r.responses[0].text, r.responses[1].text) for r in found.file_of(k + 1)]
        for k in range(len(found.stages))
    ]


def test_b2_the_best_against_each_other_the_worst_first() -> None:
    assert stages([record("a", 5, 4, 3, 2)]) == [[("a0", "a3")], [("a0", "a2")], [("a0", "a1")]]
    assert stages([record("a", 1, 2)]) == [[("a1", "a0")]]
    assert stages([record("a", 2, 3, 1)]) == [[("a1", "a2")], [("a1", "a0")]]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_b2_the_order_of_the_responses_does_not_matter(order: tuple[int, ...]) -> None:
    shuffled = record("a", *(5 - i for i in order), texts=[f"R{i}" for i in order])
    assert stages([shuffled]) == [[("R0", "R3")], [("R0", "R2")], [("R0", "R1")]]


def test_all_pairs() -> None:
    found = stages([record("a", 9, 5, 4)], pairing="all")
    assert found == [[("a0", "a2")], [("a0", "a1")], [("a1", "a2")]]


def test_b2_ties_are_left_out_or_the_hardest() -> None:
    tied = record("a", 5, 5, 3, 1)
    assert stages([tied]) == [[("a0", "a3")], [("a0", "a2")]]
    assert made([tied])[0].counts == {TIED: 1}
    assert stages([tied], on_ties="keep")[-1] == [("a0", "a1")]

    def tie_is_easiest(records: Sequence[Preference]) -> list[tuple[float, ...]]:
        return [(9.0, 2.0, 1.0)]

    assert stages([tied], on_ties="keep", measure=tie_is_easiest)[-1] == [("a0", "a1")]


def test_b2_a_record_of_equal_scores_is_skipped_and_counted() -> None:
    found, ledger = made([record("a", 2, 2, 2), record("b", 1, 0)], on_ties="keep")
    assert [r.id for r in found.file_of(1)] == ["b/0-1"]
    assert found.counts == {FEW: 1}
    assert ledger.reasons == {FEW: 1}
    assert (ledger.kept_count, ledger.dropped_count) == (1, 1)


@pytest.mark.parametrize("missing", [None, NAN])
def test_b2_missing_scores(missing: float | None) -> None:
    gap = record("a", 3, missing, 1)
    with pytest.raises(RecordError, match="d.jsonl:a: response 2 has neither a score nor a rank"):
        made([gap])
    assert stages([gap], on_missing="drop") == [[("a0", "a2")]]
    assert made([gap], on_missing="drop")[0].counts == {UNSCORED: 1}


def test_b2_equal_and_repeated_texts() -> None:
    found, ledger = made([record("a", 3, 2, 1, 0, texts=["x", "x", "y", "y"])])
    assert [[r.id for r in found.file_of(1)], len(found.stages)] == [["a/0-2"], 1]
    assert found.counts == {EQUAL_TEXTS: 1, REPEATED: 1}
    assert ledger.notes == {EQUAL_TEXTS: 1, REPEATED: 1}


def test_conversations_are_compared_too() -> None:
    prompt = (Message("user", "Name a prime."),)
    chats = [replace(record(name, 2, 1, texts=["7", "9"]), prompt=prompt) for name in "ab"]
    assert made(chats)[0].counts == {REPEATED: 1}
    chats[1] = replace(chats[1], prompt=(Message("user", "Another?"),))
    assert made(chats)[0].counts == {}


def test_pairs_that_the_data_bring_are_taken_as_they_are() -> None:
    given = Preference("a", "q", (Response("x"), Response("y")), (Pair(1, 0, weight=2.0),))
    found, _ = made([given], measure=lambda records: [(1.0,)])
    (single,) = found.file_of(1)
    assert [r.text for r in single.responses] == ["y", "x"]
    assert single.pairs == (Pair(0, 1, weight=2.0),)
    with pytest.raises(RecordError, match="the pair of responses 2 and 1 has no difficulty"):
        made([given])
    with pytest.raises(RecordError, match=f"none of 1 records has a pair: 1 times {UNMEASURED}"):
        made([given], on_missing="drop")


def test_lists_of_unequal_length_meet_at_the_hard_or_the_easy_end() -> None:
    lists = [record("a", 5, 4, 3, 2), record("b", 3, 1)]
    assert [len(s) for s in stages(lists)] == [1, 1, 2]
    assert [len(s) for s in stages(lists, align="easy")] == [2, 1, 1]


def test_b10_quantiles_are_equal_and_the_remainder_comes_last() -> None:
    lists = [record(str(i), i * 0.37 % 1, 0) for i in range(1, 12)]
    found, _ = made(lists, stages="quantiles", quantiles=3)
    assert [len(s) for s in found.stages] == [3, 3, 5]
    for easier, harder in itertools.pairwise(found.stages):
        assert min(p.ease for p in easier) >= max(p.ease for p in harder)
    for stage in found.stages:
        assert [p.record for p in stage] == sorted(p.record for p in stage), (
            "in the order of the data"
        )
    with pytest.raises(ConfigError, match="quantiles is 12 and there are 11 pairs"):
        made(lists, stages="quantiles", quantiles=12)


LISTS = [record("a", 5, 4, 3, 2), record("b", 9, 3, 1), record("c", 1, 2), record("d", 0, 6, 2, 4)]


@pytest.mark.parametrize("order", ["easy_to_hard", "hard_to_easy", "random"])
@pytest.mark.parametrize("layout", ["ranks", "quantiles"])
@pytest.mark.parametrize("pairing", ["best_vs_rest", "all"])
def test_b9_every_baseline_has_the_same_pairs(order: str, layout: str, pairing: str) -> None:
    pooled = stages(LISTS, stages="pooled", pairing=pairing)
    assert len(pooled) == 1
    found = stages(LISTS, stages=layout, order=order, pairing=pairing)
    assert Counter(itertools.chain(*found)) == Counter(pooled[0])
    assert len(found) > 1


def test_orders() -> None:
    easy = stages(LISTS)
    assert stages(LISTS, order="hard_to_easy") == easy[::-1]
    many = [record(str(i), 4, 3, 2, 1) for i in range(20)]
    drawn = stages(many, order="random")
    assert [len(s) for s in drawn] == [20, 20, 20], "still one pair of each record"
    assert stages(many, order="random") == drawn
    assert stages(many, order="random", seed=1) != drawn
    assert all({r[-1] for _, r in s} == {"1", "2", "3"} for s in drawn), "of any difficulty"


def test_only_one_pair_of_each_record() -> None:
    lists = [record("a", 5, 4, 3, 2), record("b", 9, 3, 1)]
    assert stages(lists, only="easiest") == [[("a0", "a3"), ("b0", "b2")]]
    assert stages(lists, only="hardest") == [[("a0", "a1"), ("b0", "b1")]]
    assert stages(lists, only=3) == [[("a0", "a1")]]
    _, ledger = made(lists, only=3)
    assert ledger.reasons == {NONE_LEFT: 1}
    with pytest.raises(ConfigError, match="only is 4 and there are 3 stages"):
        made(lists, only=4)


def test_the_hardest_pairs_are_left_out() -> None:
    lists = [record("a", 5, 4, 3), record("b", 9, 8.5, 1)]
    found, _ = made(lists, drop_hardest=0.25)
    assert [[p.ease for p in s] for s in found.stages] == [[2, 8], [1]]
    assert found.counts == {"a pair left out by drop_hardest": 1}
    assert [[p.ease for p in s] for s in made(lists, drop_hardest=0.5)[0].stages] == [[2, 8]]


def test_stages_that_the_data_give(tmp_path: Path) -> None:
    levels = ["hard", "easy", "Medium", "easy"]
    rows = [
        json.dumps({"prompt": f"q{i}", "chosen": "a", "rejected": "b", "stage": level})
        for i, level in enumerate(levels)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    records = load_preferences(tmp_path / "rows.jsonl", ledger=Ledger("rows")).preferences
    found, _ = made(records, stages="given")
    assert [[r.prompt for r in found.file_of(k)] for k in (1, 2, 3)] == [
        ["q1", "q3"],
        ["q2"],
        ["q0"],
    ]
    assert [(r.meta["stage"], r.meta["curriculum_stage"]) for r in found.file_of(3)] == [
        ("hard", 3)
    ]
    with pytest.raises(
        RecordError, match="d.jsonl:a: stage is missing; stages: given needs a column `stage`"
    ):
        stage_of(record("a", 1, 0))


def test_one_stage_that_the_data_give_is_the_one_of_that_number() -> None:
    def given(*levels: Any, only: Any) -> list[list[tuple[str, str]]]:
        rows = [replace(record(f"{x}", 2, 1), meta={"stage": x}) for x in levels]
        return stages(rows, stages="given", only=only)

    assert given("medium", "hard", only=2) == [[("medium0", "medium1")]]
    assert given("easy", "hard", only=3) == [[("hard0", "hard1")]]
    assert given(7, 4, only=7) == given(7, 4, only="hardest") == [[("70", "71")]]
    assert given(7, 4, only="easiest") == [[("40", "41")]]
    with pytest.raises(ConfigError, match="only is 1 and the data have the stages 2, 3: name one"):
        given("medium", "hard", only=1)
    with pytest.raises(ConfigError, match="only is 3 and there are 2 stages: name one of them"):
        given("medium", "easy", only=3)
    with pytest.raises(ConfigError, match="only is 1 and the data have the stage 3: name one"):
        given("hard", only=1)
    with pytest.raises(ConfigError, match="the stages 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more: "):
        given(*range(2, 14), only=1)


def test_records_of_a_stage_say_where_they_are_from() -> None:
    found, _ = made([record("a", 5, 4, 2)])
    (single,) = found.file_of(2)
    assert (single.id, single.meta) == (
        "a/0-1",
        {"curriculum_stage": 2, "curriculum_ease": 1},
    )
    assert [r.score for r in single.responses] == [5, 4]


def test_difficulties() -> None:
    ranked = Preference(
        "a", "q", tuple(Response(t, rank=r) for t, r in (("x", 1), ("y", 4))), (Pair(0, 1),)
    )
    scored = Preference(
        "b", "q", tuple(Response(t, score=s) for t, s in (("x", 9.0), ("y", 9.0), ("z", 1.0))),
        (Pair(0, 2), Pair(0, 1)),
    )  # fmt: skip
    assert score_gap([scored]) == [(8.0, 0.0)]
    assert rank_gap([ranked, scored]) == [(3,), (1, 0)]

    def logps(*pairs: tuple[float, float] | None):
        def found(records: Sequence[Preference]) -> list[PairLogps | None]:
            assert [r.id for r in records] == ["a/0-1", "b/0-2", "b/0-1"], "a record per pair"
            return [None if pair is None else PairLogps(*pair) for pair in pairs]

        return found

    reference = logps((-3.0, -5.0), (-1.0, -4.0), (-1.0, -2.0))
    policy = logps((-2.0, -6.0), (-1.0, -5.0), None)
    assert logp_gap(reference)([ranked, scored]) == [(2.0,), (3.0, 1.0)]
    assert reward_gap(policy, reference, beta=0.5)([ranked, scored]) == [(1.0,), (0.5, None)]


def test_pairs_that_training_would_drop_are_left_out_and_counted() -> None:
    """Before they are measured, so that no stage is left with nothing else."""

    def unfit(pairs: Sequence[Preference]) -> list[str | None]:
        return [
            "prompt too long" if "4" in pair.prompt or pair.responses[1].text == "a1" else None
            for pair in pairs
        ]

    lists = [record("a", 5, 3, 1), record("4", 4, 3, 2, 1)]
    found, ledger = made(lists, unfit=unfit)
    assert [[r.id for r in found.file_of(k + 1)] for k in range(len(found.stages))] == [["a/0-2"]]
    assert found.counts == {f"{UNFIT}: prompt too long": 4}
    assert ledger.notes == {f"{UNFIT}: prompt too long": 2}
    assert ledger.reasons == {NONE_LEFT: 1}
    with pytest.raises(RecordError, match=f"has a pair: 3 times {UNFIT}: prompt too long"):
        made(lists[1:], unfit=unfit)


def test_pairs_that_the_model_of_the_difficulty_cannot_read_are_counted() -> None:
    found, ledger = made([record("a", 5, 3, 1)], measure=lambda records: [(None, 2.0)])
    assert [r.id for r in found.file_of(1)] == ["a/0-2"]
    assert found.counts == {TOO_LONG: 1}
    assert ledger.notes == {TOO_LONG: 1}


def test_lists_that_are_ranked_in_part() -> None:
    texts = tuple(Response(t, rank=r) for t, r in (("x", 1), ("y", 4), ("z", None)))
    partial = Preference("a", "q", texts, origin="d.jsonl:a")
    with pytest.raises(RecordError, match="d.jsonl:a: response 3 has neither a score nor a rank"):
        made([partial], measure=rank_gap)
    found, _ = made([partial], measure=rank_gap, on_missing="drop")
    assert [(r.id, r.meta["curriculum_ease"]) for r in found.file_of(1)] == [("a/0-1", 3)]
    assert found.counts == {UNSCORED: 1}


def test_a_difficulty_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_measures.py").write_text(
        "def longest(record, pair):\n    return len(record.responses[pair.chosen].text)\n"
    )
    (tmp_path / "my_broken_measures.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    paired = Preference("a", "q", (Response("four"), Response("x")), (Pair(0, 1),))
    assert imported("my_measures:longest")([paired]) == [(4.0,)]
    for wrong, says in (
        (".my_measures:longest", "is no function"),
        (":longest", "is no function"),
        (
            "my_broken_measures:f",
            "cannot be imported: ZeroDivisionError: division by zero; .*PYTHONPATH",
        ),
        ("my_measures:nothing", "cannot be imported"),
        ("no_such_module:f", "cannot be imported"),
        ("my_measures", "is no function"),
        ("my_measures:__name__", "is no function"),
    ):
        with pytest.raises(ConfigError, match=says):
            imported(wrong)


def test_a_difficulty_of_ones_own_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "poor_measures.py").write_text(
        "def nothing(record, pair):\n    return None\n"
        "def text(record, pair):\n    return 'high'\n"
        "def fails(record, pair):\n    return record.meta['length']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    scored = record("a", 2, 1)
    with pytest.raises(RecordError, match="pair of responses 1 and 2 has no difficulty"):
        made([scored, record("b", 2, 1)], measure=imported("poor_measures:nothing"))
    for name, says in (
        ("text", "ValueError: could not convert string to float: 'high'"),
        ("fails", "KeyError: 'length'"),
    ):
        with pytest.raises(RecordError) as caught:
            made([scored], measure=imported(f"poor_measures:{name}"))
        assert str(caught.value) == (
            f"d.jsonl:a: difficulty 'poor_measures:{name}' fails on the pair of responses 1 and 2 ({says}); repair "
            "the function"
        )


def test_b12_ranked_lists_as_people_make_them() -> None:
    """Unequal lengths, human scores with ties, texts that occur twice, sorted by nobody."""
    human = record("post", 4, 7, 7, 1, 4, 6, texts=["w", "best", "same", "bad", "w", "good"])
    other = record("next", 2, 5, 3)
    found, ledger = made([human, other])
    pairs = [[(p.record, p.pair.chosen, p.pair.rejected) for p in s] for s in found.stages]
    assert pairs == [[(0, 1, 3)], [(0, 1, 0), (1, 1, 0)], [(0, 1, 5), (1, 1, 2)]]
    assert found.counts == {TIED: 1, REPEATED: 1}
    assert ledger.kept_count == 2


TLDR = Path(__file__).parents[3] / "shared" / "data" / "tldr_ranked.jsonl"


@pytest.mark.skipif(not TLDR.exists(), reason="the file is not beside this checkout")
def test_b12_summaries_with_human_scores() -> None:
    rows = [json.loads(line) for line in TLDR.read_text().splitlines()]
    expected, least = 0, math.inf
    for row in rows:  # the best text against every other text with a lower score, counted by hand
        best = max(row["scores"])
        place = row["scores"].index(best)
        scored = zip(row["responses"], row["scores"], strict=True)
        lower = {t: best - s for t, s in scored if s < best and t != row["responses"][place]}
        expected += len(lower)
        least = min([least, *lower.values()])
    ledger = Ledger("tldr")
    records = load_preferences(TLDR, ledger=ledger, pairing=None).preferences
    assert not any(r.pairs for r in records)
    found = make_curriculum(
        records, score_gap, CurriculumRules(stages="quantiles", quantiles=4), ledger
    )
    assert sum(map(len, found.stages)) == expected
    assert [len(s) for s in found.stages[:3]] == [expected // 4] * 3
    assert found.stages[3][0].ease <= 1
    assert min(p.ease for p in found.stages[3]) == least
    assert ledger.read == len(rows)
