"""Stars that tests share: simulated, small, with known truth."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

# Compiling is most of these tests' time. Half of it is saved where LLVM does not optimize and MLIR does not fuse loops,
# as XLA always does from JAX 0.11; some more where programs are not cut into parts for many cores, and do not say which
# lines they come from. Before JAX is imported; the processes that tests start inherit it.
if version("jaxlib").startswith(("0.8.", "0.9.", "0.10.")):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

import jax
import numpy as np
import pytest
from numpyro.infer.util import log_density

import bayeslabels as bl
from bayeslabels import cache
from bayeslabels.core.model import Model

gc.set_threshold(50_000, 20, 50)  # tracing makes many objects, and little garbage

LABELS = ("TEFF", "LOGG")
CENTRE, SPREAD = np.array([5000.0, 3.0]), np.array([300.0, 0.5])
N_PIXEL = 12
WAVELENGTH = np.linspace(5000.0, 5011.0, N_PIXEL)


def pytest_configure(config: pytest.Config) -> None:
    """Lend JAX one folder of compiled programs for the whole session, shared by all workers and by their processes.

    The folder is that of the environment variable `BAYESLABELS_CACHE` where it is set, otherwise one in pytest's cache.
    """
    if not os.environ.get(cache.SWITCH):
        with contextlib.suppress(OSError, AttributeError):  # without a cache of pytest's, programs are not kept
            os.environ[cache.SWITCH] = "off"
            os.environ[cache.SWITCH] = str(config.cache.mkdir("programs"))
    in_use = cache.in_use()
    in_use.__enter__()
    config.add_cleanup(lambda: in_use.__exit__(None, None, None))


MOST_MAPPINGS = 20_000
"""Of memory, a few per compiled program; Linux allows a process 65,530."""


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_given_back() -> Iterator[None]:
    """After a module that left too many of them: a process that runs all tests would be killed."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_text().count("\n") > MOST_MAPPINGS:
        jax.clear_caches()


class Simulated(NamedTuple):
    """Stars with blocks of every name that a model may use, and the true labels (N, M)."""

    stars: bl.Stars
    true_labels: np.ndarray


def simulate(n_star: int, seed: int = 0, label_error: float = 0.1, flux_error: float = 0.01) -> Simulated:
    """Spectra linear in two labels, with noise; label errors in units of the labels' spread."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(n_star, 2))
    theta = np.random.default_rng(99).normal(size=(N_PIXEL, 3)) * 0.06 + [1.0, 0.0, 0.0]
    flux = np.column_stack([np.ones(n_star), u]) @ theta.T + flux_error * rng.normal(size=(n_star, N_PIXEL))
    true = CENTRE + SPREAD * u
    error = np.tile(label_error * SPREAD, (n_star, 1))
    noisy = true + error * rng.normal(size=error.shape)
    parallax = 10 ** (0.2 * u[:, 1])
    blocks = {
        "labels": bl.Block(noisy, error, names=LABELS, unit=("K", "dex")),
        "flux": bl.Block(flux, np.full(flux.shape, flux_error), coords={"wavelength": WAVELENGTH}),
        "parallax": bl.Block(parallax + 0.05 * rng.normal(size=n_star), np.full(n_star, 0.05), unit="mas"),
        "magnitudes": bl.Block(
            10 - 5 * np.log10(parallax)[:, None] + u @ [[-0.3, -0.2, -0.1], [0.1, 0.1, 0.1]],
            np.full((n_star, 3), 0.02), names=("G", "BP", "RP"), unit="mag",
        ),
        "reddening": bl.Block(np.abs(0.1 * rng.normal(size=n_star)), np.full(n_star, 0.02), unit="mag"),
        "target_labels": bl.Block(
            true + np.array([20.0, 0.1]) + error * rng.normal(size=true.shape), error, names=LABELS, unit=("K", "dex"),
        ),
    }  # fmt: skip
    return Simulated(bl.Stars(**blocks), true)


def ln_p(model: Model, stars: bl.Stars, sites: dict[str, np.ndarray]) -> float:
    """Log density of a program: compiled as a whole, where operation by operation every one would be by itself."""
    return float(jax.jit(lambda sites: log_density(model, (stars,), {}, sites)[0])(sites))


@pytest.fixture(scope="session")
def simulated() -> Simulated:
    """40 stars with blocks of every name."""
    return simulate(40)


@pytest.fixture(scope="session")
def training(simulated: Simulated) -> bl.Stars:
    """40 stars with labels and flux."""
    return bl.Stars(labels=simulated.stars.labels, flux=simulated.stars.flux)


@pytest.fixture(scope="session")
def trained(training: bl.Stars) -> bl.Posterior:
    """A classic Cannon, trained on `training`."""
    return bl.fit(bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Flat()), training)


@pytest.fixture(scope="session")
def spectra(training: bl.Stars) -> bl.Stars:
    """The same stars without labels."""
    return training.drop("labels")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, beside the checkout or named by BAYESLABELS_DATA; skips where there is none."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("BAYESLABELS_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set BAYESLABELS_DATA")
    return folder
