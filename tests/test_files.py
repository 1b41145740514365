"""Model files: equal to the bit after a round trip, readable in years, and nothing in them runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import bayeslabels as bl
from bayeslabels.files import sealed
from bayeslabels.files import whole as files

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden_cannon_v1.nc"
PACKAGE = Path(bl.__file__).parent


def assert_same(a: bl.StarPosterior, b: bl.StarPosterior) -> None:
    for group in ("posterior", "stars"):
        assert a.data[group].to_dataset().identical(b.data[group].to_dataset())


def test_round_trip(trained, training, spectra, tmp_path):
    path = trained.save(tmp_path / "cannon.nc")
    again = bl.load(path)
    assert [x.name for x in tmp_path.iterdir()] == ["cannon.nc"]
    assert again.model == trained.model
    assert again.info == json.loads(json.dumps(trained.info))
    for a, b in zip(trained.predict(training, with_error=True), again.predict(training, with_error=True), strict=True):
        np.testing.assert_array_equal(a, b)
    assert_same(bl.infer(trained, spectra), bl.infer(again, spectra))
    second = again.save(tmp_path / "second.nc")
    np.testing.assert_array_equal(bl.load(second).predict(training), trained.predict(training))


def test_settings_survive(training, tmp_path):
    n_pixel = training.flux.n_dim
    model = bl.Cannon(
        terms=[{}, {"TEFF": 1}, {"LOGG": 1}, {"TEFF": 1, "LOGG": 1}],
        label_noise=False,
        scatter=np.full(n_pixel, 0.01),
        coefficient_prior=bl.priors.Normal(0.3),
        censor={"LOGG": np.arange(n_pixel) % 2 == 0},
    )
    posterior = bl.fit(model, training)
    again = bl.load(posterior.save(tmp_path / "x.nc")).model
    assert again.terms == model.terms
    assert again.coefficient_prior == model.coefficient_prior
    np.testing.assert_array_equal(again.scatter, model.scatter)
    np.testing.assert_array_equal(again.censor["LOGG"], model.censor["LOGG"])
    assert again.censor["LOGG"].dtype == bool
    np.testing.assert_array_equal(again.frame.centre, posterior.model.frame.centre)


def test_golden_file():
    expected = json.loads(GOLDEN.with_suffix(".json").read_text())
    posterior = bl.load(GOLDEN)
    assert GOLDEN.stat().st_size < 60_000
    assert posterior.model.frame.names == tuple(expected["names"])
    names, units = expected["names"], expected["units"]
    stars = bl.Stars(labels=bl.Block(expected["labels"], names=names, unit=units))
    flux, error = posterior.predict(stars, with_error=True)
    np.testing.assert_allclose(flux, expected["flux"], rtol=1e-12)
    np.testing.assert_allclose(error, expected["flux_error"], rtol=1e-12)
    seen = bl.Stars(flux=bl.Block(expected["flux"], 0.01))
    result = bl.infer(posterior, seen, bl.MAP())
    sd = np.array(expected["inferred_error"])
    np.testing.assert_allclose((result.mean - expected["inferred"]) / sd, 0, atol=1e-4)
    np.testing.assert_allclose(result.error / sd, 1, atol=1e-4)


def test_a_torn_write_leaves_the_old_file(trained, training, tmp_path, monkeypatch):
    path = trained.save(tmp_path / "cannon.nc")
    before = path.read_bytes()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("bayeslabels.files.whole.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.save(path, overwrite=True)
    assert path.read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == ["cannon.nc"]


@contextlib.contextmanager
def changed(path):
    """A model file, open to be changed by one who then makes a new checksum."""
    content, _ = sealed.unsealed(path.read_bytes(), path, "")
    path.write_bytes(content)
    with h5py.File(path, "r+") as file:
        yield file
    path.write_bytes(sealed.sealed(path.read_bytes()))


@contextlib.contextmanager
def changed_model(path):
    with changed(path) as file:
        state = json.loads(file.attrs["model"])
        yield state["fields"]
        put(file, "model", json.dumps(state))


def put(file, name, value):
    del file.attrs[name]
    file.attrs[name] = value


def test_unknown_types_are_refused(trained, tmp_path):
    path = trained.save(tmp_path / "cannon.nc")
    with changed(path) as file:
        put(file, "model", file.attrs["model"].replace('"Cannon"', '"os.system"'))
    with pytest.raises(bl.BadInput, match=r"os\.system"):
        bl.load(path)


def test_a_newer_format_is_refused(trained, tmp_path):
    path = trained.save(tmp_path / "cannon.nc")
    with changed(path) as file:
        file.attrs["bayeslabels_format"] = 99
    with pytest.raises(bl.BadInput, match=r"99.*newer bayeslabels"):
        bl.load(path)


def test_a_damaged_file_is_refused_before_hdf5_sees_it(trained, tmp_path, monkeypatch):
    path = trained.save(tmp_path / "cannon.nc")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    monkeypatch.setattr(sealed.h5py, "File", None)
    for place in [0, len(whole) - 100, len(whole) - 2, *rng.integers(0, len(whole), 100).tolist()]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
        with pytest.raises(bl.BadInput, match="checksum"):
            bl.load(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(bl.BadInput, match="checksum"):
        bl.load(path)


def test_a_thousand_damages_are_all_noticed(trained, tmp_path):
    """Bits, bytes, blocks and lengths, any of several at once: the file is refused unless it is the same."""
    path = trained.save(tmp_path / "cannon.nc")
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    for i in range(1000):
        damaged, first = bytearray(whole), int(rng.integers(len(whole)))
        size = int(rng.integers(1, 3000))
        if i % 4 == 0:
            damaged[first : first + size] = bytes(size)
        elif i % 4 == 1:
            damaged[first : first + size] = whole[:size]
        elif i % 4 == 2:
            del damaged[first : first + size]
        for at in rng.integers(0, len(damaged), int(rng.integers(1, 5))):
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(bl.BadInput):
            bl.load(path)


def scrambled(file, rng):
    """Change something in an HDF5 file: an attribute, or the type, shape, numbers or name of a dataset."""
    names = []
    file.visit(names.append)
    x = file[names[rng.integers(len(names))]]
    values = ["", "x", -1, 2**62, np.nan, np.zeros(0), np.arange(5), b"\xff", np.array(["a", "b"], "S1")]
    value = values[rng.integers(len(values))]
    if rng.random() < 0.5:
        holder = file if rng.random() < 0.3 or not len(x.attrs) else x
        put(holder, list(holder.attrs)[rng.integers(len(holder.attrs))], value)
    elif isinstance(x, h5py.Dataset) and rng.random() < 0.7 and x.size:
        name, numbers = x.name, x[()]
        del file[name]
        file[name] = value if rng.random() < 0.5 else numbers.ravel()[: x.size // 2]
    else:
        del file[x.name]


@pytest.mark.slow
def test_changes_with_a_new_checksum_raise_nothing_else(trained, tmp_path):
    refused = 0
    for seed in range(300):
        path = trained.save(tmp_path / "cannon.nc", overwrite=True)
        with changed(path) as file:
            scrambled(file, np.random.default_rng(seed))
        try:
            assert isinstance(bl.load(path), bl.Posterior)
        except bl.BadInput:
            refused += 1
    assert refused > 100


def test_a_file_cut_short_or_emptied_is_refused(trained, tmp_path):
    path = trained.save(tmp_path / "cannon.nc")
    whole = path.read_bytes()
    for length in [0, 1, 8, 512, len(whole) // 2, len(whole) - 85, len(whole) - 84, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(bl.BadInput):
            bl.load(path)


def test_other_programs_changes_are_refused(trained, tmp_path):
    path = trained.save(tmp_path / "cannon.nc")
    with h5py.File(path, "r+") as file:
        file["moments/scatter"][...] *= 2
    with pytest.raises(bl.BadInput, match="checksum"):
        bl.load(path)


def link_out(file, other):
    del file["moments/scatter"]
    file["moments/scatter"] = h5py.ExternalLink(str(other), "/moments/scatter")


def link_within(file, other):
    del file["moments/scatter"]
    file["moments/scatter"] = h5py.SoftLink("/posterior/scatter")


def stored_outside(file, other):
    del file["moments/scatter"]
    file["moments"].create_dataset("scatter", (12,), "f8", external=[(str(other), 0, 96)])


def virtual(file, other):
    del file["moments/scatter"]
    layout = h5py.VirtualLayout((12,), "f8")
    layout[:] = h5py.VirtualSource(str(other), "moments/scatter", (12,))
    file["moments"].create_virtual_dataset("scatter", layout)


def unwritten(file, other):
    del file["moments/scatter"]
    file["moments"].create_dataset("scatter", (10**12,), "f8")


def in_a_circle(file, other):
    file["moments/again"] = file["/"]


@pytest.mark.parametrize("how", [link_out, link_within, stored_outside, virtual, unwritten, in_a_circle])
def test_a_file_has_all_in_it(trained, tmp_path, how):
    path, other = trained.save(tmp_path / "cannon.nc"), trained.save(tmp_path / "other.nc")
    with changed(path) as file:
        how(file, other)
    with pytest.raises(bl.BadInput, match=r"link|another file|no numbers|groups in groups"):
        bl.load(path)


DAMAGES = {
    "no notes": lambda f: f.attrs.__delitem__("info"),
    "notes that are a list": lambda f: put(f, "info", "[]"),
    "notes that are no JSON": lambda f: put(f, "info", "{"),
    "deep": lambda f: put(f, "model", "[" * 30_000),
    "no object": lambda f: put(f, "model", "{}"),
    "no model": lambda f: put(f, "model", '{"type": "Normal", "fields": {}}'),
    "format": lambda f: put(f, "bayeslabels_format", "one"),
    "no moments": lambda f: f.__delitem__("moments"),
    "a moment less": lambda f: f["moments"].__delitem__("scatter"),
    "a moment more": lambda f: f["moments"].move("scatter", "scutter"),
    "not finite": lambda f: f["moments/label_scatter"].__setitem__(0, np.nan),
    "no dimensions": lambda f: put(f["model"]["array_0"], "DIMENSION_LIST", np.arange(5)),
    "no pixel": lambda f: f["moments/coefficients"].__setitem__(..., np.nan),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_no_whole_model_is_refused(trained, tmp_path, name):
    path = trained.save(tmp_path / "cannon.nc")
    with changed(path) as file:
        DAMAGES[name](file)
    with pytest.raises(bl.BadInput):
        bl.load(path)


def frame(**changes):
    return lambda fields: fields["frame"]["fields"].update(changes)


INCONSISTENT = {
    "no frame": lambda fields: fields.update(frame=None),
    "pixels": frame(n_pixel=-3),
    "more pixels": frame(n_pixel=13, coordinate=None),
    "pixels as text": frame(n_pixel="12"),
    "labels": frame(names={"tuple": ["TEFF"]}),
    "no array": frame(scale={"array": "nope"}),
    "scale": frame(scale={"list": [1.0, 2.0]}),
    "order": lambda fields: fields.update(order=2),
    "unknown field": lambda fields: fields.update(x=1),
    "unhashable": lambda fields: fields.update(frame={"type": ["Frame"]}),
}


@pytest.mark.parametrize("name", INCONSISTENT)
def test_moments_must_fit_the_model(trained, tmp_path, name):
    path = trained.save(tmp_path / "cannon.nc")
    with changed_model(path) as fields:
        INCONSISTENT[name](fields)
    with pytest.raises(bl.BadInput):
        bl.load(path)


def test_weights_must_fit_the_network(tmp_path, simulated):
    stars = simulated.stars
    common = bl.Stars(labels=stars.labels, target_labels=stars.target_labels)
    model = bl.Translator(function="polynomial", order=1, scatter="constant", members=2)
    path = bl.fit(model, common, bl.MAP(max_iterations=20)).save(tmp_path / "translator.nc")
    assert bl.load(path).model == model
    with changed_model(path) as fields:
        fields["order"] = 2
    with pytest.raises(bl.BadInput, match="weight"):
        bl.load(path)


def test_saving_on_a_full_disk_is_an_error_that_the_process_survives(trained, tmp_path):
    resource = pytest.importorskip("resource")
    path = trained.save(tmp_path / "cannon.nc")
    whole = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 4096, len(whole) - 1):
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OSError, match=r"[Ff]ile too large"):
                trained.save(path, overwrite=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert [x.name for x in tmp_path.iterdir()] == ["cannon.nc"]
        assert path.read_bytes() == whole


def test_a_link_stays_and_its_target_is_replaced(trained, tmp_path):
    real, link = tmp_path / "big disk.nc", tmp_path / "cannon.nc"
    real.write_bytes(b"old")
    link.symlink_to(real)
    with pytest.raises(bl.BadInput, match="overwrite=True"):
        trained.save(link)
    trained.save(link, overwrite=True)
    assert link.is_symlink()
    assert bl.load(real).model == trained.model


def test_what_a_killed_process_left_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ours = re.search(r"part\d+(-\w+)", in_progress(tmp_path / "x.nc").name)[1]
    dead, alive = (tmp_path / f".x.part{process}{ours}.nc" for process in (ended.pid, os.getppid()))
    elsewhere, other = tmp_path / f".x.part{ended.pid}-elsewhere.nc", tmp_path / f".y.part{ended.pid}{ours}.nc"
    for path in (dead, alive, elsewhere, other):
        path.write_bytes(b"")
    files.write_bytes(b"1", tmp_path / "x.nc")
    assert not dead.exists()
    assert alive.exists()
    assert elsewhere.exists()
    assert other.exists()


def in_progress(path):
    with files.in_one_piece(path) as part:
        part.write_bytes(b"")
        return part


def test_a_lock_is_for_one_and_ends_with_it(tmp_path):
    code = "import sys, pathlib\nfrom bayeslabels.files.whole import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1]), 'x'):\n"
    path = tmp_path / "lock"
    held = [sys.executable, "-c", code + "    print('held', flush=True); input()", str(path)]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(bl.BadInput, match=f"process {child.pid} of"), files.locked(path, "the folder"):
            pass
        child.kill()
    with files.locked(path, "the folder"):
        assert str(os.getpid()) in path.read_text()
    assert not path.exists()


def test_no_pickle():
    forbidden = re.compile(r"\b(pickle|dill|joblib|marshal|shelve)\b|allow_pickle|\beval\(|\bexec\(")
    for path in PACKAGE.rglob("*.py"):
        assert not forbidden.search(path.read_text()), path
    assert not [x for x in DATA.iterdir() if x.suffix in (".pkl", ".pickle", ".npy", ".npz")]
