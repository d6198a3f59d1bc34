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
