"""Who writes the solutions of a recipe: the text that a server is sent is the text of the recipe's training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prefopt.build.settings import Writer
from prefopt.cli.main import main
from tests.generate.server import Body, FakeServer, chat, plain
from tests.integration.runs import write_rows
from tests.tiny import make_model_folder

QWEN2 = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is 2 + 3?\n"
    "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def build(
    folder: Path,
    url: str,
    *,
    endpoint: str,
    style: str,
    extra_body: Mapping[str, Any] | None = None,
    **keys: Any,
) -> int:
    """`prefopt build` with a server as writer and people as judges."""
    writer = {"server": url, "model": "tiny", "endpoint": endpoint, "patience": 2.0}
    problem = {"id": "p", "question": "What is 2 + 3?", "answer": "#### 5"}
    section = {
        "problems": str(write_rows(folder / "problems.jsonl", [problem])),
        "style": style,
        "writer": writer if extra_body is None else {**writer, "extra_body": dict(extra_body)},
        "judge": {"by": "labels"},
        "samples": 1,
        "output_dir": str(folder / "data"),
        "grader": "scdpo",
        "grader_workers": 1,
    }
    recipe = {
        "method": "step_dpo",
        "model_name_or_path": str(make_model_folder(folder / "model", "llama")),
        "build": section,
        "output_dir": str(folder / "run"),
        **keys,
    }
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()))
    return main(["build", str(path)])


@pytest.mark.slow
def test_further_fields_of_a_writer_are_sent(tmp_path: Path) -> None:
    fields = {"top_k": 20, "top_p": None}
    with FakeServer(answer) as server:
        words = {"endpoint": "completions", "style": "qwen2-boxed-step"}
        assert build(tmp_path, server.url, **words, extra_body=fields) == 0
        asked = server.asked
    assert asked and all(body["top_k"] == 20 and "top_p" not in body for body in asked)


def test_further_fields_are_for_servers() -> None:
    with pytest.raises(ValueError, match="extra_body is for requests to a server: remove it"):
        Writer(model_name_or_path="tiny", extra_body={"top_k": 20})


def answer(number: int, path: str, body: Body) -> Body:
    del number, body
    text = " 2 + 3 = 6\nThe answer is \\boxed{6}"
    return chat(text) if path.endswith("/chat/completions") else plain(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("style", "keys", "prompt"),
    [
        ("qwen2-boxed-step", {}, QWEN2 + "Let's think step by step.\nStep 1: "),
        ("qwen2-boxed-step", {"response_separator": "~"}, QWEN2 + "~Let's think step by step.\nStep 1: "),
        (
            "plain",
            {"prompt_format": "chat"},
            "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)  # fmt: skip
def test_the_completions_endpoint_gets_the_text_of_training(
    tmp_path: Path, style: str, keys: dict[str, Any], prompt: str
) -> None:
    with FakeServer(answer) as server:
        assert build(tmp_path, server.url, endpoint="completions", style=style, **keys) == 0
        (body,) = server.asked
    assert body["prompt"] == prompt
    # A chat template writes special tokens itself; plain text gets those that the tokenizer puts around texts.
    assert body["add_special_tokens"] is (keys.get("prompt_format") != "chat")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("nowhere.jinja", "chat_template nowhere.jinja cannot be read: no such file"),
        ("n" * 300, f"chat_template {'n' * 40}... cannot be read: no such file"),
        (
            "{% for message in messages %}\n{{ message.content }}{% endfor %}" * 9,
            "chat_template '{% for message in messages %} {{ message...' is the text of a template: write it to a "
            "file and name that",
        ),
    ],
)
def test_a_chat_template_has_to_be_a_file_also_where_the_server_has_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, message: str
) -> None:
    with FakeServer(answer) as server:
        found = build(
            tmp_path, server.url, endpoint="chat", style="chat-boxed-step", chat_template=template
        )
        assert found == 2 and not server.asked
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"


@pytest.mark.slow
def test_plain_text_is_not_wrapped_a_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(answer) as server:
        assert build(tmp_path, server.url, endpoint="chat", style="qwen2-boxed-step") == 2
        assert not server.asked
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "error: record 'p': the prompt is plain text, which the chat endpoint would put into a chat template; use "
        "endpoint: completions, prompts that are conversations, or prompt_format: chat"
    )
