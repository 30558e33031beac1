"""The weights that a run begins with: the base, fresh adapters and a fresh optimizer, on their shards."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config.schema import RunConfig
from experiments.session.warm_start import apply_start
from lowrank_jax import adapters
from lowrank_jax.bases.base import Base, load_base, random_program
from lowrank_jax.core.trees import partition
from lowrank_jax.layouts.fused import Groups
from lowrank_jax.layouts.run_time import layout_of, present
from lowrank_jax.layouts.segments import Segments
from lowrank_jax.layouts.unstacked import compile_unstack
from lowrank_jax.sharding.rules import leaf_spec, tree_shardings
from lowrank_jax.train.state import TrainState, init_state, layer_cuts

ABSTRACT_KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)  # of jax.random.PRNGKey


@dataclasses.dataclass(frozen=True)
class Weights:
    """Loads and draws what a run begins with; its programs can be compiled before it does.

    Attributes:
      config, mesh, base, plan, groups, rules, optimizer, abstract_state, abstract_frozen, unrolled, programs: those of
        the run's `experiment.Experiment`.
    """

    config: RunConfig
    mesh: Any
    base: Base
    plan: adapters.Plan
    groups: Groups
    rules: Any
    optimizer: Any
    abstract_state: TrainState
    abstract_frozen: Any
    unrolled: bool
    programs: dict[str, Any]

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Compiles what `load` runs on other threads, beside what the caller compiles."""
        works = (self._compile_base, self._compile_create, self._compile_begin, self._compile_layers)
        with concurrent.futures.ThreadPoolExecutor(len(works)) as pool:
            ready = [pool.submit(work) for work in works]
            yield
            for one in ready:
                one.result()

    def _compile_base(self) -> None:
        if program := random_program(self.config.base, params_sharding(self.mesh)):
            program.lower(ABSTRACT_KEY).compile()

    def _compile_create(self) -> None:
        if self.plan.sites:
            given = (ABSTRACT_KEY, self.base.params) if adapters.needs_params(self.plan) else (ABSTRACT_KEY,)
            self._create(given).lower(*given).compile()

    def _compile_begin(self) -> None:
        rate = jax.ShapeDtypeStruct((), jnp.float32)
        self._begin().lower(self.abstract_state.trainable, rate, ABSTRACT_KEY).compile()

    def _compile_layers(self) -> None:
        compile_unstack(self.abstract_frozen.get("params", {}))

    def load(self) -> tuple[TrainState, Any, str]:
        """(state, frozen, fingerprint of the base): weights on their shards, fresh adapters and a fresh optimizer."""
        base = self.load_base()
        assert base.fingerprint is not None  # of a loaded base
        fingerprint = base.fingerprint
        trainable, frozen = self.split(base)
        del base  # what is trained was copied: its first copy goes before the moments come
        frozen |= present(layout_of(self.groups, self.unrolled).apply(frozen.pop("params", {})))
        trainable, frozen = apply_start(self.config.start, trainable, frozen, self._is_fresh, fingerprint)
        return self.begin(trainable), frozen, fingerprint

    def load_base(self) -> Base:
        """Loads the weights onto their shards; the run's seed draws a fresh head."""
        base_key, _ = self._keys()
        base = load_base(self.config.base, base_key, params_sharding(self.mesh), planned=self.base.config)
        return in_segments(base, self.config)

    def split(self, base: Base) -> tuple[Any, Any]:
        """(trainable, frozen) of a loaded base with fresh adapters of the run's seed; frozen before its layout."""
        _, adapter_key = self._keys()
        variables = {"params": adapters.residual(base.params, self.plan)}
        if self.plan.sites:
            given = (adapter_key, base.params) if adapters.needs_params(self.plan) else (adapter_key,)
            variables |= self._create(given)(*given)
            variables["params"] = jax.device_put(variables["params"], jax.tree.map(lambda x: x.sharding, base.params))
        return partition(variables, self.rules)

    def begin(self, trainable: Any) -> TrainState:
        """The state before the first step; the trainable tree is donated."""
        rate = np.float32(self.config.optimizer.learning_rate)
        return self._begin()(trainable, rate, jax.random.PRNGKey(self.config.seed))

    def base_key(self) -> jax.Array:
        """What draws a random or partly fresh base."""
        return self._keys()[0]

    def _create(self, given: tuple) -> Any:
        create = functools.partial(adapters.create, self.plan, model=self.base.model)
        shardings = tree_shardings(jax.eval_shape(create, *given), self.mesh)
        return self._program("create", create, out_shardings=shardings)

    def _begin(self) -> Any:
        def init(trainable, rate, key):
            return init_state(trainable, self.optimizer, rate, seed=0)._replace(key=key)

        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return self._program("begin", init, out_shardings=shardings, donate_argnums=0)

    def _program(self, name: str, fn: Callable, **options: Any) -> Any:
        """The jitted function of a name; trials that are alike share it and its compilation."""
        if name not in self.programs:
            self.programs[name] = jax.jit(fn, **options)
        return self.programs[name]

    def _is_fresh(self, path: str) -> bool:
        return is_fresh(self.config, path)

    def _keys(self) -> tuple[jax.Array, jax.Array]:
        """(of a random or partly fresh base, of the adapters)."""
        base_key, adapter_key = jax.random.split(jax.random.PRNGKey(self.config.seed))
        return base_key, adapter_key


def is_fresh(config: RunConfig, path: str) -> bool:
    """Whether a leaf below "params" is one that the task draws anew: the head, and what base.fresh names."""
    return any(re.fullmatch(pattern, path) for pattern in ("head/.*", *config.base.fresh))


def params_sharding(mesh: Any) -> Any:
    """(path below "params", shape) -> NamedSharding, by the path rules."""
    return lambda path, shape: jax.sharding.NamedSharding(mesh, leaf_spec(f"params/{path}", shape, mesh))


def in_segments(base: Base, config: RunConfig) -> Base:
    """The base with its layers in the segments that `config.trainable` needs; the same base where it needs none."""
    cuts = layer_cuts(config.trainable, base.config.num_hidden_layers)
    if not cuts:
        return base
    return dataclasses.replace(base, model=base.model.clone(cuts=cuts), params=Segments(cuts).apply(base.params))
