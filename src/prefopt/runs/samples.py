"""`samples.jsonl`: pairs as text with what the trained policy makes of them, for reports and for reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from prefopt.pack.batch import Example, PackedBatch
from prefopt.records import Message, Preference, Response
from prefopt.train.preference import PreferenceLearner
from prefopt.train.runtime import Runtime
from prefopt.train.scoring import Packing

SAMPLES = 60
"""Records shown: enough to see the largest, smallest and wrong-way margins."""


class PairReward(NamedTuple):
    """Implicit rewards of one pair, as the objective logs them (beta times the log-ratio, for DPO)."""

    id: str
    chosen: int
    rejected: int
    reward_chosen: float
    reward_rejected: float


def sample_rows(
    learner: PreferenceLearner,
    preferences: Sequence[Preference],
    examples: Sequence[Example],
    packing: Packing,
    runtime: Runtime,
    *,
    training: bool,
) -> list[dict[str, object]]:
    """One row per pair of the first records; none for objectives without pair rewards.

    Args:
        examples: the learner's training (`training`) or evaluation examples.
    """
    by_id = {p.id: p for p in preferences}
    shown = [i for i, e in enumerate(examples) if e.pairs][:SAMPLES]
    rows: list[dict[str, object]] = []
    learner.module.eval()
    for pack in packing.batches([examples[i] for i in shown], rank=0, world_size=1):
        mine = pack._replace(rows=tuple(tuple(shown[i] for i in row) for row in pack.rows))
        batch = learner.batch(mine, training=training)
        members = {examples[i].id: examples[i] for i in mine.items}
        rows += [_row(r, by_id[r.id], members[r.id]) for r in _rewards(learner, batch, runtime)]
    return rows


def _rewards(
    learner: PreferenceLearner, batch: PackedBatch, runtime: Runtime
) -> Iterator[PairReward]:
    with torch.no_grad(), runtime.autocast():
        parts = learner.losses(learner.module, batch)
    # Only objectives of pairs log margins; unpaired ones have rewards of one response each.
    terms = next((p.losses.terms for p in parts if "rewards/margins" in p.losses.terms), None)
    if terms is None:
        return
    first: dict[int, int] = {}
    for response, group in enumerate(batch.group.tolist()):
        first.setdefault(group, response)
    for number, group in enumerate(batch.pair_group.tolist()):
        yield PairReward(
            batch.ids[group],
            int(batch.chosen[number]) - first[group],
            int(batch.rejected[number]) - first[group],
            float(terms["rewards/chosen"][number]),
            float(terms["rewards/rejected"][number]),
        )


def _row(reward: PairReward, preference: Preference, example: Example) -> dict[str, object]:
    return {
        "id": reward.id,
        "prompt": _prompt(preference),
        "prefix": preference.prefix,
        "chosen": _text(preference.responses[_source(example, reward.chosen)]),
        "rejected": _text(preference.responses[_source(example, reward.rejected)]),
        "reward_chosen": round(reward.reward_chosen, 5),
        "reward_rejected": round(reward.reward_rejected, 5),
        "margin": round(reward.reward_chosen - reward.reward_rejected, 5),
    }


def _source(example: Example, response: int) -> int:
    return example.source[response] if example.source else response


def _prompt(preference: Preference) -> str:
    prompt = preference.prompt
    return prompt if isinstance(prompt, str) else _conversation(prompt)


def _text(response: Response) -> str:
    return _conversation(response.turns) if response.turns else response.text


def _conversation(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{m.role}: {m.content}" for m in messages)
