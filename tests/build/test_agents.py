"""`prefopt build` for agents: experts, roll-outs and pairs in a real environment, files that resume, short errors."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import prefopt.build.folder
from prefopt.agents.environment import Task
from prefopt.agents.farm import Farm
from prefopt.agents.formats import ACTION
from prefopt.agents.rollouts import Rollouts, demonstrate
from prefopt.agents.suites import find_suite
from prefopt.agents.trajectory import (
    Status,
    Trajectory,
    trajectory_from_json,
    trajectory_to_json,
)
from prefopt.build.agents import EXPERTS_FILE, TRAJECTORIES_FILE
from prefopt.build.experts import is_unsolved
from prefopt.build.folder import COUNTS, HELD_OUT
from prefopt.build.held_out import belongs_to_share
from prefopt.build.settings import PAIRS, changes_since
from prefopt.build.trajectory_pairs import FATES, FATES_OF_EXPERTS
from prefopt.cli.main import main
from prefopt.config import parse
from prefopt.errors import ConfigError, RecordError
from prefopt.generate.base import Completion
from prefopt.generate.journal import Journal, Series
from prefopt.methods.base import build
from prefopt.methods.dmpo import METHOD, DmpoConfig
from prefopt.records import Message, read_preferences
from tests.tiny import make_model_folder

ROOT = Path(__file__).parents[2]
TASKS = 4
SMALL: dict[str, Any] = {"width": 2, "height": 2, "train_tasks": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model for which a third of all tokens ends a reply, so that it says many short things."""
    folder = make_model_folder(
        tmp_path_factory.mktemp("agents") / "model", "llama", max_position_embeddings=4096
    )
    generation = folder / "generation_config.json"
    facts = json.loads(generation.read_text())
    generation.write_text(json.dumps({**facts, "eos_token_id": list(range(4, 300, 3))}))
    return folder


