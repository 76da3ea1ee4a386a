"""Step scores from a reward model, against the model's own full logits, and the threshold on top of them."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.errors import ConfigError, RecordError
from prefopt.judge.base import Location, WrongSolution
from prefopt.judge.reward import RewardModelScorer, ThresholdLocator
from tests.tiny import make_model_folder

TEXTS = [
    "Sure.\nStep 1: 3 + 4 = 7\nStep 2: 7 - 2 = 4\nStep 3: The answer is 4.",
    "Step 1: 4",
    "no steps at all",
    "Step 1: 3 + 4 = 7 \nStep 2: 5",
]
SOLUTIONS = [WrongSolution(f"s{k}", "What is 3 + 4 - 2?", "", "5", t) for k, t in enumerate(TEXTS)]
READ = [
    "What is 3 + 4 - 2? Step 1: 3 + 4 = 7 #\nStep 2: 7 - 2 = 4 #\nStep 3: The answer is 4. #\n",
    "What is 3 + 4 - 2? Step 1: 4 #\n",
    None,
    "What is 3 + 4 - 2? Step 1: 3 + 4 = 7 #\nStep 2: 5 #\n",
]
TAG, GOOD, BAD = "#", "+", "-"


class Fixed:
    name = "fixed"

    def __init__(self, *rows):
        self.rows = list(rows)

    def scores(self, solutions, *, journal, progress=None):
        return self.rows


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def loaded(request, tmp_path_factory):
    folder = make_model_folder(tmp_path_factory.mktemp("prm") / "m", request.param)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_scores_are_those_of_the_full_logits(loaded, batch_size):
    model, tokenizer = loaded
    scorer = RewardModelScorer(
        model, tokenizer, step_tag=TAG, good=GOOD, bad=BAD, batch_size=batch_size
    )
    seen = []
    scores = scorer.scores(SOLUTIONS, journal=None, progress=lambda d, n: seen.append((d, n)))
    assert [len(row) for row in scores] == [3, 1, 0, 2]
    assert seen[-1] == (4, 4)
    tag, good, bad = (tokenizer.encode(x, add_special_tokens=False)[-1] for x in (TAG, GOOD, BAD))
    for text, row in zip(READ, scores, strict=True):
        if text is None:
            continue
        tokens = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logits = model(tokens).logits[0][tokens[0] == tag][:, [good, bad]]
        # Another padding and batch: rounding of float32 matrix products.
        assert row == pytest.approx(logits.softmax(-1)[:, 0].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"step_tag": "Step one"}, "step_tag 'Step one' is not one token of this tokenizer"),
        ({"good": ""}, "good '' is not one token"),
        ({"good": "-"}, "good and bad are the same token '-'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_tokens_are_named(loaded, names, message):
    names = {"step_tag": TAG, "good": GOOD, "bad": BAD, **names}
    with pytest.raises(ConfigError, match=message):
        RewardModelScorer(*loaded, **names)


def test_a_solution_beyond_the_context_is_named(loaded):
    scorer = RewardModelScorer(*loaded, step_tag=TAG, good=GOOD, bad=BAD)
    long = WrongSolution("long", "q", "", "5", "Step 1: " + "7 + 4 = 2. " * 100)
    with pytest.raises(RecordError, match="record 'long': .* tokens, the reward model's context"):
        scorer.scores([long], journal=None)


@pytest.mark.parametrize(
    ("scores", "threshold", "number", "verdict"),
    [
        ([0.9, 0.4, 0.1], 0.5, 2, "found"),
        ([0.9, 0.4, 0.1], 0.3, 3, "found"),
        ([0.5, 0.5], 0.5, None, "none"),
        ([], 0.5, None, "missing"),
        ([0.9, math.nan, 0.1], 0.5, None, "failed"),
        ([0.2, math.nan], 0.5, 1, "found"),
    ],
)
def test_the_first_step_below_the_threshold(scores, threshold, number, verdict):
    locator = ThresholdLocator(Fixed(scores), threshold=threshold)
    (found,) = locator.locate(SOLUTIONS[:1], journal=None)
    assert (found.number, found.verdict) == (number, verdict)
    assert locator.name == "fixed"


def test_the_remark_shows_all_scores_and_thresholds_have_bounds():
    found = ThresholdLocator(Fixed([0.25, 1.0])).locate(SOLUTIONS[:1], journal=None)
    assert found == [Location(1, "found", "scores 0.25 1")]
    with pytest.raises(ConfigError, match="threshold is 0"):
        ThresholdLocator(Fixed(), threshold=0)
