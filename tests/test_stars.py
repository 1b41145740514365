from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked

from bayeslabels.data.stars import Block, Stars
from bayeslabels.errors import BadInput, bad_input

nan, inf = np.nan, np.inf


def covariances(n_star=5, n_dim=3, seed=0):
    a = np.random.default_rng(seed).normal(size=(n_star, n_dim, n_dim))
    cov = a @ a.swapaxes(1, 2) + np.eye(n_dim)
    return (cov + cov.swapaxes(1, 2)) / 2


@pytest.fixture
def stars():
    rng = np.random.default_rng(1)
    labels = rng.normal(size=(5, 3))
    labels[2, 1] = nan
    return Stars(
        id=["a", "b", "c", "d", "e"],
        labels=Block(labels, [50.0, 0.1, 0.05], names=("TEFF", "LOGG", "FE_H"), unit=("K", None, "dex")),
        flux=Block(rng.normal(size=(5, 70)), 0.01, unit="Jy", coords={"pixel": np.linspace(4000, 5000, 70)}),
        parallax=Block(rng.normal(size=5), np.full(5, 0.1), unit="mas"),
        magnitudes=Block(rng.normal(size=(5, 3)), covariances(), names=("g", "r", "i"), unit="mag"),
    )


def same(a: Block, b: Block) -> None:
    np.testing.assert_array_equal(a.value, b.value)
    if a.error is None:
        assert b.error is None
    else:
        np.testing.assert_array_equal(a.error, b.error)
    assert (a.names, a.unit, a._coords) == (b.names, b.unit, b._coords)


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


def table():
    return Table(
        {
            "NAME": ["x", "y", "z"],
            "TEFF": MaskedColumn([5000, 6000, 7000], mask=[0, 1, 0], unit="K"),
            "LOGG": np.array([4.0, nan, 2.0], ">f8"),
            "TEFF_ERR": [100.0, 100.0, 100.0] * u.K,
            "LOGG_ERR": [0.1, 0.1, inf],
            "FLUX": np.ones((3, 4), "f4") * u.Jy,
            "IVAR": np.array([[1, 0, 4, 1]] * 3, "f4"),
            "PLX": [1.0, -1.0, 0.1] * u.mas,
        }
    )


KEYS = {
    "id": "NAME",
    "labels": ("TEFF", "LOGG"),
    "labels_error": ("TEFF_ERR", "LOGG_ERR"),
    "flux": "FLUX",
    "flux_ivar": "IVAR",
    "flux_coords": {"pixel": np.arange(4)},
    "parallax": "PLX",
    "parallax_error": 0.1,
    "parallax_unit": "uas",
}


def as_fits(table):
    return fits.BinTableHDU(table).data


def as_pandas(table):
    frame = pytest.importorskip("pandas").DataFrame({n: list(table[n]) for n in ("FLUX", "IVAR")})
    for name in ("NAME", "LOGG", "TEFF_ERR", "LOGG_ERR", "PLX"):
        frame[name] = np.asarray(table[name], object if name == "NAME" else float)
    frame["TEFF"] = frame["LOGG"].astype("Float64") * 0 + [5000, 6000, 7000]
    return frame


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: t, id="Table"),
        pytest.param(QTable, id="QTable"),
        pytest.param(lambda t: dict(t.columns), id="dict"),
        pytest.param(as_fits, id="FITS_rec"),
        pytest.param(lambda t: t.filled(nan).as_array(), id="array"),
        pytest.param(as_pandas, id="pandas"),
    ],
)
def test_from_table(change, request):
    kind, source = request.node.callspec.id, table()
    if kind == "array":
        source["TEFF"] = source["TEFF"].astype(float)
    stars = Stars.from_table(change(source), **KEYS)
    assert stars.id.tolist() == ["x", "y", "z"]
    assert stars.labels.names == ("TEFF", "LOGG")
    assert stars.labels.observed.tolist() == [[True, True], [False, False], [True, False]]
    assert stars.flux.value.dtype == (np.float64 if kind == "pandas" else np.float32)
    np.testing.assert_array_equal(stars.flux.error[0], [1, nan, 0.5, 1])
    assert stars.flux.coords["pixel"].tolist() == [0, 1, 2, 3]
    assert stars.parallax.names == ("PLX",)
    assert stars.parallax.unit == "uas"
    if kind in ("array", "pandas"):
        assert stars.labels.unit is None
    else:
        assert stars.labels.unit == ("K", "")
        assert stars.flux.unit == "Jy"
        assert stars.parallax.value[0, 0] == pytest.approx(1000)
    assert (stars.parallax.error == 0.1).all()


