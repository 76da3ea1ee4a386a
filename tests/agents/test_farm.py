"""The farm with real processes: parallel work, time limits, crashes, and that nothing is left behind."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from prefopt.agents.environment import Move, Outcome, Task
from prefopt.agents.farm import Farm
from prefopt.agents.plays import Play, Played
from prefopt.errors import AgentError, ConfigError, MissingExtraError
from tests.agents.counting import (
    Counting,
    CountingEnvironment,
    alive,
    group_of,
    processes,
    wait_until_gone,
    workers_of,
)

ROOT = Path(__file__).parents[2]


def play(farm: Farm, *plays: Play) -> list[Played]:
    """What became of plays, in order."""
    played = dict(farm.play(plays))
    return [played[index] for index in range(len(plays))]


def of(task: Task, *actions: str, last: bool = False) -> Play:
    return Play((task.id, 0), task, actions, last=last)


def marks(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"{kind}-*"))


def started(folder: Path) -> list[int]:
    """Processes that environments have noted: themselves and their children."""
    return [int(path.name.partition("-")[2]) for path in marks(folder, "started")]


def wait_for(claim, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def test_an_episode_goes_on_where_it_was():
    suite = Counting(goal=3)
    (task,) = suite.tasks("train", 1)
    with Farm(suite, workers=1) as farm:
        assert play(farm, of(task)) == [Played((Outcome("You are at 0 in train-0.", 0.0),))]
        (played,) = play(farm, of(task, "up", "look"))
        assert played == Played(
            (Outcome("You are at 1.", 1 / 3), Outcome("Nothing comes of look.", 1 / 3)), first=1
        )
        (played,) = play(farm, of(task, "up", "look", "up", "up", "up"))
        assert played.outcomes[-1] == Outcome("You are at 3.", 1.0, done=True, success=True)
        assert (len(played.outcomes), played.first) == (2, 3)
        assert farm.counts == {"resets": 1, "steps": 4}


def test_environments_are_opened_once_and_used_again(tmp_path: Path):
    suite = Counting(folder=str(tmp_path), places=2)
    tasks = suite.tasks("train", 6)
    with Farm(suite, workers=1) as farm:
        assert farm.capacity == 2
        assert not workers_of()
        played = play(farm, *(of(task, "up", last=True) for task in tasks))
        assert len(workers_of()) == 1
    assert [p.outcomes[0].observation for p in played] == [
        f"You are at 0 in {t.id}." for t in tasks
    ]
    assert len(marks(tmp_path, "opened")) == len(marks(tmp_path, "closed")) == 2


@pytest.mark.slow
def test_workers_go_on_in_parallel():
    suite = Counting()
    tasks = suite.tasks("train", 2)
    with Farm(suite, workers=2) as farm:
        play(farm, *(of(task) for task in tasks))
        began = time.monotonic()
        play(farm, *(of(task, "nap") for task in tasks))
        assert time.monotonic() - began < 0.9  # two naps of half a second


def test_a_released_place_is_free_again():
    suite = Counting()
    first, second = suite.tasks("train", 2)
    with Farm(suite, workers=1) as farm:
        play(farm, of(first))
        farm.release({("train-0", 0)})
        (played,) = play(farm, of(second, "up"))
        assert [o.reward for o in played.outcomes] == [0.0, 0.25]


def test_what_a_library_prints_stays_out_of_the_channel():
    suite = Counting()
    (task,) = suite.tasks("train", 1)
    with Farm(suite, workers=1) as farm:
        (played,) = play(farm, of(task, "babble", "up"))
    assert [o.observation for o in played.outcomes[1:]] == [
        "Nothing comes of babble.",
        "You are at 1.",
    ]


def test_long_texts_pass_in_both_directions():
    suite = Counting(places=2)
    tasks = suite.tasks("train", 2)
    long = "x" * 500_000
    with Farm(suite, workers=1) as farm:
        played = play(farm, *(of(task, long, long, "\ud800 é\n") for task in tasks))
    assert [o.observation for o in played[1].outcomes[1:]] == [
        f"Nothing comes of {long}.", f"Nothing comes of {long}.", "Nothing comes of \ufffd é\n.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("action", "failure", "counts"),
    [
        ("crash", "ValueError: the abacus broke", {"crashes": 1}),
        ("leave", "SystemExit: 3", {"crashes": 1}),
        ("die", "its process ended (killed by signal 9)", {"crashes": 1, "restarts": 1}),
        ("exit", "its process ended (exit code 7): the beads are gone", {"crashes": 1, "restarts": 1}),
        ("hang", "no answer to an action within 1 s", {"time-outs": 1, "restarts": 1}),
        ("nonsense", "TypeError: the observation is of type int, not a text", {"crashes": 1}),
        ("wordy", "TypeError: done is of type str, not true or false", {"crashes": 1}),
        ("infinite", "ValueError: the reward is inf, not a finite number", {"crashes": 1}),
    ],
)  # fmt: skip
def test_a_failure_is_reported_and_the_place_is_used_again(action: str, failure: str, counts):
    suite = Counting()
    first, second = suite.tasks("train", 2)
    with Farm(suite, workers=1, step_seconds=1) as farm:
        assert play(farm, of(first, "up", action)) == [Played(failure=failure)]
        (played,) = play(farm, of(second, "up"))
        assert played.outcomes[-1] == Outcome("You are at 1.", 0.25)
        assert {k: n for k, n in farm.counts.items() if k not in {"resets", "steps"}} == counts


def test_a_failed_environment_is_closed_and_opened_afresh(tmp_path: Path):
    suite = Counting(folder=str(tmp_path))
    (task,) = suite.tasks("train", 1)
    with Farm(suite, workers=1) as farm:
        play(farm, of(task, "crash"))
        assert (len(marks(tmp_path, "opened")), len(marks(tmp_path, "closed"))) == (1, 1)
        play(farm, of(task, "up"))
        assert (len(marks(tmp_path, "opened")), len(marks(tmp_path, "closed"))) == (2, 1)
        assert len(workers_of()) == 1


def test_others_in_the_same_worker_are_played_again_without_blame():
    suite = Counting(places=3)
    tasks = suite.tasks("train", 3)
    with Farm(suite, workers=1) as farm:
        play(farm, *(of(task, "up") for task in tasks))
        bad, good = play(farm, of(tasks[0], "up", "die"), of(tasks[1], "up", "up"))
        assert bad.failure
        assert (good.first, [o.reward for o in good.outcomes]) == (0, [0.0, 0.25, 0.5])
        (idle,) = play(farm, of(tasks[2], "up", "look"))
        assert (idle.first, [o.reward for o in idle.outcomes]) == (0, [0.0, 0.25, 0.25])


def test_a_worker_that_dies_while_it_is_idle_costs_nothing():
    suite = Counting()
    (task,) = suite.tasks("train", 1)
    with Farm(suite, workers=1) as farm:
        play(farm, of(task, "up"))
        there = group_of(workers_of())
        os.killpg(there[0].group, signal.SIGKILL)
        wait_until_gone([process.number for process in there])
        (played,) = play(farm, of(task, "up", "up"))
        assert [o.reward for o in played.outcomes] == [0.0, 0.25, 0.5]
        assert farm.counts["crashes"] == 0 and farm.counts["restarts"] == 1


def test_flags_of_numpy_are_flags():
    suite = Counting()
    (task,) = suite.tasks("train", 1)
    with Farm(suite, workers=1) as farm:
        (played,) = play(farm, of(task, "boxed", last=True))
    assert played.outcomes[-1] == Outcome("far", 0.5, done=True, success=False)


@pytest.mark.parametrize(("start", "limit"), [(0.1, 0.5), (0.6, 0.6)])
def test_a_process_has_the_time_that_an_environment_has(
    start: float, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A module that takes longer to import than Python may take to start, as large libraries do on a busy machine."""
    (tmp_path / "prefopt_slow_module.py").write_text(
        "import sys, time\n"
        "from dataclasses import dataclass\n"
        "from tests.agents.counting import Counting\n"
        "if 'agents.worker' in repr(sys.orig_argv):\n"
        "    time.sleep(1000)\n"
        "@dataclass(frozen=True)\n"
        "class Slow(Counting):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("prefopt.agents.farm._STARTING", 0.5)
    suite = importlib.import_module("prefopt_slow_module").Slow(start=start)
    message = (
        f"cannot be opened (3 attempts): no answer at the start of the process within {limit:g} s"
    )
    with Farm(suite, workers=1) as farm, pytest.raises(AgentError, match=re.escape(message)):
        play(farm, *[of(task, last=True) for task in suite.tasks("train", 3)])


def test_the_start_of_an_episode_has_a_limit_of_its_own():
    suite = Counting(start=1.0)
    task = Task("slow", "train", meta={"start": "hang"})
    with Farm(suite, workers=1, step_seconds=60) as farm:
        play(farm, of(suite.tasks("train")[0], last=True))
        (played,) = play(farm, of(task))
    assert played.failure == "no answer at the start of an episode within 1 s"


def test_an_environment_that_cannot_be_opened_is_the_users_matter_at_once():
    suite = Counting(trouble="refuse")
    farm = Farm(suite, workers=2)
    with pytest.raises(AgentError, match="^there is no abacus; install one$"):
        play(farm, *[of(task, last=True) for task in suite.tasks("train", 4)])
    assert not workers_of()


@dataclass(frozen=True)
class Unpackaged(Counting):
    def open(self) -> CountingEnvironment:
        raise MissingExtraError("this environment needs beads; pip install 'prefopt[beads]'")


def test_a_missing_package_keeps_its_class_and_words():
    suite = Unpackaged()
    with (
        pytest.raises(MissingExtraError, match="^this environment needs beads; pip"),
        Farm(suite) as farm,
    ):
        play(farm, of(suite.tasks("train")[0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ("crash", "ValueError: the abacus broke"),
        ("die", "its process ended (killed by signal 9)"),
        ("hang", "no answer at the start of an episode within 0.3 s"),
    ],
)
def test_nothing_is_tried_for_ever_where_nothing_ever_opens(trouble: str, why: str):
    suite = Counting(trouble=trouble, start=0.3)
    message = f"environment counting cannot be opened (3 attempts): {why}"
    with pytest.raises(AgentError, match="^" + re.escape(message)), Farm(suite, workers=1) as farm:
        play(farm, *[of(task, last=True) for task in suite.tasks("train", 8)])


def test_a_suite_that_workers_cannot_import_is_named():
    class Local(Counting):
        pass

    with pytest.raises(
        AgentError, match="^environment counting: its suite cannot be sent to worker"
    ):
        Farm(Local())


def test_a_suite_of_the_main_script_is_named(tmp_path: Path):
    script = tmp_path / "own.py"
    script.write_text(
        "from tests.agents.counting import Counting\n"
        "from prefopt.agents.farm import Farm\nfrom prefopt.agents.plays import Play\n"
        "class Own(Counting): pass\n"
        "suite = Own()\n"
        "with Farm(suite) as farm:\n"
        "    list(farm.play([Play(('a', 0), suite.tasks('train', 1)[0])]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert "AgentError: the environment cannot be imported in a worker process (Attr" in done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "agents: workers is 0; use 1 or more"),
        ({"step_seconds": 0.0}, "agents: step_seconds is 0; use more than 0"),
        ({"step_seconds": float("nan")}, "agents: step_seconds is nan; use more than 0"),
        ({"step_seconds": float("inf")}, "agents: step_seconds is inf; use at most 604800, a week"),
        ({"step_seconds": 1e8}, "agents: step_seconds is 1e+08; use at most 604800, a week"),
    ],
)
def test_a_farm_needs_workers_and_time(settings, message: str):
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        Farm(Counting(), **settings)


@pytest.mark.parametrize("start", [1e8, float("inf")])
def test_an_environment_may_have_any_time_for_its_start(start: float):
    suite = Counting(start=start)
    (task,) = suite.tasks("train", 1)
    with Farm(suite, workers=1, step_seconds=604_800) as farm:
        (played,) = play(farm, of(task, "up", last=True))
    assert len(played.outcomes) == 2


def test_a_suite_needs_room_in_a_worker():
    with pytest.raises(ConfigError, match="^environment counting: per_worker is 0; use 1 or more$"):
        Farm(Counting(places=0))


def test_an_expert_is_asked():
    suite = Counting(goal=2)
    (task,) = suite.tasks("train", 1)
    with Farm(suite, workers=1) as farm:
        (played,) = play(farm, Play(("train-0", 0), task, expert=True))
        assert played.moves[:2] == (Move("up", "after 0 comes 1"), Move("up", "after 1 comes 2"))
        (played,) = play(farm, of(task, "up"))
        assert [o.reward for o in played.outcomes] == [0.0, 0.5]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[tuple[Counting, Task]]:
    """A suite whose action `child` starts a process."""
    suite = Counting(folder=str(tmp_path))
    yield suite, suite.tasks("train", 1)[0]
    for number in alive(started(tmp_path)):
        os.kill(number, signal.SIGKILL)


def test_closing_ends_workers_and_what_they_have_started(child, tmp_path: Path):
    suite, task = child
    with Farm(suite, workers=1) as farm:
        play(farm, of(task, "child"))
        assert len(alive(started(tmp_path))) == 2
    assert not workers_of()
    wait_until_gone(started(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("action", ["hang", "die", "exit"])
def test_replacing_a_worker_ends_what_it_has_started(child, tmp_path: Path, action: str):
    suite, task = child
    with Farm(suite, workers=1, step_seconds=1) as farm:
        assert play(farm, of(task, "child", action))[0].failure
        wait_until_gone(started(tmp_path))


def test_an_exception_and_an_abandoned_play_end_all_processes(child, tmp_path: Path):
    suite, task = child
    with Farm(suite, workers=1) as farm:
        begun = farm.play([of(task, "child"), Play(("b", 0), Task("b", "train"), last=True)])
        next(begun)
        begun.close()
        assert not workers_of()
    assert not workers_of()
    wait_until_gone(started(tmp_path))


def test_a_keeper_that_is_killed_takes_its_environments_with_it(tmp_path: Path):
    suite = Counting(folder=str(tmp_path))
    tasks = [Task("a", "train"), Task("b", "train")]
    with Farm(suite, workers=2) as farm:
        begun = farm.play([of(tasks[0], "child", "hang"), of(tasks[1])])
        next(begun)
        wait_for(lambda: len(started(tmp_path)) == 2)
        (stuck,) = {p.group for p in processes() if p.number in started(tmp_path)}
        os.kill(stuck, signal.SIGKILL)
        ((_, played),) = begun
        assert played.failure.startswith("its process ended (killed)")
        wait_until_gone(started(tmp_path))


@pytest.mark.slow
def test_a_stuck_close_does_not_hold_up_the_end():
    suite = Stuck()
    (task,) = suite.tasks("train", 1)
    farm = Farm(suite, workers=1)
    play(farm, of(task))
    began = time.monotonic()
    farm.close()
    assert time.monotonic() - began < 10
    assert not workers_of()


@dataclass(frozen=True)
class Stuck(Counting):
    def open(self) -> CountingEnvironment:
        return StuckEnvironment(self.goal)


class StuckEnvironment(CountingEnvironment):
    def close(self) -> None:
        time.sleep(1000)


MAIN = """
import sys
from tests.agents.counting import Counting
from prefopt.agents.farm import Farm
from prefopt.agents.plays import Play
suite = Counting(folder=sys.argv[1])
tasks = suite.tasks("train", 2)
with Farm(suite, workers=2) as farm:
    list(farm.play([Play((t.id, 0), t, ("child", *sys.argv[2:])) for t in tasks]))
    print("played", flush=True)
    sys.stdin.read()
"""


def start_main(folder: Path, *actions: str) -> subprocess.Popen[str]:
    """A program with a farm of two workers, each with a child process."""
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, str(folder), *actions],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        # A shell's background jobs ignore SIGINT, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads yet
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "actions", [(), ("hang",), ("grind",)], ids=["idle", "in a step that hangs", "in C code"]
)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_nothing_is_left_when_the_program_ends(
    tmp_path: Path, how: signal.Signals, actions: Sequence[str]
):
    with start_main(tmp_path, *actions) as main:
        wait_for(lambda: len(started(tmp_path)) == 4)
        keepers = workers_of(main.pid)
        assert len(keepers) == 2 and len(alive(started(tmp_path))) == 4
        # As a terminal does it: to the whole foreground group.
        os.killpg(main.pid, how)
        main.wait(20)
        wait_until_gone([*keepers, *started(tmp_path)])
