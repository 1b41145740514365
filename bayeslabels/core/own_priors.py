"""Priors of the user's own: a distribution of NumPyro in the place of a prior of this package.

The model's program samples from it, so `NUTS` and `SVI` train the model, and any test-step inference answers. Exact
routes need the forms of `priors` and refuse it; a model file holds no code, and refuses it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpyro
from numpyro.distributions import Distribution, TransformedDistribution
from numpyro.distributions.transforms import AffineTransform

from ..errors import bad_input
from ..numerics.by_value import ByValue
from ..numerics.linalg import Array


@dataclass(frozen=True)
class OwnPrior(ByValue):
    """A distribution of the user's own where models ask a prior of `priors` for coefficients."""

    distribution: Distribution

    def sample(self, name: str, n_pixel: int, n_feature: int, scale: float) -> Array:
        """Coefficients (L, K), the constant feature's included, in flux units."""
        return numpyro.sample(name, fitted(name, self.distribution, (n_pixel, n_feature)))

    def sample_sparse(self, name: str, n: int) -> Array:
        """(n,)"""
        return numpyro.sample(name, fitted(name, self.distribution, (n,)))


def fitted(name: str, own: Distribution, shape: tuple[int, ...]) -> Distribution:
    """The distribution of an array of this shape, from one of the whole array, of its last axes, or of one number."""
    n_batch = len(shape) - len(own.event_shape)
    batch, event = shape[: max(n_batch, 0)], shape[max(n_batch, 0) :]
    try:
        fits = n_batch >= 0 and own.event_shape == event and np.broadcast_shapes(own.batch_shape, batch) == batch
    except ValueError:
        fits = False
    if not fits:
        got = f"a prior of {name} of shape {(*own.batch_shape, *own.event_shape)}"
        raise bad_input(got, f"{shape}, or one number", "the axes of the array in another order")
    wide = own.expand(batch)
    return wide.to_event(len(batch)) if batch else wide


def scaled(name: str, own: Distribution, scale: Array) -> Distribution:
    """The distribution of scale (M,) times positive numbers, each of which has this distribution."""
    single = own.expand(np.shape(scale))
    return TransformedDistribution(single, AffineTransform(0.0, scale, domain=own.support)).to_event(1)


def is_own(name: str, prior: Any) -> bool:
    """Whether the argument `name` of a model is a distribution; refuses one that nothing here can sample."""
    if isinstance(prior, type) and issubclass(prior, Distribution):
        raise bad_input(f"{name}={prior.__name__}, a class", "a distribution", fix=f"{name}={prior.__name__}(...)")
    if not isinstance(prior, Distribution):
        return False
    if prior.support.is_discrete:
        raise bad_input(f"{name}={type(prior).__name__}, which is discrete", "a distribution of real numbers")
    return True


def is_own_scatter(name: str, prior: Any) -> bool:
    """`is_own` of a prior of positive numbers, each on its own."""
    if not is_own(name, prior):
        return False
    if prior.event_shape:
        got = f"{name} with events of shape {prior.event_shape}"
        raise bad_input(got, "a distribution of single numbers", fix="without to_event")
    low = getattr(prior.support, "lower_bound", None)
    if low is None or not (np.asarray(low) >= 0).all():
        raise bad_input(f"{name}={type(prior).__name__} of {prior.support}", "a distribution of positive numbers")
    return True
