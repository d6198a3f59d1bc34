"""About how many bytes the phases of a merge take, from shapes alone."""

from collections.abc import Mapping
from math import prod

from project.moments import drawn_count
from project.moments.patches import CHUNK_BYTES
from project.symmetry import Spec

HELD_VALUES = 5  # values held at once around the widest layer: what student and source read and write, and the target

SOLVER_MATRICES = 4  # of the unknowns' size beside the domains' own: their sum, with the ridge, its factor, a moment


def gather_bytes(spec: Spec, sources: int, pictures: int) -> int:
    """Estimate the bytes that all sources hold around their widest layer, and its inputs written out, on one batch.

    Args:
        spec: Groups of the sources, traced at the pictures' size.
        sources: Number of sources N.
        pictures: Pictures in the batch.
    """
    units = {name: sources * size for name, size in spec.sizes.items()}
    return walk_bytes(widest(spec, units), pictures) + patch_bytes(spec, units, pictures)


def gradient_bytes(spec: Spec, pictures: int, chunk: int, parameters: int) -> int:
    """Estimate the bytes that gradients take on the way back through a source, beside those of :func:`gather_bytes`.

    Args:
        spec: Groups of the source, traced at the pictures' size.
        pictures: Pictures in the batch, whose activations wait in every layer.
        chunk: Of how many pictures the gradients of all parameters are held, and squared, at once.
        parameters: Of the source.
    """
    values = sum(layer.positions * spec.sizes[layer.outputs] for layer in spec.layers)
    return 4 * (HELD_VALUES * values * pictures + 2 * parameters * min(chunk, pictures))


def picture_bytes(spec: Spec, pictures: int) -> int:
    """Count the bytes of pictures that are kept in memory.

    Args:
        spec: Groups of the sources, traced at the pictures' size.
        pictures: How many.
    """
    return 4 * pictures * prod(spec.picture)


def widest(spec: Spec, units: Mapping[str, int]) -> int:
    """Count the values that the widest layer puts out for one picture.

    Args:
        spec: Groups of the sources, traced at the pictures' size.
        units: How many units stand on every axis.
    """
    return max(layer.positions * units[layer.outputs] for layer in spec.layers)


def walk_bytes(values: int, pictures: int) -> int:
    """Estimate the bytes of activations that are held around one layer.

    Args:
        values: What it puts out for one picture.
        pictures: How many pictures stand there.
    """
    return 4 * HELD_VALUES * values * pictures


def patch_bytes(spec: Spec, units: Mapping[str, int], pictures: int) -> int:
    """Estimate the most bytes of a layer's inputs, a patch for every position, in chunks of limited size.

    Args:
        spec: Groups of the sources, traced at the pictures' size.
        units: How many units stand on every axis.
        pictures: Pictures in the batch.
    """
    each = max(4 * layer.positions * layer.taps * units[layer.inputs] for layer in spec.layers)
    return min(max(CHUNK_BYTES, each), each * pictures)


def drawn_bytes(spec: Spec, units: Mapping[str, int], pictures: int, step: int) -> int:
    """Estimate the most bytes of a layer's inputs at positions that are drawn from pictures and wait.

    Args:
        spec: Groups of the sources, traced at the pictures' size.
        units: How many units stand on every axis.
        pictures: How many.
        step: One position in so many is drawn.
    """
    layers = [layer for layer in spec.layers if layer.positions > 1]
    each = (drawn_count(layer.positions, step) * layer.taps * units[layer.inputs] for layer in layers)
    return 4 * pictures * max(each, default=0)


def solve_bytes(unknowns: int, domains: int, blocks: int = 1) -> int:
    """Estimate the bytes that solving a layer takes.

    Args:
        unknowns: Of its widest row.
        domains: Number of calibration domains, each of which has equations of its own.
        blocks: Of a grouped convolution, each of which is a system of its own.
    """
    return 8 * (SOLVER_MATRICES + domains) * blocks * unknowns**2
