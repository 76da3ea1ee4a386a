"""Pairs of trajectories, DMPO through the real path (prepare, batch, scorer, objective), and an independent one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from prefopt.config import parse
from prefopt.ledger import Ledger
from prefopt.methods.dmpo import METHOD, DmpoConfig, terms, weigh
from prefopt.models.load import CausalModel, ModelSettings, load_model
from prefopt.models.scorer import Scorer, sum_by_response
from prefopt.objectives.types import Pairs
from prefopt.pack.batch import Example, Layout, PackedBatch, collate
from prefopt.pack.prepare import PrepareSettings, prepare
from prefopt.records import Message, Pair, Preference, Response
from prefopt.text.render import RenderSettings, render
from prefopt.text.tokens import encode
from tests.tiny import make_model_folder, make_tokenizer

TOKENIZER = make_tokenizer(["look", "take", "east", "west", "wait", "key", "door", "seen"])
PROMPT = (
    Message("user", "rules"),
    Message("assistant", "OK", train=False),
    Message("user", "door"),
)
LONG = 4096

Models = tuple[CausalModel, CausalModel]
"""Policy and reference, in float64."""


def make_models(folder: Path) -> Models:
    found: list[CausalModel] = []
    for seed in (0, 1):
        path = make_model_folder(
            folder / str(seed),
            "gpt2",  # its layer norms keep float64, those of Llama do not
            tokenizer=TOKENIZER,
            seed=seed,
            max_position_embeddings=LONG,
            initializer_range=0.2,
        )
        found.append(load_model(path, ModelSettings()).model.double().eval())
    return found[0], found[1]


def side(*actions: str) -> Response:
    """The agent's actions with an observation between each two."""
    messages: list[Message] = []
    for i, action in enumerate(actions):
        messages += [Message("user", f"seen {i}")] if i else []
        messages.append(Message("assistant", action))
    return Response(turns=tuple(messages))


def pair(chosen: Response, rejected: Response, name: str = "r1") -> Preference:
    return Preference(name, PROMPT, (chosen, rejected), (Pair(0, 1),), origin="d.jsonl:7")


GOOD = side("look", "take key", "east")
BAD = side("look", "west", "wait", "wait wait", "door")
USUAL = pair(GOOD, BAD)


def recipe(**keys: object) -> DmpoConfig:
    raw = {"method": "dmpo", "model_name_or_path": "m", "train_file": "d.jsonl", **keys}
    return parse(raw, METHOD.config)  # pyright: ignore[reportArgumentType]


def examples(
    *records: Preference, ledger: Ledger | None = None, length: int = LONG, **keys: object
) -> list[Example]:
    config = recipe(**keys)
    settings = PrepareSettings(max_length=length)
    return prepare(
        records,
        TOKENIZER,
        settings,
        ledger or Ledger("d.jsonl"),
        weigh=lambda given: weigh(given, config),
    )


class Measured(NamedTuple):
    loss: Tensor
    """Mean over the pairs."""
    each: Tensor
    margins: Tensor
    accuracies: Tensor
    gradients: dict[str, Tensor]


def pairs_of(batch: PackedBatch, own: Tensor, frozen: Tensor) -> Pairs:
    policy, reference = sum_by_response(batch, own), sum_by_response(batch, frozen)
    return Pairs(
        policy[batch.chosen],
        policy[batch.rejected],
        reference[batch.chosen],
        reference[batch.rejected],
    )


def measure(
    models: Models,
    *records: Preference,
    layout: Layout = Layout.TREE,
    row_length: int | None = None,
    **keys: object,
) -> Measured:
    policy, reference = models
    made = examples(*records, ledger=None, length=LONG, **keys)
    batch = collate([[e] for e in made], layout=layout, row_length=row_length)
    policy.zero_grad()
    with torch.no_grad():
        frozen = Scorer(reference)(batch).logp
    (term,) = terms(recipe(**keys))
    losses = term.objective(pairs_of(batch, Scorer(policy)(batch).logp, frozen))
    loss = (losses.loss * batch.pair_weight).sum() / batch.pair_weight.sum()
    loss.backward()
    return Measured(
        loss.detach(),
        losses.loss.detach(),
        losses.terms["rewards/margins"],
        losses.terms["rewards/accuracies"],
        {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None},
    )


def difference(a: Measured, b: Measured) -> float:
    """Largest difference of the gradients."""
    assert a.gradients.keys() == b.gradients.keys()
    return max(float((a.gradients[n] - b.gradients[n]).abs().max()) for n in a.gradients)


def log_ratios_by_turn(models: Models, response: Response) -> list[float]:
    """Sum over the tokens of each turn of log policy - log reference: one plain row, every logit, no package code."""
    record = Preference("alone", PROMPT, (response,))
    (encoded,) = encode(render(record, TOKENIZER, RenderSettings()), TOKENIZER)
    tokens, _, turns = encoded.sequence
    ids = torch.tensor([list(tokens)])
    found: list[Tensor] = []
    with torch.no_grad():
        for model in models:
            logp = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
            found.append(logp.gather(1, ids[0, 1:, None])[:, 0])
    ratio = (found[0] - found[1]).tolist()
    order = sorted({turn for turn in turns if turn >= 0})
    return [
        math.fsum(r for r, turn in zip(ratio, turns[1:], strict=True) if turn == t) for t in order
    ]


def discounted(values: list[float], gamma: float) -> float:
    """The double sum over states and the turns up to them, normalised: what phi abbreviates."""
    mass = math.fsum(gamma**t for t in range(len(values)))
    return math.fsum(gamma**t * math.fsum(values[: t + 1]) for t in range(len(values))) / mass


def expected_margin(models: Models, record: Preference, *, gamma: float) -> float:
    chosen, rejected = (log_ratios_by_turn(models, r) for r in record.responses)
    return discounted(chosen, gamma) - discounted(rejected, gamma)