def recipe(folder: Path, model: Path | str = "none", **section: Any) -> DmpoConfig:
    own: dict[str, Any] = {
        "environment": "rooms",
        "environment_options": SMALL,
        "format": "action",
        "max_tasks": TASKS + 1,
        "max_new_tokens": 12,
        "max_turns": 3,
        "temperature": 1.0,
        "workers": 1,
        "output_dir": str(folder),
        **section,
    }
    values = {"method": "dmpo", "model_name_or_path": str(model), "build": own}
    return parse(values, METHOD.config)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_experts_need_no_model(tmp_path: Path) -> None:
    assert build(recipe(tmp_path, rollouts=False, max_turns=None)) == tmp_path / EXPERTS_FILE
    experts = read_preferences(tmp_path / EXPERTS_FILE)
    assert len(experts) == TASKS, "the task of the example is not trained on"
    for expert in experts:
        assert expert.pairs == () and [r.score for r in expert.responses] == [1.0]
        assert not isinstance(expert.prompt, str)
        instruction, acknowledgement, *shown = expert.prompt
        assert instruction.content.endswith("Reply with one action.")
        assert (acknowledgement.content, acknowledgement.train) == ("OK", False)
        # The worked example, then the task's own first observation.
        assert [m.role for m in shown] == ["user", "assistant"] * (len(shown) // 2) + ["user"]
        assert len(shown) > 1 and not any(m.train for m in shown if m.role == "assistant")
        assert shown[0].content != shown[-1].content
    [example] = {json.dumps([m.content for m in e.prompt[2:-1]]) for e in experts}  # pyright: ignore[reportAttributeAccessIssue]
    assert example, "one for all tasks"
    assert not (tmp_path / PAIRS).exists() and not (tmp_path / TRAJECTORIES_FILE).exists()
    assert (tmp_path / HELD_OUT).read_text() == ""


def test_without_the_example_its_task_is_one_like_the_others(tmp_path: Path) -> None:
    build(recipe(tmp_path, rollouts=False, example=False, max_turns=None))
    experts = read_preferences(tmp_path / EXPERTS_FILE)
    assert len(experts) == TASKS + 1
    assert {len(e.prompt) for e in experts} == {3}


@pytest.mark.slow
def test_pairs_of_experts_and_roll_outs(tmp_path: Path, model: Path) -> None:
    config = recipe(tmp_path, model, samples=2, max_turns=5, keep_unsolved=True)
    assert build(config) == tmp_path / PAIRS == Path(str(config.built_file))
    experts = {e.id: e for e in read_preferences(tmp_path / EXPERTS_FILE)}
    played = [trajectory_from_json(r, origin="t") for r in rows(tmp_path / TRAJECTORIES_FILE)]
    assert [(t.task.id, t.sample) for t in played] == [(i, n) for i in experts for n in (0, 1)]
    assert max(t.steps for t in played) > 1
    for trajectory in played:
        assert trajectory.opening == experts[trajectory.task.id].prompt, "one prompt for all"
    pairs = read_preferences(tmp_path / PAIRS)
    for pair in pairs:
        assert pair.prompt == experts[pair.id].prompt
        assert pair.responses[0].turns == experts[pair.id].responses[0].turns
    facts = json.loads((tmp_path / COUNTS).read_text())
    counts = Counter(facts["counts"])
    assert counts["tasks"] == counts["experts"] == TASKS
    assert counts["roll-outs"] == 2 * TASKS == sum(counts[fate] for fate in FATES)
    assert sum(counts[fate] for fate in FATES_OF_EXPERTS) == TASKS
    assert counts["pairs"] == sum(len(pair.pairs) for pair in pairs) > TASKS
    assert facts["environment"]["steps"] > 0
    before = {f.name: f.read_bytes() for f in tmp_path.glob("*.jsonl")}
    build(config)
    assert {f.name: f.read_bytes() for f in tmp_path.glob("*.jsonl")} == before
    assert json.loads((tmp_path / COUNTS).read_text())["environment"] == {}, "nothing is played"


def planned(
    folder: Path, model: Path | str = "none", *, rollouts: bool = False, **options: Any
) -> DmpoConfig:
    own: dict[str, Any] = {
        "environment": "tests.agents.counting:Planned",
        "environment_options": {"goal": 2, **options},
    }
    return recipe(
        folder, model, **own, rollouts=rollouts, example=False, max_tasks=6, max_turns=None
    )


def test_experts_that_fail_are_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(planned(tmp_path, broken=[0, 1, 3, 4], unknown=[5]))
    said = capsys.readouterr().err
    assert (
        "4 of 6 experts failed (first: 'train-0': RuntimeError: no planner binary); the same command tries them again"
        in said
    )
    assert "environments: 8 crashes; episodes were tried again" in said
    facts = json.loads((tmp_path / COUNTS).read_text())
    counts = facts["counts"]
    assert counts["experts without a reward: environment or planner failed"] == 4
    assert counts["tasks for which there is no expert"] == 1
    assert counts["experts that can be trained on"] == 1
    assert facts["failed_experts"] == {
        f"train-{n}": "RuntimeError: no planner binary" for n in (0, 1, 3, 4)
    }


@pytest.mark.slow
def test_roll_outs_that_fail_are_counted_as_that_and_named(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the expert of the task has failed with them."""
    build(planned(tmp_path, model, rollouts=True, closed=[1]))
    said = capsys.readouterr().err
    for what in ("experts", "roll-outs"):
        assert f"1 of 6 {what} failed (first: 'train-1': ValueError: the abacus broke); the" in said
    counts = json.loads((tmp_path / COUNTS).read_text())["counts"]
    assert counts["roll-outs dropped: no reward, environment or server failed"] == 1
    assert counts["pairs"] == 5 and "roll-outs dropped: task without a usable exp" not in counts


@pytest.mark.parametrize("rollouts", [False, True])
def test_a_build_whose_experts_all_fail_says_why(tmp_path: Path, rollouts: bool) -> None:
    with pytest.raises(RecordError) as error:
        build(planned(tmp_path, broken=[0, 2, 3, 4, 5], unknown=[1], rollouts=rollouts))
    assert str(error.value).endswith(
        "no expert's trajectory can be trained on, of 6: 5 failed (first: 'train-0': RuntimeError: no planner binary), "
        "which the same command tries again; environment tests.agents.counting:Planned has none for 1 tasks: set "
        "build.experts to a file"
    )


@pytest.mark.slow
def test_held_out_tasks_are_in_no_other_file(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(recipe(tmp_path, model, held_out=0.5, max_tasks=None, keep_unsolved=True))
    said = capsys.readouterr().err
    for file, words in ((PAIRS, "pairs"), (HELD_OUT, "pairs of held-out tasks")):
        size = sum(len(p.pairs) for p in read_preferences(tmp_path / file))
        assert f"{size} {words}: {tmp_path / file}\n" in said
    kept, out = ({p.id for p in read_preferences(tmp_path / f)} for f in (PAIRS, HELD_OUT))
    assert kept and out and not kept & out
    assert {e.id for e in read_preferences(tmp_path / EXPERTS_FILE)} >= kept
    assert not out & {e.id for e in read_preferences(tmp_path / EXPERTS_FILE)}
    assert all(belongs_to_share(name, 0.5) for name in out)


def test_how_long_a_step_may_take_decides_nothing_about_the_data(tmp_path: Path) -> None:
    build(recipe(tmp_path, rollouts=False))
    slower = recipe(tmp_path, rollouts=False, step_seconds=90.0)
    assert slower.changed_since_built() == []


def test_other_settings_remove_the_files_of_the_last_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(recipe(tmp_path, rollouts=False))
    (tmp_path / PAIRS).write_text("of a build with roll-outs\n")
    (tmp_path / "notes.txt").write_text("mine")
    other = recipe(tmp_path, rollouts=False, environment_options={**SMALL, "seed": 1})
    assert other.build is not None
    [change] = changes_since(tmp_path, other, other.build)
    assert change == "build.environment_options.seed: null -> 1"
    before = (tmp_path / EXPERTS_FILE).read_bytes()
    capsys.readouterr()
    build(other)
    assert "other settings than the last build here" in capsys.readouterr().err
    assert not (tmp_path / PAIRS).exists() and (tmp_path / "notes.txt").exists()
    assert (tmp_path / EXPERTS_FILE).read_bytes() != before


@pytest.mark.slow
def test_a_build_without_pairs_says_why(tmp_path: Path, model: Path) -> None:
    words = str(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(
        recipe(tmp_path / "data", model, min_gap=1.0).model_dump_json(exclude_unset=True)
    )
    assert main(["build", words]) == 2
    with pytest.raises(Exception, match=rf"no pair could be made of {TASKS} roll-outs \(roll-"):
        build(recipe(tmp_path / "data", model, min_gap=1.0))
    counts = json.loads((tmp_path / "data" / COUNTS).read_text())["counts"]
    assert counts["roll-outs dropped: same reward as the expert"] == TASKS
    assert not (tmp_path / "data" / PAIRS).exists()
    assert counts["experts that do not solve their task"] == 3
    assert counts["experts that can be trained on"] == TASKS - 3
    assert len(read_preferences(tmp_path / "data" / EXPERTS_FILE)) == TASKS - 3


def test_experts_that_do_not_solve_their_task_are_not_imitated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With three turns only one of the shortest ways is whole."""
    build(recipe(tmp_path / "data", rollouts=False))
    said = capsys.readouterr().err
    assert "3 of 4 experts do not solve their task (first: 'train-2', reward 0.4 after 3 tu" in said
    [expert] = read_preferences(tmp_path / "data" / EXPERTS_FILE)
    assert expert.responses[0].score == 1.0
    counts = json.loads((tmp_path / "data" / COUNTS).read_text())["counts"]
    assert counts["experts that do not solve their task"] == 3
    assert counts["experts that can be trained on"] == 1
    build(recipe(tmp_path / "all", rollouts=False, keep_unsolved=True))
    assert len(read_preferences(tmp_path / "all" / EXPERTS_FILE)) == TASKS
    assert "trained on all the same (keep_unsolved)" in capsys.readouterr().err
    with pytest.raises(RecordError, match="on, of 4: 4 do not solve their task: raise build.max"):
        build(recipe(tmp_path / "none", rollouts=False, max_turns=1))


def shown(success: bool, status: Status, reward: float | None = 0.5) -> Trajectory:
    turns = (Message("assistant", "go north"),)
    return Trajectory(Task("t", "train"), (), turns, reward, success, status)


@pytest.mark.parametrize(
    ("expert", "own", "in_file"),
    [
        (shown(success=True, status="done", reward=1.0), False, False),
        (shown(success=False, status="turns"), True, True),
        # Published files state a reward, and not whether that solves the task.
        (shown(success=False, status="done"), True, False),
        (shown(success=False, status="error", reward=None), False, False),
    ],
)
def test_which_experts_are_known_not_to_solve_their_task(
    expert: Trajectory, own: bool, in_file: bool
) -> None:
    assert (is_unsolved(expert, in_file=False), is_unsolved(expert, in_file=True)) == (own, in_file)


@pytest.mark.slow
def test_pairs_that_prefer_an_expert_that_fails_are_counted(tmp_path: Path, model: Path) -> None:
    build(recipe(tmp_path, model))
    counts = json.loads((tmp_path / COUNTS).read_text())["counts"]
    pairs = {p.id for p in read_preferences(tmp_path / PAIRS)}
    solved = {p.id for p in read_preferences(tmp_path / EXPERTS_FILE)}
    assert len(pairs) == counts["pairs"] and len(solved) == 1
    assert (
        counts["pairs that prefer an expert that does not solve its task"]
        == len(pairs - solved)
        > 0
    )


def test_without_experts_nothing_is_played(tmp_path: Path) -> None:
    """Gymnasium has none; neither is the model looked for, nor an episode played."""
    pytest.importorskip("gymnasium")
    options = {"id": "Corridor-v0", "modules": ["tests.agents.corridor"]}
    section: dict[str, Any] = {"environment": "gymnasium", "environment_options": options}
    with pytest.raises(
        RecordError,
        match="no expert's traj.* of 5: environment gymnasium has none for 5 tasks: set b",
    ):
        build(recipe(tmp_path / "data", **section, example=False))
    assert not (tmp_path / "data" / TRAJECTORIES_FILE).exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"environment": "room"}, "did you mean 'rooms'"),
        ({"environment_options": {"hight": 2}}, "no option 'hight'; it has"),
        ({"train_split": "trian"}, "no split 'trian'"),
        ({"format": "re-act"}, "format"),
        ({"temperature": 0.0, "samples": 2}, "all roll-outs of a task the same"),
        ({"pick": "worst"}, "pick 'worst' has no effect with samples 1"),
        ({"extra_turns": 3}, "extra_turns has no effect with cut 'none'"),
        ({"max_tasks": 9999, "rollouts": False}, "9999"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build(recipe(tmp_path / "data", **section))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


class Ending(Journal):
    """Ends its process before it keeps so many of its own rows."""

    limit = 0

    def append(self, series: Series, completion: Completion, prompt: str) -> None:
        if Ending.limit == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        Ending.limit -= 1
        super().append(series, completion, prompt)


def build_and_die(file: str, limit: int) -> None:
    """The build of a recipe, ended when its journal holds so many rows."""
    Ending.limit = limit
    prefopt.build.folder.Journal = Ending  # pyright: ignore[reportPrivateImportUsage]
    main(["build", file])


def journal_rows(folder: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(folder / "journal.sqlite")
    try:
        return connection.execute(
            "SELECT generator, purpose, request, sample, prompt, text FROM completions ORDER BY 1, 2, 3, 4, 5"
        ).fetchall()
    finally:
        connection.close()


@pytest.mark.slow
def test_kill_9_loses_nothing_and_repeats_nothing(tmp_path: Path, model: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    build(recipe(whole, model))
    expected = journal_rows(whole)
    first_reply = len(expected) - sum(row[1] == "rollout" for row in expected)
    limit = (first_reply + len(expected)) // 2
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe(killed, model).model_dump_json(exclude_unset=True))
    code = f"from tests.build.test_agents import build_and_die as b; b({str(file)!r}, {limit})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = journal_rows(killed)
    assert len(found) == limit and set(found) < set(expected)
    assert {"episode", "rollout"} <= {str(row[1]) for row in found}
    assert not (killed / PAIRS).exists()
    build(recipe(killed, model))
    assert journal_rows(killed) == expected
    for name in (PAIRS, EXPERTS_FILE, TRAJECTORIES_FILE):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def published(folder: Path, **options: Any) -> Path:
    """A file of experts' trajectories as roll-outs are stored, with another instruction than the build's."""
    suite = find_suite("rooms", {**SMALL, **options})
    with Farm(suite, workers=1) as farm:
        shown = demonstrate(suite.tasks("train", TASKS + 2), farm, Rollouts(format=ACTION))
    lines = [json.dumps(trajectory_to_json(trajectory)) for trajectory in shown[1:]]
    file = folder / "experts.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_experts_of_a_file_get_the_prompt_of_the_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = published(tmp_path)
    sections: dict[str, dict[str, Any]] = {"own": {}, "file": {"experts": str(file)}}
    for name, section in sections.items():
        build(recipe(tmp_path / name, rollouts=False, max_turns=None, **section))
    assert f"{TASKS} of {TASKS + 1} trajectories are about tasks of this" in capsys.readouterr().err
    own, read = (read_preferences(tmp_path / name / EXPERTS_FILE) for name in ("own", "file"))
    assert [r.id for r in own] == [r.id for r in read]
    assert [r.prompt for r in own] == [r.prompt for r in read]
    assert [r.responses for r in own] == [r.responses for r in read]
    with pytest.raises(RecordError, match=r"turn 0 has no action in format react; choose"):
        build(recipe(tmp_path / "react", rollouts=False, format="react", experts=str(file)))


def test_experts_of_other_tasks_are_an_error(tmp_path: Path) -> None:
    text = published(tmp_path).read_text().replace('"id": "', '"id": "other-')
    (tmp_path / "other.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"none of its 5 trajectories \(first: 'other-"):
        build(recipe(tmp_path / "d", rollouts=False, experts=str(tmp_path / "other.jsonl")))


@pytest.mark.parametrize("rollouts", [False, True])
def test_experts_of_another_environment_are_an_error(tmp_path: Path, rollouts: bool) -> None:
    """Their tasks have the same names; the file says what they are, or at least how they start."""
    file = published(tmp_path, seed=1)
    section: dict[str, Any] = {"experts": str(file), "rollouts": rollouts}
    with pytest.raises(RecordError, match=r"task 'train-2' is another one there: \w+ is .*, here "):
        build(recipe(tmp_path / "data", **section))
    file.write_text("".join(f"{json.dumps(bare(row))}\n" for row in rows(file)))
    with pytest.raises(RecordError, match="task 'train-2': expert and agent start from different"):
        build(recipe(tmp_path / "data", **section))
    assert not (tmp_path / "data" / EXPERTS_FILE).exists()


def bare(row: dict[str, Any]) -> dict[str, Any]:
    """A stored trajectory whose task is known by its id alone."""
    return {**row, "task": {**row["task"], "meta": {}}}


def test_experts_of_a_file_without_rewards_are_not_promised_another_try(tmp_path: Path) -> None:
    file = published(tmp_path)
    lost = [{**row, "reward": None, "reason": "killed"} for row in rows(file)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in lost))
    with pytest.raises(RecordError) as error:
        build(recipe(tmp_path / "data", rollouts=False, experts=str(file)))
    assert str(error.value).endswith(
        f"no expert's trajectory can be trained on, of 4: 4 have no reward in {file} (first: 'train-2': killed)"
    )


def test_two_experts_of_a_file_for_one_task_are_an_error(tmp_path: Path) -> None:
    file = published(tmp_path)
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
    with pytest.raises(RecordError, match="task 'train-2' has 2 expert trajectories; keep one"):
        build(recipe(tmp_path / "data", rollouts=False, experts=str(file)))
