"""Label surveys and catalogues of parallaxes: densities by hand, recovery, calibration, names that are missing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy.stats import binom, chi2, multivariate_normal, norm

import bayeslabels as bl
from bayeslabels import tables
from bayeslabels.core.program import Program
from bayeslabels.errors import BadInput
from bayeslabels.inference import polish
from bayeslabels.inference.minibatch import transforms
from bayeslabels.kind import kind_of
from bayeslabels.kinds.photometry import systems
from bayeslabels.kinds.photometry.density import LabelEnergy
from bayeslabels.kinds.photometry.stars import SHARED, _rows_of, moments_of, shared_of
from bayeslabels.simulate import simulate_photometry

pytestmark = pytest.mark.long

BANDS, N = ("G", "RP", "Ks"), 360
MODEL = bl.Photometry(
    function="polynomial", order=1, members=1, components=1, outliers=False,
    distance_prior=bl.priors.ExponentialDisk(0.6),
)  # fmt: skip
DELTA, ZERO, FACTOR = np.array([[0.05, 0.26, 0.3]]), np.array([-0.05, -0.02]), np.array([1.08, 1.05])
"""0.29 dex in log g, 0.1 dex in [Fe/H]; of Gaia DR2, and of DR3."""


def named(stars):
    """A third of the labels are of another survey; parallaxes are of DR2, DR3 and of no named catalogue."""
    survey = np.where(np.arange(len(stars)) % 3 == 1, "galah", "apogee")
    system = np.array(["gaia_dr2", "gaia_dr3", ""])[np.arange(len(stars)) // 2 % 3]
    return stars.with_block(survey=bl.Block.of_names(survey), parallax_system=bl.Block.of_names(system))


def theta_of(model):
    start = model.start(None, 0)
    start["reddening_bend"] = np.zeros(len(BANDS))
    start["weights"] = 0.1 * np.random.default_rng(0).standard_normal(start["weights"].shape)
    return start | {"survey_offset": DELTA, "catalogue_zero_point": ZERO, "catalogue_error_factor": FACTOR}


@pytest.fixture(scope="module")
def template():
    return named(simulate_photometry(N, BANDS, seed=1, length=0.6)[0])


@pytest.fixture(scope="module")
def bound(template):
    return MODEL.bind(template)


@pytest.fixture(scope="module")
def survey(template, bound):
    """Stars of the program, at `theta_of`."""
    with jax.enable_x64(True):
        program = Program(bound, template)
        sites = jax.jit(program.simulate)(jax.random.key(3), {k: jnp.asarray(x) for k, x in theta_of(bound).items()})
        return program.stars({k: np.asarray(x) for k, x in sites.items()})


@pytest.fixture(scope="module")
def posterior(survey):
    return bl.fit(MODEL, survey, bl.MAP(max_iterations=20), seed=0, progress=False)


def of_star(bound, theta, stars, n):
    """By hand: which population, offset, zero point and error factor a star has."""
    frame = bound.frame
    second = stars.survey.value[n, stars.survey.names.index("galah")] == 1
    mean, cov = frame.population[1][int(second)], frame.population[2][int(second)]
    catalogue = np.flatnonzero(stars.parallax_system.value[n] == 1)
    zero, factor = (ZERO[catalogue[0]], FACTOR[catalogue[0]]) if len(catalogue) else (theta["zero_point"], 1.0)
    delta = DELTA[0] if second else np.zeros(3)
    u = (stars.labels.value[n] - frame.centre) / frame.scale
    return mean, cov, delta, zero, factor * stars.parallax.error[n, 0], u, stars.labels.error[n] / frame.scale


def test_frame_has_the_surveys(bound, template):
    frame = bound.frame
    assert frame.surveys == ("apogee", "galah")  # the most numerous is the reference
    assert frame.catalogues == ("gaia_dr2", "gaia_dr3")
    assert frame.component_survey.tolist() == [0, 1]
    np.testing.assert_allclose(frame.population[0], [2 / 3, 1 / 3])


def test_program_and_collapsed_density_are_those_by_hand(bound, survey):
    """The program at given latents; and the density with labels integrated by hand, mu and E on a grid."""
    theta, stars = theta_of(bound), survey[:6]
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        base = np.asarray(bound.absolute(jnp.asarray(theta["weights"]), jnp.zeros((1, 3))))[0]
        slope = np.asarray(bound.absolute(jnp.asarray(theta["weights"]), jnp.eye(3))) - base
        ours = np.asarray(jax.jit(bound.log_likelihood)(theta, jax.tree.map(jnp.asarray, bound.arrays(stars))))
        latents = {"u": 0.3 * rng.standard_normal((6, 3)), "distance_modulus": rng.uniform(9, 11, 6),
                   "true_reddening": rng.uniform(0.05, 0.3, 6), "luminosity": np.zeros(6)}  # fmt: skip

        @jax.jit
        def of_stars(theta, latents):
            whole = log_density(bound, (stars,), {}, {**theta, **latents})[0]
            return whole - log_density(bound.parameters, (), {}, theta)[0]

        flat = of_stars(theta, latents)
        luminosity_of = jax.jit(bound.luminosity)
    vector, program = np.exp(theta["reddening_log"]), 0.0
    nodes, weights = np.polynomial.legendre.leggauss(160)
    grid_e, e_weight = 0.6 * (nodes + 1), 0.6 * weights
    scale = bound.frame.reddening_scale

    def of_distance(mu):
        d = 10 ** (0.2 * (mu - 10))
        return np.log(d**3 * np.exp(-d / 0.6) / (2 * 0.6**3) * np.log(10) / 5)

    for n in range(6):
        mean, cov, delta, zero, sigma, u, label_error = of_star(bound, theta, stars, n)
        seen, error = stars.magnitudes.observed[n], stars.magnitudes.error[n]
        e_0, e_error, w = stars.reddening.value[n, 0], stars.reddening.error[n, 0], stars.parallax.value[n, 0]
        mu, e, true = latents["distance_modulus"][n], latents["true_reddening"][n], latents["u"][n]
        sd = np.hypot(error, theta["scatter"])[seen]
        off = (stars.magnitudes.value[n] - base - true @ slope - mu - e * vector)[seen]
        program += multivariate_normal(mean - delta, cov).logpdf(true) + norm(0, sd).logpdf(off).sum()
        program += norm(true + delta, label_error).logpdf(u).sum() - np.log(bound.frame.scale).sum()
        program += norm(10 ** (0.2 * (10 - mu)) + zero, sigma).logpdf(w) + norm(e, e_error).logpdf(e_0)
        program += of_distance(mu) - e / scale - np.log(scale) + norm.logpdf(0.0)

        gain = cov @ np.linalg.inv(cov + np.diag(label_error**2))
        centre, spread = mean + gain @ (u - mean) - delta, cov - gain @ cov
        residual = (stars.magnitudes.value[n] - base - centre @ slope)[seen]
        at = np.mean(residual - max(e_0, 0.0) * vector[seen]) + 3 * nodes
        luminosity = float(luminosity_of(theta, centre))
        whole = np.diag(sd**2) + slope[:, seen].T @ spread @ slope[:, seen] + luminosity**2
        off = residual - at[:, None, None] - grid_e[:, None] * vector[seen]
        p = multivariate_normal(np.zeros(seen.sum()), whole).logpdf(off) + norm(grid_e, e_error).logpdf(e_0)
        p += (norm(10 ** (0.2 * (10 - at)) + zero, sigma).logpdf(w) + of_distance(at))[:, None]
        p += -grid_e / scale - np.log(scale)
        total = np.log((np.exp(p) * 3 * weights[:, None] * e_weight).sum())
        total += multivariate_normal(mean, cov + np.diag(label_error**2)).logpdf(u)
        np.testing.assert_allclose(ours[n], total, atol=0.02)
    np.testing.assert_allclose(flat, program, rtol=1e-6)


def test_the_test_step_has_what_the_program_has(bound, survey):
    """Of stars with labels: what is taken of the parallax, and the density of the labels, what stars share in both."""
    theta, stars = theta_of(bound), survey[:6]
    covariance = np.diag([0.05, 0.015, 0.01, 0.02, 0.03, 0.04]) ** 2
    covariance[4, 5] = covariance[5, 4] = 0.5 * 0.03 * 0.04
    moments = moments_of(bound, {k: np.asarray(x)[None, None] for k, x in theta.items()}, covariance)
    model = bound.replace(frame=systems.with_offsets(bound.frame, moments))
    with jax.enable_x64(True):
        rows, shared = _rows_of(model, moments, stars), shared_of(model, moments)
        energy = LabelEnergy(model.net, model.n_magnitude)
        u = 0.3 * np.random.default_rng(1).standard_normal((2, 3))
    for n in range(6):
        mean, cov, delta, zero, sigma, labels, error = of_star(bound, theta, stars, n)
        second = stars.survey.value[n, 1] == 1
        number = 1 + [*stars.parallax_system.value[n], 1.0].index(1.0) if stars.parallax_system.observed[n, 0] else 0
        others, own = rows["others"], {k: rows[k][n] for k in ("labels", "precision", "among")}
        np.testing.assert_allclose(others.parallax[n], stars.parallax.value[n, 0] - zero, rtol=1e-10)
        np.testing.assert_allclose(others.parallax_weight[n] ** -2, sigma**2 + covariance[number, number], rtol=1e-9)
        noise = np.diag(error**2) + second * covariance[3:, 3:]

        class Own:
            labels, label_precision, among = (jnp.asarray(own[k]) for k in ("labels", "precision", "among"))

        with jax.enable_x64(True):
            got = np.asarray(energy.log_prior(jnp.asarray(u), jnp.zeros((2, 3)), shared, Own))
        expected = [
            multivariate_normal(mean - delta, cov).logpdf(x) + multivariate_normal(x + delta, noise).logpdf(labels)
            for x in u
        ]
        np.testing.assert_allclose(got[1] - got[0], expected[1] - expected[0], rtol=1e-7)


def test_recovers_offset_and_zero_points(bound, posterior):
    """0.29 dex in log g, 0.1 dex in [Fe/H], -0.05 mas, as the sites and their covariance have them."""
    moments, frame = posterior.moments, posterior.model.frame
    error = np.sqrt(np.diag(moments.shared_covariance))
    delta = DELTA[0] * bound.frame.scale / frame.scale
    off = np.concatenate([moments.catalogue_zero_point - ZERO, moments.survey_offset[0] - delta])
    assert (np.abs(off / error[1:]) < 3.5).all()
    assert (error[1:3] < [0.011, 0.011]).all()  # the priors': 0.015
    assert (error[3:5] < 0.1).all()  # 0.3; [Fe/H] is not in these bands
    np.testing.assert_allclose(error[0], moments.zero_point_error)
    assert error[0] < 0.02
    np.testing.assert_allclose(moments.catalogue_error_factor, FACTOR, atol=0.25)
    np.testing.assert_allclose(frame.offsets, moments.survey_offset)
    told = kind_of(posterior.model).details(posterior)
    assert told[0].startswith("parallaxes of gaia_dr2: zero point -0.0")
    assert told[2].startswith("labels of galah less those of apogee: TEFF ")


def test_offsets_and_zero_points_hold_the_truth(template, bound):
    """Drawn from their priors, all else as it is: chi^2 of the posterior's Gaussian, over many simulations."""
    theta = theta_of(bound)
    fixed = {k: jnp.asarray(x, jnp.float32) for k, x in theta.items() if k not in systems.SITES}
    some = template[: polish.CHUNKS[0]]
    program, part = Program(bound, some), {k: ... for k in (*systems.SITES, "zero_point")}
    to_real = transforms(bound)
    polisher, found = polish.Polisher(bound, to_real, part), []
    draw = jax.jit(lambda key: program.simulate(key, {k: x for k, x in fixed.items() if k != "zero_point"}))
    with jax.enable_x64(False):
        for seed in range(24):
            sites = {k: np.asarray(x) for k, x in draw(jax.random.key(seed)).items()}
            data = bound.arrays(program.stars(sites))
            start = theta | {k: sites[k] for k in part}
            real = {k: to_real[k].inv(jnp.asarray(x, jnp.float32))[None] for k, x in start.items()}
            often = np.ones((1, len(some)))
            mode, slope = polisher(*next(polish._members(real, data, often)))
            assert slope < 0.3
            covariance = polish.covariance_of(polisher, {k: x[None] for k, x in mode.items()}, data, often, SHARED)
            off = np.concatenate([np.ravel(mode[k] - sites[k]) for k in SHARED])
            found.append([off @ np.linalg.solve(covariance, off), *(off / np.sqrt(np.diag(covariance)))])
    square, *z = np.array(found).T
    for level in (0.5, 0.9):
        low, high = binom.interval(0.999, len(square), level)
        assert low <= (square < chi2(len(z)).ppf(level)).sum() <= high
    assert np.abs(np.mean(z, 1)).max() < 3.7 / np.sqrt(len(square))


