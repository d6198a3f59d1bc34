"""What to do with the students of a merge, in two sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from project.report.page.pair import difference, kept
from project.report.page.reading import Merge, Network
from project.report.page.share import Estimate, mean

ENOUGH = 95.0
"""Per cent of the sources' accuracy, each on its own domains, that a student must keep to be recommended."""
WIDE = 10.0
"""Points of uncertainty of a difference of means with which there is no verdict."""
SWAPPED = 10.0
"""Points by which the sources must do better, dealt out in another way, to be taken for swapped."""
ALIKE = 1.02
"""Factor up to which two students cost the same."""

Kind = Literal["merge", "larger", "loses", "keep", "undecided", "mis-prepared"]


@dataclass(frozen=True)
class Verdict:
    """What to do.

    Args:
        kind: ``merge`` at the size of the recommended student; take a ``larger`` budget; every student ``loses`` more
            than is usual; ``keep`` a source; ``undecided``: the test pictures do not tell; ``mis-prepared`` sources.
        recommended: Name of the student, or of the source to keep; None where there is none.
        sentences: The verdict with its numbers, and what follows.
    """

    kind: Kind
    recommended: str | None
    sentences: tuple[str, str]


def verdict(merge: Merge) -> Verdict | None:
    """Say what to do; None where accuracies, or the number of test pictures behind them, are not recorded."""
    references, students = merge.references, merge.of_kind("student")
    complete = [one for one in students if one.cost is not None and set(one.accuracy) >= set(merge.domains)]
    sources = {source.name: source for source in references.values()}
    shares = [share for one in (*complete, *sources.values()) for share in one.accuracy.values()]
    counted = all(share.pictures is not None for share in shares)
    if (
        not merge.domains
        or not complete
        or not merge.counts_answers
        or not counted
        or set(references) != set(merge.domains)
    ):
        return None
    best = max(complete, key=lambda one: (mean(one.accuracy.values()).value, -(one.cost or 0.0)))
    wanted = mean(source.accuracy[domain] for domain, source in references.items())
    short = difference(merge.pairs(references, merge.everywhere(best)))
    alone, count = _best_alone(merge), len(merge.of_kind("source"))
    return (
        _mis_prepared(merge)
        or (_too_few(best, short) if (short.spread or 0.0) > WIDE else None)
        or (None if alone is None else _against_one(merge, best, alone, count))
        or _of_size(merge, complete, best, wanted, alone, count)
    )


def _best_alone(merge: Merge) -> Network | None:
    able = [source for source in merge.of_kind("source") if set(source.accuracy) >= set(merge.domains)]
    return max(able, key=lambda source: mean(source.accuracy.values()).value, default=None)


# ---- sources that are not what they seem -------------------------------------------------------------------------


def _mis_prepared(merge: Merge) -> Verdict | None:
    return _guessing(merge) or _swapped(merge)


def _guessing(merge: Merge) -> Verdict | None:
    """A source that is no better than chance on what it was trained for."""
    for domain, source in merge.references.items():
        found, classes = source.accuracy[domain].estimate, len(merge.classes.get(domain, ()))
        if source.name != merge.owners.get(domain) or classes < 2 or (found.spread or 0.0) > WIDE:
            continue
        if found.value - (found.spread or 0.0) <= 100 / classes:
            told = (
                f"The sources look mis-prepared: {source.name} is right on {found.text} % of the "
                f"{source.accuracy[domain].pictures} test pictures of its own domain {domain}, and guessing among "
                f"{classes} classes is right on {100 / classes:.1f} %."
            )
            after = (
                "No student is recommended before that is settled: look at the order of its classes, and at what its "
                "pictures go through, which 'pleas check FILES --pictures FOLDER' shows."
            )
            return Verdict("mis-prepared", None, (told, after))
    return None


def _swapped(merge: Merge) -> Verdict | None:
    """Sources that do better on each other's domains."""
    sources = merge.of_kind("source")
    own = [[domain for domain in merge.domains if merge.owners.get(domain) == source.name] for source in sources]
    if not all(own) or any(len(source.accuracy) < len(merge.domains) for source in sources):
        return None
    cells = [[mean(source.accuracy[domain] for domain in domains) for domains in own] for source in sources]
    values = np.array([[cell.value for cell in row] for row in cells])
    dealt = linear_sum_assignment(values, maximize=True)[1]
    gain = _average([_gain(merge, sources[i], sources[j], own[j]) for i, j in enumerate(dealt)])
    if gain.value <= SWAPPED or not gain.positive:
        return None
    pairs = ", ".join(f"{source.name} on {' and '.join(own[j])}" for source, j in zip(sources, dealt, strict=True))
    told = (
        f"The sources look mis-prepared: dealt out in another way ({pairs}) they are right on {gain.text} points more "
        f"than on the domains that they are said to be of."
    )
    after = "No student is recommended before sources and domains stand in one order, which option 'domains' says."
    return Verdict("mis-prepared", None, (told, after))


def _gain(merge: Merge, source: Network, owner: Network, domains: Sequence[str]) -> Estimate:
    """How much a source is above the owner of some domains there."""
    if source is owner:
        return Estimate(0.0, 0.0)
    return difference(merge.pairs(dict.fromkeys(domains, source), dict.fromkeys(domains, owner)))


