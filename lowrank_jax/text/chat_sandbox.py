"""Runs chat templates, Jinja programs from a checkpoint, in a sandbox with the functions that transformers gives."""

import functools
import json
from datetime import datetime
from typing import Any

from lowrank_jax.core.errors import UserError, one_line


class TemplateFault(ValueError):
    """A template that is no Jinja, or that refuses or cannot write a conversation; its message is one line."""


def render(source: str, variables: dict[str, Any]) -> str:
    """Runs a template; returns the text that it writes.

    Args:
      source: the template.
      variables: what it may read, "messages" and so on.

    Raises:
      TemplateFault: the template is no Jinja, or refuses or cannot write the conversation.
      UserError: jinja2 is not installed.
    """
    try:
        return _compiled(source).render(variables)
    except UserError:
        raise
    except Exception as error:  # a template is a program: it may divide by zero, recurse without end, or raise its own
        raise TemplateFault(one_line(error)) from None


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


@functools.cache
def _environment() -> Any:
    """The sandbox, which trims blocks, and in which templates reach no internals of Python and change no message."""
    try:
        from jinja2 import nodes
        from jinja2.exceptions import TemplateError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UserError("chat templates need jinja2; pip install 'jinja2>=3.1.6'") from None

    class Generation(Extension):
        """Accepts {% generation %}, which some templates put around what an assistant says; writes its content."""

        tags = {"generation"}  # noqa: RUF012  jinja2 declares it as a plain set

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # jinja2's own filter writes < and > as HTML does
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )  # fmt: skip

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
