"""Trajectories: what an agent and its environment said to each other, and what it was worth. No models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from prefopt.agents.environment import Task
from prefopt.errors import RecordError
from prefopt.records import Message, read_message
from prefopt.values import (
    JsonValue,
    read_flag,
    read_list,
    read_number,
    read_object,
    read_text,
    refuse,
)

Status = Literal["done", "turns", "length", "context", "error"]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode."""

    task: Task
    opening: tuple[Message, ...]
    """Everything before the agent's first turn: instruction, example, first observation."""
    turns: tuple[Message, ...]
    """The agent's messages and the observations between them; ends with the agent's last message. Empty where the
    environment or the server failed before it said anything."""
    reward: float | None
    """None: the environment failed, so that nothing is known about what the agent would have got."""
    success: bool = False
    status: Status = "done"
    """`done`: the environment ended it. `turns`: the task's turns were used up. `length`: the last message was cut at
    the token limit, so that it has no end. `context`: no room for another message; the last one is whole. `error`:
    environment or server failed, `reason` says how."""
    sample: int = 0
    """Number of the roll-out of this task, from 0."""
    reason: str = ""
    """Why it has status `length`, `context` or `error`."""
    format_errors: int = 0
    """Turns in which no action could be read; each used up a turn."""

    @property
    def steps(self) -> int:
        """Turns of the agent."""
        return sum(message.role == "assistant" for message in self.turns)


def trajectory_to_json(trajectory: Trajectory) -> dict[str, JsonValue]:
    """The trajectory as a JSON object that `trajectory_from_json` reads back."""
    task = trajectory.task
    return {
        "task": {
            "id": task.id,
            "split": task.split,
            "kind": task.kind,
            "max_turns": task.max_turns,
            "meta": dict(task.meta),
        },
        "sample": trajectory.sample,
        "reward": trajectory.reward,
        "success": trajectory.success,
        "status": trajectory.status,
        "reason": trajectory.reason,
        "format_errors": trajectory.format_errors,
        "opening": [_message(m) for m in trajectory.opening],
        "turns": [_message(m) for m in trajectory.turns],
    }


def _message(message: Message) -> dict[str, JsonValue]:
    row: dict[str, JsonValue] = {
        "role": message.role,
        "content": message.content,
        **message.extra,
    }
    return row if message.train else {**row, "train": False}


def trajectory_from_json(row: Mapping[str, JsonValue], *, origin: str) -> Trajectory:
    """The trajectory of a row.

    Args:
        row: an object as `trajectory_to_json` makes it.
        origin: where it came from (`file:line`), for error messages.

    Raises:
        RecordError: a key is missing or of the wrong type.
    """
    status = read_text(row.get("status", "done"), "status", origin)
    if status not in get_args(Status):
        refuse(status, "status", origin, f"known are {', '.join(get_args(Status))}")
    reward = row.get("reward")
    turns = _messages(row, "turns", origin)
    if turns and turns[-1].role != "assistant":
        raise RecordError(f"{origin}: turns have to end with a message of the assistant")
    return Trajectory(
        task=_task(read_object(row.get("task"), "task", origin), origin),
        opening=_messages(row, "opening", origin),
        turns=turns,
        reward=None if reward is None else read_number(reward, "reward", origin),
        success=read_flag(row.get("success", False), "success", origin),
        status=cast("Status", status),
        sample=int(read_number(row.get("sample", 0), "sample", origin)),
        reason=read_text(row.get("reason", ""), "reason", origin),
        format_errors=int(read_number(row.get("format_errors", 0), "format_errors", origin)),
    )


def _messages(row: Mapping[str, JsonValue], key: str, origin: str) -> tuple[Message, ...]:
    value = row.get(key)
    items = [] if value == [] else read_list(value, key, origin)
    return tuple(read_message(item, f"{key}[{i}]", origin) for i, item in enumerate(items))


def _task(row: Mapping[str, JsonValue], origin: str) -> Task:
    return Task(
        id=read_text(row.get("id"), "task.id", origin),
        split=read_text(row.get("split", ""), "task.split", origin),
        kind=read_text(row.get("kind", ""), "task.kind", origin),
        max_turns=int(read_number(row.get("max_turns", 40), "task.max_turns", origin)),
        meta=read_object(row.get("meta") or {}, "task.meta", origin),
    )
