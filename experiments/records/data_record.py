"""Digests of the data that a run is trained on, in config.json's "data", and checks that they are still the same."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError

TOKENIZER_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer.model", "spm.model",
)  # fmt: skip
CHAT_FILES = (
    "chat_template.jinja",
    "chat_template.json",
)  # with a digest of their own, as earlier records have none of them
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
REMEDY = "choose another --name, or --fresh to delete that run"


class DataChanged(UserError):
    """A run's data are no longer those it was trained on."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One source that a config names and that is read from disk.

    Attributes:
      key: its key in the record.
      name: its name in messages.
      files: its files; their stamps tell whether `digest` must be computed again.
      digest: reads it.
      resumes: whether it is compared when a run is resumed; False for the base's fingerprint, which the run then
        compares.
    """

    key: str
    name: str
    files: tuple[Path, ...]
    digest: Callable[[], str]
    resumes: bool = True


def sources(plain: Mapping[str, Any]) -> Iterator[Source]:
    """Every source of a plain config whose content could change under the same name."""
    task = plain.get("task") or {}
    if task.get("name") == "text":
        yield from _text(task)
    elif task.get("name") == "glue":
        yield from _glue(task.get("task", "cola"), task.get("data_dir"))
    elif task.get("name") == "mnli":
        from lowrank_jax.tasks.mnli import TASK, splits_of

        yield from _glue(TASK, task.get("data_dir"), splits_of(task.get("dev", "matched")))
    elif task.get("name") == "nlg":
        yield from _nlg(task)
    for name, entry in (plain.get("evals") or {}).items():
        if isinstance(entry, dict) and entry.get("type") == "forgetting":
            yield from _rows(f"evals.{name}.path", entry.get("path"))
    yield from _exams(plain.get("evals") or {})
    if adapter := (plain.get("start") or {}).get("adapter"):
        yield _adapter(Path(adapter))
    yield from _base(plain.get("base") or {})


def make(
    plain: Mapping[str, Any], earlier: Mapping[str, Any] | None = None, known: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The record of a config's data: {key: {"sha256", "files": [[name, bytes, mtime_ns], ...]}}; {} where none is read.

    Sources that do not exist are left out: the code that needs them raises an error.

    Args:
      earlier: a record whose digests are reused where all stamps are unchanged.
      known: key -> digest of the sources already read; see `of_task`.

    Raises:
      UserError: a file is damaged.
    """
    from lowrank_jax.data.digest import stamp

    record = {}
    for source in sources(plain):
        try:
            stamps = [stamp(path) for path in source.files]
            there = (earlier or {}).get(source.key) or {}
            if (digest := (known or {}).get(source.key)) is None:
                digest = there["sha256"] if stamps and there.get("files") == stamps else source.digest()
        except OSError:
            continue
        record[source.key] = {"sha256": digest, "files": stamps}
    return record


def stamps(plain: Mapping[str, Any]) -> dict[str, Any]:
    """key -> stamps before the sources are read, for `check_still`."""
    from lowrank_jax.data.digest import stamp

    found = {}
    for source in sources(plain):
        with contextlib.suppress(OSError):
            found[source.key] = [stamp(path) for path in source.files]
    return found


