"""What the pictures share: colours, panels, words."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import bad_input
from ..stars import Stars

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#222222"
"""Of Okabe and Ito's palette, which colour-blind readers can tell apart."""


def draw_on(n: int, axes: Any, rows: int = 1, wide: bool = False, ratios: Any = None) -> tuple[Figure, list[Axes]]:
    if axes is not None:
        flat = list(np.ravel(np.asarray(axes, object)))
        if len(flat) != n:
            raise bad_input(f"{len(flat)} axes", f"{n}")
        return flat[0].get_figure(), flat
    columns = -(-n // rows)
    size = (10, 1.6 * rows + 0.8 if ratios is None else 5) if wide else (3.7 * columns, 3.6 * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, height_ratios=ratios).ravel())


def kind(truth: Any) -> str:
    return "catalogue" if isinstance(truth, Stars) else "true"


def label(name: str, unit: str) -> str:
    return f"{name} [{unit}]" if unit else name


def paper() -> dict[str, Any]:
    return {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}


def empty(ax: Axes, name: str) -> None:
    ax.text(0.5, 0.5, f"no star with {name}", transform=ax.transAxes, ha="center", va="center")


def steps(ax: Axes, x: np.ndarray, y: np.ndarray, color: str, **options: Any) -> None:
    ax.plot(x, y, color=color, lw=1, drawstyle="steps-mid", **options)
