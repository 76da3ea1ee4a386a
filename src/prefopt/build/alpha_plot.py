"""The picture of an alpha that was fitted: the length gap over alpha."""

from __future__ import annotations

import io
from pathlib import Path

from prefopt.build.bootstrap import AlphaFit
from prefopt.errors import StorageError

_REACH = 3.0
"""How far the picture goes, in units of the alpha that was found; the curve itself goes on."""


def draw_alpha(fit: AlphaFit, path: Path, *, unit: str) -> None:
    """Write a PNG of the curve; `unit` is that of lengths.

    Raises:
        StorageError: it cannot be written.
    """
    from matplotlib.figure import Figure  # half a second, in builds only

    points = [(p.alpha, p.gap) for p in fit.curve if p.gap is not None]
    figure = Figure(figsize=(6.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.step([a for a, _ in points], [g for _, g in points], where="mid", marker=".", markersize=4)
    axes.axhline(0.0, color="0.5", linewidth=0.8)
    axes.axvline(fit.alpha, color="0.5", linewidth=0.8, linestyle="--")
    if fit.alpha != 0:
        ends = sorted((0.0, _REACH * fit.alpha))
        shown = [g for a, g in points if ends[0] <= a <= ends[1]]
        room = 0.05 * (max(shown) - min(shown)) or 1.0
        axes.set_xlim(*ends)
        axes.set_ylim(min(*shown, 0.0) - room, max(*shown, 0.0) + room)
    axes.set_xlabel("alpha, in units of the reward")
    axes.set_ylabel(f"chosen minus rejected, {unit}")
    axes.set_title(f"alpha {fit.alpha:.3g}", fontsize=10)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    try:
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(image.getvalue())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); free some space or check permissions"
        ) from error
