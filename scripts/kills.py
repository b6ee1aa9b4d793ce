"""Measure resumption: runs that are killed at random moments and resumed must end as a run that was never killed.

    python scripts/kills.py --kills 40 --seed 0
    python scripts/kills.py --kinds ddp --methods pfld --kills 5

A case is a kind of run (one process, a sweep, two processes that train together) and a method, on a few rendered faces.
Its first run is left alone: it is the reference, and its duration is the range of the moments. In each other run a
signal is sent at a moment drawn at random after the folder of the run has appeared; then the run is resumed, and may be
killed again, until it ends. The kills are dealt over the cases, and in each case over the signals.

One line for each kill: the case, the signal, the seconds from the start to the signal, the state that the folder keeps
(of a sweep, of each job), and the seconds from the signal until no process of the group was left. One line for each
run that ended: whether its files are those of the reference, to the last bit. The exit status is 1 if one was not.
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
from endings import members  # of the folder of this program

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from facelab.run_folder import RunFolder, read_status  # noqa: E402

WORDS = (
    *("data=synthetic68", "data.train=24", "data.val=6", "data.test=8", "data.size=96", "crop.size=64"),
    *("datamodule.batch_size=4", "datamodule.num_workers=2", "trainer.log_every_n_steps=3", "logger=csv"),
    *("callbacks.resume.minutes=0.005", "callbacks.progress=null", "callbacks.charts=null"),
    "+trainer.enable_progress_bar=false",
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
"""Name of a kill -> whom it meets, the first process alone or its group, and by which signal."""
PATIENCE = 30.0
"""Seconds after a kill in which all processes of the group must end."""


class Case(NamedTuple):
    """What is killed."""

    kind: str
    method: str

    @property
    def words(self) -> tuple[str, ...]:
        """What is typed to begin."""
        return (*WORDS, *METHODS[self.method], *KINDS[self.kind])

    def next_words(self, folder: Path) -> tuple[str, ...]:
        """Return what is typed after a kill: the words of the beginning where there is nothing to resume."""
        run = RunFolder(folder / "run")
        if not (run.sweep if self.kind == "sweep" else run.overrides).is_file():
            return self.words
        return ("-m", "resume=run") if self.kind == "sweep" else ("resume=run",)

    def runs(self, folder: Path) -> list[RunFolder]:
        """Return the folders of the runs: of a sweep its jobs."""
        run = RunFolder(folder / "run")
        return [run.job(0), run.job(1)] if self.kind == "sweep" else [run]


class Reference(NamedTuple):
    """The run of a case that is left alone."""

    folder: Path
    begun: float  # seconds until the folder of the run was there
    whole: float  # seconds until its end


class Door:
    """train.py in a process group of its own, with what it prints in a file of its own.

    Args:
        folder: in which the words are typed.
        words: of the command line.
    """

    def __init__(self, folder: Path, words: tuple[str, ...]) -> None:
        self.log = folder / f"log_{len(list(folder.glob('log_*')))}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "FACELAB_", "SLURM_"))}
        kept |= {"FACELAB_CACHE": str(folder.parent / "cache"), "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
        line = [sys.executable, str(ROOT / "train.py"), *words]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(line, cwd=folder, env=kept, stdout=log, stderr=log, start_new_session=True)
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began

    @property
    def has_traceback(self) -> bool:
        """Whether one stands in the log."""
        return "Traceback" in self.log.read_text(errors="replace")

    def ends(self, within: float) -> bool:
        """Wait until all processes of the group have ended, for some seconds; tell whether they have."""
        until = time.monotonic() + within
        while self.process.poll() is None or members(self.process.pid):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def clear(self) -> None:
        """End what did not end."""
        for pid in members(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def fault(self, within: float) -> str:
        """Wait for the end of a run that is left alone; say what is wrong with it, empty if nothing."""
        if not self.ends(within):
            self.clear()
            return f"did not end within {within:.0f} s"
        if self.process.returncode:
            return f"exit {self.process.returncode}"
        return "a traceback in the log" if self.has_traceback else ""


def differences(run: RunFolder, reference: RunFolder) -> Iterator[str]:
    """Say in what a run that was resumed differs from one that was not."""
    if (state := read_status(run.path).state) != "finished":
        yield f"status.json: {state}"
    for name in sorted(files(run) ^ files(reference)):
        yield f"{name}: is in one of the two alone"
    if files(run) >= files(reference):
        yield from differing("metrics.json", *(json.loads(each.metrics.read_text()) for each in (run, reference)))
        yield from differing("metrics.csv", *(dict(enumerate(rows(each))) for each in (run, reference)))
        for name in ("last", "best"):
            yield from differing(f"{name}.ckpt", *(weights(each, name) for each in (run, reference)))
    same = [name for name in files(run) & files(reference) if name == "faces.csv" or name.startswith("samples/")]
    for name in sorted(same):
        if not filecmp.cmp(run.path / name, reference.path / name, shallow=False):
            yield f"{name}: other bytes"


def files(run: RunFolder) -> set[str]:
    """Name the files of a run, with what a kill may have left over."""
    return {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}


def rows(run: RunFolder) -> list[dict[str, str]]:
    """Read metrics.csv without its times."""
    with run.curves.open(newline="") as file:
        return [{key: value for key, value in row.items() if "time" not in key} for row in csv.DictReader(file)]


def weights(run: RunFolder, name: str) -> dict[str, Any]:
    """Read the weights and statistics of a checkpoint."""
    return torch.load(run.checkpoint(name), weights_only=True)["state_dict"]


def differing(file: str, one: dict[Any, Any], other: dict[Any, Any]) -> Iterator[str]:
    """Name the entries that two mappings do not have in common, but for the name of the run."""
    for key in one | other:
        a, b = one.get(key), other.get(key)
        tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        if key != "name" and not (torch.equal(a, b) if tensors else type(a) is type(b) and a == b):
            yield f"{file}: {key}" if tensors else f"{file}: {key}: {str(a)[:60]} instead of {str(b)[:60]}"


def refer(case: Case, folder: Path) -> Reference:
    """Train the run that is left alone.

    Raises:
        SystemExit: it has a fault, so that there is nothing to compare with.
    """
    folder.mkdir()
    door, begun = Door(folder, case.words), None
    while door.process.poll() is None and begun is None:
        begun = door.seconds if (folder / "run").is_dir() else None
        time.sleep(0.02)
    if fault := door.fault(600):
        raise SystemExit(f"{case.kind} {case.method}, the reference: {fault}, see {door.log}")
    return Reference(folder, begun or 0, door.seconds)


def kill(case: Case, door: Door, way: str) -> bool:
    """Kill a run, print what became of it, and tell whether it ended as it must."""
    send, number = WAYS[way]
    sent, moment = time.monotonic(), door.seconds
    send(door.process.pid, number)
    ended = door.ends(PATIENCE)
    gone = f"{time.monotonic() - sent:6.1f}" if ended else f"  left {members(door.process.pid)}"
    door.clear()
    states = ",".join(read_status(run.path).state for run in case.runs(door.log.parent))
    remark = f"  a traceback in {door.log.name}" if door.has_traceback else ""
    print(f"{case.kind:8}{case.method:8}{way:12}{moment:7.1f}  {states:18}{gone}{remark}", flush=True)
    return ended


def measure(case: Case, ways: list[str], parent: Path, rng: random.Random, keep: bool) -> tuple[int, int]:
    """Kill runs of a case in these ways; return how many runs there were, and how many differed or did not end.

    Args:
        case: what is killed.
        ways: one for each kill.
        parent: of the folders of the runs.
        rng: draws the moments.
        keep: the folders of runs that are equal, too.
    """
    name = f"{case.kind}_{case.method}"
    reference = refer(case, parent / name)
    print(f"{case.kind:8}{case.method:8}reference   {reference.whole:7.1f}  begun at {reference.begun:.1f}", flush=True)
    left, runs, bad = list(ways), 0, 0
    while left:
        runs += 1
        folder = parent / f"{name}_{runs}"
        folder.mkdir()
        faults, kills = [], 0
        while True:
            door = Door(folder, case.next_words(folder))
            if not left or door.ends(rng.uniform(reference.begun, reference.whole)):
                break
            if not kill(case, door, left.pop()):
                faults.append("processes were left")
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
    """Print the lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=40, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the order of the signals")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--keep", action="store_true", help="keep the folders of all runs, with all that was printed")
    typed = parser.parse_args()
    # What a shell starts in the background ignores Ctrl-C, and so would the runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng, parent = random.Random(typed.seed), Path(tempfile.mkdtemp(prefix="kills_"))
    cases = list(itertools.starmap(Case, itertools.product(typed.kinds, typed.methods)))
    runs = bad = 0
    for number, case in enumerate(cases):
        kills = len(range(number, typed.kills, len(cases)))
        ways = [way for _ in range(0, kills, len(WAYS)) for way in rng.sample(list(WAYS), len(WAYS))][:kills]
        found = measure(case, ways, parent, rng, typed.keep)
        runs, bad = runs + found[0], bad + found[1]
    if bad or typed.keep:
        print(f"kept in {parent}")
    else:
        shutil.rmtree(parent)
    print(f"{typed.kills} kills, {runs} runs, {bad} different")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
