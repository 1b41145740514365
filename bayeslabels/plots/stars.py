"""Pictures of spectra and stars: coefficients, one star's labels, one star's spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..calibration import compared
from ..calibration.bins import named, quantity
from ..data.stars import Block, Stars
from ..errors import bad_input
from ..results.about import significant
from ..results.posterior import Posterior
from ..results.star_posterior import StarPosterior
from ..results.table import decimals
from ..simulate import Truth
from .panels import BLACK, BLUE, GREEN, GREY, ORANGE, draw_on, kind, label, matrix, steps


def coefficients(
    posterior: Posterior, *, wavelength_unit: str | None = None, axes: Sequence[Axes] | None = None
) -> Figure:
    """Mean spectrum, the first-order coefficient of every label, and the scatter, against wavelength: of the Cannon.

    A first-order coefficient is the change of flux with one scaled label, given in the legend of its panel; its band is
    one standard deviation. `wavelength_unit` is written on the axis.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> figure = bl.plots.coefficients(posterior)
        >>> len(figure.axes)
        5
    """
    frame, moments = posterior.model.require_frame(), posterior.moments
    if not getattr(posterior.model, "labels_are_latent", False):
        name = type(posterior.model).__name__
        raise bad_input(
            f"a posterior of {name}, whose coefficients are of latents", "one of a model of flux given labels",
            fix="bayeslabels.models.lux.derivative_spectra(posterior, flux_error)",
        )  # fmt: skip
    features = posterior.model.features.names(frame.names)
    x, xlabel = _wavelength(posterior, wavelength_unit)
    figure, panels = draw_on(len(frame.names) + 2, axes, rows=len(frame.names) + 2, wide=True)
    constant = moments.coefficients[:, features.index("1")] if "1" in features else np.zeros(len(x))
    steps(panels[0], x, constant, BLACK)
    panels[0].set_ylabel("constant\n" + _flux_unit(posterior))
    for m, name in enumerate(frame.names):
        ax = panels[1 + m]
        ax.axhline(0, color=GREY, lw=0.8)
        if name in features:
            k = features.index(name)
            value = moments.coefficients[:, k]
            sd = np.sqrt(moments.coefficient_covariance[:, k, k])
            ax.fill_between(x, value - sd, value + sd, color=ORANGE, alpha=0.5, lw=0, step="mid")
            steps(ax, x, value, BLUE)
        ax.set_ylabel(f"{name}\nper {significant(frame.scale[m])} {frame.units[m]}".rstrip())
    steps(panels[-1], x, moments.scatter, GREEN)
    panels[-1].set_ylabel("scatter s\n" + _flux_unit(posterior))
    panels[-1].set_ylim(0, None)
    for ax in panels:
        ax.set_xlim(x.min(), x.max())
        ax.locator_params(axis="y", nbins=4)
    for ax in panels[:-1]:
        ax.tick_params(labelbottom=False)
    panels[-1].set_xlabel(xlabel)
    figure.align_ylabels(panels)
    return figure


def corner(result: StarPosterior, star: int | str = 0, *, truth: Any = None) -> Figure:
    """The posterior of one star's labels: densities with 68 and 95 per cent contours of every pair of labels.

    Args:
        star: row, or id. truth: (M,) of this star, or as in `one_to_one` for all stars.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> figure = bl.plots.corner(result, 0)
        >>> len(figure.axes)
        9
    """
    row = _row(result, star)
    frame = result.frame
    draws = np.stack([result.draws(name)[:, row] for name in frame.names], -1)
    if not np.isfinite(draws).all():
        raise bad_input(f"star {star!r}, which has no posterior", "a star with labels", "see its flags")
    if len(draws) < 50:
        draws = np.random.default_rng(0).multivariate_normal(result.mean[row], result.cov[row], 4000)
    known = None
    if truth is not None:
        one = not isinstance(truth, Truth | Stars) and np.ndim(truth) == 1
        known = np.asarray(truth, float) if one else compared(result, truth).value[row]
    m = len(frame.names)
    figure = matrix(draws, frame.names, frame.units, known)
    lines = [f"star {_ids(result)[row]}"]
    if m > 1:
        lines.append("contours: 68% and 95%")
    if known is not None:
        lines.append(f"orange: the {kind(truth)} labels")
    figure.text(0.98, 0.98, "\n".join(lines), ha="right", va="top", fontsize=10) if m > 1 else figure.suptitle(lines[0])
    return figure


def spectrum(
    posterior: Posterior,
    stars: Stars,
    index: int = 0,
    *,
    result: StarPosterior | None = None,
    region: tuple[float, float] | None = None,
    wavelength_unit: str | None = None,
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """One star's spectrum, the model's with its predictive band (top), and their difference in errors (bottom).

    Args:
        stars: with flux; the model's labels are those of `result`, or else the stars' own.
        index: row of the star. result: from `infer(posterior, stars)`. The title has two digits of the labels' errors.
        region: lowest and highest wavelength shown; None: all. axes: two; None: a new figure.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> figure = bl.plots.spectrum(posterior, train, 3)
        >>> len(figure.axes)
        2
    """
    frame, star = posterior.model.require_frame(), stars[index]
    labels, *spectra = _beside_model(posterior, star, None if result is None else result[[index]])
    (flux, error, mean, band), values = (one[0] for one in spectra), labels.value[0]
    own = labels.error if result is None else result.error[[index]][:, : len(values)]
    sd = frame.scale / 10 if own is None else np.where(np.isfinite(own[0]), own[0], frame.scale / 10)
    x, xlabel = _wavelength(posterior, wavelength_unit)
    shown = np.ones(len(x), bool) if region is None else (x >= region[0]) & (x <= region[1])
    if not shown.any():
        raise bad_input(f"region={region}", f"some of {x.min():.6g} to {x.max():.6g}")
    x, mean, band, flux, error = x[shown], mean[shown], band[shown], flux[shown], error[shown]
    figure, panels = draw_on(2, axes, rows=2, wide=True, ratios=(3, 1))
    top, bottom = panels
    top.fill_between(x, mean - band, mean + band, color=ORANGE, alpha=0.35, lw=0, label="model, 1 sd", step="mid")
    steps(top, x, mean, ORANGE, label="model")
    top.errorbar(x, flux, error, None, ".", ms=3, color=BLACK, ecolor=GREY, elinewidth=0.7, label="data", zorder=1)
    top.set_ylabel(f"flux {_flux_unit(posterior)}".rstrip())
    span = np.nanmax(flux) - np.nanmin(flux) if np.isfinite(flux).any() else 1.0
    base = np.nanmin(flux) if np.isfinite(flux).any() else 0.0
    top.set_ylim(base - 0.06 * span, base + 1.22 * span)
    top.legend(loc="upper right", ncols=3, fontsize=9, frameon=False)
    top.tick_params(labelbottom=False)
    told = zip(frame.names, values, sd, frame.units, strict=True)
    parts = [f"{name} {value:{decimals(one) or '.4g'}} {unit}".rstrip() for name, value, one, unit in told]
    top.set_title(f"{star.id[0] if star.id is not None else index}:  " + ",  ".join(parts), fontsize=10, loc="left")
    bottom.axhspan(-1, 1, color=GREY, alpha=0.25, lw=0)
    bottom.plot(x, (flux - mean) / np.hypot(error, band), ".", ms=3, color=BLACK)
    bottom.set(xlabel=xlabel, ylabel="difference\n/ total error")
    bottom.set_ylim(-5, 5)
    for ax in panels:
        ax.set_xlim(x.min(), x.max())
    figure.align_ylabels(panels)
    return figure


def residual_map(
    posterior: Posterior,
    stars: Stars,
    *,
    result: StarPosterior | None = None,
    by: Any = None,
    by_name: str | None = None,
    limit: float = 4.0,
    wavelength_unit: str | None = None,
    axes: Axes | None = None,
) -> Figure:
    """(flux - model) / total error of every pixel of every star: what many stars share stands out as a line.

    A vertical line is a pixel that the model cannot follow, such as a line of an element that is no label. Its colour
    changes from top to bottom where the misfit depends on what the stars are sorted by. A horizontal line is a bad
    spectrum.

    Args:
        stars: with flux; the model's labels are those of `result`, or else the stars' own.
        by: what the stars are sorted by: (N,), or the name of a label; None: the first label. by_name: what to call it.
        limit: of the colours. wavelength_unit: written on the axis.
        axes: one; None: a new figure.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> figure = bl.plots.residual_map(posterior, test, result=result, by="TEFF")
        >>> figure.axes[0].get_ylabel()
        '20 stars, sorted by TEFF'
    """
    names = posterior.model.require_frame().names
    labels, flux, error, mean, band = _beside_model(posterior, stars, result)
    by, by_name = named(*((names[0], None) if by is None else (by, by_name)), labels.value, names)
    order = np.argsort(quantity(by, len(stars)))
    z = ((flux - mean) / np.hypot(error, band))[order]
    x, xlabel = _wavelength(posterior, wavelength_unit)
    figure, (ax,) = draw_on(1, axes, wide=True, ratios=(1,))
    edges = np.concatenate([[1.5 * x[0] - 0.5 * x[1]], (x[1:] + x[:-1]) / 2, [1.5 * x[-1] - 0.5 * x[-2]]])
    ax.set_facecolor(GREY)
    image = ax.pcolormesh(
        edges, np.arange(len(z) + 1), z, cmap="RdBu_r", vmin=-limit, vmax=limit, rasterized=True, shading="flat"
    )
    ax.set(xlabel=xlabel, ylabel=f"{len(z)} stars, sorted by {by_name}")
    figure.colorbar(image, ax=ax, label="(flux $-$ model) / total error", extend="both")
    return figure


def _beside_model(
    posterior: Posterior, stars: Stars, result: StarPosterior | None
) -> tuple[Block, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The labels (N, K) by which the model predicts, of a result or else the stars' own; the flux (N, L) measured and
    its error, NaN where it is missing; that of the model and its sd."""
    frame = posterior.model.require_frame()
    if "flux" not in stars:
        raise bad_input("stars without flux", "spectra")
    flux, error = _measured(stars["flux"])
    value, sd = (np.full((len(stars), len(frame.names)), np.nan) for _ in range(2))
    for block in posterior.model.label_blocks:
        at = frame.columns(block)
        if result is not None:
            labels = Block(result.mean[:, at], names=frame.names[at], unit=frame.units[at])
            stars = stars.with_block(**{block: labels})
        if block in stars:
            value[:, at], sd[:, at] = _measured(stars[block])
    if not any(block in stars for block in posterior.model.label_blocks):
        raise bad_input("stars without labels", "their labels, or a result", fix="result=bl.infer(posterior, stars)")
    mean, band = posterior.predict(stars, with_error=True)
    return Block(value, np.where(sd > 0, sd, np.nan), names=frame.names), flux, error, mean, band


