"""Pairs of trajectories: by reward, with everything that makes no pair counted; cuts and the noise filter."""

from __future__ import annotations

import pytest

from prefopt.agents.environment import Task
from prefopt.agents.formats import ACTION, REACT
from prefopt.agents.trajectory import Status, Trajectory
from prefopt.build.trajectory_noise import (
    NO_ACTION,
    SAME_ACTION,
    SAME_WORDS,
    NoiseLimits,
    distinct_bigrams,
    find_noise,
    longest_run,
)
from prefopt.build.trajectory_pairs import (
    CUT,
    EXPERTS,
    FATES,
    FATES_OF_EXPERTS,
    IDENTICAL,
    NO_EXPERT,
    NO_REWARD,
    NO_TURN,
    NOT_CHOSEN,
    OTHER_INSTRUCTION,
    PAIRED,
    PAIRS,
    REPEATED,
    ROLLOUTS,
    SWAPPED,
    TIES,
    UNPAIRED,
    UNPLAYED,
    UNUSABLE,
    PairSettings,
    TrajectoryPairs,
    expert_record,
    pair_trajectories,
)
from prefopt.errors import ConfigError, RecordError
from prefopt.records import Message, Pair, preference_from_json, preference_to_json

INSTRUCTION = Message("user", "Act.")
OK = Message("assistant", "OK", train=False)


def said(*actions: str) -> tuple[Message, ...]:
    """Turns with an observation after each but the last."""
    messages: list[Message] = []
    for number, action in enumerate(actions):
        messages += [Message("assistant", f"Action: {action}"), Message("user", f"seen {number}")]
    return tuple(messages[:-1])


def played(
    task: str,
    reward: float | None,
    *actions: str,
    sample: int = 0,
    status: Status = "done",
    start: str = "a room",
    instruction: Message = INSTRUCTION,
) -> Trajectory:
    return Trajectory(
        Task(task, "train", kind="k"),
        opening=(instruction, OK, Message("user", start)),
        turns=said(*actions),
        reward=reward,
        status=status,
        sample=sample,
    )


def pair(
    experts: list[Trajectory], rollouts: list[Trajectory], settings: PairSettings | None = None
) -> TrajectoryPairs:
    """The pairs, after a look at the counts: every input has exactly one fate."""
    made = pair_trajectories(experts, rollouts, settings or PairSettings())
    assert made.counts[ROLLOUTS] == len(rollouts) == sum(made.counts[fate] for fate in FATES)
    assert (
        made.counts[EXPERTS] == len(experts) == sum(made.counts[fate] for fate in FATES_OF_EXPERTS)
    )
    assert made.counts[PAIRS] == sum(len(record.pairs) for record in made.records)
    assert min(made.counts.values(), default=1) > 0
    for record in made.records:
        row = preference_to_json(record)
        assert preference_to_json(preference_from_json(row, origin="here")) == row
    return made


def test_a_worse_agent_is_rejected() -> None:
    made = pair([played("t", 1.0, "go", "take")], [played("t", 0.25, "look")])
    [record] = made.records
    assert record.id == "t"
    assert record.prompt == (INSTRUCTION, OK, Message("user", "a room"))
    assert [r.turns for r in record.responses] == [said("go", "take"), said("look")]
    assert [r.score for r in record.responses] == [1.0, 0.25]
    assert record.pairs == (Pair(0, 1),)
    assert record.meta == {
        "task": "t", "kind": "k", "rewards": [1.0, 0.25], "steps": [2, 1], "samples": [None, 0],
    }  # fmt: skip
    assert made.counts == {EXPERTS: 1, ROLLOUTS: 1, PAIRS: 1, PAIRED: 1}


def test_a_better_agent_is_chosen() -> None:
    made = pair([played("t", 0.5, "go")], [played("t", 1.0, "look", "go")])
    [record] = made.records
    [best] = record.pairs
    assert record.responses[best.chosen].turns == said("look", "go")
    assert record.responses[best.rejected].turns == said("go")
    assert made.counts[SWAPPED] == 1


