"""What is measured about built pairs, which problems are held out, and what other settings do to an earlier build."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from prefopt.build.folder import COUNTS, HELD_OUT, BuildFolder, open_build
from prefopt.build.held_out import repeated_questions, split_held_out
from prefopt.build.parts import read_problems
from prefopt.build.settings import INPUTS, OUTPUTS, PAIRS, RECIPE, changes_since
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
from prefopt.text.problems import MathProblem
from tests.integration.runs import write_rows
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


def problem(name: str, question: str = "") -> MathProblem:
    return MathProblem(name, question or f"Problem {name}", "6", f"Problem {name}\n")


def held(records: list[Preference], share: float) -> set[str]:
    """The problems held out, after a look at the two sides."""
    problems = [problem(name) for name in {str(r.meta["problem"]): None for r in records}]
    kept, out = split_held_out(records, problems, share)
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
    # By b2sum -l 64 of "Problem p0" and so on: a later version must not move problems between the sides.
    assert sorted(out, key=lambda p: int(p[1:]))[:4] == ["p4", "p11", "p16", "p21"]


def test_a_question_that_stands_in_many_rows_is_on_one_side() -> None:
    """Its words decide, not its id, its white space or its prompt."""
    names = [f"p{i}" for i in range(30)]
    problems = [
        problem(name, f"What{' ' * (1 + i // 10)}is {i % 10} + 1?\n")
        for i, name in enumerate(names)
    ]
    kept, out = split_held_out([record(name) for name in names], problems, 0.5)
    sides = [{int(str(r.meta["problem"])[1:]) % 10 for r in side} for side in (kept, out)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(range(10))
    assert min(map(len, sides)) > 0
    assert repeated_questions(problems) == problems[10:]


def test_repeated_questions_are_named_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one file and across files; rows without ids have the ids of their places."""
    for name in ("p.jsonl", "q.jsonl"):
        rows = [{"question": f"What is {i % 3} + 1?", "answer": str(i % 3 + 1)} for i in range(6)]
        write_rows(tmp_path / name, rows)
    files = [str(tmp_path / name) for name in ("p.jsonl", "q.jsonl")]
    section = section_of(recipe(tmp_path / "data", problems=files))
    assert len(read_problems(section, section.style)) == 12
    assert capsys.readouterr().err == (
        f"9 of 12 problems repeat the question of an earlier one ({files[0]}:4, {files[0]}:5, {files[0]}:6, ...); "
        "all are used\n"
    )
    section = section_of(recipe(tmp_path / "data", problems=files[0], max_problems=3))
    read_problems(section, section.style)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_cannot_be_is_one_line(share: float) -> None:
    with pytest.raises(ConfigError, match="build: held_out is .* a number >= 0 and < 1") as error:
        recipe(Path("d"), held_out=share)
    assert "\n" not in str(error.value)


def recipe(folder: Path, outside: dict[str, Any] | None = None, **build: Any) -> StepDpoConfig:
    section: dict[str, Any] = {
        "problems": str(folder.parent / "p.jsonl"),
        "judge": {"by": "labels"},
        "output_dir": str(folder),
        **build,
    }
    keys = {"method": "step_dpo", "model_name_or_path": "m", "build": section, **(outside or {})}
    return parse(keys, METHOD.config)


def section_of(config: StepDpoConfig) -> StepBuild:
    assert config.build is not None
    return config.build


SERIES = Series("g", "errors", "s")


def first_build(folder: Path, outside: dict[str, Any] | None = None, **build_keys: Any) -> None:
    """What a build leaves: its recipe, its files, its journal."""
    config = recipe(folder, outside, **build_keys)
    with open_build(folder, config, section_of(config), ()) as build:
        build.journal.append(SERIES, Completion("a", 0, "text", "stop", 1), "digest")
        build.write_records(PAIRS, [record("a")])
        build.write_facts(COUNTS, {"counts": {}})
        (folder / "notes.txt").write_text("mine")


FILES = (PAIRS, HELD_OUT, COUNTS)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith((".", "journal"))}


def opened(folder: Path, config: StepDpoConfig) -> tuple[set[str], int]:
    """The files in the folder and the completions in the journal once a build has written its first file."""
    with open_build(folder, config, section_of(config), FILES) as build:
        build.write_rows("first.jsonl", [])
        (folder / "first.jsonl").unlink()
        return names(folder), build.journal.count()


def test_the_files_of_a_build_with_other_settings_go_and_its_journal_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    first_build(folder)
    whole = {PAIRS, COUNTS, RECIPE, INPUTS, OUTPUTS, "notes.txt"}
    assert opened(folder, recipe(folder, batch_size=1, grader_workers=3)) == (whole, 1)
    assert "other settings" not in capsys.readouterr().err, "speed is not a setting of the data"
    other = recipe(folder, corrections=5)
    assert opened(folder, other) == ({RECIPE, INPUTS, OUTPUTS, "notes.txt"}, 1)
    said = capsys.readouterr().err
    assert "other settings than the last build here" in said
    assert "build.corrections: 20 -> 5" in said
    build: Any = load_recipe(folder / RECIPE)["build"]
    assert build["corrections"] == 5
    assert changes_since(folder, other, section_of(other)) == []


