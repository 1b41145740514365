"""Reports in words: whether labels were recovered, and how far to trust a test step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .calibration import Coverage, Result, compared, coverage, label_scatter, z_scores
from .data.stars import Stars
from .results.about import significant
from .results.star_posterior import counted_flags

ONE_SIGMA = 0.6827
"""Probability of the interval from one standard deviation below to one above the mean."""

WIDE = 0.95
"""Probability of a wide interval."""


def recovery(result: Result, reference: Any, seconds: float | None = None) -> str:
    """Lines about stars whose labels are known: recovery of each label, whether its error bars hold, diagnostics."""
    catalogue = isinstance(reference, Stars)
    tau = label_scatter(result) if catalogue else None
    known = compared(result, reference, scatter=tau)
    error = np.sqrt(np.einsum("nmm->nm", result.cov + known.covariance))
    offset, z = result.mean - known.value, -z_scores(result, reference, scatter=tau)
    inside = coverage(result, reference, ONE_SIGMA, scatter=tau)
    took = "" if seconds is None else f" in {seconds:.0f} s"
    other = "the catalogue" if catalogue else "the truth"
    lines = [
        f"  done{took}; labels compared with {other}:", "",
        f"  {'label':<12} {'unit':<6} {'rms':>9} {'bias':>9} {'error bar':>10} {'mean z':>7} {'sd of z':>8} "
        f"{'inside':>8}",
    ]  # fmt: skip
    for m, (name, unit) in enumerate(zip(result.frame.names, result.frame.units, strict=True)):
        d, one = (x[np.isfinite(z[:, m]), m] for x in (offset, z))
        if not len(one):
            lines.append(f"  {name:<12} {unit or '-':<6} no star has this label to compare with")
            continue
        rms, bar = np.sqrt((d**2).mean()), np.nanmedian(error[:, m])
        lines.append(
            f"  {name:<12} {unit or '-':<6} {significant(rms, 3):>9} {significant(d.mean(), 2):>9} "
            f"{significant(bar, 3):>10} {one.mean():>+7.2f} {one.std():>8.2f} {100 * inside.share[m]:>7.1f}%"
        )
    what = "the posterior's, the catalogue's and tau combined" if catalogue else "the posterior's"
    lines += [
        f"  {'expected of error bars that hold':<50} {0:>+7.2f} {1:>8.2f} {100 * ONE_SIGMA:>7.1f}%",
        f"  (error bar: the median star's, {what}; z = difference / error;",
        "  inside: share of the stars whose label lies within the central 68.3% interval)", "",
        *_verdicts(result.frame.names, inside, coverage(result, reference, WIDE, scatter=tau)), "",
    ]  # fmt: skip
    return "\n".join([*lines, *diagnostics(result)])


def _verdicts(names: Sequence[str], inside: Coverage, wide: Coverage) -> list[str]:
    """A line for each label that some stars have: whether as many stars lie inside as chance allows; wide: of the
    interval of probability `WIDE`, which tells bars that are too large from differences with heavy tails."""
    lines, far_off = [], (wide.share <= wide.high) & (wide.share < 1)
    for name, share, low, high, n, tails in zip(names, *inside, far_off, strict=True):
        if n:
            large = "are too large for most stars, not for those far off" if tails else "are too large"
            verdict = "are too small" if share < low else large if share > high else "hold"
            by_chance = f"{100 * low:.1f} to {100 * high:.1f}% by chance"
            lines.append(f"  error bars of {name} {verdict}: {100 * share:.1f}% of {n} stars inside ({by_chance})")
    if not inside.holds[inside.n_star > 0].all():
        lines.append("  (stars of one training share errors of its coefficients, too, which adds to chance)")
    return lines


def diagnostics(result: Result) -> list[str]:
    """Lines about how far to trust the test step."""
    stars: Any = result.stars
    lines = []
    if "khat" in stars:
        khat = stars["khat"].values
        worst = f"the worst {np.nanmax(khat):.2f}" if np.isfinite(khat).any() else "none finite"
        lines.append(
            f"  Pareto k-hat: {(khat > 0.7).sum()} of {len(khat)} stars above 0.7 (sampled with NUTS instead), {worst}"
        )
    if "rhat" in stars:
        lines.append(f"  R-hat: {(stars['rhat'].values > 1.02).sum()} of {len(result)} stars above 1.02")
    if "n_pixel" in stars:
        with np.errstate(invalid="ignore", divide="ignore"):
            chi2 = stars["chi2"].values / stars["n_pixel"].values
        if np.isfinite(chi2).any():
            low = f"99% of the stars below {np.nanpercentile(chi2, 99):.2f}"
            lines.append(f"  reduced chi^2: median {np.nanmedian(chi2):.2f}, {low}")
    raised = {name: n for name, n in counted_flags(result.flags).items() if n}
    counts = ", ".join(f"{name} {n}" for name, n in raised.items())
    lines.append(f"  flags of {len(result)} stars: {counts or 'none raised'}")
    return lines
