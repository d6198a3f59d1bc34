"""Shares of test pictures, and how far such a share may be from that of all pictures."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

DEVIATIONS = 1.959964
"""Standard deviations on either side that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A figure and what it is uncertain by.

    Args:
        value: The figure, in per cent or points.
        spread: How far it may be off, at 95 %; None where that is not known.
    """

    value: float
    spread: float | None = None

    def __sub__(self, other: "Estimate") -> "Estimate":
        """How much it is above another, independent one."""
        known = self.spread is not None and other.spread is not None
        return Estimate(self.value - other.value, sqrt(self.spread**2 + other.spread**2) if known else None)  # type: ignore[operator]

    def over(self, other: "Estimate") -> "Estimate | None":
        """What share of another it is, in per cent; None of nothing."""
        if not other.value:
            return None
        share = self.value / other.value
        known = self.spread is not None and other.spread is not None
        spread = sqrt(self.spread**2 + (share * other.spread) ** 2) / other.value if known else None  # type: ignore[operator]
        return Estimate(100 * share, None if spread is None else 100 * spread)

    @property
    def positive(self) -> bool:
        """Whether it is clearly above 0."""
        return self.value > (self.spread or 0.0)

    @property
    def text(self) -> str:
        """As it is printed, with its spread where that is known."""
        return f"{self.value:z.1f}" + ("" if self.spread is None else f" ± {self.spread:.1f}")


@dataclass(frozen=True)
class Share:
    """How many of the pictures of a domain a network has right.

    Args:
        percent: In per cent.
        right: How many; None where only the share is known.
        pictures: Of how many; None where that is not known.
    """

    percent: float
    right: int | None = None
    pictures: int | None = None

    @property
    def estimate(self) -> Estimate:
        """The share, uncertain by half of Wilson's interval at 95 %, which none and all of few pictures have, too."""
        if not self.pictures:
            return Estimate(self.percent)
        share, count = self.percent / 100, self.pictures
        inner = share * (1 - share) / count + DEVIATIONS**2 / (4 * count**2)
        return Estimate(self.percent, 100 * DEVIATIONS * sqrt(inner) / (1 + DEVIATIONS**2 / count))


def counted(right: int, pictures: int) -> Share:
    """The share of so many right ones of so many pictures."""
    return Share(100 * right / pictures, right, pictures)


def mean(shares: Iterable[Share]) -> Estimate:
    """The mean over domains, all of which weigh alike."""
    found = [share.estimate for share in shares]
    value = sum(one.value for one in found) / len(found)
    spreads = [one.spread for one in found if one.spread is not None]
    return Estimate(value, sqrt(sum(one**2 for one in spreads)) / len(found) if len(spreads) == len(found) else None)
