"""Spectrophotometric parallaxes end to end: recovery, calibration, gaps, outliers, k-fold training, files."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy.integrate import quad
from scipy.stats import norm

import bayeslabels as bl
from bayeslabels.errors import BadInput, CannotDo
from bayeslabels.inference.whitened import Whitened
from bayeslabels.kind import kind_of
from bayeslabels.kinds.parallax.start import start_of
from bayeslabels.results.star_posterior import Flags

BANDS = ("a", "b", "c")
ERROR = 0.03


class Case(NamedTuple):
    stars: bl.Stars
    true: np.ndarray
    theta: np.ndarray


def make(n=1200, seed=0, s=0.08, zero=-0.03, n_pixel=20, sigma=0.1) -> Case:
    """ln parallax linear in three correlated magnitudes and in two of n_pixel ln fluxes; noise on all of them."""
    rng = np.random.default_rng(seed)
    mag = 12 + rng.normal(size=(n, 1)) + 0.3 * rng.normal(size=(n, 3))
    ln_flux = 0.1 * rng.normal(size=(n, n_pixel)) - 0.2
    theta = np.zeros(4 + n_pixel)
    theta[:6] = [0.2, -0.7, 0.4, -0.1, 1.0, -1.5]
    eta = 0.2 + (mag - 12) @ theta[1:4] + (ln_flux + 0.2) @ theta[4:]
    true = np.exp(eta + s * rng.normal(size=n))
    flux = np.exp(ln_flux)
    blocks = {
        "magnitudes": bl.Block(mag + ERROR * rng.normal(size=mag.shape), ERROR, names=BANDS, unit="mag"),
        "flux": bl.Block(flux * (1 + 0.01 * rng.normal(size=flux.shape)), 0.01 * flux),
        "parallax": bl.Block(true + zero + sigma * rng.normal(size=n), sigma, unit="mas"),
    }
    return Case(bl.Stars(**blocks), true, theta)


@pytest.fixture(scope="module")
def case():
    return make()


@pytest.fixture(scope="module")
def posterior(case):
    return bl.fit(bl.Parallax(), case.stars[:600])


@pytest.fixture(scope="module")
def result(case, posterior):
    return bl.infer(posterior, case.stars[600:])


def z_of(result, true):
    return (np.log(true) - result.stars["ln_parallax"].values) / result.stars["ln_parallax_error"].values


def test_new_stars_are_calibrated(case, posterior, result):
    true = case.true[600:]
    z = z_of(result, true)
    assert 0.9 < z.std() < 1.1
    assert abs(z.mean()) < 0.35
    stars = result.stars
    for m, truth in ((0, true), (1, true), (2, 1 / true)):
        inside = (stars["p16"].values[:, m] < truth) & (truth < stars["p84"].values[:, m])
        assert abs(inside.mean() - 0.683) < 4 * np.sqrt(0.683 * 0.317 / 600)
    assert (result.error[:, 1] < 1.01 * result.error[:, 0]).all()
    m = posterior.moments
    assert abs(m.zero_point + 0.03) < 3.5 * m.zero_point_error
    assert abs(m.scatter - 0.08) < 0.03


def test_coefficients_are_told_per_feature(case, posterior):
    summary = posterior.summary()
    assert list(summary["feature"][:4]) == ["1", *BANDS]
    assert list(summary["unit"][:4]) == ["", "mag", "mag", "mag"]
    assert summary["feature"][4] == "ln flux 0"
    z = (summary["coefficient"] - case.theta)[4:] / summary["coefficient_error"][4:]
    assert np.abs(z).max() < 5  # the noise of the fluxes attenuates by one per cent


def test_draws_and_percentiles_agree(result):
    for m, name in enumerate(result.frame.names):
        draws = result.draws(name)
        off = (np.percentile(draws, 84.135, axis=0) - result.stars["p84"].values[:, m]) / result.error[:, m]
        assert np.abs(off).mean() < 0.1
        assert np.abs((draws.mean(0) - result.mean[:, m]) / result.error[:, m]).mean() < 0.06


def test_own_parallax_only_in_the_combination(case, posterior, result):
    alone = bl.infer(posterior, case.stars[600:].drop("parallax"))
    np.testing.assert_allclose(alone.mean[:, 0], result.mean[:, 0], rtol=1e-12)
    np.testing.assert_allclose(alone.mean[:, 1], alone.mean[:, 0], rtol=2e-3)
    assert (alone.mean[:, 1] != result.mean[:, 1]).all()


def test_k_fold_estimates_know_nothing_of_the_stars_own_astrometry(case):
    """Changing one star's parallax changes no estimate of its fold, its own included."""
    stars = case.stars  # each half of which has the shape of the other tests' training stars
    cv = bl.cross_validate(bl.Parallax(), stars, folds=2, seed=1)
    value = np.array(stars["parallax"].value)
    value[7] += 5.0
    other = bl.cross_validate(
        bl.Parallax(), stars.with_block(parallax=bl.Block(value, 0.1, unit="mas")), folds=2, seed=1
    )
    own = cv.fold == cv.fold[7]
    np.testing.assert_array_equal(cv.mean[own, 0], other.mean[own, 0])
    assert cv.mean[7, 1] != other.mean[7, 1]
    assert np.isfinite(cv.log_density).all()
    assert {"parallax_sp", "parallax_sp_p16", "distance", "distance_p84"} <= set(cv.table().colnames)


