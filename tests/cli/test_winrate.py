"""`prefopt winrate`: judged files in, win rates, comparisons and a ranking out."""

import csv
import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from prefopt.cli.main import main
from prefopt.grade.length_controlled import length_controlled_winrate, winrate_between
from tests.generate.server import Answer, Body, FakeServer
from tests.integration.runs import write_rows
from tests.judge.judged import between, longer, shown

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


def lengths_of(prompt: int) -> tuple[int, int]:
    """Of a model's answer and of the baseline's."""
    drawn = random.Random(prompt)
    return drawn.randint(50, 400), drawn.randint(50, 400)


def verdicts(path: Path, said: Mapping[int, float | None], **fields: object) -> Path:
    """Annotations of the model that the file is called after, on the prompts of these numbers."""
    rows = [
        {
            "instruction": f"Do {k}.",
            "output_1": "b" * lengths_of(k)[1],
            "output_2": "m" * lengths_of(k)[0],
            "generator_1": "base",
            "generator_2": path.stem,
            "annotator": "someone",
            "preference": preference,
            **fields,
        }
        for k, preference in said.items()
    ]
    path.write_text(json.dumps(rows))
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
    controlled = pair["length_controlled"]
    assert controlled["value"] == pytest.approx(100 * odds / (1 + odds))
    assert controlled["low"] <= controlled["value"] <= controlled["high"]
    # Both servers had an address of their own.
    assert "one and two: one judge is taken to be at both addresses (model j at http" in out
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
    for key in ("value", "low", "high"):
        assert pair["length_controlled"][key] == pytest.approx(mine["length_controlled"][key])
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


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("seven", "'index' is the text"),
        (7.5, "'index' is the number 7.5; give the number of the instruction"),
        (True, "'index' is true"),
        (60, "instruction 60 has no difficulty in AlpacaEval's file"),
        (None, "there is no 'index', nor in 0 other rows, while 59 rows of"),
    ],
)
def test_instructions_whose_number_is_unknown_are_refused(tmp_path, capsys, index, message):
    files, path = data_files(tmp_path, 60), annotations(tmp_path / "a.json", 60)
    rows = [{**row, "index": k} for k, row in enumerate(json.loads(path.read_text()))]
    rows[3]["index"] = index
    path.write_text(json.dumps(rows, indent=1))
    code, _, error = winrate(capsys, path, *files)
    # Each row has nine lines, after the first of the list.
    assert code == 2 and f"a.json:{2 + 3 * 10}: " in error and message in error
    # Without AlpacaEval's files nobody looks.
    assert winrate(capsys, path)[0] == 0


@pytest.mark.slow
def test_tables_hold_the_same_as_json(tmp_path, capsys):
    files, path = data_files(tmp_path, 20), annotations(tmp_path / "a.json", 20)
    rows = [{**row, "index": k} for k, row in enumerate(json.loads(path.read_text()))][::-1]
    rows[4]["preference"] = None
    path.write_text(json.dumps(rows))
    table = tmp_path / "a.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    found = []
    for source in (path, table):
        assert winrate(capsys, source, *files, "--output", tmp_path / "o.json")[0] == 0
        (model,) = json.loads((tmp_path / "o.json").read_text())["models"]
        found.append({key: value for key, value in model.items() if key != "source"})
    assert found[0] == found[1] and found[0]["raw"]["missing"] == 1
    table.write_text(table.read_text().replace(",someone,1.", ",someone,one.", 1))
    code, _, error = winrate(capsys, table)
    assert code == 2 and "a.csv:2: 'preference' is the text" in error


def test_a_baseline_from_a_table_with_numbers_needs_no_data_files(tmp_path, capsys):
    for name, lengths in (("base", [4] * 8), ("mine", [9, 9, 9, 9, 9, 1, 1, 4])):
        lines = [f"{k},{q},{name[0] * lengths[k]}" for k, q in enumerate(QUESTIONS)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["index,instruction,output", *lines]))
    with FakeServer(longer) as server:
        words = ["judge", str(tmp_path / "mine.csv"), "--against", str(tmp_path / "base.csv")]
        words += ["--server", server.url, "--model", "j", "--output", str(tmp_path / "judged")]
        assert main(words) == 0
    code, out, _ = winrate(capsys, tmp_path / "judged")
    assert code == 0 and "10 won, 2 drawn, 4 lost" in out


