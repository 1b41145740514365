"""Two factorisations of matrices of stars in one program have an order: on two cores they would wait for each other."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

import bayeslabels as bl
from bayeslabels.inference.starwise import _draw_stars
from bayeslabels.kinds.spectra.training import evidence
from bayeslabels.numerics.modes import Modes
from bayeslabels.simulate import simulate_xp

NAMES = re.compile(r"%([\w.\-]+)")


def without_order(program: str) -> list[tuple[str, str]]:
    """Pairs of LAPACK's factorisations in compiled HLO of which neither needs the other's outcome."""
    found = []
    for computation in re.split(r"\n(?=\S)", program):
        needs: dict[str, set[str]] = {}
        for line in computation.split("\n"):
            if name := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line):
                needs[name[1]] = set(NAMES.findall(name[2].split(", metadata")[0]))
        before: dict[str, set[str]] = {}
        for name, of in needs.items():  # operands stand above
            before[name] = of.union(*(before.get(x, set()) for x in of))
        several = [
            name
            for name in needs
            if re.search(rf"%{re.escape(name)} = .*lapack_\w*(potrf|getrf|syevd|geqrf)", computation)
        ]
        found += [
            (a, b) for i, a in enumerate(several) for b in several[:i] if a not in before[b] and b not in before[a]
        ]
    return found


def compiled(function, *args) -> str:
    return jax.jit(function).lower(*args).compile().as_text()


def test_pairs_without_an_order_are_seen():
    with jax.enable_x64(True):
        c = np.tile(np.eye(4), (64, 1, 1))
        both = compiled(lambda a, b: (jax.numpy.linalg.cholesky(a), jax.numpy.linalg.slogdet(b)[1]), c, c)
        one = compiled(lambda a: jax.numpy.linalg.cholesky(jax.numpy.linalg.cholesky(a) + a), c)
    assert len(without_order(both)) == 1
    assert not without_order(one)


@pytest.mark.parametrize("starts", [1, 3])
def test_draws_from_modes(starts):
    n, m = 64, 4
    covariance = np.tile(np.eye(m), (starts, n, 1, 1))
    modes = Modes(np.zeros((starts, n, m)), covariance, np.zeros((starts, n)), np.ones((starts, n), bool))
    with jax.enable_x64(True):
        draw = lambda z, which, modes: _draw_stars(z, which, modes, None)  # noqa: E731
        assert not without_order(compiled(draw, np.zeros((n, 20, m)), np.zeros((n, 20, 1)), modes))


def test_the_evidence_of_latents():
    n, k = 64, 4
    args = np.zeros((n, k, k)), np.zeros((n, k)), np.zeros(n), np.zeros((n, k)), np.zeros((n, k))
    with jax.enable_x64(True):
        assert not without_order(compiled(evidence, *args, np.tile(np.eye(k), (n, 1, 1)), np.eye(k)))


def test_what_spectra_with_covariances_tell_of_a_photometric_model():
    stars = simulate_xp(40, n_pixel=3, bands=("J", "Ks"), seed=1)[0]
    model = bl.Photometry(function="polynomial", order=1, components=1, members=1).bind(stars)
    theta, data = model.start(stars, 0), model.arrays(stars)
    with jax.enable_x64(True):
        assert not without_order(compiled(model.linear_part.told, theta, data))
