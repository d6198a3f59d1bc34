"""Unit maps of axes on which several groups stand side by side."""

from collections.abc import Mapping

import torch

from project.alignment import UnitMap
from project.errors import MergeError
from project.symmetry import Join, Spec


def with_joins(spec: Spec, maps: Mapping[str, UnitMap]) -> dict[str, UnitMap]:
    """The unit maps of all groups, and those of the joins that follow from them.

    Args:
        spec: Groups of the sources.
        maps: Unit map of every group.

    Raises:
        MergeError: Where groups whose units are mixed on one axis are not of their sources' size.
    """
    with torch.device("cpu"):  # wherever the network itself is being built
        return {**maps, **{name: _joined(join, maps) for name, join in spec.joins.items()}}


def _joined(join: Join, maps: Mapping[str, UnitMap]) -> UnitMap:
    rows, places, start = [], [], 0
    for name, stands in join.parts:
        units = maps[name]
        times = len(stands) // units.sizes[0]  # places of one unit
        numbers = torch.tensor(stands).view(-1, times)
        found = torch.where(units.present[:, None], numbers.mT[:, units.members].movedim(0, 1), -1)
        rows.append(found.flatten(0, 1))
        count = len(rows[-1])
        if not join.ordered and count != len(stands):
            raise MergeError(f"group {name!r} has {count} units, but {join.name} must find {len(stands)} there.")
        places.append(torch.arange(start, start + count) if join.ordered else numbers.flatten())
        start += count
    members = torch.cat(rows)
    members[torch.cat(places)] = members.clone()
    return UnitMap.as_given(members)
