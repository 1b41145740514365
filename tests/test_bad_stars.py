"""One bad star, or a batch without data, in a catalogue: flagged, and the others as if it were not there."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable, Table
from test_catalog import SIZE, N, read, run, sky, write_parquet  # noqa: F401

import bayeslabels as bl
from bayeslabels.catalogues.catalog import infer_catalog
from bayeslabels.catalogues.partitions import infer_partition
from bayeslabels.files import bad_stars
from bayeslabels.files.streams import open_stream
from bayeslabels.files.tables import write_table
from bayeslabels.kind import kind_of
from bayeslabels.results.star_posterior import Flags

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq


def assert_others_same(table, expected, bad):
    good = np.setdiff1d(np.arange(len(expected)), bad)
    for name in expected.colnames:
        np.testing.assert_array_equal(np.asarray(table[name])[good], np.asarray(expected[name])[good], err_msg=name)


def with_rows(table, rows):
    """A Parquet table whose spectra are the lists of `rows`."""
    kind = pa.list_(pa.float64())
    return pa.table({"NAME": list(table["NAME"]), "FLUX": pa.array(rows, kind), "FLUX_ERR": list(table["FLUX_ERR"])})


@pytest.mark.parametrize("blank", [None, []])
@pytest.mark.parametrize("bad", [slice(8, 16), slice(0, 8), slice(0, N)])
def test_batches_without_spectra(sky, run, tmp_path, blank, bad):  # noqa: F811
    rows, missing = [list(x) for x in sky["FLUX"]], np.arange(N)[bad]
    pq.write_table(with_rows(sky, rows), tmp_path / "whole.parquet", row_group_size=4)
    for i in missing:
        rows[i] = blank
    pq.write_table(with_rows(sky, rows), tmp_path / "in.parquet", row_group_size=4)
    done = run(tmp_path / "in.parquet")
    run(tmp_path / "whole.parquet", "whole")
    table = read(tmp_path / "out")
    assert done.flags["NO_DATA"] == len(set(missing) | {4})
    assert (np.asarray(table["flags"])[bad] == Flags.NO_DATA).all()
    assert_others_same(table, read(tmp_path / "whole"), missing)


def test_training_passes_over_row_groups_without_spectra(training, tmp_path):
    flux = [None if i < 8 else list(x) for i, x in enumerate(training.flux.value)]
    columns = {"labels": ("TEFF", "LOGG"), "flux": "F"}
    table = {"F": flux, "TEFF": training.labels.value[:, 0], "LOGG": training.labels.value[:, 1]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet", row_group_size=8)
    model = bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Flat())
    posterior = bl.fit(model, tmp_path / "in.parquet", bl.MAP(), columns=columns)
    labels = bl.Stars(labels=bl.Block(training.labels.value, names=("TEFF", "LOGG")))
    known = labels.with_block(flux=bl.Block(training.flux.value))[8:]
    np.testing.assert_allclose(posterior.predict(labels), bl.fit(model, known).predict(labels), atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "size"),
    [([0], SIZE), ([3, N - 1], SIZE), ([*range(8, 12)], SIZE), ([*range(4)], 4)],
    ids=["first", "two", "a row group", "the first batch"],
)
def test_spectra_of_another_length_are_missing(sky, run, tmp_path, caplog, bad, size):  # noqa: F811
    rows = [list(x) for x in sky["FLUX"]]
    pq.write_table(with_rows(sky, rows), tmp_path / "whole.parquet", row_group_size=4)
    for i in bad:
        rows[i] = rows[i][:5]
    pq.write_table(with_rows(sky, rows), tmp_path / "in.parquet", row_group_size=4)
    run(tmp_path / "in.parquet", batch_size=size)
    assert "FLUX of another length than the usual 12: they count as missing" in caplog.text
    run(tmp_path / "whole.parquet", "whole", batch_size=size)
    table = read(tmp_path / "out")
    assert (np.asarray(table["flags"])[bad] == Flags.NO_DATA).all()
    assert_others_same(table, read(tmp_path / "whole"), bad)


def test_lists_of_two_lengths_are_refused(sky, run, tmp_path):  # noqa: F811
    rows = [list(x)[: 5 + 7 * (i % 2)] for i, x in enumerate(sky["FLUX"])]
    pq.write_table(with_rows(sky, rows), tmp_path / "in.parquet")
    with pytest.raises(bl.BadInput, match=r"length \[5, 12\]"):
        run(tmp_path / "in.parquet")


@pytest.mark.parametrize("value", [-1.0, np.inf])
def test_impossible_inverse_variances_are_flagged(sky, run, tmp_path, value):  # noqa: F811
    table = Table({"NAME": sky["NAME"], "FLUX": sky["FLUX"], "IVAR": 1 / sky["FLUX_ERR"] ** 2})
    columns = {"flux": "FLUX", "flux_ivar": "IVAR", "id": "NAME"}
    table["IVAR"][3, 1] = 0  # missing, as ever
    run(write_parquet(table, tmp_path / "good.parquet"), "good", columns=columns)
    table["IVAR"][20, 3] = value
    done = run(write_parquet(table, tmp_path / "in.parquet"), columns=columns)
    found = read(tmp_path / "out")
    assert done.flags["BAD_ERROR"] == 1
    assert np.asarray(found["flags"])[20] & Flags.BAD_ERROR
    assert found["n_pixel"][20] == np.isfinite(sky["FLUX"][20]).sum() - np.isfinite(sky["FLUX"][20, 3])
    assert_others_same(found, read(tmp_path / "good"), [20])


def test_units_of_bad_errors_stay():
    table = QTable({"P_ERR": [0.1, -1.0, 0.3] * u.mas, "IVAR": np.array([1, -1, 4])})
    bad = bad_stars.drop_bad_errors(table, {"parallax": "P", "parallax_error": "P_ERR", "flux_ivar": "IVAR"})
    assert bad.tolist() == [False, True, False]
    assert table["P_ERR"].unit == u.mas
    np.testing.assert_array_equal(table["P_ERR"].value, [0.1, np.nan, 0.3])
    np.testing.assert_array_equal(table["IVAR"], [1.0, np.nan, 4.0])


@pytest.mark.slow
def test_one_covariance_that_is_none(simulated, tmp_path):
    stars = simulated.stars
    covariance = np.tile(np.diag([900.0, 0.01]), (len(stars), 1, 1))
    labels = bl.Block(stars.labels.value, covariance, names=stars.labels.names, unit=stars.labels.unit)
    blocks = {"labels": labels, "magnitudes": stars.magnitudes, "parallax": stars.parallax}
    model = bl.Photometry(function="polynomial", order=1, members=1, components=1)
    posterior = bl.fit(model, bl.Stars(**blocks), bl.MAP(max_iterations=20))

    def infer(name):
        table = Table({"TEFF": labels.value[:, 0] * u.K, "LOGG": labels.value[:, 1] * u.dex, "C": covariance})
        for i, band in enumerate(stars.magnitudes.names):
            table[band] = stars.magnitudes.value[:, i] * u.mag
        write_table(table, tmp_path / f"{name}.fits")
        columns = {"labels": ["TEFF", "LOGG"], "labels_error": "C", "magnitudes": list(stars.magnitudes.names)}
        columns["magnitudes_error"] = 0.02
        out = tmp_path / f"{name}-out.fits"
        infer_catalog(posterior, tmp_path / f"{name}.fits", out, bl.MAP(), columns=columns, progress=False)
        return read(out)

    whole = infer("good")
    covariance[7, 0, 1] = covariance[7, 1, 0] = 1e4
    found = infer("bad")
    assert list(np.flatnonzero(np.asarray(found["flags"]) & Flags.BAD_ERROR)) == [7]
    assert np.asarray(found["flags"])[7] & Flags.NO_DATA
    assert_others_same(found, whole, [7])


def test_a_star_at_which_linear_algebra_fails(trained, spectra, monkeypatch):
    kind, calls = kind_of(trained.model), []
    infer = kind.infer
    marked = spectra.flux.value[[3, 31], 0]

    def failing(posterior, stars, *rest):
        calls.append(stars)
        if np.isin(marked, stars.flux.value[:, 0]).any():
            raise np.linalg.LinAlgError("Singular matrix")
        return infer(posterior, stars, *rest)

    whole = bl.infer(trained, spectra)
    monkeypatch.setattr(type(kind), "infer", lambda self, *x: failing(*x))
    found = bl.infer(trained, spectra)
    assert list(np.flatnonzero(found.flags & Flags.NOT_CONVERGED)) == [3, 31]
    assert np.isnan(found.mean[[3, 31]]).all()
    assert_others_same(found.table(), whole.table(), [3, 31])
    assert len(calls) < 40  # stars that fill up the batch among them
    marked = spectra.flux.value[:, 0]
    assert (bl.infer(trained, spectra).flags == Flags.NOT_CONVERGED).all()
    assert (bl.infer(trained, spectra[:1]).flags == Flags.NOT_CONVERGED).all()


def test_partitions_without_spectra(trained, sky):  # noqa: F811
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"FLUX": [None] * 5, "FLUX_ERR": [list(x) for x in sky["FLUX_ERR"][:5]]})
    found = infer_partition(frame, trained, columns={"flux": "FLUX", "flux_error": "FLUX_ERR"})
    assert len(found) == 5
    assert (found["flags"] == Flags.NO_DATA).all()
    frame["FLUX_ERR"] = None
    assert (infer_partition(frame, trained, columns={"flux": "FLUX", "flux_error": "FLUX_ERR"})["flags"] == 2).all()


def test_widths_are_looked_for_once(sky, tmp_path):  # noqa: F811
    rows = [None] * 20 + [list(x) for x in sky["FLUX"][20:]]
    pq.write_table(with_rows(sky, rows), tmp_path / "in.parquet", row_group_size=4)
    stream = open_stream(tmp_path / "in.parquet")
    assert [t["FLUX"].shape for t in stream.read(0, SIZE, ["FLUX"])] == [(8, 12), (8, 12), (7, 12)]
    assert stream.widths == {"FLUX": 12}


@pytest.mark.parametrize("bad", [[N - 1], list(range(N))])
def test_a_batch_in_which_every_star_is_bad(trained, sky, run, tmp_path, bad):  # noqa: F811
    table = sky.copy()
    table["FLUX"] = np.array(table["FLUX"])
    table["FLUX"][bad, 3] = 1e200
    done = run(write_parquet(table, tmp_path / "in.parquet"), batch_size=N - 1)
    run(write_parquet(sky, tmp_path / "good.parquet"), "good", batch_size=N - 1)
    found = read(tmp_path / "out")
    assert done.flags["BAD_ERROR"] == len(bad)
    assert np.isnan(found["TEFF"][bad]).all()
    assert_others_same(found, read(tmp_path / "good"), bad)


@pytest.mark.parametrize("value", [-9999.0, 99.0, 1e20])
def test_sentinels_of_the_test_step_are_missing(simulated, value):
    """Of magnitudes, and of parallaxes that would be combined with what the magnitudes say."""
    stars = simulated.stars
    blocks = {"magnitudes": stars.magnitudes, "parallax": stars.parallax}
    posterior = bl.fit(bl.Parallax(("magnitudes",)), bl.Stars(**blocks))
    for name, block in blocks.items():
        missing, sentinel = np.array(block.value), np.array(block.value)
        missing[3, 0], sentinel[3, 0] = np.nan, value
        both = [bl.Block(x, block.error, names=block.names, unit=block.unit) for x in (sentinel, missing)]
        found, expected = (bl.infer(posterior, bl.Stars(**{**blocks, name: x})) for x in both)
        np.testing.assert_array_equal(found.mean, expected.mean)
        assert np.flatnonzero(found.flags & Flags.SENTINEL).tolist() == [3]
        assert not (expected.flags & Flags.SENTINEL).any()


def test_a_prediction_that_overflows_is_flagged(simulated):
    stars = simulated.stars
    posterior = bl.fit(bl.Parallax(("magnitudes",)), bl.Stars(magnitudes=stars.magnitudes, parallax=stars.parallax))
    value = np.array(stars.magnitudes.value)
    value[3, 1] = 12345.0
    block = bl.Block(value, stars.magnitudes.error, names=("G", "BP", "RP"), unit="mag")
    found = bl.infer(posterior, bl.Stars(magnitudes=block))
    assert np.isnan(found.mean[3]).all()
    assert found.flags[3] & Flags.NOT_CONVERGED


def test_training_stars_for_which_linear_algebra_fails(training):
    flux = np.array(training.flux.value)
    flux[5] = 1e5
    with pytest.raises(bl.BadInput, match="linear algebra"):
        bl.fit(bl.Cannon(order=1), training.with_block(flux=bl.Block(flux, training.flux.error)))


def test_a_run_that_is_refused_leaves_no_folder(trained, sky, run, tmp_path):  # noqa: F811
    table = sky.copy()
    table["FLUX"].unit = "Jy"
    with pytest.raises(bl.BadInput, match="Jy"):
        run(write_table(table, tmp_path / "in.fits"), "out.fits")
    assert [x.name for x in tmp_path.iterdir()] == ["in.fits"]
