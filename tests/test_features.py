"""Features of one's own: a model of spectra that is linear in radial functions goes all the exact ways."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density

import bayeslabels as bl
from bayeslabels.kinds.spectra.quartic import prepare
from bayeslabels.numerics.features import Features, Monomials
from bayeslabels.numerics.linalg import in_float64, module_of, outer_pairs


@dataclasses.dataclass(frozen=True)
class Radial(Features):
    """1, the labels, and a Gaussian about each centre."""

    centres: tuple[tuple[float, ...], ...]
    width: float = 1.0

    @property
    def size(self) -> int:
        return 1 + self.n_label + len(self.centres)

    @property
    def n_label(self) -> int:
        return len(self.centres[0])

    def names(self, labels):
        return ("1", *labels, *(f"about_{i}" for i in range(len(self.centres))))

    def __call__(self, u):
        xp = module_of(u)
        off = (u[..., None, :] - np.array(self.centres)) / self.width
        return xp.concatenate([xp.ones_like(u[..., :1]), u, xp.exp(-0.5 * (off**2).sum(-1))], -1)

    def jacobian(self, u):
        xp = module_of(u)
        off = (u[..., None, :] - np.array(self.centres)) / self.width
        bump = xp.exp(-0.5 * (off**2).sum(-1))
        zero = xp.zeros_like(u[..., None, :])
        eye = xp.eye(self.n_label) + 0 * u[..., None]
        return xp.concatenate([zero, eye, -bump[..., None] * off / self.width], -2)


GRID = Radial(tuple(itertools.product((-1.5, -0.5, 0.5, 1.5), repeat=2)))


@dataclasses.dataclass(frozen=True)
class RadialCannon(bl.Cannon):
    """A Cannon whose flux is linear in radial functions of two labels."""

    order: int = 1

    @property
    def features(self):
        return GRID


def survey(n, seed, label_noise=0.0):
    """Spectra that are linear in the radial functions and no polynomial of low order."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(-1.8, 1.8, (n, 2))
    theta = np.random.default_rng(0).normal(size=(60, GRID.size)) * 0.05
    flux = 1 + GRID(u) @ theta.T + 0.01 * rng.normal(size=(n, 60))
    labels = bl.Block(u + label_noise * rng.normal(size=u.shape), label_noise or None, names=("A", "B"))
    return bl.Stars(labels=labels, flux=bl.Block(flux, 0.01 * np.ones_like(flux))), u


@pytest.mark.parametrize("features", [GRID, Monomials.up_to(3, 2)], ids=["radial", "monomials"])
@in_float64
def test_derivatives(features):
    u = np.random.default_rng(1).normal(size=(5, 2))
    jacobian, hessian = jax.jit(jax.vmap(lambda u: (jax.jacfwd(features)(u), jax.hessian(features)(u))))(u)
    np.testing.assert_allclose(features.jacobian(u), jacobian, atol=1e-12)
    np.testing.assert_allclose(features.hessian(u), hessian, atol=1e-12)
    assert features(u).shape == (5, features.size)
    assert features.jacobian(u).shape == (5, features.size, 2)


def test_an_affine_map_of_the_labels_is_one_of_closed_features():
    features, rng = Monomials.up_to(2, 2), np.random.default_rng(2)
    assert features.closed
    assert not Monomials(((0, 0), (1, 0), (0, 1), (2, 0))).closed
    assert not GRID.closed
    scale = np.array([1.3, 1.0])
    nodes = rng.normal(size=(40, 2))
    transform = np.linalg.lstsq(features(nodes), features(nodes * scale), rcond=None)[0].T
    expected = np.log(1.3) * features.powers[0]
    assert np.log(abs(np.linalg.det(transform))) == pytest.approx(expected, rel=1e-6)


def spread_of(model, label_noise):
    train, _ = survey(250, 0, label_noise)
    test, truth = survey(300, 1)
    posterior = bl.fit(model, train, seed=0, progress=False)
    result = bl.infer(posterior, test.drop("labels"), seed=0, progress=False)
    return ((result.mean - truth) / result.error).std(0)


def test_errors_hold_where_those_of_a_polynomial_do_not():
    assert (np.abs(spread_of(RadialCannon(label_noise=False), 0.0) - 1) < 0.2).all()
    assert (spread_of(bl.Cannon(order=2, label_noise=False), 0.0) > 1.3).all()


def test_noisy_labels_are_integrated_over():
    """The error of the label system, which all stars share, is less than the stars' own."""
    assert (np.abs(spread_of(RadialCannon(label_noise="joint"), 0.02) - 1) < 0.25).all()


@in_float64
def test_the_compressed_density_is_the_programs():
    train, _ = survey(60, 2)
    model = RadialCannon(order=2, label_noise=False, coefficient_prior=bl.priors.Normal()).bind(train)
    posterior = bl.fit(model, train, bl.MAP(), progress=False)
    moments = posterior.moments._replace(coefficient_covariance=0 * posterior.moments.coefficient_covariance)
    star = train[3].drop("labels")
    problem = prepare(model, moments, star, 0, 4)
    u = np.array([[0.2, -0.4], [1.0, 0.7]])
    own = jax.tree.map(lambda x: jnp.asarray(x)[0], problem.own)
    ours = jax.jit(problem.energy)(u, problem.shared, own)
    sites = {"coefficients": moments.coefficients, "scatter": moments.scatter}
    frame = model.require_frame()

    def density(x):
        return -log_density(model, (star,), {}, {**sites, "u": x[None], "labels": frame.physical(x[None])})[0]

    theirs = jax.jit(jax.vmap(density))(u)
    np.testing.assert_allclose(ours[1] - ours[0], theirs[1] - theirs[0], rtol=1e-6)


@pytest.mark.parametrize("features", [Monomials.up_to(2, 3), Monomials.up_to(3, 2), Radial(((0.0, 1.0), (1.0, 0.0)))])
def test_sums_need_each_product_of_features_once(features):
    u = np.random.default_rng(0).normal(size=(50, features.n_label))
    every = outer_pairs(np.asarray(features(u)))
    places, which = features.products
    np.testing.assert_allclose(every[:, places][:, which], every, rtol=1e-12)
    if isinstance(features, Monomials):
        assert len(places) == Monomials.up_to(2 * features.order, features.n_label).size < len(which)
    else:
        assert len(places) == len(which)
