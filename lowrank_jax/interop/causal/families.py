"""Lists the model families that are read as a Llama, and finds the one of a config.json."""

from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.causal import gemma, llama, mistral, olmo, phi3, qwen, smollm3
from lowrank_jax.interop.causal.family import ModelFamily, Values
from lowrank_jax.interop.fields import Notes, chosen, section

FAMILIES = (
    *llama.FAMILIES,
    *qwen.FAMILIES,
    *mistral.FAMILIES,
    *smollm3.FAMILIES,
    *olmo.FAMILIES,
    *gemma.FAMILIES,
    *phi3.FAMILIES,
)
BY_TYPE = {family.model_type: family for family in FAMILIES}
# Models of text and images, of which the text part is read: its model_type where text_config names none.
NESTED = {"gemma3": "gemma3_text", "mistral3": "mistral"}
KEPT = ("quantization_config", "compression_config")  # fields of the whole model that are refused for its text part too


def text_part(values: Values, where: Any, notes: Notes | None) -> dict[str, Any]:
    """The config.json of the text part of a model of text and images; other configs unchanged.

    The head is tied where the whole model's config says so or, as in transformers, says nothing.

    Raises:
      UserError: no text_config, or a class without a language model's head.
    """
    kind = values.get("model_type")
    if kind not in NESTED:
        return dict(values)
    text, names = section(values, "text_config", where), values.get("architectures") or [kind]
    if names[0] not in (f"{kind.capitalize()}ForConditionalGeneration", kind):
        raise UserError(f"{where}: {names[0]} is not read; only {kind.capitalize()}ForConditionalGeneration is")
    if not text:
        raise UserError(f"{where} has no text_config; download it again")
    places = [("tie_word_embeddings", values.get("tie_word_embeddings"))]
    tied = chosen(where, notes, *places, ("text_config.tie_word_embeddings", text.get("tie_word_embeddings")))
    given = {"model_type": NESTED[kind], **text, **{name: values[name] for name in KEPT if values.get(name)}}
    return {**given, "architectures": None, "tie_word_embeddings": True if tied is None else tied}


def family_of(values: Values, where: Any) -> ModelFamily:
    """The family of a config.json, by model_type, and Llama where it has none.

    Raises:
      UserError: another class than the family's causal model.
    """
    names = values.get("architectures") or [values.get("model_type") or "a config without architectures"]
    family = BY_TYPE.get(values.get("model_type") or "", FAMILIES[0])
    if names[0] not in (family.architecture, family.model_type):
        raise UserError(f"{where}: {names[0]} is not a {family.title}; only {family.architecture} checkpoints are read")
    return family
