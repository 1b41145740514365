"""All short benchmarks with one command: each case beside what a user would take instead, in the same process.

    python benchmarks/short.py                     run all, compare with benchmarks/short.json by ratios
    python benchmarks/short.py --cases training cold_cannon
    python benchmarks/short.py --write             keep the figures in benchmarks/short.json, and docs/short.md of them
    python benchmarks/short.py --table             print the table of docs/short.md from benchmarks/short.json

Every case runs in a process of its own, so that it pays for nothing that another has compiled, and its peak memory is
its own. CPU seconds are those of all cores together. Ratios to the peer, counts of programs and factors of growth can
be compared between machines; seconds cannot. Peers: plain NumPy for the Cannon (weighted least squares, then
Gauss-Newton for the labels), scikit-learn's MLPRegressor for the Translator (`pip install scikit-learn`; left out where
it is not).
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
KEPT, PAGE = HERE / "short.json", HERE.parent / "docs" / "short.md"
CASES: dict[str, Callable[[], dict[str, float]]] = {}
WORSE = 1.3
"""Times the figure that was kept, from which on a case is named as slower: timings of shared machines are noisy."""


def case(function: Callable[[], dict[str, float]]) -> Callable[[], dict[str, float]]:
    """Enter a case under its name; its docstring is the row of the table."""
    CASES[function.__name__] = function
    return function


def cpu(do: Callable[[], Any], times: int = 2) -> tuple[Any, float]:
    """What it returns, and the least CPU seconds of some calls after a first one, which compiles."""
    out, best = do(), np.inf
    for _ in range(times):
        start = time.process_time()
        out = do()
        best = min(best, time.process_time() - start)
    return out, best


def quadratic_survey(n: int, n_pixel: int, n_label: int, seed: int = 0) -> tuple[Any, Any, np.ndarray]:
    """Training stars with exact labels, test stars, and their labels: spectra quadratic in standard normal labels."""
    import bayeslabels as bl

    rng = np.random.default_rng(seed)
    u = rng.normal(size=(2 * n, n_label))
    phi = quadratic(u)
    theta = rng.normal(0, 0.02, (n_pixel, phi.shape[1])) * (rng.random((n_pixel, 1)) < 0.3)
    theta[:, 0], theta[:, 1 + n_label :] = 1.0, 0.2 * theta[:, 1 + n_label :]
    error = np.broadcast_to(np.exp(rng.normal(np.log(0.01), 0.3, (2 * n, 1))), (2 * n, n_pixel)).copy()
    flux = phi @ theta.T + rng.normal(size=error.shape) * np.hypot(error, 0.003)
    labels = bl.Block(u, np.full(u.shape, 1e-6), names=[f"L{i}" for i in range(n_label)])
    stars = bl.Stars(flux=bl.Block(flux, error), labels=labels)
    return stars[:n], stars[n:].drop("labels"), u[n:]


def quadratic(u: np.ndarray) -> np.ndarray:
    i, j = np.triu_indices(u.shape[1])
    return np.column_stack([np.ones(len(u)), u, u[:, i] * u[:, j]])


def numpy_training(phi: np.ndarray, flux: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """theta (L, K) and squared scatter (L,): weighted least squares, scatter by fixed-point iteration."""
    s2 = np.full(flux.shape[1], 1e-5)
    for _ in range(10):
        w = 1 / (error**2 + s2)
        gram = np.einsum("nk,nl,nj->lkj", phi, w, phi, optimize=True)
        theta = np.linalg.solve(gram, (phi.T @ (w * flux)).T[..., None])[..., 0]
        r2 = (flux - phi @ theta.T) ** 2
        s2 = np.maximum(1e-12, s2 * (w**2 * r2).sum(0) / w.sum(0))
    return theta, s2


def numpy_test(theta: np.ndarray, s2: np.ndarray, flux: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Labels (N, M) by Gauss-Newton from zero, star after star."""
    m = int(np.sqrt(2 * theta.shape[1])) - 1
    out = np.zeros((len(flux), m))
    i, j = np.triu_indices(m)
    for n in range(len(flux)):
        u, w = np.zeros(m), 1 / (error[n] ** 2 + s2)
        for _ in range(8):
            slope = np.zeros((theta.shape[1], m))
            slope[1 + np.arange(m), np.arange(m)] = 1.0
            np.add.at(slope, (1 + m + np.arange(len(i)), i), u[j])
            np.add.at(slope, (1 + m + np.arange(len(i)), j), u[i])
            jacobian = theta @ slope
            off = flux[n] - theta @ quadratic(u[None])[0]
            u = u + np.linalg.solve((jacobian.T * w) @ jacobian, (jacobian.T * w) @ off)
        out[n] = u
    return out