@pytest.fixture(scope="module")
def told(posterior, survey):
    return bl.infer(posterior, survey[:40], bl.Importance(draws=400, rescue=False), seed=0, progress=False)


def test_shared_error_is_what_moves_all_stars(posterior, survey, told):
    """Zero point and offset another sd away: means move by the shared error, as far as the priors are straight."""
    moments, stars = posterior.moments, survey[:40]
    shared = told.stars["error_shared"].values
    error = np.sqrt(np.diag(moments.shared_covariance))
    assert (shared < told.error).all()
    assert "distance_modulus_error_shared" in told.table().colnames
    moved = moments._replace(catalogue_zero_point=moments.catalogue_zero_point + error[1:3],
                             zero_point=moments.zero_point + error[0])  # fmt: skip
    infer = bl.Importance(draws=400, rescue=False)
    alike = bl.infer(posterior.with_moments(moved), stars, infer, seed=0, progress=False)
    named = stars.survey.value[:, 1] == 1
    change = np.abs(alike.mean - told.mean)[~named, 4]  # of the modulus, of stars that share nothing else
    large = shared[~named, 4] > 0.15 * told.error[~named, 4]
    assert large.sum() > 5
    np.testing.assert_allclose(np.median(change[large] / shared[~named, 4][large]), 1.0, atol=0.2)
    # log g of the other survey's stars, whose offset all have in common, beside others
    assert np.median(shared[named, 1]) > 1.5 * np.median(shared[~named, 1])


