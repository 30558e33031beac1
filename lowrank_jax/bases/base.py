"""Loads a base model by its name: shape, weights, tokenizer and fingerprint."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lowrank_jax.bases.codes import abstract_leaves, quantize_leaf
from lowrank_jax.bases.fingerprint import digest, fingerprint, sample
from lowrank_jax.bases.locate import SHIPPED, is_here, resolve, say_full_name
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of
from lowrank_jax.core.paths import flatten, unflatten, unknown_name
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.core.types import Report
from lowrank_jax.interop import bert, deberta, gpt2, llama, partial, tied
from lowrank_jax.interop.fields import Notes, check_kinds
from lowrank_jax.interop.gguf.config import config_from_gguf
from lowrank_jax.interop.gguf.file import GGUFReader
from lowrank_jax.interop.gguf.settings import gguf_settings
from lowrank_jax.interop.gguf.tokenizer import gguf_tokenizer
from lowrank_jax.interop.keymap import FinishFn, ShardingFn
from lowrank_jax.interop.partial import STRICT, Exceptions, draw_params, draw_program
from lowrank_jax.interop.readers import Reader, open_checkpoint, read_json
from lowrank_jax.models.bert import Bert, BertConfig
from lowrank_jax.models.bert import with_head as bert_with_head
from lowrank_jax.models.deberta import Deberta, DebertaConfig
from lowrank_jax.models.deberta import with_head as deberta_with_head
from lowrank_jax.models.gpt2 import GPT2, GPT2Config
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.llama_config import LlamaConfig
from lowrank_jax.models.registry import MODELS, get_model
from lowrank_jax.ops.fp8 import RECIPE, Fp8Config
from lowrank_jax.ops.quantized import NONE, check_kind
from lowrank_jax.text.chat_files import read_template
from lowrank_jax.text.tokenizers import ByteTokenizer, Tokenizer, check_vocabulary, has_tokenizer, load_tokenizer

DTYPES = ("float32", "bfloat16", "float16")
MOST_PARAMETERS = 2**43  # 9e12, several times the largest model; XLA ends the process where a size overflows an int64
AUTO = "auto"  # the checkpoint's head
UNUSED = (r"(.*\.)?embeddings\.position_ids",)  # a buffer of old BERT files: 0, 1, 2, ...


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How checkpoints of some of HF's model_types become a model."""

    model_types: tuple[str, ...]
    interop: ModuleType  # config_from_hf, hf_table, checkpoint_table, head_pairs, export_params
    config: type
    model: type
    with_head: Callable[[Any, str, int], Any] | None = None  # encoders: (config, head, num_labels) -> config


