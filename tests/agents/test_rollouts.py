"""Roll-outs of scripted agents in real worker processes: turns, limits, failures, journal, kill and resume."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.agents.environment import Outcome, Task
from prefopt.agents.farm import Farm
from prefopt.agents.formats import ACTION, REACT, TOOL_CALL
from prefopt.agents.outcomes import Outcomes
from prefopt.agents.rollouts import Rollouts, begin, demonstrate, roll_out
from prefopt.agents.trajectory import Trajectory, trajectory_from_json, trajectory_to_json
from prefopt.errors import AgentError, ConfigError, RecordError
from prefopt.generate.base import Request
from prefopt.generate.journal import Journal
from prefopt.generate.local import LocalGenerator
from prefopt.records import Message
from tests.agents.counting import CUT, REFUSED, Agent, Counting, acting, turn_of, workers_of
from tests.tiny import make_model_folder

ROOT = Path(__file__).parents[2]
ONE = Counting(goal=2)


def run(
    agent: Agent,
    suite: Counting = ONE,
    tasks: int | list[Task] = 1,
    *,
    journal: Journal | None = None,
    **settings,
) -> list[Trajectory]:
    given = suite.tasks("train", tasks) if isinstance(tasks, int) else tasks
    with Farm(suite, workers=1, step_seconds=5) as farm:
        return roll_out(given, agent, farm, Rollouts(**settings), journal=journal)


def turns(trajectory: Trajectory) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in trajectory.turns]


def test_replies_and_observations_alternate():
    (found,) = run(Agent(acting("look")))
    assert [m.content for m in found.opening][1:] == ["OK", "You are at 0 in train-0."]
    assert turns(found) == [
        ("assistant", "Thought: turn 0\nAction: look"),
        ("user", "Observation: Nothing comes of look."),
        ("assistant", "Thought: turn 1\nAction: up"),
        ("user", "Observation: You are at 1."),
        ("assistant", "Thought: turn 2\nAction: up"),
    ]
    assert (found.reward, found.success, found.status, found.steps) == (1.0, True, "done", 3)
    assert all(message.train for message in found.turns)
    assert trajectory_from_json(trajectory_to_json(found), origin="here") == found


def test_the_agent_is_shown_everything_so_far():
    agent = Agent(acting("look"))
    (found,) = run(agent)
    shown = [batch[0].prompt for batch in agent.batches]
    assert shown == [(*found.opening, *found.turns[: 2 * n]) for n in range(3)]
    assert [turn_of(batch[0]) for batch in agent.batches] == [("train-0", n) for n in range(3)]


def test_tool_calls_are_answered_by_the_tool():
    call = '<tool_call>{"name": "act", "arguments": {"action": "up"}}</tool_call>'
    (found,) = run(Agent(lambda request: call), format=TOOL_CALL)
    assert turns(found)[1] == ("tool", "You are at 1.") and found.success


def test_an_example_is_shown_as_turns():
    agent = Agent(acting())
    example = (Message("user", "You are at 5."), Message("assistant", "Action: up"))
    run(agent, example=example, acknowledgement=None)
    (prompt,) = (batch[0].prompt for batch in agent.batches[:1])
    assert [m.role for m in prompt] == ["user", "assistant", "user"]  # type: ignore[union-attr]
    assert prompt[0].content.endswith("\n\nYou are at 5.")  # type: ignore[union-attr]


def test_a_reply_without_an_action_uses_up_a_turn_and_changes_nothing():
    def say(request: Request) -> str:
        return "I do not know." if turn_of(request)[1] in {1, 3} else "Action: up"

    (found,) = run(Agent(say), Counting(goal=3))
    complaint = f"Observation: {REACT.complaint}"
    assert turns(found)[2:6] == [
        ("assistant", "I do not know."), ("user", complaint),
        ("assistant", "Action: up"), ("user", "Observation: You are at 2."),
    ]  # fmt: skip
    assert (found.steps, found.format_errors, found.reward) == (5, 2, 1.0)


def test_a_format_error_in_the_last_turn_keeps_the_reward():
    (found,) = run(Agent(acting("up")), max_turns=1)
    assert (found.status, found.reward, found.success) == ("turns", 0.5, False)
    (found,) = run(Agent(lambda r: "Action: up" if r.id.endswith(" 0") else "what?"), max_turns=3)
    assert (found.status, found.reward, found.format_errors) == ("turns", 0.5, 2)
    assert found.steps == 3 and found.turns[-1].content == "what?"


def test_the_turns_of_a_task_end_it():
    task = Task("a", "train", max_turns=3)
    (found,) = run(Agent(acting(otherwise="look")), tasks=[task])
    assert (found.status, found.steps, found.reward) == ("turns", 3, 0.0)
    (found,) = run(Agent(acting(otherwise="look")), tasks=[task], max_turns=5)
    assert found.steps == 5


def test_a_reply_that_was_cut_ends_the_episode_and_is_not_acted_on():
    (found,) = run(Agent(acting("up", f"up{CUT}")))
    assert (found.status, found.reward, found.reason) == (
        "length", 0.5, "a reply was cut at the token limit",
    )  # fmt: skip
    assert turns(found)[-1] == ("assistant", "Thought: turn 1\nAction: up")
    assert found.format_errors == 0


def test_a_refusal_of_the_server_is_an_error_without_a_reward():
    (found,) = run(Agent(lambda request: f"{REFUSED}too long"))
    assert (found.status, found.reward, found.turns) == ("error", None, ())
    assert found.reason == "the server refused: too long"


def local(folder: Path, context: int, **options) -> LocalGenerator:
    made = make_model_folder(
        folder / "model", "llama", max_position_embeddings=context, initializer_range=0.2
    )
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(made),
        AutoTokenizer.from_pretrained(made),
    )
    return LocalGenerator(model, tokenizer, **options)


@pytest.mark.parametrize("overlong", ["error", "refuse"])
def test_a_full_context_ends_the_episode_with_what_it_has_reached(tmp_path: Path, overlong):
    suite = Counting(goal=100)
    with Farm(suite, workers=1) as farm:
        settings = Rollouts(format=ACTION, max_new_tokens=4, max_turns=200)
        (none,) = roll_out(
            suite.tasks("train", 1), local(tmp_path, 16, overlong=overlong), farm, settings
        )
    assert (none.status, none.reason) == ("context", "the model's context is full")
    assert (none.reward, none.turns) == (0.0, ())


def test_replies_of_a_model_do_not_depend_on_how_episodes_are_batched(tmp_path: Path):
    suite = Counting(goal=100, places=1)
    generator, found = local(tmp_path, 4096), []
    for workers in (1, 3):
        with Farm(suite, workers=workers) as farm:
            settings = Rollouts(
                format=ACTION, samples=2, temperature=1.0, max_new_tokens=6, max_turns=3, seed=5
            )
            found.append(roll_out(suite.tasks("train", 2), generator, farm, settings))
    assert found[0] == found[1]
    texts = [t.turns[0].content for t in found[0]]
    assert len(set(texts)) == 4


def test_samples_of_a_task_stand_together_in_the_order_of_tasks():
    agent = Agent(acting())
    found = run(agent, tasks=3, samples=2, temperature=1.0, seed=3, purpose="explore")
    assert [(t.task.id, t.sample) for t in found] == [
        (f"train-{n}", s) for n in range(3) for s in (0, 1)
    ]
    sampling = agent.samplings[0]
    assert (sampling.temperature, sampling.seed, sampling.purpose) == (1.0, 3, "explore")


def test_places_are_filled_again_and_all_replies_of_a_round_are_one_batch():
    suite = Counting(goal=2, places=2)
    agent = Agent(acting(tasks={"train-0": ["up", "look", "look"], "train-1": []}))
    told: list[tuple[int, int]] = []
    with Farm(suite, workers=2) as farm:
        roll_out(
            suite.tasks("train", 6), agent, farm, Rollouts(), progress=lambda *n: told.append(n)
        )
    assert [[turn_of(request) for request in batch] for batch in agent.batches] == [
        [("train-0", 0), ("train-1", 0), ("train-2", 0), ("train-3", 0)],
        [("train-0", 1), ("train-1", 1), ("train-2", 1), ("train-3", 1)],
        [("train-0", 2), ("train-4", 0), ("train-5", 0)],
        [("train-0", 3), ("train-4", 1), ("train-5", 1)],
    ]
    assert told == sorted(told) and told[-1] == (6, 6)


@pytest.mark.parametrize("key", ["samples", "max_turns", "attempts"])
def test_settings_that_make_no_sense_are_refused(key: str):
    with pytest.raises(ConfigError, match=f"^rollouts: {key} is 0; use 1 or more$"):
        Rollouts(**{key: 0})  # type: ignore[arg-type]


def test_a_task_given_twice_is_refused():
    with pytest.raises(RecordError, match="^task 'a' is given twice; ids must be unique$"):
        run(Agent(acting()), tasks=[Task("a", "train"), Task("a", "train")])


# Failures of environments.

FAULTS = {"train-1": ["up", "die"], "train-4": ["hang"], "train-6": ["up", "crash"]}
REASONS = {
    "train-1": "its process ended (killed by signal 9)",
    "train-4": "no answer to an action within 2 s",
    "train-6": "ValueError: the abacus broke",
}


@pytest.mark.slow
def test_four_workers_survive_a_killed_process_a_hanging_step_and_an_exception():
    suite = Counting(goal=3)
    tasks = suite.tasks("train", 12)
    with Farm(suite, workers=4, step_seconds=2) as farm:
        well = roll_out(tasks, Agent(acting("look")), farm, Rollouts())
        assert farm.counts == {"resets": 12, "steps": 48}
        faulty = roll_out(tasks, Agent(acting("look", tasks=FAULTS)), farm, Rollouts())
    assert {t.task.id: t.reason for t in faulty if t.status == "error"} == REASONS
    assert all(t.reward is None and not t.success for t in faulty if t.status == "error")
    others = [(a, b) for a, b in zip(well, faulty, strict=True) if b.status != "error"]
    assert len(others) == 9 and all(a == b for a, b in others)
    assert farm.counts["crashes"] == 4 and farm.counts["time-outs"] == 2
    assert farm.counts["restarts"] == 4
    assert not workers_of()


@pytest.mark.parametrize(("attempts", "status"), [(1, "error"), (2, "done")])
def test_an_episode_is_tried_again_from_its_start(tmp_path: Path, attempts: int, status: str):
    suite = Counting(goal=2, folder=str(tmp_path))
    agent = Agent(acting("up", "once"))
    (found,) = run(agent, suite, attempts=attempts)
    assert found.status == status
    # What was said is said once; only the environment is played again.
    assert agent.said == (3 if status == "done" else 2)


def test_episodes_beside_a_failing_one_do_not_notice():
    suite = Counting(goal=3, places=3)
    agent = Agent(acting(tasks={"train-1": ["up", "die"]}))
    found = run(agent, suite, tasks=3)
    assert [t.status for t in found] == ["done", "error", "done"]
    assert [t.steps for t in found] == [3, 2, 3]


def test_an_environment_that_changes_its_story_is_never_mixed(tmp_path: Path):
    suite = Counting(goal=3, places=2, folder=str(tmp_path))
    agent = Agent(acting(tasks={"train-0": ["clock", "look"], "train-1": ["up", "die"]}))
    with Farm(suite, workers=1) as farm:
        first, second = roll_out(suite.tasks("train", 2), agent, farm, Rollouts())
        assert farm.counts["drift"] == 1
    # It has started anew: the time that it is told is that of the environment in which it ends.
    assert (first.status, first.reward, first.steps) == ("done", 1.0, 5)
    prompts = [batch[0].prompt for batch in agent.batches if turn_of(batch[0]) == ("train-0", 1)]
    before, after = (prompt[-1] for prompt in prompts)
    assert before not in first.turns and after in first.turns
    assert second.status == "error"


# Experts.


def test_experts_show_what_they_do_in_the_environment():
    suite = Counting(goal=2)
    tasks = [Task(name, "train", max_turns=8) for name in ("a", "b", "c")]
    told: list[tuple[int, int]] = []
    with Farm(suite, workers=2) as farm:
        found = demonstrate(tasks, farm, Rollouts(), progress=lambda *n: told.append(n))
    assert [t.task.id for t in found] == ["a", "b", "c"]
    assert turns(found[1]) == [
        ("assistant", "Thought: after 0 comes 1\nAction: up"),
        ("user", "Observation: You are at 1."),
        ("assistant", "Thought: after 1 comes 2\nAction: up"),
    ]
    assert {(t.status, t.reward, t.success) for t in found} == {("done", 1.0, True)}
    assert told[-1] == (3, 3)


@pytest.mark.parametrize(
    ("meta", "turns_left", "expected"),
    [
        ({"expert": "none"}, 8, ("error", None, 0, "the environment has no expert for this task")),
        ({"moves": 1}, 8, ("turns", 0.5, 1, "the expert's moves end before the episode does")),
        ({}, 1, ("turns", 0.5, 1, "")),
    ],
)
def test_experts_that_do_not_finish_say_so(meta, turns_left: int, expected):
    with Farm(ONE, workers=1) as farm:
        (found,) = demonstrate([Task("a", "train", "", turns_left, meta)], farm, Rollouts())
    assert (found.status, found.reward, found.steps, found.reason) == expected


def test_more_experts_than_places_and_failing_ones():
    suite = Counting(goal=2)
    tasks = [Task(str(n), "train", meta={"start": "crash"} if n == 2 else {}) for n in range(5)]
    with Farm(suite, workers=2) as farm:
        found = demonstrate(tasks, farm, Rollouts())
    assert [t.status for t in found] == ["done", "done", "error", "done", "done"]
    assert found[2].reason == "ValueError: the abacus broke" and found[2].opening == ()


def test_a_move_that_the_format_cannot_express_is_an_error():
    class Shouting(type(ACTION)):
        def write(self, move):
            return Message("assistant", move.action.upper())

    message = "task 'train-0': the expert's action 'up' is not read again from a turn in the format action"
    with Farm(ONE, workers=1) as farm, pytest.raises(AgentError, match="^" + re.escape(message)):
        demonstrate(ONE.tasks("train", 1), farm, Rollouts(format=Shouting()))


# The journal.


def rows(journal: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(journal) as connection:
        found = connection.execute(
            "SELECT purpose, request, sample, prompt, text FROM completions "
            "ORDER BY purpose, request, sample, prompt"
        ).fetchall()
    connection.close()
    return found


class Silent(Agent):
    """A model that must not be asked."""

    def __init__(self) -> None:
        super().__init__(acting())

    def generate(self, requests, sampling):
        raise AssertionError(requests)


def test_a_finished_run_costs_no_model_call_and_no_environment(tmp_path: Path):
    suite = Counting(goal=2, folder=str(tmp_path))
    tasks = suite.tasks("train", 3)
    with Journal(tmp_path / "journal") as journal, Farm(suite, workers=2) as farm:
        settings = Rollouts(samples=2, temperature=1.0)
        first = roll_out(
            tasks, Agent(acting("look", tasks={"train-1": ["?"]})), farm, settings, journal=journal
        )
        shown = demonstrate(tasks, farm, settings, journal=journal)
    before = rows(tmp_path / "journal")
    with Journal(tmp_path / "journal") as journal, Farm(suite, workers=2) as farm:
        assert roll_out(tasks, Silent(), farm, settings, journal=journal) == first
        assert demonstrate(tasks, farm, settings, journal=journal) == shown
        assert farm.counts == {} and not workers_of()
    assert rows(tmp_path / "journal") == before


def test_failures_are_not_kept(tmp_path: Path):
    suite = Counting(goal=2, folder=str(tmp_path))
    agent = Agent(acting("up", "once"))
    with Journal(tmp_path / "journal") as journal:
        (first,) = run(agent, suite, journal=journal, attempts=1)
        (again,) = run(agent, suite, journal=journal, attempts=1)
    assert (first.status, again.status) == ("error", "done")
    assert agent.said == 3


def test_an_episode_that_goes_on_after_a_stop_is_compared_with_the_journal(tmp_path: Path):
    suite = Counting(goal=2, folder=str(tmp_path))
    with Journal(tmp_path / "journal") as journal:
        (first,) = run(Agent(acting("clock")), suite, journal=journal, max_turns=1)
        with Farm(suite, workers=1) as farm:
            (found,) = roll_out(
                [first.task], Agent(acting("clock")), farm, Rollouts(max_turns=2), journal=journal
            )
            assert farm.counts["drift"] == 1
    assert (found.status, found.reward, found.steps) == ("turns", 0.5, 2)
    assert found.turns[0] == first.turns[0]


def test_a_course_that_was_given_up_is_given_up_in_later_runs_too(tmp_path: Path):
    suite = Counting(goal=2, folder=str(tmp_path))
    again = Agent(acting("clock"))
    with Journal(tmp_path / "journal") as journal:
        (first,) = run(Agent(acting("clock")), suite, journal=journal, max_turns=1)
        (second,) = run(again, suite, journal=journal, max_turns=2)
        assert again.said == 2, "once to each course; the first reply is that of the first run"
    with Journal(tmp_path / "journal") as journal, Farm(suite, workers=1) as farm:
        settings = Rollouts(max_turns=2)
        assert roll_out([first.task], Silent(), farm, settings, journal=journal) == [second]
        assert farm.counts == {}, "the second course of events is whole in the journal"


def test_an_expert_whose_environment_answers_differently_is_shown_as_it_is_now(tmp_path: Path):
    suite = Counting(goal=2)
    (task,) = suite.tasks("train", 1)
    with Journal(tmp_path / "journal") as journal, Farm(suite, workers=1) as farm:
        (whole,) = demonstrate([task], farm, Rollouts())
        Outcomes(suite, journal).keep(task, 0, (), Outcome("Another room.", 0.0))
        for drifts in (1, 1):
            assert demonstrate([task], farm, Rollouts(), journal=journal) == [whole]
            assert farm.counts["drift"] == drifts, "once"


def test_another_model_shares_what_the_environment_said(tmp_path: Path):
    class Other(Agent):
        identity = "other"

    with Journal(tmp_path / "journal") as journal:
        first = run(Agent(acting()), journal=journal)
        agent = Other(acting())
        with Farm(ONE, workers=1) as farm:
            found = roll_out(ONE.tasks("train", 1), agent, farm, Rollouts(), journal=journal)
            assert farm.counts == {}
    assert found == first and agent.said == 2


def test_splits_that_number_their_tasks_alike_share_nothing(tmp_path: Path):
    """What an environment of one's own does may depend on the split, which `meta` need not repeat."""
    seen, unseen = Task("1", "seen", max_turns=8), Task("1", "unseen", max_turns=8)
    with Journal(tmp_path / "journal") as journal, Farm(ONE, workers=1) as farm:
        for task in (seen, unseen):
            (found,) = roll_out([task], Agent(acting()), farm, Rollouts(), journal=journal)
            assert found.task == task
            demonstrate([task], farm, Rollouts(), journal=journal)
        assert farm.counts["resets"] == 2, "each split is really played, and once"
    with Journal(tmp_path / "journal") as journal, Farm(ONE, workers=1) as farm:
        roll_out([unseen], Silent(), farm, Rollouts(), journal=journal)
        assert farm.counts == {}


