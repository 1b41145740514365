"""Partitions of a catalogue that a cluster holds."""

from __future__ import annotations

import numpy as np
import pytest
from test_catalog import COLUMNS

import bayeslabels as bl
from bayeslabels.catalogues.catalog import infer_table
from bayeslabels.catalogues.partitions import infer_partition
from bayeslabels.kind import kind_of
from bayeslabels.verbs import few_batches

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
N, SIZE = 30, 16


@pytest.fixture(scope="module")
def frame():
    from conftest import simulate

    stars = simulate(N, seed=5).stars
    flux = np.where(np.random.default_rng(0).random(stars.flux.value.shape) < 0.2, np.nan, stars.flux.value)
    rng = np.random.default_rng(1)
    return pd.DataFrame({
        "ra": rng.uniform(0, 360, N), "dec": rng.uniform(-60, 60, N), "NAME": np.arange(N),
        "FLUX": list(flux), "FLUX_ERR": list(stars.flux.error),
    }, index=np.arange(100, 100 + N))  # fmt: skip


def test_a_partition_of_any_size_has_the_numbers_of_infer(trained, frame):
    found = infer_partition(frame, trained, columns=COLUMNS, batch_size=SIZE)
    stars = bl.Stars.from_table(
        {"NAME": frame["NAME"], "FLUX": np.stack(frame["FLUX"]), "FLUX_ERR": np.stack(frame["FLUX_ERR"])},
        flux="FLUX", flux_error="FLUX_ERR", id="NAME",
    )  # fmt: skip
    expected = bl.infer(trained, stars, batch_size=SIZE).table()
    np.testing.assert_array_equal(found["TEFF"], expected["TEFF"].value)
    np.testing.assert_array_equal(found["TEFF_error"], expected["TEFF_error"].value)
    assert list(found.index) == list(frame.index)
    np.testing.assert_array_equal(found["ra"], frame["ra"])
    for n in (0, 1):
        part = infer_partition(frame[:n], trained, columns=COLUMNS, batch_size=SIZE)
        assert len(part) == n
        assert list(part.columns) == list(found.columns)
        assert list(part.dtypes) == list(found.dtypes)
        np.testing.assert_array_equal(part["TEFF"], found["TEFF"][:n])


def test_small_partitions_are_small_batches(trained, frame, monkeypatch):
    sizes, stars = [], {}

    def noted(*arguments):
        sizes.append(arguments[-1])
        return infer_table(*arguments)

    monkeypatch.setattr("bayeslabels.catalogues.partitions.infer_table", noted)
    monkeypatch.setattr("bayeslabels.catalogues.partitions.few_batches", lambda model: [4, 16])
    for n in (3, 20, N):
        stars[n] = infer_partition(frame[:n], trained, columns=COLUMNS)
    assert sizes == [4, 16, 4, 16, 16]
    np.testing.assert_allclose(stars[3]["TEFF"], stars[N]["TEFF"][:3], rtol=1e-6)
    assert few_batches(trained.model)[-1] == kind_of(trained.model).batch_size(trained.model)
    assert 1 < len(few_batches(trained.model)) <= 3


def test_a_cluster_gives_the_direct_result(trained, frame, tmp_path):
    lsdb = pytest.importorskip("lsdb")
    distributed = pytest.importorskip("distributed")
    import pyarrow as pa

    trained.save(tmp_path / "model.nc")
    lists = pd.ArrowDtype(pa.list_(pa.float64()))
    catalog = lsdb.from_dataframe(
        frame.astype({"FLUX": lists, "FLUX_ERR": lists}), ra_column="ra", dec_column="dec", partition_rows=10
    )
    assert catalog.npartitions > 2
    options = {"columns": COLUMNS, "batch_size": SIZE}
    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None):
        inferred = catalog.map_partitions(infer_partition, str(tmp_path / "model.nc"), **options)
        inferred.write_catalog(tmp_path / "labels_hats", catalog_name="labels")
    found = lsdb.open_catalog(tmp_path / "labels_hats").compute()
    direct = pd.concat([infer_partition(p.compute(), trained, **options) for p in catalog.partitions])
    assert len(found) == N
    found, direct = (x.sort_values("id") for x in (found, direct))
    for name in ("id", "ra", "TEFF", "TEFF_error", "LOGG", "flags"):
        np.testing.assert_array_equal(found[name].to_numpy(), direct[name].to_numpy(), err_msg=name)
