"""Evaluations that decode: one scores the continuations of a task's prompts, one writes samples for you to read."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import Range
from lowrank_jax.data.prompts import Asked, read_prompts
from lowrank_jax.decoding.choice import Sampling
from lowrank_jax.decoding.decoder import make_decoder
from lowrank_jax.decoding.loop import Limits
from lowrank_jax.decoding.text import check_stops
from lowrank_jax.forms.base import Evaluation, Setting
from lowrank_jax.forms.evaluate import make_generator
from lowrank_jax.tasks.base import GenerationTask, LikelihoodTask, Task

EVAL_BATCH = 1024  # prompts decoded at a time
SAMPLES = "samples"  # the type of an evaluation that writes texts
NEW_TOKENS = 64  # of a sample, where neither its entry nor its task says how many
OPENING = 32  # most tokens of a plain text that serve as its sample's prompt


def generation(setting: Setting, task: GenerationTask) -> Evaluation:
    """Continues the task's prompts greedily and scores the texts.

    Raises:
      UserError: the task has no prompts.
    """
    if not isinstance(task, GenerationTask):
        raise UserError("the evaluation 'generation' needs a task with prompts to continue; take 'likelihood'")
    prompts, targets = zip(*task.prompts(), strict=True)
    ends = () if task.stop_id is None else (task.stop_id,)
    limits = Limits(task.max_new_tokens, ends, setting.tokenizer.pad_id or 0)
    generate = _generator(setting, [task.prompt_tokens(prompt) for prompt in prompts], limits)
    return Evaluation(lambda variables: task.score(generate(variables), targets))


@dataclasses.dataclass(frozen=True)
class SamplesOptions(Sampling):
    """What is written at an evaluation of the type "samples", and how its tokens are chosen.

    Attributes:
      count: how many texts.
      prompts: a list of prompts, or a file of JSON lines with "prompt" or "messages". Empty: the prompts of the first
        held-out examples, with their answers as references. Of a plain text the first half, at most OPENING tokens, is
        the prompt.
      max_new_tokens: most tokens of a text; 0: as many as the task's answers have, or NEW_TOKENS.
      stop: strings that end a text.
      seed: draws the same numbers at every evaluation.
    """

    count: Annotated[int, Range(least=1)] = 4
    prompts: str | tuple[str, ...] = ()
    max_new_tokens: Annotated[int, Range(least=0)] = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        check_stops(self.stop)

    @property
    def how(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Sampling)})


class Sample(NamedTuple):
    """A prompt as ids and as text, and the answer that the data have, if any."""

    ids: list[int]
    prompt: str
    reference: str | None = None


def samples(setting: Setting, task: Task, options: SamplesOptions) -> Evaluation:
    """Continues a few prompts, for a person to read: {"prompt", "continuation", "reference" if there is one} of each.

    Raises:
      UserError: there are no prompts, or the longest leaves no room for the new tokens.
    """
    asked = list(_asked(setting, task, options))[: options.count]
    new = options.max_new_tokens or getattr(task, "max_new_tokens", NEW_TOKENS)
    longest, positions = max(len(sample.ids) for sample in asked), setting.model.max_position_embeddings
    if longest + new > positions:
        raise UserError(
            f"the samples' longest prompt has {longest} tokens, and {new} new ones exceed the model's {positions} "
            "positions; lower max_new_tokens, or give shorter prompts"
        )
    ends = dict.fromkeys((*_ends_of(task), *setting.end_ids()))
    limits = Limits(new, tuple(ends), setting.tokenizer.pad_id or 0, options.how)
    generate = _generator(setting, [sample.ids for sample in asked], limits, options.stop)

    def write(variables):
        rows = zip(asked, generate(variables), strict=True)
        return [
            {"prompt": one.prompt, "continuation": text}
            | ({} if one.reference is None else {"reference": one.reference})
            for one, text in rows
        ]

    return Evaluation(write, texts=True)


def _generator(setting: Setting, prompts: Sequence[list[int]], limits: Limits, stops: Sequence[str] = ()) -> Any:
    decoder = make_decoder(setting.apply_fn, setting.model, setting.dtype)
    return make_generator(decoder, setting.tokenizer, setting.mesh, prompts, limits, EVAL_BATCH, stops)


def _ends_of(task: Any) -> tuple[int, ...]:
    """The tokens that the task's own answers end with."""
    stop = getattr(task, "stop_id", None)
    return (*getattr(task, "end_ids", ()), *(() if stop is None else (stop,)))


def _asked(setting: Setting, task: Any, options: SamplesOptions) -> Iterator[Sample]:
    if options.prompts:
        given = options.prompts
        asked = read_prompts(given) if isinstance(given, str) else [Asked(prompt=prompt) for prompt in given]
        for one in asked[: options.count]:
            yield Sample(task.prompt_tokens(one.content), one.shown, one.reference)
    elif isinstance(task, GenerationTask):
        for prompt, target in task.prompts(options.count):
            yield Sample(task.prompt_tokens(prompt), prompt, target)
    else:
        source = task.validation_source() if isinstance(task, LikelihoodTask) else None
        if source is None:
            raise UserError(
                "the evaluation 'samples' has nothing to continue; set its prompts, or give the task held-out data "
                "(task.validation_path)"
            )
        for index in range(min(options.count, len(source))):
            yield _from_example(setting.tokenizer, task.features(source[index]))


def _from_example(tokenizer: Any, features: dict[str, np.ndarray]) -> Sample:
    """A sample of an example: the tokens before its first run of targets, and those of the run as reference."""
    tokens, targets = features["tokens"].tolist(), np.flatnonzero(features["weights"] > 0)
    start = int(targets[0])
    stop = start + int(np.argmax(np.append(np.diff(targets), 2) != 1)) + 1
    if start <= 1:  # a plain text: only its first token has no weight
        start = min(OPENING, max(1, stop // 2))
    return Sample(tokens[:start], tokenizer.decode(tokens[:start]), tokenizer.decode(tokens[start:stop]))
