"""Training from sums over stars, in files: the answer of training in memory, whatever stops the run."""

from __future__ import annotations

import contextlib

import jax
import numpy as np
import pytest
from astropy.table import Table, vstack
from conftest import simulate
from test_catalog import write_hdf5, write_parquet
from test_training_stream import Stopped, killed_and_taken_up, stop_after

import bayeslabels as bl
from bayeslabels.data import batches as batches_
from bayeslabels.data.batches import Batches, Passes, RowsInMemory
from bayeslabels.errors import CannotDo
from bayeslabels.files import training
from bayeslabels.inference.passes import Stochastic, Sweeps, by_minibatches, by_sweeps
from bayeslabels.kinds.spectra.em import by_em
from bayeslabels.kinds.spectra.sums import SpectraBySums

pytest.importorskip("pyarrow")

N, FEW = 600, 250
NAMES = {"labels_names": ("TEFF", "LOGG")}
CLASSIC = bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Flat())


def spectra(n=N, seed=1):
    """Stars with gaps in the flux, errors that differ, and scatter beyond them."""
    stars, rng = simulate(n, seed).stars, np.random.default_rng(seed)
    flux = np.array(stars.flux.value) + 0.02 * rng.normal(size=stars.flux.value.shape) * np.linspace(0.2, 1, 12)
    flux[rng.random(flux.shape) < 0.02] = np.nan
    error = 0.01 * rng.uniform(0.5, 2, flux.shape)
    error[rng.random(flux.shape) < 0.01] = np.inf
    return bl.Stars(labels=stars.labels, flux=bl.Block(flux, error))


def with_gaps(stars):
    """A label in twenty is not known."""
    labels, rng = stars.labels, np.random.default_rng(3)
    value = np.where(rng.random(labels.value.shape) < 0.05, np.nan, labels.value)
    return stars.with_block(labels=bl.Block(value, labels.error, names=labels.names, unit=labels.units))


def table(stars):
    columns = {name: np.asarray(stars[name].value) for name in ("labels", "flux")}
    errors = {f"{name}_error": np.asarray(stars[name].error) for name in ("labels", "flux")}
    return Table({**columns, **errors, "OTHER": np.arange(len(stars))})


def in_memory(table):
    names = ("labels", "labels_error", "flux", "flux_error")
    return bl.Stars.from_table(table, **{name: name for name in names}, **NAMES)


SMALL = [(batches_, "BLOCK", 256), (training, "SAMPLE", FEW)]


@pytest.fixture
def small(monkeypatch):
    """Blocks of 256 stars, and a sample of 250."""
    for place in SMALL:
        monkeypatch.setattr(*place)


CASES = {
    "exact labels": (CLASSIC.replace(order=2), spectra, 1e-6),
    "gaps": (
        bl.Cannon(order=1, label_noise="cut", coefficient_prior=bl.priors.Flat()),
        lambda: with_gaps(spectra()),
        1e-8,
    ),
    "learned prior": (bl.Cannon(order=2, label_noise=False), spectra, 1e-6),
    "sparse": (CLASSIC.replace(coefficient_prior=bl.priors.Laplace(0.01)), spectra, 1e-6),
    "label noise": (bl.Cannon(order=1, label_noise="joint"), lambda: with_gaps(spectra()), 1e-7),
    "latents": (bl.Lux(2), lambda: with_gaps(spectra()), 1e-7),
}


SLOW = {"gaps", "sparse", "latents"}


@pytest.mark.parametrize("case", [pytest.param(x, marks=pytest.mark.slow if x in SLOW else ()) for x in CASES])
def test_passes_end_where_training_in_memory_does(case, small):
    model, stars, tolerance = CASES[case]
    stars = stars()
    bound = model.bind(stars)
    most = 2000
    with jax.enable_x64(True):
        theirs = by_em(bound, stars, bl.MAP(max_iterations=most, tolerance=tolerance), 0, False)
        rows = RowsInMemory(bound, stars, sample=stars[:FEW])
        ours = by_sweeps(SpectraBySums(bound, rows.stars, tolerance), rows, most, False)
    assert ours.stats["converged"]
    assert theirs.stats["converged"]
    a, b = ours.moments, theirs.moments
    slow = case in ("label noise", "latents", "learned prior")
    width = {"rtol": 2e-4, "atol": 2e-5} if slow else {"rtol": 1e-6, "atol": 1e-8}
    if case == "learned prior":  # which ends within a thousandth of a nat of its mode, of twelve pixels
        width = {"rtol": 5e-3, "atol": 1e-4}
    for name in ("scatter", "label_scatter"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), **width, err_msg=name)
    flux = [np.asarray(bound.features(x.training_u[:FEW])) @ x.coefficients.T for x in (a, b)]
    np.testing.assert_allclose(*flux, **width)
    spread = [np.sqrt(np.einsum("lkk->l", x.coefficient_covariance)) for x in (a, b)]
    np.testing.assert_allclose(*spread, rtol=3e-2 if slow else 1e-6)
    if not slow:
        np.testing.assert_allclose(a.coefficients, b.coefficients, **width)
    if case == "exact labels":
        assert ours.stats["passes"] <= 6


