"""Stars: rows, columns, ids and blocks; immutable, and a pytree of JAX."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from five_stars import five_stars, same

from bayeslabels.data.stars import Block, Stars
from bayeslabels.errors import BadInput

nan = np.nan


@pytest.fixture
def stars():
    return five_stars()


def test_immutable(stars):
    values = np.ones((2, 2))
    block = Block(values, values)
    values[:] = 7
    assert (block.value == 1).all()
    for array in (block.value, block.error, stars.id):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]
    with pytest.raises(AttributeError):
        block.unit = "K"
    with pytest.raises(AttributeError):
        stars.flux = block
    with pytest.raises(TypeError):
        stars.blocks["flux"] = block


ROWS = [
    slice(1, 4),
    slice(None, None, -2),
    np.array([0, 1, 0, 1, 1], bool),
    [3, 0],
    np.array([4, 4, 1]),
    2,
    -1,
    np.int64(0),
]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_rows(stars, rows):
    some = stars[rows]
    index = np.atleast_1d(np.arange(5)[rows])
    assert len(some) == len(index)
    assert some.id.tolist() == stars.id[index].tolist()
    for name, block in stars.blocks.items():
        got = some[name]
        np.testing.assert_array_equal(got.value, block.value[index])
        np.testing.assert_array_equal(got.error, block.error[index])
        assert (got.names, got.unit, got._coords) == (block.names, block.unit, block._coords)
    for name in stars.blocks:
        same(some[name], stars[name][rows])


def test_bad_rows(stars):
    for bad in (5, -6):
        with pytest.raises(IndexError):
            stars[bad]
    for bad in ([True, False], [[1]], [], slice(5, None), np.zeros(5, bool), True):
        with pytest.raises(BadInput):
            stars[bad]
    assert [len(star) for star in stars] == [1] * 5


def test_select(stars):
    labels = stars.labels
    for columns in (["FE_H", "TEFF"], [2, 0], np.array([2, 0]), slice(None, None, -2)):
        got = labels.select(columns)
        assert (got.names, got.unit) == (("FE_H", "TEFF"), ("dex", "K"))
        np.testing.assert_array_equal(got.value, labels.value[:, [2, 0]])
        np.testing.assert_array_equal(got.error, labels.error[:, [2, 0]])
    assert labels.select("TEFF").unit == "K"
    assert labels.select(np.array([True, False, True])).names == ("TEFF", "FE_H")
    with pytest.raises(BadInput, match=r"'TEF'.*TEFF"):
        labels.select("TEF")
    for bad in ([0, 0], []):
        with pytest.raises(BadInput):
            labels.select(bad)


def test_stars(stars):
    assert len(stars) == stars.n_star == 5
    assert "flux" in stars
    assert "reddening" not in stars
    assert stars["flux"] is stars.flux is stars.blocks["flux"]
    assert "flux" in dir(stars)
    assert stars.drop("labels", "flux").id.tolist() == stars.id.tolist()
    assert set(stars.drop("labels").blocks) == {"flux", "parallax", "magnitudes"}
    assert "labels" in stars
    more = stars.with_block(reddening=Block(np.ones(5)), parallax=Block(np.zeros(5)))
    assert "reddening" in more
    assert (more.parallax.value == 0).all()
    assert (stars.parallax.value != 0).all()
    assert Stars(a=Block(np.ones(3))).id.tolist() == [0, 1, 2]


def test_stars_without_blocks(stars):
    bare = stars.drop(*stars.blocks)
    assert len(bare) == 5
    assert len(bare[1:3]) == 2
    assert jax.jit(lambda s: jnp.ones(len(s)))(bare).shape == (5,)
    assert len(Stars(id=range(7))) == 7


def test_stars_refuse(stars):
    block = Block(np.ones(5))
    with pytest.raises(BadInput, match="length"):
        Stars(a=block, b=Block(np.ones(4)))
    with pytest.raises(BadInput, match="0 stars"):
        Stars(a=Block(np.ones((0, 2)), np.ones((0, 2))))
    with pytest.raises(BadInput):
        Stars()
    with pytest.raises(BadInput, match="a Block; write: flux=Block"):
        Stars(flux=np.ones(3))
    with pytest.raises(BadInput, match="4"):
        stars.with_block(b=Block(np.ones(4)))
    for name in ("blocks", "drop", "flux_error", "_x", "n_star", "flux_ivar", "x_coords"):
        with pytest.raises(BadInput, match="block named"):
            Stars(**{name: block})
    with pytest.raises(BadInput, match=r"'fluxx'.*'flux'"):
        stars["fluxx"]
    with pytest.raises(BadInput, match="'fluxx'"):
        stars.drop("fluxx")
    with pytest.raises(AttributeError, match="no block 'fluxx', only labels"):
        _ = stars.fluxx


def test_ids():
    block = Block(np.ones(4))
    with pytest.raises(BadInput, match=r"1 duplicated ids \(b\).*unique"):
        Stars(id=["a", "b", "b", "c"], x=block)
    with pytest.raises(BadInput, match=r"5 duplicated ids \(0, 1, 2, ...\)"):
        Stars(id=np.arange(10) % 5, x=Block(np.ones(10)))
    for bad in (
        [1.0, 2, 3, 4],
        [[1, 2], [3, 4]],
        ["a", "b", None, "c"],
        np.ma.array([1, 2, 3, 4], mask=[1, 0, 0, 0]),
    ):
        with pytest.raises(BadInput, match="one string or integer"):
            Stars(id=bad, x=block)
    with pytest.raises(BadInput, match="length"):
        Stars(id=[1, 2], x=block)
    assert Stars(id=np.array([b"a", b"b", b"c", b"d"]), x=block).id.tolist() == ["a", "b", "c", "d"]
    assert Stars(id=np.arange(4, dtype=">i8"), x=block).id.dtype.isnative


def test_repr(stars):
    text = repr(stars)
    assert text.splitlines()[0] == "Stars(5)"
    assert "labels: (5, 3), [K, -, dex], error, 6.67% missing" in text
    assert "magnitudes: (5, 3), [mag], covariance, 0% missing" in text
    assert max(map(len, text.splitlines())) < 80
    jax.jit(lambda s: repr(s) and s.flux.value)(stars)
    repr(jax.tree.map(lambda x: None, stars))
    repr(jax.tree.map(lambda x: object(), stars))


def test_copies(stars):
    for twin in (copy.copy(stars), copy.deepcopy(stars), pickle.loads(pickle.dumps(stars))):
        for name in stars.blocks:
            same(twin[name], stars[name])


def test_pytree(stars):
    leaves, tree = jax.tree.flatten(stars)
    assert len(leaves) == 8
    again = jax.tree.unflatten(tree, leaves)
    assert again.id is None
    assert len(again) == 5
    for name in stars.blocks:
        same(again[name], stars[name])
    assert jax.tree.structure(stars[:2]) == tree
    half = jax.tree.map(lambda x: x[:2], stars)
    assert len(half) == 2
    assert half.labels.names == ("TEFF", "LOGG", "FE_H")
    assert jax.tree.map(lambda x: 0, stars).flux.value == 0
    assert jax.tree.structure(Block([1.0])) != jax.tree.structure(Block([1.0], 1.0))


def test_jit_caches_and_agrees(stars):
    traces = []

    @jax.jit
    def chi2(s):
        traces.append(1)
        total = 0.0
        for name in s.blocks:
            value, variance, mask = s[name].filled()
            total += (mask * value**2 / variance).sum()
            total += jnp.trace(s[name].filled_covariance().sum(0))
        return total + s.labels.select("LOGG").n_dim + s[1:3].flux.value.sum()

    with np.errstate(all="raise"):
        first = chi2(stars)
    renamed = Stars(id=range(5), **{name: stars[name][:] for name in reversed(list(stars.blocks))})
    assert chi2(renamed) == first
    coords = {"pixel": np.linspace(4000, 5000, 70)}
    chi2(stars.with_block(flux=Block(stars.flux.value, 0.01, unit="Jy", coords=coords)))
    assert len(traces) == 1
    chi2(stars.with_block(flux=Block(stars.flux.value, 0.01, unit="mJy", coords=coords)))
    assert len(traces) == 2
    expected = 0.0
    for block in stars.blocks.values():
        value, variance, mask = block.filled()
        expected += (mask * value**2 / variance).sum() + np.trace(block.filled_covariance().sum(0))
    expected += 1 + stars[1:3].flux.value.sum()
    np.testing.assert_allclose(first, expected, rtol=1e-5)


def test_gradient_through_missing(stars):
    def loss(s):
        value, variance, mask = s.labels.filled()
        return (mask * value**2 / variance).sum()

    gradient = jax.grad(loss)(stars.drop("parallax"))
    assert np.isfinite(gradient.labels.value).all()
    assert gradient.labels.value[2, 1] == 0
    with_missing = Stars(labels=Block([[1.0, 2.0]], [[1.0, nan]]))
    assert np.isfinite(jax.grad(loss)(with_missing).labels.error).all()
