"""Loads the model that `experiments.generate` uses: that of a run, or a base with or without an adapter."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.config.files import CONFIG
from experiments.generation import BESIDE, EXACT
from experiments.records import claims, run_folder
from lowrank_jax import adapters
from lowrank_jax.bases.attached import check_adapter, load_attached
from lowrank_jax.bases.base import Base, BaseConfig, load_base
from lowrank_jax.bases.ends import end_ids
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of
from lowrank_jax.core.trees import combine
from lowrank_jax.core.types import ApplyFn, Tree
from lowrank_jax.decoding.decoder import Decoder, cached_decoder, make_decoder
from lowrank_jax.decoding.weights import ready
from lowrank_jax.models.parts.causal import CausalLM
from lowrank_jax.sharding.mesh import MeshConfig
from lowrank_jax.tasks.framing import PLAIN, Framing, framing_of
from lowrank_jax.train.best import abstract_best, keeps_best, loaded

ADAPTER, MERGED = "adapter", "model"  # folders of a run


@dataclasses.dataclass(frozen=True)
class Model:
    """A causal model that is ready to decode.

    Attributes:
      base: with tokenizer and config.
      variables: the weights that are decoded with, on the device.
      apply_fn, decoder: take these variables.
      made_of: {"run"} or {"base", "adapter"}, and "dtype", for records.
      task: config of the task that a run was trained on; None of a base.
      virtual: the virtual tokens of its adapter, which stand around every prompt; none without a prefix method.
    """

    base: Base
    variables: Tree
    apply_fn: ApplyFn
    decoder: Decoder
    made_of: dict[str, Any]
    task: Any = None
    virtual: Framing = PLAIN

    @property
    def positions(self) -> int:
        """The most tokens that it reads."""
        return self.base.config.max_position_embeddings

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens at which the base ends a text."""
        return end_ids(self.base)


def of_base(name: str, adapter: str | None, dtype: str, weights: str = BESIDE) -> Model:
    """A base by its name, alone or with an adapter of ours or PEFT's.

    Args:
      name, adapter: of base and adapter.
      dtype: of the base's weights and of the computation.
      weights: how they are read, one of `generation.WEIGHTS`.

    Raises:
      UserError: no such base or adapter, they do not fit, or it writes no text.
    """
    if adapter:
        check_adapter(adapter)
    base = _causal(load_base(BaseConfig(name, dtype=dtype)))
    made_of = {"base": name, **({"adapter": adapter} if adapter else {}), "dtype": dtype, "weights": weights}
    return _attached(base, adapter, made_of) if adapter else _alone(base, made_of)


def of_run(folder: str, dtype: str | None, weights: str = BESIDE) -> Model:
    """A run's model: of its adapter, otherwise its merged model, otherwise its last checkpoint.

    Args:
      folder: of the run.
      dtype: of the base's weights and of the computation; None: as in training.
      weights: how they are read, one of `generation.WEIGHTS`.

    Raises:
      UserError: no run, a model that writes no text, nothing trained yet, or another program is writing to the run.
    """
    place = Path(folder)
    own, plain = _config_of(place)
    config = dataclasses.replace(own, base=dataclasses.replace(own.base, dtype=dtype or own.base.dtype))
    made_of = {"run": folder, "dtype": config.base.dtype, "weights": weights}
    if kind_of(place / ADAPTER) is not None:
        try:
            base = _base_of(config)
        except UserError as error:
            if "/" not in config.base.name or Path(config.base.name).expanduser().exists():
                raise
            words = f"--base=FOLDER --adapter={place / ADAPTER} in place of --run={folder}"
            raise UserError(f"{error}; where the base is in another folder now: {words}") from None
        return _attached(_causal(base), place / ADAPTER, made_of, config.task)
    if kind_of(place / MERGED) is not None:
        base = _causal(load_base(BaseConfig(str(place / MERGED), dtype=config.base.dtype)))
        return _alone(base, made_of, config.task)
    if kind_of(place / run_folder.CHECKPOINTS) is None:
        raise UserError(f"{folder} has no {ADAPTER}, no {MERGED} and no checkpoint; let the run go on first")
    if weights != BESIDE:
        ended = kind_of(place / run_folder.RESULT) is not None
        way = "leave it out, or train with export.merged=float32" if ended else "let the run end first"
        raise UserError(f"{folder} has only a checkpoint, which is read with --weights={BESIDE} alone; {way}")
    claim = claims.claim_of(place, "experiments.generate")
    with claims.held([claim]):  # opening the checkpoints deletes what an unfinished save has left
        return _of_checkpoint(place, own, config, plain, made_of)


