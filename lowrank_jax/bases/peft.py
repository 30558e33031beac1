"""PEFT folders of a loaded base, in and out: a folder may bring tables that the base must first be given room for."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
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
from lowrank_jax.interop.peft.files import PeftFiles, open_peft
from lowrank_jax.interop.peft.folder import PeftAdapter, load_peft
from lowrank_jax.interop.peft.keys import EMBEDDINGS, GROWN, PREFIX, spelled
from lowrank_jax.interop.peft.tables import tables_of
from lowrank_jax.models.heads import SEQUENCE_HEADS
from lowrank_jax.text.tokenizers import Tokenizer, has_tokenizer, load_tokenizer

# The last products of transformers' classifiers: BERT's and DeBERTa's, RoBERTa's, below an adapter, and a decoder's.
LAST = (
    *("classifier.weight", "classifier.out_proj.weight", "classifier.base_layer.weight"),
    *("classifier.out_proj.base_layer.weight", "score.weight", "score.base_layer.weight"),
)


def headed(config: BaseConfig, head: str, num_labels: int) -> BaseConfig:
    """The config of an encoder whose head comes from an adapter: drawn first, and heads of other kinds are not read.

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
    """`load_peft` for a loaded base, and the base that the adapter's plan and params belong to.

    It is the same base, unless the folder has a larger vocabulary, or an output layer of its own beside an embedding
    that the base reads as output layer too: then config, model and params have those. A tokenizer in the folder goes
    first.

    Args:
      folder: as in `load_peft`.
      base: with the head that the adapter was trained with.

    Raises:
      UserError: as there; an adapter of another head; a vocabulary that grew without its table; a head that neither
        the base nor the adapter has.
    """
    files, config, drawn = open_peft(folder), base.config, base.fresh
    rows = spelled(_rows(config), files.reader, _is_bare(config))
    _check_head(files, base)
    flat = flatten(base.params)
    decoder = hasattr(config, "tie_word_embeddings")
    needed = tables_of(files, flat, rows, tied.is_tied(config), decoder)
    if has_tokenizer(files.folder):  # tokens were added to it, or it is the base's
        base = dataclasses.replace(
            base, tokenizer=_tokenizer(files, config.vocab_size if needed is None else needed.rows)
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
    names = [base.name, *([KNOWN[base.name].repository] if base.name in KNOWN else [])]
    adapter = load_peft(folder, base.params, _rows(base.config), base.config.num_hidden_layers, names, base.fingerprint)
    lacking = sorted(path for path in drawn if path not in adapter.changed)
    if lacking and base.source != "random":
        raise UserError(
            f"neither {base.name} nor the adapter in {files.folder} has {', '.join(lacking)}, which would be random: "
            "give the base with the head that the adapter was trained on"
        )
    return base, adapter


def _tokenizer(files: PeftFiles, rows: int) -> Tokenizer:
    """The folder's own tokenizer.

    Raises:
      UserError: it has more ids than the embedding.
    """
    tokenizer = load_tokenizer(files.folder)
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer in {files.folder} has {tokenizer.vocab_size} ids and the embedding {rows} rows: {GROWN}; "
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
    """The base with another number of token ids; further rows are zero, for the adapter to fill."""
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
    """`save_peft` for a loaded base: with its name, revision and fingerprint, and the leaves that its files lack.

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
    alone = {path: ids for path, ids in (token_rows or {}).items() if path not in fresh}
    kept = sorted({*trained, *fresh} - set(alone))
    return save_peft(folder, plan, variables, rows, layers, name, base.fingerprint, kept, revision, alone)
