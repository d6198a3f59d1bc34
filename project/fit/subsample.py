"""How many of the calibration pictures, and of their positions, a layer needs: told by two halves of a few.

A fit to S samples of a layer with p unknowns misses the best weights by an excess of about p / S of the residual,
however p and S are to be counted where samples depend on each other. Two fits, each to half of some pictures, tell:
their residual on their own half is too low by 2 p / S, on the other half too high by as much. With both means r and r′,

    excess of a fit to both halves ≈ (r′ − r) / (2 (r′ + r)).

It falls in proportion to the pictures. Positions of one picture depend on each other: of its excess, some is owed to
the number of pictures alone and the rest to the number of positions (the design effect of cluster sampling),

    excess of a fit to one picture in s, one position in q of each ≈ s (a + q b),

and the same halves, once at all and once at a few of their positions, tell a from b. Of all (s, q) that keep to what
is allowed, the one that costs least is taken. Only moments are compared; nothing is held out in the end.
"""

from collections.abc import Sequence

import torch
from torch import nn

from project.fit.layer_fit import misfit
from project.fit.layer_task import LayerTask
from project.fit.solve_layer import solve_layer
from project.moments import drawn_count, gram_costs

PROBE_STEP = 8  # one batch in so many is looked at first, at most
SAMPLES_PER_UNKNOWN = 4  # samples that each unknown must have, or halves tell nothing and the rule does not hold
TARGET_SWEEPS = 3  # about how often a layer's inputs are multiplied with its targets or its weights
GATHER_COST = 300  # multiply-adds that take as long as bringing one entry of a patch to its place
LARGEST_POSITION_STEP = 8  # one position in so many is drawn at most
SMALLEST_POSITION_STEP = 4  # and at least, if any are left out: gathering more costs what it saves


def choose_subsample(task: LayerTask, ridge: float, excess: float) -> LayerTask:
    """Choose the batches, and the positions of their pictures, that a layer is fitted to.

    Args:
        task: The layer, with all batches and positions.
        ridge: Pull towards the start point, see :func:`~project.fit.normal_equations.damping`.
        excess: Largest relative excess of the residual over that of a fit to all samples.

    Returns:
        The layer with every n-th batch of each domain and one position in m, as few as the excess allows; all with
        fewer than four batches in a domain, or too few samples to tell.
    """
    batches, pictures = task.activations.counts()
    step, positions = min(PROBE_STEP, min(batches) // 2), task.layer.positions
    # thinned by more than this, samples are too few
    spare = min(pictures) * positions / (SAMPLES_PER_UNKNOWN * task.start.shape[1])
    if step < 2 or spare < 2 * step:
        return task
    steps = range(SMALLEST_POSITION_STEP, LARGEST_POSITION_STEP + 1)
    thinnings = {m: positions / drawn_count(positions, m) for m in steps}
    thinnings = {m: q for m, q in thinnings.items() if 1 < q <= spare / (2 * step)}
    whole, within = _excess([task.every(2 * step, offset) for offset in (0, step)], ridge) / step, 0.0
    if thinnings:
        sparse = max(thinnings)
        thinned = _excess([task.every(2 * step, offset).sampled(sparse) for offset in (0, step)], ridge) / step
        within = max(0.0, thinned - whole) / (thinnings[sparse] - 1)
    between = max(0.0, whole - within)
    best, least = (1, 1), _cost(task, 1.0)
    for m, q in ({1: 1.0} | thinnings).items():
        expected = between + q * within
        n = int(min(step, spare / q, excess / expected if expected else step))
        if n and _cost(task, q) / n < least:
            best, least = (n, m), _cost(task, q) / n
    chosen = torch.tensor(best)
    task.activations.world.broadcast(chosen, 0)  # unlike devices may differ in the last bit
    n, m = chosen.tolist()
    return task.every(n) if m == 1 else task.every(n).sampled(m)


def _excess(halves: Sequence[LayerTask], ridge: float) -> float:
    """Estimate the relative excess of a fit to both halves of some samples over the best."""
    matrices = [solve_layer(half, ridge).matrix for half in halves]
    own, other = (
        sum(
            misfit(half.layer, half.outputs, half.inputs, matrix, half.normal_equations)
            for matrix, half in zip(fitted, halves, strict=True)
        )
        for fitted in (matrices, matrices[::-1])
    )
    return max(0.0, (other - own) / max(2 * (other + own), 1e-300))


def _cost(task: LayerTask, thinned: float) -> float:
    """Count the multiply-adds of looking at one picture, where one position in so many is looked at."""
    positions, unknowns = task.layer.positions / thinned, task.start.shape[1]
    sweeps = TARGET_SWEEPS * positions * task.start.numel()
    if thinned > 1:
        return positions * unknowns * (unknowns / 2 + GATHER_COST) + sweeps
    if isinstance(task.reader, nn.Conv2d):
        return min(gram_costs(task.reader, task.inputs.units, task.layer.sides)) + sweeps
    return positions * unknowns**2 / 2 + sweeps
