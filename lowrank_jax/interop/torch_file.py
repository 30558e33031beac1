"""torch.save's zip files without torch and without running their code: names and shapes first, then single tensors."""

import dataclasses
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lowrank_jax.core.errors import UserError

STORAGES = {  # torch's storage class -> dtype
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """A flat buffer of the file: its entry's number and its values."""

    name: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A strided view of a storage; offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_names(path: Path) -> dict[str, StoredTensor]:
    """{name: storage and strides of its values}; a state dict may sit under "state_dict" or "model".

    Raises:
      UserError: not torch's zip format, damaged, or anything but tensors by name.
    """
    try:
        with zipfile.ZipFile(path) as file:
            root = _root(path, file)
            if f"{root}/byteorder" in file.namelist() and file.read(f"{root}/byteorder") != b"little":
                raise UserError(f"{path} was written on a big-endian machine; save it as safetensors")
            with file.open(f"{root}/data.pkl") as pickled:
                state = _Names(pickled).load()
    except zipfile.BadZipFile:
        raise UserError(
            f"{path} is damaged, or in torch's format before 1.6; save it as safetensors (save_pretrained)"
        ) from None
    except UserError:
        raise
    except _Refused as error:
        raise UserError(f"{path} contains {error}, more than tensors; its code is not run: use safetensors") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path} is damaged ({type(error).__name__}); copy or download it again") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, StoredTensor) for name, tensor in state.items()
    ):
        raise UserError(f"{path} is no state dict (tensors by name); save the model's own weights")
    return dict(state)


def read_tensor(path: Path, key: str, tensor: StoredTensor) -> np.ndarray:
    """The values of one tensor.

    Raises:
      UserError: an integer type, a view outside its storage, or a damaged file.
    """
    storage, dtype = tensor.storage, np.dtype(tensor.storage.dtype)
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
        raise UserError(f"{path}: {key} is stored as {dtype.name}, a quantised or integer type; use a float checkpoint")
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    empty = not math.prod(tensor.shape)
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0 or (last >= storage.size and not empty):
        raise UserError(f"{path}: {key} reaches outside its storage; copy or download the file again")
    try:
        with zipfile.ZipFile(path) as file:
            values = np.frombuffer(file.read(f"{_root(path, file)}/data/{storage.name}"), dtype)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged at {key} ({type(error).__name__}); copy or download it again") from None
    if len(values) < storage.size:
        raise UserError(f"{path} is cut short at {key}; copy or download it again")
    strides = tuple(step * dtype.itemsize for step in tensor.strides)
    return np.ndarray(tensor.shape, dtype, values, tensor.offset * dtype.itemsize, strides)


class _Refused(Exception):
    """The pickle has a name that weights do not need."""


class _Names(pickle.Unpickler):
    """Unpickles names, numbers and tensors' places; any other global is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if (module, name) not in known:
            raise _Refused(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        _, dtype, name, _, size = pid
        return Storage(str(name), dtype, int(size))


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> StoredTensor:
    return StoredTensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _parameter(tensor: StoredTensor, *_: Any) -> StoredTensor:
    return tensor


def _root(path: Path, file: zipfile.ZipFile) -> str:
    for name in file.namelist():
        if name.endswith("/data.pkl"):
            return name.removesuffix("/data.pkl")
    raise UserError(f"{path} is a zip file without torch's data.pkl; copy or download it again")
