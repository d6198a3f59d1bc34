"""The calibration pictures on their way through student and sources: activations of all batches at one value.

All batches stand at the same value of the graph: each source has computed it, the student not yet. What nothing
behind it reads any more is released, so that memory holds little more than two layers' values of all pictures.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from project.alignment import UnitMap
from project.moments import ForwardPass, exact_products
from project.runtime.processes import World
from project.runtime.spill import OnDisk


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of one domain on its way through the student and the sources that it needs.

    Args:
        number: Of the batch among all of this process.
        domain: Number of its domain.
        owner: Source whose domain it is; None where it is that of several, or of none.
        lead: Source that merged units follow on it in place of the mean of all; None for the mean.
        pictures: How many.
        student: Its pass through the student.
        sources: Source -> its pass through it.
    """

    number: int
    domain: int
    owner: int | None
    lead: int | None
    pictures: int
    student: ForwardPass
    sources: Mapping[int, ForwardPass]

    def shares(self, units: UnitMap) -> Tensor:
        """Shares of the sources in what is asked of each unit on these pictures; see :meth:`UnitMap.shares`.

        Args:
            units: Unit map of a value's group.
        """
        return units.shares(self.owner if self.lead is None else self.lead)

    def student_value(self, name: str) -> Tensor:
        """Look up a value that the student has computed.

        Args:
            name: Of its node.
        """
        value: Tensor = self.student.env[self.student.nodes[name]]
        return value

    def source_value(self, source: int, name: str) -> Tensor:
        """Look up a value that a source has computed.

        Args:
            source: Number of the source, one that the batch needs.
            name: Of its node.
        """
        run = self.sources[source]
        value: Tensor = run.env[run.nodes[name]]
        return value


class Activations:
    """Cached activations of all batches of all domains at one node of the graph.

    Args:
        student: The student's graph.
        sources: The sources' graphs, their values in the same order.
        pictures: domain -> batches of pictures (batch, channels, height, width); every process the same domains.
        owners: For each domain, the source that merged units follow on its pictures; None for several, or for none.
        leads: For each domain without such, the source that merged units follow in place of the mean of all; or None.
        weights: For each domain, what each of its pictures counts for.
        world: The processes among which the pictures are dealt out.
        scratch: Folder for the values of waiting batches; None to hold them in memory.
    """

    def __init__(
        self,
        student: fx.GraphModule,
        sources: Sequence[fx.GraphModule],
        pictures: Mapping[str, Sequence[Tensor]],
        owners: Sequence[int | None],
        leads: Sequence[int | None],
        weights: Sequence[float],
        world: World,
        scratch: Path | None = None,
    ) -> None:
        self.owners, self.leads, self.weights, self.world = owners, leads, weights, world
        self.scratch, self.device = scratch, next(student.parameters()).device
        self.batches: list[Batch] = []
        for index, (batches, owner) in enumerate(zip(pictures.values(), owners, strict=True)):
            needed = range(len(sources)) if owner is None else (owner,)
            for batch in batches:
                runs = {source: ForwardPass(sources[source], batch) for source in needed}
                self.batches.append(
                    Batch(len(self.batches), index, owner, leads[index], len(batch), ForwardPass(student, batch), runs)
                )
                if scratch is not None:
                    for run in (self.batches[-1].student, *runs.values()):
                        run.env = OnDisk(scratch)

    def counts(self) -> tuple[list[int], list[int]]:
        """Count each domain's batches in one process, on average, and its pictures in all; all processes must ask."""
        counts = torch.zeros(len(self.owners), 2)
        for batch in self.batches:
            counts[batch.domain] += torch.tensor([1, batch.pictures])
        self.world.reduce(counts)
        return (counts[:, 0] // self.world.size).int().tolist(), counts[:, 1].int().tolist()

    def every(self, step: int, offset: int = 0) -> "Activations":
        """Take every so many batches of each domain, from some batch on; their passes are shared.

        Args:
            step: One batch in so many.
            offset: Number of the first one.
        """
        if step == 1:
            return self
        part, seen = copy(self), [0] * len(self.owners)
        part.batches = []
        for batch in self.batches:
            if seen[batch.domain] % step == offset:
                part.batches.append(batch)
            seen[batch.domain] += 1
        return part

    def advance_sources(self, node: fx.Node) -> None:
        """Let the sources compute a value.

        Args:
            node: Of the student's graph; the sources' of the same name is computed.
        """
        with exact_products(self.device):
            for batch in self.batches:
                for source in batch.sources.values():
                    source.step(source.nodes[node.name])

    def advance_student(self, node: fx.Node) -> None:
        """Let the student compute the value too, and release what nothing behind it reads.

        Args:
            node: Of the student's graph.
        """
        with exact_products(self.device):
            for batch in self.batches:
                batch.student.step(node)
                batch.student.release(node)
                for source in batch.sources.values():
                    source.release(source.nodes[node.name])
