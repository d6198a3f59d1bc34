"""Amounts as users write them: a number, a power of ten, and a unit."""

import re
from collections.abc import Iterable

POWERS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
"""What the letter before a unit stands for."""


def split_amount(text: str, prefixes: str, units: Iterable[str]) -> tuple[float, str, str] | None:
    """Split an amount such as ``2.5 GMAC`` into its number, the letter before the unit, and the unit.

    Args:
        text: As somebody wrote it, in letters of either case.
        prefixes: Letters that may stand before a unit, as they are returned: some of ``POWERS``, and others.
        units: Units that are known, in small letters.

    Returns:
        The number, which may be infinite or ``nan``; the letter, and the unit in small letters, each empty where there
        is none. ``None`` where the text is no such amount.
    """
    pattern = rf"(\d+\.?\d*|\.\d+|nan|inf)\s*([{prefixes}]?)\s*({'|'.join(units)})?"
    match = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
    if match is None:
        return None
    number, letter, unit = match.groups(default="")
    canonical = {prefix.lower(): prefix for prefix in prefixes}
    return float(number), canonical.get(letter.lower(), ""), unit.lower()