def _of_checkpoint(place: Path, own: Any, wanted: Any, plain: dict, made_of: dict[str, Any]) -> Model:
    """The model of the last checkpoint.

    Args:
      own: the run's config: what was saved has its dtypes.
      wanted: the same, with the dtype that is asked for.
    """
    from experiments.session.build import build
    from lowrank_jax.checkpoints.manager import Checkpoints

    def laid_out(config: Any) -> Any:  # any length: no data are read
        config = dataclasses.replace(config, mesh=MeshConfig())
        return build(config, seq_len=8, devices=jax.local_devices()[:1])

    config, experiment = own, laid_out(own)
    _causal(experiment.base)
    state, frozen, fingerprint = experiment.load()
    identity = {"base": fingerprint, "config": run_folder.content_hash(plain)}
    with Checkpoints(place / run_folder.CHECKPOINTS, config.checkpoint.keep, identity) as checkpoints:
        rest = state._asdict()
        if best := keeps_best(config.evals):
            rest["best"] = abstract_best(state.trainable, 1, frozen if config.restart.every else None)
        rest |= {"frozen": frozen} if config.restart.every else {}  # which merges have changed
        trainable, rest, _, step = checkpoints.restore(None, rest.pop("trainable"), rest)
        frozen = rest.get("frozen", frozen)
        if best:
            trainable, frozen, step = loaded(rest["best"], trainable, frozen, step)
    variables = combine(trainable, frozen)
    if wanted.base.dtype != own.base.dtype:
        experiment = laid_out(wanted)
        shapes = combine(experiment.abstract_state.trainable, experiment.abstract_frozen)
        variables = jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), variables, shapes)
    made_of = {**made_of, "step": step}
    apply_fn, virtual, model = experiment.apply_fn, framing_of(experiment.plan.virtual), experiment.base.model
    decoder = make_decoder(apply_fn, experiment.base.config, model.dtype, model.cuts)
    return Model(experiment.base, variables, apply_fn, decoder, made_of, config.task, virtual)


def _config_of(place: Path) -> tuple[Any, dict]:
    from experiments.cli import complete_file
    from experiments.config.labels import with_labels
    from experiments.config.plain import to_plain
    from experiments.config.schema import unpack_run

    if kind_of(place / CONFIG) is None:
        raise UserError(f"{place} is no folder of a run: it has no {CONFIG}; give --run=runs/NAME, or a --base")
    plain = to_plain(complete_file(str(place / CONFIG)))
    unpack_run(plain)
    plain = with_labels(plain)
    return unpack_run(plain), plain


def _base_of(config: Any) -> Base:
    """The base as the run loads it, a random one drawn with the run's seed."""
    key, _ = jax.random.split(jax.random.PRNGKey(config.seed))
    return load_base(config.base, key)


def _attached(base: Base, adapter: Any, made_of: dict[str, Any], task: Any = None) -> Model:
    base, plan, variables = load_attached(adapter, base, same_seed="run" in made_of)
    adapters.check(base.model, plan, variables, jnp.zeros((1, 8), jnp.int32))
    if made_of["weights"] == BESIDE:
        model = _beside(base, adapters.attach(base.model, plan), variables, made_of, task)
        return dataclasses.replace(model, virtual=framing_of(plan.virtual))
    return _ready(base, variables.pop("params"), plan, variables, made_of, task)


def _alone(base: Base, made_of: dict[str, Any], task: Any = None) -> Model:
    if made_of["weights"] == BESIDE:
        return _beside(base, base.model.apply, {"params": base.params}, made_of, task)
    return _ready(base, base.params, None, None, made_of, task)


def _beside(base: Base, apply_fn: ApplyFn, variables: Tree, made_of: dict[str, Any], task: Any) -> Model:
    decoder = make_decoder(apply_fn, base.config, base.model.dtype)
    return Model(base, jax.tree.map(jnp.asarray, variables), apply_fn, decoder, made_of, task)


def _ready(base: Base, params: Tree, plan: Any, variables: Any, made_of: dict[str, Any], task: Any) -> Model:
    fast = ready(base.model, jax.tree.map(jnp.asarray, params), plan, variables, exact=made_of["weights"] == EXACT)
    decoder = cached_decoder(fast.apply_fn, fast.empty, fast.whole)
    return Model(base, fast.variables, fast.apply_fn, decoder, made_of, task)


def _causal(base: Base) -> Base:
    if not isinstance(base.model, CausalLM):
        raise UserError(f"{base.name} is an encoder, which writes no text; give a causal language model")
    if base.tokenizer is None:
        raise UserError(f"{base.name} comes without a tokenizer; put its tokenizer.json beside the weights")
    return base
