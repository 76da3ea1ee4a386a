"""`prefopt winrate`: judged files in, win rates, comparisons and a ranking out."""

import json
import random
from pathlib import Path

import pytest

from prefopt.cli.main import main
from tests.generate.server import FakeServer
from tests.integration.runs import write_rows
from tests.judge.judged import longer

pytest.importorskip("sklearn")

QUESTIONS = [f"{letter}?" for letter in "ABCDEFGH"]


def answers(path: Path, lengths: list[int]) -> Path:
    rows = [
        {"instruction": asked, "output": path.stem[0] * length}
        for asked, length in zip(QUESTIONS, lengths, strict=True)
    ]
    return write_rows(path, rows)


def judge(tmp_path: Path, name: str, lengths: list[int], *more: str) -> Path:
    """The folder in which a judge that prefers the longer answer judged a model."""
    base, folder = answers(tmp_path / "base.jsonl", [4] * 8), tmp_path / f"judged-{name}"
    mine = answers(tmp_path / f"{name}.jsonl", lengths)
    with FakeServer(longer) as server:
        command = ["judge", str(mine), "--against", str(base), "--output", str(folder), *more]
        assert main([*command, "--server", server.url, "--model", "j"]) == 0
    return folder


def winrate(capsys, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["winrate", *map(str, words)])
    out, error = capsys.readouterr()
    return code, out, error


def annotations(path: Path, count: int, *, seed: int = 0, **fields: object) -> Path:
    """AlpacaEval's rows, of a judge with its own mind."""
    drawn = random.Random(seed)
    rows = [
        {
            "instruction": f"Do {k}.",
            "output_1": "b" * drawn.randint(50, 400),
            "output_2": "m" * drawn.randint(50, 400),
            "generator_1": "gpt",
            "generator_2": "mine",
            "annotator": "someone",
            "preference": 1 + drawn.random(),
            **fields,
        }
        for k in range(count)
    ]
    path.write_text(json.dumps(rows, indent=1))
    return path


def data_files(tmp_path: Path, count: int) -> list[str]:
    drawn = random.Random(3)
    hard = [round(drawn.gauss(0, 1), 6) for _ in range(count)]
    gamed = ["instruction_difficulty,index,std_delta_len,preference,not_gamed_baseline,model"]
    gamed += [
        f"{hard[k]},{k},{drawn.gauss(shift, 0.6)},{drawn.random()},False,{shift}"
        for shift in (-1, 1)
        for k in range(count)
    ]
    (tmp_path / "df_gamed.csv").write_text("\n".join(gamed) + "\n")
    rows = ["index,instruction_difficulty", *(f"{k},{value}" for k, value in enumerate(hard))]
    (tmp_path / "hard.csv").write_text("\n".join(rows) + "\n")
    return ["--gamed", str(tmp_path / "df_gamed.csv"), "--difficulty", str(tmp_path / "hard.csv")]


@pytest.mark.parametrize("order", ["both", "random"])
def test_a_judgement_has_the_numbers_that_it_was_printed_with(tmp_path, capsys, order):
    folder = judge(tmp_path, "mine", [9, 9, 9, 9, 9, 1, 1, 4], "--order", order)
    code, out, _ = winrate(capsys, folder, "--output", tmp_path / "o.json")
    assert code == 0
    numbers = json.loads((folder / "judgement.json").read_text())["numbers"]
    (found,) = json.loads((tmp_path / "o.json").read_text())["models"]
    assert found["raw"] == numbers["raw"] and found["adjusted"] == numbers["adjusted"]
    assert found["lengths"] == numbers["lengths"]
    for key in ("value", "low", "high", "remarks"):
        assert found["length_controlled"][key] == numbers["length_controlled"][key]
    # Five longer, two shorter, and one of the same length, which is a draw.
    assert found["raw"]["value"] == pytest.approx(100 * 5.5 / 8)
    assert "against base, in percent with 95% intervals:" in out
    assert "length-controlled: only 8 preferences" in out and "ranking" not in out
    assert (tmp_path / "o.json").read_text().endswith("}\n")


