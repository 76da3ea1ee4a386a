"""The one training loop: plan -> micro-batches -> losses -> backward -> step -> log, evaluate, save.

It knows no method, model family or backend. The gradient of a step is the sum of weighted losses divided by the
total weight of the *global* batch, so splitting the batch into micro-batches or processes does not change it.
"""

from __future__ import annotations

import signal
import time
from bisect import bisect_left
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from prefopt.errors import NonFiniteError
from prefopt.metrics import Accumulator
from prefopt.pack.plan import Pack, Schedule, StepPlan
from prefopt.progress import progress, say
from prefopt.train.checkpoint import (
    TrainerState,
    check_identity,
    load_optimizer,
    read_state,
    restore_rng,
    rng_state,
    write_checkpoint,
)
from prefopt.train.learner import Learner, Weighted
from prefopt.train.optim import OptimSettings, adamw, learning_rate_at
from prefopt.train.runtime import Runtime
from prefopt.train.track import MetricsFile

B = TypeVar("B")

_ROW_KEYS = {"step", "epoch", "stage", "seconds"}
"""What a line of `metrics.jsonl` says about itself; the rest are metrics."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What the loop needs to know beside the learner."""

    schedule: Schedule
    folder: Path
    """Run folder: `metrics.jsonl` and `checkpoints/` go here."""
    optim: OptimSettings = field(default_factory=OptimSettings)
    max_grad_norm: float = 1.0
    """0 switches clipping off."""
    logging_steps: int = 10
    eval_steps: int | None = None
    """Evaluate after so many steps, and at the end of every stage; None: no evaluation."""
    eval_plan: Sequence[StepPlan] = ()
    save_steps: int | None = None
    """Save after so many steps, and at the end of every stage; None: no checkpoints."""
    save_total_limit: int | None = None
    identity: Mapping[str, str] = field(default_factory=dict[str, str])
    """Facts about the run that a resumed one must share."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved a checkpoint."""


def fit(
    learner: Learner[B],
    settings: LoopSettings,
    runtime: Runtime,
    *,
    resume_from: Path | None = None,
) -> dict[str, float]:
    """Train to the end of the schedule; returns the last logged metrics.

    Raises:
        NonFiniteError: a loss or gradient is NaN or infinite; names step and records. The weights of the step
            before are untouched, earlier checkpoints stay.
        ResumeError: `resume_from` belongs to another run.
    """
    loop = _Loop(learner, settings, runtime)
    if resume_from is not None:
        loop.resume(resume_from)
    return loop.run()


