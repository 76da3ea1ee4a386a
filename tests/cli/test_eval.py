"""`prefopt eval`: from a model folder and a file to a table, files that resume, and errors in one line."""

import json

import pytest

from prefopt.cli.main import main
from prefopt.generate.journal import Journal
from tests.tiny import make_model_folder, make_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("eval")
    make_model_folder(path / "model", "llama")
    make_model_folder(path / "base", "llama", tokenizer=make_tokenizer(chat_template=None))
    rows = [
        {"question": f"What is {a} + 1?", "answer": f"#### {a + 1}", "level": a % 2}
        for a in range(6)
    ]
    (path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(folder, *words):
    return main(["eval", str(folder / "model"), str(folder / "sums.jsonl"), *words])


@pytest.mark.slow
def test_table_and_files(folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    words = ("--output", out, "--max-new-tokens", "4", "--grader", "scdpo", "--device", "cpu")
    assert command(folder, *words) == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown and "sums by level: 0" in shown and f"results: {out}" in shown
    facts = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (facts["name"], facts["split"], facts["total"]) == ("model", "sums", 6)
    assert (facts["settings"]["style"], facts["settings"]["grader"]) == ("chat", "scdpo")
    lines = (tmp_path / "out" / "evaluation-outputs.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["1", "2", "3", "4", "5", "6"]
    # The same command generates nothing again; another length uses other rows.
    with Journal(tmp_path / "out" / "evaluation.sqlite") as journal:
        assert journal.count() == 6
    assert command(folder, *words, "--against", out) == 0
    assert "model against model: +0.0 points" in capsys.readouterr().out
    with Journal(tmp_path / "out" / "evaluation.sqlite") as journal:
        assert journal.count() == 6
    assert command(folder, *words[:2], "--max-new-tokens", "5", *words[4:]) == 0
    with Journal(tmp_path / "out" / "evaluation.sqlite") as journal:
        assert journal.count() == 12


@pytest.mark.slow
def test_a_run_folder_gets_its_own_results(folder, tmp_path):
    run = tmp_path / "run"
    make_model_folder(run / "model", "llama")
    (run / "run.yaml").write_text("method: dpo\n")
    words = [str(folder / "sums.jsonl"), "--max-new-tokens", "2", "--grader", "scdpo"]
    assert main(["eval", str(run), *words]) == 2  # not finished
    (run / "finished.json").write_text("{}")
    assert main(["eval", str(run), *words]) == 0
    assert json.loads((run / "evaluation.json").read_text())["name"] == "run"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model"], "nothing to evaluate on; add a file of problems, or --harness TASK"),
        (["base", "sums.jsonl"], "has to be named: --style plain | alpaca"),
        (["base", "sums.jsonl", "--style", "chat"], "style 'chat' needs a chat template"),
        (["model", "none.jsonl"], "none.jsonl: no such file"),
        (["model", "sums.jsonl", "--style", "alpacca"], "did you mean 'alpaca'?"),
        (["model", "sums.jsonl", "--limit", "0"], "limit is 0"),
        (["model", "sums.jsonl", "--endpoint", "chat"], "--endpoint belongs to --server URL"),
        (["model", "sums.jsonl", "--unsafe-local-execution"], "so it needs --code"),
        (["model", "sums.jsonl", "--num-fewshot", "2"], "--num-fewshot belongs to --harness"),
        (["model", "sums.jsonl", "--harness", "gsm8k"], "means nothing to --harness"),
        (["model", "sums.jsonl", "--column", "question"], "write ROLE=NAME"),
        (["model", "sums.jsonl", "--against", "none"], "none: holds no evaluation.json"),
    ],
)
def test_mistakes_are_one_line(folder, monkeypatch, capsys, words, message):
    monkeypatch.chdir(folder)
    assert main(["eval", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