def _average(estimates: Sequence[Estimate]) -> Estimate:
    spread = sum((one.spread or 0.0) ** 2 for one in estimates) ** 0.5
    return Estimate(sum(one.value for one in estimates) / len(estimates), spread / len(estimates))


# ---- students against sources ------------------------------------------------------------------------------------


def _too_few(best: Network, short: Estimate) -> Verdict:
    counts = [share.pictures or 0 for share in best.accuracy.values()]
    told = (
        f"The test pictures are too few for a verdict: with {_range(counts)} in a domain, the best student, "
        f"{best.name}, is {short.text} points below the sources on their own domains."
    )
    times = ceil(((short.spread or 0.0) / WIDE) ** 2)
    after = f"No student is recommended; {_times(times)} as many test pictures would bring the ± below {WIDE:.0f}."
    return Verdict("undecided", None, (told, after))


def _against_one(merge: Merge, best: Network, alone: Network, count: int) -> Verdict | None:
    """One source by itself that the best student does not beat."""
    mine, its = mean(best.accuracy.values()), mean(alone.accuracy.values())
    pairs = merge.pairs(merge.everywhere(best), merge.everywhere(alone))
    lead = difference(pairs)
    other = Estimate(-lead.value, lead.spread)
    ahead = {domain: difference([pair]) for domain, pair in zip(merge.domains, pairs, strict=True)}
    figures = (
        f"{alone.name} alone is right on {its.text} % over all domains, and the best student, {best.name} at "
        f"{best.cost:.2f} times its multiply-adds, on {mine.text} %"
    )
    if other.positive:
        better = [domain for domain, one in ahead.items() if one.value < 0]
        where = "on every domain" if len(better) == len(ahead) else f"on {len(better)} of {len(ahead)} domains"
        told = f"Keep source {alone.name}, which is better {where}: {figures}, {other.text} points less."
        but = [domain for domain, one in ahead.items() if one.positive]
        after = f", unless what counts is {' and '.join(but)}, where {best.name} is clearly better" if but else ""
        room = f"; budgets up to {count} are open" if (best.cost or 0.0) < count / ALIKE else ""
        return Verdict("keep", alone.name, (told, f"No student of this run is recommended{after}{room}."))
    if lead.positive:
        return None
    told = f"The test pictures show no gain from merging: {figures}, a difference of {lead.text} points."
    times = ceil(((lead.spread or 0.0) / lead.value) ** 2) if lead.value > 0 else 0
    hint = f", unless {_times(times)} as many test pictures show that difference again" if 0 < times <= 100 else ""
    return Verdict("undecided", alone.name, (told, f"Keep {alone.name}, which costs no more{hint}."))


def _of_size(
    merge: Merge, students: Sequence[Network], best: Network, wanted: Estimate, alone: Network | None, count: int
) -> Verdict:
    """The smallest student that keeps enough or, where there is none, what else to do."""
    means = {one.name: mean(one.accuracy.values()) for one in students}
    held = {one.name: kept(merge.pairs(merge.everywhere(one), merge.references)) or Estimate(0.0) for one in students}
    least_wanted = 0.0 if alone is None else mean(alone.accuracy.values()).value
    enough = [one for one in students if held[one.name].value >= ENOUGH and means[one.name].value >= least_wanted]
    least = min((one.cost or 0.0 for one in enough), default=0.0)
    chosen = max(
        (one for one in enough if (one.cost or 0.0) <= ALIKE * least),
        key=lambda one: held[one.name].value,
        default=best,
    )
    figures = (
        f"{chosen.name} keeps {held[chosen.name].text} % of the sources' accuracy at {chosen.cost:.2f} times the "
        f"multiply-adds of one ({means[chosen.name].value:.1f} % over all domains; the sources, each on its own, "
        f"{wanted.value:.1f} %)"
    )
    if enough:
        after = _beside(merge, chosen, best, alone)
        return Verdict("merge", chosen.name, (f"Merge at this size: {figures}.", after))
    if max(one.cost or 0.0 for one in students) < count / ALIKE:
        told = f"Take a larger budget: of the students made here, {figures}, less than {ENOUGH:.0f} %."
        after = f"Budgets up to {count} are open; until one is tried, {chosen.name} is the student to take."
        return Verdict("larger", chosen.name, (told, after))
    told = f"Merging loses more than {100 - ENOUGH:.0f} % at every size: {figures}."
    after = f"If that is enough, take {chosen.name}; else keep the sources side by side, each for its own domains."
    return Verdict("loses", chosen.name, (told, after))


def _beside(merge: Merge, chosen: Network, best: Network, alone: Network | None) -> str:
    """What the recommended student is held against."""
    parts = []
    if alone is not None:
        lead = difference(merge.pairs(merge.everywhere(chosen), merge.everywhere(alone)))
        size, word = Estimate(abs(lead.value), lead.spread), "more" if lead.value >= 0 else "less"
        parts.append(f"over all domains that is {size.text} points {word} than the best single source, {alone.name}")
    more = difference(merge.pairs(merge.everywhere(best), merge.everywhere(chosen)))
    if best is not chosen and more.positive:
        parts.append(f"{best.name} at {best.cost:.2f} times has {more.text} points more still")
    elif best is not chosen:
        parts.append(f"no larger student is clearly better (the best, {best.name}, has {more.text} points more)")
    return f"Take {chosen.name}" + (f": {'; '.join(parts)}." if parts else ".")


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _times(factor: int) -> str:
    return f"{factor} times" if factor > 1 else "slightly more than"
