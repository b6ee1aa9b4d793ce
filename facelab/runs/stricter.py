"""Annotations stricter than those of libraries, against values that are accepted but never intended."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from facelab.bounds import Amount, Count, Positive, Share, Text, Whole

STRICTER: dict[str, dict[str, Any]] = {
    "lightning.pytorch.trainer.trainer.Trainer": {
        "devices": Annotated[
            list[int] | str | int, Interval(ge=-1, le=2**10)
        ],  # Lightning creates a list of this length
        "num_nodes": Count,
        "max_epochs": Literal[-1] | Count | None,  # after 0 epochs there is nothing to test
        "max_steps": Literal[-1] | Count,
        "min_epochs": Whole | None,
        "min_steps": Whole | None,
        "limit_train_batches": Positive | None,  # with 0 batches nothing is learned
        "val_check_interval": Annotated[int | float | str | dict[str, int] | None, Gt(0)],
        "num_sanity_val_steps": Annotated[int, Ge(-1)] | None,
        "log_every_n_steps": Count | None,
        "check_val_every_n_epoch": Count | None,
        "accumulate_grad_batches": Count,
        "gradient_clip_val": Positive | None,
    },
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint": {"filename": Text | None, "monitor": Text | None},
    "lightning.pytorch.callbacks.weight_averaging.EMAWeightAveraging": {
        "decay": Share,
        "update_every_n_steps": Count,
    },
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping": {"min_delta": Amount, "patience": Whole},
    "torch.optim.optimizer.Optimizer": {"lr": Positive, "weight_decay": Amount},
    "torch.optim.lr_scheduler.CosineAnnealingLR": {"T_max": Count},
    "albumentations.core.transforms_interface.BasicTransform": {"p": Share},
    "albumentations.core.composition.BaseCompose": {"p": Share},
}
"""Annotations that replace those of the library, by argument, by name of the class or of one of its bases."""
MAX_NUMBER = {"albumentations": 10_000.0}
"""Largest absolute value of a number in the arguments of a package's classes, by package: pixels of a crop, its grey
values, or repetitions. Larger values would take minutes and gigabytes for the first face."""
