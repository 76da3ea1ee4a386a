"""From scored answers to pairs: the edge cases of DICE's sheet."""

from __future__ import annotations

import pytest

from prefopt.build.answers import CUT, Answers, LeftOut
from prefopt.build.bootstrap import PairRule
from prefopt.build.self_rewarded import (
    Bootstrapped,
    BootstrapSettings,
    ScoredAnswers,
    pair_by_reward,
    sample_record,
)
from prefopt.judge.implicit import ImplicitScore
from prefopt.records import Pair, Preference, Response, check_preference
from prefopt.values import JsonValue

LOOSE = BootstrapSettings(min_valid=2, alpha=0.0)


def answered(
    name: str, answers: dict[str, float | None], times: int = 1, missing: str = "truncated"
) -> ScoredAnswers:
    responses = tuple(Response(text) for text in answers)
    scores = tuple(
        ImplicitScore(None, None, None, 9, missing)  # pyright: ignore[reportArgumentType]
        if r is None
        else ImplicitScore(r, 10 * r, 0.0, len(text.split()) + 1)
        for text, r in answers.items()
    )
    prompt = Preference(name, f"prompt {name}", (), meta={"tools": []})
    return ScoredAnswers(Answers(prompt, responses, (times,) * len(answers), ()), scores)


def pairs_of(found: Bootstrapped) -> list[tuple[str, str]]:
    return [
        (r.responses[p.chosen].text, r.responses[p.rejected].text)
        for r in found.records
        for p in r.pairs
    ]


def section(found: Bootstrapped, name: str) -> dict[str, JsonValue]:
    value = found.facts[name]
    assert isinstance(value, dict)
    return value


def test_best_against_worst_with_what_they_were_worth() -> None:
    found = pair_by_reward([answered("p", {"good one": 0.5, "bad": -0.25, "middling": 0.0})], LOOSE)
    (record,) = found.records
    check_preference(record)
    assert record == Preference(
        "p/own",
        "prompt p",
        (Response("good one"), Response("bad")),
        (Pair(0, 1),),
        meta={
            "tools": [],
            "rewards": [0.5, -0.25],
            "tokens": [3, 2],
            "margins": [0.75],
            "length_penalty": 0.0,
        },
    )
    assert section(found, "length")["gap"] == 5.0
    assert section(found, "margin") == {"mean": 0.75, "median": 0.75, "smallest": 0.75}


def test_all_answers_identical_make_no_pair() -> None:
    found = pair_by_reward([answered("p", {"same": 0.5}, times=16)], LOOSE)
    assert found.records == []
    assert found.counts["pairs left out: equal texts"] == 1
    assert section(found, "samples")["duplicate_rate"] == 15 / 16


def test_all_but_one_identical_make_one_pair() -> None:
    same = answered("p", {"same": 0.5, "other": 0.1})
    same = same._replace(answers=same.answers._replace(times=(15, 1)))
    settings = BootstrapSettings(alpha=0.0)
    assert pairs_of(pair_by_reward([same], settings)) == [("same", "other")]


def test_equal_rewards_make_no_pair() -> None:
    found = pair_by_reward([answered("p", {"one": 0.5, "two": 0.5, "six": 0.5})], LOOSE)
    assert (found.records, found.counts["pairs left out: margin too small"]) == ([], 1)


def test_rewards_that_differ_by_rounding_make_no_pair() -> None:
    (plain,) = [answered("p", {"one": 0.0, "two": 0.0})]
    for gap, pairs in ((5e-7, 0), (1e-3, 1)):
        scores = (
            ImplicitScore(0.1 * gap, -60.0 + gap, -60.0, 3),
            ImplicitScore(0.0, -50.0, -50.0, 3),
        )
        found = pair_by_reward([plain._replace(scores=scores)], LOOSE)
        assert (len(found.records), found.counts["pairs of own answers"]) == (pairs, pairs)
        assert found.counts["pairs left out: margin too small"] == 1 - pairs


def test_prompts_with_too_few_rewarded_answers_are_left_out_and_counted() -> None:
    found = pair_by_reward(
        [
            answered("cut", {}),
            answered("few", {"one": 0.5, "two": 0.1, "long": None, "longer": None}),
            answered("enough", {"one": 0.5, "two": 0.1, "three": 0.2}),
        ],
        BootstrapSettings(min_valid=3, alpha=0.0),
    )
    assert [r.id for r in found.records] == ["enough/own"]
    assert found.counts["prompts with fewer than 3 such samples"] == 2
    assert found.counts["samples without reward: truncated"] == 2
    assert found.counts["samples with a reward"] == 5


def test_rewards_that_are_no_numbers_never_decide() -> None:
    scored = answered("p", {"a": 0.1, "b": None, "c": 0.3}, missing="not finite")
    found = pair_by_reward([scored], LOOSE)
    assert pairs_of(found) == [("c", "a")]
    assert found.counts["samples without reward: not finite"] == 1


def test_lengths_are_characters_or_tokens() -> None:
    wide = answered("p", {"ßßßß ßßßß": 0.5, "a b c d e": 0.1})  # 9 characters each; 3 and 6 tokens
    assert section(pair_by_reward([wide], LOOSE), "length")["gap"] == 0.0
    by_token = BootstrapSettings(min_valid=2, alpha=0.0, length_unit="tokens")
    assert section(pair_by_reward([wide], by_token), "length")["gap"] == -3.0


def test_alpha_is_fitted_or_given_and_told_in_both_units() -> None:
    scored = [
        answered(str(i), {"x" * (10 + 7 * i): 0.2 * i, "x" * 5: 0.1, "x" * 9: 0.3})
        for i in range(9)
    ]
    fitted = pair_by_reward(scored, BootstrapSettings(min_valid=2, beta=0.5))
    alpha = section(fitted, "alpha")
    assert alpha["how"] == "full scan"
    assert alpha["before_beta"] == pytest.approx(fitted.fit.alpha / 0.5)
    gap, plain = section(fitted, "length")["gap"], section(fitted, "length")["gap_without_alpha"]
    assert isinstance(gap, float)
    assert isinstance(plain, float)
    assert abs(gap) < abs(plain)
    assert len(fitted.fit.curve) > 3
    given = pair_by_reward(scored, BootstrapSettings(min_valid=2, alpha=1.0))
    assert section(given, "alpha")["how"] == "given"
    assert given.fit.curve == ()
    assert all(chosen == "x" * 5 for chosen, _ in pairs_of(given))


def test_several_pairs_of_a_prompt_are_one_record() -> None:
    scored = answered("p", {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1})
    found = pair_by_reward(
        [scored], BootstrapSettings(min_valid=2, alpha=0.0, rule=PairRule("topk"))
    )
    assert pairs_of(found) == [("a", "d"), ("b", "c")]
    assert len(found.records) == 1


def test_the_record_of_the_samples_holds_all_rewards_and_what_was_left_out() -> None:
    scored = answered("p", {"a": 0.4, "long": None, "b": 0.3}, times=2)
    scored = scored._replace(answers=scored.answers._replace(left_out=(LeftOut(5, "cu", CUT),)))
    record = sample_record(scored)
    check_preference(record)
    assert [(r.text, r.score) for r in record.responses] == [("a", 0.4), ("b", 0.3)]
    assert record.meta["times"] == [2, 2]
    assert record.meta["left_out"] == [
        {"text": "cu", "why": CUT},
        {"text": "long", "why": "truncated"},
    ]
