"""Catalogues larger than memory: what streaming costs, in time, memory and accuracy.

    python benchmarks/catalog.py spectra    --stars 300000   infer_catalog against infer in memory; peak memory
    python benchmarks/catalog.py cost       --stars 10000 100000 1000000   time per star, memory; photometry, 13 bands
    python benchmarks/catalog.py training   --stars 1000000  SVI from disk against SVI in memory; a run that is stopped
    python benchmarks/catalog.py passes     --stars 20000 60000   Cannons from disk against Cannons in memory

All files are simulated, into --folder (a temporary one), and removed at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Table

import bayeslabels as bl
from bayeslabels.astro.extinction import PASSBANDS
from bayeslabels.files.checkpoint import Checkpoint
from bayeslabels.inference.guide import Guided
from bayeslabels.simulate import simulate_photometry
from bayeslabels.verbs import even_batches

GROUP = 8192
"""Stars in a row group of the files that are written."""
BANDS = ("G", "BP", "RP", "J", "H", "Ks")
NAMES = {"labels_names": ("TEFF", "LOGG", "FE_H"), "labels_unit": ("K", "dex", "dex"), "magnitudes_names": BANDS}
ALL_BANDS = tuple(PASSBANDS)
SEEN = {name: name for name in ("magnitudes", "magnitudes_error", "parallax", "parallax_error")}
SEEN |= {"magnitudes_names": ALL_BANDS}
"""What the test step of `cost` is given."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["spectra", "cost", "training", "passes", "worker", "priced"])
    parser.add_argument("--stars", type=int, nargs="+")
    parser.add_argument("--pixels", type=int, default=1000)
    parser.add_argument("--batch", type=int, help="stars at a time; as many as infer takes by default")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "worker":
        print(json.dumps(stream_spectra(arguments.folder, arguments.batch)))
        return
    if arguments.what == "priced":
        print(json.dumps(priced(arguments.folder)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.what == "spectra":
            spectra((arguments.stars or [300_000])[0], arguments.pixels, arguments.batch, Path(folder))
        elif arguments.what == "passes":
            passes(arguments.stars or [20_000, 60_000], arguments.pixels, Path(folder))
        elif arguments.what == "cost":
            cost(arguments.stars or [10_000, 100_000, 1_000_000], Path(folder))
        else:
            training((arguments.stars or [1_000_000])[0], arguments.epochs, Path(folder))


def vectors(x):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(x)), x.shape[1])


def write_spectra(n, n_pixel, folder):
    """Spectra quadratic in three labels, written as they are made; a Cannon trained on 1000 more of them."""
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(n_pixel, 10)) * 0.03
    theta[:, 0] = 1.0

    def some(n):
        u = rng.normal(size=(n, 3))
        phi = np.column_stack([np.ones(n), u, *(u[:, i] * u[:, j] for i in range(3) for j in range(i, 3))])
        flux = (phi @ theta.T + 0.01 * rng.normal(size=(n, n_pixel))).astype(np.float32)
        return u, flux

    u, flux = some(1000)
    labels = bl.Block(u, np.full(u.shape, 1e-3), names=("A", "B", "C"))
    stars = bl.Stars(labels=labels, flux=bl.Block.from_ivar(flux, np.full(flux.shape, 1e4)))
    bl.fit(bl.Cannon(order=2, label_noise=False), stars).save(folder / "cannon.nc", overwrite=True)
    writer = None
    for first in range(0, n, GROUP):
        u, flux = some(min(GROUP, n - first))
        ivar, noise = rng.uniform(5e3, 1e4, flux.shape).astype(np.float32), 0.1 * rng.normal(size=u.shape)
        rows = {"flux": vectors(flux), "flux_ivar": vectors(ivar)}
        rows = pa.table(rows | {"CATALOGUE": vectors(u + noise), "ERROR": vectors(np.full(u.shape, 0.1))})
        writer = writer or pq.ParquetWriter(folder / "spectra.parquet", rows.schema)
        writer.write_table(rows)
    writer.close()


def stream_spectra(folder, batch):
    """Stars per second after the first batch is compiled, and peak memory; in a process of its own."""
    posterior = bl.load(folder / "cannon.nc")
    at_start = peak_memory()
    few = folder / "few.parquet"
    with pq.ParquetFile(folder / "spectra.parquet") as file:
        pq.write_table(file.read_row_group(0).slice(0, batch), few)
    bl.infer_catalog(posterior, few, folder / "few", batch_size=batch, progress=False)
    run = bl.infer_catalog(posterior, folder / "spectra.parquet", folder / "out", batch_size=batch, progress=False)
    return {"stars_per_second": run.stars_per_second, "peak_GB": peak_memory(), "start_GB": at_start}


