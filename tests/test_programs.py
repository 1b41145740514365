"""How many programs are compiled: most of a first call's time, and the same on every machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bayeslabels.verbs import batch_of

COUNTED = """
import json, warnings
import jax
import bayeslabels as bl

warnings.simplefilter("ignore")
seen = []
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.append(name))
compiled = lambda: sum("backend_compile" in name for name in seen)

def counts(model, train, test, sizes):
    counts, before = [], compiled()
    posterior = bl.fit(model, train, progress=False)
    counts.append(compiled() - before)
    for n in sizes:
        before = compiled()
        bl.infer(posterior, test[:n], progress=False)
        counts.append(compiled() - before)
    jax.clear_caches()
    return counts

train, test, _ = bl.simulate.simulate(100, 20, seed=1, n_test=200)
models = {"noisy": bl.Cannon(), "exact": bl.Cannon(label_noise=False), "latent": bl.Lux(4)}
found = {name: counts(model, train, test, (200, 7, 101)) for name, model in models.items()}
train, _ = bl.simulate.simulate_photometry(100, seed=1)
test = bl.simulate.simulate_photometry(120, seed=2)[0].drop("parallax")
found["parallax"] = counts(bl.Parallax(features=("magnitudes",)), train, test, (100, 101, 120, 65))
print(json.dumps(found))
"""
MOST = {"noisy": 60, "exact": 40, "latent": 40}
"""Programs of training, by model."""


@pytest.fixture(scope="module")
def counted() -> dict[str, list[int]]:
    """Of each model the programs of training and of test steps of several sizes, in a process without any."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", COUNTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("model", MOST)
def test_a_first_call_compiles_few_programs_and_other_numbers_of_stars_next_to_none(counted, model):
    fit, infer, *others = counted[model]
    assert 0 < fit <= MOST[model]
    assert 0 < infer <= 20
    assert max(others) <= 1  # drawing from the modes


def test_batches_of_the_test_step_have_few_sizes(counted):
    _, infer, *others = counted["parallax"]
    assert infer > 0
    assert others == [0, 0, 0]


@pytest.mark.parametrize(
    ("n", "most", "size"), [(1, 128, 1), (3, 128, 4), (100, 128, 128), (100, 40, 40), (600, 640, 640), (0, 128, 1)]
)
def test_sizes_of_batches(n, most, size):
    assert batch_of(most, n) == size
