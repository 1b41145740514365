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
from .inference.starwise import prepare
from .linear import LinearModel
from .numerics.linalg import in_float64
from .stars import Stars

FORMAT = 1
"""Version of the file layout."""


def _dims(model: LinearModel) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Dimensions of the draws' sites and of the moments."""
    own, names = "labels" if model.labels_are_latent else "latent", model.sites
    shared = {
        "scatter": ["pixel"],
        "label_scatter": ["labels"],
        "population_mean": [own],
        "population_covariance": [own, f"{own}_bis"],
    }
    sites = {
        names["coefficients"]: ["pixel", "feature"],
        f"{names['coefficients']}_mean": ["feature"],
        f"{names['coefficients']}_covariance": ["feature", "feature_bis"],
        names["latents"]: ["star", own],
        "true_labels": ["star", "labels"],
        names.get("label_coefficients", "label_coefficients"): ["labels", "feature"],
    }
    moments = {
        "coefficients": ["pixel", "feature"],
        "coefficient_covariance": ["pixel", "feature", "feature_bis"],
        "label_coefficients": ["labels", "feature"],
        "label_system_covariance": ["labels", "feature", "labels_bis", "feature_bis"],
        "training_u": ["training_star", own],
    }
    return shared | sites, shared | moments


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
        latents = list(frame.names)
        if not model.labels_are_latent:
            latents = [f"{model.sites['latents']}{p}" for p in range(model.features.n_label)]
        features = list(model.features.names(tuple(latents)))
        dims, moment_dims = _dims(model)
        coords: dict[str, Any] = {
            "labels": list(frame.names),
            "labels_bis": list(frame.names),
            "latent": latents,
            "latent_bis": latents,
            "feature": features,
            "feature_bis": features,
            "pixel": np.arange(frame.n_pixel) if frame.coordinate is None else frame.coordinate,
        }
        draws = {k: v for k, v in trained.draws.items() if k in dims}
        data = convert_to_datatree(draws, coords=coords, dims={k: dims[k] for k in draws})
        if trained.moments is None:
            raise BadInput(f"{type(model).__name__} gave no moments to integrate over")
        data["moments"] = xr.DataTree(
            xr.Dataset({k: (d, getattr(trained.moments, k)) for k, d in moment_dims.items()}, coords=coords)
        )
        traces = {
            k: (("chain", "draw") if v.ndim == 2 else ("iteration",), v) for k, v in trained.traces.items() if v.size
        }
        if traces:
            data["sample_stats"] = xr.DataTree(xr.Dataset(traces))
        return cls(model, data, trained.moments, {**info, **trained.stats})

    def with_moments(self, moments: Moments) -> Posterior:
        """This posterior with other moments for the test step."""
        data = self.data.copy()
        group = (
            data["moments"].to_dataset().assign({k: (d, getattr(moments, k)) for k, d in _dims(self.model)[1].items()})
        )
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
        """Mean of `flux` (N, L), or of a block of labels (N, M), given the other blocks that the stars have.

        With labels exactly known the flux is that of the features at the labels; labels that are outputs of latents
        (Lux) and their errors first tell of the latents. with_error adds the predictive sd,

            sd_nl^2 = s_l^2 + tr[Cov(theta_l) E(phi_n phi_n')] + theta_l' Cov(phi_n) theta_l

        of the noise-free spectrum of one star. Pixels that could not be trained and stars without data are NaN.
        """
        model, moments = self.model, self.moments
        if name not in ("flux", *model.label_blocks) or (name != "flux" and model.labels_are_latent):
            known = ("flux",) if model.labels_are_latent else ("flux", *model.label_blocks)
            raise bad_input(f"predict(..., {name!r})", f"one of {known}", "a quantity that this model does not have")
        given = [block for block in ("flux", *model.label_blocks) if block in stars and block != name]
        if not given:
            raise bad_input(
                f"stars without {'labels' if name == 'flux' else 'flux'}", f"a block to predict {name} from",
                fix="infer(posterior, stars).table() gives labels",
            )  # fmt: skip
        model.check(stars)
        u, spread = self._latents(stars, given)
        phi = np.asarray(model.features(jnp.asarray(u)))
        jacobian = np.asarray(model.features.jacobian(jnp.asarray(u)))
        if name != "flux":
            at, frame = model.require_frame().columns(name), model.require_frame()
            c = moments.label_coefficients[at]
            mean = frame.centre[at] + frame.scale[at] * (phi @ c.T)
            own = np.einsum("mk,nkp,npq,njq,mj->nm", c, jacobian, spread, jacobian, c, optimize=True)
            system = moments.label_system_covariance[at][:, :, at]
            own += np.einsum("nk,mkmj,nj->nm", phi, system, phi, optimize=True)
            sd = np.sqrt(own * frame.scale[at] ** 2 + moments.label_scatter[at] ** 2)
            return (mean, sd) if with_error else mean
        theta = moments.coefficients
        mean = phi @ theta.T
        if not with_error:
            return mean
        of_phi = np.einsum("nkp,npq,njq->nkj", jacobian, spread, jacobian, optimize=True)
        second = (phi[:, :, None] * phi[:, None, :] + of_phi).reshape(len(phi), -1)
        variance = second @ moments.coefficient_covariance.reshape(len(theta), -1).T
        variance += of_phi.reshape(len(phi), -1) @ (theta[:, :, None] * theta[:, None, :]).reshape(len(theta), -1).T
        return mean, np.sqrt(variance + moments.scatter**2)

    def _latents(self, stars: Stars, given: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Latents (N, P) and covariance (N, P, P) of stars by the blocks `given`."""
        model = self.model
        if model.labels_are_latent:
            catalogue = model.catalogue(stars)
            u = np.where(catalogue.observed.all(1, keepdims=True), catalogue.value, np.nan)
            return u, np.zeros(catalogue.covariance.shape)
        part = stars.drop(*[block for block in stars.blocks if block not in given])
        modes = prepare(model, self.moments, part, 0, 1).modes
        u, spread = np.array(modes.location[0]), np.array(modes.covariance[0])
        blank = ~np.any([part[block].observed.any(1) for block in given], 0)
        u[blank] = np.nan
        return u, spread

    def summary(self) -> QTable:
        """One row per label: name, unit, tau, and mean and sd of the population of true labels, NaN if it is flat."""
        frame, moments = self.model.require_frame(), self.moments
        if not self.model.labels_are_latent:
            columns = {"label": list(frame.names), "unit": list(frame.units), "label_scatter": moments.label_scatter}
            return QTable(columns)
        learned = np.nan if self.model.fixed_population is not None else 1.0
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
    known = {name: trained[name].values for name in Moments._fields if name in trained}
    if "label_coefficients" not in known:  # a file of before labels could be outputs
        known["label_coefficients"] = np.zeros(known["label_system_covariance"].shape[:2])
    moments = Moments(**known)
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
