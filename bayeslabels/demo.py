"""The demonstration behind ``bayeslabels demo``: training and test step from end to end, on simulated or real stars."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import plots
from .fit import fit, infer
from .inference import MAP, Importance
from .models.cannon import Cannon
from .posterior import Posterior
from .simulate import simulate
from .star_posterior import StarPosterior
from .stars import Stars
from .tables import in_one_piece, write_table

LABEL_SCATTER = (30.0, 0.06, 0.02)
"""Noise in the simulated training labels that their stated errors do not cover."""


class Survey(NamedTuple):
    """What the demonstration works on; `truth` (N, M) is known of simulated test stars only."""

    train: Stars
    test: Stars
    truth: np.ndarray | None
    about: str
    wavelength_unit: str | None = None


def simulated(n_star: int, n_pixel: int, seed: int) -> Survey:
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
    return Survey(train, test, truth.test_labels, about, "Angstrom")


def split(stars: Stars, n_star: int | None, n_pixel: int | None, seed: int, source: str) -> Survey:
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
    return Survey(train, test, None, about)


def run(
    survey: Survey, out: Path, *, seed: int = 0, progress: bool | None = None, say: Callable[[str], Any] = print,
    written: list[Path] | None = None,
) -> tuple[Posterior, StarPosterior]:  # fmt: skip
    """Train, infer, report with `say`, and write model, catalogues and figures into the folder `out`."""
    written = [] if written is None else written
    start = time.perf_counter()
    say(survey.about)
    say("\nTraining step: a quadratic Cannon with noisy labels ...")
    posterior = fit(Cannon(order=2), survey.train, MAP(), seed=seed, progress=progress)
    say(training_report(posterior, time.perf_counter() - start))
    start = time.perf_counter()
    say("\nTest step: the labels of the test stars from their spectra, by importance sampling ...")
    spectra = survey.test.drop("labels") if "labels" in survey.test else survey.test
    result = infer(posterior, spectra, Importance(), seed=seed, progress=progress)
    reference: Any = survey.test if survey.truth is None else survey.truth
    say(recovery_report(result, reference, time.perf_counter() - start))

    out.mkdir(parents=True, exist_ok=True)
    about = {}
    written.append(posterior.save(out / "model.nc"))
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


# ---- reports for people to read ----


def training_report(posterior: Posterior, seconds: float | None = None) -> str:
    """Lines about a training step: how it went, and tau per label."""
    info, frame = posterior.info, posterior.model.require_frame()
    took = "" if seconds is None else f" in {seconds:.0f} s"
    converged = info.get("converged")
    state = "converged" if converged else "DID NOT CONVERGE" if converged is not None else "done"
    lines = [
        f"  {state}{took}: {type(posterior.model).__name__} by {info.get('inference')}, {info.get('n_star')} stars, "
        f"{frame.n_pixel} pixels" + _dropped(info)
    ]
    lines += selection_report(info)
    tau = posterior.label_scatter()
    if any(tau.values()):
        parts = [
            f"{name} {plots._round(tau[name])} {unit}".rstrip() for name, unit in zip(tau, frame.units, strict=True)
        ]
        lines.append("  noise of the catalogue's labels beyond their stated errors (tau): " + ", ".join(parts))
    return "\n".join(lines)


def selection_report(info: dict[str, Any]) -> list[str]:
    """A line about which variant of the model was chosen, if there was a choice."""
    scores = info.get("selection") or []
    if len(scores) < 2:
        return []
    best, *rest = sorted(scores, key=lambda s: -s.get("log_density", -np.inf))
    lines = [f"  chosen by held-out density: {_meaning(best)}"]
    for other in rest:
        what = f"    over: {_meaning(other)}"
        if other.get("refused"):
            lines.append(f"{what}, which could not be trained ({other['refused']})")
        else:
            gap, error = best["log_density"] - other["log_density"], other.get("difference_error", float("nan"))
            lines.append(f"{what}, worse by {gap:.2f} +- {error:.2f} per star in ln density")
    return lines


def _meaning(score: dict[str, Any]) -> str:
    plain = {
        "label_noise='joint'": "the spectra help to correct the training labels",
        "label_noise='cut'": "the training labels are taken as they stand",
    }
    variant = str(score.get("variant", "?"))
    return f"{plain[variant]} ({variant})" if variant in plain else variant


def recovery_report(result: StarPosterior, reference: Any, seconds: float | None = None) -> str:
    """Lines about a test step whose labels are known: recovery and calibration per label, diagnostics, flags."""
    known, spread = plots._known(result, reference)
    error = result.error if spread is None else np.hypot(result.error, spread)
    offset, z = result.mean - known, plots._z(result, reference)
    took = "" if seconds is None else f" in {seconds:.0f} s"
    other = "the truth" if spread is None else "the catalogue"
    lines = [
        f"  done{took}; labels compared with {other}:", "",
        f"  {'label':<12} {'unit':<6} {'rms':>9} {'bias':>9} {'error bar':>10} {'mean z':>7} {'sd of z':>8} "
        f"{'within 1 error':>15}",
    ]  # fmt: skip
    for m, (name, unit) in enumerate(zip(result.frame.names, result.frame.units, strict=True)):
        d, one = (x[np.isfinite(z[:, m]), m] for x in (offset, z))
        if not len(one):
            lines.append(f"  {name:<12} {unit:<6} no star with this label")
            continue
        rms, bar = np.sqrt((d**2).mean()), np.nanmedian(error[:, m])
        lines.append(
            f"  {name:<12} {unit or '-':<6} {plots._round(rms, 3):>9} {plots._round(d.mean(), 2):>9} "
            f"{plots._round(bar, 3):>10} {one.mean():>+7.2f} {one.std():>8.2f} {100 * (abs(one) < 1).mean():>14.1f}%"
        )
    lines.append(f"  {'expected of error bars that hold':<50} {0:>+7.2f} {1:>8.2f} {68.3:>14.1f}%")
    what = "the posterior's" if spread is None else "the posterior's, the catalogue's and tau combined"
    lines += [f"  (error bar: the median star's, {what}; z = difference / error)", ""]
    return "\n".join([*lines, *diagnostics_report(result)])


def diagnostics_report(result: StarPosterior) -> list[str]:
    """Lines about how far to trust the test step."""
    stars: Any = result.data["stars"]
    lines = []
    if "khat" in stars:
        khat = stars["khat"].values
        worst = f"the worst {np.nanmax(khat):.2f}" if np.isfinite(khat).any() else "none finite"
        lines.append(
            f"  Pareto k-hat: {(khat > 0.7).sum()} of {len(khat)} stars above 0.7 (sampled with NUTS instead), {worst}"
        )
    if "rhat" in stars:
        lines.append(f"  R-hat: {(stars['rhat'].values > 1.02).sum()} of {len(result)} stars above 1.02")
    with np.errstate(invalid="ignore", divide="ignore"):
        chi2 = stars["chi2"].values / stars["n_pixel"].values
    if np.isfinite(chi2).any():
        lines.append(
            f"  reduced chi^2: median {np.nanmedian(chi2):.2f}, 99% of the stars below {np.nanpercentile(chi2, 99):.2f}"
        )
    raised = {name: n for name, n in result.flag_counts().items() if n}
    counts = ", ".join(f"{name} {n}" for name, n in raised.items())
    lines.append(f"  flags of {len(result)} stars: {counts or 'none raised'}")
    return lines


def _dropped(info: dict[str, Any]) -> str:
    dropped = info.get("n_pixel_dropped", 0)
    outliers = info.get("n_outlier", 0)
    return (f", {dropped} pixels not trainable" if dropped else "") + (
        f", {outliers} outlying stars left out" if outliers else ""
    )
