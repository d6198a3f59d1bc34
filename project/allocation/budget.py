"""Budgets of students: multiples of one source's size, or in multiply-accumulates, parameters or bytes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from project.allocation.size import Unit
from project.errors import ConfigurationError
from project.runtime.units import POWERS, split_amount

Scale = Literal["", "x", "k", "M", "G"]
SYMBOLS: dict[Unit, str] = {"MACs": "MAC", "parameters": " params", "bytes": "B"}
UNIT_WORDS: dict[str, Unit] = {
    "mac": "MACs",
    "macs": "MACs",
    "param": "parameters",
    "params": "parameters",
    "parameter": "parameters",
    "parameters": "parameters",
    "b": "bytes",
    "byte": "bytes",
    "bytes": "bytes",
}
ALLOWED = "a number of times one source's size (1.5), '900 MMAC', '2.5 GMAC', '14M params', '1.2x params' or '48 MB'"


@dataclass(frozen=True)
class Budget:
    """The largest size a student may have.

    Args:
        number: How much of it.
        scale: ``x``: times one source's size; else the power of ten: none, ``k``, ``M`` or ``G``.
        unit: What is counted, see :func:`~project.allocation.size.price`.
    """

    number: float
    scale: Scale = "x"
    unit: Unit = "MACs"

    @classmethod
    def of(cls, value: "Budget | float | str") -> "Budget":
        """Parse a budget.

        Args:
            value: A number (multiply-accumulates over one source's), or text: ``1.5``, ``1.5x``, ``900 MMAC``,
                ``2.5 GMAC``, ``14M params``, ``1.2x params``, ``48 MB`` (10⁶ bytes).

        Raises:
            ConfigurationError: If it is something else.
        """
        if isinstance(value, Budget):
            return value
        if not isinstance(value, str):
            try:
                return cls(float(value))
            except (TypeError, ValueError) as error:
                raise ConfigurationError(f"budgets holds {value!r}; allowed: {ALLOWED}.") from error
        amount = split_amount(value, "xkMG", UNIT_WORDS)
        if amount is None or (not amount[2] and amount[1] not in ("", "x")):
            raise ConfigurationError(f"budgets holds {value!r}; allowed: {ALLOWED}.")
        number, scale, word = amount
        return cls(number, cast(Scale, scale), UNIT_WORDS[word]) if word else cls(number)

    @property
    def relative(self) -> bool:
        """Whether it is a multiple of one source's size."""
        return self.scale == "x"

    @property
    def name(self) -> str:
        """Name in tables and files."""
        number = f"{self.number:.2f}" if self.relative else f"{self.number:g}"
        return self._written(number).replace(" ", "_")

    @property
    def plain(self) -> float | str:
        """The budget as a value that a file can hold and :meth:`of` can read."""
        return self.number if self.relative and self.unit == "MACs" else str(self)

    def limit(self, source_size: Callable[[Unit], float]) -> float:
        """Compute the largest size, in its unit.

        Args:
            source_size: Size of one source in a unit.
        """
        return self.number * (source_size(self.unit) if self.relative else POWERS[self.scale])

    def within(self, low: float, high: float) -> bool:
        """Tell whether it lies between two sizes, given in its own scale; those themselves are allowed."""
        return low * (1 - 1e-9) <= self.number <= high * (1 + 1e-9)

    def _written(self, number: str) -> str:
        if self.relative:
            return number if self.unit == "MACs" else f"{number}x {SYMBOLS[self.unit].strip()}"
        space = "" if self.unit == "parameters" else " "
        return f"{number}{space}{self.scale}{SYMBOLS[self.unit]}"

    def __str__(self) -> str:
        """As a user writes it."""
        return self._written(f"{self.number:g}")


def check_budgets(budgets: Sequence[Budget], sources: int, source_size: Callable[[Unit], float] | None = None) -> None:
    """Refuse budgets that no student can have.

    Args:
        budgets: The budgets.
        sources: Number of sources N.
        source_size: Size of one source in a unit; without it, only multiples of one source's size are checked.

    Raises:
        ConfigurationError: With the value and what is allowed.
    """
    for budget in budgets:
        if budget.relative:
            low, high = 1.0, float(sources)
        elif source_size is not None:
            size, power = source_size(budget.unit), POWERS[budget.scale]
            low, high = _rounded(size / power, math.ceil), _rounded(sources * size / power, math.floor)
        else:
            continue
        if not budget.within(low, high):
            least, most = (Budget(end, budget.scale, budget.unit) for end in (low, high))
            raise ConfigurationError(
                f"budgets holds {budget}; with {sources} sources it must lie between {least} (one source's size) and "
                f"{most} (all sources side by side)."
            )
    if not budgets or len({budget.name for budget in budgets}) < len(budgets):
        raise ConfigurationError(
            f"budgets is {[budget.plain for budget in budgets]}; at least one is needed, no two the same to two "
            f"decimals."
        )


def _rounded(value: float, towards: Callable[[float], int]) -> float:
    """Round to four digits, up or down, so that the printed limit is itself allowed."""
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return towards(value / step) * step
