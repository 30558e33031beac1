"""Greedy decoding against transformers' generate and against a loop without a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn, jitted

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.trees import cast
from lowrank_jax.decoding.greedy import greedy, left_pad
from lowrank_jax.models.llama import Llama, LlamaConfig
from lowrank_jax.models.parts.cache import init_cache

CONFIG = LlamaConfig(
    vocab_size=41,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)
PAD = 0
LENGTHS = (5, 11, 1, 8)


@functools.cache
def variables():
    """Random weights of unit gain: with small ones every row repeats one token."""
    return jax.tree.map(lambda x: np.float32(1.5) * np.asarray(x), drawn(Llama(CONFIG), np.zeros((1, 4), np.int32)))


def prompts(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, CONFIG.vocab_size, n).tolist() for n in LENGTHS]


@functools.cache
def runner(new, eos_id, dtype, pad_id, **fields):
    model = Llama(CONFIG, dtype=dtype, **fields)
    empty = functools.partial(init_cache, CONFIG, dtype=dtype)
    return jax.jit(lambda v, t, m: greedy(model.apply, v, empty, t, m, new, eos_id, pad_id))


def decode(variables, rows, new, eos_id=None, dtype=jnp.float32, multiple=8, pad_id=PAD, **fields):
    run = runner(new, eos_id, dtype, pad_id, **fields)
    return np.asarray(run(variables, *left_pad(rows, pad_id, multiple)))


def without_cache(variables, rows, new):
    """Argmax of the whole sequence, one row and one token at a time, right-padded to one shape."""
    forward = jitted(Llama(CONFIG))
    written = []
    for row in rows:
        row, start = list(row), len(row)
        for _ in range(new):
            logits = forward(variables, np.asarray([row + [PAD] * (32 - len(row))], np.int32))
            row.append(int(np.asarray(logits)[0, len(row) - 1].argmax()))
        written.append(row[start:])
    return np.array(written)


def test_equals_the_loop_without_a_cache():
    v, rows = variables(), prompts()
    want = without_cache(v, rows, 12)
    assert len({tuple(row) for row in want}) == len(rows)
    assert len(np.unique(want)) > 8
    np.testing.assert_array_equal(decode(v, rows, 12), want)
    np.testing.assert_array_equal(decode(v, rows, 12, multiple=1), want)
    np.testing.assert_array_equal(decode(v, rows, 12, remat="projections", scan_unroll=2), want)


def test_equals_transformers_generate():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    names = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"}
    names |= {"out": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    fields = {k: v for k, v in dataclasses.asdict(CONFIG).items() if k != "rope_theta"}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD}
    hf = transformers.LlamaConfig(**fields, **special, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(hf).float().eval()
    v = variables()
    flat = {"model.embed_tokens.weight": v["params"]["embed"]["embedding"]}
    flat["lm_head.weight"] = v["params"]["head"]["kernel"].T
    flat["model.norm.weight"] = v["params"]["final_norm"]["scale"]
    for i in range(CONFIG.num_hidden_layers):
        tree = jax.tree.map(lambda x, i=i: x[i], v["params"]["layers"])
        flat[f"model.layers.{i}.input_layernorm.weight"] = tree["attention_norm"]["scale"]
        flat[f"model.layers.{i}.post_attention_layernorm.weight"] = tree["mlp_norm"]["scale"]
        for group in ("attention", "mlp"):
            for name, leaf in tree[group].items():
                flat[f"model.layers.{i}.{names[name]}.weight"] = leaf["kernel"].T
    model.load_state_dict({k: torch.tensor(np.array(x)) for k, x in flat.items()}, strict=True)
    tokens, mask = left_pad(prompts(), PAD)
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
        )
    np.testing.assert_array_equal(decode(v, prompts(), 12), out[:, tokens.shape[1] :].numpy())


def test_rows_stop_at_their_end_token_and_emit_padding():
    v, rows = variables(), prompts()
    free = decode(v, rows, 12)
    eos = int(free[1, 3])
    want = free.copy()
    for row in want:
        hits = np.flatnonzero(row == eos)
        if hits.size:
            row[hits[0] + 1 :] = PAD
    assert (want != free).any()
    np.testing.assert_array_equal(decode(v, rows, 12, eos_id=eos), want)


def script(table):
    """A fake model whose row b writes table[b]; it counts its calls in the cache."""

    def apply_fn(variables, x, positions=None, mask=None, cache=None, method=None):
        if method == "logits":
            return jax.nn.one_hot(x[..., 0].astype(jnp.int32), 50)
        step = cache["calls"]
        token = jnp.take(jnp.asarray(table), step, axis=1, mode="clip").astype(jnp.float32)
        jax.debug.callback(lambda s: calls.append(int(s)), step)
        return jnp.broadcast_to(token[:, None, None], (*x.shape, 1)), {"calls": step + 1}

    calls = []
    return apply_fn, calls, lambda batch, length: {"calls": jnp.int32(0)}


@pytest.mark.parametrize(("eos_id", "steps"), [(9, 3), (None, 6), (7, 6)])
def test_stops_early_when_every_row_has_ended(eos_id, steps):
    table = [[5, 9, 1, 2, 3, 4], [7, 8, 9, 6, 6, 6]]
    apply_fn, calls, empty = script(table)
    tokens, mask = left_pad([[1], [2, 3]], 40)
    run = jax.jit(lambda t, m: greedy(apply_fn, {}, empty, t, m, 6, eos_id, 40))
    out = np.asarray(jax.block_until_ready(run(tokens, mask)))
    jax.effects_barrier()
    assert sorted(calls) == list(range(steps))
    want = {9: [[5, 9] + [40] * 4, [7, 8, 9] + [40] * 3], None: table, 7: [table[0], [7] + [40] * 5]}[eos_id]
    np.testing.assert_array_equal(out, want)


def test_a_padding_id_outside_the_vocabulary_does_no_harm():
    v, rows = variables(), prompts()
    np.testing.assert_array_equal(decode(v, rows, 12, pad_id=CONFIG.vocab_size), decode(v, rows, 12))


def test_one_new_token_needs_the_prefill_alone():
    v, rows = variables(), prompts()
    np.testing.assert_array_equal(decode(v, rows, 1), decode(v, rows, 12)[:, :1])


def test_bfloat16_runs():
    out = decode(cast(variables(), jnp.bfloat16), prompts(), 6, dtype=jnp.bfloat16)
    assert out.shape == (4, 6)
    assert out.dtype == np.int32
    assert (out < CONFIG.vocab_size).all()


def test_left_pad():
    tokens, mask = left_pad([[1, 2, 3], [4]], 7, multiple=4)
    np.testing.assert_array_equal(tokens, [[7, 1, 2, 3], [7, 7, 7, 4]])
    np.testing.assert_array_equal(mask, [[False, True, True, True], [False, False, False, True]])
    assert left_pad([[1] * 9], 0)[0].shape == (1, 16)
    for rows in ([], [[1], []]):
        with pytest.raises(UserError, match="no tokens"):
            left_pad(rows, 0)


def test_too_many_new_tokens_are_refused():
    with pytest.raises(UserError, match="76 slots"):
        decode(variables(), prompts(), 60)
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        decode(variables(), prompts(), 0)