@pytest.mark.slow
def test_two_models_are_compared_prompt_by_prompt(tmp_path, capsys):
    first = judge(tmp_path, "one", [9, 9, 1, 1, 1, 1, 1, 4])
    second = judge(tmp_path, "two", [9, 9, 9, 9, 9, 1, 1, 1])
    code, out, _ = winrate(
        capsys, first, second, "--anchor", "base", "--output", tmp_path / "o.json"
    )
    assert code == 0
    found = json.loads((tmp_path / "o.json").read_text())
    (pair,) = found["comparisons"]
    assert (pair["first"], pair["second"], pair["shared"], pair["apart"]) == ("one", "two", 8, 0)
    difference = pair["difference"]
    # Three losses became wins, a draw a loss: (3 - 0.5) / 8, and the sign test of 3 to 1.
    assert difference["value"] == pytest.approx(31.25)
    assert (difference["better"], difference["worse"], difference["equal"]) == (3, 1, 4)
    assert difference["p"] == 0.625
    weights = [model["length_controlled"]["weights"]["model"] for model in found["models"]]
    odds = 2.718281828459045 ** (weights[1] - weights[0])
    assert pair["length_controlled"] == pytest.approx(100 * odds / (1 + odds))
    assert "two over one (8 prompts): +31.2 points" in out and "p = 0.62 (sign test)" in out
    ranked = found["ranking"]["models"]
    assert list(ranked) == ["two", "base", "one"]
    assert (ranked["base"]["elo"], ranked["base"]["matches"]) == (1000.0, 16)
    # Against the baseline alone: odds of 5 to 3, and of 2.5 to 5.5.
    assert ranked["two"]["value"] == pytest.approx(0.510826, abs=1e-6)
    assert ranked["one"]["value"] == pytest.approx(-0.788457, abs=1e-6)
    assert "ranking (Bradley-Terry" in out


@pytest.mark.slow
def test_prompts_that_only_one_model_answered_are_counted(tmp_path, capsys):
    first = judge(tmp_path, "one", [9, 9, 1, 1, 1, 1, 1, 4])
    global_rows = [json.loads(x) for x in (tmp_path / "one.jsonl").read_text().splitlines()]
    some = write_rows(
        tmp_path / "two.jsonl",
        [{**row, "output": "x" * 9} for row in reversed(global_rows[:6])]
        + [{"instruction": "new?", "output": "x"}],
    )
    with FakeServer(longer) as server:
        words = ["judge", str(some), "--against", str(tmp_path / "base.jsonl"), "--model", "j"]
        words += ["--server", server.url, "--output", str(tmp_path / "judged-two")]
        assert main(words) == 0
    code, out, _ = winrate(capsys, first, tmp_path / "judged-two")
    assert code == 0
    # Joined by their questions, whatever the order of the rows.
    assert "two over one (6 prompts, 2 only in one): +66.7 points" in out
    assert "better on 4, worse on 0, equal on 2" in out
    assert "two: 1 rows were not judged" in out
    # It never lost, so that no rating is high enough; the rest is there all the same.
    assert "no ranking: two never lost or drew against base, one" in out and "--prior 1" in out
    _, out, _ = winrate(capsys, first, tmp_path / "judged-two", "--prior", 1)
    assert "ranking (Bradley-Terry" in out and "no ranking" not in out
    assert "two: all verdicts are wins, or all losses; the prior alone says" in out


@pytest.mark.slow
def test_alpaca_eval_numbers_go_by_index_or_by_place(tmp_path, capsys):
    files = data_files(tmp_path, 60)
    plain = annotations(tmp_path / "plain.json", 60)
    hard = [float(line.split(",")[1]) for line in Path(files[3]).read_text().splitlines()[1:]]
    rows = json.loads(plain.read_text())
    rows = [{**row, "preference": 1.9 if h > 0 else 1.2} for row, h in zip(rows, hard, strict=True)]
    plain.write_text(json.dumps(rows))
    numbered = [{**row, "index": k} for k, row in enumerate(rows)]
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps(numbered[::-1]))
    found = {}
    for path in (plain, mixed):
        assert winrate(capsys, path, *files, "--output", tmp_path / "o.json")[0] == 0
        (found[path],) = json.loads((tmp_path / "o.json").read_text())["models"]
    one, other = (found[path]["length_controlled"] for path in (plain, mixed))
    # The difficulty explains the preferences only if it is that of the row's instruction.
    assert one["weights"]["difficulty"] > 0.5
    assert other["weights"] == pytest.approx(one["weights"], abs=0.05)
    # With some rows only, nobody knows which instructions they are; with numbers it does not matter.
    for some, code in ((rows[:59], 2), (numbered[:59], 0)):
        mixed.write_text(json.dumps(some))
        ended, _, error = winrate(capsys, mixed, *files)
        assert ended == code
        assert ("have no 'index' and are 59" in error) == (code == 2)
    assert winrate(capsys, mixed)[0] == 0, "without the data files no number is needed"