ARCHITECTURES = (
    Architecture(llama.MODEL_TYPES, llama, LlamaConfig, Llama),
    Architecture(("bert", "roberta"), bert, BertConfig, Bert, bert_with_head),
    Architecture(("gpt2",), gpt2, GPT2Config, GPT2),
    Architecture(("deberta-v2",), deberta, DebertaConfig, Deberta, deberta_with_head),
)


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """Which base model, how its weights are stored and how it runs.

    Attributes:
      name: "pico-llama" (shipped), a fetched name ("smollm2-135m"), a folder, .gguf or .bin file, or a Hub "org/name".
      revision: Hub revision; None is "main".
      dtype: of the frozen weights and of the computation.
      quantize: "int8", "nf4" or "fp8" stores the layers' kernels as codes, see `ops.quantized`; "none" in `dtype`.
      fp8: how products with FP8 codes are computed.
      remat, attention, scan_unroll: see `models.parts.causal.CausalLM`.
      fused: frozen kernels that read the same input are joined into one while training; see `layouts.fused`.
      random_init: random weights for a registered shape, instead of pretrained ones.
      tokenizer: of random weights: a folder, a fetched name or a Hub repository that has a tokenizer.json; None for
        bytes, which shapes of 259 ids read.
      head: an encoder's head, a name of `models.parts.heads.HEADS`; "auto" is the one that the checkpoint has.
      num_labels: classes of a head that is named here.
      classifier_dropout: rate in front of that head; None is the checkpoint's own.
      fresh, unused: what the checkpoint may lack, or have in addition; see `partial.Exceptions`.
    """

    name: str
    revision: str | None = None
    dtype: str = "float32"
    quantize: str = NONE
    fp8: Fp8Config = RECIPE
    remat: str = "none"
    attention: str = "auto"
    scan_unroll: Annotated[int, Range(least=1)] = 1
    fused: bool = False
    random_init: bool = False
    tokenizer: str | None = None
    head: str = AUTO
    num_labels: Annotated[int, Range(least=1)] = 2
    classifier_dropout: Annotated[float, Range(least=0, below=1)] | None = None
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = UNUSED

    def __post_init__(self):
        check_ranges(self, "base")
        Exceptions(self.fresh, self.unused)  # checks their patterns
        if self.tokenizer and not self.random_init:
            raise UserError("base.tokenizer is for random weights; published ones bring their own: leave it out")
        check_kind(self.quantize, self.fp8)
        if not self.name.strip():
            raise UserError(f"base.name is empty; name a base such as {SHIPPED}, a folder, or a Hub repository")


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model that is ready to be adapted.

    Attributes:
      params: the tree below "params"; ShapeDtypeStructs from `abstract_base`.
      tokenizer: None when the weights come without one.
      fingerprint: of the config and the params as read, before quantisation and without a fresh head; None from
        `abstract_base`.
      source: where the weights came from, for a run's records.
      notes: a line for each field of the config with contradicting values, for a head that the config wrongly calls
        tied, for what was drawn fresh, and for what was not read.
      fresh: paths below "params" that were drawn, not read; all of them with random_init.
      path: the weights' folder or file; None for random ones.
    """

    name: str
    model: Any
    config: Any
    params: Any
    tokenizer: Tokenizer | None
    fingerprint: str | None
    source: str
    notes: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    path: Path | None = None


def load_base(
    config: BaseConfig,
    key: jax.Array | None = None,
    sharding_fn: ShardingFn | None = None,
    report: Report | None = None,
    planned: Any = None,
) -> Base:
    """Loads or draws the base's weights, leaf by leaf, in `config.dtype`; prints what was drawn or left unread.

    Args:
      key: for random_init and fresh leaves.
      sharding_fn: (path below "params", shape) -> Sharding of that leaf; None is the default device.
      report: called with the number of values read.
      planned: the shape from `abstract_base`, which follows config.json alone where the weights were not yet
        downloaded.

    Raises:
      UserError: no base of that name, no network, an unknown architecture, damaged files, a tokenizer that is too
        large, or a head that was planned as tied and is not. All but damaged tensors are found before a weight is read.
    """
    model_dtype, samples, path = _dtype(config.dtype), {}, None

    def finish(path, leaf):
        samples[path] = sample(leaf)
        return quantize_leaf(path, leaf, config.quantize, sharding_fn, config.fp8)

    if config.random_init:
        shape, tokenizer, source = _headed(config, get_model(config.name)), random_tokenizer(config), "random"
        if key is None:
            raise ValueError("random_init needs a key")
        one_by_one = finish if config.quantize != NONE else None  # compiles a program a leaf, in twice the time
        params, notes = draw_params(param_shapes(shape), key, model_dtype, sharding_fn, one_by_one), ()
        fresh, mark = tuple(flatten(params)), digest(samples, shape) if samples else fingerprint(params, shape)
    else:
        path, source = resolve(config.name, config.revision)
        say_full_name(config.name, path)
        reader = open_checkpoint(path)
        exceptions, said = Exceptions(config.fresh, config.unused), []
        shape, tokenizer = _shape_and_tokenizer(config, path, reader, said)
        if planned is not None and tied.is_tied(planned) != tied.is_tied(shape):
            raise UserError(
                f"{path}: the weights' head is{'' if tied.is_tied(shape) else ' not'} tied, unlike what was planned by "
                "config.json; start again if they were downloaded just now, otherwise correct its tie_word_embeddings"
            )
        params, notes, fresh = load_params(reader, shape, model_dtype, sharding_fn, exceptions, key, finish, report)
        notes = (*said, *notes)
        mark = digest({path: one for path, one in samples.items() if path not in fresh}, shape)
    for note in notes:
        print(note, flush=True)
    model = build_model(config, shape)
    return Base(config.name, model, shape, params, tokenizer, mark, source, notes, fresh, path)


def random_program(config: BaseConfig, sharding_fn: ShardingFn | None = None) -> Any:
    """The jitted key -> leaves of `load_base`, for compiling it ahead; None where it reads or quantises by leaf."""
    if not config.random_init or config.quantize != NONE:
        return None
    return draw_program(param_shapes(_headed(config, get_model(config.name))), _dtype(config.dtype), sharding_fn)


def redraw(base: Base, key: jax.Array, sharding_fn: ShardingFn | None = None) -> dict[str, Any]:
    """The base's fresh leaves as `load_base` draws them with another key, by path below "params"."""
    flat = flatten(base.params)
    if not base.fresh:
        return {}

    def finish(path, leaf):
        held = flat[path]
        return quantize_leaf(path, leaf, getattr(held, "kind", NONE), sharding_fn, getattr(held, "recipe", RECIPE))

    shapes, dtype = {path: flat[path].shape for path in base.fresh}, flat[base.fresh[0]].dtype
    return dict(flatten(draw_params(shapes, key, dtype, sharding_fn, finish)))


