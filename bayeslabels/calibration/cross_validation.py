"""Cross-validation: every star's labels by a model trained without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from astropy import units
from astropy.table import QTable

from ..core.model import Model
from ..data.batches import fold_of
from ..data.stars import Stars
from ..errors import bad_input, without_advice
from ..inference.base import Inference
from ..kind import Quantities, kind_of
from ..kinds.program.program import as_model
from ..progress import bar
from ..results.star_posterior import ONE_SIGMA, StarPosterior
from ..verbs import fit, infer


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Labels of N stars, each inferred by a model trained without it; rows in the order of the stars given.

    Attributes:
        mean (N, M), cov (N, M, M): of the true labels, in label units; NaN for stars that failed.
        label_scatter (N, M): tau of the training folds, in label units; 0 where the errors include it.
        log_density (N,): ln p(catalogue labels | spectrum, the other folds), the labels' errors and tau included;
            NaN for stars without labels or without an answer.
        fold (N,): in which fold the star was left out.
        flags (N,): of the test step, see `Flags`.
        samples (draw, N, M): of the true labels.
        frame: names and units of the labels.
        info: inference, settings, seed, and what was chosen in every fold.
        stars: per-star results of the test step, such as percentiles.

    For `Parallax` the "labels" are `parallax_sp`, in which a star's own parallax has no part, not even through
    training, `parallax_combined` with it, and `distance`; `log_density` is that of the measured parallax.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> held_out = bl.cross_validate(bl.Cannon(order=1), train, folds=3, progress=False)
        >>> held_out.table().colnames[:3]
        ['id', 'TEFF', 'TEFF_error']
    """

    id: np.ndarray
    mean: np.ndarray
    cov: np.ndarray
    label_scatter: np.ndarray
    log_density: np.ndarray
    fold: np.ndarray
    flags: np.ndarray
    samples: np.ndarray
    frame: Quantities
    info: dict[str, Any]
    stars: xr.Dataset = field(default_factory=xr.Dataset, repr=False)

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def error(self) -> np.ndarray:
        """(N, M): posterior standard deviations, in label units."""
        return np.sqrt(np.einsum("nmm->nm", self.cov))

    @property
    def folds(self) -> int:
        return int(self.fold.max()) + 1

    @property
    def elpd(self) -> float:
        """Expected log predictive density: the sum of `log_density` over the stars that have one."""
        return float(np.nansum(self.log_density))

    @property
    def elpd_error(self) -> float:
        """Standard error of `elpd`."""
        return float(np.sqrt(np.isfinite(self.log_density).sum()) * np.nanstd(self.log_density))

    def draws(self, name: str) -> np.ndarray:
        """Draws (draw, N) of one label, in its own unit."""
        if name not in self.frame.names:
            raise bad_input(f"draws({name!r})", f"one of {self.frame.names}")
        return self.samples[:, :, self.frame.names.index(name)]

    def table(self) -> QTable:
        """One row per star: id, labels with errors in their units, log_density, fold, flags.

        `<label>_catalogue_error` adds tau, as in `StarPosterior.table`.
        """
        columns: dict[str, Any] = {"id": self.id}
        for m, (name, unit) in enumerate(zip(self.frame.names, self.frame.units, strict=True)):
            sd = self.error[:, m]
            numbers = {name: self.mean[:, m], f"{name}_error": sd}
            if self.label_scatter[:, m].any():
                numbers[f"{name}_catalogue_error"] = np.hypot(sd, self.label_scatter[:, m])
            columns |= {key: x * units.Unit(unit) if unit else x for key, x in numbers.items()}
            for percent in [x for x in ONE_SIGMA if x in self.stars]:
                x = self.stars[percent].values[:, m]
                columns[f"{name}_{percent}"] = x * units.Unit(unit) if unit else x
        return QTable(columns | {"log_density": self.log_density, "fold": self.fold, "flags": self.flags})

    def __repr__(self) -> str:
        return (
            f"CrossValidation of {len(self)} stars in {self.folds} folds: {', '.join(self.frame.names)}; "
            f"elpd {self.elpd:.1f} +- {self.elpd_error:.1f}, "
            f"{int(np.isnan(self.log_density).sum())} stars without a density"
        )


def cross_validate(
    model: Model,
    stars: Stars,
    inference: Inference | None = None,
    folds: int = 8,
    *,
    infer_with: Inference | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> CrossValidation:
    """Every star's labels by a model trained on the other folds.

    What the model's settings leave open is chosen anew within every training set, so that no star has a say in how it
    is predicted itself; `cross_validate(fit(model, stars).model, ...)` keeps a choice that was made.

    Args:
        model, stars, inference: as in `fit`. infer_with: the test step's inference, as in `infer`.
        folds: the stars are split at random, by seed, into so many equal parts.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> held_out = bl.cross_validate(bl.Cannon(order=1), train, folds=3, progress=False)
        >>> held_out.mean.shape
        (100, 3)
    """
    model = as_model(model)
    kind = kind_of(model)
    fold = fold_of(len(stars), folds, seed)
    n, parts = len(stars), []
    density = np.full(n, np.nan)
    info: dict[str, Any] = {"seed": seed, "selection": [], "converged": []}
    with bar(folds, "cross-validation", progress) as shown:
        for f in range(folds):
            shown.set_description(f"cross-validation, fold {f + 1} of {folds}")
            out = fold == f
            with without_advice():  # of a model that the user does not see
                posterior = fit(model, stars[~out], inference, seed=seed, progress=False)
            test = kind.held_out_view(posterior.model, stars[out])
            result = infer(posterior, test, infer_with, seed=seed, progress=False)
            density[out] = kind.log_density(posterior, result, stars[out])
            parts.append(result)
            info["selection"].append(posterior.info.get("selection"))
            info["converged"].append(posterior.info.get("converged"))
            shown.update()
    order = np.argsort(np.concatenate([np.flatnonzero(fold == f) for f in range(folds)]))

    def joined(of: Callable[[StarPosterior], Any]) -> np.ndarray:
        return np.concatenate([of(part) for part in parts])[order]

    names = parts[0].frame.names
    scatter = joined(lambda x: np.tile(x.label_scatter, (len(x), 1)))
    samples = joined(lambda x: np.stack([x.draws(name).T for name in names], -1)).swapaxes(0, 1)
    info |= {"inference": posterior.info["inference"], "settings": posterior.info["settings"]}
    info |= {"infer_with": result.info["inference"], "versions": result.info["versions"]}
    found = [part.info.get("error_factor", {}) for part in parts]
    info["error_factor"] = {
        block: {name: float(np.mean([x[block][name] for x in found])) for name in of} for block, of in found[0].items()
    }
    ids = np.arange(n) if stars.id is None else stars.id
    frame = kind.quantities(model.bind(stars))
    return CrossValidation(
        ids, joined(lambda x: x.mean), joined(lambda x: x.cov), scatter, density, fold, joined(lambda x: x.flags),
        samples, frame, info, xr.concat([x.stars for x in parts], "star").isel(star=order),
    )  # fmt: skip
