"""Length-controlled win rates against the running code of alpaca_eval 0.6.6, on made-up annotations and data files.

`make parity` runs it. Skipped where it cannot be imported: version 0.6.6 needs `pkg_resources`, which setuptools has up
to version 80. Its data files are fetched from the hub, so the one function that fetches them hands out ours here.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from prefopt.cli.main import main
from prefopt.grade.length_controlled import BASELINE, length_controlled_winrate, winrate_between
from prefopt.grade.length_controlled_data import read_difficulty, read_gamed
from prefopt.grade.winrate import win_rate

alpaca_eval = pytest.importorskip("alpaca_eval", reason="alpaca_eval is not installed")
pandas = pytest.importorskip("pandas")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # alpaca_eval's own
]

PROMPTS = 120


def write_files(folder: Path) -> None:
    rng = np.random.default_rng(11)
    hard = rng.normal(size=PROMPTS)
    with (folder / "instruction_difficulty.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "instruction_difficulty"])
        writer.writerows(enumerate(hard))
    columns = ["instruction_difficulty", "index", "std_delta_len", "preference"]
    with (folder / "df_gamed.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "not_gamed_baseline", "model"])
        for model, shift in (("verbose", -1.0), ("concise", 1.0)):
            for index in range(PROMPTS):
                share = "" if index == 17 else rng.beta(0.5, 0.5)
                row = [hard[index], index, rng.normal(shift, 0.6), share, False, model]
                writer.writerow(row)


def judged(seed: int, kind: str) -> list[dict]:
    rng = np.random.default_rng(seed)
    base = rng.integers(20, 900, PROMPTS)
    model = (base * rng.uniform(0.6, 2.6, PROMPTS)).astype(int)
    logit = rng.normal(0.2 * seed, 1) - 2 * np.tanh((base - model) / 300) + rng.normal(size=PROMPTS)
    p = 1 / (1 + np.exp(-logit))
    shares = p if kind == "soft" else (rng.random(PROMPTS) < p).astype(float)
    rows = [
        {
            "preference": 1 + share,
            "output_1": "é" * base[i],
            "output_2": "x" * model[i],
            "index": i,
            "generator_1": "baseline",
            "generator_2": f"model {seed}",
            "annotator": "made up",
        }
        for i, share in enumerate(shares)
    ]
    rows[5]["preference"], rows[6]["preference"] = 1.5, 0.0
    if kind == "missing":
        rows[7]["preference"] = rows[100]["preference"] = None
    return [rows[i] for i in rng.permutation(PROMPTS)]


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    import sklearn
    from alpaca_eval.metrics import glm_winrate  # pyright: ignore[reportMissingImports]

    routing = sklearn.get_config()["enable_metadata_routing"]
    write_files(tmp_path)
    monkeypatch.setattr(
        glm_winrate, "hf_hub_download", lambda filename, **_: str(tmp_path / filename)
    )
    yield glm_winrate
    sklearn.set_config(enable_metadata_routing=routing)  # alpaca_eval leaves it on


def ours(rows: list[dict], **options):
    return length_controlled_winrate(
        [row["preference"] for row in rows],
        [len(row["output_2"]) for row in rows],
        [len(row["output_1"]) for row in rows],
        bootstrap=None,
        **options,
    )


@pytest.mark.parametrize("kind", ["hard", "soft", "missing"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "formula", ["length_controlled_v1", "length_controlled_noreg", "length_controlled_minimal"]
)
def test_rates_and_weights_are_theirs(theirs, tmp_path, formula, seed, kind):
    rows = judged(seed, kind)
    expected = theirs.get_length_controlled_winrate(
        pandas.DataFrame(rows), glm_name=formula, save_weights_dir=tmp_path / "weights"
    )
    options = {}
    if formula != "length_controlled_minimal":
        hard = read_difficulty(tmp_path / "df_gamed.csv")
        options["difficulty"] = [hard[row["index"]] for row in rows]
    if formula == "length_controlled_v1":
        options["gamed"] = read_gamed(tmp_path / "df_gamed.csv")
    found = ours(rows, **options)
    assert found.value == pytest.approx(expected["length_controlled_winrate"], abs=1e-6)
    assert found.standard_error == pytest.approx(expected["lc_standard_error"], abs=1e-6)
    # Theirs counts only what is there, as ours does.
    assert found.raw == pytest.approx(expected["win_rate"], abs=1e-9)
    assert win_rate([row["preference"] for row in rows]).value == pytest.approx(found.raw)
    weights = pandas.read_csv(
        tmp_path / "weights" / formula / "baseline_baseline.csv", index_col=0
    ).iloc[0]
    assert found.weights.length == pytest.approx(weights["np.tanh(std_delta_len)"], abs=1e-9)
    assert found.weights.model == pytest.approx(weights.iloc[-1], abs=1e-9)


def test_rates_over_other_models_are_theirs(theirs, tmp_path):
    gamed, hard = read_gamed(tmp_path / "df_gamed.csv"), read_difficulty(tmp_path / "df_gamed.csv")
    fitted = {"baseline": BASELINE}
    for seed in range(3):
        rows = judged(seed, "hard")
        theirs.get_length_controlled_winrate(
            pandas.DataFrame(rows), save_weights_dir=tmp_path / "weights"
        )
        difficulty = [hard[row["index"]] for row in rows]
        fitted[f"model {seed}"] = ours(rows, difficulty=difficulty, gamed=gamed).weights
    names = list(fitted)
    itself = judged(0, "hard")
    for row in itself:
        row["generator_2"] = "baseline"
    theirs.get_length_controlled_winrate(
        pandas.DataFrame(itself), save_weights_dir=tmp_path / "weights"
    )
    table = tmp_path / "weights" / "length_controlled_v1" / "baseline_baseline.csv"
    # Rows: models; columns: what they are compared with.
    matrix = theirs._predicted_winrate_matrix(names, table)
    hard = read_difficulty(tmp_path / "instruction_difficulty.csv")
    for model in names:
        for other in names:
            found = winrate_between(fitted[model], fitted[other], difficulty=list(hard.values()))
            assert found == pytest.approx(matrix.loc[model, other], abs=1e-6)


@pytest.mark.parametrize("wins", [0.4, 1.0])
def test_fits_of_few_prompts_are_theirs_without_folds(theirs, tmp_path, wins):
    rows = judged(1, "hard")[:40]
    gamed, hard = read_gamed(tmp_path / "df_gamed.csv"), read_difficulty(tmp_path / "df_gamed.csv")
    if wins == 1.0:
        for row in rows:
            row["preference"] = 2
    info = theirs.GLM_INFO["length_controlled_v1"] | {"kwargs": {"n_splits": 0}}
    expected = theirs.get_length_controlled_winrate(
        pandas.DataFrame(rows), glm_info=info, save_weights_dir=None
    )
    found = ours(rows, difficulty=[hard[row["index"]] for row in rows], gamed=gamed)
    assert found.value == pytest.approx(expected["length_controlled_winrate"], abs=1e-6)
    warned = found.remarks[0].startswith("the length-controlled win rate")
    assert warned == theirs.get_is_extreme_changes(found.raw, found.value)


def test_the_command_gives_their_number(theirs, tmp_path):
    rows = [row | {"instruction": f"Do {row['index']}."} for row in judged(2, "missing")]
    expected = theirs.get_length_controlled_winrate(
        pandas.DataFrame(rows), save_weights_dir=tmp_path / "weights"
    )
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    command = ["winrate", str(tmp_path / "annotations.json"), "--output", str(tmp_path / "o.json")]
    command += ["--gamed", str(tmp_path / "df_gamed.csv")]
    assert main(command) == 0
    (found,) = json.loads((tmp_path / "o.json").read_text())["models"]
    lengths = found["length_controlled"]
    assert lengths["value"] == pytest.approx(expected["length_controlled_winrate"], abs=1e-6)
    assert lengths["low"] < lengths["value"] < lengths["high"]
    assert found["raw"]["value"] == pytest.approx(expected["win_rate"], abs=1e-9)
