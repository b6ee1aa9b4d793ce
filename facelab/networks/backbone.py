"""Backbones from timm as feature pyramids."""

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
"""Timeout in seconds of the connection test; the hub's own client retries for most of a minute."""
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""File names of weights on the hub, unless timm's configuration names another."""


class TimmBackbone(nn.Module):
    """Network of timm without its classifier: one feature map per stride, from fine to coarse.

    It receives raw pixels and normalises them with the mean and standard deviation of its published weights. Backbones
    can therefore be swapped without a change of the data, and an exported graph receives the image as it is. The memory
    format of the image is kept.

    Args:
        name: name of the network in timm, with or without the tag of its weights: ``resnet18``,
            ``mobilenetv2_100.ra_in1k``.
        pretrained: load timm's published weights from the cache or the hub.
        weights: file to load instead, ``.safetensors`` or a file for ``torch.load(weights_only=True)``. Its tensors are
            matched by timm's names. If the names differ, they are matched by order, provided that all shapes agree
            (torchvision's MobileNetV2 and timm's ``mobilenetv2_100``).
        norm_epsilon: epsilon of all batch normalisations, which a file of weights does not contain; None for timm's.

    Attributes:
        channels: number of channels of each feature map, fine to coarse.
        strides: stride of each feature map in pixels of the image.

    Raises:
        ConfigError: timm does not have the network, the network has no pyramid, the file does not fit it, or the
            published weights cannot be loaded. Training never starts silently from random weights.
    """

    def __init__(self, name: str, pretrained: bool, weights: str | None, norm_epsilon: Epsilon | None) -> None:
        super().__init__()
        network = _network(name, pretrained, weights)
        pyramid = _pyramid(name)
        if norm_epsilon is not None:
            for layer in (*network.modules(), *pyramid.modules()):
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eps = norm_epsilon
        pyramid.load_state_dict(_pyramid_state(name, network.state_dict(), pyramid.state_dict()))
        self.pyramid: nn.Module = pyramid
        self.channels: tuple[int, ...] = tuple(pyramid.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(pyramid.feature_info.reduction())
        mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.scale: Tensor
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.shift: Tensor
        self.register_buffer("shift", -mean / std, persistent=False)
        # In a tuple, torch does not register the layers as parameters of this module; a head that uses them registers
        # them.
        self._classifier = (_last_convolution(network),)

    @property
    def classifier(self) -> nn.Sequential | None:
        """Return the 1x1 convolution, normalisation and activation before the pooling (MobileNetV2, EfficientNet).

        None if the network has none. The weights are the loaded ones; they are not parameters of this module.
        """
        return self._classifier[0]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            image: ``(B, 3, H, W)`` uint8, RGB.

        Returns:
            One feature map ``(B, C, h, w)`` per entry of :attr:`strides`.
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
    """Build the complete classification network with its initial weights.

    Raises:
        ConfigError: see :class:`TimmBackbone`.
    """
    # With a filter, timm does not sort its thousand names.
    if name not in (*timm.list_models(name), *timm.list_models(name, pretrained=True)):
        available = {*timm.list_models(), *timm.list_models(pretrained=True)}
        nearest = ", ".join(difflib.get_close_matches(name, sorted(available), n=5)) or "see timm.list_models()"
        raise ConfigError(
            "name", f"={name}: timm {timm.__version__} does not have this network. Nearest names: {nearest}"
        )
    if weights is not None:
        network = timm.create_model(name, pretrained=False)
        network.load_state_dict(_match_state(read_tensors(Path(weights)), network, weights), strict=False)
        return network
    return published_network(name) if pretrained else timm.create_model(name, pretrained=False)


def _pyramid(name: str) -> Any:
    """Build the network without its classifier, with all feature maps as output.

    Raises:
        ConfigError: timm has no feature maps of the network, or their strides do not increase.
    """
    try:
        pyramid: Any = timm.create_model(name, features_only=True, pretrained=False)
    except Exception as error:  # timm raises various types
        raise ConfigError("name", f"={name}: timm {timm.__version__} has no feature maps for it ({error})") from error
    if str(getattr(pyramid, "output_fmt", "NCHW")).endswith("NHWC"):
        raise ConfigError("name", f"={name}: its feature maps are (B, h, w, C); choose a convolutional network")
    strides = pyramid.feature_info.reduction()
    if any(coarser <= finer for finer, coarser in pairwise(strides)):
        raise ConfigError(
            "name",
            f"={name}: its feature maps have the strides {', '.join(map(str, strides))} and are no pyramid; choose a "
            "convolutional network",
        )
    return pyramid


def _pyramid_state(name: str, network: dict[str, Tensor], pyramid: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of the network to the names of its pyramid.

    timm wraps some networks (``model.`` or ``body.``) and flattens others (``stages_0.`` for ``stages.0.``).

    Raises:
        ConfigError: a tensor of the pyramid has no counterpart in the network.
    """
    flat = {key.replace(".", "_"): value for key, value in network.items()}
    names = {key: key.removeprefix("model.").removeprefix("body.").replace(".", "_") for key in pyramid}
    if missing := [key for key in pyramid if names[key] not in flat]:
        raise ConfigError(
            "name",
            f"={name}: timm's pyramid of this network has {missing[0]} and {len(missing) - 1} more tensors under names "
            "that the network does not have, so the weights cannot be copied; choose another network",
        )
    return {key: flat[names[key]] for key in pyramid}


def _last_convolution(network: Any) -> nn.Sequential | None:
    """Return the network's 1x1 convolution and normalisation before the pooling, or None."""
    # MobileNetV3 also has a conv_head, but after the pooling and without bn2.
    convolution, norm = getattr(network, "conv_head", None), getattr(network, "bn2", None)
    return nn.Sequential(convolution, norm) if convolution is not None and norm is not None else None


def published_network(name: str) -> Any:
    """Build the network with timm's published weights.

    Raises:
        ConfigError: they cannot be loaded.
    """
    try:
        _check_hub(name)
        return timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, HfHubHTTPError) as error:
        raise ConfigError(
            "",
            f": the pretrained weights of backbone {name} cannot be loaded: {error}\n"
            "Use weights from a file with backbone.weights=FILE, or random weights with backbone.pretrained=false.",
        ) from error


def _check_hub(name: str) -> None:
    """Test the connection to the hub once, unless the weights are in the cache. See :data:`HUB_SECONDS`.

    Raises:
        ConnectionError: the weights are not in the cache and the hub is not reachable.
    """
    published = timm.get_pretrained_cfg(name)
    if published is None or published.hf_hub_id is None:
        return
    files = (published.hf_hub_filename,) if published.hf_hub_filename else HUB_FILES
    if any(isinstance(try_to_load_from_cache(published.hf_hub_id, file), str) for file in files):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # huggingface_hub changed its HTTP library, and so its exceptions, twice
        raise ConnectionError(f"{constants.ENDPOINT} is not reachable ({error})") from error


def read_weights_file(path: Path) -> Any:
    """Read a file of torch or safetensors; no code in the file is run.

    Raises:
        ConfigError: the file is missing, or contains other objects than tensors and plain values.
    """
    if not path.is_file():
        raise ConfigError("weights", f"={path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises various types for other files
        raise ConfigError(
            "weights",
            f"={path}: not a file of tensors written by torch or safetensors; a network that was saved as a whole is "
            "not read, as this could run code of the file",
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a file.

    Raises:
        ConfigError: the file is missing, or its content is not tensors by name.
    """
    content = read_weights_file(path)
    if isinstance(content, Mapping) and "hyper_parameters" in content:
        raise ConfigError("weights", f"={path}: a checkpoint of a whole model; train.py init=FILE starts from it")
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError("weights", f"={path}: expected tensors by name, got {type(content).__name__}")
    return dict(content)


def _match_state(state: dict[str, Tensor], network: Any, path: str) -> dict[str, Tensor]:
    """Map the tensors of a file to the names of the network. A classifier with other names is left out.

    Raises:
        ConfigError: the file belongs to another network.
    """
    classes = network.pretrained_cfg["classifier"]  # name of a module, or several
    classes = {classes} if isinstance(classes, str) else {*(classes or ())}
    needed, given = (
        {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
        for tensors in (network.state_dict(), state)
    )
    body, given_body = ({key for key in names if key.rpartition(".")[0] not in classes} for names in (needed, given))
    if body == given_body:
        pairs = {key: given[key] for key in needed if key in body}
    else:
        pairs = dict(zip(needed, given.values(), strict=False))
        if len(needed) != len(given):
            raise ConfigError(
                "weights",
                f"={path}: {len(given)} tensors (first: {next(iter(given), None)}), but the network has {len(needed)} "
                f"(first: {next(iter(needed))}); neither the names nor the order match",
            )
    for key, value in pairs.items():
        if value.shape != needed[key].shape:
            raise ConfigError(
                "weights",
                f"={path}: the tensor for {key} has shape {tuple(value.shape)}, the network needs "
                f"{tuple(needed[key].shape)}",
            )
    return pairs
