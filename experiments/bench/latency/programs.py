"""The forward pass of each variant as a compiled program; a merged model's program is the base's own."""

import collections
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.latency.cells import BASE, Cell, Variant, adapter_of
from lowrank_jax import adapters
from lowrank_jax.bases.base import Base, BaseConfig, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import ApplyFn
from lowrank_jax.layouts.run_time import layout_of
from lowrank_jax.layouts.unstacked import reading
from lowrank_jax.models.parts.stack import is_unrolled
from lowrank_jax.ops.quantized import NONE
from lowrank_jax.train.compiled.memory import memory_report

UPDATE = 0.01  # standard deviation of adapters' random entries: as they start they would add nothing
# Parts of a compiled program's text that only say where in the source an operation was written: notes, and tables.
PLACES = re.compile(r",? ?metadata=\{[^}]*\}|fingerprint_before_lhs=\"[^\"]*\"")
TABLES = re.compile(r"^(?:FileNames|FunctionNames|FileLocations|StackFrames)\n(?:\d+ .*\n)*\n*", re.M)
OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (?:\(.*?\)|\S+) ([a-z][\w-]*)\(", re.M)


SAME_TEXT, SAME_WORK = "text", "operations and memory"  # how far a merged program was found to be the base's


class Program(NamedTuple):
    """A variant that is ready to run.

    Attributes:
      variant, rank, parameters: which; None and 0 for the base.
      compiled: the executable.
      run: () -> logits, not waited for.
      same: of a merged variant, SAME_TEXT where its whole program is the base's, SAME_WORK where operations of the same
        kinds and numbers are otherwise arranged in the same memory.
    """

    variant: Variant
    rank: int | None
    parameters: int
    compiled: Any
    run: Callable[[], Any]
    same: str | None = None


class Model:
    """A random base that every variant of every cell runs on.

    Args:
      config: of the base; its weights are drawn at random.

    Raises:
      UserError: a quantised base or a fused layout, whose kernels are not those that adapters merge into.
    """

    def __init__(self, config: BaseConfig):
        if config.quantize != NONE or config.fused:
            key = "base.fused" if config.fused else "base.quantize"
            raise UserError(f"--latency merges adapters into the base's own kernels; leave {key} at its default")
        self.base: Base = load_base(config, key=jax.random.key(0))
        layers = self.base.config.num_hidden_layers
        self._layout = layout_of({}, is_unrolled(config.scan_unroll, layers))
        self._laid_out = self._layout.apply(self.base.params)
        self._plain: dict[tuple[int, int], Program] = {}  # of the last batch and length, for cells of all sizes

    def programs(self, cell: Cell, variants: Sequence[Variant]) -> list[Program]:
        """The variants' programs for a cell, compiled; a merged one must be the base's.

        Raises:
          UserError: the base cannot read rows of that length, or an adapter does not fit it.
          RuntimeError: a merged program differs from the base's: a fault of ours.
        """
        rng = np.random.default_rng(0)
        shape = (cell.batch, cell.length)
        tokens = jnp.asarray(rng.integers(0, self.base.config.vocab_size, shape), jnp.int32)
        made = [self._known(cell, tokens) if one == BASE else self._program(one, cell, tokens) for one in variants]
        return [self._compared(one, self._known(cell, tokens), cell) if one.variant.merged else one for one in made]

    def _compared(self, merged: Program, plain: Program, cell: Cell) -> Program:
        if found := differences(plain.compiled, merged.compiled):
            raise RuntimeError(f"{merged.variant.name} at {cell.name} is another program than the base: {found}")
        texts = {bare(one.compiled.as_text()) for one in (plain, merged)}
        return merged._replace(same=SAME_TEXT if len(texts) == 1 else SAME_WORK)

    def _known(self, cell: Cell, tokens: jax.Array) -> Program:
        """The base's program, which cells of one batch and length share."""
        key = (cell.batch, cell.length)
        if key not in self._plain:
            self._plain = {key: self._program(BASE, cell, tokens)}
        return self._plain[key]

    def _program(self, variant: Variant, cell: Cell, tokens: jax.Array) -> Program:
        apply_fn, variables, rank, parameters = reading(self.base.model.apply), {"params": self._laid_out}, None, 0
        if variant.method is not None:
            config = adapter_of(variant.method, cell.size, self.base.params)
            plan = adapters.make_plan(self.base.params, config)
            extra = _drawn(plan)
            rank, parameters = config.rank, plan.parameters
            if variant.merged:
                merged = adapters.merge({"params": self.base.params, **extra}, plan)
                variables = {"params": self._layout.apply(merged)}
            else:
                apply_fn, variables = reading(adapters.attach(self.base.model, plan)), {**variables, **extra}
        compiled = compile_forward(apply_fn, variables, tokens)
        return Program(variant, rank, parameters, compiled, lambda: compiled(variables, tokens))


def compile_forward(apply_fn: ApplyFn, variables: Any, tokens: jax.Array) -> Any:
    """The compiled forward pass (variables, tokens) -> logits of all tokens."""

    def forward(variables, tokens):
        return apply_fn(variables, tokens)

    return jax.jit(forward).lower(variables, tokens).compile()


def differences(one: Any, other: Any) -> str:
    """In what the work of two compiled programs differs: operations by kind, or memory; "" where it does not."""
    counts = [collections.Counter(OPERATION.findall(bare(program.as_text()))) for program in (one, other)]
    if kinds := sorted(kind for kind in counts[0] | counts[1] if counts[0][kind] != counts[1][kind]):
        return ", ".join(f"{counts[0][kind]} and {counts[1][kind]} {kind}" for kind in kinds)
    memory = [memory_report(program) for program in (one, other)]
    return "" if memory[0] == memory[1] else f"{memory[0]} and {memory[1]}"


def bare(text: str) -> str:
    """A compiled program's text without the places in the source."""
    return PLACES.sub("", TABLES.sub("", text))


def _drawn(plan: adapters.Plan) -> dict[str, Any]:
    """Adapters with random entries everywhere, and their scales."""
    created = adapters.create(plan, jax.random.key(1))

    @jax.jit
    def draw(tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(jax.random.key(2), len(leaves))
        drawn = [UPDATE * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, drawn)

    return {**created, "adapters": draw(created["adapters"])}