def check_still(plain: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Checks that no source changed while it was read, before digests are taken.

    Raises:
      UserError: a file has changed since `before`.
    """
    now = stamps(plain)
    for source in sources(plain):
        if source.key in before and now.get(source.key) != before[source.key]:
            raise UserError(f"{source.name} changed while it was read; run again when it is whole")


def of_task(task: Any) -> dict[str, str]:
    """key -> digest of the data that a built task has read."""
    return {f"task.{split}": digest for split, digest in getattr(task, "contents", {}).items()}


def check(
    plain: Mapping[str, Any],
    earlier: Mapping[str, Any],
    now: Mapping[str, Any],
    ended: bool,
    where: str,
    remedy: str = REMEDY,
) -> None:
    """Compares the records of one run.

    Args:
      earlier: the record of the run's training.
      now: that of the config's present data.
      ended: the run has ended; otherwise it is to be resumed.
      where, remedy: the run and what to do, for the message.

    Raises:
      DataChanged: contents differ; names the first.
    """
    for source in sources(plain):
        then, found = earlier.get(source.key), now.get(source.key)
        if then and found and then["sha256"] != found["sha256"] and (ended or source.resumes):
            raise DataChanged(
                f"{where} was trained on other data: the contents of {source.name} have changed since; {remedy}"
            )


def check_digests(record: Any, where: str, remedy: str) -> None:
    """Refuses a record of data that lacks its digests; None, where there is no record, passes.

    Raises:
      UserError: names the first source without a digest.
    """
    if record is not None and not isinstance(record, dict):
        raise UserError(f"{where}: its data is a {type(record).__name__}, not an object; {remedy}")
    for key, one in (record or {}).items():
        if not isinstance(one, dict) or not isinstance(one.get("sha256"), str):
            raise UserError(f"{where}: its data.{key} has no sha256; {remedy}")


def unknown(plain: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """Names of a resumed run's sources without digests: its folder is older than digests."""
    return [source.name for source in sources(plain) if source.resumes and source.key not in earlier]


def _text(task: Mapping[str, Any]) -> Iterator[Source]:
    for field in ("path", "validation_path"):
        yield from _rows(f"task.{field}", task.get(field), lazy=field == "path" and bool(task.get("lazy")))


def _rows(field: str, given: str | Sequence[str] | None, lazy: bool = False) -> Iterator[Source]:
    """The sources of a user's rows that a field of the config names; `lazy`: read when they are needed."""
    from lowrank_jax.data.digest import content_digest
    from lowrank_jax.data.lazy import lazy_digest
    from lowrank_jax.data.rows import source_digest
    from lowrank_jax.data.sources import data_files, is_named

    for number, name in enumerate([given] if isinstance(given, str) else given or ()):
        if not name:
            continue
        if is_named(name):
            yield Source(f"{field}.{name}", name, (), functools.partial(lazy_digest if lazy else source_digest, name))
            continue
        key, files = f"{field}.{number}", tuple(data_files(name))
        if files == (path := Path(name),):
            yield Source(key, name, files, functools.partial(content_digest, path))
        else:
            yield Source(key, f"the data files in {name}", files, functools.partial(_joined, files, content_digest))


def _glue(name: str, folder: str | None, splits: Sequence[str] | None = None) -> Iterator[Source]:
    """The files of a GLUE data set; `splits` are those that are read, None: all."""
    from lowrank_jax.data.builders.glue.source import load_glue, split_files
    from lowrank_jax.data.builders.glue.specs import GLUE

    for split in splits or (GLUE[name].splits if name in GLUE else ()):
        files = tuple(split_files(name, split, folder))
        if files:

            def digest(split=split):
                return load_glue(name, split, folder, allow_partial=True)[0].digest()

            yield Source(f"task.{split}", ", ".join(map(str, files)), files, digest)


def _nlg(task: Mapping[str, Any]) -> Iterator[Source]:
    from lowrank_jax.data.builders.nlg.rows import rows_digest
    from lowrank_jax.data.builders.nlg.source import load_nlg, split_files
    from lowrank_jax.data.builders.nlg.specs import DEV, NLG, TRAIN

    name, folder = task.get("task", "e2e"), task.get("data_dir")
    if name not in NLG:
        return
    for split in dict.fromkeys((TRAIN, DEV, task.get("decoded") or NLG[name].decoded)):
        files = tuple(split_files(name, split, folder))
        if files:

            def digest(split=split):
                return rows_digest(load_nlg(name, split, folder, allow_partial=True)[0])

            yield Source(f"task.{split}", ", ".join(map(str, files)), files, digest)


def _exams(evals: Mapping[str, Any]) -> Iterator[Source]:
    """The exams of evaluations, each with the rows that its examples come from."""
    from lowrank_jax.data.builders.exams.source import EXAMS, exam_digest, exam_files

    for name, entry in evals.items():
        task, folder = (entry.get(key) if isinstance(entry, Mapping) else None for key in ("task", "data_dir"))
        if not isinstance(task, str) or task not in EXAMS:
            continue
        splits = dict.fromkeys([entry.get("split") or EXAMS[task].scored])
        splits |= dict.fromkeys([EXAMS[task].shots] if entry.get("shots") else [])
        files = tuple(file for split in splits for file in exam_files(task, split, folder))
        if files:

            def digest(task=task, splits=tuple(splits), folder=folder):
                return exam_digest(task, splits, folder)

            yield Source(f"evals.{name}", ", ".join(map(str, dict.fromkeys(files))), files, digest)


def _adapter(folder: Path) -> Source:
    def digest():
        from lowrank_jax.checkpoints.adapters_only import load_adapter

        return load_adapter(folder)[2]["sha256"]

    return Source("start.adapter", f"start.adapter {folder}", (folder / "adapter.json",), digest)


def _base(base: Mapping[str, Any]) -> Iterator[Source]:
    """A local base: its tokenizer's and config's files, and its weights (compared by fingerprint)."""
    from lowrank_jax.bases.locate import KNOWN, SHIPPED
    from lowrank_jax.data.digest import content_digest, sampled_digest

    name = base.get("name") or ""
    path = Path(name).expanduser()
    if not name or base.get("random_init") or name == SHIPPED or name in KNOWN or not path.exists():
        return
    if not path.is_dir():
        yield Source("base.weights", f"base {name}", (path,), functools.partial(sampled_digest, path))
        return
    for key, digest, patterns in (
        ("tokenizer", content_digest, TOKENIZER_FILES),
        ("chat_template", content_digest, CHAT_FILES),
        ("weights", sampled_digest, WEIGHT_FILES),
    ):
        files = tuple(sorted(file for pattern in patterns for file in path.glob(pattern)))
        if files:
            words = {"tokenizer": "config or tokenizer", "chat_template": "chat template"}.get(key, key)
            yield Source(
                f"base.{key}",
                f"the {words} in {name}",
                files,
                functools.partial(_joined, files, digest),
                key != "weights",
            )


def _joined(files: tuple[Path, ...], digest: Callable[[Path], str]) -> str:
    listed = [[file.name, digest(file)] for file in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def check_shared(plains: Sequence[dict], names: Sequence[str], lead: int, known: dict) -> None:
    """Makes sure that the trials' configs name one set of data, by content, which the lead's task has read.

    Raises:
      UserError: names a trial that names other data.
    """
    first = make(plains[lead], known=known)
    for name, plain in zip(names, plains, strict=True):
        other = make(plain, earlier=first)
        if wrong := [key for key in first if other.get(key, first[key])["sha256"] != first[key]["sha256"]]:
            raise UserError(
                f"{name} and {names[lead]} cannot share a program: {wrong[0]} differs by content; run them separately"
            )
