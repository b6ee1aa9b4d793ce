"""Loaders whose order and draws depend on seed, epoch and row alone, and that resume within an epoch."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from lightning import Trainer
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from facelab import signals
from facelab.internals.lightning import processed_epochs


class EpochSampler(DistributedSampler[Any]):
    """Sampler of (epoch, row), so the random draws of a sample can depend on (seed, epoch, row) alone.

    Order and draws are then the same for every number of workers and after a resume. Torch's distributed sampler
    distributes the rows among processes and repeats some so that all have the same number.
    """

    skip = 0
    """Number of rows to skip in the next epoch; set on resume of an interrupted epoch."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the rows of this process in the order of this epoch."""
        skip, self.skip = self.skip, 0
        return ((self.epoch, row) for row in itertools.islice(super().__iter__(), skip, None))


class FirstEpochSampler(EpochSampler, SequentialSampler):  # type: ignore[misc]  # the types of their rows differ
    """Sampler that repeats the rows and the draws of the first epoch, for ``overfit_batches`` of the Trainer.

    Lightning keeps a sampler with ``overfit_batches`` only if it is a ``SequentialSampler``, and replaces any other by
    one without epochs and processes.
    """

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: all epochs are equal."""


class SampleLoader(DataLoader[Any]):
    """Loader that can resume an interrupted epoch after the used batches. Its length is that of the whole epoch.

    After each batch it stops the run if too many photos of its dataset cannot be read.
    """

    used = 0
    """Number of batches of the epoch that were used."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches of an epoch."""
        # For a prediction Lightning replaces the sampler by one without skip.
        self.used = getattr(self.sampler, "skip", 0) // (self.batch_size or 1)
        with signals.deferred():
            batches = super().__iter__()
        return self._count_used(batches)

    def _count_used(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches, count them and check for unreadable photos."""
        for batch in batches:
            self.dataset.readings.check()  # type: ignore[attr-defined]
            self.used += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of used batches of the epoch. Lightning stores it in the checkpoint."""
        return {"used": self.used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the used batches in the next epoch."""
        self.sampler.skip = state["used"] * self.batch_size  # type: ignore[attr-defined,operator]


def start_worker(worker: int) -> None:
    """Prepare a worker process. OpenCV uses one thread: more would compete with the training for the cores."""
    signals.end_with_pool_parent()
    cv2.setNumThreads(0)  # 0: no thread pool; 1 hangs in a forked process whose parent has used OpenCV (5.0.0)


def build_loader(
    dataset: Any,
    collate: Callable[[Any], Any],
    trainer: Trainer | None,
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
    shuffle: bool,
) -> SampleLoader:
    """Build the loader of the samples of this process.

    Args:
        dataset: samples by (epoch, row), with ``readings``.
        collate: function of a list of samples that returns a batch.
        trainer: trainer of the datamodule, which knows processes and epoch; None outside of a run.
        batch_size: batch size of one process.
        num_workers: number of processes that prepare batches. It does not change results.
        seed: seed of the order.
        shuffle: whether the loader is that of the training: shuffled anew in each epoch, and without an incomplete last
            batch, whose batch statistics would be noise. It is kept if it is the only one.
    """
    world, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    repeats = trainer is not None and trainer.overfit_batches > 0  # type: ignore[attr-defined]
    kind = FirstEpochSampler if repeats else EpochSampler
    # Torch's sampler shuffles by seed + epoch: with plain seeds, seed 2 would repeat the orders of seed 1.
    order = int(np.random.SeedSequence(seed).generate_state(1)[0])
    sampler = kind(dataset, num_replicas=world, rank=rank, shuffle=shuffle, seed=order)
    if shuffle and trainer:  # a resumed run loads its first batches before Lightning calls set_epoch
        sampler.set_epoch(processed_epochs(trainer))
    return SampleLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=start_worker,
        drop_last=shuffle and len(dataset) >= batch_size * world,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise each epoch would draw from the global generator
    )