@case
def training() -> dict[str, float]:
    """Classic Cannon, 1000 x 1000 x 3: training, and MAP labels with errors of 1000 stars, against NumPy"""
    import bayeslabels as bl

    train, test, truth = quadratic_survey(1000, 1000, 3)
    model = bl.Cannon(order=2, label_noise=False, coefficient_prior=bl.priors.Flat())
    posterior, ours = cpu(lambda: bl.fit(model, train, seed=0, progress=False))
    result, step = cpu(lambda: bl.infer(posterior, test, bl.MAP(), seed=0, progress=False))
    phi = quadratic(train["labels"].value)
    value, error = train["flux"].value, train["flux"].error
    (theta, s2), numpy_fit = cpu(lambda: numpy_training(phi, value, error), 1)
    labels, numpy_step = cpu(lambda: numpy_test(theta, s2, test["flux"].value, test["flux"].error), 1)
    return {
        "fit_cpu_s": ours,
        "fit_over_peer": ours / numpy_fit,
        "infer_stars_per_cpu_s": len(test) / step,
        "infer_over_peer": step / numpy_step,
        "rms_over_peer": float(np.sqrt(((result.mean - truth) ** 2).mean() / ((labels - truth) ** 2).mean())),
        "sd_of_z": float(((result.mean - truth) / result.error).std()),
    }


GROWN = {
    "training": 1200, "training_from_files": 1200, "SVI_epochs": 1200, "Gibbs_sweeps": 300,
    "MAP": 1200, "Laplace": 1200, "Importance": 1200, "NUTS": 50,
}  # fmt: skip
"""Training steps, and inferences of new stars: of so many stars, and of four times as many."""


def task(what: str, n: int, folder: Path) -> Callable[[], Any]:
    """One of `GROWN` with n stars of 200 pixels."""
    import bayeslabels as bl

    stars, test, _ = bl.simulate.simulate(5000, 200, seed=2, n_test=n)
    train, exact = stars[:n], bl.Cannon(order=2, label_noise=False)
    fit = functools.partial(bl.fit, seed=0, progress=False)
    if what == "training":
        return lambda: fit(exact, train)
    if what == "training_from_files":
        return functools.partial(fit, exact, **written(train, folder / f"{n}.parquet"))
    if what == "SVI_epochs":
        return lambda: fit(bl.Cannon(order=2, label_noise="free"), train, bl.SVI(epochs=20, batch_size=100))
    if what == "Gibbs_sweeps":
        return lambda: fit(bl.Cannon(order=2, label_noise="joint"), train, bl.Gibbs(1, 100, 100))
    posterior = fit(exact, stars[:1000])
    return lambda: bl.infer(posterior, test, getattr(bl, what)(), seed=0, progress=False)


def written(stars: Any, file: Path) -> dict[str, Any]:
    """What `bl.fit` is told of a file that now holds these stars, whose labels are exact."""
    from astropy.table import Table

    flux, labels = stars["flux"], stars["labels"]
    columns = {"flux": flux.value, "flux_error": flux.error, "labels": labels.value}
    Table(columns).write(file)
    return {"stars": file, "columns": {name: name for name in columns} | {"labels_names": labels.names}}


