"""Populations of labels that are no Gaussian: mixtures, by the definition, by simulation, and in the Cannon."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.infer.util import log_density
from scipy import stats as distributions

import bayeslabels as bl
from bayeslabels.data.batches import RowsInMemory
from bayeslabels.errors import BadInput, CannotDo
from bayeslabels.inference.passes import by_sweeps
from bayeslabels.kinds.spectra.em import by_em
from bayeslabels.kinds.spectra.label_map import label_map
from bayeslabels.kinds.spectra.quartic import prepare
from bayeslabels.kinds.spectra.sums import SpectraBySums
from bayeslabels.numerics.linalg import in_float64
from bayeslabels.numerics.mixture import Mixture
from bayeslabels.numerics.modes import Modes
from bayeslabels.numerics.population import choose, conditioned, gaussian, log_ratio, modes_given, moved, total

TWO = Mixture(
    np.array([0.3, 0.7]),
    np.array([[1.0, -0.5], [-0.4, 0.3]]),
    np.array([[[0.2, 0.05], [0.05, 0.1]], [[0.5, -0.2], [-0.2, 0.4]]]),
)
GRID = np.stack(np.meshgrid(*[np.linspace(-5, 5, 801)] * 2, indexing="ij"), -1).reshape(-1, 2)


def density(mixture: Mixture, u: np.ndarray) -> np.ndarray:
    parts = zip(*mixture, strict=True)
    return np.sum([w * distributions.multivariate_normal(m, v).pdf(u) for w, m, v in parts], 0)


def test_a_posterior_under_the_mixture_is_that_of_quadrature():
    whole = gaussian(*total(TWO))
    data, noise = np.array([0.6, -0.3]), np.array([[0.1, 0.02], [0.02, 0.2]])
    precision = np.linalg.inv(noise) + np.linalg.inv(whole.covariance[0])
    covariance = np.linalg.inv(precision)
    mean = covariance @ (np.linalg.solve(noise, data) + np.linalg.solve(whole.covariance[0], whole.mean[0]))
    given = conditioned(TWO, mean[None], covariance[None])
    likelihood = distributions.multivariate_normal(data, noise).pdf(GRID)
    weight = likelihood * density(TWO, GRID)
    moments = np.average(GRID, weights=weight, axis=0), np.cov(GRID.T, aweights=weight, ddof=0)
    np.testing.assert_allclose(given.moments()[0][0], moments[0], atol=1e-6)
    np.testing.assert_allclose(given.moments()[1][0], moments[1], atol=1e-6)
    ratio = np.log(weight.sum() / (likelihood * density(whole, GRID)).sum())
    assert given.log_density[0] == pytest.approx(ratio, abs=1e-6)
    # so are modes, and their weights
    apart = np.array([2.0, 2.0])
    modes = Modes(
        np.stack([mean, apart])[:, None], np.stack([covariance] * 2)[:, None], np.zeros((2, 1)), np.ones((2, 1), bool)
    )
    found, other = modes_given(TWO, modes), conditioned(TWO, apart[None], covariance[None]).log_density[0]
    np.testing.assert_allclose(found.location[0, 0], moments[0], atol=1e-6)
    assert np.log(found.weight[0, 0] / found.weight[1, 0]) == pytest.approx(ratio - other, abs=1e-6)
    # a star that lies beside a component and has no data at all is of the population
    blank = conditioned(TWO, whole.mean, whole.covariance)
    np.testing.assert_allclose(blank.weight[0], TWO.weight, atol=1e-12)
    assert blank.log_density[0] == pytest.approx(0.0, abs=1e-12)


@in_float64
def test_moves_and_ratios_of_densities():
    slope, offset = np.array([[1.2, 0.3], [-0.1, 0.8]]), np.array([0.5, -1.0])
    some = GRID[::9973]
    there = density(moved(TWO, slope, offset), some @ slope.T + offset) * abs(np.linalg.det(slope))
    np.testing.assert_allclose(there, density(TWO, some), rtol=1e-10)
    ratio = log_ratio(TWO)
    assert ratio is not None
    assert log_ratio(gaussian(*total(TWO))) is None
    found = np.asarray(ratio(jnp.asarray(some)))
    expected = np.log(density(TWO, some) / density(gaussian(*total(TWO)), some))
    np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_number_of_components_is_found(seed):
    rng, n = np.random.default_rng(seed), 600
    noise = np.diag([0.05, 0.03])

    def posteriors(u):
        x = u + rng.multivariate_normal(np.zeros(2), noise, n)
        own = np.cov(x.T) - noise
        covariance = np.linalg.inv(np.linalg.inv(noise) + np.linalg.inv(own))
        return (x @ np.linalg.inv(noise) + np.linalg.solve(own, x.mean(0))) @ covariance, np.tile(covariance, (n, 1, 1))

    one, _ = choose(*posteriors(rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], n)))
    assert len(one.weight) == 1
    first = rng.uniform(size=n) < 0.4
    u = np.where(first[:, None], [1.0, 1.0], [-0.7, 0.0]) + rng.standard_normal((n, 2)) * np.where(
        first[:, None], [0.2, 0.3], [0.5, 0.8]
    )
    two, leads = choose(*posteriors(u))
    assert len(two.weight) == 2
    assert leads[1] > 50
    order = np.argsort(two.mean[:, 0])
    np.testing.assert_allclose(two.weight[order], [0.6, 0.4], atol=0.06)
    np.testing.assert_allclose(two.mean[order], [[-0.7, 0.0], [1.0, 1.0]], atol=0.15)
    np.testing.assert_allclose(two.covariance[order][0], np.diag([0.25, 0.64]), atol=0.12)
    np.testing.assert_allclose(two.covariance[order][1], np.diag([0.04, 0.09]), atol=0.03)


def two_kinds(n: int, seed: int, n_pixel: int = 60) -> tuple[bl.Stars, bl.Stars, np.ndarray]:
    """Giants along a bent branch, and a clump beside it; spectra quadratic in the labels, which are noisy."""
    rng = np.random.default_rng(seed)
    total = 2 * n
    x = rng.uniform(-1.5, 1.5, total)
    clump = rng.uniform(size=total) < 0.3
    x = np.where(clump, 0.6 + 0.05 * rng.standard_normal(total), x)
    u = np.stack([x, 0.6 * x**2 - 0.5 + 0.5 * clump + 0.1 * rng.standard_normal(total)], 1)
    phi = np.stack([np.ones(total), *u.T, u[:, 0] ** 2, u[:, 0] * u[:, 1], u[:, 1] ** 2], 1)
    theta = np.random.default_rng(1).standard_normal((n_pixel, 6)) * [0.1, 0.05, 0.05, 0.02, 0.02, 0.02] + np.eye(6)[0]
    flux = phi @ theta.T + 0.05 * rng.standard_normal((total, n_pixel))
    labels = bl.Block(u + 0.3 * rng.standard_normal(u.shape), 0.3, names=("A", "B"))
    stars = bl.Stars(flux=bl.Block(flux, 0.05), labels=labels)
    return stars[:n], stars[n:].drop("labels"), u[n:]


def shared_bend(posterior: bl.Posterior, test: bl.Stars, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z (N, M), and the root mean square of the part of the errors that is a cubic of the labels."""
    result = bl.infer(posterior, test, bl.MAP(), progress=False)
    offset = result.mean - truth
    phi = label_map(posterior.model, posterior.moments).features((truth - truth.mean(0)) / truth.std(0))
    fitted = phi @ np.linalg.lstsq(phi, offset, rcond=None)[0]
    return offset / result.error, np.sqrt((fitted**2).mean(0))


