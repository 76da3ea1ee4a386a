"""Preference pairs of whole trajectories: an expert's and an agent's of the same task, compared by reward.

As published with DMPO (Shi et al. 2024, arXiv 2406.14868, section 4), and before it with ETO: the side with the higher
reward is chosen, equal rewards make no pair, both sides share the prompt only, and early turns that are equal stay in
both. No models, no files. Departures: several roll-outs of a task lie in one record, which is one token tree; the noise
filter is written down (`prefopt.build.trajectory_noise`; the published one is not), and it is off by default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from prefopt.agents.formats import REACT, Format
from prefopt.agents.trajectory import Trajectory
from prefopt.build.trajectory_noise import NOISE, NoiseLimits, find_noise
from prefopt.errors import ConfigError, RecordError
from prefopt.records import Message, Pair, Preference, Response
from prefopt.values import JsonValue, quote

EXPERTS, ROLLOUTS = "experts", "roll-outs"
PAIRS = "pairs"
TIES = "roll-outs dropped: same reward as the expert"
NO_REWARD = "roll-outs dropped: no reward, environment or server failed"
NO_TURN = "roll-outs dropped: no turn of the agent"
NO_EXPERT = "roll-outs dropped: task without a usable expert"
IDENTICAL = "roll-outs dropped: same conversation as the expert"
REPEATED = "roll-outs dropped: same conversation as another roll-out"
NOT_CHOSEN = "roll-outs dropped: not the worst or best of their task, as `pick` asks"
FATES = (
    PAIRS, TIES, NO_REWARD, NO_TURN, NO_EXPERT, IDENTICAL, REPEATED, *NOISE, NOT_CHOSEN,
)  # fmt: skip
"""What can become of a roll-out; their counts add up to `ROLLOUTS`."""
PAIRED = "experts in pairs"
UNUSABLE = "experts dropped: no reward or no turn"
UNPLAYED = "experts without roll-outs"
UNPAIRED = "experts whose roll-outs make no pair"
FATES_OF_EXPERTS = (PAIRED, UNUSABLE, UNPLAYED, UNPAIRED)
"""What can become of an expert's trajectory; their counts add up to `EXPERTS`."""
SWAPPED = "pairs in which the agent is chosen"
CUT = "pairs whose rejected side was cut"
OTHER_INSTRUCTION = "pairs whose sides had other instructions; the expert's is the prompt"


@dataclass(frozen=True, slots=True)
class PairSettings:
    """Which pairs are made; the defaults are those of the published script, but for several roll-outs of a task."""

    min_gap: float = 0.0
    """Rewards that differ by no more are a tie."""
    pick: Literal["all", "worst", "best"] = "all"
    """Which of the roll-outs of a task that could make a pair do; worst and best: the first one with the lowest or the
    highest reward."""
    cut: Literal["none", "extra_turns", "divergence"] = "none"
    """Where the rejected side ends. `extra_turns`: so many turns after the number that the chosen side has, as in the
    older published script (ten messages). `divergence`: with the first turn whose action is another than the chosen
    side's in the same turn; thoughts may differ before. A side that only ends earlier, or only goes on, is whole."""
    extra_turns: int = 5
    noise_filter: Literal["none", "repeats"] = "none"
    """`repeats`: leave out roll-outs with noise. Experts are never filtered: they may have to wait many times."""
    noise: NoiseLimits = field(default_factory=NoiseLimits)
    """What counts as noise."""
    format: Format = REACT
    """How the action of a turn is read."""

    def __post_init__(self) -> None:
        for key in ("min_gap", "extra_turns"):
            if getattr(self, key) < 0:
                raise ConfigError(
                    f"pairs of trajectories: {key} is {getattr(self, key)}; use 0 or more"
                )


class TrajectoryPairs(NamedTuple):
    """What became of the trajectories."""

    records: list[Preference]
    """One per task: the prompt, the expert's and the agent's turns with their rewards as scores, and the pairs."""
    counts: Counter[str]
    """Inputs, pairs, and each reason why one makes no pair (`FATES`, `FATES_OF_EXPERTS`)."""


