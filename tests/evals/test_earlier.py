"""In what evaluations differ, what may be replaced, and what can be compared."""

import json

import pytest

from prefopt.errors import ConfigError, RecordError, StorageError
from prefopt.evals.earlier import (
    Earlier,
    differences,
    read_earlier,
    require_comparable,
    require_replaceable,
)
from prefopt.evals.maths import Evaluation, Output, write_evaluation
from prefopt.text.problems import MathProblem

SETTINGS = {
    "target": "runs/a/model",
    "server": None,
    "generator": "1111",
    "style": "alpaca",
    "code": False,
    "columns": {},
    "limit": None,
    "problems": "sums.jsonl",
    "problems_sha256": "aaaa",
}


def evaluation(**settings):
    outputs = tuple(Output(f"p{i}", "?", str(i), "text", i == 0) for i in range(2))
    return Evaluation("a", 1, 2, 0.5, 0.1, 0.9, outputs, split="sums", settings=settings)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"target": "moved", "problems": "copy.jsonl"}, {}),
        ({"style": "chat"}, {"style": "alpaca / chat"}),
        ({"limit": 5, "code": True}, {"limit": "none / 5", "code": "no / yes"}),
        ({"columns": {"question": "q", "answer": "a"}}, {"columns": "none / question=q,answer=a"}),
        ({"generator": "2222", "target": "b"}, {"model": "runs/a/model / b"}),
        ({"generator": "2222"}, {"model": "runs/a/model, with other content"}),
        (
            {"generator": "2222", "server": "http://h/v1"},
            {"model": "runs/a/model / runs/a/model at http://h/v1"},
        ),
        ({"problems_sha256": "bbbb"}, {"problems": "sums.jsonl, with other content"}),
        ({"new": 1}, {"new": "none / 1"}),
    ],
)
def test_models_and_files_are_compared_by_content(change, expected):
    assert differences(SETTINGS, {**SETTINGS, **change}) == expected


def test_settings_that_only_the_earlier_one_has_count():
    assert differences({**SETTINGS, "old": 1}, SETTINGS) == {"old": "1 / none"}


def test_equal_settings_replace_and_others_only_on_demand(tmp_path, capsys):
    assert require_replaceable(tmp_path, SETTINGS, overwrite=False) is None
    write_evaluation(evaluation(**SETTINGS), tmp_path)
    assert require_replaceable(tmp_path, SETTINGS, overwrite=False) == (1, 2)
    assert capsys.readouterr() == ("", "")
    other = {**SETTINGS, "style": "chat", "limit": 1}
    message = (
        r"holds an evaluation of a on sums with other settings \(then / now: style alpaca / chat; limit none / 1\); "
        "give this one a folder of its own with --output, or replace it with --overwrite"
    )
    with pytest.raises(ConfigError, match=message):
        require_replaceable(tmp_path, other, overwrite=False)
    assert require_replaceable(tmp_path, other, overwrite=True) == (1, 2)
    said = capsys.readouterr().err
    assert f"{tmp_path}: replaces an evaluation of a on sums with other settings" in said


def test_results_of_unknown_settings_and_broken_files_are_not_replaced_unasked(tmp_path, capsys):
    write_evaluation(evaluation(), tmp_path)
    with pytest.raises(ConfigError, match="on sums with settings that it does not say; give"):
        require_replaceable(tmp_path, SETTINGS, overwrite=False)
    (tmp_path / "evaluation.json").write_text('{"name": ')
    with pytest.raises(RecordError, match=r"evaluation.json:1: broken JSON .* with --overwrite"):
        require_replaceable(tmp_path, SETTINGS, overwrite=False)
    assert require_replaceable(tmp_path, SETTINGS, overwrite=True) is None
    assert "broken JSON" in capsys.readouterr().err


def test_another_file_of_results_is_judged_alike(tmp_path):
    facts = {"name": "a", "settings": {"tasks": "gsm8k"}}
    (tmp_path / "harness.json").write_text(json.dumps(facts))
    assert require_replaceable(
        tmp_path, {"tasks": "gsm8k"}, overwrite=False, file="harness.json"
    ) == (None, None)
    with pytest.raises(ConfigError, match="an evaluation of a with .*tasks gsm8k / arc_easy"):
        require_replaceable(tmp_path, {"tasks": "arc_easy"}, overwrite=False, file="harness.json")


def test_one_file_is_in_the_folder_and_several_are_below_it(tmp_path):
    for folder in ("one", "many/x", "many/y", "run/evaluations/x", "run/evaluations/y", "run"):
        write_evaluation(evaluation(), tmp_path / folder)
    for given, names, expected in (
        ("one", ["x"], ["one"]),
        ("run", ["x"], ["run"]),
        ("many", ["x", "y"], ["many/x", "many/y"]),
        ("run", ["x", "y"], ["run/evaluations/x", "run/evaluations/y"]),
    ):
        found = read_earlier(tmp_path / given, names)
        assert [e.folder for e in found] == [tmp_path / name for name in expected]
    with pytest.raises(StorageError, match=r"many/z: holds no evaluation\.json"):
        read_earlier(tmp_path / "many", ["x", "z"])


def test_only_the_same_problems_can_be_compared(tmp_path):
    def problems(*answers):
        return [MathProblem(f"p{i}", "?", answer, "?") for i, answer in enumerate(answers)]

    earlier = Earlier(tmp_path / "base", evaluation())
    require_comparable(earlier, problems("0", "1"), "sums.jsonl")
    with pytest.raises(ConfigError, match=r"base and sums\.jsonl share 2 of their 2 and 3 problem"):
        require_comparable(earlier, problems("0", "1", "2"), "sums.jsonl")
    with pytest.raises(ConfigError, match=r"and sums\.jsonl differ in the right answer to 'p1'"):
        require_comparable(earlier, problems("0", "2"), "sums.jsonl")
