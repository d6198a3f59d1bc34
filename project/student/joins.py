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
        units, numbers = maps[name], torch.tensor(stands)
        rows.append(torch.where(units.present, numbers[units.members], -1))
        if not join.ordered and units.units != len(stands):
            raise MergeError(f"group {name!r} has {units.units} units, but {join.name} must find {len(stands)} there.")
        places.append(torch.arange(start, start + units.units) if join.ordered else numbers)
        start += units.units
    members = torch.cat(rows)
    members[torch.cat(places)] = members.clone()
    return UnitMap.as_given(members)
