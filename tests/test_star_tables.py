"""Stars from tables of every kind, and tables of stars."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table
from five_stars import five_stars, same

from bayeslabels.data.stars import Block, Stars
from bayeslabels.errors import BadInput

nan, inf = np.nan, np.inf


@pytest.fixture
def stars():
    return five_stars()


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
