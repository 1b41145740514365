"""Pictures of results: recovery, calibration, coefficients, one star's labels, one star's spectrum.

Each function returns a matplotlib Figure, or draws on the axes it is given, and shows nothing: save with
``figure.savefig(path)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from .calibration import Labels, Result, compared, coverage, label_scatter, z_scores
from .errors import bad_input
from .posterior import Posterior
from .reports import significant
from .simulate import Truth
from .star_posterior import StarPosterior
from .stars import Block, Stars

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#222222"
"""Of Okabe and Ito's palette, which colour-blind readers can tell apart."""

ONE_SIGMA = 0.6827
"""Probability of the interval from one standard deviation below to one above the mean."""


def one_to_one(result: Result, truth: Labels, *, axes: Sequence[Axes] | None = None) -> Figure:
    """Inferred against true labels, a panel per label, with bias and scatter.

    Args:
        truth: (N, M) in label units; `Stars` with labels, such as a catalogue's; or a `simulate.Truth`.
        axes: one per label; None: a new figure.
    """
    reference = compared(result, truth, scatter=_scatter(result, truth))
    known, names, units = reference.value, result.frame.names, result.frame.units
    spread = np.sqrt(np.einsum("nmm->nm", reference.covariance)) if isinstance(truth, Stars) else None
    figure, panels = _panels(len(names), axes)
    for m, (ax, name) in enumerate(zip(panels, names, strict=True)):
        x, y = known[:, m], result.mean[:, m]
        ok = np.isfinite(x) & np.isfinite(y)
        if not ok.any():
            _empty(ax, name)
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
        text = (
            f"bias {offset.mean():+.2g}{unit}\nrms {significant(np.sqrt((offset**2).mean()))}{unit}\n{ok.sum()} stars"
        )
        ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top", fontsize=9, bbox=_paper())
        outside = int(((x[ok] < limits[0]) | (x[ok] > limits[1]) | (y[ok] < limits[0]) | (y[ok] > limits[1])).sum())
        if outside > 2:
            ax.text(0.96, 0.04, f"{outside} stars beyond", transform=ax.transAxes, ha="right", fontsize=8, color=GREY)
        ax.set(xlim=limits, ylim=limits, xlabel=f"{_kind(truth)} {_label(name, units[m])}", aspect="equal")
        ax.set_ylabel(f"inferred {_label(name, units[m])}")
        ax.locator_params(nbins=5)
    return figure


def calibration(result: Result, truth: Labels, *, axes: Any = None) -> Figure:
    """Whether the error bars hold: z scores against the unit normal (top), and coverage (bottom), per label.

    z = (inferred - true) / error. Against the labels of `Stars`, a catalogue's, the error includes theirs and tau.
    The coverage curve is the fraction of stars whose truth lies within the central interval of each probability; the
    band is where 95 per cent of perfectly calibrated samples of this size lie, point by point.

    Args:
        truth: as in `one_to_one`. axes: (2, M); None: a new figure.
    """
    tau = _scatter(result, truth)
    z = -z_scores(result, truth, scatter=tau)
    names = result.frame.names
    figure, panels = _panels(2 * len(names), axes, rows=2)
    level = np.linspace(0, 1, 202)[1:-1]
    curve, one_sigma = (coverage(result, truth, p, scatter=tau) for p in (level, ONE_SIGMA))
    for m, name in enumerate(names):
        top, bottom = panels[m], panels[len(names) + m]
        one = z[np.isfinite(z[:, m]), m]
        if not len(one):
            _empty(top, name)
            _empty(bottom, name)
            continue
        edges = np.linspace(-4, 4, 33 if len(one) > 300 else 17).tolist()
        grid = np.linspace(-4, 4, 200)
        top.hist(np.clip(one, -3.99, 3.99), edges, density=True, color=BLUE, alpha=0.55, label="stars")
        top.plot(grid, norm.pdf(grid), color=BLACK, lw=1.5, label="unit normal")
        top.set(xlabel=f"z of {name}: (inferred $-$ {_kind(truth)}) / error", xlim=(-4, 4))
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


