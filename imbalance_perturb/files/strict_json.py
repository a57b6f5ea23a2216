"""JSON that a user wrote, read strictly: no key twice, no NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from imbalance_perturb.errors import ImbperturbError


def read_json(path: Path, expected: str, error_type: type[ImbperturbError]) -> Any:
    """Read a JSON file that a user wrote, strictly: UTF-8, no duplicate keys, no NaN or Infinity.

    Raises:
        ``error_type``: with the cause and what was ``expected``; the caller adds the file's name.
    """
    return parse_json_bytes(read_bytes_of(path, expected, error_type), expected, error_type)


def read_bytes_of(path: Path, expected: str, error_type: type[ImbperturbError]) -> bytes:
    """Read the bytes of a file that is to hold JSON.

    Raises:
        ``error_type``: as :func:`read_json`.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise error_type(f"cannot be read ({error.strerror}); expected a JSON file with {expected}") from None


def parse_json_bytes(content: bytes, expected: str, error_type: type[ImbperturbError]) -> Any:
    """Parse the bytes of a JSON file, strictly.

    Raises:
        ``error_type``: as :func:`read_json`.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error_type(f"is not UTF-8 text; expected a JSON file with {expected}") from None
    return parse_json(text, expected, error_type)


def parse_json(text: str, expected: str, error_type: type[ImbperturbError]) -> Any:
    """Parse JSON text, strictly: no duplicate keys, no NaN or Infinity.

    Raises:
        ``error_type``: as :func:`read_json`.
    """
    if not text.strip():
        raise error_type(f"is empty; expected {expected}")
    try:
        return json.loads(text, object_pairs_hook=_distinct_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise error_type(f"is not JSON ({where}: {error.msg}); expected {expected}") from None
    except RecursionError:
        raise error_type(f"is nested too deeply; expected {expected}") from None
    except _JsonRefusedError as error:
        raise error_type(f"{error}; expected {expected}") from None
    except ValueError:  # Python reads no integer of more than 4,300 digits
        raise error_type(f"holds a number that is too long; expected {expected}") from None


class _JsonRefusedError(Exception):
    """JSON that Python would read and that loses or hides a value."""


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json keeps the last of two equal keys: a class would vanish and every index after it would shift.
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise _JsonRefusedError(f"{key!r} stands more than once, so one of the two would be lost")
        data[key] = value
    return data


def _refuse_constant(text: str) -> NoReturn:
    raise _JsonRefusedError(f"{text} is not a number that can be used")
