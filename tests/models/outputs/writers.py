"""Every writer of results at work: opens, writes a block, calls back, writes another. Run as a process, it waits there
to be killed or to be told to go on:

    python writers.py KIND TARGET
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from toy_bundles import IMAGE, SERIES, toy_bundle
from vaegis.models import inputs
from vaegis.models.calibration import decide
from vaegis.models.outputs.atomic import atomic_file, atomic_files, atomic_folder
from vaegis.models.outputs.event_file import EventFile
from vaegis.models.outputs.map_files import MapFiles
from vaegis.models.outputs.sample_files import sample_files
from vaegis.models.outputs.score_file import ScoreFile
from vaegis.models.scorer import Scorer

# What writes -> the name of what it writes.
FILES = {
    "file": "x.bin",
    "scores.parquet": "s.parquet",
    "scores.csv": "s.csv",
    "scores.jsonl": "s.jsonl",
    "events.parquet": "e.parquet",
    "events.csv": "e.csv",
    "events.jsonl": "e.jsonl",
    "samples.csv": "samples.csv",
    "samples.parquet": "samples.parquet",
    "samples.npz": "samples.npz",
}
FOLDERS = {"folder": "new", "files": "files", "maps": "maps", "maps.parquet": "maps", "samples": "samples"}


def verdicts_of(folder, spec, values):
    """The toy model of the spec, and its verdicts on the values with their maps."""
    bundle = toy_bundle(folder, spec)
    block = inputs.from_array(spec, values)
    return bundle, Scorer(bundle, "cpu").verdicts(block, decide(bundle.calibration, 0.05), maps=True)


def strange_series(rows=40):
    """A series whose flow leaps for four rows, and once more for the last three."""
    x = np.ones((rows, 2), np.float32)
    x[20:24, 1] = x[-3:, 1] = 40
    return x


def write(kind, target, halfway):
    """Writes a result of the kind, and calls `halfway` before it is whole."""
    images, series = np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1), strange_series()
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory()))
        name = kind.split(".")[0]
        if name == "file":
            file = stack.enter_context(atomic_file(target))
            steps = [lambda: file.write(b"new" * 100_000)] * 2
        elif name in ("folder", "files"):
            folder = stack.enter_context((atomic_folder if name == "folder" else atomic_files)(target))
            steps = [lambda n=n: (folder / n).write_bytes(b"new" * 1000) for n in "ab"]
        elif name == "samples":
            spec, values = (IMAGE, images) if kind == "samples" else (SERIES, series)
            files = stack.enter_context(sample_files(target, spec))
            names = [[f"{n}{i}" for i in range(len(values))] for n in "ab"]
            steps = [lambda n=n: files.write(values, n, np.arange(len(values))) for n in names]
        else:
            spec, values = (IMAGE, images) if kind == "maps" else (SERIES, series)
            bundle, verdicts = verdicts_of(work / "bundle", spec, values)
            opened = {
                "scores": lambda: ScoreFile(target, ["score", "reconstruction_error", "negative_elbo"]),
                "events": lambda: EventFile(target, spec),
                "maps": lambda: MapFiles(target, bundle),
            }
            file = stack.enter_context(opened[name]())
            steps = [lambda: file.write(verdicts)] * 2
        steps[0]()
        halfway()
        steps[1]()


def wait():
    print("halfway", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), wait)
    print("done", flush=True)
