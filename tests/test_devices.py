"""Two simulated devices give what one gives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import simulate

import bayeslabels as bl
from bayeslabels.data.batches import Batches, Passes, RowsInMemory
from bayeslabels.inference.passes import Stochastic, Sweeps
from bayeslabels.kinds.parallax.sums import GaussianBySums
from bayeslabels.kinds.spectra.sums import SpectraBySums

pytestmark = pytest.mark.long

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import jax, numpy
from test_devices import results
assert len(jax.devices()) == 2
numpy.savez(sys.argv[2], **results(sys.argv[3] == "True"))
"""


APART = """
import sys
sys.path.insert(0, sys.argv[1])
import jax, numpy
jax.distributed.initialize(f"localhost:{sys.argv[4]}", 2, int(sys.argv[3]), cluster_detection_method="deactivate")
from test_devices import from_file
assert len(jax.devices()) == 2 and len(jax.local_devices()) == 1
folder = sys.argv[2]
numpy.savez(f"{folder}/{sys.argv[3]}.npz", **from_file(folder, f"{folder}/{sys.argv[3]}"))
"""


def from_file(folder, own):
    """Of training from the files that all processes read; what a process writes goes to a folder of its own."""
    from test_training_stream import MODEL, NAMES
    from test_training_sums import CLASSIC

    os.mkdir(own)
    out = {}
    for name, (model, file, inference) in {
        "map": (MODEL, "labels", bl.MAP(max_iterations=2, batch_size=55)),
        "svi": (MODEL, "labels", bl.SVI(steps=12, batch_size=55)),
        "passes": (CLASSIC, "spectra", bl.MAP()),
    }.items():
        names = NAMES if file == "labels" else {"labels_names": NAMES["labels_names"]}
        source, kept = f"{folder}/{file}.parquet", f"{own}/{name}.npz"
        posterior = bl.fit(model, source, inference, columns=names, checkpoint=kept, every=0)
        out |= moments_and_traces(name, posterior)
        posterior.save(f"{own}/{name}.nc")
    return out


def passed_over(kinds):
    """Of a pass, and of a step by a minibatch, over stars that are no multiple of what devices take."""
    from test_parallax_sums import in_memory, rows_of, table

    stars, out = simulate(700, 2).stars, {}
    with_parallaxes = rows_of(bl.Parallax(), in_memory(table()))
    with jax.enable_x64(True):
        for kind in kinds:
            if kind == "parallax":
                rows = with_parallaxes
                by_sums = GaussianBySums(rows.model, rows.stars, 10, 0)
            else:
                model = (
                    bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Flat())
                    if kind == "exact labels"
                    else bl.Lux(2)
                )
                rows = RowsInMemory(model.bind(stars), stars, sample=stars[:200])
                by_sums = SpectraBySums(rows.model, rows.stars, 1e-6)
            for way, batches in ((Sweeps, Passes(rows)), (Stochastic, Batches.of(rows, 1, 0, 600))):
                trainer = way(by_sums, batches, 1)
                trainer.take(next(batches.blocks()))
                sums = trainer.state["sums"] if way is Stochastic else trainer.state["g"]
                leaves = [x for x in jax.tree.leaves(sums) if np.ndim(x)]
                out |= {f"{kind} {way.__name__} {i}": np.asarray(x) for i, x in enumerate(leaves)}
    return out


def moments_and_traces(name, posterior):
    out = {f"{name} {k}": x for k, x in posterior.moments._asdict().items()}
    return out | {f"{name} {k}": x.values for k, x in posterior.data["sample_stats"].data_vars.items() if x.ndim}


def results(more):
    """Of training by minibatches, whose size is no multiple of two, and of the test step."""
    from test_training_stream import MODEL, in_memory, table

    stars, out = in_memory(table(300)), {}
    by = {"map": bl.MAP(max_iterations=2, batch_size=55)}
    if more:
        by["svi"] = bl.SVI(steps=12, batch_size=55)
    for name, inference in by.items():
        posterior = bl.fit(MODEL, stars, inference)
        out |= moments_and_traces(name, posterior)
    out |= passed_over(["exact labels", "latents", "parallax"] if more else ["exact labels"])
    blocks = simulate(40).stars
    cannon = bl.fit(
        bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Flat()),
        bl.Stars(labels=blocks.labels, flux=blocks.flux),
    )
    out["labels"] = bl.infer(cannon, bl.Stars(flux=simulate(30, 1).stars.flux), batch_size=8).mean
    return out


@pytest.mark.parametrize("more", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_devices_give_what_one_gives(tmp_path, more):
    pytest.importorskip("pyarrow")
    assert len(jax.devices()) == 1
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"  # beside those of all tests
    command = [sys.executable, "-c", SCRIPT, os.path.dirname(__file__), str(tmp_path / "two.npz"), str(more)]
    subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.getcwd()}, check=True, timeout=600)
    equal(tmp_path / "two.npz", results(more))


def equal(file, one):
    with np.load(file) as two:
        assert len(one) == len(two.files) > 5
        for name, x in one.items():
            np.testing.assert_allclose(two[name], x, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    """Each reads the file; the first alone writes."""
    pytest.importorskip("pyarrow")
    import test_training_sums
    from test_catalog import write_parquet
    from test_training_stream import table

    write_parquet(table(300), tmp_path / "labels.parquet", group=90)
    write_parquet(test_training_sums.table(test_training_sums.spectra()), tmp_path / "spectra.parquet", group=90)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", APART, os.path.dirname(__file__), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    both = [subprocess.Popen([*command, str(rank), port], env=environment) for rank in range(2)]
    try:
        assert [x.wait(timeout=600) for x in both] == [0, 0]
    finally:
        for x in both:
            x.kill()
    one = from_file(tmp_path, tmp_path / "one")
    for rank in range(2):
        equal(tmp_path / f"{rank}.npz", one)
    written = {x.name for x in (tmp_path / "one").iterdir()}
    assert {f"{name}.{kind}" for name in ("map", "svi", "passes") for kind in ("npz", "nc")} <= written
    assert {x.name for x in (tmp_path / "0").iterdir()} == written
    assert not any((tmp_path / "1").iterdir())
