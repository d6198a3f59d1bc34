"""Spending a budget: the most valuable numbers of separated rows whose size is within a limit.

The value is a sum over kinds of rows, each concave in the number separated; the size is a quadratic form in which
separating both sides of a layer costs less than separating each alone. So a whole run of groups may be a bargain where
no single group is, which a search that starts from everything merged does not see. This one starts from every run of
groups at either end of the network, separated as far as the budget allows, and improves the best by exchanges.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from project.allocation.candidates import Choices, Counts, Vector, step_of

STARTS_IMPROVED = 4  # the best ones
MIN_RELATIVE_GAIN = 1e-3  # of the value: what an exchange must add
MIN_RATIO_SHARE = 0.7  # of the best ratio of value to size: what a longer step may have instead


def best_counts(choices: Choices, values: Sequence[Vector], met: float = 0.0) -> Counts:
    """Choose how many rows of each kind to separate.

    Args:
        choices: What can be separated and what it costs.
        values: For each kind, the value of separating 0, 1, … of its rows, shape (rows + 1,): concave, not falling.
        met: The share of the limit below which single rows fill what steps of the default length leave.

    Returns:
        Shape (kinds,), within the limit; zeros where not even a full merge is.
    """
    nothing = np.zeros_like(choices.counts)
    if not choices.kinds or not choices.fits(nothing):
        return nothing
    search = _Exchange(choices, values, choices.step)
    ends = np.tri(len(choices.kinds) + 1, len(choices.kinds), -1, dtype=bool)
    starts = [search.within(np.where(run, choices.counts, 0)) for run in (*ends, *~ends)]
    best = sorted(starts, key=search.value)[-STARTS_IMPROVED:]
    found = max(map(search.improved, best), key=search.value)
    if choices.step is None and choices.size(found) < met * choices.limit:
        return _Exchange(choices, values, 1).within(found)
    return found


class _Exchange:
    """Local search: take back steps of one kind and spend what that frees, or force some in and make room for them."""

    def __init__(self, choices: Choices, values: Sequence[Vector], step: int | None) -> None:
        self.choices = choices
        most = int(choices.counts.max())
        self.table = np.stack([np.pad(value, (0, most + 1 - len(value)), mode="edge") for value in values])
        self.kinds = np.arange(len(values))
        self.step = np.array([step_of(step, len(kind.rows)) for kind in choices.kinds])
        self.steps = self.step[:, None] * 2 ** np.arange(most.bit_length() + 1)  # shape (kinds, moves)

    def value(self, counts: Counts) -> float:
        """Add up what these counts are worth."""
        return float(self.table[self.kinds, counts].sum())

    def improved(self, counts: Counts) -> Counts:
        """Exchange until no exchange is worthwhile."""
        best, value, last = counts, self.value(counts), -1.0
        while last < value:
            last = value
            for kind in range(len(self.kinds)):
                for rival in self._rivals(best, kind):
                    if self.value(rival) > value * (1 + MIN_RELATIVE_GAIN):
                        best, value = rival, self.value(rival)
        return best

    def within(self, counts: Counts, barred: int = -1) -> Counts:
        """Merge again as far as the budget asks, and separate as far as it lasts; one kind may be kept as it is."""
        return self._filled(self._trimmed(counts, barred), barred)

    def _rivals(self, counts: Counts, kind: int) -> Iterator[Counts]:
        """Take steps of a kind back or force some in, and spend the budget on the others."""
        moved = np.concatenate([counts[kind] - self.steps[kind], counts[kind] + self.steps[kind]])
        most = self.choices.counts[kind]
        for target in np.unique(_whole(moved.clip(0, most), most, self.step[kind])):
            if target != counts[kind]:
                rival = counts.copy()
                rival[kind] = target
                yield self.within(rival, kind)

    def _filled(self, counts: Counts, barred: int = -1) -> Counts:
        """Separate more, always the step of most value for its size, while something fits."""
        counts, left = counts.copy(), self.choices.limit - self.choices.size(counts)
        while True:
            gain, cost, steps = self._moves(counts, 1, barred)
            fits = (steps > 0) & (cost <= left)
            if not fits.any():
                return counts
            ratio = np.where(fits, gain / np.maximum(cost, 1e-9), -1.0)
            good = ratio >= MIN_RATIO_SHARE * ratio.max()
            kind, step = divmod(int(np.where(good, cost, -1.0).argmax()), self.steps.shape[1])
            counts[kind] += steps[kind, step]
            left -= cost[kind, step]

    def _trimmed(self, counts: Counts, barred: int = -1) -> Counts:
        """Merge again, always the step of least value for its size, until the rest is within the limit."""
        counts, over = counts.copy(), self.choices.size(counts) - self.choices.limit
        while over > 0:
            loss, saved, steps = self._moves(counts, -1, barred)
            if not (steps > 0).any():
                return np.zeros_like(counts)  # what was forced in is too much alone
            ratio = np.where(steps > 0, loss / np.maximum(saved, 1e-9), np.inf)
            good = (ratio <= ratio.min() / MIN_RATIO_SHARE) & ((saved <= over) | (ratio == ratio.min()))
            kind, step = divmod(int(np.where(good, saved, -1.0).argmax()), self.steps.shape[1])
            counts[kind] -= steps[kind, step]
            over -= saved[kind, step]
        return counts

    def _moves(self, counts: Counts, sign: int, barred: int) -> tuple[Vector, Vector, Counts]:
        """Compute what every step of every kind changes; steps of length 0 are none.

        Args:
            counts: Shape (kinds,).
            sign: 1 for separating, -1 for merging again.
            barred: A kind that has no steps, or -1.

        Returns:
            Changes of value and of size, as magnitudes, and lengths of the steps; each of shape (kinds, moves).
        """
        most = self.choices.counts[:, None]
        target = _whole((counts[:, None] + sign * self.steps).clip(0, most), most, self.step[:, None])
        if barred >= 0:
            target[barred] = counts[barred]
        steps = np.abs(target - counts[:, None])
        moved = self.table[self.kinds[:, None], target]
        value = sign * (moved - self.table[self.kinds, counts][:, None])
        slope = self.choices.linear - 2 * self.choices.pairs @ counts
        size = slope[:, None] * steps - sign * self.choices.pairs.diagonal()[:, None] * steps**2
        return value, size, steps


def _whole(counts: Counts, most: Counts, step: Counts) -> Counts:
    """Round counts down to multiples of the step; all rows of a kind stay all."""
    return np.where(counts == most, counts, counts - counts % step)
