"""Spectra of surveys: small files by their published data models, read by what they hold; and specutils' spectra."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from astropy.table import Table

import bayeslabels as bl
from bayeslabels.astro.spectra import air_to_vacuum, vacuum_to_air
from bayeslabels.surveys import from_spectra, read_spectra, to_spectra

N = 40
LOG = 4.179 + 6e-6 * np.arange(N)
UNIT = "1e-17 erg / (Angstrom s cm2)"


def numbers(seed=0, n=N):
    """Flux and error of a star."""
    rng = np.random.default_rng(seed)
    return 1 + 0.1 * rng.normal(size=n), rng.uniform(0.01, 0.02, n)


def image(data, **header):
    hdu = fits.ImageHDU(data)
    hdu.header.update(header)
    return hdu


def apstar(folder, name="2M00000002+7417074", seed=0, visits=3, log=LOG, key="OBJID"):
    """apStar of several visits, the first two rows of which are combinations; of one visit it has one row alone."""
    flux, error = numbers(seed, len(log))
    mask = np.zeros(len(log), np.int16)
    mask[3], mask[4], mask[5] = 1 << 0, 1 << 12, 1 << 9  # bad; a sky line; persistence, which is not masked
    error[6] = 1e10
    rows = (visits + 2, 1) if visits > 1 else ()
    stacked = [np.tile(x, rows) if rows else x for x in (flux.astype("f4"), error.astype("f4"), mask)]
    if rows:
        stacked[0][1:] = 99.0
    primary = fits.PrimaryHDU()
    primary.header.update({key: name, "NVISITS": visits, "SFILE1": "apVisit-r12-1.fits", "SURVEY": "apogee"})
    primary.header["HISTORY"] = "APOGEE Reduction Pipeline"
    keys = {
        "CRVAL1": log[0],
        "CDELT1": 6e-6,
        "CRPIX1": 1,
        "CTYPE1": "LOG-LINEAR",
        "BUNIT": "Flux (10^-17 erg/s/cm^2/Ang)",
    }
    path = folder / f"apStar-dr17-{name}.fits"
    fits.HDUList([primary, *(image(x, **keys) for x in stacked), *[image(None)] * 5]).writeto(path)
    return path, flux, error


def test_apogee_apstar(tmp_path):
    many, flux, error = apstar(tmp_path)
    one, other, _ = apstar(tmp_path, "2M00000003-1234567", seed=1, visits=1)
    stars = read_spectra([many, str(one)])
    assert stars.id.tolist() == ["2M00000002+7417074", "2M00000003-1234567"]
    np.testing.assert_allclose(stars.flux.coords["wavelength"], 10**LOG, rtol=1e-12)
    assert u.Unit(stars.flux.unit) == u.Unit(UNIT)
    good = np.setdiff1d(np.arange(N), [3, 4])
    np.testing.assert_allclose(stars.flux.value[0, good], flux[good], rtol=1e-6)
    np.testing.assert_allclose(stars.flux.value[1, good], other[good], rtol=1e-6)
    np.testing.assert_allclose(stars.flux.error[0, good], error[good], rtol=1e-6)
    assert np.isinf(stars.flux.error[:, 3:5]).all()
    assert np.isnan(stars.flux.value[:, 3:5]).all()


def test_apogee_aspcapstar(tmp_path):
    flux, error = numbers()
    flux[10:12] = 0.0  # between two detectors
    results = fits.BinTableHDU(Table({"APOGEE_ID": ["2M1"], "ASPCAPFLAG": [0]}))
    keys = {"CRVAL1": LOG[0], "CDELT1": 6e-6, "CRPIX1": 1}
    hdus = [fits.PrimaryHDU(), *(image(x.astype("f4"), **keys) for x in (flux, error, flux)), results]
    fits.HDUList(hdus).writeto(tmp_path / "aspcapStar-dr17-2M1.fits")
    stars = read_spectra(tmp_path / "aspcapStar-dr17-2M1.fits")
    assert stars.id.tolist() == ["2M1"]
    assert (stars.flux.unit or "") == ""
    assert np.flatnonzero(~stars.flux.observed[0]).tolist() == [10, 11]
    apstar(tmp_path, seed=1)
    with pytest.raises(bl.BadInput, match="units"):  # normalised and not
        read_spectra([tmp_path / "aspcapStar-dr17-2M1.fits", tmp_path / "apStar-dr17-2M00000002+7417074.fits"])


def lamost(folder, obsid, seed, old, wavelength=None, z=1e-4):
    wavelength = 10 ** (3.5682 + 1e-4 * np.arange(N)) if wavelength is None else wavelength
    flux, error = numbers(seed, len(wavelength))
    ivar, both, some = error**-2, np.zeros(len(wavelength)), np.zeros(len(wavelength))
    both[2], some[3], ivar[4] = 4, 4, 0.0
    header = {"TELESCOP": "LAMOST", "OBSID": obsid, "Z": z, "VACUUM": True}
    if old:
        hdus = [fits.PrimaryHDU(np.array([flux, ivar, wavelength, both, some], "f4"))]
    else:
        names = ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK")
        columns = zip(names, (flux, ivar, wavelength, both, some), strict=True)
        table = fits.BinTableHDU.from_columns(
            [fits.Column(name, f"{len(wavelength)}E", array=x[None]) for name, x in columns], name="COADD"
        )
        hdus = [fits.PrimaryHDU(), table]
    hdus[0].header.update(header)
    path = folder / f"spec-55859-F5902_sp01-{obsid}.fits.gz"
    fits.HDUList(hdus).writeto(path)
    return path, wavelength, flux


@pytest.mark.parametrize("old", [False, True])
def test_lamost(tmp_path, old):
    files = [lamost(tmp_path, 101001, 0, old), lamost(tmp_path, 101002, 1, old, z=-9999.0)]
    stars = read_spectra([x[0] for x in files])
    assert stars.id.tolist() == ["101001", "101002"]
    np.testing.assert_allclose(stars.flux.value[:, 5:], [x[2][5:] for x in files], rtol=1e-6)
    assert np.flatnonzero(~stars.flux.observed[0]).tolist() == [2, 4]
    np.testing.assert_allclose(stars.velocity.value[:, 0], [29.9792458, np.nan])
    assert stars.velocity.unit == "km / s"


def table_hdu(name=None, /, **columns):
    """A table of these columns: of one number a row, or of one vector."""
    made = []
    for key, x in columns.items():
        kind = {"f": "E", "i": "J"}[np.asarray(x).dtype.kind]
        made.append(fits.Column(key, kind if np.ndim(x) == 1 else f"{np.shape(x)[1]}{kind}", array=x))
    return fits.BinTableHDU.from_columns(made, name=name)


def sdss(folder, fiber, seed, z=1e-4):
    flux, error = numbers(seed)
    ivar, both = error**-2, np.zeros(N, int)
    both[2], ivar[4] = 1 << 24, 0.0
    log = 3.5682 + 1e-4 * np.arange(N)
    hdus = [
        fits.PrimaryHDU(), table_hdu("COADD", flux=flux, loglam=log, ivar=ivar, and_mask=both, or_mask=both | 2),
        table_hdu("SPECOBJ", Z=np.array([z])),
    ]  # fmt: skip
    fits.HDUList(hdus).writeto(path := folder / f"spec-4055-55359-{fiber:04d}.fits")
    return path, 10**log, flux


def test_sdss(tmp_path):
    files = [sdss(tmp_path, i, i) for i in (1, 596)]
    stars = read_spectra([x[0] for x in files])
    assert stars.id.tolist() == ["4055-55359-0001", "4055-55359-0596"]
    np.testing.assert_allclose(stars.flux.coords["wavelength"], files[0][1], rtol=1e-6)
    np.testing.assert_allclose(stars.flux.value[:, 5:], [x[2][5:] for x in files], rtol=1e-6)
    assert np.flatnonzero(~stars.flux.observed[0]).tolist() == [2, 4]
    np.testing.assert_allclose(stars.velocity.value[:, 0], 29.9792458)
    assert stars.flux.unit == u.Unit(UNIT).to_string()


BOSS, APOGEE = 10 ** (3.5523 + 1e-4 * np.arange(N)), 10**LOG


def mwm_star(folder, sdss_id, instruments):
    """Tables of both instruments at both sites, of one row where the star was observed and of none elsewhere."""
    hdus, spectra = [fits.PrimaryHDU()], {}
    for i, (name, grid) in enumerate({"BOSS/APO": BOSS, "BOSS/LCO": BOSS, "APOGEE/APO": APOGEE}.items()):
        flux, error = numbers(100 * sdss_id + i)
        bad = np.zeros(N, int)
        bad[3] = 4
        rows = slice(0, int(name in instruments))
        hdus.append(table_hdu(
            name, sdss_id=np.array([sdss_id])[rows], wavelength=grid[None][rows], flux=flux[None][rows],
            ivar=error[None][rows] ** -2, pixel_flags=bad[None][rows],
        ))  # fmt: skip
        spectra[name] = flux, error
    fits.HDUList(hdus).writeto(path := folder / f"mwmStar-0.6.0-{sdss_id}.fits")
    return path, spectra


def test_mwm_star(tmp_path):
    """Sites are weighted by their inverse variances, instruments put side by side; what was not observed is missing."""
    first, spectra = mwm_star(tmp_path, 54391, ("BOSS/APO", "BOSS/LCO", "APOGEE/APO"))
    second, others = mwm_star(tmp_path, 54392, ("BOSS/LCO",))
    stars = read_spectra([first, second])
    assert stars.id.tolist() == [54391, 54392]
    np.testing.assert_allclose(stars.flux.coords["wavelength"], np.concatenate([BOSS, APOGEE]), rtol=1e-6)
    (flux_a, error_a), (flux_b, error_b) = spectra["BOSS/APO"], spectra["BOSS/LCO"]
    mean = (flux_a / error_a**2 + flux_b / error_b**2) / (error_a**-2 + error_b**-2)
    good = np.arange(N) != 3
    np.testing.assert_allclose(stars.flux.value[0, :N][good], mean[good], rtol=1e-6)
    np.testing.assert_allclose(stars.flux.error[0, :N][good], ((error_a**-2 + error_b**-2) ** -0.5)[good], rtol=1e-6)
    np.testing.assert_allclose(stars.flux.value[0, N:][good], spectra["APOGEE/APO"][0][good], rtol=1e-6)
    np.testing.assert_allclose(stars.flux.value[1, :N][good], others["BOSS/LCO"][0][good], rtol=1e-6)
    assert not stars.flux.observed[:, [3, N + 3]].any()
    assert not stars.flux.observed[1, N:].any()
    empty, _ = mwm_star(tmp_path, 7, ())
    with pytest.raises(bl.BadInput, match="without a spectrum"):
        read_spectra(empty)


def test_spectra_of_several_grids_at_rest(tmp_path):
    """Interpolated to one grid, and shifted to rest: a line stands where it does in the laboratory."""
    speeds, files = [-60.0, 80.0], []
    for i, speed in enumerate(speeds):
        wavelength = 10 ** (3.6990 + 1e-4 * (np.arange(60 + i) + 0.3 * i))
        path, _, _ = lamost(tmp_path, i, i, False, wavelength, speed / 299792.458)
        with fits.open(path, mode="update") as hdus:
            centre = 5030.0 * (1 + speed / 299792.458)
            hdus[1].data["FLUX"] = 1 - 0.5 * np.exp(-0.5 * ((wavelength - centre) / 3) ** 2)
            hdus[1].data["ANDMASK"], hdus[1].data["IVAR"] = 0, 1e4
        files.append(path)
    with pytest.raises(bl.BadInput, match=r"wavelength=np\.geomspace"):
        read_spectra(files)
    grid = np.arange(5010.0, 5060.0)
    found = read_spectra(files, wavelength=grid).velocity.value[:, 0]
    np.testing.assert_allclose(found, speeds)
    stars = read_spectra(files, wavelength=grid, velocity=found)
    lines = [np.average(grid, weights=1 - flux) for flux in stars.flux.value]
    np.testing.assert_allclose(lines, 5030.0, atol=0.05)
    with pytest.raises(bl.BadInput, match="without wavelength"):
        read_spectra(files, velocity=found)
    with pytest.raises(bl.BadInput, match="2 stars"):
        read_spectra(files, wavelength=grid, velocity=np.zeros(3))


def galah(folder, sobject, ccd, seed, cut=0):
    flux, relative = numbers(seed)
    first = {1: 4713.0, 2: 5648.0, 3: 6478.0, 4: 7585.0}[ccd]
    keys = {"CRVAL1": first, "CDELT1": 0.05, "CRPIX1": 0}
    own = {**keys, "CRVAL1": first + 0.05 * cut}
    primary = fits.PrimaryHDU(1000 * flux)
    primary.header.update({**keys, "ORIGIN": "GALAH Survey"})
    hdus = [primary, image(relative, **keys), image(flux), image(flux), image(flux[cut:], **own)]
    fits.HDUList(hdus).writeto(folder / f"{sobject}{ccd}.fits")
    return flux[cut:], (flux * relative)[cut:], first + 0.05 * np.arange(cut, N)


@pytest.mark.parametrize("medium", ["vacuum", "air"])
def test_galah(tmp_path, medium):
    """Four CCDs of a star; of another there are three."""
    first = [galah(tmp_path, 131116000501003, ccd, ccd, 5 * (ccd == 4)) for ccd in (1, 2, 3, 4)]
    [galah(tmp_path, 131116000501004, ccd, 9) for ccd in (1, 2, 3)]
    stars = read_spectra(sorted(tmp_path.glob("*.fits")), medium=medium)
    assert stars.id.tolist() == [131116000501003, 131116000501004]
    flux, error, wavelength = (np.concatenate([x[i] for x in first]) for i in range(3))
    wavelength = wavelength if medium == "air" else air_to_vacuum(wavelength)
    np.testing.assert_allclose(stars.flux.coords["wavelength"], wavelength, rtol=1e-12)
    np.testing.assert_allclose(stars.flux.value[0], flux, rtol=1e-12)
    np.testing.assert_allclose(stars.flux.error[0], np.abs(error), rtol=1e-9)
    assert stars.flux.observed[1].sum() == 3 * N


def test_desi(tmp_path):
    """Arms on one grid of 0.8 Angstrom; where two overlap, the mean by inverse variance."""
    rng, ids = np.random.default_rng(0), np.array([39627652591521181, 39627652591521182])
    arms = {"B": np.arange(20), "R": np.arange(15, 35), "Z": np.arange(35, 50)}
    hdus, held = [fits.PrimaryHDU(), fits.BinTableHDU(Table({"TARGETID": ids}), name="FIBERMAP")], {}
    for name, at in arms.items():
        flux, ivar = rng.normal(1, 0.1, (2, len(at))), rng.uniform(50, 100, (2, len(at)))
        mask = np.zeros(flux.shape, np.int32)
        mask[1, 3], ivar[0, 4] = 2, 0.0
        held[name] = flux, np.where(mask == 0, ivar, 0)
        for key, data in (("WAVELENGTH", 3600 + 0.8 * at), ("FLUX", flux), ("IVAR", ivar), ("MASK", mask)):
            hdus.append(fits.ImageHDU(data, name=f"{name}_{key}"))
        hdus[-3].header["BUNIT"] = "10**-17 erg/(s cm2 Angstrom)"
    fits.HDUList(hdus).writeto(tmp_path / "coadd-main-bright-1.fits")
    stars = read_spectra(tmp_path / "coadd-main-bright-1.fits")
    assert stars.id.tolist() == ids.tolist()
    np.testing.assert_allclose(stars.flux.coords["wavelength"], 3600 + 0.8 * np.arange(50))
    weight, weighted = np.zeros((2, 50)), np.zeros((2, 50))
    for name, (flux, ivar) in held.items():
        weight[:, arms[name]] += ivar
        weighted[:, arms[name]] += ivar * flux
    known = weight > 0
    np.testing.assert_array_equal(stars.flux.observed, known)
    np.testing.assert_allclose(stars.flux.value[known], (weighted / np.where(known, weight, 1))[known])
    np.testing.assert_allclose(stars.flux.error[known], weight[known] ** -0.5)


def test_what_is_no_spectrum_is_refused(tmp_path):
    path, _, _ = apstar(tmp_path)
    Table({"x": [1.0]}).write(tmp_path / "table.fits")
    (tmp_path / "text.fits").write_text("no FITS")
    apstar(tmp_path / "..", "2M7", log=LOG + 1e-3)
    refused = {
        "table.fits": ([tmp_path / "table.fits"], {}), "text.fits": ([tmp_path / "text.fits"], {}),
        "several spectra of star": ([path, path], {}), "no files": ([], {}), "no file ": ([tmp_path / "none.fits"], {}),
        "no survey": ([path], {"survey": "gaia"}), "medium": ([path], {"medium": "water"}),
        "apStar": ([path], {"survey": "galah"}), "one grid": ([path, tmp_path / ".." / "apStar-dr17-2M7.fits"], {}),
    }  # fmt: skip
    for message, (paths, settings) in refused.items():
        with pytest.raises(bl.BadInput, match=message):
            read_spectra(paths, **settings)
    (tmp_path / ".." / "apStar-dr17-2M7.fits").unlink()
    for survey in ("apogee", "lamost", "galah", "desi", "sdss", "mwm"):
        with pytest.raises(bl.BadInput):
            read_spectra([tmp_path / "table.fits"], survey)


def test_air_is_asked_for(tmp_path):
    path, _, _ = apstar(tmp_path)
    stars = read_spectra(path, medium="air")
    np.testing.assert_allclose(stars.flux.coords["wavelength"], vacuum_to_air(10**LOG), rtol=1e-12)


class Spectrum:
    """As in specutils."""

    def __init__(self, spectral_axis, flux, uncertainty=None, mask=None, meta=None):
        self.spectral_axis, self.flux, self.uncertainty = spectral_axis, flux, uncertainty
        self.mask, self.meta = mask, meta


AXIS = np.array([5000.0, 5001.0, 5002.0]) * u.AA
ERROR = np.array([0.1, 0.2, 0.3])


@pytest.mark.parametrize("axis", [AXIS, AXIS.to(u.um), AXIS.to(u.THz, u.spectral())[::-1]])
@pytest.mark.parametrize(
    "uncertainty",
    [StdDevUncertainty(ERROR), StdDevUncertainty(1e3 * ERROR * u.mJy), VarianceUncertainty(ERROR**2 * u.Jy**2),
     InverseVariance(ERROR**-2)],
)  # fmt: skip
def test_spectra_of_specutils(axis, uncertainty):
    turned = axis.unit == u.THz
    way = slice(None, None, -1) if turned else slice(None)
    uncertainty = type(uncertainty)(uncertainty.array[way], unit=uncertainty.unit)
    spectrum = Spectrum(axis, ([1.0, 2.0, 3.0] * u.Jy)[way], uncertainty, np.array([False, False, True])[way])
    stars = from_spectra([spectrum, spectrum], id=["a", "b"])
    np.testing.assert_allclose(stars.flux.coords["wavelength"], AXIS.value)
    np.testing.assert_allclose(stars.flux.value, [[1, 2, np.nan]] * 2)
    np.testing.assert_allclose(stars.flux.error, [[0.1, 0.2, np.inf]] * 2)
    assert (stars.flux.unit, stars.id.tolist()) == ("Jy", ["a", "b"])
    back = to_spectra(stars, Spectrum)
    again = from_spectra(back, id=[x.meta["id"] for x in back])
    for of in ("value", "error"):
        np.testing.assert_array_equal(getattr(again.flux, of), getattr(stars.flux, of))
    assert again.flux.unit == "Jy"


def test_spectra_that_do_not_fit_are_refused():
    flux = [1.0, 2.0, 3.0] * u.Jy
    good = Spectrum(AXIS, flux)
    assert from_spectra(Spectrum(AXIS, np.ones((4, 3)) * u.one)).flux.error is None
    refused = {
        "no spectra": [], "spectral axes": [good, Spectrum(AXIS + 1 * u.AA, flux)],
        "Spectrum": SimpleNamespace(flux=flux),
        "other units": [good, Spectrum(AXIS, flux.value * u.K)], "type": Spectrum(AXIS, flux, SimpleNamespace(array=1)),
        "all, or none": [good, Spectrum(AXIS, flux, StdDevUncertainty(ERROR))], "axis of 3": Spectrum(AXIS, flux[:2]),
    }  # fmt: skip
    for message, spectra in refused.items():
        with pytest.raises(bl.BadInput, match=message):
            from_spectra(spectra)
    with pytest.raises(bl.BadInput, match="wavelength"):
        to_spectra(bl.Stars(flux=bl.Block(np.ones((2, 3)))), Spectrum)


def test_specutils_itself():
    specutils = pytest.importorskip("specutils")
    stars = bl.Stars(flux=bl.Block([[1.0, 2.0]], 0.1, unit="Jy", coords={"wavelength": [5000.0, 5001.0]}))
    (spectrum,) = to_spectra(stars)
    assert isinstance(spectrum, getattr(specutils, "Spectrum", getattr(specutils, "Spectrum1D", None)))
    np.testing.assert_array_equal(from_spectra(spectrum).flux.value, stars.flux.value)


PARAM_SYMBOL = ("TEFF", "LOGG", "LOG10VDOP", "METALS", "C", "N", "O Mg Si S Ca Ti", "LGVSINI", "O")


def allstar(path, ids, units):
    """allStar of DR16 and DR17: a table of stars, an empty image, and the names of what the vectors hold."""
    n = len(ids)
    rng = np.random.default_rng(1)
    param = np.stack([rng.normal(4700, 200, n), rng.normal(2.4, 0.3, n), *rng.normal(0, 0.2, (7, n))], 1).astype("f4")
    columns = {
        "FILE": ("34A", [f"apStar-dr17-{x}.fits" for x in ids], None),
        "APOGEE_ID": ("18A", ids, None),
        "SNR": ("E", rng.uniform(80, 200, n), None),
        "STARFLAG": ("J", rng.choice([0, 1 << 9], n), None),
        "ASPCAPFLAG": ("K", np.zeros(n, int), None),
        "EXTRATARG": ("J", np.zeros(n, int), None),
        "PARAM": ("9E", param, None),
        "PARAM_COV": ("81E", np.zeros((n, 81)), None),
        "TEFF": ("E", param[:, 0], "K"),
        "TEFF_ERR": ("E", np.full(n, 30.0), "K"),
        "LOGG": ("E", param[:, 1], "dex"),
        "LOGG_ERR": ("E", np.full(n, 0.05), "dex"),
        "X_H": ("26E", rng.normal(0, 0.2, (n, 26)), None),
        "FE_H": ("E", param[:, 3], "dex"),
        "FE_H_ERR": ("E", np.full(n, 0.02), "dex"),
        "FE_H_FLAG": ("J", np.zeros(n, int), None),
    }
    table = {name: x for name, (_, x, _) in columns.items()}
    table["ASPCAPFLAG"][1] = (1 << 23) | (1 << 40)  # STAR_BAD, and a bit that 32 do not hold
    table["EXTRATARG"][3] = 1 << 4  # the second row of a star
    table["FE_H"], table["FE_H_ERR"] = np.array(table["FE_H"]), np.array(table["FE_H_ERR"])
    table["FE_H"][4] = np.nan
    for name in ("LOGG", "LOGG_ERR"):
        table[name] = np.array(table[name])
        table[name][5] = -9999.99
    made = [fits.Column(k, f, unit=u if units else None, array=table[k]) for k, (f, _, u) in columns.items()]
    lists = [fits.Column("PARAM_SYMBOL", f"{16 * 9}A16", dim="(16,9)", array=np.array([PARAM_SYMBOL]))]
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU.from_columns(made), fits.ImageHDU(np.zeros((1, 1)))]
    fits.HDUList([*hdus, fits.BinTableHDU.from_columns(lists)]).writeto(path)
    return Table({name: np.asarray(x) for name, x in table.items() if name != "FILE"})


@pytest.mark.parametrize("units", [True, False], ids=["units", "no units"])
def test_the_recipe_for_apogees_allstar(tmp_path, monkeypatch, units):
    text = (Path(__file__).parent.parent / "docs" / "howto" / "surveys.md").read_text()
    first, *others = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    recipe = next(code for code in others if "allStar" in code)
    ids = [f"2M0000000{i}+7417074" for i in range(7)]
    (tmp_path / "spectra").mkdir()
    fluxes = [apstar(tmp_path / "spectra", name, seed=i)[1] for i, name in enumerate(ids)]
    rows = [*ids[:3], ids[2], *ids[3:], "2M99999999-0000000"]  # a star twice, and one without a spectrum
    known = allstar(tmp_path / "allStar-dr17-synspec_rev1.fits", rows, units)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(first, space)
    exec(recipe, space)
    training = space["training"]
    expected = [ids[0], *ids[2:]]  # the second star is bad
    assert training.id.tolist() == expected
    at = [rows.index(x) for x in expected]
    value = np.stack([known[name][at] for name in ("TEFF", "LOGG", "FE_H")], 1)
    gaps = (value < -900) | np.isnan(value)
    assert gaps.sum() == 2
    np.testing.assert_array_equal(training.labels.value, np.where(gaps, np.nan, value))
    np.testing.assert_array_equal(training.labels.observed, ~gaps)
    assert training.labels.units == ("K", "dex", "dex")
    good = np.setdiff1d(np.arange(N), [3, 4])
    for flux, name in zip(training.flux.value, expected, strict=True):
        np.testing.assert_allclose(flux[good], fluxes[ids.index(name)][good], rtol=1e-6)
    np.testing.assert_array_equal(space["table"]["PARAM"][:, 3], known["PARAM"][at, 3])
