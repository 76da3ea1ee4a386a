#!/usr/bin/env python
"""Draws the plots of `objectives.md`, loss and gradient of every objective: `python docs/objective_plots.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from objectives import PLOTS, quantity, responses
from prefopt.objectives import (
    Objective,
    Pairs,
    find_objective,
    needs_of,
    objective_names,
    parameters_of,
)

SIZE, DPI = (4.8, 1.7), 150
"""inches; dots per inch"""
COLOURS = ("#1f6fb4", "#d1495b", "#2a9d8f", "#8d6a9f")
POINTS = 401
TOKENS = 100.0
"""Length of both responses."""
MEAN = -1.5
"""Mean token log-probability of both at margin 0, nats."""


class Curve(NamedTuple):
    """One line of a plot: an objective with some parameters, at some annotations."""

    label: str = ""
    given: Mapping[str, float | str] = MappingProxyType({})
    """Parameters of the objective, fields of `Pairs`, or facts about responses."""


def gaps(*values: float) -> list[Curve]:
    """Curves for pairs whose scores differ by that much."""
    return [
        Curve(f"score gap {v:g}", {"score_chosen": 1 + v, "score_rejected": 1.0}) for v in values
    ]


def smoothed(*values: float) -> list[Curve]:
    """Curves for label smoothing of that much."""
    return [Curve(f"eps {v:g}", {"label_smoothing": v}) for v in values]


def longer(**lengths: float) -> dict[str, float | str]:
    """Lengths of `chosen` and `rejected` as fields of `Pairs`."""
    return {f"length_{side}": tokens for side, tokens in lengths.items()}


LENGTHS = [
    Curve("equal lengths"),
    Curve("chosen twice as long", longer(chosen=2 * TOKENS)),
    Curve("rejected twice as long", longer(rejected=2 * TOKENS)),
]
MARKS = [Curve("desirable", {"label": 1.0}), Curve("undesirable", {"label": 0.0})]
CURVES: dict[str, list[Curve]] = {
    "cdpo": smoothed(0.1, 0.2, 0.4),
    "robust": smoothed(0.1, 0.2, 0.4),
    "exo": smoothed(1e-3, 0.1),
    "aot": smoothed(0.0, 0.2),
    "aot_unpaired": smoothed(0.0, 0.2),
    "odpo": gaps(0.2, 1.0, 5.0),
    "mmpo": gaps(0.2, 1.0, 5.0),
    "dpo_margin": [Curve(f"margin {v:g}", {"margin": v}) for v in (-2, 0, 2)],
    "home_advantage": [Curve(f"advantage {v:g}", {"advantage": v}) for v in (0, 20)],
    "dpop": [Curve(f"lambda {v:g}", {"lambda_": v}) for v in (0, 5, 50)],
    "beta_dpo": [Curve(f"batch mean - M {v:g}", {"excess": v}) for v in (-1, 0, 1)],
    "mallows": [Curve(f"H {v:g}", {"dispersion": v}) for v in (0.01, 0.2, 0.8)],
    "tdpo": [Curve(f"D_rejected - D_chosen {v:g}", {"kl_rejected": 20 + v}) for v in (-20, 0, 20)],
    "tdpo1": [Curve(f"D_rejected - D_chosen {v:g}", {"kl_rejected": 20 + v}) for v in (-20, 0, 20)],
    "wpo": [Curve(f"weight {v:g}", {"weight": v}) for v in (0.3, 1)],
    "ld_dpo": [Curve("equal lengths"), Curve("one twice as long", longer(chosen=2 * TOKENS))],
    "ld_dpo_policy": LENGTHS,
    "f_dpo": [
        Curve(kind.replace("_", " "), {"f_divergence_type": kind})
        for kind in ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
    ],
    "alphapo": [Curve(f"alpha {v:g}", {"alpha": v}) for v in (-0.5, 0, 0.25)],
    "discopop": [Curve(f"tau {v:g}", {"tau": v}) for v in (0.05, 0.5)],
    "asft": [Curve(f"lambda {v:g}", {"lambda_": v}) for v in (0, 0.5, 1)],
    "gold_nll": [Curve("", {"gold_is_chosen": 1.0})],
    "kto": MARKS,
    "apo_zero_unpaired": MARKS,
    "bco_unpaired": MARKS,
    "plackett_luce": [
        Curve(f"{name} of three moves", {"moved": i})
        for i, name in enumerate(("first", "second", "last"))
    ],
}
"""More than the one curve at the defaults."""

SPANS = {"discopop": 1.5, "f_dpo": 0.6, "dpop": 2.0}
"""Half the width of the x axis in units of 1 / beta, where not 8."""


def draw(names: Iterable[str], folder: Path) -> None:
    """Write `<name>.png` for every objective and remove what is there of others."""
    folder.mkdir(exist_ok=True)
    kept = {folder / f"{name}.png" for name in names}
    for old in set(folder.glob("*.png")) - kept:
        old.unlink()
    for path in sorted(kept):
        plot(path.stem, path)


def plot(name: str, path: Path) -> None:
    """One plot, as a small palette PNG of the same bytes every time."""
    objective = find_objective(name)
    label, x = abscissa(name, objective)
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    curves = CURVES.get(name, [Curve()])
    for colour, curve in zip(COLOURS, curves, strict=False):
        loss, slope = along(objective, curve, x)
        for axes, values in ((left, loss), (right, slope)):
            axes.plot(x.numpy(), values, color=colour, linewidth=1.2, label=curve.label)
    symbol = label.partition(" (")[0]
    dress(left, "loss", label)
    dress(right, f"d loss / d {symbol}" if len(symbol) < 8 else "gradient", label)
    if len(curves) > 1:
        left.legend(
            fontsize=5, frameon=False, handlelength=1.2, borderaxespad=0.1, labelspacing=0.2
        )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(24, dither=Image.Dither.NONE).save(path, optimize=True)


def dress(axes: Axes, title: str, label: str) -> None:
    """Titles, ticks and the two zero lines."""
    axes.set_title(title, fontsize=7)
    axes.set_xlabel(label, fontsize=6)
    axes.tick_params(labelsize=6, length=2, width=0.5)
    axes.yaxis.get_offset_text().set_fontsize(6)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.axvline(0, color="#cccccc", linewidth=0.6, zorder=0)
    axes.axhline(0, color="#cccccc", linewidth=0.6, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def abscissa(name: str, objective: Objective) -> tuple[str, Tensor]:
    """What the x axis is, and its values: float64."""
    need, kind = needs_of(objective), quantity(objective)
    half = SPANS.get(name, 8.0) / float(str(parameters_of(objective).get("beta", 1.0)))
    if need.view == "responses":
        low, high, label = -half, half, "rho (nats)"
        if not need.reference:
            low, high, label = -6.0, 0.0, "m (nats per token)"
        return label, torch.linspace(low, high, POINTS, dtype=torch.float64)
    if not need.reference:
        most = -1.9 * MEAN * (1.0 if kind == "means" else TOKENS)
        half = most if kind == "means" else min(most, half)
        label = {"means": "m_chosen - m_rejected (nats per token)"}.get(
            kind, "S_chosen - S_rejected (nats)"
        )
    else:
        label = "h per token (nats)" if kind == "means" else "h (nats)"
    return label, torch.linspace(-half, half, POINTS, dtype=torch.float64)


def along(objective: Objective, curve: Curve, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Loss and derivative at every x; each is a batch of its own where items of a batch see each other."""
    x = x.clone().requires_grad_()
    parameters = {k: v for k, v in curve.given.items() if k in parameters_of(objective)}
    given = {k: float(v) for k, v in curve.given.items() if k not in parameters}
    if needs_of(objective).view == "responses":
        losses = [of_responses(objective, parameters, given, value) for value in x]
    elif needs_of(objective).coupled:
        losses = [alone(objective, parameters, given, value[None]) for value in x]
    else:
        losses = list(objective(pairs_at(objective, x, given), **parameters).loss)
    loss = torch.stack(losses)
    (slope,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach().numpy(), slope.numpy()


def alone(
    objective: Objective, parameters: dict[str, float | str], given: dict[str, float], x: Tensor
) -> Tensor:
    """The loss of a batch of one pair; `excess` is what its margin has over the running mean of earlier ones."""
    running = {"gap_mean": x[0].detach() - given["excess"]} if "excess" in given else {}
    return objective(pairs_at(objective, x, given), **parameters, **running).loss[0]


def pairs_at(objective: Objective, x: Tensor, given: dict[str, float]) -> Pairs:
    """Pairs whose margin is x, made of two symmetric moves."""
    one = torch.ones_like(x)
    n_chosen, n_rejected = (given.get(f"length_{side}", TOKENS) for side in ("chosen", "rejected"))
    per_token = quantity(objective) == "means"
    move = x / 2 * (TOKENS if per_token else 1.0)
    base_chosen, base_rejected = MEAN * n_chosen * one, MEAN * n_rejected * one
    chosen, rejected = base_chosen + move, base_rejected - move
    share_chosen, share_rejected = min(1.0, n_rejected / n_chosen), min(1.0, n_chosen / n_rejected)
    weight = 0.5 * float(np.log(given.get("weight", 1.0)))
    return Pairs(
        policy_chosen=chosen,
        policy_rejected=rejected,
        reference_chosen=base_chosen,
        reference_rejected=base_rejected,
        length_chosen=n_chosen * one,
        length_rejected=n_rejected * one,
        score_chosen=given.get("score_chosen", 2.0) * one,
        score_rejected=given.get("score_rejected", 1.0) * one,
        margin=given.get("margin", 0.0) * one,
        policy_gold=chosen if given.get("gold_is_chosen") else base_chosen,
        length_gold=n_chosen * one,
        kl_chosen=20.0 * one,
        kl_rejected=given.get("kl_rejected", 20.0) * one,
        dispersion_chosen=given.get("dispersion", 0.5) * n_chosen * one,
        dispersion_rejected=given.get("dispersion", 0.5) * n_rejected * one,
        alignment_chosen=weight * n_chosen * one,
        alignment_rejected=weight * n_rejected * one,
        policy_chosen_common=share_chosen * chosen,
        policy_rejected_common=share_rejected * rejected,
        reference_chosen_common=share_chosen * base_chosen,
        reference_rejected_common=share_rejected * base_rejected,
    )


def of_responses(
    objective: Objective, parameters: dict[str, float | str], given: dict[str, float], x: Tensor
) -> Tensor:
    """The loss of one response that moves to x, or of the three of a ranking of which one does."""
    if "moved" in given:
        moves: Sequence[Tensor] = [
            x if i == given["moved"] else torch.zeros_like(x) for i in range(3)
        ]
    else:
        moves = [x]
    policy = torch.stack(list(moves))
    scores = responses(policy, torch.zeros_like(policy), torch.ones_like(policy))
    scores = scores._replace(label=torch.full_like(policy, given.get("label", 1.0)).detach())
    return objective(scores, **parameters).loss.sum()


if __name__ == "__main__":
    draw(objective_names(), PLOTS)
