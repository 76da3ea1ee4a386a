"""`prefopt analyse credit` as its users run it."""

import json

import pytest

from prefopt.cli.main import main
from tests.tiny import make_model_folder, make_tokenizer

TEXTS = ("Step 1: 3 + 4 = 7.\nStep 2: 7 - 2 = 5.", "Step 1: 3 + 4 = 8.\nStep 2: 8 - 2 = 6.")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("credit")
    for seed, name in enumerate(["sft", "dpo", "run/model"]):
        make_model_folder(home / name, "llama", seed=seed)
    make_model_folder(home / "other", "llama", tokenizer=make_tokenizer(["word"]))
    rows = [
        {"prompt": f"Q{n}: ", "chosen": TEXTS[0], "rejected": TEXTS[1] + " " * n, "step": 1}
        for n in range(4)
    ]
    (home / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return home


def test_two_policies(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    words = ["--policy", "dpo", "--policy", "run", "--reference", "sft", "-o", "out"]
    assert main(["analyse", "credit", "pairs.jsonl", *words]) == 0
    out, err = capsys.readouterr()
    assert "dpo: 4 responses, error known in 4" in out
    assert "AUROC of run minus dpo, paired:" in out and out.endswith("out/credit.html\n")
    assert "pairs.jsonl: 4 rows read = 4 kept" in err
    facts = json.loads((home / "out" / "credit.json").read_text())
    assert list(facts["policies"]) == ["dpo", "run"]
    assert len((home / "out" / "credit.jsonl").read_text().splitlines()) == 4


def test_options(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    words = ["--policy", "dpo", "--reference", "sft", "--name", "mine", "--max-rows", "2"]
    more = ["--response", "chosen", "--beta", "0.5", "--output", "chosen", "--batch-size", "1"]
    assert main(["analyse", "credit", "pairs.jsonl", *words, *more]) == 0
    out = capsys.readouterr().out
    assert "mine: 2 responses, error known in 0" in out
    assert "no error span in 2: 'step' or 'error_span' of the record speak of another" in out
    assert json.loads((home / "chosen" / "credit.json").read_text())["beta"] == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "sft"], "the following arguments are required: --policy"),
        (["--policy", "none", "--reference", "sft"], "no folder 'none' here"),
        (["--policy", "./dpq", "--reference", "sft"], "model folder dpq does not exist"),
        (["--policy", "dpo", "--policy", "dpo", "--reference", "sft"], "two policies are called"),
        (["--policy", "dpo", "--reference", "other"], "other has another vocabulary"),
        (["--policy", "dpo", "--reference", "sft", "--beta", "0"], "--beta 0.0: give a number"),
        (["--policy", "dpo", "--reference", "sft", "--max-rows", "0"], "--max-rows 0: give 1"),
        (
            ["--policy", "dpo", "--reference", "sft", "--name", "a", "--name", "b"],
            "2 --name for 1 --policy",
        ),
    ],
)
def test_mistakes_are_one_line(home, monkeypatch, capsys, words, message):
    monkeypatch.chdir(home)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["analyse", "credit", "pairs.jsonl", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
