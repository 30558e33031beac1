"""Python's answer to a lost process, in place of jaxlib's: its coordination client prints a stack and aborts."""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator

BAD_CAST = b"St8bad_cast"  # the name of std::bad_cast's type_info
_kept: list = []  # C++ holds pointers to these for as long as the process lives


@contextlib.contextmanager
def told(answer: Callable[[], None]) -> Iterator[None]:
    """Within, jax.distributed.initialize connects a client that calls `answer` when it has lost the others.

    jaxlib takes a `missed_heartbeat_callback`, for which jax has no argument. It calls it from a C++ thread with an
    absl::Status, which jaxlib 0.10 and 0.11 cannot turn into a Python value: std::bad_cast, which nobody catches, ends
    in std::terminate. Its handler is ours, and calls `answer` too. Where that handler cannot be set (no libstdc++),
    jaxlib's own abort stays.

    Args:
      answer: ends the process; called at most once a thread, from a thread that may not use the client.
    """
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    if not _terminate_is(answer):
        yield
        return
    make = _jax.get_distributed_runtime_client
    callback = lambda *_: answer()  # noqa: E731
    _jax.get_distributed_runtime_client = functools.partial(make, missed_heartbeat_callback=callback)
    try:
        yield
    finally:
        _jax.get_distributed_runtime_client = make


def _terminate_is(answer: Callable[[], None]) -> bool:
    """Sets C++'s handler of exceptions that nobody catches; those of other types go to the one before it."""
    kind = ctypes.CFUNCTYPE(None)
    try:
        library = ctypes.CDLL("libstdc++.so.6")
        set_terminate, exception_type = library._ZSt13set_terminatePFvvE, library.__cxa_current_exception_type
    except (OSError, AttributeError):
        return False
    set_terminate.restype = exception_type.restype = ctypes.c_void_p
    set_terminate.argtypes = [ctypes.c_void_p]

    def ended() -> None:
        info = exception_type()
        # The name is the second word of a type_info.
        name = ctypes.c_char_p.from_address(info + ctypes.sizeof(ctypes.c_void_p)).value if info else None
        if name == BAD_CAST:
            answer()
        kind(before)()

    handler = kind(ended)
    before = set_terminate(ctypes.cast(handler, ctypes.c_void_p))
    _kept.append(handler)
    return True