def minibatch_sums(by_sums, batches, g, epoch=0):
    """The mean over the minibatches of an epoch of what `Stochastic` adds."""
    extent, total, steps = float(batches.extent(epoch)[1][0]), None, 0
    for block in batches.blocks(epoch):
        if block.epoch > epoch:
            break
        for order, counts in zip(block.order[0, : block.steps], block.counts[0, : block.steps], strict=True):
            order, counts = (np.pad(x, (0, -len(x) % 256)) for x in (order, counts))
            data = jax.tree.map(lambda x, order=order: x[order], block.data)
            part = jax.tree.map(lambda x: np.asarray(x) / extent, by_sums.sums(g, data, counts.astype(float)))
            total = part if total is None else jax.tree.map(np.add, total, part)
            steps += 1
    return jax.tree.map(lambda x: x / steps, total)


@pytest.mark.parametrize("model", [bl.Cannon(order=1, label_noise="joint"), bl.Lux(2)], ids=["Cannon", "Lux"])
def test_minibatches_are_unbiased(model, small):
    """Their mean is the sums, and the objective, of all stars that are not held out."""
    stars = with_gaps(spectra())
    rows = RowsInMemory(model.bind(stars), stars, sample=stars[:FEW])
    with jax.enable_x64(True):
        by_sums = SpectraBySums(rows.model, rows.stars, 1e-3, 3)
        g = by_sums.start()
        batches = Batches.of(rows, 1, 0, 50)
        mean = minibatch_sums(by_sums, batches, g)
        counts = np.pad(batches.often[0].astype(float), (0, -N % 256))
        whole = by_sums.sums(g, rows.held_out(np.resize(np.arange(N), len(counts))), counts)
    for x, y in zip(jax.tree.leaves(mean), jax.tree.leaves(whole), strict=True):
        y = np.asarray(y) / counts.sum()
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-9 * np.abs(y).max(initial=0.0) + 1e-13)


@pytest.mark.slow
def test_minibatches_come_close_and_stop_by_held_out_stars(small):
    stars = spectra(2000)
    bound = CLASSIC.bind(stars)
    rows = RowsInMemory(bound, stars, sample=stars[:FEW])
    with jax.enable_x64(True):
        exact = by_em(bound, stars, bl.MAP(), 0, False).moments
        rough = by_em(bound, rows.stars, bl.MAP(), 0, False).moments
        found = by_minibatches(
            SpectraBySums(bound, rows.stars, 1e-6), rows, bl.SVI(batch_size=100, epochs=12), 0, False
        )
    assert found.stats["epochs"] == len(found.traces["held_out_log_density"]) <= 12
    sd = np.sqrt(np.einsum("lkk->lk", exact.coefficient_covariance))
    off = [np.sqrt(np.mean(((x.coefficients - exact.coefficients) / sd) ** 2)) for x in (found.moments, rough)]
    assert off[0] < 1.0 < off[1]
    np.testing.assert_allclose(np.sqrt(np.einsum("lkk->lk", found.moments.coefficient_covariance)), sd, rtol=0.2)


@pytest.mark.parametrize("kind", ["parquet", "fits", "hdf5"])
def test_files_train_as_memory_does(kind, tmp_path, small):
    whole = table(spectra())
    stars = in_memory(whole)
    if kind == "parquet":
        source = write_parquet(whole, tmp_path / "in", rows=170, group=90)
    else:
        source = tmp_path / f"in.{kind}"
        write_hdf5(whole, source) if kind == "hdf5" else whole.write(source)
    ours = bl.fit(CLASSIC, source, columns=NAMES)
    theirs = bl.fit(CLASSIC, stars)
    assert ours.info["inference"] == "MAP"
    assert ours.info["n_star"] == N
    assert ours.info["columns"]
    scaled = [x.model.require_frame().scaled(np.asarray(stars.labels.value)) for x in (ours, theirs)]
    flux = [
        np.asarray(x.model.features(u)) @ x.moments.coefficients.T for x, u in zip((ours, theirs), scaled, strict=True)
    ]
    np.testing.assert_allclose(*flux, rtol=1e-6)
    np.testing.assert_allclose(ours.moments.scatter, theirs.moments.scatter, rtol=1e-6)
    if kind == "parquet":
        new = stars.drop("labels")[:20]
        np.testing.assert_allclose(bl.infer(ours, new).mean, bl.infer(theirs, new).mean, rtol=1e-4)
        ours.save(tmp_path / "model.nc")
        assert "OTHER" not in bl.load(tmp_path / "model.nc").info["columns"].values()


