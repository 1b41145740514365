"""The distribution of what is measured of a star: Gaussian noise, or that of an outlier."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ...numerics.linalg import Array
from ...numerics.whitening import noise_of


class Scattered(dist.Distribution):
    """N(mean, C + diag(extra)), or with probability f N(mean, C + diag(extra) + wide^2 I), of the observed bands.

    stated: C as variances (..., B) or covariances (..., B, B); extra (B,) or (..., B).
    """

    support = dist.constraints.real_vector
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, mean: Array, stated: Array, extra: Array, wide: float, f: Array, observed: Array):
        self.mean_, self.stated, self.wide, self.f = mean, stated, wide, f
        self.extra = jnp.broadcast_to(extra, mean.shape)
        self.seen = jnp.asarray(observed, mean.dtype)
        super().__init__(batch_shape=mean.shape[:-1], event_shape=mean.shape[-1:], validate_args=False)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        which, noise = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        wrong = jax.random.bernoulli(which, self.f, shape)[..., None] if self.wide else 0.0
        whole = jnp.broadcast_to(jnp.ones_like(self.mean_), (*shape, *self.event_shape))
        stated = jnp.broadcast_to(self.stated, (*sample_shape, *self.stated.shape))
        own = noise_of(stated, self.extra + wrong * self.wide**2, whole)
        return self.mean_ + own.coloured(jax.random.normal(noise, whole.shape))

    def log_prob(self, value: Array) -> Array:
        off = (self.seen * (value - self.mean_))[..., None, :]

        def density(wide):
            noise = noise_of(self.stated, self.extra + wide**2, self.seen)
            return -0.5 * ((noise.white(off) ** 2).sum((-2, -1)) + noise.log_det)

        if not self.wide:
            return density(0.0)
        good, bad = jax.vmap(density)(jnp.array([0.0, self.wide], self.mean_.dtype))
        return jnp.logaddexp(jnp.log1p(-self.f) + good, jnp.log(self.f) + bad)
