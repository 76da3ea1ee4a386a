import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prefopt.errors import ConfigError
from prefopt.grade.answers import final_answer, join_answers
from prefopt.grade.maths import (
    GradeItem,
    Grader,
    find_engine,
    gold_answer,
    grader_names,
    mishaps,
    told,
)
from tests.grade.cases import RIGHT, WRONG

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=2) as grader:
        yield grader


def disagreements(grader, cases, expected):
    graded = grader.grade([GradeItem("", gold, output) for gold, output in cases])
    assert len(graded) == len(cases)
    return [
        (case, verdict)
        for case, verdict in zip(cases, graded, strict=True)
        if verdict.correct is not expected
    ]


@pytest.mark.slow
def test_what_people_accept(grader):
    assert disagreements(grader, RIGHT, expected=True) == []


@pytest.mark.slow
def test_what_people_reject(grader):
    assert disagreements(grader, WRONG, expected=False) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "gold", "output", "expected"),
    [
        ("What percent is it?", "50\\%", "\\boxed{0.5}", False),
        ("What share is it?", "50\\%", "\\boxed{0.5}", True),
        ("Factor $x^2-1$.", "(x-1)(x+1)", "\\boxed{x^2-1}", False),
        ("Factor $x^2-1$.", "(x-1)(x+1)", "\\boxed{(x+1)(x-1)}", True),
        ("Expand $(x-1)(x+1)$.", "x^2-1", "\\boxed{(x-1)(x+1)}", False),
        ("Simplify.", "x^2-1", "\\boxed{(x-1)(x+1)}", True),
        ("How many dozens of eggs does she need?", "2", "The answer is 2 dozen.", True),
        ("How many dozens of eggs does she need?", "2", "The answer is two dozen eggs.", True),
        ("How many dozens of eggs?", "2", "The answer is 24.", False),
        ("What is it in millions of dollars?", "5", "The answer is 5 million dollars.", True),
        ("How many eggs?", "2", "The answer is 2 dozen.", False),
        ("How many eggs?", "24", "The answer is 2 dozen.", True),
        ("It totals $32 million. How much is left?", "4", "The answer is $4 million.", True),
        ("It totals $32 million. How much is left?", "4000000", "The answer is $4 million.", True),
        ("How much is left?", "4", "The answer is $4 million.", False),
        ("What is the least number?", "5", "The answer is at least 5.", True),
        ("How many days?", "18", "The answer is 18 days, or 2.5 weeks.", True),
        ("How many days?", "2.5", "The answer is 18 days, or 2.5 weeks.", False),
        ("How many weeks does it take?", "18", "The answer is 2.5 weeks, or 18 days", False),
        ("How many meters long?", "18", "The answer is 18 meters, or 60 feet.", True),
        ("How many meters long?", "60", "The answer is 18 meters, or 60 feet.", False),
        ("How long is it in feet?", "60", "The answer is 18 meters, or 60 feet.", True),
        ("How many minutes?", "2", "The answer is 120 minutes, or 2 hours.", False),
        ("How many seconds?", "120", "The answer is 120 minutes, or 2 hours.", False),
        ("How many apples?", "2", "The answer is 120 minutes, or 2 hours.", True),
    ],
)
def test_the_problem_decides_about_the_form(grader, problem, gold, output, expected):
    assert grader.grade([GradeItem(problem, gold, output)])[0].correct is expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("so \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"),
        ("\\boxed{1} and $\\boxed{2}$", "1, 2"),
        ("\\boxed{1}. Then \\boxed{2}", "2"),
        ("The answer is 5. Because.", "5"),
        ("The answer is $3.14$.", "$3.14$"),
        ("#### 42\n", "42"),
        ("it is $x$ or $y^2$ here, as you can see", "y^2"),
        ("she pays for 3 of them and 7 of those, all in all", "7"),
        ("\\boxed{}", None),
        ("The answer is **18** dollars.", "18 dollars"),
        ("**The answer is 18** dollars.", "18 dollars"),
        ("The answer is __$18__, as computed.", "$18"),
        ("*18* dollars", "18 dollars"),
        ("The answer is 2*3 or 2**3 or x_1.", "2*3 or 2**3 or x_1"),
        ("", None),
        ("I do not know at all", None),
    ],
)
def test_the_part_that_counts(output, expected):
    assert final_answer(output) == expected


def test_gold_answers_of_worked_solutions():
    assert gold_answer("9 * 2 = <<9*2=18>>18\n#### 18") == "18"
    assert gold_answer("so it is $\\boxed{\\frac{1}{2}}$.") == "\\frac{1}{2}"
    assert gold_answer(join_answers(["3", "-2"])) == "3, -2"
    assert gold_answer(" 7 ") == "7"


def test_reasons():
    cases = [("5", "The answer is 5."), ("5", "6"), ("5", ""), ("", "5")]
    with Grader(workers=1) as grader:
        graded = grader.grade([GradeItem("", gold, output) for gold, output in cases])
        assert grader.grade([]) == []
    assert [g.reason for g in graded] == ["equal", "different", "no answer", "unreadable gold"]
    assert [g.extracted for g in graded] == ["5", "6", None, None]


