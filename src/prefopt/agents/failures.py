"""What went wrong with environments, in words: what builds and evaluations say of it. No files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefopt.agents.trajectory import Trajectory

_TROUBLES = ("crashes", "time-outs", "drift")


def troubles(events: Mapping[str, int]) -> str:
    """What happened to environments in this process; empty where nothing did.

    Args:
        events: `Farm.counts`.
    """
    found = [f"{events[name]:,} {name}" for name in _TROUBLES if events.get(name)]
    return f"environments: {', '.join(found)}; episodes were tried again" if found else ""


def first_of(failed: Sequence[Trajectory]) -> str:
    """The first of some trajectories that failed, with its reason."""
    return f"{failed[0].task.id!r}: {failed[0].reason or 'no reason is stated'}"