def pair_trajectories(
    experts: Sequence[Trajectory], rollouts: Sequence[Trajectory], settings: PairSettings
) -> TrajectoryPairs:
    """The pairs of an expert's and an agent's trajectories, in the order of the experts.

    The records' scores are the rewards; `meta` names the task, its kind and, per response, `rewards`, `steps` (turns of
    the agent in the whole trajectory) and `samples` (number of the roll-out; null for the expert). A message that was
    cut at the token limit gets no end token. Sides are compared as they are after the cut: of equal pairs the first one
    counts, whatever the rewards of the others.

    Raises:
        RecordError: two experts for one task, or a roll-out that saw something else at the start of its task.
    """
    counts: Counter[str] = Counter({EXPERTS: len(experts), ROLLOUTS: len(rollouts)})
    played = _by_task(rollouts)
    known = _unique(experts)
    for task, found in played.items():
        if task not in known:
            _count_without_expert(found, counts)
    records: list[Preference] = []
    for task, expert in known.items():
        found = played.get(task, [])
        if expert.reward is None or not _trimmed(expert):
            counts[UNUSABLE] += 1
            _count_without_expert(found, counts)
            continue
        usable = list(_usable(expert, found, settings, counts))
        picked = _pick(usable, settings)
        counts[NOT_CHOSEN] += len(usable) - len(picked)
        counts[PAIRED if picked else UNPAIRED if found else UNPLAYED] += 1
        if picked:
            records.append(_record(expert, picked, settings, counts))
    return TrajectoryPairs(records, +counts)


def expert_record(expert: Trajectory) -> Preference:
    """A trajectory as a record with one response: what supervised training reads.

    Raises:
        RecordError: it has no turn of the agent.
    """
    turns = _trimmed(expert)
    if not turns:
        raise RecordError(f"task {expert.task.id!r}: a trajectory without a turn of the agent")
    return Preference(
        id=expert.task.id,
        prompt=expert.opening,
        responses=(_response(expert, turns),),
        meta={"task": expert.task.id, "kind": expert.task.kind, "steps": expert.steps},
    )


def _unique(experts: Sequence[Trajectory]) -> dict[str, Trajectory]:
    known: dict[str, Trajectory] = {}
    for expert in experts:
        if known.setdefault(expert.task.id, expert) is not expert:
            raise RecordError(
                f"task {expert.task.id!r} has two expert trajectories; keep one of them"
            )
    return known


