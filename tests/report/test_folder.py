import json

import pytest

from prefopt.errors import ConfigError, StorageError
from prefopt.report.folder import read_run, read_runs


def make_run(path, metrics="", **files):
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    for name, text in files.items():
        stem, _, ending = name.rpartition("_")
        (path / f"{stem.replace('_', '-')}.{ending}").write_text(text, encoding="utf-8")
    return path


def test_reads_every_file(three_runs):
    base, dpo, _ = read_runs(three_runs)
    assert (base.trained, base.saved) == (False, None)
    assert base.evaluation is not None
    assert base.evaluation.correct == 306
    assert dpo.trained
    assert dpo.saved == pytest.approx(1 - 30_412 / 47_300)
    assert dpo.settings["learning_rate"] == 1e-5
    assert list(dpo.ledgers) == ["train", "eval"]
    assert len(dpo.samples) == 60
    assert list(dpo.series["eval_loss"].steps) == [30, 60, 90]
    assert len(dpo.series["loss"].steps) == 90
    assert not dpo.unread


def test_a_line_cut_by_a_kill_is_skipped_and_said(tmp_path):
    run = read_run(make_run(tmp_path / "r", '{"step": 1, "loss": 0.7}\n{"step": 2, "lo'))
    assert list(run.series["loss"].steps) == [1]
    assert list(run.unread) == [
        "metrics.jsonl:2 is half written, as after a kill; the line is skipped."
    ]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    lines = '{"step": 1, "loss": 0.7}\n{"step": 2{"step": 2, "loss": 1}\n\n{"step": 3, "loss": 0.5}\n[4]\n'
    run = read_run(make_run(tmp_path / "r", lines))
    assert list(run.series["loss"].steps) == [1, 3]
    assert [text.split(";")[0] for text in run.unread] == [
        "metrics.jsonl:2 is no valid JSON object",
        "metrics.jsonl:5 is half written, as after a kill",
    ]


def test_lines_after_a_resume_replace_the_ones_before(tmp_path):
    rows = [(1, 0.7), (2, 0.6), (3, 0.5), (4, 9.9), (3, 0.55), (4, 0.45)]
    text = "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in rows)
    run = read_run(make_run(tmp_path / "r", text))
    assert list(run.series["loss"].steps) == [1, 2, 3, 4]
    assert list(run.series["loss"].values) == [0.7, 0.6, 0.55, 0.45]


def test_lines_without_a_step_are_counted(tmp_path):
    run = read_run(
        make_run(tmp_path / "r", '{"loss": 1}\n{"step": "3"}\n{"step": 1, "note": "x"}\n')
    )
    assert list(run.unread) == ['metrics.jsonl: lines without a number under "step" skipped: 2.']
    assert not run.series


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"plan_json": "{"}, "plan.json:1 is no valid JSON"),
        ({"env_json": "[1]"}, "env.json holds a list, not an object"),
        ({"run_yaml": "a: [1"}, "run.yaml is no valid YAML"),
        ({"run_yaml": "- 1"}, "run.yaml holds a list, not a recipe"),
        (
            {"evaluation_json": '{"metric": "accuracy"}'},
            'evaluation.json holds no number under "value"',
        ),
        ({"evaluation_json": '{"value": NaN}'}, 'evaluation.json holds no number under "value"'),
        ({"samples_jsonl": "{}\nnull\n{}\n"}, "samples.jsonl:2 is no valid JSON object"),
    ],
)
def test_an_unreadable_file_is_left_out_and_said(tmp_path, files, said):
    run = read_run(make_run(tmp_path / "r", **files))
    assert len(run.unread) == 1
    assert run.unread[0].startswith(said)


def test_messages_are_written_with_their_roles(tmp_path):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    row = json.dumps({"id": 7, "prompt": prompt, "chosen": "4", "rejected": None, "margin": True})
    sample = read_run(make_run(tmp_path / "r", samples_jsonl=row)).samples[0]
    assert sample.prompt == "system: Be brief.\n\nuser: 2 + 2?"
    assert (sample.id, sample.rejected, sample.margin) == ("7", "", None)


def test_names_come_from_the_recipe_or_the_folder_and_are_unique(tmp_path):
    first = make_run(tmp_path / "a" / "run")
    second = make_run(tmp_path / "b" / "run")
    third = make_run(tmp_path / "c", run_yaml="run_name: tuned\n")
    assert [run.name for run in read_runs([first, second, third])] == ["a/run", "b/run", "tuned"]


def test_folders_that_are_no_runs(tmp_path, three_runs):
    (tmp_path / "empty").mkdir()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="no run folder given"):
        read_runs([])
    with pytest.raises(ConfigError, match="is given twice: name each folder once"):
        read_runs([three_runs[0], three_runs[0].parent / "." / "base"])
    with pytest.raises(StorageError, match=r"'.*absent' does not exist"):
        read_run(tmp_path / "absent")
    with pytest.raises(StorageError, match="is a file: give the run folder that holds it"):
        read_run(file)
    with pytest.raises(StorageError, match=r"holds none of run\.yaml, .*give a folder that"):
        read_run(tmp_path / "empty")
    with pytest.raises(StorageError, match=r"did you mean '.*runs/base'"):
        read_run(three_runs[0].parent)


def make_chain(path, *begun, finished=False, **files):
    path.mkdir(exist_ok=True)
    (path / "chain.json").write_text('{"links": ["stage-1", "stage-2"], "earlier": []}')
    for name in begun:
        make_run(path / name, '{"step": 1, "loss": 0.7}', run_yaml="seed: 1")
    if finished:
        (path / "finished.json").write_text("{}")
    for name, text in files.items():
        (path / f"{name}.json").write_text(text)
    return path


def test_a_chain_is_its_trainings(tmp_path):
    first = make_chain(tmp_path / "a", "stage-1", "stage-2", finished=True,
                       evaluation='{"metric": "accuracy", "value": 0.5}')  # fmt: skip
    second = make_chain(tmp_path / "b", "stage-1", evaluation='{"metric": "x", "value": 1}')
    assert [run.name for run in read_runs([first])] == ["stage-1", "stage-2"]
    runs = read_runs([first, second])
    assert [run.name for run in runs] == ["a/stage-1", "stage-2", "b/stage-1"]
    found = [None if run.evaluation is None else run.evaluation.value for run in runs]
    assert found == [None, 0.5, None], "of the model at the end, which is that of the last training"
    with pytest.raises(ConfigError, match="given twice"):
        read_runs([first, first / "stage-2"])


def test_a_single_training_that_took_over_a_chain_is_one_run(tmp_path):
    chain = make_chain(tmp_path / "a", "stage-1")
    (chain / "metrics.jsonl").write_text('{"step": 1, "loss": 0.7}')
    assert [run.name for run in read_runs([chain])] == ["a"]
