"""What a trained model says of itself in words: how its training step went, what was chosen and what was learned."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kind import TrainedModel, kind_of

NEGLIGIBLE = 1e-3
"""Scatter of labels that is told as 0, in scales of the labels."""
ROWS = 60
"""Rows of what was learned, at most."""
SAID = ("inference", "n_star", "converged", "selection", "versions", "columns", "settings")
"""What of a model's notes stands in lines of its own."""


def significant(x: float, digits: int = 2) -> str:
    """A number to so many significant digits, without an exponent."""
    if not np.isfinite(x) or x == 0:
        return f"{x:.3g}"
    decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(x)))))
    return f"{x:.{min(decimals, 8 if abs(x) < 1 else 3)}f}"


def about(posterior: TrainedModel[Any, Any]) -> str:
    """All that ``bayeslabels info`` tells."""
    kind, info = kind_of(posterior.model), posterior.info
    lines = [training(posterior), *(f"  {line}" for line in kind.details(posterior))]
    table = kind.summary(posterior)
    for name in table.colnames:
        if table[name].dtype.kind == "f":
            table[name].info.format = ".4g"
    lines += ["", *(f"  {line}" for line in table.pformat(max_lines=ROWS, max_width=-1)), ""]
    lines.append("  made with: " + ", ".join(f"{k} {v}" for k, v in info.get("versions", {}).items()))
    settings = info.get("settings") or {}
    lines.append(f"  settings: {', '.join(f'{k}={v}' for k, v in settings.items()) or 'none'}")
    if info.get("columns"):
        shown = {k: ",".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in info["columns"].items()}
        lines.append("  columns: " + ", ".join(f"{k} {v}" for k, v in shown.items()))
    rest = {k: v for k, v in info.items() if k not in SAID and isinstance(v, str | int | float)}
    lines.append("  " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items()))
    return "\n".join(lines)


def training(posterior: TrainedModel[Any, Any], seconds: float | None = None) -> str:
    """Lines about a training step: how it went, and tau per label."""
    info = posterior.info
    took = "" if seconds is None else f" in {seconds:.0f} s"
    converged = info.get("converged")
    state = "converged" if converged else "DID NOT CONVERGE" if converged is not None else "done"
    lines = [
        f"  {state}{took}: {type(posterior.model).__name__} by {info.get('inference')}, {info.get('n_star')} stars, "
        f"{kind_of(posterior.model).describe(posterior.model)}" + _dropped(info)
    ]
    lines += selection(info)
    tau = getattr(posterior.moments, "label_scatter", np.zeros(0))
    if np.any(tau > 0):
        frame = posterior.model.require_frame()
        rows = zip(frame.names, np.where(tau < NEGLIGIBLE * frame.scale, 0.0, tau), frame.units, strict=True)
        parts = [f"{name} {significant(x)} {unit}".rstrip() for name, x, unit in rows]
        lines.append("  noise of the catalogue's labels beyond their stated errors (tau): " + ", ".join(parts))
    return "\n".join(lines)


def selection(info: dict[str, Any]) -> list[str]:
    """A line about which variant of the model was chosen, if there was a choice."""
    every = info.get("selection") or []
    orders = [s for s in every if "order" in s]
    components = [s for s in every if "components" in s]
    hidden = [s for s in every if "hidden" in s]
    scores = [s for s in every if "variant" in s]
    lines = [f"  polynomial of order {s['order']} against {s['below']}: log evidence {s['lead']:+.1f}" for s in orders]
    lines += [
        f"  population of {s['components']} Gaussians against one: log evidence {s['lead']:+.1f}" for s in components
    ]
    lines += [
        f"  hidden label {s['hidden']}: residuals vary {s['excess']:.2f} times as much as noise would" for s in hidden
    ]
    if len(scores) < 2:
        return lines
    best = next(s for s in scores if s.get("chosen"))
    lines.append(f"  chosen by held-out density: {_meaning(best)}")
    for other in (s for s in scores if s is not best):
        what = f"    rather than: {_meaning(other)}"
        if other.get("refused"):
            lines.append(f"{what}, which could not be trained ({other['refused']})")
        else:
            gap, error = best["log_density"] - other["log_density"], other.get("difference_error", float("nan"))
            worse = "lower" if gap >= 0 else "higher, but not clearly,"
            lines.append(f"{what}; its ln density per star is {worse} by {abs(gap):.2f} +- {error:.2f}")
    return lines


def _meaning(score: dict[str, Any]) -> str:
    plain = {
        "label_noise='free'": "the spectra help to correct the training labels",
        "label_noise='cut'": "the training labels are taken as they stand",
    }
    variant = str(score.get("variant", "?"))
    return f"{plain[variant]} ({variant})" if variant in plain else variant


def _dropped(info: dict[str, Any]) -> str:
    dropped = info.get("n_pixel_dropped", 0)
    outliers = info.get("n_outlier", 0)
    return (f", {dropped} pixels not trainable" if dropped else "") + (
        f", {outliers} outlying stars left out" if outliers else ""
    )
