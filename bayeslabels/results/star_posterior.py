"""What the test step returns: for every star its labels' posterior, and how far to trust it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from enum import IntFlag
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from astropy import units

from ..data.html import shown_table
from ..errors import bad_input
from ..kind import Quantities
from .star_file import load_stars, save_stars
from .table import StarTable, correlations, decimals, reduced_chi2

if TYPE_CHECKING:
    from .posterior import Posterior


class Flags(IntFlag):
    """Bits of the `flags` column.

    Example:
        >>> from bayeslabels.results.star_posterior import Flags
        >>> Flags.MULTIMODAL | Flags.POOR_FIT
        <Flags.MULTIMODAL|POOR_FIT: 20>
    """

    NOT_CONVERGED = 1
    """The optimum was not reached: labels are NaN."""
    NO_DATA = 2
    """Nothing was measured of this star: labels are NaN, or those of the whole population (`Translator`)."""
    MULTIMODAL = 4
    """A second solution carries more than 1 per cent of the probability."""
    OUTSIDE_TRAINING = 8
    """Farther from the training labels than they are from one another, or in an empty region: an extrapolation."""
    POOR_FIT = 16
    """chi^2 larger or smaller than that of 99.9 per cent of the training stars: not a spectrum of their kind, or errors
    that are not stated as theirs (where training stars do not tell: reduced chi^2 above 3)."""
    KHAT_HIGH = 32
    """Pareto k-hat above 0.7: the importance weights are not to be trusted (and NUTS was not asked to help)."""
    RHAT_HIGH = 64
    """R-hat above 1.02: the chains do not agree."""
    MISSING_DATA = 128
    """More than half of the pixels are missing."""
    MISSING_BAND = 256
    """A magnitude (or another feature outside of the spectra) is missing; it was integrated over."""
    OUTLIER = 512
    """The measured parallax is wrong with probability above one half: left out of `parallax_combined`."""
    RECALIBRATED = 1024
    """Errors are not the posterior's own, but those of an error model learned on held-out stars (`recalibrate`)."""
    BAD_ERROR = 8192
    """An error was zero or negative, and its measurement left out; or a covariance was none, and the star's data left
    out (`infer_catalog`; elsewhere both are refused)."""
    SENTINEL = 16384
    """A number that stands for what is missing, such as -9999 or a magnitude of 99, was left out."""


def flag_names(value: int) -> tuple[str, ...]:
    """Names of the bits set in a value of the `flags` column.

    Example:
        >>> import bayeslabels as bl
        >>> bl.flag_names(20)
        ('MULTIMODAL', 'POOR_FIT')
    """
    return tuple(flag.name or "" for flag in Flags if flag & int(value))


def counted_flags(flags: np.ndarray) -> dict[str, int]:
    """How many values (N,) of the `flags` column have each bit set."""
    return {str(flag.name): int(((flags & flag) > 0).sum()) for flag in Flags}


PERCENTILES = {
    "p5": "5th percentile of the posterior",
    "p16": "15.9th percentile of the posterior",
    "p50": "median of the posterior",
    "p84": "84.1th percentile of the posterior",
    "p95": "95th percentile of the posterior",
}
"""Percentiles that a table may have of every label, and what its columns say of them."""
LEVELS = dict(zip(PERCENTILES, (0.05, 0.15865, 0.5, 0.84135, 0.95), strict=True))
"""Their probabilities."""
ONE_SIGMA = ("p16", "p50", "p84")
"""The percentiles that every kind tells."""


def per_label(stars: xr.Dataset) -> list[str]:
    """What every star has of every label: mean, percentiles and parts of the error."""
    return [str(x) for x in stars if stars[x].dims == stars["mean"].dims]


def refuse_names(names: Sequence[str], beside: Sequence[str], columns: Iterable[str], parts: Iterable[str]) -> None:
    """Refuse names of labels whose columns in a table would be those of something else.

    beside: other quantities. columns: of every star. parts: of every label beside its error and percentiles.
    """
    taken = dict.fromkeys(("id", *columns), "what the table has of every star")
    for name in (*beside, *names):
        for column in (
            name,
            *(f"{name}_{x}" for x in ("error", "catalogue_error", "error_stated", *PERCENTILES, *parts)),
        ):
            if column in taken:
                raise bad_input(
                    f"a label {name!r}, whose column {column!r} in the result is also {taken[column]}",
                    "another name", fix='names=(...) of the block, or labels_names=(...) in from_table',
                )  # fmt: skip
            taken[column] = f"of {name!r}"


