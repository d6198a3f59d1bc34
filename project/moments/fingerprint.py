"""What statistics depend on, in a form that a file can hold and that says what differs."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from project.symmetry import Spec

MODULUS = 2**256


@dataclass(frozen=True)
class PictureSum:
    """Pictures of one domain, in any order: how many, and the sum of their hashes.

    Like the moments themselves it is additive, so that the sum over shards is that of the whole.

    Args:
        count: Number of pictures, every view counted.
        total: Sum of their SHA-256 hashes modulo 2²⁵⁶, in hexadecimal.
    """

    count: int = 0
    total: str = "0"

    def __add__(self, other: "PictureSum") -> "PictureSum":
        """Those of both."""
        total = (int(self.total, 16) + int(other.total, 16)) % MODULUS
        return PictureSum(self.count + other.count, f"{total:x}")

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "PictureSum":
        """From what ``dataclasses.asdict`` gave.

        Raises:
            ValueError: If it is no count and sum of hashes.
        """
        count, total = plain["count"], plain["total"]
        if type(count) is not int or count < 0 or not isinstance(total, str) or not 0 <= int(total, 16) < MODULUS:
            raise ValueError(f"pictures are said to be {count}, with hashes that sum to {total}")
        return cls(count, total)

    @classmethod
    def of(cls, pictures: Iterable[bytes], views: int = 1) -> "PictureSum":
        """Of pictures as bytes, each shown so many times."""
        hashes = [int.from_bytes(hashlib.sha256(picture).digest(), "big") for picture in pictures]
        return cls(views * len(hashes), f"{sum(hashes) % MODULUS:x}")


@dataclass(frozen=True)
class Fingerprint:
    """What statistics depend on.

    Args:
        sources: Hash of every source's tensors, in order.
        spec: Hash of the traced layers and values.
        transform: What pictures go through, as plain values.
        pictures: domain -> its pictures.
        heads: domain -> first and last of its owner's columns that are its head, () for all; of gradients alone.
        labels: domain -> its pictures with their labels; of the gradients of labels alone.
    """

    sources: tuple[str, ...]
    spec: str
    transform: Mapping[str, Any]
    pictures: Mapping[str, PictureSum]
    heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    labels: Mapping[str, PictureSum] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        sources: Sequence[nn.Module],
        spec: Spec,
        pictures: Mapping[str, PictureSum],
        transform: Mapping[str, Any] | None = None,
        heads: Mapping[str, tuple[int, ...]] | None = None,
        labels: Mapping[str, PictureSum] | None = None,
    ) -> "Fingerprint":
        """Of sources, their spec and pictures; see :func:`tensor_sums` for pictures that are tensors."""
        plain = json.loads(json.dumps(dict(transform or {})))  # as a file gives it back
        hashes = tuple(map(network_hash, sources))
        return cls(hashes, spec_hash(spec), plain, dict(pictures), dict(heads or {}), dict(labels or {}))

    def differences(self, other: "Fingerprint") -> list[str]:
        """In what another fingerprint differs from this one, a phrase each; nothing where statistics are the same."""
        found = []
        if self.sources != other.sources:
            sets = sorted(self.sources) == sorted(other.sources)
            found.append("sources in another order" if sets else "other sources")
        if self.spec != other.spec and self.sources == other.sources:
            found.append("another spec")
        if self.transform != other.transform:
            keys = sorted(self.transform.keys() | other.transform.keys())
            changed = [
                f"{key} {other.transform.get(key)} instead of {self.transform.get(key)}"
                for key in keys
                if self.transform.get(key) != other.transform.get(key)
            ]
            found.append(f"another transform ({', '.join(changed)})")
        for domain in sorted(self.pictures.keys() | other.pictures.keys()):
            mine, theirs = (one.pictures.get(domain, PictureSum()) for one in (self, other))
            if mine != theirs:
                counts = f"{theirs.count} instead of {mine.count}" if mine.count != theirs.count else "as many"
                found.append(f"other pictures of {domain} ({counts})")
            elif domain in self.labels and domain in other.labels and self.labels[domain] != other.labels[domain]:
                found.append(f"other labels of {domain}")
            if domain in self.heads and domain in other.heads and self.heads[domain] != other.heads[domain]:
                found.append(f"another head of {domain}")
        return found

    def __add__(self, other: "Fingerprint") -> "Fingerprint":
        """Of the pictures of both."""
        domains = [*self.pictures, *(domain for domain in other.pictures if domain not in self.pictures)]
        none = PictureSum()
        both = {domain: self.pictures.get(domain, none) + other.pictures.get(domain, none) for domain in domains}
        labels = {
            domain: self.labels.get(domain, none) + other.labels.get(domain, none)
            for domain in (*self.labels, *(domain for domain in other.labels if domain not in self.labels))
        }
        return replace(self, pictures=both, heads={**self.heads, **other.heads}, labels=labels)

    def beside(self, other: "Fingerprint") -> "Fingerprint":
        """This one where both kinds of statistics are kept in one file: with what only the other's depend on."""
        return replace(self, heads={**other.heads, **self.heads}, labels={**other.labels, **self.labels})

    @property
    def digest(self) -> str:
        """One hash of it all, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.plain, sort_keys=True).encode()).hexdigest()

    @property
    def plain(self) -> dict[str, Any]:
        """As lists, dictionaries and strings."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Fingerprint":
        """From what :attr:`plain` gave.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: If it is not of that form.
        """
        pictures = {domain: PictureSum.read(one) for domain, one in plain["pictures"].items()}
        heads = {domain: tuple(columns) for domain, columns in plain.get("heads", {}).items()}
        labels = {domain: PictureSum.read(one) for domain, one in plain.get("labels", {}).items()}
        sources, spec, transform = tuple(plain["sources"]), plain["spec"], plain["transform"]
        if not all(isinstance(one, str) for one in (*sources, spec)):
            raise ValueError(f"sources and spec are said to be {(*sources, spec)}, which are no hashes")
        if not isinstance(transform, Mapping):
            raise ValueError(f"the transform is said to be {transform!r}")
        return cls(sources, spec, transform, pictures, heads, labels)


def network_hash(network: nn.Module) -> str:
    """SHA-256 of a network's tensors and their names; batch counters, which nothing reads, are left out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def spec_hash(spec: Spec) -> str:
    """SHA-256 of all that says which moments belong to which layer and value."""
    groups = [(group.name, group.size, group.nodes) for group in spec.groups.values()]
    return hashlib.sha256(repr((spec.picture, spec.layers, groups, sorted(spec.dims.items()))).encode()).hexdigest()


def tensor_sums(pictures: Mapping[str, Iterable[Tensor]]) -> dict[str, PictureSum]:
    """Of pictures that are tensors already.

    Args:
        pictures: domain -> batches of pictures (batch, channels, height, width).
    """
    return {
        domain: PictureSum.of(_bytes(picture) for batch in batches for picture in batch)
        for domain, batches in pictures.items()
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
