"""Whether a network can be merged: its permutation groups, the proof that they hold on it, and the budgets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from project.allocation import why_not_larger
from project.errors import MergeError, TraceError
from project.fit import unfitted
from project.report.groups import group_table
from project.student import reestimate
from project.symmetry import Spec, group_differences, note_picture, trace

CONSTANT = 1e-3
"""Standard deviation below which a parameter's values are all alike, as in a network that was never trained."""
LEGEND = (
    "(a group's units are permuted together, in all layers that write or read them, their norms and tables of values;\n"
    "change: of the logits, over the largest, when that is done)"
)


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What was found of a network; as text, a table.

    Args:
        title: What the network is called.
        spec: Its permutation groups and layers.
        changes: Group -> largest change of the logits, relative to the largest logit, that permuting it makes; where
            all hold, that of permuting all of them at once.
        rows: The table of the groups.
    """

    title: str
    spec: Spec
    changes: Mapping[str, float]
    rows: list[str] = field(repr=False)

    @property
    def groups(self) -> dict[str, int]:
        """Permutation group -> number of its units."""
        return {group.name: group.size for group in self.spec.free}

    @property
    def obstacle(self) -> str | None:
        """Why no student can hold all units of all sources, in words; None where it can, so that any budget goes."""
        return why_not_larger(self.spec)

    @property
    def left_alone(self) -> list[str]:
        """What least squares leaves at the mean of the sources, in words."""
        return unfitted(self.spec)

    def __str__(self) -> str:
        """As ``pleas check`` prints it."""
        height, width = self.spec.picture[1:]
        found, reason = max(self.changes.values()), self.obstacle
        jointly = unfitted(self.spec, joint=True)
        lines = [
            f"{self.title}: {len(self.spec.free)} permutation groups on pictures of {height} × {width}",
            "",
            *self.rows,
            LEGEND,
            "",
            f"trace, permute: yes; largest change of the logits (relative): {found:.1e}",
            "merge, at any budget: yes" if reason is None else f"merge: yes; above budget 1 only in part, as {reason}",
        ]
        if self.left_alone:
            lines.append(f"least squares: all layers; at the sources' mean stay {', '.join(self.left_alone)}")
        if jointly != self.left_alone:
            lines.append(f"least squares with fit 'joint': at the sources' mean stay {', '.join(jointly)}")
        return "\n".join(lines)


@torch.no_grad()
def check_network(
    network: nn.Module, title: str, picture: tuple[int, int, int], tolerance: float = 1e-3, fresh: bool = False
) -> CheckReport:
    """Trace a network, permute each of its groups, and say what that does.

    Args:
        network: In eval mode, its attention written out; left unchanged, unless it is fresh.
        title: What the report calls it.
        picture: Shape of a picture: channels, height, width.
        tolerance: Largest change of the logits, relative to the largest logit, that passes.
        fresh: Whether it was never trained: it is then given random values, see :func:`randomise_constants`.

    Raises:
        TraceError: If its groups cannot be derived or do not hold, or what it puts out cannot be worked with.
    """
    spec = trace(network, picture)
    if fresh:
        randomise_constants(network, picture)
    try:
        changes = group_differences(network, spec, 0, tolerance)
    except MergeError as error:
        raise TraceError(f"{title}: {error}") from error
    broken = [name for name, change in changes.items() if not change <= tolerance]
    if broken or not changes:
        what = f"permuting {broken[0]!r} changes the logits by {changes[broken[0]]:.1e}" if broken else "none found"
        raise TraceError(f"{title}: the traced groups do not hold: {what} (relative); allowed: {tolerance:g}.")
    return CheckReport(title, spec, changes, group_table(spec, network, changes))


def never_trained(network: nn.Module) -> bool:
    """Whether most scales, shifts and biases of a network are still the constants that they were made with."""
    vectors = [parameter for parameter in network.parameters() if parameter.dim() == 1 and parameter.numel() > 1]
    return sum(float(vector.std()) < CONSTANT for vector in vectors) > len(vectors) / 2


def randomise_constants(network: nn.Module, picture: tuple[int, int, int]) -> None:
    """Random values where a fresh network has constants, since units that are all alike would prove nothing.

    Args:
        network: Changed in place: parameters of one value spread around it, batch norms take the statistics of
            random pictures.
        picture: Shape (channels, height, width).
    """
    note_picture(network, picture)
    for parameter in network.parameters():
        if parameter.numel() == 1 and not float(parameter):  # a branch that is not added yet would prove nothing
            parameter.fill_(0.5)
        if parameter.numel() > 1 and float(parameter.std()) < CONSTANT:
            level = float(parameter.mean())
            parameter.copy_(level + 0.2 * torch.randn_like(parameter))
    reestimate(network, [torch.randn(4, *picture)])