def test_pairs_and_ranking_stand_on_what_all_have_verdicts_on(tmp_path, capsys):
    # The first 20 prompts are easy: there the first model is better, but it was asked 20 hard ones, too.
    said = {k: 1.9 if k < 20 and k % 5 else 1.2 for k in range(40)}
    easy = {k: 1.9 if k % 3 else 1.2 for k in range(20)}
    one, two = verdicts(tmp_path / "one.json", said), verdicts(tmp_path / "two.json", easy)
    code, out, _ = winrate(capsys, one, two, "--anchor", "base", "--output", tmp_path / "o.json")
    assert code == 0
    found = json.loads((tmp_path / "o.json").read_text())
    lengths = [lengths_of(k)[0] for k in range(20)], [lengths_of(k)[1] for k in range(20)]
    first, second = (
        length_controlled_winrate([each[k] for k in range(20)], *lengths, bootstrap=None).weights
        for each in (said, easy)
    )
    (pair,) = found["comparisons"]
    controlled = pair["length_controlled"]
    assert controlled["value"] == pytest.approx(winrate_between(second, first))
    assert controlled["low"] < controlled["value"] < 50 and controlled["value"] < controlled["high"]
    assert "one: only 20 preferences: C is fixed at 100 instead of chosen" in controlled["remarks"]
    assert "    length-controlled: one: only 20 preferences: C is fixed" in out
    assert "the remarks on each model above hold here, too" in out
    ranked = found["ranking"]["models"]
    assert list(ranked) == ["one", "two", "base"]
    assert (ranked["one"]["matches"], ranked["two"]["matches"]) == (20, 20)
    # Odds of 15.2 to 4.8 and of 13.1 to 6.9.
    assert ranked["one"]["value"] == pytest.approx(1.152680, abs=1e-6)
    assert ranked["two"]["value"] == pytest.approx(0.641091, abs=1e-6)
    assert found["remarks"] == [
        "the models were judged on different prompts (one 40, two 20; 20 are common to all), so their own win rates "
        "cannot be compared with each other",
        "the ranking stands on the 20 of 40 prompts (or turns) on which all models have a verdict",
    ]
    assert "the ranking stands on the 20 of 40 prompts" in out


def test_a_verdict_that_one_model_lacks_counts_for_neither(tmp_path, capsys):
    said = {k: 1.9 if k % 3 else 1.2 for k in range(20)}
    gaps = {k: None if k in (0, 4) else 1.9 if k % 4 else 1.2 for k in range(20)}
    one, two = verdicts(tmp_path / "one.json", said), verdicts(tmp_path / "two.json", gaps)
    none = verdicts(tmp_path / "none.json", dict.fromkeys(range(20)))
    code, out, _ = winrate(capsys, one, two, none, "--output", tmp_path / "o.json")
    assert code == 0
    found = json.loads((tmp_path / "o.json").read_text())
    both = [[None if gaps[k] is None else each[k] for k in range(20)] for each in (said, gaps)]
    lengths = [lengths_of(k)[0] for k in range(20)], [lengths_of(k)[1] for k in range(20)]
    first, second = (length_controlled_winrate(p, *lengths, bootstrap=None).weights for p in both)
    pair = found["comparisons"][0]
    assert pair["length_controlled"]["value"] == pytest.approx(winrate_between(second, first))
    assert pair["difference"]["missing"] == 2
    assert "; 2 verdicts are missing for one or both" in out
    assert "none over one (20 prompts): no prompt has verdicts for both" in out
    assert found["comparisons"][1]["length_controlled"]["value"] is None
    ranked = found["ranking"]["models"]
    assert (ranked["one"]["matches"], ranked["two"]["matches"], "none" in ranked) == (18, 18, False)
    assert "none has no verdict and is not ranked" in found["remarks"]
    assert "the ranking stands on the 18 of 20 prompts" in out


