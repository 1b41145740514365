"""What the pictures share: colours, panels, words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data.stars import Stars
from ..errors import bad_input
from ..results.star_posterior import LEVELS, ONE_SIGMA

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#222222"
"""Colours of Okabe and Ito's palette, which colour-blind readers can tell apart."""


def draw_on(n: int, axes: Any, rows: int = 1, wide: bool = False, ratios: Any = None) -> tuple[Figure, list[Axes]]:
    if axes is not None:
        flat = list(np.ravel(np.asarray(axes, object)))
        if len(flat) != n:
            raise bad_input(f"{len(flat)} axes", f"{n}")
        return flat[0].get_figure(), flat
    columns = -(-n // rows)
    size = (10, 1.6 * rows + 0.8 if ratios is None else 5) if wide else (3.7 * columns, 3.6 * rows)
    figure = Figure(figsize=size, layout="constrained")
    flat = list(figure.subplots(rows, columns, squeeze=False, height_ratios=ratios).ravel())
    for ax in flat[n:]:
        ax.set_axis_off()
    return figure, flat[:n]


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


def matrix(draws: np.ndarray, names: Sequence[str], units: Sequence[str], known: np.ndarray | None = None) -> Figure:
    """Densities of M numbers from draws (S, M), and 68 and 95 per cent contours of every pair; `known` (M,) orange."""
    m = len(names)
    figure = Figure(figsize=(2.4 * m + 0.6, 2.4 * m + 0.6), layout="constrained")
    panels = figure.subplots(m, m, squeeze=False)
    low, high = np.percentile(draws, [0.3, 99.7], axis=0)
    if known is not None:
        low, high = np.fmin(low, known), np.fmax(high, known)
    margin = 0.12 * (high - low)
    low, high = low - margin, high + margin
    for i in range(m):
        for j in range(m):
            ax = panels[i, j]
            if j > i:
                ax.set_axis_off()
                continue
            if i == j:
                ax.hist(draws[:, i], 40, (low[i], high[i]), color=BLUE, alpha=0.55, density=True)
                ax.set_yticks([])
                p16, p50, p84 = np.percentile(draws[:, i], [100 * LEVELS[x] for x in ONE_SIGMA])
                ax.set_title(_value(names[i], p16, p50, p84, units[i]), fontsize=9)
            else:
                _density(ax, draws[:, j], draws[:, i], (low[j], high[j]), (low[i], high[i]))
                ax.set_ylim(low[i], high[i])
            if known is not None:
                ax.axvline(known[j], color=ORANGE, lw=1.2)
                if i != j:
                    ax.axhline(known[i], color=ORANGE, lw=1.2)
            ax.set_xlim(low[j], high[j])
            ax.locator_params(axis="x", nbins=4)
            ax.tick_params(axis="x", labelrotation=40)
            ax.tick_params(labelbottom=i == m - 1, labelleft=j == 0 and i > 0)
            if i == m - 1:
                ax.set_xlabel(label(names[j], units[j]))
            if j == 0 and i > 0:
                ax.set_ylabel(label(names[i], units[i]))
                ax.locator_params(axis="y", nbins=4)
    return figure


def _value(name: str, low: float, middle: float, high: float, unit: str) -> str:
    digits = max(0, 1 - int(np.floor(np.log10(max(min(high - middle, middle - low), 1e-12)))))
    text = f"${middle:.{digits}f}^{{+{high - middle:.{digits}f}}}_{{-{middle - low:.{digits}f}}}$"
    return f"{name} = {text} {unit}".rstrip()


def _density(ax: Axes, x: np.ndarray, y: np.ndarray, xlim: Any, ylim: Any) -> None:
    """Points, and contours that hold 68 and 95 per cent of a smoothed histogram."""
    from scipy.ndimage import gaussian_filter

    counts, xe, ye = np.histogram2d(x, y, 48, (xlim, ylim))
    smooth = gaussian_filter(counts, 3.0 if len(x) < 3000 else 2.0)
    order = np.sort(smooth.ravel())[::-1]
    total = np.cumsum(order) / order.sum()
    levels = sorted({float(order[np.searchsorted(total, p)]) for p in (0.95, 0.68)})
    ax.plot(x, y, ".", ms=1.5, color=GREY, alpha=0.5, rasterized=True, zorder=0)
    centres = (xe[1:] + xe[:-1]) / 2, (ye[1:] + ye[:-1]) / 2
    for level in levels:
        ax.contourf(*centres, smooth.T, [level, smooth.max() * 1.001], colors=[BLUE], alpha=0.28)
    ax.contour(*centres, smooth.T, levels, colors=[BLUE], linewidths=1.2)
