"""What the training step returns: a value that carries its diagnostics, and can be saved and loaded."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Self

import numpy as np
import xarray as xr
from arviz_base import convert_to_datatree
from astropy.table import QTable

from ..core.model import M
from ..data.html import shown_table
from ..data.stars import Stars
from ..errors import BadInput
from ..inference.base import Inference, T, Trained
from ..kind import kind_of
from ..names import version_of
from ..numerics.linalg import in_float64
from .about import about
from .groups import with_groups
from .model_file import load_model, save_model


class Posterior(Generic[M, T]):
    """A trained model.

    Attributes:
        model: the model as trained, bound to its training stars' names, units and scales.
        data: xarray.DataTree in ArviZ's schema: `posterior` (chain, draw, ...), `sample_stats`, `moments`.
        moments: what the test step integrates over, such as means and covariances.
        info: how it was made: inference, seed, versions, convergence, dropped pixels, selection.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> print(posterior)
        Posterior of Cannon by MAP: TEFF, LOGG, FE_H from 50 pixels, 100 training stars, converged
    """

    def __init__(self, model: M, data: xr.DataTree, moments: T, info: dict[str, Any]):
        self.model, self.data, self.moments, self.info = model, data, moments, info

    @classmethod
    def from_training(cls, model: M, trained: Trained[T], info: dict[str, Any]) -> Self:
        coords, dims, moment_dims = kind_of(model).layout(model)
        draws = {k: v for k, v in trained.draws.items() if k in dims}
        data = convert_to_datatree(draws, coords=coords, dims={k: dims[k] for k in draws})
        if trained.moments is None:
            raise BadInput(f"{type(model).__name__} gave no moments to integrate over")
        data["moments"] = xr.DataTree(xr.Dataset(_present(trained.moments, moment_dims), coords=coords))
        longest = max((len(v) for v in trained.traces.values() if v.ndim == 1), default=0)
        traces = {
            k: (("chain", "draw") if v.ndim == 2 else ("iteration",) if len(v) == longest else ("epoch",), v)
            for k, v in trained.traces.items()
            if v.size
        }
        if traces:
            kept = xr.Dataset(traces)  # with the coordinates by which ArviZ marks what diverged
            of_draws = {x: data["posterior"][x] for x in ("chain", "draw") if x in kept.dims}
            data["sample_stats"] = xr.DataTree(kept.assign_coords(of_draws))
        return cls(model, data, trained.moments, {**info, **trained.stats})

    def with_moments(self, moments: T, **point: np.ndarray) -> Self:
        """This posterior with other moments for the test step; point: sites of a point estimate that go with them."""
        data = self.data.copy()
        draws = data["posterior"].to_dataset()
        if draws.sizes["chain"] * draws.sizes["draw"] == 1:
            new = {name: (draws[name].dims, x[None, None]) for name, x in point.items() if name in draws}
            data["posterior"] = xr.DataTree(draws.assign(new))
        dims = kind_of(self.model).layout(self.model).moments
        group = data["moments"].to_dataset().assign(_present(moments, dims))
        data["moments"] = xr.DataTree(group)
        return type(self)(self.model, data, moments, self.info)

    def with_model(self, **changes: Any) -> Self:
        """This posterior under other settings of its model: the priors of the test step, such as `distance_prior`."""
        return type(self)(self.model.replace(**changes), self.data, self.moments, self.info)

    @property
    def asked(self) -> tuple[str, ...]:
        """Blocks that the test step is asked for, and would take as data where they are present."""
        return kind_of(self.model).asked(self.model)

    @property
    def inferred(self) -> tuple[str, ...]:
        """Names of what the test step infers of a star."""
        return tuple(kind_of(self.model).quantities(self.model).names)

    @property
    def predictor(self) -> Any:
        """predict(result, name, with_error) of the result of a test step."""
        return functools.partial(kind_of(self.model).predict_stars, self)

    def label_scatter(self) -> dict[str, float]:
        """tau of every label, in its own unit: how far the catalogue's labels scatter beyond their stated errors.

        A catalogue label of a star is Normal(true label, sigma^2 + tau^2).
        """
        moments: Any = self.moments
        return dict(zip(self.model.require_frame().names, moments.label_scatter.tolist(), strict=True))

    @in_float64
    def predict(self, stars: Stars, name: str | None = None, with_error: bool = False) -> Any:
        """Mean of a block or quantity given what else the stars have; with_error: and its sd.

        Of models of spectra `flux` (N, L) by default, given labels, or a block of labels that are outputs of latents
        (Lux), given flux. The sd is predictive,

            sd_nl^2 = s_l^2 + tr[Cov(theta_l) E(phi_n phi_n')] + theta_l' Cov(phi_n) theta_l

        of the noise-free spectrum of one star. Of `Parallax`: `parallax` (N, 1), given the features. Pixels that could
        not be trained and stars without data are NaN.
        """
        return kind_of(self.model).predict(self, stars, name, with_error)

    def summary(self) -> QTable:
        """What was learned, a row per label (tau, and the population of true labels, NaN if it is flat) or feature."""
        return kind_of(self.model).summary(self)

    def to_arviz(
        self,
        stars: Stars,
        log_likelihood: bool = True,
        posterior_predictive: bool = False,
        prior: int = 0,
        seed: int = 0,
    ) -> xr.DataTree:
        """The training posterior in ArviZ's schema with its data, for `arviz_stats.loo`, `compare` and ArviZ's plots.

        Groups: `posterior` of the parameters that all stars share, `posterior_of_stars` of every star's own unknowns
        where the posterior has draws of them, `sample_stats` (of `NUTS`: divergences, energies, densities),
        `observed_data` and `constant_data` (errors) of the stars, and what is asked for. The coordinates of `star` are
        the stars' ids.

        Args:
            stars: the training stars (where the posterior has draws of every star's own unknowns: the same, in order).
            log_likelihood: ln p (chain, draw, star) of every block given the stars' own unknowns; of models whose
                stars' unknowns are integrated out (`Photometry`, `Translator`, `Parallax`) of all blocks together.
            posterior_predictive: a set of data (chain, draw, star, column) for every draw; blocks of one column are
                (chain, draw, star). Unknowns of a star of which the posterior has no draws are drawn from their prior.
            prior: so many draws from the prior, groups `prior` and `prior_predictive`.

        Raises:
            BadInput: other stars than those of the draws, or stars that do not fit the model.
            CannotDo: of a prior that is flat, from which nothing can be drawn.

        Example:
            >>> import arviz_stats
            >>> import bayeslabels as bl
            >>> stars = bl.simulate.simulate_photometry(60, seed=1)[0]
            >>> parallax = bl.Parallax(features=("magnitudes",), outliers=False)
            >>> posterior = bl.fit(parallax, stars, bl.NUTS(chains=2, draws=50, warmup=50), progress=False)
            >>> tree = posterior.to_arviz(stars, posterior_predictive=True)
            >>> sorted(tree.children)
            ['constant_data', 'log_likelihood', 'observed_data', 'posterior', 'posterior_predictive', 'sample_stats']
        """
        return with_groups(self, stars, log_likelihood, posterior_predictive, prior, seed)

    def __repr__(self) -> str:
        return (
            f"Posterior of {type(self.model).__name__} by {self.info.get('inference', '?')}: "
            f"{kind_of(self.model).describe(self.model)}, {self.info.get('n_star', '?')} training stars, "
            f"{'converged' if self.info.get('converged') else 'NOT CONVERGED'}"
        )

    def _repr_html_(self) -> str:
        return shown_table(repr(self), self.summary())

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a netCDF4 (HDF5) file with its checksum; written beside and moved into place: whole, or not there.

        Of several processes (`jax.distributed`) the first alone writes.

        Args:
            overwrite: replace a file of that name.

        Raises:
            BadInput: of a file that exists.
        """
        return save_model(self.model, self.data, self.info, path, overwrite, about(self))


def load(path: str | os.PathLike[str], model: Callable[..., Any] | None = None) -> Posterior[Any, Any]:
    """Read a posterior that `Posterior.save` wrote; runs no code from the file.

    model: of a posterior of a program of your own, that program: the file holds its name, which is compared.

    Raises:
        BadInput: of a file that is damaged, cut short, or of another kind.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> import pathlib, tempfile
        >>> path = posterior.save(pathlib.Path(tempfile.mkdtemp()) / "model.h5")
        >>> bl.load(path).model == posterior.model
        True
    """
    return Posterior(*load_model(path, model))


def _present(moments: Any, dims: dict[str, list[str]]) -> dict[str, Any]:
    """Variables of the moments that are known."""
    return {k: (d, getattr(moments, k)) for k, d in dims.items() if getattr(moments, k) is not None}


def provenance(seed: int, inference: Inference) -> dict[str, Any]:
    """What is recorded of how a result was made."""
    versions = {name: version_of(name) for name in ("bayeslabels", "numpyro", "jax", "numpy")}
    return {
        "inference": type(inference).__name__,
        "settings": inference.settings(),
        "seed": seed,
        "versions": {**versions, "python": platform.python_version()},
    }
