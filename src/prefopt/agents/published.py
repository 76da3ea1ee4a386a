"""Trajectories in files of other people: experts and roll-outs in the shapes that ETO and DMPO use, and similar ones.

Read are (`read_trajectories`):

- lists of expert trajectories: `{id, conversations: [{from, value}, ...]}`, for WebShop with `reward`, for ALFWorld
  with `game_file`; also with `messages` of `{role, content}`;
- roll-outs: `{meta: {steps, reward, finished, success, terminate_reason, error}, conversations}`, one file for each
  task, named after it, in a folder; or a list of such objects with `id`;
- what `trajectory_to_json` writes.

Files of pairs (`{id, prompt, chosen, rejected}`, each a list of messages) are read like every other data set, see
`prefopt.text.sources`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, get_args

from prefopt.agents.environment import Task
from prefopt.agents.formats import REACT
from prefopt.agents.scienceworld_tasks import KINDS, split_of, task_id
from prefopt.agents.trajectory import Status, Trajectory, trajectory_from_json
from prefopt.config import unknown_name
from prefopt.errors import ConfigError, RecordError, StorageError
from prefopt.records import Message, parse_line, read_message
from prefopt.text.files import SourceRow, read_rows
from prefopt.values import (
    JsonValue,
    read_flag,
    read_list,
    read_number,
    read_object,
    refuse,
)

Source = Literal["scienceworld", "webshop", "alfworld", "other"]
EXAMPLE_END: Mapping[Source, int] = {"webshop": 10, "scienceworld": 16, "alfworld": 12, "other": 2}
"""Messages of a published roll-out before its task: instruction, acknowledgement, and the worked example."""
_MAX_TURNS: Mapping[Source, int] = {"webshop": 10, "alfworld": 40, "other": 40}
_SCIENCEWORLD_ID = re.compile(r"(\d+)_(\d+)")
_HEADER = "Task Description:\n"
_ENDS: Mapping[str, Status] = {
    "success": "done",
    "max_steps": "turns",
    "exceeding maximum input length": "context",
}
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read."""

    source: Source | None = None
    """The environment; None: seen from each row (`game_file`: ALFWorld; id `14_0`: ScienceWorld; a reward: WebShop)."""
    example_end: int | None = None
    """Number of messages before the task in roll-outs; None: as published (`EXAMPLE_END`)."""
    keep_example: bool = False
    """Whether the worked example of a roll-out stays in the opening. Published experts have none, so that the
    published pairs leave it out."""
    split: str = "train"
    """Split of the tasks; those of ScienceWorld are known by their number."""

    def __post_init__(self) -> None:
        if self.source is not None and self.source not in get_args(Source):
            raise unknown_name("source of trajectories", str(self.source), get_args(Source))
        if self.example_end is not None and self.example_end < 1:
            raise ConfigError(f"example_end is {self.example_end}; use 1 or more")


class _Parts(NamedTuple):
    """A conversation, taken apart."""

    opening: tuple[Message, ...]
    turns: tuple[Message, ...]
    left: int
    """Observations after the agent's last message, which are left out."""


def read_trajectories(path: str | Path, reading: Reading | None = None) -> list[Trajectory]:
    """The trajectories of a file, or of all `.json` files of a folder, in order.

    The assistant's acknowledgement of the instruction ("OK") and the worked example are no turns of the agent. Experts
    have reward 1 where the file states none. A roll-out is a success where its reward is 1: the published `success`
    means that the environment ended the episode, however. Its observation after the last turn is left out.

    Raises:
        StorageError: the path does not exist or cannot be read.
        RecordError: rows that are no such trajectories, or experts that do not end with the agent; names the first.
    """
    reading = reading or Reading()
    found: list[Trajectory] = []
    faults: list[str] = []
    for row in _rows(Path(path)):
        try:
            found.append(_read(row, reading))
        except RecordError as error:
            faults.append(str(error))
    if faults:
        more = f" | and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise RecordError(f"{' | '.join(faults[:_NAMED])}{more}")
    if not found:
        raise RecordError(f"{path}: there are no trajectories; give a file with at least one")
    return found


