"""JSON that somebody else may have written."""

import json
from typing import Any


def json_value(text: str | bytes) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.

    Raises:
        ValueError: If it is none, or nested more deeply than Python's parser goes.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
