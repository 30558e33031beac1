"""Calls a Python function when another process is lost, where jaxlib's client would print a stack and abort."""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator

BAD_CAST = b"St8bad_cast"  # the name of std::bad_cast's type_info
_kept: list = []  # C++ holds pointers to these for as long as the process lives


@contextlib.contextmanager
def calling(answer: Callable[[], None]) -> Iterator[None]:
    """While open, jax.distributed.initialize connects a client that calls `answer` when it loses the others.

    jaxlib takes a `missed_heartbeat_callback`, which jax gives no way to set. It calls it from a C++ thread with an
    absl::Status, which jaxlib 0.10 and 0.11 cannot convert to Python: the std::bad_cast that follows is caught nowhere
    and ends in std::terminate. We set the handler of std::terminate, which calls `answer` too. Where it cannot be set
    (no libstdc++), jaxlib's own abort stays.

    Args:
      answer: ends the process. Called at most once in a thread, and not allowed to use the client.
    """
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    if not _set_terminate(answer):
        yield
        return
    make = _jax.get_distributed_runtime_client
    callback = lambda *_: answer()  # noqa: E731
    _jax.get_distributed_runtime_client = functools.partial(make, missed_heartbeat_callback=callback)
    try:
        yield
    finally:
        _jax.get_distributed_runtime_client = make


def _set_terminate(answer: Callable[[], None]) -> bool:
    """Sets C++'s handler for exceptions that are not caught; False where there is none. The old one gets the rest."""
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
