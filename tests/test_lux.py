"""Lux: its density, its exact routes, what they recover, and what they do with gaps and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ln_p
from scipy.stats import halfnorm, invwishart, multivariate_normal, norm

import bayeslabels as bl
from bayeslabels.errors import BadInput
from bayeslabels.inference.diagnostics import ess, rhat
from bayeslabels.kinds.spectra.lux import derivative_spectra
from bayeslabels.kinds.spectra.quartic import flux_given_labels, prepare
from bayeslabels.numerics.linalg import in_float64

NAMES, UNITS = ("TEFF", "LOGG", "FE_H"), ("K", "dex", "dex")
CENTRE, SPREAD = np.array([4600.0, 2.2, -0.2]), np.array([400.0, 0.7, 0.3])


def simulate(n, n_pixel=60, n_latent=4, seed=0, flux_error=0.01, label_error=0.1, scatter=0.005, system=5):
    """Stars of which everything is linear in Gaussian latents; true labels (N, 3) and noise-free spectra (N, L)."""
    truth = np.random.default_rng(system)
    a = truth.normal(size=(3, n_latent)) / np.sqrt(n_latent)
    b = 0.05 * truth.normal(size=(n_pixel, n_latent))
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, n_latent))
    flux, true = 1 + z @ b.T, CENTRE + SPREAD * (z @ a.T)
    error = flux_error * rng.uniform(0.5, 1.5, flux.shape)
    observed = flux + np.hypot(error, scatter) * rng.normal(size=flux.shape)
    sigma = label_error * SPREAD * rng.uniform(0.5, 1.5, true.shape)
    labels = bl.Block(true + sigma * rng.normal(size=true.shape), sigma, names=NAMES, unit=UNITS)
    return bl.Stars(flux=bl.Block(observed, error), labels=labels), true, flux


def with_gaps(block, share, seed):
    gone = np.random.default_rng(seed).random(block.value.shape) < share
    return bl.Block(np.where(gone, np.nan, block.value), block.error, names=block.names, unit=block.unit)


@pytest.fixture(scope="module")
def train():
    return simulate(600)[0]


@pytest.fixture(scope="module")
def trained(train):
    return bl.fit(bl.Lux(4), train, seed=1)


@in_float64
def test_the_program_has_the_density_of_its_equations():
    stars = simulate(20, n_pixel=7, n_latent=2)[0]
    stars = stars.with_block(labels=with_gaps(stars.labels, 0.2, 1), flux=with_gaps(stars.flux, 0.1, 2))
    model = bl.Lux(2, offset=(0.0, 2.0)).bind(stars.with_block(labels=_same_unit(stars.labels)))
    stars = stars.with_block(labels=_same_unit(stars.labels))
    frame, rng = model.frame, np.random.default_rng(3)
    site = {
        "A": rng.normal(size=(3, 3)), "B": rng.normal(size=(7, 3)), "B_mean": rng.normal(size=3),
        "B_covariance": np.cov(rng.normal(size=(3, 9))), "scatter": rng.uniform(0.1, 1, 7),
        "label_scatter": rng.uniform(0.1, 1, 3), "z": rng.normal(size=(20, 2)), "offset": rng.normal(size=20),
    }  # fmt: skip
    got = ln_p(model, stars, site)

    f = frame.flux_scale
    expected = norm.logpdf(site["A"], 0, 2**-0.5).sum() + norm.logpdf(site["B_mean"], 0, 10 * f).sum()
    expected += invwishart.logpdf(site["B_covariance"], 5, (1e-4 * f) ** 2 * np.eye(3))
    expected += multivariate_normal.logpdf(site["B"] - site["B_mean"], np.zeros(3), site["B_covariance"]).sum()
    expected += halfnorm.logpdf(site["scatter"], 0, f).sum()
    expected += halfnorm.logpdf(site["label_scatter"], 0, frame.scale).sum()
    expected += norm.logpdf(site["z"]).sum() + norm.logpdf(site["offset"], 0, 2.0).sum()
    phi = np.column_stack([np.ones(20), site["z"]])
    flux, error = stars.flux.value, stars.flux.error
    sd = np.hypot(error, site["scatter"])
    expected += np.nansum(norm.logpdf(flux, phi @ site["B"].T, sd))
    labels = frame.centre + frame.scale * (phi @ site["A"].T) + site["offset"][:, None]
    density = norm.logpdf(stars.labels.value, labels, np.hypot(stars.labels.error, site["label_scatter"]))
    expected += np.nansum(density) - 0.5 * np.log(2 * np.pi) * np.isnan(density).sum()
    assert got == pytest.approx(expected, rel=1e-10)


def _same_unit(block):
    return bl.Block(block.value / SPREAD, block.error / SPREAD, names=block.names, unit="mag")


def whole(trained, n, seed):
    """Stars with gaps; moments without the coefficients' uncertainty; and labels and flux as one linear output of the
    latents: coefficients (M + L, K), values and variances (N, M + L)."""
    stars = simulate(n, seed=seed)[0]
    stars = stars.with_block(flux=with_gaps(stars.flux, 0.2, 4), labels=with_gaps(stars.labels, 0.3, 5))
    moments, frame = trained.moments, trained.model.frame
    moments = moments._replace(
        coefficient_covariance=0 * moments.coefficient_covariance,
        label_system_covariance=0 * moments.label_system_covariance,
    )
    both = np.concatenate([frame.scale[:, None] * moments.label_coefficients, moments.coefficients])
    value = np.concatenate([stars.labels.value - frame.centre, stars.flux.value], 1)
    error = np.concatenate([stars.labels.error, stars.flux.error], 1)
    return stars, moments, both, value, error**2 + np.concatenate([moments.label_scatter, moments.scatter]) ** 2


@in_float64
def test_latents_of_a_star_against_dense_algebra(trained):
    """The test step against the joint Gaussian of latents, flux and labels, built whole."""
    stars, moments, both, value, variance = whole(trained, 6, 8)
    problem = prepare(trained.model, moments, stars, 0)
    for n in range(6):
        ok = np.isfinite(value[n])
        b = both[ok]
        total = b[:, 1:] @ b[:, 1:].T + np.diag(variance[n, ok])
        gain = np.linalg.solve(total, b[:, 1:]).T
        np.testing.assert_allclose(problem.modes.location[0][n], gain @ (value[n, ok] - b[:, 0]), atol=1e-8)
        np.testing.assert_allclose(problem.modes.covariance[0][n], np.eye(4) - gain @ b[:, 1:], atol=1e-8)


@pytest.mark.long
def test_the_objective_never_decreases(train, trained):
    objective = trained.data["sample_stats"]["objective"].values
    assert np.diff(objective).min() > -1e-9 * np.abs(objective).max()
    assert trained.info["converged"]
    for model in (bl.Lux(6), bl.Lux(3, coefficient_prior=bl.priors.Normal()), bl.Lux(4, intercept=False)):
        some = train.with_block(labels=with_gaps(train.labels, 0.3, 6))
        objective = bl.fit(model, some, bl.MAP(max_iterations=60, tolerance=0.05)).data["sample_stats"]["objective"]
        assert np.diff(objective.values).min() > -1e-9 * np.abs(objective.values).max()


def test_truth_is_recovered_and_error_bars_hold(trained):
    test, true, flux = simulate(1000, seed=2)
    result = bl.infer(trained, test.drop("labels"), seed=0)
    z = (result.mean - true) / result.error
    assert np.abs(z.std(0) - 1).max() < 0.2  # tau, of 600 stars, is 0 or some 0.02 by chance
    assert np.abs(z.mean(0)).max() < 0.2
    assert trained.moments.scatter == pytest.approx(0.005, rel=0.7)
    assert np.median(trained.moments.scatter) == pytest.approx(0.005, rel=0.1)
    mean, sd = trained.predict(test.drop("labels").with_block(labels=test.labels), "flux", with_error=True)
    inside = (np.abs(mean - flux) / sd).std()
    assert 0.5 < inside < 1.2


@pytest.mark.slow
def test_more_latents_than_needed_do_no_harm(train):
    test, true, _ = simulate(500, seed=2)
    few, many = (bl.infer(bl.fit(bl.Lux(p), train), test.drop("labels"), bl.MAP()) for p in (4, 12))
    rms = [np.sqrt(((r.mean - true) ** 2).mean(0)) for r in (few, many)]
    assert (rms[1] < 1.1 * rms[0]).all()


@in_float64
def test_flux_given_labels_against_dense_algebra(trained):
    """ln p(flux, labels) - ln p(labels), the joint Gaussian of both built whole."""
    stars, moments, both, value, variance = whole(trained, 5, 9)
    found = flux_given_labels(trained.model, moments, stars, trained.model.features(np.zeros((5, 4))))
    for n in range(5):
        ok = np.isfinite(value[n])
        n_label = ok[: stars.labels.n_dim].sum()
        total = both[ok, 1:] @ both[ok, 1:].T + np.diag(variance[n, ok])
        offset = value[n, ok] - both[ok, 0]
        dense = multivariate_normal(cov=total).logpdf(offset)
        if n_label:
            dense -= multivariate_normal(cov=total[:n_label, :n_label]).logpdf(offset[:n_label])
        assert found[n] == pytest.approx(dense, abs=1e-5)


@pytest.mark.slow
def test_latent_size_by_held_out_density():
    stars = simulate(240, n_pixel=30, n_latent=6)[0]
    posterior = bl.fit(bl.Lux(), stars, seed=0)
    assert [x["variant"] for x in posterior.info["selection"]] == [f"latent_size={p}" for p in (3, 6, 12, 24)]
    assert posterior.model.latent_size in (6, 12, 24)
    assert posterior.info["selection"][0]["log_density"] < max(x["log_density"] for x in posterior.info["selection"])


def test_missing_labels(train):
    test, true, _ = simulate(500, seed=2)
    seen = test.drop("labels")
    complete = bl.infer(bl.fit(bl.Lux(4), train), seen, bl.MAP())
    gaps = bl.infer(bl.fit(bl.Lux(4), train.with_block(labels=with_gaps(train.labels, 0.3, 3))), seen, bl.MAP())
    rms = [np.sqrt(((r.mean - true) ** 2).mean(0)) for r in (complete, gaps)]
    assert (rms[1] < 1.1 * rms[0]).all()
    rare = np.where((np.arange(600) >= 40)[:, None] & (np.arange(3) == 1), np.nan, train.labels.value)
    few = train.with_block(labels=bl.Block(rare, train.labels.error, names=NAMES, unit=UNITS))
    result = bl.infer(bl.fit(bl.Lux(4), few), seen, bl.MAP())
    assert (result.error[:, 1] > 1.5 * complete.error[:, 1]).all()
    z = (result.mean - true) / result.error
    assert 0.6 < np.sqrt((z[:, 1] ** 2).mean()) < 1.6  # one draw of 40 noisy labels moves all stars together


def test_scatter_without_given_errors():
    rng = np.random.default_rng(0)
    z, true = rng.normal(size=(600, 5)), rng.uniform(0.01, 0.1, 40)
    flux = z @ rng.normal(size=(5, 40)) + true * rng.normal(size=(600, 40))
    labels = bl.Block(z[:, :2] + 0.05 * rng.normal(size=(600, 2)), np.full((600, 2), 0.05))
    s = bl.fit(bl.Lux(5), bl.Stars(flux=bl.Block(flux), labels=labels)).moments.scatter
    assert abs(s.mean() - true.mean()) < 0.002
    assert np.corrcoef(s, true)[0, 1] > 0.99


def test_an_offset_that_all_labels_share():
    rng = np.random.default_rng(1)
    z, mu = rng.normal(size=(800, 16)), rng.normal(11, 3, 800)
    clean = z @ rng.normal(size=(16, 40)), z @ rng.normal(size=(16, 5)) + mu[:, None]
    flux, labels = (x + 0.05 * rng.normal(size=x.shape) for x in clean)
    labels = bl.Block(labels, np.full(labels.shape, 0.05), unit="mag")
    stars = bl.Stars(flux=bl.Block(flux, np.full(flux.shape, 0.05)), labels=labels)
    posterior = bl.fit(bl.Lux(16, intercept=False, offset=(11.0, 3.0)), stars)
    table = bl.infer(posterior, stars, bl.MAP()).table()
    miss = table["offset"].to_value("mag") - mu
    assert np.abs(miss.mean()) < 0.05
    assert miss.std() < 1.3 * 3 * np.sqrt(16 / 800)  # A is that well known from so many labels
    assert (miss / table["offset_error"].to_value("mag")).std() == pytest.approx(1, abs=0.25)


def test_further_outputs_are_inferred_and_inform():
    truth = np.random.default_rng(7).normal(size=(4, 2))
    train, test = simulate(300, seed=0), simulate(400, seed=2)

    def photometry(stars, true, seed):
        z = np.linalg.lstsq(np.random.default_rng(5).normal(size=(3, 4)) / 2, ((true - CENTRE) / SPREAD).T, rcond=None)
        value = 12 + z[0].T @ truth
        noisy = value + 0.02 * np.random.default_rng(seed).normal(size=value.shape)
        return stars.with_block(magnitudes=bl.Block(noisy, np.full(value.shape, 0.02), names=("G", "BP"), unit="mag"))

    stars, new = photometry(train[0], train[1], 1), photometry(test[0], test[1], 2)
    posterior = bl.fit(bl.Lux(4, outputs=("magnitudes",)), stars)
    table = bl.infer(posterior, new.drop("labels", "magnitudes"), bl.MAP()).table()
    assert str(table["G"].unit) == "mag"
    z = (table["G"].value - new.magnitudes.value[:, 0]) / np.hypot(table["G_error"].value, 0.02)
    assert z.std() == pytest.approx(1, abs=0.15)
    mean = posterior.predict(new.drop("labels", "magnitudes"), "magnitudes")
    np.testing.assert_allclose(mean[:, 0], table["G"].value, rtol=1e-6)
    alone = bl.infer(posterior, new.drop("labels", "magnitudes"), bl.MAP())
    helped = bl.infer(posterior, new.drop("labels"), bl.MAP())
    assert (np.median(helped.error / alone.error, 0) < 1).all()
    off = [np.std(x.mean[:, :3] - test[1], 0) for x in (helped, alone)]
    assert (off[0] < off[1]).all()
    from_photometry = bl.infer(posterior, new.drop("labels", "flux"), bl.MAP())
    assert np.isfinite(from_photometry.mean).all()
    assert (from_photometry.error[:, :3] > alone.error[:, :3]).all()


def test_masks_hide_pixels_from_one_label(train):
    mask = np.zeros(60, bool)
    mask[:20] = True
    posterior = bl.fit(bl.Lux(4, masks={"FE_H": mask}), train)
    test = simulate(50, seed=2)[0].drop("labels")
    spoiled = np.where(mask, test.flux.value, 1.0)
    other = bl.infer(posterior, test.with_block(flux=bl.Block(spoiled, test.flux.error)), bl.MAP())
    result = bl.infer(posterior, test, bl.MAP())
    np.testing.assert_allclose(result.mean[:, 2], other.mean[:, 2], rtol=1e-9)
    shared, less = (x.stars["error_shared"].values for x in (result, other))
    np.testing.assert_allclose(shared[:, 2], less[:, 2], rtol=1e-9)
    assert (shared < result.error).all()
    assert (np.abs(result.mean - other.mean)[:, :2] > 0).all()
    assert (result.cov[:, 2, :2] == 0).all()
    whole = bl.infer(bl.fit(bl.Lux(4), train), test, bl.MAP())
    assert (result.error[:, 2] > whole.error[:, 2]).all()
    np.testing.assert_allclose(result.mean[:, :2], whole.mean[:, :2], rtol=1e-9)


def test_derivative_spectra(trained):
    mean, sd = derivative_spectra(trained, 0.01)
    assert mean.shape == sd.shape == (3, 60)
    test = simulate(40, seed=2, flux_error=0.01)[0].drop("labels")
    flux = bl.Block(test.flux.value, np.full(test.flux.value.shape, 0.01))
    step = np.where(np.arange(60) == 17, 1e-4, 0.0)
    moved = bl.Block(test.flux.value + step, flux.error)
    before, after = (bl.infer(trained, bl.Stars(flux=x), bl.MAP()).mean for x in (flux, moved))
    slope = ((after - before) / 1e-4).mean(0)
    assert (np.abs(slope - mean[:, 17]) < 0.05 * np.abs(mean).max(1) + 2 * sd[:, 17]).all()
    with pytest.raises(BadInput, match="of Lux"):
        derivative_spectra(bl.fit(bl.Cannon(order=1, label_noise=False), simulate(60)[0]), 0.01)


def test_saved_and_loaded(trained, tmp_path):
    test = simulate(20, seed=2)[0].drop("labels")
    again = bl.load(trained.save(tmp_path / "lux.nc"))
    assert again.model == trained.model
    assert (bl.infer(again, test, seed=3).mean == bl.infer(trained, test, seed=3).mean).all()
    assert "z0" in again.data["posterior"]["A"].coords["feature"].values.tolist()


@pytest.mark.slow
def test_gibbs_and_nuts_agree_on_what_is_identified():
    _compare(80, 20, {"draws": 1500, "warmup": 500, "thin": 4}, {"draws": 1000, "warmup": 800})


def _compare(n, n_pixel, gibbs, nuts):
    stars = simulate(n, n_pixel=n_pixel, n_latent=2, flux_error=0.03, label_error=0.3)[0]
    model = bl.Lux(2)
    ours = bl.fit(model, stars, bl.Gibbs(chains=4, **gibbs), seed=1)
    theirs = bl.fit(model, stars, bl.NUTS(chains=4, **nuts), seed=2)
    draws = [p.data["posterior"].to_dataset() for p in (ours, theirs)]
    for site in ("true_labels", "scatter"):
        a, b = (x[site].values for x in draws)
        assert np.nanmax(rhat(a)) < 1.01 if site == "true_labels" else np.nanmax(rhat(a)) < 1.03
        sd = b.std((0, 1))
        error = np.sqrt(1 / ess(a) + 1 / ess(b))
        assert (np.abs(a.mean((0, 1)) - b.mean((0, 1))) / sd < 0.1 + 4 * error).all()
        assert (np.abs(a.std((0, 1)) / sd - 1) < 0.1 + 4 * error).all()


@pytest.mark.slow
def test_gibbs_integrates_what_map_approximates(train, trained):
    test, true, _ = simulate(500, seed=2)
    full = bl.fit(bl.Lux(4), train, bl.Gibbs(chains=2, draws=150, warmup=100, thin=2), seed=1)
    assert full.info["rhat_max"] < 1.2
    result, fast = (bl.infer(p, test.drop("labels"), bl.MAP()) for p in (full, trained))
    assert (np.abs(result.mean - fast.mean) / result.error < 0.5).mean() > 0.97
    # tau aside, of which MAP takes the mode and Gibbs the mean square
    tau = [np.array(list(p.label_scatter().values())) for p in (full, trained)]
    sure, quick = np.sqrt(result.error**2 - tau[0] ** 2), np.sqrt(fast.error**2 - tau[1] ** 2)
    assert np.abs(np.median(quick / sure, 0) - 1).max() < 0.1
    assert np.abs(((result.mean - true) / result.error).std(0) - 1).max() < 0.2


@pytest.mark.slow
def test_gibbs_with_latents_to_spare():
    """Latents that nothing determines do not smear the moments that the test step integrates over."""
    some, (test, true, _) = simulate(200)[0], simulate(400, seed=2)
    rms = []
    for inference in (bl.MAP(), bl.Gibbs(chains=2, draws=200, warmup=100, thin=2)):
        result = bl.infer(bl.fit(bl.Lux(7), some, inference, seed=1), test.drop("labels"), bl.MAP())
        rms.append(np.sqrt(((result.mean - true) ** 2).mean(0)))
    assert (rms[1] < 1.03 * rms[0]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_size": 0}, "latent_size=0"),
        ({"latent_size": 2.5}, "latent_size=2.5"),
        ({"label_scatter": "both"}, "'joint'"),
        ({"offset": (1.0, 0.0)}, "sd > 0"),
        ({"outputs": "magnitudes"}, "tuple of block names"),
        ({"coefficient_prior": "auto"}, "coefficient_prior='auto'.*priors.Flat"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(BadInput, match=message):
        bl.Lux(**settings)


def test_stars_that_do_not_fit(train, trained):
    with pytest.raises(BadInput, match="'magnitudes'"):
        bl.fit(bl.Lux(4, outputs=("magnitudes",)), train)
    with pytest.raises(BadInput, match="masks"):
        bl.infer(bl.fit(bl.Lux(2, masks={"FE_H": np.ones(3, bool)}), train, bl.MAP(max_iterations=1)), train)
    with pytest.raises(BadInput, match="at least one of"):
        bl.infer(trained, bl.Stars(parallax=bl.Block(np.ones(3))))
    gone = train[:5].drop("labels").with_block(flux=bl.Block(np.full((5, 60), np.nan), train.flux.error[:5]))
    result = bl.infer(trained, gone)
    assert np.isnan(result.mean).all()
    assert result.flag_counts()["NO_DATA"] == 5


@pytest.mark.long
@pytest.mark.parametrize(("n_star", "n_pixel", "latents"), [(100, 5, 6), (30, 40, 35)])
def test_more_latents_than_pixels_or_stars(n_star, n_pixel, latents):
    """Those for which the spectra have no direction begin at 0."""
    train, test, truth = bl.simulate.simulate(n_star, n_pixel, seed=1, n_test=60)
    result = bl.infer(bl.fit(bl.Lux(latents), train, bl.MAP(max_iterations=60), progress=False), test, progress=False)
    z = (result.mean - truth.test_labels) / result.error
    assert np.abs(np.median(z, 0)).max() < 1
    assert np.median(np.abs(z)) < 2
