"""How likely given responses are under a model: plain scoring of records, outside of any training run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefopt.errors import ModelError, RecordError
from prefopt.models.layout import choose_layout, tree_cost
from prefopt.models.load import CausalModel, plain_model
from prefopt.models.scorer import Scorer, sum_by_response
from prefopt.pack.batch import Example, Layout, PackedBatch, collate
from prefopt.pack.tree import TokenTree, build_tree
from prefopt.records import Preference
from prefopt.text.render import RenderSettings, TokenSequence, encode, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_AS_IT_IS = RenderSettings()


class ResponseLogp(NamedTuple):
    """Log-probability of one response given its prompt, in nats."""

    total: float
    """Sum over its tokens, the end-of-sequence token included where the response ends."""
    tokens: int

    @property
    def mean(self) -> float:
        """Per token."""
        return self.total / self.tokens


def response_logps(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerFast,
    records: Sequence[Preference],
    *,
    render: RenderSettings = _AS_IT_IS,
    batch_size: int = 32,
) -> list[tuple[ResponseLogp, ...]]:
    """The log-probability of each response of each record; the model runs in eval mode, without gradients.

    Args:
        model: on its device.
        tokenizer: its tokenizer.
        records: prompts with responses; pairs and annotations are not looked at.
        render: how records become text.
        batch_size: records run together.

    Raises:
        RecordError: a record cannot be rendered, or a response has no tokens.
    """
    examples = response_examples(records, tokenizer, render)
    found: dict[int, tuple[ResponseLogp, ...]] = {}
    was_training = model.training
    scorer = Scorer(model).eval()
    try:
        for part, batch in batches(examples, batch_size):
            with torch.no_grad():
                logp = scorer(batch.to(model.device)).logp
            totals = iter(sum_by_response(batch.to(logp.device), logp.double()).tolist())
            for i in part:
                counts = _lengths(examples[i])
                found[i] = tuple(ResponseLogp(next(totals), n) for n in counts)
    finally:
        model.train(was_training)
    return [found[i] for i in range(len(examples))]


def response_examples(
    records: Sequence[Preference], tokenizer: PreTrainedTokenizerFast, settings: RenderSettings
) -> list[Example]:
    """Each record as an example without pairs.

    Unlike in training nothing is dropped or cut, and a response of no text but its end is a response.

    Raises:
        RecordError: a record cannot be rendered, or a response has no tokens.
    """
    rendered = [render(record, tokenizer, settings) for record in records]
    encoded = iter(encode([text for texts in rendered for text in texts], tokenizer))
    examples: list[Example] = []
    for record, texts in zip(records, rendered, strict=True):
        sequences = [next(encoded).sequence for _ in texts]
        for k, sequence in enumerate(sequences):
            if not any(sequence.scored):
                raise RecordError(
                    f"{record.origin or f'record {record.id!r}'}: response {k} has no tokens to score; remove it"
                )
        none = (None,) * len(texts)
        examples.append(Example(record.id, build_tree(sequences), (), (), (), none, none, none))
    return examples


def batches(
    examples: Sequence[Example], batch_size: int
) -> Iterator[tuple[list[int], PackedBatch]]:
    """Examples of similar length together: their positions, and the batch with a row for each response."""
    order = sorted(range(len(examples)), key=lambda i: examples[i].tree.size)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        yield part, collate([[examples[i]] for i in part], layout=Layout.ROWS)


def _lengths(example: Example) -> list[int]:
    """Scored tokens of each response."""
    tree = example.tree
    return [int(tree.scored[tree.path(r)].sum()) for r in range(len(tree.leaf))]


def sequence_logps(
    model: CausalModel, sequences: Sequence[TokenSequence], *, batch_size: int = 32
) -> Iterator[tuple[int, float]]:
    """The position and the log-probability (nats, scored tokens) of each sequence, given out batch by batch.

    Sequences that are alike up to their first scored token share its computation where that is cheaper, see
    `prefopt.models.layout.tree_cost`; the numbers are those of separate rows up to rounding. Log-softmax in float32
    whatever the precision of the weights, sums in float64; a sum that is not finite is given as it is. The longest
    come first, so that what does not fit in memory fails at once.

    Args:
        model: on its device; run in eval mode, without gradients, and left in the mode it was in.
        sequences: with at least one scored token each, and no longer than the model's context.
        batch_size: sequences run together.
    """
    was_training = model.training
    scorer = Scorer(model).eval()
    try:
        shared, alone = _parted(model, sequences, batch_size)
        for members, layout in ((shared, Layout.TREE), (alone, Layout.ROWS)):
            for part in _filled(members, batch_size):
                batch = collate([[_plain(each.tree)] for each in part], layout=layout)
                with torch.no_grad():
                    logp = scorer(batch.to(model.device)).logp
                totals = sum_by_response(batch.to(logp.device), logp.double())
                places = [i for each in part for i in each.places]
                yield from zip(places, totals.tolist(), strict=True)
    finally:
        model.train(was_training)


class _Scored(NamedTuple):
    """Sequences that are run together."""

    places: list[int]
    tree: TokenTree


def _parted(
    model: CausalModel, sequences: Sequence[TokenSequence], batch_size: int
) -> tuple[list[_Scored], list[_Scored]]:
    """Those to be run as trees, and those in rows of their own."""
    groups = _alike(sequences, batch_size)
    several = [group for group in groups if len(group) > 1]
    shared: list[_Scored] = []
    if several and _takes_trees(model, max(len(sequence.tokens) for sequence in sequences)):
        trees = [_Scored(group, build_tree([sequences[i] for i in group])) for group in several]
        shared = [each for each in trees if tree_cost(model, [_plain(each.tree)]) < 1]
    done = {i for each in shared for i in each.places}
    rest = [i for i in range(len(sequences)) if i not in done]
    return shared, [_Scored([i], build_tree([sequences[i]])) for i in rest]


def _takes_trees(model: CausalModel, longest: int) -> bool:
    try:
        return choose_layout(model, requested="auto", longest=longest).layout is Layout.TREE
    except ModelError:  # weights that are no numbers fail every check; rows show what comes of them
        return False


def _alike(sequences: Sequence[TokenSequence], most: int) -> list[list[int]]:
    """Positions of sequences that are alike up to their first scored token, `most` together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, sequence in enumerate(sequences):
        start = sequence.scored.index(True)
        groups.setdefault(tuple(sequence.tokens[:start]), []).append(i)
    return [
        group[start : start + most]
        for group in groups.values()
        for start in range(0, len(group), most)
    ]


def _filled(members: Sequence[_Scored], batch_size: int) -> Iterator[list[_Scored]]:
    """Batches of at most `batch_size` sequences, the largest trees first."""
    part: list[_Scored] = []
    for each in sorted(members, key=lambda each: each.tree.size, reverse=True):
        if part and sum(len(e.places) for e in [*part, each]) > batch_size:
            yield part
            part = []
        part.append(each)
    if part:
        yield part


def _plain(tree: TokenTree) -> Example:
    """Without pairs and annotations."""
    none = (None,) * len(tree.leaf)
    return Example("", tree, (), (), (), none, none, none)


def context_length(model: CausalModel) -> int:
    """Longest sequence, in tokens, that the position encoding was made for; unbounded where the config names none."""
    config = plain_model(model).config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None) or sys.maxsize
