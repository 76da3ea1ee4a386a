"""A server that is not ours: `transformers serve` over a tiny folder writes what the model itself writes.

Needs fastapi and uvicorn (`pip install 'transformers[serving]'`); skipped where they are missing.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from prefopt.errors import JudgeError
from prefopt.generate.base import Request, Sampling
from prefopt.generate.journal import complete
from prefopt.generate.local import LocalGenerator
from prefopt.generate.openai import OpenAIGenerator
from prefopt.models.load import load_model
from prefopt.records import Message
from tests.integration.runs import ENVIRONMENT
from tests.tiny import make_model_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("fastapi") is None or find_spec("uvicorn") is None,
        reason="transformers serve needs fastapi and uvicorn",
    ),
]
SAMPLING = Sampling(max_new_tokens=12)
TEXTS = [Request(f"t{i}", 0, f"Step {i}: {i} + 4 = ") for i in range(4)]
TALKS = [Request(f"c{i}", 0, (Message("user", f"What is {i} + 4?"),)) for i in range(4)]


class Served(NamedTuple):
    folder: Path
    url: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server of a folder, ended with the tests."""
    folder = make_model_folder(tmp_path_factory.mktemp("serve") / "model", "llama")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-c", "from transformers.cli.transformers import main; main()",
        "serve", str(folder), "--device", "cpu", "--port", str(port),
    ]  # fmt: skip
    log = folder.parent / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, env={**os.environ, **ENVIRONMENT}, stdout=file, stderr=subprocess.STDOUT
        ) as server,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield Served(folder, f"http://127.0.0.1:{port}/v1")
        finally:
            server.terminate()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own server
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.2)
        else:
            return


def test_completions_are_those_of_the_model(served: Served) -> None:
    loaded = load_model(str(served.folder))
    own = LocalGenerator(loaded.model, loaded.tokenizer)
    for endpoint, requests in (("completions", TEXTS), ("completions", TALKS), ("chat", TALKS)):
        client = OpenAIGenerator(
            str(served.folder),
            base_url=served.url,
            endpoint="chat" if endpoint == "chat" else "completions",
            tokenizer=loaded.tokenizer,
            concurrency=1,
            patience=30,
        )
        found = complete(client, requests, SAMPLING)
        expected = complete(own, requests, SAMPLING)
        assert [c.text for c in found] == [c.text for c in expected]
        assert [c.finish_reason for c in found] == [c.finish_reason for c in expected]


def test_what_it_cannot_do_is_said(served: Served) -> None:
    client = OpenAIGenerator(str(served.folder), base_url=served.url, patience=30)
    unfinished = Request("a", 0, TALKS[0].prompt, prefix="Step 1:")
    with pytest.raises(JudgeError, match="use endpoint: completions"):
        complete(client, [unfinished], SAMPLING)
    blocks = Sampling(max_new_tokens=4, stop=("<|endofblock|>",), keep_special=True)
    with pytest.raises(JudgeError, match="the server cannot keep special tokens in its texts"):
        complete(client, [TALKS[0]], blocks)
