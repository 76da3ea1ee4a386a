"""Judges that run a model in this process, killed in the middle: nothing is lost, nothing is done twice."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.generate.journal import Journal
from tests.tiny import make_model_folder

pytestmark = pytest.mark.slow

JUDGING = """
import sys
from prefopt.generate.base import Sampling
from prefopt.generate.journal import Journal
from prefopt.generate.local import LocalGenerator
from prefopt.judge.base import WrongSolution
from prefopt.judge.reward import RewardModelScorer, ThresholdLocator
from prefopt.judge.rollout import RolloutScorer
from prefopt.judge.turning import RolloutLocator
from prefopt.models.load import load_model

by, folder, path = sys.argv[1:]
loaded = load_model(folder)
if by == "rollouts":
    scorer = RolloutScorer(
        LocalGenerator(loaded.model, loaded.tokenizer, batch_size=8),
        lambda xs: [sum(map(ord, text)) % 3 == 0 for _, text in xs],
        prompt=lambda s: s.question,
        samples=4,
        sampling=Sampling(temperature=1.0, max_new_tokens=4, stop=("e",), purpose="rollouts"),
    )
    locator = RolloutLocator(scorer, effort=2)
else:
    scorer = RewardModelScorer(
        loaded.model, loaded.tokenizer, step_tag="#", good="+", bad="-", batch_size=1
    )
    locator = ThresholdLocator(scorer)
text = "Step 1: 3 + 4 = 7\\nStep 2: 7 - 2 = 4\\nStep 3: 4"
solutions = [WrongSolution(f"s{k}", f"{k} + 4?", "", "5", text) for k in range(12 if by == "rollouts" else 200)]
with Journal(path) as journal:
    found = locator.locate(solutions, journal=journal, progress=lambda d, n: print(d, flush=True))
    print(len(found))
"""


@pytest.mark.parametrize("by", ["rollouts", "reward_model"])
def test_a_killed_judge_goes_on_where_it_was(by: str, tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    folder = make_model_folder(tmp_path / "m", "llama")
    command = [sys.executable, "-c", JUDGING, by, str(folder), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        while (reported := int(child.stdout.readline())) < 20:
            pass
        child.send_signal(signal.SIGKILL)
    with Journal(path) as journal:
        held = journal.count()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *counts, judged = done.stdout.splitlines()
    with Journal(path) as journal:
        whole = journal.count()
    assert reported <= held < whole
    assert int(counts[0]) == held, "everything in the journal counts as done from the start"
    # One line for each new row: nothing that was there is made again.
    assert int(counts[-1]) == whole == held + len(set(counts)) - 1
    assert judged == str(12 if by == "rollouts" else 200)
