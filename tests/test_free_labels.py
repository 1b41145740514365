"""Labels that are a curved function of the variables in which spectra are polynomials."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ln_p
from scipy.optimize import minimize_scalar
from scipy.stats import binom, multivariate_normal, norm
from scipy.stats import t as student_t

import bayeslabels as bl
from bayeslabels import Cannon, errors
from bayeslabels.kinds.spectra import choice
from bayeslabels.kinds.spectra.choice import HeldOut, asks_held_out, first_or_clearly_better, select, with_label_scatter
from bayeslabels.kinds.spectra.draws import moments_from_draws
from bayeslabels.kinds.spectra.em import settled
from bayeslabels.kinds.spectra.label_curve import _regress, doubt_of
from bayeslabels.kinds.spectra.labels import labels_at, variables_at
from bayeslabels.numerics.features import Monomials
from bayeslabels.numerics.linalg import in_float64

NAMES, CENTRE, SPREAD = ("TEFF", "LOGG"), np.array([5000.0, 3.0]), np.array([300.0, 0.5])
EXPONENTS = np.array([(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)])
NOISE = 0.05


def bent(n, seed, n_pixel=60):
    """Spectra quadratic in w; the labels bend away from w by several times what the spectra resolve."""
    rng = np.random.default_rng(seed)
    theta = np.random.default_rng(1).normal(size=(n_pixel, 6)) * np.array([0.1, 0.1, 0.1, 0.02, 0.02, 0.02])
    w = rng.uniform(-1.7, 1.7, (n, 2))
    x, y = w.T
    true = np.stack([x + 0.12 * x**2 - 0.05 * x**3, y + 0.1 * x * y - 0.08 * y**2], 1)
    flux = 1 + (w[:, None] ** EXPONENTS).prod(-1) @ theta.T + 0.01 * rng.normal(size=(n, n_pixel))
    flux[rng.random(flux.shape) < 0.05] = np.nan
    labels = CENTRE + SPREAD * (true + NOISE * rng.normal(size=w.shape))
    block = bl.Block(labels, np.full(labels.shape, NOISE) * SPREAD, names=NAMES)
    return bl.Stars(labels=block, flux=bl.Block(flux, 0.01)), CENTRE + SPREAD * true


@pytest.fixture(scope="module")
def trained():
    return bl.fit(Cannon(order=2), bent(400, 0)[0])


@pytest.fixture(scope="module")
def held_out():
    stars, truth = bent(600, 5)
    return stars.drop("labels"), truth


def errors_hold(result, truth):
    """Coverage of the truth at 68 and 95 per cent, to 4 sd of the binomial from below.

    From above only roughly: the scatter that noisy catalogue labels leave to the spectra is poorly known.
    """
    z = (result.mean - truth) / result.error
    for width, share in ((1, 0.6827), (2, 0.9545)):
        assert ((np.abs(z) < width).sum(0) >= binom(len(z), share).ppf(norm.cdf(-4))).all()
    assert (z.std(0) > 0.5).all()


def test_free_labels_are_chosen_and_their_errors_hold(trained, held_out):
    assert trained.model.label_noise == "free"
    errors_hold(bl.infer(trained, held_out[0]), held_out[1])


def test_labels_that_bend_are_found_better_than_without_the_curve(trained, held_out):
    scores = {x["variant"]: x["log_density"] for x in trained.info["selection"] if "variant" in x}
    assert max(scores, key=scores.get) == "label_noise='free'"
    assert trained.info["label_curve_doubt"] > 1
    assert trained.info["converged"]
    zero = 0 * trained.moments.label_coefficients
    straight = trained.with_moments(trained.moments._replace(label_coefficients=zero))
    rmse = [
        np.sqrt(((bl.infer(x, held_out[0], bl.MAP()).mean - held_out[1]) ** 2).mean(0)) for x in (trained, straight)
    ]
    assert (rmse[0] < 0.5 * rmse[1]).all()


@in_float64
def test_curve_and_scatter_are_generalised_least_squares_and_restricted_likelihood():
    """Dense NumPy oracle for the two columns of one label, the other not observed."""
    rng, psi = np.random.default_rng(3), Monomials.up_to(2, 2)
    n, u = 80, np.random.default_rng(4).normal(size=(80, 2))
    spread = np.broadcast_to(0.01 * np.eye(2), (n, 2, 2))
    noise = np.zeros((n, 2, 2))
    noise[:, 0, 0] = rng.uniform(0.01, 0.05, n)
    observed = np.stack([np.arange(n) % 7 > 0, np.zeros(n, bool)], 1)
    phi = np.stack([np.ones(n), u[:, 0], u[:, 1], u[:, 0] ** 2, u[:, 0] * u[:, 1], u[:, 1] ** 2], 1)
    value = u.copy()
    value[:, 0] += phi @ [0.1, 0.0, -0.2, 0.15, 0.1, 0.0] + rng.normal(size=n) * np.sqrt(noise[:, 0, 0] + 0.04)
    pull = np.random.default_rng(5).normal(size=12)
    c, covariance, tau2 = _regress(value, noise, observed, u, spread, 1.0, np.eye(12), pull, psi)
    seen = observed[:, 0]
    zero, x, y = np.zeros(n), u[:, 0], u[:, 1]
    slopes = np.stack(
        [np.stack([zero, 1 + zero, zero, 2 * x, y, zero], 1), np.stack([zero, zero, 1 + zero, zero, x, 2 * y], 1)], 1
    )
    jacobian = np.array([1.0, 0.0]) + slopes @ c[0]
    own = (noise[:, 0, 0] + 0.01 * (jacobian**2).sum(1))[seen]
    f, r = phi[seen], (value - u)[seen, 0]

    def solved(t2):
        weight = f / (own + t2)[:, None]
        spread = np.linalg.inv(weight.T @ f + np.eye(6))
        return spread @ (weight.T @ r - pull[:6]), spread

    def restricted(log_t2):
        total = np.diag(own + np.exp(log_t2)) + f @ f.T
        return -multivariate_normal(-f @ pull[:6], total).logpdf(r) + 0.5 * np.exp(log_t2)

    best, spread_of_c = solved(tau2[0])
    np.testing.assert_allclose(c[0], best, rtol=1e-8)
    np.testing.assert_allclose(covariance[0, :, 0], spread_of_c, rtol=1e-8)
    assert np.log(tau2[0]) == pytest.approx(minimize_scalar(restricted, (-6, -3)).x, abs=1e-3)


def pulls(kappa, seed):
    """G, Q and g where the spectra's own optimum is N(0, kappa Q^-1) from the truth and the catalogue's N(0, G^-1)."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(60, 60))
    gram, q = mixed.T @ mixed, np.exp(rng.normal(0, 2, 60))
    directions = np.linalg.inv(np.linalg.cholesky(gram)).T  # G is the identity along these
    forth = np.linalg.inv(directions)
    of_spectra, of_catalogue = rng.normal(size=60) * np.sqrt(kappa / q), rng.normal(size=60)
    g = q * (of_catalogue - of_spectra) / (1 + q)  # what is left of the catalogue's pull where both pull equally
    return forth.T @ np.diag(q) @ forth, gram, forth.T @ g


