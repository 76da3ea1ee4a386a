"""`samples.jsonl`: pairs as text with what the trained policy makes of them, for reports and for reading."""

from __future__ import annotations

from collections.abc import Sequence

from prefopt.pack.batch import Example
from prefopt.records import Message, Preference, Response
from prefopt.train.preference import PreferenceLearner
from prefopt.train.runtime import Runtime
from prefopt.train.scoring import Packing, score_pairs

SAMPLES = 60
"""Records shown: enough to see the largest, smallest and wrong-way margins."""


def sample_rows(
    learner: PreferenceLearner,
    preferences: Sequence[Preference],
    examples: Sequence[Example],
    packing: Packing,
    runtime: Runtime,
) -> list[dict[str, object]]:
    """One row per pair of the first records: texts, and log-ratios (policy minus reference, nats) as rewards."""
    chosen = [e for e in examples if e.pairs][:SAMPLES]
    if not chosen:
        return []
    by_id = {p.id: p for p in preferences}
    kept = {e.id: e for e in chosen}
    rows: list[dict[str, object]] = []
    rewards = score_pairs(
        learner.module,
        learner.reference,
        chosen,
        packing=packing,
        device=runtime.device,
        runtime=runtime,
    )
    for reward in rewards:
        preference, example = by_id[reward.id], kept[reward.id]
        better = preference.responses[_source(example, reward.chosen)]
        worse = preference.responses[_source(example, reward.rejected)]
        rows.append(
            {
                "id": reward.id,
                "prompt": _prompt(preference),
                "prefix": preference.prefix,
                "chosen": _text(better),
                "rejected": _text(worse),
                "reward_chosen": round(reward.log_ratio_chosen, 4),
                "reward_rejected": round(reward.log_ratio_rejected, 4),
                "margin": round(reward.log_ratio_chosen - reward.log_ratio_rejected, 4),
            }
        )
    return rows


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
