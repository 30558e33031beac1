"""The unspoilt files that cases start from: a finished run, bases, adapters, data and records."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from fuzz import doors
from fuzz.shapes import SHAPES

ROOT = Path(__file__).resolve().parents[2]
TOY = {
    "base.name": "toy-llama", "base.random_init": "true", "adapter.rank": "4",
    "adapter.targets": '("query","down")', "task.pairs": "8",
    "task.eval_pairs": "2",
    "train.batch_size": "8", "train.steps": "2", "train.eval_steps": "()", "schedule.warmup_steps": "0",
    "tracking.wandb": "disabled",
}  # fmt: skip


@functools.cache
def workspace(folder):
    """The unspoilt files below a folder: a finished run, bases, adapters, data and records."""
    place = Path(folder).resolve()
    kept = SimpleNamespace(place=place, runs=place / "runs", data=place / "rows.jsonl", base=place / "base")
    kept.data.write_text("".join(json.dumps({"text": f"row {i} of some text"}) + "\n" for i in range(40)))
    ended = doors.call("run", *words(kept), "--name=run")
    assert not doors.verdict(ended) and ended.status == 0, ended  # noqa: PT018
    kept.run = kept.runs / "run"
    kept.config = json.loads((kept.run / "config.json").read_text())
    kept.result = json.loads((kept.run / "result.json").read_text())
    _bases(kept)
    kept.recorded = _recorded()
    return kept


def words(kept, config="configs/mora_uuid.py", **changes):
    """The command line of a toy run."""
    settings = TOY | {key.replace("__", "."): value for key, value in changes.items()}
    given = [f"--config.{key}={value}" for key, value in settings.items() if value is not None]
    return [f"--config={ROOT / config}", f"--workdir={kept.runs}", *given]


def _bases(kept):
    import jax
    import jax.numpy as jnp

    from lowrank_jax import adapters
    from lowrank_jax.bases.base import BaseConfig, export_params, load_base
    from lowrank_jax.bases.peft import export_peft
    from lowrank_jax.core.trees import combine
    from lowrank_jax.models.llama import LlamaConfig

    shape = LlamaConfig(259, 32, 48, 2, 4, 2, max_position_embeddings=512, tie_word_embeddings=True)
    from lowrank_jax.bases.base import random_params
    from lowrank_jax.text.tokenizers import ByteTokenizer

    params = random_params(shape, jax.random.key(0), jnp.float32)
    export_params(params, shape, kept.base, "float32", tokenizer=ByteTokenizer())
    kept.sharded = kept.place / "sharded"
    export_params(params, shape, kept.sharded, "float32", tokenizer=ByteTokenizer(), shard_size=40_000)
    (kept.base / "config.json").write_text(json.dumps(SHAPES["llama"]))
    kept.gguf = _gguf(kept.place / "base.gguf", params, shape)
    base = load_base(BaseConfig(str(kept.base)))
    plan = adapters.make_plan(base.params, adapters.AdapterConfig("lora", rank=2, targets=("query", "value")))
    made = adapters.create(plan, jax.random.key(1))
    kept.peft = kept.place / "peft"
    export_peft(kept.peft, plan, {"params": base.params, **combine(made, {})}, base)
    from lowrank_jax.checkpoints.adapters_only import save_adapter
    from lowrank_jax.core.paths import flatten

    kept.adapter = kept.place / "adapter"
    scales = {path: jax.device_get(leaf).tolist() for path, leaf in flatten(made["scales"]).items()}
    names = {"name": base.name, "fingerprint": base.fingerprint}
    save_adapter(kept.adapter, {"adapters": made["adapters"]}, adapters.describe(plan), scales, names)


def _gguf(path, params, shape):
    """The base as a GGUF file, with a sentencepiece tokenizer of bytes."""
    import gguf

    from lowrank_jax.interop.causal.names import gguf_table
    from lowrank_jax.interop.keymap import unload

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    writer.add_token_list(tokens)
    writer.add_token_scores([float(-i) for i in range(len(tokens))])
    writer.add_token_types([2, 3, 3, *[6] * 256])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")
    for key, value in unload(params, gguf_table(shape), shape.num_hidden_layers):
        writer.add_tensor(key, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _recorded():
    """A few recorded results of every grid, and the speed records."""
    found = []
    for path in sorted((ROOT / "experiments" / "results").glob("*.jsonl")):
        lines = path.read_text().splitlines()
        found += [json.loads(line) for line in lines[:: max(1, len(lines) // 6)]]
    for record in found:
        record["losses"] = record["losses"][-3:]  # few, so that the mutations come to the other fields
        record["evaluations"] = record["evaluations"][-2:]
    return found
