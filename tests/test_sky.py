"""Priors that differ from star to star: the Galaxy, the dust along the line of sight, and what the test step makes of
them, against integrals in plain NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from astropy.coordinates import SkyCoord
from numpyro import handlers
from scipy import integrate
from scipy.stats import binom, kstest, norm, spearmanr, truncnorm

import bayeslabels as bl
from bayeslabels.astro.galaxy import galactic
from bayeslabels.core.reddening_priors import Exponential
from bayeslabels.errors import BadInput
from bayeslabels.kinds.photometry import label_prior as priors_of_labels
from bayeslabels.kinds.photometry.label_prior import label_prior
from bayeslabels.numerics import along, dusty
from bayeslabels.results.cluster import together
from bayeslabels.simulate import simulate_photometry

pytestmark = pytest.mark.long

BANDS = ("G", "BP", "RP", "J", "Ks")
MODULI = np.arange(4.0, 16.0, 0.5)


def sky_of(longitude, latitude, names=("l", "b")):
    return bl.Block(np.column_stack([longitude, latitude]), names=names, unit="deg")


def walls(n, rng):
    """Maps of a cloud at some distance: reddening (n, K), error."""
    at, high = rng.uniform(7.0, 11.0, (n, 1)), rng.uniform(0.2, 0.8, (n, 1))
    e = high / (1 + np.exp(-2.5 * (MODULI - at))) + 0.01
    return e, 0.02 + 0.1 * e


def test_tables_are_looked_up():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 9))
    mu = rng.uniform(0.5, 4.5, (2, 5, 3))
    with jax.enable_x64(True):
        straight = np.asarray(along.line(rows, np.full(3, 0.5), np.full(3, 0.5), mu))
        for n in range(3):
            np.testing.assert_allclose(straight[..., n], np.interp(mu[..., n], 0.5 + 0.5 * np.arange(9), rows[n]))
        first, step = jnp.zeros(()), jnp.full((), 0.25)
        table = along.coefficients(np.sin(0.25 * np.arange(40)))
        value, slope, bend = along.spline(table, first, step, jnp.asarray(mu))
        for ours, true in ((value, np.sin(mu)), (slope, np.cos(mu)), (bend, -np.sin(mu))):
            np.testing.assert_allclose(ours, true, atol=0.02)
        np.testing.assert_allclose(value, np.sin(mu), atol=2e-4)
        # straight beyond the end
        end, beyond = (along.spline(table, first, step, jnp.asarray(x))[0] for x in (39 * 0.25, 20.0))
        of_end = along.spline(table, first, step, jnp.asarray(39 * 0.25))[1]
        np.testing.assert_allclose(beyond, end + (20 - 39 * 0.25) * of_end, rtol=1e-9)


def density_by_hand(longitude, latitude, mu):
    """d^3 rho of the default Galaxy, written again."""
    d = 10 ** (0.2 * (mu - 10))
    sight = np.deg2rad(longitude), np.deg2rad(latitude)
    x = 8.2 - d * np.cos(sight[1]) * np.cos(sight[0])
    y, z = d * np.cos(sight[1]) * np.sin(sight[0]), 0.025 + d * np.sin(sight[1])
    r = np.hypot(x, y)
    thin = np.exp(-(r - 8.2) / 2.6 - (np.abs(z) - 0.025) / 0.3)
    thick = 0.107 * np.exp(-(r - 8.2) / 3.6 - (np.abs(z) - 0.025) / 0.9)
    far = np.sqrt(r**2 + (z / 0.64) ** 2 + 0.25)
    halo = 0.0046 * np.where(far < 25, (far / 8.2) ** -2.77, (25 / 8.2) ** -2.77 * (far / 25) ** -4.2)
    return d**3 * ((1 - 0.107 - 0.0046) * thin + thick + halo)


def test_the_galaxy_along_a_line_of_sight():
    where = np.array([[0.0, 6.0], [90.0, -30.0], [180.0, 0.5], [37.0, 88.0], [np.nan, 1.0]])
    bound = bl.priors.Galaxy().at(bl.Stars(sky=sky_of(*where.T)))
    mu = np.linspace(-4.0, 26.0, 6001)
    inside = (mu > 2) & (mu < 19)
    with jax.enable_x64(True):
        log_density = jax.jit(bound.log_density)
        ours = np.asarray(log_density(jnp.asarray(mu[:, None])))
        assert ours.shape == (6001, 5)
        for n, (longitude, latitude) in enumerate(where[:4]):
            true = density_by_hand(longitude, latitude, mu)
            true = true / integrate.trapezoid(true, mu)
            np.testing.assert_allclose(integrate.trapezoid(np.exp(ours[:, n]), mu), 1.0, atol=1e-3)
            off = np.abs(ours[:, n] - np.log(true))[inside]
            assert np.median(off) < 0.005
            assert off.max() < 0.1  # where the line of sight passes the cusp above the centre
        # a star without coordinates: all directions, each with its stars
        rng = np.random.default_rng(1)
        some = rng.uniform(0, 360, 4000), np.rad2deg(np.arcsin(rng.uniform(-1, 1, 4000)))
        every = np.mean([density_by_hand(*pair, mu[::50]) for pair in zip(*some, strict=True)], 0)
        every = every / integrate.trapezoid(every, mu[::50])
        busy = every > 0.01
        np.testing.assert_allclose(np.exp(ours[::50, 4])[busy], every[busy], rtol=0.1)
        # slopes are those of the density
        points = jnp.asarray(np.linspace(3.0, 17.0, 57))[:, None] + jnp.zeros(5)
        first, second = jax.jit(bound.slopes)(points)
        step = 1e-4
        up, at, down = (np.asarray(log_density(points + s)) for s in (step, 0.0, -step))
        np.testing.assert_allclose(first, (up - down) / (2 * step), atol=1e-6)
        np.testing.assert_allclose(second, -(up - 2 * at + down) / step**2, atol=0.02)


def test_draws_of_the_galaxy_follow_its_density():
    where = np.array([[10.0, 5.0], [200.0, -60.0]])
    galaxy = bl.priors.Galaxy().at(bl.Stars(sky=sky_of(*where.T))).distribution()
    drawn = jax.jit(lambda key: galaxy.sample(key, (3000,)))(jax.random.key(0))
    mu = np.linspace(-4.0, 26.0, 3001)
    for x, pair in zip(np.asarray(drawn).T, where, strict=True):
        cdf = integrate.cumulative_trapezoid(density_by_hand(*pair, mu), mu, initial=0)
        assert kstest(np.interp(x, mu, cdf / cdf[-1]), "uniform").pvalue > 1e-3


def test_equatorial_coordinates_are_turned():
    rng = np.random.default_rng(2)
    ra, dec = rng.uniform(0, 360, 50), np.rad2deg(np.arcsin(rng.uniform(-1, 1, 50)))
    true = SkyCoord(ra, dec, unit="deg").galactic
    longitude, latitude = galactic(ra, dec)
    np.testing.assert_allclose(latitude, true.b.deg, atol=1e-6)
    np.testing.assert_allclose(np.cos(np.deg2rad(longitude - true.l.deg)), 1.0, atol=1e-12)
    first = bl.priors.Galaxy().at(bl.Stars(sky=sky_of(ra, dec, ("RA", "Dec"))))
    second = bl.priors.Galaxy().at(bl.Stars(sky=sky_of(longitude, latitude)))
    np.testing.assert_allclose(first.table, second.table, atol=1e-6)


def test_the_reddening_along_a_line_of_sight_is_a_normal_of_the_map():
    rng = np.random.default_rng(3)
    e, error = walls(3, rng)
    e[2] = np.nan
    stars = bl.Stars(
        sightline=bl.Block(e, error, unit="mag", coords={"modulus": MODULI}),
        reddening_scale=bl.Block([0.1, 0.1, 0.3], unit="mag"),
    )
    bound = bl.priors.AlongSightline().at(stars, 0.2)
    mu = np.array([[3.0, 8.1, 9.0], [9.3, 20.0, 5.0]])
    grid = np.linspace(0.0, 3.0, 4001)
    with jax.enable_x64(True):

        @jax.jit
        def density_and_draws(mu, grid, key):
            law = bound.distribution(mu)
            return law.log_prob(grid[:, None, None]), law.sample(key, (2000,))

        ours, drawn = map(np.asarray, density_and_draws(mu, grid, jax.random.key(1)))
    np.testing.assert_allclose(integrate.trapezoid(np.exp(ours), grid, axis=0), 1.0, atol=2e-3)
    for i in range(2):
        for n in range(2):
            m, sd = (np.interp(mu[i, n], MODULI, x[n]) for x in (e, error))
            true = truncnorm(-m / sd, np.inf, m, sd)
            np.testing.assert_allclose(ours[:, i, n], true.logpdf(grid), rtol=1e-6, atol=1e-6)
            assert kstest(drawn[:, i, n], true.cdf).pvalue > 1e-4
        np.testing.assert_allclose(ours[:, i, 2], -np.log(0.3) - grid / 0.3, rtol=1e-8)


@jax.jit
def integrated(told_of, others, modulus):
    """ln p(data), the summary of modulus and reddening, and the distance prior at moduli."""
    q = dusty.quadratic(*told_of)
    return dusty.log_marginal(q, others), dusty.summary(q, others), others.distance.log_density(modulus)


@pytest.mark.parametrize("parallax", [True, False])
def test_the_integral_where_reddening_grows_with_distance(parallax):
    """Magnitudes of stars behind a cloud, in front of it and within: ln p(data) by sums over mu and E."""
    rng = np.random.default_rng(4)
    n = 6
    e_map, error = walls(n, rng)
    stars = bl.Stars(
        sky=sky_of(rng.uniform(0, 360, n), rng.uniform(-20, 20, n)),
        sightline=bl.Block(e_map, error, unit="mag", coords={"modulus": MODULI}),
    )
    distance, dust = bl.priors.Galaxy().at(stars), bl.priors.AlongSightline().at(stars, 0.2)
    vector, variance = np.array([2.6, 3.4, 1.9, 0.8, 0.3]), np.full(5, 0.03**2)
    factors = np.full((n, 1, 5), 0.15)
    mu = np.array([8.0, 9.0, 10.0, 11.0, 8.5, 9.5])
    e = np.array([np.interp(m, MODULI, x) for m, x in zip(mu, e_map, strict=True)])
    residual = mu[:, None] + e[:, None] * vector + 0.15 * rng.normal(size=(n, 1)) + 0.03 * rng.normal(size=(n, 5))
    weight = np.full(n, 1 / 0.1 if parallax else 0.0)
    w = np.where(parallax, 10 ** (0.2 * (10 - mu)) + 0.1 * rng.normal(size=n), 0.0)
    with jax.enable_x64(True):
        others = dusty.Others(w, weight, np.zeros(n), np.zeros(n), distance, dust)
        near = mu + np.linspace(-2.5, 2.5, 1201)[:, None]
        told_of = (
            residual,
            np.tile(vector, (n, 1)),
            factors,
            np.tile(variance, (n, 1)),
            np.ones((n, 5)),
            np.full(n, 0.1),
        )
        ours, told, of_mu = jax.tree.map(np.asarray, integrated(told_of, others, near))
    grid = np.linspace(0.0, 2.5, 801)[1:] - 0.5 * 2.5 / 800
    for i in range(n):
        inverse = np.linalg.inv(np.diag(variance) + 0.15**2)
        off = residual[i] - near[:, i, None, None] - grid[:, None] * vector
        p = -0.5 * np.einsum("abi,ij,abj->ab", off, inverse, off) + 0.5 * np.linalg.slogdet(inverse / 2 / np.pi)[1]
        m, sd = (np.interp(near[:, i], MODULI, x[i])[:, None] for x in (e_map, error))
        p += of_mu[:, i, None] + truncnorm(-m / sd, np.inf, m, sd).logpdf(grid)
        if parallax:
            p += norm(w[i], 0.1).logpdf(10 ** (0.2 * (10 - near[:, i])))[:, None]
        total = np.exp(p - p.max())
        area = (near[1, 0] - near[0, 0]) * (grid[1] - grid[0])
        np.testing.assert_allclose(ours[i], np.log(total.sum() * area) + p.max(), atol=0.02)
        total = total / total.sum()
        np.testing.assert_allclose(
            told.modulus[i], (total.sum(1) * near[:, i]).sum(), atol=0.05 * told.modulus_error[i]
        )
        np.testing.assert_allclose(told.reddening[i], (total.sum(0) * grid).sum(), atol=0.05 * told.reddening_error[i])


@pytest.fixture(scope="module")
def survey():
    """Stars on lines of sight with clouds, at distances of the Galaxy; and the truth."""
    rng = np.random.default_rng(5)
    n = 1000
    stars, truth = simulate_photometry(n, BANDS, seed=6, length=0.6)
    sky = sky_of(rng.uniform(0, 360, n), rng.uniform(10, 60, n))
    mu = np.asarray(
        bl.priors.Galaxy(thin_height=0.12).at(bl.Stars(sky=sky)).distribution().sample(jax.random.key(2)), float
    )
    e_map, error = walls(n, rng)
    m, sd = (np.array([np.interp(a, MODULI, x) for a, x in zip(mu, row, strict=True)]) for row in (e_map, error))
    e = truncnorm.rvs(-m / sd, np.inf, m, sd, random_state=rng)
    moved = (mu - 10 - 5 * np.log10(truth.distance))[:, None] + (e - truth.reddening)[:, None] * truth.reddening_vector
    w_error = stars.parallax.error
    return stars.drop("reddening").with_block(
        magnitudes=bl.Block(stars.magnitudes.value + moved, stars.magnitudes.error, names=BANDS, unit="mag"),
        parallax=bl.Block(10 ** (0.2 * (10 - mu)) + w_error[:, 0] * rng.standard_normal(n), w_error[:, 0], unit="mas"),
        sky=sky, sightline=bl.Block(e_map, error, unit="mag", coords={"modulus": MODULI}),
    ), truth.labels, mu, e  # fmt: skip


MODEL = bl.Photometry(
    function="polynomial", order=2, members=1, components=3, distance_prior=bl.priors.Galaxy(thin_height=0.12),
    reddening_prior=bl.priors.AlongSightline(),
)  # fmt: skip


@pytest.fixture(scope="module")
def posterior(survey):
    return bl.fit(MODEL, survey[0][:512], bl.MAP(max_iterations=10), seed=0)


@pytest.fixture(scope="module")
def well_trained(survey):
    """Of those stars that the repetitions are not drawn from, as many as there are."""
    return bl.fit(MODEL, survey[0][:700], bl.MAP(max_iterations=40), seed=0)


@pytest.mark.slow
def test_posteriors_hold_the_truth(survey, well_trained):
    stars, labels, mu, e = survey
    new = stars[700:].drop("labels")
    told = bl.infer(well_trained, new, bl.Importance(draws=400, rescue=False), seed=0)
    true = np.column_stack([labels, e, mu])[700:]
    # far stars have two solutions, a dwarf and a giant, and posteriors that are no Gaussians
    z = (true - told.mean[:, :5]) / told.error[:, :5]
    np.testing.assert_allclose(1.4826 * np.median(np.abs(z), 0), 1.0, atol=0.25)
    assert (np.abs(z) > 4).mean() < 0.01
    assert np.abs(np.median(z, 0)).max() < 0.3
    low, high = (told.stars[name].values[:, :5] for name in ("p16", "p84"))
    inside = ((true > low) & (true < high)).sum(0)
    band = binom.interval(0.999, len(true), 0.6827)
    assert (inside > band[0] - 12).all()
    assert (inside < band[1] + 12).all()
    assert "AlongSightline" in told.info["reddening_prior"]
    # what a map says narrows the reddening; a star without one, or without coordinates, is answered, too
    value = new.sightline.value.copy()
    value[:40] = np.nan
    where = new.sky.value.copy()
    where[:20] = np.nan
    less = new[:40].with_block(
        sightline=bl.Block(value, new.sightline.error, unit="mag", coords={"modulus": MODULI})[:40],
        sky=sky_of(*where.T)[:40],
    )
    without = bl.infer(well_trained, less, bl.Importance(draws=400, rescue=False), seed=0)
    assert np.isfinite(without.mean).all()
    assert np.median(without.error[:, 3]) > 1.3 * np.median(told.error[:40, 3])


def test_the_program_has_the_stars_own_priors(survey, posterior):
    """Its sites of modulus and reddening have the densities of the stars' own lines of sight, of some of them, too."""
    model, stars = posterior.model, survey[0][:3]
    mu, e = np.array([8.4, 8.8, 10.3]), np.array([0.2, 0.25, 0.5])
    galaxy, dust = model.distance_prior.at(stars), model.reddening_prior.at(stars, 1.0)
    for size in (None, 2):

        @jax.jit
        def densities(key, size=size):
            """Of the program's sites, and of the priors of the rows that the program took."""
            m, a = jnp.asarray(mu)[:size], jnp.asarray(e)[:size]
            given = {"distance_modulus": m, "true_reddening": a}
            program = handlers.seed(handlers.substitute(model, data=given), key)
            sites = handlers.trace(program).get_trace(stars, size)
            own = jax.tree.map(lambda x: jnp.asarray(x)[sites["star"]["value"]], (galaxy, dust))
            by_hand = own[0].log_density(m), own[1].distribution(m).log_prob(a)
            return [sites[name]["fn"].log_prob(x) for name, x in given.items()], by_hand

        with jax.enable_x64(True):
            for x, y in zip(*densities(jax.random.key(3)), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-9)


