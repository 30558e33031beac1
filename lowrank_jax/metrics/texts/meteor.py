"""METEOR 1.5 by its jar, which pycocoevalcap contains, in up to PROCESSES Java processes."""

import contextlib
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor

from lowrank_jax.metrics.texts.java import jar, java
from lowrank_jax.metrics.texts.processes import ProgramFailed, processors
from lowrank_jax.metrics.texts.rows import Texts

JAR = "meteor/meteor-1.5.jar"
TEXTS = 4000  # references a process, which takes 7 s to start and up to 2 GB
PROCESSES = 4  # most at a time


def meteor(words: Texts) -> float:
    """METEOR over all rows, 0 to 1, of texts whose words are split by spaces.

    Raises:
      NoJava: this machine has none.
      ProgramFailed: the program ended early.
    """
    rows = list(zip(words.predictions, words.references, strict=True))
    texts = sum(len(row) for row in words.references)
    count = max(1, min(PROCESSES, processors(), texts // TEXTS, len(rows)))
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(Program()) for _ in range(count)]
        with ThreadPoolExecutor(count, "meteor") as pool:
            parts = list(pool.map(lambda i: programs[i].statistics(rows[i::count]), range(count)))
        return programs[0].total([line for part in parts for line in part])


class Program:
    """The jar as a running process: asked for each row's counts of matches, then for the score of all of them.

    Its protocol is a line in, a line out: "SCORE ||| reference ||| ... ||| prediction" is answered by counts, and
    "EVAL ||| counts ||| ..." by each row's score, a line each, and then that of all.
    """

    def __enter__(self) -> "Program":
        command = [
            java(),
            "-Dfile.encoding=UTF-8",
            "-Xmx2G",
            "-jar",
            str(jar(JAR)),
            "-",
            "-",
            "-stdio",
            "-l",
            "en",
            "-norm",
        ]
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, encoding="utf-8"
        )
        return self

    def __exit__(self, *exception):
        self._process.kill()
        with contextlib.suppress(OSError):  # lines that wait to be written, and the process has ended
            self._process.communicate()
        self._said.close()

    def statistics(self, rows: list[tuple[str, list[str]]]) -> list[str]:
        """The counts of matches of each row (prediction, references)."""
        found = []
        for prediction, references in rows:
            parts = [text.replace("|||", "") for text in (*references, prediction)]
            self._send("SCORE ||| " + " ||| ".join(parts))
            found.append(self._answer())
        return found

    def total(self, statistics: list[str]) -> float:
        """The score of all rows together."""
        self._send(" ||| ".join(["EVAL", *statistics]))
        for _ in statistics:
            self._answer()
        return float(self._answer())

    def _send(self, line: str):
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._fail()
        return line.strip()

    def _fail(self):
        self._said.seek(0)
        raise ProgramFailed("METEOR", self._process.wait(), self._said.read().decode(errors="replace"))
