"""Examples (one prompt's tree with its annotations) and the packed batches a model is run on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefopt.pack.tree import TokenTree, unshare


class Layout(StrEnum):
    """How trees lie in a batch."""

    TREE = "tree"
    """One tree a row, rows of similar length, dense mask: CPU."""
    PACKED = "packed"
    """Many trees in one long row of constant length, FlexAttention: GPU."""
    ROWS = "rows"
    """Every response a row of its own, ordinary causal attention: any model."""


class Example(NamedTuple):
    """One record ready for training: its tree and the annotations of its responses and pairs."""

    id: str
    tree: TokenTree
    pairs: tuple[tuple[int, int], ...]
    """(chosen, rejected) positions in the tree's responses."""
    pair_weight: tuple[float, ...]
    pair_margin: tuple[float | None, ...]
    score: tuple[float | None, ...]
    """Per response, as are rank and label."""
    rank: tuple[float | None, ...]
    label: tuple[float | None, ...]
    weight: tuple[float, ...] = ()
    """[M] weight of each (token, response) incidence; empty means 1 everywhere."""
    mismatched: tuple[bool, ...] = ()
    """Per response, whether it answers another prompt (see `Response.mismatched`); empty: none does."""
    source: tuple[int, ...] = ()
    """Per response, its position in the record's `responses` (dropped ones leave gaps); empty: the same."""

    def key(self, layout: Layout) -> bytes:
        """Digest of everything that decides the tree's per-token log-probabilities, apart from the model.

        TREE and PACKED store the same tokens in the same order; ROWS repeats shared ones, hence its own key.
        """
        tree = self.tree
        facts = hashlib.blake2b(b"rows" if layout is Layout.ROWS else b"tree", digest_size=16)
        for array in (tree.tokens, tree.parent, tree.leaf, tree.scored):
            facts.update(len(array).to_bytes(8, "little"))
            facts.update(array.tobytes())
        return facts.digest()

    @property
    def scored_tokens(self) -> int:
        """Scored tokens over all responses, shared ones counted once per response: the M of this example."""
        return len(self.tree.incidences()[0])

    def row_lengths(self, layout: Layout) -> tuple[int, ...]:
        """Tokens of each row that this example takes in `layout`."""
        if layout is Layout.ROWS:
            return tuple(int(self.tree.position[leaf]) + 1 for leaf in self.tree.leaf)
        return (self.tree.size,)


