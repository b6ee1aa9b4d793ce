"""Test of the resume: a run that is killed at random times and resumed must equal an uninterrupted run.

    python scripts/kills.py --kills 40 --seed 0
    python scripts/kills.py --kinds ddp --methods pfld --kills 5

A case is a kind of run (one process, a sweep, two ranks) with a method, on a few rendered faces. Its first run is not
killed: it is the reference, and its duration limits the random times. Each other run is killed by a signal at a random
time after its folder exists, resumed, and possibly killed again, until it ends. The kills are distributed over the
cases, and within a case over the signals.

The script prints one line per kill: the case, the signal, the seconds from the start to the signal, the state in the
folder (for a sweep, of each job), and the seconds from the signal until no process of the group was left. It prints one
line per finished run: whether its files are identical to those of the reference. The exit status is 1 if any differs.
"""

import argparse
import csv
import filecmp
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from endings import members  # a script in the same folder

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from facelab.run_folder import RunFolder, read_status  # noqa: E402

ARGUMENTS = (
    *("data=synthetic68", "data.train=24", "data.val=6", "data.test=8", "data.size=96", "crop.size=64"),
    *("datamodule.batch_size=4", "datamodule.num_workers=2", "trainer.log_every_n_steps=3", "logger=csv"),
    *("callbacks.resume.minutes=0.005", "callbacks.progress=null", "callbacks.charts=null"),
    "trainer.enable_progress_bar=false",
)
METHODS = {
    "pipnet": (
        *("model=pipnet", "backbone=timm", "backbone.name=test_resnet", "backbone.pretrained=false"),
        *("coder.stride=32", "trainer.max_epochs=40"),
    ),
    "pfld": ("model=pfld", "backbone=pfld", "backbone.width=0.25", "trainer.max_epochs=40"),
}
KINDS = {
    "single": ("hydra.run.dir=run",),
    "sweep": ("-m", "seed=1,2", "hydra.sweep.dir=run", "trainer.max_epochs=20"),
    "ddp": ("trainer=ddp_cpu", "hydra.run.dir=run"),
}
WAYS = {
    "SIGKILL one": (os.kill, signal.SIGKILL),
    "SIGKILL all": (os.killpg, signal.SIGKILL),
    "SIGTERM": (os.killpg, signal.SIGTERM),
    "SIGUSR2": (os.killpg, signal.SIGUSR2),
    "Ctrl-C": (os.killpg, signal.SIGINT),
}
"""Name of a kill to the function that sends it, to the first process or to its group, and the signal."""
PATIENCE = 30.0
"""Seconds after a kill within which all processes of the group must end."""


