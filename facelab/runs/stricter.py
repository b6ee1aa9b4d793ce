"""Values that libraries take and nobody means: the annotations that are checked in place of theirs."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from facelab.bounds import Amount, Count, Positive, Share, Text, Whole

STRICTER: dict[str, dict[str, Any]] = {
    "lightning.pytorch.trainer.trainer.Trainer": {
        "devices": Annotated[list[int] | str | int, Interval(ge=-1, le=2**10)],  # Lightning makes a list of so many
        "num_nodes": Count,
        "max_epochs": Literal[-1] | Count | None,  # after none there is nothing to test
        "max_steps": Literal[-1] | Count,
        "min_epochs": Whole | None,
        "min_steps": Whole | None,
        "limit_train_batches": Positive | None,  # of none nothing is learned
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
"""Name of a class, or of a base of it, to its arguments and their annotations in place of its own."""
LARGEST = {"albumentations": 10_000.0}
"""Package to the largest number that an argument of its classes may be or hold, to both sides: pixels of a crop, its
grey values, or repetitions. More would take minutes and gigabytes at the first face."""