def abstract_base(config: BaseConfig, sharding_fn: ShardingFn | None = None) -> Base:
    """The same as `load_base` with ShapeDtypeStructs as params: reads no weights, for planning.

    A registered name whose weights are not here has its registered shape; of a Hub name, config and tokenizer are
    fetched. Where the weights are here, a head that the config calls tied is compared with the embedding, as by
    `load_base`.
    """
    model_dtype, path = _dtype(config.dtype), None
    if config.random_init or (config.name in MODELS and not is_here(config.name)):
        bare = dataclasses.replace(config, tokenizer=None)  # on shapes nothing is fetched; see `random_tokenizer`
        shape, tokenizer, source = _headed(config, get_model(config.name)), random_tokenizer(bare), "registry"
    else:
        path, source = resolve(config.name, config.revision, weights=False)
        if path.is_dir() and kind_of(path / "config.json") is not None:
            shape = _planned(config, path, source)
            tokenizer = ByteTokenizer() if config.name == SHIPPED else _folder_tokenizer(path)
        else:
            shape, tokenizer = _shape_and_tokenizer(config, path, open_checkpoint(path), [])
    params = abstract_leaves(param_shapes(shape), model_dtype, config.quantize, sharding_fn, config.fp8)
    model = build_model(config, shape)
    return Base(config.name, model, shape, unflatten(params), tokenizer, None, source, path=path)


def build_model(config: BaseConfig, shape: Any) -> Any:
    """The module that runs the params, in the base config's dtype, remat, attention and unrolling."""
    dtype = _dtype(config.dtype)
    return architecture_of(shape).model(
        config=shape,
        dtype=dtype,
        param_dtype=dtype,
        remat=config.remat,
        scan_unroll=config.scan_unroll,
        attention=config.attention,
    )


def param_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """{path below "params": shape}, without creating arrays."""
    rows = architecture_of(config).interop.hf_table(config)
    shapes = {row.target: row.target_shape(config.num_hidden_layers) for row in rows}
    if (total := sum(map(math.prod, shapes.values()))) > MOST_PARAMETERS:
        raise UserError(f"a {type(config).__name__} of {total:.3g} parameters is beyond reason; check its sizes")
    return shapes


def load_params(
    reader: Reader,
    config: Any,
    dtype: Any = jnp.float32,
    sharding_fn: ShardingFn | None = None,
    exceptions: Exceptions = STRICT,
    key: jax.Array | None = None,
    finish: FinishFn | None = None,
    report: Report | None = None,
) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """A checkpoint's weights as params of any architecture, a line for each exception, and the paths drawn fresh.

    Raises:
      UserError: see `partial.load`.
    """
    interop = architecture_of(config).interop
    pairs, (rows, ignored) = interop.head_pairs(reader, config), interop.checkpoint_table(reader, config)
    if said := tied.fit(reader, config, pairs, exceptions.unused)[1]:
        raise ValueError(f"the config ties a head that differs; give the one of tied.fit ({said[0]})")
    layers = config.num_hidden_layers
    fresh = tuple(row.target for row in partial.split(reader, rows, layers, exceptions)[1])
    if "head/kernel" not in fresh:
        tied.check_head(reader, config, pairs)
    return *partial.load(reader, rows, layers, dtype, sharding_fn, ignored, exceptions, key, finish, report), fresh


def export_params(params: Any, config: Any, folder: str | Path, dtype: str = "float32", **options: Any) -> Path:
    """Writes params of any architecture in HF's layout; see `export.write_checkpoint` for the options."""
    return architecture_of(config).interop.export_params(params, config, folder, dtype, **options)


def architecture_of(config: Any) -> Architecture:
    """The row of ARCHITECTURES for a model's config."""
    return next(row for row in ARCHITECTURES if type(config) is row.config)


