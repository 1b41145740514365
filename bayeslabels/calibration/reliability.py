"""Where error bars hold and where they do not: coverage by bins, and stars that were observed twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.table import QTable

from ..errors import bad_input
from ..results.star_posterior import StarPosterior
from .bins import binned, named
from .scores import Labels, Result, compared, correlation, pit, shares, z_scores

LEVELS = (0.5, 0.6827, 0.9, 0.95)


def reliability(
    result: Result,
    truth: Labels,
    by: Any = None,
    *,
    bins: Any = 4,
    by_name: str | None = None,
    levels: Any = LEVELS,
    errors: Any = None,
    scatter: Any = None,
) -> QTable:
    """Coverage against nominal level, label by label and bin by bin, and how sharp the predictions are.

    Args:
        result, truth, errors, scatter: as in `z_scores`.
        by: what to bin the stars in: (N,) such as S/N, or the name of a label: its inferred value. Whatever was seen
            of a star will do, for error bars that hold do so given the data. They need not hold in bins of the *true*
            label: at the edge of the population every posterior lies on one side of it.
        bins: number of bins, of equal numbers of stars, or the edges between them. by_name: what to call the quantity.
        levels: probabilities of the central intervals.

    Returns:
        A row per label, bin and level: the `share` of the `n_star` stars inside, the `low` and `high` between which 95
        per cent of such shares lie where the error bars hold, whether it `holds`, `z_sd`, and `sharpness`, the median
        sd of label minus prediction, in the label's unit. Of 20 rows one is outside by chance.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> bl.calibration.reliability(result, truth.test_labels, bins=1).colnames[:3]
        ['label', 'unit', 'n_star']
    """
    level = np.atleast_1d(np.asarray(levels, float))
    if level.ndim != 1 or not len(level) or not ((level > 0) & (level < 1)).all():
        raise bad_input(f"levels={levels}", "probabilities between 0 and 1", fix="levels=(0.6827, 0.95)")
    names = result.frame.names
    by, by_name = named(by, by_name, result.mean, names)
    row, edges = binned(by, bins, len(result))
    low, high = (-np.inf, *edges), (*edges, np.inf)
    depth = 2 * np.abs(pit(result, truth, errors=errors, scatter=scatter) - 0.5)
    z = z_scores(result, truth, errors, scatter)
    reference = compared(result, truth, errors, scatter)
    sd = np.sqrt(np.einsum("nmm->nm", result.cov + reference.covariance))
    sd = np.where(np.isfinite(z), sd, np.nan)
    together = correlation(result, reference, level)
    found = [shares(depth[row == b], level, together) for b in range(len(low))]
    rows = []
    for m, (name, unit) in enumerate(zip(names, result.frame.units, strict=True)):
        for b, one in enumerate(found):
            some = one.n_star[m] > 0
            z_sd = float(np.nanstd(z[row == b, m])) if some else np.nan
            sharpness = float(np.nanmedian(sd[row == b, m])) if some else np.nan
            for p, probability in enumerate(level):
                at = [float(x[p, m]) for x in (one.share, one.low, one.high)]
                where = (name, unit, low[b], high[b], int(one.n_star[m]), float(probability))
                rows.append((*where, *at, bool(one.holds[p, m]), z_sd, sharpness))
    columns = ["label", "unit", f"{by_name}_low", f"{by_name}_high", "n_star", "level", "share", "low", "high"]
    table = QTable(rows=rows, names=[*columns, "holds", "z_sd", "sharpness"])
    if by is None:
        table.remove_columns(columns[2:4])
    return table


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of observations of the same stars, inferred independently.

    Attributes:
        first, second (P,): rows of the result. names, units: of the M labels.
        difference (P, M): of the means, first minus second, in label units; NaN where either failed.
        error (P, M): its sd, sqrt(var_1 + var_2).

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> twice = bl.calibration.pairs(result, id=[f"star {i // 2}" for i in range(20)])
        >>> twice.names
        ('TEFF', 'LOGG', 'FE_H')
    """

    first: np.ndarray
    second: np.ndarray
    difference: np.ndarray
    error: np.ndarray
    names: tuple[str, ...]
    units: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def z(self) -> np.ndarray:
        """difference / error (P, M): of unit sd where the errors of single observations hold."""
        return self.difference / self.error

    def table(self) -> QTable:
        """A row per label: number of pairs, mean of z, its sd with that sd's standard error, rms difference."""
        n = np.isfinite(self.z).sum(0)
        mean, sd = np.full((2, len(self.names)), np.nan)
        rms = np.full(len(self.names), np.nan)
        for m in np.flatnonzero(n):
            mean[m], sd[m] = np.nanmean(self.z[:, m]), np.nanstd(self.z[:, m])
            rms[m] = np.sqrt(np.nanmean(self.difference[:, m] ** 2))
        with np.errstate(divide="ignore"):
            error = sd / np.sqrt(2 * n)
        columns: dict[str, Any] = {"label": list(self.names), "unit": list(self.units), "n_pair": n, "z_mean": mean}
        return QTable(columns | {"z_sd": sd, "z_sd_error": error, "rms": rms})


def pairs(result: StarPosterior, id: Any = None) -> Pairs:
    """Stars observed more than once: differences of their labels in units of their errors. No truth is needed.

    Every row is used at most once: of a star's rows the first goes with the second, the third with the fourth.

    What two observations share cancels in their difference, so that this tests less than held-out labels do: an offset
    of the training labels, coefficients that are wrong, lines that the model cannot make, blends, a wrong continuum
    found twice. It tests the noise: flux errors, pixels that are not independent, conditions that vary. The error of
    what was learned, which both errors include, cancels as well: where it is large, the sd of z is below one although
    the error bars hold.

    Args:
        result: of `infer`, a row per observation. id (N,): which star; None: the result's own ids.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> bl.calibration.pairs(result, id=[f"star {i // 2}" for i in range(20)]).difference.shape
        (10, 3)
    """
    ids = np.asarray(result.stars["star"].values if id is None else id)
    if ids.shape != (len(result),):
        raise bad_input(f"id of shape {ids.shape}", f"({len(result)},), the star of each row")
    order = np.argsort(ids, kind="stable")
    _, start, count = np.unique(ids[order], return_index=True, return_counts=True)
    first = np.concatenate([order[s : s + 2 * (n // 2) : 2] for s, n in zip(start, count, strict=True)])
    second = np.concatenate([order[s + 1 : s + 2 * (n // 2) : 2] for s, n in zip(start, count, strict=True)])
    if not len(first):
        raise bad_input(
            f"{len(ids)} rows of as many stars", "stars in two rows or more", "ids of observations, not of stars",
            fix="pairs(result, id=table['SOURCE_ID'])",
        )  # fmt: skip
    variance = result.error**2
    error = np.sqrt(variance[first] + variance[second])
    difference = result.mean[first] - result.mean[second]
    return Pairs(first, second, difference, error, result.frame.names, result.frame.units)
