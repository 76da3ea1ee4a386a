"""The study of Step-Controlled DPO among the recipes: its pairs, its spans, its tests and its tables."""

import importlib
import sys
from pathlib import Path

import pytest

from prefopt.evals.cells import Cells
from prefopt.records import Message, Pair, Preference, Response
from prefopt.worlds.arithmetic import ArithmeticProblem

FOLDER = Path(__file__).parents[1] / "recipes" / "scdpo"
NAMES = ("tasks", "pairs", "probes", "study", "temperatures")


@pytest.fixture(scope="module")
def modules():
    """The scripts' modules, as `python recipes/scdpo/study.py` finds them."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


def record(problem, start):
    name = f"{problem}/cut/{start}"
    responses = (Response(f"right {name}"), Response(f"wrong {name}"))
    meta = {"problem": problem, "start_steps": start}
    return Preference(name, f"Q {problem}", responses, (Pair(0, 1),), f"front {name}", meta)


def test_crossed_tails_come_from_another_question(modules):
    records = [record("a", 1), record("a", 2), record("b", 1), record("c", 1), record("d", 5)]
    found = modules["pairs"].crossed(records)
    tails = {r.prefix: r.responses[1].text for r in found}
    assert tails == {
        "front a/cut/1": "wrong b/cut/1",
        "front b/cut/1": "wrong c/cut/1",
        "front c/cut/1": "wrong a/cut/1",
    }
    assert all(r.pairs == (Pair(0, 1),) and r.id.endswith("/crossed") for r in found)


def test_every_arm_but_plain_dpo_has_the_same_number_of_pairs(modules):
    pairs = modules["pairs"]
    data = {kind: [record(f"{kind}{k}", 1) for k in range(20)] for kind in pairs.KINDS}
    numbers = pairs.Numbers(naive=4, controlled=6)
    sizes = {arm: len(pairs.mixture(arm, data, numbers)) for arm in pairs.MIXTURES}
    assert sizes.pop("DPO") == 4
    assert set(sizes.values()) == {10}
    mixed = pairs.mixture("SCDPO", data, numbers)
    assert [r.id[:5] for r in mixed] == ["naive"] * 4 + ["contr"] * 6
    with pytest.raises(SystemExit, match="SCDPO: 20 controlled pairs, 21 are wanted"):
        pairs.mixture("SCDPO", data, pairs.Numbers(naive=4, controlled=21))


PROBLEM = ArithmeticProblem(
    "p", (Message("user", "What is 3 + 4 - 9 modulo 20?"),), "18", 3, (4, -9)
)
RIGHT = "Step 1: 3 + 4 = 7\nStep 2: 7 - 9 = 18\nThe answer is 18"


@pytest.mark.parametrize(
    ("text", "readable", "fault"),
    [
        (RIGHT, True, None),
        (RIGHT.replace("= 7", "= 9"), True, "9"),
        (RIGHT.replace("9 = 18", "9 = 1"), True, "1"),
        (RIGHT.replace("9 = 18", "9 = 189"), True, "9"),
        (RIGHT.replace("7 - 9", "7 + 9"), True, "+ 9 = 18"),
        (RIGHT.replace("is 18", "is 3"), True, "3"),
        (RIGHT.replace("Step 2: ", ""), False, "7 - 9 = 18"),
        (RIGHT.replace("Step 2", "Step 3"), False, "3: 7 - 9 = 18"),
        (RIGHT.removesuffix("\nThe answer is 18"), False, None),
    ],
)
def test_error_spans_of_chains_of_thought(modules, text, readable, fault):
    tasks = modules["tasks"]
    task = tasks.TextTask()
    found = task._judged(tasks.Writing(PROBLEM), text, ended=True)
    assert found.readable is readable
    assert (None if found.span is None else text[slice(*found.span)]) == fault
    assert not task._judged(tasks.Writing(PROBLEM), text, ended=False).readable


def test_the_first_new_step_is_the_one_after_the_front(modules):
    tasks = modules["tasks"]
    task = tasks.TextTask()
    assert task.fronts(PROBLEM) == ["Step 1: 3 + 4 = 7\n"]
    front = tasks.Writing(PROBLEM, "Step 1: 3 + 4 = 7\n")
    wrong = RIGHT.replace("9 = 18", "9 = 1")
    assert task._judged(front, wrong, ended=True).first_new_wrong
    assert not task._judged(tasks.Writing(PROBLEM), wrong, ended=True).first_new_wrong
    assert not task._judged(front, RIGHT, ended=True).first_new_wrong


def test_what_precedes_an_error_is_cut_at_a_line_or_block(modules):
    probes = modules["probes"]

    def prefix(text, fault):
        span = [text.index(fault), len(text)]
        pair = (Response("right"), Response(text))
        found = probes.correct_prefix(Preference("p", "q", pair, meta={"error_span": span}))
        return None if found is None else found.responses[0].text

    assert prefix("Step 1: 3 + 4 = 7\nStep 2: 7 - 9 = 1", "1") is None
    assert prefix("Step 1: 3 + 4 = 7\nStep 2: 7 - 9 = 5", "5") == "Step 1: 3 + 4 = 7\n"
    code = "<|text|>A<|endofblock|><|code|>x = (7)<|endofblock|>"
    assert prefix(code, "7") == "<|text|>A<|endofblock|>"


def cell(arm, seed, accuracy, auroc=None):
    return {
        "task": "text",
        "arm": arm,
        "seed": seed,
        "learning_rate": 1e-4,
        "accuracy": accuracy,
        "auroc": auroc,
    }


def test_tables_by_hand(modules):
    rows = [
        *(cell("data-equal DPO", s, a, 0.6) for s, a in enumerate([0.60, 0.62, 0.61])),
        *(cell("SCDPO", s, a, 0.7) for s, a in enumerate([0.61, 0.64, 0.64])),
    ]
    text = modules["study"].tables(rows).splitlines()
    assert text[0] == "**Chain of thought**"
    assert "| SCDPO | 3 | 0.0001 | 63.0 ± 1.0 | 0.700 ± 0.000 | - | - | - |" in text
    # Differences 1, 2 and 3 points: 2 -+ 4.3027 * 0.5774.
    assert (
        "| SCDPO - data-equal DPO | +2.0 (-0.5 to +4.5) | 0.074 | +0.100 (+0.100 to +0.100) | < 0.001 |"
        in text
    )
    assert modules["study"].tables([]) == ""


def test_the_best_rate_is_that_of_the_tuning_seeds(modules, tmp_path):
    study = modules["study"]
    arguments = study.parser().parse_args(["--rates", "1e-4", "3e-4", "--tuning-seeds", "2"])
    rows = Cells(tmp_path / "results.jsonl")
    for seed, low, high in ((100, 0.5, 0.7), (101, 0.6, 0.7), (0, 0.9, 0.1)):
        for rate, accuracy in ((1e-4, low), (3e-4, high)):
            rows.append(
                {**study.cell_key(arguments, "text", "DPO", seed, rate), "accuracy": accuracy}
            )
    assert study.best_rate(rows, arguments, "text", "DPO") == 3e-4
    assert study.best_rate(rows, arguments, "text", "SFT") == 0.0
    assert len(study.final_keys(rows, arguments)) == 5 * (6 + 5)


def test_temperatures_are_tabled_and_drawn(modules, tmp_path):
    script = modules["temperatures"]
    counts = {"unreadable": 5, "first_wrong": 20, "first_wrong_readable": 15, "usable": 30}
    rows = [
        {"task": "text", "schedule": s, "kind": kind, "problems": 100, "right": 50, **counts}
        for s in ("0", "1.4", "code")
        for kind in ("whole", "tail")
    ]
    table = script.tables(rows).splitlines()
    assert table[4].startswith("| greedy | 50.0 (40.4 to 59.6) | 5.0 (2.2 to 11.2) | 50.0")
    assert [line.split("|")[1].strip() for line in table[4:7]] == ["greedy", "1.4", "code"]
    script.draw(rows, tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