def _rows(path: Path) -> Iterator[SourceRow]:
    if not path.is_dir():
        single = _single(path) if path.suffix.lower() == ".json" else None
        yield from [single] if single is not None else read_rows(path).rows
        return
    for file in sorted(path.glob("*.json"), key=_by_number):
        single = _single(file)
        if single is None:
            raise RecordError(
                f"{file}: no single JSON object; a folder of roll-outs has one file for each task"
            )
        yield single


def _single(file: Path) -> SourceRow | None:
    """The one object of a file, with the file's name as its `id`; None where the file holds something else."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{file} is no UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    if not text.lstrip().startswith("{"):
        return None
    try:
        values = parse_line(text, str(file))
    except RecordError:
        return None
    return SourceRow(str(file), {"id": file.stem, **values})


def _by_number(file: Path) -> list[tuple[int, str]]:
    """Sorts `2.json` before `10.json`."""
    return [(int(digits or 0), rest) for digits, rest in re.findall(r"(\d*)(\D*)", file.stem)]


def _read(row: SourceRow, reading: Reading) -> Trajectory:
    values, origin = row.values, row.origin
    if "turns" in values and "opening" in values:
        return trajectory_from_json({k: v for k, v in values.items() if k != "id"}, origin=origin)
    key = "conversations" if "conversations" in values else "messages"
    items = read_list(values.get(key), key, origin)
    messages = [read_message(item, f"{key}[{i}]", origin) for i, item in enumerate(items)]
    if "meta" in values:
        return _rollout(row, messages, reading)
    return _expert(row, messages, reading)


def _expert(row: SourceRow, messages: list[Message], reading: Reading) -> Trajectory:
    values, origin = row.values, row.origin
    game = _text(values.get("game_file"))
    source = reading.source or _source(values, game)
    parts = _parts(messages, _task_at(messages), origin)
    if not parts.turns or parts.left:
        raise RecordError(
            f"{origin}: the conversation ends with the {messages[-1].role}, not with a turn of the agent; cut it "
            "there, or remove the row"
        )
    stated = values.get("reward")
    if stated is None and source == "webshop":
        refuse(stated, "reward", origin, "WebShop's experts have one; add it, or remove the row")
    reward = 1.0 if stated is None else _reward(stated, "reward", origin)
    task = _task(values, source, game, reading, origin)
    return Trajectory(
        task, parts.opening, parts.turns, reward, success=bool(reward and reward >= 1)
    )


def _rollout(row: SourceRow, messages: list[Message], reading: Reading) -> Trajectory:
    values, origin = row.values, row.origin
    meta = read_object(values.get("meta"), "meta", origin)
    stated = _text(meta.get("error"))
    game = stated if reading.source == "alfworld" or _is_game(stated) else ""
    source = reading.source or _source(values, game)
    at = reading.example_end or EXAMPLE_END[source]
    if source == "other" and reading.example_end is None:
        at = _task_at(messages)
    parts = _parts(messages, at, origin)
    opening = parts.opening if reading.keep_example else _without_example(parts.opening)
    said = _text(meta.get("terminate_reason"))
    reward = _reward(meta.get("reward"), "meta.reward", origin)
    status = _ENDS.get(said, "error")
    return Trajectory(
        task=_task(values, source, game, reading, origin),
        opening=opening,
        turns=parts.turns,
        reward=reward,
        success=reward is not None and reward >= 1,
        status=status,
        reason="" if status in {"done", "turns"} else said or "no reason is stated",
        format_errors=sum(
            m.role == "assistant" and REACT.read(m.content) is None for m in parts.turns
        ),
    )


def _parts(messages: Sequence[Message], at: int, origin: str) -> _Parts:
    """The conversation, taken apart at its task, message number `at`; all before is context."""
    if len(messages) <= at or messages[at].role == "assistant":
        raise RecordError(
            f"{origin}: message {at} (from 0, of {len(messages)}) should be the task, told to the agent; if the worked "
            "example has another length, read the file in Python with Reading(example_end=...) and store what "
            "trajectory_to_json makes of it"
        )
    opening = [replace(m, train=False) if m.role == "assistant" else m for m in messages[:at]]
    task = messages[at]
    opening.append(replace(task, content=task.content.removeprefix(_HEADER)))
    end = len(messages)
    while end > at + 1 and messages[end - 1].role != "assistant":
        end -= 1
    return _Parts(tuple(opening), tuple(messages[at + 1 : end]), len(messages) - end)


def _task_at(messages: Sequence[Message]) -> int:
    """Number of the message before the agent's first turn; an acknowledgement is no turn."""
    for number, message in enumerate(messages):
        said = message.content.strip().rstrip(".!").lower()
        if message.role == "assistant" and message.train and (number > 2 or said != "ok"):
            return max(0, number - 1)
    return len(messages) - 1


