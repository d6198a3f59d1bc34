"""Re-estimating batch norm: averaged units vary less than their sources' (variance collapse), so statistics move.

A norm's statistics are those of what it reads on all calibration pictures, the norms before it normalising by theirs.
So the network does in eval mode, on all these pictures, what it would do in training mode with them as a single batch,
however they are divided into batches and processes. For that the pictures go through the graph together, from norm to
norm, and what they have come to is held; what there is no room for is computed again for every norm.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from math import inf

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from project.errors import MergeError
from project.moments import BatchNorm, ForwardPass, exact_products
from project.runtime import ALONE, World
from project.student.batch_norm import batch_norms, mixed
from project.student.build import Student
from project.student.graph import student_graph

CHUNK_VALUES = 2**20
"""Values, about, that are brought to float64 at once."""

Batches = Callable[[], Iterable[Tensor]]
"""Begins to go through all pictures anew, whenever it is called."""


class Reestimation:
    """Replaces the running statistics of a network's batch norms, one after the other, in execution order.

    Args:
        network: Changed in place; in eval mode from now on.
        skip: Names of norms whose statistics stay.

    Raises:
        TraceError: If ``torch.fx`` cannot trace the network.
    """

    def __init__(self, network: nn.Module, skip: Collection[str] = ()) -> None:
        network.eval()
        norms = batch_norms(network, skip)
        self.graph = student_graph(network)
        self._left = deque(
            (node, norms[str(node.target)])
            for node in self.graph.graph.nodes
            if node.op == "call_module" and str(node.target) in norms
        )
        self.forget()

    @property
    def finished(self) -> bool:
        """Whether all norms hold their new statistics."""
        return not self._left

    def forget(self) -> None:
        """Forget what pictures have been added since the last norm was settled."""
        self._moments = None if self.finished else UnitMoments(self._left[0][1])

    @torch.no_grad()
    def add(self, pictures: Tensor) -> None:
        """Add pictures (batch, channels, height, width) to what the next norm reads; nothing of them is held."""
        self._read(_Walk(self.graph, pictures))

    @torch.no_grad()
    def settle(self, world: World = ALONE) -> None:
        """Give the next norm the statistics of all pictures that were added, and go on to the one behind it.

        Args:
            world: The processes among which the pictures are dealt out.

        Raises:
            MergeError: If there are fewer than two values a unit.
        """
        node, norm = self._left[0]
        assert self._moments is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = self._moments.statistics(str(node.target), world)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(1)
        self._left.popleft()
        self.forget()

    @torch.no_grad()
    def finish(self, batches: Batches, world: World = ALONE, room: float = inf) -> None:
        """Settle all norms that are left.

        Args:
            batches: This process' pictures, each (batch, channels, height, width).
            world: The processes among which the pictures are dealt out; each may have other room.
            room: Bytes of what networks compute that may be held; beyond, it is computed again for every norm.

        Raises:
            MergeError: If there are fewer than two values a unit.
        """
        held: deque[_Walk] | None = None
        while not self.finished:
            walks = (_Walk(self.graph, pictures) for pictures in batches()) if held is None else _drained(held)
            held = self._read_all(walks, room)
            self.settle(world)

    def _read_all(self, walks: Iterable["_Walk"], room: float) -> "deque[_Walk] | None":
        """Read what the next norm reads in every pass; returns these, unless they take more than there is room for."""
        held: deque[_Walk] | None = deque()
        taken = 0
        for walk in walks:
            self._read(walk)
            if held is not None:
                held.append(walk)
                taken += walk.bytes
                if taken > room:
                    held = None
        return held

    def _read(self, walk: "_Walk") -> None:
        """Add what the next norm reads in one pass."""
        node, norm = self._left[0]
        assert self._moments is not None
        with exact_products(norm.running_mean.device):  # type: ignore[union-attr]
            self._moments.add(walk.before(node))


def _drained(walks: "deque[_Walk]") -> "Iterator[_Walk]":
    """Hand out passes, each forgotten here before it goes on."""
    while walks:
        yield walks.popleft()


class _Walk(ForwardPass):
    """A pass of one batch, from norm to norm."""

    def __init__(self, graph: fx.GraphModule, pictures: Tensor) -> None:
        super().__init__(graph, pictures)
        self._ahead = iter(graph.graph.nodes)
        self._reached: fx.Node | None = None

    def before(self, norm: fx.Node) -> Tensor:
        """Go on to a norm, which is not computed yet, and return what it reads."""
        if self._reached is not None:
            self._compute(self._reached)
        for node in self._ahead:
            if node is norm:
                break
            self._compute(node)
        self._reached = norm
        self.args_iter = iter(())  # the pictures are not held for the iterator's sake
        values: Tensor = self.env[norm.all_input_nodes[0]]
        return values

    def _compute(self, node: fx.Node) -> None:
        self.step(node)
        self.release(node)

    @property
    def bytes(self) -> int:
        """What it holds."""
        leaves = tree_leaves(list(self.env.values()))
        return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))


class UnitMoments:
    """Count, mean and squared deviations of a norm's units, whose parts are combined without cancellation.

    By the update of Chan, Golub and LeVeque (Algorithms for Computing the Sample Variance, 1983), in float64.

    Args:
        norm: That reads the values.
    """

    def __init__(self, norm: BatchNorm) -> None:
        assert norm.running_mean is not None
        device = norm.running_mean.device
        self.device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        self.count = 0
        self.mean = torch.zeros(norm.num_features, dtype=torch.float64, device=self.device)
        self.squares = torch.zeros_like(self.mean)

    def add(self, values: Tensor) -> None:
        """Add values, shape (batch, units) or (batch, units, …)."""
        step = max(1, CHUNK_VALUES * len(values) // max(1, values.numel()))
        for part in torch.split(values.detach(), step):
            units = part.transpose(0, 1).flatten(1).to(self.device, torch.float64)
            mean = units.mean(1)
            squares = (units - mean[:, None]).square_().sum(1)
            self._combine(units.shape[1], mean, squares)

    def _combine(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if not count:
            return
        total, apart = self.count + count, mean - self.mean
        self.squares += squares + apart.square() * (self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total

    def statistics(self, name: str, world: World) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of each unit over all processes, float64, shape (units,).

        Args:
            name: Of the norm, for the message.
            world: The processes that have added values.

        Raises:
            MergeError: If there are fewer than two values a unit.
        """
        sums = torch.cat([self.mean * self.count, self.mean.new_tensor([self.count])])
        world.reduce(sums)
        if (count := float(sums[-1])) < 2:
            raise MergeError(
                f"batch norm {name!r} cannot be re-estimated: there are {count:.0f} values a unit in all pictures, "
                f"which have no variance; use more pictures."
            )
        mean = sums[:-1] / count
        squares = self.squares + (self.mean - mean).square() * self.count
        world.reduce(squares)
        return mean, squares / (count - 1)