def test_a_build_that_fails_before_it_writes_leaves_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    first_build(folder)
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    other = recipe(folder, corrections=5)
    with open_build(folder, other, section_of(other), FILES) as build:
        build.journal.append(SERIES, Completion("b", 0, "text", "stop", 1), "digest")
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    assert changes_since(folder, recipe(folder), section_of(recipe(folder))) == []
    assert changes_since(folder, other, section_of(other)) == ["build.corrections: 20 -> 5"]


SERVER = {"server": "http://127.0.0.1:1/v1", "model": "m"}


@pytest.mark.parametrize(
    ("outside", "changes", "line"),
    [
        ({}, {"corrections": 5}, "build.corrections: 20 -> 5"),
        ({}, {"held_out": 0.25}, "build.held_out: 0.0 -> 0.25"),
        ({}, {"judge": {"by": "rollouts", "samples": 4}}, 'build.judge.by: "labels" -> "rollouts"'),
        ({}, {"problems": ["p.jsonl", "q.jsonl"]}, 'p.jsonl" -> ["p.jsonl", "q.jsonl"]'),
        ({"model_name_or_path": "other"}, {}, 'model_name_or_path: "m" -> "other"'),
        ({"model_revision": "v2"}, {}, 'model_revision: null -> "v2"'),
        ({"tokenizer_name_or_path": "t"}, {}, 'tokenizer_name_or_path: null -> "t"'),
        ({"chat_template": "c.jinja"}, {}, 'chat_template: null -> "c.jinja"'),
        ({"prompt_format": "chat"}, {}, 'prompt_format: "auto" -> "chat"'),
        ({"response_separator": " "}, {}, 'response_separator: "" -> " "'),
        ({"dtype": "bfloat16"}, {}, 'dtype: "float32" -> "bfloat16"'),
    ],
)  # fmt: skip
def test_training_refuses_pairs_that_were_built_otherwise(
    outside: dict[str, Any], changes: dict[str, Any], line: str, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    first_build(folder)
    tokenizer, method = make_tokenizer(), find_method("step_dpo")
    same = load_data(recipe(folder), method, tokenizer, evaluation=False, speak=False)
    assert [p.id for p in same.preferences] == ["a/0"]
    with pytest.raises(ConfigError) as error:
        load_data(
            recipe(folder, outside, **changes), method, tokenizer, evaluation=False, speak=False
        )
    said = str(error.value)
    assert line in said and str(folder / PAIRS) in said
    assert "run `prefopt build` again, or set train_file" in said and "\n" not in said


def test_how_the_model_is_loaded_counts_only_where_it_writes(tmp_path: Path) -> None:
    """Pairs of a server may be trained on in another precision; not if the judge runs in this process."""
    half = {"dtype": "bfloat16", "model_revision": "v2", "learning_rate": 1e-4, "use_peft": True}
    server = {"writer": SERVER}
    first_build(tmp_path / "server", **server)
    assert changes(tmp_path / "server", half, **server) == []
    text = SERVER | {"endpoint": "completions"}
    shown = {"writer": text}  # the prompt is what the recipe's tokenizer makes of the conversation
    first_build(tmp_path / "shown", **shown)
    assert changes(tmp_path / "shown", half, **shown) == ['model_revision: null -> "v2"']
    asked = {"writer": SERVER, "judge": {"by": "writer", "writer": text}}
    first_build(tmp_path / "asked", **asked)
    assert changes(tmp_path / "asked", half, **asked) == ['model_revision: null -> "v2"']
    other = {"writer": text | {"tokenizer_name_or_path": "t"}}
    first_build(tmp_path / "other", **other)
    assert changes(tmp_path / "other", half, **other) == []
    local = {"writer": SERVER, "judge": {"by": "reward_model", "reward_model": "r"}}
    first_build(tmp_path / "local", **local)
    assert changes(tmp_path / "local", half, **local) == [
        'model_revision: null -> "v2"', 'dtype: "float32" -> "bfloat16"',
    ]  # fmt: skip


def changes(folder: Path, outside: dict[str, Any] | None = None, **build: Any) -> list[str]:
    config = recipe(folder, outside, **build)
    return changes_since(folder, config, section_of(config))


def test_files_whose_content_was_replaced_are_noticed(tmp_path: Path) -> None:
    """Problems and chat template; where they are gone, the pairs can be trained on all the same."""
    problems, template = tmp_path / "p.jsonl", tmp_path / "c.jinja"
    problems.write_text("first")
    template.write_text("{{ messages }}")
    folder, outside = tmp_path / "data", {"chat_template": str(template)}
    first_build(folder, outside)
    assert changes(folder, outside) == []
    problems.write_text("other")
    assert changes(folder, outside) == [f"{problems}: its content is not what it was"]
    template.write_text("{{ others }}")
    assert changes(folder, outside)[1:] == [f"{template}: its content is not what it was"]
    problems.unlink()
    template.write_text("{{ messages }}")
    assert changes(folder, outside) == []


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
