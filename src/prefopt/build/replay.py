"""Mixing newly made pairs with earlier ones, so that a policy that learns from itself keeps what it was taught."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from prefopt.records import Preference, preference_to_json
from prefopt.text.prompt_files import FOR_TEMPLATES
from prefopt.values import JsonValue

_ROUNDING = 1e-9
"""``100 * (1 - 0.9)`` is 9.999999999999998, and meant is 10."""


class LeftOver(NamedTuple):
    """How many records a mix does without; with those in it they are all that there were."""

    generated: int
    """Not drawn, or of a prompt that an earlier one has."""
    offline: int
    """Not drawn."""
    repeated: int
    """Offline records of a prompt that an earlier one has."""


class Mix(NamedTuple):
    """Records to train on, no two of one prompt; the generated ones first, either kind in its own order."""

    generated: list[Preference]
    offline: list[Preference]
    missing: int
    """Offline pairs that the sizes ask for and that are not there: their prompts are among the generated ones."""
    left_over: LeftOver

    @property
    def records(self) -> list[Preference]:
        """All of them."""
        return [*self.generated, *self.offline]


def replay_sizes(generated: int, offline: int, gamma: float) -> tuple[int, int]:
    """How many generated and offline pairs the mix has, of so many that there are.

    ``n_gen = min(int(N (1 - gamma)), generated)`` and ``n_off = int(gamma n_gen / (1 - gamma))`` with N offline
    pairs; all generated ones for gamma 0, all offline ones for gamma 1.
    """
    if gamma == 0:
        return generated, 0
    if gamma == 1:
        return 0, offline
    n_gen = min(int(offline * (1 - gamma) + _ROUNDING), generated)
    return n_gen, _beside(n_gen, gamma)


def _beside(generated: int, gamma: float) -> int:
    """Offline pairs that go with so many generated ones, for gamma below 1."""
    return int(gamma * generated / (1 - gamma) + _ROUNDING)


def replay_mix(
    generated: Sequence[Preference], offline: Sequence[Preference], *, gamma: float, seed: int
) -> Mix:
    """A share gamma of offline pairs and a share 1 - gamma of generated ones, drawn without replacement.

    The shares are of pairs, since it is pairs that training weighs alike; records are taken whole. Prompts are unique:
    of several records with one prompt one is taken, and offline records whose prompt is among the drawn generated ones
    are none of the mix. Equal arguments give equal mixes.

    Args:
        generated: made from the policy's own responses.
        offline: from the data that the policy was trained on before.
        gamma: share of offline pairs, in [0, 1].
        seed: of both draws.
    """
    new = _one_per_prompt(generated)
    old = _one_per_prompt(offline)
    n_gen, n_off = replay_sizes(count_pairs(new.values()), count_pairs(old.values()), gamma)
    taken = _draw(list(new.values()), n_gen, f"{seed}/generated")
    if gamma < 1:  # whole records may be fewer pairs than there is room for
        n_off = _beside(count_pairs(taken), gamma)
    prompts = {prompt_key(record) for record in taken}
    free = [record for key, record in old.items() if key not in prompts]
    kept = _draw(free, n_off, f"{seed}/offline")
    left_over = LeftOver(len(generated) - len(taken), len(old) - len(kept), len(offline) - len(old))
    return Mix(taken, kept, n_off - count_pairs(kept), left_over)


def count_pairs(records: Iterable[Preference]) -> int:
    """Pairs of all the records."""
    return sum(len(record.pairs) for record in records)


def question_key(record: Preference) -> str:
    """What makes two questions the same: their messages; a text is the same as a single message of the user."""
    prompt = record.prompt
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0].role == "user":
        prompt = prompt[0].content
    if isinstance(prompt, str):
        return prompt.strip()
    bare = Preference("", prompt, ())
    return json.dumps(preference_to_json(bare)["prompt"], sort_keys=True)


def prompt_key(record: Preference) -> str:
    """What makes two prompts the same: all that a model is shown, so the question, tools and all, and the prefix."""
    shown: dict[str, JsonValue] = {k: record.meta[k] for k in FOR_TEMPLATES if record.meta.get(k)}
    if record.prefix:
        shown["prefix"] = record.prefix
    question = question_key(record)
    return json.dumps([question, shown], sort_keys=True) if shown else question


def _one_per_prompt(records: Sequence[Preference]) -> dict[str, Preference]:
    found: dict[str, Preference] = {}
    for record in records:
        found.setdefault(prompt_key(record), record)
    return found


def _draw(records: Sequence[Preference], pairs: int, seed: str) -> list[Preference]:
    """Records with at most so many pairs together, in their order; all of them where there are no more.

    Where a draw finds none that fits, it is one of those that do.
    """
    total = count_pairs(records)
    count = len(records) if total <= pairs else len(records) * pairs // total
    while True:
        places = random.Random(seed).sample(range(len(records)), count)
        drawn = [records[i] for i in sorted(places)]
        if count_pairs(drawn) <= pairs:
            break
        count -= 1
    fitting = [] if drawn else [record for record in records if 0 < len(record.pairs) <= pairs]
    return random.Random(seed).sample(fitting, 1) if fitting else drawn