def test_vector_columns_side_by_side():
    bp, rp = np.arange(6.0).reshape(2, 3), np.ones((2, 2))
    flux = Stars.from_table(
        {"BP": bp, "RP": rp, "E": 0.1 * bp + 1, "F": rp}, flux=("BP", "RP"), flux_error=("E", "F")
    ).flux
    np.testing.assert_array_equal(flux.value, np.hstack([bp, rp]))
    np.testing.assert_array_equal(flux.error[1], [1.3, 1.4, 1.5, 1, 1])
    assert flux.names == ("0", "1", "2", "3", "4")


def test_from_table_refuses():
    def refused(match, source=None, **changes):
        keys = {key: value for key, value in {**KEYS, **changes}.items() if value is not None}
        with pytest.raises(BadInput, match=match):
            Stars.from_table(table() if source is None else source, **keys)

    refused(r"column 'TEF'.*'TEFF'", labels=("TEF", "LOGG"))
    refused(r"column 'FLX'.*'FLUX'", flux="FLX")
    refused("column 'ID'", id="ID")
    refused("names", labels=("TEFF", "TEFF"))
    refused(
        "labels has 2 columns but labels_error has 1: give one error per label, or omit labels_error",
        labels_error=("TEFF_ERR",),
    )
    refused("vector column among", labels=("TEFF", "FLUX"))
    refused("both flux_error and flux_ivar", flux_error="IVAR")
    refused("radius_error without radius", radius_error="PLX")
    refused("write: flux_error='IVAR'", flux_err="IVAR")
    refused("the name of a column", flux=np.ones(3))
    refused(r"flux_error zero or negative in 3 of 12.*flux_ivar=", flux_ivar=None, flux_error="IVAR")
    refused("labels_error in 'mas'", labels_error=("PLX", "LOGG_ERR"))
    refused("not numeric", flux="NAME", flux_ivar=None, flux_coords=None)
    refused("Table.read", source="stars.fits")
    odd = table()
    odd["LOGG"].unit = u.Unit("log(cgs)", parse_strict="silent")
    refused(r"unit 'log\(cgs\)' of labels.*labels_unit=", source=odd)
    keys = {**KEYS, "labels_unit": ("K", "")}
    assert Stars.from_table(odd, **keys).labels.unit == ("K", "")
    with pytest.raises(BadInput):
        Stars.from_table(table())


def test_fits_null():
    column = fits.Column("TEFF", "J", unit="K", null=-9999, array=np.array([5000, -9999]))
    labels = Stars.from_table(fits.BinTableHDU.from_columns([column]).data, labels=("TEFF",)).labels
    assert labels.observed.tolist() == [[True], [False]]
    assert labels.unit == "K"


def test_to_table(stars):
    out = stars.to_table()
    assert isinstance(out, QTable)
    assert out["TEFF"].unit == u.K
    assert out["TEFF_error"].unit == u.K
    assert out["flux"].shape == (5, 70)
    assert out["flux_error"].unit == u.Jy
    assert out["magnitudes_error"].shape == (5, 3, 3)
    assert list(out.columns)[:4] == ["id", "TEFF", "LOGG", "FE_H"]
    keys = {"labels": ("TEFF", "LOGG", "FE_H"), "labels_error": ("TEFF_error", "LOGG_error", "FE_H_error")}
    same(Stars.from_table(out, id="id", **keys).labels, stars.labels)


@pytest.mark.filterwarnings("ignore:The unit 'dex' could not be saved in native FITS")
@pytest.mark.parametrize("how", ["memory", "fits", "ascii.ecsv"])
def test_round_trip(stars, how, tmp_path):
    rng = np.random.default_rng(2)
    stars = stars.with_block(
        target_labels=Block(rng.normal(size=(5, 2)).astype("f4"), names=("TEFF", "RV"), unit=("K", "km/s")),
        mixed=Block(rng.normal(size=(5, 2)), [1, 2], unit=("K", "km/s")),
    )
    for some in (stars, stars.drop("flux")[1:4], jax.tree.map(np.asarray, stars)):
        out = some.to_table()
        if how != "memory":
            out.write(tmp_path / "stars", format=how, overwrite=True)
            out = QTable.read(tmp_path / "stars", format=how)
        back = Stars.from_table(out)
        assert list(back.blocks) == list(some.blocks)
        for name in some.blocks:
            same(back[name], some[name])
        assert back.id.tolist() == (list(range(5)) if some.id is None else some.id.tolist())


def test_to_table_refuses_colliding_names():
    block = Block(np.ones(3), names="x")
    stars = Stars(b_x=Block(np.ones(3)), a=block, b=block)
    with pytest.raises(BadInput, match="two columns 'b_x'"):
        stars.to_table()
