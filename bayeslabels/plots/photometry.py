"""Pictures of photometry: stars with their dust and without it, the reddening vector, residuals, distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..astro.extinction import ALIASES, PASSBANDS, extinction_law
from ..data.stars import Block, Stars
from ..errors import bad_input, index_of
from ..results.posterior import Posterior
from ..results.star_posterior import StarPosterior
from .panels import BLACK, BLUE, GREEN, GREY, ORANGE, draw_on, empty, label

COLOURS = (BLUE, ORANGE, GREEN, BLACK, GREY)
FEWEST = 5
"""Stars of a bin, at least."""


class _Solved(NamedTuple):
    """Magnitudes (N, B) of a star, its absolute ones by the model, its extinction, and its distance modulus (N,)."""

    observed: np.ndarray
    absolute: np.ndarray
    extinction: np.ndarray
    modulus: np.ndarray


def _solved(posterior: Posterior, stars: Stars, result: StarPosterior) -> _Solved:
    """At the means of a result of `Photometry`."""
    names = getattr(posterior.model, "n_magnitude", None) and result.frame.names
    if not names or "magnitudes" not in stars or len(stars) != len(result):
        raise bad_input(
            f"a {type(posterior.model).__name__} and {len(stars)} stars with {', '.join(stars.blocks)}",
            f"the posterior of a Photometry, and the {len(result)} stars with magnitudes whose result this is",
        )
    frame, block = posterior.model.require_frame(), stars["magnitudes"]
    n_label, n_band = len(frame.names), block.n_dim
    inferred = Stars(labels=Block(result.mean[:, :n_label], result.error[:, :n_label], names=frame.names,
                                  unit=frame.units))  # fmt: skip
    vector = posterior.predict(inferred, "reddening_vector")[:, :n_band]
    absolute = posterior.predict(inferred, "absolute_magnitudes")[:, :n_band]
    e, mu = (result.mean[:, names.index(name)] for name in ("reddening", "distance_modulus"))
    bend = posterior.moments.reddening_bend
    straight = e[:, None] * vector
    dimmed = straight if bend is None else straight - bend[:n_band] * straight**2
    return _Solved(np.where(block.observed, block.value, np.nan), absolute, dimmed, mu)


def colour_magnitude(
    posterior: Posterior,
    stars: Stars,
    result: StarPosterior,
    *,
    colour: tuple[str, str] = ("BP", "RP"),
    magnitude: str | None = None,
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """The colour-magnitude diagram, apparent magnitudes less the distance moduli: as observed, and without the dust.

    The colour of a point is the star's reddening. Arrows: the extinction of the median star of the most reddened tenth.

    Args:
        stars: with magnitudes; result: from `infer(posterior, stars)`, at whose means distance and dust are.
        colour: two bands; magnitude: the band of the ordinate, None: the first of the two.
        axes: two; None: a new figure.

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> model = bl.Photometry(function="polynomial", order=2, members=1)
        >>> posterior = bl.fit(model, stars, bl.MAP(max_iterations=20), progress=False)
        >>> result = bl.infer(posterior, stars[:20], bl.Laplace(draws=200), progress=False)
        >>> figure = bl.plots.colour_magnitude(posterior, stars[:20], result)
        >>> [ax.get_title(loc="left") for ax in figure.axes[:2]]
        ['as observed', 'without dust']
    """
    bands = posterior.model.require_frame().bands
    at = [index_of(x, bands, "band") for x in (*colour, magnitude or colour[0])]
    solved = _solved(posterior, stars, result)
    figure, panels = draw_on(2, axes)
    before, dust = (x[:, at] for x in (solved.observed, solved.extinction))
    e = result.mean[:, result.frame.names.index("reddening")]
    bright = before - solved.modulus[:, None]
    ok = np.isfinite(bright).all(1) & np.isfinite(dust).all(1)
    if not ok.any():
        for ax in panels:
            empty(ax, f"{', '.join(dict.fromkeys((*colour, magnitude or colour[0])))} and a distance")
        return figure
    top = float(np.percentile(e[ok], 98))
    places = [(x[:, 0] - x[:, 1], x[:, 2]) for x in (bright[ok], (bright - dust)[ok])]
    for ax, (x, y), title in zip(panels, places, ("as observed", "without dust"), strict=True):
        points = ax.scatter(x, y, 9, e[ok], cmap="viridis", vmin=0, vmax=top or 1.0, lw=0, alpha=0.8)
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_xlabel(label(f"{colour[0]} - {colour[1]}", "mag"))
    panels[0].set_ylabel(f"{magnitude or colour[0]} - distance modulus [mag]")
    panels[1].set_ylabel(f"absolute {magnitude or colour[0]} [mag]")
    for ax in panels:  # on the same scales, bright stars on top
        ax.set_xlim(*_span(np.concatenate([x for x, _ in places])))
        ax.set_ylim(*_span(np.concatenate([y for _, y in places]))[::-1])
    dusty = np.flatnonzero(ok & (e >= np.percentile(e[ok], 90)))
    shift = np.median(dust[dusty], 0)
    (left, right), (low, high) = panels[0].get_xlim(), panels[0].get_ylim()
    start = left + 0.05 * (right - left), high + 0.05 * (low - high)  # where blue, bright stars are few
    panels[0].annotate(
        "", (start[0] + shift[0] - shift[1], start[1] + shift[2]), start,
        arrowprops={"arrowstyle": "->", "color": ORANGE, "lw": 1.6},
    )  # fmt: skip
    figure.colorbar(points, ax=panels, label=label("reddening", "mag"))
    return figure


def _span(values: np.ndarray, margin: float = 0.05) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    room = margin * ((high - low) or 1.0)
    return low - room, high + room


def reddening_vector(posterior: Posterior, *, axes: Axes | None = None) -> Figure:
    """R, the extinction by band per reddening, with its errors: against wavelength if all bands are known ones.

    The curve is the extinction law of O'Donnell 1994 at R_V = 3.1, scaled to R; errors are those of `summary`. Bands
    that `astro.extinction.PASSBANDS` does not have, and pixels of spectra, stand beside one another in their order.

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> model = bl.Photometry(function="polynomial", order=2, members=1)
        >>> posterior = bl.fit(model, stars, bl.MAP(max_iterations=20), progress=False)
        >>> figure = bl.plots.reddening_vector(posterior)
        >>> figure.axes[0].get_xscale()
        'log'
    """
    if "reddening_log" not in posterior.data["posterior"].to_dataset():
        raise bad_input(f"a posterior of {type(posterior.model).__name__}", "one of Photometry, which knows of dust")
    table = posterior.summary()
    bands = [str(x) for x in table["band"]]
    value, error = (np.asarray(table[name], float) for name in ("reddening_vector", "reddening_vector_error"))
    figure, (ax,) = draw_on(1, axes)
    known = [PASSBANDS.get(ALIASES.get(band, band)) for band in bands]
    x = np.array([x[0] for x in known]) if all(known) else np.arange(len(bands), dtype=float)  # type: ignore[index]
    order = np.argsort(x)
    if all(known):
        fine = np.geomspace(x.min() / 1.05, x.max() * 1.05, 200)
        at_bands = extinction_law(x)
        scale = (value @ at_bands) / (at_bands @ at_bands)
        ax.plot(fine, scale * extinction_law(fine), color=GREY, lw=1, label="O'Donnell 1994, $R_V$ = 3.1")
        ax.set(xscale="log", xlabel=r"wavelength [$\mu$m]")
        for i, band in enumerate(bands):
            ax.annotate(band, (x[i], value[i]), (5, 5), textcoords="offset points", fontsize=8)
        ticks = [t for t in (0.3, 0.5, 1.0, 2.0, 4.0) if fine[0] < t < fine[-1]]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.set_xticks([], minor=True)
    else:
        ax.plot(x, value, color=GREY, lw=0.8)
        shown = order[:: max(1, len(order) // 20)]
        ax.set_xticks(x[shown], [bands[i] for i in shown], rotation=60)
    yerr = error if np.isfinite(error).all() else None
    ax.errorbar(x, value, yerr, None, "o", ms=4, color=BLUE, ecolor=BLUE, capsize=2, label="R")
    ax.set_ylabel("R [mag per mag of reddening]")
    ax.set_ylim(0, None)
    ax.legend(frameon=False, fontsize=9)
    return figure


def magnitude_residuals(
    posterior: Posterior, stars: Stars, result: StarPosterior, *, bins: int = 8, axes: Sequence[Axes] | None = None
) -> Figure:
    """Observed less predicted magnitudes, by label and reddening: medians of bins of equal numbers of stars, by band.

    The prediction is at the result's means. Bars are the errors of the medians, 1.25 robust sd / sqrt(n). Where the
    function or the reddening vector cannot follow the stars, a line leaves zero (Green+21, figs. 12 and 13).

    Args:
        stars: with magnitudes; result: from `infer(posterior, stars)`.
        bins: at most so many. axes: one for each label, and one for the reddening; None: a new figure.

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> model = bl.Photometry(function="polynomial", order=2, members=1)
        >>> posterior = bl.fit(model, stars, bl.MAP(max_iterations=20), progress=False)
        >>> result = bl.infer(posterior, stars[:20], bl.Laplace(draws=200), progress=False)
        >>> figure = bl.plots.magnitude_residuals(posterior, stars[:20], result, bins=2)
        >>> [ax.get_xlabel() for ax in figure.axes]
        ['TEFF [K]', 'LOGG [dex]', 'FE_H [dex]', 'reddening [mag]']
    """
    solved, frame = _solved(posterior, stars, result), posterior.model.require_frame()
    off = solved.observed - solved.absolute - solved.modulus[:, None] - solved.extinction
    names, units = list(result.frame.names), result.frame.units
    shown = [*range(len(frame.names)), names.index("reddening")]
    figure, panels = draw_on(len(shown), axes, rows=1 if axes is not None or len(shown) < 4 else 2)
    for ax, i in zip(panels, shown, strict=True):
        ax.axhline(0, color=GREY, lw=0.8)
        for b, band in enumerate(frame.bands[: off.shape[1]]):
            told = _binned(result.mean[:, i], off[:, b], bins)
            if not len(told):
                continue
            x, y, error = told.T
            style = ("o-", "s--", "^:")[b // len(COLOURS) % 3]
            ax.errorbar(x, y, error, None, style, ms=3, lw=1, color=COLOURS[b % len(COLOURS)], label=band)
        ax.set_xlabel(label(names[i], units[i]))
        ax.set_ylabel("observed - predicted [mag]")
        ax.locator_params(axis="x", nbins=5)
    if axes is None:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    else:
        panels[0].legend(frameon=False, fontsize=8, ncols=2)
    return figure


def _binned(x: np.ndarray, y: np.ndarray, bins: int) -> np.ndarray:
    """Median x, median y and its error of bins of equal numbers of stars, (K, 3)."""
    ok = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    some = np.array_split(ok[np.argsort(x[ok])], max(1, min(bins, len(ok) // FEWEST))) if len(ok) >= FEWEST else []
    out = []
    for rows in some:
        low, middle, high = np.percentile(y[rows], [15.865, 50, 84.135])
        out.append((np.median(x[rows]), middle, 1.2533 * 0.5 * (high - low) / np.sqrt(len(rows))))
    return np.array(out)


def distance_ladder(
    result: StarPosterior, stars: Stars, *, zero_point: float = 0.0, bins: int = 8, axes: Sequence[Axes] | None = None
) -> Figure:
    """Distances as stated against those by parallaxes, in bins of the stated ones (top), and the modulus by parallaxes
    less the stated one (bottom).

    In each bin of equal numbers of stars, f times the parallaxes that are expected of the stated distances is fitted to
    all parallaxes, negative ones, too. -5 log10 f is the difference of the moduli.

    Args:
        result: distances that the parallaxes were not used for: from `infer(posterior, stars.drop("parallax"))`.
        stars: with parallaxes [mas]. zero_point: of these, measured less true, mas.
        bins: at most so many. axes: two; None: a new figure.

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> model = bl.Photometry(function="polynomial", order=2, members=1)
        >>> posterior = bl.fit(model, stars, bl.MAP(max_iterations=20), progress=False)
        >>> result = bl.infer(posterior, stars[:20].drop("parallax"), bl.Laplace(draws=200), progress=False)
        >>> figure = bl.plots.distance_ladder(result, stars[:20], bins=2)
        >>> len(figure.axes)
        2
    """
    if "distance_modulus" not in result.frame.names or "parallax" not in stars or len(stars) != len(result):
        raise bad_input(
            f"a result of {', '.join(result.frame.names)} and {len(stars)} stars with {', '.join(stars.blocks)}",
            f"a result with distance_modulus, and its {len(result)} stars with parallaxes",
        )
    if stars["parallax"].error is None:
        raise bad_input("parallaxes without errors", "an error for every parallax", fix="Block(parallax, error)")
    at = list(result.frame.names).index("distance_modulus")
    mu, sd = result.mean[:, at], result.error[:, at]
    w, variance, seen = (x[:, 0] for x in stars["parallax"].filled())
    figure, panels = draw_on(2, axes, rows=2, wide=True, ratios=(2, 1))
    ok = np.flatnonzero(seen & np.isfinite(mu))
    if len(ok) < FEWEST:
        for ax in panels:
            empty(ax, f"a parallax and a distance, or fewer than {FEWEST}")
        return figure
    rows = np.array_split(ok[np.argsort(mu[ok])], max(1, min(bins, len(ok) // FEWEST)))
    told = np.array([_scale(w[i] - zero_point, variance[i], mu[i], sd[i]) for i in rows])
    middle, factor, error = told.T
    distance, good = 10 ** (0.2 * (middle - 10)), factor > 0
    low, high = distance.min() / 1.15, distance.max() * 1.15
    panels[0].plot([low, high], [low, high], color=BLACK, lw=1, ls="--")
    safe = np.where(good, factor, np.nan)
    panels[0].errorbar(distance, distance / safe, distance * error / safe**2, None, "o", ms=4, color=BLUE, capsize=2)
    panels[0].set(xscale="log", yscale="log", ylabel="by parallaxes [kpc]")
    panels[1].axhline(0, color=BLACK, lw=1, ls="--")
    off, off_error = -5 * np.log10(safe), 5 / np.log(10) * error / safe
    panels[1].errorbar(distance, off, off_error, None, "o", ms=4, color=BLUE, capsize=2)
    panels[1].set(xscale="log", xlabel="stated distance [kpc]", ylabel="difference\nof moduli [mag]")
    if not good.all():
        text = f"{(~good).sum()} bins with a mean parallax below 0"
        panels[0].text(0.98, 0.04, text, transform=panels[0].transAxes, ha="right", fontsize=9, color=GREY)
    for axis in (panels[0].xaxis, panels[1].xaxis, panels[0].yaxis):
        first, last = axis.get_view_interval() if axis is panels[0].yaxis else (low, high)
        ticks = [t for t in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0) if first < t < last]
        axis.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
        axis.set_ticks([], minor=True)
    for ax in panels:
        ax.set_xlim(low, high)
    panels[0].tick_params(labelbottom=False)
    return figure


def _scale(w: np.ndarray, variance: np.ndarray, mu: np.ndarray, sd: np.ndarray) -> tuple[float, float, float]:
    """Mean modulus, and f with its error of parallaxes w = f p, p and its variance those of 10^((10 - mu) / 5) for
    Gaussian mu."""
    spread = (np.log(10) / 5 * sd) ** 2
    p = 10 ** (0.2 * (10 - mu)) * np.exp(0.5 * spread)
    weight = 1 / (variance + p**2 * np.expm1(spread))
    total = (weight * p**2).sum()
    return float(mu.mean()), float((weight * p * w).sum() / total), float(total**-0.5)
