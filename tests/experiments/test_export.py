"""The exports of a finished run: the printed lines load its peft/; a merged model has its base's files."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.session import export
from experiments.session.export import ExportConfig, export_run
from lowrank_jax.adapters import AdapterConfig, attach, create, make_plan
from lowrank_jax.bases.base import BaseConfig, abstract_base, export_params, load_base, param_shapes
from lowrank_jax.core.paths import unflatten
from lowrank_jax.models.registry import get_model
from lowrank_jax.text.tokenizers import ByteTokenizer
from lowrank_jax.train.restart import RestartConfig

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_a_merged_model_has_what_lies_beside_its_base(tmp_path):
    from transformers import AutoTokenizer

    shape, rng = get_model("toy-llama"), np.random.default_rng(0)
    params = {path: rng.normal(size=size).astype(np.float32) for path, size in param_shapes(shape).items()}
    folder = export_params(unflatten(params), shape, tmp_path / "base", tokenizer=ByteTokenizer())
    for name, more in (
        ("tokenizer_config.json", {"chat_template": TEMPLATE, "padding_side": "left", "model_max_length": 99}),
        ("config.json", {"eos_token_id": [257, 10], "use_cache": False}),
    ):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | more))
    (folder / "generation_config.json").write_text('{"eos_token_id": [257, 10]}')

    loaded = load_base(BaseConfig(str(folder)))
    plan = make_plan(loaded.params, AdapterConfig(rank=2, targets=("query",)))
    variables = {"params": loaded.params, **create(plan, jax.random.key(0))}
    export = ExportConfig(adapter=False, merged="float32", peft=False)
    config = SimpleNamespace(export=export, trainable="adapters", restart=RestartConfig())
    experiment = SimpleNamespace(
        task=None, config=config, plan=plan, base=abstract_base(BaseConfig(str(folder))), variables=lambda *_: variables
    )
    export_run(tmp_path / "run", experiment, None, None, loaded.fingerprint)
    out = tmp_path / "run" / "model"
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 99)
    values = json.loads((out / "config.json").read_text())
    assert (values["eos_token_id"], values["use_cache"]) == ([257, 10], False)
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [257, 10]}
    assert isinstance(load_base(BaseConfig(str(out))).tokenizer, ByteTokenizer)


MARKED = "{% for one in messages %}{{ one['role'] + ': ' + one['content'] + eos_token }}{% endfor %}"


def test_a_byte_tokenizers_chat_template_gives_transformers_the_ids_of_training(tmp_path):
    """In the folders that a run takes home, in a merged one, and where the tokenizer has the template itself."""
    from transformers import AutoTokenizer

    from experiments.session.export import _write_template
    from lowrank_jax.interop.carried import Carried, with_tokenizer
    from lowrank_jax.text.tokenizers import save_tokenizer, tokenizer_files

    chat, ids = [{"role": "user", "content": "hi"}], [*b"user: hi", 257]
    plain = ByteTokenizer()
    for name in ("peft", "model"):
        (tmp_path / "run" / name).mkdir(parents=True)
        save_tokenizer(plain, tmp_path / "run" / name)
    task = SimpleNamespace(template=SimpleNamespace(source=MARKED))
    config = SimpleNamespace(task=SimpleNamespace(chat_template="marked"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "chat_template.jinja").write_text(MARKED)
    with_tokenizer(Carried(tokenizer_files(plain), {}), tmp_path / "adapter").write(tmp_path)
    own = ByteTokenizer()
    own.chat_template = MARKED
    (tmp_path / "own").mkdir()
    save_tokenizer(own, tmp_path / "own")

    text = "a mark is text: <|eos|>"
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "peft")(text)["input_ids"] == list(text.encode())
    _write_template(tmp_path / "run", SimpleNamespace(task=task, config=config))
    for folder in (tmp_path / "run" / "peft", tmp_path / "run" / "model", tmp_path, tmp_path / "own"):
        theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, tokenize=True, return_dict=False)
        assert theirs == ids, folder


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """{"folder", "gguf", "random"}: base configs of one toy Llama's folder, of its GGUF file, and of random weights."""
    from tests.interop.conftest import make_torch_llama, write_gguf

    model, folder = make_torch_llama(True), tmp_path_factory.mktemp("toys")
    model.save_pretrained(folder / "hf")
    (folder / "gguf").mkdir()
    file = write_gguf(model, folder / "gguf" / "toy.gguf")
    random = BaseConfig("toy-llama", random_init=True)
    return {"folder": BaseConfig(str(folder / "hf")), "gguf": BaseConfig(str(file)), "random": random}


