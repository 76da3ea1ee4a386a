"""`prefopt analyse credit` as its users run it."""

import json

import pytest

from prefopt.cli._credit import find_betas
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
    (home / "run" / "run.yaml").write_text("method: step_dpo\nbeta: 0.4\n")
    (home / "file").write_text("")
    long = {**rows[0], "rejected": TEXTS[1] * 20, "id": "far"}
    (home / "long.jsonl").write_text(json.dumps(long))
    for family in ("gpt2", "llama"):
        make_model_folder(home / family, family)
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


def test_the_beta_is_that_of_the_training(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    policies = ["--policy", "dpo", "--policy", "run", "--policy", "run/model", "--reference", "sft"]
    policies += ["--name", "a", "--name", "b", "--name", "c", "-o", "betas"]
    assert main(["analyse", "credit", "pairs.jsonl", *policies]) == 0
    err = capsys.readouterr().err
    assert "a: beta 0.1 (the usual one, as it is no run folder; give --beta if training" in err
    assert "b: beta 0.4 (of run/run.yaml)" in err and "c: beta 0.4 (of run/run.yaml)" in err
    facts = json.loads((home / "betas" / "credit.json").read_text())
    assert facts["beta"] == {"a": 0.1, "b": 0.4, "c": 0.4}
    rows = [json.loads(line) for line in (home / "betas" / "credit.jsonl").read_text().splitlines()]
    first = rows[0]["policies"]["b"]
    change = first["logp"][0] - rows[0]["logp_reference"][0]
    assert first["r"][0] == pytest.approx(0.4 * change, rel=1e-4)
    assert "beta 0.1 (a), 0.4 (b), 0.4 (c)." in (home / "betas" / "credit.html").read_text()
    # The same command replaces its results; another one only with --overwrite.
    assert main(["analyse", "credit", "pairs.jsonl", *policies]) == 0
    other = [*policies, "--beta", "1", "--beta", "2", "--beta", "3"]
    capsys.readouterr()
    assert main(["analyse", "credit", "pairs.jsonl", *other]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        "holds credit.json of other settings (then / now: beta [0.1, 0.4, 0.4] / [1.0, 2" in error
    )
    assert main(["analyse", "credit", "pairs.jsonl", *other, "--overwrite"]) == 0
    assert json.loads((home / "betas" / "credit.json").read_text())["beta"]["c"] == 3.0


def test_a_recipe_without_beta_gives_the_usual_one(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("method: sft\nbeta: null\n")
    assert find_betas([str(tmp_path)], ["a"], []) == [0.1]
    assert f"(the usual one, as {tmp_path / 'run.yaml'} names none;" in capsys.readouterr().err
    assert find_betas(["x", "y"], ["a", "b"], [0.3]) == [0.3, 0.3]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_response_beyond_the_context_is_one_line(home, monkeypatch, capsys, family):
    monkeypatch.chdir(home)
    words = ["--policy", family, "--reference", family, "-o", f"of-{family}"]
    assert main(["analyse", "credit", "long.jsonl", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: record 'far': prompt and response 1 have ")
    assert error.endswith("and the model's context is 256; shorten them, or remove the record")


def test_options(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    words = ["--policy", "dpo", "--reference", "sft", "--name", "mine", "--max-rows", "2"]
    more = ["--response", "chosen", "--beta", "0.5", "--output", "chosen", "--batch-size", "1"]
    assert main(["analyse", "credit", "pairs.jsonl", *words, *more]) == 0
    out = capsys.readouterr().out
    assert "mine: 2 responses, error known in 0" in out
    assert "no error span in 2: 'step' or 'error_span' of the record speak of another" in out
    assert json.loads((home / "chosen" / "credit.json").read_text())["beta"] == {"mine": 0.5}


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
        (["--policy", "dpo", "--reference", "sft", "-o", "file"], "file: is no folder; choose"),
        (["--policy", "dpo", "--reference", "sft", "-o", "file/x"], "file: is no folder; choose"),
        (
            ["--policy", "dpo", "--reference", "sft", "--beta", "1", "--beta", "2"],
            "2 --beta for 1 --policy",
        ),
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
