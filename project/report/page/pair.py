"""How far apart two networks are that saw the same pictures, and how far that difference may be off."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from project.report.page.share import DEVIATIONS, Estimate, Share

ADDED = 0.5
"""Pictures added to each of the four cells: both right, one, the other, none (Agresti and Min, 2005)."""


@dataclass(frozen=True)
class Pair:
    """Two networks on the pictures of one domain.

    Args:
        one: What the first has right.
        other: What the second has right.
        both: How many pictures both have right; None where that is not known, which counts as independent.
    """

    one: Share
    other: Share
    both: int | None = None

    def spread(self, factor: float = 1.0) -> float | None:
        """How far the share of the first, less so many times that of the second, may be off at 95 %; None: not known.

        With b pictures that the first alone has right and c that the second alone has, the variance of the difference
        of the shares is (b + c − (b − c)² / n) / n², each cell with half a picture more and n with two, so that no
        difference of few pictures is without doubt (Agresti and Min, Statistics in Medicine 24, 2005).
        """
        one, other = self.one, self.other
        if self.both is None or one.right is None or other.right is None or one.pictures is None:
            spreads = one.estimate.spread, other.estimate.spread
            return None if None in spreads else sqrt(spreads[0] ** 2 + (factor * spreads[1]) ** 2)  # type: ignore[operator]
        count = one.pictures + 4 * ADDED
        both = (self.both + ADDED) / count
        first, second = ((right + 2 * ADDED) / count for right in (one.right, other.right))
        variance = first * (1 - first) + factor**2 * second * (1 - second) - 2 * factor * (both - first * second)
        return 100 * DEVIATIONS * sqrt(max(variance, 0.0) / count)


def difference(pairs: Iterable[Pair]) -> Estimate:
    """How much the first is above the second, as a mean over domains, all of which weigh alike; in points."""
    found = list(pairs)
    value = sum(pair.one.percent - pair.other.percent for pair in found) / len(found)
    return Estimate(value, _spread(found, 1.0))


def kept(pairs: Iterable[Pair]) -> Estimate | None:
    """What share the mean of the first over domains is of that of the second, in per cent; None of nothing."""
    found = list(pairs)
    whole = sum(pair.other.percent for pair in found) / len(found)
    if not whole:
        return None
    share = sum(pair.one.percent for pair in found) / len(found) / whole
    spread = _spread(found, share)
    return Estimate(100 * share, None if spread is None else 100 * spread / whole)


def _spread(pairs: list[Pair], factor: float) -> float | None:
    """That of a mean over domains, whose pictures are others."""
    spreads = [spread for pair in pairs if (spread := pair.spread(factor)) is not None]
    return sqrt(sum(one**2 for one in spreads)) / len(pairs) if len(spreads) == len(pairs) else None
