"""Evaluations that decode: one scores the continuations of a task's prompts, one writes samples for you to read."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, NamedTuple

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import Range
from lowrank_jax.core.types import SHOWN, Decoded
from lowrank_jax.data.prompts import Asked, read_prompts
from lowrank_jax.decoding.beam import STEEPEST, Beams
from lowrank_jax.decoding.choice import Sampling
from lowrank_jax.decoding.decoder import make_decoder
from lowrank_jax.decoding.loop import Limits
from lowrank_jax.decoding.text import check_stops
from lowrank_jax.forms.base import Evaluation, Setting, examinee_of
from lowrank_jax.forms.evaluate import make_generator
from lowrank_jax.tasks.base import GenerationTask, LikelihoodTask, Prompted, Task
from lowrank_jax.tasks.exams.options import ExamOptions
from lowrank_jax.tasks.exams.task import WrittenExam
from lowrank_jax.tasks.framing import PLAIN, Framing
from lowrank_jax.text.tokenizers import decode_marked

EVAL_BATCH = 1024  # prompts decoded at a time
BEAM_BATCH = 64  # the same with beams: a prompt has a row for each, with log-likelihoods of the whole vocabulary
GENERATION = "generation"  # the type of an evaluation that scores texts
SAMPLES = "samples"  # the type of an evaluation that writes texts
NEW_TOKENS = 64  # of a sample, where neither its entry nor its task says how many
OPENING = 32  # most tokens of a text without a prompt that are its sample's prompt
FIRST_ROWS = 1000  # held-out rows among which those with room for new tokens are sought

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class GenerationOptions(ExamOptions):
    """How an evaluation of the type "generation" decodes, by default greedily; and with `task` which exam.

    Attributes:
      beams: beams of a prompt; 0: none, each token is the likeliest.
      length_penalty: p of a beam's score, sum of log p(token) / length^p.
      no_repeat_ngram: n: no n tokens in a row are written twice in a text (those of the prompt may be written once); 0:
        no limit.
      max_new_tokens: most tokens of a text; 0: as many as the task says.
      batch: prompts decoded at a time; 0: EVAL_BATCH, or BEAM_BATCH with beams.
      write: whether each text is written to decoded.jsonl, beside its prompt and references.
    """

    beams: Annotated[int, Range(least=0)] = 0
    length_penalty: Annotated[float, Range(least=-STEEPEST, most=STEEPEST)] = 1.0
    no_repeat_ngram: Annotated[int, Range(least=0)] = 0
    max_new_tokens: Annotated[int, Range(least=0)] = 0
    batch: Annotated[int, Range(least=0)] = 0
    write: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.beams and self.length_penalty != Beams.length_penalty:
            raise UserError("evals: length_penalty is for beams; set beams, or leave length_penalty out")

    @property
    def how(self) -> Beams | None:
        """The settings of beam search; None for greedy decoding."""
        return Beams(self.beams, self.length_penalty) if self.beams else None


def generation(setting: Setting, task: Task, options: GenerationOptions | None = None) -> Evaluation:
    """Continues the prompts of the run's task, or of the exam that the options name, and scores the texts.

    Raises:
      UserError: the task has no prompts, or one that leaves no room for the new tokens; as `WrittenExam`.
    """
    options = options or GenerationOptions()
    if options.task:
        asked = WrittenExam(options, examinee_of(setting, task, options.add_bos), options.max_new_tokens)
    elif isinstance(task, GenerationTask):
        asked = task
    else:
        raise UserError("the evaluation 'generation' needs a task with prompts to continue; take 'likelihood'")
    return _scored(setting, asked, options)


def _scored(setting: Setting, task: Prompted, options: GenerationOptions) -> Evaluation:
    prompts, targets = zip(*task.prompts(), strict=True)
    most, pad = options.max_new_tokens or task.max_new_tokens, setting.tokenizer.pad_id or 0
    limits = Limits(most, _ends_of(task), pad, no_repeat_ngram=options.no_repeat_ngram, repeat_prompt=True)
    ids = [task.prompt_tokens(prompt) for prompt in prompts]
    fitted = getattr(task, "fitted", None)
    ids = fitted(ids, _positions(setting) - most) if fitted else ids
    _check_room(setting, task, ids, most)
    stops = getattr(task, "stops", ())
    generate = _generator(setting, ids, limits, stops, beams=options.how, batch=options.batch)

    def score(variables):
        texts = generate(variables)
        values = task.score(texts, targets)
        if not options.write:
            return values
        rows = zip(prompts, texts, targets, strict=True)
        return Decoded(values, [{"prompt": p, "continuation": t, "references": _listed(r)} for p, t, r in rows])

    return Evaluation(score)


def exam_texts(setting: Setting, task: Task, options: GenerationOptions | None = None) -> Evaluation:
    """`generation` for a form whose own tasks write no text: of an exam alone.

    Raises:
      UserError: the options name none; as `generation`.
    """
    if options is None or not options.task:
        raise UserError(
            f"the evaluation {GENERATION!r} needs a task with prompts to continue; set the entry's task to an exam"
        )
    return generation(setting, task, options)


def _check_room(setting: Setting, task: Any, prompts: Sequence[list[int]], most: int) -> None:
    """Refuses a prompt that leaves no room for the new tokens; names its row."""
    positions, lengths = _positions(setting), list(map(len, prompts))
    if max(lengths) + most > positions:
        row = lengths.index(max(lengths))
        places = task.places() if hasattr(task, "places") else [f"prompt {row + 1}" for row in range(len(prompts))]
        cut = getattr(task, "shortening", "")
        raise UserError(
            f"{places[row]}: its prompt has {lengths[row]} tokens, and {most} new ones exceed the model's {positions} "
            f"positions; {cut}lower max_new_tokens, leave the row out, or take a base with more positions"
        )


def _listed(target: Any) -> list[str]:
    return [target] if isinstance(target, str) else list(target)


@dataclasses.dataclass(frozen=True)
class SamplesOptions(Sampling):
    """What is written at an evaluation of the type "samples", and how its tokens are chosen.

    Attributes:
      count: how many texts.
      prompts: a list of prompts, or a file of JSON lines with "prompt" or "messages". Empty: the prompts of the first
        held-out rows that leave room for max_new_tokens, with their answers as references. Of a plain text the first
        half, at most OPENING tokens, is the prompt.
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

    Under SHOWN each also has its prompt with the special tokens, for the terminal.

    Raises:
      UserError: there are no prompts, or the longest leaves no room for the new tokens.
    """
    new, positions = options.max_new_tokens or getattr(task, "max_new_tokens", NEW_TOKENS), _positions(setting)
    asked = list(_asked(setting, task, options, new))[: options.count]
    longest = max(len(sample.ids) for sample in asked)
    if longest + new > positions > new and not options.prompts:
        new = positions - longest
        log.warning("samples: no held-out prompt leaves more room; they have at most %d new tokens", new)
    if longest + new > positions:
        raise UserError(
            f"the samples' longest prompt has {longest} tokens, and {new} new ones exceed the model's {positions} "
            "positions; lower max_new_tokens, or give shorter prompts"
        )
    ends = dict.fromkeys((*_ends_of(task), *setting.end_ids()))
    limits = Limits(new, tuple(ends), setting.tokenizer.pad_id or 0, options.how)
    generate = _generator(setting, [sample.ids for sample in asked], limits, options.stop)
    framing = getattr(task, "framing", PLAIN)
    shown = [decode_marked(setting.tokenizer, framing.text(sample.ids)) for sample in asked]

    def write(variables):
        rows = zip(asked, shown, generate(variables), strict=True)
        return [
            {"prompt": one.prompt, "continuation": text, SHOWN: whole}
            | ({} if one.reference is None else {"reference": one.reference})
            for one, whole, text in rows
        ]

    return Evaluation(write, texts=True)


def _generator(
    setting: Setting,
    prompts: Sequence[list[int]],
    limits: Limits,
    stops: Sequence[str] = (),
    beams: Beams | None = None,
    batch: int = 0,
) -> Any:
    decoder = make_decoder(setting.apply_fn, setting.model, setting.dtype, setting.cuts)
    room, batch = _positions(setting) - limits.max_new_tokens, batch or (BEAM_BATCH if beams else EVAL_BATCH)
    return make_generator(decoder, setting.tokenizer, setting.mesh, prompts, limits, batch, stops, room, beams)


def _positions(setting: Setting) -> int:
    return setting.model.max_position_embeddings


def _ends_of(task: Any) -> tuple[int, ...]:
    """The tokens that the task's own answers end with."""
    stop = getattr(task, "stop_id", None)
    return (*getattr(task, "end_ids", ()), *(() if stop is None else (stop,)))


