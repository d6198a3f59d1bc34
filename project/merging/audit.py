"""Is a source what it seems? Its running statistics against what its norms see on its own pictures, reading by reading.

A batch norm keeps the mean and variance of what each unit read while the network was trained. On pictures like those,
fed in the way they were fed then, a unit has about these again. Where it has them in another reading of the source, and
clearly not in the present one, the present one is wrong. Nothing is trained, and no label is read.

The distance of two Gaussians is Bhattacharyya's, averaged over units and then over norms. Against the Kullback-Leibler
divergence it grows slowly, so that a few units far off, and pictures unlike the others, weigh little. The first norms
tell most: behind them a network makes up for a wrong start, and odd pictures drown it.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from math import inf, nan

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from project.errors import ConfigurationError
from project.merging.data import MergeData
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
from project.merging.settings import Audit
from project.moments import BatchNorm
from project.runtime import tell, warn
from project.student import Source, batch_norms

PICTURES = 64
"""How many pictures of a source the present reading, and the likeliest other one, are judged on."""
FEW = 16
"""How many of them the others are first judged on."""
SEEN = 50
"""How many batches a norm must have seen: 0.9^50 of its statistics are then those that it was made with."""
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


@dataclass
class Finding:
    """What was found of one source.

    Args:
        name: Of the source.
        origin: Its file.
        rows: The readings, the present one first.
        better: The reading that fits clearly better than the present one, if there is one.
        silent: Why nothing can be told; "" where something can.
    """

    name: str
    origin: str
    rows: list[Row] = field(default_factory=list)
    better: Row | None = None
    silent: str = ""

    @property
    def unsure(self) -> str:
        """Why the present reading is neither confirmed nor refuted; "" where it is."""
        if self.silent or self.better or not self.rows or self.rows[0].distance <= NEAR:
            return self.silent
        return (
            f"its norms are far from all readings (the present one {self.rows[0].distance:.2g}, allowed {NEAR}), as "
            f"where a network was fine-tuned with the norms of its pretrained weights, or on pictures unlike these"
        )

    def sentence(self) -> str:
        """What was found, in one."""
        if row := self.better:
            mend = f"; {row.reading.mend} takes it" if row.reading.mend else ""
            return (
                f"source {self.origin} does not fit its pictures as it is read now, but does with {row.reading.words}: "
                f"its norms are {row.distance:.2g} from their running statistics then, and {row.present:.2g} now{mend}"
            )
        if self.unsure:
            return f"{self.name}: audit cannot tell: {self.unsure}"
        others = sorted(self.rows[1:], key=lambda row: row.distance / max(row.present, 1e-12))
        told = f"; next: {others[0].reading.words}, {others[0].distance:.2g}" if others else ""
        return f"{self.name}: audit: its norms fit the present reading ({self.rows[0].distance:.2g}{told})"

    def table(self) -> list[str]:
        """Lines, one a reading."""
        lines = [f"{self.name} ({self.origin})"]
        if self.silent:
            return [*lines, f"  cannot tell: {self.silent}"]
        width = max(len(row.reading.words) for row in self.rows)
        lines.append(f"  {'reading':{width}}  distance   present  pictures")
        for row in self.rows:
            told = "  fits clearly better" if row is self.better else ""
            lines.append(
                f"  {row.reading.words:{width}}  {row.distance:8.4f}  {row.present:8.4f}  {row.pictures:8d}{told}"
            )
        return [*lines, f"  {self.sentence()}"]


def audit(
    sources: Sequence[Source],
    domains: Sequence[Sequence[str]],
    data: MergeData,
    mode: Audit = "stop",
    device: torch.device | str = "cpu",
) -> list[Finding]:
    """Look at every source on a batch of its own pictures, and say, or refuse, what does not fit.

    Args:
        sources: The sources, in eval mode.
        domains: Those of each.
        data: Gives their pictures.
        mode: ``stop`` where another reading fits clearly better, ``warn`` of it, or ``off``.
        device: Where the networks run meanwhile.

    Raises:
        ConfigurationError: In mode ``stop``, with the readings that fit better and the options that take them.
    """
    if mode == "off":
        return []
    findings = findings_of(sources, domains, data, device)
    wrong = [finding.sentence() + _against(finding, findings) for finding in findings if finding.better]
    for finding in findings:
        if not finding.better:
            tell(finding.sentence())
    if wrong and mode == "stop":
        raise ConfigurationError(
            f"{'; '.join(wrong)}; audit 'warn' or 'off' merges all the same, and pleas check FILES --pictures FOLDER "
            f"prints the table."
        )
    for sentence in wrong:
        warn(f"{sentence}.")
    return findings


def _against(finding: Finding, findings: Sequence[Finding]) -> str:
    """What hinders that a reading is taken, in words: that of pictures is one for all sources."""
    assert finding.better is not None
    if finding.better.reading.kind not in ("colours", "size"):
        return ""
    words = finding.better.reading.words
    fitting = [
        one.name
        for one in findings
        if not one.better
        and not one.unsure
        and any(row.reading.words == words and row.distance - row.present >= GAP for row in one.rows)
    ]
    if not fitting:
        return ""
    return (
        f", but {', '.join(fitting)} {'fits' if len(fitting) == 1 else 'fit'} as read now, and all sources are given "
        f"pictures in one way: those that read them in two ways are not merged here"
    )


@torch.no_grad()
def findings_of(
    sources: Sequence[Source], domains: Sequence[Sequence[str]], data: MergeData, device: torch.device | str = "cpu"
) -> list[Finding]:
    """What is found of each source; see :func:`audit`."""
    findings = [
        Finding(source.name, source.origin, silent=why) for source, why in zip(sources, _silent(sources), strict=True)
    ]
    judges: dict[int, Judge] = {}
    if not all(finding.silent for finding in findings):
        tell(f"audit: looking at up to {PICTURES} pictures of each of {len(sources)} sources")
    try:
        for index, (source, finding) in enumerate(zip(sources, findings, strict=True)):
            owned = [domain for domain in domains[index] if domain in data.calibration_domains]
            if not finding.silent and not owned:
                finding.silent = "there are no pictures of its own to calibrate with"
            if finding.silent:
                continue
            judge = Judge(source, data, owned, device)
            if len(judge.pictures) < FEW:
                finding.silent = f"there are {len(judge.pictures)} pictures of its own, which are less than {FEW}"
            elif not judge.first:
                finding.silent = "no unit of its batch norms is alive"
            else:
                judges[index] = judge
        others = _domain_rows(judges)
        for index, judge in judges.items():
            rows = [*judge.settled(judge.rows()), *others[index]]
            findings[index].rows = [judge.present, *rows]
            findings[index].better = _best([row for row in rows if row.clear])
    finally:
        for source in sources:
            source.network.to("cpu")
    return findings


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
        best = _best(seeming)
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


def _best(rows: Sequence[Row]) -> Row | None:
    """The nearest of the rows, or a simpler one than which it is not clearly nearer."""
    best = min(rows, key=lambda row: row.distance, default=None)
    if best is None or best.reading.simple:
        return best
    simpler = [row for row in rows if row.reading.simple and not best.beats(row.distance)]
    return min(simpler, key=lambda row: row.distance, default=best)


def _domain_rows(judges: Mapping[int, Judge]) -> dict[int, list[Row]]:
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


# ---- distances ---------------------------------------------------------------------------------------------------


class _Enough(Exception):
    """All norms that are asked for have been seen."""


def distances(network: nn.Module, pictures: Tensor, names: Collection[str] | None = None) -> dict[str, float]:
    """How far the running statistics of norms are from those of what they read, in the order in which they read it.

    Args:
        network: In eval mode; it is run no further than the last of the norms.
        pictures: Shape (batch, channels, height, width).
        names: Of the norms; all by default. Those that never ran, or of whose units none is alive, are left out.

    Returns:
        Norm -> mean over its living units of the Bhattacharyya distance between two Gaussians (Kailath 1967).
    """
    norms = {name: norm for name, norm in batch_norms(network).items() if not untouched(norm)}
    wanted = set(norms if names is None else names)
    found: dict[str, float] = {}
    left = set(wanted)

    def look(name: str, norm: BatchNorm, values: Tensor) -> None:
        if name in left:
            left.discard(name)
            found[name] = _distance(norm, values)
            if not left:
                raise _Enough

    handles = [
        norm.register_forward_pre_hook(lambda norm, inputs, name=name: look(name, norm, inputs[0]))
        for name, norm in norms.items()
        if name in wanted
    ]
    try:
        if wanted:
            network(pictures)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return {name: distance for name, distance in found.items() if distance == distance}


def _distance(norm: BatchNorm, values: Tensor) -> float:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    values, others = values.float(), [0, *range(2, values.dim())]
    mean = values.mean(others)
    seen = values.square().mean(others) - mean.square()  # several times faster than torch.var_mean
    one, other = seen.clamp(min=0) + norm.eps, norm.running_var.float() + norm.eps
    both = one + other
    distance = (mean - norm.running_mean).square() / (4 * both) + torch.log(both / (2 * (one * other).sqrt())) / 2
    alive = torch.maximum(one, other) > 2 * norm.eps
    return float(distance[alive].mean()) if bool(alive.any()) else nan


def mean_of(found: Mapping[str, float], names: Collection[str]) -> float:
    """The mean distance of some norms."""
    return float(np.mean([found[name] for name in names])) if names else nan


def untouched(norm: BatchNorm) -> bool:
    """Whether the statistics of a norm are those that it was made with."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return not bool(norm.running_mean.any()) and bool((norm.running_var == 1).all())


