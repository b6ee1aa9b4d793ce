"""Fixtures and helpers of several test files: a cache of rendered faces, doors in this process, and a trained run."""

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

# isort: off
import facelab  # noqa: F401  before OpenCV, whose limit on the size of a photo it sets
import cv2

# isort: on
import pytest

from facelab.metrics.record import Metric, read_metrics

# Set before any import of torch: tests are small, and several processes share the machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # a second thread of torch otherwise waits in a loop that fills a core
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("WANDB_SILENT", "true")
cv2.setNumThreads(1)
# With its default thresholds the garbage collector takes a fifth of the time: configurations are full of cycles.
gc.set_threshold(100_000, 50, 50)
START = str(Path(__file__).parent / "start")  # the same in the processes that the tests start
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [START, os.environ.get("PYTHONPATH")]))
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell that starts the tests in the background ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # as for a door: Hydra then finds the sweeper, and a copy of the project tests itself
NOW = "now"
"""Stamp of the runs that the doors start."""
PLAIN = (
    "logger=csv",
    *(f"callbacks.{name}=null" for name in ("progress", "face_grid", "worst_faces", "charts")),
)
"""Overrides of a run without pictures that can be resumed."""


def pytest_collection_finish() -> None:
    """Exempt the imported modules from garbage collection."""
    gc.freeze()
    # Collect them at the end again; a library of torch reports what it finds left. Not before pytest has ended, which
    # collects five times.
    atexit.register(gc.unfreeze)


def metrics_of(run: Path) -> dict[str, Metric]:
    """Read the records of a run's metrics.json."""
    return read_metrics(json.loads((run / "metrics.json").read_text()))


def open_door(name: str, *words: object, folder: Path) -> None:
    """Run a door in a folder, in this process, which saves the seconds of importing torch.

    Args:
        name: of the door.
        words: command line arguments.
        folder: working folder.

    Raises:
        SystemExit: as the door does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        patch.setenv("FACELAB_STAMP", NOW)
        patch.setenv("FACELAB_CACHE", os.environ["FACELAB_TEST_CACHE"])
        patch.delenv("WANDB_MODE", raising=False)  # Lightning's offline logger sets it for the whole process
        patch.setenv("FACELAB_RESUMED", "")  # setenv first, so that the patch restores the variable
        patch.delenv("FACELAB_RESUMED")
        patch.chdir(folder)
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")


def start_door(
    name: str, *words: object, folder: Path, log: Path, root: Path = ROOT, **environment: str
) -> "subprocess.Popen[bytes]":
    """Start a door in a folder, in a new process and process group, which a test can kill.

    Args:
        name: of the door.
        words: command line arguments.
        folder: working folder.
        log: file to which stdout and stderr of the process are appended.
        root: of the project.
        environment: further variables.
    """
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "FACELAB_", "SLURM_"))
    }
    variables |= {"FACELAB_CACHE": os.environ["FACELAB_TEST_CACHE"], "WANDB_SILENT": "true", **environment}
    line = [sys.executable, str(root / f"{name}.py"), *map(str, words)]
    with log.open("ab") as file:
        return subprocess.Popen(line, cwd=folder, env=variables, stdout=file, stderr=file, start_new_session=True)


def members(group: int) -> list[int]:
    """Return the live processes of a process group."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended
            state, _, its_group = stat.read_text().rpartition(") ")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                pids.append(int(stat.parent.name))
    return pids


def face_data(*folder: str) -> Path:
    """Return a folder of real data, or skip the test with a reason if it does not exist.

    Args:
        folder: path within the folder that the environment variable FACE_DATA names.
    """
    if not (root := os.environ.get("FACE_DATA")):
        pytest.skip("FACE_DATA is not set")
    path = Path(root, *folder).resolve()
    if not path.is_dir():
        pytest.skip(f"FACE_DATA has no {'/'.join(folder)}")
    return path


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Create the folder in which the tests cache rendered faces."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_TEST_CACHE", str(folder))
        patch.delenv("WANDB_API_KEY", raising=False)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def hydra_caches() -> Iterator[None]:
    """Compose configurations with the caches of :mod:`warm_hydra`."""
    from warm_hydra import warm_hydra  # imported late: it imports Hydra

    with warm_hydra():
        yield


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the seconds before a missing photo is read again."""
    monkeypatch.setattr("datamodules.reading.RETRY_AFTER", (0.01,))


@pytest.fixture(scope="session", autouse=True)
def displacements() -> Iterator[None]:
    """Measure the displacement by a transform of the default augmentation once, not for every network that is built."""
    from datamodules import augmentation  # imported late: it imports OpenCV

    measure, measured = augmentation.displacement, {}

    def measure_once(transform: Any) -> float:
        if not type(transform).__module__.startswith("albumentations."):  # a test may change its own transform
            return measure(transform)
        key = repr(transform)
        if key not in measured:
            measured[key] = measure(transform)
        return measured[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "displacement", measure_once)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of three epochs with all loggers; return its folder."""
    from composing import small  # imported late: it imports Hydra and torch

    folder = tmp_path_factory.mktemp("trained")
    open_door("train", *small("pipnet"), "trainer.max_epochs=3", "hydra.run.dir=run", folder=folder)
    return folder / "run"
