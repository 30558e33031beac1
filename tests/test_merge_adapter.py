"""scripts/merge_adapter.py as a new user runs it: transformers loads what it writes, with equal logits."""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import jax
import numpy as np
import pytest
from late import torch

from lowrank_jax.adapters import AdapterConfig, attach, create, describe, make_plan, merge, read_configs, residual
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.checkpoints.adapters_only import save_adapter
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.trees import count
from lowrank_jax.interop import llama
from lowrank_jax.interop.peft.export import save_peft

SCRIPT = Path(__file__).parents[1] / "scripts" / "merge_adapter.py"
CONFIGS = {
    "lora": AdapterConfig("lora", 3, alpha=8.0, targets=("all-linear",), rank_pattern=(("up", 5),)),
    "dora": AdapterConfig("dora", 3, alpha=8.0, targets=("query", "down")),
    "mora": AdapterConfig("mora", 1, targets=("query", "value")),
    "pissa": AdapterConfig("lora", 2, init="pissa", targets=("query", "up")),
}
TOKENS = np.random.default_rng(1).integers(0, 259, (2, 20)).astype(np.int32)


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("merge_adapter")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    import transformers

    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=259)
    config = transformers.LlamaConfig(
        **shape, num_key_value_heads=2, initializer_range=0.1, tie_word_embeddings=False, max_position_embeddings=64
    )
    folder = tmp_path_factory.mktemp("base")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return load_base(BaseConfig(str(folder)))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """name of a config -> (our folder, PEFT folder, unmerged logits)."""

    @functools.cache
    def build(name):
        plan, rng = make_plan(base.params, CONFIGS[name]), np.random.default_rng(0)
        made = create(plan, jax.random.key(0), base.params)
        made["adapters"] = jax.tree.map(
            lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32), made["adapters"]
        )
        variables, folder = {"params": residual(base.params, plan), **made}, tmp_path_factory.mktemp(name)
        scales = {path: np.asarray(leaf).tolist() for path, leaf in flatten(made["scales"]).items()}
        names = {"name": base.name, "fingerprint": base.fingerprint}
        save_adapter(folder / "ours", {"adapters": made["adapters"]}, dataclasses.asdict(CONFIGS[name]), scales, names)
        rows, layers = llama.hf_table(base.config), base.config.num_hidden_layers
        save_peft(folder / "peft", plan, {**variables, "params": base.params}, rows, layers, "", base.fingerprint)
        return folder / "ours", folder / "peft", np.asarray(attach(base.model, plan)(variables, TOKENS))

    return build


def logits(folder):
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize("kind", [0, 1], ids=["ours", "peft"])
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_loads_the_merged_model(script, base, adapter, tmp_path, capsys, name, kind):
    expected = adapter(name)[2]
    arguments = ["--base", base.name, "--adapter", str(adapter(name)[kind]), "--to", str(tmp_path / "out")]
    assert script.main(arguments) == 0
    np.testing.assert_allclose(logits(tmp_path / "out"), expected, atol=1e-5 * np.abs(expected).max())
    printed = capsys.readouterr().out
    assert "[4/4" in printed
    assert float(printed.split("written as float32: ")[1].split()[0]) < 1e-5


def test_the_merged_pico_llama_speaks_in_transformers(script, tmp_path):
    """Its bytes load as a tokenizer.json, its end is the model's, and what it writes is what it writes here."""
    import transformers

    pico = load_base(BaseConfig("pico-llama"))
    plan = make_plan(pico.params, AdapterConfig(rank=2, targets=("query",)))
    made = create(plan, jax.random.key(0))
    leaves = jax.tree.map(lambda x: np.full(x.shape, 0.02, np.float32), made["adapters"])
    scales = {path: np.asarray(leaf).tolist() for path, leaf in flatten(made["scales"]).items()}
    names = {"name": pico.name, "fingerprint": pico.fingerprint}
    save_adapter(tmp_path / "adapter", {"adapters": leaves}, describe(plan), scales, names)
    script.run("pico-llama", tmp_path / "adapter", tmp_path / "out", "float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    given = tokenizer("naïve: 12-34", return_tensors="pt")
    assert given["input_ids"].tolist() == [pico.tokenizer.encode("naïve: 12-34")]
    written = model.generate(**given, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(written[0], skip_special_tokens=True) == pico.tokenizer.decode(written[0].tolist())
    again = load_base(BaseConfig(str(tmp_path / "out")))
    assert type(again.tokenizer) is type(pico.tokenizer)


def test_the_base_s_own_files_come_along(script, base, adapter, tmp_path):
    folder = shutil.copytree(base.name, tmp_path / "base")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    values = json.loads((folder / "config.json").read_text()) | {"eos_token_id": [7, 9], "attention_dropout": 0.5}
    (folder / "config.json").write_text(json.dumps(values))
    script.run(str(folder), adapter("lora")[0], tmp_path / "out", "bfloat16")
    assert (tmp_path / "out" / "generation_config.json").read_text() == '{"eos_token_id": [7, 9]}'
    merged = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (merged["eos_token_id"], merged["attention_dropout"]) == ([7, 9], 0.5)
    assert (merged["torch_dtype"], merged.get("dtype", "bfloat16")) == ("bfloat16", "bfloat16")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".part")]


def test_shards_in_bfloat16_and_their_drift(script, base, adapter, tmp_path):
    drift = script.run(base.name, adapter("lora")[0], tmp_path / "out", "bfloat16", "20KB")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert 1e-4 < drift < 3e-2
    expected = adapter("lora")[2]
    gap = np.abs(logits(tmp_path / "out") - expected).max() / np.abs(expected).max()
    assert gap == pytest.approx(drift, rel=1.5)


