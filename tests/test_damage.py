"""A thousand damages each of model files, checkpoints and catalogue parts: the same result, or `BadInput`.

Of bits and lengths, and of what stands in the files under checksums that were made anew. No other exception, none that
never ends, and no other file that is read. Twenty by default, a thousand with `-m slow`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import zipfile

import h5py
import numpy as np
import pytest
from test_catalog import SIZE, N, assert_same, in_memory, read, run, sky, write_parquet  # noqa: F401
from test_checkpoint import STATE, again, kept  # noqa: F401
from test_files import changed, put, scrambled

import bayeslabels as bl
from bayeslabels.catalogues.parts import DIGESTS, NOTES

TIMES = pytest.mark.parametrize("times", [20, pytest.param(1000, marks=pytest.mark.slow)])
LONGEST = 120
"""Seconds."""
ODD = [None, "", "x", -1, 0, 1.5, 2**70, True, [], {}, [[[]]], {"array": "x"}, {"type": "Cannon"}, "\ud800", "a" * 9999]


@contextlib.contextmanager
def ending(seconds=LONGEST):
    """Fail where the body does not end."""

    def late(*_):
        raise AssertionError("it does not end")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(content, rng):
    """Bits, blocks and lengths."""
    out, at, size = bytearray(content), int(rng.integers(len(content))), int(rng.integers(1, 400))
    how = rng.integers(6)
    if how == 0:
        out[at : at + size] = bytes(size)
    elif how == 1:
        del out[at : at + size]
    elif how == 2:
        del out[at:]
    elif how == 3:
        out[at:at] = rng.bytes(size)
    elif how == 4:
        out += content[:size]
    for _ in range(int(rng.integers(0 if how < 5 else 1, 4))):
        if out:
            out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def other(tree, rng):
    """A value of JSON with another value somewhere inside."""
    if isinstance(tree, dict | list) and tree and rng.random() < 0.85:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = keys[rng.integers(len(keys))]
        out = dict(tree) if isinstance(tree, dict) else list(tree)
        how = rng.random()
        if how < 0.1:
            del out[key]
        elif how < 0.15 and isinstance(out, dict):
            out["more"] = out[key]
        else:
            out[key] = other(tree[key], rng)
        return out
    return ODD[rng.integers(len(ODD))]


def elsewhere(file, rng, secret):
    """A dataset that is in another file."""
    names = []
    file.visit(lambda x: names.append(x) if isinstance(file[x], h5py.Dataset) and file[x].dtype.kind == "f" else None)
    name = names[rng.integers(len(names))]
    shape = file[name].shape
    del file[name]
    how = rng.integers(3)
    if how == 0:
        file[name] = h5py.ExternalLink(str(secret), name)
    elif how == 1:
        file.create_dataset(name, shape, "f8", external=[(str(secret), 0, 8 * max(int(np.prod(shape)), 1))])
    else:
        layout = h5py.VirtualLayout(shape, "f8")
        if shape:
            layout[:] = h5py.VirtualSource(str(secret), name, shape)
        file.create_virtual_dataset(name, layout)


@TIMES
def test_model_files(trained, spectra, tmp_path, times):
    path, secret = trained.save(tmp_path / "m.nc"), tmp_path / "secret"
    os.mkfifo(secret)  # who opens it waits for ever
    whole, rng, loaded = path.read_bytes(), np.random.default_rng(0), 0
    for i in range(times):
        path.write_bytes(whole)
        if i % 4 == 0:
            path.write_bytes(damaged(whole, rng))
        else:
            with changed(path) as file:
                if i % 4 == 1:
                    scrambled(file, rng)
                elif i % 4 == 2:
                    name = ["model", "info"][rng.integers(2)]
                    put(file, name, json.dumps(other(json.loads(file.attrs[name]), rng)))
                else:
                    elsewhere(file, rng, secret)
        with ending(), contextlib.suppress(bl.BadInput):
            found = bl.load(path)
            assert i % 4 in (1, 2) or path.read_bytes() == whole
            assert isinstance(found, bl.Posterior)
            loaded += 1
            if found.model == trained.model and loaded < 20:  # notes that others have changed do no harm
                with contextlib.suppress(bl.BadInput):
                    assert len(bl.infer(found, spectra[:3], bl.MAP())) == 3
    assert loaded < 0.4 * times


@TIMES
def test_checkpoints(kept, times):  # noqa: F811
    """The state that was written, the one before, or a refusal; where both are damaged a new beginning, in words."""
    whole, rng = kept.path.read_bytes(), np.random.default_rng(0)
    for i in range(times):
        if i % 2:
            kept.path.write_bytes(damaged(whole, rng))
        else:
            rezipped(kept.path, whole, rng)
        with ending(), contextlib.suppress(bl.BadInput):
            found = again(kept)
            assert found.place in ((1,), (2,))
            np.testing.assert_array_equal(found.restore(STATE)["n"], np.full(3, found.place[0]))
            np.testing.assert_array_equal(found.restore(STATE)["x"], STATE["x"])


def rezipped(path, whole, rng):
    """A sound archive with an array of another kind, of other numbers, with other notes, or without one."""
    path.write_bytes(whole)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    name = list(arrays)[rng.integers(len(arrays))]
    x, how = arrays[name], rng.integers(6)
    if how == 0:
        del arrays[name]
    elif how == 1:
        arrays["more"] = x
    elif x.dtype.kind == "U":
        arrays[name] = np.array(json.dumps(other(json.loads(str(x)), rng)))
    elif how == 2:
        arrays[name] = x.ravel()[: x.size // 2]
    elif how == 3:
        arrays[name] = x.astype(["f4", "U8", "?", "c16"][rng.integers(4)])
    elif how == 4:
        arrays[name] = x + 1
    else:
        arrays[name] = np.full((2, 2), np.nan)
    np.savez(path, **arrays)
    if how == 5:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00")


@TIMES
def test_parts(sky, in_memory, run, tmp_path, times):  # noqa: F811
    """Parts, digests and notes: what is damaged is made again, and the catalogue is the same, or refused."""
    source, out, rng = write_parquet(sky, tmp_path / "in.parquet"), tmp_path / "out", np.random.default_rng(0)
    run(source)
    shutil.copytree(out, tmp_path / "whole")
    names = sorted(x.name for x in (tmp_path / "whole").iterdir())
    refused = 0
    for i in range(times):
        for name in names:
            if not (out / name).is_file() or (out / name).read_bytes() != (tmp_path / "whole" / name).read_bytes():
                shutil.copy(tmp_path / "whole" / name, out / name)
        name = names[rng.integers(len(names))]
        if i % 5 == 0:
            (out / name).write_bytes((out / names[rng.integers(len(names))]).read_bytes())
        elif i % 5 == 1:
            (out / name).unlink()
        elif i % 5 == 2 and name == NOTES:
            (out / name).write_text(json.dumps(other(json.loads((out / name).read_text()), rng)))
        else:
            (out / name).write_bytes(damaged((out / name).read_bytes(), rng))
        try:
            with ending():
                run(source)
        except bl.BadInput:
            refused += 1
            continue
        assert_same(read(out), in_memory)
    assert (out / DIGESTS).is_file()
    assert refused < 0.5 * times