def test_spectra_that_agree_with_the_catalogue_are_not_doubted():
    found = np.array([[doubt_of(*pulls(kappa, seed)) for seed in range(12)] for kappa in (1.0, 100.0)])
    assert (found[0] == 1).sum() >= 11
    assert found[0].max() < 10
    assert (found[1] >= 10).all()
    assert 30 < np.median(found[1]) < 320


@in_float64
def test_program_measures_the_curved_labels(trained):
    """The density is that of the model without the curve for labels that are less by C psi(u)."""
    stars = bent(20, 8)[0]
    free = trained.model
    values = {name: x.values[0, 0] for name, x in trained.data["posterior"].to_dataset().items()}
    u = np.random.default_rng(0).normal(size=(20, 2))
    values = {n: x for n, x in values.items() if n not in ("true_labels", "u")} | {"u": u}
    curve = values["label_curve"]
    x, y = u.T
    psi = np.stack([1 + 0 * x, x, y, x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3], 1)
    labels = stars.labels
    moved = bl.Block(labels.value - free.frame.scale * (psi @ curve.T), labels.error, names=NAMES)

    straight = ln_p(free.replace(label_noise="joint"), stars.with_block(labels=moved), values)
    assert ln_p(free, stars, values) == pytest.approx(straight + norm.logpdf(curve).sum(), rel=1e-9)


