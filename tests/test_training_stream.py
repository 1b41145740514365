"""Training by minibatches of stars that are in files: the result of stars in memory, whatever stops the run."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.table import Table
from numpyro.infer.util import log_density
from test_catalog import write_hdf5, write_parquet
from test_collapsed import LineModel

import bayeslabels as bl
from bayeslabels.core.model import Bound
from bayeslabels.data import batches as batches_
from bayeslabels.data.batches import Batches, RowsInMemory, split
from bayeslabels.data.digests import in_order
from bayeslabels.errors import CannotDo
from bayeslabels.files.checkpoint import Checkpoint, differences
from bayeslabels.files.training import First
from bayeslabels.inference.guide import Guided, fit_guide
from bayeslabels.inference.minibatch import Members, Objective, fit_members

pytest.importorskip("pyarrow")

N = 900
MODEL = bl.Translator(function="polynomial", order=1, scatter="constant", robust=False, members=2, components=2)
NAMES = {"labels_names": ("TEFF", "LOGG"), "target_labels_names": ("TEFF", "LOGG")}
MAP = bl.MAP(max_iterations=4, batch_size=100)


def table(n=N, seed=0):
    """Two surveys of the same stars, the second with gaps; sorted, as catalogues are."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    x = x[np.argsort(x[:, 0])]
    y = x * [1.1, 0.9] + [0.3, -0.2] + 0.1 * rng.normal(size=x.shape)
    y[rng.random(n) < 0.05] = np.nan
    error = np.full(x.shape, 0.1)
    return Table({"labels": x + 0.1 * rng.normal(size=x.shape), "labels_error": error,
                  "target_labels": y, "target_labels_error": error, "OTHER": np.arange(n)})  # fmt: skip


def in_memory(table):
    columns = {name: name for name in table.colnames if name != "OTHER"}
    return bl.Stars.from_table(table, **columns, **NAMES)


SMALL = [(batches_, "BLOCK", 200)]


@pytest.fixture
def blocks_of_200(monkeypatch):
    for place in SMALL:
        monkeypatch.setattr(*place)


def line_of(n):
    rng = np.random.default_rng(1)
    v = rng.normal(size=n)
    sd = rng.uniform(0.2, 0.8, v.size)
    y = 0.5 + 2.0 * v + 0.3 * rng.normal(size=v.size)
    return RowsInMemory(LineModel(), bl.Stars(labels=bl.Block(v + sd * rng.normal(size=v.size), sd), flux=bl.Block(y)))


@pytest.fixture
def line():
    return line_of(1000)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_the_batches_of_an_epoch_are_the_whole_objective(line, blocks_of_200, bootstrap):
    line.pieces = batches_.pieces_of(line.n, 70)
    line.usable[5:40] = False
    batches = Batches.of(line, 3, 0, 12, bootstrap=bootstrap)
    starts = [line.model.start(line.stars, e) for e in range(3)]
    objective = Objective(Bound(line.model))
    members = Members(objective, batches, starts, 1, 0.0, 1)
    steps, width = batches.extent(4)
    total, seen = np.zeros((3,)), np.zeros((3, line.n), int)
    of_members = jax.jit(jax.vmap(lambda *x: objective.loss(*x, batches.n)))
    blocks = []
    for block in batches.blocks(4):
        if block.epoch > 4:
            break
        blocks.append(block)
    assert len(blocks) > 4
    with jax.enable_x64(True):
        for number, block in enumerate(blocks):
            rows = line.told(batches.plan(4)[number])[0]
            for s in range(block.steps):
                order, counts = block.order[:, s], block.counts[:, s]
                for e in range(3):
                    np.add.at(seen[e], rows[order[e][counts[e]]], 1)
                part = jax.tree.map(lambda x, o=order: jnp.asarray(np.asarray(x, float)[o]), block.data)
                real = jax.tree.map(lambda x: jnp.asarray(x, float), members.state["real"])
                key = jax.random.split(jax.random.key(0), 3)
                total += of_members(real, part, jnp.asarray(counts), jnp.asarray(width), key)
        np.testing.assert_array_equal(seen, batches.often)
        assert not seen[:, 5:40].any()
        usable = np.flatnonzero(line.usable)[np.argsort(batches.place[line.usable])]
        out = split(usable, 3)
        assert all(not seen[e][out[e]].any() for e in range(3))
        theta = jax.vmap(objective.constrained)(real)
        for e in range(3):
            own = jax.tree.map(lambda x, e=e: x[e], theta)
            density = line.model.log_likelihood(own, line.model.arrays(line.all))
            whole = -(batches.often[e] * density).sum() / batches.often[e].sum()
            whole -= log_density(line.model.parameters, (), {}, own)[0] / batches.n
            np.testing.assert_allclose(total[e] / steps, whole, rtol=1e-9)


def test_blocks_mix_the_whole_table(line, blocks_of_200):
    batches = Batches.of(line, 1, 0, 12)
    line.pieces = batches_.pieces_of(line.n, 10)
    for epoch in (0, 1):
        plan = batches.plan(epoch)
        rows = [np.concatenate([np.arange(*x) for x in block]) for block in plan]
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(line.n))
        assert max(map(len, rows)) <= 200
        assert np.abs(rows[0].mean() - line.n / 2) < 150
    assert batches.plan(0) != batches.plan(1)


