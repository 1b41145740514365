"""Moments of the training posterior from its draws, for inferences that sample it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ...data.stars import Stars
from ...numerics.linalg import in_float64
from ...numerics.mixture import Mixture
from ...numerics.population import total
from .model import LinearModel
from .moments import Moments


@in_float64
def moments_from_draws(model: LinearModel, stars: Stars, draws: dict[str, np.ndarray]) -> Moments:
    """What the test step integrates over, from draws {site: (chain, draw, ...)} of a linear model.

    The uncertainty of the label system is the part of the labels' draws that is a common function g . phi(u) of the
    labels: regressed out draw by draw. Of a population that is a mixture, its mean and covariance.
    """
    frame, names, features = model.require_frame(), model.sites, model.features
    flat = {name: np.asarray(x, float).reshape(-1, *x.shape[2:]) for name, x in draws.items()}
    if not model.labels_are_latent:
        flat = _aligned(flat, model)
    theta = flat[names["coefficients"]] * model.allowed()
    n_draw, m, p = len(theta), len(frame.names), features.n_label
    mean = theta.mean(0)
    covariance = np.einsum("dlj,dlk->ljk", theta - mean, theta - mean, optimize=True) / max(n_draw - 1, 1)
    fixed = model.scatter_prior
    scatter = fixed if isinstance(fixed, np.ndarray) else np.sqrt((flat["scatter"] ** 2).mean(0))
    tau = np.sqrt((flat["label_scatter"] ** 2).mean(0)) if "label_scatter" in flat else np.zeros(m)
    u = (
        flat[names["latents"]].mean(0)
        if names["latents"] in flat
        else np.asarray(model.of_latents(model.catalogue(stars)).value)
    )
    curved = "label_curve" in flat
    psi = model.label_features
    coefficients, g = np.zeros((m, psi.size)), None
    if curved:
        coefficients = flat["label_curve"].mean(0)
        phi = psi(u)
        off = frame.scaled(flat["true_labels"]) - (u + phi @ coefficients.T)
        g = np.linalg.lstsq(phi, np.moveaxis(off, 1, 0).reshape(len(u), -1), rcond=None)[0]
        g = np.moveaxis(g.reshape(-1, n_draw, m), 0, 2)
    elif not model.labels_are_latent:
        g = flat[names["label_coefficients"]]
        coefficients = g.mean(0)
        g = g - coefficients
    elif model.integrates_labels and names["latents"] in flat:
        phi = features(u)
        g = np.linalg.lstsq(phi, np.moveaxis(flat[names["latents"]] - u, 1, 0).reshape(len(u), -1), rcond=None)[0]
        g = np.moveaxis(g.reshape(-1, n_draw, m), 0, 2)
    system = np.zeros((m, psi.size, m, psi.size))
    if g is not None:
        system = np.einsum("dmk,dnl->mknl", g, g, optimize=True) / max(n_draw - 1, 1)
    if model.fixed_population is not None:
        population = model.fixed_population
    else:
        weight = flat.get("population_weight", np.ones((n_draw, 1)))
        centres, spreads = (flat[f"population_{what}"] for what in ("mean", "covariance"))
        mixtures = map(Mixture, weight, centres.reshape(n_draw, -1, p), spreads.reshape(n_draw, -1, p, p))
        population = tuple(np.mean(x, 0) for x in zip(*map(total, mixtures), strict=True))
    factor = None
    if model.flux_error_factor == "survey":
        factor = np.sqrt((flat["flux_error_factor"] ** 2).mean(keepdims=True))
    return Moments(
        mean, covariance, scatter, tau, *population, coefficients, system, u, flux_error_factor=factor
    )  # fmt: skip


def _aligned(flat: dict[str, np.ndarray], model: LinearModel) -> dict[str, np.ndarray]:
    """Draws of latents and coefficients in one system of latents, of mean 0 and variance I.

    They are defined up to a rotation only, and a system that wanders by more is undone by coefficients that wander with
    it: the latents of every draw are taken onto their mean over draws by the best affine map, which stays near a
    rotation in directions that the draws do not agree on.
    """
    names, features = model.sites, model.features
    z = flat[names["latents"]]
    target = z[-1]
    for _ in range(3):
        target = np.mean([draw @ _rotation(draw, target) for draw in z], 0)
    constant = bool(np.asarray(features(jnp.zeros(z.shape[2]))).any())
    ones = np.ones((*z.shape[:2], 1 if constant else 0))
    phi = np.concatenate([ones, z], 2)
    goal = np.concatenate([ones[0], target], 1)
    loose = np.mean([((x @ _rotation(x, target) - target) ** 2).sum(0) for x in z], 0)
    keep = np.diag(np.concatenate([np.zeros(ones.shape[2]), loose]))
    maps = np.empty((len(z), *keep.shape))
    for out, draw, x in zip(maps, z, phi, strict=True):
        turn = np.eye(len(keep))
        turn[-z.shape[2] :, -z.shape[2] :] = _rotation(draw, target)
        turned = x @ turn
        out[:] = turn @ np.linalg.solve(turned.T @ turned + keep, turned.T @ goal + keep)
    moved = phi @ maps
    gram = np.einsum("dnj,dnk->jk", moved, moved) / moved[..., 0].size
    whiten = np.eye(len(gram))
    if constant:
        whiten[0, 1:] = -gram[0, 1:]
        gram = whiten.T @ gram @ whiten
    own = slice(1, None) if constant else slice(None)
    whiten[:, own] = whiten[:, own] @ np.linalg.inv(np.linalg.cholesky(gram[own, own])).T
    maps = maps @ whiten
    back = np.swapaxes(np.linalg.inv(maps), 1, 2)
    out = dict(flat)
    out[names["latents"]] = (phi @ maps)[..., own]
    for site in (names["coefficients"], names["label_coefficients"]):
        out[site] = flat[site] @ back
    return out


def _rotation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The orthogonal matrix that takes a (N, P) nearest to b."""
    left, _, right = np.linalg.svd(a.T @ b)
    return left @ right
