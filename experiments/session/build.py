"""From a config to an `Experiment`: everything that can be checked without weights, on shapes alone."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.config.schema import RunConfig
from experiments.session.experiment import Experiment
from experiments.session.fit import chosen, fit
from experiments.session.warm_start import check_start
from experiments.session.weights import in_segments, is_fresh, params_sharding
from lowrank_jax import adapters
from lowrank_jax.adapters.leaves.merge import check_merges
from lowrank_jax.bases.base import AUTO, Base, abstract_base, random_tokenizer
from lowrank_jax.bases.ends import end_ids, opening_ids
from lowrank_jax.bases.locate import resolve
from lowrank_jax.core.errors import UserError, decided_by
from lowrank_jax.core.paths import flatten, unflatten, unknown_name
from lowrank_jax.core.trees import combine, partition
from lowrank_jax.core.types import ApplyFn, Tree
from lowrank_jax.forms.base import Form, Setting
from lowrank_jax.forms.registry import form_of
from lowrank_jax.layouts.fused import Groups
from lowrank_jax.layouts.run_time import layout_of, present
from lowrank_jax.layouts.unstacked import Unstacked, reading
from lowrank_jax.models.parts.stack import is_unrolled
from lowrank_jax.ops.fp8 import has_fp8
from lowrank_jax.ops.placement import with_rows_in_place
from lowrank_jax.ops.quantized import FP8, NONE
from lowrank_jax.sharding.mesh import BATCH_AXES, batch_sharding, batch_share, check_batch, make_mesh, replicated
from lowrank_jax.sharding.rules import state_shardings, tree_shardings
from lowrank_jax.tasks.base import Task
from lowrank_jax.tasks.framing import Framing, framing_of
from lowrank_jax.tasks.registry import build_task
from lowrank_jax.text.tokenizers import check_vocabulary
from lowrank_jax.train.compiled.options import compiler_options, loss_unroll
from lowrank_jax.train.optimizer import check_multipliers, make_optimizer
from lowrank_jax.train.restart import check_restart, cycling, make_merge
from lowrank_jax.train.rewarm import make_restart_shape
from lowrank_jax.train.state import check_choice, init_state, trainable_rules
from lowrank_jax.train.step import make_step


def build(
    config: RunConfig, seq_len: int | None = None, task: Task | None = None, devices: list | None = None
) -> Experiment:
    """Checks a config and lays the run out, on shapes.

    Args:
      config: unpacked.
      seq_len: for a bench on random tokens: T, and no task is built; epochs are then of EXAMPLES rows.
      task: one that an equal task section and tokenizer made already.
      devices: those of the mesh; None takes all.

    Raises:
      UserError: anything that can be known to be wrong before the weights are read.
    """
    mesh = make_mesh(config.mesh, devices)
    if devices is None:  # the run's own
        batch_share(mesh)
    check_batch(mesh, config.train.batch_size, config.train.accumulate)  # a 0, left to the data, passes
    form = form_of(config.task)
    for entry in config.evals.values():
        if entry.type and entry.type not in form.evaluations:
            raise unknown_name("evaluation", entry.type, form.evaluations)
    if config.train.label_smoothing and not getattr(form, "smooths", False):
        raise UserError(f"train.label_smoothing is for next-token losses; set it to 0 for task {config.task_name!r}")
    config = _with_head(config, form)
    with decided_by("base", "task", "mesh"):
        base = abstract_base(config.base, sharding_fn=params_sharding(mesh))
    base = in_segments(base, config)
    plan = adapters.make_plan(base.params, (config.adapter, *config.adapters))
    restarts = bool(config.restart.every)
    plan = cycling(plan, config.restart.groups) if restarts else plan
    rules = trainable_rules(config.trainable)
    optimizer = make_optimizer(config.optimizer, apart=restarts)

    variables = {"params": base.params}
    if plan.sites:
        created = jax.eval_shape(
            functools.partial(adapters.create, plan, model=base.model), jax.random.PRNGKey(0), base.params
        )
        shardings = flatten(tree_shardings(created, mesh))
        variables |= _with_shardings(created, shardings)
    trainable, frozen = partition(variables, rules)
    check_choice(config.trainable, trainable, frozen)
    check_multipliers(config.optimizer.multipliers, trainable)
    trained = trainable.get("params", {})
    model, groups = _fused_model(base, config)
    unrolled = is_unrolled(config.base.scan_unroll, base.config.num_hidden_layers)
    frozen |= present(layout_of(groups, unrolled).apply(frozen.pop("params", {})))
    variables = combine(trainable, frozen)
    abstract_state, layout = _state_shapes(trainable, optimizer, mesh)

    apply_fn = reading(adapters.attach(model, plan, groups))
    if mesh.shape["fsdp"] > 1:
        apply_fn = with_rows_in_place(apply_fn, mesh, BATCH_AXES)
    stacked = variables | {"params": Unstacked().undo(variables["params"])}
    adapters.check(model, plan, stacked, jnp.zeros((1, 8), jnp.int32), groups=groups)
    is_new = functools.partial(is_fresh, config)
    check_start(config.start, trainable, frozen, is_new, plan.configs, config.base.quantize)

    for key in ("merged", "spectrum"):  # said now, not when the run has ended
        if getattr(config.export, key):
            check_merges(plan, flatten(base.params), f"export.{key}")
    if seq_len is None and task is None:
        if config.base.tokenizer:
            base = dataclasses.replace(base, tokenizer=random_tokenizer(config.base))
        around = framing_of(plan.virtual)
        with decided_by("base", "task", "mesh", *(("adapter", "adapters") if around.count else ())):
            task = _task_of(config, base, around)
    asked, config = config, fit(config, task, mesh)
    train = config.train
    for name, entry in config.evals.items():
        entry.check_due(f"config.evals.{name}", train)
    fp8, device = config.base.quantize == FP8, mesh.devices.flat[0]
    coded = config.base.quantize not in (NONE, FP8)
    if fp8 and not has_fp8(device):
        _say_dequantised(device.device_kind)
    options = compiler_options(base.config.hidden_size, groups, unrolled, device, fp8, coded) or None
    setting = _setting(config, base, mesh, apply_fn, framing_of(plan.virtual), options)
    objective = form.objective(setting)
    if restarts:
        check_restart(config.restart, plan, base.params, trained, train.steps)
        if (dtype := config.base.dtype) != "float32" and seq_len is None and jax.process_index() == 0:
            print(f"restart.every: merges round their sum to {dtype}; with base.dtype=float32 they do not", flush=True)
    shape = make_restart_shape(config.schedule, config.restart, train.steps)
    step = make_step(objective, optimizer, shape, train.accumulate)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, replicated(mesh)), compiler_options=options)
    length = seq_len or (task.seq_len if task else 0)
    abstract_batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
        for name, (shape, dtype) in form.batch_shapes(train.batch_size, length).items()
    }
    merge = None
    if restarts:
        places = (layout, jax.tree.map(lambda leaf: leaf.sharding, frozen))
        merge = make_merge(plan, config.restart, groups, optimizer.init, places)
    return Experiment(
        config, mesh, base, plan, form, task, setting, apply_fn, groups, rules, optimizer, objective,
        abstract_state, frozen, abstract_batch, jitted, options, chosen(asked, config), merge,
    )  # fmt: skip


@functools.cache  # said once, however many trials are built
def _say_dequantised(device: str) -> None:
    if jax.process_index() == 0:
        print(f"base.quantize=fp8: {device} has no FP8 products; its own multiply the dequantised weights", flush=True)


def _state_shapes(trainable: Tree, optimizer: Any, mesh: Mesh) -> tuple[Any, Any]:
    """(the training state as shapes, their shardings)."""
    state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer, learning_rate=1.0, seed=0), trainable)
    layout = state_shardings(state, jax.tree.map(lambda leaf: leaf.sharding, trainable), mesh)
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, layout
    )
    return placed, layout


def _task_of(config: RunConfig, base: Base, framing: Framing) -> Task:
    """The config's task over the base's tokenizer; reads the data.

    Raises:
      UserError: the base has no tokenizer, or one with more ids than its embedding; the data cannot be read.
    """
    if base.tokenizer is None and not config.base.random_init:
        resolve(config.base.name, config.base.revision)  # says how to get weights that are not here
    if base.tokenizer is None:
        remedy = "put its tokenizer.json beside the weights"
        if config.base.random_init:
            remedy = "random weights read bytes alone (pico-llama, toy-llama), and experiments.bench no text"
        raise UserError(f"{config.base.name} comes without a tokenizer; {remedy}")
    check_vocabulary(base.tokenizer, base.config.vocab_size)
    positions = getattr(base.config, "max_position_embeddings", None)
    return build_task(config.task_name, config.task, base.tokenizer, positions, framing)


def _setting(config: RunConfig, base: Base, mesh: Mesh, apply_fn: ApplyFn, framing: Framing, options: Any) -> Setting:
    """What objective and evaluations need of the run."""
    return Setting(
        apply_fn,
        base.config,
        mesh,
        base.model.dtype,
        base.tokenizer,
        functools.partial(_place, batch_sharding(mesh)),
        batch_size=config.train.batch_size // config.train.accumulate,
        chunk_tokens=config.train.chunk_tokens,
        unroll=loss_unroll(mesh.devices.flat[0]),
        smoothing=config.train.label_smoothing,
        end_ids=functools.partial(end_ids, base),
        opening=functools.partial(opening_ids, base),
        framing=framing,
        cuts=getattr(base.model, "cuts", ()),
        options=options,
    )


def _fused_model(base: Base, config: RunConfig) -> tuple[Any, Groups]:
    """The model that runs, and which kernels it reads side by side."""
    if not config.base.fused:
        return base.model, {}
    if not hasattr(base.model, "fused_groups"):
        raise UserError(
            f"base.fused serves Llama; {config.base.name} is a {type(base.model).__name__}; set it to false"
        )
    if config.base.quantize not in (NONE, FP8):
        raise UserError(
            "base.fused joins kernels that base.quantize holds as codes; set one of them back (false, or none; fp8 "
            "codes can be joined)"
        )
    if config.mesh.tensor > 1:
        raise UserError("base.fused joins columns that mesh.tensor splits; set one of them back (false, or 1)")
    return base.model.clone(fused=True), base.model.fused_groups()


def _with_head(config: RunConfig, form: Form) -> RunConfig:
    """The config whose base has the head that its task is scored by."""
    if form.head is None:
        return config
    if config.base.head not in (AUTO, form.head):
        raise UserError(
            f"base.head is {config.base.head!r} and the task needs {form.head!r}; leave base.head at {AUTO!r}"
        )
    return dataclasses.replace(
        config, base=dataclasses.replace(config.base, head=form.head, num_labels=form.num_labels)
    )


def _place(sharding: Any, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A host batch on the mesh, this process's rows of it."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def _with_shardings(tree: Any, shardings: dict[str, Any]) -> Any:
    return unflatten(
        {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[p]) for p, x in flatten(tree).items()}
    )
