"""An adapter alone: exact round trip, the right base, every kind of damage, an atomic write."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.checkpoints import adapters_only
from lowrank_jax.checkpoints.adapters_only import load_adapter, save_adapter
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten

CONFIG = {"method": "lora", "rank": 3, "alpha": 6.0, "targets": ("query",), "mora": {"padding": "wrap"}}
SCALES = {"layers/query/scale": [2.0, 1 / 3], "head/scale": 0.5}
BASE = {"name": "toy", "fingerprint": "f1"}


def trainable():
    rng = np.random.default_rng(0)
    return {
        "adapters": {
            "layers": {"query": {"a": jnp.asarray(rng.normal(size=(2, 8, 3)), jnp.float32), "b": jnp.zeros((2, 3, 8))}}
        },
        "params": {"norm": {"bias": jnp.asarray(rng.normal(size=8), jnp.float32)}, "gain": jnp.float32(2.5)},
        "half": jnp.asarray(rng.normal(size=(4, 5)), jnp.bfloat16),
    }


def test_round_trip_is_exact(tmp_path):
    tree = trainable()
    save_adapter(tmp_path / "adapter", tree, CONFIG, SCALES, BASE)
    got, scales, description = load_adapter(tmp_path / "adapter", "f1", jax.eval_shape(lambda: tree))
    for (path, leaf), (other_path, other) in zip(flatten(tree).items(), flatten(got).items(), strict=True):
        assert (path, leaf.dtype, leaf.shape) == (other_path, other.dtype, other.shape)
        assert np.asarray(leaf).tobytes() == other.tobytes()
    assert (scales["layers"]["query"]["scale"] == np.array([2, 1 / 3], np.float32)).all()
    assert scales["head"]["scale"].shape == ()
    assert description["config"] == json.loads(json.dumps(CONFIG))
    assert description["base"] == BASE
    assert description["leaves"]["half"] == {"dtype": "bfloat16", "shape": [4, 5]}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_safetensors_reads_the_file_without_us(tmp_path):
    from safetensors.numpy import load_file

    save_adapter(tmp_path, {"adapters": trainable()["adapters"]}, CONFIG, SCALES, BASE)
    tensors = load_file(tmp_path / "adapter.safetensors")
    assert set(tensors) == {"adapters/layers/query/a", "adapters/layers/query/b", *(f"scales/{p}" for p in SCALES)}


def test_another_base_is_refused_by_name(tmp_path):
    save_adapter(tmp_path, trainable(), CONFIG, SCALES, BASE)
    load_adapter(tmp_path)
    with pytest.raises(UserError, match=r"toy with fingerprint f1, .* fingerprint f2"):
        load_adapter(tmp_path, "f2")


def test_every_leaf_that_does_not_fit_is_named(tmp_path):
    save_adapter(tmp_path, trainable(), CONFIG, SCALES, BASE)
    flat = flatten(trainable())
    flat["adapters/layers/query/a"] = jnp.zeros((2, 8, 4))
    flat["adapters/layers/key/a"] = flat.pop("half")
    with pytest.raises(UserError) as caught:
        load_adapter(tmp_path, abstract=unflatten(flat))
    for phrase in ("query/a is [2, 8, 3], not [2, 8, 4]", "layers/key/a is missing", "half is unknown here"):
        assert phrase in str(caught.value)


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.json"])
@pytest.mark.parametrize("how", ["delete", "empty", "half", "flip"])
def test_damage_is_refused(tmp_path, name, how):
    save_adapter(tmp_path, trainable(), CONFIG, SCALES, BASE)
    path = tmp_path / name
    content = path.read_bytes()
    at = content.index(b'"fingerprint"') + 2 if name.endswith("json") else len(content) - 5
    broken = {"empty": b"", "half": content[: len(content) // 2], "flip": content[:at] + b"\x01" + content[at + 1 :]}
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes(broken[how])
    with pytest.raises(UserError, match=str(tmp_path)) as caught:
        load_adapter(tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_newer_format_and_an_absent_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters_only, "FORMAT_VERSION", 2)
    save_adapter(tmp_path / "new", trainable(), CONFIG, SCALES, BASE)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 2"):
        load_adapter(tmp_path / "new")
    with pytest.raises(UserError, match="no adapter in"):
        load_adapter(tmp_path / "absent")
    with pytest.raises(UserError, match="nothing was trained"):
        save_adapter(tmp_path / "empty", {"adapters": {}}, CONFIG, {}, BASE)


def test_a_failed_write_keeps_the_adapter_that_was_there(tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    save_adapter(folder, trainable(), CONFIG, SCALES, BASE)
    before = load_adapter(folder)[2]

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapters_only.os, "fsync", full)
    with pytest.raises(UserError, match=f"{folder} .No space left on device"):
        save_adapter(folder, trainable(), {"method": "mora"}, SCALES, BASE)
    monkeypatch.undo()
    assert load_adapter(folder)[2] == before
    save_adapter(folder, trainable(), {"method": "mora"}, SCALES, BASE)
    assert load_adapter(folder)[2]["config"] == {"method": "mora"}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_other_folders_are_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="something other than an adapter"):
        save_adapter(tmp_path, trainable(), CONFIG, SCALES, BASE)
    assert (tmp_path / "thesis.tex").exists()
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("name", ["4,", "f4,f4", "", "float31", 5, None, ["float32"], "(((", "V8"])
def test_a_dtype_that_is_none_is_damage(tmp_path, name):
    """NumPy parses a text with a comma as Python, and raises a SyntaxError."""
    save_adapter(tmp_path, trainable(), CONFIG, SCALES, BASE)
    description = json.loads((tmp_path / "adapter.json").read_text())
    description["leaves"]["half"]["dtype"] = name
    (tmp_path / "adapter.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"adapter\.safetensors is damaged"):
        load_adapter(tmp_path)