def grown(what: str, few: int, folder: Path) -> float:
    """CPU seconds of four times as many stars over those of few; of SVI, which ends where held-out stars gain no more,
    an epoch's."""
    seconds = []
    for n in (few, 4 * few):
        found, spent = cpu(task(what, n, folder))
        seconds.append(spent / (found.info["epochs"] if what == "SVI_epochs" else 1))
    return seconds[1] / seconds[0]


@case
def growth() -> dict[str, float]:
    """Cannon: what four times as many stars cost, of training steps and of each inference of new stars"""
    with tempfile.TemporaryDirectory() as folder:
        return {f"{what}_growth": grown(what, few, Path(folder)) for what, few in GROWN.items()}


@case
def translator() -> dict[str, float]:
    """Translator, 4000 stars, 6 labels to 3: against five MLPRegressor of scikit-learn, whose spread is their error"""
    import bayeslabels as bl

    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 6))
    y = np.column_stack([x[:, 0] + 0.3 * np.tanh(x[:, 1] * x[:, 2]), x[:, 1] + 0.1 * x[:, 0] ** 2, x[:, 3] * x[:, 4]])
    noisy = y + 0.1 * rng.normal(size=y.shape)
    given = bl.Block(x, np.full(x.shape, 1e-3), names=[f"in{i}" for i in range(6)])
    target = bl.Block(noisy, np.full(y.shape, 0.1), names=[f"out{i}" for i in range(3)])
    stars = bl.Stars(labels=given, target_labels=target)
    start = time.process_time()
    posterior = bl.fit(bl.Translator(), stars[:4000], seed=0, progress=False)
    ours = time.process_time() - start
    result = bl.infer(posterior, stars[4000:].drop("target_labels"), seed=0, progress=False)
    off = result.mean - y[4000:]
    out = {"fit_cpu_s": ours, "rms": float(np.sqrt((off**2).mean())), "sd_of_z": float((off / result.error).std())}
    try:
        from sklearn.neural_network import MLPRegressor
    except ImportError:
        return out
    from threadpoolctl import threadpool_limits

    start = time.process_time()
    members = [
        MLPRegressor(hidden_layer_sizes=(64, 64), early_stopping=True, max_iter=500, random_state=i) for i in range(5)
    ]
    with threadpool_limits(1):  # more of them wait for one another, which costs CPU time and gains none
        each = np.stack([m.fit(x[:4000], noisy[:4000]).predict(x[4000:]) for m in members])
    peer, off = time.process_time() - start, each.mean(0) - y[4000:]
    return out | {
        "fit_over_peer": ours / peer,
        "rms_over_peer": out["rms"] / float(np.sqrt((off**2).mean())),
        "peer_sd_of_z": float((off / each.std(0)).std()),
    }


SYSTEMS = {
    "cannon": ("bl.Cannon()", "spectra"),
    "classic": ("bl.Cannon(label_noise=False)", "spectra"),
    "lux": ("bl.Lux(10)", "spectra"),
    "parallax": ("bl.Parallax(features=('magnitudes',))", "photometry"),
    "translator": ("bl.Translator()", "translation"),
    "photometry": ("bl.Photometry(members=2)", "photometry"),
}

COLD = """
import json, sys, time, warnings
import jax
import numpy as np
import bayeslabels as bl

warnings.simplefilter("ignore")
model, kind = sys.argv[1:]
if kind == "spectra":
    train, test, _ = bl.simulate.simulate(600, 400, seed=1, n_test=200)
elif kind == "photometry":
    train, test = bl.simulate.simulate_photometry(1000, seed=1)[0], bl.simulate.simulate_photometry(200, seed=2)[0]
    test = test.drop("parallax") if "Parallax" in model else test.drop("labels")
else:
    train, test, _ = bl.simulate.simulate(1000, 20, seed=1, n_test=200)
    labels = train["labels"]
    noise = np.random.default_rng(0).normal(size=labels.value.shape) * labels.error
    target = bl.Block(labels.value + [20.0, 0.1, 0.05] + noise, labels.error, names=labels.names, unit=labels.units)
    train = bl.Stars(labels=train["labels"], target_labels=target)
    test = train[:200].drop("target_labels")
seen = []
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.append(name))
start = time.process_time()
posterior = bl.fit(eval(model), train, seed=0, progress=False)
middle, programs = time.process_time(), sum("backend_compile" in x for x in seen)
bl.infer(posterior, test, seed=0, progress=False)
print(json.dumps([middle - start, programs, time.process_time() - middle]))
"""


