"""Phi-3 and Phi-4: kernels that a file joins in one, rotation of a part of each head, LongRoPE."""

from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.causal import rope, windows
from lowrank_jax.interop.causal.family import ModelFamily, Values
from lowrank_jax.interop.causal.mistral import write_window
from lowrank_jax.interop.fields import Notes
from lowrank_jax.models.llama_config import LayerKinds, LlamaConfig
from lowrank_jax.models.parts.rotary import LongRopeScaling


def read_phi3(values: Values, layers: int, where: Any, notes: Notes | None) -> dict[str, Any]:
    """A part of each head may be rotated, and scaled by LongRoPE alone, which old files call "su" or "yarn"."""
    if found := [name for name in ("attention_bias", "mlp_bias", "lm_head_bias") if values.get(name)]:
        raise UserError(f"{where}: {', '.join(found)} is not supported by Phi3; choose a base without it")
    found = rope.rope(values, where, notes, rename={"su": "longrope", "yarn": "longrope"})
    if not isinstance(found["rope_scaling"], LongRopeScaling | None):
        raise UserError(f"{where}: Phi-3 has no rope_type {found['rope_scaling'].rope_type!r}; it must be longrope")
    return {"layers": LayerKinds(**windows.everywhere(values, layers, where, notes)), **found}


def write_phi3(c: LlamaConfig) -> dict[str, Any]:
    """See `read_phi3`; three fields of the scaling where they suffice, as transformers 4 accepts no others."""
    found, scaling = rope.to_hf(c), c.rope_scaling
    written = {**write_window(c), "partial_rotary_factor": c.partial_rotary_factor}
    if not isinstance(scaling, LongRopeScaling):
        return written
    values = dict(found["rope_scaling"])
    written[rope.OLD_LENGTH] = old = values.pop(rope.OLD_LENGTH)
    if scaling.factor == c.max_position_embeddings / old:
        del values["factor"]
    values["type"] = values.pop("rope_type")
    return {**written, "rope_scaling": values}


PHI3 = {"max_position_embeddings": 4096, rope.OLD_LENGTH: 4096, "rms_norm_eps": 1e-5}

FAMILIES = (ModelFamily("phi3", "Phi3ForCausalLM", read_phi3, write_phi3, PHI3, partial=True),)