@pytest.mark.parametrize("kind", ["fits", "hdf5", "parquet"])
def test_files_train_as_memory_does(tmp_path, blocks_of_200, kind, monkeypatch):
    """To the bit where the pieces are the same, which of Parquet are its row groups."""
    whole = table()
    stars = in_memory(whole)
    if kind == "parquet":
        source, pieces = write_parquet(whole, tmp_path / "in", rows=250, group=90), None
    else:
        source, pieces = tmp_path / f"in.{kind}", 60
        write_hdf5(whole, source) if kind == "hdf5" else whole.write(source)
    if pieces:
        for module in (batches_, sys.modules["bayeslabels.files.training"]):
            monkeypatch.setattr(module, "pieces_of", lambda n: [(i, min(i + pieces, n)) for i in range(0, n, pieces)])
    else:
        rows = [0, 90, 180, 250, 340, 430, 500, 590, 680, 750, 840, 900]
        monkeypatch.setattr(batches_, "pieces_of", lambda n: list(itertools.pairwise(rows)))
    ours = bl.fit(MODEL, source, MAP, columns=NAMES)
    theirs = bl.fit(MODEL, stars, MAP)
    for name, x in ours.moments._asdict().items():
        np.testing.assert_allclose(x, getattr(theirs.moments, name), rtol=2e-5, atol=1e-6, err_msg=name)
    assert ours.info["n_without_target_labels"] == theirs.info["n_without_target_labels"] > 20
    assert ours.info["n_star"] == theirs.info["n_star"]
    result = bl.infer_catalog(ours, source, tmp_path / "out", progress=False)
    assert result.n_star == N


def test_the_first_in_random_order_are_found_as_a_table_goes_by():
    rng = np.random.default_rng(0)
    own, usable = rng.integers(0, 2**63, 300, dtype=np.uint64), rng.random(300) < 0.8
    whole, first = Table({"row": np.arange(300)}), First(20, 5)
    for at in range(0, 300, 7):
        rows = slice(at, at + 7)
        first.add(whole[rows], own[rows], usable[rows], at)
    order = in_order(own, 5)
    expected = np.sort(order[usable[order]][:20])
    np.testing.assert_array_equal(first.table["row"], expected)
    np.testing.assert_array_equal(first.index, expected)


@pytest.mark.slow
def test_guides_train_from_files(tmp_path, blocks_of_200):
    source = write_parquet(table(), tmp_path / "in.parquet", group=90)
    posterior = bl.fit(MODEL, source, bl.SVI(batch_size=64, epochs=60, learning_rate=0.02), columns=NAMES)
    assert all(x.dtype == float for x in posterior.data["posterior"].to_dataset().values())
    said = bl.infer(posterior, in_memory(table(300, 1)).drop("target_labels"))
    truth = table(300, 1)["target_labels"]
    good = np.isfinite(truth).all(1)
    assert np.std((said.mean - truth)[good]) < 0.18


def test_a_guide_is_done_when_stars_held_out_gain_no_more(tmp_path, monkeypatch):
    """And where that run is stopped, it ends as if it had not been."""
    rows, svi = line_of(12_000), bl.SVI(epochs=200, batch_size=256, learning_rate=0.02)
    whole = fit_guide(rows, svi, 4, False)
    elbo = whole.traces["held_out_elbo"]
    assert whole.stats["steps"] < 200 * 46 / 4
    assert fit_guide(rows, bl.SVI(steps=9, draws=2), 0, False).stats["steps"] == 9
    assert elbo[-5:].min() > elbo.max() - 0.003 > elbo[:5].max() + 0.02
    line, sd = (x((0, 1)) for x in (whole.draws["line"].mean, whole.draws["line"].std))
    assert (np.abs(line - [0.5, 2.0]) < 3 * sd).all()
    with monkeypatch.context() as m:
        stop_after(m, len(elbo) - 5, Guided)
        with pytest.raises(Stopped):
            fit_guide(rows, svi, 4, False, Checkpoint(tmp_path / "run.npz", 0.0, {}))
    again = fit_guide(rows, svi, 4, False, Checkpoint(tmp_path / "run.npz", 0.0, {}))
    np.testing.assert_array_equal(again.draws["line"], whole.draws["line"])
    np.testing.assert_array_equal(again.traces["loss"], whole.traces["loss"])


class Stopped(Exception):
    """Instead of a power cut."""


