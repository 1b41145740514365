"""Catalogues in files: the same numbers as in memory, whatever happens on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable, Table, vstack

import bayeslabels as bl
from bayeslabels.catalogues import catalog, parts
from bayeslabels.catalogues.catalog import infer_catalog
from bayeslabels.catalogues.parts import DIGESTS, NOTES
from bayeslabels.files.streams import open_stream
from bayeslabels.files.tables import read_table, write_table
from bayeslabels.results.star_posterior import Flags

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq

N, SIZE = 23, 8
COLUMNS = {"flux": "FLUX", "flux_error": "FLUX_ERR", "id": "NAME"}


@pytest.fixture(scope="module")
def sky():
    """Spectra of 23 stars, a fifth of the pixels missing, one star without data."""
    from conftest import simulate

    stars = simulate(N, seed=5).stars
    flux = np.where(np.random.default_rng(0).random((N, 12)) < 0.2, np.nan, stars.flux.value)
    flux[4] = np.nan
    names = np.array([f"star {'x' * (i % 5)}{i}" for i in range(N)])
    return Table({"NAME": names, "FLUX": flux, "FLUX_ERR": stars.flux.error, "OTHER": np.arange(N)})


@pytest.fixture(scope="module")
def in_memory(trained, sky):
    stars = bl.Stars.from_table(sky, flux="FLUX", flux_error="FLUX_ERR", id="NAME")
    flux = bl.Block(stars.flux.value, stars.flux.error, coords=trained_coords(trained))
    return bl.infer(trained, stars.with_block(flux=flux), seed=3, batch_size=SIZE).table()


def trained_coords(trained):
    frame = trained.model.frame
    return {frame.coordinate_name: frame.coordinate}


@pytest.fixture
def run(trained, tmp_path):
    def call(source, name="out", **options):
        given = {"columns": COLUMNS, "batch_size": SIZE, "seed": 3, "progress": False} | options
        return infer_catalog(trained, source, tmp_path / name, **given)

    return call


def write_parquet(table, path, rows=None, group=5):
    """With fixed-size lists, in row groups that are no multiple of the batches; rows: of each file of a folder."""
    arrays = {}
    for name in table.colnames:
        x = np.asarray(table[name])
        if x.ndim == 2:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
        else:
            arrays[name] = pa.array(list(x))
    whole = pa.table(arrays)
    if rows is None:
        pq.write_table(whole, path, row_group_size=group)
        return path
    path.mkdir()
    for i, start in enumerate(range(0, len(table), rows)):
        pq.write_table(whole.slice(start, rows), path / f"{i:03d}.parquet", row_group_size=group)
    return path


def write_hdf5(table, path):
    with h5py.File(path, "w") as file:
        for name in table.colnames:
            x = np.asarray(table[name])
            file[name] = x.astype(h5py.string_dtype()) if x.dtype.kind == "U" else x
    return path


def read(path):
    if path.is_dir():
        return vstack([QTable(read_table(p)) for p in sorted(path.glob("*.parquet"))], metadata_conflicts="silent")
    return QTable(read_table(path))


def assert_same(table, expected):
    assert table.colnames == expected.colnames
    for name in table.colnames:
        a, b = (np.asarray(getattr(t[name], "value", t[name])) for t in (table, expected))
        if name == "id":
            assert [x.decode() if isinstance(x, bytes) else str(x) for x in a] == list(b)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)  # of every format, to the bit
        assert str(getattr(table[name], "unit", None)) == str(getattr(expected[name], "unit", None))


@pytest.mark.parametrize("kind", ["file", "folder", "fits", "ecsv", "hdf5"])
def test_any_source_gives_the_numbers_of_memory(sky, in_memory, run, tmp_path, kind):
    if kind == "file":
        source = write_parquet(sky, tmp_path / "in.parquet")
    elif kind == "folder":
        source = write_parquet(sky, tmp_path / "in", rows=7)
    elif kind == "hdf5":
        source = write_hdf5(sky, tmp_path / "in.hdf5")
    else:
        source = write_table(sky, tmp_path / f"in.{kind}")
    done = run(source)
    assert_same(read(tmp_path / "out"), in_memory)
    assert (done.n_star, done.n_resumed, done.flags["NO_DATA"]) == (N, 0, 1)
    assert "23 stars" in str(done)
    assert "NO_DATA 1" in str(done)


@pytest.mark.parametrize("name", ["out", "out.parquet", "out.fits", "out.ecsv"])
def test_model_spectra_and_latents_are_saved_and_nuisances_inferred(sky, trained, run, tmp_path, name):
    stars = bl.Stars.from_table(sky, flux="FLUX", flux_error="FLUX_ERR", id="NAME")
    flux = bl.Block(stars.flux.value, stars.flux.error, coords=trained_coords(trained))
    options = {"nuisances": (bl.nuisances.Continuum(0.01, degree=1),), "seed": 3, "batch_size": SIZE}
    result = bl.infer(trained, stars.with_block(flux=flux), **options)
    run(write_parquet(sky, tmp_path / "in.parquet"), name, save=("flux", "latents"), **options)
    found = read(tmp_path / name)
    assert_same(found, result.table(("flux", "latents")))
    value, error = result.predict("flux", with_error=True)
    np.testing.assert_array_equal(found["flux"], value)
    np.testing.assert_array_equal(found["flux_error"], error)
    assert {"latents", "latents_error", "continuum_1", "continuum_1_error"} <= set(found.colnames)


def test_what_cannot_be_saved_is_refused_before_anything_is_computed(sky, run, tmp_path):
    with pytest.raises(
        bl.BadInput, match=r"save=\('spectrum',\).*some of \('flux', 'latents', 'correlations', 'reduced_chi2'\)"
    ):
        run(write_parquet(sky, tmp_path / "in.parquet"), save="spectrum")


@pytest.mark.parametrize("name", ["out.parquet", "out.fits", "out.ecsv"])
def test_one_file_if_asked(sky, in_memory, run, tmp_path, name):
    run(write_parquet(sky, tmp_path / "in.parquet"), name)
    assert_same(read(tmp_path / name), in_memory)
    assert {x.name for x in tmp_path.iterdir()} == {"in.parquet", name}


def test_resumes_where_it_stopped(sky, in_memory, run, tmp_path, monkeypatch):
    source, calls = write_parquet(sky, tmp_path / "in.parquet"), []

    def failing(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inferred(*args)

    inferred = catalog._inferred
    monkeypatch.setattr(catalog, "_inferred", failing)
    with pytest.raises(KeyboardInterrupt):
        run(source)
    assert len(list((tmp_path / "out").glob("part*"))) == 1
    done = run(source)
    assert done.n_resumed == SIZE
    assert len(calls) == 4
    assert_same(read(tmp_path / "out"), in_memory)
    assert run(source).n_resumed == N
    assert len(calls) == 4


def test_a_torn_part_is_made_again(sky, in_memory, run, tmp_path):
    source = write_parquet(sky, tmp_path / "in.parquet")
    run(source)
    part = sorted((tmp_path / "out").glob("part*"))[1]
    part.write_bytes(part.read_bytes()[:200])
    assert run(source).n_resumed == N - SIZE
    assert_same(read(tmp_path / "out"), in_memory)


def test_another_run_is_refused_and_the_difference_named(sky, trained, run, tmp_path):
    source = write_parquet(sky, tmp_path / "in.parquet")
    run(source)
    with pytest.raises(bl.BadInput, match="seed was 3, is 4"):
        run(source, seed=4)
    with pytest.raises(bl.BadInput, match="inference was Laplace, is MAP"):
        run(source, inference=bl.MAP())
    write_parquet(sky[::-1], tmp_path / "in.parquet")
    with pytest.raises(bl.BadInput, match="source was"):
        run(source)
    assert run(source, resume=False).n_resumed == 0
    other = trained.with_moments(trained.moments._replace(scatter=2 * trained.moments.scatter))
    with pytest.raises(bl.BadInput, match="model was"):
        infer_catalog(other, source, tmp_path / "out", columns=COLUMNS, batch_size=SIZE, seed=3, progress=False)


def test_full_disks_say_so_and_lose_nothing(sky, in_memory, run, tmp_path, monkeypatch):
    source, written = write_parquet(sky, tmp_path / "in.parquet"), []

    def full(table, path):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        return write(table, path)

    write = write_table
    monkeypatch.setattr(parts, "write_table", full)
    with pytest.raises(OSError, match=r"No space left.*what was written is kept"):
        run(source)
    monkeypatch.setattr(parts, "write_table", write)
    assert run(source).n_resumed >= SIZE
    assert_same(read(tmp_path / "out"), in_memory)


def test_a_file_that_cannot_grow(sky, in_memory, run, tmp_path):
    """A limit that the system sets, as a full disk does, in the middle of a part."""
    resource = pytest.importorskip("resource")
    source = write_parquet(sky, tmp_path / "in.parquet")
    run(source, "compiled")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"[Ff]ile too large.*what was written is kept"):
            run(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {x.name for x in (tmp_path / "out").iterdir()} == {NOTES}
    run(source)
    assert_same(read(tmp_path / "out"), in_memory)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t["NAME", "FLUX"], "'FLUX_ERR'"),
        (lambda t: t[[*range(N), 3]], "star xxx3"),
        (lambda t: Table({**{n: t[n] for n in ("NAME", "FLUX_ERR")}, "FLUX": t["FLUX"][:, :5]}), "12"),
    ],
)
def test_dirty_tables_are_refused_before_anything_is_computed(sky, run, tmp_path, change, part):
    source = write_parquet(change(sky), tmp_path / "in.parquet")
    with pytest.raises(bl.BadInput, match=part):
        run(source)
    assert not list((tmp_path / "out").glob("part*"))


def test_files_that_are_cut_short_or_differ(sky, run, tmp_path):
    folder = write_parquet(sky, tmp_path / "in", rows=7)
    second = folder / "001.parquet"
    whole = second.read_bytes()
    second.write_bytes(whole[:-100])
    with pytest.raises(bl.BadInput, match=r"001.parquet.*cut short"):
        run(folder)
    write_parquet(sky[7:14]["NAME", "FLUX"], second)
    with pytest.raises(bl.BadInput, match=r"001.parquet.*FLUX_ERR"):
        run(folder)
    fits.table_to_hdu(sky).writeto(tmp_path / "in.fits")
    (tmp_path / "in.fits").write_bytes((tmp_path / "in.fits").read_bytes()[:9000])
    with pytest.raises(bl.BadInput, match="cut short"):
        run(tmp_path / "in.fits")


@pytest.mark.parametrize("key", ["NAXIS1", "NAXIS2", "PCOUNT"])
def test_fits_tables_of_negative_size(sky, run, tmp_path, key):
    fits.table_to_hdu(sky).writeto(tmp_path / "in.fits")
    content = bytearray((tmp_path / "in.fits").read_bytes())
    at = content.index(b"%-8s=" % key.encode(), 2880)
    content[at + 10 : at + 30] = b"%20d" % -1
    (tmp_path / "in.fits").write_bytes(content)
    with pytest.raises(bl.BadInput, match=f"{key} = -1"):
        run(tmp_path / "in.fits")
    with pytest.raises(bl.BadInput, match=f"{key} = -1"):
        read_table(tmp_path / "in.fits")


def test_bad_errors_are_flagged_and_their_pixels_left_out(sky, run, tmp_path):
    bad = sky.copy()
    bad["FLUX_ERR"][2, 3], bad["FLUX_ERR"][9] = 0.0, -1.0
    done = run(write_parquet(bad, tmp_path / "in.parquet"))
    table = read(tmp_path / "out")
    assert list(np.flatnonzero(np.asarray(table["flags"]) & Flags.BAD_ERROR)) == [2, 9]
    assert (table["n_pixel"][9], done.flags["BAD_ERROR"]) == (0, 2)
    assert np.isnan(table["TEFF"][9])


def test_destinations_that_cannot_be(sky, run, tmp_path):
    source = write_parquet(sky, tmp_path / "in.parquet")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("all of it")
    with pytest.raises(bl.BadInput, match="other files"):
        run(source, "precious")
    (tmp_path / "mine.fits").write_text("mine")
    with pytest.raises(bl.BadInput, match="exists"):
        run(source, "mine.fits")
    with pytest.raises(bl.BadInput, match=r"\.fits, .*\.ecsv"):
        run(source, "out.txt")
    with pytest.raises(bl.BadInput, match="one that can be written"):
        run(source, "in.parquet/out")
    with pytest.raises(bl.BadInput, match="no file"):
        run(tmp_path / "nowhere.parquet")


def test_columns_named_like_the_blocks_need_no_names(sky, in_memory, trained, tmp_path):
    table = Table({"id": sky["NAME"], "flux": sky["FLUX"], "flux_error": sky["FLUX_ERR"], "extra": sky["OTHER"]})
    fits.table_to_hdu(table).writeto(tmp_path / "in.fits")
    infer_catalog(trained, tmp_path / "in.fits", tmp_path / "out.fits", batch_size=SIZE, seed=3, progress=False)
    assert_same(read(tmp_path / "out.fits"), in_memory)


def test_streams_start_anywhere(sky, tmp_path):
    sources = [write_parquet(sky, tmp_path / "in", rows=7), write_hdf5(sky, tmp_path / "in.h5")]
    fits.table_to_hdu(sky).writeto(tmp_path / "in.fits")
    for path in [*sources, tmp_path / "in.fits"]:
        stream = open_stream(path)
        assert stream.n_row == N
        assert set(stream.names) == set(sky.colnames)
        for start in (0, 3, 8, 16, 22):
            rows = np.concatenate([np.asarray(t["OTHER"]) for t in stream.read(start, 4, ["OTHER"])])
            assert list(rows) == list(range(start, N))


SCRIPT = """
import sys, bayeslabels as bl
from bayeslabels import infer_catalog
model, source, out = sys.argv[1:]
columns = {"flux": "FLUX", "flux_error": "FLUX_ERR", "id": "NAME"}
infer_catalog(bl.load(model), source, out, columns=columns, batch_size=2, seed=3, progress=False)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see the memory in use")
def test_what_was_read_does_not_stay_in_memory(tmp_path):
    rows = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32)
    part = pa.table({"flux": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 1000)})
    with pq.ParquetWriter(tmp_path / "stars.parquet", part.schema) as writer:
        for _ in range(40):  # 160 MB in row groups of 4
            writer.write_table(part)
    in_use = []
    for _ in open_stream(tmp_path / "stars.parquet").read(0, 500, ["flux"]):
        in_use.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    assert in_use[-1] - in_use[8] < 60, "MB, of 144 read"


@pytest.mark.slow
def test_killed_at_any_moment(sky, trained, tmp_path):
    """Twenty kills at random moments; what is there at the end is what an uninterrupted run gives."""
    source = write_parquet(sky, tmp_path / "in.parquet")
    trained.save(tmp_path / "m.nc")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "m.nc"), str(source)]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    longest = time.monotonic() - start
    rng, killed = np.random.default_rng(0), 0
    for _ in range(20):
        run = subprocess.Popen([*command, str(tmp_path / "out")])
        time.sleep(rng.uniform(0.3, 1.0) * longest)
        killed += run.poll() is None
        run.kill()
        run.wait()
    assert killed > 10
    subprocess.run([*command, str(tmp_path / "out")], check=True)
    assert_same(read(tmp_path / "out"), read(tmp_path / "whole"))
    assert {x.name for x in (tmp_path / "out").iterdir() if x.suffix != ".parquet"} == {NOTES, DIGESTS}
