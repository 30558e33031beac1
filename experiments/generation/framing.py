"""Turns prompts into ids: as in a run's training, by a chat template, or as the base's tokenizer begins a text."""

import dataclasses
from typing import Any

from experiments.generation.model import Model
from lowrank_jax.bases.ends import framed_tokenizer
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of
from lowrank_jax.data.prompts import Asked
from lowrank_jax.data.row_kinds import CHAT, read_row
from lowrank_jax.data.sources import is_named, read_source
from lowrank_jax.tasks.framing import PLAIN, frame
from lowrank_jax.tasks.framing import Framing as RowFraming
from lowrank_jax.text.chat import ChatTemplate, end_ids, find_template
from lowrank_jax.text.chat_formats import FORMATS
from lowrank_jax.text.tokenizers import SubwordTokenizer

OWN, NONE = "own", "none"  # values of --chat_template beside the names of FORMATS


@dataclasses.dataclass(frozen=True)
class Framing:
    """How prompts and messages become ids.

    Attributes:
      tokenizer: of the base.
      template: for messages; None where there is none.
      texts: whether a prompt, which is a text, is given to the template as a user's message.
      add_bos: whether texts without a template begin with BOS; None: as the tokenizer begins a text.
      system: a message before all others; "" for none.
      said: a line that tells the user which way was chosen; "" for none.
      after: ids that follow a plain text, where a run's training had them between input and text.
      virtual: the virtual tokens around each prompt; the infix stands between the prompt and what is written.
    """

    tokenizer: Any
    template: ChatTemplate | None
    texts: bool
    add_bos: bool | None = None
    system: str = ""
    said: str = ""
    after: tuple[int, ...] = ()
    virtual: RowFraming = PLAIN

    def ids(self, asked: Asked) -> list[int]:
        """The ids that decoding starts from.

        Raises:
          UserError: messages or a system message without a template, or nothing to continue.
        """
        messages = list(asked.messages) or ([{"role": "user", "content": asked.prompt}] if self.texts else [])
        if messages and self.template is None:
            raise UserError(no_template(self.tokenizer))
        if messages:
            first = [{"role": "system", "content": self.system}] if self.system else []
            ids = frame(self.tokenizer, [*first, *messages], bool(self.add_bos), self.template)
        elif self.system:
            raise UserError(
                f"--system needs a chat template, and prompts are plain texts here; add --chat_template={OWN}"
            )
        else:
            ids = [*self._text(asked.prompt), *self.after]
        ids = self.virtual.around(ids)
        if not ids:
            raise UserError("the prompt is empty and the tokenizer begins no text by a token; give a prompt")
        return ids

    @property
    def named(self) -> str:
        """The template's name, OWN for the tokenizer's; "" without one."""
        return "" if self.template is None else self.template.name if self.template.name in FORMATS else OWN

    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end the template's answers."""
        return () if self.template is None else end_ids(self.tokenizer, self.template)

    def _text(self, prompt: str) -> list[int]:
        if self.add_bos is not None:
            return frame(self.tokenizer, prompt, self.add_bos)
        if isinstance(self.tokenizer, SubwordTokenizer):  # the tokenizer's own template, which may add BOS, or EOS too
            ids = self.tokenizer.backend.encode(prompt).ids
            return ids[:-1] if len(ids) > 1 and ids[-1] == self.tokenizer.eos_id else ids
        piece = hasattr(self.tokenizer, "path")  # sentencepiece's models were trained with BOS
        return frame(self.tokenizer, prompt, piece and self.tokenizer.bos_id is not None)


def make_framing(model: Model, template: str, bos: bool | None, system: str, messages: bool) -> Framing:
    """Chooses how a model's prompts become ids; an adapter's virtual tokens stand around them in any case.

    Args:
      model: of a run, whose training gives the default, or of a base.
      template: --chat_template: a name, OWN, NONE or "".
      bos: --bos; None: as in training, or as the tokenizer begins a text.
      system: a system message.
      messages: whether conversations are to be answered.

    Raises:
      UserError: no template of that name, or none where one is needed; or as `wants_bos`.
    """
    tokenizer, task, texts, said = framed_tokenizer(model.base), model.task, bool(template), ""
    bos = wants_bos(tokenizer, task, bos)
    after = tuple(task.after_prompt(tokenizer)) if hasattr(task, "after_prompt") else ()
    if template == NONE:
        if messages:
            raise UserError(f"--chat_template={NONE} cannot write messages; name one of {', '.join(FORMATS)}")
        return Framing(tokenizer, None, False, bos, system, after=after, virtual=model.virtual)
    named = "" if template == OWN else template
    if not template and task is not None:
        chat = trained_on_chat(task)
        named = getattr(task, "chat_template", "")
        if chat:
            texts = True
            said = "the run was trained on conversations: a prompt is a user's message in its chat template"
        elif chat is None:
            said = "the run's data are not here: a prompt is plain text (--chat_template makes it a user's message)"
    elif not template and getattr(tokenizer, "chat_template", None) is not None and not messages:
        said = (
            "a prompt is continued as plain text; the base has a chat template of its own, in which "
            f"--chat_template={OWN} sends it as a user's message (--chat_template={NONE}: plain, without this line)"
        )
    if not texts and not messages:
        return Framing(tokenizer, None, False, bos, system, said, after, model.virtual)
    if tokenizer is not None and not named and tokenizer.chat_template is None:
        raise UserError(no_template(tokenizer))
    assert tokenizer is not None  # `model` has made sure
    try:
        found = find_template(tokenizer, named)
    except UserError as error:
        raise UserError(str(error).replace("task.chat_template", "--chat_template")) from None
    return Framing(tokenizer, found, texts or messages, bos, system, said, virtual=model.virtual)


def no_template(tokenizer: Any) -> str:
    """The error message about a tokenizer without a chat template."""
    return (
        f"tokenizer {tokenizer.name!r} has no chat template, which messages need; name one of "
        f"--chat_template={', '.join(FORMATS)}"
    )


def trained_on_chat(task: Any) -> bool | None:
    """Whether a run was trained on conversations, by the first row of its data; None where the data are not here."""
    path = getattr(task, "path", None)
    if not path:
        return False
    if getattr(task, "chat_template", "") and not getattr(task, "also_prompts", False):
        return True
    source = path if isinstance(path, str) else path[0]
    if not is_named(source) and kind_of(source) is None:
        return None
    try:
        for place, rows in read_source(source):
            for word, number, row in rows:
                return read_row(f"{place}, {word} {number}", row)[0] == CHAT
    except UserError:
        if not is_named(source):  # a file that is here and damaged
            raise
    return None


def wants_bos(tokenizer: Any, task: Any, bos: bool | None) -> bool | None:
    """Whether texts begin with BOS; None: as the tokenizer begins a text.

    Args:
      tokenizer: of the base.
      task: of a run, which decides where `bos` is None; None of a base alone.
      bos: --bos; None where it is not given.

    Raises:
      UserError: --bos asks for BOS and the tokenizer has none.
    """
    if bos and tokenizer.bos_id is None:
        raise UserError(f"tokenizer {tokenizer.name!r} has no BOS token; leave --bos out")
    return getattr(task, "add_bos", None) if bos is None else bos
