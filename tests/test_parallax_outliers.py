"""Wrong parallaxes, however far off: found where the model has some, told where it has not."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import pytest
from scipy.stats import t as student
from test_parallax import make, z_of

import bayeslabels as bl
from bayeslabels.kinds.parallax.model import outlier_density
from bayeslabels.kinds.parallax.outliers import first_rows, misfit
from bayeslabels.kinds.parallax.training import data_of

pytestmark = pytest.mark.long

N, WRONG = 700, 21
KINDS = {
    "far": lambda y, rng: y + 4.0,
    "very far": lambda y, rng: y + 300.0,
    "both signs": lambda y, rng: y + 3.0 * rng.choice([-1, 1], len(y)),
    "dwarfs": lambda y, rng: y * np.exp(rng.uniform(1.5, 3.0, len(y))),
}


def spoilt(kind, seed=0):
    case = make(2 * N, seed=seed, n_pixel=10, sigma=0.05)
    y = np.array(case.stars["parallax"].value)[:, 0]
    y[:WRONG] = KINDS[kind](y[:WRONG], np.random.default_rng(seed))
    return case, case.stars.with_block(parallax=bl.Block(y, 0.05, unit="mas"))[:N]


def quietly(model, stars, inference, **settings):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        posterior = bl.fit(model, stars, inference, progress=False, **settings)
    return posterior, " ".join(str(w.message) for w in said if w.category is bl.NotConverged)


@pytest.mark.parametrize("way", ["memory", "sums"])
@pytest.mark.parametrize(
    ("kind", "inference"),
    [
        ("far", bl.Laplace(draws=10)),
        ("very far", bl.Laplace(draws=10)),
        pytest.param("both signs", bl.MAP(), marks=pytest.mark.slow),
        pytest.param("dwarfs", bl.Laplace(draws=10), marks=pytest.mark.slow),
        pytest.param("very far", bl.MAP(), marks=pytest.mark.slow),
    ],
)
def test_wrong_parallaxes_are_left_out(kind, inference, way, tmp_path):
    """As good as if they had not been there: scatter, zero point and errors of new stars."""
    case, stars = spoilt(kind)
    settings = {"checkpoint": tmp_path / "run.npz"} if way == "sums" else {}
    posterior, said = quietly(bl.Parallax(outliers=True), stars, inference, **settings)
    assert posterior.info["converged"], said
    m = posterior.moments
    assert m.outlier_fraction == pytest.approx(WRONG / N, abs=0.012)
    assert m.scatter == pytest.approx(0.08, abs=0.04)
    assert abs(m.zero_point + 0.03) < 0.1
    z = z_of(bl.infer(posterior, case.stars[N:].drop("parallax"), progress=False), case.true[N:])
    assert 0.88 < z.std() < 1.12


@pytest.mark.parametrize("kind", ["very far", "both signs"])
def test_a_model_without_outliers_says_so(kind):
    case, stars = spoilt(kind)
    posterior, said = quietly(bl.Parallax(), stars, bl.Laplace(draws=10))
    assert not posterior.info["converged"]
    assert "try Parallax(outliers=True)" in said
    assert f"of {N} stars the parallax" in said
    clean, said = quietly(bl.Parallax(), case.stars[:N], bl.Laplace(draws=10))
    assert clean.info["converged"]
    assert not said


def test_the_first_look_is_not_spoilt():
    for kind in KINDS:
        _, stars = spoilt(kind)
        with jax.enable_x64(True):
            model = bl.Parallax(outliers=True).bind(stars)
            data = data_of(model, stars)
            rows, r = first_rows(model, data), misfit(model, data)
        assert rows[WRONG:].mean() > 0.98
        assert rows[:WRONG].mean() < 0.5
        assert np.median(r) == pytest.approx(0.6745, abs=0.05)


def test_wrong_values_are_student_t():
    y, sigma, outlier = np.array([-3.0, 0.2, 50.0]), np.array([0.1, 0.2, 3.0]), np.array([0.3, 0.6])
    with jax.enable_x64(True):
        found = np.asarray(outlier_density(y, sigma, outlier))
    np.testing.assert_allclose(found, student(2.0, 0.3, np.hypot(0.6, sigma)).logpdf(y), rtol=1e-10)
