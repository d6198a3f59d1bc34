"""About how much memory the fits of PLeaS take, from shapes alone."""

from collections.abc import Mapping, Sequence

from project.alignment import UnitMap
from project.fit.memory_estimate import drawn_bytes, patch_bytes, picture_bytes, solve_bytes, walk_bytes, widest
from project.fit.subsample import SMALLEST_POSITION_STEP
from project.methods.problem import Problem
from project.methods.shared.samples import most_blocks
from project.moments import Moment, layer_moment
from project.runtime import MemoryEstimate
from project.student.layers import weight_of
from project.symmetry import Layer


def sequential_memory(
    problem: Problem,
    shapes: Sequence[Mapping[str, UnitMap]],
    unknowns: Mapping[Layer, int],
    domains: int,
    total: int,
    batch: int,
    *,
    sampled: bool,
) -> MemoryEstimate:
    """Estimate the sequential fit: all pictures with the widest layer's values, or of one batch, and what is solved.

    Args:
        problem: The sources.
        shapes: For each student, the unit maps of all axes, none narrower than it is going to be.
        unknowns: layer -> most unknowns of a row.
        domains: Number of domains, each of which has equations of its own.
        total: Pictures of all domains in this process.
        batch: Pictures in a batch.
        sampled: Whether some positions alone are looked at, which wait.
    """
    solving = max(
        solve_bytes(unknowns[layer], domains, most_blocks(layer, problem, shapes)) for layer in problem.spec.layers
    )
    units = [{name: axis.units for name, axis in maps.items()} for maps in shapes]
    values = max(widest(problem.spec, axes) for axes in units)
    if solving:
        solving += max(patch_bytes(problem.spec, axes, batch) for axes in units)
    held = []
    for count in (total, batch):  # in memory, or all that waits on disk
        drawn = [drawn_bytes(problem.spec, axes, count, SMALLEST_POSITION_STEP) if sampled else 0 for axes in units]
        held.append(walk_bytes(values, count) + max(drawn) + solving)
    return MemoryEstimate(held[0] + picture_bytes(problem.spec, total), held[1])


def joint_memory(
    problem: Problem,
    layers: Sequence[Layer],
    shapes: Sequence[Mapping[str, UnitMap]],
    unknowns: Mapping[Layer, int],
    views: int,
    *,
    pooled: bool,
) -> MemoryEstimate:
    """Estimate the joint fit, of which one layer is held at a time.

    Args:
        problem: The sources.
        layers: The layers that are fitted.
        shapes: For each student, the unit maps of all axes, none narrower than it is going to be.
        unknowns: layer -> most unknowns of a row.
        views: Parts of the calibration data that ask different things.
        pooled: Whether the moments of all domains are summed.
    """
    needed = max(
        (_joint_bytes(layer, problem, shapes, unknowns[layer], views, pooled=pooled) for layer in layers), default=0
    )
    return MemoryEstimate(needed, needed)


def _joint_bytes(
    layer: Layer,
    problem: Problem,
    shapes: Sequence[Mapping[str, UnitMap]],
    unknowns: int,
    views: int,
    *,
    pooled: bool,
) -> int:
    """Count V G of every view, and what is crossed, read or solved beside it."""
    module, sources = problem.sources[0].get_submodule(layer.name), len(problem.sources)
    apart = sources * problem.spec.sizes[layer.inputs] * layer.taps + layer.bias
    kept = views * sources * problem.spec.sizes[layer.outputs] * apart
    outputs = max(maps[layer.outputs].units for maps in shapes)
    crossed = 4 * outputs * apart + 2 * unknowns**2  # what was asked of V G, its targets, and what is summed
    moment = layer_moment(module, sources * weight_of(module).shape[1], layer.sides, constant=layer.bias, device="meta")
    written = 3 * apart**2 if isinstance(moment, Moment) else 0  # to be merged
    return (moment.bytes if pooled else 0) + 8 * kept + max(8 * written, 8 * crossed, solve_bytes(unknowns, 1))
