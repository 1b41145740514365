"""Where chains of NUTS begin: about the start, and no farther from it than draws of the posterior would be."""

import jax.numpy as jnp
import numpy as np
import pytest

import bayeslabels as bl
from bayeslabels.inference.nuts import WIDEST, dispersed
from bayeslabels.numerics.linalg import in_float64


@pytest.mark.parametrize("sd", [1.0, 1e-3, 1e-9])
@in_float64
def test_starts_are_as_wide_as_the_posterior_allows(sd):
    centre, n = {"a": jnp.array([3.0, -1.0]), "b": jnp.array(2.0)}, 3

    def potential(z):
        return 0.5 * sum(jnp.sum(((z[name] - centre[name]) / sd) ** 2) for name in centre)

    starts = dispersed(potential, centre, 200, 0)
    assert starts["a"].shape == (200, 2)
    assert starts["b"].shape == (200,)
    off = np.column_stack([starts["a"] - centre["a"], starts["b"] - centre["b"]])
    lower = 0.5 * ((off / sd) ** 2).sum(1)
    assert lower.max() <= n
    if sd == 1.0:
        np.testing.assert_allclose(off.std(), WIDEST, rtol=0.2)
    else:  # none closer than one step of the search
        assert np.median(lower) > n / 32
    again = dispersed(potential, centre, 200, 0)
    np.testing.assert_array_equal(again["a"], starts["a"])


@pytest.mark.slow
def test_a_narrow_posterior_is_sampled():
    """A learned prior is as narrow as the coefficients of higher order are small: chains began 1e19 nats away."""
    train, _, _ = bl.simulate.simulate(40, 12, seed=1, n_test=2)
    model = bl.Cannon(order=2, label_noise="joint")
    posterior = bl.fit(model, train, bl.NUTS(chains=2, warmup=20, draws=5, max_tree_depth=5), progress=False)
    assert posterior.data["sample_stats"]["lp"].values.min() > -1e4