def _silent(sources: Sequence[Source]) -> list[str]:
    """Why the norms of each source tell nothing; "" where they may."""
    statistics = []
    for source in sources:
        norms = {name: norm for name, norm in batch_norms(source.network).items() if not untouched(norm)}
        statistics.append(norms)
    silent = []
    for index, (source, norms) in enumerate(zip(sources, statistics, strict=True)):
        others = [other for other in range(len(sources)) if other != index and _same(norms, statistics[other])]
        if not batch_norms(source.network):
            silent.append("it has no batch norms")
        elif not norms:
            silent.append("its batch norms have never seen a picture")
        elif batches := _early(norms):
            silent.append(
                f"its batch norms have seen {batches} batches, which are less than {SEEN}: their statistics are still "
                f"those that they were made with, in part"
            )
        elif others:
            silent.append(
                f"its batch norms hold the same statistics as those of {sources[others[0]].name}: both were fine-tuned "
                f"with the frozen ones of their pretrained weights"
            )
        else:
            silent.append("")
    return silent


def _early(norms: Mapping[str, BatchNorm]) -> int:
    """How many batches the norms have seen, where these are few; 0 where they are many, or nobody has counted."""
    counted = [int(norm.num_batches_tracked) for norm in norms.values() if norm.num_batches_tracked is not None]
    return max(counted) if counted and max(counted) < SEEN else 0


def _same(one: Mapping[str, BatchNorm], other: Mapping[str, BatchNorm]) -> bool:
    """Whether two networks' norms hold the same statistics."""
    if one.keys() != other.keys():
        return False
    for name, norm in one.items():
        for mine, theirs in (
            (norm.running_mean, other[name].running_mean),
            (norm.running_var, other[name].running_var),
        ):
            if mine is None or theirs is None or mine.shape != theirs.shape or not torch.equal(mine, theirs):
                return False
    return bool(one)
