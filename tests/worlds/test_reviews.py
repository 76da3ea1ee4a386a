"""The reviews world: its reward, its language, its splits and its model."""

import math
import random
from statistics import mean

import pytest

from prefopt.errors import ConfigError
from prefopt.records import Message
from prefopt.worlds.reviews import (
    ADJECTIVES,
    Content,
    ReviewPrompt,
    ReviewSettings,
    ReviewWorld,
)

GOOD = "This comedy is very good. The plot is not rather dull. I find the acting brilliant."
PROMPT = ReviewPrompt("p", (Message("user", "?"),), "", "comedy", ("plot", "acting"))


def question_of(record):
    (message,) = record.prompt
    return message.content


@pytest.fixture(scope="module")
def world():
    return ReviewWorld()


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("The plot is good.", 1.4),
        ("The plot is very good.", 1.4 * 1.25),
        ("The plot is not good.", -1.4),
        ("The plot is not very good.", -1.4 * 1.25),
        ("The plot is slightly dull.", -1.1 * 0.5),
        ("The plot is not truly awful.", 2.6 * 1.5),
        (GOOD, 1.4 * 1.25 + 1.1 * 0.75 + 2.6),
        # Wherever they stand, also where a sentence is broken; parts of longer words do not count.
        ("good bad good", 1.4),
        ("very very fine fine not", 0.3 * 1.25 + 0.3),
        ("goodness, notgood, Good", 0.0),
        ("", 0.0),
    ],
)
def test_the_reward_by_hand(world, text, total):
    p = 1 / (1 + math.exp(-0.5 * total))
    assert world.sentiment(text) == pytest.approx(p, abs=1e-15)
    assert world.score(text) == pytest.approx(1 + p if total > 0 else p, abs=1e-15)


def test_scores_have_the_support_of_the_paper(world):
    rng = random.Random(0)
    texts = [world.review("drama", ("plot",), rng, mood=0.5) for _ in range(2000)]
    scores = [world.score(text) for text in texts]
    assert all(0 < s <= 0.5 or 1.5 < s < 2 for s in scores)
    assert 0.4 < mean(s > 1 for s in scores) < 0.6


def test_order_of_clauses_does_not_matter_and_long_texts_do_not_overflow(world):
    words = [*ADJECTIVES] * 3
    assert world.sentiment(" ".join(words)) == world.sentiment(" ".join(reversed(words))) == 0.5
    # Sums are correctly rounded, so equal contents tie exactly.
    first, second = "fine good weak nice", "nice weak fine good"
    assert world.score(first) == world.score(second)
    assert world.sentiment("brilliant " * 10_000) == 1.0
    assert world.sentiment("awful " * 10_000) == 0.0


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (GOOD, Content("comedy", ("plot", "acting"))),
        ("This western is fine.", Content("western", ())),
        ("This western is fine. The plot is dull. The plot is bad.", Content("western", ("plot", "plot"))),
        ("This western is fine", None),
        ("This western is.", None),
        ("This plot is fine.", None),
        ("This western is fine. The plot dull.", None),
        ("This western is fine. I find the plot is dull.", None),
        ("This western is fine. The plot is very not dull.", None),
        ("This western is fine.  The plot is dull.", None),
        ("The plot is dull. This western is fine.", None),
        ("This western is fine. ", None),
        ("", None),
    ],
)  # fmt: skip
def test_what_a_review_is_about(world, text, content):
    assert world.content(text) == content
    assert world.is_faithful(PROMPT, text) is (content == Content("comedy", ("plot", "acting")))


def test_references_are_favourable_and_cover_what_is_asked(world):
    prompts = world.prompts("test", 200)
    for prompt in prompts:
        assert world.is_faithful(prompt, prompt.answer)
        assert world.score(prompt.answer) > 1.95
        asked = f"Review this {prompt.kind}: {', '.join(prompt.aspects)}."
        assert prompt.prompt == (Message("user", asked),)
    assert len({p.answer for p in prompts}) == 200
    by_question = {p.prompt[0].content: p.answer for p in world.prompts("test", 600, seed=3)}
    assert all(by_question.get(p.prompt[0].content, p.answer) == p.answer for p in prompts)


