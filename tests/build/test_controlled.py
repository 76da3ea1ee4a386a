"""Step-Controlled DPO for chains of thought on a generator whose texts are known, and on a real model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from prefopt.build.controlled import ControlledData, ControlledSettings, build_controlled_pairs
from prefopt.build.grading import one_by_one
from prefopt.errors import ConfigError, JudgeError, RecordError
from prefopt.generate.journal import Journal
from prefopt.generate.local import LocalGenerator
from prefopt.generate.schedule import PRESETS, Rising, constant
from prefopt.models.load import load_model
from prefopt.records import Preference
from tests.build.scripted import FIRST, HOT, RIGHT, TASK, WRONG, Knowing, Task, is_right
from tests.tiny import make_model_folder, make_tokenizer

TEXTS = {("t", 0): RIGHT, ("t", 1): WRONG, ("t/1", 0): HOT}


def build(generator: Knowing, tasks: Sequence[Task] = (TASK,), **options: object) -> ControlledData:
    values: dict[str, object] = {"samples": 2, "attempts": 3, **options}
    settings = ControlledSettings(**values)  # pyright: ignore[reportArgumentType]
    return build_controlled_pairs(
        list(tasks), generator, grade=one_by_one(is_right), settings=settings
    )


def texts_of(record: Preference) -> list[str]:
    return [response.text for response in record.responses]


def test_naive_and_controlled_pairs_of_one_question() -> None:
    data = build(Knowing(TEXTS))
    (naive,) = data.naive
    assert (naive.prefix, texts_of(naive)) == ("", [RIGHT, WRONG])
    (pair,) = data.controlled
    assert pair.prefix == FIRST
    assert texts_of(pair) == [RIGHT[len(FIRST) :], HOT[len(FIRST) :]]
    assert (pair.pairs[0].chosen, pair.pairs[0].rejected) == (0, 1)
    assert all(r.ends for r in (*naive.responses, *pair.responses))
    assert pair.meta == {
        "answer": "6", "problem": "t", "kind": "controlled", "start_steps": 1, "parts": "markers", "attempt": 0,
    }  # fmt: skip
    assert naive.meta["kind"] == "naive"
    records = [*data.mixed(), *data.data_equal]
    assert len({r.id for r in records}) == len(records) == 3
    assert data.counts["data-equal pairs missing"] == 1


def test_p3_every_new_step_is_hotter() -> None:
    """Schedule: the preset of the published code reaches its cap at the fourth new step."""
    generator = Knowing(TEXTS)
    build(generator)
    tails = [(s.temperature, r.prefix) for r, s in generator.asked if s.purpose.startswith("tails")]
    assert [t for t, _ in tails] == [1.1, 1.2, 1.3, 1.4]
    assert [prefix for _, prefix in tails] == [
        FIRST,
        FIRST + "Step 2: 3 * 3 = 9\nStep",
        FIRST + "Step 2: 3 * 3 = 9\nStep 3: 9 = 9\nStep",
        FIRST + "Step 2: 3 * 3 = 9\nStep 3: 9 = 9\nStep 4: so\nStep",
    ]
    paper = [PRESETS["paper"].at(i) for i in range(8)]
    assert paper == [1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4, 1.4]


def test_a_constant_schedule_writes_a_tail_in_one_piece() -> None:
    generator = Knowing(TEXTS)
    rising, flat = build(Knowing(TEXTS)), build(generator, schedule=constant(1.3))
    tails = [s for _, s in generator.asked if s.purpose.startswith("tails")]
    assert [(s.temperature, s.stop) for s in tails] == [(1.3, ())]
    assert flat.controlled == rising.controlled


def test_blank_lines_are_no_steps() -> None:
    right = "one\n\ntwo\nThe answer is 6"
    hot = "one\n\n\n\nthree\nThe answer is 9"
    generator = Knowing(
        {("t", 0): right, ("t", 1): right, ("t/1", 0): hot, ("t/2", 0): right.replace("6", "8")}
    )
    data = build(generator)
    assert [p.prefix for p in data.controlled] == ["one\n\n", "one\n\ntwo\n"]
    assert data.controlled[0].responses[1].text == "\n\nthree\nThe answer is 9"
    asked = [(s.temperature, r.prefix) for r, s in generator.asked if r.id == "t/1"]
    assert asked == [
        (1.1, "one\n\n"),
        (1.1, "one\n\n\n"),
        (1.1, "one\n\n\n\n"),
        (1.2, "one\n\n\n\nthree\n"),
    ]


def test_p4_right_tails_are_written_again_until_wrong() -> None:
    other = FIRST + "Step 2: 3+3 is 6\nThe answer is 6"
    texts = {**TEXTS, ("t/1", 0): other, ("t/1", 1): other, ("t/1", 2): HOT}
    generator = Knowing(texts)
    data = build(generator)
    assert data.controlled[0].meta["attempt"] == 2
    assert data.counts["tails right"] == 2
    starts = {r.prefix for r, s in generator.asked if s.purpose == "tails/0"}
    assert starts == {FIRST}, "a right tail is forgotten"


def test_p4_attempts_are_counted_per_cut() -> None:
    texts = {**TEXTS, **{("t/1", i): RIGHT + " " for i in range(3)}, **{("u/1", i): HOT for i in range(3)},
             ("u", 0): RIGHT, ("u", 1): WRONG}  # fmt: skip
    data = build(Knowing(texts), [TASK, TASK._replace(id="u")])
    assert data.counts["tails written"] == 4
    assert data.counts["cut points given up"] == 1
    assert [p.meta["problem"] for p in data.controlled] == ["u"]


def test_p10_first_single_line_solutions_have_no_controlled_pair() -> None:
    texts = {("t", 0): "The answer is 6", ("t", 1): "The answer is 7"}
    data = build(Knowing(texts))
    assert (len(data.naive), data.controlled) == (1, [])
    assert data.counts["correct solutions too short to cut"] == 1


def test_p10_truncated_texts_are_no_wrong_ones_unless_asked() -> None:
    texts = {**TEXTS, ("t/1", 1): HOT, ("t/1", 2): HOT}
    data = build(Knowing(texts, cut=[WRONG, HOT]))
    assert (data.naive, data.controlled) == ([], [])
    assert data.counts["solutions cut at the token limit"] == 1
    assert data.counts["tails cut at the token limit"] == 3
    data = build(Knowing(texts, cut=[WRONG, HOT]), count_truncated_as_wrong=True)
    assert [r.ends for r in (*data.naive[0].responses, *data.controlled[0].responses)] == [
        True, False, True, False,
    ]  # fmt: skip


def test_p10_identical_tails_are_dropped_and_counted() -> None:
    data = build(Knowing({**TEXTS, **{("t/1", i): RIGHT for i in range(3)}}))
    assert data.controlled == []
    assert data.counts["tails that repeat the correct one"] == 3


def test_refusals_are_counted_and_tried_again() -> None:
    data = build(Knowing({**TEXTS, ("t/1", 0): HOT + "!", ("t/1", 1): HOT}, refused=[HOT + "!"]))
    assert data.counts["tails refused by the server"] == 1
    assert data.controlled[0].meta["attempt"] == 1


def test_p5_overlong_steps_and_too_many_of_them_are_noise() -> None:
    long = FIRST + "Step 2: " + "x" * 3000 + "\nThe answer is 9"
    data = build(Knowing({**TEXTS, ("t/1", 0): long, ("t/1", 1): HOT}), max_segments=2, attempts=2)
    assert data.counts["tails with an overlong step"] == 1
    assert data.counts["tails of too many steps"] == 1
    assert data.controlled == []


def test_p6_apologies_are_no_preferred_solutions() -> None:
    sorry = RIGHT.replace("3 + 3 = 6", "3 + 3 = 5. Apologies, 6")
    texts = {("t", 0): sorry, ("t", 1): RIGHT, ("t", 2): WRONG, ("t/1", 0): HOT}
    data = build(Knowing(texts), samples=3, drop_apologies=True)
    assert data.naive[0].responses[0].text == RIGHT
    assert data.counts["right solutions with an apology or error left out"] == 1
    kept = build(Knowing({**texts, ("t/1", 0): HOT}), samples=3)
    assert kept.naive[0].responses[0].text == sorry


def test_unresolved_questions_are_sampled_further() -> None:
    texts = {("t", i): RIGHT for i in range(6)} | {("t", 4): WRONG, ("t/1", 0): HOT}
    generator = Knowing(texts)
    data = build(generator, samples=2, max_samples=6)
    assert [r.sample for r, s in generator.asked if s.purpose == "naive"] == [0, 1, 2, 3, 4, 5]
    assert data.naive[0].id == "t/naive/0-4"
    assert data.counts["solutions repeated"] == 4
    assert build(Knowing(texts), samples=2).naive == []


def test_openings_are_given_and_never_rewarded() -> None:
    opening = "Let us think.\nStep 1:"
    texts = {key: "Let us think.\n" + text for key, text in TEXTS.items()}
    data = build(Knowing(texts), opening=opening)
    assert data.naive[0].prefix == opening
    assert data.naive[0].responses[0].text == RIGHT.removeprefix("Step 1:")
    assert data.controlled[0].prefix == "Let us think.\n" + FIRST


def test_questions_without_a_correct_solution_are_counted() -> None:
    data = build(Knowing({("t", 0): WRONG, ("t", 1): WRONG + " "}))
    assert (data.naive, data.controlled, data.data_equal) == ([], [], [])
    assert data.counts["questions without a correct solution"] == 1


def test_a_generator_that_does_not_name_stops_is_refused() -> None:
    tasks = [TASK._replace(id=f"q{i}") for i in range(8)]
    long = RIGHT.replace("\nThe answer", "\nStep 3: 6 it is\nThe answer")
    texts = {(t.id, i): long for t in tasks for i in range(2)}
    texts |= {(f"{t.id}/{k}", 0): long + "?" for t in tasks for k in (1, 2)}
    with pytest.raises(JudgeError, match="8 of 8 tails seem to end in their first step"):
        build(Knowing(texts, silent=True), tasks)
    assert len(build(Knowing(texts, silent=True), tasks, schedule=constant(1.2)).controlled) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0; use 1 or more"),
        ({"samples": 4, "max_samples": 3}, r"max_samples is 3; use at least samples \(4\)"),
        ({"per_question": 0}, "per_question is 0; use 1 or more, or none for all"),
        ({"schedule": constant(0)}, "greedy tails never differ"),
        ({"leave": 0}, "leave is 0"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ControlledSettings(**options)  # pyright: ignore[reportArgumentType]


def test_ids_must_differ() -> None:
    with pytest.raises(RecordError, match="problem 't': 2 problems have this id"):
        build(Knowing(TEXTS), [TASK, TASK])


def test_a_real_model_gives_pairs_of_its_own_texts(tmp_path: Path) -> None:
    """P4 and the record contract with a random model: any text is right or wrong by the number of its characters."""
    folder = make_model_folder(tmp_path / "m", "llama", tokenizer=make_tokenizer())
    loaded = load_model(folder)
    generator = LocalGenerator(loaded.model, loaded.tokenizer, batch_size=16)
    tasks = [Task(f"q{i}", f"What is {i} + 4?\n", "") for i in range(4)]
    settings = ControlledSettings(
        samples=3,
        max_new_tokens=40,
        attempts=3,
        schedule=Rising(2.0, 0.5, 3.0),
        count_truncated_as_wrong=True,
        per_question=None,
    )

    def grade(solutions: Sequence[tuple[Task, str]]) -> list[bool]:
        return [len(text) % 2 == 0 for _, text in solutions]

    with Journal(tmp_path / "j.sqlite") as journal:
        data = build_controlled_pairs(
            tasks, generator, grade=grade, settings=settings, journal=journal
        )
        rows = journal.count()
        again = build_controlled_pairs(
            tasks, generator, grade=grade, settings=settings, journal=journal
        )
        assert journal.count() == rows
    assert again == data
    for record in data.controlled:
        assert len(record.prefix + record.responses[0].text) % 2 == 0
        assert len(record.prefix + record.responses[1].text) % 2 == 1
    counts = data.counts
    assert counts["tails written"] <= 3 * counts["cut points"]
    assert counts["tails wrong"] + counts["cut points given up"] == counts["cut points"]
    assert math.isclose(len(data.controlled), counts["controlled pairs"])