def test_unknown_names_and_numbers():
    assert grader_names() == ["math-verify", "scdpo", "step_dpo"]
    with pytest.raises(ConfigError, match="no grader 'stepdpo'; did you mean step_dpo"):
        Grader("stepdpo")
    with pytest.raises(ConfigError, match="workers is 0"):
        Grader(workers=0)
    for seconds, shown in (
        (-1, "-1"),
        (0, "0"),
        (1e10, "1e.10"),
        (float("nan"), "nan"),
        (1e-4, "0.0001"),
    ):
        with pytest.raises(
            ConfigError,
            match=f"seconds is {shown}; give the limit of a comparison, between 0.001 and 86,400",
        ):
            Grader(seconds=seconds)
    with pytest.raises(ConfigError, match="there are: math-verify, scdpo, step_dpo"):
        find_engine("zzz")


def test_an_exception_is_a_reason_and_the_next_item_is_graded():
    code = (
        "from prefopt.grade.workers import Engine, _serve\n"
        "def grade(problem, answer, output): return bool(1 / len(output)), output, 'equal'\n"
        "_serve(Engine(grade, print, max), 1, 5.0)\n"
    )
    batch = json.dumps([["", "5", ""], ["", "5", "5"]]) + "\n"
    found = subprocess.run(
        [sys.executable, "-c", code], input=batch, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert lines == [[False, None, "failed: ZeroDivisionError"], [True, "5", "equal"]]
    assert found.stderr == ""


def test_comparisons_without_a_verdict_are_counted():
    reasons = ["equal", "time limit", "failed: KeyError", "different", "no answer", "time limit"]
    found = mishaps(reasons)
    assert found == {"time limit": 2, "failed: KeyError": 1}
    assert told(found, 6) == (
        "3 of 6 comparisons gave no verdict and count as wrong (2 time limit, 1 failed: KeyError)"
    )


def test_works_in_a_thread_and_after_closing():
    found = []
    grader = Grader(workers=1)
    items = [GradeItem("", "5", "The answer is 5.")] * 3

    def work():
        found.extend(grader.grade(items))
        grader.close()
        found.extend(grader.grade(items))
        grader.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [g.correct for g in found] == [True] * 6


HANGS = (
    "\\boxed{9^{9^{9^{9}}}}",
    "\\boxed{" + "(" * 300 + "x" + ")" * 300 + "^{99999}}",
    "\\boxed{\\prod_{k=1}^{10^{9}} \\sin(k x)}",
)


def processes_under(parent):
    """Processes whose command line is that of a grading process of a parent; zombies have none."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and b"prefopt.grade.workers" in (entry / "cmdline").read_bytes()
            ):
                found.append(
                    (
                        int(entry.name),
                        int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]),
                    )
                )
        except (OSError, IndexError):
            continue
    keepers = {pid for pid, up in found if up == parent}
    return keepers | {pid for pid, up in found if up in keepers}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_thousand_gradings_with_planted_hangs():
    easy = [
        ("18", "The answer is 18.", True),
        ("18", "The answer is 19.", False),
        ("1,2", "\\boxed{2,1}", True),
    ]
    items, expected = [], []
    for n in range(10_000):
        gold, output, right = easy[n % 3]
        if n % 1000 == 500:
            gold, output, right = "x+1", HANGS[n // 1000 % 2 * 2], False
        items.append(GradeItem("", gold, output))
        expected.append(right)
    seen = []
    others = processes_under(os.getpid())
    with Grader(workers=2, seconds=0.5) as grader:
        graded = grader.grade(items, progress=lambda done, total: seen.append((done, total)))
        processes = processes_under(os.getpid()) - others
        assert processes
    assert [g.correct for g in graded] == expected
    assert {n for n, g in enumerate(graded) if g.reason == "time limit"} >= {
        500,
        2500,
        4500,
        6500,
        8500,
    }
    assert seen[-1] == (10_000, 10_000)
    assert wait_for_end(processes) == set()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_outlives_a_killed_program():
    code = (
        "from prefopt.grade.maths import *\n"
        "g = Grader(workers=2, seconds=1)\n"
        "g.grade([GradeItem('', '5', 'The answer is 5.')] * 64)\n"
        "print('ready', flush=True)\n"
        f"g.grade([GradeItem('', 'x+1', {HANGS[0]!r})] * 64)\n"
    )
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    processes = processes_under(program.pid)
    assert len(processes) >= 2
    program.kill()
    program.wait()
    program.stdout.close()
    assert wait_for_end(processes, seconds=20) == set()


def wait_for_end(processes, seconds=5.0):
    """Those that are still there after a while."""
    end = time.monotonic() + seconds
    alive = set(processes)
    while alive and time.monotonic() < end:
        alive = {pid for pid in alive if _runs(pid)}
        time.sleep(0.05)
    return alive


def _runs(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
def test_a_dead_worker_is_replaced():
    with Grader(workers=1) as grader:
        items = [GradeItem("", "5", "The answer is 5.")] * 10
        assert all(g.correct for g in grader.grade(items))
        grader._pool.workers[0].process.kill()
        os.killpg(grader._pool.workers[0].process.pid, 9)
        assert all(g.correct for g in grader.grade(items))