def _by_task(rollouts: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    found: dict[str, list[Trajectory]] = {}
    for rollout in rollouts:
        found.setdefault(rollout.task.id, []).append(rollout)
    return found


def _count_without_expert(rollouts: Sequence[Trajectory], counts: Counter[str]) -> None:
    """That a roll-out failed itself says more than that there is no expert to compare it with."""
    for rollout in rollouts:
        counts[NO_REWARD if rollout.reward is None else NO_EXPERT] += 1


def _usable(
    expert: Trajectory,
    rollouts: Sequence[Trajectory],
    settings: PairSettings,
    counts: Counter[str],
) -> Iterator[Trajectory]:
    """The roll-outs of a task that make a pair with its expert; all others are counted with the reason."""
    seen: list[tuple[Message, ...]] = []
    for rollout in rollouts:
        turns = _trimmed(rollout)
        fate = _fate(expert, rollout, settings)
        if fate is None and turns in seen:
            fate = REPEATED
        if fate is not None:
            counts[fate] += 1
            continue
        _require_same_start(expert, rollout)
        seen.append(turns)
        yield rollout


def _fate(expert: Trajectory, rollout: Trajectory, settings: PairSettings) -> str | None:
    """Why a roll-out makes no pair; None where it does."""
    turns = _trimmed(rollout)
    if rollout.reward is None or expert.reward is None:
        return NO_REWARD
    if not turns:
        return NO_TURN
    if abs(rollout.reward - expert.reward) <= settings.min_gap:
        return TIES
    sides = _sides(expert, rollout, settings)
    if sides.kept == _trimmed(sides.better):
        return IDENTICAL
    if settings.noise_filter == "none":
        return None
    texts = [message.content for message in _agent(turns)]
    return find_noise(texts, settings.format, settings.noise)


def _require_same_start(expert: Trajectory, rollout: Trajectory) -> None:
    """Environments start equal tasks equally, so that another observation means another task, version or option."""
    theirs, own = (t.opening[-1].content if t.opening else "" for t in (expert, rollout))
    if theirs.strip() != own.strip():
        raise RecordError(
            f"task {expert.task.id!r}: expert and agent start from different observations ({quote(theirs)} and "
            f"{quote(own)}); make both with the same environment and options"
        )


def _pick(usable: list[Trajectory], settings: PairSettings) -> list[Trajectory]:
    if settings.pick == "all" or not usable:
        return usable
    choose = min if settings.pick == "worst" else max
    return [choose(usable, key=lambda trajectory: trajectory.reward or 0.0)]


class _Sides(NamedTuple):
    """A pair that is to be."""

    better: Trajectory
    worse: Trajectory
    kept: tuple[Message, ...]
    """Turns of the worse one that are left after the cut."""

    @property
    def texts(self) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        """What is trained on."""
        return _trimmed(self.better), self.kept


def _sides(expert: Trajectory, rollout: Trajectory, settings: PairSettings) -> _Sides:
    is_swapped = (rollout.reward or 0.0) > (expert.reward or 0.0)
    better, worse = (rollout, expert) if is_swapped else (expert, rollout)
    return _Sides(better, worse, cut_rejected(_trimmed(worse), _trimmed(better), settings))


class _Responses:
    """The responses of a record; equal ones once."""

    def __init__(self) -> None:
        self.responses: list[Response] = []
        self.sources: list[Trajectory] = []

    def place(self, source: Trajectory, response: Response) -> int:
        """Position of the response, which is added where it is new."""
        if response not in self.responses:
            self.responses.append(response)
            self.sources.append(source)
        return self.responses.index(response)


def _record(
    expert: Trajectory,
    rollouts: Sequence[Trajectory],
    settings: PairSettings,
    counts: Counter[str],
) -> Preference:
    made, pairs = _Responses(), list[Pair]()
    seen: list[tuple[tuple[Message, ...], tuple[Message, ...]]] = []
    for rollout in rollouts:
        sides = _sides(expert, rollout, settings)
        if sides.texts in seen:  # since the cut
            counts[REPEATED] += 1
            continue
        seen.append(sides.texts)
        chosen = made.place(sides.better, _response(sides.better, _trimmed(sides.better)))
        rejected = made.place(sides.worse, _response(sides.worse, sides.kept))
        pairs.append(Pair(chosen, rejected))
        counts[PAIRS] += 1
        counts[SWAPPED] += sides.better is rollout
        counts[CUT] += sides.kept != _trimmed(sides.worse)
        counts[OTHER_INSTRUCTION] += rollout.opening != expert.opening
    return Preference(
        id=expert.task.id,
        prompt=expert.opening,
        responses=tuple(made.responses),
        pairs=tuple(pairs),
        meta=_meta(expert, made),
    )


def _meta(expert: Trajectory, made: _Responses) -> Mapping[str, JsonValue]:
    task = expert.task
    return {
        "task": task.id,
        "kind": task.kind,
        "rewards": [source.reward for source in made.sources],
        "steps": [source.steps for source in made.sources],
        "samples": [None if source is expert else source.sample for source in made.sources],
    }


def cut_rejected(
    rejected: tuple[Message, ...], chosen: tuple[Message, ...], settings: PairSettings
) -> tuple[Message, ...]:
    """The turns of the rejected side that are kept; they end with a turn of the agent."""
    if settings.cut == "none":
        return rejected
    theirs, own = _agent(chosen), _agent(rejected)
    if settings.cut == "extra_turns":
        count = len(theirs) + settings.extra_turns
    else:
        both = zip(theirs, own, strict=False)
        same = [_action(a, settings) == _action(b, settings) for a, b in both]
        count = same.index(False) + 1 if False in same else len(own)
    return rejected if count >= len(own) else _first_turns(rejected, count)


def _action(message: Message, settings: PairSettings) -> str:
    read = settings.format.read(message.content)
    return message.content if read is None else read


def _first_turns(turns: tuple[Message, ...], count: int) -> tuple[Message, ...]:
    places = [i for i, message in enumerate(turns) if message.role == "assistant"]
    return turns[: places[count - 1] + 1]


def _agent(turns: Sequence[Message]) -> list[Message]:
    return [message for message in turns if message.role == "assistant"]


def _trimmed(trajectory: Trajectory) -> tuple[Message, ...]:
    """Its turns without observations after the agent's last one; none where the agent says nothing."""
    turns = trajectory.turns
    while turns and turns[-1].role != "assistant":
        turns = turns[:-1]
    return turns


def _response(trajectory: Trajectory, turns: tuple[Message, ...]) -> Response:
    """The turns as a response; a last message that was cut at the token limit does not end."""
    is_cut = trajectory.status == "length" and turns == _trimmed(trajectory)
    return Response(turns=turns, score=trajectory.reward, ends=not is_cut)
