"""The GPU form: FlexAttention over packed rows equals separate rows on the same card. Run: pytest -m gpu."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prefopt.methods.base import find_method
from prefopt.models.attention import BLOCK, block_mask, dense_mask
from prefopt.models.layout import choose_layout
from prefopt.models.load import ModelSettings, load_model
from prefopt.models.scorer import Scorer, sum_by_response
from prefopt.pack.batch import Layout, collate
from prefopt.runs.train import run_training
from tests.numerics.forest import random_example
from tests.tiny import Family, make_model_folder, make_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

EXAMPLES = [random_example(s, vocabulary=200, responses=3, prompt=40, length=60) for s in range(6)]
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64}  # fmt: skip


def folder(tmp_path: Path, family: Family = "llama") -> Path:
    return make_model_folder(tmp_path / family, family, tokenizer=make_tokenizer(), **WIDE)


def test_compiled_block_mask_equals_the_uncompiled_one() -> None:
    batch = collate([EXAMPLES], layout=Layout.PACKED, row_length=8 * BLOCK).to("cuda")
    compiled, plain = block_mask(batch.until), block_mask(batch.until, compiled=False)
    assert torch.equal(compiled.to_dense(), plain.to_dense())
    visited = (
        compiled.to_dense()[0, 0].bool().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    )
    assert not (dense_mask(batch.until)[0, 0] & ~visited).any()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_flex_equals_rows(family: Family, dtype: str, tmp_path: Path) -> None:
    path = folder(tmp_path, family)
    settings = ModelSettings(dtype=dtype, device="cuda", attn_implementation="flex_attention")
    flex = load_model(path, settings).model
    rows = load_model(path, ModelSettings(dtype=dtype, device="cuda")).model
    packed_batch = collate([EXAMPLES], layout=Layout.PACKED, row_length=8 * BLOCK).to("cuda")
    rows_batch = collate([[e] for e in EXAMPLES], layout=Layout.ROWS).to("cuda")
    a = sum_by_response(packed_batch, Scorer(flex)(packed_batch).logp)
    b = sum_by_response(rows_batch, Scorer(rows)(rows_batch).logp)
    bound = 2e-2 if dtype == "float32" else 1.0
    assert float((a - b).abs().max()) < bound
    weights = torch.linspace(-1, 1, len(a), device="cuda")
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    for (name, p), q in zip(flex.named_parameters(), rows.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        scale = float(q.grad.abs().max()) + 1e-6
        assert (
            float((p.grad - q.grad).abs().max()) < (0.02 if dtype == "float32" else 0.15) * scale
        ), name


def test_the_card_chooses_packed(tmp_path: Path) -> None:
    settings = ModelSettings(device="cuda", attn_implementation="flex_attention")
    model = load_model(folder(tmp_path), settings).model
    choice = choose_layout(model, requested="auto", longest=100)
    assert choice.layout is Layout.PACKED, choice.reason


def test_a_whole_bf16_run(tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"What is {i}?", "chosen": f" It is {i}.", "rejected": " No."} for i in range(16)
    ]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    method = find_method("dpo")
    config = method.config(
        method="dpo", model_name_or_path=str(folder(tmp_path)), train_file=str(data),
        output_dir=str(tmp_path / "run"), cache_dir=str(tmp_path / "cache"), learning_rate=1e-4,
        per_device_train_batch_size=4, num_train_epochs=4.0, logging_steps=1, save_strategy="no",
    )  # fmt: skip
    metrics = run_training(config, method).metrics
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["layout"] == "packed"
    assert metrics["loss"] < 0.69
