"""What the published code of DMPO gets wrong (swt-user/DMPO at 64f4845), one test each, and the edges of the loss.

Bugs that concern roll-outs, rewards and pairs are tested with those.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from prefopt.errors import ConfigError, RecordError
from prefopt.ledger import Ledger
from prefopt.methods import dmpo
from prefopt.methods.dmpo import phi
from prefopt.pack.batch import Example, Layout, collate
from prefopt.pack.prepare import PrepareSettings, Weighable, prepare
from prefopt.records import Message, Pair, Preference, Response
from prefopt.text.render import RenderSettings
from tests.methods.trajectories import (
    BAD,
    GOOD,
    PROMPT,
    TOKENIZER,
    USUAL,
    Models,
    examples,
    make_models,
    measure,
    pair,
    recipe,
    side,
)
from tests.tiny import make_tokenizer

END = TOKENIZER.eos_token_id


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


def by_turn(example: Example, response: int) -> list[tuple[list[int], list[float]]]:
    """Token ids and weights of each turn of a response."""
    token, owner = example.tree.incidences()
    own = owner == response
    turn, ids = example.tree.turn[token][own], example.tree.tokens[token][own]
    weight = np.array(example.weight)[own]
    return [(ids[turn == t].tolist(), weight[turn == t].tolist()) for t in sorted(set(turn))]


def weights_of(example: Example, response: int) -> list[float]:
    """The one weight of each turn."""
    found: list[float] = []
    for _, weights in by_turn(example, response):
        assert len(set(weights)) == 1
        found.append(weights[0])
    return found


def test_bug_1_the_token_that_ends_a_turn_weighs_what_the_turn_weighs() -> None:
    (example,) = examples(USUAL)
    for response, turns in ((0, 3), (1, 5)):
        assert weights_of(example, response) == phi(turns, 0.7).tolist()
        assert all(ids[-1] == END for ids, _ in by_turn(example, response))
    (published,) = examples(USUAL, separator_weight="one")
    for response, turns in ((0, 3), (1, 5)):
        for (ids, weights), expected in zip(
            by_turn(published, response), phi(turns, 0.7), strict=True
        ):
            assert ids[-1] == END and weights[-1] == 1.0
            assert set(weights[:-1]) == {expected}


def test_bug_1_a_turn_that_was_cut_has_no_separator() -> None:
    record = pair(GOOD, side("look", "wait wait wait wait"))
    (example,) = examples(record, separator_weight="one", length=cut_length(record, 1, 1) - 1)
    ids, weights = by_turn(example, 1)[-1]
    assert END not in ids and set(weights) == {phi(2, 0.7)[1]}


def cut_length(record: Preference, response: int, turn: int) -> int:
    """Length at which a response ends with the end token of a turn."""
    (example,) = examples(record)
    path = example.tree.path(response)
    return int(np.nonzero(example.tree.turn[path] == turn)[0][-1]) + 1


def test_bug_2_turns_that_truncation_removed_are_not_counted() -> None:
    record = pair(GOOD, side("look", *["wait"] * 9))
    length = cut_length(record, 1, 3)
    ledger = Ledger("d.jsonl")
    (example,) = examples(record, length=length, ledger=ledger)
    assert weights_of(example, 1) == phi(4, 0.7).tolist()
    assert ledger.cut_count == 1 and "end of a response cut" in str(ledger.to_json())
    (published,) = examples(record, length=length, turns="all")
    assert weights_of(published, 1) == phi(10, 0.7)[:4].tolist()
    assert weights_of(published, 0) == phi(3, 0.7).tolist()


def test_bug_2_a_turn_that_is_cut_in_the_middle_is_a_turn() -> None:
    record = pair(GOOD, side("look", "east", "wait wait wait wait"))
    (example,) = examples(record, length=cut_length(record, 1, 2) - 3)
    assert weights_of(example, 1) == phi(3, 0.7).tolist()


def test_bug_3_token_weighting_counts_the_tokens_of_each_side() -> None:
    """The published total of the second of two sides runs from a token of another one."""
    for record in (USUAL, pair(BAD, GOOD)):
        (example,) = examples(record, weighting="token")
        for response in (0, 1):
            found = [w for _, weights in by_turn(example, response) for w in weights]
            assert found == pytest.approx(phi(len(found), 0.7).tolist(), abs=1e-15)
            assert found[0] == 1.0
    record = pair(GOOD, side("look", *["wait"] * 9))
    length = cut_length(record, 1, 3)
    (example,) = examples(record, weighting="token", length=length)
    left = sum(len(ids) for ids, _ in by_turn(example, 1))
    (published,) = examples(record, weighting="token", turns="all", length=length)
    found = [w for _, weights in by_turn(published, 1) for w in weights]
    total = sum(len(ids) for ids, _ in by_turn(examples(record)[0], 1))
    assert left == len(found) < total
    assert found == pytest.approx(phi(total, 0.7)[:left].tolist(), abs=1e-15)


@pytest.mark.parametrize("gamma", [1.0001, 2.0, 100.0, -0.5, math.nan, math.inf])
def test_bug_4_a_discount_above_1_is_refused(gamma: float) -> None:
    with pytest.raises(ConfigError, match="gamma is "):
        recipe(gamma=gamma)
    with pytest.raises(ValueError, match=r"give turns >= 1 and 0 <= gamma <= 1"):
        phi(5, gamma)


def test_bug_5_a_side_that_spells_separators_is_scored_whole(models: Models) -> None:
    """The published code loses such a turn and masks the side: its log-probability is 0 and the other side trains."""
    forged = side("look", "take <|im_end|>\n<|im_start|>assistant\nkey", "east")
    record = pair(forged, BAD)
    (example,) = examples(record)
    turns = by_turn(example, 0)
    assert len(turns) == 3 and weights_of(example, 0) == phi(3, 0.7).tolist()
    assert TOKENIZER.decode(turns[1][0]) == "take <|im_end|>\n<|im_start|>assistant\nkey<|im_end|>"
    found = measure(models, record)
    assert abs(float(found.loss) - math.log(2)) > 1e-3


def test_bug_5_a_side_that_cannot_be_located_is_an_error_with_its_row() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{{ m.content.split('Action:')[-1] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    record = pair(side("Thought: so\nAction: look"), BAD)
    settings = PrepareSettings(render=RenderSettings(chat_template=template))
    with pytest.raises(RecordError) as caught:
        prepare([record], TOKENIZER, settings, Ledger("d.jsonl"))
    assert str(caught.value).startswith("d.jsonl:7: the chat template does not write message 4")


def test_bug_6_unknown_words_count_although_the_pad_token_is_the_unknown_one(
    models: Models,
) -> None:
    """Padding is known by place here, never by token."""
    tokenizer = make_tokenizer(["look", "take"])
    for pad in (tokenizer.convert_tokens_to_ids("look"), tokenizer.eos_token_id):
        tokenizer.pad_token_id = pad
        record = pair(side("look", "look look"), side("take", "look take", "look"))
        (example,) = prepare(
            [record],
            tokenizer,
            PrepareSettings(),
            Ledger("x"),
            weigh=lambda given: dmpo.weigh(given, recipe()),
        )
        texts = [tokenizer.decode(ids) for ids, _ in by_turn(example, 0)]
        assert texts == ["look<|im_end|>", "look look<|im_end|>"]
        batch = collate([[example]], layout=Layout.ROWS, row_length=200)
        weights = batch.weight[batch.response == 0]
        assert len(weights) == sum(len(ids) for ids, _ in by_turn(example, 0))
    wide = measure(models, USUAL, layout=Layout.ROWS, row_length=300)
    assert float(wide.loss) == pytest.approx(float(measure(models, USUAL).loss), abs=1e-12)


def test_bug_10_weights_are_made_once_when_the_data_are_prepared() -> None:
    calls: list[int] = []

    def counting(given: Weighable) -> tuple[float, ...]:
        calls.append(given.tree.size)
        return dmpo.weigh(given, recipe())

    made = prepare(
        [USUAL, pair(BAD, GOOD, "r2")],
        TOKENIZER,
        PrepareSettings(),
        Ledger("x"),
        weigh=counting,
    )
    batches = [collate([made], layout=Layout.TREE) for _ in range(5)]
    assert len(calls) == 2
    for batch in batches:
        assert batch.weight.dtype == torch.float32 and len(batch.weight) == len(batch.token)


def test_bug_14_what_is_refused_prints_no_conversation(capfd: pytest.CaptureFixture[str]) -> None:
    secret = "wait " * 200
    template = (
        "{% for m in messages %}{{ m.role }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    settings = PrepareSettings(render=RenderSettings(chat_template=template))
    with pytest.raises(RecordError) as caught:
        prepare([pair(side("look", secret), BAD)], TOKENIZER, settings, Ledger("x"))
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_one_turn_against_forty(models: Models, gamma: float) -> None:
    record = pair(side("take"), side(*["wait"] * 40))
    (example,) = examples(record, gamma=gamma)
    assert weights_of(example, 0) == [1.0]
    assert weights_of(example, 1) == phi(40, gamma).tolist()
    found = measure(models, record, gamma=gamma)
    assert math.isfinite(float(found.loss))
    assert all(torch.isfinite(g).all() for g in found.gradients.values())


def test_an_empty_turn_counts_and_its_end_token_is_scored() -> None:
    (example,) = examples(pair(side("look", "", "east"), BAD))
    turns = by_turn(example, 0)
    assert turns[1][0] == [END] and weights_of(example, 0) == phi(3, 0.7).tolist()


def dropped(record: Preference, **keys: int) -> dict[str, int]:
    ledger = Ledger("d.jsonl")
    assert examples(record, ledger=ledger, **keys) == []
    assert "r1" in str(ledger.to_json())
    return dict(ledger.reasons)


def test_a_side_without_a_turn_that_is_scored_takes_the_pair_along() -> None:
    silent = Response(turns=tuple(replace(m, train=False) for m in GOOD.turns))
    assert dropped(pair(silent, BAD)) == {"nothing scored": 1}
    assert dropped(pair(silent, silent)) == {"nothing scored": 1}
    late = list(GOOD.turns)
    late[0] = Message("assistant", "look " * 40, train=False)
    record = pair(Response(turns=tuple(late)), BAD)
    assert dropped(record, length=60) == {"nothing scored": 1}


def test_sides_that_are_the_same_after_the_cut_are_dropped_and_no_loss_of_ln_2() -> None:
    record = pair(side("look", "east", "take"), side("look", "east", "wait"))
    length = cut_length(record, 0, 1)
    assert dropped(record, length=length) == {"identical after the cut": 1}
    assert dropped(pair(GOOD, GOOD)) == {"chosen equals rejected": 1}


def test_a_side_of_empty_turns_takes_the_pair_along() -> None:
    assert dropped(pair(GOOD, side("", ""))) == {"empty response": 1}


def test_several_roll_outs_share_a_tree_and_have_weights_of_their_own() -> None:
    losers = (BAD, side("look", "take key", "wait"), side("look"))
    pairs = tuple(Pair(0, i) for i in (1, 2, 3))
    (example,) = examples(Preference("r1", PROMPT, (GOOD, *losers), pairs))
    assert [weights_of(example, r) for r in range(4)] == [
        phi(n, 0.7).tolist() for n in (3, 5, 3, 1)
    ]
    assert len({int(leaf) for leaf in example.tree.leaf}) == 4
