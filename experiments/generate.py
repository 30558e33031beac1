"""Writes text with a run's model or a base: continues a prompt or the prompts of a file, or converses.

python -m experiments.generate --run=runs/NAME --prompt="Question: ..."
python -m experiments.generate --base=smollm2-135m --chat --temperature=0.7 --top_p=0.9
python -m experiments.generate --base=FOLDER --adapter=FOLDER --file=prompts.jsonl --out=completions.jsonl
"""

import contextlib
import sys
from typing import Any

from absl import flags

from experiments.cli import from_flags, launch, start_devices
from experiments.generation import BESIDE, WEIGHTS
from lowrank_jax.core import interrupts
from lowrank_jax.core.errors import INTERRUPTED, UserError

flags.DEFINE_string("run", None, "A run's folder, which gives base, adapter, dtype and chat template; or give --base.")
flags.DEFINE_string("base", None, "A base model as in base.name: a name, a folder (also of a merged model), a .gguf.")
flags.DEFINE_string("adapter", None, "With --base: the folder of an adapter, a run's adapter/ or PEFT's.")
flags.DEFINE_string("dtype", None, "Dtype of weights and computation; by default the run's, or float32.")
flags.DEFINE_enum(
    "weights",
    BESIDE,
    WEIGHTS,
    "How base and adapter are computed. beside: separately, as in training, which starts soonest. exact, merged: in "
    "one product, which writes many texts fastest; merged rounds the sums of both to the dtype, exact does not.",
)
flags.DEFINE_string("prompt", None, "A text to continue, or a user's message; printed as it comes.")
flags.DEFINE_string("file", None, 'JSON lines of {"prompt"} or {"messages"}, answered with JSON lines.')
flags.DEFINE_bool("chat", False, "A conversation: a message a line of stdin; /reset forgets it, /exit ends.")
flags.DEFINE_string("out", None, "File of JSON lines: prompt, completion, and all settings that it depends on.")
flags.DEFINE_integer("max_new_tokens", 256, "Most new tokens of a text.", lower_bound=1)
flags.DEFINE_float("temperature", 0.0, "Divides the logits before a token is drawn; 0 takes the most likely token.")
flags.DEFINE_integer("top_k", 0, "Draws from this many of the most likely tokens; 0: from all.")
flags.DEFINE_float("top_p", 1.0, "Draws from the most likely tokens that together reach this probability.")
flags.DEFINE_float(
    "min_p", 0.0, "Draws from tokens that have at least this fraction of the most likely one's probability."
)
flags.DEFINE_float(
    "repetition_penalty", 1.0, "Divides positive logits of tokens that the row already has; multiplies negative ones."
)
flags.DEFINE_integer("beams", 0, "Beam search with so many; 0: a text is written token by token.")
flags.DEFINE_float("length_penalty", 1.0, "p of a beam's score, log-likelihood / tokens^p; above 0 favours long texts.")
flags.DEFINE_integer("no_repeat_ngram", 0, "No so many tokens in a row stand twice, prompt included; 0: any.", 0)
flags.DEFINE_integer("seed", 0, "Seed of the draws; those of a row depend on it and on the row's number alone.")
flags.DEFINE_multi_string("stop", [], "A string that ends a text and is left out of it; may be given several times.")
flags.DEFINE_integer("batch_size", 16, "Prompts of --file at a time.", lower_bound=1)
flags.DEFINE_string("system", "", "A system message before the user's.")
flags.DEFINE_string(
    "chat_template", "", "A chat template: its name (chatml, ...), own for the tokenizer's, or none for plain texts."
)
flags.DEFINE_bool(
    "bos", None, "Whether texts begin with BOS; by default as in the run's training, or as the tokenizer does."
)
FLAGS = flags.FLAGS
ALONE = ("chat", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")  # not with --beams
SOURCES, MODES = ("run", "base"), ("prompt", "file", "chat")


def main(_) -> int:
    """Runs `write`; returns the exit status, INTERRUPTED after Ctrl-C."""
    try:
        write()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    return 0


def write() -> None:
    """Loads the model and continues the prompts."""
    _check_flags()
    start_devices()
    # Imported after the flags are parsed: --help and a wrong flag answer at once.
    from experiments.generation.chat import converse
    from experiments.generation.framing import make_framing
    from experiments.generation.model import of_base, of_run
    from experiments.generation.write import Author, json_line, open_out, write_file
    from lowrank_jax.data.prompts import Asked, read_prompts
    from lowrank_jax.decoding.stream import BeamStreamer, Streamer

    # ---- all that can be known to be wrong before the weights are read ----
    (how, beams), stops = _settings(), tuple(FLAGS.stop)
    asked = read_prompts(FLAGS.file) if FLAGS.file else [Asked(FLAGS.prompt or "")]
    messages = FLAGS.chat or any(one.messages for one in asked)

    if FLAGS.run:
        model = of_run(FLAGS.run, FLAGS.dtype, FLAGS.weights)
    else:
        model = of_base(FLAGS.base, FLAGS.adapter, FLAGS.dtype or "float32", FLAGS.weights)
    framing = make_framing(model, FLAGS.chat_template, FLAGS.bos, FLAGS.system, messages)
    if framing.said and not FLAGS.chat:
        print(framing.said, file=sys.stderr)
    reads = (model.decoder, model.base.tokenizer, model.positions)
    streamer = Streamer(*reads, stops) if beams is None else BeamStreamer(*reads, beams)
    ends = tuple(dict.fromkeys((*model.end_ids, *framing.end_ids())))
    author = Author(model, framing, streamer, how, FLAGS.max_new_tokens, stops, ends, FLAGS.no_repeat_ngram)
    with contextlib.ExitStack() as opened:
        opened.enter_context(interrupts.tidied())  # the terminal's state at the prompt of a chat, the file of --out
        out = open_out(FLAGS.out, FLAGS.file)
        if out is not None:
            opened.enter_context(out)
        if FLAGS.chat:
            converse(author, out)
        elif FLAGS.file:
            write_file(author, asked, FLAGS.batch_size, out or sys.stdout)
            if out is not None:
                print(f"{len(asked)} completions in {FLAGS.out}")
        else:
            prompt = framing.ids(asked[0])
            limits = author.limits([prompt])
            piece = author.say(prompt, 0, limits)
            if out is not None:
                json_line(author.record(asked[0], piece, 0, limits), out)


def _check_flags() -> None:
    for names, example in ((SOURCES, "--run=runs/NAME"), (MODES, '--prompt="..."')):
        given = [name for name in names if FLAGS[name].value not in (None, False)]
        listed = ", ".join(f"--{name}" for name in names)
        if len(given) != 1:
            raise UserError(f"give one of {listed}, e.g. {example}" + (f"; there are {len(given)}" if given else ""))
    if FLAGS.adapter and FLAGS.run:
        raise UserError("--adapter goes with --base; a run has its own")
    other = next((name for name in ALONE if FLAGS[name].value != FLAGS[name].default), None)
    if FLAGS.beams and other:
        raise UserError(f"--{other} does not go with --beams, which looks for the likeliest text; leave one out")
    if FLAGS["length_penalty"].present and not FLAGS.beams:
        raise UserError("--length_penalty is of beams; add --beams=10, say")


def _settings() -> tuple[Any, Any]:
    """How tokens are chosen, and how beams are kept (None without any), from the flags."""
    from lowrank_jax.decoding.beam import Beams
    from lowrank_jax.decoding.choice import Sampling
    from lowrank_jax.decoding.text import check_stops

    check_stops(FLAGS.stop)
    how = from_flags(Sampling, "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    return how, from_flags(Beams, "beams", "length_penalty") if FLAGS.beams else None


if __name__ == "__main__":
    launch(main)
