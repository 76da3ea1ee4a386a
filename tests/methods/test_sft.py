"""Which responses supervised training takes."""

from __future__ import annotations

from prefopt.methods.sft import METHOD, SftConfig, preferred
from prefopt.records import Pair, Preference, Response

CONFIG = SftConfig(method="sft", model_name_or_path="m", train_file="f")


def record(*responses: Response, pairs: tuple[Pair, ...] = ()) -> Preference:
    return Preference("r", "prompt", responses, pairs)


def test_only_the_best_of_a_ranking() -> None:
    ranking = record(Response("a"), Response("b"), Response("c"), pairs=(Pair(1, 0), Pair(2, 1)))
    kept = preferred(ranking, CONFIG)
    assert isinstance(kept, Preference)
    assert [r.text for r in kept.responses] == ["c"]
    assert kept.pairs == ()


def test_undesirable_responses_are_left_out_and_alone_they_drop_the_record() -> None:
    good, bad = Response("good", label=True), Response("bad", label=False)
    kept = preferred(record(good, bad), CONFIG)
    assert isinstance(kept, Preference)
    assert kept.responses == (good,)
    assert preferred(record(bad), CONFIG) == "labelled undesirable"
    assert preferred(record(Response("plain")), CONFIG) == record(Response("plain"))
    assert METHOD.pair is preferred