def reestimate(network: nn.Module, batches: Iterable[Tensor], skip: Collection[str] = ()) -> None:
    """Re-estimate batch norm: replace the running statistics of a network by those of some pictures.

    Args:
        network: Changed in place; in eval mode afterwards.
        batches: Pictures, each (batch, channels, height, width); how they are divided plays no part.
        skip: Names of norms whose statistics stay.

    Raises:
        MergeError: If there are fewer than two values a unit.
        TraceError: If ``torch.fx`` cannot trace the network.
    """
    Reestimation(network, skip).finish(lambda: batches)


def renormalise(
    student: Student,
    batches: Callable[[], Iterable[Mapping[str, Tensor | None]]],
    world: World = ALONE,
    room: float = inf,
) -> None:
    """Replace the running statistics of a student by those of calibration pictures, all domains together.

    Args:
        student: Changed in place; in eval mode afterwards.
        batches: Begins anew to go through this process' batches: domain -> pictures (batch, channels, height, width),
            or None where it has no more; see :func:`~project.student.batches_of_all`.
        world: The processes among which the pictures are dealt out.
        room: Bytes that may be held, see :meth:`Reestimation.finish`.

    Raises:
        MergeError: If there are fewer than two values a unit.
    """
    Reestimation(student.network, student.exact_norms).finish(lambda: map(mixed, batches()), world, room)
