"""References: the cache returns what was scored, under a key that nothing stale can match."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prefopt.errors import ModelError, StorageError
from prefopt.models.load import LoraSettings, add_lora, load_model
from prefopt.models.reference import (
    AdapterOffReference,
    CachedReference,
    LiveReference,
    LogpStore,
    NoReference,
)
from prefopt.models.scorer import Scorer
from prefopt.pack.batch import Example, Layout, collate
from prefopt.pack.plan import PackLimits
from prefopt.train.runtime import Runtime
from prefopt.train.scoring import (
    Packing,
    fill_store,
    policy_reference_gap,
    require_small_gap,
)
from tests.numerics.forest import random_example
from tests.tiny import make_model_folder

EXAMPLES = [random_example(s, vocabulary=200) for s in range(5)]
PACKING = Packing(Layout.TREE, PackLimits(Layout.TREE, items=2))


@pytest.fixture
def scorer(tmp_path: Path) -> Scorer:
    return Scorer(load_model(make_model_folder(tmp_path / "m", "llama")).model)


def store(folder: Path, weights: str = "w") -> LogpStore:
    return LogpStore(folder, weights=weights, precision="float32")


def test_cache_equals_live_in_any_company(scorer: Scorer, tmp_path: Path) -> None:
    cache = store(tmp_path)
    assert fill_store(cache, scorer, EXAMPLES, packing=PACKING, runtime=Runtime()) == 5
    batch = collate([[EXAMPLES[4]], [EXAMPLES[0]], [EXAMPLES[2]]], layout=Layout.TREE)
    live = LiveReference(scorer, digest="w").score(batch).logp
    torch.testing.assert_close(
        CachedReference(cache, digest="w").score(batch).logp, live, rtol=0, atol=1e-5
    )
    assert not live.requires_grad
    assert NoReference().score(batch) is None


def test_a_second_run_scores_nothing_and_reads_the_same_bits(
    scorer: Scorer, tmp_path: Path
) -> None:
    first, second = store(tmp_path), store(tmp_path)
    fill_store(first, scorer, EXAMPLES[:3], packing=PACKING, runtime=Runtime())
    assert fill_store(second, scorer, EXAMPLES, packing=PACKING, runtime=Runtime()) == 2
    for example in EXAMPLES[:3]:
        key = example.key(Layout.TREE)
        assert np.array_equal(first.values[key], second.values[key])


def changed(example: Example, **arrays: np.ndarray) -> Example:
    return example._replace(tree=example.tree._replace(**arrays))


def test_whatever_changes_a_value_changes_the_key(tmp_path: Path) -> None:
    example = EXAMPLES[0]
    tree = example.tree
    tokens, scored = tree.tokens.copy(), tree.scored.copy()
    tokens[2] += 1
    scored[-1] = False
    keys = {
        example.key(Layout.TREE),
        example.key(Layout.ROWS),
        changed(example, tokens=tokens).key(Layout.TREE),
        changed(example, scored=scored).key(Layout.TREE),
        changed(example, parent=np.roll(tree.parent, 1)).key(Layout.TREE),
    }
    assert len(keys) == 5
    assert example.key(Layout.PACKED) == example.key(Layout.TREE)
    paths = {
        LogpStore(tmp_path, weights=w, precision=p).path for w in ("a", "b") for p in ("x", "y")
    }
    assert len(paths) == 4


def test_annotations_do_not_change_the_key() -> None:
    example = EXAMPLES[0]
    assert example._replace(pairs=(), pair_weight=()).key(Layout.TREE) == example.key(Layout.TREE)


def test_adapter_off_is_the_base_model(scorer: Scorer, tmp_path: Path) -> None:
    batch = collate([[e] for e in EXAMPLES], layout=Layout.TREE)
    with torch.no_grad():
        base = scorer(batch).logp
    wrapped = Scorer(add_lora(scorer.model, LoraSettings(r=4)))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        assert (wrapped(batch).logp - base).abs().max() > 0.01
    off = AdapterOffReference(wrapped, digest="w").score(batch).logp
    torch.testing.assert_close(off, base, rtol=0, atol=1e-5)


def test_an_example_that_was_never_scored_is_named(tmp_path: Path) -> None:
    batch = collate([[EXAMPLES[3]]], layout=Layout.TREE)
    with pytest.raises(ModelError, match="no cached reference log-probabilities for record 'e3'"):
        CachedReference(store(tmp_path), digest="w").score(batch)


def test_a_foreign_file_is_one_line(scorer: Scorer, tmp_path: Path) -> None:
    cache = store(tmp_path)
    cache.path.write_text("not a database, but long enough to have a header of some kind" * 4)
    with pytest.raises(StorageError, match="reference cache cannot be read or written"):
        fill_store(cache, scorer, EXAMPLES, packing=PACKING, runtime=Runtime())


def test_step_zero_guard(scorer: Scorer, tmp_path: Path) -> None:
    cache = store(tmp_path)
    fill_store(cache, scorer, EXAMPLES, packing=PACKING, runtime=Runtime())
    batch = collate([[e] for e in EXAMPLES], layout=Layout.TREE)
    reference = CachedReference(cache, digest="w")
    gap = policy_reference_gap(scorer, reference, batch, Runtime())
    assert gap is not None and gap < 1e-5
    assert require_small_gap(gap, precision="no") == 1e-3
    scorer.model.lm_head.weight.data.mul_(3)
    moved = policy_reference_gap(scorer, reference, batch, Runtime())
    assert moved is not None
    with pytest.raises(ModelError, match="differ by .* nats per token at step 0"):
        require_small_gap(moved, precision="no")
