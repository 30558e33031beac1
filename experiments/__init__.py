"""The experiments: the only place with flags and config files."""

import sys

if sys.argv[:1] == ["-m"]:  # so Python has it while it looks for the program: Ctrl-C is answered from here on
    from lowrank_jax.core import interrupts

    interrupts.begin()
