"""An error model learned on held-out stars: what stated error bars lack, and results with it put right.

    label_nm - mean_nm ~ N(0, f_m^2 sd_nm^2 + s_m^2 + sigma_nm^2)

with sd the posterior's error, sigma the stated error of the label compared with, f_m a factor and s_m a floor in label
units, both by maximum likelihood, in bins of another quantity such as S/N if asked. It repairs widths, not offsets.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from astropy.table import QTable
from scipy.optimize import minimize
from scipy.stats import norm
from scipy.stats import t as student_t

from ..errors import bad_input
from ..results.star_posterior import PERCENTILES, Flags, StarPosterior, per_label
from .bins import bin_of, binned, quantity
from .scores import Labels, Result, compared

FEWEST = 20
"""Stars that one factor and one floor are learned from, at the least."""


class Width(NamedTuple):
    """Factor f and floor s with their standard errors."""

    factor: float
    factor_error: float
    floor: float
    floor_error: float


@dataclass(frozen=True)
class Recalibration:
    """Factor and floor of the error of every label, in B bins of a quantity `by` (B = 1: for all stars).

    Attributes:
        names, units: of the M labels.
        factor, factor_error (B, M); floor, floor_error (B, M), in label units. A label of which no star's value was
            known keeps its errors: factor 1, floor 0, errors NaN.
        n_star (B, M): stars that each was learned from.
        by: name of the quantity binned, "" if none. edges (B - 1,): between bins; the outer bins have no outer edge.

    Standard errors are the sandwich's (White 1982), right for residuals that are not Gaussian, too. That of a floor at
    zero says how far up it might be.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> held_out = bl.cross_validate(bl.Cannon(order=1), train, folds=3, progress=False)
        >>> errors = bl.calibration.recalibrate(held_out, train)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> len(errors.apply(bl.infer(posterior, test, progress=False)))
        20
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    factor: np.ndarray
    factor_error: np.ndarray
    floor: np.ndarray
    floor_error: np.ndarray
    n_star: np.ndarray
    by: str = ""
    edges: tuple[float, ...] = ()

    def apply(self, result: StarPosterior, by: Any = None) -> StarPosterior:
        """The result with errors sqrt(f^2 sd^2 + s^2), flagged RECALIBRATED.

        Draws and percentiles are stretched about the mean, label by label: the posterior's shape and the correlations
        between labels stay, and an error of zero stays zero. Parts of an error, such as `<label>_error_shared`, grow as
        it does. The table has the errors before, as `<label>_error_stated`; this error model stands in
        `info["recalibration"]` and in the table's meta (`Recalibration.of`).

        Args:
            by: (N,), the quantity that the bins are of. A star of which it is NaN keeps its errors, without the flag.
        """
        frame = result.frame
        if frame.names != self.names or frame.units != self.units:
            raise bad_input(
                f"a result with {frame.names} in {frame.units}", f"{self.names} in {self.units}",
                "an error model of other labels",
            )  # fmt: skip
        if "recalibration" in result.info:
            raise bad_input("a result that is recalibrated already", "errors as the test step gave them")
        row = self._bin(by, len(result))
        known = row >= 0
        sd = result.error
        wide = np.sqrt((self.factor[row] * sd) ** 2 + self.floor[row] ** 2)
        stretch = np.where(known[:, None], np.divide(wide, sd, out=np.ones_like(sd), where=sd > 0), 1.0)
        along = result.stars["mean"].dims[1]
        factor = xr.DataArray(stretch, dims=("star", along))
        stars, draws = result.stars, result.data["posterior"].to_dataset()
        mean = stars["mean"]
        changed: dict[str, Any] = {"error_stated": (mean.dims, sd, {"long_name": "error before recalibration"})}
        for name in (x for x in per_label(stars) if x != "mean"):
            values = mean + (stars[name] - mean) * factor if name in PERCENTILES else stars[name] * factor
            changed[name] = values.assign_attrs(stars[name].attrs)
        both = factor * factor.rename({along: f"{along}_bis"})
        changed["covariance"] = (stars["covariance"] * both).transpose(*stars["covariance"].dims)
        answered = known & np.isfinite(sd).all(1)
        changed["flags"] = stars["flags"] | np.where(answered, int(Flags.RECALIBRATED), 0)
        moved = {name: (mean + (x - mean) * factor).transpose(*x.dims) for name, x in draws.items() if along in x.dims}
        data = result.data.copy()
        data["stars"] = xr.DataTree(stars.assign(changed))
        data["posterior"] = xr.DataTree(draws.assign(moved))
        return StarPosterior(data, frame, {**result.info, "recalibration": self.to_json()}, result.predictor)

    def _bin(self, by: Any, n: int) -> np.ndarray:
        """The bin of each star, -1 where the quantity is not known."""
        if not self.by:
            return np.zeros(n, int)
        if by is None:
            raise bad_input("no by=", f"{self.by} of every star, which the errors depend on", fix=f"by={self.by}")
        return bin_of(quantity(by, n), self.edges)

    def table(self) -> QTable:
        """A row per label and bin: factor and floor with their errors, and the number of stars."""
        low, high = (-np.inf, *self.edges), (*self.edges, np.inf)
        rows = [(b, m) for m in range(len(self.names)) for b in range(len(self.factor))]
        at = tuple(np.array(rows).T)
        columns: dict[str, Any] = {"label": [self.names[m] for _, m in rows], "unit": [self.units[m] for _, m in rows]}
        if self.by:
            columns |= {f"{self.by}_low": [low[b] for b, _ in rows], f"{self.by}_high": [high[b] for b, _ in rows]}
        names = ("factor", "factor_error", "floor", "floor_error", "n_star")
        return QTable(columns | {name: getattr(self, name)[at] for name in names})

    def to_json(self) -> str:
        plain = {key: x.tolist() if isinstance(x, np.ndarray) else x for key, x in asdict(self).items()}
        return json.dumps(plain)

    @classmethod
    def from_json(cls, text: str) -> Recalibration:
        try:
            plain = json.loads(text)
            arrays = {x: np.array(plain[x], float) for x in ("factor", "factor_error", "floor", "floor_error")}
            arrays["n_star"] = np.array(plain["n_star"], int)
            names, unit, edges = (tuple(plain[x]) for x in ("names", "units", "edges"))
            found = cls(names, unit, **arrays, by=str(plain["by"]), edges=edges)
            shape = (len(found.edges) + 1, len(found.names))
            if any(x.shape != shape for x in arrays.values()):
                raise ValueError(f"arrays not of shape {shape}")
        except (ValueError, KeyError, TypeError) as problem:
            raise bad_input(f"text that holds no error model ({problem})", "what Recalibration.save wrote") from problem
        return found

    @classmethod
    def of(cls, result: StarPosterior | QTable) -> Recalibration:
        """The error model that was applied to a result, or to the table made of it."""
        info = result.info if isinstance(result, StarPosterior) else result.meta
        if "recalibration" not in info:
            raise bad_input("a result as the test step gave it", "one that Recalibration.apply made")
        return cls.from_json(info["recalibration"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a text file (JSON)."""
        path = Path(path)
        path.write_text(self.to_json())
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recalibration:
        """Read what `save` wrote."""
        return cls.from_json(Path(path).read_text())


def recalibrate(
    result: Result,
    truth: Labels,
    *,
    by: Any = None,
    bins: Any = 4,
    by_name: str = "by",
    floor: bool = True,
    freedom: float = np.inf,
    errors: Any = None,
    scatter: Any = None,
) -> Recalibration:
    """Learn factor and floor of every label's error from stars that the model was not trained on.

    Args:
        result: of `infer` on stars held out, or of `cross_validate`.
        truth: as in `z_scores`: (N, M), NaN where unknown; a `simulate.Truth`; Stars, whose labels' errors count.
        by: (N,), a quantity known of every star, such as S/N: factor and floor in bins of it. Stars of which it is NaN
            are left out. bins: number of bins, of equal numbers of stars, or the edges between them.
            by_name: what to call it.
        floor: False: a factor alone, for few stars.
        freedom: degrees of freedom of a Student-t in the place of the Gaussian, such as 4, for labels of which some are
            far off: a Gaussian lets the few widen all error bars. The error is then half of the interval that holds 68
            per cent, whatever the tails.
        errors: of the labels, as in `z_scores`. scatter: tau, as in `z_scores`: what a catalogue's labels scatter
            beyond their errors, where that is noise of the catalogue. Left out, the floor takes it up, and the error
            bar becomes that of a catalogue label.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> held_out = bl.cross_validate(bl.Cannon(order=1), train, folds=3, progress=False)
        >>> errors = bl.calibration.recalibrate(held_out, train)
        >>> errors.factor.shape
        (1, 3)
    """
    if not freedom > 0:
        raise bad_input(f"freedom={freedom!r}", "degrees of freedom above 0", fix="freedom=4")
    reference = compared(result, truth, errors, scatter)
    frame = result.frame
    offset, variance = reference.value - result.mean, result.error**2
    other = np.einsum("nmm->nm", reference.covariance)
    row, edges = binned(by, bins, len(offset))
    n_bin, m = len(edges) + 1, len(frame.names)
    usable = np.isfinite(offset) & np.isfinite(variance) & (row >= 0)[:, None]
    n_star = np.stack([usable[row == b].sum(0) for b in range(n_bin)])
    out = np.tile(np.array([1.0, np.nan, 0.0, np.nan]), (n_bin, m, 1))
    for j in np.flatnonzero(usable.any(0)):
        for b in range(n_bin):
            if n_star[b, j] < FEWEST:
                where = f" in bin {b + 1} of {n_bin}" if n_bin > 1 else ""
                raise bad_input(
                    f"{n_star[b, j]} stars with {frame.names[j]} and an answer{where}", f"at least {FEWEST}",
                    fix=f"bins={max(n_bin - 1, 1)}, or more stars held out",
                )  # fmt: skip
            at = usable[:, j] & (row == b)
            out[b, j] = fit_width(offset[at, j], variance[at, j], other[at, j], floor, freedom)
    if not usable.any():
        raise bad_input("no star with both an answer and a known label", "held-out stars with labels")
    parts = dict(zip(("factor", "factor_error", "floor", "floor_error"), np.moveaxis(out, -1, 0), strict=True))
    return Recalibration(frame.names, frame.units, n_star=n_star, by=by_name if n_bin > 1 else "", edges=edges, **parts)


def fit_width(
    offset: np.ndarray, variance: np.ndarray, other: np.ndarray, floor: bool = True, freedom: float = np.inf
) -> Width:
    """Maximum likelihood of offset_n ~ N(0, v_n), v_n = f^2 variance_n + s^2 + other_n, f and s not negative.

    Or of offset_n / sqrt(v_n) = t / c, t of Student's distribution and c its 84.13th percentile. Where all variances
    are alike f and s cannot be told apart, and the floor is left at zero, its error NaN.
    """
    unit = float(np.median(variance)) or float(np.mean(offset**2))
    if not unit > 0:
        raise bad_input("error bars and offsets that are all zero", "the errors of a posterior")
    r2, design = offset**2 / unit, np.stack([variance / unit, np.ones_like(variance)], 1)
    constant = other / unit
    least = 1e-9 * (r2.mean() + constant.mean() + 1.0)

    c2 = float(student_t.ppf(norm.cdf(1.0), freedom)) ** 2

    def total(x: np.ndarray) -> np.ndarray:
        return np.maximum(design @ x + constant, least)

    def weight(ratio: np.ndarray) -> np.ndarray:
        """What an offset counts, 1 if Gaussian."""
        return c2 * (1 + 1 / freedom) / (1 + c2 * ratio / freedom)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        v = total(x)
        ratio = r2 / v
        tail = ratio if np.isinf(freedom) else (freedom + 1) * np.log1p(c2 * ratio / freedom)
        return float((np.log(v) + tail).mean()), design.T @ ((1 - weight(ratio) * ratio) / v) / len(v)

    told_apart = floor and np.ptp(design[:, 0]) > 1e-3
    excess = max(float(np.mean(r2 - constant) / np.mean(design[:, 0])), 0.05)
    starts = [(excess, 0.0)] if not told_apart else [(excess, 1e-2), (0.5 * excess, 0.5 * excess), (0.1, excess)]
    bounds = [(0.0, None), (0.0, None if told_apart else 0.0)]
    found = [minimize(loss, x, jac=True, method="L-BFGS-B", bounds=bounds, tol=1e-12) for x in starts]
    best = np.asarray(min(found, key=lambda out: out.fun).x)
    free = np.array([True, told_apart])
    v = total(best)
    slope = design[:, free] / v[:, None]
    ratio = r2 / v
    pull = weight(ratio) * ratio
    steepness = np.mean(pull / (1 + c2 * ratio / freedom))  # of the pull; 1 if Gaussian
    inverse = np.linalg.pinv(steepness * slope.T @ slope)  # of twice the information
    scores = slope * (pull - 1)[:, None]
    spread = np.sqrt(np.diag(inverse @ (scores.T @ scores) @ inverse))
    error = np.full(2, np.nan)
    error[free] = np.sqrt(best[free] + spread) - np.sqrt(best[free])
    scale = np.sqrt(unit)
    return Width(float(np.sqrt(best[0])), float(error[0]), float(scale * np.sqrt(best[1])), float(scale * error[1]))
