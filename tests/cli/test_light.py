"""What has no use for torch never loads it: help pages, servers, grading, labelling."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.label.solutions import write

HEAVY = ("torch", "transformers", "pydantic", "openai", "sympy", "rich")
PROGRAM = """
import sys
from prefopt.cli.main import main
for words in {commands!r}:
    assert main(words) == 0
print("loaded:", *(name for name in {names!r} if name in sys.modules))
"""


def loaded(program: str) -> list[str]:
    """The names that the program prints in its last line."""
    done = subprocess.run(
        [sys.executable, "-c", program], input="q\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].removeprefix("loaded:").split()


def running(*commands: list[str], names: tuple[str, ...] = ("torch",)) -> list[str]:
    return loaded(PROGRAM.format(commands=commands, names=names))


def test_help_loads_nothing_heavy() -> None:
    verbs = ("grade", "label", "build", "eval", "analyse", "train", "data", "judge", "generate")
    assert running(*([verb, "--help"] for verb in verbs), names=HEAVY) == []


@pytest.mark.parametrize(
    "module",
    [
        "prefopt.generate.openai",
        "prefopt.judge.llm",
        "prefopt.evals.suite",
        "prefopt.evals.judging",
        "prefopt.evals.answering",
        "prefopt.label.web",
    ],
)
def test_what_talks_to_servers_needs_no_torch(module: str) -> None:
    program = (
        f"import sys, {module}; print('loaded:', *{{'torch', 'transformers'}} & set(sys.modules))"
    )
    assert loaded(program) == []


@pytest.mark.slow
def test_grading_needs_no_torch(tmp_path: Path) -> None:
    row = {"problem": "1 + 1?", "answer": "2", "output": "\\boxed{2}"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    out = str(tmp_path / "out.jsonl")
    assert running(["grade", str(tmp_path / "in.jsonl"), "--output", out, "--workers", "1"]) == []
    assert json.loads(Path(out).read_text())["correct"] is True


@pytest.mark.slow
def test_labelling_needs_no_torch(tmp_path: Path) -> None:
    assert running(["label", str(write(tmp_path)), "--annotator", "ann"]) == []