@pytest.mark.slow
def test_the_order_of_rows_changes_no_rate_of_one_model_over_another(tmp_path, capsys):
    one, two = annotations(tmp_path / "a.json", 45), annotations(tmp_path / "b.json", 45)
    drawn = random.Random(1)
    rows = [
        {**r, "generator_2": "its", "preference": 1 + drawn.random() ** 3}
        for r in json.loads(two.read_text())
    ]
    rates = []
    for turned in (rows, rows[::-1]):
        two.write_text(json.dumps(turned))
        assert winrate(capsys, one, two, "--output", tmp_path / "o.json")[0] == 0
        found = json.loads((tmp_path / "o.json").read_text())
        weights = [model["length_controlled"]["weights"]["model"] for model in found["models"]]
        rate = found["comparisons"][0]["length_controlled"]
        # What AlpacaEval computes: each model's own weights, whose folds go by the order of its rows.
        odds = 2.718281828459045 ** (weights[1] - weights[0])
        assert rate["value"] == pytest.approx(100 * odds / (1 + odds))
        rates.append(rate)
    assert rates[0]["low"] == pytest.approx(rates[1]["low"], abs=1e-4)


@pytest.mark.slow
def test_turns_that_one_model_has_no_verdict_on_are_counted(tmp_path, capsys):
    def rows(name: str, lengths: list[int]) -> Path:
        asked = [{"question_id": k, "turns": [f"{q}?", f"and {q}?"]} for k, q in enumerate("ABCD")]
        return write_rows(
            tmp_path / f"{name}.jsonl",
            [{**r, "output": [name * n, name * 3]} for r, n in zip(asked, lengths, strict=True)],
        )

    def script(number: int, path: str, body: Body) -> Answer | Body:
        second = "and" in between(shown(body), "question")
        filtered = second and "ccc" in shown(body)
        return Answer(400, "filtered") if filtered else longer(number, path, body)

    base, folders = rows("b", [4] * 4), []
    for name, lengths in (("a", [5, 5, 2, 2]), ("c", [5, 5, 5, 2])):
        folders.append(tmp_path / name)
        with FakeServer(script) as server:
            words = ["judge", str(rows(name, lengths)), "--against", str(base), "--model", "j"]
            assert main([*words, "--server", server.url, "--output", str(folders[-1])]) == 0
    code, out, _ = winrate(capsys, *folders, "--output", tmp_path / "o.json")
    assert code == 0
    (pair,) = json.loads((tmp_path / "o.json").read_text())["comparisons"]
    assert pair["difference"]["missing"] == 4 and pair["shared"] == 4
    assert "c over a (4 prompts): +25.0 points" in out
    assert "; 4 verdicts are missing for one or both" in out
    assert "the ranking stands on the 4 of 8 prompts (or turns)" in out


def test_models_that_were_judged_differently_are_not_compared(tmp_path, capsys):
    lengths = [9, 9, 9, 9, 9, 1, 1, 4]
    one = judge(tmp_path, "one", lengths)
    two = judge(tmp_path, "two", lengths, "--order", "random", "--rules", "last", "--seed", "3")
    code, _, error = winrate(capsys, one, two)
    assert code == 2 and error.count("\n") == 1
    assert f"{one} and {two} were judged differently (model j at http" in error
    assert "; rules agreed / last; order both / random)" in error and "seed" not in error
    assert "judge both alike, or give --mixed-judges" in error
    code, out, _ = winrate(capsys, one, two, "--mixed-judges")
    assert code == 0 and "two over one (8 prompts)" in out
    assert "what is between them is also between their judges" in out


@pytest.mark.slow
def test_annotations_of_different_judges_are_not_compared(tmp_path, capsys):
    said = {k: 1.9 if k % 3 else 1.2 for k in range(12)}
    one = verdicts(tmp_path / "one.json", said)
    two = verdicts(tmp_path / "two.json", said, annotator="else")
    code, _, error = winrate(capsys, one, two)
    assert code == 2 and "were judged differently (annotator someone / else)" in error
    code, out, _ = winrate(capsys, one, two, "--mixed-judges")
    assert code == 0 and "one and two were judged differently (annotator someone / else)" in out
    both = tmp_path / "both.json"
    both.write_text(json.dumps(json.loads(one.read_text()) + json.loads(two.read_text())))
    code, _, error = winrate(capsys, both)
    assert code == 2 and "were judged differently (annotator someone / else)" in error
    two = verdicts(tmp_path / "two.json", said, annotator=None)
    code, out, _ = winrate(capsys, one, two)
    assert code == 0
    assert "one and two: who judged one of them is unknown (annotator someone / none)" in out


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
