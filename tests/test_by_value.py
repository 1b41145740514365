"""Models, frames and what else is static for JAX compare and hash by content."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

import bayeslabels as bl
from bayeslabels.core.model import Bound
from bayeslabels.numerics.by_value import ByValue, hashable

PAIRS = {
    "array": (lambda x: bl.Cannon(scatter=x * np.ones(3)), 1.0, 2.0),
    "censor": (lambda x: bl.Cannon(order=1, censor={"TEFF": np.arange(5) < x}), 3, 4),
    "bounds": (lambda x: bl.Cannon(order=1, bounds={"TEFF": (0.0, x)}), 1.0, 2.0),
    "terms": (lambda x: bl.Cannon(terms=[{}, {"TEFF": x}]), 1, 2),
    "masks": (lambda x: bl.Lux(3, masks={"TEFF": np.arange(5) < x}), 3, 4),
    "pairs": (lambda x: bl.Translator(pairs={"a": x}), "a", "b"),
    "prior": (lambda x: bl.Parallax(coefficient_prior=bl.priors.Laplace(x)), 0.1, 0.2),
    "nuisance": (lambda x: bl.Lux(3, nuisances=(bl.nuisances.Templates(x * np.ones((1, 4)), 1.0),)), 1.0, 2.0),
    "photometry": (lambda x: bl.Photometry(zero_point=(0.0, x)), 0.1, 0.2),
}


@pytest.mark.parametrize("name", PAIRS)
def test_models_compare_and_hash_by_content(name):
    make, x, y = PAIRS[name]
    one, same, other = make(x), make(x), make(y)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert len({one, same, other}) == 2
    assert copy.deepcopy(one) == one == pickle.loads(pickle.dumps(one))


class Plain(bl.Cannon):
    """A subclass that is no dataclass of its own."""


@dataclass(frozen=True)
class WithField(bl.Cannon):
    """A subclass with a field that holds an array, decorated as users would."""

    weights: object = None


def test_subclasses_are_values_too_and_differ_from_their_base():
    assert Plain(order=1) == Plain(order=1) != bl.Cannon(order=1)
    assert WithField(weights=np.ones(2)) == WithField(weights=np.ones(2)) != WithField(weights=np.zeros(2))
    assert len({WithField(weights=np.ones(2)), WithField(weights=np.ones(2)), Plain(order=1)}) == 2


def test_a_bound_model_is_static_for_jax(training):
    model = bl.Cannon(order=1, scatter=np.full(12, 0.1))
    seen = []

    def count(bound, x):
        seen.append(1)
        return bound.model.frame.scale[0] * x

    compiled = jax.jit(count, static_argnums=0)
    for stars in (training, training, training[:20]):
        compiled(Bound(model.replace().bind(stars)), 1.0)
    assert len(seen) == 2


def test_content_of_distributions_and_identity_of_what_has_none():
    def mixture(x):
        return dist.MixtureSameFamily(dist.Categorical(np.ones(2) / 2), dist.Normal(np.array([0.0, x]), 1.0))

    assert hashable(mixture(1.0)) == hashable(mixture(1.0)) != hashable(mixture(2.0))
    assert hashable(dist.Normal(0.0, 1.0)) != hashable(dist.Laplace(0.0, 1.0))
    odd = {1}, {1}
    assert hashable(odd[0]) == hashable(odd[0]) != hashable(odd[1])
    assert hash(hashable([{"a": np.ones(2)}, odd[0]])) is not None


@dataclass(frozen=True)
class Some(ByValue):
    x: object


@pytest.mark.parametrize(
    ("a", "b"),
    [(np.ones(2), np.ones(3)), (np.ones(2), np.ones((2, 1))), (np.ones(2), np.ones(2, int)), (1.0, 2.0), ("a", "b")],
)
def test_shape_and_type_are_content(a, b):
    assert Some(a) == Some(copy.copy(a)) != Some(b)
