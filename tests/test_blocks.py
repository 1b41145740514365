"""A block: values, errors, covariances, names, units and coordinates as they are given and stored."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from astropy import units as u
from astropy.table import MaskedColumn
from astropy.utils.masked import Masked
from five_stars import covariances, same

from bayeslabels.data.stars import Block, Stars
from bayeslabels.errors import BadInput, bad_input

nan, inf = np.nan, np.inf


def test_error_message():
    message = str(bad_input("0 stars", "one", "a cut", "stars[:]"))
    assert message == "got 0 stars, expected one; likely cause: a cut; write: stars[:]"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("<f4", "float32"),
        (">f4", "float32"),
        ("<f8", "float64"),
        (">f8", "float64"),
        (">i2", "float64"),
        ("f2", "float32"),
    ],
)
def test_dtypes(given, stored):
    block = Block(np.arange(6).reshape(3, 2).astype(given), np.ones((3, 2), ">f8"))
    assert block.value.dtype == block.error.dtype == stored
    assert block.value.dtype.isnative
    np.testing.assert_array_equal(block.value, np.arange(6).reshape(3, 2))
    jnp.asarray(block.value)


@pytest.mark.parametrize("bad", [["a", "b"], [1 + 2j], [[1], [1, 2]], [{}]])
def test_not_numbers(bad):
    with pytest.raises(BadInput, match=r"not numeric|inhomogeneous"):
        Block(np.array(bad, dtype=object) if isinstance(bad[0], list | dict) else bad)


@pytest.mark.parametrize("shape", [(), (2, 2, 2), (3, 0)])
def test_bad_value_shape(shape):
    with pytest.raises(BadInput, match="n_star, n_dim"):
        Block(np.ones(shape))


def test_missing_is_missing():
    value = np.array([[1, nan, inf, -inf, 1, 1]])
    error = np.array([[1, 1, 1, 1, nan, inf]])
    block = Block(value, error)
    assert block.observed.tolist() == [[True, False, False, False, False, False]]
    assert block.n_missing == 5
    filled, variance, mask = block.filled()
    assert filled.tolist() == [[1, 0, 0, 0, 0, 0]]
    assert variance.tolist() == [[1] * 6]
    assert (mask == block.observed).all()


@pytest.mark.parametrize(
    "masked",
    [
        np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0]),
        MaskedColumn([1, 2, 3], mask=[0, 1, 0], unit="K"),
        Masked([1.0, 2.0, 3.0] * u.K, mask=[False, True, False]),
        Masked(np.array([1.0, 2.0, 3.0]), mask=[False, True, False]),
        [1.0, None, 3.0],
    ],
)
def test_masked_values(masked):
    block = Block(np.array(masked, dtype=object) if isinstance(masked, list) else masked)
    np.testing.assert_array_equal(block.value, [[1], [nan], [3]])
    assert block.unit == ("K" if hasattr(masked, "unit") else None)


def test_all_missing_star_is_allowed():
    assert not Stars(flux=Block([[nan, nan], [1, 2]], 1.0)).flux.observed[0].any()


@pytest.mark.parametrize("error", [0.1, [0.1, 0.2], np.full((4, 2), 0.1)])
def test_error_shapes(error):
    block = Block(np.ones((4, 2)), error)
    np.testing.assert_array_equal(block.error, np.broadcast_to(error, (4, 2)))
    np.testing.assert_allclose(block.filled()[1], block.error**2)


def test_error_per_star():
    assert Block(np.ones(4), np.arange(1, 5)).error.tolist() == [[1], [2], [3], [4]]
    with pytest.raises(BadInput, match=r"np\.tile"):
        Block(np.ones((4, 2)), np.ones(4))


def test_no_error():
    block = Block([[1.0, nan]])
    assert block.error is None
    assert block.filled()[1].tolist() == [[0, 1]]


@pytest.mark.parametrize("shape", [(3, 2), (4, 3), (3,), (5, 2), (2, 2), (4, 2, 3), (1, 2, 2)])
def test_bad_error_shapes(shape):
    with pytest.raises(BadInput, match=r"error (of shape|has \d+)"):
        Block(np.ones((4, 2)), np.ones(shape))


@pytest.mark.parametrize("bad", [0.0, -1.0, -9999.0])
def test_zero_or_negative_error(bad):
    error = np.ones((4, 2))
    error[1:3, 1] = bad
    match = r"zero or negative in 2 of 8, first at star 1, column LOGG.*Block.from_ivar.*np.nan"
    with pytest.raises(BadInput, match=match):
        Block(np.ones((4, 2)), error, names=("TEFF", "LOGG"))
    value = np.ones((4, 2))
    value[1:3, 1] = nan
    assert Block(value, error).n_missing == 2
    assert (Block(value, error).filled()[1] > 0).all()


def test_error_too_small_for_its_precision():
    Block(np.array([1e-18]), 1e-20)
    with pytest.raises(BadInput, match="square is 0 in float32"):
        Block(np.array([1e-18], np.float32), 1e-20)


def test_from_ivar():
    block = Block.from_ivar([[1, 1, 1]], [[4.0, 0.0, nan]], names=tuple("abc"), unit="K", coords={"x": [1, 2, 3]})
    assert block.error[0, 0] == 0.5
    assert block.observed.tolist() == [[True, False, False]]
    assert (block.names, block.unit, list(block.coords)) == (("a", "b", "c"), "K", ["x"])
    assert Block.from_ivar(np.ones(2, "f4"), np.ones(2)).error.dtype == np.float32
    for bad in (-1.0, inf):
        with pytest.raises(BadInput, match="star 0, column 1"):
            Block.from_ivar(np.ones((2, 2)), [[1, bad], [1, 1]])
    with pytest.raises(BadInput, match="inverse cov"):
        Block.from_ivar(np.ones((5, 3)), covariances())
    assert Block.from_ivar([1] * u.Jy, [4.0] / u.mJy**2).error.item() == pytest.approx(0.5e-3)


def test_covariance():
    cov = covariances()
    cov[1, 0, :] = cov[1, :, 0] = nan
    cov[2, 1, 1] = inf
    value = np.ones((5, 3))
    value[3, 2] = nan
    block = Block(value, cov)
    assert block.has_covariance
    assert np.argwhere(~block.observed).tolist() == [[1, 0], [2, 1], [3, 2]]
    filled = block.filled_covariance()
    assert np.isfinite(filled).all()
    np.linalg.cholesky(filled)
    np.testing.assert_array_equal(filled[0], cov[0])
    np.testing.assert_array_equal(filled[1, 0], [1, 0, 0])
    np.testing.assert_array_equal(filled[3, :2, :2], cov[3, :2, :2])
    np.testing.assert_array_equal(np.diagonal(filled, axis1=1, axis2=2), block.filled()[1])
    np.testing.assert_array_equal(block.select([2, 0]).error, cov[:, [2, 0]][:, :, [2, 0]])
    assert block.select([2]).error.shape == (5, 1, 1)
    diagonal = Block(value, 2.0).filled_covariance()
    assert diagonal[0].tolist() == (4 * np.eye(3)).tolist()


@pytest.mark.parametrize(
    ("entry", "number", "match"),
    [
        ((1, 0, 1), 5.0, "not symmetric"),
        ((1, 0, 1), nan, "not symmetric or not finite"),
        ((1, 2, 2), 0.0, "zero or negative in 1 of 15, first at star 1, column 2"),
        ((1, 2, 2), 1e-4, "not positive definite"),
    ],
)
def test_bad_covariance(entry, number, match):
    cov = covariances()
    cov[entry] = number
    with pytest.raises(BadInput, match=match):
        Block(np.ones((5, 3)), cov)


def test_covariance_in_single_precision():
    cov = covariances(200, 4).astype("f4") * np.float32(1e-8)
    assert Block(np.ones((200, 4), "f4"), cov).error.dtype == np.float32


def test_names():
    assert Block(np.ones((2, 3))).names == ("0", "1", "2")
    assert Block(np.ones((2, 64))).names is not None
    assert Block(np.ones((2, 65))).names is None
    assert Block(np.ones(2), names="TEFF").names == ("TEFF",)
    for bad in (("", "a"), (1, 2), (None, "a"), ("a\n", "b"), {"a", "b"}, ("a",), ("a", "a")):
        with pytest.raises(BadInput, match="names"):
            Block(np.ones((2, 2)), names=bad)


def test_masked_coordinates_are_refused():
    with pytest.raises(BadInput, match="masked"):
        Block(np.ones((3, 2)), coords={"wavelength": np.ma.array([1.0, 2.0], mask=[False, True])})


def test_units():
    assert Block([1.0] * u.km / u.s).unit == "km / s"
    assert Block([1.0], unit=u.K).unit == Block([1.0], unit="K").unit == "K"
    assert Block([1.0]).unit is None
    assert Block([1.0], unit="").unit == ""
    assert Block([[1, 2]], unit=("K", None)).unit == ("K", "")
    assert Block([[1, 2]], unit=("K", None)).units == ("K", "")
    assert Block([[1, 2]], unit=("K", "K")).unit == "K"
    block = Block([1.0] * u.Jy, [100.0] * u.mJy, unit="mJy")
    assert (block.value.item(), block.error.item(), block.unit) == (1000, 100, "mJy")
    block = Block(np.array([1.0], "f4") * u.Jy, 100 * u.mJy)
    assert (block.value.dtype, block.error.item()) == (np.float32, pytest.approx(0.1))
    block = Block([[1.0, 2.0]] * u.Jy, unit=("mJy", "Jy"))
    assert block.value.tolist() == [[1000, 2]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Block([1.0] * u.Jy, unit="K"),
        lambda: Block([1.0] * u.Jy, [1.0] * u.K),
        lambda: Block([1.0], [1.0] * u.K),
        lambda: Block([1.0], unit="notaunit"),
        lambda: Block([[1.0, 2, 3]], unit=("K", "K")),
        lambda: Block([1.0], unit=u.Unit("logg", parse_strict="silent")),
    ],
)
def test_wrong_units(make):
    with pytest.raises(BadInput, match="unit"):
        make()


def test_magnitude_units():
    block = Block([1.0, 2.0] * u.ABmag, [0.1, 0.2] * u.mag)
    assert block.unit == "mag(AB)"
    assert block.error[:, 0].tolist() == [0.1, 0.2]
    table = Stars(magnitudes=block).to_table()
    assert table["magnitudes_error"].unit == u.mag
    same(Stars.from_table(table).magnitudes, block)


def test_coords():
    block = Block(np.ones((2, 3)), coords={"pixel": [1.0, 2, 3], "band": ["g", "r", "i"]})
    assert block.coords["pixel"].tolist() == [1, 2, 3]
    assert block.select([2, 0]).coords["band"].tolist() == ["i", "g"]
    assert block[0].coords["band"].tolist() == ["g", "r", "i"]
    for bad in ([1, 2], [1, 2, 3] * u.AA, [None, 1, 2]):
        with pytest.raises(BadInput, match="coords 'x'"):
            Block(np.ones((2, 3)), coords={"x": bad})
