"""`prefopt build` and `prefopt train` as a user runs them: writer and judge behind a server, killed in every stage."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli.main import main
from prefopt.ledger import Ledger
from prefopt.records import read_preferences
from prefopt.text.sources import load_preferences
from tests.generate.server import FakeServer, chat
from tests.integration.runs import ENVIRONMENT, Row, read_json, read_rows, write_rows
from tests.tiny import make_model_folder

pytestmark = pytest.mark.slow
PROBLEMS = 6


def problems(folder: Path) -> Path:
    rows = [
        {"id": f"p{i}", "question": f"What is {i} + 2 + 3?", "answer": f"Add.\n#### {i + 5}"}
        for i in range(PROBLEMS)
    ]
    return write_rows(folder / "problems.jsonl", rows)


def script(number: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Sampled solutions are wrong in step 2 for even problems; the judge says so; continuations are right."""
    del number, path
    messages = body["messages"]
    asked = messages[0]["content"]
    if "Final Decision" in asked:
        return chat("It adds wrongly.\nFinal Decision: Step 1: correct; Step 2: incorrect")
    i = int(re.search(r"What is (\d+)", asked).group(1))  # pyright: ignore[reportOptionalMemberAccess]
    prefix = messages[-1]["content"]
    if prefix.endswith("Step 2:"):
        how = "+" if body["seed"] % 2 else "and"
        return chat(f" {i + 2} {how} 3 = {i + 5}\nThe answer is {i + 5}")
    result = i + 9 if i % 2 == 0 else i + 5
    return chat(f" {i} + 2 = {i + 2}\nStep 2: {i + 2} + 3 = {result}\nThe answer is {result}")


def recipe(folder: Path, url: str, **judge: Any) -> Path:
    writer = {"server": url, "model": "tiny", "concurrency": 1, "patience": 2.0}
    build: Row = {
        "problems": str(problems(folder)),
        "writer": writer,
        "judge": judge or {"by": "writer", "writer": writer},
        "samples": 1,
        "corrections": 3,
        "output_dir": str(folder / "data"),
        "grader_workers": 1,
    }
    model = make_model_folder(folder / "model", "llama")
    keys: Row = {
        "method": "step_dpo",
        "model_name_or_path": str(model),
        "build": build,
        "output_dir": str(folder / "run"),
        "save_strategy": "no",
        "cache_dir": str(folder / "cache"),
    }
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in keys.items()))
    return path


def journal_rows(folder: Path) -> int:
    with sqlite3.connect(folder / "data" / "journal.sqlite") as connection:
        return connection.execute("SELECT count(*) FROM completions").fetchone()[0]