def test_save_and_load(tmp_path, survey, posterior):
    again = bl.load(posterior.save(tmp_path / "sky.nc"))
    assert again.model == posterior.model


def test_bad_input(survey, posterior):
    stars = survey[0][:50]
    wrong = {
        "'l' and 'b'": {"sky": sky_of(np.zeros(50), np.zeros(50), ("x", "y"))},
        "-90 to 90": {"sky": sky_of(np.zeros(50), np.full(50, 170.0))},
        "degrees": {"sky": bl.Block(np.zeros((50, 2)), names=("l", "b"), unit="rad")},
        "moduli": {"sightline": bl.Block(np.zeros((50, 5)), 0.1, unit="mag")},
        "without errors": {"sightline": bl.Block(np.zeros((50, 24)), unit="mag", coords={"modulus": MODULI})},
        "scales above 0": {"reddening_scale": bl.Block(np.zeros(50), unit="mag")},
    }
    for message, blocks in wrong.items():
        with pytest.raises(BadInput, match=message):
            bl.infer(posterior, stars.with_block(**blocks))
    with pytest.raises(BadInput, match="reddening_scale=Block"):
        Exponential(np.ones(4))
    with pytest.raises(BadInput, match="thin_height"):
        bl.priors.Galaxy(thin_height=0.0)
    with pytest.raises(BadInput, match="no end"):
        bl.priors.Galaxy(halo_outer_slope=2.0)