class _Loop(Generic[B]):
    def __init__(self, learner: Learner[B], settings: LoopSettings, runtime: Runtime) -> None:
        self.learner, self.settings, self.runtime = learner, settings, runtime
        self.total_steps = settings.schedule.total_steps
        self.steps_per_epoch = settings.schedule.steps_per_epoch
        self.stage_ends = settings.schedule.stage_ends()
        optimizer = adamw(learner.module, settings.optim)
        self.module, self.optimizer = runtime.prepare(learner.module, optimizer)
        self.metrics = MetricsFile(settings.folder / "metrics.jsonl")
        self.window = Accumulator(runtime.device)
        self.identity = {
            "schedule": settings.schedule.digest(),
            **settings.identity,
            **learner.identity(),
        }
        self.step = 0
        self.last: dict[str, float] = {}
        self.started = self.window_started = time.perf_counter()
        self.window_steps = 0

    def resume(self, checkpoint: Path) -> None:
        state = read_state(checkpoint)
        check_identity(state.identity, self.identity, checkpoint)
        self.learner.load(checkpoint)
        self.optimizer.load_state_dict(load_optimizer(checkpoint))
        restore_rng(checkpoint, self.runtime.rank)
        self.step = state.step
        if self.runtime.is_main:
            self.metrics.rewind(state.step)
            for row in self.metrics.read():
                self.last |= {k: v for k, v in row.items() if k not in _ROW_KEYS}
                self.started = time.perf_counter() - row["seconds"]
            say(f"resuming from {checkpoint} (step {state.step} of {self.total_steps})")

    def run(self) -> dict[str, float]:
        self.module.train()
        quiet = not self.runtime.is_main
        alone = self.runtime.world_size == 1
        with (
            # Processes of a launch cannot agree on a step to stop after: signals end them at once.
            _stop_requests() if alone else nullcontext(list[int]()) as stop,
            progress("training", self.total_steps, quiet=quiet, done=self.step) as tick,
        ):
            for step, plan in self.settings.schedule.from_step(self.step):
                gradient_norm = self.train_step(step, plan)
                self.step = step + 1
                self.window_steps += 1
                tick(note=self.report(gradient_norm))
                saved = self.save_if_due(force=False)
                if stop and self.step < self.total_steps:
                    if not saved:
                        self.save_if_due(force=True)
                    raise Interrupted(f"stopped at step {self.step} of {self.total_steps}")
        return self.last

    def train_step(self, step: int, plan: StepPlan) -> Tensor:
        """One optimiser step; returns the gradient norm before clipping."""
        rate = learning_rate_at(step, total=self.total_steps, settings=self.settings.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        packs = plan.ranks[self.runtime.rank]
        with self.learner.step(self.module, packs, self.runtime, number=step):
            sums = self.accumulate(packs, self.learner.totals(plan.items, training=True))
            norm = self.runtime.clip(self.module, self.settings.max_grad_norm)
            self.check_finite(step, packs, sums, norm)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def accumulate(self, packs: Sequence[Pack], totals: Sequence[float]) -> list[Tensor]:
        """Forward and backward over all micro-batches; returns their shares of the loss."""
        sums: list[Tensor] = []
        for number, pack in enumerate(packs):
            last = number == len(packs) - 1
            with self.runtime.no_sync(self.module, last=last):
                parts = self.learner.losses(self.module, self.learner.batch(pack, training=True))
                loss = _weighted_sum(parts, totals)
                # Distributed backends average gradients over processes; the sum is meant.
                self.runtime.backward(loss * self.runtime.world_size)
            sums.append(loss.detach())
            _accumulate(self.window, parts)
        return sums

    def check_finite(
        self, step: int, packs: Sequence[Pack], sums: Sequence[Tensor], norm: Tensor
    ) -> None:
        """One host synchronisation a step; nothing has touched the weights yet."""
        finite = torch.isfinite(torch.stack([*sums, norm.to(sums[0].device)]))
        if bool(finite.all()):
            return
        bad = [pack for pack, ok in zip(packs, finite[:-1].tolist(), strict=True) if not ok]
        items = [i for pack in bad or packs for i in pack.items]
        names = ", ".join(self.learner.names(items[:8], training=True))
        what = "loss" if bad else "gradient"
        raise NonFiniteError(
            f"step {step + 1}: the {what} is not finite; records of the micro-batch: {names}"
            f"{', ...' if len(items) > 8 else ''}; lower learning_rate, or inspect them with `prefopt show`"
        )

    def report(self, gradient_norm: Tensor) -> str:
        """Log and evaluate when due; returns a short note for the progress bar."""
        settings, step = self.settings, self.step
        end = step in self.stage_ends  # no row is of two stages, and each is told how it ended
        values: dict[str, float] = {}
        # A checkpoint finds the window empty, so that a resumed run logs what an uninterrupted one does.
        if step % settings.logging_steps == 0 or step == 1 or end or self.save_due():
            values = self.read_window()
            values["grad_norm"] = float(gradient_norm)
        if settings.eval_steps and (step % settings.eval_steps == 0 or end):
            values |= {f"eval_{k}": v for k, v in self.evaluate().items()}
        if values:
            self.write(values)
        return f"loss {self.last['loss']:.4f}" if "loss" in self.last else ""

    def read_window(self) -> dict[str, float]:
        values = _join_losses(self.window.read(self.runtime.sum))
        now = time.perf_counter()
        values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        values["seconds_per_step"] = (now - self.window_started) / max(1, self.window_steps)
        self.window_started, self.window_steps = now, 0
        return values

    def evaluate(self) -> dict[str, float]:
        """Metrics over the evaluation plan, without gradient."""
        window = Accumulator(self.runtime.device)
        self.module.eval()
        with torch.no_grad():
            for plan in self.settings.eval_plan:
                packs = plan.ranks[self.runtime.rank]
                with self.learner.step(self.module, packs, self.runtime, number=None):
                    for pack in packs:
                        batch = self.learner.batch(pack, training=False)
                        _accumulate(window, self.learner.losses(self.module, batch))
        self.module.train()
        return _join_losses(window.read(self.runtime.sum))

    def write(self, values: Mapping[str, float]) -> None:
        self.last = {**self.last, **values}
        row = {"step": self.step, "epoch": round(self.step / self.steps_per_epoch, 6)}
        if len(self.stage_ends) > 1:
            row["stage"] = 1 + bisect_left(self.stage_ends, self.step)
        row |= values
        if self.runtime.is_main:
            self.metrics.append({**row, "seconds": round(time.perf_counter() - self.started, 3)})
        self.runtime.track(values, step=self.step)

    def save_due(self) -> bool:
        every = self.settings.save_steps
        return every is not None and (self.step % every == 0 or self.step in self.stage_ends)

    def save_if_due(self, *, force: bool) -> bool:
        if not (self.save_due() or force):
            return False
        rng = self.runtime.gather([rng_state()])
        self.runtime.on_main(
            lambda: write_checkpoint(
                self.settings.folder / "checkpoints",
                TrainerState(self.step, self.identity),
                save_weights=self.learner.save,
                optimizer=self.optimizer.state_dict(),
                rng=rng,
                keep=self.settings.save_total_limit,
            )
        )
        return True


def _weighted_sum(parts: Sequence[Weighted], totals: Sequence[float]) -> Tensor:
    """Sum of weighted losses over the total weight of the global batch, per objective, added up."""
    terms = [
        (part.losses.loss * part.weight).sum() / (total or 1.0)
        for part, total in zip(parts, totals, strict=True)
    ]
    return torch.stack(terms).sum()


def _accumulate(window: Accumulator, parts: Sequence[Weighted]) -> None:
    seen: set[str] = set()
    for part in parts:
        # Objectives of a sum log the same names on scales of their own: the first one's count.
        terms = {k: v for k, v in part.losses.terms.items() if k not in seen}
        seen |= terms.keys()
        window.add({f"loss/{part.name}": part.losses.loss}, part.weight)
        window.add_known(terms, part.weight)


def _join_losses(values: dict[str, float]) -> dict[str, float]:
    """`loss` is the sum over objectives; their parts are kept when there are several."""
    parts = {k: v for k, v in values.items() if k.startswith("loss/")}
    rest = {k: v for k, v in values.items() if k not in parts}
    return {"loss": sum(parts.values()), **(parts if len(parts) > 1 else {}), **rest}


@contextmanager
def _stop_requests() -> Generator[list[int]]:
    """Collects SIGINT and SIGTERM while the loop runs, so that it can save before it stops."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        del frame
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        say("stopping after this step; interrupt again to stop at once")

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller's handlers stay
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
