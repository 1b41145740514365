"""Speed and memory of The Cannon at survey size, beside plain NumPy and the machine's own matrix rate.

    python benchmarks/cannon_speed.py [--stars 5000] [--pixels 7214] [--labels 5] [--test 2000] [--nuts 256]
    python benchmarks/cannon_speed.py --default      the default fit of noisy labels, once, compilation included
    python benchmarks/cannon_speed.py --growth       training of 1000 x 2000 by the number of coefficients

CPU seconds (all cores together), the faster of two runs, without compilation: every step runs once on a small piece of
the same shape first. Ratios to the GEMM floor are what to compare between machines.
"""

import argparse
import functools
import json
import multiprocessing
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import bayeslabels as bl
from bayeslabels.numerics.features import Monomials


def survey(n_star, n_pixel, n_label, seed=0):
    """Spectra quadratic in standard normal labels, S/N about 100, 0.3 per cent scatter, 2 per cent bad pixels."""
    rng = np.random.default_rng(seed)
    features = Monomials.up_to(2, n_label)
    theta = rng.normal(0, 0.02, (n_pixel, features.size)) * (rng.random((n_pixel, 1)) < 0.3)
    theta[:, 1 + n_label :] *= 0.2
    theta[:, 0] = 1 - np.abs(rng.normal(0, 0.1, n_pixel))
    u = rng.normal(size=(n_star, n_label))
    flux = np.asarray(features(u)) @ theta.T
    error = np.broadcast_to(np.exp(rng.normal(np.log(0.01), 0.3, (n_star, 1))), flux.shape).copy()
    flux += rng.normal(size=flux.shape) * np.hypot(error, 0.003)
    error[rng.random(flux.shape) < 0.02] = np.inf
    names = [f"L{m}" for m in range(n_label)]
    label_error = np.full(u.shape, 0.05)
    noisy = u + label_error * rng.normal(size=u.shape)
    return u, noisy, label_error, names, flux, error


def write_survey(folder, a):
    _, noisy, label_error, _, flux, error = survey(a.stars, a.pixels, a.labels)
    for i, x in enumerate((noisy, label_error, flux, error)):
        np.save(f"{folder}/{i}.npy", x)


def clock(function):
    """Result, CPU seconds, wall seconds of the faster of two runs: memory is handed out slowly at its first touch."""
    seconds = []
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        out = function()
        seconds.append((time.process_time() - cpu, time.perf_counter() - wall))
    return out, *min(seconds)


def numpy_training(phi, flux, error, n_iteration=4):
    """The plain way: a weighted least-squares solve per pixel, scatter by fixed-point iteration."""
    ok = np.isfinite(error)
    variance, value = np.where(ok, error, 1.0) ** 2, np.where(ok, flux, 0.0)
    for pixel in range(flux.shape[1]):
        s2 = 1e-4
        for _ in range(n_iteration):
            w = ok[:, pixel] / (variance[:, pixel] + s2)
            theta = np.linalg.solve((phi.T * w) @ phi, (phi.T * w) @ value[:, pixel])
            r2 = (value[:, pixel] - phi @ theta) ** 2
            s2 = max(1e-10, s2 * (w**2 * r2).sum() / w.sum())


def noisy_survey(*size):
    _, noisy, label_error, names, flux, error = survey(*size)
    return bl.Stars(flux=bl.Block(flux, error), labels=bl.Block(noisy, label_error, names=names))


def default_fit(a):
    stars, start = noisy_survey(a.stars, a.pixels, a.labels), time.process_time()
    posterior = bl.fit(bl.Cannon(), stars, progress=False)
    cpu, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"default fit of {a.stars} x {a.pixels} x {a.labels} labels: {cpu:.0f} CPU s; order {posterior.model.order}, "
        f"{posterior.model.label_noise}, {posterior.info['iterations']} iterations, converged: "
        f"{posterior.info['converged']}; peak {peak:.1f} GB, of which data {16e-9 * a.stars * a.pixels:.1f}"
    )