class Case(NamedTuple):
    """A kind of run with a method."""

    kind: str
    method: str

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return the arguments of train.py that start the run."""
        return (*ARGUMENTS, *METHODS[self.method], *KINDS[self.kind])

    def next_arguments(self, folder: Path) -> tuple[str, ...]:
        """Return the arguments after a kill: those of a resume, or those of the start if there is nothing to resume."""
        run = RunFolder(folder / "run")
        if not (run.sweep if self.kind == "sweep" else run.overrides).is_file():
            return self.arguments
        return ("-m", "resume=run") if self.kind == "sweep" else ("resume=run",)

    def runs(self, folder: Path) -> list[RunFolder]:
        """Return the folder of the run, or the folders of the jobs of a sweep."""
        run = RunFolder(folder / "run")
        return [run.job(0), run.job(1)] if self.kind == "sweep" else [run]


class Reference(NamedTuple):
    """The run of a case that is not killed."""

    folder: Path
    begun: float  # seconds from the start until the folder of the run existed
    whole: float  # seconds from the start until the end


class Door:
    """A process of train.py in a separate process group, with its output in a log file.

    Args:
        folder: working directory.
        arguments: arguments of the command line.
    """

    def __init__(self, folder: Path, arguments: tuple[str, ...]) -> None:
        self.log = folder / f"log_{len(list(folder.glob('log_*')))}"
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "FACELAB_", "SLURM_"))
        }
        environment |= {
            "FACELAB_CACHE": str(folder.parent / "cache"),
            "OMP_NUM_THREADS": "1",
            "NO_ALBUMENTATIONS_UPDATE": "1",
        }
        line = [sys.executable, str(ROOT / "train.py"), *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                line, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.start

    @property
    def has_traceback(self) -> bool:
        """Return whether the log contains a traceback."""
        return "Traceback" in self.log.read_text(errors="replace")

    def ends(self, within: float) -> bool:
        """Wait at most ``within`` seconds for all processes of the group to end; return whether they have ended."""
        until = time.monotonic() + within
        while self.process.poll() is None or members(self.process.pid):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def clear(self) -> None:
        """Kill the processes that did not end."""
        for pid in members(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def fault(self, within: float) -> str:
        """Wait for the end of a run without a kill; return a description of its fault, empty if it has none."""
        if not self.ends(within):
            self.clear()
            return f"did not end within {within:.0f} s"
        if self.process.returncode:
            return f"exit {self.process.returncode}"
        return "a traceback in the log" if self.has_traceback else ""


def differences(run: RunFolder, reference: RunFolder) -> Iterator[str]:
    """Yield the differences between a resumed run and the reference."""
    if (state := read_status(run.path).state) != "finished":
        yield f"status.json: {state}"
    for name in sorted(files(run) ^ files(reference)):
        yield f"{name}: exists in only one of the two"
    if files(run) >= files(reference):
        yield from differing("metrics.json", *(json.loads(each.metrics.read_text()) for each in (run, reference)))
        yield from differing("metrics.csv", *(dict(enumerate(rows(each))) for each in (run, reference)))
        for name in ("last", "best"):
            yield from differing(f"{name}.ckpt", *(weights(each, name) for each in (run, reference)))
    exact = [name for name in files(run) & files(reference) if name == "faces.csv" or name.startswith("samples/")]
    for name in sorted(exact):
        if not filecmp.cmp(run.path / name, reference.path / name, shallow=False):
            yield f"{name}: other bytes"


def files(run: RunFolder) -> set[str]:
    """List the files of a run, including those that a kill may have left over."""
    return {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}


def rows(run: RunFolder) -> list[dict[str, str]]:
    """Read metrics.csv without the columns of times."""
    with run.curves.open(newline="") as file:
        return [{key: value for key, value in row.items() if "time" not in key} for row in csv.DictReader(file)]


def weights(run: RunFolder, name: str) -> dict[str, Any]:
    """Read the weights and statistics of a checkpoint."""
    return torch.load(run.checkpoint(name), weights_only=True)["state_dict"]


def differing(file: str, one: dict[Any, Any], other: dict[Any, Any]) -> Iterator[str]:
    """Yield the entries in which two mappings differ, except the name of the run."""
    for key in one | other:
        a, b = one.get(key), other.get(key)
        tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        if key != "name" and not (torch.equal(a, b) if tensors else type(a) is type(b) and a == b):
            yield f"{file}: {key}" if tensors else f"{file}: {key}: {str(a)[:60]} instead of {str(b)[:60]}"


def refer(case: Case, folder: Path) -> Reference:
    """Train the reference run.

    Raises:
        SystemExit: the run has a fault and cannot be the reference.
    """
    folder.mkdir()
    door, begun = Door(folder, case.arguments), None
    while door.process.poll() is None and begun is None:
        begun = door.seconds if (folder / "run").is_dir() else None
        time.sleep(0.02)
    if fault := door.fault(600):
        raise SystemExit(f"{case.kind} {case.method}, the reference: {fault}, see {door.log}")
    return Reference(folder, begun or 0, door.seconds)


def kill(case: Case, door: Door, way: str) -> bool:
    """Kill a run, print its line, and return whether all its processes ended in time."""
    send, number = WAYS[way]
    sent, moment = time.monotonic(), door.seconds
    send(door.process.pid, number)
    ended = door.ends(PATIENCE)
    duration = f"{time.monotonic() - sent:6.1f}" if ended else f"  left {members(door.process.pid)}"
    door.clear()
    states = ",".join(read_status(run.path).state for run in case.runs(door.log.parent))
    remark = f"  a traceback in {door.log.name}" if door.has_traceback else ""
    print(f"{case.kind:8}{case.method:8}{way:12}{moment:7.1f}  {states:18}{duration}{remark}", flush=True)
    return ended


def measure(case: Case, ways: list[str], parent: Path, rng: random.Random, keep: bool) -> tuple[int, int]:
    """Kill runs of a case; return the number of runs, and the number of runs that differed or did not end.

    Args:
        case: kind of run and method.
        ways: names of the kills.
        parent: folder for the folders of the runs.
        rng: generator of the random times.
        keep: whether to keep also the folders of runs that equal the reference.
    """
    name = f"{case.kind}_{case.method}"
    reference = refer(case, parent / name)
    print(f"{case.kind:8}{case.method:8}reference   {reference.whole:7.1f}  begun at {reference.begun:.1f}", flush=True)
    remaining, runs, bad = list(ways), 0, 0
    while remaining:
        runs += 1
        folder = parent / f"{name}_{runs}"
        folder.mkdir()
        faults, kills = [], 0
        while True:
            door = Door(folder, case.next_arguments(folder))
            if not remaining or door.ends(rng.uniform(reference.begun, reference.whole)):
                break
            if not kill(case, door, remaining.pop()):
                faults.append("processes did not end")
            kills += 1
        if fault := door.fault(60 + 5 * reference.whole):
            faults.append(fault)
        else:
            pairs = zip(case.runs(folder), case.runs(reference.folder), strict=True)
            faults += itertools.islice(itertools.chain.from_iterable(itertools.starmap(differences, pairs)), 3)
        print(f"{case.kind:8}{case.method:8}{kills} kills: {'; '.join(faults) or 'equal'}", flush=True)
        if faults:
            bad += 1
            print(f"        see {folder}", flush=True)
        elif not keep:
            shutil.rmtree(folder)
    return runs, bad


def main() -> None:
    """Kill runs of all cases and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=40, help="total number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times and the order of the signals")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--keep", action="store_true", help="keep the folders and logs of all runs")
    options = parser.parse_args()
    # A process that a shell starts in the background ignores Ctrl-C; the runs would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng, parent = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kills_"))
    cases = list(itertools.starmap(Case, itertools.product(options.kinds, options.methods)))
    runs = bad = 0
    for number, case in enumerate(cases):
        kills = len(range(number, options.kills, len(cases)))
        ways = [way for _ in range(0, kills, len(WAYS)) for way in rng.sample(list(WAYS), len(WAYS))][:kills]
        counts = measure(case, ways, parent, rng, options.keep)
        runs, bad = runs + counts[0], bad + counts[1]
    if bad or options.keep:
        print(f"the folders are kept in {parent}")
    else:
        shutil.rmtree(parent)
    print(f"{options.kills} kills, {runs} runs, {bad} different")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
