"""Every way into the package, of every format: units, what is missing, and ids come through as they were written."""

from __future__ import annotations

import gzip

import h5py
import numpy as np
import pytest
import xarray as xr
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table
from astropy.time import Time

import bayeslabels as bl
from bayeslabels.files.sources import Source, read_stars, stars_of
from bayeslabels.files.streams import open_stream
from bayeslabels.files.tables import read_table, write_table

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq

LONG = 4611686018427387905  # as a float it is its neighbours, too
COLUMNS = {"magnitudes": ["G", "COUNT"], "flux": "FLUX", "id": "ID"}


def table(n, ids="integer"):
    """A magnitude in mmag with a gap, an integer column with a gap, spectra with gaps, and ids."""
    gap = np.arange(n) == 1
    names = {
        "integer": LONG + 2 * np.arange(n), "text": np.array([f"star{i}{'x' * i}" for i in range(n)]),
        "masked integer column": MaskedColumn(LONG + 2 * np.arange(n), mask=np.zeros(n, bool)),
    }  # fmt: skip
    out = Table({"ID": names[ids]})
    out["G"] = MaskedColumn(12000.0 + np.arange(n), mask=gap, unit="mmag")
    out["COUNT"] = MaskedColumn(np.arange(n), mask=gap)
    flux = 1 + 0.01 * np.arange(4.0 * n).reshape(n, 4)
    flux[gap, 2] = np.nan
    out["FLUX"] = flux
    return out


def as_arrow(rows, path):
    arrays, fields = [], []
    for name in rows.colnames:
        column = rows[name]
        values, mask = np.ma.getdata(column), np.ma.getmaskarray(column)
        if np.ndim(values) == 2:
            arrays.append(pa.array([None if np.isnan(x).all() else x.tolist() for x in np.asarray(values)]))
        else:
            arrays.append(pa.array(np.asarray(values).tolist(), mask=mask))
        unit = {"unit": str(column.unit)} if column.unit else None
        fields.append(pa.field(name, arrays[-1].type, metadata=unit))
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), path)


def as_hdf5(rows, path):
    with h5py.File(path, "w") as file:
        for name in rows.colnames:
            column = rows[name]
            values = np.asarray(np.ma.filled(column.astype(float), np.nan) if np.ma.is_masked(column) else column)
            file[name] = values.astype(h5py.string_dtype()) if values.dtype.kind == "U" else values
            if column.unit:
                file[name].attrs["unit"] = str(column.unit)


def as_votable_of_text(rows, path):
    """As archives write it: what is masked is an empty cell."""
    rows.write(path, format="votable")


WRITERS = {
    "a.fits": lambda rows, path: rows.write(path),
    "a.fits.gz": lambda rows, path: rows.write(path, format="fits"),
    "a.ecsv": lambda rows, path: rows.write(path),
    "astropy.parquet": lambda rows, path: rows.write(path),
    "arrow.parquet": as_arrow,
    "a.hdf5": as_hdf5,
    "a.vot": lambda rows, path: rows.write(path, format="votable", tabledata_format="binary2"),
    "text.vot": as_votable_of_text,
}


def whole(path):
    return stars_of(read_table(path), COLUMNS, {})


def streamed(path):
    source = Source.of(path, None, lambda names: COLUMNS)
    parts = [source.stars(part) for part in source.tables(0, 2)]
    return parts


@pytest.mark.parametrize("ids", ["integer", "text", "masked integer column"])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("name", WRITERS)
def test_units_gaps_and_ids_come_through(tmp_path, name, n, ids):
    rows = table(n, ids)
    path = tmp_path / name
    WRITERS[name](rows, path)
    ways = {"streamed": streamed(path)}
    if not name.endswith("hdf5"):  # which is read in streams alone
        ways["whole"] = [whole(path)]
    for way, parts in ways.items():
        magnitudes = np.concatenate([x.magnitudes.value for x in parts])
        expected = np.column_stack([12000.0 + np.arange(n), np.arange(n)])
        expected[np.arange(n) == 1] = np.nan
        np.testing.assert_allclose(magnitudes, expected, err_msg=way)
        assert parts[0].magnitudes.units[0] == "mmag"
        found = np.concatenate([x.id for x in parts])
        assert [str(x) for x in found] == [str(x) for x in rows["ID"]]
        flux = np.concatenate([x.flux.value for x in parts])
        np.testing.assert_array_equal(flux, rows["FLUX"])


