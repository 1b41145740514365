"""The demonstration behind ``bayeslabels demo``: training and test step from end to end, on simulated or real stars."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import plots, reports
from .data.stars import Stars
from .files.tables import write_table
from .files.whole import in_one_piece
from .inference import MAP, Importance
from .kinds.spectra.cannon import Cannon
from .results.about import training
from .results.posterior import Posterior
from .results.star_posterior import StarPosterior
from .simulate import simulate
from .verbs import fit, infer

LABEL_SCATTER = (30.0, 0.06, 0.02)
"""Noise in the simulated training labels that their stated errors do not cover."""


class DemoStars(NamedTuple):
    """What the demonstration works on; `truth` (N, M) is known of simulated test stars only."""

    train: Stars
    test: Stars
    truth: np.ndarray | None
    about: str
    wavelength_unit: str | None = None


def simulated(n_star: int, n_pixel: int, seed: int) -> DemoStars:
    """A simulated survey whose catalogue understates its label errors."""
    train, test, truth = simulate(n_star, n_pixel, seed=seed, label_scatter=LABEL_SCATTER)
    grid = train["flux"].coords["pixel"]
    about = (
        f"{len(train)} simulated red giants to learn from and {len(test)} others to test on; "
        f"spectra of {n_pixel} pixels\n"
        f"({grid[0]:.0f} to {grid[-1]:.0f} Angstrom), S/N about 100 per pixel, 2% of the pixels missing.\n"
        "The training labels are noisy: the catalogue states errors of about 40 K, 0.08 dex and 0.03 dex, but there\n"
        "is more noise than that (tau), which the training step has to find out."
    )
    return DemoStars(train, test, truth.test_labels, about, "Angstrom")


def split(stars: Stars, n_star: int | None, n_pixel: int | None, seed: int, source: str) -> DemoStars:
    """Two thirds of real stars to learn from, one third to test on; of n_star stars and n_pixel pixels at most."""
    order = np.random.default_rng(seed).permutation(len(stars))[:n_star]
    flux = stars["flux"]
    if n_pixel and n_pixel < flux.n_dim:
        stars = stars.with_block(flux=flux.select(np.unique(np.linspace(0, flux.n_dim - 1, n_pixel).astype(int))))
    cut = max(1, round(len(order) / 3))
    train, test = stars[order[cut:]], stars[order[:cut]]
    about = (
        f"{source}: {len(train)} stars to learn from and {len(test)} others to test on; spectra of "
        f"{stars['flux'].n_dim} pixels.\nThe test stars' labels are inferred from their spectra alone "
        "and compared with the catalogue's."
    )
    return DemoStars(train, test, None, about)


def run(
    survey: DemoStars, out: Path, *, seed: int = 0, progress: bool | None = None, say: Callable[[str], Any] = print,
    written: list[Path] | None = None,
) -> tuple[Posterior, StarPosterior]:  # fmt: skip
    """Train, infer, report with `say`, and write model, catalogues and figures into the folder `out`."""
    written = [] if written is None else written
    start = time.perf_counter()
    say(survey.about)
    say("\nTraining step: a Cannon with noisy labels, of the order that the spectra need ...")
    posterior = fit(Cannon(), survey.train, MAP(), seed=seed, progress=progress)
    say(training(posterior, time.perf_counter() - start))
    start = time.perf_counter()
    say("\nTest step: the labels of the test stars from their spectra, by importance sampling ...")
    spectra = survey.test.drop("labels") if "labels" in survey.test else survey.test
    result = infer(posterior, spectra, Importance(), seed=seed, progress=progress)
    reference: Any = survey.test if survey.truth is None else survey.truth
    say(reports.recovery(result, reference, time.perf_counter() - start))

    out.mkdir(parents=True, exist_ok=True)
    about = {}
    written.append(posterior.save(out / "model.nc", overwrite=True))
    model = out / "model.nc"
    about["model.nc"] = f'the trained model: bayeslabels info {model}; in Python: bayeslabels.load("{model}")'
    table = result.table()
    for name in ("catalogue.ecsv", "catalogue.fits"):
        written.append(write_table(table, out / name))
        about[name] = f"{len(table)} test stars: labels, errors, percentiles, flags" + (
            " (text)" if name.endswith("ecsv") else ""
        )
    answered = np.flatnonzero(np.isfinite(result.mean).all(1))
    star = int(answered[np.argsort(result.error[answered, 0])[len(answered) // 2]]) if len(answered) else 0
    unit = survey.wavelength_unit
    figures = {
        "one_to_one.png": ("inferred against reference labels", lambda: plots.one_to_one(result, reference)),
        "calibration.png": ("whether the error bars hold", lambda: plots.calibration(result, reference)),
        "coefficients.png": (
            "what each label does to the spectrum", lambda: plots.coefficients(posterior, wavelength_unit=unit),
        ),
        "corner.png": (
            "the posterior of one star",
            lambda: plots.corner(result, star, truth=None if survey.truth is None else survey.truth[star]),
        ),
        "spectrum.png": (
            "its spectrum, and the model's",
            lambda: plots.spectrum(posterior, spectra, star, result=result, wavelength_unit=unit),
        ),
    }  # fmt: skip
    for name, (what, draw) in figures.items():
        with in_one_piece(out / name) as part:
            draw().savefig(part, dpi=130)
        written.append(out / name)
        about[name] = what
    say(f"\nFiles in {out}:")
    for name, what in about.items():
        say(f"  {name:17s} {what}")
    return posterior, result