def fresh(name: str) -> dict[str, float]:
    """A first process whose cache is empty, and a second one."""
    out: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        for when in ("cold", "warm"):
            done = subprocess.run(
                [sys.executable, "-c", COLD, *SYSTEMS[name]], env=environment | {"BAYESLABELS_CACHE": folder},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            fit, programs, infer = json.loads(done.stdout.splitlines()[-1])
            out |= {f"{when}_fit_cpu_s": fit, f"{when}_infer_cpu_s": infer}
            if when == "cold":
                out["fit_programs"] = programs
    return out


for _name, (_model, _of) in SYSTEMS.items():
    _run: Callable[[], dict[str, float]] = lambda name=_name: fresh(name)  # type: ignore[misc]  # noqa: E731
    _run.__name__ = f"cold_{_name}"
    size = {"spectra": "600 x 400", "photometry": "1000 stars", "translation": "1000 stars"}[_of]
    _run.__doc__ = f"`{_model[3:]}`, {size}: default fit and infer of a fresh process, and of the next one"
    case(_run)


def run(names: list[str]) -> dict[str, Any]:
    cases = {}
    for name in names:
        command = [sys.executable, __file__, "--only", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            raise SystemExit(f"{name} ended with an error, printed above")
        cases[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, "  ".join(f"{k} {v:.3g}" for k, v in cases[name].items()), flush=True)
    return cases


def compare(cases: dict[str, Any], kept: dict[str, Any]) -> None:
    """Print what is worse than what was kept, of the figures that a machine's speed does not change."""
    for name, figures in cases.items():
        before = kept["cases"].get(name, {})
        for key in figures.keys() & before.keys():
            if key.endswith(("over_peer", "growth", "programs")) and figures[key] > WORSE * before[key]:
                print(f"WORSE: {name}, {key}: {figures[key]:.3g}, kept {before[key]:.3g}")


def table(kept: dict[str, Any]) -> str:
    rows = ["| what | figures |", "|---|---|"]
    for name, figures in kept["cases"].items():
        said = ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in figures.items())
        rows.append(f"| {CASES[name].__doc__} | {said} |")
    about = f"Measured on {kept['date']}, {kept['machine']}, Python {kept['python']}, JAX {kept['jax']}.\n"
    how = "Made by `python benchmarks/short.py --write`. Where *over peer* is below 1, ours is faster or better.\n"
    return "\n".join(["# Short benchmarks\n", about, how, *rows, ""])


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    cli.add_argument("--write", action="store_true")
    cli.add_argument("--table", action="store_true")
    cli.add_argument("--only", help=argparse.SUPPRESS)
    a = cli.parse_args()
    if a.only:
        warnings.simplefilter("ignore")
        figures = CASES[a.only]()
        peak = {
            "peak_GB": max(resource.getrusage(x).ru_maxrss for x in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            / 2**20
        }
        print(json.dumps(figures | peak))
        return
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"cases": {}}
    if a.table:
        print(table(kept))
        return
    cases = run(a.cases)
    compare(cases, kept)
    if a.write:
        import jax

        about = {
            "date": datetime.date.today().isoformat(), "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "python": platform.python_version(), "jax": jax.__version__,
        }  # fmt: skip
        every = {name: (kept["cases"] | cases)[name] for name in CASES if name in kept["cases"] | cases}
        kept = about | {"cases": every}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        PAGE.write_text(table(kept))


if __name__ == "__main__":
    main()
