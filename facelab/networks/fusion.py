"""Convolutions that contain their batch normalisation, which is faster for inference."""

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fuse_normalisations(network: nn.Module) -> None:
    """Merge each convolution of an ``nn.Sequential`` with the batch normalisation that follows it, in place.

    Outputs are the same except for rounding. Other modules are left as they are: the order of their parts is not known.

    Args:
        network: network in evaluation mode. It must not be trained or saved afterwards.
    """
    for part in network.children():
        fuse_normalisations(part)
    if isinstance(network, nn.Sequential):
        for index, (layer, following) in enumerate(pairwise(list(network))):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                network[index], network[index + 1] = fuse_conv_bn_eval(layer, following), nn.Identity()
