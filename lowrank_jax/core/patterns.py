"""Checks regular expressions from configs, flags and files before they are used."""

import re

from lowrank_jax.core.errors import UserError


def check_pattern(where: str, pattern: str, template: str = "{}") -> None:
    """Refuses a text that is not a regular expression.

    Args:
      where: the field it stands in, for the message.
      template: what it is put into before it is used, as for `str.format`; "(?i)x" is valid only by itself.

    Raises:
      UserError: shows the pattern, and what is wrong with it.
    """
    try:
        re.compile(template.format(pattern))
    except (re.error, OverflowError, RecursionError) as error:  # the last two: "a{99999999999}", "((((..."
        raise UserError(f"{where} {pattern!r} is no regular expression: {error}") from None
