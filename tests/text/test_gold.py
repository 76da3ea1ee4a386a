"""A third, best response beside a pair: where it stands in a row, what record it makes, and that objectives find it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.objectives import Scores
from prefopt.pack.batch import Layout, collate
from prefopt.pack.prepare import PrepareSettings, prepare
from prefopt.records import Message, Pair, Preference, Response
from prefopt.text.quality import gold_responses
from prefopt.text.sources import LoadedData, load_preferences
from tests.tiny import make_tokenizer

QUESTION = {"role": "user", "content": "2 + 3?"}
ASKED = (Message("user", "2 + 3?"),)
TRIPLE = (Response("5", rank=2), Response("6", rank=3), Response("It is 5.", rank=1))


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def load(
    path: Path, *rows: dict[str, Any], ledger: Ledger | None = None, **options: Any
) -> LoadedData:
    file = path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_preferences(file, ledger=ledger or Ledger("data"), **options)


ROWS: dict[str, tuple[dict[str, Any], Any, tuple[Response, ...]]] = {
    "text": ({"prompt": "2 + 3?", "chosen": "5", "rejected": "6", "gold": "It is 5."}, "2 + 3?", TRIPLE),
    "messages": (
        {"prompt": [QUESTION], "chosen": [answer("5")], "rejected": [answer("6")],
         "gold_response": [QUESTION, answer("It is 5.")]},
        ASKED, TRIPLE,
    ),
    "whole conversations": (
        {"chosen": [QUESTION, answer("5")], "rejected": [QUESTION, answer("6")],
         "gold_completion": [QUESTION, answer("It is 5.")]},
        ASKED, TRIPLE,
    ),
    "an answer beside whole conversations": (
        {"chosen": [QUESTION, answer("5")], "rejected": [QUESTION, answer("6")], "gold": answer("It is 5.")},
        ASKED, TRIPLE,
    ),
    "beside a conversation": (
        {"messages": [QUESTION, answer("5")], "rejected_response": "6", "gold_response": "It is 5."},
        ASKED, TRIPLE,
    ),
    "whole texts": (
        {"chosen": "\n\nHuman: 2 + 3?\n\nAssistant: 5", "rejected": "\n\nHuman: 2 + 3?\n\nAssistant: 6",
         "gold": "\n\nHuman: 2 + 3?\n\nAssistant: It is 5."},
        "\n\nHuman: 2 + 3?\n\nAssistant:",
        (Response(" 5", rank=2), Response(" 6", rank=3), Response(" It is 5.", rank=1)),
    ),
    "whole texts of which two share more": (
        {"chosen": "2 + 3 is 5", "rejected": "2 + 3 is 6", "gold": "2 + 3 equals 5"},
        "2 + 3",
        (Response(" is 5", rank=2), Response(" is 6", rank=3), Response(" equals 5", rank=1)),
    ),
    "unfinished answer": (
        {"prompt": "q", "initial_reason_steps": "Step 1:", "chosen": " 5", "rejected": " 6", "gold": " It is 5."},
        "q",
        (Response(" 5", rank=2, ends=False), Response(" 6", rank=3, ends=False),
         Response(" It is 5.", rank=1, ends=False)),
    ),
    "scores": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "gold": "c", "score_chosen": 1, "score_rejected": 2},
        "q",
        (Response("a", score=1.0, rank=2), Response("b", score=2.0, rank=3), Response("c", rank=1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_gold_is_a_third_response_ranked_best(name: str, tmp_path: Path) -> None:
    row, prompt, responses = ROWS[name]
    loaded = load(tmp_path, row)
    (preference,) = loaded.preferences
    assert (preference.prompt, preference.responses) == (prompt, responses)
    assert preference.pairs == (Pair(0, 1),)
    assert gold_responses(preference) == [2]
    assert "gold" in loaded.mapping.values()


@pytest.mark.parametrize("missing", [None, ""])
def test_rows_without_gold_are_plain_pairs(missing: str | None, tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    _, plain = load(tmp_path, {**row, "gold": "c"}, {**row, "prompt": "r", "gold": missing})[0]
    assert plain.responses == (Response("a"), Response("b"))
    assert gold_responses(plain) == []


def test_reference_is_gold_only_by_name(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "reference": "c"}
    loaded = load(tmp_path, row)
    assert loaded.mapping["reference"] == "meta"
    assert len(loaded.preferences[0].responses) == 2
    loaded = load(tmp_path, row, columns={"gold": "reference"})
    assert loaded.mapping["reference"] == "gold"
    assert loaded.preferences[0].responses[2] == Response("c", rank=1)
    assert loaded.preferences[0].meta == {}


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
HH = "\n\nHuman: q\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({**PAIR, "gold": 3}, None, "'gold' is the number 3; give a text or messages, or leave the column unread "
         "with columns.meta=gold"),
        ({**PAIR, "gold": [answer("c")]}, None, "'gold' is a list of messages but 'chosen' is text; make them alike"),
        ({"chosen": [QUESTION, answer("5")], "rejected": [QUESTION, answer("6")], "gold": "5"}, None,
         "'gold' is text, but chosen and rejected are messages; make them alike"),
        ({"chosen": [QUESTION, answer("5")], "rejected": [QUESTION, answer("6")],
          "gold": [{"role": "user", "content": "other"}, answer("5")]}, None,
         "'gold' does not start with the prompt: message 0 is \"other\""),
        ({"chosen": f"{HH} a", "rejected": f"{HH} b", "gold": "c"}, None,
         "'gold' is \"c\", which does not begin with what chosen and rejected share, "),
        ({"chosen": "so it is", "rejected": "so it was", "gold": "c"}, None,
         'share, "so it"; give it the same beginning, or add a prompt column'),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2], "best": "c"}, {"gold": "best"},
         "columns.gold: a gold response goes with a chosen and a rejected one, and data.jsonl has prompt, responses"),
    ],
)  # fmt: skip
def test_what_cannot_be_gold(
    row: dict[str, Any], columns: dict[str, str] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecordError) as caught:
        load(tmp_path, row, columns=columns)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_remarks_on_gold(tmp_path: Path) -> None:
    ledger = Ledger("x")
    rows = [
        {**PAIR, "gold": "b"},
        {**PAIR, "prompt": "r", "gold": " "},
        {**PAIR, "prompt": "s", "gold": "c"},
        {**PAIR, "prompt": "s", "chosen": "b", "rejected": "a", "gold": "c"},
        {**PAIR, "prompt": "s", "gold": "c"},
    ]
    kept = load(tmp_path, *rows, ledger=ledger).preferences
    assert [len(preference.responses) for preference in kept] == [3, 2, 3, 3]
    assert ledger.notes == {
        "the gold response equals the rejected one": 1,
        "empty response left out of the list": 1,
        "contradicts an earlier row: same responses, opposite preference": 1,
    }
    assert ledger.reasons == {"duplicate of an earlier row": 1}


def test_only_unpaired_better_ranks_are_gold() -> None:
    pairs = (Pair(0, 1),)
    better = (Response("a", rank=2), Response("b", rank=3), Response("c", rank=1), Response("d"))
    assert gold_responses(Preference("x", "q", better, pairs)) == [2]
    assert gold_responses(Preference("x", "q", better)) == []
    assert gold_responses(Preference("x", "q", better, (Pair(2, 0),))) == []
    unranked = (Response("a"), Response("b"), Response("c", rank=1))
    assert gold_responses(Preference("x", "q", unranked, pairs)) == []


def test_objectives_find_it(tmp_path: Path) -> None:
    rows = [{"prompt": "q ", "chosen": "a", "rejected": "b", "gold": gold} for gold in ("c", None)]
    rows[1]["prompt"] = "r "
    records = load(tmp_path, *rows).preferences
    batch = collate(
        [prepare(records, make_tokenizer(), PrepareSettings(), Ledger("x"))], layout=Layout.TREE
    )
    values = torch.arange(5, dtype=torch.float32)
    scores = Scores(
        policy=values,
        reference=None,
        length=values,
        chosen=batch.chosen,
        rejected=batch.rejected,
        group=batch.group,
        score=batch.score,
        rank=batch.rank,
        label=batch.label,
        margin=batch.pair_margin,
    )
    assert batch.chosen.tolist() == [0, 3]
    assert scores.gold().tolist() == [2, 3]  # the second prompt has none: its chosen response
