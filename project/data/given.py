"""Pictures that somebody holds in memory already, to calibrate with."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn import functional

from project.data.calibration import PUBLIC
from project.errors import ConfigurationError, DataError, whole
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
        ConfigurationError: If there is no domain, or with the domain, if its pictures are no tensors of four axes, of
            another shape than the others', not of floating point, or not finite.
        DataError: If a domain has none.
    """

    seed = 0
    prepares = False

    def __init__(self, pictures: Mapping[str, Given] | Given, batch_size: int = 64) -> None:
        whole(1, batch_size=batch_size)
        by_domain = pictures if isinstance(pictures, Mapping) else {PUBLIC: pictures}
        if not by_domain:
            raise ConfigurationError("pictures holds no domain; allowed: at least one, or None instead.")
        self.calibration_batch_size = batch_size
        self.batches: dict[str, list[Tensor]] = {}
        self.labels: dict[str, list[Tensor]] = {}
        for domain, given in by_domain.items():
            if not isinstance(domain, str):
                raise ConfigurationError(f"pictures holds the domain {domain!r}; allowed: names, as text.")
            pairs = [_pair(part, domain) for part in _parts(given, domain, batch_size)]
            _check([batch for batch, _ in pairs], domain)
            self.batches[domain] = [batch.detach().float() for batch, _ in pairs]  # as the sources, whatever they were
            self.labels[domain] = [labels for _, labels in pairs if labels is not None]
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

    def adopt(self, labels: LabelSpace, preprocessing: Preprocessing | None) -> None:
        """Take over from the sources the domains and their classes, and what pictures have gone through."""
        self.label_space, self.preprocessing = labels, preprocessing

    @property
    def calibration_domains(self) -> tuple[str, ...]:
        """Whose pictures there are."""
        return tuple(self.batches)

    def calibration_counts(self) -> dict[str, int]:
        """Domain -> number of its pictures."""
        return {domain: sum(map(len, batches)) for domain, batches in self.batches.items()}

    def calibration_pictures(self) -> dict[str, int]:
        """The same: each is shown once."""
        return self.calibration_counts()

    def sample(self, domain: str, count: int, scale: float = 1.0) -> Tensor:
        """Some of a domain's pictures, evenly over them: at most (count, channels, height, width).

        Args:
            domain: One of ``calibration_domains``.
            count: How many, at most.
            scale: Factor on their sides; they are resampled.
        """
        starts, total = [0], 0
        for batch in self.batches[domain]:
            total += len(batch)
            starts.append(total)
        places = [place * total // min(count, total) for place in range(min(count, total))]
        owners = [bisect_right(starts, place) - 1 for place in places]
        pictures = torch.stack(
            [self.batches[domain][owner][place - starts[owner]] for owner, place in zip(owners, places, strict=True)]
        )
        if scale == 1:
            return pictures
        sides = [round(side * scale) for side in pictures.shape[2:]]
        return functional.interpolate(pictures, sides, mode="bilinear", antialias=True, align_corners=False)

    def check_pictures(self) -> None:
        """Nothing is left to look at: all pictures were checked when they were given."""

    def calibration_batches(self, labelled: bool = False) -> Iterator[dict[str, object]]:
        """Batches that map every domain to pictures, or to these and their labels, or to None once it has no more.

        Raises:
            ConfigurationError: If labels are asked for and a domain has none, or others than its classes' numbers.
        """
        if labelled:
            for domain in self.batches:
                self._check_labels(domain)
        columns: list[Sequence[object]] = [
            list(zip(batches, self.labels[domain], strict=True)) if labelled else batches
            for domain, batches in self.batches.items()
        ]
        for parts in zip_longest(*columns):
            yield dict(zip(self.batches, parts, strict=True))

    def _check_labels(self, domain: str) -> None:
        """Refuse labels that do not say of every picture which of its domain's classes it shows."""
        batches, labels = self.batches[domain], self.labels[domain]
        if len(labels) != len(batches):
            raise ConfigurationError(
                f"pictures of {domain} come without labels, which a method reads; give (pictures, labels)."
            )
        classes = self.label_space.classes.get(domain)
        for batch, numbers in zip(batches, labels, strict=True):
            if numbers.shape != (len(batch),) or numbers.is_floating_point() or numbers.is_complex():
                raise ConfigurationError(
                    f"labels of {domain} are of shape {tuple(numbers.shape)} and {numbers.dtype} for {len(batch)} "
                    f"pictures; allowed: one whole number a picture."
                )
            if classes and len(batch) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(classes):
                raise ConfigurationError(
                    f"labels of {domain} lie between {int(numbers.min())} and {int(numbers.max())}; allowed: 0 to "
                    f"{len(classes) - 1}, as it has {len(classes)} classes."
                )

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


def _parts(given: object, domain: str, batch_size: int) -> Iterable[object]:
    """The batches, as far as anything can be told of them yet."""
    if isinstance(given, Tensor):
        return torch.split(given, batch_size) if given.dim() else (given,)
    if not isinstance(given, Iterable):
        raise ConfigurationError(
            f"pictures of {domain} are a {type(given).__name__}; allowed: a tensor, or batches as a DataLoader gives."
        )
    return given


def _pair(part: object, domain: str) -> tuple[Tensor, Tensor | None]:
    """Pictures and their labels, where they come with any; what else stands beside pictures, such as paths, is left."""
    pictures, *others = part if isinstance(part, list | tuple) and part else (part,)
    if not isinstance(pictures, Tensor):
        raise ConfigurationError(
            f"pictures of {domain} hold a {type(pictures).__name__}; allowed: tensors of shape (batch, channels, "
            f"height, width), or pairs of such a tensor and one of labels."
        )
    return pictures, others[0] if others and isinstance(others[0], Tensor) else None


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


class NoPictures(GivenPictures):
    """No pictures at all, for methods that need none.

    Args:
        picture: Shape of a picture that the sources take: channels, height, width.
    """

    def __init__(self, picture: tuple[int, int, int]) -> None:
        self.picture, self.calibration_batch_size = picture, 1
        self.batches, self.labels = {}, {}
        self.adopt(LabelSpace({}, "shared"), None)
