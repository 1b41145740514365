"""Pictures of results whose truth, or a measurement of it, is known: recovery, and whether the error bars hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from ..calibration import Labels, Result, compared, coverage, label_scatter, robust_scatter, z_scores
from ..calibration import reliability as by_bins
from ..calibration.bins import binned, named, quantity
from ..data.stars import Stars
from ..errors import bad_input
from ..reports import ONE_SIGMA
from ..results.about import significant
from ..results.table import decimals
from .panels import BLACK, BLUE, GREEN, GREY, ORANGE, draw_on, empty, kind, label, paper


def one_to_one(result: Result, truth: Labels, *, residuals: bool = False, axes: Sequence[Axes] | None = None) -> Figure:
    """Inferred against true labels, a panel per label, with bias and scatter.

    Args:
        truth: (N, M) in label units; `Stars` with labels, such as a catalogue's; or a `simulate.Truth`.
        residuals: with a second row of panels, inferred less true labels.
        axes: one per label, and then one per label for the residuals; None: a new figure.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> figure = bl.plots.one_to_one(result, truth.test_labels)
        >>> len(figure.axes)
        3
    """
    reference = compared(result, truth, scatter=scatter(result, truth))
    known, names, units = reference.value, result.frame.names, result.frame.units
    spread = np.sqrt(np.einsum("nmm->nm", reference.covariance)) if isinstance(truth, Stars) else None
    rows = 1 + residuals
    figure, panels = draw_on(rows * len(names), axes, rows=rows, ratios=(2.2, 1) if residuals else None)
    for m, name in enumerate(names):
        ax, below = panels[m], panels[len(names) + m] if residuals else None
        x, y = known[:, m], result.mean[:, m]
        ok = np.isfinite(x) & np.isfinite(y)
        if not ok.any():
            empty(ax, name)
            if below is not None:
                empty(below, name)
            continue
        low, high = np.nanpercentile(np.concatenate([x[ok], y[ok]]), [0.2, 99.8])
        margin = 0.06 * (high - low) or 1.0
        limits = (low - margin, high + margin)
        xerr = None if spread is None else spread[ok, m]
        many = ok.sum() > 400
        ax.plot(limits, limits, color=BLACK, lw=1, ls="--", zorder=3)
        ax.errorbar(
            x[ok], y[ok], result.error[ok, m], None if many else xerr, "o", ms=3, color=BLUE, ecolor=GREY,
            elinewidth=0.6, alpha=0.35 if many else 0.7, mew=0, rasterized=many,
        )  # fmt: skip
        offset = (y - x)[ok]
        unit = f" {units[m]}" if units[m] else ""
        bias, rms = offset.mean(), np.sqrt((offset**2).mean())
        text = f"bias {bias:{'+' + (decimals(rms) or '.2g')}}{unit}\nrms {significant(rms)}{unit}\n{ok.sum()} stars"
        ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top", fontsize=9, bbox=paper())
        outside = int(((x[ok] < limits[0]) | (x[ok] > limits[1]) | (y[ok] < limits[0]) | (y[ok] > limits[1])).sum())
        if outside > 2:
            ax.text(0.96, 0.04, f"{outside} stars beyond", transform=ax.transAxes, ha="right", fontsize=8, color=GREY)
        xlabel = f"{kind(truth)} {label(name, units[m])}"
        ax.set(xlim=limits, ylim=limits, ylabel=f"inferred {label(name, units[m])}", aspect="equal")
        ax.locator_params(nbins=5)
        if below is None:
            ax.set_xlabel(xlabel)
            continue
        ax.set_aspect("auto")
        ax.tick_params(labelbottom=False)
        sd = np.hypot(result.error[ok, m], 0.0 if spread is None else spread[ok, m])
        below.axhline(0, color=BLACK, lw=1, ls="--", zorder=3)
        below.errorbar(
            x[ok], offset, sd, None, "o", ms=3, color=BLUE, ecolor=GREY, elinewidth=0.6,
            alpha=0.35 if many else 0.7, mew=0, rasterized=many,
        )  # fmt: skip
        room = 1.3 * float(np.nanpercentile(np.abs(offset) + sd, 98)) or 1.0
        below.set(xlim=limits, ylim=(-room, room), xlabel=xlabel, ylabel="difference")
        below.locator_params(nbins=5)
    return figure


def calibration(result: Result, truth: Labels, *, axes: Any = None) -> Figure:
    """Whether the error bars hold: z scores against the unit normal (top), and coverage (bottom), per label.

    z = (inferred - true) / error. Against the labels of `Stars`, a catalogue's, the error includes theirs and tau.
    The coverage curve is the fraction of stars whose truth lies within the central interval of each probability; the
    band is where 95 per cent of perfectly calibrated samples of this size lie, point by point.

    Args:
        truth: as in `one_to_one`. axes: (2, M); None: a new figure.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> figure = bl.plots.calibration(result, truth.test_labels)
        >>> len(figure.axes)
        6
    """
    tau = scatter(result, truth)
    z = -z_scores(result, truth, scatter=tau)
    names = result.frame.names
    figure, panels = draw_on(2 * len(names), axes, rows=2)
    level = np.linspace(0, 1, 202)[1:-1]
    curve, one_sigma = (coverage(result, truth, p, scatter=tau) for p in (level, ONE_SIGMA))
    for m, name in enumerate(names):
        top, bottom = panels[m], panels[len(names) + m]
        one = z[np.isfinite(z[:, m]), m]
        if not len(one):
            empty(top, name)
            empty(bottom, name)
            continue
        edges = np.linspace(-4, 4, 33 if len(one) > 300 else 17).tolist()
        grid = np.linspace(-4, 4, 200)
        top.hist(np.clip(one, -3.99, 3.99), edges, density=True, color=BLUE, alpha=0.55, label="stars")
        top.plot(grid, norm.pdf(grid), color=BLACK, lw=1.5, label="unit normal")
        top.set(xlabel=f"z of {name}: (inferred $-$ {kind(truth)}) / error", xlim=(-4, 4))
        top.set_ylabel("density")
        top.set_ylim(0, 1.5 * top.get_ylim()[1])
        text = f"mean {one.mean():+.2f}\nsd {one.std():.2f}"
        if beyond := int((abs(one) > 4).sum()):
            text += f"\n{beyond} beyond 4"
        top.text(0.04, 0.96, text, transform=top.transAxes, va="top", fontsize=9)
        top.legend(loc="upper right", fontsize=9, frameon=False)
        low, high = curve.low[:, m], curve.high[:, m]
        bottom.fill_between(level, low, high, color=GREY, alpha=0.35, lw=0, label="95% of calibrated samples")
        bottom.plot(level, level, color=BLACK, lw=1, ls="--")
        bottom.plot(level, curve.share[:, m], color=BLUE, lw=2, label="these stars")
        share = one_sigma.share[m]
        bottom.plot([ONE_SIGMA], [share], "o", color=ORANGE, ms=6, label=f"within the 68% interval: {100 * share:.0f}%")
        bottom.set(xlabel="probability of the interval", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        bottom.set_ylabel(f"fraction of stars inside ({name})")
        bottom.legend(loc="lower right", fontsize=8, frameon=False)
    return figure


def reliability(
    result: Result,
    truth: Labels,
    by: Any = None,
    *,
    bins: Any = 6,
    by_name: str | None = None,
    levels: Sequence[float] = (0.6827, 0.95),
    errors: Any = None,
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """Coverage in bins of S/N or of a label: where the error bars hold, a panel per label.

    Points: the share of stars inside the central interval of each probability (dashed line). The band is where 95 per
    cent of calibrated samples of a bin's size lie. Against the labels of `Stars`, errors include theirs and tau.

    Args:
        by, bins, by_name, levels, errors: as in `calibration.reliability`. axes: one per label; None: a new figure.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> figure = bl.plots.reliability(result, truth.test_labels, by="TEFF", bins=2)
        >>> len(figure.axes)
        3
    """
    if by is None:
        raise bad_input("no by=", "a quantity of every star, or the name of a label", fix='by="TEFF"')
    names = result.frame.names
    by_name = by_name or (by if isinstance(by, str) else "by")
    table = by_bins(
        result, truth, by, bins=bins, by_name=by_name, levels=levels, errors=errors, scatter=scatter(result, truth)
    )
    of = np.asarray(result.mean[:, names.index(by)] if isinstance(by, str) else by, float)
    outer = (float(np.nanmin(of)), float(np.nanmax(of)))
    figure, panels = draw_on(len(names), axes)
    colours = (BLUE, ORANGE, GREEN, BLACK)
    for ax, name in zip(panels, names, strict=True):
        for colour, level in zip(colours, levels, strict=False):
            part = table[(table["label"] == name) & (table["level"] == level)]
            edges = np.concatenate([part[f"{by_name}_low"], part[f"{by_name}_high"][-1:]])
            edges[0], edges[-1] = min(outer[0], edges[1]), max(outer[1], edges[-2])
            low, high = (np.append(part[x], part[x][-1]) for x in ("low", "high"))
            ax.fill_between(edges, low, high, step="post", color=colour, alpha=0.2, lw=0)
            ax.axhline(level, color=colour, lw=1, ls="--")
            middle = (edges[1:] + edges[:-1]) / 2
            ax.plot(middle, part["share"], "o", color=colour, ms=5, label=f"{100 * level:.3g}% interval")
        ax.set(xlabel=by_name, ylim=(0, 1.02))
        ax.set_ylabel(f"fraction of stars inside ({name})")
        ax.locator_params(axis="x", nbins=5)
        ax.legend(loc="lower right", fontsize=8, frameon=False)
    return figure


def precision(
    result: Result,
    truth: Labels,
    by: Any = None,
    *,
    bins: Any = 6,
    by_name: str | None = None,
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """Bias and scatter of the labels in bins of S/N, a panel per label (Ho+17, fig. 8), and what the error bars say.

    Bias: the mean difference, inferred less true. Scatter: half the range of the central 68 per cent of the
    differences. Dashed: the root mean square of the errors, those of a catalogue and tau included where `truth` is one.
    The scatter lies on it where the error bars hold.

    Args:
        truth: as in `one_to_one`. by, bins, by_name: as in `calibration.reliability`; a bin is drawn at its median.
        axes: one per label; None: a new figure.

    Example:
        >>> import numpy as np
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> snr = np.nanmedian(test.flux.value / test.flux.error, axis=1)
        >>> figure = bl.plots.precision(result, truth, snr, bins=2, by_name="S/N")
        >>> [ax.get_xlabel() for ax in figure.axes]
        ['S/N', 'S/N', 'S/N']
    """
    names, units = result.frame.names, result.frame.units
    if by is None:
        raise bad_input("no by=", "a quantity of every star, or the name of a label", fix='by="TEFF"')
    by, by_name = named(by, by_name, result.mean, names)
    of = quantity(by, len(result))
    row, edges = binned(of, bins, len(result))
    reference = compared(result, truth, scatter=scatter(result, truth))
    sd = np.sqrt(np.einsum("nmm->nm", result.cov + reference.covariance))
    off = result.mean - reference.value
    figure, panels = draw_on(len(names), axes)
    for m, (ax, name) in enumerate(zip(panels, names, strict=True)):
        told = []
        for b in range(len(edges) + 1):
            rows = (row == b) & np.isfinite(off[:, m]) & np.isfinite(sd[:, m])
            if (n := int(rows.sum())) > 1:
                one = off[rows, m]
                spread = float(robust_scatter(one[:, None])[0])
                error = one.std() / np.sqrt(n), spread / np.sqrt(2 * n)
                told.append(
                    (np.median(of[rows]), one.mean(), error[0], spread, error[1], np.sqrt((sd[rows, m] ** 2).mean()))
                )
        if not told:
            empty(ax, name)
            continue
        x, bias, bias_error, spread, spread_error, expected = np.array(told).T
        ax.axhline(0, color=GREY, lw=0.8)
        ax.errorbar(x, spread, spread_error, None, "o-", ms=4, lw=1, color=BLUE, capsize=2, label="scatter")
        ax.plot(x, expected, color=BLACK, lw=1.2, ls="--", label="error bars")
        ax.errorbar(x, bias, bias_error, None, "s-", ms=4, lw=1, color=ORANGE, capsize=2, label="bias")
        ax.set(xlabel=by_name, ylabel=label(name, units[m]))
        ax.locator_params(nbins=5)
    panels[0].legend(fontsize=9, frameon=False)
    return figure


def scatter(result: Result, truth: Labels) -> np.ndarray | None:
    """tau, where the labels compared with are a catalogue's."""
    return label_scatter(result) if isinstance(truth, Stars) else None
