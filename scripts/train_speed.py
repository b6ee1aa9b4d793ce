"""Measurement of the speed of training: the whole loop, the bare step, the effect of options, the loop of another code.

    python scripts/train_speed.py --options precision=bf16-mixed,compile=true data=ytf68
    python scripts/train_speed.py --peer PATH:FUNCTION model=pipnet data=ytf68 backbone=mbv2 ...

The arguments after the options are overrides of ``train.py``; without ``model=`` the script measures every method
that can be trained. The contenders of a method take turns in blocks of steps, so that a change in the machine's speed
affects all of them. The script prints the median block of each contender and its ratio to another one in the same turn.

* ``loop``: this project's training by Lightning's Trainer with its loader; nothing is written to disk.
* ``step``: training step, backward pass and optimizer step of the same method on one batch in memory. Its ratio to the
  loop is the share of the training time that is spent neither in the framework nor in the loader.
* ``step NAME=VALUE``: the same with ``precision``, ``memory_format`` or ``compile`` from ``--options``, one at a time,
  or several joined by ``+`` (``precision=bf16-mixed+compile=true``); the ratio is to ``step``.
* ``peer``: with ``--peer``, the result of ``FUNCTION()`` of the Python file PATH: an object whose ``blocks(n)`` trains
  n steps of the same batch size.

The loader is measured separately, in one process, before the training starts.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import torch
from hydra import compose, initialize_config_dir
from lightning import Callback, Trainer, seed_everything
from omegaconf import DictConfig

from facelab.profiling.compile import set_format_and_compile
from facelab.runs import resolvers  # noqa: F401  used by the configuration
from facelab.runs.build import build

ROOT = Path(__file__).parent.parent
WARM_UP = 3
"""Number of steps before the timing starts."""
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16}
"""Precision of the trainer to the dtype of autocast in the bare step."""
KEYS = {"precision": "trainer.precision", "memory_format": "memory_format", "compile": "compile"}
"""Name in ``--options`` to the key of the configuration."""


class Turns(Callback):
    """Timer of the training loop and the contenders in turns; it stops the loop after the last turn."""

    def __init__(self, rounds: int, steps: int, contenders: dict[str, Callable[[int], Any]]) -> None:
        self.rounds, self.steps, self.contenders = rounds, steps, contenders
        self.seconds: dict[str, list[float]] = {name: [] for name in ("loop", *contenders)}
        self.is_warm = False
        self.start = 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Time a block of the loop and then one of each contender, after a warm-up."""
        if not self.is_warm and trainer.global_step == WARM_UP:
            for run in self.contenders.values():
                run(WARM_UP)
            self.is_warm, self.start = True, moment()
        elif self.is_warm and (trainer.global_step - WARM_UP) % self.steps == 0:
            self.seconds["loop"].append(moment() - self.start)
            for name, run in self.contenders.items():
                start = moment()
                run(self.steps)
                self.seconds[name].append(moment() - start)
            trainer.should_stop = len(self.seconds["loop"]) == self.rounds
            print({name: round(times[-1] / self.steps * 1000, 1) for name, times in self.seconds.items()}, flush=True)
            self.start = moment()


def moment() -> float:
    """Return the time in seconds after waiting for a GPU to finish its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def configuration(overrides: list[str]) -> DictConfig:
    """Compose the configuration of train.py with these overrides."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [*overrides, "paths.run=null", "paths.name=benchmark", "paths.group=null"])


def trained_models() -> list[str]:
    """Return the methods of conf/model/ that can be trained."""
    models = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
    return [model for model in models if configuration([f"model={model}"]).model.loss is not None]


def build_module(cfg: DictConfig) -> Any:
    """Build and prepare the module as train.py does."""
    module = build(cfg, "model")
    set_format_and_compile(module, cfg.memory_format, cfg.compile)
    return module


