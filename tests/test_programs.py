"""How many programs are compiled: most of a first call's time, and the same on every machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bayeslabels.verbs import batch_of

COUNTED = """
import json, sys, warnings
import jax
import bayeslabels as bl

warnings.simplefilter("ignore")
seen = []
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.append(name))
compiled = lambda: sum("backend_compile" in name for name in seen)
model = eval(sys.argv[1])
train, test, _ = bl.simulate.simulate(300, 60, seed=1, n_test=200)
counts = []
posterior = bl.fit(model, train, progress=False)
counts.append(compiled())
for n in (200, 7, 101):
    bl.infer(posterior, test[:n], progress=False)
    counts.append(compiled() - sum(counts))
print(json.dumps(counts))
"""


@pytest.mark.parametrize(
    ("model", "most"),
    [("bl.Cannon()", 60), ("bl.Cannon(label_noise=False)", 40), ("bl.Lux(4)", 40)],
)
def test_a_first_call_compiles_few_programs_and_other_numbers_of_stars_next_to_none(model, most):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", COUNTED, model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    fit, infer, *others = json.loads(done.stdout.splitlines()[-1])
    assert fit <= most
    assert infer <= 20
    assert max(others) <= 1  # drawing from the modes


OF_MAGNITUDES = """
import json, sys, warnings
import jax
import bayeslabels as bl

warnings.simplefilter("ignore")
seen = []
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.append(name))
compiled = lambda: sum("backend_compile" in name for name in seen)
train, _ = bl.simulate.simulate_photometry(300, seed=1)
test = bl.simulate.simulate_photometry(120, seed=2)[0].drop("parallax")
posterior = bl.fit(bl.Parallax(features=("magnitudes",)), train, progress=False)
counts = []
for n in (100, 101, 120, 65):
    before = compiled()
    bl.infer(posterior, test[:n], progress=False)
    counts.append(compiled() - before)
print(json.dumps(counts))
"""


def test_batches_of_the_test_step_have_few_sizes():
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", OF_MAGNITUDES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    assert json.loads(done.stdout.splitlines()[-1])[1:] == [0, 0, 0]


@pytest.mark.parametrize(
    ("n", "most", "size"), [(1, 128, 1), (3, 128, 4), (100, 128, 128), (100, 40, 40), (600, 640, 640), (0, 128, 1)]
)
def test_sizes_of_batches(n, most, size):
    assert batch_of(most, n) == size
