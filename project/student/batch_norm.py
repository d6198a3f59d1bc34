"""Re-estimating batch norm: averaged units vary less than their sources' (variance collapse), so statistics move."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest

import torch
from torch import Tensor, nn

from project.errors import MergeError
from project.moments import BatchNorm
from project.runtime import ALONE, World
from project.student.build import Student
from project.symmetry import NORMS


def batch_norms(network: nn.Module, skip: Collection[str] = ()) -> dict[str, BatchNorm]:
    """Collect the batch-norm layers that keep running statistics, by name.

    Args:
        network: Any network.
        skip: Names to leave out.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, NORMS) and module.track_running_stats and name not in skip
    }


def _train_where_possible(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    """Normalise by the batch, or by the running statistics where it holds a lone value a unit, without variance."""
    norm.train(inputs[0].numel() > inputs[0].shape[1])


class _CumulativeNorm:
    """Averages a norm's statistics over pictures, each with the same weight, whatever the size of its batch."""

    def __init__(self, norm: BatchNorm) -> None:
        self.norm, self.pictures, self.lone, self.momentum = norm, 0, False, norm.momentum
        self.before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
        norm.reset_running_stats()
        self.handle = norm.register_forward_pre_hook(self._before)

    def _before(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0]
        _train_where_possible(norm, inputs)
        self.lone |= not norm.training
        if norm.training:
            self.pictures += values.shape[0]
            self.norm.momentum = values.shape[0] / self.pictures

    def close(self) -> None:
        """Put the norm back as it was, but for its statistics."""
        self.handle.remove()
        self.norm.momentum = self.momentum

    def settle(self, reduce: Callable[[Tensor], object]) -> None:
        """Average over processes, by pictures."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        count = torch.tensor(float(self.pictures), device=mean.device)
        mean.mul_(count)
        variance.mul_(count)
        for tensor in (mean, variance, count):
            reduce(tensor)
        if not bool(count) and not self.lone:
            self.norm.load_state_dict(self.before, strict=False)  # it never runs
            return
        if not bool(count):
            raise MergeError("batch norm cannot be re-estimated: no batch held two values a unit; use larger batches.")
        mean.div_(count)
        variance.div_(count)


@contextmanager
def reestimation(
    network: nn.Module, skip: Collection[str] = (), reduce: Callable[[Tensor], object] = lambda tensor: tensor
) -> Iterator[None]:
    """Re-estimate batch norm while open: every forward pass adds its pictures to the average of each norm's statistics.

    Everything but the batch norms is in eval mode inside, and everything afterwards. Statistics from before are
    forgotten. Pass pictures of all domains in every batch, in the shares they shall have.

    Args:
        network: Changed in place.
        skip: Names of norms whose statistics stay.
        reduce: Sums a tensor over all processes in place.
    """
    network.eval()
    norms = [_CumulativeNorm(norm) for norm in batch_norms(network, skip).values()]
    try:
        yield
        with torch.no_grad():
            for norm in norms:
                norm.settle(reduce)
    finally:
        for norm in norms:
            norm.close()
        network.eval()


@contextmanager
def own_statistics(network: nn.Module, skip: Collection[str] = ()) -> Iterator[None]:
    """Normalise every batch by its own statistics while open, and leave the running ones as they are.

    Gradients pass through these statistics. A lone value a unit has none, and is normalised by the running ones.

    Args:
        network: In eval mode, in which it is left.
        skip: Names of norms that keep to their running statistics.
    """
    norms = batch_norms(network, skip).values()
    handles = [norm.register_forward_pre_hook(_train_where_possible) for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, handle in zip(norms, handles, strict=True):
            handle.remove()
            norm.track_running_stats = True
            norm.eval()


@torch.no_grad()
def reestimate(network: nn.Module, batches: Iterable[Tensor], skip: Collection[str] = ()) -> None:
    """Re-estimate batch norm: replace the running statistics of a network by those of some pictures.

    Args:
        network: Changed in place; in eval mode afterwards.
        batches: Pictures of all domains mixed, shape (batch, channels, height, width).
        skip: Names of norms whose statistics stay.
    """
    with reestimation(network, skip):
        for pictures in batches:
            network(pictures)


@torch.no_grad()
def renormalise(student: Student, batches: Iterable[Mapping[str, Tensor | None]], world: World = ALONE) -> None:
    """Replace the running statistics of a student by those of calibration pictures, all domains mixed.

    Args:
        student: Changed in place; in eval mode afterwards.
        batches: This process' batches: domain -> pictures (batch, channels, height, width), or None where it has no
            more; see :func:`batches_of_all`.
        world: The processes that share the pictures.

    Raises:
        MergeError: If no batch holds two values a unit.
    """
    with reestimation(student.network, student.exact_norms, world.reduce):
        for batch in batches:
            student(mixed(batch))


def mixed(batch: Mapping[str, Tensor | None]) -> Tensor:
    """Put the pictures of all domains together: shape (sum of the batches, channels, height, width)."""
    return torch.cat([pictures for pictures in batch.values() if pictures is not None])


def batches_of_all(pictures: Mapping[str, Iterable[Tensor]]) -> Iterator[dict[str, Tensor | None]]:
    """Take the first batches of all domains together, then the second ones, as long as any domain has one.

    Args:
        pictures: domain -> its batches, each (batch, channels, height, width).
    """
    for parts in zip_longest(*pictures.values()):
        yield dict(zip(pictures, parts, strict=True))


def running_variances(network: nn.Module, skip: Collection[str] = ()) -> dict[str, float]:
    """Average the running variance of each batch norm over its units.

    Args:
        network: Any network.
        skip: Names to leave out.

    Returns:
        Name of the norm -> mean variance.
    """
    return {
        name: float(norm.running_var.mean())
        for name, norm in batch_norms(network, skip).items()
        if norm.running_var is not None
    }
