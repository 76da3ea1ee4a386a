"""What is measured about built pairs, which problems are held out, and what other settings do to an earlier build."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from prefopt.build.folder import COUNTS, HELD_OUT, BuildFolder, open_build, split_held_out
from prefopt.build.settings import PAIRS, RECIPE, changes_since
from prefopt.build.step_pairs import MeanLogp, StepBuild, mean_logps
from prefopt.config import load_recipe, parse
from prefopt.errors import ConfigError, RecordError
from prefopt.generate.base import Completion
from prefopt.generate.journal import Series
from prefopt.methods.base import find_method
from prefopt.methods.step_dpo import METHOD, StepDpoConfig
from prefopt.models.likelihood import ResponseLogp
from prefopt.records import Pair, Preference, Response, read_preferences
from prefopt.runs.setup import load_data
from tests.tiny import make_tokenizer


def record(problem: str, *, corrections: int = 1, sample: int = 0) -> Preference:
    """A step record as builds make it: the wrong step first, each correction in a pair with it."""
    texts = [" 3 + 3 = 7", *(f" 3 + 3 = 6{'!' * i}" for i in range(corrections))]
    return Preference(
        id=f"{problem}/{sample}",
        prompt=f"Problem {problem}\n",
        responses=tuple(Response(text, ends=False) for text in texts),
        pairs=tuple(Pair(i, 0) for i in range(1, len(texts))),
        prefix="Step 1:",
        meta={"problem": problem, "answer": "6", "step": 1},
    )


def test_mean_log_probabilities_of_a_step_and_of_a_token() -> None:
    """Every pair counts once: the wrong step of two pairs twice, and with all its tokens."""
    records = [record("a", corrections=2), record("b")]
    scores = [
        (ResponseLogp(-6.0, 2), ResponseLogp(-1.0, 1), ResponseLogp(-5.0, 4)),
        (ResponseLogp(-3.0, 8), ResponseLogp(-9.0, 5)),
    ]
    assert mean_logps(records, scores) == {
        "chosen": MeanLogp(per_step=-5.0, per_token=-1.5),
        "rejected": MeanLogp(per_step=-5.0, per_token=-1.25),
    }


def test_mean_log_probabilities_of_one_pair_and_of_none() -> None:
    only = mean_logps([record("a")], [(ResponseLogp(-6.0, 3), ResponseLogp(-1.0, 2))])
    assert only == {"chosen": MeanLogp(-1.0, -0.5), "rejected": MeanLogp(-6.0, -2.0)}
    assert mean_logps([], []) == {"chosen": MeanLogp(0, 0), "rejected": MeanLogp(0, 0)}
    with pytest.raises(ValueError, match="shorter"):
        mean_logps([record("a"), record("b")], [(ResponseLogp(-6.0, 3), ResponseLogp(-1.0, 2))])


COUNT = 2000


def held(records: list[Preference], share: float) -> set[str]:
    """The problems held out, after a look at the two sides."""
    kept, out = split_held_out(records, share)
    inside, outside = ({str(r.meta["problem"]) for r in side} for side in (kept, out))
    assert not inside & outside, "a problem on both sides"
    at = {id(record): number for number, record in enumerate(records)}
    for side in (kept, out):
        assert [at[id(r)] for r in side] == sorted(at[id(r)] for r in side), "the order stays"
    assert len({at[id(r)] for r in (*kept, *out)}) == len(records), "nothing is lost"
    return outside


def test_held_out_problems() -> None:
    """About the share asked for (three standard deviations), all records of a problem together."""
    records = [record(f"p{i // 2}", sample=i % 2) for i in range(COUNT)]
    problems = COUNT // 2
    for share in (0.05, 0.3):
        out = held(records, share)
        assert abs(len(out) / problems - share) < 3 * math.sqrt(share * (1 - share) / problems)
    assert held(records, 0.0) == set()
    assert held(records, 0.05) <= held(records, 0.3), "a larger share only adds problems"


def test_a_problem_is_on_the_same_side_in_every_file_and_every_build() -> None:
    records = [record(f"p{i}") for i in range(200)]
    out = held(records, 0.2)
    assert held([r for r in records[::-1] if r.id[1] in "13579"], 0.2) == {
        p for p in out if p[1] in "13579"
    }
    whole = [
        Preference(r.id + "w", r.prompt, r.responses, r.pairs, meta=r.meta) for r in records[::3]
    ]
    assert held(whole, 0.2) == out & {f"p{i}" for i in range(0, 200, 3)}
    # By b2sum -l 64: a later version must not move problems between the sides.
    assert sorted(out, key=lambda p: int(p[1:]))[:4] == ["p4", "p7", "p10", "p16"]


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_cannot_be_is_one_line(share: float) -> None:
    with pytest.raises(ConfigError, match="build: held_out is .* a number >= 0 and < 1") as error:
        recipe(Path("d"), held_out=share)
    assert "\n" not in str(error.value)


def recipe(folder: Path, model: str = "m", **build: Any) -> StepDpoConfig:
    section: dict[str, Any] = {
        "problems": "p.jsonl",
        "judge": {"by": "labels"},
        "output_dir": str(folder),
        **build,
    }
    return parse(
        {"method": "step_dpo", "model_name_or_path": model, "build": section}, METHOD.config
    )


def section_of(config: StepDpoConfig) -> StepBuild:
    assert config.build is not None
    return config.build


SERIES = Series("g", "errors", "s")


def first_build(folder: Path) -> None:
    """What a build leaves: its recipe, its files, its journal."""
    config = recipe(folder)
    with open_build(folder, config, section_of(config), ()) as build:
        build.journal.append(SERIES, Completion("a", 0, "text", "stop", 1), "digest")
        build.write_records(PAIRS, [record("a")])
        build.write_facts(COUNTS, {"counts": {}})
        (folder / "notes.txt").write_text("mine")


FILES = (PAIRS, HELD_OUT, COUNTS)


def opened(folder: Path, config: StepDpoConfig) -> tuple[set[str], int]:
    """The files in the folder and the completions in the journal once a build has begun."""
    with open_build(folder, config, section_of(config), FILES) as build:
        names = {p.name for p in folder.iterdir() if not p.name.startswith((".", "journal"))}
        return names, build.journal.count()


def test_the_files_of_a_build_with_other_settings_go_and_its_journal_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    first_build(folder)
    whole = {PAIRS, COUNTS, RECIPE, "notes.txt"}
    assert opened(folder, recipe(folder, batch_size=1, grader_workers=3)) == (whole, 1)
    assert "other settings" not in capsys.readouterr().err, "speed is not a setting of the data"
    other = recipe(folder, corrections=5)
    assert opened(folder, other) == ({RECIPE, "notes.txt"}, 1)
    said = capsys.readouterr().err
    assert "other settings than the last build here" in said
    assert "build.corrections: 20 -> 5" in said
    build: Any = load_recipe(folder / RECIPE)["build"]
    assert build["corrections"] == 5
    assert changes_since(folder, other, section_of(other)) == []


@pytest.mark.parametrize(
    ("model", "changes", "line"),
    [
        ("m", {"corrections": 5}, "build.corrections: 20 -> 5"),
        ("m", {"held_out": 0.25}, "build.held_out: 0.0 -> 0.25"),
        ("m", {"judge": {"by": "rollouts", "samples": 4}}, 'build.judge.by: "labels" -> "rollouts"'),
        ("m", {"problems": ["p.jsonl", "q.jsonl"]}, 'build.problems: "p.jsonl" -> ["p.jsonl", "q.jsonl"]'),
        ("other", {}, 'model_name_or_path: "m" -> "other"'),
    ],
)  # fmt: skip
def test_training_refuses_pairs_that_were_built_otherwise(
    model: str, changes: dict[str, Any], line: str, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    first_build(folder)
    tokenizer, method = make_tokenizer(), find_method("step_dpo")
    same = load_data(recipe(folder), method, tokenizer, evaluation=False, speak=False)
    assert [p.id for p in same.preferences] == ["a/0"]
    with pytest.raises(ConfigError) as error:
        load_data(
            recipe(folder, model, **changes), method, tokenizer, evaluation=False, speak=False
        )
    said = str(error.value)
    assert line in said and str(folder / PAIRS) in said
    assert "run `prefopt build` again, or set train_file" in said and "\n" not in said


def test_a_damaged_recipe_of_a_build_is_one_line(tmp_path: Path) -> None:
    first_build(tmp_path)
    (tmp_path / RECIPE).write_text("build: [")
    config = recipe(tmp_path)
    with pytest.raises(ConfigError, match=r"build\.yaml") as error:
        changes_since(tmp_path, config, section_of(config))
    assert "\n" not in str(error.value)


def test_rows_with_half_a_character_are_refused_and_the_file_stays(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    with open_build(tmp_path, config, section_of(config), FILES) as build:
        build.write_rows("rows.jsonl", [{"text": "whole 😀"}])
        build.write_records(PAIRS, [record("a")])
        before = {p: p.read_bytes() for p in (tmp_path / "rows.jsonl", tmp_path / PAIRS)}
        for write, named in refusals(build):
            with pytest.raises(RecordError, match=r"\\ud83d, half of a surrogate pair") as error:
                write()
            assert named in str(error.value) and "\n" not in str(error.value)
        assert {p: p.read_bytes() for p in before} == before
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".partial", ".tmp")]
    assert json.loads(before[tmp_path / "rows.jsonl"]) == {"text": "whole 😀"}
    assert [r.id for r in read_preferences(tmp_path / PAIRS)] == ["a/0"]


def refusals(build: BuildFolder):
    bad = record("b \ud83d")
    return [
        (lambda: build.write_rows("rows.jsonl", [{"a": "a"}, {"a": "\ud83d"}]), "rows.jsonl"),
        (lambda: build.write_facts("rows.jsonl", {"path": "\ud83d"}), "rows.jsonl"),
        (lambda: build.write_records(PAIRS, [record("a"), bad]), "record 'b \\ud83d/0'"),
    ]