def test_how_tasks_start_is_asked_once(tmp_path: Path):
    suite = Counting(goal=2, places=2)
    tasks = [*suite.tasks("train", 3), Task("broken", "train", meta={"start": "crash"})]
    with Journal(tmp_path / "journal") as journal, Farm(suite, workers=1) as farm:
        found = begin(tasks, farm, journal=journal)
        assert [None if o is None else o.observation for o in found] == [
            "You are at 0 in train-0.", "You are at 0 in train-1.", "You are at 0 in train-2.", None,
        ]  # fmt: skip
        assert (farm.counts["resets"], farm.counts["crashes"]) == (3, 2)
        assert begin(tasks[:3], farm, journal=journal) == found[:3]
        assert farm.counts["resets"] == 3


KILLED = """
import sys
from prefopt.agents.farm import Farm
from prefopt.agents.rollouts import Rollouts, demonstrate, roll_out
from prefopt.generate.journal import Journal
from tests.agents.counting import Agent, Counting, acting

suite = Counting(goal=3, folder=sys.argv[2])
limit = int(sys.argv[3])
agent = Agent(acting("look", tasks={"train-1": ["up", "?", "up"]}), limit=None if limit < 0 else limit)
with Journal(sys.argv[1]) as journal, Farm(suite, workers=2) as farm:
    found = roll_out(suite.tasks("train", 3), agent, farm, Rollouts(samples=2), journal=journal)
    print([(t.task.id, t.sample, t.reward, t.steps) for t in found])
"""


def killed(journal: Path, folder: Path, limit: int) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(journal), str(folder), str(limit)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.slow
def test_kill_9_in_the_middle_of_episodes_loses_nothing_and_repeats_nothing(tmp_path: Path):
    whole = killed(tmp_path / "whole", tmp_path, -1)
    assert whole[0] == 0
    expected = rows(tmp_path / "whole")
    replies = sum(row[0] == "rollout" for row in expected)
    assert replies == 2 * (4 + 4 + 4)
    journal = tmp_path / "killed"
    code, text, calls = -signal.SIGKILL, "", 0
    while code == -signal.SIGKILL:
        code, text = killed(journal, tmp_path, 7)
        found = rows(journal)
        now = sum(row[0] == "rollout" for row in found)
        # Each run says exactly seven new things before it is killed: none of them had been said before.
        assert now == min(calls + 7, replies)
        assert set(found) <= set(expected)
        calls = now
    assert (code, text) == whole
    assert rows(journal) == expected
