"""Tables inside documents, between markers: written again from the records, with the rest left unchanged.

    <!-- table: mora_table2 --scale=laptop -->
    <!-- end -->

Markers start their line, outside fenced code; the text between them is replaced.
"""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from lowrank_jax.core.errors import UserError

START, END = re.compile(r"<!-- table: (.*?) -->\s*"), "<!-- end -->"
FENCES = ("```", "~~~")


def write_all(root: Path, table_of: Callable[[list[str]], str]) -> list[Path]:
    """Writes the tables of README.md and docs/*.md; returns the files that changed, below `root`.

    Raises:
      UserError: a marker without its end, or words that name no table; then no file is changed.
    """
    files = [path for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if path.is_file()]
    old = {path: path.read_text(encoding="utf-8") for path in files}
    new = {path: written(text, table_of, str(path.relative_to(root))) for path, text in old.items()}
    changed = [path for path in files if new[path] != old[path]]
    for path in changed:
        path.write_text(new[path], encoding="utf-8")
    return [path.relative_to(root) for path in changed]


def written(text: str, table_of: Callable[[list[str]], str], name: str = "the document") -> str:
    """A document's text with its tables written again.

    Args:
      table_of: Markdown of a marker's words, ["mora_table2", "--scale=laptop"].
      name: for messages.

    Raises:
      UserError: as `write_all`.
    """
    lines, marker, fence, place = [], None, None, 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        bare = line.strip()
        if marker is not None:
            if bare == END:
                lines += ["\n", _table(marker, table_of, f"{name}, line {place}"), "\n\n", line]
                marker = None
            elif START.fullmatch(line):
                raise UserError(f"{name}, line {place}: the table's marker has no {END} before the next one")
            continue
        lines.append(line)
        if fence:
            fence = None if bare.startswith(fence) else fence
        elif bare.startswith(FENCES):
            fence = bare[:3]
        elif found := START.fullmatch(line):
            marker, place = found[1], number
    if marker is not None:
        raise UserError(f"{name}, line {place}: the table's marker has no {END}")
    return "".join(lines)


def _table(marker: str, table_of: Callable[[list[str]], str], where: str) -> str:
    try:
        return table_of(shlex.split(marker))
    except (UserError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
