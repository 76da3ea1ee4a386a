"""The interpreter loop with scripted blocks and a real sandbox: order, state, statuses, journal, kill and resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefopt.agents.executions import Executions, Job, shown
from prefopt.agents.interpreted import Attempt, Solved, Solving, solve
from prefopt.errors import ConfigError, RecordError
from prefopt.generate.journal import Journal
from prefopt.generate.schedule import PRESETS, Rising, constant
from prefopt.sandbox.base import CellResult, Limits
from prefopt.sandbox.sandbox import Sandbox
from prefopt.text.blocks import Block, conversation, serialise
from tests.agents.scripted import CUT, FULL, REFUSED, Scripted

TOO_LONG = "a block was cut at the token limit"
NO_ROOM = "a block was cut at the end of the model's context"
END, STOP = "<|endofblock|>", "<|endofmessage|>"


def text(content: str) -> str:
    return f"<|text|>{content}{END}"


def code(content: str) -> str:
    return f"<|code|>{content}{END}"


def blocks(*parts: tuple[str, str]) -> tuple[Block, ...]:
    return tuple(Block(kind, content) for kind, content in parts)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """Isolation is not what is tested here, so this works where bubblewrap is missing."""
    with Sandbox(Limits(seconds=2), workers=2, unsafe_local_execution=True) as opened:
        yield opened


def solve_one(
    sandbox: Sandbox, *pieces: str, front: tuple[Block, ...] = (), **settings: object
) -> Solved:
    (solved,) = solve(
        [Attempt("q", 0, "What?", front=front)],
        Scripted({"q": pieces}),
        sandbox,
        Solving(**settings),  # type: ignore[arg-type]
    )
    return solved


def test_blocks_and_outputs_alternate_and_state_is_kept(sandbox: Sandbox) -> None:
    solved = solve_one(
        sandbox,
        text("Let x be 3."),
        code("x = 3"),
        code("print(x * x)"),
        text("The answer is 9."),
        STOP,
    )
    assert solved == Solved(
        "q", 0,
        blocks(
            ("text", "Let x be 3."), ("code", "x = 3"), ("execution", "<empty_execution>"),
            ("code", "print(x * x)"), ("execution", "9"), ("text", "The answer is 9."),
        ),
        front=0, status="finished", calls=5,
    )  # fmt: skip


def test_requests_are_the_conversation_continued(sandbox: Sandbox) -> None:
    script = Scripted({"q": [code("1 + 1"), text("2"), STOP]})
    solve(
        [Attempt("q", 4, "What?", "Be exact.")],
        script,
        sandbox,
        Solving(schedule=PRESETS["paper"], seed=7),
    )
    assert {r.prompt for r in script.requests} == {conversation("Be exact.", "What?")}
    assert [r.prefix for r in script.requests] == [
        "",
        "<|code|>1 + 1<|endofblock|><|execution|>2<|endofblock|>",
        "<|code|>1 + 1<|endofblock|><|execution|>2<|endofblock|><|text|>2<|endofblock|>",
    ]
    assert [(s.temperature, s.purpose, s.seed) for s in script.samplings] == [
        (1.1, "solve, block 0", 7), (1.15, "solve, block 1", 7), (1.2, "solve, block 2", 7),
    ]  # fmt: skip
    assert all(
        s.keep_special and s.stop == (END, STOP) and s.max_new_tokens == 512
        for s in script.samplings
    )


def test_temperature_zero_is_greedy(sandbox: Sandbox) -> None:
    for schedule in (constant(0.0), Rising(0, 0, 0)):
        script = Scripted({"q": [text("a"), STOP]})
        solve([Attempt("q", 0, "?")], script, sandbox, Solving(schedule=schedule))
        assert [s.temperature for s in script.samplings] == [0, 0]


def test_a_variable_of_the_front_is_there_in_the_tail(sandbox: Sandbox) -> None:
    front = blocks(("text", "Let."), ("code", "x = 5\nprint(x)"), ("execution", "5"))
    solved = solve_one(sandbox, code("print(x + 1)"), text("6"), STOP, front=front)
    assert solved.front == 3
    assert solved.blocks[:3] == front
    assert solved.tail == blocks(("code", "print(x + 1)"), ("execution", "6"), ("text", "6"))
    assert (solved.status, solved.calls, solved.drift) == ("finished", 3, 0)


def test_a_front_that_ends_in_code_is_answered_first(sandbox: Sandbox) -> None:
    solved = solve_one(sandbox, text("2"), STOP, front=blocks(("code", "1 + 1")))
    assert solved.blocks == blocks(("code", "1 + 1"), ("execution", "2"), ("text", "2"))
    assert solved.front == 1


def test_code_that_depends_on_chance_is_noticed_when_its_state_is_restored(
    sandbox: Sandbox,
) -> None:
    front = blocks(("code", "import random\nprint(random.random())"), ("execution", "0.5"))
    assert solve_one(sandbox, code("1"), STOP, front=front).drift == 1


def test_a_traceback_is_output(sandbox: Sandbox) -> None:
    solved = solve_one(sandbox, code("1 / 0"), code("print('on')"), text("a"), STOP)
    assert "ZeroDivisionError: division by zero" in solved.blocks[1].content
    assert "\x1b" not in solved.blocks[1].content
    assert solved.blocks[3].content == "on"
    assert solved.status == "finished"


@pytest.mark.parametrize(
    ("pieces", "status", "reason", "kept"),
    [
        ([text("a"), f"<|text|>b{STOP}"], "finished", "", [("text", "a"), ("text", "b")]),
        ([text("a"), ""], "finished", "", [("text", "a")]),
        ([STOP], "error", "nothing was written", []),
        ([text("a"), "<|text|>b" + CUT], "length", TOO_LONG, [("text", "a"), ("text", "b")]),
        (["<|code|>print(1" + CUT], "length", TOO_LONG, [("code", "print(1")]),
        ([text("a"), "<|text|>b" + FULL], "length", NO_ROOM, [("text", "a"), ("text", "b")]),
        ([f"<|execution|>9{END}"], "error", "the model wrote interpreter output itself", [("text", "<|execution|>9")]),
        ([text("<|execution|>9")], "error", "<|execution|> inside a text", [("text", "<|text|><|execution|>9")]),
        ([text("a<|code|>1")], "error", "<|code|> inside a text block", [("text", "<|text|>a<|code|>1")]),
        ([f"hello{END}"], "error", "no block: the text starts with 'hello'", [("text", "hello")]),
        ([END], "error", "no block: the text starts with ''", [("text", "")]),
        (["<|text|>a"], "error", "the text ended inside a text block", [("text", "a")]),
        ([f"<|code|>1{STOP}"], "error", "the text ended inside a code block", [("code", "1")]),
        ([text("a"), REFUSED + "too long"], "error", "the server refused: too long", [("text", "a")]),
        ([text("a")] * 3, "calls", "no end within 3 blocks", [("text", "a")] * 3),
    ],
)  # fmt: skip
def test_how_attempts_end(
    sandbox: Sandbox, pieces: list[str], status: str, reason: str, kept: list[tuple[str, str]]
) -> None:
    solved = solve_one(sandbox, *pieces, max_calls=3)
    assert solved.status == status
    assert solved.reason.startswith(reason)
    assert bool(solved.reason) == (status != "finished")
    assert solved.blocks == blocks(*kept)


@pytest.mark.slow
def test_code_that_ends_its_interpreter_ends_the_attempt_at_its_next_code(sandbox: Sandbox) -> None:
    die = "import os\nos._exit(3)"
    solved = solve_one(sandbox, code(die), text("hm"), code("1"), STOP)
    assert solved.blocks[1].content.endswith("SystemError: the code ended the interpreter")
    assert (solved.status, solved.calls) == ("error", 3)
    assert solved.reason.startswith("an earlier block had ended the interpreter: ")
    # Without further code the model may draw its own conclusions.
    assert solve_one(sandbox, code(die), text("hm"), STOP).status == "finished"


def test_an_endless_loop_says_so(sandbox: Sandbox) -> None:
    solved = solve_one(sandbox, code("while True: pass"), text("hm"), STOP)
    assert solved.blocks[1].content.endswith("TimeoutError: the code ran into the time limit")
    assert solved.status == "finished"


@pytest.mark.parametrize(
    ("result", "content"),
    [
        (CellResult("\n\x1b[31mred\x1b[0m\n\n", "ok", 0.0, False), "red"),
        (CellResult("  1\n  2  \n", "ok", 0.0, False), "  1\n  2"),
        (CellResult(" \n", "ok", 0.0, False), "<empty_execution>"),
        (CellResult("a<|endofblock|><|text|>b", "ok", 0.0, False), "a< |endofblock|>< |text|>b"),
        (CellResult("aaa", "ok", 0.0, True), "aaa\n[output cut]"),
        (CellResult("", "memory", 0.0, False), "MemoryError: the code ran into the memory limit"),
        (CellResult("\x1b]0;title\x07x", "ok", 0.0, False), "x"),
    ],
)
def test_what_the_model_is_shown(result: CellResult, content: str) -> None:
    assert shown(result) == content
    serialise([Block("execution", shown(result))])


def test_the_same_attempt_twice_and_bad_settings_are_refused(sandbox: Sandbox) -> None:
    with pytest.raises(RecordError, match="record 'q': sample 1 is attempted twice"):
        solve([Attempt("q", 1, "?"), Attempt("q", 1, "?")], Scripted({}), sandbox, Solving())
    with pytest.raises(ConfigError, match="max_calls is 0"):
        Solving(max_calls=0)
    with pytest.raises(RecordError, match=r"question: its text holds the marker <\|code\|>"):
        solve([Attempt("q", 1, "<|code|>")], Scripted({}), sandbox, Solving())


def test_more_attempts_than_interpreters(sandbox: Sandbox) -> None:
    count = 7
    script = {
        f"q{i}": [code(f"x = {i}"), code("y = x + 1"), code("print(x, y)"), text(f"{i}"), STOP]
        for i in range(count)
    }
    reports: list[tuple[int, int]] = []
    solved = solve(
        [Attempt(f"q{i}", 0, "?") for i in range(count)],
        Scripted(script), sandbox, Solving(),
        progress=lambda done, total: reports.append((done, total)),
    )  # fmt: skip
    assert [s.blocks[5].content for s in solved] == [f"{i} {i + 1}" for i in range(count)]
    assert reports[0] == (0, count)
    assert reports[-1] == (count, count)


def test_interpreters_are_kept_while_there_is_room_and_equal_code_runs_once(
    sandbox: Sandbox,
) -> None:
    """Two workers: two solutions never replay; of three, one replays every time."""

    def cells_run(count: int, *, same: bool = False) -> int:
        written: list[list[Block]] = [[] for _ in range(count)]
        with Executions(sandbox, None) as executions:
            for step in range(3):
                for i, solution in enumerate(written):
                    solution.append(Block("code", f"print({0 if same else i}, {step})"))
                jobs = [Job((f"q{i}", 0), tuple(solution)) for i, solution in enumerate(written)]
                for solution, result in zip(written, executions.run(jobs), strict=True):
                    solution.append(Block("execution", result.output))
            return executions.cells_run

    assert cells_run(2) == 6
    assert 9 < cells_run(3) <= 18
    assert cells_run(5, same=True) == 3


def test_nothing_is_written_or_run_twice_with_a_journal(sandbox: Sandbox, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    touch = code(f"with open({str(marks)!r}, 'a') as f: n = f.write('x')")
    script = {"q": [touch, code("print(n)"), text("1"), STOP]}
    with Journal(tmp_path / "j.sqlite") as journal:
        first = solve([Attempt("q", 0, "?")], Scripted(script), sandbox, Solving(), journal=journal)
        silent = Scripted({})
        again = solve([Attempt("q", 0, "?")], silent, sandbox, Solving(), journal=journal)
        assert journal.count() == 4 + 2
    assert again == first
    assert silent.requests == []
    assert marks.read_text() == "x"


_KILLED = """
import sys
from pathlib import Path
from prefopt.agents.interpreted import Attempt, Solving, solve
from prefopt.generate.journal import Journal
from prefopt.sandbox.base import Limits
from prefopt.sandbox.sandbox import Sandbox
from tests.agents.scripted import Scripted
from tests.agents.test_interpreted import kill_script

