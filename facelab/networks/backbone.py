"""Image backbones from timm, as pyramids of features."""

import difflib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import timm
import torch
from annotated_types import Interval
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session
from safetensors.torch import load_file
from torch import Tensor, nn

from facelab.errors import ConfigError

Epsilon: TypeAlias = Annotated[float, Interval(gt=0, le=1)]
"""Constant that a normalisation adds to the variance; libraries have 1e-5 to 1e-3."""
HUB_SECONDS = 5.0
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class TimmBackbone(nn.Module):
    """A network of timm without its classifier: one feature map per stride, from fine to coarse.

    It takes raw pixels and normalises them itself, by the mean and standard deviation its published weights were
    trained with, so that backbones can be swapped without touching the data and an exported graph takes an image as it
    is. The memory format of the image is kept.

    Args:
        name: timm's name of the network, with or without the tag of its weights: ``resnet18``,
            ``mobilenetv2_100.ra_in1k``.
        pretrained: start from timm's published weights, from the cache or the hub.
        weights: a file to start from instead, ``.safetensors`` or what ``torch.load(weights_only=True)`` reads. Its
            tensors are matched by timm's names; or, when the names differ, in their order, if the shapes then agree one
            to one (torchvision's MobileNetV2 and timm's ``mobilenetv2_100``).
        norm_epsilon: epsilon of all batch normalisations, which a file of weights does not contain; None for timm's.

    Attributes:
        channels: of each feature map, fine to coarse.
        strides: of each feature map, in pixels of the image.

    Raises:
        ConfigError: no such network in timm, a network without a pyramid, a file that does not fit it, or the published
            weights cannot be had. Training never starts silently from random weights.
    """

    def __init__(self, name: str, pretrained: bool, weights: str | None, norm_epsilon: Epsilon | None) -> None:
        super().__init__()
        network = _network(name, pretrained, weights)
        pyramid = _pyramid(name)
        if norm_epsilon is not None:
            for layer in (*network.modules(), *pyramid.modules()):
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eps = norm_epsilon
        pyramid.load_state_dict(_of_pyramid(name, network.state_dict(), pyramid.state_dict()))
        self.pyramid: nn.Module = pyramid
        self.channels: tuple[int, ...] = tuple(pyramid.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(pyramid.feature_info.reduction())
        mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.scale: Tensor
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.shift: Tensor
        self.register_buffer("shift", -mean / std, persistent=False)
        # In a tuple, so that the layers belong to the head that adopts them and otherwise to nobody.
        self._classifier = (_last_convolution(network),)

    @property
    def classifier(self) -> nn.Sequential | None:
        """The 1x1 convolution, normalisation and activation before the pooling (MobileNetV2, EfficientNet), or None.

        Its weights are the pretrained ones. They are not part of this module's parameters.
        """
        return self._classifier[0]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            image: ``(B, 3, H, W)`` uint8, RGB.

        Returns:
            One ``(B, C, h, w)`` per entry of :attr:`strides`.
        """
        pixels = torch.addcmul(self.shift, image.to(self.scale.dtype), self.scale)
        return tuple(self.pyramid(pixels))


class PIPMobileNetV3(TimmBackbone):
    """MobileNetV3-Large as in jhb86253817/PIPNet: squeeze-and-excitation before the activation, not behind it.

    Its tensors have the shapes of timm's ``mobilenetv3_large_100``, and give other features in that network.

    Args:
        pretrained: must be false if ``weights`` is None, as timm publishes no weights of this arrangement.
        weights: see :class:`TimmBackbone`.
        norm_epsilon: see :class:`TimmBackbone`.

    Raises:
        ConfigError: ``pretrained`` is true without ``weights``; or as :class:`TimmBackbone`.
    """

    def __init__(self, pretrained: bool, weights: str | None, norm_epsilon: Epsilon | None) -> None:
        if pretrained and weights is None:
            raise ConfigError(
                "weights",
                "=null: timm publishes no weights of this MobileNetV3; name a file, or start from random weights with "
                "backbone.pretrained=false",
            )
        super().__init__("mobilenetv3_large_100", pretrained=False, weights=weights, norm_epsilon=norm_epsilon)
        blocks: list[Any] = list(self.pyramid.modules())
        for block in blocks:
            if hasattr(block, "conv_pwl") and not isinstance(block.se, nn.Identity):  # an InvertedResidual of timm
                block.se = nn.Sequential(block.se, block.bn2.act)
                block.bn2.act = nn.Identity()


def _network(name: str, pretrained: bool, weights: str | None) -> Any:
    """The whole classification network with the weights to start from."""
    known = {*timm.list_models(), *timm.list_models(pretrained=True)}
    if name not in known:
        nearest = ", ".join(difflib.get_close_matches(name, sorted(known), n=5)) or "see timm.list_models()"
        raise ConfigError("name", f"={name}: timm {timm.__version__} has no such network. Nearest: {nearest}")
    if weights is not None:
        network = timm.create_model(name, pretrained=False)
        network.load_state_dict(_matched(_tensors(Path(weights)), network, weights), strict=False)
        return network
    return _published(name) if pretrained else timm.create_model(name, pretrained=False)


def _pyramid(name: str) -> Any:
    """The network without its classifier, which gives its feature maps.

    Raises:
        ConfigError: timm has none of it, or they are no pyramid.
    """
    try:
        pyramid: Any = timm.create_model(name, features_only=True, pretrained=False)
    except Exception as error:  # timm says so in many ways
        raise ConfigError("name", f"={name}: timm {timm.__version__} has no feature maps of it ({error})") from error
    if str(getattr(pyramid, "output_fmt", "NCHW")).endswith("NHWC"):
        raise ConfigError("name", f"={name}: its features are (B, h, w, C); choose a convolutional network")
    strides = pyramid.feature_info.reduction()
    if any(coarser <= finer for finer, coarser in pairwise(strides)):
        raise ConfigError(
            "name",
            f"={name}: its feature maps have the strides {', '.join(map(str, strides))} and are no pyramid; choose a "
            "convolutional network",
        )
    return pyramid


def _of_pyramid(name: str, network: dict[str, Tensor], pyramid: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the network under the names they have in its pyramid.

    timm wraps some networks (``model.`` or ``body.``) and flattens others (``stages_0.`` for ``stages.0.``).

    Raises:
        ConfigError: a tensor of the pyramid has yet another name in the network.
    """
    flat = {key.replace(".", "_"): value for key, value in network.items()}
    names = {key: key.removeprefix("model.").removeprefix("body.").replace(".", "_") for key in pyramid}
    if renamed := [key for key in pyramid if names[key] not in flat]:
        raise ConfigError(
            "name",
            f"={name}: timm's pyramid of it holds {renamed[0]} and {len(renamed) - 1} more tensors under names that "
            "the network itself does not have, so its weights cannot be carried over; choose another network",
        )
    return {key: flat[names[key]] for key in pyramid}


def _last_convolution(network: Any) -> nn.Sequential | None:
    # MobileNetV3 has a conv_head too, but behind the pooling; it comes without bn2.
    convolution, norm = getattr(network, "conv_head", None), getattr(network, "bn2", None)
    return nn.Sequential(convolution, norm) if convolution is not None and norm is not None else None


def _published(name: str) -> Any:
    """The network with the weights timm publishes for it."""
    try:
        _check_hub(name)
        return timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, HfHubHTTPError) as error:
        raise ConfigError(
            "",
            f": the pretrained weights of backbone {name} cannot be had: {error}\n"
            "Start from a file with backbone.weights=FILE, or from random weights with backbone.pretrained=false.",
        ) from error