@pytest.mark.filterwarnings("ignore:The unit 'dex' could not be saved")
@pytest.mark.parametrize("name", [x for x in WRITERS if x.split(".")[-1] not in ("hdf5", "vot")])
def test_the_packages_own_tables_come_back(tmp_path, name):
    if name.startswith("arrow"):
        pytest.skip("Arrow alone keeps nothing of an astropy table's meta")
    stars = bl.Stars(
        labels=bl.Block([[5000.0, 2.0], [np.nan, 3.0]], [[50.0, 0.1]] * 2, names=("T", "L"), unit=("K", "dex")),
        flux=bl.Block(np.ones((2, 3)), 0.1), id=["a", "b"],
    )  # fmt: skip
    path = tmp_path / name
    stars.to_table().write(path, **({"format": "fits"} if name.endswith("gz") else {}))
    back = bl.Stars.from_table(read_table(path))
    for block in ("labels", "flux"):
        for of in ("value", "error"):
            np.testing.assert_array_equal(getattr(back[block], of), getattr(stars[block], of))
        assert (back[block].names, back[block].units) == (stars[block].names, stars[block].units)
    assert back.id.tolist() == ["a", "b"]
    named = {"labels": ["T", "L"], "labels_error": ["T_error", "L_error"], "flux": "flux", "id": "id"}
    np.testing.assert_array_equal(read_stars(str(path), named).labels.value, stars.labels.value)


@pytest.mark.parametrize("masked", [False, True])
def test_quantities_of_astropy_in_parquet(tmp_path, masked):
    values = np.array([1.0, 2.0]) * u.mas
    if masked:
        from astropy.utils.masked import Masked

        values = Masked(values, mask=[False, True])
    QTable({"plx": values}).write(tmp_path / "q.parquet")
    part = next(open_stream(tmp_path / "q.parquet").read(0, 2, ["plx"]))
    block = bl.Stars.from_table(part, parallax="plx").parallax
    assert block.units == ("mas",)
    np.testing.assert_array_equal(block.value[:, 0], [1.0, np.nan if masked else 2.0])


@pytest.mark.parametrize("scale", [0.001, 1.0])
def test_the_null_of_a_scaled_fits_column_is_as_stored(tmp_path, scale):
    hdu = fits.BinTableHDU.from_columns(
        [fits.Column(name="MAG", format="I", array=np.array([12345, -32768, 11000], np.int16), null=-32768)]
    )
    hdu.header["TSCAL1"], hdu.header["TZERO1"] = scale, 0.0
    hdu.writeto(tmp_path / "s.fits")
    expected = np.array([12345 * scale, np.nan, 11000 * scale])
    with fits.open(tmp_path / "s.fits") as hdus:
        for rows in (
            read_table(tmp_path / "s.fits"),
            next(open_stream(tmp_path / "s.fits").read(0, 3, ["MAG"])),
            hdus[1].data,
        ):
            np.testing.assert_allclose(bl.Stars.from_table(rows, magnitudes="MAG").magnitudes.value[:, 0], expected)


def as_logical(path):
    fits.BinTableHDU.from_columns([fits.Column(name="X", format="L", array=np.array([1, 0, 1], bool))]).writeto(path)
    path.write_bytes(path.read_bytes().replace(b"TFT", b"T\0T"))


def as_lists(path):
    rows = np.empty(3, object)
    rows[:] = [np.array([1], np.int32), np.array([-9], np.int32), np.array([1], np.int32)]
    fits.BinTableHDU.from_columns([fits.Column(name="X", format="PJ()", array=rows, null=-9)]).writeto(path)


