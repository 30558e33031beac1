"""loralib state dicts: Linear, Embedding and MergedLinear, in and out, compared with loralib's layers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from late import torch
from toys import created

from lowrank_jax.adapters import AdapterConfig, make_plan, merge
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.keymap import IDENTITY, TRANSPOSE, Row, Transform
from lowrank_jax.interop.peft.loralib import load_loralib, to_loralib

D, LAYERS, RANK, ALPHA = 12, 2, 2, 5.0


def third(part):
    return Transform(lambda x: np.split(x, 3, axis=-1)[part], None, lambda shape: (*shape[:-1], shape[-1] // 3))


ROWS = (
    Row("wte.weight", "embed/embedding", (20, D)),
    *(
        Row("h.{layer}.c_attn.weight", f"layers/{name}/kernel", (D, 3 * D), third(i))
        for i, name in enumerate(("query", "key", "value"))
    ),
    Row("h.{layer}.fc.weight", "layers/up/kernel", (30, D), TRANSPOSE),
    Row("h.{layer}.fc.bias", "layers/up/bias", (30,), IDENTITY),
    Row("top.weight", "head/kernel", (4, D), TRANSPOSE),
)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype("float32")  # noqa: E731
    square = {name: {"kernel": draw(LAYERS, D, D)} for name in ("query", "key", "value")}
    up = {"kernel": draw(LAYERS, D, 30), "bias": draw(LAYERS, 30)}
    return {"embed": {"embedding": draw(20, D)}, "layers": {**square, "up": up}, "head": {"kernel": draw(D, 4)}}


@functools.cache
def model_class():
    """Of a model with loralib's layers; only here, as torch is imported with its first test."""

    class Block(torch.nn.Module):
        def __init__(self, enable):
            super().__init__()
            import loralib

            options = {"r": RANK, "lora_alpha": ALPHA}
            self.c_attn = loralib.MergedLinear(D, 3 * D, enable_lora=enable, fan_in_fan_out=True, bias=False, **options)
            self.fc = loralib.Linear(D, 30, **options)

    class Model(torch.nn.Module):
        def __init__(self, params, enable=(True, False, True), seed=0):
            super().__init__()
            import loralib

            torch.manual_seed(seed)
            self.h = torch.nn.ModuleList(Block(list(enable)) for _ in range(LAYERS))
            self.top = loralib.Linear(D, 4, r=RANK, lora_alpha=ALPHA, bias=False)
            self.wte = loralib.Embedding(20, D, r=RANK, lora_alpha=ALPHA)
            layers = params["layers"]
            with torch.no_grad():
                for i, block in enumerate(self.h):
                    parts = [layers[name]["kernel"][i] for name in ("query", "key", "value")]
                    block.c_attn.weight.copy_(torch.tensor(np.concatenate(parts, 1)))
                    block.fc.weight.copy_(torch.tensor(layers["up"]["kernel"][i].T))
                    block.fc.bias.copy_(torch.tensor(layers["up"]["bias"][i]))
                self.top.weight.copy_(torch.tensor(params["head"]["kernel"].T))
                self.wte.weight.copy_(torch.tensor(params["embed"]["embedding"]))
                for name, parameter in self.named_parameters():
                    if "lora_" in name:
                        parameter.copy_(torch.randn_like(parameter))

        def kernels(self):
            """Merged kernels, [in, out]."""
            self.eval()
            blocks = [(b.c_attn.weight, b.fc.weight.T) for b in self.h]
            stacked = (np.stack([k.detach().numpy() for k in kind]) for kind in zip(*blocks, strict=True))
            return *stacked, self.top.weight.T, self.wte.weight

    return Model


