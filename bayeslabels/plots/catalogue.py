"""Pictures of a catalogue: many stars and their labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.table import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..astro.quantities import plain
from ..errors import bad_input, index_of
from ..results.star_posterior import StarPosterior
from .panels import BLUE, GREY, draw_on, empty, label


def kiel(
    result: StarPosterior | Table,
    *,
    teff: str = "TEFF",
    logg: str = "LOGG",
    colour: str | None = "FE_H",
    axes: Axes | None = None,
) -> Figure:
    """The Kiel diagram: log g against Teff, both growing towards the origin, the colour of a point its metallicity.

    The cross is the median error bar.

    Args:
        result: from `infer`, or its table, such as a catalogue read from a file.
        teff, logg, colour: names of the labels; colour=None: one colour.
        axes: one; None: a new figure.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> figure = bl.plots.kiel(bl.infer(posterior, test, progress=False))
        >>> figure.axes[0].get_xlabel(), bool(figure.axes[0].xaxis_inverted())
        ('TEFF [K]', True)
    """
    if not isinstance(result, StarPosterior | Table):
        raise bad_input(f"a {type(result).__name__}", "a result of infer(), or its table")
    table = result.table() if isinstance(result, StarPosterior) else result
    asked = [teff, logg] + ([] if colour is None else [colour])
    for name in asked:
        index_of(name, table.colnames, "column")
    values = [plain(table[name], table[name].unit, name) for name in asked]
    ok = np.isfinite(values).all(0)
    figure, (ax,) = draw_on(1, axes)
    if axes is None:
        figure.set_size_inches(5.4, 4.4)
    if not ok.any():
        empty(ax, ", ".join(asked))
        return figure
    x, y, *c = (value[ok] for value in values)
    order = np.random.default_rng(0).permutation(len(x))  # no colour is always on top
    size = float(np.clip(4000 / len(x), 3, 20))
    shade: dict[str, Any] = {"color": BLUE}
    if c:
        low, high = np.percentile(c[0], [2, 98])
        shade = {"c": c[0][order], "cmap": "viridis", "vmin": low, "vmax": high}
    points = ax.scatter(x[order], y[order], size, lw=0, alpha=0.85, rasterized=len(x) > 2000, **shade)
    units = [str(table[name].unit or "") for name in asked]
    ax.set(xlabel=label(teff, units[0]), ylabel=label(logg, units[1]))
    ax.invert_xaxis()
    ax.invert_yaxis()
    errors = [f"{name}_error" for name in (teff, logg)]
    if all(name in table.colnames for name in errors):
        dx, dy = (float(np.nanmedian(plain(table[name], table[name].unit, name)[ok])) for name in errors)
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        corner = left + 0.1 * (right - left), high + 0.1 * (low - high)  # where hot, luminous stars are few
        ax.errorbar(*corner, dy, dx, color=GREY, lw=1.2)
    if colour is not None:
        figure.colorbar(points, ax=ax, label=label(colour, units[2]), extend="both")
    return figure
