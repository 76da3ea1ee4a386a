"""Preference data from a model's own scored samples."""

import pytest

from prefopt.errors import ConfigError
from prefopt.generate.base import Sampling
from prefopt.generate.journal import Journal
from prefopt.generate.local import LocalGenerator
from prefopt.records import Pair, Preference, Response
from prefopt.worlds.reviews import ReviewSettings, ReviewWorld
from prefopt.worlds.scored import all_pairs, first_two, scored_samples

SAMPLING = Sampling(temperature=1.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def world():
    return ReviewWorld(ReviewSettings(hidden_size=32, layers=1))


def record(name, *scores):
    return Preference(name, "?", tuple(Response(f"{k}", score=s) for k, s in enumerate(scores)))


def test_first_two_takes_the_first_two():
    data = first_two([record("a", 0.2, 1.8, 1.9), record("b", 1.7, 0.1), record("c", 0.3, 0.3, 2)])
    assert [(r.id, r.pairs, len(r.responses)) for r in data.records] == [
        ("a", (Pair(1, 0),), 2),
        ("b", (Pair(0, 1),), 2),
    ]
    assert data.tied == 1


def test_all_pairs_leaves_ties_out():
    data = all_pairs([record("a", 0.2, 1.8, 0.2), record("b", 1.0, 1.0)])
    assert [(r.id, r.pairs) for r in data.records] == [("a", (Pair(1, 0), Pair(1, 2)))]
    assert data.tied == 1


def test_samples_are_scored_as_they_are(world, tmp_path):
    generator = LocalGenerator(world.blank_model(), world.tokenizer(), batch_size=16)
    prompts = world.prompts("preference", 6)
    build = lambda journal: scored_samples(  # noqa: E731
        prompts, generator, world.score, samples=3, sampling=SAMPLING, journal=journal
    )
    with Journal(tmp_path / "j.sqlite") as journal:
        records = build(journal)
        assert journal.count() == 18
        assert build(journal) == records
    assert [r.id for r in records] == [p.id for p in prompts]
    assert [r.prompt for r in records] == [p.prompt for p in prompts]
    texts = {r.text for record in records for r in record.responses}
    assert len(texts) > 15
    for found in records:
        assert len(found.responses) == 3 and found.pairs == ()
        assert [r.score for r in found.responses] == [world.score(r.text) for r in found.responses]
    # An untrained model rarely ends a text: what was cut is marked.
    assert any(not r.ends for record in records for r in record.responses)


def test_what_cannot_make_pairs_is_refused(world):
    generator = LocalGenerator(world.blank_model(), world.tokenizer())
    with pytest.raises(ConfigError, match="samples is 1; a pair needs 2 or more"):
        scored_samples([], generator, world.score, samples=1, sampling=SAMPLING)
    with pytest.raises(ConfigError, match="temperature is 0"):
        scored_samples([], generator, world.score, samples=2, sampling=Sampling())