def test_labels_of_a_bent_population_do_not_bend():
    z, bends = [], []
    for seed in range(4):
        train, test, truth = two_kinds(1500, seed)
        several = bl.fit(bl.Cannon(order=2, label_noise="joint"), train, progress=False)
        assert several.model.components > 1
        one = bl.fit(bl.Cannon(order=2, label_noise="joint", components=1), train, progress=False)
        found, bend = shared_bend(several, test, truth)
        z.append(found)
        bends.append([bend, shared_bend(one, test, truth)[1]])
    with_mixture, with_gaussian = np.mean(bends, 0)
    assert (with_mixture < 0.6 * with_gaussian).all(), (with_mixture, with_gaussian)
    spread = np.std(np.concatenate(z), axis=0)  # of 6000 stars, in four systems of labels
    assert (np.abs(spread - 1) < 0.1).all(), spread


@pytest.fixture(scope="module")
def trained():
    train, test, _ = two_kinds(200, 0, 30)
    return train, test[:20], bl.fit(bl.Cannon(order=1, label_noise="joint", components=2), train, progress=False)


@in_float64
def test_the_test_steps_energy_is_the_programs_density(trained):
    test, posterior = trained[0][:20], trained[2]
    moments = posterior.moments._replace(coefficient_covariance=0 * posterior.moments.coefficient_covariance)
    problem = prepare(posterior.model, moments, test, 0)
    sites = {name: jnp.asarray(x.values[0, 0]) for name, x in posterior.data["posterior"].data_vars.items()}
    given = {name: x for name, x in sites.items() if name not in ("u", "true_labels")}
    given["scatter"] = jnp.asarray(moments.scatter)
    program = numpyro.handlers.condition(posterior.model, given)
    at = np.random.default_rng(3).normal(size=(2, len(test), 2))
    energy = jax.vmap(problem.energy, (0, None, 0))(jnp.moveaxis(jnp.asarray(at), 1, 0), problem.shared, problem.own)
    densities = [float(log_density(program, (test,), {}, {"u": jnp.asarray(u)})[0]) for u in at]
    assert float(energy[:, 0].sum() - energy[:, 1].sum()) == pytest.approx(densities[1] - densities[0], rel=1e-8)


