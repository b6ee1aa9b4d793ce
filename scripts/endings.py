"""Measurement of the end of a run after each signal and error, at each phase, with several numbers of workers.

    python scripts/endings.py --workers 0 1 4 --devices 1 2

Each case trains PIPNet on a few rendered faces in a separate process group. At a phase of the run, the script sends the
signal to the whole group, as a cluster does, or raises the error. It prints one line per case: the state in the run's
folder, the exit code, and the seconds until no process of the group was left.
"""

import argparse
import functools
import gc
import importlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
CASE = "FACELAB_ENDING"
"""Environment variable ``moment,cause,rank``; if it is set, this script trains one case."""
MOMENTS = {
    "build": ("lightning_modules.landmark", "LandmarkModule.__init__", 1),
    "render": ("facelab.annotations.rendered_set", "_collect", 1),
    "statistics": ("lightning_modules.pipnet", "PIPNet.fit_statistics", 1),
    "join": ("torch.distributed", "init_process_group", 1),
    "fork": ("datamodules.loading", "SampleLoader.__iter__", 1),
    "step": ("lightning_modules.method", "MethodModule.total", 2),
    "checkpoint": ("callbacks.resume", "ResumableCheckpoint._save", 1),
    "epoch": ("callbacks.resume", "ResumableCheckpoint.on_train_epoch_end", 1),
    "validation": ("facelab.metrics.face_errors", "FaceErrors.update", 2),
    "table": ("facelab.metrics.face_errors", "FaceErrors.compute", 2),
    "picture": ("callbacks.pictures", "grid", 2),
    "shutdown": ("lightning.pytorch.utilities.combined_loader", "_shutdown_workers_and_reset_iterator", 1),
    "test": ("lightning_modules.landmark", "LandmarkModule.test_step", 1),
    "results": ("callbacks.results", "results", 1),
    "worker": ("datamodules.landmark", "FaceDataset._sample", 8),
}
"""Name of a moment to module, function and number of the call in one process. The cause acts before that call."""
SIGNALS = ("SIGTERM", "SIGUSR2", "SIGINT")
CAUSES = (*SIGNALS, "SIGKILL", "error")
"""Signals and errors; SIGKILL is sent only to the first process, as by the kernel when memory runs out."""
LONGEST = 40.0
"""Seconds after which a case counts as not ending."""
OVERRIDES = (
    *("model=pipnet", "data=synthetic68", "data.train=64", "data.val=6", "data.test=8", "data.size=96"),
    *("backbone=timm", "backbone.name=test_resnet", "backbone.pretrained=false", "crop.size=64", "coder.stride=32"),
    *("datamodule.batch_size=4", "trainer.max_epochs=2", "logger=csv", "callbacks.progress=null"),
    *("callbacks.charts=null", "trainer.enable_progress_bar=false", "hydra.run.dir=run"),
)
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.sync_batchnorm=false")


class Ending(NamedTuple):
    """The end of a case."""

    state: str
    code: int | None  # exit code; None if a process did not end
    seconds: float
    log: str


def act(cause: str, rank: int) -> None:
    """Send the signal or raise the error, if this process has the given rank."""
    if int(os.environ.get("LOCAL_RANK", 0)) != rank:
        return
    Path(os.environ["FACELAB_ENDING_TIME"]).write_text(str(time.time()))
    if cause == "error":
        raise RuntimeError("the error of this case")
    if cause == "SIGKILL":
        os.kill(os.getpgrp(), signal.SIGKILL)
    else:
        # Another process sends the signal, as on a cluster: a SIGTERM from their parent would end the workers.
        line = ["kill", "-s", cause.removeprefix("SIG"), "--", f"-{os.getpgrp()}"]
        subprocess.run(line, start_new_session=True, check=True)


def watch(moment: str, cause: str, rank: int) -> None:
    """Replace the function of the moment so that the cause acts once, before the given call."""
    module, name, number = MOMENTS[moment]
    *owner, name = name.split(".")
    holder: Any = importlib.import_module(module)
    holder = getattr(holder, owner[0]) if owner else holder
    original, calls = getattr(holder, name), itertools.count(1)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            act(cause, rank)
        return original(*args, **kwargs)

    setattr(holder, name, watched)


def train() -> None:
    """Run train.py with the cause of the case."""
    sys.path.insert(0, str(ROOT))  # for the other ranks, which would otherwise import the installed package
    moment, cause, rank = os.environ[CASE].split(",")
    watch(moment, cause, int(rank))
    door = ROOT / "train.py"
    # runpy would put the path of train.py into sys.argv[0], and Lightning starts the other ranks with sys.argv.
    exec(compile(door.read_text(), str(door), "exec"), {"__name__": "__main__", "__file__": str(door)})


