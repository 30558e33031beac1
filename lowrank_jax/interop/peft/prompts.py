"""PEFT's folders of virtual tokens, both ways: prompt tuning is our preembed, prefix tuning our prefix.

A file has one tensor, prompt_embeddings. With prompt tuning it is [n, d], what the model's layers read; where a base
scales its embeddings (Gemma), ours are kept as they are before that. With prefix tuning it is
[n, L * 2 * kv_heads * head_dim], key and value of each layer in turn; the keys are kept as in a cache, after the
rotation, and ours before it. Virtual tokens have the positions 0 .. n - 1, and the text follows.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.adapters import AdapterConfig, Plan, PrefixConfig, make_plan
from lowrank_jax.adapters.prefix.families import VECTORS
from lowrank_jax.adapters.prefix.places import VALUE
from lowrank_jax.adapters.sites import Site
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.types import Array, Tree
from lowrank_jax.interop.peft.config import CONFIG, PROMPT_METHODS
from lowrank_jax.interop.peft.export import write_folder
from lowrank_jax.interop.peft.files import read_config, read_note, some
from lowrank_jax.interop.peft.folder import PeftAdapter, check_base
from lowrank_jax.interop.peft.keys import read_finite
from lowrank_jax.models.llama import layer_kinds, rotation_of
from lowrank_jax.models.llama_config import LlamaConfig
from lowrank_jax.models.parts.rotary import rotate, unrotate

TENSOR = "prompt_embeddings"
# Fields that do not change a trained adapter's output, and those that are read below.
KNOWN = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
    *("task_type", "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads"),
    *("num_layers", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    *("encoder_hidden_size", "prefix_projection", "init_weights"),
}


def has_prompts(folder: str | os.PathLike) -> bool:
    """Whether the PEFT folder has virtual tokens, and no adapters of modules."""
    kind = read_config(folder)[1].get("peft_type")
    return isinstance(kind, str) and kind in PROMPT_METHODS


def load_prompts(
    folder: str | os.PathLike,
    params: Tree,
    config: Any,
    base_names: Sequence[str] = (),
    fingerprint: str | None = None,
) -> PeftAdapter:
    """Reads a PEFT folder of prompt or prefix tuning for a base.

    Args:
      folder, params, base_names, fingerprint: as in `folder.load_peft`.
      config: of the base.

    Raises:
      UserError: one line: no causal model, an unknown feature, another base, a tensor that is missing, of another shape
        or not finite.
    """
    place, values, open_weights = read_config(folder)
    where, reader = place / CONFIG, open_weights()
    if extra := sorted(name for name, value in values.items() if name not in KNOWN and value):
        raise UserError(f"{where}: {', '.join(extra)} is not supported here; leave it out, or use PEFT")
    if values.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(f"{where}: task_type {values['task_type']!r} is not read with virtual tokens; known: CAUSAL_LM")
    count = values.get("num_virtual_tokens")
    if type(count) is not int or count < 1:
        raise UserError(f"{where}: num_virtual_tokens is {count!r}; it must be a whole number above 0")
    check_base(place, str(values.get("base_model_name_or_path") or ""), read_note(reader), base_names, fingerprint)
    keys = list(reader.keys())
    if keys != [TENSOR]:
        raise UserError(f"{reader.path} has {some(keys) or 'no tensor'}, and not {TENSOR} alone; save it as PEFT does")
    method = PROMPT_METHODS[values["peft_type"]]
    plan = make_plan(params, AdapterConfig(method, prefix=PrefixConfig(tokens=count)))
    shape = (count, plan.parameters // count)
    if reader.shape(TENSOR) != shape:
        raise UserError(
            f"{reader.path}: {TENSOR} is {list(reader.shape(TENSOR))}, and {count} virtual tokens of this base "
            f"{list(shape)}; give the base that it was trained on"
        )
    read = jnp.asarray(read_finite(reader, TENSOR))
    if method == "preembed":
        vectors = {plan.sites[0].path: read / _embedding_scale(config)}
    else:
        layers = read.reshape(count, config.num_hidden_layers, 2, -1).transpose(2, 1, 0, 3)
        vectors = {site.path: layers[_which(site)] for site in plan.sites}
        vectors = {path: _turned(v, config, unrotate) if _is_key(path) else v for path, v in vectors.items()}
    adapters = {f"{path}/{VECTORS}": np.asarray(value, np.float32) for path, value in vectors.items()}
    scales = {f"{site.path}/scale": np.ones(site.spec.stack, np.float32) for site in plan.sites}
    return PeftAdapter(plan, unflatten(adapters), unflatten(scales), params, ())


def save_prompts(
    folder: str | os.PathLike,
    plan: Plan,
    variables: Mapping[str, Tree],
    config: Any,
    base_name: str = "",
    fingerprint: str | None = None,
    trained: Sequence[str] = (),
    revision: str | None = None,
) -> Path:
    """Writes preembed or prefix as PEFT's folder of prompt or prefix tuning; arguments as of `export.save_peft`.

    Args:
      config: of the base.

    Raises:
      UserError: PEFT has no such adapter, or the folder cannot be written.
    """
    kinds = {ours: theirs for theirs, ours in PROMPT_METHODS.items()}
    if len(plan.configs) > 1:
        raise UserError(f"a PEFT folder has one method, not {plan.methods}; keep the adapter in our own format")
    method, prefix = plan.config.method, plan.config.prefix
    if method not in kinds:
        raise UserError(f"PEFT has no {method}; keep the adapter in our own format")
    if prefix.infix or trained:
        beside = "infix tokens" if prefix.infix else f"{trained[0]} trained beside virtual tokens"
        raise UserError(f"PEFT has no {beside}; keep the adapter in our own format")
    flat = flatten(variables["adapters"])
    vectors = {site.path: jnp.asarray(flat[f"{site.path}/{VECTORS}"], jnp.float32) for site in plan.sites}
    heads, width = config.num_attention_heads, config.hidden_size
    if method == "preembed":
        tensor = vectors[plan.sites[0].path] * _embedding_scale(config)
        more: dict[str, Any] = {"prompt_tuning_init": "RANDOM"}
    else:
        heads = config.num_key_value_heads
        width = heads * config.head_dim
        each = {_which(site): vectors[site.path] for site in plan.sites}
        pairs = jnp.stack([_turned(each[0], config, rotate), each[1]])  # [2, L, n, width]
        tensor = pairs.transpose(2, 1, 0, 3).reshape(prefix.tokens, -1)
        more = {"prefix_projection": False, "encoder_hidden_size": width}
    values = {
        "peft_type": kinds[method],
        "task_type": "CAUSAL_LM",
        "auto_mapping": None,
        "base_model_name_or_path": base_name or None,
        "revision": revision,
        "inference_mode": True,
        "num_virtual_tokens": prefix.tokens,
        "num_transformer_submodules": 1,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": heads,
        "token_dim": width,
        **more,
    }
    note = json.dumps({"fingerprint": fingerprint, "scales": {}})
    return write_folder(Path(folder), {TENSOR: np.asarray(tensor)}, values, note)


def _is_key(path: str) -> bool:
    return not path.endswith(VALUE)


def _which(site: Site) -> int:
    """0 of keys, 1 of values."""
    return 0 if _is_key(site.path) else 1


def _embedding_scale(config: Any) -> float:
    """What the model multiplies its embeddings by; transformers does not do this to a virtual token's."""
    return config.hidden_size**0.5 if getattr(config, "scale_embedding", False) else 1.0


def _turned(keys: Array, config: Any, turn: Any) -> Array:
    """Keys [L, n, kv_heads * head_dim] rotated for the positions 0 .. n - 1, or back, by `turn`.

    Raises:
      UserError: the base's rotation depends on how long a row is, and a stored key has only one rotation.
    """
    if not isinstance(config, LlamaConfig):
        return keys  # learned positions are in the model's input
    if config.rope_scaling is not None and config.rope_scaling.by_length:
        raise UserError(
            f"this base's {config.rope_scaling.rope_type} rope scaling turns keys by a row's length, and PEFT stores "
            "them turned; keep the adapter in our own format, or train preembed"
        )
    layers, count, width = keys.shape
    rotation, kinds = rotation_of(config, jnp.arange(count)), layer_kinds(config)
    heads = keys.reshape(layers, 1, count, -1, config.heads[2])

    def one(key: Array, layer: dict[str, Array]) -> Array:
        return turn(key, *rotation.of_layer(layer))

    turned = jax.vmap(one)(heads, {name: jnp.asarray(kind) for name, kind in kinds.items()})
    return turned.reshape(layers, count, width)
