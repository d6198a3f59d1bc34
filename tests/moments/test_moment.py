"""Second moments against float64 sums over unfolded patches."""

import functools
import itertools
import operator

import numpy as np
import pytest
import torch
from helpers import unfolded
from torch import Tensor, nn

from project.moments import Moment, joint_columns, unit_columns
from project.moments import moment as moment_module
from project.moments import patches as patches_module


def whole(count: int, *shape: int, seed: int = 0) -> Tensor:
    """Small whole numbers: products and sums of them are exact in float32."""
    return torch.randint(-4, 5, (count, *shape), generator=torch.Generator().manual_seed(seed)).float()


def moment_of(values: list[Tensor], layers: list[nn.Module], *, constant: bool) -> Moment:
    chunks = list(joint_columns(values, layers, constant=constant))
    total = Moment(chunks[0].shape[0])
    for columns in chunks:
        total.update(columns)
    return total


def reference(values: list[Tensor], layers: list[nn.Module], *, constant: bool) -> np.ndarray:
    columns = torch.cat([unfolded(value, layer) for value, layer in zip(values, layers, strict=True)]).numpy()
    if constant:
        columns = np.concatenate([columns, np.ones((1, columns.shape[1]))])
    return columns @ columns.T


SHAPES = [
    (kernel, stride, padding, dilation)
    for kernel, stride, padding, dilation in itertools.product(
        (1, 2, 3, (3, 1), (2, 3), 7), (1, 2, (2, 3)), (0, 1, 3, (2, 0), "same", "valid"), (1, 2, (1, 3))
    )
    if (padding != "same" or stride == 1) and not (kernel == 7 and dilation != 1)
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's own; the result is what counts
def test_every_convolution() -> None:
    for kernel, stride, padding, dilation in SHAPES:
        layers = [nn.Conv2d(c, 2, kernel, stride, padding, dilation) for c in (2, 3)]
        values = [whole(2, 2, 11, 9), whole(2, 3, 11, 9, seed=1)]
        found = moment_of(values, layers, constant=True)
        case = f"kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}"
        assert np.array_equal(found.sum().numpy(), reference(values, layers, constant=True)), case
        assert found.count == layers[0](values[0])[:, 0].numel(), case


def test_patches_are_what_the_layer_multiplies() -> None:
    layer = nn.Conv2d(3, 5, (3, 2), (1, 2), (2, 1), (1, 2))
    value = torch.randn(2, 3, 9, 8)
    (columns,) = joint_columns([value], [layer], constant=True)
    weight = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1)
    expected = layer(value).transpose(0, 1).flatten(1)
    assert torch.allclose(weight @ columns, expected, atol=1e-5)


@pytest.mark.parametrize("constant", [True, False])
def test_linear_layers_of_unequal_widths(constant: bool) -> None:
    layers = [nn.Linear(4, 3), nn.Linear(6, 3)]
    values = [whole(20, 4), whole(20, 6, seed=1)]
    found = moment_of(values, layers, constant=constant)
    assert np.array_equal(found.sum().numpy(), reference(values, layers, constant=constant))
    assert np.allclose(found.mean().numpy() * 20, found.sum().numpy(), rtol=1e-14)


@pytest.mark.parametrize("limit", [1, 5000, 20000])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    layers = [nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)]
    values = [whole(7, 2, 5, 4), whole(7, 2, 5, 4, seed=1)]
    (entire,) = joint_columns(values, layers, constant=True)
    monkeypatch.setattr(patches_module, "CHUNK_BYTES", limit)
    chunks = list(joint_columns(values, layers, constant=True))
    assert len(chunks) > 1
    assert torch.equal(torch.cat(chunks, 1), entire)


@pytest.mark.parametrize("size", [1, 2, 7, 13, 32])
def test_halving_and_waiting_change_nothing(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(moment_module, "LEAF", 3)
    monkeypatch.setattr(moment_module, "SAMPLES_PER_PRODUCT", 50)
    pieces = [whole(size, count, seed=count) for count in (1, 30, 30, 120, 7, 50)]
    total = Moment(size)
    for piece in pieces:
        total.update(piece)
        assert sum(part.shape[1] for part in total._pending) < 50  # nothing waits beyond the limit
    entire = torch.cat(pieces, 1).double()
    assert torch.equal(total.sum(), entire @ entire.mT)
    assert total.count == entire.shape[1]
    assert torch.equal(total.sum(), entire @ entire.mT)  # reading changes nothing


def test_real_numbers_to_rounding() -> None:
    columns = torch.randn(40, 5000, generator=torch.Generator().manual_seed(0)) + 0.5
    total = Moment(40)
    for piece in columns.split(300, 1):
        total.update(piece)
    expected = columns.double() @ columns.double().mT
    assert torch.allclose(total.sum(), expected, rtol=0, atol=1e-6 * float(expected.diagonal().mean()))


def test_adding_moments() -> None:
    a, b, entire = Moment(5), Moment(5), Moment(5)
    for target, seed in ((a, 1), (b, 2), (b, 3)):
        target.update(whole(5, 20 + seed, seed=seed))
        entire.update(whole(5, 20 + seed, seed=seed))
    before = b.sum()
    a.add(b)
    assert torch.equal(a.sum(), entire.sum())
    assert a.count == entire.count
    assert torch.equal(b.sum(), before)


def test_an_empty_moment_is_zero() -> None:
    assert torch.equal(Moment(3).mean(), torch.zeros(3, 3, dtype=torch.float64))


def test_autocast_and_inference_mode_change_nothing() -> None:
    columns, plain, cast = whole(4, 30) + 0.001, Moment(4), Moment(4)
    plain.update(columns)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        cast.update(columns)
        inside = cast.sum()
    assert torch.equal(inside, plain.sum())
    with torch.inference_mode():
        made_inside = Moment(2)
    made_inside.lower.add_(1)  # as an all-reduce does


@pytest.mark.parametrize("shape", [(6,), (6, 3, 4)])
def test_unit_columns(shape: tuple[int, ...]) -> None:
    values = [whole(5, *shape), whole(5, *shape, seed=1)]
    found = unit_columns(values)
    rows = [[value[n, c].flatten().tolist() for n in range(5)] for value in values for c in range(6)]
    expected = [functools.reduce(operator.iadd, row, []) for row in rows]
    assert found[:-1].tolist() == expected
    assert bool((found[-1] == 1).all())


def test_columns_do_not_follow_the_values() -> None:
    value = whole(5, 6)
    columns = unit_columns([value])
    (patches,) = joint_columns([value], [nn.Linear(6, 2)], constant=False)
    before = columns.clone(), patches.clone()
    value.zero_()  # as an in-place operation after the tap does
    assert torch.equal(columns, before[0])
    assert torch.equal(patches, before[1])
