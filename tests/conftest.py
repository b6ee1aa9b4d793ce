"""What several test files share: a small set of rendered faces, a door opened in this process, and one trained run."""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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
SMALL_FACES = ("data=synthetic68", "data.train=16", "data.val=6", "data.test=8", "data.size=96")
SMALL = {
    "backbone": ("backbone=timm", "backbone.name=test_resnet", "backbone.pretrained=false"),
    "crop": ("crop.size=64",),
    "coder": ("coder.stride=32",),
    "datamodule": ("datamodule.batch_size=4", "datamodule.num_workers=0"),
}
"""Part of a method -> what makes it small enough for a test."""
SMALL_OWN: dict[str, dict[str, tuple[str, ...]]] = {
    "pfld": {"backbone": ("backbone=pfld", "backbone.width=0.25"), "coder": (), "pose": ("pose=shared",)},
    "hrnet": {
        "backbone": (
            "backbone.width=4",
            "backbone.modules=[1,1,1]",
            "backbone.pretrained=false",
            "backbone.norm_momentum=0.1",
        ),
        "head": ("head.norm_momentum=0.1",),
        "coder": (),
    },
}
"""The same where a method has other parts."""
NOW = "now"
"""The time that the doors are told."""
PLAIN = (
    "logger=csv",
    *(f"callbacks.{name}=null" for name in ("progress", "face_grid", "worst_faces", "charts")),
)
"""A run that draws nothing, but can go on."""


def options(group: str) -> list[str]:
    """Options of a config group, from the files."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def groups_of(model: str) -> set[str]:
    """The config groups that a model file brings."""
    lines = (ROOT / "conf" / "model" / f"{model}.yaml").read_text().splitlines()
    return {line.split("/")[1].partition(":")[0] for line in lines if line.startswith("  - /")}


def small(model: str) -> list[str]:
    """What to type to train a method on few small faces with small parts."""
    parts, words = groups_of(model), SMALL | SMALL_OWN.get(model, {})
    return [f"model={model}", *SMALL_FACES, *(word for part in words if part in parts for word in words[part])]


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


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos that are gone are not waited for in seconds."""
    monkeypatch.setattr("datamodules.landmark.RETRY_AFTER", (0.01,))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: three epochs, all loggers."""
    folder = tmp_path_factory.mktemp("trained")
    open_door("train", *small("pipnet"), "trainer.max_epochs=3", "hydra.run.dir=run", folder=folder)
    return folder / "run"