class PackedBatch(NamedTuple):
    """One micro-batch. B rows of L positions, N scored tokens, M incidences, R responses, P pairs.

    `predictor` indexes the flattened ``[B * L]`` hidden states: a token is predicted by its *parent*, not by
    its left neighbour, and one state may predict several siblings.
    """

    tokens: Tensor
    """[B, L] int64; padding is 0."""
    position: Tensor
    """[B, L] int64 position ids."""
    until: Tensor
    """[B, L] int64: q sees k of the same row iff k <= q < until[k]. Padding sees itself only."""
    predictor: Tensor
    """[N] int64"""
    target: Tensor
    """[N] int64 token ids."""
    token: Tensor
    """[M] int64, into N."""
    response: Tensor
    """[M] int64, into R."""
    weight: Tensor
    """[M] float32"""
    chosen: Tensor
    """[P] int64, into R."""
    rejected: Tensor
    """[P] int64, into R."""
    pair_weight: Tensor
    """[P] float32"""
    pair_margin: Tensor
    """[P] float32, NaN where missing."""
    score: Tensor
    """[R] float32, NaN where missing; so are rank and label."""
    rank: Tensor
    label: Tensor
    mismatched: Tensor
    """[R] bool: answers to other prompts."""
    group: Tensor
    """[R] int64: which example of the batch the response belongs to."""
    pair_group: Tensor
    """[P] int64: which example of the batch the pair belongs to."""
    scored_group: Tensor
    """[N] int64: which example the scored token belongs to (non-decreasing)."""
    ids: tuple[str, ...]
    """Record ids of the examples."""
    keys: tuple[bytes, ...]
    """`Example.key` of the examples."""
    layout: Layout
    branching: bool
    """False when every row is one chain: then plain causal attention is the tree mask."""

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on `device`."""
        return self._replace(
            **{
                name: value.to(device, non_blocking=True)
                for name, value in self._asdict().items()
                if isinstance(value, Tensor)
            }
        )


def collate(
    rows: Sequence[Sequence[Example]], *, layout: Layout, row_length: int | None = None
) -> PackedBatch:
    """Lay examples out in rows.

    Args:
        rows: the examples of each row; in `ROWS` layout the grouping is ignored, every response gets a row.
        layout: see `Layout`.
        row_length: pad rows to this many positions (PACKED); None pads to the longest row.

    An empty `rows` gives a batch with one padding token and nothing scored, so that every rank can run the
    same number of forward passes.

    Raises:
        ValueError: a row is longer than `row_length`.
    """
    if layout is Layout.ROWS:
        lengths = [n for row in rows for e in row for n in e.row_lengths(layout)]
    else:
        lengths = [sum(e.tree.size for e in row) for row in rows]
    width = max([1, *lengths]) if row_length is None else row_length
    if lengths and max(lengths) > width:
        raise ValueError(f"a row of {max(lengths)} tokens does not fit in row_length {width}")
    grid = _Grid(max(1, len(lengths)), width)
    b = 0
    for row in rows:
        if layout is Layout.ROWS:
            for example in row:
                b = grid.place_rows(example, b)
        else:
            grid.place_trees(row, b)
            b += 1
    return grid.finish(layout)


class _Grid:
    """Accumulates examples into the flat arrays of a `PackedBatch`."""

    def __init__(self, rows: int, width: int) -> None:
        self.width = width
        self.tokens = np.zeros((rows, width), dtype=np.int64)
        self.position = np.zeros((rows, width), dtype=np.int64)
        self.until = np.tile(np.arange(1, width + 1), (rows, 1))
        self.predictor: list[np.ndarray] = []
        self.target: list[np.ndarray] = []
        self.token: list[np.ndarray] = []
        self.response: list[np.ndarray] = []
        self.weight: list[np.ndarray] = []
        self.scored_group: list[np.ndarray] = []
        self.examples: list[Example] = []
        self.scored_count = 0
        self.response_count = 0
        self.branching = False

    def place_trees(self, row: Sequence[Example], b: int) -> None:
        start = 0
        for example in row:
            tree = example.tree
            n = tree.size
            self._fill(tree, slice(0, n), b, start)
            self._score(example, tree, np.arange(n) + b * self.width + start)
            self.branching |= start > 0 or bool((tree.until < n).any())
            start += n

    def place_rows(self, example: Example, b: int) -> int:
        tree = unshare(example.tree)
        flat = np.empty(tree.size, dtype=np.int64)
        start = 0
        for leaf in tree.leaf:
            part = slice(start, int(leaf) + 1)
            n = part.stop - start
            self._fill(tree, part, b, 0)
            flat[part] = np.arange(n) + b * self.width
            start = part.stop
            b += 1
        self._score(example, tree, flat)
        return b

    def _fill(self, tree: TokenTree, part: slice, b: int, start: int) -> None:
        n = part.stop - part.start
        self.tokens[b, start : start + n] = tree.tokens[part]
        self.position[b, start : start + n] = tree.position[part]
        self.until[b, start : start + n] = tree.until[part] - part.start + start

    def _score(self, example: Example, tree: TokenTree, flat: np.ndarray) -> None:
        scored = np.nonzero(tree.scored)[0]
        number = np.full(tree.size, -1, dtype=np.int64)
        number[scored] = np.arange(len(scored)) + self.scored_count
        token, response = tree.incidences()
        self.predictor.append(flat[tree.parent[scored]])
        self.target.append(tree.tokens[scored])
        self.token.append(number[token])
        self.response.append(response + self.response_count)
        weight = np.asarray(example.weight, dtype=np.float32) if example.weight else None
        self.weight.append(np.ones(len(token), dtype=np.float32) if weight is None else weight)
        self.scored_group.append(np.full(len(scored), len(self.examples), dtype=np.int64))
        self.scored_count += len(scored)
        self.response_count += len(tree.leaf)
        self.examples.append(example)

    def finish(self, layout: Layout) -> PackedBatch:
        first = np.cumsum([0] + [len(e.tree.leaf) for e in self.examples])
        pairs = [
            (c + f, r + f) for e, f in zip(self.examples, first, strict=False) for c, r in e.pairs
        ]
        return PackedBatch(
            tokens=torch.from_numpy(self.tokens),
            position=torch.from_numpy(self.position),
            until=torch.from_numpy(self.until),
            predictor=_join(self.predictor, np.int64),
            target=_join(self.target, np.int64),
            token=_join(self.token, np.int64),
            response=_join(self.response, np.int64),
            weight=_join(self.weight, np.float32),
            chosen=torch.tensor([c for c, _ in pairs], dtype=torch.int64),
            rejected=torch.tensor([r for _, r in pairs], dtype=torch.int64),
            pair_weight=_floats([w for e in self.examples for w in e.pair_weight]),
            pair_margin=_floats([m for e in self.examples for m in e.pair_margin]),
            score=_floats([s for e in self.examples for s in e.score]),
            rank=_floats([s for e in self.examples for s in e.rank]),
            label=_floats([s for e in self.examples for s in e.label]),
            mismatched=torch.tensor(
                [m for e in self.examples for m in e.mismatched or (False,) * len(e.tree.leaf)],
                dtype=torch.bool,
            ),
            group=_owners([len(e.tree.leaf) for e in self.examples]),
            pair_group=_owners([len(e.pairs) for e in self.examples]),
            scored_group=_join(self.scored_group, np.int64),
            ids=tuple(e.id for e in self.examples),
            keys=tuple(e.key(layout) for e in self.examples),
            layout=layout,
            branching=self.branching,
        )


def _join(parts: list[np.ndarray], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype))


def _floats(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float32)


def _owners(counts: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(
        torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64)
    )
