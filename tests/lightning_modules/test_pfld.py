"""Tests of PFLD: its losses against the formulas, its classes, augmented copies, angles and experiment grids."""

import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import CONF, SMALL_FACES, compose_config, faults, options, small
from conftest import open_door
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from torch import Tensor, nn

from datamodules.augmentation import UNCHANGED
from datamodules.pfld import PFLDDataModule, SquaresAroundFace
from facelab.errors import ConfigError
from facelab.faces.face import Face
from facelab.faces.geometry import Array, transform_points
from facelab.faces.layouts import IBUG68
from facelab.faces.pose import estimate_pose, flipped, turned
from facelab.losses.pfld import (
    CLASSES,
    EffectiveNumberWeight,
    FaceClasses,
    HardExampleWeight,
    InverseFrequencyWeight,
    OfficialPFLDLoss,
    PFLDLoss,
    angle_errors,
)
from facelab.losses.regression import LandmarkLoss, WingLoss
from facelab.profiling.cost import cost
from facelab.runs.build import build

WFLW_TAGS = ("pose", "expression", "illumination", "makeup", "occlusion", "blur")
REGRESSION = ("l1", "l2", "smooth_l1", "wing")
GRIDS = ("pfld_ablation", "pfld_annotated_pose", "pfld_input_size", "pfld_pose_at_inference")
NONE: tuple[str, ...] = ()
SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    torch.manual_seed(0)


def squared_loss() -> LandmarkLoss:
    return LandmarkLoss(nn.MSELoss(reduction="none"), 1.0)


