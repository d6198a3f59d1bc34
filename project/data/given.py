"""Pictures that somebody holds in memory already, to calibrate with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn

from project.data.calibration import PUBLIC
from project.errors import ConfigurationError, DataError
from project.models import LabelSpace, Preprocessing
from project.moments import Fingerprint, tensor_sums
from project.symmetry import Spec

Given = Tensor | Iterable[Tensor] | Iterable[Sequence[Tensor]]
"""Pictures (n, channels, height, width), or batches of them, or of them and their labels, as DataLoaders give them."""


class GivenPictures:
    """Calibration pictures of every domain, held in memory: each batch of a loader is taken once.

    Args:
        pictures: Domain -> its pictures, prepared as the sources expect them; pictures without a domain are those of
            none, as ``public`` pictures are.
        batch_size: Pictures of each domain in a batch, where they are not batches already.

    Raises:
        ConfigurationError: With the domain, if its pictures are no tensors of four axes, of another shape than the
            others', not of floating point, or not finite.
        DataError: If a domain has none.
    """

    seed = 0

    def __init__(self, pictures: Mapping[str, Given] | Given, batch_size: int = 64) -> None:
        by_domain = pictures if isinstance(pictures, Mapping) else {PUBLIC: pictures}
        self.calibration_batch_size = batch_size
        self.batches: dict[str, list[Tensor]] = {}
        self.labels: dict[str, list[Tensor]] = {}
        for domain, given in by_domain.items():
            parts = torch.split(given, batch_size) if isinstance(given, Tensor) else given
            pairs = [_pair(part, domain) for part in parts]
            self.batches[domain] = [batch for batch, _ in pairs]
            self.labels[domain] = [labels for _, labels in pairs if labels is not None]
            _check(self.batches[domain], domain)
        shapes = {domain: tuple(batches[0].shape[1:]) for domain, batches in self.batches.items()}
        (first, shape), *others = shapes.items()
        for domain, other in others:
            if other != shape:
                raise ConfigurationError(
                    f"pictures of {domain} are of shape {other}, those of {first} of {shape}; all must be of one."
                )
        self.picture = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.label_space = LabelSpace({domain: ("0",) for domain in self.batches}, "shared")
        self.preprocessing: Preprocessing | None = None

    def tell(self, labels: LabelSpace, preprocessing: Preprocessing | None) -> None:
        """Say what the sources have said: the domains and their classes, and what pictures have gone through."""
        self.label_space, self.preprocessing = labels, preprocessing

    @property
    def calibration_domains(self) -> tuple[str, ...]:
        """Whose pictures there are."""
        return tuple(self.batches)

    def calibration_counts(self) -> dict[str, int]:
        """Domain -> number of its pictures."""
        return {domain: sum(map(len, batches)) for domain, batches in self.batches.items()}

    def check_pictures(self) -> None:
        """Nothing is left to look at: all pictures were checked when they were given."""

    def calibration_batches(self, labelled: bool = False) -> Iterator[dict[str, object]]:
        """Batches that map every domain to pictures, or to these and their labels, or to None once it has no more.

        Raises:
            ConfigurationError: If labels are asked for and a domain has none.
        """
        if labelled:
            for domain, batches in self.batches.items():
                if len(self.labels[domain]) != len(batches):
                    raise ConfigurationError(
                        f"pictures of {domain} come without labels, which a method reads; give (pictures, labels)."
                    )
        columns: list[Sequence[object]] = [
            list(zip(batches, self.labels[domain], strict=True)) if labelled else batches
            for domain, batches in self.batches.items()
        ]
        for parts in zip_longest(*columns):
            yield dict(zip(self.batches, parts, strict=True))

    def calibration_fingerprint(
        self,
        sources: Sequence[nn.Module],
        spec: Spec,
        heads: Mapping[str, tuple[int, ...]] | None = None,
        labelled: bool = False,
    ) -> Fingerprint:
        """What statistics that sources gather from the pictures depend on; see :class:`~project.moments.Fingerprint`.

        Args:
            sources: The sources, in order.
            spec: Their spec.
            heads: Domain -> first and last of its owner's columns that are its head.
            labelled: Whether they depend on the labels.
        """
        labels = tensor_sums(
            {d: [one[:, None] for one in parts] for d, parts in self.labels.items()} if labelled else {}
        )
        return Fingerprint.of(sources, spec, tensor_sums(self.batches), {}, heads, labels)


def _pair(part: object, domain: str) -> tuple[Tensor, Tensor | None]:
    """Pictures and their labels, where they come with any."""
    pictures, labels = (part, None) if not isinstance(part, list | tuple) else (part[0], part[1] if part[1:] else None)
    if not isinstance(pictures, Tensor) or not isinstance(labels, Tensor | None):
        raise ConfigurationError(
            f"pictures of {domain} hold a {type(pictures).__name__}; allowed: tensors of shape (batch, channels, "
            f"height, width), or pairs of such a tensor and one of labels."
        )
    return pictures, labels


def _check(batches: Sequence[Tensor], domain: str) -> None:
    """Refuse what no network could be run on.

    Raises:
        ConfigurationError: With what is wrong.
        DataError: If there are no pictures.
    """
    if not sum(map(len, batches)):
        raise DataError(f"pictures of {domain} are none; at least one is needed.")
    for batch in batches:
        if batch.dim() != 4 or batch.shape[1:] != batches[0].shape[1:]:
            raise ConfigurationError(
                f"pictures of {domain} hold a tensor of shape {tuple(batch.shape)}; allowed: (batch, channels, height, "
                f"width), all of one shape."
            )
        if not batch.is_floating_point():
            raise ConfigurationError(
                f"pictures of {domain} are of {batch.dtype}; allowed: floating point, normalised as the sources expect."
            )
        if not bool(torch.isfinite(batch).all()):
            raise ConfigurationError(f"pictures of {domain} hold values that are not finite.")


class NoPictures:
    """No pictures at all, for methods that need none.

    Args:
        picture: Shape of a picture that the sources take: channels, height, width.
    """

    seed = 0
    calibration_batch_size = 1
    calibration_domains: tuple[str, ...] = ()

    def __init__(self, picture: tuple[int, int, int]) -> None:
        self.picture = picture
        self.label_space = LabelSpace({}, "shared")
        self.preprocessing: Preprocessing | None = None

    def tell(self, labels: LabelSpace, preprocessing: Preprocessing | None) -> None:
        """Say what the sources have said: the domains and their classes, and what pictures have gone through."""
        self.label_space, self.preprocessing = labels, preprocessing

    def calibration_counts(self) -> dict[str, int]:
        """Empty."""
        return {}

    def check_pictures(self) -> None:
        """Nothing is there to look at."""

    def calibration_batches(self, labelled: bool = False) -> Iterator[dict[str, object]]:
        """One batch that maps nothing."""
        yield {}

    def calibration_fingerprint(
        self,
        sources: Sequence[nn.Module],
        spec: Spec,
        heads: Mapping[str, tuple[int, ...]] | None = None,
        labelled: bool = False,
    ) -> Fingerprint:
        """Of the sources alone."""
        return Fingerprint.of(sources, spec, {}, {}, heads)