@in_float64
def test_variables_of_labels_and_labels_of_variables(trained):
    psi, c = trained.model.label_features, trained.moments.label_coefficients
    u = np.random.default_rng(0).uniform(-1.2, 1.2, (50, 2))
    at, slope = labels_at(u, c, psi)
    np.testing.assert_allclose(variables_at(at, c, psi), u, atol=1e-7)
    step = 1e-6 * np.eye(2)[0]
    np.testing.assert_allclose((labels_at(u + step, c, psi)[0] - at) / 1e-6, np.asarray(slope)[:, :, 0], atol=1e-5)
    assert np.isnan(variables_at(np.full((1, 2), np.nan), c, psi)).all()


def test_labels_of_a_test_star_are_data_and_predict_its_flux(trained, held_out):
    stars, truth = held_out
    stars, truth = stars[:40], truth[:40]
    block = bl.Block(truth, np.full(truth.shape, 1e-3) * SPREAD, names=NAMES)
    for data in (stars.with_block(labels=block), bl.Stars(labels=block)):
        given = bl.infer(trained, data, bl.MAP())
        assert np.median(np.abs(given.mean - truth) / SPREAD) < 0.02
    flux = trained.predict(bl.Stars(labels=block))
    straight = trained.with_moments(trained.moments._replace(label_coefficients=0 * trained.moments.label_coefficients))
    off = [np.nanstd(stars.flux.value - x) for x in (flux, straight.predict(bl.Stars(labels=block)))]
    assert off[0] < 0.8 * off[1]


def test_what_stars_share_of_their_errors_is_what_moves_them_all(trained, held_out):
    """Each direction in which the label system may be wrong, by one sd, moves the labels of all stars; their squares
    add up to the column's. Exact labels have no such column."""
    posterior, stars = trained, held_out[0][:30]
    moments = posterior.moments
    told = bl.infer(posterior, stars, bl.MAP(), progress=False)
    system = moments.label_system_covariance
    size = system.shape[0] * system.shape[1]
    values, vectors = np.linalg.eigh(system.reshape(size, size))
    total = np.zeros(told.mean.shape)
    for value, vector in zip(values, vectors.T, strict=True):
        step = np.sqrt(max(value, 0.0)) * vector.reshape(system.shape[:2])
        moved = moments._replace(label_coefficients=moments.label_coefficients + step)
        total += (bl.infer(posterior.with_moments(moved), stars, bl.MAP(), progress=False).mean - told.mean) ** 2
    np.testing.assert_allclose(told.stars["error_shared"], np.sqrt(total), rtol=1e-6)
    assert (told.stars["error_shared"].values < told.error).all()
    table = told.table()
    assert "scale" in table["TEFF_error_shared"].info.description
    exact = bl.fit(bl.Cannon(order=1, label_noise=False), bent(60, 1)[0], progress=False)
    assert "TEFF_error_shared" not in bl.infer(exact, stars, bl.MAP(), progress=False).table().colnames


def test_files_draws_and_refusals(trained, held_out, tmp_path):
    trained.save(tmp_path / "free.nc")
    loaded = bl.load(tmp_path / "free.nc")
    a, b = (bl.infer(x, held_out[0][:20]) for x in (trained, loaded))
    np.testing.assert_array_equal(a.mean, b.mean)
    draws = {name: np.repeat(x.values, 3, 1) for name, x in trained.data["posterior"].to_dataset().items()}
    moments = moments_from_draws(trained.model, bent(400, 0)[0], draws)
    np.testing.assert_allclose(moments.label_coefficients, trained.moments.label_coefficients, rtol=1e-10)
    np.testing.assert_allclose(moments.label_system_covariance, 0.0, atol=1e-12)
    with pytest.raises(errors.CannotDo, match="MAP"):
        bl.fit(Cannon(order=2, label_noise="free"), bent(50, 1)[0], bl.Gibbs())
    with pytest.raises(errors.BadInput, match="'free'"):
        Cannon(order=2, label_noise="loose")


def test_missing_labels_leave_the_curve_to_the_others(held_out):
    stars, _ = bent(400, 0)
    labels = stars.labels.value.copy()
    labels[np.random.default_rng(2).random(labels.shape) < 0.3] = np.nan
    block = bl.Block(labels, stars.labels.error, names=NAMES)
    posterior = bl.fit(Cannon(order=2, label_noise="free"), stars.with_block(labels=block))
    errors_hold(bl.infer(posterior, held_out[0], bl.MAP()), held_out[1])


