"""TRL's own trainers on two tiny random models, and the log-probabilities that they computed on a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import make_model_folder, make_tokenizer

PAIRS = 5


class Models(NamedTuple):
    """A policy and a reference that differ by several nats per response, so that no loss is near its start."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    folder: Path


Make = Callable[..., Any]
"""(loss settings of TRL's configuration) -> a trainer of TRL."""


def _load(folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(6)
    return model


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> tuple[Path, Path, PreTrainedTokenizerFast]:
    root, tokenizer = tmp_path_factory.mktemp("models"), make_tokenizer()
    policy, reference = (
        make_model_folder(root / str(seed), "llama", tokenizer=tokenizer, seed=seed)
        for seed in (0, 1)
    )
    return policy, reference, tokenizer


@pytest.fixture
def models(folders, tmp_path) -> Models:
    policy, reference, tokenizer = folders
    return Models(_load(policy), _load(reference), tokenizer, tmp_path)


@pytest.fixture
def make(models) -> Make:
    """A trainer of that class with that configuration, over rows and the two models."""
    from datasets import Dataset

    def build(trainer: type, config: type, rows: list[dict], *, reference: bool, **settings: Any):
        common = {
            "output_dir": str(models.folder / "trl"),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "per_device_train_batch_size": len(rows),
            "train_sampling_strategy": "sequential",
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
        }
        return trainer(
            model=models.policy,
            args=config(**common | settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=models.tokenizer,
            **({"ref_model": models.reference} if reference else {}),
        )

    return build


def batch_of(trainer: Any) -> dict[str, Tensor]:
    """The batch that this trainer would train on."""
    return next(iter(trainer.get_train_dataloader()))


def gradient_of(loss: Tensor, model: PreTrainedModel) -> Tensor:
    """d loss / d (all parameters) as one vector; leaves no gradients behind."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten().double() for gradient in found])


def agree(theirs: Tensor, ours: Tensor, models: Models) -> None:
    """Value to 1e-6 and gradient to 1e-5, relative to the size of either."""
    size = max(1.0, abs(float(theirs.detach())))
    assert abs(float(theirs.detach()) - float(ours.detach())) <= 1e-6 * size
    expected, got = gradient_of(theirs, models.policy), gradient_of(ours, models.policy)
    assert float((expected - got).norm()) <= 1e-5 * float(expected.norm()) + 1e-12
