"""A run or a base as lm-eval's `TemplateLM`: lm-eval's tasks, prompts and metrics are then used as they are."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM

from experiments.evaluation.batches import slots_of
from experiments.evaluation.scoring import Scorer
from experiments.generation.framing import wants_bos
from experiments.generation.model import Model
from lowrank_jax.bases.ends import framed_tokenizer, opening_ids
from lowrank_jax.core.errors import UserError
from lowrank_jax.data.packing import mark
from lowrank_jax.decoding.choice import Sampling
from lowrank_jax.decoding.loop import Limits
from lowrank_jax.decoding.prefixes import Group, shared_groups
from lowrank_jax.decoding.stream import Streamer
from lowrank_jax.models.parts.shared import Prefix
from lowrank_jax.text.chat import ChatTemplate, find_template

NEW_TOKENS = 256  # of a text, where the task does not say; lm-eval's own default
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval's order of precedence
SHARES = ("top_p", "min_p", "repetition_penalty")
NUMBERS = (*LENGTHS, "temperature", "top_k", *SHARES)


class LanguageModel(TemplateLM):
    """The model, its tokenizer, its decoder with the cache, and its log-likelihoods.

    Args:
      model: of `generation.model`.
      batch_size: most rows at a time.
      add_bos: whether texts begin with BOS; None: as in the run's training, or as the tokenizer begins a text.
      chat_template: a template's name; "" is the tokenizer's own.
      share: whether a beginning that several prompts share is read once; False: each prompt is read whole, as always by
        a model that cannot read beginnings apart (`models.parts.shared.can_share`).

    Raises:
      UserError: texts should begin with BOS, and the tokenizer has none.

    Attributes:
      cut: how many prompts were too long, and have lost their beginnings.
      count: how many tokens of prompts and continuations were read.
    """

    def __init__(
        self,
        model: Model,
        batch_size: int = 16,
        add_bos: bool | None = None,
        chat_template: str = "",
        share: bool = True,
    ):
        super().__init__()
        words = framed_tokenizer(model.base)
        assert words is not None  # `generation.model` has made sure
        marked = wants_bos(words, model.task, add_bos)
        self._opening = opening_ids(model.base) if marked is None else (mark(words, "bos"),) if marked else ()
        self.model, self.words, self._template = model, words, chat_template
        self.max_length = model.positions - model.virtual.count
        self._batch_size, self.cut = batch_size, 0
        shared = model.decoder.shared if share else None
        self._scorer = Scorer(model.apply_fn, model.variables, model.base.config, batch_size, model.virtual, shared)
        self._read = None if shared is None else jax.jit(shared.read)
        self.count = self._scorer.count
        self._streamers: dict[tuple[str, ...], Streamer] = {}

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text.

        Raises:
          UserError: there is none.
        """
        found = self.words.eos_id if self.words.eos_id is not None else next(iter(self.model.end_ids), None)
        if found is None:
            raise UserError(
                f"tokenizer {self.words.name!r} has no end token, and a task needs one; name it in its files"
            )
        return found

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context: BOS, otherwise the end token."""
        return self.eot_token_id if self.words.bos_id is None else self.words.bos_id

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, for lm-eval's caches of requests."""
        return self.words.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for lm-eval's records; None where no template is applied."""
        return self._chat().source if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without a generation prompt it ends with the last message, to be continued."""
        text = self._chat().render(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rfind(last) + len(last)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, begun as the model's texts are, unless it begins so itself."""
        ids = self.words.encode_marked(string)
        opening = list(self._opening if add_special_tokens is None else self._opening if add_special_tokens else ())
        return ids if ids[: len(opening)] == opening else [*opening, *ids]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is greedy) of each continuation; the caller has split ids of context and text."""
        pairs = [(context, continuation) for _, context, continuation in requests]
        self.cut += sum(len(context) + len(continuation) > self.max_length + 1 for context, continuation in pairs)
        return [(one.value, one.greedy) for one in self._scorer(pairs)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of the model's length."""
        del disable_tqdm
        owners, windows = [], []
        for owner, request in enumerate(requests):
            cut = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            made = [utils.make_disjoint_window(window) for window in cut]
            owners += [owner] * len(made)
            windows += made
        found = [0.0] * len(requests)
        for owner, one in zip(owners, self._scorer(windows), strict=True):
            found[owner] += one.value
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context up to its first stop string; those of equal settings share batches."""
        del disable_tqdm
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        found = [""] * len(requests)
        for settings, numbers in groups.items():
            stops, limits = self._settings(json.loads(settings))
            room = self.max_length - limits.max_new_tokens
            if room < 1:
                raise UserError(
                    f"a task asks for {limits.max_new_tokens} new tokens, and the model reads {self.max_length}; set "
                    "fewer, e.g. --gen_kwargs=max_gen_toks=128"
                )
            prompts = {}
            for number in numbers:
                ids = self.tok_encode(requests[number].args[0]) or [self.prefix_token_id]
                prompts[number] = self.model.virtual.around(ids[-room:])
                self.cut += len(ids) > room
            size = min(self._batch_size, len(numbers))
            for shared, rows in self._groups(prompts, size, limits):
                prefix = self._beginning(prompts[rows[0]][:shared]) if shared else None
                whole = sum(len(prompts[row]) for row in rows)
                self.count.read += whole - shared * (len(rows) - 1)
                self.count.whole += whole
                rows.sort(key=lambda row: -len(prompts[row]))
                for start in range(0, len(rows), size):
                    now = rows[start : start + size]
                    given = [prompts[row] for row in now]
                    pieces = self._streamer(stops).stream(
                        self.model.variables, given, limits, now, size, prefix, shared
                    )
                    for piece in pieces:
                        found[now[piece.row]] = piece.stream.text
        return found

    def _groups(self, prompts: dict[int, list[int]], size: int, limits: Limits) -> list[Group]:
        """The prompts by what they share, of at least one full batch: decoding costs the same for a batch of few rows.

        Prompts are read whole where limits look back at their tokens, which are otherwise not there.
        """
        numbers = list(prompts)
        if self._read is None or limits.looks_back:
            return [Group(0, numbers)]
        ids = list(prompts.values())
        found = shared_groups(ids, [len(one) - 1 for one in ids], max(2, size))
        return [Group(length, [numbers[row] for row in rows]) for length, rows in found]

    def _beginning(self, ids: list[int]) -> Prefix:
        assert self._read is not None
        tokens = np.zeros((1, slots_of(len(ids), self.model.positions)), np.int32)
        tokens[0, : len(ids)] = ids
        return self._read(self.model.variables, tokens, np.array([len(ids)], np.int32))

    def _settings(self, given: dict[str, Any]) -> tuple[tuple[str, ...], Limits]:
        """Stop strings and limits of a task's generation settings.

        Raises:
          UserError: names a setting that decoding does not have, or that is no number.
        """
        until = given.pop("until", None) or []
        stops = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
        drawn, pad = given.pop("do_sample", None), self.words.pad_id
        try:
            numbers = {name: float(value) for name in NUMBERS if (value := given.pop(name, None)) is not None}
        except (TypeError, ValueError) as error:
            raise UserError(f"a task's generation settings: {error}; give numbers, e.g. max_gen_toks=64") from None
        if given:
            known = ", ".join(("until", "do_sample", *NUMBERS))
            raise UserError(f"a task sets {next(iter(given))!r} for its texts, which is unknown; known: {known}")
        temperature = numbers.get("temperature", 1.0 if drawn else 0.0)
        how = Sampling(
            0.0 if drawn is False else temperature,
            int(numbers.get("top_k", 0)),
            **{name: numbers[name] for name in SHARES if name in numbers},  # pyright: ignore[reportArgumentType]
        )
        length = next((int(numbers[name]) for name in LENGTHS if name in numbers), NEW_TOKENS)
        return stops, Limits(length, self.model.end_ids, 0 if pad is None else pad, how)

    def _streamer(self, stops: tuple[str, ...]) -> Streamer:
        if stops not in self._streamers:
            model = self.model
            self._streamers[stops] = Streamer(model.decoder, model.base.tokenizer, model.positions, stops)
        return self._streamers[stops]

    def _chat(self) -> ChatTemplate:
        try:
            return find_template(self.words, self._template)
        except UserError as error:
            raise UserError(str(error).replace("task.chat_template", "--chat_template")) from None