def test_missing_magnitudes_are_integrated_over(case, posterior, result):
    test = case.stars[600:].drop("parallax")
    value = np.array(test["magnitudes"].value)
    value[:200, 1] = np.nan
    value[200:400] = np.nan
    gaps = test.with_block(magnitudes=bl.Block(value, ERROR, names=BANDS, unit="mag"))
    seen = bl.infer(posterior, gaps)
    z, stated = z_of(seen, case.true[600:]), seen.stars["ln_parallax_error"].values
    before = result.stars["ln_parallax_error"].values
    for rows in (slice(0, 200), slice(200, 400)):
        assert 0.85 < z[rows].std() < 1.15
        assert ((seen.flags[rows] & Flags.MISSING_BAND) > 0).all()
        assert (stated[rows] > 1.1 * before[rows]).all()
    assert np.median(stated[200:400]) > np.median(stated[:200])
    np.testing.assert_allclose(seen.mean[400:, 0], result.mean[400:, 0], rtol=1e-12)
    assert not (seen.flags[400:] & Flags.MISSING_BAND).any()


def test_training_with_gaps(case):
    stars = case.stars[:600]
    rng = np.random.default_rng(3)
    value = np.array(stars["magnitudes"].value)
    value[rng.random(value.shape) < 0.1] = np.nan
    posterior = bl.fit(bl.Parallax(), stars.with_block(magnitudes=bl.Block(value, ERROR, names=BANDS, unit="mag")))
    z = z_of(bl.infer(posterior, case.stars[600:]), case.true[600:])
    assert 0.88 < z.std() < 1.12


def test_far_from_the_training_stars_is_flagged(case, posterior):
    test = case.stars[600:700]
    value = np.array(test["magnitudes"].value)
    value[0, 0] += 8
    flags = bl.infer(posterior, test.with_block(magnitudes=bl.Block(value, ERROR, names=BANDS, unit="mag"))).flags
    assert flags[0] & Flags.OUTSIDE_TRAINING
    assert ((flags[1:] & Flags.OUTSIDE_TRAINING) > 0).mean() < 0.02


def test_outliers(case):
    stars = case.stars[:600]
    value = np.array(stars["parallax"].value)
    value[:18] += 4.0
    dirty = stars.with_block(parallax=bl.Block(value, 0.1, unit="mas"))
    posterior = bl.fit(bl.Parallax(outliers=True), dirty)
    seen = bl.infer(posterior, dirty)
    wrong = (seen.flags & Flags.OUTLIER) > 0
    assert wrong[:18].all()
    assert wrong[18:].sum() < 6
    assert abs(posterior.moments.outlier_fraction - 0.03) < 0.015
    assert 0.88 < z_of(bl.infer(posterior, case.stars[600:]), case.true[600:]).std() < 1.12