def test_shared_error_of_gaussians():
    """Prior N(0, P), two data with errors that are shared in part: gain times the shared sd, exactly."""
    rng = np.random.default_rng(0)
    p, sigma2, c = 0.5, 0.3, 0.2
    precision = 1 / p + 1 / (sigma2 + c)
    q = rng.standard_normal((40_000, 1, 1)) / np.sqrt(precision)
    none = np.zeros((1, 2, 2))
    covariance = none + np.diag([0.0, c])
    got = systems.shared_error(q, q, 1.0 + 0 * q[..., 0], np.zeros(1), np.full((1, 1, 1), 1 / (sigma2 + c)), covariance)
    np.testing.assert_allclose(got, [[p / (p + sigma2 + c) * np.sqrt(c)]], rtol=0.03)
    covariance = none + np.diag([c, 0.0])
    weight = np.full(1, (sigma2 + c) ** -0.5)
    got = systems.shared_error(q, q, 1.0 + q[..., 0], weight, np.zeros((1, 1, 1)), covariance)
    np.testing.assert_allclose(got, [[p / (p + sigma2 + c) * np.sqrt(c)]], rtol=0.03)


def test_names_that_are_missing_or_unknown(bound, posterior, survey, told):
    infer = bl.Importance(draws=400, rescue=False)
    stars = survey[:40]
    unnamed = bl.infer(posterior, stars.drop("survey", "parallax_system"), infer, seed=0, progress=False)
    without = stars.with_block(survey=bl.Block.of_names([""] * 40), parallax_system=bl.Block.of_names([""] * 40))
    blank = bl.infer(posterior, without, infer, seed=0, progress=False)
    np.testing.assert_array_equal(unnamed.mean, blank.mean)
    second = stars.survey.value[:, 1] == 1
    ratio = (unnamed.mean - told.mean)[second, 1] / (DELTA[0, 1] * bound.frame.scale[1])
    assert 0.2 < np.median(ratio) < 1.0  # log g as that survey has it, but for what the magnitudes say
    # a catalogue that training did not have has its published zero point
    later = stars.with_block(parallax_system=bl.Block.of_names(["gaia_dr3_corrected"] * 40))
    model, moments = systems.extended(posterior.model, posterior.moments, later)
    of = systems.common(model, moments, later)
    np.testing.assert_allclose([of.zero_point[0], of.factor[0], of.covariance[0, 0, 0]], [0.0, 1.05, 0.01**2])
    np.testing.assert_allclose(of.covariance[1, 1:, 1:], posterior.moments.shared_covariance[3:, 3:])
    with pytest.raises(BadInput, match="labels of the survey lamost"):
        bl.infer(posterior, stars.with_block(survey=bl.Block.of_names(["lamost"] * 40)), infer)
    with pytest.raises(BadInput, match="parallaxes of hipparcos"):
        bl.infer(posterior, stars.with_block(parallax_system=bl.Block.of_names(["hipparcos"] * 40)), infer)
    with pytest.raises(BadInput, match="a block survey of numbers"):
        posterior.model.check(stars.with_block(survey=bl.Block(np.ones(40))))
    with pytest.raises(BadInput, match="training stars with labels of no survey"):
        MODEL.bind(survey.with_block(survey=bl.Block.of_names(["", "a", "b"] * 120)))
    with pytest.raises(BadInput, match="1 training stars of galah"):
        MODEL.bind(survey.with_block(survey=bl.Block.of_names(["galah"] + ["apogee"] * 359)))


