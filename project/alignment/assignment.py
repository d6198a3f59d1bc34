"""Which units of two or more sources stand in one row: assignment that is consistent over all sources."""

from itertools import combinations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MIN_GAP_CLOSED = 0.02  # of what is left to the bound: a round of the search that closes less than this is the last


def assign(similarity: Tensor) -> Tensor:
    """The permutation p that maximises Σ similarity[i, p[i]] (SciPy's linear sum assignment)."""
    # What is taken off a column all permutations lose; near zero means SciPy's search is two to three times shorter.
    centred = similarity.cpu() - similarity.cpu().mean(0)
    return torch.from_numpy(linear_sum_assignment(centred.numpy(), maximize=True)[1])


def match_units(similarity: Tensor, sources: int, start: Tensor | None = None) -> Tensor:
    """Put the units of all sources into rows whose members are alike, every pair of sources counting the same.

    Maximises the total similarity, Σ over rows and pairs of sources s < t of similarity[unit of s, unit of t]. With two
    sources this is one linear sum assignment. With more it is NP-hard; what is done here is the multiple-hub
    heuristic and a local search (Bandelt, Crama & Spieksma, Discrete Applied Mathematics 49, 1994). Every source in
    turn is the hub with which all others are matched, and the best total is kept. Then one source after the other is
    matched with the sum of the others, in rounds, until a round gains little. The total never falls, and where it
    reaches the sum of all pairs' own optima it is known to be optimal. For minus a metric, such as ``distance``, the
    best hub alone costs at most 2 − 2/N times the optimum.

    No step refers to a source by its place, so that another order of the sources gives the same rows, up to ties.
    N (N − 1)/2 assignments, then N for every round of the search: mostly one to four rounds.

    Args:
        similarity: Symmetric, float64, shape (N · size, N · size): units of all sources, source after source.
        sources: Number of sources N.
        start: Rows to begin from where no hub does better: integer, shape (size, sources).

    Returns:
        Integer, shape (size, sources): every column holds every unit of its source once.
    """
    size = len(similarity) // sources
    blocks = similarity.cpu().view(sources, size, sources, size).transpose(1, 2)
    orders = {(s, s): torch.arange(size) for s in range(sources)}
    bound = 0.0
    for s, t in combinations(range(sources), 2):
        orders[s, t] = assign(blocks[s, t])
        orders[t, s] = orders[s, t].argsort()
        bound += float(blocks[s, t][orders[s, s], orders[s, t]].sum())
    hubs = [torch.stack([orders[hub, t] for t in range(sources)], 1) for hub in range(sources)]
    totals = [total_similarity(similarity, hub) for hub in hubs]
    ranking = sorted(range(sources), key=totals.__getitem__, reverse=True)
    slack = 1e-12 * size * float(similarity.abs().max())  # what rounding alone may gain
    members, total = hubs[ranking[0]], totals[ranking[0]]
    if start is not None and (kept := total_similarity(similarity, start)) >= total - slack:
        members, total = start.clone(), kept
    left, gained = bound - total, torch.inf
    while left > slack and gained > max(slack, MIN_GAP_CLOSED * left):
        gained = 0.0
        for s in ranking:
            gain = _improve(blocks, members, s, slack)
            left, gained = left - gain, gained + gain
    return members


def _improve(blocks: Tensor, members: Tensor, source: int, slack: float) -> float:
    """Match one source with the sum of the others as they stand, in place; returns what the total gained."""
    others = torch.zeros_like(blocks[0, 0])
    for t in range(len(blocks)):
        if t != source:
            others += blocks[t, source][members[:, t]]
    rows, order = torch.arange(len(others)), assign(others)
    gain = float(others[rows, order].sum() - others[rows, members[:, source]].sum())
    if gain <= slack:
        return 0.0
    members[:, source] = order
    return gain


def total_similarity(similarity: Tensor, members: Tensor) -> float:
    """Σ over rows and pairs of sources s < t of similarity[unit of s, unit of t]: what matching maximises."""
    among = within_rows(similarity, members)
    return float(among.sum() - among.diagonal(dim1=1, dim2=2).sum()) / 2


def within_rows(similarity: Tensor, members: Tensor) -> Tensor:
    """Similarity of the units of each row with each other.

    Args:
        similarity: Shape (N · size, N · size).
        members: Integer, shape (size, N), no entry missing.

    Returns:
        Shape (size, N, N).
    """
    size, sources = members.shape
    units = (members + size * torch.arange(sources)).to(similarity.device)
    return similarity[units[:, :, None], units[:, None, :]]