def test_cuts_on_parallax_bias_and_negative_parallaxes_do_not():
    """A third of the stars at S/N < 1: the coefficients hold; cut to S/N > 1, they do not."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2500, 2))
    true = np.exp(-1.2 + x @ [-0.8, 0.4] + 0.05 * rng.normal(size=2500))
    error = np.full(2500, np.quantile(true, 0.3))
    y = true + error * rng.normal(size=2500)
    stars = bl.Stars(labels=bl.Block(x, names=("p", "q")), parallax=bl.Block(y, error, unit="mas"))
    model = bl.Parallax(features=("labels",), zero_point=(0.0, 0.0))
    z = {}
    for kept in (np.ones(2500, bool), y > error):
        summary = bl.fit(model, stars[kept]).summary()
        at_mean = np.array([-1.2 + x[kept].mean(0) @ [-0.8, 0.4], -0.8, 0.4])
        z[kept.all()] = np.abs(summary["coefficient"] - at_mean) / summary["coefficient_error"]
    assert (y < 0).sum() > 100
    assert z[True].max() < 3.5
    assert z[False].max() > 8


def test_exact_zeros_at_the_mode(case):
    """MAP, its penalty chosen by held-out density: uninformative pixels are exactly 0, error bars hold."""
    posterior = bl.fit(bl.Parallax(), case.stars[:600], bl.MAP())
    theta = posterior.moments.coefficients[4:]
    assert (theta[:2] != 0).all()
    assert (theta[2:] == 0).sum() >= 5
    assert posterior.info["n_zero"] == (theta == 0).sum()
    assert 0.88 < z_of(bl.infer(posterior, case.stars[600:]), case.true[600:]).std() < 1.12


def test_program_density(case):
    """ln p(parallax | sites) of the NumPyro program against the integral over the intrinsic scatter by quadrature."""
    model = bl.Parallax(features=("magnitudes",), zero_point=(0.0, 0.1)).bind(case.stars[:50])
    some = case.stars[:3]
    sites = {"wide": np.array([0.1, -0.6, 0.3, -0.1]), "scatter": np.array(0.1), "zero_point": np.array(-0.02)}
    with jax.enable_x64(True):
        total = jax.jit(lambda sites: log_density(model, (some,), {}, sites)[0])(sites)
        x = model.design(some).value
    frame = model.frame
    prior = norm.logpdf(sites["wide"], 0, 10).sum() + norm.logpdf(-0.02, 0, 0.1)
    prior += np.log(2) + norm.logpdf(0.1, 0, 1)
    s = np.sqrt(0.1**2 + ERROR**2 * (sites["wide"][1:] ** 2).sum())
    for n in range(3):
        eta, y = x[n] @ sites["wide"], some["parallax"].value[n, 0]
        prior += np.log(
            quad(lambda z: norm.pdf(y, np.exp(eta + s * z) - 0.02, 0.1) * norm.pdf(z), -9, 9, epsabs=1e-14)[0]  # noqa: B023
        )
    assert frame.names == ("1", *BANDS)
    assert float(total) == pytest.approx(prior, rel=1e-8)


def test_whitened_coordinates_keep_the_density(case):
    """Up to a constant: theta = centre + F z, whatever F."""
    stars = case.stars[:600]
    model = bl.Parallax().bind(stars)
    start = start_of(model, stars)
    program = Whitened(model, start)
    rng = np.random.default_rng(0)
    rest = {name: start.sites[name] for name in ("scatter", "global_scale")}
    offsets, some = [], stars[:50]

    @jax.jit
    def offset(z, own):
        white = log_density(program, (some,), {}, {**rest, "whitened": z})[0]
        return white - log_density(model, (some,), {}, {**rest, **own})[0]

    with jax.enable_x64(True):
        for _ in range(3):
            z = rng.normal(size=len(start.factor))
            offsets.append(float(offset(z, {name: np.asarray(x) for name, x in start.split(z).items()})))
        at_start = start.split(np.zeros(len(start.factor)))
    np.testing.assert_allclose(offsets, offsets[0], rtol=0, atol=1e-8)
    for name in start.names:
        np.testing.assert_allclose(at_start[name], start.sites[name])


@pytest.mark.parametrize(
    "inference",
    [pytest.param(x, marks=pytest.mark.slow) for x in (bl.NUTS(chains=2, draws=200, warmup=200), bl.SVI(steps=1500))],
    ids=lambda x: type(x).__name__,
)
def test_the_programs_posterior_is_that_of_laplace(case, posterior, inference):
    few = bl.fit(bl.Parallax(), case.stars[:600], inference, seed=1)
    ours, exact = posterior.moments, few.moments
    assert few.info["converged"]
    assert abs(ours.zero_point - exact.zero_point) < 0.5 * exact.zero_point_error
    assert ours.zero_point_error == pytest.approx(exact.zero_point_error, rel=0.25)
    assert ours.scatter == pytest.approx(exact.scatter, rel=0.1)
    test = case.stars[600:]
    a, b = (bl.infer(p, test, bl.MAP()).stars for p in (posterior, few))
    off = (a["ln_parallax"] - b["ln_parallax"]) / b["ln_parallax_error"]
    assert np.abs(off.values).max() < 0.3
    np.testing.assert_allclose(a["ln_parallax_error"], b["ln_parallax_error"], rtol=0.1)


@pytest.mark.slow
def test_svi_starts_as_wide_as_the_posterior(case, posterior):
    """From narrower it leaves the mode, and in thousands of coordinates it does not find back."""
    few = bl.fit(bl.Parallax(), case.stars[:600], bl.SVI(steps=50, draws=1000), seed=1)
    ours, exact = (p.summary()["coefficient_error"].value for p in (few, posterior))
    np.testing.assert_allclose(ours, exact, rtol=0.25)


@pytest.mark.slow
def test_start_of_many_coefficients_is_nearly_that_of_few(case, monkeypatch):
    """One normal matrix about the sparse mode gives what predictions need: means and sds of eta."""
    stars = case.stars[:600]
    model = bl.Parallax().bind(stars)
    exact = start_of(model, stars)
    monkeypatch.setattr("bayeslabels.kinds.parallax.start.DENSE", 0)
    rough = start_of(model, stars)
    assert rough.names == exact.names
    x = model.design(stars).value
    theta = [np.r_[start.sites["wide"], start.sites["sparse"]] for start in (rough, exact)]
    sd = [np.sqrt(((x @ start.factor[:-1]) ** 2).sum(1)) for start in (rough, exact)]
    assert np.abs(x @ (theta[0] - theta[1]) / sd[1]).mean() < 0.5
    np.testing.assert_allclose(sd[0], sd[1], rtol=0.2)
    assert rough.sites["global_scale"] == pytest.approx(exact.sites["global_scale"], rel=0.2)


def test_known_zero_points(case):
    """A block `zero_point` of the stars is taken off each star's parallax."""
    stars = case.stars[:600]
    rng = np.random.default_rng(2)
    known = 0.3 * rng.normal(size=600)
    moved = stars.with_block(
        parallax=bl.Block(stars["parallax"].value[:, 0] + known, 0.1, unit="mas"),
        zero_point=bl.Block(known, unit="mas"),
    )
    a, b = bl.fit(bl.Parallax(), stars), bl.fit(bl.Parallax(), moved)
    np.testing.assert_allclose(a.moments.coefficients, b.moments.coefficients, atol=1e-4)
    table = bl.infer(b, moved[:5]).table()
    np.testing.assert_allclose(table["zero_point"].to_value("mas"), b.moments.zero_point + known[:5])