def test_names_in_tables_and_files(posterior, survey, tmp_path):
    some = survey[:9]
    for name in ("stars.fits", "stars.ecsv", "stars.parquet"):
        table = tables.read_table(tables.write_table(some.to_table(), tmp_path / name))
        assert list(np.char.strip(np.ma.filled(table["survey"], "").astype(str)))[:2] == ["apogee", "galah"]
        columns = {"labels": ("TEFF", "LOGG", "FE_H"), "survey": "survey", "parallax_system": "parallax_system"}
        back = bl.Stars.from_table(table, **columns)
        for block in ("survey", "parallax_system"):
            assert back[block].names == some[block].names
            np.testing.assert_array_equal(back[block].value, some[block].value)
    again = bl.Stars.from_table(some.to_table())
    np.testing.assert_array_equal(again["survey"].value, some["survey"].value)
    with pytest.raises(BadInput, match="which holds no texts"):
        bl.Stars.from_table({"survey": np.arange(3.0)}, survey="survey")
    with pytest.raises(BadInput, match="names that are no texts"):
        bl.Block.of_names(np.arange(3))
    loaded = bl.load(posterior.save(tmp_path / "model.nc"))
    assert loaded.model.frame.surveys == posterior.model.frame.surveys
    np.testing.assert_array_equal(loaded.moments.shared_covariance, posterior.moments.shared_covariance)
    np.testing.assert_array_equal(loaded.model.frame.mixture.mean, posterior.model.frame.mixture.mean)
