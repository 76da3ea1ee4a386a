"""Token trees against literal small ones, a naive trie and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.pack.tree import TokenSequence, TokenTree, build_tree, unshare

Key = tuple[int, bool, int]


def sequence(tokens: list[int], scored_from: int, turn: int = 0) -> TokenSequence:
    scored = [i >= scored_from for i in range(len(tokens))]
    return TokenSequence(tokens, scored, [turn if s else -1 for s in scored])


def test_literal_tree() -> None:
    tree = build_tree(
        [sequence([1, 2, 3, 4], 2), sequence([1, 2, 5], 2), sequence([1, 2, 3, 6], 2)]
    )
    assert tree.tokens.tolist() == [1, 2, 3, 4, 6, 5]
    assert tree.parent.tolist() == [-1, 0, 1, 2, 2, 1]
    assert tree.position.tolist() == [0, 1, 2, 3, 3, 2]
    assert tree.until.tolist() == [6, 6, 5, 4, 5, 6]
    assert tree.scored.tolist() == [False, False, True, True, True, True]
    assert tree.turn.tolist() == [-1, -1, 0, 0, 0, 0]
    assert tree.leaf.tolist() == [3, 5, 4]
    assert [tree.path(r).tolist() for r in range(3)] == [[0, 1, 2, 3], [0, 1, 5], [0, 1, 2, 4]]
    token, response = tree.incidences()
    assert list(zip(response.tolist(), token.tolist(), strict=True)) == [
        (0, 2), (0, 3), (1, 5), (2, 2), (2, 4)
    ]  # fmt: skip


def test_a_response_that_begins_another() -> None:
    tree = build_tree([sequence([1, 2, 3], 1), sequence([1, 2], 1)])
    assert tree.tokens.tolist() == [1, 2, 3]
    assert tree.leaf.tolist() == [2, 1]
    assert tree.until.tolist() == [3, 3, 3]


def test_equal_responses_share_everything() -> None:
    tree = build_tree([sequence([1, 2], 1), sequence([1, 2], 1)])
    assert tree.tokens.tolist() == [1, 2]
    assert tree.leaf.tolist() == [1, 1]
    assert [a.tolist() for a in tree.incidences()] == [[1, 1], [0, 1]]


def test_tokens_part_where_scoring_or_turn_differs() -> None:
    assert build_tree([sequence([1, 2], 1), sequence([1, 2], 2)]).size == 3
    assert build_tree([sequence([1, 2], 1, turn=0), sequence([1, 2], 1, turn=1)]).size == 3


def test_different_first_tokens_make_a_forest() -> None:
    tree = build_tree([sequence([1, 2], 1), sequence([3, 2], 1)])
    assert tree.parent.tolist() == [-1, 0, -1, 2]
    assert tree.until.tolist() == [2, 2, 4, 4]


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "at least one sequence"),
        ([TokenSequence([], [], [])], "sequence 0 is empty"),
        (
            [sequence([1, 2], 1), TokenSequence([1, 2], [False], [-1])],
            "sequence 1: tokens, scored and turn differ",
        ),
        ([sequence([1, 2], 0)], "sequence 0: its first token has no predictor"),
    ],
)
def test_refused(sequences: list[TokenSequence], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tree(sequences)


def test_unshare_gives_separate_chains() -> None:
    tree = build_tree([sequence([1, 2, 3], 1), sequence([1, 2], 1), sequence([1, 4], 1)])
    rows = unshare(tree)
    assert rows.tokens.tolist() == [1, 2, 3, 1, 2, 1, 4]
    assert rows.parent.tolist() == [-1, 0, 1, -1, 3, -1, 5]
    assert rows.position.tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert rows.until.tolist() == [3, 3, 3, 5, 5, 7, 7]
    assert rows.leaf.tolist() == [2, 4, 6]
    assert rows.scored.tolist() == [False, True, True, False, True, False, True]


def naive_trie(
    sequences: list[TokenSequence],
) -> tuple[list[tuple[Key, ...]], list[tuple[Key, ...]]]:
    """Paths of all nodes in depth-first order of first appearance, and the path of each response."""
    paths = [tuple(zip(s.tokens, s.scored, s.turn, strict=True)) for s in sequences]

    def visit(prefix: tuple[Key, ...]) -> list[tuple[Key, ...]]:
        below: list[Key] = []
        for path in paths:
            if (
                len(path) > len(prefix)
                and path[: len(prefix)] == prefix
                and path[len(prefix)] not in below
            ):
                below.append(path[len(prefix)])
        return [node for key in below for node in [(*prefix, key), *visit((*prefix, key))]]

    return visit(()), paths


sequences_strategy = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=7).flatmap(
        lambda tokens: st.integers(1, 3).map(lambda start: sequence(tokens, start))
    ),
    min_size=1,
    max_size=7,
)


@given(sequences_strategy)
def test_tree_is_the_naive_trie(sequences: list[TokenSequence]) -> None:
    nodes, paths = naive_trie(sequences)
    number = {path: i for i, path in enumerate(nodes)}
    tree = build_tree(sequences)
    assert list(zip(tree.tokens, tree.scored, tree.turn, strict=True)) == [
        node[-1] for node in nodes
    ]
    assert tree.parent.tolist() == [number.get(node[:-1], -1) for node in nodes]
    assert tree.position.tolist() == [len(node) - 1 for node in nodes]
    assert tree.leaf.tolist() == [number[path] for path in paths]


@given(sequences_strategy)
def test_until_paths_and_incidences_by_brute_force(sequences: list[TokenSequence]) -> None:
    tree = build_tree(sequences)
    for part in (tree, unshare(tree)):
        sees = ancestors(part)
        index = np.arange(part.size)
        mask = (index[None, :] <= index[:, None]) & (index[:, None] < part.until[None, :])
        assert mask.tolist() == sees.tolist()
        expected = [
            (r, k)
            for r, leaf in enumerate(part.leaf)
            for k in range(part.size)
            if sees[leaf, k] and part.scored[k]
        ]
        token, response = part.incidences()
        assert list(zip(response.tolist(), token.tolist(), strict=True)) == expected
        for r, s in enumerate(sequences):
            assert part.tokens[part.path(r)].tolist() == list(s.tokens)


def ancestors(tree: TokenTree) -> np.ndarray:
    """[T, T] whether row sees column, by walking up the parents."""
    sees = np.zeros((tree.size, tree.size), dtype=bool)
    for start in range(tree.size):
        at = start
        while at >= 0:
            sees[start, at] = True
            at = int(tree.parent[at])
    return sees
