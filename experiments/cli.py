"""What all programs share: flags, config files, and one-line messages for errors that a user can fix."""

import contextlib
import difflib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags, logging

from experiments.config.files import config_maker
from experiments.config.json_flags import take
from lowrank_jax.core.errors import UserError, front_door
from lowrank_jax.core.rates import AUTO, NO_RULE, RATE

FILE_FLAGS = ("--config", "-config")
KEY_FLAG = "--config."
READS_CONFIG, STARTS_EARLY = "reads_config", "starts_early"
HELP_FLAGS = ("help", "helpshort", "helpfull", "helpxml", "?")
YNN_FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def launch(main: Callable[[list[str]], Any], own_config: bool = False, words: bool = False) -> None:
    """Parses the flags and runs `main`; a UserError ends the program with its one line and status 2.

    --config=FILE[:ARGUMENT] names the config file, whose `get_config(ARGUMENT)` gives a ConfigDict; sections and keys
    that it leaves out take their dataclass's defaults; --config.path.to.key=VALUE then overrides any of them.

    Args:
      own_config: the program defines --config itself.
      words: the program takes positional arguments.
    """

    set_xla_flags()

    def parse(argv):
        with front_door():
            files, rest = ([], list(argv)) if own_config else _config_files(argv)
            if files and _early(main, files[-1], argv):
                start_devices()
            if own_config:  # a sweep sets these keys in all of its cells
                rest = [f"--set={word[len(KEY_FLAG) :]}" if word.startswith(KEY_FLAG) else word for word in rest]
            config = complete_file(files[-1]) if files else None
            try:
                if config is not None:
                    from ml_collections import config_flags

                    rest = take(config, rest)
                    config_flags.DEFINE_config_dict("config", config, sys_argv=rest)
                with _config_help(main, files, config):
                    return flags.FLAGS(rest)
            except (
                AttributeError,
                KeyError,
                OverflowError,
                RecursionError,
                TypeError,
                ValueError,
                flags.Error,
            ) as error:
                raise UserError(_flag_error(main, error, config, rest)) from None
            except SystemExit as ended:
                if ended.code == 1 and any(word.lstrip("-").partition("=")[0] in HELP_FLAGS for word in rest):
                    sys.exit(0)  # absl ends with 1 once it has printed the help that was asked for
                raise

    def guarded(argv):
        if "verbosity" not in flags.FLAGS or not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # tensorflow-datasets and orbax log every step at INFO
        with front_door():
            if len(argv) > 1 and not words:
                raise UserError(f"unknown argument {argv[1]!r}; see --help")
            return main(argv)

    app.run(guarded, flags_parser=parse)


def reads_config(main: Callable) -> Callable:
    """Marks the `main` of a program that takes --config, which --help then describes."""
    setattr(main, READS_CONFIG, True)
    return main


def starts_early(alone: Callable[[list[str]], bool]) -> Callable[[Callable], Callable]:
    """Marks the `main` of a program whose devices start before its config is read, which imports nearly everything.

    Args:
      alone: command line -> whether this process uses the devices, and is the only one of its run.
    """

    def mark(main: Callable) -> Callable:
        setattr(main, STARTS_EARLY, alone)
        return main

    return mark


def _early(main: Callable, file: str, argv: list[str]) -> bool:
    """Whether the devices start now: not for help, nor for a file that is not there."""
    alone = getattr(main, STARTS_EARLY, None)
    if alone is None or any(word.lstrip("-").partition("=")[0] in HELP_FLAGS for word in argv[1:]):
        return False
    return os.path.isfile(file.partition(":")[0]) and alone(argv[1:])


@contextlib.contextmanager
def _config_help(main: Callable, files: list[str], config: Any) -> Iterator[None]:
    """Prints the help on --config below absl's help on the flags, after which absl ends the program."""
    try:
        yield
    except SystemExit:
        if getattr(main, READS_CONFIG, False):
            from experiments.config.help import help_of

            print(help_of(files[-1] if files else None, config))
        raise


def define_run_flags() -> None:
    """--workdir and --fresh, of every program that makes run folders; several of them may be in one process."""
    if "workdir" not in flags.FLAGS:
        flags.DEFINE_string("workdir", "runs", "Where runs live.")
        flags.DEFINE_bool("fresh", False, "Delete the runs of these names and start again.")


def define_seq_len(text: str) -> None:
    """--seq_len, of programs that need no data; several of them may be in one process."""
    if "seq_len" not in flags.FLAGS:
        flags.DEFINE_integer("seq_len", None, text, lower_bound=1)