def test_new_stars_by_sampling_agree_with_the_moments(trained):
    _, test, posterior = trained
    fast = bl.infer(posterior, test, bl.MAP(), progress=False)
    exact = bl.infer(posterior, test, bl.NUTS(draws=1000, warmup=500, chains=2), seed=1, progress=False)
    weighted = bl.infer(posterior, test, bl.Importance(draws=2000), seed=1, progress=False)
    for other in (exact, weighted):
        assert np.abs((other.mean - fast.mean) / fast.error).max() < 0.2
        np.testing.assert_allclose(other.error / fast.error, 1.0, atol=0.15)


def test_passes_over_stars_end_where_training_in_memory_does(trained):
    train, test, posterior = trained
    bound = dataclasses.replace(posterior.model, frame=None).bind(train)
    with jax.enable_x64(True):
        memory = by_em(bound, train, bl.MAP(max_iterations=1000, tolerance=1e-5), 0, False)
        sums = SpectraBySums(bound, train, 1e-5)
        passes = by_sweeps(sums, RowsInMemory(bound, train, sample=train), 1000, False)
    assert memory.stats["converged"]
    assert passes.stats["converged"]
    a, b = (prepare(bound, x.moments, test, 0).modes for x in (memory, passes))
    spread = np.sqrt(np.einsum("nmm->nm", b.covariance[0]))
    np.testing.assert_allclose((a.location[0] - b.location[0]) / spread, 0.0, atol=0.02)
    ours, theirs = (total(x.moments.population)[1] for x in (memory, passes))
    np.testing.assert_allclose(ours, theirs, rtol=0.02)


def test_a_mixture_is_kept_in_the_file(trained, tmp_path):
    _, test, posterior = trained
    posterior.save(tmp_path / "model.h5")
    again = bl.load(tmp_path / "model.h5")
    assert again.model.components == 2
    assert len(again.moments.population.weight) == 2
    a, b = (bl.infer(p, test, bl.MAP(), progress=False) for p in (again, posterior))
    np.testing.assert_array_equal(a.mean, b.mean)


def test_what_cannot_be_done(trained):
    train, _, _ = trained
    for wrong in (0, 7, True, 1.5, "two"):
        with pytest.raises(BadInput, match="components"):
            bl.Cannon(components=wrong)
    for inference in (bl.Gibbs(), bl.NUTS()):
        with pytest.raises(CannotDo, match="components=1"):
            bl.fit(bl.Cannon(label_noise="joint", components=2), train, inference, progress=False)
    assert bl.fit(bl.Cannon(order=1, label_noise=False, components=2), train, progress=False).moments.population
