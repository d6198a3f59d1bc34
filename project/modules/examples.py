"""Test pictures that a source has right and another network does not: one of every class, as they are scored."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

Paths = dict[str, dict[str, dict[int, Path]]]
"""Network -> domain -> class -> file of a picture."""


class Examples:
    """Remembers of every class the first picture of this process that the domain's source has right and it has not.

    Args:
        sources: Domain -> name of the network that others are held against; other domains are passed over.
    """

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = dict(sources)
        self.seen: dict[str, int] = {}
        self.places: dict[str, dict[str, dict[int, int]]] = {}

    def reset(self) -> None:
        """Forget all pictures."""
        self.seen, self.places = {}, {}

    def update(self, domain: str, labels: Tensor, right: Mapping[str, Tensor]) -> None:
        """Take in one batch; batches of a domain come in their order.

        Args:
            domain: Theirs.
            labels: Indices of classes, shape (batch,).
            right: Network -> whether it has them right, shape (batch,).
        """
        first = self.seen.get(domain, 0)
        self.seen[domain] = first + len(labels)
        source = right.get(self.sources.get(domain, ""))
        others = {name: told for name, told in right.items() if told is not source}
        if source is None or not others:
            return
        lost = (source & ~torch.stack(list(others.values()))).cpu()  # one transfer a batch
        classes = labels.tolist()
        for name, row in zip(others, lost, strict=True):
            known = self.places.setdefault(name, {}).setdefault(domain, {})
            for place in row.nonzero().flatten().tolist():
                known.setdefault(classes[place], first + place)

    def paths(self, samples: Mapping[str, Sequence[tuple[Path, int]]], process: int, processes: int) -> Paths:
        """The files of these pictures.

        Args:
            samples: Domain -> all its test pictures, which are dealt out to the processes in their order.
            process: The number of this one.
            processes: How many there are.
        """
        return {
            name: {
                domain: {label: samples[domain][process + processes * place][0] for label, place in places.items()}
                for domain, places in domains.items()
            }
            for name, domains in self.places.items()
        }
