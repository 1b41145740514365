"""The distribution of what is measured of a star: Gaussian noise, or that of an outlier."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ...numerics.linalg import Array
from ...numerics.whitening import noise_of


class Scattered(dist.Distribution):
    """N(mean, C + K diag(extra) K), or with probability f N(mean, C + K diag(extra + wide^2) K), K = diag(change), of
    the observed channels; times `unit`.

    stated: C as variances (..., B) or covariances (..., B, B); extra (B,) or (..., B), f () or (...).
    """

    support = dist.constraints.real_vector
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, mean: Array, stated: Array, extra: Array, wide: float, f: Array, observed: Array, change: Array,
        unit: float = 1.0,
    ):  # fmt: skip
        self.mean_, self.stated, self.wide, self.f, self.change, self.unit = mean, stated, wide, f, change, unit
        self.extra = jnp.broadcast_to(extra, mean.shape)
        self.seen = jnp.asarray(observed, mean.dtype)
        super().__init__(batch_shape=mean.shape[:-1], event_shape=mean.shape[-1:], validate_args=False)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        which, noise = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        wrong = jax.random.bernoulli(which, self.f, shape)[..., None] if self.wide else 0.0
        whole = jnp.broadcast_to(jnp.ones_like(self.mean_), (*shape, *self.event_shape))
        stated = jnp.broadcast_to(self.stated, (*sample_shape, *self.stated.shape))
        own = noise_of(stated, (self.extra + wrong * self.wide**2) * self.change**2, whole)
        return self.unit * (self.mean_ + own.coloured(jax.random.normal(noise, whole.shape)))

    def log_prob(self, value: Array) -> Array:
        each = self._each(value)
        return each[0] if len(each) == 1 else jnp.logaddexp(*self._weighted(each))

    def outlier_given(self, value: Array) -> Array:
        """The probability (...) that a star is an outlier, given these channels."""
        each = self._each(value)
        if len(each) == 1:
            return self.f
        good, bad = self._weighted(each)
        return jax.nn.sigmoid(bad - good)

    def _weighted(self, each: Array) -> tuple[Array, Array]:
        f = jnp.clip(self.f, 1e-30, 1 - 1e-7)
        return jnp.log1p(-f) + each[0], jnp.log(f) + each[1]

    def _each(self, value: Array) -> Array:
        """ln p of good stars, and of outliers if there are any, in one factorisation."""
        off = (self.seen * (value / self.unit - self.mean_))[..., None, :]

        def density(wide: Array) -> Array:
            noise = noise_of(self.stated, (self.extra + wide**2) * self.change**2, self.seen)
            return -0.5 * ((noise.white(off) ** 2).sum((-2, -1)) + noise.log_det)

        widths = jnp.array([0.0, self.wide] if self.wide else [0.0], self.mean_.dtype)
        return jax.vmap(density)(widths) - self.seen.sum(-1) * np.log(self.unit)