def from_flags(kind: Callable[..., Any], *names: str) -> Any:
    """The dataclass with the values of some flags; a value that it refuses is refused in the flag's name."""
    from lowrank_jax.core.ranges import OutOfRange

    try:
        return kind(**{name: flags.FLAGS[name].value for name in names})
    except OutOfRange as error:
        raise UserError(f"--{str(error).partition('.')[2]}") from None


def set_xla_flags() -> None:
    """Adds the XLA flags that a run needs to XLA_FLAGS, unless the user has set them; before jax starts its devices.

    XLA's CPU backend in jaxlib 0.10 and 0.11 hands some products to YNNPACK with results that differ from run to run:
    [8, 256] x [256, 704] inside a `lax.map` gave NaN. With no fusion type listed it keeps to its own kernels.
    """
    from jaxlib.version import __version__

    present = os.environ.get("XLA_FLAGS", "")
    if YNN_FLAG not in present and __version__.startswith(("0.10.", "0.11.")):  # an unknown flag ends the process
        os.environ["XLA_FLAGS"] = f"{present} {YNN_FLAG}=".strip()


def start_devices() -> None:
    """Starts jax's devices on another thread during the caller's next imports: a CUDA context takes seconds.

    Not before jax.distributed is initialised. An error is raised again where the devices are first used.
    """
    import jax

    def start():
        with contextlib.suppress(RuntimeError):
            jax.devices()

    threading.Thread(target=start, name="devices").start()


def load_config(overrides: dict[str, Any] | None = None) -> tuple[Any, dict]:
    """The unpacked config of --config, and its plain form; `overrides` by dotted path, None for unchanged keys.

    Raises:
      UserError: no --config, or a key or value that the dataclasses refuse.
    """
    from experiments.config.labels import with_labels
    from experiments.config.plain import to_plain
    from experiments.config.schema import unpack_run

    if "config" not in flags.FLAGS:
        raise UserError("--config is missing, e.g. --config=configs/mora_uuid.py")
    config = flags.FLAGS.config.copy_and_resolve_references()
    for path, value in (overrides or {}).items():
        if value is not None:
            *sections, key = path.split(".")
            node = config
            for section in sections:
                node = node[section]
            node[key] = value
    plain = to_plain(config)
    unpack_run(plain)  # checks it first: deriving the labels relies on every section being one
    plain = with_labels(plain)
    return unpack_run(plain), plain


def load_file(name: str) -> Any:
    """The ConfigDict of a config file, "configs/mora_uuid.py:method=lora", or of a run's config.json."""
    path, _, argument = name.partition(":")
    return config_maker(path)(argument or None)


def complete_file(name: str) -> Any:
    """The ConfigDict of a config file with every key that a flag may override."""
    from experiments.config.defaults import complete

    return complete(load_file(name))


def _flag_error(main: Callable, error: Exception, config: Any, argv: list[str]) -> str:
    """The message of ml_collections or absl about a wrong flag, on one line and with the nearest flag or key."""
    if isinstance(error, flags.UnrecognizedFlagError) and getattr(main, READS_CONFIG, False):
        name, dot, key = error.flagname.partition(".")
        if difflib.get_close_matches(name, ["config"]):  # absl knows none while no config file is given
            return f"Unknown command line flag {error.flagname!r}. Did you mean: config{dot}{key} ?"
    from experiments.config.defaults import wrong_key

    for word in argv:
        path = word.lstrip("-").partition("=")[0]
        if config is not None and path.startswith("config.") and (message := wrong_key(config, path)):
            return message
    said = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() of a KeyError adds quotes
    said = " ".join(str(said).split())
    if found := re.match(rf"flag (--config\.{re.escape(RATE)})=({AUTO}): ", said, re.IGNORECASE):
        return f"{found[1]}={found[2]}: {NO_RULE}"
    return said


def _config_files(argv: list[str]) -> tuple[list[str], list[str]]:
    """(values of --config, in either spelling, with "=" or a space; the other words). Ends at "--", as absl does."""
    files, rest, words = [], argv[:1], iter(argv[1:])
    for word in words:
        flag, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *words]
        elif flag not in FILE_FLAGS:
            rest.append(word)
        else:
            value = value if equals else next(words, "")
            if not value or (not equals and value.startswith("-")):
                raise UserError(f"{flag} has no value; name a config file: --config=configs/mora_uuid.py")
            files.append(value)
    return files, rest
