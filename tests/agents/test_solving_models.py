"""A tiny model that learnt code-integrated solutions by `sft` writes them, and their code really runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.agents.interpreted import Attempt, Solving, solve
from prefopt.generate.journal import Journal
from prefopt.generate.local import LocalGenerator
from prefopt.generate.schedule import constant
from prefopt.models.load import load_model
from prefopt.sandbox.base import Limits
from prefopt.sandbox.sandbox import Sandbox
from prefopt.text.blocks import END_OF_MESSAGE, Block, conversation, serialise
from tests.integration.runs import Settings, write_rows
from tests.tiny import make_model_folder, make_tokenizer

QUESTION = "3 + 4?"
TAUGHT = (
    Block("text", "Let us compute."),
    Block("code", "x = 3 + 4\nprint(x)"),
    Block("execution", "8"),  # not what the code prints: only a real run gives 7
    Block("code", "print(x * 2)"),
    Block("execution", "16"),
    Block("text", "Done."),
)
FOUND = (*TAUGHT[:2], Block("execution", "7"), TAUGHT[3], Block("execution", "14"), TAUGHT[5])


@pytest.mark.slow
def test_blocks_of_a_real_model_run_in_a_real_sandbox(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat_template=None)
    blank = make_model_folder(tmp_path / "blank", "llama", tokenizer=tokenizer)
    row = {"prompt": conversation("", QUESTION), "response": serialise(TAUGHT) + END_OF_MESSAGE}
    settings = Settings.of(tmp_path, model=blank).with_(
        method="sft",
        special_tokens="blocks",
        train_file=str(write_rows(tmp_path / "taught.jsonl", [row])),
        learning_rate=1e-2,
        per_device_train_batch_size=1,
        max_steps=60,
        logging_steps=60,
    )
    model, learnt, _ = load_model(settings.train().model)
    generator = LocalGenerator(model, learnt)
    greedy = Solving(max_calls=6, max_new_tokens=40, schedule=constant(0.0))
    attempts = [
        Attempt("whole", 0, QUESTION),
        Attempt("tail", 0, QUESTION, front=TAUGHT[:1]),
        Attempt("replayed", 0, QUESTION, front=(*TAUGHT[:2], Block("execution", "7"))),
        Attempt("too long", 0, QUESTION, front=(Block("text", "a" * 300),)),
    ]
    with (
        Sandbox(Limits(seconds=2), workers=2, unsafe_local_execution=True) as sandbox,
        Journal(tmp_path / "journal.sqlite") as journal,
    ):
        solved = solve(attempts, generator, sandbox, greedy, journal=journal)
        assert solve(attempts, generator, sandbox, greedy, journal=journal) == solved
    assert [s.status for s in solved] == ["finished", "finished", "finished", "length"]
    assert [s.blocks for s in solved[:3]] == [FOUND, FOUND, FOUND]
    assert [s.calls for s in solved] == [5, 4, 3, 0]
    assert solved[3].reason == "the model's context is full"