def _asked(setting: Setting, task: Any, options: SamplesOptions, new: int) -> Iterator[Sample]:
    if options.prompts:
        given = options.prompts
        asked = read_prompts(given) if isinstance(given, str) else [Asked(prompt=prompt) for prompt in given]
        for one in asked[: options.count]:
            yield Sample(task.prompt_tokens(one.content), one.shown, one.reference)
    elif isinstance(task, GenerationTask):
        for prompt, target in task.prompts(options.count):
            yield Sample(task.prompt_tokens(prompt), prompt, _listed(target)[0])
    else:
        source = task.validation_source() if isinstance(task, LikelihoodTask) else None
        if source is None:
            raise UserError(
                "the evaluation 'samples' has nothing to continue; set its prompts, or give the task held-out data "
                "(task.validation_path)"
            )
        texts, most = getattr(task, "of_texts", False), _positions(setting) - new
        examples = (task.features(source[index]) for index in range(len(source)))
        shortest, found = None, 0
        for row in islice(_rows(examples), FIRST_ROWS):
            one = _from_row(setting.tokenizer, row, texts, getattr(task, "framing", PLAIN))
            shortest = one if shortest is None or len(one.ids) < len(shortest.ids) else shortest
            if len(one.ids) <= most:
                yield one
                found += 1
            if found == options.count:
                return
        if shortest is not None and not found:
            yield shortest


def _rows(examples: Iterable[dict[str, np.ndarray]]) -> Iterator[tuple[list[int], np.ndarray]]:
    """(tokens, places of the targets) of each row; of packed rows each stands alone in an example."""
    for features in examples:
        segments = features.get("segments", np.ones_like(features["tokens"]))
        for number in range(1, int(segments.max()) + 1):
            own = segments == number
            yield features["tokens"][own].tolist(), np.flatnonzero(features["weights"][own] > 0)


def _from_row(tokenizer: Any, row: tuple[list[int], np.ndarray], text: bool, framing: Framing) -> Sample:
    """The tokens before a row's first run of targets, and those of the run; of a text its beginning and the rest."""
    tokens, targets = row
    start = int(targets[0])
    stop = start + int(np.argmax(np.append(np.diff(targets), 2) != 1)) + 1
    if text:
        prefix = len(framing.prefix_ids)
        start = prefix + min(OPENING, max(1, (stop - prefix) // 2))
    shown = tokenizer.decode(framing.text(tokens[:start]))
    return Sample(tokens[:start], shown, tokenizer.decode(tokens[start:stop]))
