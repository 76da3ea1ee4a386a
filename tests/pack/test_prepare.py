"""Lengths, cuts, drops and their place in the ledger; the trees that come out."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.pack.batch import Example
from prefopt.pack.prepare import PrepareSettings, Weighable, prepare
from prefopt.pack.tree import TokenTree
from prefopt.records import Message, Pair, Preference, Response
from prefopt.text.render import RenderSettings
from tests.tiny import make_tokenizer

EOS, BOS = 0, 1


def number_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """Words `2`, `3`, ... are tokens 2, 3, ...; `</s>` is 0 and `<s>` is 1."""
    vocabulary = {"</s>": EOS, "<s>": BOS, **{str(i): i for i in range(2, 100)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>")
    if bos:
        from tokenizers.processors import TemplateProcessing

        fast.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    return fast


NUMBERS = number_tokenizer()


def words(first: int, count: int) -> str:
    return "".join(f"{i} " for i in range(first, first + count))


def pair(prompt: int = 3, chosen: int = 2, rejected: int = 4, **fields) -> Preference:
    """Prompt 10 11 ..., chosen 30 31 ..., rejected 60 61 ... of so many tokens, EOS not counted."""
    responses = (Response(words(30, chosen)), Response(words(60, rejected)))
    return Preference("a", words(10, prompt), responses, (Pair(0, 1),), **fields)


def run(preference: Preference, tokenizer=NUMBERS, **settings: Any) -> tuple[list[Example], Ledger]:
    ledger = Ledger("x")
    return prepare([preference], tokenizer, PrepareSettings(**settings), ledger), ledger


def paths(tree: TokenTree) -> list[list[int]]:
    return [tree.tokens[tree.path(r)].tolist() for r in range(len(tree.leaf))]


def test_a_pair_literally() -> None:
    (example,), ledger = run(pair())
    assert example.tree.tokens.tolist() == [10, 11, 12, 30, 31, EOS, 60, 61, 62, 63, EOS]
    assert example.tree.scored.tolist() == [False] * 3 + [True] * 8
    assert example.tree.until.tolist()[:4] == [11, 11, 11, 6]
    assert example._replace(tree=None) == Example(  # type: ignore[arg-type]
        id="a",
        tree=None,  # type: ignore[arg-type]
        pairs=((0, 1),),
        pair_weight=(1.0,),
        pair_margin=(None,),
        score=(None, None),
        rank=(None, None),
        label=(None, None),
        source=(0, 1),
    )
    assert ledger.to_json()["kept"] == 1


def test_annotations_and_weights_go_along() -> None:
    preference = Preference(
        "a",
        "2 ",
        (Response("3", score=1.5, label=True), Response("4", rank=2)),
        (Pair(1, 0, weight=2.0, margin=0.5),),
    )
    seen: list[int] = []

    def weigh(given: Weighable) -> tuple[float, ...]:
        seen.append(given.tree.size)
        return tuple(0.5 for _ in given.tree.incidences()[0])

    (example,) = prepare([preference], NUMBERS, PrepareSettings(), Ledger("x"), weigh=weigh)
    assert (example.pairs, example.pair_weight, example.pair_margin) == (((1, 0),), (2.0,), (0.5,))
    assert (example.score, example.rank, example.label) == ((1.5, None), (None, 2.0), (1.0, None))
    assert example.weight == (0.5,) * 4
    assert seen == [5]


def test_steps_do_not_end() -> None:
    preference = Preference(
        "a",
        "2 ",
        (Response("4", ends=False), Response("5", ends=False)),
        (Pair(0, 1),),
        prefix="3 ",
    )
    (example,), _ = run(preference)
    assert paths(example.tree) == [[2, 3, 4], [2, 3, 5]]
    assert example.tree.scored.tolist() == [False, False, True, True]


def test_a_response_is_cut_at_its_end_and_loses_its_end_token() -> None:
    (example,), ledger = run(pair(prompt=3, chosen=2, rejected=9), max_length=8)
    assert paths(example.tree) == [[10, 11, 12, 30, 31, EOS], [10, 11, 12, 60, 61, 62, 63, 64]]
    assert ledger.summary() == [
        "x: 1 rows read = 0 kept + 1 cut + 0 dropped",
        "  cut 1, 5 tokens: end of a response cut (a)",
    ]


def test_a_length_that_just_fits_is_not_cut() -> None:
    _, ledger = run(pair(prompt=3, chosen=2, rejected=4), max_length=8)
    assert ledger.kept_count == 1


def test_overlong_responses_can_be_dropped_with_their_pairs() -> None:
    preference = Preference(
        "a",
        "2 ",
        (Response(words(30, 9)), Response("40", score=1.0), Response("50", score=2.0)),
        (Pair(0, 1), Pair(2, 1)),
    )
    (example,), ledger = run(preference, max_length=5, overlong_response="drop")
    assert (example.source, example.pairs, example.score) == ((1, 2), ((1, 0),), (1.0, 2.0))
    assert ledger.notes == {"some responses left out: response too long": 1}
    examples, ledger = run(pair(rejected=9), max_length=8, overlong_response="drop")
    assert not examples
    assert ledger.reasons == {"response too long": 1}


def test_overlong_prompts_are_dropped() -> None:
    limits: list[dict[str, Any]] = [{"max_length": 3}, {"max_length": 99, "max_prompt_length": 2}]
    for settings in limits:
        examples, ledger = run(pair(prompt=3), **settings)
        assert not examples
        assert ledger.reasons == {"prompt too long": 1}
    assert run(pair(prompt=3), max_length=4, max_prompt_length=3)[1].cut_count == 1


def test_the_end_of_an_overlong_prompt_is_kept() -> None:
    settings: dict[str, Any] = {
        "max_length": 9,
        "max_prompt_length": 2,
        "overlong_prompt": "keep_end",
    }
    (example,), ledger = run(pair(prompt=5, chosen=1, rejected=1), **settings)
    assert paths(example.tree) == [[13, 14, 30, EOS], [13, 14, 60, EOS]]
    assert ledger.reasons == {"start of the prompt cut": 1}
    assert ledger.to_json()["rows"][0]["tokens"] == 3  # type: ignore[index,call-overload]
    (example,), ledger = run(pair(prompt=5, chosen=1, rejected=9), **settings)
    assert paths(example.tree)[1] == [13, 14, 60, 61, 62, 63, 64, 65, 66]
    assert ledger.reasons == {"start of the prompt and end of a response cut": 1}


def test_a_cut_prompt_keeps_its_bos_token() -> None:
    tokenizer = number_tokenizer(bos=True)
    settings: dict[str, Any] = {
        "max_length": 9,
        "max_prompt_length": 3,
        "overlong_prompt": "keep_end",
    }
    (example,), _ = run(pair(prompt=5, chosen=1, rejected=1), tokenizer, **settings)
    assert paths(example.tree) == [[BOS, 13, 14, 30, EOS], [BOS, 13, 14, 60, EOS]]


@pytest.mark.parametrize(("rejected", "left"), [(2, 7), (20, 5)])
def test_without_a_limit_the_prompt_leaves_room_but_keeps_half(rejected: int, left: int) -> None:
    preference = pair(prompt=12, chosen=1, rejected=rejected)
    (example,), _ = run(preference, max_length=10, overlong_prompt="keep_end")
    assert int((~example.tree.scored).sum()) == left


def test_step_dpo_truncation_case() -> None:
    """900 prompt tokens, answers of 300: the last 512 of the prompt are kept and the answers whole."""
    text = " ".join(["7"] * 900) + " "
    preference = Preference(
        "a", text, (Response(" ".join(["8"] * 300)), Response(" ".join(["9"] * 300))), (Pair(0, 1),)
    )
    (example,), _ = run(preference, max_prompt_length=512, overlong_prompt="keep_end")
    assert int((~example.tree.scored).sum()) == 512
    assert int(example.tree.scored.sum()) == 602


def test_error_policies_name_the_row() -> None:
    with pytest.raises(
        RecordError, match=r"^d:7: the prompt has 3 tokens, which exceeds max_prompt_length=2 "
    ):
        run(pair(origin="d:7"), max_prompt_length=2, overlong_prompt="error")
    with pytest.raises(
        RecordError, match=r"^d:7: a response ends at token 8, which exceeds max_length=6; raise it"
    ):
        run(pair(origin="d:7"), max_length=6, overlong_response="error")


def test_pairs_that_are_identical_after_the_cut_go() -> None:
    responses = (Response("30 31 32 33"), Response("30 31 40"), Response("50"))
    one = Preference("a", "2 ", responses[:2], (Pair(0, 1),))
    examples, ledger = run(one, max_length=3)
    assert not examples
    assert ledger.reasons == {"identical after the cut": 1}
    (example,), ledger = run(
        Preference("a", "2 ", responses, (Pair(0, 1), Pair(0, 2))), max_length=3
    )
    assert example.pairs == ((0, 2),)
    assert ledger.notes == {"some pairs left out: identical after the cut": 1}


def test_identical_and_empty_responses_of_records_made_in_code() -> None:
    same = Preference("a", "2 ", (Response("3"), Response(" 3")), (Pair(0, 1),))
    assert run(same)[1].reasons == {"chosen equals rejected": 1}
    empty = Preference("a", "2 ", (Response("3"), Response(" ")), (Pair(0, 1),))
    assert run(empty)[1].reasons == {"empty response": 1}


def test_a_response_with_nothing_scored_goes() -> None:
    turns = (Message("assistant", "3", train=False),)
    preference = Preference("a", (Message("user", "2"),), (Response(turns=turns),))
    examples, ledger = run(preference, make_tokenizer())
    assert not examples
    assert ledger.reasons == {"nothing scored": 1}


def test_responses_outside_of_pairs_stay() -> None:
    preference = Preference("a", "2 ", (Response("3"), Response("4"), Response("5")), (Pair(0, 1),))
    (example,), _ = run(preference)
    assert len(example.tree.leaf) == 3


def test_empty_prompts_leave_the_first_token_unscored_and_say_so() -> None:
    (example,), ledger = run(Preference("a", "", (Response("3 4"),)))
    assert example.tree.scored.tolist() == [False, True, True]
    assert ledger.notes == {"empty prompt and no BOS token: the first token is not scored": 1}
    (example,), ledger = run(Preference("a", "", (Response("3 4"),)), number_tokenizer(bos=True))
    assert example.tree.scored.tolist() == [False, True, True, True]
    assert not ledger.notes


def test_glued_prompts_are_noted() -> None:
    tokenizer = make_tokenizer(chat_template=None)
    preference = Preference("a", "for", (Response("every"), Response("any")), (Pair(0, 1),))
    _, ledger = run(preference, tokenizer)
    assert list(ledger.notes) == [
        "prompt ends in a letter or digit and a response starts with one, without a space; set response_separator"
    ]
    _, ledger = run(preference, tokenizer, render=RenderSettings(separator=" "))
    assert not ledger.notes


def boundary_tokenizer() -> PreTrainedTokenizerFast:
    """Tokens of several letters, so that the end of the prompt depends on what follows."""
    pieces = ["a", "b", "c", "d", "ab", "bc", "cd", "abc", "</s>"]
    merges = [("b", "c"), ("a", "bc"), ("a", "b"), ("c", "d")]
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_one_token_may_change_at_the_end_of_the_prompt() -> None:
    preference = Preference("a", "da", (Response("bc"), Response("d")), (Pair(0, 1),))
    (example,), _ = run(preference, boundary_tokenizer())
    assert paths(example.tree) == [[3, 7, 8], [3, 0, 3, 8]]
    assert example.tree.scored.tolist() == [False, True, True, False, True, True]


def test_more_changed_tokens_at_the_end_of_the_prompt_are_refused() -> None:
    """`abb` is a + bb before d, but ab + b before c."""
    pieces = ["a", "b", "c", "d", "ab", "bb", "bc", "</s>"]
    merges = [("b", "c"), ("b", "b"), ("a", "b")]
    backend = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    preference = Preference("a", "abb", (Response("c"), Response("d")), (Pair(0, 1),), origin="d:7")
    with pytest.raises(
        RecordError, match=r"^d:7: the responses change how more than the last token"
    ):
        run(preference, tokenizer)


def test_text_and_conversations_are_not_mixed_unasked() -> None:
    chat = Preference("b", (Message("user", "2"),), (Response("3"),), origin="d:2")
    both = [pair(origin="d:1"), chat]
    tokenizer = make_tokenizer()
    with pytest.raises(RecordError, match=r"^d:1 has a plain text prompt, d:2 a conversation"):
        prepare(both, tokenizer, PrepareSettings(), Ledger("x"))
    settings = PrepareSettings(render=RenderSettings(prompt_format="chat"))
    assert len(prepare(both, tokenizer, settings, Ledger("x"))) == 2


def test_many_records_keep_their_order() -> None:
    records = [Preference(str(i), f"{2 + i % 90} ", (Response("5"),)) for i in range(700)]
    examples = prepare(records, NUMBERS, PrepareSettings(), Ledger("x"))
    assert [e.id for e in examples] == [str(i) for i in range(700)]
    assert [int(e.tree.tokens[0]) for e in examples] == [2 + i % 90 for i in range(700)]