@pytest.mark.parametrize(
    ("rollout", "fate"),
    [
        (played("t", 1.0, "look"), TIES),
        (played("t", None, "look"), NO_REWARD),
        (played("t", 0.0), NO_TURN),
        (played("other", 0.0, "look"), NO_EXPERT),
        (played("t", 0.0, "go", "take"), IDENTICAL),
        (played("t", 1.0, "go", "take"), TIES),
    ],
)
def test_what_makes_no_pair_is_counted(rollout: Trajectory, fate: str) -> None:
    made = pair([played("t", 1.0, "go", "take")], [rollout])
    assert made.records == []
    unpaired = UNPLAYED if fate == NO_EXPERT else UNPAIRED
    assert made.counts == {EXPERTS: 1, ROLLOUTS: 1, fate: 1, unpaired: 1}


def test_experts_without_reward_or_turn_pair_with_nothing() -> None:
    experts = [played("a", None, "go"), played("b", 1.0), played("c", 1.0, "go")]
    made = pair(experts, [played("a", 0.0, "look"), played("b", 0.0, "look")])
    assert made.records == []
    assert made.counts == {EXPERTS: 3, ROLLOUTS: 2, NO_EXPERT: 2, UNUSABLE: 2, UNPLAYED: 1}


def test_roll_outs_that_failed_are_counted_as_failed_also_without_an_expert() -> None:
    rollouts = [played("a", None, "look"), played("b", None), played("b", 0.5, "look")]
    made = pair([played("a", None, "go")], rollouts)
    assert (made.counts[NO_REWARD], made.counts[NO_EXPERT], made.counts[UNUSABLE]) == (2, 1, 1)


def test_rewards_within_the_gap_are_ties() -> None:
    experts = [played("a", 1.0, "go"), played("b", 1.0, "go")]
    rollouts = [played("a", 0.75, "look"), played("b", 0.5, "look")]
    made = pair(experts, rollouts, PairSettings(min_gap=0.25))
    assert [r.id for r in made.records] == ["b"]
    assert (made.counts[TIES], made.counts[PAIRS]) == (1, 1)


def test_a_negative_reward_is_less_than_the_experts() -> None:
    made = pair([played("t", 0.0, "go")], [played("t", -1.0, "focus")])
    assert [r.score for r in made.records[0].responses] == [0.0, -1.0]


def test_observations_after_the_last_turn_are_left_out() -> None:
    rollout = played("t", 0.0, "look")
    trailing = Trajectory(
        rollout.task, rollout.opening, (*rollout.turns, Message("user", "end")), 0.0
    )
    [record] = pair([played("t", 1.0, "go")], [trailing]).records
    assert record.responses[1].turns == said("look")
    silent = Trajectory(rollout.task, rollout.opening, (Message("user", "end"),), 0.0)
    assert pair([played("t", 1.0, "go")], [silent]).counts[NO_TURN] == 1


SAMPLES = [
    played("t", 0.5, "look", sample=0),
    played("t", 0.0, "wait", sample=1),
    played("t", 1.0, "go", "x", sample=2),
    played("t", 0.75, "take", sample=3),
    played("t", 0.0, "jump", sample=4),
    played("t", 0.5, "look", sample=5),
]


def test_all_samples_of_a_task_are_one_record_and_equal_ones_count_once() -> None:
    made = pair([played("t", 1.0, "go")], SAMPLES)
    [record] = made.records
    assert record.meta["samples"] == [None, 0, 1, 3, 4]
    assert record.pairs == (Pair(0, 1), Pair(0, 2), Pair(0, 3), Pair(0, 4))
    assert (made.counts[TIES], made.counts[REPEATED]) == (1, 1)


@pytest.mark.parametrize(("pick", "sample"), [("worst", 1), ("best", 3)])
def test_one_sample_of_a_task(pick: str, sample: int) -> None:
    settings = PairSettings(pick="worst" if pick == "worst" else "best")
    made = pair([played("t", 1.0, "go")], SAMPLES, settings)
    assert made.records[0].meta["samples"] == [None, sample]
    assert made.counts[NOT_CHOSEN] == 3


def test_the_best_sample_may_beat_the_expert() -> None:
    experts, rollouts = [played("t", 0.6, "go")], SAMPLES
    made = pair(experts, rollouts, PairSettings(pick="best"))
    assert made.records[0].meta["rewards"] == [1.0, 0.6]
    both = pair(experts, rollouts).records[0]
    assert [(both.responses[p.chosen].score, both.responses[p.rejected].score) for p in both.pairs] == [
        (0.6, 0.5), (0.6, 0.0), (1.0, 0.6), (0.75, 0.6), (0.6, 0.0),
    ]  # fmt: skip
    assert sum(r.turns == said("go") for r in both.responses) == 1, "the expert is stored once"


