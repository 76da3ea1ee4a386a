"""ScienceWorld: what is known without the simulator, and one simulator for what is not (marker `scienceworld`)."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefopt.agents.environment import Outcome, Task
from prefopt.agents.environments.scienceworld import ScienceWorld, Simulator
from prefopt.agents.java import Machine, Program, require_java
from prefopt.agents.scienceworld_tasks import KINDS, split_of, variations
from prefopt.agents.suites import find_suite
from prefopt.errors import AgentError, ConfigError, MissingExtraError

simulated = pytest.mark.scienceworld


def test_every_split_has_the_published_types_and_unseen_is_the_published_list() -> None:
    suite = find_suite("scienceworld")
    assert tuple(suite.splits) == ("train", "seen", "unseen")
    counts = {split: len(suite.tasks(split)) for split in suite.splits}
    assert counts == {"train": 1408, "seen": 199, "unseen": 211}
    unseen = Counter(task.kind for task in suite.tasks("unseen"))
    assert len(unseen) == 24
    assert unseen["find-plant"] == 10
    assert unseen["boil"] == 9
    assert unseen["chemistry-mix"] == 8
    assert unseen["identify-life-stages-2"] == 4
    ids = [task.id for task in suite.tasks("unseen") if task.kind in {"find-plant", "boil"}]
    assert set(ids) == {
        *(f"find-plant:{i}" for i in range(225, 235)),
        *(f"boil:{i}" for i in range(21, 30)),
    }


def test_splits_are_apart_and_every_task_says_its_split() -> None:
    suite = ScienceWorld(kinds="*", train_per_kind=None, test_per_kind=None)
    tasks = [task for split in suite.splits for task in suite.tasks(split)]
    assert len(tasks) == 7207
    assert len({task.id for task in tasks}) == 7207
    kinds = {kind.name: kind for kind in KINDS}
    for task in tasks:
        number = task.meta["variation"]
        assert isinstance(number, int)
        assert split_of(kinds[task.kind], number) == task.split


def test_tasks_are_the_first_of_a_fixed_order_in_which_types_take_turns() -> None:
    suite = ScienceWorld(kinds=["find-plant", "lifespan-*"], train_per_kind=3)
    first = suite.tasks("train", 5)
    assert [task.id for task in first] == [
        "find-plant:0",
        "lifespan-longest-lived:0",
        "lifespan-longest-lived-then-shortest-lived:0",
        "lifespan-shortest-lived:0",
        "find-plant:50",
    ]
    assert [task.max_turns for task in first] == [15, 10, 12, 10, 15]
    assert suite.tasks("train")[:5] == first
    assert first[0] == Task(
        "find-plant:0", "train", "find-plant", 15, {"task": "find-plant", "variation": 0}
    )
    assert pickle.loads(pickle.dumps(suite)) == suite  # noqa: S301 # our own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": "find-plants"}, "unknown type of scienceworld tasks 'find-plants'"),
        ({"on_fatal": "minus"}, "unknown on_fatal of scienceworld 'minus'"),
        ({"simplification": "easy,fast"}, "unknown simplification of scienceworld 'fast'"),
        ({"train_per_kind": 0}, "train_per_kind is 0; use more than 0"),
        ({"max_turns": -1}, "max_turns is -1"),
        (
            {"simplification": "noElectricalAction", "kinds": ["power-component"]},
            "power-component cannot be done",
        ),
        ({"tasks": "find-plant"}, "no option 'tasks'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_suite("scienceworld", options)  # type: ignore[arg-type]


def test_a_split_that_is_unknown_or_too_small_is_named() -> None:
    suite = ScienceWorld(kinds="boil")
    with pytest.raises(ConfigError, match="unknown split of scienceworld 'dev'"):
        suite.tasks("dev")
    with pytest.raises(ConfigError, match="split unseen has 9 tasks, not 10"):
        suite.tasks("unseen", 10)


def test_the_instruction_offers_teleporting_only_where_there_is_any() -> None:
    assert "teleport to PLACE" in ScienceWorld().instruction
    plain = ScienceWorld(simplification="openDoors").instruction
    assert "teleport" not in plain
    assert "go to PLACE" in plain


def test_identity_changes_with_what_decides_an_episode_only() -> None:
    pytest.importorskip("scienceworld", reason="the extra `agents` is not installed")
    base = ScienceWorld().identity
    assert ScienceWorld(kinds="boil", train_per_kind=1, memory=1024).identity == base
    others = [
        ScienceWorld(simplification=""),
        ScienceWorld(on_fatal="zero"),
        ScienceWorld(describe_place=True),
        ScienceWorld(step_limit=100),
    ]
    assert len({base, *(other.identity for other in others)}) == 5


def test_without_the_package_tasks_are_known_and_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hidden(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", hidden)
    for module in ("scienceworld", "scienceworld.constants"):
        monkeypatch.setitem(sys.modules, module, None)
    suite = ScienceWorld()
    assert len(suite.tasks("train", 3)) == 3
    message = r"ScienceWorld is not installed: pip install 'prefopt\[agents\]'"
    with pytest.raises(MissingExtraError, match=message):
        suite.open()
    with pytest.raises(MissingExtraError, match=message):
        assert suite.identity


def _java(folder: Path, script: str) -> None:
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_without_java_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AgentError, match="there is no `java` on PATH; install a Java runtime"):
        require_java("ScienceWorld")
    _java(tmp_path, "echo no JVM could be loaded >&2; exit 1")
    with pytest.raises(AgentError, match="fails .no JVM could be loaded.; install a Java runtime"):
        require_java("ScienceWorld")


# py4j leaves what it opened to the garbage collector where the machine does not start.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_machine_that_does_not_start_is_an_error_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("py4j", reason="the extra `agents` is not installed")
    _java(tmp_path, "echo not enough memory >&2; sleep 0.2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(AgentError, match="does not start .it may use 7 MiB.: "):
        Machine(Program("ScienceWorld", tmp_path / "some.jar", "a.B", 7))


# The rest needs Java and the package. One machine serves all tests.


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    opened = ScienceWorld().open()
    yield opened
    opened.close()
    opened.close()


def task(name: str, variation: int) -> Task:
    return Task(f"{name}:{variation}", "train", name, 15, {"task": name, "variation": variation})


def play(simulator: Simulator, played: Task, *actions: str) -> list[Outcome]:
    return [simulator.reset(played), *(simulator.step(action) for action in actions)]


@simulated
@pytest.mark.parametrize(("name", "variation"), [("find-plant", 0), ("lifespan-longest-lived", 3)])
def test_the_experts_path_solves_the_task(simulator: Simulator, name: str, variation: int) -> None:
    moves = simulator.expert(task(name, variation))
    start, *outcomes = play(simulator, task(name, variation), *(move.action for move in moves))
    assert start.observation.startswith("Your task is to find")
    assert start.reward == 0.0
    assert outcomes[-1][1:] == (1.0, True, True)
    rewards = [outcome.reward for outcome in outcomes]
    assert rewards == sorted(rewards)
    assert not any(move.thought for move in moves)


@simulated
def test_equal_tasks_start_equally_and_later_steps_agree(simulator: Simulator) -> None:
    actions = ("look around", "go to kitchen", "look around", "inventory")
    once = play(simulator, task("find-plant", 7), *actions)
    simulator.reset(task("boil", 0))
    assert play(simulator, task("find-plant", 7), *actions) == once
    assert play(simulator, task("find-plant", 8), *actions) != once


@simulated
def test_text_that_is_no_action_is_answered_and_costs_no_reward(simulator: Simulator) -> None:
    outcomes = play(
        simulator, task("find-plant", 0), "teleport to greenhouse", "dance", "", 'x\n"é" 🌱'
    )
    assert outcomes[1].observation == "You teleport to the greenhouse."
    for outcome in outcomes[2:]:
        assert outcome == Outcome("No known action matches that input.", 0.17)


@simulated
@pytest.mark.parametrize(
    ("on_fatal", "reward"), [("keep_best", 0.17), ("zero", 0.0), ("minus_one", -1.0)]
)
def test_a_wrong_focus_ends_the_episode_without_success(
    simulator: Simulator, on_fatal: str, reward: float
) -> None:
    other = Simulator(ScienceWorld(on_fatal=on_fatal), simulator._machine)  # type: ignore[arg-type]
    last = play(other, task("find-plant", 0), "teleport to greenhouse", "focus on air")[-1]
    assert last == Outcome("You focus on the air.", reward, done=True, success=False)


@simulated
def test_an_episode_ends_at_the_simulators_step_limit(simulator: Simulator) -> None:
    limited = Simulator(ScienceWorld(step_limit=15), simulator._machine)
    outcomes = play(limited, task("find-plant", 0), "wait", "wait1", "wait")
    assert [outcome.done for outcome in outcomes] == [False, False, False, True]
    assert not outcomes[-1].success


@simulated
def test_the_place_can_be_described_at_the_start(simulator: Simulator) -> None:
    told = Simulator(ScienceWorld(describe_place=True), simulator._machine)
    plain = simulator.reset(task("find-plant", 0)).observation
    described = told.reset(task("find-plant", 0)).observation
    assert described.startswith(f"{plain}\n\nThis room is called the hallway.")


@simulated
def test_the_list_of_tasks_is_that_of_the_package(simulator: Simulator) -> None:
    ask = simulator._machine.ask
    assert sorted(ask("getTaskNames")) == sorted(kind.name for kind in KINDS)  # type: ignore[arg-type]
    for kind in KINDS:
        assert ask("getTaskMaxVariations", kind.name) == kind.variations, kind.name
    for kind in KINDS[14], KINDS[20], KINDS[24], KINDS[26]:
        ask("load", kind.name, 0, "", False)
        theirs = [list(ask(f"getVariations{part}")) for part in ("Train", "Dev", "Test")]  # type: ignore[call-overload]
        assert theirs == [list(variations(kind, split)) for split in ("train", "seen", "unseen")]


# The package leaves files to the garbage collector, which is called here so that no other test is blamed.
@simulated
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_short_way_gives_what_the_packages_own_step_gives(simulator: Simulator) -> None:
    from scienceworld import ScienceWorldEnv

    actions = [
        *("look around", "teleport to greenhouse", "look around", "nonsense"),
        *("focus on adult cherry tree", "pick up flower pot 8", "focus on door", "0", "wait"),
    ]
    ours = play(simulator, task("find-plant", 0), *actions)
    official = ScienceWorldEnv(envStepLimit=200)
    try:
        official.load("find-plant", 0, "easy")
        official.reset()
        assert official.get_task_description().strip() == ours[0].observation
        best = 0.0
        for action, outcome in zip(actions, ours[1:], strict=True):
            observation, _, done, info = official.step(action)
            best = max(best, info["score"] / 100)
            assert outcome[:3] == (observation, best, done), action
    finally:
        official.close()
        process = official._gateway.java_process
        assert process is not None
        process.wait(10)
        del official
        gc.collect()


@simulated
def test_a_task_that_the_simulator_does_not_have_is_an_error(simulator: Simulator) -> None:
    for name, variation in [("find-plant", 300), ("find-plants", 0)]:
        with pytest.raises(AgentError, match=f"no variation {variation} of {name}"):
            simulator.reset(task(name, variation))


@simulated
def test_a_machine_ends_with_its_process_and_its_death_is_an_error() -> None:
    code = (
        "import time\n"
        "from prefopt.agents.environments.scienceworld import ScienceWorld\n"
        "print(ScienceWorld().open()._machine.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        machine = int(other.stdout.readline())
        other.send_signal(signal.SIGKILL)
    assert _ends(machine)

    opened = ScienceWorld().open()
    opened.reset(task("find-plant", 0))
    os.kill(opened._machine.process.pid, signal.SIGKILL)
    with pytest.raises(AgentError, match="ScienceWorld failed in step"):
        opened.step("look around")
    opened.close()


def _ends(process: int) -> bool:
    """Whether a process that is not our child is gone within 10 s, or at most waits for its parent to notice."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False