def test_as_a_command(script, base, tmp_path, monkeypatch, capsys):
    helped = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert helped.returncode == 0
    assert "--shard_size" in helped.stdout
    monkeypatch.chdir(tmp_path)
    assert script.main(["--base", base.name, "--adapter", "nowhere", "--to", "out"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "error: nowhere has neither adapter.json (ours) nor adapter_config.json (PEFT's)" in said


def on_a_terminal(arguments, cwd):
    """(exit status, stdout, what a terminal of 80 columns as stderr is sent)."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    drawn = {**os.environ, "TQDM_MININTERVAL": "0"}  # a toy's bars end before they would be drawn again
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=cwd, env=drawn) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while block := os.read(ours, 4096):
                shown += block
        printed = process.stdout.read()
    os.close(ours)
    return process.returncode, printed.decode(), shown.decode()


def test_bars_on_a_terminal_alone(script, base, adapter, tmp_path, capsys):
    arguments = ["--base", base.name, "--adapter", str(adapter("lora")[0]), "--shard_size", "20KB"]
    status, printed, shown = on_a_terminal([*arguments, "--to", tmp_path / "out"], tmp_path)
    assert status == 0
    for what, unit in (("reading", "values"), ("merging", "kernels"), ("writing", "values")):
        assert re.search(rf"{what}: .*{unit}", shown), what
    assert re.search(r"reading: +\d+%.*values/s", shown)  # the longest; a shorter one may end before its next drawing
    assert "reading" not in printed
    assert script.main([*arguments, "--to", str(tmp_path / "quiet")]) == 0
    quiet = capsys.readouterr()
    assert quiet.err == ""
    assert "[4/4" in quiet.out


def test_reports_end_where_they_said(base, tmp_path):
    def told(run):
        calls = []
        run(lambda done, total: calls.append((done, total)))
        assert len({total for _, total in calls}) == 1
        assert sum(done for done, _ in calls) == calls[0][1]
        assert all(done >= 0 for done, _ in calls)
        return len(calls), calls[0][1]

    size, tensors = count(base.params), 9 * 2 + 3  # of 2 layers; embedding, last norm and head
    assert told(lambda report: load_base(BaseConfig(base.name), report=report)) == (tensors, size)
    calls = told(lambda report: llama.export_params(base.params, base.config, tmp_path / "out", report=report))
    assert calls == (tensors + 1, 2 * size)  # each tensor, then the one file
    plan = make_plan(base.params, CONFIGS["lora"])
    variables = {"params": base.params, **create(plan, jax.random.key(0))}
    assert told(lambda report: merge(variables, plan, report)) == (7, 7)


def test_a_full_disk_is_one_line(script, base, adapter, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lowrank_jax.interop.export.write_safetensors", full)
    arguments = ["--base", base.name, "--adapter", str(adapter("lora")[0]), "--to", str(tmp_path / "out")]
    assert script.main(arguments) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "No space left on device; free some space or name another folder" in text
    assert not list((tmp_path / "out").iterdir())


def test_refused_in_one_line(script, base, adapter, tmp_path, capsys):
    def error(**changes):
        options = {"base": base.name, "adapter": adapter("lora")[0], "to": tmp_path / "out", **changes}
        assert script.main([part for name, value in options.items() for part in (f"--{name}", str(value))]) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return text

    assert "is not a size; give one such as 2GB" in error(shard_size="big")
    assert "exists and is not empty" in error(to=adapter("lora")[0])
    assert "was trained on" in error(base="pico-llama")
    assert "did you mean pico-llama" in error(base="pico-lama")
    assert "with other weights" in error(base="pico-llama", adapter=adapter("lora")[1])


def test_an_adapter_of_several_families(script, base, tmp_path, capsys):
    """Those that can merge are merged at once; one that cannot is named before anything is written."""
    lora, mora = AdapterConfig(rank=2, targets=("query", "embed")), AdapterConfig("mora", 1, targets=("value",))
    for configs, status in (([lora, mora], 0), ([lora, AdapterConfig("houlsby", 2)], 2)):
        plan, rng = make_plan(base.params, configs), np.random.default_rng(0)
        made = create(plan, jax.random.key(0))
        made["adapters"] = jax.tree.map(lambda x, r=rng: np.float32(0.1 * r.normal(size=x.shape)), made["adapters"])
        scales = {path: np.asarray(leaf).tolist() for path, leaf in flatten(made["scales"]).items()}
        names = {"name": base.name, "fingerprint": base.fingerprint}
        save_adapter(tmp_path / "in", {"adapters": made["adapters"]}, describe(plan), scales, names)
        to = tmp_path / f"out{status}"
        assert script.main(["--base", base.name, "--adapter", str(tmp_path / "in"), "--to", str(to)]) == status
        if status == 0:
            expected = np.asarray(attach(base.model, plan)({"params": base.params, **made}, TOKENS))
            np.testing.assert_allclose(logits(to), expected, atol=1e-5 * np.abs(expected).max())
    assert "houlsby at layers/attention, layers/mlp cannot be merged" in capsys.readouterr().err
    assert not to.exists()


def test_sizes_and_configs(script):
    assert [script.read_size(text) for text in ("2GB", "500 MB", "1.5k", "7", None)] == [2e9, 5e8, 1500, 7, None]
    config = CONFIGS["lora"]
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    assert read_configs(values, "adapter.json") == (config,)
    assert read_configs([values, {"method": "houlsby"}], "adapter.json") == (config, AdapterConfig("houlsby"))
    with pytest.raises(UserError, match=r"adapter.json: unknown field 'rnk' \(near: rank"):
        read_configs({"rnk": 3}, "adapter.json")
