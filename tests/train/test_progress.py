"""What the progress bar says while something compiles: on a terminal alone, and no longer than it lasts."""

import contextlib
import dataclasses
import io

import jax
import jax.numpy as jnp
import pytest
from loop_parts import Recorder, job, score

from experiments.session.by_length import by_length
from lowrank_jax.train.evaluations import Evaluator
from lowrank_jax.train.loop import fit
from lowrank_jax.train.progress import doing
from lowrank_jax.train.rhythm import LoopConfig

pytestmark = pytest.mark.usefixtures("clock")


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal

    def last(self):
        """The bar as it stands."""
        return self.getvalue().rpartition("\r")[2].rstrip()


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def screen(request):
    return Screen(request.param)


def test_the_first_evaluation_says_that_it_compiles(screen):
    seen = {"": [], "more": []}

    def scorer(name):
        return lambda state, frozen: (seen[name].append(screen.last().partition(":")[0]), score(state, frozen))[1]

    evaluators = [Evaluator(name, LoopConfig.evaluates_at, scorer(name)) for name in seen]
    with contextlib.redirect_stderr(screen):
        fit(job(Recorder(), LoopConfig(steps=6, eval_every=2), evaluators=evaluators))
    for name, words in (("", "first evaluation, compiling"), ("more", "first evaluation more, compiling")):
        first, *others = seen[name]
        assert (first == words) == screen.terminal
        assert len(others) == 2
        assert words not in others
        assert screen.getvalue().count(words) == screen.terminal
    assert screen.last().startswith("100%|")


def test_a_program_of_another_length_says_so(screen):
    recorder, lines = Recorder(), []
    widths, compiled = [4, 8, 4, 8, 6], {8: lambda *given: None}

    class Jitted:
        """jax.jit's way to a program: the bar is read as it compiles."""

        def lower(self, state, frozen, batch):
            lines.append(screen.last().partition(":")[0])
            return jax.jit(lambda *_: None).lower(state, frozen, batch)

    each = by_length(Jitted(), compiled)

    def step(state, frozen, batch):
        each(state, frozen, {"tokens": jnp.zeros((2, widths[batch - 1]), jnp.int32)})
        return recorder.step(state, frozen, batch)

    with contextlib.redirect_stderr(screen):
        fit(dataclasses.replace(job(recorder, LoopConfig(steps=5)), step=step))
    words = ["compiling for length 4", "compiling for length 6"]
    assert len(lines) == 2
    assert (lines == words) == screen.terminal
    assert [screen.getvalue().count(one) for one in words] == [screen.terminal] * 2
    assert screen.last().startswith("100%|")
    assert sorted(compiled) == [4, 6, 8]


def test_outside_a_loop_nothing_is_said(screen):
    with contextlib.redirect_stderr(screen), doing("compiling"):
        pass
    assert screen.getvalue() == ""
