"""What all worlds of texts have in common: an ordinary model folder, a corpus file, a digest to cache them under."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from prefopt.errors import StorageError
from prefopt.models.load import load_model
from prefopt.records import read_preferences
from prefopt.text.blocks import SPECIAL_TOKENS
from prefopt.worlds.arithmetic import ArithmeticSettings, ArithmeticWorld
from prefopt.worlds.programs import ProgramSettings, ProgramWorld
from prefopt.worlds.reviews import ReviewSettings, ReviewWorld
from prefopt.worlds.rooms import RoomsSettings, RoomsWorld
from prefopt.worlds.text_world import TextWorld


class Case(NamedTuple):
    """A world, itself with a corpus of 20, and what it is known to be."""

    world: TextWorld[Any]
    small: TextWorld[Any]
    digest: str
    parameters: int


CASES = {
    "arithmetic": Case(
        ArithmeticWorld(),
        ArithmeticWorld(ArithmeticSettings(corpus_size=20)),
        "50ace0ee4ddda60f",
        348_288,
    ),
    "programs": Case(
        ProgramWorld(),
        ProgramWorld(ProgramSettings(corpus_size=20)),
        "293ff013930bf69c",
        366_464,
    ),
    "reviews": Case(
        ReviewWorld(),
        ReviewWorld(ReviewSettings(corpus_size=20)),
        "c687113dde399e28",
        197_280,
    ),
    "rooms": Case(
        RoomsWorld(),
        RoomsWorld(RoomsSettings(corpus_size=20)),
        "6848de28b8d961cf",
        353_664,
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_the_blank_model_is_an_ordinary_folder(case: Case, tmp_path: Path):
    state = torch.get_rng_state()
    loaded = load_model(case.world.save_blank(tmp_path / "models" / "blank", seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.model.config.model_type == "llama"
    assert loaded.model.num_parameters() == case.parameters
    assert loaded.model.config.max_position_embeddings == case.world.positions
    assert loaded.model.config.eos_token_id == loaded.tokenizer.eos_token_id
    again, other = case.world.blank_model(3), case.world.blank_model(4)
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(again.lm_head.weight, other.lm_head.weight)


def test_the_markers_of_programs_are_special_tokens_of_the_saved_tokenizer(tmp_path: Path):
    loaded = load_model(CASES["programs"].world.save_blank(tmp_path / "blank"))
    assert set(SPECIAL_TOKENS) <= set(loaded.tokenizer.all_special_tokens)


def test_the_corpus_file_is_read_back(case: Case, tmp_path: Path):
    path = case.small.write_sft_data(tmp_path / "data" / "corpus.jsonl")
    found = [(r.id, r.prompt, r.responses) for r in read_preferences(path)]
    assert len(found) == 20
    assert found == [(r.id, r.prompt, r.responses) for r in case.small.corpus()]
    with pytest.raises(StorageError, match="cannot make its folder"):
        case.small.write_sft_data(path / "corpus.jsonl")


def test_a_trained_base_model_stays_known(case: Case):
    """Another digest trains every base model anew; recipes' numbers belong to these."""
    assert case.world.digest() == case.digest
    assert case.small.digest() != case.digest
