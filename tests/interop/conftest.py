"""Toy Llamas written by transformers and by gguf's writer."""

from pathlib import Path

import numpy as np
import pytest
from toys import jitted, moved_peft

from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.interop import llama


def make_torch_llama(tied: bool, **changes):
    """A random torch Llama, wide enough spread that a wrong kernel shows in the logits."""
    import torch
    import transformers

    torch.manual_seed(1)
    shape = dict(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=5e4,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **changes})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight += 0.3 * torch.randn_like(weight)  # transformers starts norms at one, which hides a mix-up
    return model


def torch_logits(model, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


def our_logits(base, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(jitted(base.model)({"params": base.params}, tokens))


def trained_peft(base_folder, folder, **options):
    """A peft adapter with every trainable tensor moved, saved into the folder; the torch Llama that has it.

    Args:
      options: of peft.LoraConfig.
    """
    import peft
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(base_folder).eval()
    return moved_peft(model, peft.LoraConfig(**options), folder, seed=0, by=0.1)


@pytest.fixture(scope="module")
def base(untied_folder):
    """The toy of `untied_folder` as a base; some files have another."""
    return load_base(BaseConfig(str(untied_folder)))


@pytest.fixture(scope="module")
def table(base):
    """(transformers' names of its weights, its layers)."""
    return llama.hf_table(base.config), base.config.num_hidden_layers


@pytest.fixture(scope="session")
def helpers():
    from types import SimpleNamespace

    return SimpleNamespace(
        make=make_torch_llama,
        torch_logits=torch_logits,
        our_logits=our_logits,
        gguf=write_gguf,
        peft=trained_peft,
    )


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 259, (2, 24)).astype(np.int32)


@pytest.fixture(scope="session", params=[True, False], ids=["tied", "untied"])
def torch_llama(request):
    return make_torch_llama(request.param)


@pytest.fixture(scope="session")
def untied():
    return make_torch_llama(False)


@pytest.fixture(scope="session")
def untied_folder(untied, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untied")
    untied.save_pretrained(folder)
    return folder


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model, path: Path, kind: str = "F32", change=None, tensors=None, theta=5e4) -> Path:
    """Writes a torch Llama as llama.cpp's converter does: its names, its q/k permutation, norms in F32.

    Args:
      kind: F32, F16, BF16 or a quantised type.
      change: called with the writer before anything else, to add or spoil metadata.
      tensors: called with {name: array}, to spoil tensors.
    """
    import gguf

    c, state = model.config, {}
    for name, weight in model.state_dict().items():
        weight = weight.float().numpy()
        if ".layers." in name:
            _, _, layer, rest = name.split(".", 3)
            if "q_proj" in rest or "k_proj" in rest:  # llama.cpp, convert_hf_to_gguf.py: permute
                heads = c.num_attention_heads if "q_proj" in rest else c.num_key_value_heads
                out, inner = weight.shape
                weight = weight.reshape(heads, 2, out // heads // 2, inner).swapaxes(1, 2).reshape(out, inner)
            state[f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"] = weight
        elif name == "lm_head.weight":
            if not c.tie_word_embeddings:
                state["output.weight"] = weight
        else:
            state[{"model.embed_tokens.weight": "token_embd.weight"}.get(name, "output_norm.weight")] = weight
    if tensors:
        tensors(state)
    writer = gguf.GGUFWriter(path, "llama")
    if change:
        change(writer)
    writer.add_vocab_size(c.vocab_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, weight in state.items():
        type_ = gguf.GGMLQuantizationType[kind if weight.ndim == 2 else "F32"]
        if kind == "F16" and weight.ndim == 2:
            writer.add_tensor(name, weight.astype(np.float16))
        elif type_ == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(weight, np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(weight, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def script(load_script, monkeypatch):
    """scripts/fetch_weights.py as a module that cannot reach the Hub."""
    module = load_script("fetch_weights")

    def unreachable(known, part):
        raise module.Unreachable(f"cannot fetch {known.repository} from the Hub (ConnectError)")

    monkeypatch.setattr(module, "from_hub", unreachable)
    return module