def _without_example(opening: tuple[Message, ...]) -> tuple[Message, ...]:
    """Instruction, acknowledgement if there is one, and task."""
    *before, task = opening
    acknowledged = len(before) > 1 and before[1].role == "assistant"
    return (*before[: 2 if acknowledged else 1], task)


def _source(values: Mapping[str, JsonValue], game: str) -> Source:
    if game:
        return "alfworld"
    if _SCIENCEWORLD_ID.fullmatch(str(values.get("id"))):
        return "scienceworld"
    meta = values.get("meta")
    number = str(values.get("id")).isdecimal() and isinstance(meta, dict)
    return "webshop" if number or "reward" in values else "other"


def _is_game(text: str) -> bool:
    """Whether it is a path: published roll-outs of ALFWorld keep the game file under `error`."""
    return len(PurePosixPath(text).parts) > 2 and not re.search(r"\s", text)


def _task(
    values: Mapping[str, JsonValue], source: Source, game: str, reading: Reading, origin: str
) -> Task:
    identity = values.get("id")
    if source == "alfworld":
        return _alfworld(game, reading, origin)
    if not isinstance(identity, int | str) or isinstance(identity, bool) or identity == "":
        refuse(identity, "id", origin, "give every trajectory the id of its task")
    if source != "scienceworld":
        return Task(str(identity), reading.split, source, _MAX_TURNS[source])
    parsed = _SCIENCEWORLD_ID.fullmatch(str(identity))
    number, variation = (int(parsed[1]), int(parsed[2])) if parsed else (len(KINDS), 0)
    if number >= len(KINDS) or variation >= KINDS[number].variations:
        refuse(identity, "id", origin, "ids of ScienceWorld are <task number>_<variation>: 14_0")
    kind = KINDS[number]
    meta: dict[str, JsonValue] = {"task": kind.name, "variation": variation}
    return Task(task_id(kind, variation), split_of(kind, variation), kind.name, kind.turns, meta)


def _alfworld(game: str, reading: Reading, origin: str) -> Task:
    """The task of a game file: `.../<kind>-<objects>/<trial>`, with or without the name of a file after it."""
    path = PurePosixPath(game)
    trial = path.parent if path.suffix else path
    if len(trial.parts) < 2:
        refuse(game, "game_file", origin, "give the path of the game, .../<task>/<trial>")
    kind = trial.parent.name.partition("-")[0]
    turns = _MAX_TURNS["alfworld"]
    return Task(trial.name, reading.split, kind, turns, {"game_file": game})


def _reward(value: JsonValue, name: str, origin: str) -> float | None:
    """A reward; ALFWorld's are whether the game was won."""
    if value is None:
        return None
    return (
        float(read_flag(value, name, origin))
        if isinstance(value, bool)
        else read_number(value, name, origin)
    )


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else ""
