"""How large a student is, and which units of its sources stay apart."""

from project.allocation.allocate import by_gain, separated, stagewise, uniform, widest_maps
from project.allocation.budget import Budget, check_budgets
from project.allocation.limits import check_growth, growing, unspent, why_not_larger
from project.allocation.size import (
    Unit,
    executed_macs,
    nominal_macs,
    nominal_size,
    source_macs,
    source_size,
    stored_bytes,
)

__all__ = [
    "Budget", "Unit", "by_gain", "check_budgets", "check_growth", "executed_macs", "growing", "nominal_macs",
    "nominal_size", "separated", "source_macs", "source_size", "stagewise", "stored_bytes", "uniform", "unspent",
    "why_not_larger", "widest_maps",
]  # fmt: skip
