"""The reward of two models: log-probabilities against a slow loop, joined by id, kept, and missing where it says."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefopt.errors import ConfigError, ModelError, RecordError
from prefopt.generate.journal import Journal
from prefopt.judge.implicit import ImplicitReward, ScoringSettings, implicit_reward
from prefopt.models.load import LoadedModel, LoraSettings, add_lora, load_model
from prefopt.records import Message, Preference, Response
from tests.tiny import make_model_folder, make_tokenizer

RECORDS = [
    Preference(
        f"r{i}",
        f"What is {i} + 4?\n",
        (
            Response(f"The answer is {i + 4}."),
            Response("No" + " or so" * (3 * i + 1)),
            Response("3 + 4", ends=False),
        ),
    )
    for i in range(3)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three models of one tokenizer: pi_1, pi_0 and pi_SFT."""
    root = tmp_path_factory.mktemp("models")
    return [str(make_model_folder(root / f"m{seed}", "llama", seed=seed)) for seed in (0, 1, 2)]


def reward(policy: str, reference: str, beta: float = 0.1, **settings: int) -> ImplicitReward:
    chosen = ScoringSettings(**settings)  # pyright: ignore[reportArgumentType]
    return ImplicitReward(policy, reference, beta=beta, settings=chosen, load=loaded_once)


@cache
def loaded_once(folder: str) -> LoadedModel:
    return load_model(folder)


def slow(folder: str, record: Preference, k: int) -> tuple[float, int]:
    """One response at a time, one token at a time, from full logits."""
    loaded = loaded_once(folder)
    response = record.responses[k]
    end = str(loaded.tokenizer.eos_token) if response.ends else ""
    prompt = loaded.tokenizer(str(record.prompt)).input_ids
    tokens = loaded.tokenizer(str(record.prompt) + response.text + end).input_ids
    assert tokens[: len(prompt)] == prompt
    total = 0.0
    for t in range(len(prompt), len(tokens)):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([tokens[:t]])).logits[0, -1]
        total += float(torch.log_softmax(logits.double(), dim=-1)[tokens[t]])
    return total, len(tokens) - len(prompt)


def test_a10_log_probabilities_match_a_slow_loop_over_response_and_end_token(
    folders: list[str],
) -> None:
    scores = reward(folders[0], folders[1], beta=0.3).score(RECORDS[:2])
    for record in RECORDS[:2]:
        for k, score in enumerate(scores[record.id]):
            policy, tokens = slow(folders[0], record, k)
            reference, _ = slow(folders[1], record, k)
            assert score.tokens == tokens
            assert (score.policy, score.reference) == pytest.approx((policy, reference), abs=1e-4)
            assert score.reward == pytest.approx(0.3 * (policy - reference), abs=1e-4)


def test_a10_padding_and_batches_change_nothing(folders: list[str]) -> None:
    alone = reward(folders[0], folders[1], batch_size=1).score(RECORDS)
    together = reward(folders[0], folders[1], batch_size=9).score(RECORDS)
    assert [s.reward for r in RECORDS for s in together[r.id]] == pytest.approx(
        [s.reward for r in RECORDS for s in alone[r.id]], abs=1e-6
    )


def test_a1_a_policy_that_is_its_reference_rewards_nothing(folders: list[str]) -> None:
    scores = reward(folders[0], folders[0]).score(RECORDS)
    assert {score.reward for found in scores.values() for score in found} == {0.0}


def test_a11_the_rewards_of_two_rounds_add_up_to_that_of_both(folders: list[str]) -> None:
    second, first, sft = folders
    parts = [reward(a, b).score(RECORDS) for a, b in ((second, first), (first, sft))]
    whole = reward(second, sft).score(RECORDS)
    for record in RECORDS:
        for k, score in enumerate(whole[record.id]):
            added = sum(part[record.id][k].reward or 0.0 for part in parts)
            assert score.reward == pytest.approx(added, abs=1e-9)


def test_scores_are_joined_by_id_and_not_by_row(folders: list[str]) -> None:
    one = reward(folders[0], folders[1])
    with Journal(":memory:") as journal:
        straight = one.score(RECORDS, journal=journal)
        turned = one.score(RECORDS[::-1], journal=journal)
    assert turned == straight
    assert list(turned) == ["r2", "r1", "r0"]


def test_conversations_use_the_template_of_the_policy(folders: list[str]) -> None:
    chat = replace(RECORDS[0], prompt=(Message("user", "What is 4?"),))
    (score,) = reward(folders[0], folders[0]).score([chat])["r0"][:1]
    tokenizer = load_model(folders[0]).tokenizer
    text = "The answer is 4.<|im_end|>"
    assert score.tokens in {len(tokenizer(text).input_ids), len(tokenizer(text + "\n").input_ids)}


