"""Which differences between judges keep models from being compared."""

from pathlib import Path

import pytest

from prefopt.errors import RecordError
from prefopt.evals.given import Entrant
from prefopt.evals.same_judge import judged_alike

SETTINGS = {
    "kind": "pairwise",
    "target": "j",
    "server": "http://one/v1",
    "generator": "f00",
    "rules": "agreed",
    "template": "abc",
    "order": "both",
    "temperature": 0.0,
    "seed": 0,
    "outputs_sha256": "1",
}


def entrant(name, judge):
    return Entrant(name, "base", Path(name), [], 0, 0, itself=False, judge=judge)


def remarks(first, second, *, mixed=False):
    return judged_alike([entrant("a", first), entrant("b", second)], mixed=mixed)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"outputs_sha256": "2", "seed": 5, "join": "id"},
        # An address that is known to be the same model has the same identity.
        {"server": "http://two/v1", "known_as": "http://one/v1"},
    ],
)
def test_files_seeds_and_known_addresses_may_differ(change):
    assert remarks(SETTINGS, {**SETTINGS, **change}) == []
    assert judged_alike([entrant("a", SETTINGS)], mixed=False) == []


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"order": "random"}, "order both / random"),
        ({"rules": "last"}, "rules agreed / last"),
        ({"template": "xyz"}, "template abc / xyz"),
        ({"temperature": 0.7}, "temperature 0.0 / 0.7"),
        ({"target": "k", "generator": "b0"}, "model j at http://one/v1 / k at http://one/v1"),
        ({"generator": "b0"}, "model j at http://one/v1, with other content"),
        ({"generator": "b0", "server": None}, "model j at http://one/v1 / j"),
        (
            {"generator": "b0", "server": "http://two/v1", "rules": "last"},
            "model j at http://one/v1 / j at http://two/v1; rules agreed / last",
        ),
    ],
)
def test_other_judges_are_refused_or_remarked(change, shown):
    with pytest.raises(RecordError) as refused:
        remarks(SETTINGS, {**SETTINGS, **change})
    assert str(refused.value) == (
        f"a and b were judged differently ({shown}), which is no difference between models; judge both alike, or give "
        "--mixed-judges to compare them all the same"
    )
    assert remarks(SETTINGS, {**SETTINGS, **change}, mixed=True) == [
        f"a and b were judged differently ({shown}): what is between them is also between their judges"
    ]


def test_one_name_at_two_addresses_is_one_judge_with_a_remark():
    assert remarks(SETTINGS, {**SETTINGS, "generator": "b0", "server": "http://two/v1"}) == [
        "a and b: one judge is taken to be at both addresses (model j at http://one/v1 / j at http://two/v1)"
    ]


def test_annotators_are_judges():
    assert remarks({"annotator": "x"}, {"annotator": "x"}) == remarks({}, {}) == []
    with pytest.raises(RecordError, match=r"differently \(annotator x / y\)"):
        remarks({"annotator": "x"}, {"annotator": "y"})
    assert remarks({}, {"annotator": "y"}) == [
        "a and b: who judged one of them is unknown (annotator none / y)"
    ]
    with pytest.raises(RecordError, match=r"differently \(judge j / x\)"):
        remarks(SETTINGS, {"annotator": "x"})


def test_every_model_is_compared_with_the_first():
    others = [entrant("b", SETTINGS), entrant("c", {**SETTINGS, "rules": "last"})]
    with pytest.raises(RecordError, match="a and c were judged differently"):
        judged_alike([entrant("a", SETTINGS), *others], mixed=False)
