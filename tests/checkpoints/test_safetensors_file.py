"""Safetensors files of equal content are equal in bytes: to each other, and to the library's with one metadata key."""

import hashlib
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

from lowrank_jax.checkpoints.adapters_only import load_adapter, save_adapter
from lowrank_jax.checkpoints.safetensors_file import DTYPES, safetensors_bytes, write_safetensors

SAVE = """
import sys
import numpy as np
from lowrank_jax.adapters import AdapterConfig, create, make_plan
from lowrank_jax.checkpoints.adapters_only import save_adapter
from lowrank_jax.interop.keymap import TRANSPOSE, Row
from lowrank_jax.interop.peft.export import save_peft

rows = [Row(f"h.{{layer}}.{n}.weight", f"layers/{n}/kernel", (6, 6), TRANSPOSE) for n in ("up", "down", "gate")]
params = {"layers": {n: {"kernel": np.ones((2, 6, 6), np.float32)} for n in ("up", "down", "gate")}}
plan = make_plan(params, AdapterConfig(rank=2, targets=("up", "down", "gate")))
leaves = {site.path.split("/")[1]: {"a": np.ones((2, 6, 2), np.float32), "b": np.ones((2, 2, 6), np.float32)}
          for site in plan.sites}
made = {"adapters": {"layers": leaves}, "scales": {"layers": {n: {"scale": np.ones(2, np.float32)} for n in leaves}}}
save_adapter(sys.argv[1] + "/ours", {"adapters": made["adapters"]}, {"method": "lora"}, {"layers/up/scale": 1.0},
             {"name": "toy", "fingerprint": "f1"})
save_peft(sys.argv[1] + "/peft", plan, {"params": params, **made}, rows, 2, "org/toy", "f1")
"""


def tensors():
    """One of every type, shapes [], [0, 2] and [3, 5] among them, under names that JSON must escape."""
    shapes, rng = [(), (0, 2), (3, 5)], np.random.default_rng(0)
    names = [getattr(ml_dtypes, name, name) for name in DTYPES]
    return {
        f'{(7 * i) % len(names)}é/"{i}': np.asarray(rng.integers(0, 2, shapes[i % 3])).astype(name)
        for i, name in enumerate(names)
    }


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"note": 'a "quote"\n\té'}])
def test_the_bytes_are_the_librarys(metadata):
    """Of at most one metadata key, which is all that the library writes in one order."""
    assert safetensors_bytes(tensors(), metadata) == save(tensors(), metadata=metadata or None)
    turned = dict(reversed(tensors().items()))
    assert safetensors_bytes(turned, metadata) == safetensors_bytes(tensors(), metadata)


def test_metadata_in_any_order_gives_one_file(tmp_path):
    keys = [f"key{i}" for i in range(8)]
    write_safetensors(tmp_path / "a", {"x": np.ones(3)}, {key: key[-1] for key in keys})
    write_safetensors(tmp_path / "b", {"x": np.ones(3)}, {key: key[-1] for key in reversed(keys)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert int.from_bytes((tmp_path / "a").read_bytes()[:8], "little") % 8 == 0
    with safe_open(tmp_path / "a", framework="np") as handle:
        assert handle.metadata() == {key: key[-1] for key in keys}


def test_arrays_that_do_not_lie_as_the_file_does(tmp_path):
    turned, big = np.arange(6, dtype=np.float32).reshape(2, 3).T, np.arange(3, dtype=">f4")
    write_safetensors(tmp_path / "t", {"turned": turned, "big": big}, {})
    read = load_file(tmp_path / "t")
    np.testing.assert_array_equal(read["turned"], turned)
    np.testing.assert_array_equal(read["big"], big)


def test_equal_adapters_are_equal_files(tmp_path, monkeypatch):
    """Ours and PEFT's, of many saves and another process; the library throws a coin for their two metadata keys."""
    digests = []
    for i in range(6):
        folder = tmp_path / str(i)
        folder.mkdir()
        if i:
            monkeypatch.setattr(sys, "argv", ["save", str(folder)])
            exec(SAVE, {})
        else:
            command = [sys.executable, "-c", SAVE, str(folder)]
            subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests.append({str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert len(digests[0]) == 4
    assert all(other == digests[0] for other in digests)


def test_an_adapter_that_the_library_wrote_still_loads(tmp_path):
    leaf = {"adapters": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    save_adapter(tmp_path, leaf, {"method": "lora"}, {"scale": 2.0}, {"name": "toy", "fingerprint": "f1"})
    held = {"adapters/a": leaf["adapters"]["a"], "scales/scale": np.array(2.0, np.float32)}
    content = save(held, metadata={"format_version": "1", "format": "lowrank_jax", "more": "x"})
    (tmp_path / "adapter.safetensors").write_bytes(content)
    description = json.loads((tmp_path / "adapter.json").read_text())
    description["sha256"] = hashlib.sha256(content).hexdigest()
    (tmp_path / "adapter.json").write_text(json.dumps(description))
    np.testing.assert_array_equal(load_adapter(tmp_path, "f1")[0]["adapters"]["a"], leaf["adapters"]["a"])
