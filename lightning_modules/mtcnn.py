"""MTCNN (Zhang et al., IEEE Signal Processing Letters 2016, arXiv 1604.02878): three detectors, each with those before.

A checkpoint of a stage has the networks of all stages before it, so it opens without their runs.
"""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from facelab.faces.batch import Detections
from facelab.faces.detections import Candidates, CascadeRule
from facelab.networks import mtcnn
from facelab.networks.cascade import Cascade
from facelab.networks.mtcnn import match_mtcnn
from lightning_modules.detector import DetectorModule


class Stage(DetectorModule[CascadeRule]):
    """One stage of MTCNN, with the networks of the stages before it.

    Args:
        cascade: networks up to this stage.
        detection: rule of the search.
        loss: see :class:`DetectorModule`.
        optimizer: see :class:`DetectorModule`.
        scheduler: see :class:`DetectorModule`.
    """

    def __init__(
        self,
        cascade: Cascade,
        detection: CascadeRule,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
    ) -> None:
        super().__init__(detection, loss, optimizer, scheduler)
        self.cascade = cascade

    def match_folder(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of published files under the names of this module.

        Args:
            tensors: by the name of the file without its ending, a dot and the name in the file.

        Raises:
            CheckpointError: they do not fit.
        """
        matched = match_mtcnn(self.cascade.networks(), tensors)
        return {f"cascade.{name}": tensor for name, tensor in matched.items()}

    def detect(self, image: Tensor, size: Tensor, rule: CascadeRule | None = None) -> Detections:
        """Find the faces in a batch of photos; see :class:`DetectorModule`.

        The candidates of all photos, of any size, are looked at together.
        """
        found: Candidates
        found, cut = self.cascade(image, size, rule or self.detection)
        return Detections(*found, cut)


class PNet(Stage):
    """First stage: proposals without points.

    Args:
        pnet: network that searches the image pyramid.
        detection: see :class:`Stage`.
        loss: see :class:`DetectorModule`.
        optimizer: see :class:`DetectorModule`.
        scheduler: see :class:`DetectorModule`.
    """

    def __init__(
        self,
        pnet: mtcnn.PNet,
        detection: CascadeRule,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
    ) -> None:
        super().__init__(Cascade(pnet, None, None), detection, loss, optimizer, scheduler)


class RNet(Stage):
    """Second stage: refined proposals, without points.

    Args:
        pnet: network that searches the image pyramid.
        rnet: network that looks at the candidates of P-Net.
        detection: see :class:`Stage`.
        loss: see :class:`DetectorModule`.
        optimizer: see :class:`DetectorModule`.
        scheduler: see :class:`DetectorModule`.
    """

    def __init__(
        self,
        pnet: mtcnn.PNet,
        rnet: mtcnn.RNet,
        detection: CascadeRule,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
    ) -> None:
        super().__init__(Cascade(pnet, rnet, None), detection, loss, optimizer, scheduler)


class ONet(Stage):
    """Third stage: faces with five points.

    Args:
        pnet: network that searches the image pyramid.
        rnet: network that looks at the candidates of P-Net.
        onet: network that looks at the candidates of R-Net.
        detection: see :class:`Stage`.
        loss: see :class:`DetectorModule`.
        optimizer: see :class:`DetectorModule`.
        scheduler: see :class:`DetectorModule`.
    """

    def __init__(
        self,
        pnet: mtcnn.PNet,
        rnet: mtcnn.RNet,
        onet: mtcnn.ONet,
        detection: CascadeRule,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
    ) -> None:
        super().__init__(Cascade(pnet, rnet, onet), detection, loss, optimizer, scheduler)
