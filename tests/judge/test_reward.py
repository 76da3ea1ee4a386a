"""Step scores from a reward model, against the model's own full logits, and the threshold on top of them."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.errors import ConfigError
from prefopt.generate.journal import Journal
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

    def scores(self, solutions, *, journal, progress=None, right=False):
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


def test_a_solution_beyond_the_context_is_undecided_and_the_others_go_on(loaded):
    scorer = RewardModelScorer(*loaded, step_tag=TAG, good=GOOD, bad=BAD)
    long = WrongSolution("long", "q", "", "5", "Step 1: " + "7 + 4 = 2. " * 100)
    locator = ThresholdLocator(scorer, threshold=1e-9)
    found = locator.locate([long, *SOLUTIONS], journal=None)
    assert [x.verdict for x in found] == ["undecided", "none", "none", "undecided", "none"]
    assert found[0].remark == "not scored: longer than the scorer can read"
    assert found[3].remark == "not scored: the solution has no numbered steps"


def test_scores_are_kept_in_the_journal(loaded, tmp_path, monkeypatch):
    model, tokenizer = loaded
    labels: dict[str, Any] = {"step_tag": TAG, "good": GOOD, "bad": BAD}
    scorer = RewardModelScorer(model, tokenizer, batch_size=2, **labels)
    batches = []
    score = scorer._score
    monkeypatch.setattr(scorer, "_score", lambda rows: batches.append(len(rows)) or score(rows))
    with Journal(tmp_path / "j.sqlite") as journal:
        first = scorer.scores(SOLUTIONS[:2], journal=journal)
        assert (batches, journal.count()) == ([2], 2)
        seen = []
        both = scorer.scores(SOLUTIONS, journal=journal, progress=lambda d, n: seen.append((d, n)))
        assert (batches, journal.count()) == ([2, 1], 3)
        assert both[:2] == first and seen == [(3, 4), (4, 4)]
        assert scorer.scores(SOLUTIONS, journal=journal) == both and batches == [2, 1]
        changed = SOLUTIONS[1]._replace(text="Step 1: 5")
        assert scorer.scores([changed], journal=journal) != [first[1]]
    assert RewardModelScorer(model, tokenizer, **labels).identity == scorer.identity
    swapped = RewardModelScorer(model, tokenizer, step_tag=TAG, good=BAD, bad=GOOD)
    assert swapped.identity != scorer.identity
    other = RewardModelScorer(model, tokenizer, step_tag=".", good=GOOD, bad=BAD)
    assert other.identity != scorer.identity
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 3] += 1
    assert RewardModelScorer(model, tokenizer, **labels).identity != scorer.identity
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 3] -= 1


@pytest.mark.parametrize(
    ("scores", "threshold", "number", "verdict"),
    [
        ([0.9, 0.4, 0.1], 0.5, 2, "found"),
        ([0.9, 0.4, 0.1], 0.3, 3, "found"),
        ([0.5, 0.5], 0.5, None, "none"),
        ([], 0.5, None, "undecided"),
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
