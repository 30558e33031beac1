"""Penn Treebank words without punctuation, as COCO's caption metrics read texts; by Stanford's tokenizer, in Java."""

import subprocess

from lowrank_jax.metrics.texts.java import jar, java
from lowrank_jax.metrics.texts.processes import ProgramFailed
from lowrank_jax.metrics.texts.rows import Texts

JAR = "tokenizer/stanford-corenlp-3.4.1.jar"


def tokenize(texts: Texts) -> Texts:
    """The words in lower case, joined by spaces.

    pycocoevalcap's own wrapper of the program writes a file into site-packages; here the texts go through a pipe.

    Raises:
      NoJava: this machine has none.
      ProgramFailed: the tokenizer ended early.
    """
    program = [java(), "-cp", str(jar(JAR)), "edu.stanford.nlp.process.PTBTokenizer"]
    lines = [*texts.predictions, *(text for row in texts.references for text in row)]
    done = subprocess.run(
        [*program, "-encoding", "UTF-8", "-preserveLines", "-lowerCase"],
        input="\n".join(lines),
        capture_output=True,
        encoding="utf-8",
    )
    found = done.stdout.split("\n")
    if done.returncode or len(found) != len(lines):
        raise ProgramFailed("Stanford's tokenizer", done.returncode, done.stderr)
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    left_out = set(PUNCTUATIONS)
    words = iter(" ".join(word for word in line.split() if word not in left_out) for line in found)
    return Texts([next(words) for _ in texts.predictions], [[next(words) for _ in row] for row in texts.references])