def stop_after(monkeypatch, n, kind=Members):
    calls, take = [], kind.take

    def failing(self, block):
        calls.append(block)
        if len(calls) > n:
            raise Stopped
        return take(self, block)

    monkeypatch.setattr(kind, "take", failing)
    return lambda: monkeypatch.setattr(kind, "take", take)


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(line, tmp_path, blocks_of_200, monkeypatch):
    options = {"epochs": 5, "learning_rate": 0.05, "batch_size": 30}
    whole = fit_members(line, 3, False, **options)
    path = tmp_path / "run.npz"

    def run():
        return fit_members(line, 3, False, **options, checkpoint=Checkpoint(path, 0.0, {"seed": 3}))

    for n in (1, 4, 9):
        go_on = stop_after(monkeypatch, n)
        with pytest.raises(Stopped):
            run()
        go_on()
    last = path.read_bytes()
    again = run()
    for name, x in whole.draws.items():
        np.testing.assert_array_equal(again.draws[name], x)
    for name, x in whole.traces.items():
        np.testing.assert_array_equal(again.traces[name], x)
    np.testing.assert_array_equal(run().draws["line"], whole.draws["line"])  # done: nothing is left to do
    path.write_bytes(last[:300])  # torn: the one before is taken
    np.testing.assert_array_equal(run().draws["line"], whole.draws["line"])
    assert {x.name for x in tmp_path.iterdir()} == {"run.npz", "run.previous.npz"}


SCRIPT = """
import importlib, os, signal, sys
sys.path.insert(0, sys.argv[1])
from bayeslabels.files import checkpoint
test = importlib.import_module(sys.argv[2])
for place in test.SMALL:
    setattr(*place)
saved, replace = [], os.replace
def replacing(a, b):
    replace(a, b)
    saved.extend([b] * str(b).startswith(sys.argv[4].removesuffix(".npz")))
    if len(saved) == int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.os.replace = replacing
test.work(sys.argv[3], checkpoint=sys.argv[4], every=0)
"""


def killed_and_taken_up(module, work, source, path, moves):
    """`work` of a test module, killed after so many moves of files, gives what it gives undisturbed."""
    whole = work(source)
    command = [sys.executable, "-c", SCRIPT, os.path.dirname(__file__), module, str(source), str(path), str(moves)]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    again = work(source, checkpoint=path)
    for name, x in whole.moments._asdict().items():
        np.testing.assert_array_equal(getattr(again.moments, name), x)


def work(source, **options):
    return bl.fit(MODEL, source, MAP, columns=NAMES, seed=1, **options)


def test_blocks_in_which_no_star_says_anything(tmp_path, blocks_of_200):
    """As of surveys whose stars with labels come first."""
    whole = table(2000)
    whole["target_labels"][100:] = np.nan
    source = write_parquet(whole, tmp_path / "in.parquet", group=90)
    trained = bl.fit(MODEL, source, MAP, columns=NAMES, seed=1, progress=False)
    assert trained.info["n_without_target_labels"] >= 1900
    assert np.isfinite(trained.moments.coefficients).all()


@pytest.mark.long
def test_a_run_that_was_killed(tmp_path, blocks_of_200):
    """Between the two moves that make a checkpoint, when none is in its place."""
    source = write_parquet(table(), tmp_path / "in.parquet", group=90)
    killed_and_taken_up("test_training_stream", work, source, tmp_path / "run.npz", 6)


def test_a_checkpoint_of_other_work_is_refused_and_the_difference_named(tmp_path, blocks_of_200):
    stars, path = in_memory(table()), tmp_path / "run.npz"
    short = bl.MAP(max_iterations=1, batch_size=100)
    bl.fit(MODEL, stars, short, checkpoint=path, every=0)
    wrong = [
        ({"model": MODEL.replace(components=3)}, "model.components was 2, is 3"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"stars": in_memory(table(seed=4))}, "stars was"),
        ({"inference": bl.MAP(max_iterations=2, batch_size=100)}, "settings.max_iterations was 1, is 2"),
    ]
    for change, told in wrong:
        given = {"model": MODEL, "stars": stars, "inference": short} | change
        with pytest.raises(bl.BadInput, match=told):
            bl.fit(**given, checkpoint=path)
    for odd in ("run.pickle", "nowhere/run.npz"):
        with pytest.raises(bl.BadInput, match="checkpoint"):
            bl.fit(MODEL, stars, MAP, checkpoint=tmp_path / odd)
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 0}) == "a.b was 1, is 2; c was None, is 0"


def test_what_cannot_be_is_said(simulated, tmp_path):
    source = write_parquet(table(), tmp_path / "in.parquet")
    for call in (lambda: bl.fit(MODEL, source, bl.NUTS()), lambda: bl.fit(bl.Cannon(), source, bl.Gibbs())):
        with pytest.raises(CannotDo, match="in files"):
            call()
    with pytest.raises(CannotDo, match="checkpoints"):
        bl.fit(bl.Cannon(order=1), simulated.stars, bl.Gibbs(), checkpoint=tmp_path / "run.npz")
    with pytest.raises(bl.BadInput, match="batch_size"):
        bl.fit(bl.Cannon(order=1), simulated.stars, bl.MAP(batch_size=10))
    with pytest.raises(bl.BadInput, match="target_labels"):
        bl.fit(MODEL, write_parquet(table()["labels", "labels_error"], tmp_path / "half.parquet"))
    with pytest.raises(bl.BadInput, match="'TEMPERATURE'"):
        bl.fit(MODEL, source, columns={"labels": ("TEMPERATURE", "LOGG")})
    with pytest.raises(bl.BadInput, match="no file"):
        bl.fit(MODEL, tmp_path / "nowhere")
