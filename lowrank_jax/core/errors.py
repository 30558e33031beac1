"""`UserError`, for faults that a user can fix, and `front_door`, which ends a program with one line for them."""

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator

from lowrank_jax.core.shortage import ELSEWHERE, REMEDIES, asked, is_short

MENDABLE = 2  # exit status of a program that ends in a fault which its user can fix
LOST = 75  # of a program that lost another process or a sweep's root; EX_TEMPFAIL of sysexits.h, "try again"
INTERRUPTED = 130  # of a program that Ctrl-C ended, or that a signal stopped after it had saved its state
ENDED = "interrupted"  # what is said of it
PIPE_CLOSED = 141  # what a shell shows for a program that SIGPIPE ended, as when `| head` has read enough
# Errors of the system about a file's path, permissions, name or disk; any other may be a fault of ours.
PLACES = frozenset(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP)
    + (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ENXIO, errno.ESTALE)
)
REASON = 160  # most characters of another library's message inside one of ours
SHOWN = 4_000  # most characters of a message: it may contain a wrong value of a megabyte


class UserError(Exception):
    """Something outside the code is wrong: a config value, a file, a shape, a device.

    `experiments.run` prints its message as one line and exits with `status`; a traceback is for our own faults.

    Attributes:
      sections: of a run's config, which alone decide that the error is raised; () where that is not known.
      here: whether the error is of this machine at this time: elsewhere the same run may have enough memory.
      machine: whether every run on this machine ends with it: it lacks a library.
    """

    status = MENDABLE
    sections: tuple[str, ...] = ()
    here = False
    machine = False


@contextlib.contextmanager
def decided_by(*sections: str) -> Iterator[None]:
    """Marks the UserErrors of a block as of these sections of a run's config."""
    try:
        yield
    except UserError as error:
        error.sections = sections
        raise


def one_line(error: Exception) -> str:
    """The first REASON characters of another library's message on one line, or its class where it has none."""
    return " ".join(str(error).split())[:REASON] or type(error).__name__


def report(error: UserError) -> int:
    """Prints the error's one line to stderr and returns the exit status of such faults."""
    line = " ".join(str(error).splitlines())
    print(f"error: {line if len(line) <= SHOWN else f'{line[:SHOWN]}...'}", file=sys.stderr)
    return error.status


@contextlib.contextmanager
def memory_named(what: str, remedy: str = REMEDIES) -> Iterator[None]:
    """Within it a lack of memory is an error that its user can fix.

    Args:
      what: is under way, for the message.
      remedy: what to do about it.

    Raises:
      UserError: memory was short; says how much was asked for.
    """
    try:
        yield
    except Exception as error:
        if not is_short(error):
            raise
        more = asked(error)
        said = f"{more} more were asked for than are left" if more else one_line(error)
        short = UserError(f"out of memory in {what}: {said}; {remedy}")
        short.here = True
        raise short from error


@contextlib.contextmanager
def front_door() -> Iterator[None]:
    """Around a whole program: ends it with one line and status 2 where its user can fix what is wrong.

    That is a UserError, a lack of memory, or one of the system's errors in PLACES. After Ctrl-C the line is ENDED, with
    the status INTERRUPTED. Where nobody reads stdout any more (`| head`), the program ends quietly. Everything else is
    a fault of ours and keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name may hold what the terminal cannot show
    try:
        try:
            with memory_named("this program", ELSEWHERE):
                yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here rather than at the interpreter's end, where a closed pipe cannot be answered
    except UserError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        print(ENDED, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        if not _reader_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to be flushed goes nowhere
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        if error.filename is None or error.errno not in PLACES:
            raise
        sys.exit(report(UserError(f"cannot use {os.fsdecode(error.filename)}: {error.strerror}")))


def _reader_gone() -> bool:
    """Whether the broken pipe is stdout, rather than another pipe of the program's."""
    try:
        out = sys.stdout.fileno()
    except (OSError, ValueError):  # it is no file, or closed
        return False
    poll = select.poll()
    poll.register(out, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
