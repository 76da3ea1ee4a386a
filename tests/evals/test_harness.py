"""lm-evaluation-harness on a trained folder: offline on a local task, and in agreement with our own evaluation."""

import json

import pytest

from prefopt.errors import ConfigError
from prefopt.evals.harness import HarnessSettings, run_harness
from prefopt.evals.maths import evaluate
from prefopt.evals.target import find_target, open_local
from prefopt.generate.base import Sampling
from prefopt.text.problems import load_problems
from tests.tiny import make_model_folder

TASK = """\
task: local_sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: []
  do_sample: false
  max_gen_toks: 8
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def test_settings_that_make_no_sense(tmp_path):
    with pytest.raises(ConfigError, match="limit is 0; use 1 or more"):
        HarnessSettings(limit=0)
    with pytest.raises(ConfigError, match="no such folder"):
        HarnessSettings(include_path=tmp_path / "none")


def own_outputs(model, data, count):
    generator = open_local(find_target(str(model)), device="cpu", dtype="auto", batch_size=4)
    problems = load_problems(data, style="plain")
    assert len(problems) == count
    sampling = Sampling(max_new_tokens=8, purpose="evaluation")
    return evaluate(generator, problems, lambda p, text: text == p.answer, sampling=sampling)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the harness and its dependencies
def test_agrees_with_our_own_evaluation(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval (extra `harness`) is not installed")
    model = make_model_folder(tmp_path / "model", "llama")
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"What is {a} + {a}?", "answer": "?"} for a in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = own_outputs(model, data, 6).outputs
    for row, output in list(zip(rows, written, strict=True))[:3]:
        row["answer"] = output.output
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(TASK.format(data=data))
    settings = HarnessSettings(include_path=tmp_path, batch_size=2, device="cpu")

    found = run_harness(str(model), ["local_sums"], settings, output=tmp_path / "out")

    samples = (tmp_path / "out" / "harness-samples-local_sums.jsonl").read_text().splitlines()
    resps = {row["doc_id"]: row["resps"][0][0] for row in map(json.loads, samples)}
    assert [resps[i] for i in range(6)] == [output.output for output in written]
    score = found.scores[0]
    assert (score.task, score.metric, score.problems) == ("local_sums", "exact_match", 6)
    facts = json.loads((tmp_path / "out" / "harness.json").read_text())
    assert facts["scores"][0]["value"] == score.value
    with pytest.raises(ConfigError, match="unknown task 'local_sum': did you mean 'local_sums'"):
        run_harness(str(model), ["local_sum"], settings)
