"""How well each reading of a source fits what its batch norms keep; few pictures tell which are worth more of them.

The first norms tell most: behind them a network makes up for a wrong start, and odd pictures drown it.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from project.merging.data import MergeData
from project.merging.norm_distances import distances, mean_of
from project.merging.readings import (
    PRESENT,
    Reading,
    combined_readings,
    guessed,
    network_readings,
    normalisation_readings,
    order_readings,
    size_readings,
)
from project.student import Source

PICTURES = 64
"""How many pictures of a source the present reading, and the likeliest other one, are judged on."""
FEW = 16
"""How many of them the others are first judged on."""
NORMS = 3
"""How many norms, from the first that a reading changes, judge it."""
AGAIN = 2
"""How many readings that seem to fit better by few pictures are measured on more."""
SEEMS = 0.55
"""The share of what a reading must have for it, by few pictures, to be measured on more."""
GAP = 0.01
"""How much nearer another reading must be."""
RATIO = {"colours": 1.7, "domain": 2.0, "size": 3.0, "network": 3.0}
"""How many times nearer, by what it is about: cropping and zooming in training bring other sizes near."""
NEAR = 0.05
"""How near it must be itself: where no reading is, the norms say nothing."""


@dataclass(frozen=True)
class Row:
    """One reading of a source, and how far its norms are from it.

    Args:
        reading: The reading.
        distance: Mean over norms of the mean Bhattacharyya distance over units.
        present: That of the present reading, by the same norms on the same pictures.
        pictures: How many of them.
        certain: Whether they are as many as may decide.
    """

    reading: Reading
    distance: float
    present: float
    pictures: int
    certain: bool = True

    @property
    def clear(self) -> bool:
        """Whether the reading fits, and clearly better than the present one."""
        return self.certain and self.distance <= NEAR and self.beats(self.present)

    @property
    def seems(self) -> bool:
        """Whether it is worth to be measured on more pictures."""
        ratio = SEEMS * RATIO.get(self.reading.kind, inf)
        return self.present - self.distance >= SEEMS * GAP and self.present >= ratio * self.distance

    def beats(self, other: float) -> bool:
        """Whether it is clearly nearer than another distance."""
        ratio = RATIO.get(self.reading.kind, inf)
        return other - self.distance >= GAP and other >= ratio * self.distance


class Judge:
    """Measures the readings of one source on a batch of its own pictures.

    Args:
        source: The source, in eval mode; its network stays on the device.
        data: Gives the pictures.
        domains: The source's, of those whose pictures calibrate.
        device: Where it runs.
    """

    def __init__(self, source: Source, data: MergeData, domains: Sequence[str], device: torch.device | str) -> None:
        self.source, self.data, self.domains, self.device = source, data, domains, device
        self.network = source.network.to(device)
        self.parts = [data.sample(domain, self._share(PICTURES)).to(device) for domain in domains]
        self.pictures = torch.cat(self.parts)
        seen = None if data.prepares else guessed(self.pictures, data.picture[-1])
        self.given = seen or data.preprocessing
        self.networks = network_readings(source.architecture, self.network)
        self.order = list(distances(self.network, self.pictures[:1]))
        self.first = self.judging(PRESENT)
        self.needed = {name for reading in (PRESENT, *self.networks) for name in self.judging(reading)}
        self._known: dict[int, dict[str, float]] = {}
        found = distances(self.network, self.pictures, self.first)
        self.first = [name for name in self.first if name in found]
        now = mean_of(found, self.first)
        self.present = Row(PRESENT, now, now, len(self.pictures))

    def _share(self, count: int) -> int:
        return -(-count // len(self.domains))

    def batch(self, count: int, scale: float = 1.0) -> Tensor:
        """So many of the pictures, at most, evenly over each domain; at another size, they are prepared anew."""
        each = self._share(count)
        if scale != 1:
            return torch.cat([self.data.sample(domain, each, scale) for domain in self.domains]).to(self.device)
        chosen = [
            [place * len(part) // min(each, len(part)) for place in range(min(each, len(part)))] for part in self.parts
        ]
        return torch.cat([part[places] for part, places in zip(self.parts, chosen, strict=True)])

    def known(self, count: int) -> dict[str, float]:
        """How far the norms are in the present reading, by so many of the pictures."""
        if count not in self._known:
            self._known[count] = distances(self.network, self.batch(count), self.needed)
        return self._known[count]

    def judging(self, reading: Reading) -> list[str]:
        """The norms that judge a reading: the first that it changes."""
        reached = [place for place, name in enumerate(self.order) if name.startswith(reading.after)]
        return self.order[reached[0] :][:NORMS] if reached else []

    def rows(self) -> list[Row]:
        """The readings other than the present one that the network can be run in, by a few pictures."""
        prepares = self.data.prepares
        found: list[Row] = []
        if self.pictures.shape[1] == 3:
            if self.given is not None:
                found = self.measured(normalisation_readings(self.given, prepares))
            found += self.measured(order_readings(self.given, prepares))
            likeliest = min(found, key=lambda row: row.distance)
            if self.given is not None and likeliest.seems:
                found += self.measured(combined_readings(self.given, prepares, likeliest.reading))
                if min(row.distance for row in found) > NEAR:
                    found += self.measured(combined_readings(self.given, prepares))
        return found + self.measured([*size_readings(self.data.picture[-1], prepares), *self.networks])

    def measured(self, readings: Sequence[Reading]) -> list[Row]:
        """Their rows, by a few pictures, of those that the network can be run in."""
        return [row for row in map(self.row, readings) if row is not None]

    def settled(self, rows: Sequence[Row]) -> list[Row]:
        """The rows, the best of those that seem to fit better measured on more pictures, and the next one too."""
        seeming = sorted((row for row in rows if row.seems), key=lambda row: row.distance)
        best = best_row(seeming)
        looked_at = [] if best is None else [best, *(row for row in seeming if row is not best)][:AGAIN]
        again = {id(row): self.row(row.reading, self.enough(row.reading)) for row in looked_at}
        return [again.get(id(row)) or row for row in rows]

    def enough(self, reading: Reading) -> int:
        """How many pictures decide: fewer where each costs more than in the present reading."""
        return len(self.pictures) // 4 if _dear(reading) else len(self.pictures)

    def row(self, reading: Reading, count: int | None = None) -> Row | None:
        """How far the norms are from a reading; None where the network cannot be run in it.

        Args:
            reading: The reading.
            count: How many pictures are to do; default: few, fewer where each costs more than in the present reading.
        """
        count = count or (FEW // 2 if _dear(reading) else FEW)
        judging, known = self.judging(reading), self.known(count)
        pictures = self.batch(count, reading.scale)
        if reading.prepare is not None:
            pictures = reading.prepare(pictures)
        try:
            with reading.change(self.network) if reading.change is not None else nullcontext():
                found = distances(self.network, pictures, judging)
        except (RuntimeError, ValueError, AttributeError):  # pictures too small for it, or no such modules
            return None
        if not judging or not set(judging) <= found.keys() & known.keys():
            return None
        certain = len(pictures) >= self.enough(reading)
        return Row(reading, mean_of(found, judging), mean_of(known, judging), len(pictures), certain)


def _dear(reading: Reading) -> bool:
    """Whether a picture costs more in it than in the present reading."""
    return reading.scale > 1 or reading.change is not None


def best_row(rows: Sequence[Row]) -> Row | None:
    """The nearest of the rows, or a simpler one than which it is not clearly nearer."""
    best = min(rows, key=lambda row: row.distance, default=None)
    if best is None or best.reading.simple:
        return best
    simpler = [row for row in rows if row.reading.simple and not best.beats(row.distance)]
    return min(simpler, key=lambda row: row.distance, default=best)


def domain_rows(judges: Mapping[int, Judge]) -> dict[int, list[Row]]:
    """Every source on the others' pictures; what counts is how they fit, all together, dealt out in another way."""
    rows: dict[tuple[int, int], Row] = {}
    each = max(FEW // 2, PICTURES // (2 * max(1, len(judges) - 1)))
    for index, judge in judges.items():
        for other, owner in judges.items():
            if other == index or set(judge.domains) & set(owner.domains):
                continue
            words = f"the pictures of {', '.join(owner.domains)}"
            reading = Reading("other", words, f"domains [{', '.join(owner.domains)}]")
            found = distances(judge.network, owner.pictures[:each], judge.first)
            if not set(judge.first) <= found.keys():  # no unit of one is alive on them
                continue
            distance = mean_of(found, judge.first)
            rows[index, other] = Row(reading, distance, judge.present.distance, min(each, len(owner.pictures)))
    numbers = list(judges)
    costs = np.array(
        [
            [judges[i].present.distance if i == j else rows[i, j].distance if (i, j) in rows else 1e6 for j in numbers]
            for i in numbers
        ]
    )
    if len(numbers) > 1:
        dealt = [(numbers[i], numbers[j]) for i, j in zip(*linear_sum_assignment(costs), strict=True) if i != j]
        moved = {
            pair: replace(rows[pair], reading=replace(rows[pair].reading, kind="domain"))
            for pair in dealt
            if pair in rows
        }
        if len(moved) == len(dealt) and all(row.clear for row in moved.values()):
            rows |= moved
    return {index: [row for (one, _), row in rows.items() if one == index] for index in numbers}