def test_build_then_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(script) as server:
        path = recipe(tmp_path, server.url)
        assert main(["build", str(path)]) == 0
        asked = len(server.asked)
        assert asked == PROBLEMS + 3 + 3 * 3
        # A second build asks for nothing again and writes the same.
        before = (tmp_path / "data" / "pairs.jsonl").read_bytes()
        assert main(["build", str(path)]) == 0
        assert len(server.asked) == asked == journal_rows(tmp_path)
    said = capsys.readouterr()
    assert said.out.split() == [str(tmp_path / "data" / "pairs.jsonl")] * 2
    assert (tmp_path / "data" / "pairs.jsonl").read_bytes() == before
    records = read_preferences(tmp_path / "data" / "pairs.jsonl")
    assert [r.id for r in records] == ["p0/0", "p2/0", "p4/0"]
    assert records[0].prefix == "Let's think step by step.\nStep 1: 0 + 2 = 2\nStep 2:"
    assert records[0].responses[0].text == " 2 + 3 = 9\nThe answer is 9"
    facts = read_json(tmp_path / "data" / "counts.json")
    assert facts["counts"]["solutions wrong"] == facts["counts"]["errors located"] == 3
    assert facts["counts"]["corrections right"] == 9
    assert facts["reference"]["chosen"]["per_token"] < 0
    released, mapping = load_preferences(
        str(tmp_path / "data" / "released.jsonl"), ledger=Ledger("released")
    )
    assert mapping["initial_reason_steps"] == "prefix"
    assert sum(len(r.pairs) for r in released) == facts["counts"]["pairs"]
    assert main(["train", str(path)]) == 0
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_people_as_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Build, label what waits, build again: nothing is sampled twice."""
    with FakeServer(script) as server:
        path = recipe(tmp_path, server.url, by="labels")
        assert main(["build", str(path)]) == 0
        errors = tmp_path / "data" / "errors.jsonl"
        said = capsys.readouterr()
        assert "3 wrong solutions have no verdict yet: label them with `prefopt label" in said.err
        assert said.out.strip() == str(errors)
        assert not (tmp_path / "data" / "pairs.jsonl").exists()
        assert [row["verdict"] for row in read_rows(errors)] == ["missing"] * 3
        label(errors, "2\n2\nq\n")
        assert main(["build", str(path)]) == 0
        assert len(server.asked) == PROBLEMS + 2 * 3
    assert [r.id for r in read_preferences(tmp_path / "data" / "pairs.jsonl")] == ["p0/0", "p2/0"]


def test_labels_that_come_later_are_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors, labels = (tmp_path / "data" / name for name in ("errors.jsonl", "labels.jsonl"))
    with FakeServer(script) as server:
        path = recipe(tmp_path, server.url, by="labels")
        words = ["run", str(path), "max_steps=1"]
        assert main(words) == 2
        said = capsys.readouterr().err.splitlines()
        assert (
            f"error: {tmp_path / 'data' / 'pairs.jsonl'}: the build has made no such file"
            in said[-1]
        )
        label(errors, "2\n2\nq\n")
        assert main(words) == 0
        label(errors, "2\n")
        assert main(words) == 2
        assert f"({labels}: its content is not what it was)" in capsys.readouterr().err
        (tmp_path / "run" / "finished.json").unlink()  # as if killed without a checkpoint
        assert main(words) == 0
    assert len(read_preferences(tmp_path / "data" / "pairs.jsonl")) == 3
    assert read_json(tmp_path / "run" / "data-ledger.json")["train"]["read"] == 3


def label(errors: Path, typed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefopt", "label", str(errors), "--annotator", "a"],
        input=typed, text=True, capture_output=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def environment() -> dict[str, str]:
    import os

    return {**os.environ, **ENVIRONMENT}


@pytest.mark.parametrize("asked", [2, PROBLEMS + 2, PROBLEMS + 5])
def test_kill_in_every_stage_and_go_on(asked: int, tmp_path: Path) -> None:
    """Killed while it samples, judges or corrects; what is in the journal is never asked for again.

    At the moment of the kill one answer is under way, and the one before it may have arrived without being committed.
    """
    running: list[subprocess.Popen[bytes]] = []
    reached = threading.Event()

    def deadly(number: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if number == asked and not reached.is_set():
            reached.set()
            running[0].send_signal(signal.SIGKILL)
        return script(number, path, body)

    with FakeServer(deadly) as server:
        path = recipe(tmp_path, server.url)
        command = [sys.executable, "-m", "prefopt", "build", str(path)]
        running.append(
            subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )  # fmt: skip
        assert running[0].wait() == -signal.SIGKILL
        kept = journal_rows(tmp_path)
        assert asked - 2 <= kept <= asked - 1
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        whole = PROBLEMS + 3 + 3 * 3
        assert journal_rows(tmp_path) == whole
        assert len(server.asked) == asked + whole - kept
    assert len(read_preferences(tmp_path / "data" / "pairs.jsonl")) == 3


def test_training_before_building_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, "http://127.0.0.1:1/v1")
    assert main(["train", str(path)]) == 2
    assert "not built yet; run `prefopt build`" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, "http://127.0.0.1:1/v1")
    assert main(["build", str(path)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "127.0.0.1:1" in last


def changed(path: Path, **keys: Any) -> Path:
    """The recipe with other keys in its section `build`."""
    lines = dict(line.split(": ", 1) for line in path.read_text().splitlines())
    lines["build"] = json.dumps({**json.loads(lines["build"]), **keys})
    other = path.with_name("changed.yaml")
    other.write_text("".join(f"{k}: {v}\n" for k, v in lines.items()))
    return other


def test_held_out_problems_are_in_no_file_to_train_on(tmp_path: Path) -> None:
    """And other settings than those of the build have to be built before they are trained on."""
    with FakeServer(script) as server:
        path = recipe(tmp_path, server.url)
        assert main(["build", str(path)]) == 0
        other = changed(path, held_out=0.5, measure_reference=False)
        assert main(["train", str(other)]) == 2
        assert not (tmp_path / "run" / "model").exists()
        asked = len(server.asked)
        assert main(["build", str(other)]) == 0
        assert len(server.asked) == asked, "which problems are held out changes no text"
    data = tmp_path / "data"
    kept, held = (
        {str(r.meta["problem"]) for r in read_preferences(data / name)}
        for name in ("pairs.jsonl", "held-out.jsonl")
    )
    # By b2sum -l 64 of "What is 0 + 2 + 3?" and so on: they lie at 0.26, 0.91 and 0.69 of all digests.
    assert (kept, held) == ({"p2", "p4"}, {"p0"})
    assert {str(r.meta["problem"]) for r in read_preferences(data / "solutions.jsonl")} == kept
    questions = {row["prompt"] for row in read_rows(data / "released.jsonl")}
    assert questions == {f"What is {p[1:]} + 2 + 3?" for p in kept}
    assert main(["train", str(other), f"eval_file={data / 'held-out.jsonl'}"]) == 0


def test_half_characters_of_a_server_are_replaced(tmp_path: Path) -> None:
    """In solutions, verdicts and corrections; journal and files hold the same, and a second build asks for nothing."""

    def broken(number: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = script(number, path, body)
        message = answer["choices"][0]["message"]
        message["content"] = "\ud83d" + message["content"]
        return answer

    with FakeServer(broken) as server:
        path = recipe(tmp_path, server.url)
        assert main(["build", str(path)]) == 0
        asked = len(server.asked)
        pairs = (tmp_path / "data" / "pairs.jsonl").read_bytes()
        assert main(["build", str(path)]) == 0
        assert len(server.asked) == asked
    assert (tmp_path / "data" / "pairs.jsonl").read_bytes() == pairs
    (record, *_) = read_preferences(tmp_path / "data" / "pairs.jsonl")
    assert (
        record.prefix
        == "Let's think step by step.\nStep 1:\N{REPLACEMENT CHARACTER} 0 + 2 = 2\nStep 2:"
    )
    assert record.responses[1].text.startswith("\N{REPLACEMENT CHARACTER} 2 ")
    remarks = [row["remark"] for row in read_rows(tmp_path / "data" / "errors.jsonl")]
    assert len(remarks) == 3 and all("\N{REPLACEMENT CHARACTER}It" in remark for remark in remarks)


def test_half_a_character_in_the_problems_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, "http://127.0.0.1:1/v1")
    (tmp_path / "problems.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n'
        '{"question": "1 + \\ud83d", "answer": "2"}\n')  # fmt: skip
    assert main(["build", str(path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "problems.jsonl:2: 'question' holds \\ud83d, half of a surrogate pair" in line