def test_extra_turns_are_those_of_the_older_published_script() -> None:
    """It keeps len(expert) + 10 messages of the rejected side."""
    expert, long = played("t", 1.0, "a", "b"), played("t", 0.0, *"abcdefghij")
    made = pair([expert], [long], PairSettings(cut="extra_turns"))
    kept = made.records[0].responses[1].turns
    assert kept == long.turns[: len(expert.turns) + 10] == said(*"abcdefg")
    assert made.counts[CUT] == 1
    assert made.records[0].meta["steps"] == [2, 10], "of the whole trajectories"
    short = PairSettings(cut="extra_turns", extra_turns=0)
    other = played("t", 0.0, *"axcdefghij")
    assert len(pair([expert], [other], short).records[0].responses[1].turns) == 3


def test_a_longer_expert_that_is_rejected_is_cut_too() -> None:
    made = pair(
        [played("t", 0.5, *"abcdefgh")],
        [played("t", 1.0, "x")],
        PairSettings(cut="extra_turns", extra_turns=1),
    )
    [record] = made.records
    assert record.responses[record.pairs[0].rejected].turns == said("a", "b")


@pytest.mark.parametrize(
    ("rejected", "kept"),
    [
        ("axcd", "ax"),
        ("xbcd", "x"),
        ("abx", "abx"),
        ("ab", "ab"),  # stops earlier
        ("abcde", "abcde"),  # goes on
    ],
)
def test_cut_at_the_first_other_action(rejected: str, kept: str) -> None:
    made = pair(
        [played("t", 1.0, *"abc")], [played("t", 0.0, *rejected)], PairSettings(cut="divergence")
    )
    assert made.records[0].responses[1].turns == said(*kept)
    assert made.counts[CUT] == (rejected != kept)


def test_roll_outs_that_the_cut_makes_equal_are_one_pair() -> None:
    """They part from the expert in the same turn and go on differently after it, with whatever reward."""
    rollouts = [
        played("t", 0.0, "a", "wait", "x", sample=0),
        played("t", 0.0, "a", "wait", "y", sample=1),
        played("t", 0.25, "a", "wait", "z", "z", sample=2),
        played("t", 0.0, "b", sample=3),
    ]
    expert = played("t", 1.0, "a", "b", "c")
    made = pair([expert], rollouts, PairSettings(cut="divergence"))
    [record] = made.records
    assert [r.turns for r in record.responses] == [said(*"abc"), said("a", "wait"), said("b")]
    assert record.pairs == (Pair(0, 1), Pair(0, 2))
    assert record.meta["samples"] == [None, 0, 3] and record.meta["rewards"] == [1.0, 0.0, 0.0]
    assert (made.counts[PAIRS], made.counts[REPEATED], made.counts[CUT]) == (2, 2, 1)
    assert pair([expert], rollouts).counts[PAIRS] == 4, "whole, they are four"


def test_a_roll_out_that_the_cut_makes_equal_to_the_expert_is_no_pair() -> None:
    """It does what the expert does and goes on, for example until it loses what it had."""
    expert, longer = played("t", 1.0, "a", "b"), played("t", 0.0, "a", "b", "c")
    none = PairSettings(cut="extra_turns", extra_turns=0)
    assert pair([expert], [longer], none).counts == {
        EXPERTS: 1, ROLLOUTS: 1, IDENTICAL: 1, UNPAIRED: 1,
    }  # fmt: skip
    assert pair([expert], [longer], PairSettings(cut="extra_turns")).counts[PAIRS] == 1


def test_other_thoughts_are_no_divergence() -> None:
    thinking = Trajectory(
        Task("t", "train", kind="k"),
        played("t", 0, "a").opening,
        tuple(
            Message(m.role, f"Thought: well\n{m.content}") if m.role == "assistant" else m
            for m in said("a", "x", "y")
        ),
        0.0,
    )
    made = pair([played("t", 1.0, "a", "b")], [thinking], PairSettings(cut="divergence"))
    assert [m.content for m in made.records[0].responses[1].turns] == [
        "Thought: well\nAction: a", "seen 0", "Thought: well\nAction: x",
    ]  # fmt: skip


