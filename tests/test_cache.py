"""Compiled programs are kept for the next process, in one folder of bounded size, and in nobody's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compilation_cache
from jax._src.config import persistent_cache_min_compile_time_secs

from bayeslabels import cache
from bayeslabels.numerics.linalg import in_float64

LEAST_TIME = 3.0
"""Seconds: what compiles faster is not kept outside of this package, in these tests."""
COUNTED = """
import json, os, sys
import jax
import numpy as np
import bayeslabels as bl

seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name.split("/")[-1]))
u = np.random.default_rng(0).normal(size=(40, 2))
stars = bl.Stars(labels=bl.Block(u, 0.1), flux=bl.Block(1 + u @ np.full((2, 12), 0.05), 0.01))
model = bl.Cannon(order=1, label_noise=False)
for setting in sys.argv[2:]:
    os.environ[sys.argv[1]] = setting
    jax.clear_caches()
    seen.clear()
    found = bl.fit(model, stars).moments.coefficients
    kept, compiled = seen.count("cache_hits"), seen.count("cache_misses")
    jax.jit(lambda x: jax.numpy.sin(x) + 1234.5)(1.0).block_until_ready()
    own = jax.config.jax_compilation_cache_dir
    print(json.dumps([kept, compiled, seen.count("cache_misses"), float(found.sum()), own]))
"""


def started(*settings: str, **more: str) -> subprocess.Popen:
    """A process that trains a model with the switch at one setting after the other, each as if it were the first."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    command = [sys.executable, "-W", "error::UserWarning", "-c", COUNTED, cache.SWITCH, *settings]
    return subprocess.Popen(command, env=variables | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> list[list]:
    """What it counted at each setting."""
    said, problems = process.communicate(timeout=300)
    assert (process.returncode, problems) == (0, "")
    return [json.loads(line) for line in said.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of a process that found it empty, and of another at the same time."""
    path = tmp_path_factory.mktemp("cache") / "programs of mine"
    for process in [started(str(path)), started(str(path))]:
        ((kept, compiled, after, *_),) = ended(process)
        assert compiled + kept > 2
        assert after == compiled  # what the user compiles is not kept
    return path


@pytest.mark.long
def test_others_compile_nothing_or_without_the_folder(folder, tmp_path):
    """A second process takes what is kept. No programs are kept where that is off, or the folder cannot be written, and
    the user's own cache is used where there is one: without a word, and the same is found."""
    before = sorted(x.name for x in folder.rglob("*"))
    (tmp_path / "file").write_text("")
    (tmp_path / "home").mkdir()
    own = str(tmp_path / "own")
    home = {"XDG_CACHE_HOME": str(tmp_path / "home"), "HOME": str(tmp_path / "home")}
    others = started("off", str(tmp_path / "file" / "below"), **home)
    by_user = started(str(tmp_path / "unused"), JAX_COMPILATION_CACHE_DIR=own)
    ((kept, compiled, _, expected, _),) = ended(started(str(folder)))
    assert kept > 2
    assert compiled == 0
    assert sorted(x.name for x in folder.rglob("*")) == before
    for name, (kept, compiled, _, found, setting) in zip(
        ("off", "unwritable", "own"), [*ended(others), *ended(by_user)], strict=True
    ):
        assert kept == 0
        assert found == expected
        assert setting == (own if name == "own" else None)
        assert compiled == 0 or name != "off"
    assert not list((tmp_path / "home").rglob("bayeslabels*"))
    assert not (tmp_path / "unused").exists()


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """The cache's folder, in a process that JAX has been lent none, unlike that of the tests."""
    monkeypatch.setattr(compilation_cache, "_cache", None)
    monkeypatch.setenv(cache.SWITCH, str(tmp_path / "cache"))
    with persistent_cache_min_compile_time_secs(LEAST_TIME):
        yield cache.folder_of(str(tmp_path / "cache"))


def compiled_anew(number: float) -> float:
    return float(jax.jit(lambda x: jnp.cos(x) + number)(1.0))


def test_threads_come_and_go(bare):
    """Only what is compiled inside is kept, and JAX is as it was when the last thread has left."""
    inside, leave = threading.Event(), threading.Event()

    @in_float64
    def other():
        inside.set()
        leave.wait(60)
        compiled_anew(0.25)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(60)
    compiled_anew(0.5)  # outside, while another thread is inside
    assert not list(bare.root.rglob("programs-*/*"))
    in_float64(compiled_anew)(0.75)
    assert compilation_cache._cache is bare
    n = len(list(bare.root.rglob("programs-*/*")))
    leave.set()
    thread.join(60)
    assert len(list(bare.root.rglob("programs-*/*"))) > n
    assert compilation_cache._cache is None
    assert jax.config.jax_persistent_cache_min_compile_time_secs == LEAST_TIME


def test_another_cache_is_left_in_place(bare, monkeypatch):
    of_user = object()
    monkeypatch.setattr(compilation_cache, "_cache", of_user)
    with cache.in_use():
        assert compilation_cache._cache is of_user
    assert compilation_cache._cache is of_user


def test_a_damaged_program_is_replaced(bare):
    with bare.lent():
        bare.put("a", b"program")
        file = next(bare.root.rglob("programs-*/*"))
        file.write_bytes(file.read_bytes()[:-1])
        assert bare.get("a") is None
        bare.put("a", b"program")
        assert bare.get("a") == b"program"
    assert bare.get("a") is None  # outside


def test_a_full_disk_is_asked_once(bare, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    with bare.lent():
        bare.put("a", b"program")
        assert bare.broken
        monkeypatch.undo()
        bare.put("b", b"program")
        assert (bare.get("a"), bare.get("b")) == (None, None)
    assert not list(bare.root.rglob("programs-*/*"))


def test_the_oldest_programs_make_room(tmp_path):
    folder = tmp_path / "programs-x"
    folder.mkdir()
    (tmp_path / "precious").write_bytes(b"0" * 1000)
    for i in np.random.default_rng(0).permutation(10):
        (folder / str(i)).write_bytes(b"0" * 100)
        os.utime(folder / str(i), (i, i))
    cache.prune(tmp_path, 450)
    assert sorted(x.name for x in folder.iterdir()) == ["6", "7", "8", "9"]
    assert (tmp_path / "precious").exists()


def test_the_tests_share_one_folder(request):
    """Whatever the worker: that of the environment, else of pytest's own cache."""
    folder = cache.folder_of(os.environ[cache.SWITCH]) if os.environ[cache.SWITCH] != "off" else None
    assert compilation_cache._cache is folder
    assert jax.config.jax_compilation_cache_dir is None
