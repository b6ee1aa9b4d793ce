"""Measurement of the speed of every method on one machine: training, loader, latency.

``gpu_check.sh`` starts this script.

    python scripts/gpu_check.py --output gpu_check.json
    python scripts/gpu_check.py --rounds 1 --steps 2 --compile false model=pfld data.train=64 trainer=cpu

The arguments after the options are overrides of ``train.py``. They follow the defaults ``trainer=gpu
trainer.precision=bf16-mixed``, and, unless one begins with ``data``, ``data=synthetic106 data.train=8192``, or
``data=synthetic_scenes data.train=512`` for a detector. Without ``model=`` the script measures every method that can be
trained. It writes the JSON file again after each part, so that a stopped script loses one part.

* ``step_ms``: one training step in a plain loop, on one batch in the memory of the device.
* ``trainer_ms``: one step of Lightning's Trainer on the same batch, with the callback of ``on_nan``. ``trainer_share``
  is ``step_ms / trainer_ms``: 1 for a framework without overhead.
* ``trainer_without_on_nan_ms``: the same without that callback. ``on_nan_cost`` is its time as a share of this one.
* ``run_ms``: one step of the Trainer with the loader. ``run_share`` is ``step_ms / run_ms``.
* ``loader_images_per_s``: number of workers to the speed of the loader without a training.
* ``latency_p50_ms``: prediction of one crop in a batch of 1, in 32-bit floats; not of a detector, whose time depends on
  the photo.

The contenders of a fit take turns in blocks of steps, so that a change in the machine's speed affects all of them. Each
time is the median of the blocks.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from callbacks.finite_loss import FiniteLoss
from facelab.files import write_json
from facelab.profiling.cost import latency, machine
from facelab.runs.build import build
from facelab.runs.checkpoint import clear_initial_weights, is_detector
from facelab.runs.environment import environment
from scripts.train_speed import WARM_UP, bare_step, build_module, configuration, moment, trained_models

DATA = {False: ["data=synthetic106", "data.train=8192"], True: ["data=synthetic_scenes", "data.train=512"]}
"""Dataset of the landmark methods, and of the detectors (True)."""
LOADER_BATCH = 64
"""Samples of a batch while the loader is measured: so few that an epoch has many more batches than are prefetched."""


class Blocks(Callback):
    """Timer of blocks of training steps, which stops the training after the last round.

    Args:
        rounds: number of blocks of each kind.
        steps: number of steps in a block.
        kinds: name of a kind of block to the Trainer's callbacks during it.
        others: name to a function that runs a number of steps. It runs once in every round, outside the Trainer.
    """

    def __init__(
        self, rounds: int, steps: int, kinds: dict[str, list[Callback]], others: dict[str, Callable[[int], Any]]
    ) -> None:
        self.rounds, self.steps, self.kinds, self.others = rounds, steps, kinds, others
        self.seconds: dict[str, list[float]] = {name: [] for name in (*kinds, *others)}
        self.began = 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """End a block after its last step and begin the next one; the first begins after a warm-up."""
        done = trainer.global_step - WARM_UP
        if done < 0 or done % self.steps:
            return
        names = list(self.kinds)
        ended = done // self.steps
        if ended:
            self.seconds[names[(ended - 1) % len(names)]].append(moment() - self.began)
        if ended % len(names) == 0:
            for name, run in self.others.items():
                start = moment()
                run(self.steps if ended else WARM_UP)
                if ended:
                    self.seconds[name].append(moment() - start)
        trainer.should_stop = ended == self.rounds * len(names)
        trainer.callbacks = [
            *self.kinds[names[ended % len(names)]],
            self,
        ]  # not in place: Lightning iterates over the list
        self.began = moment()

    def milliseconds(self) -> dict[str, float]:
        """Return the median time of a step of each kind."""
        return {f"{name}_ms": statistics.median(times) / self.steps * 1000 for name, times in self.seconds.items()}


class Resident:
    """Endless loader of one batch in the memory of the device."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Any]:
        """Yield the batch again and again."""
        while True:
            yield self.batch


def fit(cfg: DictConfig, module: Any, datamodule: Any, blocks: Blocks) -> dict[str, float]:
    """Train until the last block, without validation and files, and return the times."""
    trainer = build(
        cfg,
        "trainer",
        max_epochs=-1,
        logger=False,
        callbacks=[*next(iter(blocks.kinds.values())), blocks],
        enable_progress_bar=False,
        limit_val_batches=0,
        enable_checkpointing=False,
    )
    trainer.fit(module, datamodule)
    return blocks.milliseconds()


