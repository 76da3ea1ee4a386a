"""`prefopt eval` on servers, adapters and models that run programs, and what kill -9 leaves of it."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.cli.main import main
from prefopt.sandbox.isolation import isolation
from prefopt.text.blocks import END_OF_MESSAGE, Block, conversation, serialise
from tests.generate.server import Answer, Body, FakeServer, chat, plain
from tests.integration.runs import ENVIRONMENT, Settings, read_json, read_rows, write_rows
from tests.tiny import make_model_folder, make_tokenizer

SUMS = 40
GRADED = ("--grader", "scdpo")


def sums(folder: Path, count: int = SUMS) -> Path:
    rows = [{"question": f"What is {a} + 1?", "answer": f"#### {a + 1}"} for a in range(count)]
    return write_rows(folder / "sums.jsonl", rows)


def reply(number: int, path: str, body: Body) -> Body:
    """Right for even numbers."""
    del number
    asked = str(body.get("prompt") or body["messages"][-1]["content"])
    found = re.search(r"What is (\d+)", asked)
    assert found is not None
    a = int(found[1])
    text = f"The answer is \\boxed{{{a + 1 + a % 2}}}"
    return chat(text) if path == "/v1/chat/completions" else plain(text)


def evaluate(target: str | Path, file: Path, output: Path, *words: str) -> int:
    return main(["eval", str(target), str(file), "--output", str(output), *GRADED, *words])


def journal_rows(folder: Path) -> list[tuple[Any, ...]]:
    """Request and text of every row, in order; empty while there is no journal."""
    try:
        connection = sqlite3.connect(f"file:{folder / 'evaluation.sqlite'}?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return []
    try:
        return connection.execute(
            "SELECT request, sample, text FROM completions ORDER BY 1, 2, 3"
        ).fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


@pytest.mark.slow
def test_a_server_is_asked_as_the_style_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sums(tmp_path, 6)
    with FakeServer(reply) as server:
        assert evaluate("tiny", file, tmp_path / "chat", "--server", server.url) == 0
        assert {body["model"] for body in server.asked} == {"tiny"}
        assert {body["temperature"] for body in server.asked} == {0.0}
        asked = sorted(body["messages"][0]["content"] for body in server.asked)
        assert asked == [f"What is {a} + 1?" for a in range(6)]
        # Greedy again from the journal: the server hears nothing of it.
        assert evaluate("tiny", file, tmp_path / "chat", "--server", server.url) == 0
        assert len(server.asked) == 6
        style = ("--style", "qwen2-boxed")
        words = ("--server", server.url, "--model", "big", *style, "--name", "mine")
        assert evaluate("tiny", file, tmp_path / "text", *words) == 0
        text = next(body for body in server.asked[6:] if "What is 2 " in body["prompt"])
    assert text["model"] == "big"
    assert text["prompt"] == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is 2 + 1?\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    facts = [read_json(tmp_path / name / "evaluation.json") for name in ("chat", "text")]
    assert [(f["name"], f["correct"], f["total"]) for f in facts] == [
        ("tiny", 3, 6),
        ("mine", 3, 6),
    ]
    assert facts[1]["settings"]["server"] == server.url
    assert facts[1]["settings"]["target"] == "big"
    assert "3/6" in capsys.readouterr().out


@pytest.mark.slow
def test_lists_and_markup_of_a_file_reach_the_published_rules(tmp_path: Path) -> None:
    rows = [
        {"question": "List all x, separated by commas.", "answer": ["-2", "3"]},
        {"question": "Who?", "solution": "So it is $\\boxed{\\text{Evelyn}}$."},
    ]
    texts = {"Who?": "\\boxed{\\text{Evelyn}}"}
    file = write_rows(tmp_path / "problems.jsonl", rows)
    with FakeServer(
        lambda number, path, body: chat(texts.get(body["messages"][0]["content"], "\\boxed{3,-2}"))
    ) as server:
        words = ("--server", server.url, "--grader", "step_dpo")
        assert evaluate("tiny", file, tmp_path / "out", *words) == 0
    outputs = read_rows(tmp_path / "out" / "evaluation-outputs.jsonl")
    assert [(o["correct"], o["answer"]) for o in outputs] == [
        (True, "-2, 3"),
        (True, "\\text{Evelyn}"),
    ]


@pytest.mark.slow
def test_the_text_endpoint_applies_the_template_of_a_folder(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path / "folder")
    file = sums(tmp_path, 2)
    with FakeServer(reply) as server:
        words = ("--server", server.url, "--model", "m", "--endpoint", "completions")
        assert evaluate(tmp_path / "folder", file, tmp_path / "out", *words) == 0
        assert {body["prompt"] for body in server.asked} == {
            f"<|im_start|>user\nWhat is {a} + 1?<|im_end|>\n<|im_start|>assistant\n" for a in (0, 1)
        }
        assert {body["add_special_tokens"] for body in server.asked} == {False}


@pytest.mark.slow
def test_what_a_server_refuses_counts_as_wrong_and_is_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(number: int, path: str, body: Body) -> Answer | Body:
        if "What is 2 " in body["messages"][0]["content"]:
            return Answer(400, {"error": {"message": "the prompt is too long"}})
        return reply(number, path, body)

    file = sums(tmp_path, 6)
    with FakeServer(script) as server:
        assert evaluate("tiny", file, tmp_path / "out", "--server", server.url) == 0
        assert evaluate("tiny", file, tmp_path / "out", "--server", server.url) == 0
        assert len(server.asked) == 7
    facts = read_json(tmp_path / "out" / "evaluation.json")
    assert (facts["correct"], facts["failed"], facts["reasons"]["no solution"]) == (2, 1, 1)
    said = capsys.readouterr().out
    assert "1 problems got no solution" in said and "the prompt is too long" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--endpoint", "completions"], "needs the model's chat template"),
        (["--style", "alpaca", "--endpoint", "chat"], "use --endpoint completions"),
        (["--dtype", "float32"], "--dtype is about a model in this process"),
        (["--batch-size", "8"], "--batch-size is about a model in this process"),
        (["--code", "--style", "alpaca"], "with --code use --style scdpo or scdpo-system"),
        (["--server", "localhost:8000"], "base_url is 'localhost:8000'; give an address"),
        (["--patience", "0"], "patience is 0.0; use more than 0 seconds"),
        (["--extra-body", "top_k"], "--extra-body is 'top_k'; give a JSON object"),
        (["--code"], "record 'sums-1': the server does not say which stop string ended a text"),
    ],
)
def test_mistakes_with_servers_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    if words == ["--code"] and not isolation().works:
        pytest.skip(f"no isolation of code on this machine: {isolation().reason}")
    with FakeServer(reply) as server:
        url = [] if "--server" in words else ["--server", server.url]
        assert evaluate("tiny", sums(tmp_path, 1), tmp_path / "out", *url, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.slow
def test_further_fields_are_sent_and_belong_to_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ("--extra-body", '{"top_k": 20, "temperature": null}')
    with FakeServer(reply) as server:
        file, words = sums(tmp_path, 1), ("--server", server.url)
        assert evaluate("tiny", file, tmp_path / "out", *words, *fields) == 0
        assert server.asked[0]["top_k"] == 20 and "temperature" not in server.asked[0]
        assert evaluate("tiny", file, tmp_path / "out", *words) == 2
    assert "extra_body" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_that_is_not_there_is_said_within_ten_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    words = ("--server", "http://127.0.0.1:1/v1", "--patience", "600")
    assert evaluate("tiny", sums(tmp_path, 3), tmp_path / "out", *words) == 2
    assert time.monotonic() - began < 20, "10 s, and what a slow machine needs beside them"
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: http://127.0.0.1:1/v1/chat/completions: no connection")
    assert "no answer ever; start the server" in error
    assert not (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.slow
def test_a_better_number_of_the_same_settings_takes_the_place_of_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused: list[str] = []

    def refuse_once(number: int, path: str, body: Body) -> Answer | Body:
        asked = body["messages"][0]["content"]
        if "What is 0 " in asked and not refused:
            refused.append(asked)
            return Answer(400, "no room")
        return reply(number, path, body)

    file = sums(tmp_path, 2)
    with FakeServer(refuse_once) as server:
        words = ("--server", server.url)
        assert evaluate("tiny", file, tmp_path / "out", *words) == 0
        before = read_json(tmp_path / "out" / "evaluation.json")
        assert evaluate("tiny", file, tmp_path / "out", *words) == 0
        assert evaluate("other", file, tmp_path / "out", *words) == 2
    said = capsys.readouterr()
    assert (before["failed"], before["correct"], before["total"]) == (1, 0, 2)
    assert "sums: replaces 0/2" in said.out and "1/2" in said.out
    assert f"model tiny at {server.url} / other at {server.url}" in said.err


def start_and_kill(words: list[str], output: Path, *, at: int) -> list[tuple[Any, ...]]:
    """The journal of an evaluation that got kill -9 once it held `at` rows."""
    command = [sys.executable, "-m", "prefopt", "eval", *words]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        while len(journal_rows(output)) < at:
            assert child.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        child.kill()
        assert child.wait(60) == -signal.SIGKILL
    assert not (output / "evaluation.json").exists()
    return journal_rows(output)


@pytest.mark.slow
def test_kill_9_in_front_of_a_server(tmp_path: Path) -> None:
    def slowly(number: int, path: str, body: Body) -> Answer:
        return Answer(body=reply(number, path, body), delay=0.1)

    file, output = sums(tmp_path), tmp_path / "killed"
    with FakeServer(reply) as server:
        assert evaluate("tiny", file, tmp_path / "whole", "--server", server.url) == 0
    with FakeServer(slowly, port=server.port) as server:
        words = ["tiny", str(file), "--output", str(output), *GRADED, "--server", server.url]
        kept = start_and_kill(words, output, at=10)
        assert 10 <= len(kept) < SUMS
        asked = len(server.asked)
        assert evaluate("tiny", file, output, "--server", server.url) == 0
        assert len(server.asked) - asked == SUMS - len(kept), "what was kept is not asked again"
    assert set(kept) < set(journal_rows(output))
    assert_same(output, tmp_path / "whole", rows=SUMS)


@pytest.mark.slow
def test_kill_9_with_a_local_model(tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "model", "llama")
    file, output = sums(tmp_path, 12), tmp_path / "killed"
    words = ("--max-new-tokens", "60", "--device", "cpu")
    assert evaluate(model, file, tmp_path / "whole", *words) == 0
    # One text at a time, so that there is something to kill; batches change no result.
    given = [str(model), str(file), "--output", str(output), *GRADED, *words, "--batch-size", "1"]
    kept = start_and_kill(given, output, at=3)
    assert 3 <= len(kept) < 12
    assert evaluate(model, file, output, *words) == 0
    assert set(kept) < set(journal_rows(output))
    assert_same(output, tmp_path / "whole", rows=12)


def assert_same(resumed: Path, whole: Path, *, rows: int) -> None:
    assert journal_rows(resumed) == journal_rows(whole)
    assert len(set(journal_rows(resumed))) == rows
    outputs = [read_rows(path / "evaluation-outputs.jsonl") for path in (resumed, whole)]
    assert outputs[0] == outputs[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.21
def test_an_adapter_folder_is_its_base_with_the_adapter(tmp_path: Path) -> None:
    base = make_model_folder(tmp_path / "base", "llama")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(
        r=4, lora_alpha=64, target_modules=["q_proj", "o_proj"], init_lora_weights=False
    )
    adapted = get_peft_model(model, lora)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    adapted.merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "adapter" / "config.json").exists()
    file = sums(tmp_path, 4)
    for name in ("base", "adapter", "merged"):
        words = ("--max-new-tokens", "12", "--device", "cpu")
        assert evaluate(tmp_path / name, file, tmp_path / "of" / name, *words) == 0
    outputs = {
        name: [
            row["output"] for row in read_rows(tmp_path / "of" / name / "evaluation-outputs.jsonl")
        ]
        for name in ("base", "adapter", "merged")
    }
    assert outputs["adapter"] == outputs["merged"] != outputs["base"]
    assert read_json(tmp_path / "of" / "adapter" / "evaluation.json")["name"] == "adapter"


TAUGHT = (
    Block("text", "Let us compute."),
    Block("code", "x = 3 + 4\nprint(x)"),
    Block("execution", "8"),  # not what the code prints: only a real run gives 7
    Block("text", "It is $\\boxed{7}$."),
)


@pytest.mark.slow
def test_programs_of_a_model_run_in_the_sandbox(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not isolation().works:
        pytest.skip(f"no isolation of code on this machine: {isolation().reason}")
    blank = make_model_folder(
        tmp_path / "blank", "llama", tokenizer=make_tokenizer(chat_template=None)
    )
    row = {"prompt": conversation("", "3 + 4?"), "response": serialise(TAUGHT) + END_OF_MESSAGE}
    settings = Settings.of(tmp_path, model=blank).with_(
        method="sft",
        special_tokens="blocks",
        train_file=str(write_rows(tmp_path / "taught.jsonl", [row])),
        learning_rate=1e-2,
        per_device_train_batch_size=1,
        max_steps=60,
        logging_steps=60,
    )
    settings.train()
    rows = [
        {"id": "right", "question": "3 + 4?", "answer": "7"},
        {"id": "wrong", "question": "3 + 4?", "answer": "8"},
        {"id": "long", "question": "3 + 4? " * 200, "answer": "7"},
    ]
    file = write_rows(tmp_path / "problems.jsonl", rows)
    words = ["eval", str(tmp_path / "run"), str(file), "--code", *GRADED, "--device", "cpu"]
    assert main([*words, "--max-new-tokens", "40"]) == 0
    facts = read_json(tmp_path / "run" / "evaluation.json")
    assert facts["settings"]["code"] is True and facts["settings"]["style"] == "scdpo"
    outputs = {r["id"]: r for r in read_rows(tmp_path / "run" / "evaluation-outputs.jsonl")}
    assert outputs["right"]["output"] == serialise(
        [*TAUGHT[:2], Block("execution", "7"), TAUGHT[3]]
    )
    assert [outputs[k]["correct"] for k in ("right", "wrong", "long")] == [True, False, False]
    # As without programs, and as servers do it.
    assert outputs["long"]["finish_reason"] == "error"
    assert (facts["correct"], facts["total"], facts["cut"], facts["failed"]) == (1, 3, 0, 1)
    kept = len(journal_rows(tmp_path / "run"))
    assert main([*words, "--max-new-tokens", "40"]) == 0
    assert len(journal_rows(tmp_path / "run")) == kept
    said = capsys.readouterr().out
    assert "1/3" in said
    assert (
        "1 problems got no solution and count as wrong, first 'long': the model's context" in said
    )
    other = (
        "--code-limit",
        "seconds=2",
        "--packages",
        "packaging",
        "--output",
        str(tmp_path / "o"),
    )
    assert main([*words, "--max-new-tokens", "40", *other]) == 0
    given = read_json(tmp_path / "o" / "evaluation.json")["settings"]
    assert (given["packages"], given["limits"]) == ("packaging", {"seconds": 2})
    assert (facts["settings"]["packages"], facts["settings"]["limits"]) == (None, None)
    assert main([*words, "--packages", "no_such_package", *other[4:]]) == 2
    assert "'no_such_package' is no importable package here" in capsys.readouterr().err
