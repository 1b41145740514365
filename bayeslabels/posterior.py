"""What the training step returns: a value that carries its diagnostics, and can be saved and loaded."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from arviz_base import convert_to_datatree
from astropy.table import QTable

from . import models as _models  # noqa: F401  (registers every model)
from . import state
from .errors import BadInput, bad_input
from .inference.base import Moments, Trained
from .model import LinearModel
from .numerics.linalg import in_float64
from .stars import Stars

FORMAT = 1
"""Version of the file layout."""

_DIMS = {
    "coefficients": ["pixel", "feature"],
    "coefficients_mean": ["feature"],
    "coefficients_covariance": ["feature", "feature_bis"],
    "scatter": ["pixel"],
    "label_scatter": ["labels"],
    "population_mean": ["labels"],
    "population_covariance": ["labels", "labels_bis"],
    "u": ["star", "labels"],
    "true_labels": ["star", "labels"],
}
_MOMENT_DIMS = {
    "coefficients": ("pixel", "feature"),
    "coefficient_covariance": ("pixel", "feature", "feature_bis"),
    "scatter": ("pixel",),
    "label_scatter": ("labels",),
    "population_mean": ("labels",),
    "population_covariance": ("labels", "labels_bis"),
    "label_system_covariance": ("labels", "feature", "labels_bis", "feature_bis"),
    "training_u": ("training_star", "labels"),
}


class Posterior:
    """A trained model.

    Attributes:
        model: the model as trained, bound to its training stars' names, units and scales.
        data: xarray.DataTree in ArviZ's schema: `posterior` (chain, draw, ...), `sample_stats`, `moments`.
        moments: means and covariances that the test step integrates over.
        info: how it was made: inference, seed, versions, convergence, dropped pixels, selection.
    """

    def __init__(self, model: LinearModel, data: xr.DataTree, moments: Moments, info: dict[str, Any]):
        self.model, self.data, self.moments, self.info = model, data, moments, info

    @classmethod
    def from_training(cls, model: LinearModel, trained: Trained, info: dict[str, Any]) -> Posterior:
        frame = model.require_frame()
        coords: dict[str, Any] = {
            "labels": list(frame.names),
            "labels_bis": list(frame.names),
            "feature": list(model.features.names(frame.names)),
            "feature_bis": list(model.features.names(frame.names)),
            "pixel": np.arange(frame.n_pixel) if frame.coordinate is None else frame.coordinate,
        }
        draws = {k: v for k, v in trained.draws.items() if k in _DIMS}
        dims = {k: _DIMS[k] for k in draws}
        data = convert_to_datatree(draws, coords=coords, dims=dims)
        if trained.moments is None:
            raise BadInput(f"{type(model).__name__} gave no moments to integrate over")
        data["moments"] = xr.DataTree(
            xr.Dataset({k: (d, getattr(trained.moments, k)) for k, d in _MOMENT_DIMS.items()}, coords={
                k: v for k, v in coords.items()
            })
        )  # fmt: skip
        traces = {
            k: (("chain", "draw") if v.ndim == 2 else ("iteration",), v) for k, v in trained.traces.items() if v.size
        }
        if traces:
            data["sample_stats"] = xr.DataTree(xr.Dataset(traces))
        return cls(model, data, trained.moments, {**info, **trained.stats})

    def with_moments(self, moments: Moments) -> Posterior:
        """This posterior with other moments for the test step."""
        data = self.data.copy()
        group = data["moments"].to_dataset().assign({k: (d, getattr(moments, k)) for k, d in _MOMENT_DIMS.items()})
        data["moments"] = xr.DataTree(group)
        return Posterior(self.model, data, moments, self.info)

    # ---- what was learned ----

    def label_scatter(self) -> dict[str, float]:
        """tau of every label, in its own unit: how far the catalogue's labels scatter beyond their stated errors.

        A catalogue label of a star is Normal(true label, sigma^2 + tau^2).
        """
        return dict(zip(self.model.require_frame().names, self.moments.label_scatter.tolist(), strict=True))

    @in_float64
    def predict(self, stars: Stars, name: str = "flux", with_error: bool = False) -> Any:
        """Mean of `flux` (N, L) for stars with labels; with_error adds the predictive sd (N, L).

        sd^2 = s_l^2 + phi' Cov(theta_l) phi: of the noise-free spectrum of a star with these labels. Pixels that could
        not be trained and stars with a missing label are NaN.
        """
        if name != "flux":
            raise bad_input(f"predict(..., {name!r})", "'flux'", "a quantity that this model does not have")
        if "labels" not in stars:
            raise bad_input(
                "stars without labels", "a labels block", fix="infer(posterior, stars).table() gives labels"
            )
        self.model.check(stars)
        measured = self.model.measured(stars)
        u = np.where(measured.observed.all(1, keepdims=True), measured.value, np.nan)
        phi = np.asarray(self.model.features(jnp.asarray(u)))
        mean = phi @ self.moments.coefficients.T
        if not with_error:
            return mean
        variance = np.einsum("nj,ljk,nk->nl", phi, self.moments.coefficient_covariance, phi, optimize=True)
        return mean, np.sqrt(variance + self.moments.scatter**2)

    def summary(self) -> QTable:
        """One row per label: name, unit, tau, and mean and sd of the population of true labels, NaN if it is flat."""
        frame, moments = self.model.require_frame(), self.moments
        learned = np.nan if self.model.flat_population else 1.0
        return QTable(
            {
                "label": list(frame.names),
                "unit": list(frame.units),
                "label_scatter": moments.label_scatter,
                "population_mean": learned * frame.physical(moments.population_mean),
                "population_sd": learned * frame.scale * np.sqrt(np.diag(moments.population_covariance)),
            }
        )

    def __repr__(self) -> str:
        frame = self.model.require_frame()
        return (
            f"Posterior of {type(self.model).__name__} by {self.info.get('inference', '?')}: "
            f"{', '.join(frame.names)} from {frame.n_pixel} pixels, {self.info.get('n_star', '?')} training stars, "
            f"{'converged' if self.info.get('converged') else 'NOT CONVERGED'}"
        )

    # ---- files ----

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a netCDF4 (HDF5) file; written beside and moved into place, so that a crash leaves no torn file."""
        path = Path(path)
        arrays: dict[str, np.ndarray] = {}
        tree = self.data.copy()
        attrs = {
            "bayeslabels_format": FORMAT,
            "model": state.dumps(self.model, arrays),
            "info": json.dumps(self.info),
        }
        stored = {}
        for name, x in arrays.items():
            dims = [f"{name}_{i}" for i in range(x.ndim)]
            stored[name] = (dims, x.astype(np.int8) if x.dtype == bool else x, {"bool": int(x.dtype == bool)})
        tree["model"] = xr.DataTree(xr.Dataset(stored))
        tree.attrs.update(attrs)
        part = path.with_name(path.name + ".part")
        try:
            tree.to_netcdf(part, engine="h5netcdf")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path


