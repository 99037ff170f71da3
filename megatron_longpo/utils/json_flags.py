"""Flags whose value is a JSON object."""

from __future__ import annotations

import json
from typing import Any

from megatron_longpo.utils.errors import UserError


def parse_json_object(flag: str, text: str, example: str) -> dict[str, Any]:
    """Read the value of a flag.

    Raises:
        UserError: it is no JSON object; the message has the ``example``.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{flag}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{flag}: give a JSON object, such as '{example}'")
    return value
