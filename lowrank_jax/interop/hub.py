"""A Hugging Face Hub repository -> its folder in the Hub's own cache, with one-line refusals."""

import errno
from pathlib import Path

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.readers import TORCH_SINGLE

TIMEOUT = 10.0  # seconds
CONFIG_FILES = ("*.json", "tokenizer*", "vocab.txt", "merges.txt", "spm.model")


def download(repository: str, revision: str, weights: bool, fetched: str) -> Path:
    """The repository's folder in the Hub's cache: filled over the network, or, without one, as it is.

    Args:
      repository: "org/name".
      revision: branch, tag or commit.
      weights: False fetches config and tokenizer alone.
      fetched: a name that scripts/fetch_weights.py knows, for the message without a network.

    Raises:
      UserError: gated, unknown, no network and not in the cache, or no space.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    # Nested folders hold other formats of the same weights (original/, onnx/).
    options = {"allow_patterns": [*CONFIG_FILES], "ignore_patterns": ["*/*"]}
    try:
        try:
            # The download itself waits for minutes behind a firewall that drops packets; this question does not.
            info = HfApi().model_info(repository, revision=revision, timeout=TIMEOUT)
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
    except Exception as error:  # the Hub's client lets errors of its HTTP library through, which differ by version
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(f"the disk is full while downloading {repository}; free space or set HF_HOME") from None
        raise UserError(
            f"cannot reach the Hub for {repository} ({type(error).__name__}); give a local folder or .gguf file, "
            f"or try again with network, or use fetched weights: python scripts/fetch_weights.py {fetched}"
        ) from None
