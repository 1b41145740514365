"""Work that is killed at any moment, again and again, ends with the numbers of work that nothing disturbed, to the bit.

One process imports the package and forks a child for every run (JAX has not begun in it), so that a run takes a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from test_catalog import COLUMNS, assert_same, read, sky, write_parquet  # noqa: F401
from test_training_stream import table

import bayeslabels as bl
from bayeslabels.catalogues.parts import DIGESTS, NOTES

pytestmark = pytest.mark.long

pytest.importorskip("pyarrow")

SCRIPT = """
import importlib, json, os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
how = json.loads(sys.argv[2])
import bayeslabels as bl
from bayeslabels import cli, commands, infer_catalog
import pyarrow.parquet, test_training_stream as training
training.batches_.BLOCK = 200

def work(out):
    if how["what"] == "inference":
        infer_catalog(bl.load(how["model"]), how["source"], out, columns=how["columns"], batch_size=2, seed=3,
                      progress=False)
        return
    inference = bl.MAP(max_iterations=6, batch_size=100)
    fitted = bl.fit(training.MODEL, how["source"], inference, columns=training.NAMES, seed=1, progress=False,
                    checkpoint=out + ".npz", every=0)
    fitted.save(out + ".nc", overwrite=True)

def run(out, delay=None):
    begin, child = time.monotonic(), os.fork()
    if child == 0:
        try:
            work(out)
        except BaseException:
            import traceback; traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    ended = os.waitpid(child, 0)[1]
    return ended, time.monotonic() - begin

assert run(how["whole"])[0] == 0  # which compiles what other tests have not, and keeps it
ended, longest = run(how["whole"] + "2")
assert ended == 0
rng, killed, finished = random.Random(how["seed"]), 0, 0
while killed < how["times"]:
    ended, took = run(how["out"], rng.uniform(0.1, 1.0) * longest)
    if os.WIFSIGNALED(ended):
        killed += 1
        longest *= 1.03  # of a machine that has become slower: until a run ends before its kill
        print(killed, "killed", file=sys.stderr, flush=True)
        continue
    assert ended == 0, ended
    finished, longest = finished + 1, took  # begin anew, so that every kill meets work
    os.rename(how["done"], how["done"] + str(finished)) if how["what"] == "inference" else os.unlink(how["done"])
    if how["what"] == "training":
        for name in (".npz", ".previous.npz"):
            if os.path.exists(how["out"] + name):
                os.unlink(how["out"] + name)
assert run(how["out"])[0] == 0
print(json.dumps({"killed": killed, "finished": finished, "longest": longest}))
"""


def killed(tmp_path, times, **how):
    """The numbers of kills and of runs that were faster."""
    how |= {"times": times, "seed": times, "whole": str(tmp_path / "whole"), "out": str(tmp_path / "out")}
    how["done"] = how["out"] + (".nc" if how["what"] == "training" else "")
    root = os.path.dirname(os.path.dirname(bl.__file__))
    environment = os.environ | {"PYTHONPATH": root}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, os.path.dirname(__file__), json.dumps(how)]
    log = tmp_path / "log"
    with open(log, "w") as file:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=file, text=True, timeout=7200)
    assert done.returncode == 0, log.read_text()[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["killed"] == times
    return told


@pytest.mark.parametrize("times", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_streamed_inference(sky, trained, tmp_path, times):  # noqa: F811
    source = write_parquet(sky, tmp_path / "in.parquet")
    model = trained.save(tmp_path / "m.nc")
    told = killed(tmp_path, times, what="inference", model=str(model), source=str(source), columns=COLUMNS)
    for name in ("out", *(f"out{i + 1}" for i in range(told["finished"]))):
        assert_same(read(tmp_path / name), read(tmp_path / "whole"))
        assert {x.name for x in (tmp_path / name).iterdir() if x.suffix != ".parquet"} == {NOTES, DIGESTS}


@pytest.mark.slow
def test_training_with_checkpoints(tmp_path):
    """Of one kill: `test_training_stream`, `test_training_sums`."""
    source = write_parquet(table(300), tmp_path / "in.parquet", group=90)
    killed(tmp_path, 100, what="training", source=str(source))
    again, whole = (bl.load(tmp_path / f"{name}.nc").moments._asdict() for name in ("out", "whole"))
    for name, x in whole.items():
        np.testing.assert_array_equal(again[name], x)
    left = {x.name for x in tmp_path.iterdir() if x.name.startswith((".out", "out"))}
    assert left <= {"out.nc", "out.npz", "out.previous.npz"}
