"""The forms by name: the only list."""

from typing import Any

from lowrank_jax.core.paths import unknown_name
from lowrank_jax.forms.base import Form
from lowrank_jax.forms.choice import Choice
from lowrank_jax.forms.label import Label
from lowrank_jax.forms.next_token import NextToken

FORMS = {"next_token": NextToken, "label": Label, "choice": Choice}


def form_of(config: Any) -> Form:
    """The form of a task's config, by the name in its `form`.

    Raises:
      UserError: no such form.
    """
    if config.form not in FORMS:
        raise unknown_name("form", config.form, FORMS)
    return FORMS[config.form](config)