def test_responses_beyond_the_limit_are_flagged_and_have_no_reward(folders: list[str]) -> None:
    long = Preference("long", "Say it\n", (Response("no " * 400), Response("no")))
    for scores in (
        reward(folders[0], folders[1]).score([long])["long"],  # 256 positions
        reward(folders[0], folders[1], max_length=20).score([long])["long"],
    ):
        assert [s.truncated for s in scores] == [True, False]
        assert scores[0].reward is None
        assert scores[0].missing == "truncated"
        assert scores[1].reward is not None


def test_a_response_without_tokens_has_no_reward(folders: list[str]) -> None:
    record = Preference("empty", "Say it\n", (Response("", ends=False), Response("")))
    scores = reward(folders[0], folders[1]).score([record])["empty"]
    assert [s.missing for s in scores] == ["no tokens", ""]
    assert scores[1].tokens == 1, "the end token alone"


def test_log_probabilities_that_are_no_numbers_are_missing(
    folders: list[str], tmp_path: Path
) -> None:
    broken = make_model_folder(tmp_path / "broken", "llama", seed=5)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    for policy, reference in ((str(broken), folders[0]), (folders[0], str(broken))):
        scores = reward(policy, reference).score(RECORDS[:1])["r0"]
        assert {(s.missing, s.reward) for s in scores} == {("not finite", None)}


def test_an_adapter_is_scored_against_its_base(folders: list[str], tmp_path: Path) -> None:
    base = load_model(folders[0])
    adapted = add_lora(base.model, LoraSettings(r=2))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    base.tokenizer.save_pretrained(tmp_path / "adapter")
    scores = reward(str(tmp_path / "adapter"), folders[0]).score(RECORDS)
    plain = reward(folders[0], folders[0]).score(RECORDS)
    assert [s.reference for s in scores["r0"]] == [s.reference for s in plain["r0"]]
    assert all(s.policy != s.reference for s in scores["r0"])


def test_the_journal_spares_what_is_known_and_two_models_are_never_in_memory_together(
    folders: list[str], tmp_path: Path
) -> None:
    seen: list[str] = []

    def load(name: str) -> LoadedModel:
        seen.append(name)
        return load_model(name)

    one = ImplicitReward(folders[0], folders[1], beta=0.1, load=load)
    with Journal(tmp_path / "j.sqlite") as journal:
        first = one.score(RECORDS[:2], journal=journal)
        assert journal.count() == 2 * 6
        second = one.score(RECORDS, journal=journal)
        assert journal.count() == 2 * 9
    assert seen == [folders[0], folders[1]] * 2, "one after the other"
    assert {k: second[k] for k in first} == first
    with sqlite3.connect(tmp_path / "j.sqlite") as connection:
        connection.execute("UPDATE completions SET text = '-1.5'")
    connection.close()
    with Journal(tmp_path / "j.sqlite") as journal:
        (score, *_) = one.score(RECORDS, journal=journal)["r0"]
    assert (score.policy, score.reference, score.reward) == (-1.5, -1.5, 0.0), "read, not computed"


def test_another_text_under_the_same_id_is_scored_anew(folders: list[str]) -> None:
    one = reward(folders[0], folders[1])
    changed = replace(RECORDS[0], responses=(Response("Another one."),))
    with Journal(":memory:") as journal:
        one.score(RECORDS[:1], journal=journal)
        assert one.score([changed], journal=journal) == one.score([changed])


def test_progress_counts_each_response_for_both_models(folders: list[str]) -> None:
    told: list[tuple[int, int]] = []
    reward(folders[0], folders[1]).score(RECORDS, progress=lambda *at: told.append(at))
    assert told == [(0, 18), (9, 18), (18, 18)]


def test_mistakes_are_one_line(folders: list[str], tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="id 'r0' belongs to two records"):
        reward(folders[0], folders[1]).score([RECORDS[0], RECORDS[0]])
    with pytest.raises(ConfigError, match="beta is 0; use a number above 0"):
        reward(folders[0], folders[1], beta=0)
    words = make_tokenizer(["alpha", "beta", "gamma"])
    other = make_model_folder(tmp_path / "other", "llama", tokenizer=words)
    with pytest.raises(ModelError, match="different vocabularies"):
        reward(folders[0], str(other)).score(RECORDS)


def test_the_formula() -> None:
    assert implicit_reward(-10.0, -14.0, beta=0.25) == 1.0
    assert json.loads(repr(implicit_reward(-1.0, -1.0, beta=0.1))) == 0.0
