"""The base model of a world: trained once, found again, for each world under a name of its own."""

import pytest

from prefopt.methods.base import find_method
from prefopt.models.load import load_model
from prefopt.runs.base_model import base_model
from prefopt.worlds.arithmetic import ArithmeticSettings, ArithmeticWorld
from prefopt.worlds.reviews import ReviewSettings, ReviewWorld

WORLDS = [
    ReviewWorld(ReviewSettings(corpus_size=64, hidden_size=32, layers=1)),
    ArithmeticWorld(ArithmeticSettings(corpus_size=64, hidden_size=32, layers=1)),
]


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.name)
def test_trained_once_and_kept(world, tmp_path):
    sft = find_method("sft")
    folder = base_model(world, sft, cache=tmp_path)
    assert folder == tmp_path / "worlds" / f"{world.name}-{world.digest()}" / "model"
    weights = folder / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert base_model(world, sft, cache=tmp_path) == folder
    assert weights.stat().st_mtime_ns == written
    assert [p.name for p in (tmp_path / "worlds").iterdir()] == [folder.parent.name]
    assert load_model(folder).model.num_parameters() == world.blank_model().num_parameters()
