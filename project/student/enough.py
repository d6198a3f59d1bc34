"""How many of the calibration pictures a layer needs, judged by what two halves of a few say of each other.

A fit to S samples of a layer with p unknowns misses the best weights by an excess of about p / S of the residual,
however p and S are to be counted where samples depend on each other. Two fits, each to half of some pictures, tell:
their residual on their own half is too low by 2 p / S, on the other half too high by as much. With both means r and r′,

    excess of a fit to both halves ≈ (r′ − r) / (2 (r′ + r)),

and it falls in proportion to the pictures. Only moments are compared; nothing is held out in the end.
"""

import torch

from project.student.carried import Carried, Place
from project.student.solver import LayerSolver, misfit

FIRST = 8  # one batch in so many is looked at first
SPARE = 4  # samples for each unknown that a half must have, if it is to be worth a look


def enough(carried: Carried, place: Place, start: torch.Tensor, ridge: float, excess: float) -> Carried:
    """The batches that a layer is fitted to.

    Args:
        carried: All batches.
        place: The layer.
        start: Its start point.
        ridge: Pull towards the start point.
        excess: Largest relative excess of the residual over that of a fit to all pictures.

    Returns:
        Every n-th batch of each domain, n as large as the excess allows; all where there are too few to tell.
    """
    batches, pictures = carried.counts
    step = min(FIRST, min(batches) // 2)
    if step < 2 or min(pictures) * place.layer.positions < 2 * step * SPARE * start.shape[1]:
        return carried
    halves = [carried.every(2 * step, offset) for offset in (0, step)]
    fits, problems = [], []
    for half in halves:
        wanted = half.targets(place.node, place.outputs, place.scales, place.plan)
        equations = half.equations(place, start)
        crosses = half.crosses(place, wanted, equations)
        solver = LayerSolver(place.layer, start, place.outputs, place.inputs, equations, ridge, carried.world)
        fits.append(solver.solve(*crosses).matrix)
        problems.append((equations, *crosses))
    axes = (place.layer, place.outputs, place.inputs)
    own, other = (
        sum(misfit(*axes, matrix, *problem) for matrix, problem in zip(matrices, problems, strict=True))
        for matrices in (fits, fits[::-1])
    )
    found = max(0.0, (other - own) / max(2 * (other + own), 1e-300))
    return carried.every(max(1, min(step, int(step * excess / found) if found else step)))
