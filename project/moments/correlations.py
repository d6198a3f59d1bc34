"""A convolution's patch moment from products of shifted maps, without unfolding.

At output position t, tap a of a kernel reads the place q = t · stride + a · dilation − padding. Two taps whose places
differ by a shift d contribute x(q) x(q + d)ᵀ wherever both read. In the middle of a map, every pair of taps with the
same shift reads the same pairs of places; at its border, only some of them do. The places of a shift are therefore
parted by the pairs of taps that read them, each part is one product, and each block of the moment is a sum of parts.
Every pair of places is multiplied once, where unfolding multiplies it once for every pair of taps that reads it: for a
3 × 3 kernel with stride 1, 12.5 products instead of 40.5 in the middle of a map, and fewer where borders take much of
it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor, nn

from project.errors import MergeError
from project.moments.moment import Pull, SecondMoment, add_lower, add_product, pieces
from project.moments.patches import Geometry, exact_products, geometry

PLACES_PER_PRODUCT = 8192  # waited for: adding to wide float64 totals costs as much as a product over a few hundred
NARROW = 32  # channels below which a product takes as long as one of so many
MAX_PRODUCT_SHARE = 0.7  # of the products that unfolding needs: correlations read their factors from several places


@dataclass(frozen=True)
class Line:
    """Places along one side of a map that the same pairs of taps read with the same shift.

    Args:
        places: Where the first tap reads.
        shift: How far on the second tap reads.
        pairs: (first tap, second tap) along this side.
    """

    places: range
    shift: int
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Part:
    """Places of a map whose product with the shifted map belongs to the same blocks of the moment.

    Args:
        rows: Along its height.
        columns: Along its width.
    """

    rows: Line
    columns: Line

    @property
    def places(self) -> int:
        """Number of places."""
        return len(self.rows.places) * len(self.columns.places)

    @property
    def still(self) -> bool:
        """Whether the shift is zero, so that the product is symmetric."""
        return self.rows.shift == self.columns.shift == 0

    def blocks(self, wide: int) -> Iterator[tuple[int, int]]:
        """The pairs of taps (p, p′) of the kernel, numbered row by row, whose block this part belongs to.

        Args:
            wide: Width of the kernel.
        """
        for (top, under), (left, right) in product(self.rows.pairs, self.columns.pairs):
            yield top * wide + left, under * wide + right


@lru_cache
def parts(shape: Geometry) -> tuple[Part, ...]:
    """All parts of a convolution's patch moment; of each shift and its opposite, one stands for both."""
    tall, wide = (_lines(shape, side) for side in (0, 1))
    found = (Part(rows, columns) for rows, columns in product(tall, wide))
    return tuple(part for part in found if (part.rows.shift, part.columns.shift) >= (0, 0))


def _lines(shape: Geometry, side: int) -> list[Line]:
    reads: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)  # (place, shift) -> pairs of taps
    taps, size = range(shape.kernel[side]), shape.sides[side]
    for position, a, b in product(range(shape.positions[side]), taps, taps):
        one, other = (shape.place(side, position, tap) for tap in (a, b))
        if 0 <= one < size and 0 <= other < size:
            reads[one, other - one].append((a, b))
    alike: dict[tuple[int, tuple[tuple[int, int], ...]], list[int]] = defaultdict(list)
    for (place, shift), pairs in sorted(reads.items()):
        alike[shift, tuple(sorted(pairs))].append(place)
    return [Line(run, shift, pairs) for (shift, pairs), places in alike.items() for run in _runs(places)]


def _runs(places: list[int]) -> list[range]:
    """Ascending numbers as arithmetic progressions."""
    runs: list[range] = []
    for place in places:
        last = runs[-1] if runs else None
        if last is not None and (len(last) == 1 or place - last[-1] == last.step):
            runs[-1] = range(last[0], place + 1, place - last[-1])
        else:
            runs.append(range(place, place + 1))
    return runs


