"""Every format, whole and in batches: what the package writes comes back equal, and what it cannot hold is refused."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

import bayeslabels as bl
from bayeslabels.cli import main
from bayeslabels.errors import BadInput
from bayeslabels.files.formats import FORMATS, SUFFIXES, format_of
from bayeslabels.files.streams import open_stream
from bayeslabels.files.tables import read_table, write_table

pytest.importorskip("pyarrow")
TYPED = [x for x in SUFFIXES if ".csv" not in x]
FIRST = [x.suffixes[0] for x in FORMATS if x.suffixes[0] in TYPED]
"""Of each format; its other suffixes, some of them compressed, are read and written by the same code."""


def stars(n, ids, columns, gaps):
    """Labels in units and spectra, or a block with covariances."""
    rng = np.random.default_rng(0)
    names = {
        "text": [f"star {'x' * i}{i}" for i in range(n)], "007": [f"{i:03d}" for i in range(n)],
        "long": 2**62 + 1 + np.arange(n), "unsigned": np.arange(n, dtype=np.uint64) + np.uint64(2**63 + 5),
        "none": None,
    }[ids]  # fmt: skip
    value, error = rng.normal(size=(n, 2)), np.full((n, 2), 0.1)
    flux = rng.normal(size=(n, 3)).astype(np.float32)
    if gaps:
        value[0, 1], error[-1, 0], flux[0] = np.nan, np.nan, np.nan
    blocks = {"labels": bl.Block(value, error, names=("T eff", "LOGG"), unit=("K", "dex(cm / s2)"))}
    if columns == "vectors":
        blocks["flux"] = bl.Block(flux, 0.1, unit="1e-17 erg / (AA s cm2)", coords={"wavelength": [1.0, 2.0, 3.5]})
        covariance = np.tile([[1.0, 0.1], [0.1, 2.0]], (n, 1, 1))
        blocks["colours"] = bl.Block(value, covariance, names=("a'b", 'c"d&'), unit="mag(AB)")
    return bl.Stars(id=names, **blocks)


def assert_same(found, expected, units=True):
    assert [str(x) for x in found.id] == [str(x) for x in expected.id]
    for name, block in expected.blocks.items():
        back = found[name]
        np.testing.assert_array_equal(back.value, block.value, err_msg=name)
        np.testing.assert_array_equal(back.error, block.error, err_msg=name)
        if units:
            assert (back.names, back.units) == (block.names, block.units)
            assert back.value.dtype == block.value.dtype
            for key, along in block.coords.items():
                np.testing.assert_array_equal(back.coords[key], along)


def ways(path):
    """A table read as a whole, and in batches of two rows."""
    stream = open_stream(path)
    assert list(stream.names) == read_table(path).colnames
    return {"whole": [read_table(path)], "streamed": list(stream.read(0, 2, stream.names))}


@pytest.mark.parametrize("columns", ["vectors", "scalars"])
@pytest.mark.parametrize("ids", ["text", "007", "long", "unsigned", "none"])
@pytest.mark.parametrize("suffix", [x if x in FIRST else pytest.param(x, marks=pytest.mark.slow) for x in TYPED])
def test_stars_come_back(tmp_path, suffix, ids, columns):
    """In units, with ids of every kind, with gaps and without, one star and some, by every reader; none is refused."""
    for n, gaps in [(1, True), (5, True), (5, False)]:
        expected = stars(n, ids, columns, gaps)
        path = write_table(expected.to_table(), tmp_path / f"t{suffix}")
        for parts in ways(path).values():
            first = 0
            for part in parts:
                assert_same(bl.Stars.from_table(part), expected[first : first + len(part)])
                first += len(part)
            assert first == n
        assert_same(bl.read_stars(path), expected)
    full = expected.to_table()
    empty = read_table(write_table(full[:0], tmp_path / f"none{suffix}"))
    assert (len(empty), empty.colnames) == (0, full.colnames)
    for read in (lambda path: bl.Stars.from_table(read_table(path)), bl.read_stars):
        with pytest.raises(BadInput, match="0 stars"):
            read(tmp_path / f"none{suffix}")


@pytest.mark.parametrize("suffix", [x for x in SUFFIXES if ".csv" in x])
@pytest.mark.parametrize("ids", ["text", "007", "long", "unsigned"])
@pytest.mark.parametrize("n", [1, 5])
def test_stars_come_back_from_csv_but_for_their_units(tmp_path, suffix, ids, n):
    expected = stars(n, ids, "scalars", True)
    path = write_table(expected.to_table(), tmp_path / f"t{suffix}")
    columns = {"labels": ["T eff", "LOGG"], "labels_error": ["T eff_error", "LOGG_error"], "id": "id"}
    for parts in ways(path).values():
        found = [bl.Stars.from_table(part, **columns) for part in parts]
        for i, star in enumerate(star for some in found for star in some):
            assert_same(star, expected[i : i + 1], units=False)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_masks_of_every_type(tmp_path, suffix):
    rows = Table()
    for dtype in ("i2", "i8", "u1", "f4", "f8", "?"):
        if dtype == "?" and "f" in suffix.split(".")[1][:1]:
            continue  # FITS has none for words of truth
        rows[dtype] = MaskedColumn(np.array([1, 0, 1], dtype), mask=[False, False, True])
    rows["ends"] = MaskedColumn([-(2**63), 999999, 7], mask=[False, False, True])
    path = write_table(rows, tmp_path / f"t{suffix}")
    for parts in ways(path).values():
        assert parts[0].colnames == rows.colnames
        for name in rows.colnames:
            found = np.concatenate([bl.Stars.from_table(part, x=name).x.value[:, 0] for part in parts])
            expected = np.ma.filled(rows[name].astype(float), np.nan)
            np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_of_columns(tmp_path, suffix):
    names = [
        "[Fe/H]",
        "[Fe/H]_error",
        "T eff",
        "a.b",
        "x,y",
        'q"',
        "it's",
        "#n",
        "A",
        "a",
        *["α"] * (".f" not in suffix),
    ]
    rows = Table({name: [float(i)] for i, name in enumerate(names)})
    for parts in ways(write_table(rows, tmp_path / f"t{suffix}")).values():
        assert {x: parts[0][x][0] for x in parts[0].colnames} == {name: float(i) for i, name in enumerate(names)}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("n", [0, 1])
def test_tables_of_no_and_of_one_row(tmp_path, suffix, n):
    path = write_table(Table({"A": np.arange(float(n)), "NAME": np.array(["x"] * n, "U3")}), tmp_path / f"t{suffix}")
    table, stream = read_table(path), open_stream(path)
    assert (len(table), stream.n_row, table.colnames) == (n, n, ["A", "NAME"])
    assert len(list(stream.read(0, 5, ["A"]))) == n


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["empty", "random", "half", "another kind"])
def test_damaged_files_are_bad_input(tmp_path, suffix, damage):
    path = write_table(stars(50, "text", "scalars", False).to_table(), tmp_path / f"t{suffix}")
    content = path.read_bytes()
    half = content[: len(content) // 2] if suffix != ".csv" else content[:200] + b"\xff"  # half a CSV is a CSV
    damaged = {"empty": b"", "random": np.random.default_rng(1).bytes(5000), "half": half, "another kind": b"\x89PNG\0"}
    path.write_bytes(damaged[damage])
    for read in (read_table, lambda path: list((s := open_stream(path)).read(0, 7, s.names))):
        with pytest.raises(BadInput, match=path.name):
            read(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ids_that_begin_like_comments(tmp_path, suffix):
    path = write_table(Table({"id": ["a", "#1", "# 2", "b"], "G": np.arange(4.0)}), tmp_path / f"t{suffix}")
    assert bl.Stars.from_table(read_table(path), magnitudes="G", id="id").id.tolist() == ["a", "#1", "# 2", "b"]


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"/t\.csv, which are vectors"):
        write_table(Table({"flux": np.ones((2, 3))}), tmp_path / "t.csv")
    with pytest.raises(BadInput, match="ASCII"):
        write_table(Table({"T_α": [1.0]}), tmp_path / "t.fits")
    with pytest.raises(BadInput, match="ASCII"):
        write_table(Table({"id": ["é"]}), tmp_path / "t.fits.gz")
    with pytest.raises(BadInput, match=r"\.fits.*\.csv"):
        write_table(Table({"id": ["a"]}), tmp_path / "t.txt")
    assert not list(tmp_path.iterdir())


def test_suffixes_are_of_one_format_each():
    assert [format_of(f"a{x}") for x in SUFFIXES] == [x for x in FORMATS for _ in x.suffixes]
    assert format_of("SURVEY.FITS.GZ").name == "FITS"


def through_the_command_line(training, folder, suffix):
    """The catalogue of a model, both by way of files of this suffix, and that model's file."""
    table = Table({"ID": [f"s{i}" for i in range(40)], "T": training.labels.value[:, 0], "FLUX": training.flux.value})
    table["ERR"] = training.flux.error
    source, model, out = (str(folder / name) for name in (f"a{suffix}", "model.nc", f"out{suffix}"))
    write_table(table, source)
    columns = ["--labels", "T", "--flux-error", "ERR", "--id", "ID", "--order", "1", "--no-label-noise", "--quiet"]
    assert main(["fit", source, *columns, "-o", model]) == 0
    assert main(["infer", model, source, "-o", out, "--quiet"]) == 0
    return read_table(out), model, source


@pytest.fixture(scope="module")
def of_fits(training, tmp_path_factory):
    return through_the_command_line(training, tmp_path_factory.mktemp("fits"), ".fits")


@pytest.mark.parametrize(
    "suffix", [x.suffixes[0] for x in FORMATS[1:-1]] + [".fz", ".fits.gz", ".pq", ".ecsv.gz", ".vot.gz"]
)
def test_fit_and_infer_take_the_same_files(training, of_fits, tmp_path, suffix):
    """On the command line, with the catalogue in the format of the source, to the bit that of FITS."""
    found, expected = through_the_command_line(training, tmp_path, suffix)[0], of_fits[0]
    assert found.colnames == expected.colnames
    for name in found.colnames:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_catalogue_of_no_format_is_refused(of_fits, tmp_path, capsys):
    _, model, source = of_fits
    assert main(["infer", model, source, "-o", str(tmp_path / "out.txt")]) == 2
    assert ".h5" in capsys.readouterr().err
