"""What the study of this folder trains on: experts and the agent's own losers on `rooms`, with junk appended or not.

A loser is a roll-out that ended without the treasure. Junk are further turns, really played: half of them random
actions, half the agent's last action again and again, as in the roll-outs that the paper calls noisy.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefopt.agents.environment import Move, Task
from prefopt.agents.environments.rooms import RoomsSuite, all_actions
from prefopt.agents.farm import Farm
from prefopt.agents.formats import Format
from prefopt.agents.rollouts import Rollouts, demonstrate, roll_out
from prefopt.agents.trajectory import Trajectory
from prefopt.build.trajectory_pairs import PairSettings, pair_trajectories
from prefopt.generate.base import Generator
from prefopt.generate.journal import Journal
from prefopt.records import Message, Preference


def play(
    suite: RoomsSuite,
    form: Format,
    tasks: Sequence[Task],
    generator: Generator,
    file: Path,
    *,
    samples: int,
    seed: int,
) -> tuple[list[Trajectory], list[Trajectory]]:
    """Experts' and the agent's trajectories: one greedy roll-out of each task, the others at temperature 0.7."""
    greedy = Rollouts(format=form, max_new_tokens=16, purpose="greedy", seed=seed)
    warm = replace(greedy, samples=samples - 1, temperature=0.7, purpose="warm")
    with Journal(file) as journal, Farm(suite, workers=1) as farm:
        experts = demonstrate(tasks, farm, greedy, journal=journal)
        found = roll_out(tasks, generator, farm, greedy, journal=journal)
        if samples > 1:
            others = roll_out(tasks, generator, farm, warm, journal=journal)
            found += [replace(each, sample=each.sample + 1) for each in others]
    return experts, found


def pairs(
    experts: Sequence[Trajectory],
    rollouts: Sequence[Trajectory],
    suite: RoomsSuite,
    form: Format,
    *,
    junk: int,
    count: int,
    seed: int,
) -> list[Preference]:
    """The first `count` pairs of an expert and a loser, each a record of its own, with `junk` turns appended."""
    losers = [r for r in rollouts if not r.success and r.status != "error" and r.turns]
    longer = [with_junk(r, suite, form, junk, seed=seed) for r in losers]
    built = pair_trajectories(experts, longer, PairSettings(format=form)).records
    single = [
        replace(
            record,
            id=f"{record.id}/{number}",
            responses=(record.responses[pair.chosen], record.responses[pair.rejected]),
            pairs=(replace(pair, chosen=0, rejected=1),),
        )
        for record in built
        for number, pair in enumerate(record.pairs)
    ]
    random.Random(f"pairs/{seed}").shuffle(single)
    if len(single) < count:
        raise SystemExit(f"only {len(single)} pairs, {count} wanted: raise --tasks")
    return single[:count]


def with_junk(
    loser: Trajectory, suite: RoomsSuite, form: Format, turns: int, *, seed: int
) -> Trajectory:
    """The loser's trajectory with further turns; random ones that find the treasure by chance are drawn again."""
    if not turns:
        return loser
    rng = random.Random(f"junk/{seed}/{loser.task.id}/{loser.sample}")
    said = [form.read(m.content) for m in loser.turns if m.role == "assistant"]
    actions = [action for action in said if action is not None]
    loops = rng.random() < 0.5
    while True:
        game = suite.open()
        seen = game.reset(loser.task)
        for action in actions:
            seen = game.step(action)
        added: list[Message] = []
        for _ in range(turns):
            action = (actions or ["look"])[-1] if loops else rng.choice(all_actions())
            added += [form.observe(seen.observation), form.write(Move(action))]
            seen = game.step(action)
        if not seen.success:
            return replace(loser, turns=(*loser.turns, *added), reward=seen.reward)
        loops = False
