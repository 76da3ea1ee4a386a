"""BLEU-4 and ROUGE-L against counts by hand and an independent corpus BLEU."""

import math
import random
import sys
from collections import Counter

import pytest

from prefopt.errors import MissingExtraError
from prefopt.grade.text import bleu4, rouge_l

OUTPUT = "the cat sat on the mat today"
REFERENCE = "the cat sat on the red mat today"


def corpus_bleu(outputs, references):
    """From the definition; every order has matches in the texts below, so nothing is smoothed."""
    matched, total, o, r = Counter(), Counter(), 0, 0
    for output, reference in zip(outputs, references, strict=True):
        a, b = output.split(), reference.split()
        o, r = o + len(a), r + len(b)
        for n in range(1, 5):
            grams = [Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in (a, b)]
            matched[n] += (grams[0] & grams[1]).total()
            total[n] += grams[0].total()
    product = math.prod(matched[n] / total[n] for n in range(1, 5))
    return 100 * min(1, math.exp(1 - r / o)) * product**0.25


def test_bleu_by_hand():
    # 7/7, 5/6, 3/5 and 2/4 of the n-grams match, 7 tokens against 8.
    expected = 100 * math.exp(1 - 8 / 7) * (5 / 6 * 3 / 5 * 2 / 4) ** 0.25
    found = bleu4([OUTPUT], [REFERENCE])
    assert found.value == pytest.approx(expected, abs=1e-10)
    assert expected == pytest.approx(61.297, abs=1e-3)
    # One sentence resampled is that sentence.
    assert found.low == pytest.approx(found.value) and found.high == pytest.approx(found.value)


def test_bleu_counts_over_the_corpus():
    rng = random.Random(0)
    words = ["a", "b", "c", "d", "e"]
    references = [" ".join(rng.choices(words, k=rng.randint(6, 15))) for _ in range(60)]
    outputs = [
        " ".join(w if rng.random() < 0.8 else rng.choice(words) for w in text.split()[:-1])
        for text in references
    ]
    found = bleu4(outputs, references, seed=1)
    assert found.value == pytest.approx(corpus_bleu(outputs, references), abs=1e-9)
    # The interval against a plain bootstrap with other draws.
    plain = []
    for _ in range(300):
        drawn = rng.choices(range(60), k=60)
        plain.append(corpus_bleu([outputs[i] for i in drawn], [references[i] for i in drawn]))
    plain.sort()
    assert found.low == pytest.approx(plain[7], abs=1.5)
    assert found.high == pytest.approx(plain[-8], abs=1.5)
    assert found == bleu4(outputs, references, seed=1)
    narrower = bleu4(outputs, references, level=0.5)
    assert found.low < narrower.low < narrower.high < found.high


def test_rouge_by_hand():
    # A common subsequence of 4: precision 4/4, recall 4/5. Case and punctuation do not count.
    assert rouge_l(["The plot is good."], ["the plot is very good"]).value == pytest.approx(800 / 9)
    found = rouge_l(["a b", "c d", "e f"], ["a b", "x y", "e x"])
    assert found.value == pytest.approx((100 + 0 + 50) / 3)
    assert found.low == pytest.approx(0) and found.high == pytest.approx(100)


def test_ends_of_the_scale():
    texts = ["this comedy is very good .", "the plot is not dull ."]
    assert bleu4(texts, texts) == pytest.approx((100, 100, 100))
    assert rouge_l(texts, texts) == pytest.approx((100, 100, 100))
    other = ["x y z w v", ""]
    assert bleu4(other, texts).value < 5 and rouge_l(other, texts).value == 0
    assert bleu4(["", ""], texts).value == 0


@pytest.mark.parametrize("metric", [bleu4, rouge_l])
def test_what_cannot_be_compared_is_refused(metric):
    with pytest.raises(ValueError, match="2 outputs and 1 references; give one reference for each"):
        metric(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="0 outputs and 0 references"):
        metric([], [])
    with pytest.raises(TypeError, match="a single string was given"):
        metric("a", "a")
    with pytest.raises(ValueError, match=r"the level is 95"):
        metric(["a b c d"], ["a b c d"], level=95)


@pytest.mark.parametrize(
    ("metric", "module", "package"),
    [(bleu4, "sacrebleu", "sacrebleu"), (rouge_l, "rouge_score", "rouge-score")],
)
def test_a_missing_package_names_the_extra(metric, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingExtraError, match=rf"{package}, .* run: pip install 'prefopt\[eval\]'"
    ):
        metric(["a"], ["a"])


@pytest.mark.parametrize(
    ("outputs", "references"),
    [
        (["the cat sat on mat", "a dog ran"], ["the cat lay upon mat", "the dog runs"]),
        (["It is fine.", "not at all, no"], ["It is very fine.", "not at all"]),
        (["x"], ["y"]),
    ],
)
def test_bleu_is_sacrebleu(outputs, references) -> None:
    """Also where no n-gram of some order matches and smoothing decides."""
    import sacrebleu

    expected = sacrebleu.corpus_bleu(outputs, [references]).score
    assert bleu4(outputs, references).value == pytest.approx(expected, abs=1e-9)