def coefficients(
    posterior: Posterior, *, wavelength_unit: str | None = None, axes: Sequence[Axes] | None = None
) -> Figure:
    """Mean spectrum, the first-order coefficient of every label, and the scatter, against wavelength: of the Cannon.

    A first-order coefficient is the change of flux with one scaled label, given in the legend of its panel; its band is
    one standard deviation. `wavelength_unit` is written on the axis.
    """
    frame, moments = posterior.model.require_frame(), posterior.moments
    if not getattr(posterior.model, "labels_are_latent", False):
        name = type(posterior.model).__name__
        raise bad_input(
            f"a posterior of {name}, whose coefficients are of latents", "one of a model of flux given labels",
            fix="bayeslabels.models.lux.derivative_spectra(posterior, flux_error)",
        )  # fmt: skip
    exponents = np.array(posterior.model.features.exponents)
    x, xlabel = _wavelength(posterior, wavelength_unit)
    figure, panels = _panels(len(frame.names) + 2, axes, rows=len(frame.names) + 2, wide=True)
    order = exponents.sum(1)
    constant = np.flatnonzero(order == 0)
    _steps(panels[0], x, moments.coefficients[:, constant[0]] if len(constant) else np.zeros(len(x)), BLACK)
    panels[0].set_ylabel("constant\n" + _flux_unit(posterior))
    for m, name in enumerate(frame.names):
        ax = panels[1 + m]
        k = np.flatnonzero((order == 1) & (exponents[:, m] == 1))
        ax.axhline(0, color=GREY, lw=0.8)
        if len(k):
            value = moments.coefficients[:, k[0]]
            sd = np.sqrt(moments.coefficient_covariance[:, k[0], k[0]])
            ax.fill_between(x, value - sd, value + sd, color=ORANGE, alpha=0.5, lw=0, step="mid")
            _steps(ax, x, value, BLUE)
        ax.set_ylabel(f"{name}\nper {significant(frame.scale[m])} {frame.units[m]}".rstrip())
    _steps(panels[-1], x, moments.scatter, GREEN)
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
    """
    row = _row(result, star)
    frame = result.frame
    posterior: Any = result.data["posterior"]
    draws = posterior["true_labels"].values[:, :, row].reshape(-1, len(frame.names))
    if not np.isfinite(draws).all():
        raise bad_input(f"star {star!r}, which has no posterior", "a star with labels", "see its flags")
    if len(draws) < 50:
        draws = np.random.default_rng(0).multivariate_normal(result.mean[row], result.cov[row], 4000)
    known = None
    if truth is not None:
        one = not isinstance(truth, Truth | Stars) and np.ndim(truth) == 1
        known = np.asarray(truth, float) if one else compared(result, truth).value[row]
    m = len(frame.names)
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
                p16, p50, p84 = np.percentile(draws[:, i], [15.865, 50, 84.135])
                ax.set_title(_value(frame.names[i], p16, p50, p84, frame.units[i]), fontsize=9)
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
                ax.set_xlabel(_label(frame.names[j], frame.units[j]))
            if j == 0 and i > 0:
                ax.set_ylabel(_label(frame.names[i], frame.units[i]))
                ax.locator_params(axis="y", nbins=4)
    lines = [f"star {_ids(result)[row]}"]
    if m > 1:
        lines.append("contours: 68% and 95%")
    if known is not None:
        lines.append(f"orange: the {_kind(truth)} labels")
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
        index: row of the star. result: from `infer(posterior, stars)`.
        region: lowest and highest wavelength shown; None: all. axes: two; None: a new figure.
    """
    star = stars[index]
    frame = posterior.model.require_frame()
    if "flux" not in star:
        raise bad_input("stars without flux", "spectra")
    predicted, values = star, np.full(len(frame.names), np.nan)
    for block in posterior.model.label_blocks:
        at = frame.columns(block)
        if result is not None:
            labels = Block(result.mean[[index], at], names=frame.names[at], unit=frame.units[at])
            predicted = predicted.with_block(**{block: labels})
        if block in predicted:
            values[at] = predicted[block].value[0]
    mean, band = (a[0] for a in posterior.predict(predicted, with_error=True))
    x, xlabel = _wavelength(posterior, wavelength_unit)
    flux = np.where(star["flux"].observed[0], star["flux"].value[0], np.nan)
    error = star["flux"].error[0] if star["flux"].error is not None else np.zeros_like(flux)
    shown = np.ones(len(x), bool) if region is None else (x >= region[0]) & (x <= region[1])
    if not shown.any():
        raise bad_input(f"region={region}", f"some of {x.min():.6g} to {x.max():.6g}")
    x, mean, band, flux, error = x[shown], mean[shown], band[shown], flux[shown], error[shown]
    figure, panels = _panels(2, axes, rows=2, wide=True, ratios=(3, 1))
    top, bottom = panels
    top.fill_between(x, mean - band, mean + band, color=ORANGE, alpha=0.35, lw=0, label="model, 1 sd", step="mid")
    _steps(top, x, mean, ORANGE, label="model")
    top.errorbar(x, flux, error, None, ".", ms=3, color=BLACK, ecolor=GREY, elinewidth=0.7, label="data", zorder=1)
    top.set_ylabel(f"flux {_flux_unit(posterior)}".rstrip())
    span = np.nanmax(flux) - np.nanmin(flux) if np.isfinite(flux).any() else 1.0
    base = np.nanmin(flux) if np.isfinite(flux).any() else 0.0
    top.set_ylim(base - 0.06 * span, base + 1.22 * span)
    top.legend(loc="upper right", ncols=3, fontsize=9, frameon=False)
    top.tick_params(labelbottom=False)
    parts = [f"{n} {significant(v, 4)} {u}".rstrip() for n, v, u in zip(frame.names, values, frame.units, strict=True)]
    top.set_title(f"{star.id[0] if star.id is not None else index}:  " + ",  ".join(parts), fontsize=10, loc="left")
    bottom.axhspan(-1, 1, color=GREY, alpha=0.25, lw=0)
    bottom.plot(x, (flux - mean) / np.hypot(error, band), ".", ms=3, color=BLACK)
    bottom.set(xlabel=xlabel, ylabel="difference\n/ total error")
    bottom.set_ylim(-5, 5)
    for ax in panels:
        ax.set_xlim(x.min(), x.max())
    figure.align_ylabels(panels)
    return figure


