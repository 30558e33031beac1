"""Turns conversations into ids by a chat template; the targets of the loss are what the assistant says."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.text.chat_formats import FORMATS
from lowrank_jax.text.chat_sandbox import TemplateFault, render
from lowrank_jax.text.joining import encode_with_cuts
from lowrank_jax.text.tokenizers import Tokenizer

Message = Mapping[str, Any]  # {"role", "content"}, and what else a template reads
IdsAndTargets = tuple[list[int], list[bool]]  # ids, and whether each is a target
ASSISTANT = "assistant"


@dataclass(frozen=True)
class ChatTemplate:
    """A template that writes conversations as the texts that a model reads.

    Attributes:
      name: for messages.
      source: a Jinja program.
      tokens: special tokens by the names in the template, "bos_token" and so on; those that the vocabulary has.
    """

    name: str
    source: str
    tokens: Mapping[str, str]

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
          messages: in order; entries that are None are left out.
          add_generation_prompt: whether the text ends with the beginning of an assistant's turn.

        Raises:
          UserError: the template refuses the conversation, or is itself at fault.
        """
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        variables = {"messages": plain, "tools": None, "documents": None, **self.tokens}
        try:
            return render(self.source, {**variables, "add_generation_prompt": add_generation_prompt})
        except TemplateFault as error:
            raise UserError(
                f"the chat template {self.name} cannot write a conversation of {_roles(messages)}: {error}; "
                "change the conversation, or name another template in task.chat_template"
            ) from None


def find_template(tokenizer: Tokenizer, name: str = "") -> ChatTemplate:
    """The tokenizer's own template, or one of `chat_formats.FORMATS`.

    A named template whose marks the tokenizer would spell out in several tokens is refused: no single token would end
    an assistant's turn, and decoding could not stop.

    Raises:
      UserError: the tokenizer has none, no template has that name, or the tokenizer lacks its marks.
    """
    specials = tokenizer.special_tokens
    names = {i: token for token, i in specials.items()}
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    tokens = {key: names[i] for key, i in ids.items() if i in names}
    if not name:
        if tokenizer.chat_template is None:
            raise UserError(
                f"tokenizer {tokenizer.name!r} has no chat template; set task.chat_template to one of "
                f"{', '.join(FORMATS)}"
            )
        return ChatTemplate(f"of tokenizer {tokenizer.name!r}", tokenizer.chat_template, tokens)
    if name not in FORMATS:
        raise unknown_name("task.chat_template", name, FORMATS)
    missing = [mark for mark in FORMATS[name].marks if mark not in specials]
    if missing:
        raise UserError(
            f"tokenizer {tokenizer.name!r} has no token {', '.join(missing)}, which the chat template {name} needs; "
            "take zephyr, which needs only an end-of-text token, or a base whose vocabulary has it"
        )
    if "eos_token" not in tokens:
        raise UserError(f"tokenizer {tokenizer.name!r} has no end-of-text token, which a conversation needs")
    return ChatTemplate(name, FORMATS[name].source, tokens)


def encode_turns(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    first: int = 0,
    ends: Collection[int] | None = None,
) -> list[IdsAndTargets]:
    """A conversation as examples; targets are the assistant's turns, each up to the token that ends it.

    A turn is what the template adds to the text that decoding starts from, which is the messages before it with the
    generation prompt. The ids before each turn are exactly those of `prompt_ids`. Nothing is added to what the template
    writes, such as a second BOS.

    Mostly a conversation is one example. Some templates rewrite earlier turns (Qwen3's drops their thoughts) and show
    only the last turn as it was written: then there is an example for each turn, which ends with it.

    Args:
      tokenizer: encode_marked(text) -> ids.
      template: writes the conversation.
      messages: in order.
      first: index of the first message that may be a target.
      ends: of `end_ids`, by a caller with many conversations; None: asked for.

    Raises:
      UserError: no assistant's turn is there, or the template does not begin a turn with its generation prompt.
    """
    written, turns = _Written(template, messages), _turns(messages)
    spans = _spans(written, turns)
    ends = end_ids(tokenizer, template) if ends is None else ends
    if spans is not None:
        return [_encode(tokenizer, written.whole(written.count), spans, ends, sum(turn < first for turn in turns))]
    found = []
    for end in (turn + 1 for turn in turns if turn >= first):
        span = _last_span(written, end)
        if span is None:
            prompt = written.prompt(end - 1)
            raise UserError(
                f"the chat template {template.name} does not begin an assistant's turn with its generation prompt "
                f"({prompt[-40:]!r}): decoding would begin with tokens that training never saw; "
                "name another template in task.chat_template"
            )
        found.append(_encode(tokenizer, written.whole(end), [span], ends))
    return found