def test_the_baseline_itself_is_at_50(tmp_path, capsys):
    path = annotations(tmp_path / "a.json", 10, generator_2="gpt", preference=1.5)
    other = annotations(tmp_path / "b.json", 10, generator_2="mine")
    code, out, _ = winrate(capsys, path, other, "--output", tmp_path / "o.json")
    assert code == 0 and "the baseline itself, which is at 50 by construction" in out
    itself, mine = json.loads((tmp_path / "o.json").read_text())["models"]
    assert itself["length_controlled"]["weights"] == {"length": 0, "difficulty": 0, "model": 0}
    pair = json.loads((tmp_path / "o.json").read_text())["comparisons"][0]
    assert pair["length_controlled"] == pytest.approx(mine["length_controlled"]["value"])
    assert list(json.loads((tmp_path / "o.json").read_text())["ranking"]["models"]).count("gpt") == 1  # fmt: skip


def test_models_of_one_name_are_told_apart(tmp_path, capsys):
    one = annotations(tmp_path / "a.json", 10)
    two = annotations(tmp_path / "b.json", 10, preference=1.75)
    code, out, _ = winrate(capsys, one, two)
    assert code == 0 and f"mine ({two}) over mine ({one})" in out
    code, _, error = winrate(capsys, one, one)
    assert code == 2 and "is given 2 times" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference": True}, "'preference' is true; give a number from 1 to 2, or null"),
        ({"preference": "2"}, "give a number from 1 to 2, or null"),
        ({"preference": 3}, "the preference 3 is not between 1"),
        ({"index": "7"}, "'index' is the text"),
        ({"output_1": None}, "'output_1' is null"),
        ({"annotator": "else"}, "mine was judged by else, someone; keep the rows of one annotator"),
        ({"generator_1": "else"}, "several baselines (else, gpt)"),
    ],
)
def test_annotations_with_a_wrong_row_are_refused(tmp_path, capsys, change, message):
    path = annotations(tmp_path / "a.json", 3)
    rows = json.loads(path.read_text())
    rows[1] |= change
    path.write_text(json.dumps(rows))
    code, _, error = winrate(capsys, path)
    assert code == 2 and message in error and error.count("\n") == 1


def test_wins_written_as_0_and_1_are_refused(tmp_path, capsys):
    path = annotations(tmp_path / "a.json", 2)
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**row, "preference": k} for k, row in enumerate(rows)]))
    code, _, error = winrate(capsys, path)
    assert code == 2 and "the preferences are all 0 or 1" in error


def test_rows_that_are_no_annotations_are_refused(tmp_path, capsys):
    path = write_rows(tmp_path / "a.jsonl", [{"instruction": "A?", "output": "a"}])
    code, _, error = winrate(capsys, path)
    assert code == 2 and "there is no 'generator_1'; give AlpacaEval's annotations" in error


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    one = annotations(tmp_path / "a.json", 5)
    rows = json.loads(one.read_text())
    two = tmp_path / "b.json"
    other = [{**row, "generator_2": "its", "output_1": row["output_1"] + "!"} for row in rows]
    two.write_text(json.dumps(other))
    code, _, error = winrate(capsys, one, two)
    assert code == 2 and "give models that were judged against the same baseline" in error
    apart = [{**row, "generator_2": "its", "instruction": "else"} for row in rows]
    two.write_text(json.dumps(apart))
    code, _, error = winrate(capsys, one, two)
    assert code == 2 and "have no prompt in common" in error
    code, _, error = winrate(capsys, one, "--anchor", "gpt")
    assert code == 2 and "--anchor belongs to a ranking" in error
    two.write_text(json.dumps([{**row, "generator_2": "its"} for row in rows]))
    code, _, error = winrate(capsys, one, two, "--anchor", "x")
    assert code == 2 and "--anchor 'x' was not judged; known are gpt, mine, its" in error


def test_folders_that_do_not_hold_what_was_judged_are_refused(tmp_path, capsys):
    folder = judge(tmp_path, "mine", [9, 9, 1, 1, 1, 1, 1, 4])
    result = folder / "judgement.json"
    facts = json.loads(result.read_text())
    outputs = (tmp_path / "mine.jsonl").read_text()
    (tmp_path / "mine.jsonl").write_text(outputs + "\n")
    code, _, error = winrate(capsys, folder)
    assert code == 2 and "mine.jsonl was changed after it was judged; judge again" in error
    (tmp_path / "mine.jsonl").unlink()
    code, _, error = winrate(capsys, folder)
    assert code == 2 and "mine.jsonl, whose answers were judged, is not there" in error
    facts["settings"]["kind"] = "single"
    result.write_text(json.dumps(facts))
    code, _, error = winrate(capsys, folder)
    assert code == 2 and "these are grades and no comparisons" in error
    result.unlink()
    code, _, error = winrate(capsys, folder)
    assert code == 2 and "judgement.json: cannot be read" in error