@pytest.mark.parametrize("kind", ["parquet", "fits"])
def test_rows_without_data_change_nothing(kind, tmp_path, small):
    """Blocks are put together from the rows that say anything, however many others lie between them."""
    plain, trained = table(spectra()), []
    empty = plain[np.sort(np.random.default_rng(4).integers(N, size=90))]
    empty["flux"] = empty["labels"] = np.nan
    rows = np.argsort(np.concatenate([np.arange(N), np.random.default_rng(5).integers(200, 300, 90)]), kind="stable")
    for i, some in enumerate((plain, vstack([plain, empty])[rows])):
        path = tmp_path / f"{i}.{kind}"
        some.write(path)
        trained.append(bl.fit(bl.Cannon(order=1, label_noise="joint"), path, columns=NAMES, progress=False))
    assert [x.info["n_without_data"] for x in trained] == [0, 90]
    for a, b in zip(*(jax.tree.leaves(x.moments) for x in trained), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_tau_is_told_by_the_sample(tmp_path, small):
    """The label system is as well known as all stars make it."""
    stars = in_memory(table(spectra()))
    source = write_parquet(table(spectra()), tmp_path / "in.parquet", group=90)
    cut = [bl.fit(CLASSIC.replace(label_noise="cut"), x, columns=y) for x, y in ((source, NAMES), (stars, None))]
    scale = cut[1].model.require_frame().scale
    np.testing.assert_allclose(*(x.moments.label_scatter / scale for x in cut), atol=0.05)
    system = [np.trace(x.moments.label_system_covariance.reshape(6, 6)) for x in cut]
    np.testing.assert_allclose(*system, rtol=0.3)


def test_what_is_kept_does_not_grow_with_the_stars(small):
    sizes = []
    for n in (600, 1800):
        stars = spectra(n)
        rows = RowsInMemory(CLASSIC.bind(stars), stars, sample=stars[:FEW])
        with jax.enable_x64(True):
            sweeps = Sweeps(SpectraBySums(rows.model, rows.stars, 1e-6), Passes(rows), 3)
        blocks = Passes(rows).blocks()
        block = next(blocks)
        blocks.close()
        assert len(block.data.value) == 256
        sizes.append(sum(np.size(x) for x in jax.tree.leaves(sweeps.state)))
    assert sizes[0] == sizes[1]
    wide = RowsInMemory(rows.model, stars)
    wide.width = batches_.NUMBERS // 100
    assert Batches.of(wide, 1, 0, 64).block == 100


def unfinished(kind):
    return pytest.warns(bl.NotConverged) if kind is Sweeps else contextlib.nullcontext()


@pytest.mark.parametrize("inference", [bl.MAP(max_iterations=3), bl.SVI(batch_size=100, epochs=5)], ids=["MAP", "SVI"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(inference, tmp_path, small, monkeypatch):
    model, stars, path = bl.Cannon(order=1, label_noise="joint"), spectra(), tmp_path / "run.npz"
    kind = Sweeps if isinstance(inference, bl.MAP) else Stochastic
    options = {"inference": inference, "seed": 3}
    with unfinished(kind):
        whole = bl.fit(model, stars, **options, checkpoint=tmp_path / "whole.npz")
    for n in (1, 2):
        go_on = stop_after(monkeypatch, n, kind)
        with pytest.raises(Stopped):
            bl.fit(model, stars, **options, checkpoint=path, every=0)
        go_on()
    with unfinished(kind):
        again = bl.fit(model, stars, **options, checkpoint=path)
    for name, x in whole.moments._asdict().items():
        np.testing.assert_array_equal(getattr(again.moments, name), x, err_msg=name)
    with pytest.raises(bl.BadInput, match="seed was 3, is 4"):
        bl.fit(model, stars, inference, seed=4, checkpoint=path)
    with pytest.raises(bl.BadInput, match="stars was"):
        bl.fit(model, stars[1:], inference, seed=3, checkpoint=path)


def work(source, **options):
    return bl.fit(CLASSIC, source, columns=NAMES, **options)


@pytest.mark.long
def test_a_run_that_was_killed(tmp_path, small):
    """Between the two moves that make a checkpoint, in the middle of a pass."""
    source = write_parquet(table(spectra()), tmp_path / "in.parquet", group=90)
    killed_and_taken_up("test_training_sums", work, source, tmp_path / "run.npz", 8)


def test_what_cannot_be_is_said(tmp_path, small):
    source = write_parquet(table(spectra()), tmp_path / "in.parquet")
    for change, told in (({"nuisances": (bl.nuisances.Continuum(0.01),)}, "nuisances"), ({}, "in files")):
        inference = bl.MAP() if change else bl.NUTS()
        with pytest.raises(CannotDo, match=told):
            bl.fit(CLASSIC.replace(**change), source, inference, columns=NAMES)
    with pytest.raises(CannotDo, match=r"nuisances.*SVI"):
        bl.fit(CLASSIC.replace(nuisances=(bl.nuisances.Continuum(0.01),)), spectra(), bl.SVI())
    with pytest.raises(bl.BadInput, match="SVI takes minibatches"):
        bl.fit(CLASSIC, source, bl.MAP(batch_size=10), columns=NAMES)
    with pytest.raises(bl.BadInput, match="flux"):
        bl.fit(CLASSIC, write_parquet(table(spectra())["labels", "labels_error"], tmp_path / "half.parquet"))