def ended(place, base_config, *adapter_configs, **export):
    """export_run at the end of a run with moved adapters: (lines, base, plan, variables)."""
    base = load_base(base_config, jax.random.key(0))
    plan, rng = make_plan(base.params, adapter_configs), np.random.default_rng(0)
    made = create(plan, jax.random.key(0), base.params)
    made["adapters"] = jax.tree.map(lambda x: np.float32(0.2 * rng.normal(size=x.shape)), made["adapters"])
    variables = {"params": base.params, **made}
    config = SimpleNamespace(export=ExportConfig(adapter=False, **export), trainable="adapters", base=base_config)
    config.restart = RestartConfig()
    experiment = SimpleNamespace(
        task=None,
        **dict(config=config, plan=plan, base=abstract_base(base_config), form=SimpleNamespace(head="")),
        variables=lambda *_: variables,
    )
    state, frozen = (
        SimpleNamespace(trainable={"adapters": made["adapters"]}),
        {k: variables[k] for k in ("params", "scales")},
    )
    return export_run(place, experiment, state, frozen, base.fingerprint), base, plan, variables


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["folder", "pico-llama", "gguf"])
def test_the_printed_lines_load_the_run(tmp_path, toys, name, monkeypatch):
    import torch

    monkeypatch.setattr("peft.auto.check_file_exists_on_hf_hub", lambda *_, **__: False)
    method = "dora" if name == "folder" else "lora"
    config = AdapterConfig(method, rank=2, alpha=6.0, targets=("query", "down"))
    lines, base, plan, variables = ended(tmp_path, toys.get(name, BaseConfig(name)), config)
    place = tmp_path / "peft"
    assert lines[0] == f"{place} loads in PEFT (the extra [parity]: pip install -e '.[parity]'):"
    assert len(lines) == 5 + (name == "gguf")
    assert lines[-1].endswith(f"scripts/merge_adapter.py --base {base.name} --adapter {place} --to FOLDER")
    tokens, there = np.random.default_rng(0).integers(0, 250, (2, 9)).astype(np.int32), {}
    exec("\n".join(line.strip() for line in lines[1:]), there)
    with torch.no_grad():
        theirs = there["model"].eval()(torch.tensor(tokens).long()).logits.numpy()
    ours = np.asarray(attach(base.model, plan)(variables, tokens))
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(ours).max()
    assert (tmp_path / "peft" / "tokenizer.json").exists() == (name == "pico-llama")


def test_what_peft_cannot_read_is_said(tmp_path, toys):
    """And an earlier peft/ goes; a key turns the folder off."""
    folder, query = toys["folder"], {"rank": 2, "targets": ("query",)}
    ended(tmp_path, folder, AdapterConfig(**query))
    assert (tmp_path / "peft").exists()
    place = f"no {tmp_path / 'peft'}: "
    merge = f"python scripts/merge_adapter.py --base {folder.name} --adapter {tmp_path / 'adapter'} --to FOLDER"
    mora = ended(tmp_path, folder, AdapterConfig("mora", **query))[0]
    assert mora == [f"{place}PEFT has no mora; as a model for transformers: {merge}"]
    assert not (tmp_path / "peft").exists()
    both = [AdapterConfig(**query), AdapterConfig("dora", 2, targets=("value",))]
    (line,) = ended(tmp_path, folder, *both)[0]
    assert line.startswith(f"{place}a PEFT folder has one method, not lora and dora")
    assert line.endswith(merge)
    (line,) = ended(tmp_path, folder, AdapterConfig("houlsby", 2))[0]
    assert line.startswith(f"{place}PEFT's LoRA has no houlsby")
    assert line.endswith("(docs/checkpoints.md)")
    assert "writes the whole model" in ended(tmp_path, toys["random"], AdapterConfig(**query))[0][0]
    assert ended(tmp_path, folder, AdapterConfig(**query), peft=False)[0] == []
    assert not (tmp_path / "peft").exists()


def test_a_named_chat_template_goes_with_the_adapter(tmp_path):
    """Into what is taken home; a base that is loaded with the adapter, and a merged folder, then have it."""
    from lowrank_jax.bases.attached import _with_template
    from lowrank_jax.bases.base import BaseConfig, load_base
    from lowrank_jax.interop.carried import carry, with_tokenizer
    from lowrank_jax.text.chat import find_template

    base = load_base(BaseConfig("pico-llama"))
    task = SimpleNamespace(template=find_template(base.tokenizer, "zephyr"))
    experiment = SimpleNamespace(task=task, config=SimpleNamespace(task=SimpleNamespace(chat_template="zephyr")))
    for name in ("adapter", "peft"):
        (tmp_path / name).mkdir()
    export._write_template(tmp_path, experiment)
    assert not (tmp_path / "model").exists()
    for name in ("adapter", "peft"):
        again = _with_template(base, tmp_path / name).tokenizer
        assert find_template(again).source == task.template.source
        carried = with_tokenizer(carry(base.path, base.tokenizer), tmp_path / name)
        assert carried.files["chat_template.jinja"].decode() == task.template.source
    assert base.tokenizer.chat_template is None
