"""Collapsed models trained by minibatches, on a toy whose answer is known: a line through noisy abscissae."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density

import bayeslabels as bl
from bayeslabels.core.collapsed import CollapsedModel
from bayeslabels.core.model import models
from bayeslabels.data.batches import RowsInMemory
from bayeslabels.inference.guide import fit_guide
from bayeslabels.inference.minibatch import fit_members
from bayeslabels.numerics.network import Network, Polynomial


class Rows(NamedTuple):
    x: np.ndarray
    variance: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class LineModel(CollapsedModel):
    """y = a + b v + N(0, s^2), x = v + N(0, sigma^2), v ~ N(0, 1): y | x is Gaussian."""

    n_member: int = 3
    blocks = ("labels", "flux")

    @property
    def members(self):
        return self.n_member

    def bind(self, stars):
        return self.replace(frame="bound")

    def check(self, stars):
        pass

    def parameters(self):
        line = numpyro.sample("line", dist.Normal(jnp.zeros(2), 10.0).to_event(1))
        return {"line": line, "scatter": numpyro.sample("scatter", dist.HalfNormal(1.0))}

    def arrays(self, stars):
        x, variance, _ = stars.labels.filled()
        return Rows(x[:, 0], variance[:, 0], stars.flux.value[:, 0])

    def log_likelihood(self, theta, data):
        a, b = theta["line"][0], theta["line"][1]
        shrink = 1 / (1 + data.variance)
        sd = jnp.sqrt(b**2 * data.variance * shrink + theta["scatter"] ** 2)
        return dist.Normal(a + b * shrink * data.x, sd).log_prob(data.y)

    def start(self, stars, seed):
        return {"line": np.random.default_rng(seed).normal(size=2), "scatter": np.array(1.0)}

    def __call__(self, stars, batch_size=None):
        raise NotImplementedError


@pytest.fixture(scope="module")
def line():
    rng = np.random.default_rng(1)
    v = rng.normal(size=3000)
    sd = rng.uniform(0.2, 0.8, v.size)
    y = 0.5 + 2.0 * v + 0.3 * rng.normal(size=v.size)
    return bl.Stars(labels=bl.Block(v + sd * rng.normal(size=v.size), sd), flux=bl.Block(y))


def test_models_whose_names_end_in_model_are_not_registered():
    assert models()["LineModel"] is LineModel


def test_recovers_the_truth_where_least_squares_attenuates(line):
    trained = fit_members(RowsInMemory(LineModel(), line), 0, False, epochs=100, learning_rate=0.1)
    np.testing.assert_allclose(trained.draws["line"].mean((0, 1)), [0.5, 2.0], atol=0.05)
    np.testing.assert_allclose(trained.draws["scatter"].mean(), 0.3, atol=0.06)
    assert np.polyfit(line.labels.value[:, 0], line.flux.value[:, 0], 1)[0] < 1.7
    assert trained.draws["line"].shape == (1, 3, 2)
    assert trained.stats["converged"]


def test_same_seed_same_result_and_members_differ(line):
    first, again = (fit_members(RowsInMemory(LineModel(), line), 4, False, epochs=3).draws["line"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.ptp(first, axis=1).min() > 0


def test_minibatches_are_unbiased(line):
    """The mean over batches that cover all stars once is the whole objective."""
    model = LineModel().bind(line)
    theta = {"line": jnp.array([0.3, 1.5]), "scatter": jnp.array(0.5)}
    data = model.arrays(line)
    density = jax.jit(model.log_likelihood)
    whole = density(theta, data).sum()
    parts = [len(line) / 100 * density(theta, jax.tree.map(lambda x, i=i: x[i::30], data)).sum()
             for i in range(30)]  # fmt: skip
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-5)
    program = jax.jit(lambda theta: log_density(model.collapsed, (line,), {}, theta)[0])(theta)
    prior = jax.jit(lambda theta: log_density(model.parameters, (), {}, theta)[0])(theta)
    np.testing.assert_allclose(program, whole + prior, rtol=1e-6)


@pytest.mark.parametrize(
    "function", [Network(3, 2, 8, 2), Network(3, 2, (4, 6, 4, 4), 4), Network(3, 2, 5, 0), Polynomial(3, 2, 3)]
)
def test_functions_have_a_start_and_a_prior_for_every_weight(function):
    assert function.prior_sd.shape == function.initial(0).shape == (function.size,)


def test_a_network_is_what_its_docstring_says():
    net = Network(2, 1, 3, 2)
    rng = np.random.default_rng(2)
    w, x = rng.normal(size=net.size), rng.normal(size=(4, 2))
    shapes = [(2, 1), (1,), (3, 1), (2, 3), (3,), (3, 3), (3,)]
    ends = np.cumsum([np.prod(s) for s in shapes])
    lin, b, v, w0, b0, w1, b1 = (p.reshape(s) for p, s in zip(np.split(w, ends[:-1]), shapes, strict=True))
    h = np.tanh(x @ w0 + b0)
    h = h + np.tanh(h @ w1 + b1)
    np.testing.assert_allclose(net(jnp.asarray(w), jnp.asarray(x)), x @ lin + b + h @ v, rtol=1e-5)


def test_layers_of_other_widths_and_units_left_out():
    net = Network(2, 1, (3, 5, 3), 3)
    rng = np.random.default_rng(3)
    w, x = rng.normal(size=net.size), rng.normal(size=(4, 2))
    shapes = [(2, 1), (1,), (3, 1), (2, 3), (3,), (3, 5), (5,), (3, 5), (5, 3), (3,), (5, 3)]
    ends = np.cumsum([np.prod(s) for s in shapes])
    parts = (p.reshape(s) for p, s in zip(np.split(w, ends[:-1]), shapes, strict=True))
    lin, b, v, w0, b0, w1, b1, p1, w2, b2, p2 = parts

    def by_hand(keep0, keep1, keep2):
        h = np.tanh(x @ w0 + b0)
        h = h @ p1 + np.tanh((keep0 * h) @ w1 + b1)
        h = h @ p2 + np.tanh((keep1 * h) @ w2 + b2)
        return x @ lin + b + (keep2 * h) @ v

    with jax.enable_x64(True):
        weights, dropped = jnp.asarray(w), jax.jit(lambda w, key: net.dropped(w, key, 0.4))
        value = jax.jit(lambda w: net(w, jnp.asarray(x)))
        np.testing.assert_allclose(value(weights), by_hand(1.0, 1.0, 1.0), rtol=1e-10)
        units = jnp.ones(net.size)
        for seed in range(5):
            key = jax.random.key(seed)
            parts = np.split(np.asarray(dropped(units, key)), ends[:-1])
            factors = [p.reshape(s) for p, s in zip(parts, shapes, strict=True)]
            kept = [factors[i][:, 0] for i in (5, 8, 2)]
            assert all(np.isin(k.round(9), [0.0, round(1 / 0.6, 9)]).all() for k in kept)
            np.testing.assert_allclose(value(dropped(weights, key)), by_hand(*kept), rtol=1e-10)
        many = np.asarray(jax.vmap(dropped, (None, 0))(units, jax.random.split(jax.random.key(9), 2000)))
        np.testing.assert_allclose(many.mean(0), 1.0, atol=0.1)
        ensemble = jnp.asarray(rng.normal(size=(3, net.size)))
        mean = jax.jit(lambda ensemble: net.mean(net.ensemble(ensemble), jnp.asarray(x)))(ensemble)
        np.testing.assert_allclose(mean, np.mean([value(e) for e in ensemble], 0), rtol=1e-10)


@pytest.mark.long
@pytest.mark.parametrize("inference", [bl.NUTS(chains=2, draws=60, warmup=100), bl.SVI(steps=300, learning_rate=0.05)])
def test_nuts_and_svi_train_the_shared_parameters_alone(line, inference):
    model, stars = LineModel().bind(line), line[:300]
    if isinstance(inference, bl.SVI):
        trained = fit_guide(RowsInMemory(model, stars), inference, 0, False)
    else:
        trained = inference.fit(model, stars, 0, False)
    assert set(trained.draws) == {"line", "scatter"}
    np.testing.assert_allclose(trained.draws["line"].mean((0, 1)), [0.5, 2.0], atol=0.15)
