"""That the two models of a reward are two: whatever files they are in, and before and after anything is scored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefopt.errors import ModelError
from prefopt.judge.implicit import ImplicitReward, ImplicitScore, ScoringSettings
from prefopt.judge.model_pair import Models, require_some_reward, require_two_models
from prefopt.models.load import LoraSettings, ModelSettings, add_lora, load_model
from prefopt.records import Preference, Response
from tests.tiny import Family, make_model_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "m0", "llama")


def adapter(folder: Path, base: Path, *, trained: bool = False) -> Path:
    loaded = load_model(str(base))
    adapted = add_lora(loaded.model, LoraSettings(r=2))
    adapted.save_pretrained(str(folder))
    loaded.tokenizer.save_pretrained(folder)
    if trained:
        file = folder / "adapter_model.safetensors"
        weights = load_file(file)
        next(w for name, w in weights.items() if "lora_B" in name)[0, 0] = 0.5
        save_file(weights, file, metadata={"format": "pt"})
    return folder


def pickled(folder: Path, family: Family) -> tuple[Path, Path]:
    """A model, and the same as a pickled state: tied weights are in it under both names."""
    source = make_model_folder(folder / "safe", family)
    copy = make_model_folder(folder / "pickled", family)
    torch.save(load_model(str(source)).model.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    return source, copy


def check(policy: Path, reference: Path) -> None:
    settings = ModelSettings()
    require_two_models(Models(str(policy), str(reference)), policy=settings, reference=settings)


def test_an_adapter_that_was_not_trained_is_its_base(base: Path, tmp_path: Path) -> None:
    fresh = adapter(tmp_path / "fresh", base)
    for pair in ((fresh, base), (base, fresh), (fresh, adapter(tmp_path / "again", base))):
        with pytest.raises(ModelError, match="have the same weights: every reward would be 0"):
            check(*pair)
    trained = adapter(tmp_path / "trained", base, trained=True)
    check(trained, base)
    check(trained, fresh)
    check(fresh, make_model_folder(tmp_path / "m1", "llama", seed=1))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pickled_weights_are_compared_too(family: Family, tmp_path: Path) -> None:
    source, copy = pickled(tmp_path, family)
    with pytest.raises(ModelError, match="have the same weights"):
        check(source, copy)
    state = torch.load(copy / "pytorch_model.bin", weights_only=True)
    next(iter(state.values()))[0, 0] += 1
    torch.save(state, copy / "pytorch_model.bin")
    check(source, copy)


RECORDS = [
    Preference(
        f"r{i}", f"What is {i} + 4?\n", (Response("It is 7."), Response("No" + " or so" * i))
    )
    for i in range(1, 9)
]


def test_a_model_against_itself_differs_by_no_more_than_the_noise(
    base: Path, tmp_path: Path
) -> None:
    """Batched otherwise and with an adapter of nothing, log-probabilities differ in their last places."""
    fresh = adapter(tmp_path / "fresh", base)
    found: list[list[ImplicitScore]] = []
    for size in (1, 5, 16):
        reward = ImplicitReward(fresh, base, beta=1.0, settings=ScoringSettings(batch_size=size))
        found.append([s for scores in reward.score(RECORDS).values() for s in scores])
    for scores in zip(*found, strict=True):
        values = [v for s in scores for v in (s.policy, s.reference) if v is not None]
        assert max(values) - min(values) <= min(s.noise for s in scores)
    with pytest.raises(ModelError) as error:
        require_some_reward(found[0], reward.models)  # pyright: ignore[reportPossiblyUnboundVariable]
    assert "are the same model to all 16 responses" in str(error.value)
    assert "\n" not in str(error.value)


def test_one_reward_beyond_rounding_is_enough() -> None:
    models = Models("p", "r")
    same, missing = (
        ImplicitScore(0.0, -64.0, -64.0, 9),
        ImplicitScore(None, None, None, 9, "truncated"),
    )
    require_some_reward([], models)
    require_some_reward([missing], models)
    assert ImplicitScore(0.0, -64.0, -64.0, 9).noise == 128 * 2.0**-20
    at_noise = ImplicitScore(1e-5, -64.0001, -64.0, 9)
    with pytest.raises(ModelError, match=r"p and reference r .* all 2 responses: .* 0\.0001 nats"):
        require_some_reward([same, missing, at_noise], models)
    require_some_reward([same, ImplicitScore(1e-4, -64.001, -64.0, 9)], models)