def gram_costs(layer: nn.Conv2d, channels: int, sides: tuple[int, int]) -> tuple[float, float]:
    """Multiply-adds for the moment of a convolution's inputs on one picture: by correlations, and by unfolding.

    Args:
        layer: The convolution.
        channels: Of all sources.
        sides: Height and width of the maps it reads.
    """
    shape = geometry(layer, sides)
    taps, width = shape.kernel[0] * shape.kernel[1], max(channels, NARROW)
    unfolded = shape.positions[0] * shape.positions[1] * max(channels * taps, NARROW) ** 2 / 2
    return sum(part.places / (1 + part.still) for part in parts(shape)) * width**2, unfolded


def pays(layer: nn.Module, channels: int, sides: tuple[int, int]) -> bool:
    """Whether correlations take so much fewer products than unfolding that they pay; see :func:`gram_costs`."""
    if not isinstance(layer, nn.Conv2d):
        return False
    correlated, unfolded = gram_costs(layer, channels, sides)
    return correlated < MAX_PRODUCT_SHARE * unfolded


class CorrelationMoment(SecondMoment):
    """The second moment of a convolution's patches, held as one sum for each part.

    What it holds is smaller than the moment itself: 29 blocks of channels × channels for a 3 × 3 kernel with stride 1,
    where the moment has 81.

    Args:
        layer: The convolution: its kernel, stride, padding and dilation.
        channels: Of all sources.
        sides: Height and width of the maps it reads.
        constant: Whether a patch ends with a 1.
        device: Where the totals live.
    """

    def __init__(
        self,
        layer: nn.Conv2d,
        channels: int,
        sides: tuple[int, int],
        *,
        constant: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        self.channels, self.constant, self.shape = channels, constant, geometry(layer, sides)
        self.taps = self.shape.kernel[0] * self.shape.kernel[1]
        self.parts = parts(self.shape)
        shapes = [(len(self.parts), channels, channels), (*sides, channels)]
        size = channels * self.taps + constant
        super().__init__(size, shapes[: 1 + constant], device, entries=channels, enough=PLACES_PER_PRODUCT)

    def read(self, values: Sequence[Tensor]) -> None:
        """Add pictures.

        Args:
            values: What the layer reads in every source, on the same pictures: (batch, channels, height, width).

        Raises:
            MergeError: If the maps are not of the size that the moment was made for.
        """
        pictures, _, *sides = values[0].shape
        if tuple(sides) != self.shape.sides:
            raise MergeError(
                f"a convolution reads maps of {sides[0]} × {sides[1]}, but the network was traced where they are "
                f"{self.shape.sides[0]} × {self.shape.sides[1]}; merge with pictures of the size that was traced."
            )
        shape = (*sides, pictures, self.channels)  # a row of a map is one block
        maps = torch.empty(shape, dtype=torch.float32, device=values[0].device)
        start = 0
        for value in values:
            maps[..., start : start + value.shape[1]].copy_(value.permute(2, 3, 0, 1))
            start += value.shape[1]
        self._pending.append(maps)
        self.count += pictures * self.shape.positions[0] * self.shape.positions[1]
        if sum(maps.shape[2] for maps in self._pending) * sides[0] * sides[1] >= self.patience:
            self._flush()

    @property
    def every_place(self) -> bool:
        """Whether it holds the moment of all places of what the layer reads; see :meth:`places`."""
        height, width = self.shape.sides
        return sum(part.places for part in self.parts if part.still) == height * width

    def places(self) -> Tensor:
        """Lower triangle of the sum of x xᵀ over all places of what the layer reads."""
        still = [total for total, part in zip(self.totals[0], self.parts, strict=True) if part.still]
        return torch.stack(still).sum(0)

    def sum(self, left: Pull | None = None, right: Pull | None = None, *, taps: int = 1) -> Tensor:
        """The full sum of x xᵀ, or of L x (R x)ᵀ, in the order of ``weight.flatten(1)``; see :meth:`SecondMoment.sum`.

        L and R act on channels alone, the same at every tap, and so on the parts, of which there are fewer than pairs
        of taps.
        """
        correlations, *sums = self.totals

        def moved(values: Tensor, pull: Pull | None) -> Tensor:
            return values if pull is None else pull(values, taps // self.taps)

        def between(values: Tensor, one: Pull | None, other: Pull | None) -> Tensor:
            half = moved(values, one)
            return half if other is None else moved(half.mT.contiguous(), other).mT

        pairs: dict[tuple[int, int], list[Tensor]] = defaultdict(list)  # (tap, tap) -> what its block is the sum of
        for values, part in zip(correlations, self.parts, strict=True):
            whole = values.tril() + values.tril(-1).mT if part.still else values
            ahead = between(whole, left, right)
            back = ahead.mT if right is left else between(whole, right, left).mT  # L Pᵀ Rᵀ
            for p, other in part.blocks(self.shape.kernel[1]):
                pairs[p, other].append(ahead)
                if not part.still:
                    pairs[other, p].append(back)
        tall, wide = (len(moved(correlations.new_zeros(self.channels, 1), pull)) for pull in (left, right))
        size, width = tall * self.taps, wide * self.taps
        full = correlations.new_empty(size + self.constant, width + self.constant)
        blocks = full[:size, :width].view(tall, self.taps, wide, self.taps)
        strip = correlations.new_empty(self.taps, tall, wide)  # one tap's rows: in this order they are read in runs
        for p in range(self.taps):
            for other in range(self.taps):
                if (p, other) not in pairs:  # nothing but padding, at least at one of them
                    strip[other].zero_()
                    continue
                first, *others = pairs[p, other]
                strip[other].copy_(first)
                for values in others:
                    strip[other].add_(values)
            blocks[:, p] = strip.permute(1, 2, 0)
        for places in sums:
            reads = torch.stack([self._read(places, tap) for tap in product(*map(range, self.shape.kernel))], 1)
            full[:size, -1] = moved(reads, left).flatten()
            full[-1, :width] = moved(reads, right).flatten()
            full[-1, -1] = self.count
        return full

    def _read(self, places: Tensor, tap: Sequence[int]) -> Tensor:
        """The sum of what a tap reads, shape (channels,), from sums of shape (height, width, channels)."""
        rows, columns = (
            [q for t in range(count) if 0 <= (q := self.shape.place(side, t, at)) < self.shape.sides[side]]
            for side, (count, at) in enumerate(zip(self.shape.positions, tap, strict=True))
        )
        return places[rows][:, columns].sum((0, 1))

    def _flush(self) -> None:
        if not self._pending:
            return
        maps = self._pending[0] if len(self._pending) == 1 else torch.cat(self._pending, 2)
        self._pending = []
        correlations, *sums = self._totals
        with exact_products(maps.device):
            for total, part in zip(correlations, self.parts, strict=True):
                _correlate(total, maps, part)
        for places in sums:
            places += maps.sum(2)


def _correlate(total: Tensor, maps: Tensor, part: Part) -> None:
    """Add Σ x(q) x(q + d)ᵀ over the places of a part; only the lower triangle where d = 0.

    Args:
        total: Float64, shape (channels, channels).
        maps: Float32, shape (height, width, pictures, channels).
        part: The places and the shift.
    """
    first, second = _places(part.columns)
    if maps.device.type != "cpu":  # where launches take longer than copies
        rows, others = _places(part.rows)
        read = maps[rows, first].flatten(0, 2).mT
        shifted = read if part.still else maps[others, second].flatten(0, 2).mT
        for one, other in zip(*(pieces(values, len(total)) for values in (read, shifted)), strict=True):
            add_product(total, one, other)
        return
    waiting, samples = maps.new_zeros(total.shape), 0
    for row in part.rows.places:
        left = maps[row, first].flatten(0, 1)
        if part.still:
            add_lower(waiting, left.mT)
        else:
            waiting.addmm_(left.mT, maps[row + part.rows.shift, second].flatten(0, 1))
        samples += len(left)
        if samples >= PLACES_PER_PRODUCT or row == part.rows.places[-1]:
            total += waiting
            waiting, samples = waiting.zero_(), 0


def _places(line: Line) -> tuple[slice, slice]:
    """Where the first and the second tap read along one side."""
    one = slice(line.places.start, line.places.stop, line.places.step)
    return one, slice(one.start + line.shift, one.stop + line.shift, one.step)
