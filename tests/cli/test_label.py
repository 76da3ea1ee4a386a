"""`prefopt label` as its users run it."""

import json
import re
import signal
import subprocess
import sys
from urllib import request

import pytest

from prefopt.cli.main import main
from tests.label.solutions import rows, write


def start(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "prefopt", "label", *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore SIGINT, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads
        **options,
    )


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_piped_input(tmp_path):
    file = write(tmp_path)
    out, err = start(file, "--annotator", "ann").communicate("2 # why\nn\n", timeout=60)
    assert err == "" and out.splitlines()[-1] == str(tmp_path / "labels.jsonl")
    assert "2 of 3 labelled: 1 no wrong step, 1 wrong step" in out
    labels = read(tmp_path / "labels.jsonl")
    assert [(x["step"], x["note"], x["annotator"]) for x in labels] == [
        (2, "why", "ann"),
        (None, "", "ann"),
    ]


@pytest.mark.slow
def test_the_page_a_kill_and_the_terminal_afterwards(tmp_path):
    """Labels posted to the page survive kill -9 of the server; another run goes on after them."""
    file, output = write(tmp_path), tmp_path / "mine.jsonl"
    process = start(file, "--web", "-o", output)
    assert process.stderr is not None
    url = next(m[1] for m in (re.match(r"open (\S+)", x) for x in process.stderr) if m)
    assert url.startswith("http://127.0.0.1:")
    with request.urlopen(url, timeout=10) as page:  # noqa: S310 - our own server
        assert b"Mark the first wrong step" in page.read()
    with request.urlopen(url.replace("/?", "/item?n=0&"), timeout=10) as reply:  # noqa: S310 - our own server
        digest = json.load(reply)["digest"]
    body = {"item": 0, "digest": digest, "step": 2, "verdict": "wrong step", "note": ""}
    post = request.Request(  # noqa: S310 - our own server
        url.replace("/?", "/label?"),
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with request.urlopen(post, timeout=10) as reply:  # noqa: S310 - our own server
        assert json.load(reply)["label"]["step"] == 2
    assert main(["label", str(file), "-o", str(output)]) == 2, "one labeller at a time"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    out, _ = start(file, "-o", output).communicate("q\n", timeout=60)
    assert "2/3 · 1 labelled · p2/s0" in out
    assert [x["step"] for x in read(output)] == [2]


@pytest.mark.slow
def test_interrupting_the_page(tmp_path):
    process = start(write(tmp_path), "--web")
    assert process.stderr is not None
    for line in process.stderr:
        if "Ctrl-C" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in err
    assert "0 of 3 labelled" in err and out == f"{tmp_path / 'labels.jsonl'}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.jsonl"], "cannot read none.jsonl: No such file"),
        (["errors.jsonl", "-o", "errors.jsonl"], "--output errors.jsonl is the file with the solutions"),
        (["errors.jsonl", "--web", "--port", "99999"], "--port 99999: give a number from 1 to 65535"),
        (["errors.jsonl", "--web", "--host", "192.0.2.1"], "cannot serve at 192.0.2.1"),
        (["errors.jsonl", "--prot", "1"], "did you mean --port?"),
        (["errors.jsonl", "-o", "errors.jsonl/x"], "errors.jsonl/x: labels cannot be written there"),
        (["pairs.jsonl"], "pairs.jsonl:1: no 'id'; every line needs id, question, gold, answer, text"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, rows(1))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert main(["label", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
