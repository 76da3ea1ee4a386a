"""Log-probabilities of many responses to one prompt: the prompt is run once, and the numbers stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.models.likelihood import sequence_logps
from prefopt.models.load import CausalModel, load_model
from prefopt.text.tokens import TokenSequence
from tests.tiny import Family, make_model_folder


def sequence(prompt: list[int], response: list[int]) -> TokenSequence:
    return TokenSequence(
        tokens=[*prompt, *response],
        scored=[False] * len(prompt) + [True] * len(response),
        turn=[-1] * len(prompt) + [0] * len(response),
    )


def sequences() -> list[TokenSequence]:
    """Two prompts of 100 tokens with 8 and 5 responses, mixed, two of them equal; one prompt with a single one."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, 50, 100).tolist() for _ in range(3)]
    made = [
        sequence(prompts[g], draw.integers(0, 50, 2 + k).tolist())
        for k in range(8)
        for g in (0, 1, 2)
        if k < (8, 5, 1)[g]
    ]
    return [*made, made[0]]


def slow(model: CausalModel, one: TokenSequence) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([one.tokens])).logits[0].double()
    logps = torch.log_softmax(logits, dim=-1)
    return sum(
        float(logps[t - 1, one.tokens[t]]) for t in range(1, len(one.tokens)) if one.scored[t]
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [3, 32])
def test_the_numbers_are_those_of_rows(kind: Family, batch_size: int, tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "m", kind)).model
    given = sequences()
    found = dict(sequence_logps(model, given, batch_size=batch_size))
    assert sorted(found) == list(range(len(given)))
    assert [found[i] for i in range(len(given))] == pytest.approx(
        [slow(model, one) for one in given], abs=2e-4
    )


def test_the_model_is_left_in_its_mode(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "m", "llama")).model
    for training in (False, True):
        model.train(training)
        list(sequence_logps(model, sequences()))
        assert {module.training for module in model.modules()} == {training}


def test_a_shared_prompt_is_run_once(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "m", "llama")).model
    positions = 0

    def count(_: Any, given: tuple[torch.Tensor, ...]) -> None:
        nonlocal positions
        positions += given[0].numel()

    model.get_input_embeddings().register_forward_pre_hook(count)
    list(sequence_logps(model, sequences()))
    assert 300 < positions < 700, "in rows of their own it is 15 times 100 tokens and more"
