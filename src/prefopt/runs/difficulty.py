"""Which pairs a training would drop, and how easy the others are under models, on the very text that is trained on."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch

from prefopt.build.curriculum import Measure, Unfit
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
from prefopt.models.configuration import locate_base
from prefopt.models.likelihood import context_length, sequence_logps
from prefopt.models.locate import ADAPTER_CONFIG, Located, locate
from prefopt.pack.batch import Example
from prefopt.pack.prepare import prepare
from prefopt.records import Preference
from prefopt.runs.fitness import fitted
from prefopt.runs.setup import load_with, prepare_settings, revision_of, tokenizer_of
from prefopt.text.tokens import TokenSequence
from prefopt.train.terms import Demands
from prefopt.values import JsonValue

_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja")

_CHUNK = 4096
"""Pairs whose tokens are held at once."""


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


def unfit_of(config: RunConfig, demands: Demands, source: str) -> Unfit:
    """Which pairs a training of this recipe would drop, for want of an annotation or for the length of their text.

    Args:
        config: the recipe.
        demands: what its objectives need.
        source: the name of the data, for errors.

    Called, it raises `RecordError` where a policy of the recipe makes an error of it, or `strict` does.
    """

    def unfit(pairs: Sequence[Preference]) -> list[str | None]:
        tokenizer = tokenizer_of(config)
        reasons: list[str | None] = []
        for start in range(0, len(pairs), _CHUNK):
            ledger = Ledger(source)
            usable: list[Preference] = []
            for pair in pairs[start : start + _CHUNK]:
                ledger.enter(pair.id, origin=pair.origin)
                found = fitted(pair, demands)
                if isinstance(found, str):
                    ledger.drop(pair.id, reason=found)
                else:
                    usable.append(pair)
            prepare(usable, tokenizer, prepare_settings(config), ledger)
            ledger.enforce(strict=config.strict)
            rows = cast("list[dict[str, str]]", ledger.to_json()["rows"])
            dropped = {row["id"]: row["reason"] for row in rows if row["fate"] == "dropped"}
            reasons += [dropped.get(pair.id) for pair in pairs[start : start + _CHUNK]]
        return reasons

    return unfit


def basis_of(difficulty: Difficulty, config: RunConfig) -> dict[str, JsonValue]:
    """What decides which pairs there are and the measure: what models and functions are, not what they are called.

    Raises:
        ConfigError: there is no such function.
    """
    by_policy = difficulty.name == "implicit_reward"
    facts: dict[str, JsonValue] = {**difficulty._asdict()}
    facts["lengths"] = [
        config.max_length,
        config.max_prompt_length,
        config.overlong_prompt,
        config.overlong_response,
    ]
    if by_policy or difficulty.name == "reference_gap":
        facts["reference_files"] = _digest_of_model(difficulty.reference, config)
    if by_policy:
        facts["policy_files"] = _digest_of_model(difficulty.policy or "", config)
    if ":" in difficulty.name:
        facts["function"] = hashlib.sha256(source_of(difficulty.name).encode()).hexdigest()
    return facts


def _digest_of_model(model: str, config: RunConfig) -> str:
    """Of the files of a model folder, and of the base's where it is an adapter; the commit of a hub id.

    Raises:
        ModelError: there is no such folder, and no such model on the hub.
    """
    return _digest_of_files(locate(model, revision=revision_of(config, model)))


def _digest_of_files(located: Located) -> str:
    folder, total = located.folder, hashlib.sha256()
    if not Path(located.name).expanduser().is_dir():
        return folder.name  # the hub's cache has a folder for each commit, whose files never change
    for file in sorted({file for pattern in _FILES for file in folder.glob(pattern)}):
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{file.name} {digest}\n".encode())
    if (folder / ADAPTER_CONFIG).is_file():
        total.update(_digest_of_files(locate_base(located)).encode())
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
