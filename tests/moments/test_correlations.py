"""Patch moments from shifted maps against float64 sums over unfolded patches."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from elsewhere import elsewhere
from live import peak_bytes
from moments.test_moment import SHAPES, reference, whole
from torch import Tensor, nn

from project.errors import MergeError
from project.moments import LayerMoment, Moment, Pull, layer_moment
from project.moments import correlations as correlations_module
from project.moments.correlations import CorrelationMoment, pays
from project.moments.layer import UnfoldedMoment
from project.moments.patches import geometry

SIDES = [(11, 9), (2, 2), (4, 5)]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's own; the result is what counts
@pytest.mark.parametrize("sides", [pytest.param(SIDES[0], marks=pytest.mark.slow), *SIDES[1:]])
def test_every_convolution(sides: tuple[int, int]) -> None:
    """Whole numbers, so that both sums are exact; maps smaller than the kernel among them."""
    seen = 0
    for kernel, stride, padding, dilation in SHAPES:
        layers = [nn.Conv2d(c, 2, kernel, stride, padding, dilation) for c in (2, 3)]
        values = [whole(2, 2, *sides), whole(2, 3, *sides, seed=1)]
        if min(geometry(layers[0], sides).positions) < 1:
            continue
        found = CorrelationMoment(layers[0], 5, sides, constant=True)
        found.read(values)
        case = f"kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}"
        assert np.array_equal(found.sum().numpy(), reference(values, layers, constant=True)), case
        assert found.count == layers[0](values[0])[:, 0].numel(), case
        seen += 1
    assert seen > 50


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (2, 3), (5, 1)])
def test_every_pair_of_places_is_multiplied_once(kernel: int, stride: int) -> None:
    """The products that are made are the unordered pairs of places which some output position reads together."""
    layer, sides = nn.Conv2d(1, 1, kernel, stride, kernel // 2), (6, 5)
    shape, pairs = geometry(layer, sides), set()
    for row, column in itertools.product(*map(range, shape.positions)):
        taps = itertools.product(range(kernel), repeat=2)
        places = [(shape.place(0, row, i), shape.place(1, column, j)) for i, j in taps]
        reads = [(i, j) for i, j in places if 0 <= i < sides[0] and 0 <= j < sides[1]]
        pairs |= {frozenset((a, b)) for a, b in itertools.product(reads, repeat=2)}
    assert sum(part.places for part in correlations_module.parts(shape)) == len(pairs)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), ((2, 3), 1, 2), (1, 1, 0)])
@pytest.mark.parametrize("constant", [False, True])
def test_channels_may_be_put_together_before_the_moment_is_written_out(
    kernel: int | tuple[int, int], stride: int, padding: int, constant: bool
) -> None:
    """L G Rᵀ for maps of channels, against the product of whole matrices; correlated and unfolded."""
    layer, sides = nn.Conv2d(4, 2, kernel, stride, padding), (5, 4)
    taps = layer.weight[0, 0].numel()
    one, other = whole(3, 4, seed=1).double(), whole(5, 4, seed=2).double()

    def pull(matrix: Tensor) -> Pull:
        def pulled(rows: Tensor, entries: int) -> Tensor:
            units = rows[: 4 * entries].view(4, entries, -1)
            return torch.cat([torch.einsum("ij,jkl->ikl", matrix, units).flatten(0, 1), rows[4 * entries :]])

        return pulled

    def written(matrix: Tensor) -> Tensor:
        return torch.block_diag(torch.kron(matrix, torch.eye(taps, dtype=torch.float64)), torch.eye(int(constant)))

    correlated = CorrelationMoment(layer, 4, sides, constant=constant)
    unfolded = UnfoldedMoment(layer, 4, constant=constant)
    left, right = pull(one), pull(other)
    for moment in (correlated, unfolded):
        moment.read([whole(6, 4, *sides, seed=3)])
        full = moment.sum()
        assert torch.equal(moment.sum(left, right, taps=taps), written(one) @ full @ written(other).mT)
        assert torch.equal(moment.sum(left, left, taps=taps), written(one) @ full @ written(one).mT)
        assert torch.equal(moment.sum(left, taps=taps), written(one) @ full)
        assert torch.equal(moment.sum(None, right, taps=taps), full @ written(other).mT)


def read_often(moment: LayerMoment, values: Tensor, times: int) -> None:
    for _ in range(times):
        moment.read([values])


@pytest.mark.parametrize(
    ("channels", "pictures"),
    [(16, 1), (16, 40), (96, 3), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((16, 3), (96, 1), (96, 40)))],
)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "sides"),
    [(3, 1, 1, (12, 9)), (3, 2, 1, (12, 9)), (3, 1, 1, (2, 2)), (1, 1, 0, (7, 7))],
)
def test_what_a_moment_holds_beside_its_totals(
    kernel: int, stride: int, padding: int, sides: tuple[int, int], channels: int, pictures: int
) -> None:
    """However many batches come, and of whichever size; see SecondMoment."""
    layer = nn.Conv2d(channels, 2, kernel, stride, padding)
    correlated = CorrelationMoment(layer, channels, sides, constant=True)
    unfolded = UnfoldedMoment(layer, channels, constant=True, sides=sides)
    values = whole(pictures, channels, *sides)
    patches = 4 * unfolded.size * pictures * int(np.prod(geometry(layer, sides).positions))
    for moment, added in ((correlated, values.nbytes), (unfolded, patches)):
        found = peak_bytes(partial(read_often, moment, values, 3 + 200 // pictures))
        held = sum(total.nbytes for total in moment.totals)
        assert found <= 3 * held + 2 * added + 2**12, (type(moment), found, held, added)
        assert moment.bytes <= 2 * held + 4 * moment.entries


def test_waiting_adding_and_cloning_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, sides = nn.Conv2d(3, 2, 3, 1, 1), (5, 4)
    batches = [whole(n, 3, *sides, seed=n) for n in (1, 4, 2, 9)]
    at_once = CorrelationMoment(layer, 3, sides, constant=True)
    at_once.read([torch.cat(batches)])
    monkeypatch.setattr(correlations_module, "PLACES_PER_PRODUCT", 50)
    shards = [CorrelationMoment(layer, 3, sides, constant=True) for _ in range(2)]
    for number, batch in enumerate(batches):
        shards[number % 2].read([batch])
    twin = shards[0].clone()
    twin.add(shards[1])
    assert torch.equal(twin.sum(), at_once.sum())
    assert twin.count == at_once.count
    assert not torch.equal(shards[0].sum(), twin.sum())
    twin.read([batches[0]])
    shards[0].add(shards[1])
    assert torch.equal(shards[0].sum(), at_once.sum())


def test_accelerators_multiply_all_places_of_a_part_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sums, in products of one length and one for the rest."""
    monkeypatch.setattr("project.moments.moment.SAMPLES_PER_PRODUCT", 7)
    for kernel, stride, padding, dilation in ((3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 2, 1), (3, 1, 2, 2)):
        layer, sides = nn.Conv2d(4, 2, kernel, stride, padding, dilation), (9, 6)
        value = whole(3, 4, *sides)
        here = CorrelationMoment(layer, 4, sides, constant=True)
        here.read([value])
        with elsewhere() as device:
            there = CorrelationMoment(layer, 4, sides, constant=True, device=device)
            there.read([value.to(device)])
            found = there.sum().cpu()
        assert torch.equal(found, here.sum()), (kernel, stride)


