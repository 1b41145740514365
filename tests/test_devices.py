"""Two simulated devices give what one gives."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import simulate

import bayeslabels as bl

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import jax, numpy
from test_devices import results
assert len(jax.devices()) == 2
numpy.savez(sys.argv[2], **results(sys.argv[3] == "True"))
"""


def results(variational):
    """Of training by minibatches, whose size is no multiple of two, and of the test step."""
    from test_training_stream import MODEL, in_memory, table

    stars, out = in_memory(table(300)), {}
    by = {"map": bl.MAP(max_iterations=2, batch_size=55)}
    if variational:
        by["svi"] = bl.SVI(steps=12, batch_size=55)
    for name, inference in by.items():
        posterior = bl.fit(MODEL, stars, inference)
        out |= {f"{name} {k}": x for k, x in posterior.moments._asdict().items()}
        out |= {f"{name} {k}": x.values for k, x in posterior.data["sample_stats"].data_vars.items() if x.ndim}
    blocks = simulate(40).stars
    cannon = bl.fit(bl.Cannon(order=1, label_noise=False), bl.Stars(labels=blocks.labels, flux=blocks.flux))
    out["labels"] = bl.infer(cannon, bl.Stars(flux=simulate(30, 1).stars.flux), batch_size=8).mean
    return out


@pytest.mark.parametrize("variational", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_devices_give_what_one_gives(tmp_path, variational):
    pytest.importorskip("pyarrow")
    assert len(jax.devices()) == 1
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", SCRIPT, os.path.dirname(__file__), str(tmp_path / "two.npz"), str(variational)]
    subprocess.run(command, env=os.environ | flags, check=True, timeout=600)
    one = results(variational)
    with np.load(tmp_path / "two.npz") as two:
        assert len(one) == len(two.files) > 5
        for name, x in one.items():
            np.testing.assert_allclose(two[name], x, rtol=1e-5, atol=1e-5, err_msg=name)