folder, kill_after = Path(sys.argv[1]), int(sys.argv[2])
script = kill_script(folder / "marks")
with Sandbox(Limits(seconds=5), workers=2, unsafe_local_execution=True) as sandbox:
    with Journal(folder / "j.sqlite") as journal:
        generator = Scripted(script, kill_after=kill_after or None)
        found = solve([Attempt(id, 0, "?") for id in script], generator, sandbox, Solving(), journal=journal)
        print(len(generator.requests), journal.count())
        print(repr(found))
"""


def kill_script(marks: Path) -> dict[str, list[str]]:
    """Four solutions whose first code leaves a mark each time that it runs; the second needs its state."""
    return {
        f"q{i}": [
            code(f"n = open({str(marks)!r} + '{i}', 'a').write('x')"),
            text("then"),
            code(f"print(n + {i})"),
            text("done"),
            STOP,
        ]
        for i in range(4)
    }


def _run(folder: Path, kill_after: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _KILLED, str(folder), str(kill_after)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", [6, 13])
def test_kill_9_and_resume_loses_and_repeats_nothing(tmp_path: Path, kill_after: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = _run(whole, 0).stdout.splitlines()
    assert expected[0] == "20 28"  # 4 attempts x 5 blocks, and 2 executions each
    killed = _run(broken, kill_after)
    assert killed.returncode == -signal.SIGKILL
    resumed = _run(broken, 0)
    assert resumed.returncode == 0, resumed.stderr
    asked, in_journal = map(int, resumed.stdout.splitlines()[0].split())
    assert (asked, in_journal) == (20 - kill_after, 28)
    assert resumed.stdout.splitlines()[1].replace("broken", "whole") == expected[1]
