"""`prefopt eval`: from a model folder and a file to a table, files that resume, and errors in one line."""

import json
from pathlib import Path

import pytest

from prefopt.cli._evaluated import print_remarks
from prefopt.cli.main import main
from prefopt.evals.outcome import CutBy, Evaluation, Output
from prefopt.evals.settings import EvalSettings
from prefopt.evals.suite import Evaluated
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
    assert command(folder, *words) == 0
    with Journal(tmp_path / "out" / "evaluation.sqlite") as journal:
        assert journal.count() == 6
    other = (*words[:2], "--max-new-tokens", "5", *words[4:])
    capsys.readouterr()
    assert command(folder, *other) == 2
    error = capsys.readouterr().err
    assert f"error: {out}: holds an evaluation of model on sums with other settings" in error
    assert "(then / now: max_new_tokens 4 / 5); give this one a folder of its own" in error
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == facts
    assert command(folder, *other, "--overwrite") == 0
    assert f"{out}: replaces an evaluation of model on sums with" in capsys.readouterr().err
    with Journal(tmp_path / "out" / "evaluation.sqlite") as journal:
        assert journal.count() == 12
    again = ("--output", str(tmp_path / "again"), *words[2:], "--against", out)
    assert command(folder, *again) == 0
    shown = capsys.readouterr().out
    assert f"model in {tmp_path / 'again'} against that in {out}: +0.0 points" in shown
    assert "not evaluated alike (then / now): max_new_tokens 5 / 4" in shown


@pytest.mark.slow
def test_what_cannot_be_compared_is_said_before_anything_is_written(folder, tmp_path, capsys):
    words = ("--max-new-tokens", "2", "--grader", "scdpo", "--device", "cpu")
    assert command(folder, "--output", str(tmp_path / "few"), "--limit", "2", *words) == 0
    capsys.readouterr()
    against = ("--against", str(tmp_path / "few"))
    assert command(folder, "--output", str(tmp_path / "all"), *words, *against) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'few'} and {folder / 'sums.jsonl'} share 2 of their 2 and 6" in error
    assert not (tmp_path / "all").exists()


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


@pytest.mark.slow
def test_a_prompt_that_fills_the_context_counts_as_wrong_and_the_rest_goes_on(
    folder, tmp_path, capsys
):
    tokenizer = make_tokenizer()
    repeats = next(
        n
        for n in range(1, 100)
        if len(tokenizer(str(tokenizer.apply_chat_template(
            [{"role": "user", "content": "3 + 4? " * n}], tokenize=False, add_generation_prompt=True
        ))).input_ids) > 225
    )  # fmt: skip
    texts = {"short": "3 + 4?", "near": "3 + 4? " * repeats, "long": "3 + 4? " * 200}
    rows = [{"id": name, "question": text, "answer": "7"} for name, text in texts.items()]
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--output", str(tmp_path / "out"), "--grader", "scdpo", "--device", "cpu"]
    words += ["--max-new-tokens", "60"]
    assert main(["eval", str(folder / "model"), str(file), *words]) == 0
    lines = (tmp_path / "out" / "evaluation-outputs.jsonl").read_text().splitlines()
    outputs = {row["id"]: row for row in map(json.loads, lines)}
    assert [outputs[name]["finish_reason"] for name in texts] == ["length", "length", "error"]
    assert [outputs[name].get("cut_by") for name in texts] == ["tokens", "context", None]
    assert "leaves no room in the model's context of 256" in outputs["long"]["output"]
    assert outputs["long"]["reason"] == "no solution" and not outputs["long"]["correct"]
    shown = capsys.readouterr().out
    assert (
        "mixed: 1 of 3 solutions were cut at 60 tokens and were graded as they are; a higher"
        in shown
    )
    assert "mixed: 1 of 3 solutions were cut at the end of the model's context and were" in shown
    assert "mixed: 1 problems got no solution and count as wrong, first 'long'" in shown


def test_remarks_name_what_cut_solutions_with_programs(capsys):
    cuts: list[tuple[CutBy, str]] = [
        ("blocks", "no answer"), ("context", "time limit"), ("tokens", "no answer"),
    ]  # fmt: skip
    outputs = tuple(
        Output(str(n), "q", "7", "", False, reason=reason, finish_reason="length", cut_by=cut_by)
        for n, (cut_by, reason) in enumerate(cuts)
    )
    evaluation = Evaluation("m", 0, 3, 0.0, 0.0, 0.6, outputs)
    settings = EvalSettings(code=True, max_new_tokens=512)
    print_remarks(Evaluated(evaluation, Path("out"), 1.0, ("first",)), settings)
    assert capsys.readouterr().out.splitlines() == [
        "first",
        "test: 1 of 3 solutions were cut at 512 tokens a block and count as wrong; a higher --max-new-tokens than 512 "
        "may change the number",
        "test: 1 of 3 solutions were cut at the end of the model's context and count as wrong; only a longer context "
        "or shorter prompts may change the number",
        "test: 1 of 3 solutions did not end within 24 blocks and count as wrong",
        "test: 1 of 3 comparisons gave no verdict and count as wrong (1 time limit)",
    ]


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
        (["model", "sums.jsonl", "--patience", "9"], "--patience belongs to --server URL"),
        (["model", "--harness", "gsm8k", "--grader", "scdpo"], "--grader means nothing to --har"),
        (["model", "--harness", "gsm8k", "--column", "a=b"], "--column means nothing to --harn"),
        (["model", "sums.jsonl", "--unsafe-local-execution"], "so it needs --code"),
        (["model", "sums.jsonl", "--packages", "sympy"], "--packages is about programs, so it"),
        (["model", "sums.jsonl", "--code-limit", "a=b"], "--code-limit is about programs"),
        (["model", "sums.jsonl", "--code", "--code-limit", "second=9"], "did you mean 'seconds'"),
        (["model", "sums.jsonl", "--code", "--code-limit", "seconds"], "write NAME=NUMBER"),
        (["model", "sums.jsonl", "--code", "--code-limit", "seconds=1e9"], "seconds=1000000000.0"),
        (["model", "--harness", "gsm8k", "--packages", "sympy"], "--packages means nothing to"),
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
