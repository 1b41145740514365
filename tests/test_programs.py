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

def counts(model, train, test, sizes, *how):
    counts, before = [], compiled()
    posterior = bl.fit(model, train, *how, progress=False)
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
train, _ = bl.simulate.simulate_photometry(100, ("G", "J", "Ks"), seed=1)
test = bl.simulate.simulate_photometry(120, ("G", "J", "Ks"), seed=2)[0].drop("parallax")
found["parallax"] = counts(bl.Parallax(features=("magnitudes",)), train, test, (100, 101, 120, 65))
few, by = {"function": "polynomial", "order": 1, "members": 1}, bl.MAP(max_iterations=2)
found["photometry"] = counts(bl.Photometry(components=1, **few), train, test.drop("labels"), (100, 60, 1), by)
both = train.with_block(target_labels=train["labels"])
found["translator"] = counts(bl.Translator(**few), both, test, (100, 128), by)
found["loaded"] = [name in sys.modules for name in ("scipy.stats", "scipy.interpolate")]
print(json.dumps(found))
"""
MOST = {
    "noisy": (30, 6, 1), "exact": (12, 6, 1), "latent": (12, 6, 1), "parallax": (8, 8, 0), "translator": (12, 6, 1),
    "photometry": (12, 20, 3),
}  # fmt: skip
"""Programs of training, of the first test step, and of one of another number of stars, by model."""


@pytest.fixture(scope="module")
def counted() -> dict[str, list[int]]:
    """Of each model the programs of training and of test steps of several sizes, in a process without any."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", COUNTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@pytest.mark.parametrize("model", MOST)
def test_a_first_call_compiles_few_programs_and_other_numbers_of_stars_next_to_none(counted, model):
    fit, infer, *others = counted[model]
    of_fit, of_infer, of_others = MOST[model]
    assert 0 < fit <= of_fit
    assert 0 < infer <= of_infer
    assert max(others) <= of_others


@pytest.mark.long
def test_a_first_call_loads_no_large_library_for_one_function(counted):
    """Each is half a second."""
    assert counted["loaded"] == [False, False]


@pytest.mark.parametrize(
    ("n", "most", "size"), [(1, 128, 1), (3, 128, 4), (100, 128, 128), (100, 40, 40), (600, 640, 640), (0, 128, 1)]
)
def test_sizes_of_batches(n, most, size):
    assert batch_of(most, n) == size