def test_files(case, posterior, result, tmp_path):
    again = bl.load(posterior.save(tmp_path / "parallax.nc"))
    assert again.model == posterior.model
    same = bl.infer(again, case.stars[600:])
    for group in ("posterior", "stars"):
        assert same.data[group].to_dataset().identical(result.data[group].to_dataset())
    mean, error = again.predict(case.stars[600:], with_error=True)
    np.testing.assert_allclose(mean[:, 0], result.mean[:, 0])
    np.testing.assert_allclose(error[:, 0], result.error[:, 0])
    table = result.table()
    assert str(table["parallax_sp"].unit) == str(table["parallax_combined_error"].unit) == "mas"
    assert str(table["distance_p50"].unit) == "kpc"


def test_log_density_is_of_the_measured_parallax(case, posterior, result):
    density = kind_of(posterior.model).log_density(posterior, result, case.stars[600:])
    n, m = 5, posterior.moments
    eta, sd = (result.stars[x].values[n] for x in ("ln_parallax", "ln_parallax_error"))
    y, sigma = case.stars["parallax"].value[600 + n, 0], np.hypot(0.1, m.zero_point_error)
    expected = quad(
        lambda u: norm.pdf(y, np.exp(u) + m.zero_point, sigma) * norm.pdf(u, eta, sd), eta - 9 * sd, eta + 9 * sd
    )
    assert density[n] == pytest.approx(np.log(expected[0]), rel=1e-5)