class StarPosterior:
    """Posteriors of N stars' labels, or of whatever else the model infers of a star: M named quantities with units.

    Attributes:
        data: xarray.DataTree: `posterior` holds `true_labels` (chain, draw, star, labels) in the units of `frame`,
            labels being whatever is inferred of a star (a distance, too); `stars` holds per star mean, covariance,
            percentiles, flags, what tells of the fit (chi2, n_pixel, ...) and the inference's diagnostics.
        frame: `names` and `units` of the quantities.
        info: how it was made, including what was integrated over.
        predictor: predict(result, name, with_error), of the training posterior; None: of stars read from a file.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> print(result)
        StarPosterior of 20 stars by Laplace: TEFF, LOGG, FE_H; flags: none
    """

    def __init__(
        self, data: xr.DataTree, frame: Quantities, info: dict[str, Any], predictor: Callable[..., Any] | None = None
    ):
        self.data, self.frame, self.info, self.predictor = data, frame, info, predictor

    def __len__(self) -> int:
        return self.data["stars"].sizes["star"]

    def __getitem__(self, rows: Any) -> StarPosterior:
        """The posterior of some of the stars: a slice, mask or array of rows."""
        rows = np.atleast_1d(np.arange(len(self))[rows])
        parts = {name: self.data[name].to_dataset() for name in self.data.children}
        some = {name: x.isel(star=rows) if "star" in x.dims else x for name, x in parts.items()}
        return StarPosterior(
            xr.DataTree.from_dict(some), self.frame, {**self.info, "n_star": len(rows)}, self.predictor
        )

    def predict(self, name: str = "flux", with_error: bool = False) -> Any:
        """The model's own spectrum (N, L) of every star, given all that was inferred of it; with_error: and its sd.

        Pixels that a star has not are predicted from those that it has. The sd is that of the noise-free spectrum,
        the scatter s_l included; pixels that could not be trained and stars without an answer are NaN.
        """
        if self.predictor is None:
            raise bad_input("predict() of a result without its training posterior", "the result of infer()")
        return self.predictor(self, name, with_error)

    @property
    def stars(self) -> xr.Dataset:
        """The per-star summaries."""
        return self.data["stars"].to_dataset()

    @property
    def mean(self) -> np.ndarray:
        """(N, M), in label units; NaN for stars that failed."""
        return self.stars["mean"].values

    @property
    def cov(self) -> np.ndarray:
        """(N, M, M), in label units."""
        return self.stars["covariance"].values

    @property
    def label_scatter(self) -> np.ndarray:
        """(M,): what labels of the catalogue's kind scatter beyond `error`, in label units: tau of the training step; 0
        where the errors include it."""
        tau = np.array(self.info.get("label_scatter", np.zeros(len(self.frame.names))))
        return tau * (not self.info.get("label_scatter_included", False))

    @property
    def error(self) -> np.ndarray:
        """(N, M): posterior standard deviations, in label units."""
        return np.sqrt(np.einsum("nmm->nm", self.cov))

    @property
    def flags(self) -> np.ndarray:
        return self.stars["flags"].values

    def draws(self, name: str) -> np.ndarray:
        """Draws (chain * draw, N) of one label, in its own unit."""
        if name not in self.frame.names:
            raise bad_input(f"draws({name!r})", f"one of {self.frame.names}")
        values = self.data["posterior"].to_dataset()["true_labels"].sel(labels=name).values
        return values.reshape(-1, values.shape[-1])

    def table(self, also: Sequence[str] = ()) -> StarTable:
        """One row per star: id, labels with errors and percentiles in their units, chi2, n_pixel, diagnostics, flags.

        `<label>` is the posterior mean of the true label and `<label>_error` its standard deviation;
        `<label>_catalogue_error` adds tau: the sd with which a label of the training catalogue's kind, free of its
        stated error, scatters about `<label>` (where tau is scatter of the true labels, as in Lux, `<label>_error`
        includes it).

        Args:
            also: further columns: "correlations", `<a>_<b>_correlation` of the errors of every two labels;
                "reduced_chi2", chi2 per pixel or band; and of models of spectra "flux", every star's own model
                spectrum as `predict` has it, and "latents", each with its error: vectors, which are long.

        Example:
            >>> import bayeslabels as bl
            >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
            >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
            >>> table = bl.infer(posterior, test, progress=False).table(also=("correlations", "reduced_chi2"))
            >>> table.colnames[-4:]
            ['TEFF_LOGG_correlation', 'TEFF_FE_H_correlation', 'LOGG_FE_H_correlation', 'reduced_chi2']
        """
        stars, names = self.stars, self.frame.names
        columns: dict[str, Any] = {}
        meanings: dict[str, str] = {}
        formats: dict[str, str | None] = {}

        def put(name: str, values: Any, unit: str | None = None, meaning: str = "", shown: str | None = None) -> None:
            if name in columns:
                raise bad_input(f"two columns {name!r} of the result", "one", "a label of that name", "another name")
            columns[name] = values * units.Unit(unit) if unit else values
            meanings[name], formats[name] = meaning, shown

        put("id", stars["star"].values)
        tau = self.label_scatter
        parts = [x for x in per_label(stars) if x != "mean"]
        for m, (name, unit) in enumerate(zip(names, self.frame.units, strict=True)):
            shown = decimals(self.error[:, m])
            put(name, self.mean[:, m], unit, "mean of the posterior", shown)
            put(f"{name}_error", self.error[:, m], unit, f"standard deviation of {name}", shown)
            for part in parts:
                meaning = stars[part].attrs.get("long_name", PERCENTILES.get(part, ""))
                put(f"{name}_{part}", stars[part].values[:, m], unit, meaning, shown)
            if tau[m] > 0:
                meaning = f"{name}_error with the scatter of the catalogue's labels"
                put(f"{name}_catalogue_error", np.hypot(self.error[:, m], tau[m]), unit, meaning, shown)
        of_stars = [str(x) for x in stars if stars[x].dims == ("star",)]
        for one in sorted(of_stars, key=lambda x: x == "flags"):  # flags are the last
            values, about = stars[one].values, stars[one].attrs
            shown = ".4g" if values.dtype.kind == "f" else None
            put(one, values, about.get("unit"), about.get("long_name", ""), shown)
        for name in (also,) if isinstance(also, str) else also:
            if name == "correlations":
                for pair, values in correlations(self.cov, names).items():
                    put(pair, values, None, "correlation of the errors", ".2f")
            elif name == "reduced_chi2":
                put(name, reduced_chi2(stars), None, "chi2 per pixel or band", ".2f")
            else:
                self._put_vectors(put, name)
        meta: dict[str, Any] = {
            key: value for key, value in self.info.items() if isinstance(value, str | int | float | bool)
        }
        meta["flag_bits"] = {flag.name: int(flag) for flag in Flags}
        table = StarTable(columns, meta=meta)
        for name, meaning in meanings.items():
            table[name].info.description, table[name].info.format = meaning or None, formats[name]
        return table

    def _put_vectors(self, put: Callable[..., None], name: str) -> None:
        """Columns of the star's latents, or of what `predict` has under this name, with errors."""
        if name == "latents" and name in self.stars:
            value, unit = self.stars[name].values, None
            error = np.sqrt(np.einsum("npp->np", self.stars["latents_covariance"].values))
        else:
            value, error = self.predict(name, with_error=True)
            unit = self.info.get(f"{name}_unit")
        put(name, value, unit)
        put(f"{name}_error", error, unit)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write all that is known of the stars, draws included, as a netCDF4 (HDF5) file with its checksum.

        Written beside and moved into place: whole, or not there. Plain arrays and texts: loading runs no code.

        Args:
            overwrite: replace a file of that name.

        Raises:
            BadInput: of a file that exists.

        Example:
            >>> result.save("stars.nc")  # doctest: +SKIP
            >>> bl.StarPosterior.load("stars.nc", posterior).predict("flux")  # doctest: +SKIP
        """
        return save_stars(self.data, self.frame, self.info, path, overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], posterior: Posterior | None = None) -> StarPosterior:
        """Read what `save` wrote.

        posterior: the training posterior, which `predict` needs and the file does not hold.

        Raises:
            BadInput: of a file that is damaged, cut short, or of another kind; of a posterior of other labels.
        """
        data, frame, info = load_stars(path)
        if posterior is not None and (names := posterior.inferred) != frame.names:
            raise bad_input(
                f"{path} of {', '.join(frame.names)}, and a posterior of {', '.join(names)}", "that of the test step"
            )
        return cls(data, frame, info, None if posterior is None else posterior.predictor)

    def flag_counts(self) -> dict[str, int]:
        """How many stars carry each flag."""
        return counted_flags(self.flags)

    def __repr__(self) -> str:
        counts = {name: n for name, n in self.flag_counts().items() if n}
        return (
            f"StarPosterior of {len(self)} stars by {self.info.get('inference', '?')}: {', '.join(self.frame.names)}; "
            f"flags: {counts or 'none'}"
        )

    def _repr_html_(self) -> str:
        return shown_table(repr(self), self.table())