def test_splits_share_no_prompt(world):
    sizes = {"train": 4000, "preference": 1200, "test": 600}
    sets = {s: {p.prompt[0].content for p in world.prompts(s, n)} for s, n in sizes.items()}
    assert {s: len(found) for s, found in sets.items()} == sizes
    assert not sets["train"] & sets["preference"] and not sets["train"] & sets["test"]
    assert not sets["preference"] & sets["test"]
    assert world.prompts("test", 50)[:10] == world.prompts("test", 10)
    first = [p.prompt for p in world.prompts("test", 10)]
    assert first != [p.prompt for p in world.prompts("test", 10, seed=1)]
    with pytest.raises(ConfigError, match=r"the test split has 645 prompts, 700 are wanted"):
        world.prompts("test", 700)


def test_the_corpus_is_balanced_and_strays_as_set():
    world = ReviewWorld(ReviewSettings(corpus_size=3000))
    scores, strays, aspects = [], 0, 0
    for record in world.corpus():
        question = question_of(record)
        content = world.content(record.responses[0].text)
        assert content is not None and content.kind in question
        asked = question.partition(": ")[2].rstrip(".").split(", ")
        assert len(asked) == len(content.aspects) and len(set(content.aspects)) == len(asked)
        strays += sum(a != b for a, b in zip(asked, content.aspects, strict=True))
        aspects += len(asked)
        scores.append(world.score(record.responses[0].text))
    assert mean(s > 1 for s in scores) == pytest.approx(0.5, abs=0.03)
    assert strays / aspects == pytest.approx(0.15, abs=0.02)
    assert min(scores) < 0.05 and max(scores) > 1.95


def test_without_strays_every_review_is_faithful():
    world = ReviewWorld(ReviewSettings(stray_rate=0, negation_rate=0, intensifier_rate=0))
    prompts = {p.prompt[0].content: p for p in world.prompts("train", 4000)}
    records = [r for r in world.corpus() if question_of(r) in prompts]
    assert len(records) > 5000
    for record in records[:1000]:
        text = record.responses[0].text
        assert world.is_faithful(prompts[question_of(record)], text)
        assert " not " not in text and " very " not in text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sharpness": 0.0}, "sharpness is 0.0; use more than 0"),
        ({"negation_rate": 1.5}, "negation_rate is 1.5; use 0 to 1"),
        ({"intensifier_rate": -1.0}, "intensifier_rate is -1.0; use 0 to 1"),
        ({"stray_rate": 2.0}, "stray_rate is 2.0; use 0 to 1"),
        ({"corpus_size": 0}, "corpus_size is 0; use 1 or more"),
        ({"hidden_size": 100}, "hidden_size is 100; use a multiple of 8"),
        ({"layers": 0}, "layers is 0; use 1 or more"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=f"reviews world: {message}"):
        ReviewSettings(**setting)


def test_every_text_is_made_of_its_tokens():
    world = ReviewWorld(ReviewSettings(corpus_size=300))
    tokenizer = world.tokenizer()
    assert 60 <= len(tokenizer) <= 120
    for record in world.corpus():
        for text in (question_of(record), record.responses[0].text):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
        assert 12 <= len(ids) <= 30
    ids = tokenizer("This comedy is not very good.", add_special_tokens=False)["input_ids"]
    words = ["This", " comedy", " is", " not", " very", " good", "."]
    assert tokenizer.convert_ids_to_tokens(ids) == words


def test_equal_settings_make_equal_worlds():
    first, second = ReviewWorld(), ReviewWorld(ReviewSettings())
    assert first.digest() == second.digest()
    assert first.prompts("train", 5) == second.prompts("train", 5)
    assert first.digest() != ReviewWorld(ReviewSettings(seed=1)).digest()
    assert first.digest() != ReviewWorld(ReviewSettings(stray_rate=0.1)).digest()