def test_scatter_of_labels_without_errors_is_that_of_held_out_ones(trained):
    """With stated errors what goes beyond them is in every star's error already, and tau stays what it is."""
    stars = bent(200, 6)[0]
    scale, z = trained.model.frame.scale, np.random.default_rng(0).normal(size=(200, 2))
    mean = trained.model.frame.scaled(stars.labels.value) - z * np.array([0.3, 0.2])
    mean[150:] = np.nan  # folds that were not run
    out = HeldOut(mean, np.zeros((200, 2, 2)), np.zeros(200))
    bare = stars.with_block(labels=bl.Block(stars.labels.value, names=NAMES))
    told = with_label_scatter(trained, bare, out).moments
    inside = (np.abs(z[:150] * np.array([0.3, 0.2]) * scale) < told.label_scatter).mean(0)
    np.testing.assert_allclose(inside, 0.6827, atol=0.01)
    np.testing.assert_array_equal(told.label_system_covariance, trained.moments.label_system_covariance)
    kept = with_label_scatter(trained, stars, out).moments
    np.testing.assert_array_equal(kept.label_scatter, trained.moments.label_scatter)
    assert select(trained.model, stars, 0, False)[1:] == (stars, None, [])  # no fold is trained in vain
    assert asks_held_out(trained.model, bare)


@in_float64
def test_moves_of_the_labels_end_where_their_moments_agree_with_the_catalogue():
    """E[(label - u) u'] = 0 over u's posterior, as of true labels; a line through posterior means would be too flat by
    more than its error."""
    stars, _ = bent(2000, 3)
    stars = stars.with_block(flux=bl.Block(stars["flux"].value, 0.25))
    em = settled(Cannon(order=1, label_noise="joint"), stars, 300, 1e-4)
    weight = np.einsum("nmm->nm", em.labels.precision())
    offset = em.labels.catalogue.value - em.u
    of_mean = np.einsum("nm,nm,nk->mk", weight, offset, em.u)
    both = of_mean - np.einsum("nm,nmk->mk", weight, em.u_covariance)
    error = np.sqrt(np.einsum("nm,nk->mk", weight, em.u**2))
    assert np.abs(both / error).max() < 0.1
    assert np.abs(np.diag(of_mean / error)).min() > 1


def test_another_variant_must_be_clearly_better_and_one_that_was_refused_is_never_chosen():
    noise = np.random.default_rng(0).normal(size=400)
    first, refused = np.zeros(400), np.full(400, -np.inf)
    assert first_or_clearly_better([first, noise - noise.mean() + 0.09], 2.0) == 0
    assert first_or_clearly_better([first, noise - noise.mean() + 0.12], 2.0) == 1
    assert first_or_clearly_better([first, first + 1, first + 2], 2.0) == 2
    assert first_or_clearly_better([refused, first], 2.0) == 1
    assert first_or_clearly_better([first, refused], 2.0) == 0
    assert first_or_clearly_better([first, noise - noise.mean() + 0.09], 0.0) == 1
    assert first_or_clearly_better([first, first], 0.0) == 0


def test_without_stated_errors_the_variants_are_compared_on_all_folds_by_a_smaller_lead(monkeypatch):
    """A lead of 1.4 standard errors is enough there, and only there."""
    stars = bent(200, 6)[0]
    lead = np.random.default_rng(0).normal(size=200)
    lead += 1.4 * lead.std() / np.sqrt(200) - lead.mean()
    asked = []

    def held_out(model, of, seed, progress=None, *, n_run=None, before=None):
        asked.append(n_run or 5)
        return HeldOut(np.zeros((200, 2)), np.zeros((200, 2, 2)), np.zeros(200))

    monkeypatch.setattr(choice, "density_of_labels", lambda model, *_: lead * (model.label_noise == "cut"))
    monkeypatch.setattr(choice, "held_out", held_out)
    model = Cannon(order=2)
    bare = stars.with_block(labels=bl.Block(stars.labels.value, names=NAMES))
    assert select(model.bind(stars), stars, 0, False)[0].label_noise == "free"
    assert asked in ([1, 1], [1, 1, 2, 2])  # the second where the other leads on the first
    asked.clear()
    assert select(model.bind(bare), bare, 0, False)[0].label_noise == "cut"
    assert asked == [5, 5, 5]  # the last for tau, with all folds given


def test_students_density_is_that_of_scipy():
    x, scale = np.linspace(-30, 30, 41), np.array([0.3, 2.0, 7.0])[:, None]
    for freedom in (1.0, 4.0):
        here = choice.student_log_density(x, freedom, scale**2)
        np.testing.assert_allclose(here, student_t.logpdf(x, freedom, scale=scale), rtol=1e-12)
