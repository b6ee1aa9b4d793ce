"""How fast training runs: the whole loop, the bare step, the loader, and another code's loop, in turns in one process.

    python benchmarks/train_speed.py --peer PATH:FUNCTION model=pipnet data=ytf68 backbone=mbv2 ...

The words after the options are those of ``train.py``. The contenders take turns in blocks of steps, so that a change of
the machine's mood meets all of them; printed are the median block of each and its ratio to the others in the same turn.

* ``loop``: this project's training through Lightning's Trainer with its loader; nothing is written to disk.
* ``step``: forward, loss, backward and optimizer step of the same network on one batch that is there and encoded.
* ``peer``: with ``--peer``, ``FUNCTION()`` of the Python file PATH: it returns an object whose ``blocks(n)`` trains n
  steps of the same batch size.

The loader is measured alone, in one process, before the training starts.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import torch
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer, seed_everything

ROOT = Path(__file__).parent.parent


class Turns(Callback):
    """Lets the contenders take turns with the training loop, and stops it after the last turn."""

    def __init__(self, rounds: int, steps: int, contenders: dict[str, Callable[[int], Any]]) -> None:
        self.rounds, self.steps, self.contenders = rounds, steps, contenders
        self.seconds: dict[str, list[float]] = {name: [] for name in ("loop", *contenders)}
        self.warm = False
        self.began = 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """After a warm-up, time a block of the loop and then one of each contender."""
        if not self.warm and trainer.global_step == WARM_UP:
            for run in self.contenders.values():
                run(WARM_UP)
            self.warm, self.began = True, time.perf_counter()
        elif self.warm and (trainer.global_step - WARM_UP) % self.steps == 0:
            self.seconds["loop"].append(time.perf_counter() - self.began)
            for name, run in self.contenders.items():
                start = time.perf_counter()
                run(self.steps)
                self.seconds[name].append(time.perf_counter() - start)
            trainer.should_stop = len(self.seconds["loop"]) == self.rounds
            print({name: round(times[-1] / self.steps * 1000, 1) for name, times in self.seconds.items()}, flush=True)
            self.began = time.perf_counter()


WARM_UP = 3


def bare_step(module: LightningModule, batch: Any, precision: str) -> Callable[[int], None]:
    """Steps of a network on one resident batch, with nothing around them."""
    module.to(memory_format=torch.channels_last)
    optimizer: torch.optim.Optimizer = module.optimizer(module.parameters())  # type: ignore[operator]
    target = module.coder.encode(batch.points, batch.valid, batch.image.shape[-1])  # type: ignore[union-attr,operator]
    bf16 = precision == "bf16-mixed"

    def run(steps: int) -> None:
        module.train()
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                terms = module.loss(module(batch.image), target, batch.valid)  # type: ignore[operator]
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()

    return run


def loader_speed(datamodule: Any, batches: int) -> float:
    """Samples per second of the training loader in this process alone, one thread."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    workers, datamodule.num_workers = datamodule.num_workers, 0
    loader = iter(datamodule.train_dataloader())
    next(loader)
    start = time.perf_counter()
    samples = sum(len(next(loader).image) for _ in range(batches))
    seconds = time.perf_counter() - start
    datamodule.num_workers = workers
    cv2.setNumThreads(threads)
    return samples / seconds


def load_peer(place: str) -> Callable[[int], Any]:
    """``blocks`` of the object that PATH:FUNCTION makes."""
    path, function = place.rsplit(":", 1)
    spec = importlib.util.spec_from_file_location("peer", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"--peer {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = module
    spec.loader.exec_module(module)
    return getattr(module, function)().blocks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="of a block")
    parser.add_argument("--loader-batches", type=int, default=100)
    parser.add_argument("--peer", help="PATH:FUNCTION")
    parser.add_argument("--threads", type=int, default=2)
    options, overrides = parser.parse_known_args()
    torch.set_num_threads(options.threads)

    from facelab import runs  # registers the resolver that the configuration uses

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [*overrides, "paths.run=null", "paths.name=benchmark", "paths.group=null"])
    seed_everything(cfg.seed, verbose=False)
    datamodule, module, resident = runs.build(cfg.datamodule), runs.build(cfg.model), runs.build(cfg.model)
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    resident.fit_statistics(datamodule)
    if options.loader_batches:
        print(
            f"loader alone, one process: {loader_speed(datamodule, options.loader_batches):.0f} samples/s", flush=True
        )
    contenders = {"step": bare_step(resident, batch, cfg.trainer.precision)}
    if options.peer:
        contenders["peer"] = load_peer(options.peer)
    turns = Turns(options.rounds, options.steps, contenders)
    trainer = runs.build(
        cfg.trainer,
        max_epochs=-1,
        logger=False,
        callbacks=[turns],
        enable_progress_bar=False,
        limit_val_batches=0,
        enable_checkpointing=False,
    )
    trainer.fit(module, datamodule)
    milliseconds = {name: [s / options.steps * 1000 for s in times] for name, times in turns.seconds.items()}
    for name, times in milliseconds.items():
        ratios = [other / ours for other, ours in zip(times, milliseconds["loop"], strict=True)]
        print(
            f"{name}: {statistics.median(times):.0f} ms a step ({min(times):.0f} .. {max(times):.0f}); "
            f"{name} / loop {statistics.median(ratios):.3f} ({min(ratios):.3f} .. {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
