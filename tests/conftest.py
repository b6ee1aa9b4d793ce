"""What several test files share: a small set of rendered faces, a door opened in this process, and one trained run."""

import copy
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
import facelab  # noqa: F401  before OpenCV, which it tells how large a photo may be
import cv2

# isort: on
import pytest

# Before torch is imported anywhere: tests are small, and several processes share the machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("WANDB_SILENT", "true")
cv2.setNumThreads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell that starts the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # as for a door, so that Hydra finds the sweeper, and a copy of the project tests itself
NOW = "now"
"""The time that the doors are told."""
PLAIN = (
    "logger=csv",
    *(f"callbacks.{name}=null" for name in ("progress", "face_grid", "worst_faces", "charts")),
)
"""A run that draws nothing, but can go on."""


def open_door(name: str, *words: object, folder: Path) -> None:
    """Type a command in a folder, in this process, which spares the seconds of importing torch.

    Raises:
        SystemExit: as the command does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        patch.setenv("FACELAB_STAMP", NOW)
        patch.setenv("FACELAB_CACHE", os.environ["FACELAB_TEST_CACHE"])
        patch.delenv("WANDB_MODE", raising=False)  # Lightning's offline logger sets it for the whole process
        patch.setenv("FACELAB_RESUMED", "")  # so that it is as before afterwards
        patch.delenv("FACELAB_RESUMED")
        patch.chdir(folder)
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")


def start_door(
    name: str, *words: object, folder: Path, log: Path, root: Path = ROOT, **environment: str
) -> "subprocess.Popen[bytes]":
    """Type a command in a folder, in a process and a process group of its own, which can be killed.

    Args:
        name: of the door.
        words: that are typed.
        folder: in which they are typed.
        log: what the process prints is added to this file.
        root: of the project.
        environment: further variables.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "FACELAB_", "SLURM_"))}
    kept |= {"FACELAB_CACHE": os.environ["FACELAB_TEST_CACHE"], "WANDB_SILENT": "true", **environment}
    line = [sys.executable, str(root / f"{name}.py"), *map(str, words)]
    with log.open("ab") as file:
        return subprocess.Popen(line, cwd=folder, env=kept, stdout=file, stderr=file, start_new_session=True)


def members(group: int) -> list[int]:
    """Return the processes of a process group that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            state, _, its_group = stat.read_text().rpartition(") ")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


def face_data(*folder: str) -> Path:
    """A folder of real data; the test that asks for one that is not there is skipped, and says which.

    Args:
        folder: where it lies in the folder that the environment variable FACE_DATA names.
    """
    if not (root := os.environ.get("FACE_DATA")):
        pytest.skip("FACE_DATA is not set")
    path = Path(root, *folder).resolve()
    if not path.is_dir():
        pytest.skip(f"FACE_DATA has no {'/'.join(folder)}")
    return path


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where rendered faces are kept during the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_TEST_CACHE", str(folder))
        patch.delenv("WANDB_API_KEY", raising=False)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def files_of_conf() -> Iterator[None]:
    """Parse each file of conf/ once, and compose once for a door: Hydra parses thirty files and composes twice.

    Doors in processes of their own do it as Hydra does.
    """
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.hydra import Hydra

    original, known = FileConfigSource.load_config, {}

    def load_config(self: FileConfigSource, config_path: str) -> Any:
        file = Path(self.path, config_path).with_suffix(".yaml")
        if not file.is_file():
            return original(self, config_path)
        key = (self.provider, self.path, config_path, file.stat().st_mtime_ns, file.stat().st_size)
        if key not in known:
            known[key] = original(self, config_path)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileConfigSource, "load_config", load_config)
        patch.setattr(
            Hydra, "get_mode", lambda *_, **__: None
        )  # it composes for `hydra.mode` alone, which nothing here sets
        yield


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos that are gone are not waited for in seconds."""
    monkeypatch.setattr("datamodules.landmark.RETRY_AFTER", (0.01,))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: three epochs, all loggers."""
    from composing import small  # not before it is needed: it imports Hydra and torch

    folder = tmp_path_factory.mktemp("trained")
    open_door("train", *small("pipnet"), "trainer.max_epochs=3", "hydra.run.dir=run", folder=folder)
    return folder / "run"