def as_text(path):
    column = fits.Column(name="X", format="I6", array=np.array([1, 7, 1]), null="7", ascii=True)
    fits.TableHDU.from_columns([column]).writeto(path)


def as_unsigned(path):
    column = fits.Column(name="X", format="I", array=np.array([1, 65535, 1], np.uint16), bzero=32768, null=32767)
    fits.BinTableHDU.from_columns([column]).writeto(path)


@pytest.mark.filterwarnings("ignore:.*contains NULL")
@pytest.mark.parametrize("write", [as_logical, as_lists, as_text, as_unsigned])
def test_nulls_of_every_type_of_fits_column(tmp_path, write):
    """The number, text or byte that stands for nothing, as it is stored; in FITS records, too, but for lists."""
    write(tmp_path / "n.fits")
    np.testing.assert_array_equal(
        bl.Stars.from_table(read_table(tmp_path / "n.fits"), x="X").x.value[:, 0], [1, np.nan, 1]
    )
    if write is not as_lists:
        rows = fits.getdata(tmp_path / "n.fits")
        np.testing.assert_array_equal(bl.Stars.from_table(rows, x="X").x.value[:, 0], [1, np.nan, 1])


def test_units_and_nulls_of_netcdf(tmp_path):
    """The conventions of netCDF: an attribute `units`, and numbers that stand for what is missing."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, dtype in (("x", float), ("n", np.int16), ("f", np.float32)):
            file[name] = np.array([1, -99, 3], dtype)
            file[name].attrs["units"] = np.bytes_("mas")
            file[name].attrs["missing_value" if name == "n" else "_FillValue"] = np.array([-99], dtype)
    table = read_table(tmp_path / "a.h5")
    for name in ("x", "n", "f"):
        block = bl.Stars.from_table(table, x=name).x
        assert block.units == ("mas",)
        np.testing.assert_array_equal(block.value[:, 0], [1, np.nan, 3])
    block = bl.Stars.from_table(xr.Dataset({"x": ("star", [1.0, 2.0], {"units": "mas"})}), x="x").x
    assert block.units == ("mas",)


@pytest.mark.parametrize("word", ["--", "NA", "N/A", "...", "None", "<NA>", "nan", "null", " - ", ""])
def test_words_for_what_is_missing_among_numbers_in_csv(tmp_path, word):
    """Long integers stay what they are, and texts in which such a word stands stay texts."""
    (tmp_path / "a.csv").write_text(f"id,x,n,name\n1,1.5,{LONG},{word}\n2,{word},{LONG + 2},b\n3,-2,,c\n")
    table = read_table(tmp_path / "a.csv")
    np.testing.assert_array_equal(bl.Stars.from_table(table, x="x").x.value[:, 0], [1.5, np.nan, -2])
    assert table["n"].tolist() == [LONG, LONG + 2, None]
    assert table["name"].tolist()[1:] == ["b", "c"]
    (tmp_path / "a.csv").write_text(f"id\n{LONG}\n{word or 'NA'}\n")
    assert read_table(tmp_path / "a.csv")["id"].tolist() == [LONG, None]
    (tmp_path / "a.csv").write_text(f"id\n{2**63 + 5}\n{word or 'NA'}\n")
    assert read_table(tmp_path / "a.csv")["id"].tolist() == [2**63 + 5, None]


def twice_in_csv(path):
    path.write_text("id,x,x\n1,2,3\n")


def twice_in_ecsv(path):
    columns = "# - {name: x, datatype: float64}\n" * 2
    path.write_text(f"# %ECSV 1.0\n# ---\n# datatype:\n{columns}x x\n1 2\n")


def twice_in_votable(path):
    fields = '<FIELD name="x" datatype="double"/>' * 2
    cells = "<DATA><TABLEDATA><TR><TD>1</TD><TD>2</TD></TR></TABLEDATA></DATA>"
    path.write_text(f'<VOTABLE version="1.4"><RESOURCE><TABLE>{fields}{cells}</TABLE></RESOURCE></VOTABLE>')


def twice_in_parquet(path):
    pq.write_table(pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["x", "x"]), path)


def twice_in_fits(path):
    Table({"x": [1.0], "y": [2.0]}).write(path)
    path.write_bytes(path.read_bytes().replace(b"TTYPE2  = 'y", b"TTYPE2  = 'x"))


@pytest.mark.parametrize(
    ("write", "suffix"),
    [(twice_in_csv, "csv"), (twice_in_ecsv, "ecsv"), (twice_in_votable, "vot"), (twice_in_parquet, "parquet"),
     (twice_in_fits, "fits")],
)  # fmt: skip
def test_columns_of_one_name_are_refused(tmp_path, write, suffix):
    """astropy would rename the second, and the first would be taken without a word."""
    write(tmp_path / f"a.{suffix}")
    with pytest.raises(bl.BadInput, match="x"):
        bl.Stars.from_table(read_table(tmp_path / f"a.{suffix}"), x="x")


@pytest.mark.parametrize("name", ["a.fits", "a.ecsv", "a.parquet", "a.h5", "a.vot", "a.csv"])
def test_columns_that_are_no_numbers_are_refused(tmp_path, name):
    rows = Table({"x": [1.0], "t": Time([57000.0], format="mjd")})
    with pytest.raises(bl.BadInput, match="'t' of Time"):
        write_table(rows, tmp_path / name)
    with pytest.raises(bl.BadInput, match="not numeric"):
        bl.Stars.from_table(rows, x="t")
    if name == "a.fits":
        with pytest.raises(bl.BadInput, match="ASCII"):
            write_table(Table({"x\n": [1.0]}), tmp_path / name)


def test_an_empty_first_table_is_passed_over(tmp_path):
    empty, full = fits.table_to_hdu(Table({"A": np.zeros(0)})), fits.table_to_hdu(Table({"A": np.arange(3.0)}))
    fits.HDUList([fits.PrimaryHDU(), empty, full]).writeto(tmp_path / "two.fits")
    assert len(read_table(tmp_path / "two.fits")) == 3
    assert open_stream(tmp_path / "two.fits").n_row == 3
    assert open_stream(tmp_path / "two.fits", 1).n_row == 0


def test_a_damaged_gz_is_refused(tmp_path):
    table(5).write(tmp_path / "a.fits.gz", format="fits")
    data = gzip.decompress((tmp_path / "a.fits.gz").read_bytes())
    (tmp_path / "b.fits.gz").write_bytes(gzip.compress(data)[:200])
    with pytest.raises(bl.BadInput):
        open_stream(tmp_path / "b.fits.gz")


@pytest.mark.parametrize(
    ("text", "unit"),
    [("log(cm.s**-2)", u.dex(u.cm / u.s**2)), ("'dex'", u.dex), ("log10(K)", u.dex(u.K)), ("km/s", u.km / u.s)],
)
def test_units_as_archives_write_them(text, unit):
    block = bl.Block([1.0, 2.0], unit=text)
    assert u.Unit(block.units[0]) == unit


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("[cm/s2]", u.dex(u.cm / u.s**2)), ("1E-17 erg/s/cm^2/Ang", 1e-17 * u.erg / u.s / u.cm**2 / u.AA),
        ("10**-17 erg/(s cm2 Angstrom)", 1e-17 * u.erg / u.s / u.cm**2 / u.AA), ("nanomaggies", u.nmgy),
        ("counts", u.ct), ("mags", u.mag), ("0.1 nm", u.AA), ("---", u.one), ("unitless", u.one), ("", u.one),

    ],
)  # fmt: skip
def test_units_as_surveys_write_them(text, unit):
    assert u.Unit(bl.Block([1.0, 2.0], unit=text).units[0]) == u.Unit(unit)


def test_units_that_are_none_are_refused():
    for text in ("log(furlong.s)", "quux"):
        with pytest.raises(bl.BadInput, match="astropy knows"):
            bl.Block([1.0], unit=text)


def test_magnitudes_of_a_system_are_plain_ones_if_asked_for():
    magnitudes = np.array([12.0, 13.0]) * u.ABmag
    np.testing.assert_array_equal(bl.Block(magnitudes, unit="mag").value[:, 0], [12.0, 13.0])
    assert bl.Block(magnitudes, unit="mag").units == ("mag",)
    assert bl.Block(magnitudes).units == ("mag(AB)",)
    with pytest.raises(bl.BadInput, match=r"mag\(AB\)"):
        bl.Block(magnitudes, unit="K")


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_ids_are_refused(missing):
    with pytest.raises(bl.BadInput, match="1 ids that are missing"):
        bl.Stars(id=np.array(["a", missing, "c"], object), m=bl.Block([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("name", ["a.fits", "a.h5", "a.parquet"])
def test_ids_that_are_not_utf8_are_refused(tmp_path, name):
    ids, path = np.array([b"\xe9t\xe9", b"b"]), tmp_path / name
    if name == "a.h5":
        with h5py.File(path, "w") as file:
            file["ID"], file["G"] = ids, [1.0, 2.0]
    elif name == "a.fits":
        columns = [fits.Column("ID", "4A", array=ids), fits.Column("G", "D", array=[1.0, 2.0])]
        fits.BinTableHDU.from_columns(columns).writeto(path)
    else:
        pq.write_table(pa.table({"ID": pa.array(ids.tolist(), pa.binary()), "G": [1.0, 2.0]}), path)
    for read in (read_table, lambda path: next(open_stream(path).read(0, 2, ["ID", "G"]))):
        with pytest.raises(bl.BadInput, match="UTF-8"):
            bl.Stars.from_table(read(path), magnitudes="G", id="ID")
        assert bl.Stars.from_table(read(path), magnitudes="G").magnitudes.value[1] == 2


def test_other_peoples_layouts(tmp_path):
    """Lists in FITS, HDF5 and Parquet; compound datasets of astropy; leading zeros; ECSV called CSV; tensors."""
    rows = np.array([np.ones(3), np.zeros(0), np.arange(3.0)], object)
    fits.BinTableHDU.from_columns([fits.Column("F", "PD()", array=rows)]).writeto(tmp_path / "a.fits")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("F", (3,), h5py.vlen_dtype(float))
        for i, row in enumerate(rows):
            file["F"][i] = row
    pq.write_table(pa.table({"F": pa.array([x.tolist() for x in rows])}), tmp_path / "a.parquet")
    for name in ("a.fits", "a.h5", "a.parquet"):
        np.testing.assert_array_equal(
            read_table(tmp_path / name)["F"], [np.ones(3), np.full(3, np.nan), np.arange(3.0)]
        )
    given = QTable({"A": [1.0, 2.0] * u.mag, "I": MaskedColumn([1, 2], mask=[False, True]), "S": ["x", "yy"]})
    given.write(tmp_path / "b.h5", path="deep/data", serialize_meta=True)
    found = read_table(tmp_path / "b.h5")
    assert (str(found["A"].unit), found["I"].tolist(), found["S"].tolist()) == ("mag", [1, None], ["x", "yy"])
    (tmp_path / "c.csv").write_text("id,x\n007,1\n10,null\n")
    assert read_table(tmp_path / "c.csv")["id"].tolist() == ["007", "10"]
    assert read_table(tmp_path / "c.csv")["x"].tolist() == [1, None]
    table(5).write(tmp_path / "d.ecsv")
    (tmp_path / "d.csv").write_text((tmp_path / "d.ecsv").read_text())
    assert str(read_table(tmp_path / "d.csv")["G"].unit) == "mmag"
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float64(), [2, 2]), pa.array([[1.0, 2.0, 3.0, 4.0]], pa.list_(pa.float64(), 4))
    )
    pq.write_table(pa.table({"C": tensors}), tmp_path / "e.parquet")
    assert read_table(tmp_path / "e.parquet")["C"].tolist() == [[[1.0, 2.0], [3.0, 4.0]]]
