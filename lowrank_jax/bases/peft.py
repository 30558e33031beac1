"""Reads and writes PEFT folders for a loaded base, which is resized or untied first where the folder needs that."""

import dataclasses
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from lowrank_jax.adapters import Plan
from lowrank_jax.bases.base import Base, BaseConfig, abstract_base, architecture_of, param_shapes
from lowrank_jax.bases.locate import KNOWN
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.types import Tree
from lowrank_jax.interop import tied
from lowrank_jax.interop.keymap import Row
from lowrank_jax.interop.peft.export import save_peft
from lowrank_jax.interop.peft.files import PeftFiles, find_peft, open_peft
from lowrank_jax.interop.peft.folder import PeftAdapter, load_peft
from lowrank_jax.interop.peft.keys import EMBEDDINGS, GROWN, PREFIX, spelled
from lowrank_jax.interop.peft.prompts import has_prompts, load_prompts, save_prompts
from lowrank_jax.interop.peft.tables import tables_of
from lowrank_jax.models.parts.heads import SEQUENCE_HEADS
from lowrank_jax.text.tokenizers import Tokenizer, has_tokenizer, load_tokenizer

# Keys of the last layer of transformers' classifiers: of BERT and DeBERTa, RoBERTa, and decoders. Where it has an
# adapter, its own weight is in base_layer.
LAST = (
    *("classifier.weight", "classifier.out_proj.weight", "classifier.base_layer.weight"),
    *("classifier.out_proj.base_layer.weight", "score.weight", "score.base_layer.weight"),
)


def headed(config: BaseConfig, head: str, num_labels: int) -> BaseConfig:
    """The config of an encoder whose head an adapter brings: it is drawn at random first, and no other head is read.

    Args:
      config: of the encoder.
      head, num_labels: as in `BaseConfig`.

    Raises:
      UserError: no such head, or a base that takes none.
    """
    other = (r"cls\..*", r"lm_head\..*")
    config = dataclasses.replace(config, head=head, num_labels=num_labels, fresh=("head/.*", "pooler/.*"))
    if not getattr(abstract_base(config).config, "pooler", True):
        other = (*other, r"(\w+\.)?pooler\..*")
    return dataclasses.replace(config, unused=(*config.unused, *other))


def import_peft(folder: str | os.PathLike, base: Base) -> tuple[Base, PeftAdapter]:
    """Reads a PEFT folder for a loaded base; returns the base that the adapter belongs to, and the adapter.

    The base is changed where the folder needs it: a larger vocabulary resizes its tables, and an output layer that
    differs from a tied embedding is made a table of its own. A tokenizer in the folder replaces the base's.

    Args:
      folder: as in `load_peft`.
      base: with the head that the adapter was trained with.

    Raises:
      UserError: as there; an adapter of another head; a vocabulary that has grown without its embedding; a head that
        neither the base nor the adapter has.
    """
    if has_prompts(folder):
        return _import_prompts(folder, base)
    files, config, drawn = open_peft(folder), base.config, base.fresh
    rows = spelled(_rows(config), files.reader, _is_bare(config))
    _check_head(files, base)
    flat = flatten(base.params)
    decoder = hasattr(config, "tie_word_embeddings")
    needed = tables_of(files, flat, rows, tied.is_tied(config), decoder)
    if has_tokenizer(files.folder):  # tokens were added to it, or it is the base's
        base = dataclasses.replace(
            base, tokenizer=_tokenizer(files.folder, config.vocab_size if needed is None else needed.rows)
        )
    if needed is not None:
        grown = needed.rows != flat[next(path for path in EMBEDDINGS if path in flat)].shape[0]
        if grown and tied.is_tied(config) and not decoder:
            raise UserError(
                f"the adapter in {files.folder} has {needed.rows} token ids and this masked-lm base "
                f"{config.vocab_size}; merge it in PEFT first"
            )
        if needed.untied:
            base = untied(base, files.folder)
        if grown:
            base = _resized(base, needed.rows)
    rows, layers = _rows(base.config), base.config.num_hidden_layers
    adapter = load_peft(folder, base.params, rows, layers, _names(base), base.fingerprint)
    check_drawn(base, drawn, adapter.changed, files.folder)
    return base, adapter


def _import_prompts(folder: str | os.PathLike, base: Base) -> tuple[Base, PeftAdapter]:
    """`import_peft` of a folder of virtual tokens."""
    adapter = load_prompts(folder, base.params, base.config, _names(base), base.fingerprint)
    check_drawn(base, base.fresh, (), folder)
    place = find_peft(folder) or Path(folder)
    if has_tokenizer(place):
        base = dataclasses.replace(base, tokenizer=_tokenizer(place, base.config.vocab_size))
    return base, adapter


def _names(base: Base) -> list[str]:
    """The names by which an adapter may call the base."""
    return [base.name, *([KNOWN[base.name].repository] if base.name in KNOWN else [])]


