"""The frame of models of spectra: what training stars set, and which other stars fit it."""

from __future__ import annotations

import numpy as np

from ...core.model import Frame, scaling
from ...data.columns import same_unit
from ...data.stars import Block, Stars
from ...errors import bad_input


def frame_of(stars: Stars, label_blocks: tuple[str, ...]) -> Frame:
    """Names, units and scales of training stars; refuses stars that nothing can be learned from."""
    for name in (*label_blocks, "flux"):
        if name not in stars:
            raise bad_input(
                f"stars with the blocks {', '.join(stars.blocks)}",
                f"a block {name!r}, which the training step needs",
                fix=f"Stars({name}=..., ...) or Stars.from_table(table, {name}=...)",
            )
    names, units, centres, scales = [], [], [], []
    for block_name in label_blocks:
        labels = stars[block_name]
        value = np.where(labels.observed, labels.value, np.nan).astype(float)
        own = labels.names or tuple(str(i) for i in range(labels.n_dim))
        for column, name in zip(value.T, own, strict=True):
            known = column[np.isfinite(column)]
            if len(known) < 2 or np.ptp(known) == 0:
                raise bad_input(
                    f"label {name!r} with {len(known)} values of which all are equal"
                    if len(known)
                    else f"no value of label {name!r}",
                    "a label that varies between the training stars",
                    "a constant or empty column",
                    f"{block_name}={tuple(n for n in own if n != name)}",
                )
        centre, scale = scaling(value)
        centres.append(centre)
        scales.append(scale)
        names += [name if name not in names else f"{block_name}_{name}" for name in own]
        units += labels.units
    flux = stars["flux"]
    if not flux.observed.any():
        raise bad_input("flux without a single known value", "spectra", "all errors infinite or all ivar zero")
    few = flux[:: max(1, flux.value.size // 10**6)]
    typical = float(np.nanmedian(np.abs(np.where(few.observed, few.value, np.nan)))) or 1.0
    coordinate = next(iter(flux.coords.items()), (None, None))
    blocks = tuple((name, stars[name].n_dim) for name in label_blocks)
    return Frame(
        tuple(names), tuple(units), np.concatenate(centres), np.concatenate(scales), flux.n_dim, typical,
        flux.units[0], coordinate[1], coordinate[0], blocks,
    )  # fmt: skip


def check_flux(flux: Block, frame: Frame) -> None:
    fix = "bayeslabels.astro.spectra.resample(wavelength, flux, ivar, grid)"
    if flux.n_dim != frame.n_pixel:
        raise bad_input(
            f"spectra of {flux.n_dim} pixels", f"{frame.n_pixel}, as in training", "another wavelength grid", fix
        )
    if wrong := [unit for unit in dict.fromkeys(flux.units) if not same_unit(unit, frame.flux_unit)]:
        raise bad_input(
            f"flux in {wrong[0] or 'no unit'}", f"{frame.flux_unit or 'no unit'}, as in training",
            "another unit than in training", f'Block(flux, error, unit="{frame.flux_unit}") with Quantities, which are '
            "converted",
        )  # fmt: skip
    grid = flux.coords.get(frame.coordinate_name or "", next(iter(flux.coords.values()), None))
    if grid is None or frame.coordinate is None:
        return
    if grid.dtype.kind == frame.coordinate.dtype.kind == "U" and (grid == frame.coordinate).all():
        return
    if "U" in (grid.dtype.kind, frame.coordinate.dtype.kind):
        raise bad_input(f"coords {', '.join(flux.coords)}", f"{frame.coordinate_name}, as in training")
    if np.allclose(grid, frame.coordinate, rtol=1e-6, atol=0, equal_nan=True):
        return
    worst = np.argmax(np.abs(grid - frame.coordinate))
    raise bad_input(
        f"pixel {worst} at {grid[worst]:.6g}", f"{frame.coordinate[worst]:.6g}, as in training",
        f"another wavelength grid, or coords {', '.join(flux.coords)} that are not {frame.coordinate_name}", fix,
    )  # fmt: skip


def check_labels(labels: Block, name: str, frame: Frame) -> None:
    at = frame.columns(name)
    names = tuple(x.removeprefix(f"{name}_") if x not in (labels.names or ()) else x for x in frame.names[at])
    if labels.names != names:
        raise bad_input(
            f"{name} {labels.names}", f"{names}, as in training", "columns swapped or renamed",
            f"{name}.select({names!r}), or stars.drop({name!r}) to infer them",
        )  # fmt: skip
    if labels.units != frame.units[at]:
        raise bad_input(
            f"{name} in {labels.units}", f"{frame.units[at]}, as in training", "other units than in training",
            "Block(value, error, names=..., unit=...) with Quantities, which are converted",
        )  # fmt: skip
