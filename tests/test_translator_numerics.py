"""The numbers behind the translator: densities with gaps, propagated moments, Shapley values, occupied cells."""

from __future__ import annotations

from itertools import permutations
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from scipy.stats import t as student

from bayeslabels.numerics import occupancy
from bayeslabels.numerics.propagate import LN_PRECISIONS, log_normal, propagate, scale_mixture
from bayeslabels.numerics.shapley import shapley_values


def test_log_normal_is_scipys_without_the_missing():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(20, 4, 4))
    covariance, offset, observed = (
        root @ root.swapaxes(1, 2) + np.eye(4),
        rng.normal(size=(20, 4)),
        rng.random((20, 4)) > 0.3,
    )
    with jax.enable_x64(True):
        found = log_normal(jnp.asarray(offset), jnp.asarray(covariance), jnp.asarray(observed))
    for n in range(20):
        at = np.flatnonzero(observed[n])
        want = (
            multivariate_normal(np.zeros(len(at)), covariance[n][np.ix_(at, at)]).logpdf(offset[n, at])
            if len(at)
            else 0
        )
        np.testing.assert_allclose(found[n], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("freedom", [2.5, 5.0, 15.0])
def test_the_scale_mixture_is_a_student_t(freedom):
    with jax.enable_x64(True):
        log_weight, precision = scale_mixture(jnp.array(freedom))
    x = np.linspace(0, 5, 30)
    density = (np.exp(log_weight) * np.sqrt(precision / (2 * np.pi)) * np.exp(-0.5 * precision * x[:, None] ** 2)).sum(
        1
    )
    np.testing.assert_allclose(density, student(freedom).pdf(x), rtol=0.03)
    assert 0.0 in LN_PRECISIONS


def test_moments_of_a_quadratic_are_exact():
    rng = np.random.default_rng(1)
    mean, root = rng.normal(size=(5, 2)), rng.normal(size=(5, 2, 2)) * [[1.0, 0.0], [0.0, 1.0]]
    with jax.enable_x64(True):
        f = lambda x: jnp.stack([x[..., 0] ** 2 + x[..., 1], 3 * x[..., 0] - x[..., 1] ** 2], -1)  # noqa: E731
        centre, covariance = propagate(f, jnp.asarray(mean), jnp.asarray(root))
        assert propagate(f, jnp.asarray(mean), jnp.zeros((5, 2, 0)))[1].max() == 0
    draws = mean[:, None] + rng.standard_normal((5, 400_000, 2)) @ root.swapaxes(1, 2)
    values = np.asarray(f(draws))
    np.testing.assert_allclose(centre, values.mean(1), atol=0.05)
    want = np.einsum("nsi,nsj->nij", values - values.mean(1)[:, None], values - values.mean(1)[:, None]) / 400_000
    np.testing.assert_allclose(covariance, want, rtol=0.05, atol=0.1)


def test_shapley_values_by_enumeration():
    rng = np.random.default_rng(2)
    f = lambda x: np.stack([np.sin(x[:, 0] * x[:, 1]) + x[:, 2] ** 2, x[:, 3] * x[:, 0]], 1)  # noqa: E731
    x, background = rng.normal(size=(3, 4)), rng.normal(size=(6, 4))
    values = shapley_values(f, x, background)
    np.testing.assert_allclose(values.sum(-1), f(x) - f(background).mean(0), atol=1e-12)

    def known(star, chosen):
        mixed = background.copy()
        mixed[:, list(chosen)] = star[list(chosen)]
        return f(mixed).mean(0)

    for n in range(3):
        want = np.zeros((2, 4))
        for order in permutations(range(4)):
            for i, j in enumerate(order):
                want[:, j] += (known(x[n], order[: i + 1]) - known(x[n], order[:i])) / factorial(4)
        np.testing.assert_allclose(values[n], want, atol=1e-12)


def test_occupancy_by_hand():
    """Stars on a diagonal of ten cells, two in each: the cells beside the diagonal are inside, the next are not."""
    corner = np.repeat(np.arange(10) / 10, 2)
    x = np.column_stack([corner, corner]) + 0.05
    x = np.r_[x, [[0.0, 0.0], [1.0, 1.0], [np.nan, 0.5]]]
    where = occupancy.learn(x, 10)
    assert where.counts.shape == (1, 10, 10)
    assert where.counts.sum() == 22
    probe = np.array([[0.35, 0.35], [0.35, 0.45], [0.35, 0.65], [1.05, 0.95], [1.15, 0.95], [5.0, 5.0], [np.nan, 0.5]])
    np.testing.assert_array_equal(where.outside(probe)[:, 0], [False, False, True, False, True, True, False])
    np.testing.assert_array_equal(where.outside(probe, 3)[:, 0], [False, False, True, False, True, True, False])
    np.testing.assert_array_equal(where.outside(probe, 8)[:, 0], [True, True, True, True, True, True, False])


@pytest.mark.parametrize(("n", "d"), [(150, 3), (1000, 12), (20_000, 3)])
def test_honest_stars_are_inside_whatever_their_number(n, d):
    """Of stars of the same population at most 3 per cent are outside, of those moved far all."""
    rng = np.random.default_rng(n)
    root = rng.normal(size=(d, d)) / np.sqrt(d) + np.eye(d)
    x = rng.standard_t(5, size=(2 * n, d)) @ root
    where = occupancy.learn(x[:n])
    assert where.outside(x[n:]).any(1).mean() < 0.03
    moved = x[n:] + 12 * x[:n].std(0) * np.where(rng.random((n, d)) < 0.5, -1, 1)
    assert where.outside(moved).any(1).all()
    assert where.counts.shape[-1] == (30 if n > 10_000 else where.counts.shape[-1])
