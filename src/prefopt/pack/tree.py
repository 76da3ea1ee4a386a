"""Token trees: the responses to one prompt, every shared token stored once.

Depth-first order makes a subtree an interval, so one integer per token, `until`, says everything about
visibility: token q sees token k iff ``k <= q < until[k]``. numpy only; no models, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.text.tokens import TokenSequence

__all__ = ["IntArray", "TokenSequence", "TokenTree", "build_tree", "unshare"]

IntArray = NDArray[np.int64]


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
    return _lay_out([_pack(s) for s in sequences])


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


_TURN_BITS = 30


def _pack(sequence: TokenSequence) -> IntArray:
    """Token id, `scored` and `turn` as one number, so that sequences are compared in one step."""
    tokens = np.array(sequence.tokens, dtype=np.int64)
    scored = np.array(sequence.scored, dtype=np.int64)
    turn = np.array(sequence.turn, dtype=np.int64)
    return (tokens << (_TURN_BITS + 1)) | ((turn + 1) << 1) | scored


class _Node(NamedTuple):
    """A stretch of tokens that the same responses share."""

    members: list[int]
    """Responses that pass through it, in order of appearance."""
    depth: int
    """Position of its first token."""
    parent: int
    """Index of the token before it, -1 for a root."""


def _lay_out(keys: list[IntArray]) -> TokenTree:
    """Nodes in depth-first order, siblings as their first responses came in."""
    stack = _children(keys, list(range(len(keys))), 0, -1)[::-1]
    stretches: list[IntArray] = []
    parents: list[IntArray] = []
    starts: list[tuple[int, int, int]] = []
    leaf = np.zeros(len(keys), dtype=np.int64)
    size = 0
    while stack:
        node = stack.pop()
        end = _shared_until(keys, node)
        length = end - node.depth
        stretches.append(keys[node.members[0]][node.depth : end])
        parents.append(np.arange(size - 1, size - 1 + length))
        parents[-1][0] = node.parent
        starts.append((size, node.depth, length))
        size += length
        ended = [r for r in node.members if len(keys[r]) == end]
        leaf[ended] = size - 1
        going = [r for r in node.members if len(keys[r]) > end]
        stack += _children(keys, going, end, size - 1)[::-1]
    packed, parent = np.concatenate(stretches), np.concatenate(parents)
    return TokenTree(
        tokens=packed >> (_TURN_BITS + 1),
        parent=parent,
        position=np.concatenate([np.arange(depth, depth + n) for _, depth, n in starts]),
        until=_until(starts, parent, size),
        scored=(packed & 1).astype(np.bool_),
        turn=((packed >> 1) & ((1 << _TURN_BITS) - 1)) - 1,
        leaf=leaf,
    )


def _children(keys: list[IntArray], members: list[int], depth: int, parent: int) -> list[_Node]:
    """One node for each token that follows at `depth`."""
    branches: dict[int, list[int]] = {}
    for r in members:
        branches.setdefault(int(keys[r][depth]), []).append(r)
    return [_Node(branch, depth, parent) for branch in branches.values()]


def _shared_until(keys: list[IntArray], node: _Node) -> int:
    """Position up to which all members of a node agree."""
    end = min(len(keys[r]) for r in node.members)
    first = keys[node.members[0]]
    for r in node.members[1:]:
        differs = first[node.depth : end] != keys[r][node.depth : end]
        at = int(differs.argmax()) if len(differs) else 0
        if len(differs) and differs[at]:
            end = node.depth + at
    return end


def _until(starts: list[tuple[int, int, int]], parent: IntArray, size: int) -> IntArray:
    """End of each token's subtree: that of its node, which ends where the next node is no descendant."""
    until = np.empty(size, dtype=np.int64)
    open_nodes: list[tuple[int, int]] = []
    for start, _, length in starts:
        while open_nodes and open_nodes[-1][1] - 1 != parent[start]:
            first, end = open_nodes.pop()
            until[first:end] = start
        open_nodes.append((start, start + length))
    for first, end in open_nodes:
        until[first:end] = size
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
