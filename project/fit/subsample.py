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
from torch import Tensor, nn

from project.fit.activations import Activations
from project.fit.layer_task import LayerTask
from project.fit.solver import LayerSolver, misfit
from project.moments import drawn_count, gram_costs

FIRST = 8  # one batch, and then one position, in so many is looked at first
SAMPLES_PER_UNKNOWN = 4  # samples that each unknown must have, or halves tell nothing and the rule does not hold
SWEEPS = 3  # about how often a layer's inputs are multiplied with its targets or its weights
GATHER = 300  # multiply-adds that take as long as bringing one entry of a patch to its place
SPARSEST, DENSEST = 8, 4  # one position in so many is drawn, if any are left out: gathering more costs what it saves


def choose_subsample(carried: Activations, place: LayerTask, start: Tensor, ridge: float, excess: float) -> Activations:
    """The batches, and the positions of their pictures, that a layer is fitted to.

    Args:
        carried: All batches.
        place: The layer.
        start: Its start point.
        ridge: Pull towards the start point.
        excess: Largest relative excess of the residual over that of a fit to all samples.

    Returns:
        Every n-th batch of each domain and one position in m, as few as the excess allows; all with fewer than four
        batches in a domain, or too few samples to tell.
    """
    batches, pictures = carried.counts()
    step, positions = min(FIRST, min(batches) // 2), place.layer.positions
    spare = min(pictures) * positions / (SAMPLES_PER_UNKNOWN * start.shape[1])  # thinned by more, samples are too few
    if step < 2 or spare < 2 * step:
        return carried
    halves = [carried.every(2 * step, offset) for offset in (0, step)]
    thinnings = {m: positions / drawn_count(positions, m) for m in range(DENSEST, SPARSEST + 1)}
    thinnings = {m: q for m, q in thinnings.items() if 1 < q <= spare / (2 * step)}
    whole, within = _excess(halves, place, start, ridge) / step, 0.0
    if thinnings:
        sparse = max(thinnings)
        found = _excess([half.drawn(place, sparse) for half in halves], place, start, ridge) / step
        within = max(0.0, found - whole) / (thinnings[sparse] - 1)
    between = max(0.0, whole - within)
    best, least = (1, 1), _cost(place, start, 1.0)
    for m, q in ({1: 1.0} | thinnings).items():
        found = between + q * within
        n = int(min(step, spare / q, excess / found if found else step))
        if n and _cost(place, start, q) / n < least:
            best, least = (n, m), _cost(place, start, q) / n
    chosen = torch.tensor(best)
    carried.world.broadcast(chosen, 0)  # unlike devices may differ in the last bit
    n, m = chosen.tolist()
    return carried.every(n) if m == 1 else carried.every(n).drawn(place, m)


def _excess(halves: Sequence[Activations], place: LayerTask, start: Tensor, ridge: float) -> float:
    """Relative excess of a fit to both halves of some samples over the best."""
    fits, problems = [], []
    for half in halves:
        wanted = half.targets(place)
        equations = half.equations(place, start)
        crosses = half.crosses(place, wanted, equations)
        solver = LayerSolver(place.layer, start, place.outputs, place.inputs, equations, ridge, half.world)
        fits.append(solver.solve(*crosses).matrix)
        problems.append((equations, *crosses))
    axes = (place.layer, place.outputs, place.inputs)
    own, other = (
        sum(misfit(*axes, matrix, *problem) for matrix, problem in zip(matrices, problems, strict=True))
        for matrices in (fits, fits[::-1])
    )
    return max(0.0, (other - own) / max(2 * (other + own), 1e-300))


def _cost(place: LayerTask, start: Tensor, thinned: float) -> float:
    """What looking at one picture costs, in multiply-adds, where one position in so many is looked at."""
    positions, unknowns = place.layer.positions / thinned, start.shape[1]
    sweeps = SWEEPS * positions * start.numel()
    if thinned > 1:
        return positions * unknowns * (unknowns / 2 + GATHER) + sweeps
    if isinstance(place.reader, nn.Conv2d):
        return min(gram_costs(place.reader, place.inputs.units, place.layer.sides)) + sweeps
    return positions * unknowns**2 / 2 + sweeps