def prompt_ids(tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
    """The ids that an answer to a conversation is decoded from: those before the answer in training.

    Raises:
      UserError: the template refuses the conversation.
    """
    written = _Written(template, messages)
    text = written.prompt(written.count)
    answered = any(message["role"] == ASSISTANT for message in messages)
    spans = _spans(written, _turns(messages)) if answered and text.startswith(written.whole(written.count)) else None
    return encode_with_cuts(tokenizer.encode_marked, text, [start for start, _ in spans or ()]).ids


def end_ids(tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int, ...]:
    """The tokens at which an answer ends: the one that the template writes after an assistant's turn, and EOS."""
    said = "answer"
    text = template.render([{"role": "user", "content": "question"}, {"role": ASSISTANT, "content": said}])
    after = tokenizer.encode_marked(text[text.rfind(said) + len(said) :])
    specials = set(tokenizer.special_tokens.values())
    found = [i for i in after if i in specials][:1]
    found += [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return tuple(dict.fromkeys(found))


class _Written:
    """The texts of a conversation's beginnings; each is written once, as a template takes about 0.1 ms for one."""

    def __init__(self, template: ChatTemplate, messages: Sequence[Message]):
        self.count = len(messages)
        self._template, self._messages = template, messages
        self._texts: dict[tuple[int, bool], str] = {}

    def whole(self, count: int) -> str:
        """The first `count` messages."""
        return self._text(count, False)

    def prompt(self, count: int) -> str:
        """The first `count` messages, and the beginning of an assistant's turn."""
        return self._text(count, True)

    def _text(self, count: int, opened: bool) -> str:
        if (count, opened) not in self._texts:
            text = self._template.render(self._messages[:count], add_generation_prompt=opened)
            self._texts[count, opened] = text
        return self._texts[count, opened]


def _encode(
    tokenizer: Tokenizer, text: str, spans: Sequence[tuple[int, int]], ends: Collection[int], skipped: int = 0
) -> IdsAndTargets:
    """Ids of a text, and as targets all turns except the first `skipped`."""
    starts, stops = zip(*spans, strict=True)
    ids, firsts, lasts = encode_with_cuts(tokenizer.encode_marked, text, starts, stops)
    targets = [False] * len(ids)
    for first, last in list(zip(firsts, lasts, strict=True))[skipped:]:
        marks = [place for place in range(first, last) if ids[place] in ends]
        if marks and not tokenizer.decode(ids[marks[-1] + 1 : last]).strip():
            last = marks[-1] + 1  # decoding ends there, and never writes what stands between two turns
        targets[first:last] = [True] * (last - first)
    return ids, targets


def _turns(messages: Sequence[Message]) -> list[int]:
    found = [index for index, message in enumerate(messages) if message["role"] == ASSISTANT]
    if not found:
        raise UserError(f"a conversation of {_roles(messages)} has no assistant's turn to learn; add one")
    return found


def _spans(written: _Written, turns: Sequence[int]) -> list[tuple[int, int]] | None:
    """(start, end) of each assistant's turn in the text; None where the template rewrites turns as more are added."""
    whole, spans = written.whole(written.count), []
    for turn in turns:
        span = _last_span(written, turn + 1)
        if span is None or not whole.startswith(written.whole(turn + 1)):
            return None
        spans.append(span)
    return spans


def _last_span(written: _Written, count: int) -> tuple[int, int] | None:
    """(start, end) of the last of `count` messages, an assistant's; None: not begun with the generation prompt."""
    before, whole = written.prompt(count - 1), written.whole(count)
    return (len(before), len(whole)) if whole.startswith(before) else None


def _roles(messages: Sequence[Message]) -> str:
    shown = [str(message.get("role")) for message in messages[:6]]
    return ", ".join(shown) + (", ..." if len(messages) > 6 else "") or "no messages"