def test_the_population_is_freed_of_a_selection_by_magnitude(survey, posterior):
    """Of the training stars those brighter than a limit are kept: the tilt makes up for those that are gone."""
    model, moments = posterior.model, posterior.moments
    frame = model.frame
    seen = frame.training_seen[:, 0]
    apparent = frame.training_magnitudes[:, 0]
    with jax.enable_x64(True):
        m = np.asarray(model.absolute(jnp.asarray(moments.coefficients[0]), jnp.asarray(frame.training_u)))
    limit = np.median(apparent[seen])
    rises = []
    for kept in (seen, seen & (apparent < limit)):
        cut = dataclasses.replace(
            frame, training_u=frame.training_u[kept], training_seen=frame.training_seen[kept],
            training_magnitudes=frame.training_magnitudes[kept],
        )  # fmt: skip
        population, tilt = label_prior(model.replace(frame=cut, label_prior="volume"), moments)
        assert population.mean.shape == frame.mixture.mean.shape
        low, high = np.percentile(m[seen, 0], [20, 80])
        at = np.zeros((2, 5)) + np.array([[low], [high]])
        rises.append(float(np.diff(np.asarray(tilt(jnp.asarray(at))))[0]))
    near = [np.abs(m[:, 0] - x) < 0.7 for x in (low, high)]
    true = -np.diff([np.log((apparent[x & seen] < limit).mean()) for x in near])[0]
    assert true > 0.5  # the survey itself has no selection
    assert abs(rises[0]) < 0.8  # over five magnitudes, from 512 stars
    assert abs(rises[1] - rises[0] - true) < 0.5 * true