def members(group: int) -> list[int]:
    """Return the running processes of a process group."""
    running = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = stat.read_text().rpartition(") ")
        except OSError:
            continue
        state, _, group_of_process = rest.split()[:3]
        if int(group_of_process) == group and state != "Z":
            running.append(int(stat.parent.name))
    return running


def fork(folder: Path, moment: str, cause: str, rank: int, overrides: tuple[str, ...]) -> int:
    """Start a case in a forked process with a new process group; imported modules need not be imported again."""
    if pid := os.fork():
        return pid
    os.setsid()
    os.chdir(folder)
    with Path("log").open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {
        CASE: f"{moment},{cause},{rank}",
        "FACELAB_ENDING_TIME": str(folder / "time"),
        "WANDB_SILENT": "true",
    }
    os.environ["FACELAB_CACHE"] = str(folder / "cache" if moment == "render" else folder.parent / "cache")
    overrides += ("data.train=3000",) if moment == "render" else ()  # rendering all of them takes a minute
    sys.argv = [str(Path(__file__).resolve()), *OVERRIDES, *overrides]
    train()
    sys.exit()


def end(parent: Path, moment: str, cause: str, overrides: tuple[str, ...], rank: int = 0) -> Ending:
    """Start a case, wait for its end, and kill the processes that did not end."""
    # Use no context manager here: the forked process leaves this function by SystemExit.
    folder = Path(tempfile.mkdtemp(dir=parent))
    group = fork(folder, moment, cause, rank, overrides)
    start, code, cause_time = time.time(), None, None
    while time.time() - (cause_time or start + LONGEST) < LONGEST:
        if cause_time is None and (folder / "time").exists():
            cause_time = float((folder / "time").read_text() or time.time())
        if code is None:
            pid, status = os.waitpid(group, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if pid else None
        elif not members(group):
            break
        time.sleep(0.02)
    seconds = time.time() - (cause_time or start)
    remaining = members(group)
    for pid in remaining:
        os.kill(pid, signal.SIGKILL)
    if code is None:
        os.waitpid(group, 0)
    from facelab.run_folder import read_status

    state = read_status(folder / "run").state if cause_time else "too late"
    log = (folder / "log").read_text(errors="replace")
    shutil.rmtree(folder)
    return Ending(state, None if remaining else code, seconds, log)


def warm() -> None:
    """Import the modules that every case needs."""
    sys.path.insert(0, str(ROOT))
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    for name in {module for module, _, _ in MOMENTS.values()} | {"callbacks.csv_logger", "timm", "train"}:
        importlib.import_module(name)
    gc.freeze()  # otherwise each case copies most of the memory when it collects garbage, which takes seconds


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 4])
    parser.add_argument("--devices", nargs="+", type=int, default=[1])
    parser.add_argument("--moments", nargs="+", choices=MOMENTS, default=list(MOMENTS))
    parser.add_argument("--causes", nargs="+", choices=CAUSES, default=list(CAUSES))
    parser.add_argument("--log", action="store_true", help="print the log of each case that did not end")
    options = parser.parse_args()
    warm()
    parent, rows = Path(tempfile.mkdtemp()), 0
    print(f"{'devices':8}{'workers':8}{'moment':12}{'cause':9}{'rank':5}{'state':10}{'exit':>5}{'seconds':>9}")
    for devices, workers, moment, cause in itertools.product(
        options.devices, options.workers, options.moments, options.causes
    ):
        for rank in range(devices if cause == "error" else 1):
            overrides: tuple[str, ...] = (f"datamodule.num_workers={workers}",)
            overrides += (*DDP, f"trainer.devices={devices}") if devices > 1 else ()
            ending = end(parent, moment, cause, overrides, rank)
            code = "never" if ending.code is None else ending.code
            line = (
                f"{devices:<8}{workers:<8}{moment:12}{cause:9}{rank:<5}{ending.state:10}{code:>5}{ending.seconds:9.1f}"
            )
            print(line, flush=True)
            rows += 1
            if options.log and (ending.code is None or ending.state == "too late"):
                print(ending.log, flush=True)
    shutil.rmtree(parent, ignore_errors=True)
    print(f"{rows} cases")


if __name__ == "__main__":
    train() if CASE in os.environ else main()
