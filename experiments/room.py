"""Prints the memory and parameters of a sweep's cells as JSON: python -m experiments.room --cells=FILE [--fits].

They are counted on shapes, by compiling each program; a line on stderr says which cell's it is. With --known=FILE,
programs that were counted before are not compiled again.

The sweep asks in a process of its own, which holds the device no longer than that: for --preview, and for
--together=auto, which wants to know how many trials of one program fit.
"""

import contextlib
import json
import sys

from absl import flags

from experiments.cli import launch, start_devices
from experiments.sweeps.counted import PROGRESS, Counted
from lowrank_jax.core.errors import UserError, one_line

SHARE = 0.9  # of a device's memory for the steps of trials; evaluations and gaps between buffers take the rest


def define_flags() -> None:
    """The program's flags; not defined at import, as experiments.trials has --cells too."""
    flags.DEFINE_string("cells", None, 'JSON file: [{"name": ..., "config": {...}, "joined": [{...}, ...]}]')
    flags.DEFINE_bool("fits", False, "How many trials of a program fit, of the size of the widest of the cells")
    flags.DEFINE_string("known", None, "JSON file of what was counted before; new programs are added")
    flags.mark_flags_as_required(["cells"])


def needs(plains: list[dict], known: Counted) -> dict:
    """{"trainable", "joined", "frozen", "bytes", "limit"} of a program; bytes and limit of one device, or None.

    Args:
      plains: the config of each cell of the program. "trainable" is the count of the first one's trained parameters,
        and "joined" lists the counts of the others.
      known: what was counted before, to which this is added.
    """
    import jax

    from experiments.config.schema import unpack_run
    from experiments.session.build import build
    from experiments.session.trial_group import TrialGroup
    from lowrank_jax.train.compiled import memory

    configs = [unpack_run(plain) for plain in plains]
    seq_len = configs[0].labels.get("seq_len")
    program = build(configs[0], seq_len=seq_len) if len(configs) == 1 else TrialGroup(configs, seq_len=seq_len)
    described = program.described
    if (found := known.get(described)) is None:
        report = memory.memory_report(program.compile(counted=True))
        shared = len(jax.local_devices()) if jax.default_backend() == "cpu" else 1
        found = {**program.lead.parameters, "bytes": None if report is None else report.needed * shared}
        known.put(described, found)
    trainable, *joined = [one.parameters["trainable"] for one in program.each]
    return {**found, "trainable": trainable, "joined": joined, "limit": memory.device_limit()}


def fitting(plains: list[dict]) -> dict:
    """{"fits", "one", "more", "limit"}: how many trials fit, a device's bytes for the first, each further, and at most.

    Raises:
      UserError: the device does not say how much memory it has, or the compiler what it needs.
    """
    import jax

    from lowrank_jax.train.compiled import memory

    limit, (one, two) = memory.device_limit(), counted(plains)
    if limit is None or one is None or two is None:
        raise UserError("the device does not say what memory it has; give --together a number")
    more = max(1, two - one)
    each = 1 + max(0, int((SHARE * limit - one) // more))
    return {"fits": each * len(jax.local_devices()), "one": one, "more": more, "limit": limit}


def counted(plains: list[dict], each: tuple[int, ...] = (1, 2)) -> list[int | None]:
    """Bytes of a device for a program of so many trials a device, all of the size of the widest of the cells.

    A cell that cannot be built counts for nothing: its own program says why, and the others can still share theirs.

    Raises:
      UserError: none can be built; what the widest says.
    """
    import jax

    from experiments.config.schema import RunConfig, unpack_run
    from experiments.session.trial_group import TrialGroup
    from lowrank_jax.train.compiled import memory

    devices = len(jax.local_devices())
    shared = devices if jax.default_backend() == "cpu" else 1

    def needed(place: int, config: RunConfig) -> int | None:
        say(f"{place} of {len(each)}: {each[place - 1]} x {devices} trials of {config.adapter.method}")
        group = TrialGroup([config] * (each[place - 1] * devices), seq_len=config.labels.get("seq_len"))
        report = memory.memory_report(group.compile(counted=True))
        return None if report is None else report.needed * shared

    widths, errors = {config.adapter.rank: config for config in map(unpack_run, plains)}, []
    for _, config in sorted(widths.items(), reverse=True):
        try:
            return [needed(place, config) for place in range(1, len(each) + 1)]
        except UserError as error:
            errors.append(error)
    raise errors[0]


def say(words: str) -> None:
    """A line about the progress, which the sweep passes on."""
    print(f"{PROGRESS}{words}", file=sys.stderr, flush=True)


def answer(cells: list[dict], fits: bool, known: str | None = None) -> dict:
    """What the program prints: `fitting`, or {name: `needs`, or {"error": why}}."""
    if fits:
        return fitting([cell["config"] for cell in cells])
    found, before = {}, Counted(known)
    for place, cell in enumerate(cells, 1):
        joined = cell.get("joined", [])
        say(f"{place} of {len(cells)}: {cell['name']}" + (f" and {len(joined)} more together" if joined else ""))
        try:
            found[cell["name"]] = needs([cell["config"], *joined], before)
        except (UserError, OSError) as error:  # of this cell alone: its data may not be here
            found[cell["name"]] = {"error": one_line(error)}
    return found


def main(_) -> None:
    """Prints one line of JSON; what else the parts print goes to stderr."""
    from experiments.records.json_files import read_json

    with contextlib.redirect_stdout(sys.stderr):
        start_devices()
        found = answer(read_json(flags.FLAGS.cells, "experiments.sweep writes it"), flags.FLAGS.fits, flags.FLAGS.known)
    print(json.dumps(found))


if __name__ == "__main__":
    define_flags()
    launch(main)
