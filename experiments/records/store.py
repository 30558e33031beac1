"""Small objects that several workers share, each created only if absent: in a folder, or in a bucket through fsspec."""

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from lowrank_jax.core.errors import UserError, one_line

TRIES = 5  # of an operation that fails; the pauses between them double from PAUSE_SECONDS, 7.5 s in all
PAUSE_SECONDS = 0.5
PROBE = "probe"
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # protocol -> extra of setup.py
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class StoreError(UserError):
    """The root cannot be reached or written at present."""


class Files(Protocol):
    """The operations that a root needs of a file system; names are relative to the root, with slashes.

    An operation that raises anything but FileExistsError or FileNotFoundError may or may not have been done.
    """

    def create(self, name: str, content: bytes) -> None:
        """Creates it with its whole content, in one step; raises FileExistsError where the name is taken."""

    def replace(self, name: str, content: bytes) -> None:
        """Writes it, over an earlier one."""

    def read(self, name: str) -> bytes:
        """Its content; raises FileNotFoundError where there is none."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names of everything below a folder, relative to the root."""
        ...


class Folder:
    """A plain folder. A file gets its name by a hard link, which fails where the name is taken, on NFS too.

    Raises:
      UserError: the file system has no hard links.
    """

    def __init__(self, path: Path):
        self.path = path

    def create(self, name: str, content: bytes) -> None:
        """See `Files`."""
        partial = self._partial(name, content)
        try:
            os.link(partial, self.path / name)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            raise UserError(f"{self.path} has no hard links, by which claims are made; use another --root") from error
        finally:
            partial.unlink()

    def replace(self, name: str, content: bytes) -> None:
        """See `Files`."""
        os.replace(self._partial(name, content), self.path / name)

    def read(self, name: str) -> bytes:
        """See `Files`."""
        return (self.path / name).read_bytes()

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        found = (Path(place, name) for place, _, files in os.walk(self.path / folder) for name in files)
        return sorted(str(path.relative_to(self.path)) for path in found if path.suffix != ".tmp")

    def _partial(self, name: str, content: bytes) -> Path:
        partial = self.path / f"{name}.{uuid.uuid4().hex}.tmp"
        partial.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return partial


class Bucket:
    """A bucket's prefix through fsspec: `pipe_file(mode="create")` is If-None-Match on S3, ifGenerationMatch=0 on GCS.

    Args:
      files: an fsspec file system.
      path: of the root in it.
    """

    def __init__(self, files: Any, path: str):
        self.files, self.path = files, path.rstrip("/")

    def create(self, name: str, content: bytes) -> None:
        """See `Files`."""
        self.files.pipe_file(f"{self.path}/{name}", content, mode="create")

    def replace(self, name: str, content: bytes) -> None:
        """See `Files`."""
        self.files.pipe_file(f"{self.path}/{name}", content)

    def read(self, name: str) -> bytes:
        """See `Files`."""
        return self.files.cat_file(f"{self.path}/{name}")

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        self.files.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            found = self.files.find(f"{self.path}/{folder}")
            return sorted(str(name).partition(f"{self.path}/")[2] for name in found)
        return []


class Store:
    """Operations on a root's objects, each tried again while the root cannot be reached.

    Args:
      url: as the user gave it, for messages.
      files: by default those of the url.
    """

    def __init__(self, url: str, files: Files | None = None):
        self.url = url
        self.files = files or files_of(url)

    def create(self, name: str, content: bytes) -> bool:
        """Creates an object if there is none; returns whether this call did.

        An attempt that failed may have been carried out, and fsspec repeats requests by itself: whether the object is
        this call's is told by its content, which must be like no other worker's.

        Raises:
          StoreError: the root cannot be reached, or it cannot be known who made the object.
        """

        def attempt() -> bool:
            try:
                self.files.create(name, content)
                return True
            except UserError:
                raise
            except Exception:  # each library has its own
                with contextlib.suppress(FileNotFoundError):
                    return self.files.read(name) == content
                raise

        return self._again(attempt)

    def replace(self, name: str, content: bytes) -> None:
        """Writes an object, over an earlier one.

        Raises:
          StoreError: the root cannot be reached.
        """
        self._again(lambda: self.files.replace(name, content))

    def read(self, name: str) -> bytes | None:
        """An object's content; None where there is none.

        Raises:
          StoreError: the root cannot be reached.
        """

        def attempt() -> bytes | None:
            try:
                return self.files.read(name)
            except FileNotFoundError:
                return None

        return self._again(attempt)

    def names(self, folder: str) -> Sequence[str]:
        """Names of the objects below a folder, sorted, relative to the root.

        Raises:
          StoreError: the root cannot be reached.
        """
        return self._again(lambda: self.files.names(folder))

    def probe(self) -> None:
        """Makes sure that the root refuses to create an object twice.

        Raises:
          UserError: it cannot be written, or it writes over what is there: claims would not hold.
        """
        self.create(PROBE, uuid.uuid4().hex.encode())  # another worker may have made it
        if self.create(PROBE, uuid.uuid4().hex.encode()):
            raise UserError(
                f"--root={self.url} writes over an object that was to be created only if absent (a server without "
                "If-None-Match?); claims would not hold there: use another"
            )

    def _again(self, action: Callable[[], Any]) -> Any:
        for attempt in range(TRIES):
            try:
                return action()
            except UserError:
                raise
            except Exception as error:
                if attempt == TRIES - 1:
                    raise StoreError(f"--root={self.url} cannot be used ({one_line(error)}); check it") from error
            time.sleep(PAUSE_SECONDS * 2**attempt)
        return None


def files_of(url: str) -> Files:
    """The files at a root: a folder's path, or PROTOCOL://BUCKET/PREFIX.

    Raises:
      UserError: no such protocol, or its extra is not installed.
    """
    protocol, there, rest = url.partition("://")
    if not there or protocol == "file":
        path = Path(rest if there else url).expanduser().absolute()
        if path.exists() and not path.is_dir():
            raise UserError(f"--root={url} is not a folder; name a folder, or gs://BUCKET/PREFIX or s3://BUCKET/PREFIX")
        return Folder(path)
    if not rest.strip("/"):
        raise UserError(f"--root={url} names no bucket; write {protocol}://BUCKET/PREFIX")
    import fsspec  # takes 0.1 s; huggingface_hub brings it

    try:
        files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError:
        extra = EXTRAS.get(protocol)
        remedy = f"pip install 'lowrank_jax[{extra}]'" if extra else "install fsspec's package for it"
        raise UserError(f"--root={url} needs a package that is not installed; {remedy}") from None
    except ValueError as error:
        raise UserError(f"--root={url}: {one_line(error)}; use a folder, gs:// or s3://") from None
    return Bucket(files, path)
