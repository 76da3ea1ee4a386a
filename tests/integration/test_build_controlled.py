"""`prefopt build` and `prefopt train` for Step-Controlled DPO as a user runs them, with the defaults of the recipe:
chains of thought and code that runs, killed in every stage."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli.main import main
from prefopt.records import read_preferences
from prefopt.sandbox.isolation import isolation
from tests.generate.server import Body, FakeServer, chat, plain
from tests.integration.runs import ENVIRONMENT, Row, read_json, write_rows
from tests.tiny import make_model_folder

pytestmark = pytest.mark.slow
needs_isolation = pytest.mark.skipif(
    not isolation().works, reason="no isolation of code on this machine"
)
PROBLEMS = 3
END = "<|endofblock|>"
CLOSE = "<|endofmessage|>"
Script = Callable[[int, str, Body], Body]


class Writer:
    """Writes like a model: of each question samples 0, 2, ... are right, the others and every hot text wrong."""

    def __init__(self) -> None:
        self.seeds: dict[int, list[int]] = {}
        """Of the first request of each sample of a question, in the order they came."""

    def text(self, number: int, path: str, body: Body) -> Body:
        """A chain of thought after `Step 1:`, up to a stop string."""
        del number, path
        assert body["max_tokens"] == 1024, "the default of the recipe"
        i, written = _question(str(body["messages"][0]["content"])), body["messages"][-1]["content"]
        sample = 1 if body["temperature"] > 1 else self.sample(i, body["seed"])
        rest = _chain(i, sample)[len(written) :]
        found = [rest.find(stop) for stop in body.get("stop", []) if stop in rest]
        if not found:
            return chat(rest, stop_reason=None)
        return chat(rest[: min(found)], stop_reason="\nStep")

    def code(self, number: int, path: str, body: Body) -> Body:
        """The next block: text, code, and after its output the answer; hot ones add wrongly."""
        del number, path
        assert body["max_tokens"] == 512, "the default of the recipe"
        question, written = str(body["prompt"]).split("<|assistant|>")
        i = _question(question)
        done = written.count(END)
        if not done:
            right = body["temperature"] == 1 and self.sample(i, body["seed"]) == 0
            return plain(f"<|text|>{'Add' if right else 'Guess'}.", stop_reason=END)
        if "<|execution|>" not in written:
            error = 0 if "Add." in written and body["temperature"] == 1 else 4
            return plain(f"<|code|>print({i} + 5 + {error})", stop_reason=END)
        if "So " in written:
            return plain("", stop_reason=CLOSE)
        shown = written.rpartition("<|execution|>")[2].partition(END)[0].strip()
        result = int(shown) + (body["temperature"] > 1)
        return plain(f"<|text|>So \\boxed{{{result}}}", stop_reason=END)

    def sample(self, question: int, seed: int) -> int:
        known = self.seeds.setdefault(question, [])
        if seed not in known:
            known.append(seed)
        return known.index(seed)


def _question(text: str) -> int:
    found = re.search(r"What is (\d+) \+ 2", text)
    assert found is not None, text
    return int(found[1])


def _chain(i: int, sample: int) -> str:
    result = i + 8 + sample if sample % 2 else i + 5
    more = " now" * (sample // 2)
    steps = (
        f"Step 1: {i} + 2 = {i + 2}{more}\nStep 2: {i + 2} + 3 = {result}\nThe answer is {result}"
    )
    return f"Let's think step by step.\n{steps}"


def recipe(folder: Path, url: str, *, code: bool, **keys: Any) -> Path:
    rows = [
        {"id": f"p{i}", "question": f"What is {i} + 2 + 3?", "answer": f"#### {i + 5}"}
        for i in range(PROBLEMS)
    ]
    endpoint = "completions" if code else "chat"
    build: Row = {
        "problems": str(write_rows(folder / "problems.jsonl", rows)),
        "writer": {"server": url, "model": "tiny", "endpoint": endpoint, "concurrency": 1, "patience": 2.0},
        "samples": 2,
        "output_dir": str(folder / "data"),
        "grader_workers": 1,
        **({"code": {"workers": 2}} if code else {}),
        **keys,
    }  # fmt: skip
    settings: Row = {
        "method": "scdpo",
        "model_name_or_path": str(make_model_folder(folder / "model", "llama")),
        "build": build,
        "output_dir": str(folder / "run"),
        "save_strategy": "no",
        "cache_dir": str(folder / "cache"),
    }
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in settings.items()))
    return path


def journal_rows(folder: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(folder / "data" / "journal.sqlite") as connection:
        query = "SELECT purpose, request, sample, prompt, text FROM completions ORDER BY 1, 2, 3, 4"
        return connection.execute(query).fetchall()


KINDS = [
    pytest.param(False, id="text"),
    pytest.param(True, id="code", marks=needs_isolation),
]


def script_of(*, code: bool) -> Script:
    writer = Writer()
    return writer.code if code else writer.text


@pytest.mark.parametrize("code", KINDS)
def test_build_then_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, code: bool
) -> None:
    with FakeServer(script_of(code=code)) as server:
        path = recipe(tmp_path, server.url, code=code)
        assert main(["build", str(path)]) == 0
        asked = len(server.asked)
        pairs = tmp_path / "data" / "pairs.jsonl"
        before = pairs.read_bytes()
        assert main(["build", str(path)]) == 0
        assert len(server.asked) == asked, "a second build asks for nothing again"
    assert pairs.read_bytes() == before
    said = capsys.readouterr()
    assert said.out.split() == [str(pairs)] * 2
    assert f"3 naive and 3 controlled pairs: {pairs}" in said.err
    records = read_preferences(pairs)
    assert [r.id for r in records] == [
        *(f"p{i}/naive/0-1" for i in range(PROBLEMS)), *(f"p{i}/cut/1" for i in range(PROBLEMS)),
    ]  # fmt: skip
    cut = records[3]
    if code:
        assert cut.prefix == f"<|text|>Add.{END}"
        assert cut.responses[0].text.endswith(f"<|text|>So \\boxed{{5}}{END}{CLOSE}")
        assert f"<|execution|>9{END}<|text|>So \\boxed{{10}}{END}" in cut.responses[1].text
    else:
        assert cut.prefix == "Let's think step by step.\nStep 1: 0 + 2 = 2\n"
        assert [r.text for r in cut.responses] == [
            "Step 2: 2 + 3 = 5\nThe answer is 5", "Step 2: 2 + 3 = 9\nThe answer is 9",
        ]  # fmt: skip
    counts = read_json(tmp_path / "data" / "counts.json")["counts"]
    assert counts["pairs to train on"] == 6 and counts["pairs held out"] == 0
    assert main(["train", str(path)]) == 0
    assert (tmp_path / "run" / "model" / "config.json").exists()


@pytest.mark.parametrize("code", KINDS)
def test_kill_in_every_stage_and_go_on(tmp_path: Path, *, code: bool) -> None:
    """Killed while it samples and while it writes tails; the journal then holds what an undisturbed build has."""
    whole = tmp_path / "whole"
    whole.mkdir()
    with FakeServer(script_of(code=code)) as server:
        assert main(["build", str(recipe(whole, server.url, code=code))]) == 0
        total = len(server.asked)
    # Not the second request: the answer to the first may not have been kept yet.
    for stage, asked in (("naive", 4), ("tails", total - 1)):
        folder = tmp_path / stage
        folder.mkdir()
        with FakeServer(deadly(asked, script_of(code=code), running := [])) as server:
            path = recipe(folder, server.url, code=code)
            running.append(started(path))
            assert running[0].wait() == -signal.SIGKILL
            assert not (folder / "data" / "pairs.jsonl").exists()
            assert 0 < len(journal_rows(folder)) < len(journal_rows(whole))
            assert main(["build", str(path)]) == 0
            assert total <= len(server.asked) <= total + 2, "two answers may not have been kept"
        assert journal_rows(folder) == journal_rows(whole)
        kept = [(p / "data" / "pairs.jsonl").read_bytes() for p in (folder, whole)]
        assert kept[0] == kept[1]


def deadly(asked: int, script: Script, running: list[subprocess.Popen[bytes]]) -> Script:
    """Kills the process that asks at that request."""
    reached = threading.Event()

    def answer(number: int, path: str, body: Body) -> Body:
        if number == asked and not reached.is_set():
            reached.set()
            running[0].send_signal(signal.SIGKILL)
        return script(number, path, body)

    return answer


def started(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "prefopt", "build", str(path)],
        env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_held_out_questions_and_the_numbers_that_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers are those of the file, and the baseline has as many pairs."""
    with FakeServer(script_of(code=False)) as server:
        path = recipe(tmp_path, server.url, code=False, held_out=0.5, samples=4)
        assert main(["build", str(path)]) == 0
        said = capsys.readouterr().err
        assert main(["build", str(path), "build.held_out=0.999"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "all 6 pairs are of held-out questions; use more problems, or a smaller" in error
        assert not (tmp_path / "data" / "pairs.jsonl").exists()
        assert main(["build", str(path)]) == 0
    kept, held, equal, naive, controlled = (
        read_preferences(tmp_path / "data" / f"{name}.jsonl")
        for name in ("pairs", "held-out", "data-equal", "naive", "controlled")
    )
    # By b2sum -l 64 of "What is 0 + 2 + 3?" and so on: they lie at 0.26, 0.54 and 0.91 of all digests.
    assert {str(r.meta["problem"]) for r in held} == {"p0"} and len(held) == 2
    assert len(kept) == len(equal) == 4
    assert (len(naive), len(controlled)) == (2, 2)
    assert f"2 naive and 2 controlled pairs: {tmp_path}" in said


def test_a_refused_build_leaves_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(script_of(code=False)) as server:
        path = recipe(tmp_path, server.url, code=False)
        assert main(["build", str(path)]) == 0
    data = tmp_path / "data"
    before = {p.name: p.read_bytes() for p in data.iterdir() if not p.name.startswith("journal")}
    for override in (
        "build.max_samples=1",
        "build.problems=[]",
        "build.temperature=0.5",  # the server is gone
        "build.writer={model_name_or_path: nowhere}",
        "build.writer.endpoint=completions",
    ):
        assert main(["build", str(path), override]) == 2, override
        files = [p for p in data.iterdir() if not p.name.startswith("journal")]
        assert {p.name: p.read_bytes() for p in files} == before, override
    assert main(["train", str(path)]) == 0
    capsys.readouterr()
