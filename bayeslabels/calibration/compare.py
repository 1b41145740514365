"""Which model predicts better: cross-validated log densities of the same stars, pair by pair."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from astropy.table import QTable

from ..errors import bad_input
from .cross_validation import CrossValidation


def compare(models: Mapping[str, CrossValidation]) -> QTable:
    """Cross-validated models of the same stars, the best first.

    `difference` is elpd_best - elpd, the sum of d_n over the stars (Vehtari+17 eq. 23-24), and `difference_error` its
    standard error sqrt(N var(d_n)), which is far smaller than those of the two elpd, since the same stars are hard for
    both. Four standard errors are a difference; less than that, and less than 4 in itself, is none (Sivula+20).

    The columns are what `arviz_stats.compare` calls `elpd`, `se`, `elpd_diff` and `dse`.

    Args:
        models: {name: result of `cross_validate`} of the same stars and labels.

    Returns:
        `model`, `elpd`, `elpd_error`, `difference`, `difference_error`, `n_star`, over the stars of which every model
        has a density, and `n_failed`, how many more this model gave no answer for: not punished in the elpd.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> noisy = bl.cross_validate(bl.Cannon(order=1), train, folds=3, progress=False)
        >>> exact = bl.cross_validate(bl.Cannon(order=1, label_noise=False), train, folds=3, progress=False)
        >>> len(bl.calibration.compare({"noisy labels": noisy, "exact labels": exact}))
        2
    """
    if len(models) < 2:
        raise bad_input(f"{len(models)} model(s)", "at least two", fix='compare({"cannon": a, "lux": b})')
    values = list(models.values())
    for name, one in models.items():
        if not np.array_equal(one.id, values[0].id):
            raise bad_input(f"{name!r} of other stars than {next(iter(models))!r}", "the same stars in the same order")
        if one.frame.names != values[0].frame.names or one.frame.units != values[0].frame.units:
            raise bad_input(
                f"{name!r} with {one.frame.names} in {one.frame.units}",
                f"{values[0].frame.names} in {values[0].frame.units}, as the others", "densities of other labels",
            )  # fmt: skip
    density = np.stack([x.log_density for x in values])
    known = np.isfinite(density)
    common = known.all(0)
    if not common.any():
        raise bad_input("no star with a density by every model", "cross-validation of stars with labels")
    n, density = int(common.sum()), density[:, common]
    order = np.argsort(-density.sum(1), kind="stable")
    difference = density[order[0]] - density[order]
    return QTable(
        {
            "model": [list(models)[i] for i in order],
            "elpd": density[order].sum(1),
            "elpd_error": np.sqrt(n) * density[order].std(1),
            "difference": difference.sum(1),
            "difference_error": np.sqrt(n) * difference.std(1),
            "n_star": np.full(len(order), n),
            "n_failed": (known.any(0) & ~known).sum(1)[order],
        }
    )
