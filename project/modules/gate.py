"""Gates of networks with several heads, from calibration pictures and the domains they come from."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from project.models import MultiHead
from project.modules.common import everyones


class GateModule(LightningModule):
    """Fits the gate of every network while it is validated on calibration pictures; classes are not read.

    Where the pictures do not come from the domains of all heads, no gate can be learnt, and none is set.

    Args:
        networks: In eval mode, of one label space.
    """

    def __init__(self, networks: Sequence[MultiHead]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.heads = list(networks[0].labels.heads)

    def on_validation_start(self) -> None:
        """Start from nothing."""
        self._features: list[dict[str, list[Tensor]]] = [{head: [] for head in self.heads} for _ in self.networks]

    def validation_step(self, batch: dict[str, Tensor | None], batch_idx: int) -> None:
        """Keep what the heads read on pictures of their domains; see MergeModule for the form of a batch."""
        for kept, network in zip(self._features, self.networks, strict=True):
            for head, batches in kept.items():
                pictures = batch.get(head)
                if pictures is not None:
                    batches.append(network.outputs(pictures)[1].float())  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Fit the gates, in every process alike."""
        kept, self._features = self._features, []
        if not all(kept[0].values()):
            rank_zero_info("no gate: the calibration pictures do not come from the domains of all heads")
            return
        for features, network in zip(kept, self.networks, strict=True):
            network.fit_gate([everyones(self.trainer, batches) for batches in features.values()])  # type: ignore[operator]
