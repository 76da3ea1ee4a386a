"""The loop on a learner that is no language model: exact gradients, resume, refusal, interruption."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prefopt.errors import NonFiniteError, ResumeError
from prefopt.train.checkpoint import list_checkpoints
from prefopt.train.loop import Interrupted, LoopSettings, fit
from prefopt.train.optim import OptimSettings, learning_rate_at
from prefopt.train.runtime import Runtime
from tests.train.regression import Regression, regression_schedule

OPTIM = OptimSettings(learning_rate=0.05, lr_scheduler_type="linear")


def settings(
    folder: Path, *, micro: int = 8, epochs: float = 2, save: int | None = None
) -> LoopSettings:
    folder.mkdir(parents=True, exist_ok=True)
    return LoopSettings(
        schedule=regression_schedule(micro=micro, epochs=epochs),
        folder=folder,
        optim=OPTIM,
        logging_steps=1,
        save_steps=save,
    )


def weights(learner: Regression) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.module.parameters()])


def test_first_step_is_adamw_on_the_weighted_mean_gradient(tmp_path: Path) -> None:
    """Against ordinary torch code on the whole global batch."""
    learner, plain = Regression(), Regression()
    first = settings(tmp_path, micro=3, epochs=1 / 3)
    assert first.schedule.total_steps == 1
    fit(learner, first, Runtime())
    items = list(first.schedule.epoch(0)[0].items)
    optimizer = torch.optim.AdamW(plain.module.parameters(), lr=0.05, weight_decay=0.0)
    error = (plain.module(plain.x[items]) - plain.y[items]).square().squeeze(1)
    loss = (error * plain.weight[items]).sum() / plain.weight[items].sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.module.parameters(), 1.0)
    optimizer.step()
    torch.testing.assert_close(weights(learner), weights(plain), rtol=0, atol=1e-7)
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("micro", [1, 2, 3, 5, 8])
def test_micro_batches_do_not_change_the_result(micro: int, tmp_path: Path) -> None:
    whole, split = Regression(), Regression()
    fit(whole, settings(tmp_path / "a"), Runtime())
    fit(split, settings(tmp_path / "b", micro=micro), Runtime())
    torch.testing.assert_close(weights(whole), weights(split), rtol=0, atol=2e-6)


def test_resume_is_bit_equal(tmp_path: Path) -> None:
    whole = Regression()
    fit(whole, settings(tmp_path / "a", save=2), Runtime())
    resumed = Regression()
    checkpoint = tmp_path / "a" / "checkpoints" / "checkpoint-4"
    fit(resumed, settings(tmp_path / "a", save=2), Runtime(), resume_from=checkpoint)
    assert torch.equal(weights(whole), weights(resumed))
    rows = [
        json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_stages_end_with_a_row_and_a_checkpoint_and_resume_to_the_same(tmp_path: Path) -> None:
    """Ten and fourteen items in batches of eight: two steps each, and no row averages over two stages."""

    def staged(folder: Path) -> LoopSettings:
        base = settings(folder, epochs=1, save=100)
        schedule = base.schedule._replace(stage=(1,) * 10 + (2,) * 14)
        return replace(base, schedule=schedule, logging_steps=100)

    whole, resumed = Regression(), Regression()
    fit(whole, staged(tmp_path), Runtime())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["stage"], row["epoch"]) for row in rows] == [
        (1, 1, 0.25),
        (2, 1, 0.5),
        (4, 2, 1.0),
    ]
    names = [p.name for p in list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["checkpoint-2", "checkpoint-4"]
    fit(
        resumed,
        staged(tmp_path),
        Runtime(),
        resume_from=tmp_path / "checkpoints" / "checkpoint-2",
    )
    assert torch.equal(weights(whole), weights(resumed))
    again = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["loss"]) for row in again] == [(r["stage"], r["loss"]) for r in rows]


def test_another_run_is_refused_with_a_readable_diff(tmp_path: Path) -> None:
    fit(Regression(), settings(tmp_path, save=2), Runtime())
    other = settings(tmp_path, epochs=3)
    with pytest.raises(
        ResumeError, match=r"not the same run: schedule: \w+ in the checkpoint, \w+ now"
    ):
        fit(Regression(), other, Runtime(), resume_from=tmp_path / "checkpoints" / "checkpoint-2")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_damaged_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    fit(Regression(), settings(tmp_path, save=2), Runtime())
    checkpoint = tmp_path / "checkpoints" / "checkpoint-4"
    data = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ResumeError, match=f"half-written checkpoint \\({name} has"):
        fit(Regression(), settings(tmp_path), Runtime(), resume_from=checkpoint)


def test_old_checkpoints_are_removed_beyond_the_limit(tmp_path: Path) -> None:
    from dataclasses import replace

    fit(Regression(), replace(settings(tmp_path, save=1), save_total_limit=2), Runtime())
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == [
        "checkpoint-5",
        "checkpoint-6",
    ]


def test_non_finite_loss_names_step_and_records_and_leaves_the_weights(tmp_path: Path) -> None:
    learner = Regression()
    before = weights(learner)
    bad = settings(tmp_path, micro=2).schedule.epoch(0)[0].items[3]
    learner.y[bad] = float("nan")
    with pytest.raises(NonFiniteError, match=f"step 1: the loss is not finite.*row-{bad}"):
        fit(learner, settings(tmp_path, micro=2), Runtime())
    assert torch.equal(before, weights(learner))


class Stopping(Regression):
    """Sends itself SIGTERM in the second step."""

    calls = 0

    def losses(self, module, batch):
        self.calls += 1
        if self.calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(module, batch)


def test_sigterm_saves_and_stops(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped at step 2 of 6"):
        fit(Stopping(), settings(tmp_path), Runtime())
    whole, resumed = Regression(), Regression()
    fit(whole, settings(tmp_path / "whole"), Runtime())
    fit(
        resumed,
        settings(tmp_path),
        Runtime(),
        resume_from=tmp_path / "checkpoints" / "checkpoint-2",
    )
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize(
    ("kind", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 2, [0.5, 1, 1, 0.5]),
        ("cosine", 0, [1, 0.8535533905932737, 0.5, 0.14644660940672627]),
        ("one_cycle", 2, [0.5, 1, 1, 0.5]),
    ],
)
def test_learning_rate(kind: str, warmup: int, expected: list[float]) -> None:
    optim = OptimSettings(learning_rate=1.0, lr_scheduler_type=kind, warmup_steps=warmup)
    actual = [learning_rate_at(s, total=4, settings=optim) for s in range(4)]
    assert actual == pytest.approx(expected)
