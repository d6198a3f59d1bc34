"""What a merge needs of the data, whoever holds them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from project.models import LabelSpace, Preprocessing
from project.moments import Fingerprint
from project.symmetry import Spec


class MergeData(Protocol):
    """Domains, their classes, and the pictures to calibrate with; a DomainDataModule is one."""

    seed: int
    calibration_batch_size: int

    @property
    def picture(self) -> tuple[int, int, int]:
        """Shape of a picture: channels, height, width."""

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What pictures have gone through; None where nobody said."""

    @property
    def label_space(self) -> LabelSpace:
        """The domains and their classes."""

    @property
    def calibration_domains(self) -> tuple[str, ...]:
        """Whose pictures calibrate."""

    def calibration_counts(self) -> dict[str, int]:
        """Domain -> number of calibration pictures, every view counted."""

    def calibration_pictures(self) -> dict[str, int]:
        """Domain -> number of calibration pictures, each counted once."""

    @property
    def prepares(self) -> bool:
        """Whether pictures are prepared as options say; else they were given prepared."""

    def sample(self, domain: str, count: int, scale: float = 1.0) -> Tensor:
        """Some of the calibration pictures of a domain, evenly over them: at most (count, channels, height, width).

        Args:
            domain: One of ``calibration_domains``.
            count: How many, at most.
            scale: Factor on their sides.
        """

    def check_pictures(self) -> None:
        """Look at every picture, so that none fails after the fit; all processes must ask.

        Raises:
            PleasError: If one cannot be used.
        """

    def calibration_fingerprint(
        self,
        sources: Sequence[nn.Module],
        spec: Spec,
        heads: Mapping[str, tuple[int, ...]] | None = None,
        labelled: bool = False,
    ) -> Fingerprint:
        """What statistics that sources gather from the calibration pictures depend on."""
