"""The fit of one layer to its data, as in the sequential fit, and on the halves that tell how many samples it needs."""

from dataclasses import replace

import torch

from project.fit.grouped import BlockSolver
from project.fit.layer_fit import LayerFit, domain_misfits
from project.fit.layer_task import LayerTask
from project.fit.solver import LayerSolver


def solve_layer(task: LayerTask, ridge: float, rounds: int = 0, *, by_domain: bool = False) -> LayerFit:
    """Fit a layer to its targets in closed form.

    Args:
        task: The layer and its data.
        ridge: Pull towards the start point, see :func:`~project.fit.normal_equations.damping`.
        rounds: Rounds in which targets that a rectifier behind the layer cuts off are settled.
        by_domain: Whether to measure the fit on every domain by itself, too.

    Returns:
        The fit; its residuals are those of plain targets, which can be compared.

    Raises:
        MergeError: With ridge 0 and fewer samples than unknowns in a row.
    """
    make = LayerSolver if task.layer.blocks == 1 else BlockSolver
    solver = make(task.layer, task.start, task.outputs, task.inputs, task.grams, ridge, task.activations.world)
    equations = task.normal_equations
    fit = solver.solve(equations.crosses, equations.powers)
    if by_domain:
        found = domain_misfits(task.layer, task.outputs, task.inputs, fit.matrix, equations, task.activations.world)
        fit = replace(fit, domains=found)
    for _ in range(rounds if task.context.relu else 0):
        predicting = fit.matrix.to(task.start.device, torch.float32)
        equations = task.equations_towards(task.rectified_targets(predicting))
        fit = replace(fit, matrix=solver.solve(equations.crosses, equations.powers).matrix)
    return replace(fit, positions=task.positions.share)