def training(cfg: DictConfig, rounds: int, steps: int, workers: int) -> dict[str, float]:
    """Return the times of a training step, see the docstring of this file."""
    torch.compiler.reset()
    seed_everything(cfg.seed, verbose=False)
    datamodule, module = build(cfg, "datamodule"), build_module(cfg)
    datamodule.setup("fit")
    datamodule.num_workers = 0  # for this batch
    batch = next(iter(datamodule.train_dataloader()))
    datamodule.num_workers = workers
    step = bare_step(cfg, datamodule, batch)
    device = "cuda" if cfg.trainer.accelerator == "gpu" else "cpu"
    resident = Resident(type(batch)(*(part.to(device) for part in batch)))
    with TemporaryDirectory() as folder:
        finite = FiniteLoss(folder, cfg.on_nan)
        times = fit(cfg, module, datamodule, Blocks(rounds, steps, {"run": [finite]}, {}))
        datamodule.train_dataloader = lambda: resident
        kinds: dict[str, list[Callback]] = {"trainer": [finite], "trainer_without_on_nan": []}
        times |= fit(cfg, module, datamodule, Blocks(rounds, steps, kinds, {"step": step}))
    return times | {
        "run_share": times["step_ms"] / times["run_ms"],
        "trainer_share": times["step_ms"] / times["trainer_ms"],
        "on_nan_cost": times["trainer_ms"] / times["trainer_without_on_nan_ms"] - 1,
    }


def loader_speed(cfg: DictConfig, workers: int) -> float:
    """Return the images per second of the training loader in one epoch, without the first batch of each worker."""
    datamodule = build(cfg, "datamodule")
    datamodule.setup("fit")
    datamodule.num_workers = workers
    samples = len(datamodule.train_dataloader().dataset)
    datamodule.batch_size = min(LOADER_BATCH, max(1, samples // (2 * workers)))
    batches = iter(datamodule.train_dataloader())
    for _ in islice(batches, workers):
        pass
    start = time.perf_counter()
    images = sum(len(batch.image) for batch in batches)
    return images / (time.perf_counter() - start)


def latency_one(cfg: DictConfig, seconds: float) -> float:
    """Return the median milliseconds of a prediction of one crop."""
    torch.compiler.reset()
    module = build_module(cfg).to("cuda" if cfg.trainer.accelerator == "gpu" else "cpu")
    return latency(module, cfg.crop.size, 1, seconds, 10, torch.get_num_threads(), pose=False).p50


def booleans(text: str) -> list[bool]:
    """Parse ``true`` and ``false``, separated by commas."""
    if unknown := [word for word in text.split(",") if word not in ("true", "false")]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: true or false expected")
    return [word == "true" for word in text.split(",")]


def numbers(text: str) -> list[int]:
    """Parse whole numbers, separated by commas."""
    return [int(word) for word in text.split(",")]


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Parse the options; the rest are overrides of train.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each kind")
    parser.add_argument("--steps", type=int, default=50, help="in a block")
    parser.add_argument("--compile", type=booleans, default=[False, True], help="false,true")
    parser.add_argument(
        "--workers", type=numbers, default=[8, 16], help="of the loader, as 8,16; the last number trains"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="minimum time of a latency")
    return parser.parse_known_args()


def main() -> None:
    """Measure the chosen methods, or all, and write the file after each part."""
    arguments, overrides = parse()
    chosen = [override for override in overrides if override.startswith("model=")]
    others = ["trainer=gpu", "trainer.precision=bf16-mixed", *(word for word in overrides if word not in chosen)]
    models = chosen[-1].removeprefix("model=").split(",") if chosen else trained_models()
    has_data = any(word.startswith("data") and not word.startswith("datamodule") for word in others)
    began = time.perf_counter()
    methods: dict[str, dict[str, Any]] = {model: {} for model in models}
    report: dict[str, Any] = {"complete": False, "seconds": 0.0, "methods": methods, "environment": environment()}

    def write(place: dict[str, Any], name: str, measured: Any) -> None:
        place[name] = measured
        print(f"{name}: {measured}", flush=True)
        report["seconds"] = time.perf_counter() - began
        write_json(arguments.output, report)

    for compiled in sorted(arguments.compile):  # the slow part last
        for model in models:
            data = [] if has_data else DATA[is_detector(configuration([f"model={model}"]))]
            composed = configuration([f"model={model}", *data, *others, f"compile={str(compiled).lower()}"])
            # Pretrained weights change no speed, and there may be no way to fetch them.
            cfg = DictConfig(clear_initial_weights(OmegaConf.to_container(composed)))
            report["machine"] = machine(torch.device("cuda" if cfg.trainer.accelerator == "gpu" else "cpu"))
            if not compiled:
                speeds = {str(workers): loader_speed(cfg, workers) for workers in arguments.workers}
                write(methods[model], "loader_images_per_s", speeds)
            place = methods[model].setdefault("compile" if compiled else "eager", {})
            if not is_detector(cfg):
                write(place, "latency_p50_ms", latency_one(cfg, arguments.seconds))
            write(place, "training", training(cfg, arguments.rounds, arguments.steps, arguments.workers[-1]))
    write(report, "complete", True)


if __name__ == "__main__":
    main()