def _panels(n: int, axes: Any, rows: int = 1, wide: bool = False, ratios: Any = None) -> tuple[Figure, list[Axes]]:
    if axes is not None:
        flat = list(np.ravel(np.asarray(axes, object)))
        if len(flat) != n:
            raise bad_input(f"{len(flat)} axes", f"{n}")
        return flat[0].get_figure(), flat
    columns = -(-n // rows)
    size = (10, 1.6 * rows + 0.8 if ratios is None else 5) if wide else (3.7 * columns, 3.6 * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, height_ratios=ratios).ravel())


def _scatter(result: Result, truth: Labels) -> np.ndarray | None:
    """tau, where the labels compared with are a catalogue's."""
    return label_scatter(result) if isinstance(truth, Stars) else None


def _kind(truth: Any) -> str:
    return "catalogue" if isinstance(truth, Stars) else "true"


def _label(name: str, unit: str) -> str:
    return f"{name} [{unit}]" if unit else name


def _value(name: str, low: float, middle: float, high: float, unit: str) -> str:
    digits = max(0, 1 - int(np.floor(np.log10(max(min(high - middle, middle - low), 1e-12)))))
    text = f"${middle:.{digits}f}^{{+{high - middle:.{digits}f}}}_{{-{middle - low:.{digits}f}}}$"
    return f"{name} = {text} {unit}".rstrip()


def _paper() -> dict[str, Any]:
    return {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}


def _empty(ax: Axes, name: str) -> None:
    ax.text(0.5, 0.5, f"no star with {name}", transform=ax.transAxes, ha="center", va="center")


def _steps(ax: Axes, x: np.ndarray, y: np.ndarray, color: str, **options: Any) -> None:
    ax.plot(x, y, color=color, lw=1, drawstyle="steps-mid", **options)


def _wavelength(posterior: Posterior, unit: str | None) -> tuple[np.ndarray, str]:
    frame = posterior.model.require_frame()
    if frame.coordinate is None or frame.coordinate.dtype.kind not in "iuf":
        return np.arange(frame.n_pixel, dtype=float), "pixel"
    name = "wavelength" if frame.coordinate_name in (None, "pixel") else str(frame.coordinate_name)
    return frame.coordinate.astype(float), _label(name, unit or "")


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
