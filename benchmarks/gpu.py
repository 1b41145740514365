"""What this machine's accelerator does: training, streamed inference and NUTS, in stars per second and shares of peak.

    python benchmarks/gpu.py            [--output gpu.json]   sizes for a GPU
    python benchmarks/gpu.py --small                          sizes for a laptop

Training of spectra is bound by products of matrices (share of the rate that one large product reaches here); training
by minibatches reads its stars from memory (share of the bandwidth that a sum reaches here). The first call of
everything is left out: it compiles. The output, JSON, has date, device and versions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import bayeslabels as bl
from bayeslabels.simulate import simulate_photometry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", nargs="+", help="cannon, lux, spectra_svi, photometry, streamed, nuts")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    a = parser.parse_args()
    device = jax.devices()[0]
    peak = {
        "matrix_flops": matrix_rate(1024 if a.small else 8192),
        "bytes_per_second": bandwidth(24 if a.small else 28),
    }
    print(f"{device.device_kind}: {peak['matrix_flops']:.3g} flop/s, {peak['bytes_per_second']:.3g} B/s", flush=True)
    results = {}
    for measure in (cannon, lux, spectra_svi, photometry, streamed, nuts):
        if a.only and measure.__name__ not in a.only:
            continue
        found = measure(a.small, peak)
        results[measure.__name__] = found
        told = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        print(f"{measure.__name__}: {told}", flush=True)
    out = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "device": device.device_kind,
        "platform": device.platform, "n_device": len(jax.devices()), "jax": jax.__version__, "small": a.small,
        "peak": peak, "results": results,
    }  # fmt: skip
    a.output.write_text(json.dumps(out, indent=1) + "\n")


def seconds(call):
    """Of the second call: the first compiles."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def matrix_rate(n):
    """flop/s of a product of float32 matrices."""
    x = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    return 2 * n**3 / seconds(lambda: product(x).block_until_ready())


def bandwidth(log_size):
    """B/s, read and written, of a sum of arrays of float32."""
    x = jnp.ones(1 << log_size, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / seconds(lambda: add(x).block_until_ready())


def spectra(n, n_pixel, n_label=3, seed=0):
    rng = np.random.default_rng(seed)
    theta = 0.05 * np.random.default_rng(1).normal(size=(n_pixel, n_label + 1)) + np.eye(1, n_label + 1)
    u = rng.normal(size=(n, n_label))
    flux = np.column_stack([np.ones(n), u]) @ theta.T + 0.01 * rng.normal(size=(n, n_pixel))
    labels = bl.Block(u + 0.1 * rng.normal(size=u.shape), np.full(u.shape, 0.1), names=("A", "B", "C"))
    return bl.Stars(labels=labels, flux=bl.Block(flux, np.full(flux.shape, 0.01)))


def cannon(small, peak):
    """The classic Cannon, by exact solves: 2 N L K (K + 1) / 2 operations for the normal matrices."""
    n, n_pixel = (1000, 500) if small else (20_000, 8000)
    stars, model = spectra(n, n_pixel), bl.Cannon(order=2, label_noise=False)
    spent = seconds(lambda: bl.fit(model, stars, bl.MAP()))
    k = 10
    return {
        "stars_per_second": n / spent,
        "share_of_matrix_rate": n * n_pixel * k * (k + 1) / spent / peak["matrix_flops"],
    }


def lux(small, peak):
    """Per iteration two products of N x L with P (P + 1) / 2 columns each."""
    n, n_pixel, p = (300, 200, 4) if small else (5000, 8000, 20)
    stars, model = spectra(n, n_pixel), bl.Lux(p)
    posterior = bl.fit(model, stars, bl.MAP(max_iterations=20))
    spent = seconds(lambda: bl.fit(model, stars, bl.MAP(max_iterations=20)))
    n_iteration = posterior.info["iterations"]
    flops = n_iteration * 2 * 2 * n * n_pixel * p * (p + 1) / 2
    return {"stars_per_second": n * n_iteration / spent, "share_of_matrix_rate": flops / spent / peak["matrix_flops"]}


def spectra_svi(small, peak):
    """Cannon and Lux by minibatches in natural-gradient steps: as in `lux`, and for all stars of an epoch once."""
    n, n_pixel, batch, p = (600, 200, 128, 4) if small else (50_000, 4000, 4096, 20)
    stars, out = spectra(n, n_pixel), {}
    for model, k in ((bl.Cannon(order=2, label_noise="joint"), 10), (bl.Lux(p), p + 1)):
        run = lambda m=model: bl.fit(m, stars, bl.SVI(batch_size=batch, epochs=3))  # noqa: E731
        epochs = run().info["epochs"]
        spent, name = seconds(run) / epochs, type(model).__name__
        out[f"{name}_stars_per_second"] = n / spent
        out[f"{name}_share_of_matrix_rate"] = 2 * n * n_pixel * k * (k + 1) / spent / peak["matrix_flops"]
    return out


def photometry(small, peak):
    """SVI on theta alone: every star's numbers are read once in an epoch."""
    n, batch, epochs = (4000, 512, 20) if small else (1_000_000, 65_536, 10)
    stars, _ = simulate_photometry(n, seed=3)
    model = bl.Photometry(width=16, depth=1, members=1)
    times = []
    for n_epoch in (1, 1, 1 + epochs):  # each compiles; the difference of the last two does not
        start = time.perf_counter()
        bl.fit(model, stars, bl.SVI(batch_size=batch, epochs=n_epoch, start="cold", draws=2))
        times.append(time.perf_counter() - start)
    spent = max(times[2] - times[1], 1e-9)
    numbers = sum(x[:1].size for x in jax.tree.leaves(model.bind(stars[:4000]).arrays(stars[:2])))
    return {"stars_per_second": epochs * n / spent,
            "share_of_bandwidth": epochs * n * numbers * 4 / spent / peak["bytes_per_second"]}  # fmt: skip


def streamed(small, peak):
    """infer_catalog from Parquet to Parquet."""
    n, n_pixel = (4000, 200) if small else (300_000, 1000)
    posterior = bl.fit(bl.Cannon(order=2, label_noise=False), spectra(1000, n_pixel))
    with tempfile.TemporaryDirectory() as folder:
        stars = spectra(n, n_pixel, seed=4)
        lists = lambda x: pa.FixedSizeListArray.from_arrays(pa.array(np.float32(x).ravel()), n_pixel)  # noqa: E731
        rows = pa.table({"flux": lists(stars.flux.value), "flux_error": lists(stars.flux.error)})
        pq.write_table(rows, f"{folder}/in.parquet", row_group_size=8192)
        run = lambda: bl.infer_catalog(posterior, f"{folder}/in.parquet", f"{folder}/out", resume=False, progress=False)  # noqa: E731
        spent = seconds(run)
    share = 8 * n * n_pixel / spent / peak["bytes_per_second"]
    return {"stars_per_second": n / spent, "megabytes_per_second": 8 * n * n_pixel / spent / 1e6,
            "share_of_bandwidth": share}  # fmt: skip


def nuts(small, peak):
    """4 chains x 500 draws of every star's labels."""
    n, draws = (16, 50) if small else (4096, 500)
    posterior = bl.fit(bl.Cannon(order=2, label_noise=False), spectra(1000, 200))
    stars = bl.Stars(flux=spectra(n, 200, seed=5).flux)
    spent = seconds(lambda: bl.infer(posterior, stars, bl.NUTS(chains=4, draws=draws, warmup=draws)))
    return {"stars_per_second": n / spent, "draws_per_second": 4 * draws * n / spent}


if __name__ == "__main__":
    main()