def random_batch(faces: int = 4, points: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Return predicted points, true points and the mask of annotated points."""
    generator = torch.Generator().manual_seed(1)
    prediction = torch.rand(faces, points, 2, generator=generator).requires_grad_()
    return prediction, torch.rand(faces, points, 2, generator=generator), torch.ones(faces, points, dtype=torch.bool)


def to_numpy(*tensors: Tensor) -> list[Array]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def build_loss(name: str, *words: str) -> Any:
    return build(compose_config(["model=pfld", f"loss={name}", *words]), "loss")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # errors as fractions of a crop of 100 px: 0.1, 0.2, 0.001 and 0, which are 10, 20, 0.1 and 0 px
        ("l2", 0.01 + 0.04 + 1e-6),
        ("l1", 0.1 + 0.2 + 0.001),
        ("smooth_l1", 10 - 0.5 + 20 - 0.5 + 0.1**2 / 2),
        ("wing", 10 * math.log(1 + 10 / 2) + 20 - (10 - 10 * math.log(6)) + 10 * math.log(1 + 0.1 / 2)),
    ],
)
def test_landmark_loss_matches_values_computed_by_hand(name: str, expected: float) -> None:
    """Would catch a mean over points, a penalty in the wrong unit, or wing pieces that do not meet."""
    loss = build_loss(name, "crop.size=100")
    target = torch.tensor([[[0.5, 0.5], [0.2, 0.3]]])
    prediction = target + torch.tensor([[[0.1, -0.2], [0.001, 0.0]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    assert loss(prediction, target, valid)["points"].item() == pytest.approx(expected, rel=1e-4)


def test_wing_loss_is_continuous_at_its_width() -> None:
    """Would catch a jump where the logarithmic part ends."""
    wing, zero = WingLoss(10.0, 2.0), torch.zeros(2)
    low, high = wing(torch.tensor([10 - 1e-4, 10 + 1e-4]), zero).tolist()
    assert low == pytest.approx(high, abs=1e-3)
    with pytest.raises(ConfigError, match="over 0"):
        WingLoss(10.0, 0.0)


@pytest.mark.parametrize("name", REGRESSION)
def test_landmark_loss_ignores_missing_annotations(name: str) -> None:
    """Would catch NaN in the gradient, and a mean that counts faces without annotations."""
    loss = build_loss(name)
    prediction, target, valid = random_batch(3)
    target[0, 2], valid[0, 2], valid[1] = torch.nan, False, False
    total = loss(prediction, target, valid)["points"]
    total.backward()
    assert prediction.grad is not None and prediction.grad.isfinite().all()
    assert not prediction.grad[1].any() and not prediction.grad[0, 2].any() and prediction.grad[2].any()
    rows = [0, 2]
    torch.testing.assert_close(total, loss(prediction[rows], target[rows], valid[rows])["points"])
    nothing = loss(prediction, target, torch.zeros_like(valid))["points"]
    assert nothing.item() == 0 and nothing.requires_grad


def test_landmark_loss_applies_the_face_weights() -> None:
    """Would catch weights that are normalised or applied to other faces."""
    prediction, target, valid = random_batch(2)
    weight = torch.tensor([3.0, 0.0])
    loss = squared_loss()(prediction, target, valid, weight)["points"].item()
    p, t = to_numpy(prediction, target)
    assert loss == pytest.approx(3 * np.square(p[0] - t[0]).sum() / 2, rel=1e-5)


def test_landmark_loss_refuses_a_reduced_penalty() -> None:
    """Would catch a penalty with torch's default reduction, which weighs all faces alike."""
    with pytest.raises(ConfigError, match="reduction=none"):
        LandmarkLoss(nn.MSELoss(), 1.0)


def tags_of(*rows: tuple[int, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def with_counts(weight: Any, classes: Tensor) -> Any:
    weight.count(classes)
    return weight


def classes_by(names: tuple[str, ...]) -> FaceClasses:
    """Return the six classes for a dataset with these tags."""
    classes = FaceClasses(30.0, 15.0)
    classes.resolve(names)
    return classes


TAG_CLASSES = classes_by(CLASSES)
TRAINING = tags_of((1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 1, 0), (0, 1, 0, 0, 0, 0), (0, 1, 1, 0, 0, 0))
"""Classes of four training faces: one profile, three frontal, one head-up and one with an expression."""


def full_loss(floor: float, by_pose: bool = True, weight: Any = None, classes: FaceClasses = TAG_CLASSES) -> PFLDLoss:
    return PFLDLoss(squared_loss(), by_pose, classes, with_counts(weight or InverseFrequencyWeight(), TRAINING), floor)


ANGLES = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.0, -0.2], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
POSE = torch.tensor([[10.0, 0.0, -5.0], [-40.0, 20.0, 3.0], [0.0, 0.0, 0.0], [45.0, 3.0, 170.0]])
FLAGS = tags_of((0, 1, 0, 0, 1, 0), (1, 0, 1, 0, 0, 0), (0, 1, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("floor", [0.0, 1.0], ids=["paper", "fixed"])
def test_pfld_loss_matches_the_formula(floor: float) -> None:
    """Would catch degrees taken for radians, a mean for a sum, or class weights of the batch."""
    prediction, target, valid = random_batch()
    loss = full_loss(floor)(prediction, target, valid, ANGLES, POSE, FLAGS)["points"].item()
    p, t, angles, pose, flags = to_numpy(prediction, target, ANGLES, POSE, FLAGS)
    omega = np.array([4 / 1, 4 / 3, 4 / 1, 0, 4 / 1, 0])  # faces over faces of the class
    expected = 0.0
    for face in range(4):
        theta = sum(1 - math.cos(angles[face, k] - math.radians(pose[face, k])) for k in range(3))
        gamma = (floor + (omega * flags[face]).sum()) * (floor + theta)
        expected += gamma * np.square(p[face] - t[face]).sum()
    assert loss == pytest.approx(expected / 4, rel=1e-5)


def test_pfld_loss_switches_each_factor_off() -> None:
    """Would catch an ablation whose disabled factor is 0 or 2 instead of 1."""
    prediction, target, valid = random_batch()
    plain = squared_loss()(prediction, target, valid)["points"]
    bare = PFLDLoss(squared_loss(), False, TAG_CLASSES, None, 1.0)
    torch.testing.assert_close(bare(prediction, target, valid, None, POSE, FLAGS)["points"], plain)
    by_class = full_loss(0.0, by_pose=False)(prediction, target, valid, None, POSE, FLAGS)["points"]
    omega = torch.tensor([4 / 3 + 4, 8.0, 4 / 3, 0.0])
    torch.testing.assert_close(by_class, squared_loss()(prediction, target, valid, omega)["points"])
    by_pose = PFLDLoss(squared_loss(), True, TAG_CLASSES, None, 0.0)(prediction, target, valid, ANGLES, POSE, FLAGS)
    theta = (1 - (ANGLES - POSE.deg2rad()).cos()).sum(1)
    torch.testing.assert_close(by_pose["points"], squared_loss()(prediction, target, valid, theta)["points"])


def landmark_gradients(loss: Any, angles: Tensor) -> Tensor:
    """Return the sum of absolute gradients at the landmarks of each face."""
    prediction, target, valid = random_batch()
    loss(prediction, target, valid, angles, POSE, FLAGS)["points"].backward()
    assert prediction.grad is not None
    return prediction.grad.abs().sum((1, 2))


def test_pfld_loss_reaches_faces_without_flags_or_angle_error() -> None:
    """Would catch faces without a flag, or with perfect angles, that get no gradient as in the public codes."""
    perfect = POSE.deg2rad()
    assert (landmark_gradients(full_loss(1.0), perfect) > 0).all()  # includes the last face, which is in no class
    assert landmark_gradients(full_loss(0.0), perfect).max() < 1e-5
    paper = landmark_gradients(full_loss(0.0), ANGLES)
    assert paper[0] > 0 and paper[1] > 0 and paper[3] == 0
    assert (landmark_gradients(full_loss(1.0), ANGLES) > 0).all()


def test_pfld_loss_passes_gradients_to_the_angles() -> None:
    """Would catch a pose weight that is detached from the graph, so the pose branch never learns."""
    prediction, target, valid = random_batch()
    for floor in (0.0, 1.0):
        angles = ANGLES.clone().requires_grad_()
        full_loss(floor)(prediction, target, valid, angles, POSE, FLAGS)["points"].backward()
        assert angles.grad is not None and angles.grad[0].abs().min() > 0


def test_pfld_loss_accepts_faces_without_a_pose() -> None:
    """Would catch NaN in the loss or its gradient after one face without a pose estimate."""
    prediction, target, valid = random_batch()
    pose, angles = POSE.clone(), ANGLES.clone().requires_grad_()
    pose[1] = torch.nan
    loss = full_loss(1.0, classes=classes_by(NONE))(prediction, target, valid, angles, pose, FLAGS[:, :0])["points"]
    loss.backward()
    assert loss.isfinite() and angles.grad is not None and angles.grad.isfinite().all()
    assert not angles.grad[1].any() and prediction.grad is not None and prediction.grad[1].any()


def test_angle_errors_take_the_short_way_round() -> None:
    """Would catch an error of 350 degrees between -175 and 175."""
    error = angle_errors(torch.deg2rad(torch.tensor([[-175.0, 10, 0]])), torch.tensor([[175.0, 50, torch.nan]]))
    torch.testing.assert_close(error.rad2deg(), torch.tensor([[10.0, -40, 0]]), atol=1e-3, rtol=0)


def reference_official(batch_size: int, *arrays: Array) -> float:
    """Compute the loss of polarisZhao/PFLD-pytorch in numpy: it skips the first flag and takes degrees for radians."""
    p, t, angle, pose, flags = arrays
    weight_angle = np.sum(1 - np.cos(angle - pose), axis=1)
    attributes = flags[:, 1:6]
    ratio = np.array([1 / share if share > 0 else batch_size for share in attributes.mean(axis=0)])
    weight_attribute = (attributes * ratio).sum(axis=1)
    flat = (t - p).reshape(len(p), -1)
    return float(np.mean(weight_angle * weight_attribute * (flat * flat).sum(axis=1)))


def test_official_pfld_loss_matches_the_reference_code() -> None:
    """Would catch a correction of the reference's faults: cosines of degrees, and weight 0 without flags."""
    prediction, target, valid = random_batch()
    loss = OfficialPFLDLoss(["expression", "illumination", "makeup", "occlusion", "blur"], 256)
    flags = tags_of((1, 1, 0, 0, 1, 0), (0, 1, 1, 0, 0, 0), (1, 0, 0, 0, 0, 0), (0, 0, 1, 0, 0, 0))
    loss.fit(WFLW_TAGS, flags, POSE)
    value = loss(prediction, target, valid, ANGLES, POSE, flags)["points"]
    value.backward()
    expected = reference_official(256, *to_numpy(prediction, target, ANGLES, POSE, flags))
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert prediction.grad is not None and not prediction.grad[2].any()  # the tag `pose` does not count as a flag
    half = [array[:2] for array in (prediction, target, valid, ANGLES, POSE)]
    fewer = loss(*half, flags[:2])["points"].item()
    arrays = to_numpy(*(array[:2] for array in (prediction, target, ANGLES, POSE, flags)))
    assert fewer == pytest.approx(reference_official(256, *arrays), rel=1e-4)


def test_face_classes_follow_the_pose_without_tags() -> None:
    """Would catch wrong signs, limits or order of classes, and a class for a face of unknown pose."""
    pose = torch.tensor([[31.0, 0, 0], [-29, 14, 0], [0, 16, 0], [-50, -16, 90], [torch.nan] * 3])
    expected = tags_of((1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0), (0, 0, 1, 0, 0, 0), (1, 0, 0, 1, 0, 0), (0,) * 6)
    assert torch.equal(classes_by(NONE)(torch.zeros(5, 0, dtype=torch.bool), pose), expected)


def test_face_classes_follow_the_tags() -> None:
    """Would catch mixed-up columns when a dataset has its tags in another order, with other tags among them."""
    classes = classes_by(WFLW_TAGS)(
        tags_of((1, 1, 0, 0, 0, 0), (1, 0, 1, 0, 1, 1)), torch.tensor([[0.0, 0, 0], [40, 0, 0]])
    )
    assert torch.equal(classes, tags_of((0, 1, 0, 0, 1, 0), (1, 0, 0, 0, 0, 1)))
    tags = FLAGS[:2]
    # The tags decide, not the pose.
    assert torch.equal(TAG_CLASSES(tags, torch.tensor([[80.0, 0, 0], [0, 0, 0]])), tags)


def test_face_classes_of_rendered_faces_match_their_tags() -> None:
    """Would catch limits that differ from those of a dataset with class tags."""
    datamodule = build(compose_config(small("pfld")), "datamodule")
    datamodule.setup("fit")
    names, tags, pose = datamodule.annotations()
    assert torch.equal(classes_by(NONE)(tags, pose)[:, :4], classes_by(tuple(names))(tags, pose)[:, :4])


def test_inverse_frequency_weight_uses_shares() -> None:
    """Would catch reciprocals of counts instead of shares, and an infinite weight for an empty class."""
    assert with_counts(InverseFrequencyWeight(), TRAINING).weight.tolist() == pytest.approx([4, 4 / 3, 4, 0, 4, 0])


def test_effective_number_weight_matches_the_formula() -> None:
    """Would catch a wrong formula or scale (the limits are 1 / count for beta = 1 and equal weights for beta = 0)."""
    beta = 0.9
    raw = [(1 - beta) / (1 - beta**n) if n else 0 for n in (1, 3, 1, 0, 1, 0)]
    expected = [4 * weight / sum(raw) for weight in raw]
    assert with_counts(EffectiveNumberWeight(beta), TRAINING).weight.tolist() == pytest.approx(expected)
    assert with_counts(EffectiveNumberWeight(0.0), TRAINING).weight.tolist() == pytest.approx([1, 1, 1, 0, 1, 0])
    many = TRAINING.repeat(1000, 1)
    rare = with_counts(EffectiveNumberWeight(1 - 1e-9), many).weight
    assert (rare[0] / rare[1]).item() == pytest.approx(3, rel=1e-3)
    with pytest.raises(ConfigError, match="beta=1"):
        EffectiveNumberWeight(1)


def test_hard_example_weight_follows_the_error() -> None:
    """Would catch a gradient through the weight, and evaluation or unreadable faces that move the running mean."""
    weight = HardExampleWeight(2.0, 0.5)
    distance = torch.tensor([0.1, 0.3, torch.nan], requires_grad=True)
    values = weight(FLAGS[:3], distance)
    assert not values.requires_grad
    assert values.tolist() == pytest.approx([0.25, 2.25, 0])  # the mean is 0.2
    weight(FLAGS[:2], torch.tensor([0.4, 0.4]))
    assert weight.mean.item() == pytest.approx(0.3)
    weight.eval()(FLAGS[:2], torch.tensor([0.9, 0.9]))
    assert weight.mean.item() == pytest.approx(0.3)
    weight.train()(FLAGS[:2], torch.tensor([torch.nan, torch.nan]))
    assert weight.mean.item() == pytest.approx(0.3)


@pytest.mark.parametrize("name", options("loss/class_weight"))
@pytest.mark.parametrize("loss", [pytest.param("pfld_paper", marks=pytest.mark.slow), "pfld_fixed"])
def test_class_weight_options_train(loss: str, name: str) -> None:
    """Would catch an option that does not compose, or a weight that is missing when training begins."""
    words = [*small("pfld"), f"loss={loss}", f"loss/class_weight={name}"]
    assert faults(words) == []
    module, batch = small_module(*words[1:])
    module.training_step(batch, 0).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_class_weight_is_refused_by_a_loss_without_one() -> None:
    """Would catch a class weight that is accepted silently and changes nothing."""
    with pytest.raises(ConfigCompositionException, match="class_weight"):
        compose_config(["model=pfld", "loss=l2", "loss/class_weight=none"])


def small_module(*words: str) -> tuple[Any, Any]:
    """Return a small module with the statistics of its training set, and a batch of that set."""
    cfg = compose_config([*small("pfld"), *words])
    module, datamodule = build(cfg, "model"), build(cfg, "datamodule")
    datamodule.setup("fit")
    module.fit_statistics(datamodule)
    return module.train(), next(iter(datamodule.train_dataloader()))


@pytest.mark.parametrize("name", ["l1", "pfld_official", *(pytest.param(n, marks=SLOW) for n in REGRESSION[1:])])
def test_pfld_trains_with_every_loss(name: str) -> None:
    """Would catch a branch without a gradient, which breaks DDP, and a loss that needs inputs PFLD does not provide."""
    module, batch = small_module(f"loss={name}")
    assert (module.pose is None) == (name in REGRESSION)
    module.training_step(batch, 0).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("loss", ["pfld_paper", "pfld_fixed", "pfld_official", "pfld_paper_no_class"])
def test_pfld_refuses_a_pose_weighted_loss_without_a_branch(loss: str) -> None:
    """Would catch a loss weighted by angles that no branch predicts."""
    with pytest.raises(ConfigError, match=r"^pose=none: .*pose=auxiliary"):
        build(compose_config([*small("pfld"), "pose=none", f"loss={loss}"]), "model")


def test_check_config_refuses_a_loss_of_maps_for_pfld() -> None:
    """Would catch another method's loss that fails deep inside the first step."""
    assert faults([*small("pfld"), "loss=pipnet"]) == [
        "loss: `PIPLoss` compares PIPMaps, the model `PFLD` predicts Tensor"
    ]


@pytest.mark.parametrize("loss", ["pfld_official", "pfld_fixed"])
def test_pfld_predicts_no_pose_from_unsupervised_angles(loss: str) -> None:
    """Would catch noise that is reported as the pose of a head."""
    module, batch = small_module(f"loss={loss}")
    assert (module.predict(batch.image).pose is None) is (loss == "pfld_official")


@pytest.mark.parametrize("loss", ["l1", "pfld_paper_no_pose", *(pytest.param(n, marks=SLOW) for n in REGRESSION[1:])])
def test_pfld_trains_without_a_pose_branch(loss: str) -> None:
    """Would catch a loss without angles that still requires a pose branch."""
    module, batch = small_module("pose=none", f"loss={loss}")
    module.training_step(batch, 0).backward()
    assert module.predict(batch.image).pose is None


def test_pfld_logs_the_angle_loss() -> None:
    """Would catch an angle term that is left out, in degrees, or computed over unreadable faces."""
    module, batch = small_module("loss=l2", "pose=shared", "model.angle_weight=2.0")
    logged: dict[str, Tensor] = {}
    module.log_dict = lambda scalars, **_: logged.update(scalars)
    partly_unreadable = batch._replace(valid=torch.cat([torch.zeros_like(batch.valid[:1]), batch.valid[1:]]))
    module.eval().training_step(partly_unreadable, 0)
    with torch.no_grad():
        errors = (module.predict(batch.image).pose - batch.pose).deg2rad().abs()[1:]
    assert logged["train/loss_angles"].item() == pytest.approx(2 * errors.mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("pfld_fixed", r"no training face has a pose.*pose=none"),
        ("pfld_paper_no_pose", r"classes \(profile, .*loss=pfld_fixed"),
        ("pfld_official", r"flags \(expression, .*loss=pfld_fixed"),
    ],
)
def test_train_refuses_data_without_pose_or_class(
    loss: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a branch without a target, and a training that succeeds although no face has a weight."""
    pose = torch.zeros(3, 3) if loss == "pfld_official" else torch.full((3, 3), torch.nan)
    unlabelled = NONE, torch.zeros(3, 0, dtype=torch.bool), pose
    monkeypatch.setattr(PFLDDataModule, "annotations", lambda _: unlabelled)
    with pytest.raises(SystemExit) as stop:
        open_door("train", *small("pfld"), f"loss={loss}", f"hydra.run.dir={tmp_path / 'run'}", folder=tmp_path)
    assert re.search(message, str(stop.value.code))
    assert "Traceback" not in capsys.readouterr().err


def test_pfld_refuses_weights_out_of_range() -> None:
    """Would catch easy faces that weigh most, a running mean that diverges, and terms that are subtracted."""
    for words, message in (
        (["loss/class_weight=hard_faces", "loss.class_weight.exponent=-1"], r"loss\.class_weight\.exponent=-1"),
        (["loss/class_weight=hard_faces", "loss.class_weight.momentum=5"], r"loss\.class_weight\.momentum=5"),
        (["loss.floor=-1"], r"loss\.floor=-1"),
        (["model.angle_weight=-1"], r"model\.angle_weight=-1"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(compose_config([*small("pfld"), *words]), "model")


def test_pose_branches_are_left_out_of_inference() -> None:
    """Would catch a pose branch that is exported, or counted in the cost of a face."""
    branches = [pose for pose in options("pose") if pose != "none" and not faults(["model=pfld", f"pose={pose}"])]
    assert len(branches) >= 3
    for pose in branches:
        module, batch = small_module(f"pose={pose}")
        branch = sum(parameter.numel() for parameter in module.pose.parameters())
        total = sum(parameter.numel() for parameter in module.parameters())
        assert cost(module, 64, pose=False)["params"] == total - branch, pose
        program = torch.export.export(module.eval(), (batch.image,))
        inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
        specs = program.graph_signature.input_specs
        inputs_read = {str(spec.target) for spec, node in zip(specs, inputs, strict=True) if node.users}
        assert any(name.startswith("backbone.") for name in inputs_read), pose
        assert not [name for name in inputs_read if name.startswith("pose.")], pose


def test_validation_logs_angle_errors() -> None:
    """Would catch errors in radians or the long way round, and angles of a model that predicts none."""
    from lightning import Trainer

    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    for pose in ("shared", "none"):
        cfg = compose_config([*small("pfld"), f"pose={pose}", "loss=l2", "model.angle_weight=1.0"])
        module, datamodule = build(cfg, "model"), build(cfg, "datamodule")
        (logged,) = Trainer(accelerator="cpu", **quiet).validate(module, datamodule, verbose=False)
        if pose == "none":
            assert not [name for name in logged if "mae" in name]
            continue
        module.eval()
        with torch.no_grad():
            batches = [(module.predict(batch.image).pose, batch.pose) for batch in datamodule.val_dataloader()]
        error = torch.cat([((predicted - true + 180) % 360 - 180).abs() for predicted, true in batches]).mean(0)
        for angle, expected in zip(("yaw", "pitch", "roll"), error, strict=True):
            assert logged[f"val/mae_{angle}"] == pytest.approx(expected.item(), rel=1e-3)
        assert logged["val/mae_angle"] == pytest.approx(error.mean().item(), rel=1e-3)
        assert error.mean() > 5, "radians"


def set_up_datamodule(*words: str) -> Any:
    datamodule = build(compose_config([*small("pfld"), *words]), "datamodule")
    datamodule.setup("fit")
    return datamodule


def test_pfld_datamodule_selects_the_training_pose() -> None:
    """Would catch a pose option without effect, or one that changes the true pose of the validation split."""
    datamodules = {
        pose: set_up_datamodule(f"datamodule.pose={pose}") for pose in ("labelled", "estimated", "official_pnp")
    }
    truth = np.stack([face.pose for face in datamodules["labelled"].faces["train"].faces])
    np.testing.assert_array_equal(datamodules["labelled"].annotations()[2].numpy(), truth)
    errors = {
        pose: np.abs(datamodule.annotations()[2].numpy() - truth).mean() for pose, datamodule in datamodules.items()
    }
    assert errors["labelled"] == 0 < errors["estimated"] < errors["official_pnp"] < 30
    for datamodule in datamodules.values():
        labels = np.stack([face.pose for face in datamodule.faces["val"].faces])
        np.testing.assert_array_equal(datamodule.faces["val"].pose, labels)
        assert datamodule.faces["val"].pose_source == "labelled"
    points = np.stack([face.points for face in datamodules["estimated"].faces["train"].faces])
    np.testing.assert_array_equal(datamodules["estimated"].faces["train"].pose, estimate_pose(points, IBUG68))


FACE = np.array([[20.0, 40], [90, 42], [55, 70], [35, 95], [75, 96], [56, 30], [np.nan, np.nan]])


def draw_warps(count: int, **changes: Any) -> list[Any]:
    settings: dict[str, Any] = {
        "clean_probability": 0.1,
        "flip_probability": 0.5,
        "shift_limit": 0.12,
        "smallest": 1.0,
        "largest": 1.25,
        "rotation_limit": 30.0,
        "pixels": [],
    }
    augment = SquaresAroundFace(**settings | changes)
    return [augment.draw(np.random.default_rng(seed), 112, FACE) for seed in range(count)]


def test_squares_around_face_draws_the_ranges_of_the_reference() -> None:
    """Would catch other shares and ranges than those of the reference's ten copies, and points outside the square."""
    points, warps = FACE[:-1], draw_warps(1500)
    assert np.mean([warp is UNCHANGED for warp in warps]) == pytest.approx(0.1, abs=0.03)
    changed = [warp for warp in warps if warp is not UNCHANGED]
    assert np.mean([warp.flipped for warp in changed]) == pytest.approx(0.5, abs=0.05)
    degrees = np.array([warp.degrees for warp in changed])
    assert 28 < np.abs(degrees).max() <= 30 and abs(degrees.mean()) < 2
    for warp in changed:
        moved = transform_points(warp.matrix, points)
        assert moved.min() >= -0.5 - 1e-6 and moved.max() <= 111.5 + 1e-6
        sides = np.ptp(moved, axis=0)  # in pixels of the square
        assert sides.max() >= 112 / 1.25 - 1e-6 and sides.min() <= 112 + 1e-6
        linear = warp.matrix[:2, :2]
        assert (np.linalg.det(linear) < 0) == warp.flipped
        upright = linear @ np.diag([-1 if warp.flipped else 1, 1])
        assert np.rad2deg(np.arctan2(upright[1, 0], upright[0, 0])) == pytest.approx(warp.degrees)


def test_squares_around_face_matches_the_reference_distribution() -> None:
    """Would catch sizes and angles distributed otherwise than the reference's, which are drawn here one by one."""
    rng, points = np.random.default_rng(5), FACE[:-1]
    sizes: list[float] = []
    angles: list[float] = []
    box = np.ptp(points, axis=0).max()
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    while len(sizes) < 1500:
        angle, middle = rng.uniform(-30, 30), centre + rng.uniform(-0.1, 0.1, 2) * 1.2 * box
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turned_points = (points - middle) @ np.array([[cos, sin], [-sin, cos]]) + middle
        extent = np.ptp(turned_points, axis=0)
        size = rng.uniform(extent.min(), 1.25 * extent.max())
        inside = (turned_points - (middle - size / 2)) / size
        if (inside < 0).any() or (inside > 1).any():
            continue
        sizes.append(size)
        angles.append(angle)
    warps = draw_warps(1500, clean_probability=0.0)
    warp_sizes = np.array([112 / math.sqrt(abs(np.linalg.det(warp.matrix[:2, :2]))) for warp in warps])
    quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]
    np.testing.assert_allclose(np.quantile(warp_sizes, quantiles), np.quantile(sizes, quantiles), rtol=0.02)
    warp_angles = np.abs([warp.degrees for warp in warps])
    np.testing.assert_allclose(np.quantile(warp_angles, quantiles), np.quantile(np.abs(angles), quantiles), atol=1.7)


def test_pose_follows_an_augmented_copy() -> None:
    """Would catch an angle of the wrong sign after a flip, which the branch would learn without an error."""
    train = set_up_datamodule().faces["train"]
    augment = train.augment
    for row in range(8):
        face: Face = train.faces[row]
        clean = transform_points(train.to_crop(row), face.points.astype(np.float64))
        warp = augment.draw(np.random.default_rng(row), train.crop.size, clean)
        points, pose = transform_points(warp.matrix, clean), estimate_pose(clean[None], IBUG68)[0]
        if warp.flipped:
            points, pose = IBUG68.flipped(points), flipped(pose)
        again = estimate_pose(points[None], IBUG68)[0]
        np.testing.assert_allclose(turned(pose, warp.degrees), again, atol=0.01)


def test_squares_around_face_leaves_degenerate_faces_unchanged() -> None:
    """Would catch an endless search, and a crash on faces without points."""
    augment = SquaresAroundFace(0.0, 0.5, 0.12, 1.0, 1.25, 30.0, [])
    for points in (np.full((3, 2), np.nan), np.array([[5.0, 5]]), np.array([[5.0, 5], [5, 5]])):
        assert augment.draw(np.random.default_rng(0), 64, points) is UNCHANGED
    with pytest.raises(ConfigError, match="largest=1"):
        SquaresAroundFace(0.0, 0.5, 0.12, 0.5, 1.0, 30.0, [])
    with pytest.raises(ConfigError, match="smallest=2"):
        SquaresAroundFace(0.0, 0.5, 0.12, 2.0, 1.5, 30.0, [])


def grid_of(experiment: str) -> dict[str, str]:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"experiment={experiment}"], return_hydra_config=True)
    return dict(OmegaConf.to_container(cfg.hydra.sweeper.params))  # type: ignore[arg-type]


@pytest.mark.parametrize("experiment", GRIDS)
@pytest.mark.parametrize("which", ["ends", pytest.param("middle", marks=pytest.mark.slow)])
def test_pfld_grids_have_valid_jobs(experiment: str, which: str) -> None:
    """Would catch a mistyped or incompatible option in a grid, which fails only after the first hour of a sweep."""
    grid = grid_of(experiment)
    jobs = list(product(*([f"{key}={value}" for value in values.split(",")] for key, values in grid.items())))
    assert 3 <= len(jobs) <= 6
    for job in jobs[1:-1] if which == "middle" else (jobs[0], jobs[-1]):
        words = [f"experiment={experiment}", *job, *SMALL_FACES]
        assert faults(words) == []
        build(compose_config(words), "model")


def test_grid_sweeper_lets_overrides_replace_the_grid() -> None:
    """Would catch a typed value that is swept together with the experiment's values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from hydra_plugins.facelab_grid import GridSweeper

    sweeper = GridSweeper(None, grid_of("pfld_input_size"))
    words = ["experiment=pfld_input_size", "crop.size=96", "backbone.width=0.25,1.0,2.0"]
    overrides = OverridesParser.create().parse_overrides([*sweeper._parse_config(), *words])
    (jobs,) = sweeper.split_arguments(overrides, None)
    assert list(map(set, jobs)) == [
        {"experiment=pfld_input_size", "crop.size=96", f"backbone.width={width}"} for width in ("0.25", "1.0", "2.0")
    ]
