"""Scores a benchmark's generated texts by all its metrics, and says why one could not be computed."""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

from lowrank_jax.core.errors import UserError, one_line
from lowrank_jax.metrics.texts import bleu, chrf, coco, forms, meteor, nist, ptb, rouge, ter
from lowrank_jax.metrics.texts.java import NoJava
from lowrank_jax.metrics.texts.rows import Texts, check

log = logging.getLogger(__name__)
# Of a row in LoRA's evaluation of WebNLG and DART, which leaves out the others. It repeats the first reference of a row
# that has fewer, which changes none of the metrics.
REFERENCES = 6
Jobs = dict[str, Callable[[], float | Future[float]]]  # by the metric's name; the slowest are started first


@dataclass(frozen=True)
class Scores:
    """Metrics by name: `values` that were computed, and `missing`, which says of each of the others why not."""

    values: dict[str, float]
    missing: dict[str, str]


def score(
    kind: str, predictions: Sequence[str], references: Sequence[Sequence[str]], known_ter: ter.Known | None = None
) -> Scores:
    """All metrics of a benchmark, in the units of LoRA's tables; docs/reproducing.md says how each is computed.

    "e2e": bleu, meteor and rouge_l in percent, nist, cider. bleu and nist are those of mteval-v13a;
    bleu_python and nist_python those of `measure_scores.py -p`, which LoRA's authors ran.
    "webnlg", "dart": bleu in percent; meteor, ter and chrf as fractions (of ter, less is better). Texts are put in
    lower case and split at punctuation, and the first six references of a row count, as in LoRA's evaluation.
    "samsum": rouge1, rouge2 and rouge_l in percent.

    METEOR, ROUGE-L and CIDEr need Java; the libraries are the extra [nlg]. What cannot be computed is in `missing`
    and stops nothing.

    Args:
      kind: "e2e", "webnlg", "dart" or "samsum".
      predictions: one text a row; may be empty.
      references: one or more texts a row. An empty one counts as the official scripts of WebNLG and DART count it,
        as long as the row has another; the other benchmarks have none.
      known_ter: a dict that calls with common rows share. It keeps the TER of each row, by far the slowest metric, so
        that it is computed once.

    Raises:
      UserError: an unknown kind; or rows that cannot be scored, named by their number, of which the first is 1.
    """
    if kind not in KINDS:
        raise UserError(f"no benchmark {kind!r} of generated texts: one of {', '.join(KINDS)}")
    benchmark = KINDS[kind]
    if benchmark is _triples:
        texts = check(predictions, references, empty_references=True, most=REFERENCES)
    else:
        texts = check(predictions, references)
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    waited_for: dict[str, Future[float]] = {}

    def record(name: str, job: Callable[[], float | Future[float]]):
        try:
            found = job()
        except Exception as error:  # of any library: hours of training are not lost for a metric
            missing[name] = f"not computed: {_reason(error)}"
            return
        if isinstance(found, Future):
            waited_for[name] = found
        elif math.isfinite(found):
            values[name] = found
        else:
            missing[name] = "not computed: by the official formula it is not a number"

    # Only what waits for other processes has a thread: two threads that import parts of sacrebleu can deadlock.
    with ThreadPoolExecutor(thread_name_prefix="metrics") as pool:
        jobs = benchmark(texts, pool, known_ter)
        for name, job in jobs.items():
            record(name, job)
        for name, future in waited_for.items():
            record(name, future.result)
    return Scores({name: values[name] for name in jobs if name in values}, missing)


def _e2e(texts: Texts, pool: Executor, known_ter: ter.Known | None) -> Jobs:
    words = functools.cache(lambda: ptb.tokenize(texts))
    both_bleus = functools.cache(lambda: bleu.e2e(texts))
    both_nists = functools.cache(lambda: nist.nist(texts))
    return {
        "meteor": lambda: pool.submit(lambda words: 100 * meteor.meteor(words), words()),
        "bleu": lambda: both_bleus()["bleu"],
        "bleu_python": lambda: both_bleus()["bleu_python"],
        "nist": lambda: both_nists()["nist"],
        "nist_python": lambda: both_nists()["nist_python"],
        "rouge_l": lambda: 100 * coco.rouge_l(words()),
        "cider": lambda: coco.cider(words()),
    }


def _triples(texts: Texts, pool: Executor, known_ter: ter.Known | None) -> Jobs:
    texts = forms.split_lower(texts)
    words = functools.cache(lambda: forms.nltk_words(texts))
    return {
        "meteor": lambda: pool.submit(meteor.meteor, words()),
        "ter": lambda: pool.submit(ter.ter, words(), known_ter),
        "bleu": lambda: bleu.multi_bleu(texts),
        "chrf": lambda: chrf.chrf(texts),
    }


def _samsum(texts: Texts, pool: Executor, known_ter: ter.Known | None) -> Jobs:
    scores = functools.cache(lambda: rouge.rouge(texts))
    return {
        "rouge1": lambda: 100 * scores()["rouge1"],
        "rouge2": lambda: 100 * scores()["rouge2"],
        "rouge_l": lambda: 100 * scores()["rouge_l"],
    }


KINDS = {"e2e": _e2e, "webnlg": _triples, "dart": _triples, "samsum": _samsum}


def _reason(error: Exception) -> str:
    if isinstance(error, NoJava):
        return "needs Java"
    if isinstance(error, ImportError):
        return f"needs {(error.name or one_line(error)).split('.')[0]}: install the extra [nlg]"
    log.warning("a metric failed", exc_info=error)
    return one_line(error)