def test_other_label_priors(survey, posterior, monkeypatch):
    monkeypatch.setattr(priors_of_labels, "DRAWN", 1500)  # the mean is known to 0.013 of the scales
    model, moments = posterior.model, posterior.moments
    frame = model.frame
    mean, spread = frame.centre + frame.scale, np.diag((0.5 * frame.scale) ** 2)
    for own in (bl.priors.LabelMixture(mean, spread), dist.MultivariateNormal(mean, spread)):
        population, tilt = label_prior(model.replace(label_prior=own), moments)
        centre = population.weight @ population.mean
        np.testing.assert_allclose(centre, 1.0, atol=0.05)
        assert float(np.abs(tilt(jnp.ones((3, 5)))).max()) == 0
    _, tilt = label_prior(model.replace(label_prior="cmd"), moments)
    with jax.enable_x64(True):
        m = np.asarray(model.absolute(jnp.asarray(moments.coefficients[0]), jnp.asarray(frame.training_u)))
        at = np.asarray(tilt(jnp.asarray(m)))
    # higher where training stars are rare, by no more than the floor allows
    colour = m[:, 0] - m[:, (m - m[:, :1]).std(0).argmax()]  # the one that varies most, as in the prior
    x = np.column_stack([m[:, 0], colour])
    x = x / x.std(0)
    density = (np.linalg.norm(x[:, None] - x, axis=2) < 0.5).sum(1)
    assert spearmanr(at, density).statistic < -0.7
    assert np.ptp(at) < -np.log(0.01) + 0.5
    for wrong, message in (("wide", "volume"), (bl.priors.LabelMixture([1.0], [[1.0]]), "3 labels|1 labels")):
        with pytest.raises(BadInput, match=message):
            label_prior(model.replace(label_prior=wrong), moments)
    with pytest.raises(BadInput, match="positive definite"):
        bl.priors.LabelMixture([1.0, 2.0], -np.eye(2))


