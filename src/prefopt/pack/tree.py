"""Token trees: the responses to one prompt, every shared token stored once.

Depth-first order makes a subtree an interval, so one integer per token, `until`, says everything about
visibility: token q sees token k iff ``k <= q < until[k]``. numpy only; no models, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


class TokenSequence(NamedTuple):
    """One response with its prompt, tokenised as a whole."""

    tokens: Sequence[int]
    scored: Sequence[bool]
    """Whether the token's log-probability counts. The first token of a sequence can never be scored."""
    turn: Sequence[int]
    """Assistant turn of a scored token, from 0; -1 for unscored tokens."""


class TokenTree(NamedTuple):
    """Token tree (or forest: several roots) in depth-first order. T tokens, R responses, M incidences."""

    tokens: IntArray
    """[T] token ids."""
    parent: IntArray
    """[T] index of the token before it on its path, -1 for a root. The parent's state predicts the token."""
    position: IntArray
    """[T] distance from the root: the position id."""
    until: IntArray
    """[T] end of the interval of tokens that may attend to this one."""
    scored: NDArray[np.bool_]
    """[T]"""
    turn: IntArray
    """[T] assistant turn of scored tokens, -1 elsewhere."""
    leaf: IntArray
    """[R] index of each response's last token."""

    @property
    def size(self) -> int:
        """Number of stored tokens T."""
        return len(self.tokens)

    def incidences(self) -> tuple[IntArray, IntArray]:
        """Which scored token belongs to which response: ``(token [M], response [M])``, by response, then token."""
        ancestor = (np.arange(self.size)[None, :] <= self.leaf[:, None]) & (
            self.leaf[:, None] < self.until[None, :]
        )
        response, token = np.nonzero(ancestor & self.scored[None, :])
        return token, response

    def path(self, response: int) -> IntArray:
        """Token indices from the root to the end of `response`."""
        index = np.arange(self.size)
        leaf = self.leaf[response]
        return np.nonzero((index <= leaf) & (leaf < self.until))[0]


def build_tree(sequences: Sequence[TokenSequence]) -> TokenTree:
    """Merge sequences that start alike into one tree.

    Tokens are shared while id, `scored` and `turn` agree, which leaves every log-probability as it is in
    separate rows (tokens attend to their own path only). Equal sequences share everything, leaf included.

    Raises:
        ValueError: no sequences, an empty one, lists of unequal length, or a scored first token.
    """
    _check(sequences)
    keys = [list(zip(s.tokens, s.scored, s.turn, strict=True)) for s in sequences]
    order = sorted(range(len(keys)), key=lambda r: (keys[r], r))
    return _grow(keys, _keep_first_appearance(keys, order))


def _check(sequences: Sequence[TokenSequence]) -> None:
    if not sequences:
        raise ValueError("a token tree needs at least one sequence")
    for r, sequence in enumerate(sequences):
        if len(sequence.tokens) == 0:
            raise ValueError(f"sequence {r} is empty")
        if not len(sequence.tokens) == len(sequence.scored) == len(sequence.turn):
            raise ValueError(f"sequence {r}: tokens, scored and turn differ in length")
        if sequence.scored[0]:
            raise ValueError(f"sequence {r}: its first token has no predictor and cannot be scored")


_Key = list[tuple[int, bool, int]]


def _keep_first_appearance(keys: list[_Key], order: list[int]) -> list[int]:
    """Depth-first order in which subtrees come as their first response came in, to keep trees readable."""

    def arrange(group: list[int], depth: int) -> list[int]:
        if len(group) == 1:
            return group
        while True:
            heads = {r: (keys[r][depth] if depth < len(keys[r]) else None) for r in group}
            if len(set(heads.values())) > 1 or None in heads.values():
                break
            depth += 1
        branches: dict[tuple[int, bool, int] | None, list[int]] = {}
        for r in sorted(group, key=lambda r: (heads[r] is not None, r)):
            branches.setdefault(heads[r], []).append(r)
        out: list[int] = []
        for head, members in branches.items():
            out += members if head is None else arrange(members, depth + 1)
        return out

    return arrange(order, 0)


def _grow(keys: list[_Key], order: list[int]) -> TokenTree:
    rows: list[tuple[int, bool, int]] = []
    parent: list[int] = []
    position: list[int] = []
    leaf = np.zeros(len(keys), dtype=np.int64)
    path: list[int] = []
    previous: _Key = []
    for r in order:
        key = keys[r]
        shared = _common(previous, key)
        del path[shared:]
        for depth in range(shared, len(key)):
            parent.append(path[-1] if path else -1)
            position.append(depth)
            path.append(len(rows))
            rows.append(key[depth])
        leaf[r] = path[-1]
        previous = key
    parents = np.array(parent, dtype=np.int64)
    return TokenTree(
        tokens=np.array([row[0] for row in rows], dtype=np.int64),
        parent=parents,
        position=np.array(position, dtype=np.int64),
        until=_until(parents),
        scored=np.array([row[1] for row in rows], dtype=np.bool_),
        turn=np.array([row[2] for row in rows], dtype=np.int64),
        leaf=leaf,
    )


def _common(a: _Key, b: _Key) -> int:
    n = min(len(a), len(b))
    for i in range(n):
        if a[i] != b[i]:
            return i
    return n


def _until(parent: IntArray) -> IntArray:
    """End of each token's subtree: one past its last descendant."""
    until = np.arange(1, len(parent) + 1, dtype=np.int64)
    for i in range(len(parent) - 1, -1, -1):
        p = parent[i]
        if p >= 0 and until[i] > until[p]:
            until[p] = until[i]
    return until


def unshare(tree: TokenTree) -> TokenTree:
    """The same responses as separate chains (a forest with R roots), for models that cannot take a tree mask."""
    paths = [tree.path(r) for r in range(len(tree.leaf))]
    starts = np.cumsum([0] + [len(p) for p in paths])
    keep = np.concatenate(paths) if paths else np.zeros(0, dtype=np.int64)
    parent = np.concatenate(
        [np.r_[-1, np.arange(s, s + len(p) - 1)] for s, p in zip(starts[:-1], paths, strict=True)]
    )
    return TokenTree(
        tokens=tree.tokens[keep],
        parent=parent.astype(np.int64),
        position=tree.position[keep],
        until=np.repeat(starts[1:], np.diff(starts)).astype(np.int64),
        scored=tree.scored[keep],
        turn=tree.turn[keep],
        leaf=(starts[1:] - 1).astype(np.int64),
    )