def bare_step(cfg: DictConfig, datamodule: Any, batch: Any) -> Callable[[int], None]:
    """Return a function that runs training steps of a new module on one batch on its device."""
    if cfg.trainer.precision not in PRECISIONS:
        raise SystemExit(f"precision={cfg.trainer.precision}: the bare step supports {' and '.join(PRECISIONS)}")
    device, dtype = "cuda" if cfg.trainer.accelerator == "gpu" else "cpu", PRECISIONS[cfg.trainer.precision]
    module = build_module(cfg).to(device)
    module.fit_statistics(datamodule)
    module.log = module.log_dict = lambda *_, **__: None  # logging belongs to the loop
    optimizer: torch.optim.Optimizer = module.optimizer(module.parameters())
    batch = type(batch)(*(part.to(device) for part in batch))

    def run(steps: int) -> None:
        module.train()
        for step in range(steps):
            with torch.autocast(device, dtype) if dtype else nullcontext():
                loss = module.training_step(batch, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def loader_speed(datamodule: Any, batches: int) -> float:
    """Measure the samples per second of the training loader in this process with one thread."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    workers, datamodule.num_workers = datamodule.num_workers, 0
    loader = iter(datamodule.train_dataloader())
    next(loader)
    start = time.perf_counter()
    samples = sum(len(batch.image) for batch in islice(loader, batches))
    seconds = time.perf_counter() - start
    datamodule.num_workers = workers
    cv2.setNumThreads(threads)
    return samples / seconds


def load_peer(source: str) -> Callable[[int], Any]:
    """Return ``blocks`` of the object that PATH:FUNCTION returns."""
    path, function = source.rsplit(":", 1)
    spec = importlib.util.spec_from_file_location("peer", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"--peer {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = module
    spec.loader.exec_module(module)
    return getattr(module, function)().blocks


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Parse the options and the overrides of train.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="steps of a block")
    parser.add_argument("--options", type=parse_options, default={}, metavar="NAME=VALUE[+NAME=VALUE],...")
    parser.add_argument(
        "--loader-batches", type=int, default=100, help="batches of the separate measurement of the loader; 0 omits it"
    )
    parser.add_argument("--peer", help="PATH:FUNCTION")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_known_args()


def parse_options(text: str) -> dict[str, list[str]]:
    """Map each option of ``--options`` to its overrides of train.py."""
    options: dict[str, list[str]] = {}
    for option in text.split(","):
        pairs = [part.partition("=") for part in option.split("+")]
        if unknown := [key for key, _, value in pairs if key not in KEYS or not value]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}: expected one of {', '.join(KEYS)} with =VALUE")
        options[option] = [f"{KEYS[key]}={value}" for key, _, value in pairs]
    return options


def measure(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Measure one method and print the results."""
    torch.compiler.reset()
    cfg = configuration(overrides)
    variants = {f"step {option}": configuration([*overrides, *more]) for option, more in arguments.options.items()}
    seed_everything(cfg.seed, verbose=False)
    datamodule = build(cfg, "datamodule")
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    if arguments.loader_batches:
        print(
            f"loader alone, one process: {loader_speed(datamodule, arguments.loader_batches):.0f} samples/s", flush=True
        )
    contenders = {name: bare_step(other, datamodule, batch) for name, other in {"step": cfg, **variants}.items()}
    if arguments.peer:
        contenders["peer"] = load_peer(arguments.peer)
    turns = Turns(arguments.rounds, arguments.steps, contenders)
    trainer = build(
        cfg,
        "trainer",
        max_epochs=-1,
        logger=False,
        callbacks=[turns],
        enable_progress_bar=False,
        limit_val_batches=0,
        enable_checkpointing=False,
    )
    trainer.fit(build_module(cfg), datamodule)
    for name, seconds in turns.seconds.items():
        times = [block / arguments.steps * 1000 for block in seconds]
        line = f"{name}: {statistics.median(times):.1f} ms a step ({min(times):.1f} .. {max(times):.1f})"
        base = "step" if name in variants else "loop"
        if name != base:
            ratios = [ours / other for ours, other in zip(seconds, turns.seconds[base], strict=True)]
            line += f"; / {base} {statistics.median(ratios):.3f} ({min(ratios):.3f} .. {max(ratios):.3f})"
        print(line)


def main() -> None:
    """Measure the chosen methods, or all."""
    arguments, overrides = parse()
    torch.set_num_threads(arguments.threads)
    chosen = [override for override in overrides if override.startswith("model=")]
    others = [override for override in overrides if override not in chosen]
    for model in chosen[-1].removeprefix("model=").split(",") if chosen else trained_models():
        print(f"model={model} {' '.join(others)}, {arguments.threads} threads, torch {torch.__version__}", flush=True)
        measure(arguments, [f"model={model}", *others])


if __name__ == "__main__":
    main()