def check_merged(variables, plan, model):
    merged, (attention, up, head, table) = merge(variables, plan), model.kernels()
    ours = np.concatenate([merged["layers"][name]["kernel"] for name in ("query", "key", "value")], -1)
    for one, other in (
        (ours, attention),
        (merged["layers"]["up"]["kernel"], up),
        (merged["head"]["kernel"], head.detach()),
        (merged["embed"]["embedding"], table.detach()),
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("enable", [(True, False, True), (True, True, True), (False, True, False)])
def test_in(params, enable):
    import loralib

    model = model_class()(params, enable)
    adapter = load_loralib(loralib.lora_state_dict(model), params, ROWS, LAYERS, ALPHA, enable)
    names = {s.path.rpartition("/")[2] for s in adapter.plan.sites}
    assert names == {"embed", "head", "up"} | {n for n, on in zip(("query", "key", "value"), enable, strict=True) if on}
    assert adapter.changed == ()
    check_merged(adapter.variables, adapter.plan, model)


def test_trained_biases_come_along(params):
    import loralib

    model = model_class()(params)
    with torch.no_grad():
        model.h[0].fc.bias += 1
    state = loralib.lora_state_dict(model, bias="lora_only")
    adapter = load_loralib(state, params, ROWS, LAYERS, ALPHA, (True, False, True))
    assert adapter.changed == ("layers/up/bias",)
    before = params["layers"]["up"]["bias"]
    np.testing.assert_allclose(adapter.params["layers"]["up"]["bias"], before + [[1], [0]], rtol=1e-6)


def test_out(params):
    plan = make_plan(params, AdapterConfig(rank=RANK, alpha=ALPHA, targets=("query|value", "up", "head", "embed")))
    made, rng = created(plan), np.random.default_rng(0)
    made["adapters"] = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), made["adapters"])
    made["scales"]["layers"]["up"]["scale"] = np.float32([ALPHA / RANK, 1.0])
    variables = {"params": params, **made}
    state, alpha, enable = to_loralib(plan, variables, ROWS, LAYERS)
    assert (alpha, enable) == (ALPHA, (True, False, True))
    model = model_class()(params, enable, seed=1)
    left = model.load_state_dict({key: torch.tensor(value) for key, value in state.items()}, strict=False)
    assert not left.unexpected_keys
    assert not [key for key in left.missing_keys if "lora_" in key]
    check_merged(variables, plan, model)


def test_refused(params):
    import loralib

    state, enable = loralib.lora_state_dict(model_class()(params)), (True, False, True)
    load = lambda state, enable=enable: load_loralib(state, params, ROWS, LAYERS, ALPHA, enable)  # noqa: E731
    with pytest.raises(UserError, match=r"h.0.c_attn is fused: give enable_lora for query, key, value"):
        load(state, None)
    with pytest.raises(UserError, match=r"do not fit 3 enabled part\(s\) of 12 x 12; check enable_lora"):
        load(state, (True, True, True))
    with pytest.raises(UserError, match=r"missing: h.1.fc.lora_B"):
        load({k: v for k, v in state.items() if k != "h.1.fc.lora_B"})
    with pytest.raises(UserError, match=r"unknown: other.lora_A"):
        load({**state, "other.lora_A": np.ones((1, 1)), "other.lora_B": np.ones((1, 1))})
    with pytest.raises(UserError, match=r"wte: lora_A \[1, 21\] and lora_B \[12, 1\] do not fit .* 20 x 12"):
        load({**state, "wte.lora_A": np.ones((1, 21)), "wte.lora_B": np.ones((D, 1))})
    with pytest.raises(UserError, match=r"does not fit this base; .*"):
        load({})
    mora = make_plan(params, AdapterConfig("mora", 1, targets=("up",)))
    with pytest.raises(UserError, match="loralib has no mora"):
        to_loralib(mora, {}, ROWS, LAYERS)
    config = AdapterConfig(rank=2, targets=("up", "query"), rank_pattern=(("up", 3),))
    plan = make_plan(params, dataclasses.replace(config))
    with pytest.raises(UserError, match=r"does not fit ranks \[2, 3\]"):
        to_loralib(plan, {"params": params, **created(plan)}, ROWS, LAYERS)
