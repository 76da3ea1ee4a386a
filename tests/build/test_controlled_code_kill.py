"""A build of code-integrated pairs that gets kill -9 in each of its stages loses nothing, repeats nothing, and leaves
no interpreter behind.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from prefopt.build.controlled_code import ControlledCodeSettings, build_controlled_code_pairs
from prefopt.build.grading import one_by_one
from prefopt.generate.base import Completion, Request, Sampling
from prefopt.generate.journal import Journal, Series
from prefopt.generate.schedule import Rising
from prefopt.records import write_preferences
from prefopt.sandbox.base import Limits
from prefopt.sandbox.isolation import isolation
from prefopt.sandbox.sandbox import Sandbox
from tests.build.test_controlled_code import END, Model, Task

pytestmark = [
    pytest.mark.skipif(not isolation().works, reason="no isolation of code on this machine"),
    pytest.mark.slow,
]
ROOT = Path(__file__).parents[2]
CLOSE = "<|endofmessage|>"
TASKS = [Task(name, f"What is {name}?", "7") for name in ("a", "b")]
SETTINGS = ControlledCodeSettings(
    samples=2, attempts=2, per_question=None, schedule=Rising(1.1, 0.1, 1.4)
)


def _code(name: str, content: str) -> str:
    """A block whose code is that problem's alone, so that its run has a row of its own."""
    return f"<|code|># {name}\n{content}{END}"


def _shown(value: int) -> str:
    return f"<|execution|>{value}{END}"


def _said(text: str) -> str:
    return f"<|text|>{text}{END}"


def _texts() -> dict[tuple[str, int], str]:
    """Right and wrong solutions; tails wrong at once, or right first and wrong at the second attempt."""
    texts: dict[tuple[str, int], str] = {}
    for task in TASKS:
        name = task.id
        plan = _said("Multiply.") + _code(name, "x = 2 * 3\nprint(x)") + _shown(6)
        last = _code(name, "print(x + 1)") + _shown(7) + _said("7") + CLOSE
        blunder = _code(name, "print(x + 2)") + _shown(8) + _said("8") + CLOSE
        texts |= {
            (name, 0): plan + _said("Add one.") + last,
            (name, 1): _said("Guess.") + _code(name, "print(9)") + _shown(9) + _said("9") + CLOSE,
            (f"{name}/1", 0): _said("Multiply.") + _said("It is 9.") + CLOSE,
            (f"{name}/3", 0): plan + _said("So.") + last,
            (f"{name}/3", 1): plan + blunder,
            (f"{name}/4", 0): plan + _said("Add one.") + blunder,
        }
    return texts


TEXTS = _texts()


class Ending(Model):
    """Ends its process before the completion number `limit`, from 0."""

    def __init__(self, limit: int | None, folder: Path) -> None:
        super().__init__(TEXTS)
        self.limit = limit
        self.folder = folder

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        for request in requests:
            if len(self.asked) == self.limit:
                end(self.folder)
            yield from super().generate([request], sampling)


class EndingJournal(Journal):
    """Ends its process before the execution number `limit` is kept, from 0."""

    def __init__(self, limit: int | None, folder: Path) -> None:
        super().__init__(folder / "j.sqlite")
        self.limit = limit
        self.executions = 0

    def append(self, series: Series, completion: Completion, prompt: str) -> None:
        if series.purpose == "execution":
            if self.executions == self.limit:
                end(self.path.parent)
            self.executions += 1
        super().append(series, completion, prompt)


def end(folder: Path) -> None:
    """Note which processes hang on this one, and kill it."""
    (folder / "descendants").write_text(" ".join(map(str, descendants(os.getpid()))))
    os.kill(os.getpid(), signal.SIGKILL)


def build(folder: Path, texts: int | None, cells: int | None) -> None:
    """The build, ended before it has written or run so much; its pairs in a file."""
    with Sandbox(Limits(seconds=5), workers=2) as sandbox, EndingJournal(cells, folder) as journal:
        data = build_controlled_code_pairs(
            TASKS, Ending(texts, folder), sandbox, settings=SETTINGS, journal=journal,
            grade=one_by_one(lambda task, text: text.strip() == task.answer),
        )  # fmt: skip
    write_preferences(folder / "pairs.jsonl", [*data.mixed(), *data.data_equal])


def run(folder: Path, texts: int | None, cells: int | None) -> tuple[int, list[int]]:
    """Exit status of a build in a process of its own, and the processes that hung on it; all of them are gone."""
    folder.mkdir(exist_ok=True)
    code = (
        "from pathlib import Path; from tests.build import test_controlled_code_kill as this; "
        f"this.build(Path({str(folder)!r}), {texts}, {cells})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    if done.returncode == 0:
        return 0, []
    hung = [int(pid) for pid in (folder / "descendants").read_text().split()]
    deadline = time.monotonic() + 5
    while alive := [pid for pid in hung if state(pid)[0] not in "XZ"]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)
    return done.returncode, hung


def descendants(pid: int) -> list[int]:
    """The processes below a process."""
    parents = {int(p.name): state(int(p.name))[1] for p in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def state(pid: int) -> tuple[str, int]:
    """State letter and parent of a process; X where there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return words[0], int(words[1])


def rows(folder: Path) -> list[tuple[str, str, int, str, str]]:
    connection = sqlite3.connect(folder / "j.sqlite")
    try:
        return connection.execute(
            "SELECT purpose, request, sample, prompt, text FROM completions ORDER BY 1, 2, 3, 4"
        ).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize("what", ["texts", "executions"])
def test_kill_9_in_every_stage(tmp_path: Path, what: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, None, None) == (0, [])
    expected = rows(whole)
    stages = {purpose.split(",")[0] for purpose, *_ in expected}
    assert stages == {"naive", "tails", "execution"}
    own = [row for row in expected if (row[0] == "execution") == (what == "executions")]
    # So many of its own rows in each life, the last of which ends by itself.
    life = -(-len(own) // 4)
    limits = (life, None) if what == "texts" else (None, life)
    seen: set[str] = set()
    left_behind, status = 0, -1
    for number in range(1, 6):
        status, hung = run(killed, *limits)
        found = rows(killed)
        assert len({row[:4] for row in found}) == len(found)
        kept = [row for row in found if (row[0] == "execution") == (what == "executions")]
        if status == 0:
            break
        assert len(kept) == number * life, "each life adds what it wrote, and writes nothing twice"
        assert not (killed / "pairs.jsonl").exists()
        seen |= {purpose.split(",")[0] for purpose, *_ in found}
        left_behind += len(hung)
    else:
        pytest.fail("no life ended by itself")
    assert seen == stages
    assert left_behind > 0, "interpreters were there to be ended"
    assert rows(killed) == expected
    assert (killed / "pairs.jsonl").read_bytes() == (whole / "pairs.jsonl").read_bytes()
    assert len((whole / "pairs.jsonl").read_text().splitlines()) > 6