@pytest.mark.slow
def test_members_of_a_cluster_give_one_modulus(survey, well_trained):
    """Ten groups of 30 stars, each of one modulus, and in each two stars of another."""
    stars, _, mu, _ = survey
    new, rng = stars[700:].drop("labels"), np.random.default_rng(11)
    group = np.repeat(np.arange(10), 30)
    first = 30 * np.arange(10)
    at = np.clip(mu[700:][first], 7.0, 12.0)
    moved = at[group] - mu[700:]
    field = np.arange(300) % 30 >= 28
    moved[field] += rng.choice([-2.5, 2.5], field.sum())
    away = mu[700:] + moved
    # the reddening stays what it was: a map that knows nothing
    value = new.magnitudes.value + moved[:, None]
    error = new.parallax.error[:, 0]
    cluster = new.drop("sightline").with_block(
        magnitudes=bl.Block(value, new.magnitudes.error, names=BANDS, unit="mag"),
        parallax=bl.Block(10 ** (0.2 * (10 - away)) + error * rng.standard_normal(300), error, unit="mas"),
    )
    told = bl.infer(well_trained, cluster, bl.Importance(draws=400, rescue=False), seed=0)
    found = together(well_trained, cluster, told, [f"c{i}" for i in group])
    z = (found.table["distance_modulus"].value - at) / found.table["distance_modulus_error"].value
    assert (np.abs(z) < 4).all()
    assert (np.abs(z) < 2).sum() >= 7  # of ten at 0.95, the 1e-3 quantile
    alone = told.error[:, 4].reshape(10, 30)[:, :28]
    assert (found.table["distance_modulus_error"].value < 0.6 * alone.min(1)).all()
    assert np.median(found.member[~field]) > 0.8
    assert np.median(found.member[field]) < 0.2
    with pytest.raises(BadInput, match="share="):
        together(well_trained, cluster, told, group, ("parallax",))
    with pytest.raises(BadInput, match="one of each"):
        together(well_trained, cluster, told, group[:3])
