"""Is a source what it seems? Its running statistics against what its norms see on its own pictures, reading by reading.

A batch norm keeps the mean and variance of what each unit read while the network was trained. On pictures like those,
fed in the way they were fed then, a unit has about these again. Where it has them in another reading of the source, and
clearly not in the present one, the present one is wrong. Nothing is trained, and no label is read.

The distance of two Gaussians is Bhattacharyya's, averaged over units and then over norms. Against the Kullback-Leibler
divergence it grows slowly, so that a few units far off, and pictures unlike the others, weigh little. The first norms
tell most: behind them a network makes up for a wrong start, and odd pictures drown it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from project.errors import ConfigurationError
from project.merging.data import MergeData
from project.merging.judging import FEW, GAP, NEAR, PICTURES, Judge, Row, best_row, domain_rows
from project.merging.norm_distances import untouched
from project.merging.settings import Audit
from project.moments import BatchNorm
from project.runtime import tell, warn
from project.student import Source, batch_norms

SEEN = 50
"""How many batches a norm must have seen: 0.9^50 of its statistics are then those that it was made with."""


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
        others = domain_rows(judges)
        for index, judge in judges.items():
            rows = [*judge.settled(judge.rows()), *others[index]]
            findings[index].rows = [judge.present, *rows]
            findings[index].better = best_row([row for row in rows if row.clear])
    finally:
        for source in sources:
            source.network.to("cpu")
    return findings


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