def test_fluxes_on_another_grid_are_refused(case):
    """Whatever the coordinate is called; where either states none, nothing is known of it."""
    stars, n = case.stars[:40], case.stars["flux"].n_dim
    old, wavelength = stars["flux"], np.linspace(8000.0, 8900.0, n)

    def on(**coords):
        return stars.with_block(flux=bl.Block(old.value, old.error, coords=coords))

    model = bl.Parallax().bind(on(wavelength=wavelength))
    for same in (on(wavelength=wavelength), on(pixel=wavelength * (1 + 1e-9)), stars):
        model.check(same)
    bl.Parallax().bind(stars).check(on(wavelength=wavelength))
    for other in (wavelength / 1e4, wavelength[::-1], wavelength * 1.00028):
        with pytest.raises(BadInput, match="wavelength grid"):
            model.check(on(wavelength=other))


def test_refusals(case, posterior):
    with pytest.raises(BadInput, match="features"):
        bl.Parallax(features="magnitudes")
    with pytest.raises(BadInput, match="sparse"):
        bl.Parallax(features=("magnitudes",), sparse=("ln flux",))
    with pytest.raises(BadInput, match=r"scatter_distribution=0.1.*priors\.HalfNormal"):
        bl.Parallax(scatter_distribution=0.1)
    with pytest.raises(BadInput, match=r"'anything'.*priors\.Laplace"):
        bl.Parallax(coefficient_prior="anything")
    with pytest.raises(BadInput, match="block 'flux'"):
        bl.fit(bl.Parallax(), case.stars.drop("flux"))
    with pytest.raises(BadInput, match="without errors"):
        bl.fit(bl.Parallax(), case.stars.with_block(parallax=bl.Block(case.true, unit="mas")))
    with pytest.raises(BadInput, match="as in training"):
        bl.infer(posterior, case.stars.with_block(magnitudes=case.stars["magnitudes"].select(("c", "b", "a"))))
    two = np.column_stack([case.true, case.true])
    for odd in (bl.Block(case.true, unit="mas"), bl.Block(two, 0.1, unit="mas")):
        with pytest.raises(BadInput, match="one number per star and its error"):
            bl.infer(posterior, case.stars.with_block(parallax=odd))
    with pytest.raises(BadInput, match="without flux"):
        bl.infer(posterior, case.stars.drop("flux"))
    with pytest.raises(CannotDo, match="mode"):
        bl.fit(bl.Parallax(coefficient_prior=bl.priors.Horseshoe()), case.stars, bl.MAP())
    with pytest.raises(CannotDo, match="scatter"):
        bl.fit(bl.Parallax(scatter=0.1), case.stars)