def _check_hub(name: str) -> None:
    """Ask once, and briefly, whether the hub answers: its client by itself tries for most of a minute.

    Raises:
        ConnectionError: the weights are not in the cache and the hub does not answer.
    """
    published = timm.get_pretrained_cfg(name)
    if published is None or published.hf_hub_id is None:
        return
    files = (published.hf_hub_filename,) if published.hf_hub_filename else HUB_FILES
    if any(isinstance(try_to_load_from_cache(published.hf_hub_id, file), str) for file in files):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # huggingface_hub has changed its HTTP library twice, each with exceptions of its own
        raise ConnectionError(f"{constants.ENDPOINT} does not answer ({error})") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a file.

    Raises:
        ConfigError: no such file, or something else in it.
    """
    if not path.is_file():
        raise ConfigError("weights", f"={path}: there is no such file")
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # what is no file of tensors makes torch fail in many ways
        raise ConfigError("weights", f"={path}: not a file of tensors as torch or safetensors write it") from error
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError("weights", f"={path}: expected tensors by name, found {type(content).__name__}")
    return dict(content)


def _matched(state: dict[str, Tensor], network: Any, path: str) -> dict[str, Tensor]:
    """Name the tensors of a file as the network does; its classes are left out where they are not the same.

    Raises:
        ConfigError: the file belongs to another network.
    """
    classes = network.pretrained_cfg["classifier"]  # a module's name, or several
    classes = {classes} if isinstance(classes, str) else {*(classes or ())}
    wanted, given = (
        {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
        for tensors in (network.state_dict(), state)
    )
    body, given_body = ({key for key in names if key.rpartition(".")[0] not in classes} for names in (wanted, given))
    if body == given_body:
        pairs = {key: given[key] for key in wanted if key in body}
    else:
        pairs = dict(zip(wanted, given.values(), strict=False))
        if len(wanted) != len(given):
            raise ConfigError(
                "weights",
                f"={path}: {len(given)} tensors, from {next(iter(given), None)}, but the network has {len(wanted)}, "
                f"from {next(iter(wanted))}; neither the names nor the order match",
            )
    for key, value in pairs.items():
        if value.shape != wanted[key].shape:
            raise ConfigError(
                "weights",
                f"={path}: the tensor for {key} has shape {tuple(value.shape)}, the network needs "
                f"{tuple(wanted[key].shape)}",
            )
    return pairs