def _measured(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Value and error (N, K) of every number by itself, NaN where it is missing."""
    value, variance, observed = block.filled()
    return np.where(observed, value, np.nan), np.where(observed, np.sqrt(variance), np.nan)


def _wavelength(posterior: Posterior, unit: str | None) -> tuple[np.ndarray, str]:
    frame = posterior.model.require_frame()
    if frame.coordinate is None or frame.coordinate.dtype.kind not in "iuf":
        return np.arange(frame.n_pixel, dtype=float), "pixel"
    name = "wavelength" if frame.coordinate_name in (None, "pixel") else str(frame.coordinate_name)
    return frame.coordinate.astype(float), label(name, unit or "")


def _flux_unit(posterior: Posterior) -> str:
    unit = posterior.model.require_frame().flux_unit
    return f"[{unit}]" if unit else ""


def _ids(result: StarPosterior) -> np.ndarray:
    stars: Any = result.data["stars"]
    return stars["star"].values


def _row(result: StarPosterior, star: int | str) -> int:
    if isinstance(star, str):
        at = np.flatnonzero(_ids(result) == star)
        if len(at) != 1:
            raise bad_input(f"star {star!r}", "the id of one star, or a row")
        return int(at[0])
    if not -len(result) <= star < len(result):
        raise bad_input(f"star {star} of {len(result)}", f"a row below {len(result)}")
    return int(star) % len(result)