def growth(a):
    """One labels' order after another, after a first call that compiles."""
    for n_label, order in ((5, 1), (3, 2), (5, 2), (4, 3), (5, 3)):
        stars = noisy_survey(1000, 2000, n_label)
        for label_noise in (False, "free"):
            model = bl.Cannon(order=order, label_noise=label_noise)
            bl.fit(model, stars, progress=False)
            start = time.process_time()
            posterior = bl.fit(model, stars, progress=False)
            cpu, n = time.process_time() - start, posterior.info["iterations"]
            k = posterior.model.features.size
            print(
                f"{k} coefficients, {label_noise or 'exact'}: {cpu:.1f} CPU s, {cpu / n:.2f} an iteration, {n} of them"
            )


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("stars", 5000), ("pixels", 7214), ("labels", 5), ("test", 2000), ("nuts", 256)):
        cli.add_argument(f"--{name}", type=int, default=default)
    cli.add_argument("--default", action="store_true", help="only the default fit")
    cli.add_argument("--growth", action="store_true", help="only how training grows with the coefficients")
    cli.add_argument("--json", type=Path)
    a = cli.parse_args()
    if a.default or a.growth:
        (growth if a.growth else default_fit)(a)
        return 0
    k = (a.labels + 1) * (a.labels + 2) // 2
    out = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}

    with tempfile.TemporaryDirectory() as folder:  # made by another process, so that it does not count as our memory
        maker = multiprocessing.get_context("spawn").Process(target=write_survey, args=(folder, a))
        maker.start()
        maker.join()
        noisy, label_error, flux, error = (np.load(f"{folder}/{i}.npy") for i in range(4))
    names = [f"L{m}" for m in range(a.labels)]
    stars = bl.Stars(flux=bl.Block(flux, error), labels=bl.Block(noisy, label_error, names=names))
    del flux, error
    value, spread = stars.flux.value, stars.flux.error
    input_bytes = value.nbytes + spread.nbytes

    model = bl.Cannon(order=2, label_noise=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    compile_part = stars.with_block(flux=bl.Block(value[:, :256], spread[:, :256]))
    _, warm, _ = clock(lambda: bl.fit(model, compile_part, progress=False))
    posterior, cpu, wall = clock(lambda: bl.fit(model, stars, progress=False))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    left, right = np.random.default_rng(1).normal(size=(a.pixels, 2000)), np.ones((2000, k * (k + 1) // 2))
    left @ right  # warm
    _, gemm, _ = clock(functools.partial(np.matmul, left, right))
    gemm *= a.stars / 2000
    rate = 2 * a.pixels * a.stars * right.shape[1] / gemm / 1e9
    del left, right
    out["training"] = {"cpu_s": cpu, "wall_s": wall, "gemm_ratio": cpu / gemm, "first_256_pixels_with_compile_s": warm}
    print(f"GEMM floor: all normal matrices once, {gemm:.2f} CPU s ({rate:.0f} Gflop per CPU s, float64)")
    out["memory"] = {"input_bytes": input_bytes, "peak_over_input": peak / input_bytes, "before": before / input_bytes}
    print(
        f"training {a.stars} x {a.pixels} x {a.labels} labels with scatter: {cpu:.1f} CPU s ({wall:.1f} wall), "
        f"{cpu / gemm:.1f} x GEMM; peak memory {peak / input_bytes:.2f} x input "
        f"(process, {before / input_bytes:.2f} before)"
    )
    some = slice(0, 100)
    phi = np.asarray(model.bind(stars).features(model.bind(stars).catalogue(stars).value))
    _, plain, _ = clock(lambda: numpy_training(phi, value[:, some], spread[:, some]))
    plain *= a.pixels / 100
    out["training"]["numpy_cpu_s"] = plain
    print(f"  plain NumPy, pixel by pixel: {plain:.0f} CPU s (from 100 pixels), {plain / cpu:.1f} times slower")
    rows = np.arange(a.test) % a.stars
    test = stars.drop("labels")[rows]
    for name, inference, n in (
        ("MAP with covariances", bl.MAP(), a.test),
        ("importance, 1000 draws", bl.Importance(draws=1000), a.test),
        ("NUTS, 4 x 500 draws", bl.NUTS(chains=4, draws=500), a.nuts),
    ):
        bl.infer(posterior, test[:n], inference, progress=False)
        result, cpu, _ = clock(lambda i=inference, n=n: bl.infer(posterior, test[:n], i, seed=1, progress=False))
        extra = f", largest R-hat {result.stars['rhat'].values.max():.3f}" if "rhat" in result.stars else ""
        out[name] = {"stars_per_cpu_s": n / cpu}
        print(f"{name}: {n / cpu:.0f} stars per CPU s{extra}")
    floor = 2 * a.test * a.pixels * (k * (k + 1) // 2) / (rate * 1e9)
    print(f"  GEMM floor of compressing {a.test} stars once: {a.test / floor:.0f} stars per CPU s")
    if a.json:
        a.json.write_text(json.dumps(out, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
