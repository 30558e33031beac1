"""Parses JSON: every fault of the text is a NotJson, whose message is one line."""

import json
import os
import sys
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import read_text


class NotJson(ValueError):
    """A text that is not JSON, or that Python cannot read; its message is one line without the file's name."""


def parse(text: str | bytes, finite: bool = False) -> Any:
    """The value of a JSON text.

    Args:
      finite: refuses NaN and infinity, which Python's reader takes and JSON does not have, and numbers above 1e308.

    Raises:
      NotJson: it is not JSON or not UTF-8, is nested too deeply, or has a whole number of too many digits.
    """
    try:
        if finite:
            return json.loads(text, parse_constant=_not_finite, parse_float=_finite)
        return json.loads(text)
    except NotJson:
        raise
    except json.JSONDecodeError as error:
        raise NotJson(" ".join(str(error).split())) from None
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8 ({error.reason})") from None
    except RecursionError:
        raise NotJson("nested too deeply") from None
    except ValueError:  # the only other one is Python's limit on the digits of an int
        raise NotJson(f"a whole number of more than {sys.get_int_max_str_digits():,} digits") from None


def read_json(path: str | os.PathLike, remedy: str, missing: str = "", finite: bool = False) -> Any:
    """The value of a JSON file.

    Args:
      remedy: what to do about a file that is not JSON.
      missing: the message where there is no such file.
      finite: see `parse`.

    Raises:
      UserError: it is not a regular file, not UTF-8, or not JSON.
    """
    try:
        return parse(read_text(path, missing), finite)
    except NotJson as error:
        raise UserError(f"{os.fspath(path)} is not JSON ({error}); {remedy}") from None


def _not_finite(name: str) -> Any:
    raise NotJson(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise NotJson(f"the number {digits[:20]} is too large")
    return number
