"""How easy pairs are under the models of a recipe, on the very text that is trained on."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from prefopt.build.curriculum import Measure
from prefopt.build.difficulty import (
    Logps,
    PairLogps,
    imported,
    logp_gap,
    rank_gap,
    reward_gap,
    score_gap,
    source_of,
)
from prefopt.config import RunConfig
from prefopt.errors import ConfigError
from prefopt.ledger import Ledger
from prefopt.models.likelihood import context_length, sequence_logps
from prefopt.pack.batch import Example
from prefopt.pack.prepare import prepare
from prefopt.records import Preference
from prefopt.runs.setup import load_with, prepare_settings
from prefopt.text.tokens import TokenSequence
from prefopt.values import JsonValue

_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja")


class Difficulty(NamedTuple):
    """How easy pairs are, as a recipe says it."""

    name: str
    """score_gap, rank_gap, reference_gap, implicit_reward, or package.module:function."""
    policy: str | None = None
    """implicit_reward: folder or hub id of the model whose reward it is."""
    reference: str = ""
    """Folder or hub id of the reference model."""
    beta: float = 1.0
    """Scale of the implicit reward."""


def measure_of(difficulty: Difficulty, config: RunConfig, device: torch.device) -> Measure:
    """The measure; models are loaded when it is called, one after the other.

    Raises:
        ConfigError: there is no such function.
    """
    if difficulty.name == "score_gap":
        return score_gap
    if difficulty.name == "rank_gap":
        return rank_gap
    reference = _logps(difficulty.reference, config, device)
    if difficulty.name == "reference_gap":
        return logp_gap(reference)
    if difficulty.name == "implicit_reward" and difficulty.policy is not None:
        policy = _logps(difficulty.policy, config, device)
        return reward_gap(policy, reference, beta=difficulty.beta)
    return imported(difficulty.name)


def basis_of(difficulty: Difficulty, config: RunConfig) -> dict[str, JsonValue]:
    """What decides the measure: what the models and the function are, not what they are called.

    Raises:
        ConfigError: there is no such function.
    """
    by_policy = difficulty.name == "implicit_reward"
    facts: dict[str, JsonValue] = {**difficulty._asdict()}
    if by_policy or difficulty.name == "reference_gap":
        facts["lengths"] = [
            config.max_length,
            config.max_prompt_length,
            config.overlong_prompt,
            config.overlong_response,
        ]
        facts["reference_files"] = _digest_of_files(difficulty.reference)
    if by_policy:
        facts["policy_files"] = _digest_of_files(difficulty.policy or "")
    if ":" in difficulty.name:
        facts["function"] = hashlib.sha256(source_of(difficulty.name).encode()).hexdigest()
    return facts


def _digest_of_files(model: str) -> str:
    """Of the files of a model folder, and of the base's where it is an adapter; empty for a hub id."""
    folder, total = Path(model).expanduser(), hashlib.sha256()
    if not folder.is_dir():
        return ""
    for file in sorted({file for pattern in _FILES for file in folder.glob(pattern)}):
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{file.name} {digest}\n".encode())
    with suppress(OSError, ValueError, AttributeError):
        adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        total.update(_digest_of_files(str(adapter.get("base_model_name_or_path"))).encode())
    return total.hexdigest()


def _logps(name: str, config: RunConfig, device: torch.device) -> Logps:
    """Log-probabilities under that model of what training would see of each pair: cut and dropped as there."""

    def logps(pairs: Sequence[Preference]) -> list[PairLogps | None]:
        loaded = load_with(config, name, device)
        ledger = Ledger(name)
        ids = [ledger.enter(pair.id, origin=pair.origin) for pair in pairs]
        settings = prepare_settings(config)
        examples = {e.id: e for e in prepare(pairs, loaded.tokenizer, settings, ledger)}
        texts = {i: _sequences(example) for i, example in examples.items()}
        # The best response of a list is in several pairs.
        distinct = list(dict.fromkeys(text for both in texts.values() for text in both))
        _require_room(distinct, context_length(loaded.model), name)
        scored = sequence_logps(
            loaded.model,
            [TokenSequence(*text) for text in distinct],
            batch_size=config.per_device_eval_batch_size,
        )
        total = {distinct[i]: value for i, value in scored}
        del loaded
        gc.collect()
        return [PairLogps(*(total[text] for text in texts[i])) if i in texts else None for i in ids]

    return logps


_Text = tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...]]
"""A `TokenSequence` that can be a key."""


def _sequences(example: Example) -> list[_Text]:
    """The chosen and the rejected response of an example of one pair."""
    tree, paths = example.tree, [example.tree.path(i) for i in example.pairs[0]]
    return [
        (
            tuple(tree.tokens[path].tolist()),
            tuple(tree.scored[path].tolist()),
            tuple(tree.turn[path].tolist()),
        )
        for path in paths
    ]


def _require_room(texts: Sequence[_Text], context: int, name: str) -> None:
    longest = max((len(tokens) for tokens, _, _ in texts), default=0)
    if longest > context:
        raise ConfigError(
            f"difficulty: a response ends at token {longest}, and {name} reads {context} tokens: set max_length: "
            f"{context} or less, or measure by another model"
        )
