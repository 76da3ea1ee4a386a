"""Data with a row per pair: whose pairs they are, which stage they say, and what is said about them."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefopt.build.curriculum import Curriculum, make_curriculum
from prefopt.build.difficulty import score_gap, source_of
from prefopt.build.listed_pairs import REPEATED
from prefopt.build.stages import CurriculumRules, says_stage, stage_of
from prefopt.errors import ConfigError, RecordError
from prefopt.ledger import Ledger
from prefopt.records import Message, Pair, Preference, Response, write_preferences
from prefopt.text.sources import load_preferences


def row(name: str, prompt: str, chosen: float, rejected: float, **more: Any) -> Preference:
    """A row of one pair; its responses say their scores."""
    responses = tuple(Response(f"{prompt} {s:g}", score=s) for s in (chosen, rejected))
    return Preference(
        name, f"prompt {prompt}", responses, (Pair(0, 1),), origin=f"d:{name}", **more
    )


def made(records: Sequence[Preference], **rules: Any) -> Curriculum:
    ledger = Ledger("d.jsonl")
    for each in records:
        ledger.enter(each.id)
    return make_curriculum(records, score_gap, CurriculumRules(**rules), ledger)


def stages(records: Sequence[Preference], **rules: Any) -> list[list[str]]:
    found = made(records, **rules)
    return [[r.id for r in found.file_of(k + 1)] for k in range(len(found.stages))]


ROWS = [
    row("b1", "b", 9, 8), row("a2", "a", 5, 3), row("a3", "a", 5, 4), row("b3", "b", 9, 1),
    row("a1", "a", 5, 1), row("b2", "b", 9, 7.5), row("c1", "c", 3, 1), row("c2", "c", 3, 2.5),
]  # fmt: skip
"""Gaps: a 4, 2, 1; b 8, 1.5, 1; c 2, 0.5."""


def test_stage_k_is_the_k_th_easiest_row_of_every_prompt() -> None:
    first, second, third = [
        ["b3/0-1", "a1/0-1"], ["a2/0-1", "b2/0-1", "c1/0-1"], ["b1/0-1", "a3/0-1", "c2/0-1"],
    ]  # fmt: skip
    assert stages(ROWS) == [first, second, third]
    assert stages(ROWS, order="hard_to_easy") == [third, second, first]
    assert [len(s) for s in stages(ROWS, align="easy")] == [3, 3, 2]


def test_one_row_of_every_prompt() -> None:
    assert stages(ROWS, only="easiest") == [["b3/0-1", "a1/0-1", "c1/0-1"]]
    assert stages(ROWS, only="hardest") == [["b1/0-1", "a3/0-1", "c2/0-1"]]
    assert stages(ROWS, only=3) == [["b1/0-1", "a3/0-1"]]
    with pytest.raises(ConfigError, match="only is 4 and there are 3 stages"):
        made(ROWS, only=4)


def test_the_baselines_are_different_and_have_the_same_rows() -> None:
    many = [row(f"{p}{k}", str(p), 9, 8 - k) for p in range(20) for k in range(3)]
    drawn = stages(many, order="random")
    assert [len(s) for s in drawn] == [20, 20, 20]
    assert all(len({name.split("/")[0][:-1] for name in s}) == 20 for s in drawn), "one of each"
    assert drawn != stages(many)
    assert Counter(itertools.chain(*drawn)) == Counter(stages(many, stages="pooled")[0])


def test_rows_and_lists_of_scores_are_taken_alike() -> None:
    """A list of four and the same list taken apart, as pairs or as lists of two."""
    texts = [Response(f"r{score}", score=score) for score in (5.0, 4.0, 3.0, 2.0)]
    whole = Preference("w", "q", tuple(texts))
    pairs = [Preference(f"p{k}", "q", (texts[0], texts[k]), (Pair(0, 1),)) for k in (1, 2, 3)]
    twos = [replace(each, pairs=()) for each in pairs]
    sides = [
        [
            [[r.text for r in x.responses] for x in found.file_of(k)]
            for k in range(1, 1 + len(found.stages))
        ]
        for found in (made([whole]), made(pairs), made(twos))
    ]
    assert sides[0] == sides[1] == sides[2] == [[["r5.0", "r2.0"]], [["r5.0", "r3.0"]], [["r5.0", "r4.0"]]]  # fmt: skip


def test_lists_and_records_of_several_pairs_stay_by_themselves() -> None:
    two = [
        Preference(f"l{i}", "q", tuple(Response(f"{i}{s}", score=s) for s in (5.0, 3.0, 1.0)))
        for i in range(2)
    ]
    assert [len(s) for s in stages(two)] == [2, 2], "each list has its own easiest pair"
    several = [replace(each, pairs=(Pair(0, 1), Pair(0, 2))) for each in two]
    assert [len(s) for s in stages(several)] == [2, 2]
    best = Response("as good", score=5.0)
    tied = [replace(each, responses=(*each.responses[:2], best)) for each in two]
    assert [len(s) for s in stages(tied)] == [2], "one pair is left of each, and still its own"


@pytest.mark.parametrize(
    "other",
    [
        {"prefix": "Step 1"},
        {"prompt": (Message("user", "prompt a"),)},
        {"prompt": (Message("system", "Be brief."), Message("user", "prompt a"))},
        {"meta": {"tools": [{"name": "search"}]}},
        {"meta": {"chat_template_kwargs": {"thinking": True}}},
    ],
)
def test_what_makes_another_prompt(other: dict[str, Any]) -> None:
    rows = [row("x", "a", 5, 3), replace(row("y", "a", 5, 3), **other)]
    found = made(rows)
    assert [[r.id for r in found.file_of(1)], len(found.stages)] == [["x/0-1", "y/0-1"], 1]
    assert REPEATED not in found.counts, "the same texts after another prompt are another pair"
    turned = replace(rows[0], id="z", responses=rows[0].responses[::-1])
    assert [len(s) for s in stages([rows[0], turned])] == [1, 1]


def test_what_was_put_together_is_said() -> None:
    said = "8 rows of one pair each are taken for the pairs of 3 prompts, which they share"
    assert made(ROWS).remarks == made(ROWS, only=1).remarks == [said]
    assert made(ROWS, stages="quantiles").remarks == made(ROWS, stages="pooled").remarks == []
    lists = [Preference("l", "q", tuple(Response(str(s), score=s) for s in (5.0, 3.0, 1.0)))]
    assert made(lists).remarks == []


def test_rows_that_are_left_out_are_not_put_together() -> None:
    """The first row of a prompt has no difficulty: what is left of it is one row."""

    def measure(records: Sequence[Preference]) -> list[tuple[float, ...]]:
        return [(math.nan if record.id in {"a1", "b1"} else 1.0,) for record in records]

    rows = [row("a1", "a", 5, 1), row("a2", "a", 5, 3)]
    rules = CurriculumRules(on_missing="drop")
    (said,) = make_curriculum(rows, measure, rules, Ledger("d")).remarks
    assert said.startswith("note: no prompt has two pairs, so stages: ranks has nothing to choose")
    rows += [row("b1", "b", 5, 1), row("b2", "b", 5, 2), row("b3", "b", 5, 3)]
    assert make_curriculum(rows, measure, rules, Ledger("d")).remarks == [
        "2 rows of one pair each are taken for the pairs of 1 prompts, which they share"
    ]


def test_what_has_nothing_to_do_is_said() -> None:
    apart = [row(str(i), str(i), i, 0) for i in range(1, 4)]
    (said,) = made(apart, order="hard_to_easy").remarks
    assert said.startswith("note: no prompt has two pairs, so stages: ranks has nothing to choose")
    assert "so only: hardest has nothing" in made(apart, only="hardest").remarks[0]
    staged = [replace(each, meta={"stage": ["easy", 2][i % 2]}) for i, each in enumerate(ROWS)]
    expected = "note: 8 of 8 records say their stage, which stages: ranks does not use; stages: given does"  # fmt: skip
    assert made(staged).remarks[1:] == [expected]
    assert made(staged, stages="given").remarks == []
    drafts = [replace(each, meta={"stage": "draft"}) for each in ROWS]
    assert len(made(drafts).remarks) == 1, "a column of that name that is about something else"


@pytest.mark.parametrize(
    ("value", "stage"),
    [("easy", 1), ("Hard", 3), (2, 2), (2.0, 2), ("2", 2), ("2.0", 2), ("02", 2)],
)
def test_stages_as_files_write_them(value: Any, stage: int) -> None:
    assert stage_of(replace(ROWS[0], meta={"stage": value})) == stage


@pytest.mark.parametrize(
    "value", [0, "0", "0.0", 0.0, 1.5, "1.5", -1, "-1", True, "draft", "", float("nan"), float("inf"), [1], None]
)  # fmt: skip
def test_what_is_no_stage(value: Any) -> None:
    wrong = replace(ROWS[0], meta={"stage": value})
    assert not says_stage(wrong)
    says = "missing" if value is None else repr(value)
    with pytest.raises(RecordError) as caught:
        stage_of(wrong)
    assert str(caught.value) == (
        f"d:b1: stage is {says}; stages: given needs a column `stage` with easy, medium, hard or a number from 1 "
        "(columns.stage names another one)"
    )


def test_a_column_of_another_name_says_the_stage(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b", "level": level, "stage": "draft"}
        for i, level in enumerate([2.0, 1.0])
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    loaded = load_preferences(path, columns={"stage": "level"}, ledger=Ledger("rows"))
    assert loaded.mapping["level"] == "meta"
    found = made(loaded.preferences, stages="given", stage_column="level")
    assert [[r.prompt for r in found.file_of(k)] for k in (1, 2)] == [["q1"], ["q0"]]
    with pytest.raises(RecordError, match="stage is 'draft'; stages: given needs a column `stage`"):
        made(loaded.preferences, stages="given")
    hidden = load_preferences(path, columns={"stage": "prompt"}, ledger=Ledger("r"))
    assert hidden.mapping["prompt"] == "meta", "a column named for the stage plays no other role"


def test_unknown_roles_are_told_from_stages(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}')
    with pytest.raises(ConfigError, match="unknown role 'stages'; did you mean 'stage'\\?"):
        load_preferences(path, columns={"stages": "x"}, ledger=Ledger("r"))
    with pytest.raises(RecordError, match="columns.stage: rows.jsonl has no column 'level'; there"):
        load_preferences(path, columns={"stage": "level"}, ledger=Ledger("r"))
    options: dict[str, Any] = {"columns": {"stage": "level"}, "optional": ("stage",)}
    assert len(load_preferences(path, ledger=Ledger("r"), **options).preferences) == 1
    own = replace(ROWS[0], meta={"level": 2})
    write_preferences(path, [own])
    loaded = load_preferences(path, columns={"stage": "level"}, ledger=Ledger("r"))
    assert stage_of(loaded.preferences[0], "level") == 2, "from `meta` of records of our own"
    with pytest.raises(RecordError, match="has no column 'levels'; did you mean 'level'"):
        load_preferences(path, columns={"stage": "levels"}, ledger=Ledger("r"))


def test_what_the_data_say_about_themselves_stays() -> None:
    own = {"stage": "draft", "ease": "x", "level": 3}
    (single,) = made([replace(ROWS[0], meta=own)]).file_of(1)
    assert single.meta == {**own, "curriculum_stage": 1, "curriculum_ease": 1}
    assert stage_of(single) == 1, "what a curriculum wrote counts before what it found"
    assert stage_of(single, "level") == 3


def test_the_source_of_a_difficulty_is_that_of_its_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = tmp_path / "defining_measures.py"
    definition.write_text(
        "class Long:\n    def __call__(self, record, pair):\n        return 1.0\n"
        "def long(record, pair, factor=1):\n    return 1.0\n"
    )
    exports = (
        "import functools\nfrom defining_measures import Long, long\n"
        "@functools.wraps(long)\ndef wrapped(*args):\n    return long(*args)\n"
        "tenfold = functools.partial(long, factor=10)\ninstance = Long()\nabsolute = abs\n"
    )
    (tmp_path / "exporting_measures.py").write_text(exports)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert source_of("defining_measures:long") == definition.read_text()
    for name in ("long", "wrapped", "tenfold", "instance"):
        assert source_of(f"exporting_measures:{name}") == exports + definition.read_text()
    assert source_of("exporting_measures:absolute") == exports
    assert source_of("math:fabs") == ""


def test_a_partial_of_a_wrapped_function_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "twice_wrapped.py").write_text(
        f"import functools\nfrom {__name__} import long\n"
        "near = functools.partial(functools.wraps(long)(lambda *a: 1.0))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert source_of("twice_wrapped:near").endswith(Path(__file__).read_text(encoding="utf-8"))


@functools.cache
def long() -> float:
    return 1.0