def check_drawn(base: Base, drawn: Iterable[str], brought: Container[str], folder: str | os.PathLike) -> None:
    """Refuses a base with leaves that were drawn at random and that the adapter does not bring.

    Args:
      base: a random one may have such leaves.
      drawn: paths of leaves that the base's files lack.
      brought: paths of leaves that the adapter's folder has.
      folder: the adapter's, for the message.

    Raises:
      UserError: a leaf is in neither.
    """
    lacking = sorted(path for path in drawn if path not in brought)
    if lacking and base.source != "random":
        raise UserError(
            f"neither {base.name} nor the adapter in {folder} has {', '.join(lacking)}, which would be random: "
            "give the base with the head that the adapter was trained with"
        )


def _tokenizer(folder: Path, rows: int) -> Tokenizer:
    """The folder's own tokenizer, for an embedding of so many rows.

    Raises:
      UserError: it has more ids than the embedding.
    """
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} ids and the embedding {rows} rows: {GROWN}; "
            "or remove the tokenizer's files there if its added tokens are not needed"
        )
    return tokenizer


def untied(base: Base, why: Any) -> Base:
    """The base with an output layer of its own, a copy of its embedding.

    Args:
      base: a decoder whose output layer is its embedding.
      why: the adapter that needs it, for messages.

    Raises:
      UserError: an encoder, whose masked-lm head is always tied here.
    """
    if not hasattr(base.config, "tie_word_embeddings"):
        raise UserError(
            f"the adapter in {why} trains the embedding or the output layer by itself, and this encoder has one table "
            "for both; merge it in PEFT first"
        )
    config = dataclasses.replace(base.config, tie_word_embeddings=False)
    flat = dict(flatten(base.params))
    flat["head/kernel"] = jnp.array(flat["embed/embedding"]).T
    return _with(base, config, flat)


def _resized(base: Base, rows: int) -> Base:
    """The base with another number of token ids; new rows are zero, and the adapter fills them."""
    config, flat = dataclasses.replace(base.config, vocab_size=rows), dict(flatten(base.params))
    shapes, changed = param_shapes(config), []
    for path, shape in shapes.items():
        if flat[path].shape != shape:
            common = tuple(slice(min(old, new)) for old, new in zip(flat[path].shape, shape, strict=True))
            flat[path] = jnp.zeros(shape, flat[path].dtype).at[common].set(jnp.array(flat[path])[common])
            changed.append(path)
    return dataclasses.replace(_with(base, config, flat), fresh=tuple(dict.fromkeys((*base.fresh, *changed))))


def _with(base: Base, config: Any, flat: Mapping[str, Any]) -> Base:
    return dataclasses.replace(base, config=config, params=unflatten(flat), model=base.model.clone(config=config))


def _check_head(files: PeftFiles, base: Base) -> None:
    """Refuses a sequence classifier's adapter on a base without that head, and names the head that it needs."""
    keys = {key.removeprefix(PREFIX): key for key in files.reader.keys()}  # noqa: SIM118 (no dictionary)
    last = next((keys[name] for name in LAST if name in keys), None)
    if architecture_of(base.config).with_head is None:
        if last or files.config.task_type == "SEQ_CLS":
            raise UserError(
                f"{files.folder} has the adapter of a sequence classifier, which is read for encoders alone; "
                f"{base.name} is a decoder: merge it in PEFT first"
            )
        return
    labels = None if last is None else next(iter(files.reader.shape(last)), 0)
    if labels is None or (base.config.head in SEQUENCE_HEADS and base.config.num_labels == labels):
        return
    has = f"{base.config.num_labels} labels" if base.config.head in SEQUENCE_HEADS else f"the head {base.config.head!r}"
    raise UserError(
        f"{files.folder} has the adapter of a classifier of {labels} labels, and {base.name} has {has}; give "
        f"base.head=classification and base.num_labels={labels} (merge_adapter: --head classification --num_labels "
        f"{labels})"
    )


def _rows(config: Any) -> tuple[Row, ...]:
    return architecture_of(config).interop.hf_table(config)


def _is_bare(config: Any) -> bool:
    return getattr(config, "head", None) == "none"


def export_peft(
    folder: str | os.PathLike,
    plan: Plan,
    variables: Mapping[str, Tree],
    base: Base,
    trained: Sequence[str] = (),
    token_rows: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Writes a PEFT folder (`save_peft`) with the name, revision and fingerprint of a loaded base.

    Leaves that the base's own files lack are written too.

    Args:
      folder, plan, variables, trained, token_rows: as there; `base.fresh` (drawn here, or given room for by
        `import_peft`) counts as trained.

    Raises:
      UserError: as there.
    """
    rows, layers = _rows(base.config), base.config.num_hidden_layers
    name, revision, fresh = base.name, None, set(base.fresh)
    if base.path is None:  # random: PEFT has no name to load it by
        name, fresh = "", set()
    elif base.name in KNOWN:
        name = KNOWN[base.name].repository
    elif base.source.startswith("hub:"):
        revision = base.path.name
    else:
        file = base.path.resolve()
        name = str(file if file.is_dir() or file.suffix == ".gguf" else file.parent)
    if plan.virtual is not None:
        kept = sorted({*trained, *fresh})
        return save_prompts(folder, plan, variables, base.config, name, base.fingerprint, kept, revision)
    alone = {path: ids for path, ids in (token_rows or {}).items() if path not in fresh}
    kept = sorted({*trained, *fresh} - set(alone))
    return save_peft(folder, plan, variables, rows, layers, name, base.fingerprint, kept, revision, alone)