def test_accelerators_multiply_all_lots_of_samples_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SAMPLES_PER_PRODUCT", 7), ("LEAF", 3), ("WIDE_LEAF", 4)):
        monkeypatch.setattr(f"project.moments.moment.{name}", value)
    for samples in (5, 7, 30, 56):
        columns = whole(1, 1, 10, samples)[0, 0]
        here = Moment(10)
        here.update(columns)
        assert torch.equal(here.sum(), (columns @ columns.mT).double())
        with elsewhere() as device:
            there = Moment(10, device)
            there.update(columns.to(device))
            found = there.sum().cpu()
        assert torch.equal(found, here.sum()), samples


def test_values_may_change_afterwards() -> None:
    layer = nn.Conv2d(3, 2, 3, 1, 1)
    value = whole(2, 3, 4, 4)
    kept, changed = (CorrelationMoment(layer, 3, (4, 4), constant=False) for _ in range(2))
    kept.read([value.clone()])
    changed.read([value])
    value.zero_()  # as an in-place operation after the tap does
    assert torch.equal(kept.sum(), changed.sum())


def test_chosen_where_it_pays() -> None:
    """Wide kernels with stride 1; not single taps, strides, or the few channels of a picture."""
    assert pays(nn.Conv2d(64, 64, 3, 1, 1), 128, (16, 16))
    assert pays(nn.Conv2d(512, 512, 3, 1, 1), 512, (2, 2))
    for layer, sides in ((nn.Conv2d(64, 64, 1), (16, 16)), (nn.Conv2d(3, 64, 7, 2, 3), (64, 64))):
        assert not pays(layer, layer.in_channels, sides)
        assert not isinstance(layer_moment(layer, layer.in_channels, sides, constant=False), CorrelationMoment)
    assert not pays(nn.Linear(512, 7), 512, (1, 1))


def test_maps_of_another_size_are_refused() -> None:
    moment = CorrelationMoment(nn.Conv2d(3, 2, 3), 3, (5, 4), constant=False)
    with pytest.raises(MergeError, match=r"6 × 4.*5 × 4"):
        moment.read([torch.zeros(1, 3, 6, 4)])


def test_bfloat16_values_and_autocast() -> None:
    """Products are made in float32, whatever the values come in."""
    layer, value = nn.Conv2d(3, 2, 3, 1, 1), torch.randn(2, 3, 4, 4).bfloat16()
    plain, cast = (CorrelationMoment(layer, 3, (4, 4), constant=True) for _ in range(2))
    plain.read([value.float()])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        cast.read([value])
        inside = cast.sum()
    assert torch.equal(inside, plain.sum())