def load(path: str | os.PathLike[str]) -> Posterior:
    """Read a posterior that `Posterior.save` wrote; runs no code from the file."""
    path = Path(path)
    if not path.exists():
        raise bad_input(f"no file {path}", "a model file written by Posterior.save")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as opened:
            tree = opened.load()
    except Exception as problem:
        raise bad_input(
            f"{path}, which cannot be read as netCDF4 ({type(problem).__name__}: {problem})",
            "a model file written by Posterior.save",
            "a truncated download or another kind of file",
        ) from problem
    if "bayeslabels_format" not in tree.attrs:
        raise bad_input(f"{path} without a bayeslabels model", "a model file written by Posterior.save")
    if tree.attrs["bayeslabels_format"] > FORMAT:
        raise bad_input(
            f"{path} of format {tree.attrs['bayeslabels_format']}", f"at most {FORMAT}", "a newer bayeslabels wrote it",
            "pip install --upgrade bayeslabels",
        )  # fmt: skip
    stored = tree["model"].to_dataset()
    arrays = {str(name): (x.values.astype(bool) if x.attrs["bool"] else x.values) for name, x in stored.items()}
    model = state.loads(tree.attrs["model"], arrays)
    info = json.loads(tree.attrs["info"])
    trained = tree["moments"].to_dataset()
    moments = Moments(**{name: trained[name].values for name in _MOMENT_DIMS})
    del tree["model"]
    for name in ("bayeslabels_format", "model", "info"):
        del tree.attrs[name]
    return Posterior(model, tree, moments, info)


def provenance(seed: int, inference: Any) -> dict[str, Any]:
    """What is recorded of how a result was made."""
    packages = ("bayeslabels", "numpyro", "jax", "numpy")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "inference": type(inference).__name__,
        "settings": inference.settings(),
        "seed": seed,
        "versions": {**versions, "python": platform.python_version()},
    }