def spectra(n, n_pixel, batch, folder):
    write_spectra(n, n_pixel, folder)
    posterior = bl.load(folder / "cannon.nc")
    batch = batch or even_batches(posterior.model, n)
    size = (folder / "spectra.parquet").stat().st_size / 1e9
    print(f"{n} stars x {n_pixel} pixels, {size:.2f} GB of flux and ivar, batches of {batch}")
    done = in_a_process("worker", "--folder", folder, "--batch", batch)
    few = min(n, 8 * batch)
    with pq.ParquetFile(folder / "spectra.parquet") as file:
        rows = pa.concat_tables([file.read_row_group(i) for i in range(-(-few // GROUP))]).slice(0, few)
    flux, ivar = (rows[name].combine_chunks().flatten().to_numpy().reshape(few, -1) for name in ("flux", "flux_ivar"))
    stars = bl.Stars(flux=bl.Block.from_ivar(flux, ivar))
    bl.infer(posterior, stars[:batch], batch_size=batch).table()
    start = time.perf_counter()
    bl.infer(posterior, stars, batch_size=batch).table()
    memory = few / (time.perf_counter() - start)
    ratio = done["stars_per_second"] / memory
    print(f"in memory ({few} stars) {memory:.0f} stars/s; streamed {done['stars_per_second']:.0f} stars/s: {ratio:.2f}")
    mega = 2 * 8 * n_pixel * batch / 1e9
    print(f"peak memory {done['peak_GB']:.2f} GB (with model and libraries {done['start_GB']:.2f}; a batch {mega:.2f})")


def write_photometry(n, path, seed, bands=BANDS):
    """Simulated stars, as blocks, a chunk at a time."""
    writer = None
    for i, first in enumerate(range(0, n, 8 * GROUP)):
        stars, _ = simulate_photometry(min(8 * GROUP, n - first), bands, seed=seed + i)
        columns = {}
        for name in ("labels", "magnitudes"):
            columns |= {name: vectors(stars[name].value), f"{name}_error": vectors(stars[name].error)}
        for name in ("parallax", "reddening"):
            columns |= {name: stars[name].value[:, 0], f"{name}_error": stars[name].error[:, 0]}
        rows = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, rows.schema)
        writer.write_table(rows, row_group_size=GROUP)
    writer.close()
    return path


def read_photometry(path):
    rows = pq.read_table(path)
    columns = {}
    for name in rows.column_names:
        x = rows[name].combine_chunks()
        columns[name] = x.flatten().to_numpy().reshape(len(rows), -1) if "list" in str(x.type) else x.to_numpy()
    return bl.Stars.from_table(columns, **{name: name for name in columns}, **NAMES)


def cost(sizes, folder):
    """MAP of stars from magnitudes and parallaxes; each number of stars in a process of its own."""
    stars, _ = simulate_photometry(3000, ALL_BANDS, seed=99)
    model = bl.Photometry(function="polynomial", members=2)
    bl.fit(model, stars, bl.MAP(max_iterations=20)).save(folder / "model.nc", overwrite=True)
    write_photometry(2048, folder / "few.parquet", 5, ALL_BANDS)
    each = []
    for n in sizes:
        write_photometry(n, folder / "stars.parquet", 7, ALL_BANDS)
        found = in_a_process("priced", "--folder", folder)
        each.append(found["cpu_seconds"] / n)
        print(f"{n:8d} stars: {1e3 * each[-1]:.3f} CPU ms per star; peak memory {found['peak_GB']:.2f} GB, of which "
              f"{found['start_GB']:.2f} after the first batch; {found['stars_per_second']:.0f} stars/s",
              flush=True)  # fmt: skip
    print(f"most expensive / cheapest: {max(each) / min(each):.3f}")


def priced(folder):
    """CPU seconds and memory of a catalogue, after a batch that compiles."""
    posterior, options = bl.load(folder / "model.nc"), {"columns": SEEN, "batch_size": 2048, "progress": False}
    bl.infer_catalog(posterior, folder / "few.parquet", folder / "few", bl.MAP(), resume=False, **options)
    at_start, start = peak_memory(), time.process_time()
    run = bl.infer_catalog(posterior, folder / "stars.parquet", folder / "out", bl.MAP(), resume=False, **options)
    spent = time.process_time() - start
    return {
        "cpu_seconds": spent, "stars_per_second": run.stars_per_second, "peak_GB": peak_memory(), "start_GB": at_start,
    }  # fmt: skip


def in_a_process(*arguments):
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def peak_memory():
    """GB that this process has held at most; what `getrusage` says is its parent's, if that held more."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1e6


def training(n, epochs, folder):
    source = write_photometry(n, folder / "train.parquet", 11)
    test = read_photometry(write_photometry(20_000, folder / "test.parquet", 10_000))
    model, inference = bl.Photometry(width=16, depth=1, members=1), bl.SVI(batch_size=2048, epochs=epochs)
    told = {}
    for name in ("disk", "memory"):
        stars, columns = (source, NAMES) if name == "disk" else (read_photometry(source), None)
        start = time.perf_counter(), time.process_time()
        posterior = bl.fit(model, stars, inference, columns=columns)
        spent = time.perf_counter() - start[0], time.process_time() - start[1]
        told[name] = held_out(posterior, test)
        peak = peak_memory()
        print(f"{name}: {told[name].mean():.4f} nat per held-out star, {spent[0]:.0f} s, {spent[1]:.0f} CPU s, "
              f"peak {peak:.2f} GB", flush=True)  # fmt: skip
        if name == "disk":
            first = posterior
    off = told["disk"] - told["memory"]
    print(f"disk - memory: {off.mean():.5f} +- {off.std() / np.sqrt(len(off)):.5f} nat per star")
    calls, take, path = [], Guided.take, folder / "run.npz"

    def failing(self, block):
        calls.append(block)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return take(self, block)

    Guided.take = failing
    for _ in range(2):
        try:
            again = bl.fit(model, source, inference, columns=NAMES, checkpoint=path, every=0)
        except KeyboardInterrupt:
            print(f"stopped before block {len(calls)}: {Checkpoint(path, 0, {}).path.stat().st_size} bytes kept")
    same = all(np.array_equal(a, b) for a, b in zip(first.moments, again.moments, strict=True))
    print(f"the run that was stopped, resumed: {'identical' if same else 'DIFFERENT'}")


def passes(sizes, n_pixel, folder):
    """In order of the memory that is taken: what it was at most only grows."""
    columns = {"labels": "CATALOGUE", "labels_error": "ERROR", "labels_names": ("A", "B", "C")}
    columns |= {"flux": "flux", "flux_ivar": "flux_ivar"}
    models = {
        "exact labels": (bl.Cannon(order=2, label_noise=False), bl.MAP()),
        "label noise": (bl.Cannon(order=2, label_noise="joint"), bl.MAP()),
        "label noise, minibatches": (bl.Cannon(order=2, label_noise="joint"), bl.SVI(batch_size=1024, epochs=3)),
    }
    made = {}
    for where, n in [*(("disk", n) for n in sizes), ("memory", sizes[-1])]:
        if where == "disk":
            write_spectra(n, n_pixel, folder)
        source = folder / "spectra.parquet"
        stars = source if where == "disk" else bl.Stars.from_table(Table.read(source), **columns)
        for name, (model, inference) in models.items():
            if where == "memory" and isinstance(inference, bl.SVI):
                continue
            start = time.process_time()
            made[where, name] = posterior = bl.fit(
                model, stars, inference, columns=columns if where == "disk" else None
            )
            spent, info = time.process_time() - start, posterior.info
            peak = peak_memory()
            times = info.get("passes") or info.get("epochs") or info.get("iterations")
            print(f"{where}, {n} stars, {name}: {times} passes, {spent:.0f} CPU s, peak {peak:.2f} GB", flush=True)
    test = bl.Stars.from_table(Table.read(source)[:1000], **columns).drop("labels")
    of = {key: bl.infer(posterior, test) for key, posterior in made.items()}
    for name in models:
        ours, theirs = of["disk", name], of["memory", name.removesuffix(", minibatches")]
        error = np.sqrt(np.einsum("nmm->nm", theirs.cov))
        off = np.sqrt(np.mean(((ours.mean - theirs.mean) / error) ** 2))
        print(f"{name}: labels from disk less those in memory {off:.4f} of their errors")


def held_out(posterior, test):
    """ln p (N,) of the test stars' data, averaged over draws of theta."""
    model, samples = posterior.model, posterior.data["posterior"].to_dataset()
    rows = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), model.arrays(test))
    names = [name for name in model.global_sites if name in samples]
    each = []
    density = jax.jit(model.log_likelihood)
    for i in range(0, samples.sizes["draw"], 20):
        theta = {name: jnp.asarray(samples[name].values[0, i], jnp.float32) for name in names}
        each.append(np.asarray(density(theta, rows), float))
    return jax.scipy.special.logsumexp(np.array(each), 0) - np.log(len(each))


if __name__ == "__main__":
    main()
