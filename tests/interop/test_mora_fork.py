"""MoRA adapters as the authors' PEFT fork writes them, both ways; the golden values of its layer come out."""

import json

import jax
import numpy as np
import pytest
from toys import created

from lowrank_jax.adapters import AdapterConfig, MoraConfig, make_plan
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.keymap import TRANSPOSE, Row
from lowrank_jax.interop.peft import mora_fork
from lowrank_jax.interop.peft.export import save_peft
from lowrank_jax.interop.peft.folder import load_peft

LAYERS = 2
X = np.float32([1, 2, 4, 8, 16])
GOLDEN = {  # of the fork's own layer, run in float64: d_in 5, d_out 7, rank 1, M = 1 .. p^2 row by row
    1: [60, 156, 252, 60, 156, 252, 60],
    2: [75, 75, 75, 168, 168, 261, 261],
    3: [75, 168, 261, 75, 168, 261, 75],
    4: [60, 60, 60, 156, 156, 252, 252],
    6: [5, 11, 10.806047, 17.041535, 20.697576, 33.827506, 5],
}
ROWS = (Row("transformer.h.{layer}.fc.weight", "layers/up/kernel", (7, 5), TRANSPOSE),)
PARAMS = {"layers": {"up": {"kernel": np.ones((LAYERS, 5, 7), np.float32)}}}


def fork_folder(folder, mora_type, change=None, **config):
    """What the fork's save_pretrained writes."""
    from safetensors.numpy import save_file

    size = 2 if mora_type == 6 else 3
    square = np.arange(1, size * size + 1, dtype=np.float32).reshape(size, size)
    tensors = {
        f"base_model.model.transformer.h.{layer}.fc.lora_{half}.weight": (layer + 1) * square
        for layer in range(LAYERS)
        for half in "AB"
    }
    values = {"peft_type": "LORA", "r": 1, "lora_alpha": 16, "target_modules": ["fc"], "use_mora": True}
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**values, "mora_type": mora_type, **config}))
    if change:
        change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("mora_type", GOLDEN)
def test_in_and_out(tmp_path, mora_type):
    folder = fork_folder(tmp_path / "in", mora_type)
    adapter = load_peft(folder, PARAMS, ROWS, LAYERS)
    (site,) = adapter.plan.sites
    for layer in range(LAYERS):
        leaf = {"m": adapter.adapters["layers"]["up"]["m"][layer]}
        scale = adapter.scales["layers"]["up"]["scale"][layer]
        y = adapter.plan.family.delta(adapter.plan.family.scale_leaf(leaf, scale), X, site.spec)
        np.testing.assert_allclose(y, (layer + 1) * np.float32(GOLDEN[mora_type]), rtol=1e-6)
    save_peft(tmp_path / "out", adapter.plan, adapter.variables, ROWS, LAYERS)
    from safetensors.numpy import load_file

    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("in", "out"))
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(other[key], value)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["use_mora"], config["mora_type"], config["r"]) == (True, mora_type, 1)


def test_a_left_out_layer_is_zero_without_a_gradient_and_left_out_again(tmp_path):
    def drop(tensors):
        for key in [key for key in tensors if ".0." in key]:
            del tensors[key]

    folder = fork_folder(tmp_path / "in", 1, drop, layers_to_transform=[1])
    adapter = load_peft(folder, PARAMS, ROWS, LAYERS)
    np.testing.assert_array_equal(adapter.scales["layers"]["up"]["scale"], [0, 1])
    assert not adapter.adapters["layers"]["up"]["m"][0].any()
    save_peft(tmp_path / "out", adapter.plan, adapter.variables, ROWS, LAYERS)
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["target_modules"] == ["transformer.h.1.fc"]
    again = load_peft(tmp_path / "out", PARAMS, ROWS, LAYERS)
    jax.tree.map(np.testing.assert_array_equal, again.adapters, adapter.adapters)


def test_unequal_copies_are_refused(tmp_path):
    def spoil(tensors):
        tensors["base_model.model.transformer.h.1.fc.lora_B.weight"] += 1

    with pytest.raises(UserError, match=r"h.1.fc: lora_A and lora_B are not the same square"):
        load_peft(fork_folder(tmp_path / "in", 1, spoil), PARAMS, ROWS, LAYERS)


def test_a_square_of_another_rank_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"lora_A.weight \[3, 3\] instead of \[5, 5\]"):
        load_peft(fork_folder(tmp_path / "in", 1, r=2), PARAMS, ROWS, LAYERS)
    with pytest.raises(UserError, match="names two methods"):
        load_peft(fork_folder(tmp_path / "two", 1, use_dora=True), PARAMS, ROWS, LAYERS)


@pytest.mark.parametrize(
    "options", [MoraConfig("truncation"), MoraConfig("decoupling"), MoraConfig("sharing", "zero"),
                MoraConfig("rotation", "wrap", "pairs"), MoraConfig("sharing", rounding="floor")]
)  # fmt: skip
def test_maps_that_the_fork_lacks_are_not_written(tmp_path, options):
    plan = make_plan(PARAMS, AdapterConfig("mora", 1, targets=("up",), mora=options))
    variables = {"params": PARAMS, **created(plan)}
    with pytest.raises(UserError, match=f"the MoRA fork has no {options.compression} with padding"):
        save_peft(tmp_path / "out", plan, variables, ROWS, LAYERS)


def test_the_papers_names_are_types():
    assert mora_fork.type_of(MoraConfig("sharing")) == 1
    assert mora_fork.type_of(MoraConfig("rotation")) == 6
