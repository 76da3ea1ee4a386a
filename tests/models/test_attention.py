"""The tree mask: literal cases, and the FlexAttention form against the dense one on CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from prefopt.models.attention import (
    BLOCK,
    attention_mask,
    block_mask,
    dense_mask,
    tree_mask_function,
)
from prefopt.pack.batch import Layout, collate
from tests.numerics.forest import random_example


def test_dense_mask_of_a_fork() -> None:
    # token 0 is the prompt, 1 and 2 are two one-token responses, 3 is padding
    mask = dense_mask(torch.tensor([[3, 2, 3, 4]]))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


def test_every_token_sees_exactly_its_path() -> None:
    example = random_example(3, vocabulary=50, responses=4)
    batch = collate([[example]], layout=Layout.TREE)
    mask = dense_mask(batch.until)[0, 0]
    parent = example.tree.parent
    for q in range(example.tree.size):
        path, k = set(), q
        while k >= 0:
            path.add(k)
            k = int(parent[k])
        assert set(mask[q].nonzero().flatten().tolist()) == path


def test_mask_function_equals_dense_mask_everywhere() -> None:
    examples = [random_example(s, vocabulary=50) for s in range(4)]
    batch = collate([examples[:2], examples[2:]], layout=Layout.PACKED, row_length=BLOCK)
    visible = tree_mask_function(batch.until)
    index = torch.arange(BLOCK)
    rows = torch.arange(2)
    actual = visible(rows[:, None, None], torch.tensor(0), index[:, None], index[None, :])
    assert torch.equal(actual, dense_mask(batch.until)[:, 0])


def test_block_mask_covers_the_dense_mask_and_skips_blocks() -> None:
    """Two trees in separate blocks: the block between them is never visited."""
    until = torch.cat([torch.full((1, BLOCK), BLOCK), torch.full((1, BLOCK), 2 * BLOCK)], 1)
    blocks = block_mask(until, compiled=False).to_dense()[0, 0]
    assert blocks.tolist() == [[1, 0], [0, 1]]
    visited = blocks.bool().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    assert not (dense_mask(until)[0, 0] & ~visited).any()


def test_block_mask_refuses_rows_that_are_no_multiple_of_the_block() -> None:
    with pytest.raises(ValueError, match="100 positions, not a multiple of 128"):
        block_mask(torch.full((1, 100), 100))


def test_chains_need_no_mask() -> None:
    chain = random_example(0, vocabulary=50, responses=1)
    fork = random_example(0, vocabulary=50, responses=3)
    mask = partial(attention_mask, implementation="sdpa", dtype=torch.float32)
    assert mask(collate([[chain]], layout=Layout.TREE)) is None
    assert mask(collate([[fork]], layout=Layout.ROWS)) is None
    assert mask(collate([[fork]], layout=Layout.TREE)) is not None


def test_eager_attention_gets_an_additive_mask() -> None:
    batch = collate([[random_example(1, vocabulary=50)]], layout=Layout.TREE)
    mask = attention_mask(batch, implementation="eager", dtype=torch.float32)
    assert isinstance(mask, torch.Tensor)
    assert torch.equal(mask == 0, dense_mask(batch.until))
    assert mask.min() == torch.finfo(torch.float32).min