def test_a_message_cut_at_the_token_limit_does_not_end() -> None:
    long = played("t", 0.0, *"xyzuvwr", status="length")
    expert = played("t", 1.0, "a")
    assert pair([expert], [long]).records[0].responses[1].ends is False
    cut = PairSettings(cut="extra_turns")
    assert pair([expert], [long], cut).records[0].responses[1].ends is True
    whole = played("t", 0.0, *"xyz", status="context")
    assert pair([expert], [whole]).records[0].responses[1].ends is True, "the last turn is whole"


def test_noise_is_left_out_only_where_that_is_asked_for() -> None:
    words = "the key the key the key the key the key the key"
    noisy = [
        played("t", 0.0, *"wwww", sample=0),
        played("t", 0.0, words, sample=1),
        Trajectory(
            Task("t", "train", kind="k"),
            played("t", 0, "a").opening,
            (Message("assistant", "I give up"),),
            0.0,
            sample=2,
        ),
        played("t", 0.0, *"wwwvw", sample=3),
    ]
    expert = played("t", 1.0, *"wwwwww")
    made = pair([expert], noisy, PairSettings(noise_filter="repeats"))
    assert made.records[0].meta["samples"] == [None, 3]
    assert [made.counts[x] for x in (SAME_ACTION, SAME_WORDS, NO_ACTION)] == [1, 1, 1]
    assert pair([expert], noisy).counts[PAIRS] == 4


def test_limits_of_noise() -> None:
    limits = NoiseLimits(repeats=3, distinct_bigrams=0.5)
    assert find_noise(["go", "go", "look", "go"], ACTION, limits) is None
    assert find_noise(["look", "go", "go", "go"], ACTION, limits) == SAME_ACTION
    assert find_noise(["a b a b a"], ACTION, limits) is None  # 2 of 4
    assert find_noise(["a b a b a b"], ACTION, limits) == SAME_WORDS  # 2 of 5
    assert find_noise(["go"], REACT, limits) == NO_ACTION
    assert longest_run([]) == 0 and longest_run(["a", "b", "b", "a"]) == 2
    assert distinct_bigrams("word") == 1.0
    # The filler of the published synthetic noise: one word, 47 times.
    assert distinct_bigrams("word " * 47) == 1 / 46


def test_another_instruction_is_counted_and_the_experts_is_kept() -> None:
    other = Message("user", "Act, please.")
    made = pair([played("t", 1.0, "a")], [played("t", 0.0, "b", instruction=other)])
    assert made.records[0].prompt == (INSTRUCTION, OK, Message("user", "a room"))
    assert made.counts[OTHER_INSTRUCTION] == 1


def test_another_first_observation_names_the_task() -> None:
    with pytest.raises(
        RecordError, match=r"task 't': expert and agent start .* \(\"a room\" and \"a hall\"\)"
    ):
        pair([played("t", 1.0, "a")], [played("t", 0.0, "b", start="a hall")])


def test_two_experts_for_a_task_are_an_error() -> None:
    with pytest.raises(RecordError, match="task 't' has two expert trajectories"):
        pair([played("t", 1.0, "a"), played("t", 1.0, "b")], [])


def test_an_experts_record_has_one_response() -> None:
    record = expert_record(played("t", 1.0, "a", "b"))
    assert record.pairs == () and record.responses[0].turns == said("a", "b")
    assert record.responses[0].score == 1.0
    with pytest.raises(RecordError, match="task 't': a trajectory without a turn"):
        expert_record(played("t", 1.0))


def test_impossible_settings() -> None:
    with pytest.raises(ConfigError, match=r"min_gap is -0\.1; use 0 or more"):
        PairSettings(min_gap=-0.1)
    with pytest.raises(ConfigError, match="extra_turns is -1"):
        PairSettings(extra_turns=-1)
    with pytest.raises(ConfigError, match="repeats is 1"):
        NoiseLimits(repeats=1)
    with pytest.raises(ConfigError, match="distinct_bigrams is 2"):
        NoiseLimits(distinct_bigrams=2)
