"""PEFT's prompt and prefix tuning, both ways: equal logits on toy bases of every kind of position and key."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from late import torch
from toys import created

from lowrank_jax import adapters
from lowrank_jax.adapters import AdapterConfig, PrefixConfig
from lowrank_jax.bases.attached import load_attached
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.bases.peft import export_peft
from lowrank_jax.core.errors import UserError

TEXT = np.array([[5, 9, 2, 30, 7, 11], [1, 1, 8, 3, 22, 4]], np.int32)
TOKENS = 3  # virtual ones
SHAPE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
COMMON = dict(vocab_size=40, max_position_embeddings=32, initializer_range=0.2, bos_token_id=1, eos_token_id=1,
              pad_token_id=0)  # fmt: skip


def _causal(kind: str):
    import transformers

    if kind == "gpt2":  # learned positions; query, key and value in one kernel
        config = transformers.GPT2Config(**COMMON, n_embd=16, n_layer=2, n_head=2)
    elif kind == "llama":  # rotated keys that heads share, rotated further apart by a scaling with an amplitude
        yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
        config = transformers.LlamaConfig(**COMMON, **SHAPE, rope_scaling=yarn)
    else:  # keys with a norm, two rotations, and embeddings that are scaled
        config = transformers.Gemma3TextConfig(
            **COMMON, **SHAPE, head_dim=8, query_pre_attn_scalar=8, sliding_window=16,
            layer_types=["sliding_attention", "full_attention"], rope_theta=1e4, rope_local_base_freq=1e3,
        )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma3"])
def causal(request, tmp_path_factory):
    """(folder of a toy base, the base here)."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    _causal(request.param).save_pretrained(folder)
    return folder, load_base(BaseConfig(str(folder)))


def _read(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def _theirs(folder, adapter) -> np.ndarray:
    """PEFT's logits of TEXT."""
    import peft

    model = peft.PeftModel.from_pretrained(_read(folder), adapter).eval()
    with torch.no_grad():
        return model(torch.tensor(TEXT)).logits[:, -TEXT.shape[1] :].float().numpy()


@functools.cache
def _compiled(model, plan):
    return jax.jit(adapters.attach(model, plan))


def _ours(base, plan, variables) -> np.ndarray:
    """Our logits of TEXT after the virtual tokens."""
    prefix = np.broadcast_to(np.array(plan.virtual.prefix_ids, np.int32), (len(TEXT), plan.virtual.prefix))
    tokens = jnp.concatenate([prefix, TEXT], axis=1)
    return np.asarray(_compiled(base.model, plan)(variables, tokens))[:, plan.virtual.prefix :]


@pytest.mark.parametrize("method", ["preembed", "prefix"])
def test_folders_go_both_ways(causal, method, tmp_path):
    """What PEFT has made computes the same here, and what is written here the same there and here again."""
    import peft

    folder, base = causal
    kind = peft.PromptTuningConfig if method == "preembed" else peft.PrefixTuningConfig
    model = peft.get_peft_model(_read(folder), kind(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS))
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight, std=0.7)
    model.save_pretrained(tmp_path / "theirs")
    wanted = _theirs(folder, tmp_path / "theirs")
    loaded, plan, variables = load_attached(tmp_path / "theirs", base)
    assert plan.config.method == method
    found = _ours(loaded, plan, variables)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())

    # A random adapter of ours, written, and read again by both.
    draw = np.random.default_rng(0).normal
    made = variables | {"adapters": jax.tree.map(lambda leaf: np.float32(draw(size=leaf.shape)), variables["adapters"])}
    export_peft(tmp_path / "ours", plan, made, base)
    wanted = _ours(base, plan, made)
    assert np.abs(found - wanted).max() > 0.1  # the virtual tokens matter
    np.testing.assert_allclose(_theirs(folder, tmp_path / "ours"), wanted, atol=1e-5 * np.abs(wanted).max())
    back, again, variables = load_attached(tmp_path / "ours", base)
    for leaf, mine in zip(jax.tree.leaves(variables["adapters"]), jax.tree.leaves(made["adapters"]), strict=True):
        np.testing.assert_allclose(leaf, mine, atol=1e-5)
    assert (back, again) == (base, plan)


@pytest.fixture(scope="module")
def base():
    return load_base(BaseConfig("pico-llama"))


@pytest.fixture
def written(base, tmp_path):
    """written(method, tensor=..., **fields) -> a folder of three virtual tokens for the shipped base, then changed."""
    from safetensors.numpy import load_file, save_file

    def write(method="prefix", tensors=None, **fields):
        plan = adapters.make_plan(base.params, AdapterConfig(method, prefix=PrefixConfig(TOKENS, init="normal")))
        variables = {"params": base.params, **created(plan)}
        folder = export_peft(tmp_path / "peft", plan, variables, base)
        config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        config.write_text(json.dumps(json.loads(config.read_text()) | fields))
        if tensors:
            save_file(tensors(load_file(weights)), weights)
        return folder

    return write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0; it must be a whole number"),
        ({"num_virtual_tokens": 4}, r"prompt_embeddings is \[3, \d+\], and 4 virtual tokens of this base \[4, "),
        ({"task_type": "SEQ_CLS"}, "task_type 'SEQ_CLS' is not read with virtual tokens"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported here"),
        ({"peft_type": "P_TUNING"}, "'P_TUNING' is not read; known: LORA .*PROMPT_TUNING, PREFIX_TUNING"),
        ({"base_model_name_or_path": "other/base", "tensors": dict}, "made for other/base, not for pico-llama"),
        ({"tensors": lambda held: {"x": held["prompt_embeddings"]}}, "has x, and not prompt_embeddings alone"),
        ({"tensors": lambda held: {k: v * np.nan for k, v in held.items()}}, "prompt_embeddings is not finite"),
    ],
)
def test_a_folder_that_does_not_fit(base, written, changes, message):
    with pytest.raises(UserError, match=message):
        load_attached(written(**changes), base)


def test_what_peft_has_no_folder_for(base, tmp_path):
    """PreLayer, infix tokens, LoRA beside virtual tokens: one line, and no folder."""
    one = AdapterConfig("preembed", prefix=PrefixConfig(2, 2))
    cases = {
        "PEFT has no infix tokens": one,
        "PEFT has no prelayer": AdapterConfig("prelayer"),
        "one method, not lora and preembed": [AdapterConfig("lora"), one],
    }
    for message, configs in cases.items():
        plan = adapters.make_plan(base.params, configs)
        variables = {"params": base.params, **created(plan, base.params)}
        with pytest.raises(UserError, match=message):
            export_peft(tmp_path / "peft", plan, variables, base)
    assert not (tmp_path / "peft").exists()