def random_params(config: Any, key: jax.Array, dtype: Any, sharding_fn: ShardingFn | None = None) -> Any:
    """Params of a shape from N(0, 0.02^2), norms one, biases zero; see `partial.draw_params`."""
    return draw_params(param_shapes(config), key, dtype, sharding_fn)


def config_of(path: Path, reader: Reader | None, notes: Notes | None = None) -> Any:
    """The config of the checkpoint at `path`: GGUF's metadata, or config.json in it or next to it. Reads no weights.

    Args:
      notes: gets a line for each field with contradicting values.

    Raises:
      UserError: an architecture that is not in ARCHITECTURES, or what it says of the config.
    """
    if isinstance(reader, GGUFReader):
        return config_from_gguf(reader, notes)
    file = (path if path.is_dir() else path.parent) / "config.json"
    values = read_json(file)
    check_kinds(values, file)
    kind = values.get("model_type")
    for row in ARCHITECTURES:
        if kind in row.model_types:
            return row.interop.config_from_hf(values, file, notes)
    known = ", ".join(name for row in ARCHITECTURES for name in row.model_types)
    raise UserError(f"{file}: model_type {kind!r} is not read here; known: {known}")


def _headed(config: BaseConfig, shape: Any) -> Any:
    """The shape with the head that the base config names."""
    if config.head == AUTO:
        return shape
    change = architecture_of(shape).with_head
    if change is None:
        raise UserError(f"{config.name} is no encoder and takes no head {config.head!r}; leave base.head at {AUTO!r}")
    shape = change(shape, config.head, config.num_labels)
    if config.classifier_dropout is None:
        return shape
    return dataclasses.replace(shape, classifier_dropout=config.classifier_dropout)


def _fitted(config: BaseConfig, shape: Any, reader: Reader, notes: Notes) -> Any:
    """The shape with its head untied where the weights say so; see `tied.fit`."""
    pairs = architecture_of(shape).interop.head_pairs(reader, shape)
    shape, said = tied.fit(reader, shape, pairs, config.unused)
    notes += said
    return shape


def _planned(config: BaseConfig, path: Path, source: str) -> Any:
    """The shape that config.json gives; where the head may be untied and the weights are here, they decide."""
    shape = _headed(config, config_of(path, None))
    weights = [file for kind in ("*.safetensors", "*.bin") for file in path.glob(kind)]
    if not weights or not tied.is_tied(shape):
        return shape
    try:
        reader = open_checkpoint(path)
    except UserError:
        if source.startswith("hub:"):  # some are missing; `load_base` downloads them
            return shape
        raise
    return _fitted(config, shape, reader, [])


def _shape_and_tokenizer(config: BaseConfig, path: Path, reader: Reader, notes: Notes) -> tuple[Any, Tokenizer | None]:
    name, shape = config.name, _fitted(config, _headed(config, config_of(path, reader, notes)), reader, notes)
    folder = path if path.is_dir() else path.parent
    tokenizer = ByteTokenizer() if name == SHIPPED else _folder_tokenizer(folder)
    if tokenizer is None and isinstance(reader, GGUFReader) and "tokenizer.ggml.model" in reader.metadata:
        tokenizer = gguf_tokenizer(reader, Path(name).stem)
        tokenizer.chat_template = read_template(folder, gguf_settings(reader))
    if tokenizer is not None:
        check_vocabulary(tokenizer, shape.vocab_size)
    return shape, tokenizer


def _folder_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer, or None where it has no tokenizer file."""
    return load_tokenizer(folder) if has_tokenizer(folder) else None


def random_tokenizer(config: BaseConfig) -> Tokenizer | None:
    """The tokenizer of random weights, fetched where it is a Hub repository's; None where they have none.

    Raises:
      UserError: nothing is there, or it has more ids than the shape.
    """
    size = get_model(config.name).vocab_size
    if config.tokenizer is None:
        return ByteTokenizer() if size == ByteTokenizer.vocab_size else None
    path, _ = resolve(config.tokenizer, weights=False)
    tokenizer = _folder_tokenizer(path if path.is_dir() else path.parent)
    if tokenizer is None:
        raise UserError(f"base.tokenizer {config.tokenizer}: no tokenizer.json in {path}; name a folder that has one")
    check_vocabulary(tokenizer, size)
    return tokenizer


def _dtype(name: str) -> Any:
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return jnp.dtype(name)
