"""Names of bases: where each is looked for, the error when it is absent, random shapes, plans and fingerprints."""

import dataclasses
import functools
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import unlike

from lowrank_jax.bases import base, locate
from lowrank_jax.bases.base import BaseConfig, abstract_base, load_base, random_tokenizer
from lowrank_jax.bases.fingerprint import fingerprint
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import nbytes
from lowrank_jax.interop.llama import export_params
from lowrank_jax.models.registry import MODELS, get_model
from lowrank_jax.text.tokenizers import ByteTokenizer, SubwordTokenizer, tokenizer_files


@functools.cache
def toy(dtype="float32", seed=0, **changes):
    return load_base(BaseConfig("toy-llama", dtype=dtype, random_init=True, **changes), jax.random.key(seed))


def sharded(path, shape):
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    axes = [None] * len(shape)
    if shape[-1] % 4 == 0:
        axes[-1] = "fsdp"
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_random_init():
    base = toy()
    flat = flatten(base.params)
    for path, leaf in flat.items():
        if path.endswith("scale"):
            assert (np.asarray(leaf) == 1).all(), path
        else:
            assert np.asarray(leaf).std() == pytest.approx(0.02, rel=0.1), path
            assert abs(np.asarray(leaf).mean()) < 2e-3, path
    up = flat["layers/mlp/up/kernel"]
    assert not np.array_equal(up[0], up[1])
    assert not np.array_equal(up, flat["layers/mlp/gate/kernel"])
    assert isinstance(base.tokenizer, ByteTokenizer)
    assert base.source == "random"
    logits = jax.eval_shape(base.model.apply, {"params": base.params}, np.zeros((1, 5), np.int32))
    assert logits.shape == (1, 5, 259)
    assert logits.dtype == jnp.float32
    assert toy(seed=1).fingerprint != base.fingerprint
    with pytest.raises(ValueError, match="key"):
        load_base(BaseConfig("toy-llama", random_init=True))


def test_random_bfloat16_is_the_rounded_float32():
    wide, narrow = toy(), toy("bfloat16")
    assert narrow.model.dtype == narrow.model.param_dtype == jnp.bfloat16
    for path, leaf in flatten(narrow.params).items():
        rounded = np.asarray(flatten(wide.params)[path]).astype(leaf.dtype)
        np.testing.assert_array_equal(np.asarray(leaf), rounded, err_msg=path)
    assert wide.fingerprint == narrow.fingerprint


def test_random_init_is_drawn_in_its_sharding():
    config = BaseConfig("toy-llama", random_init=True)
    plain, spread = toy(), load_base(config, jax.random.key(0), sharded)
    kernel = spread.params["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 32, 12)
    np.testing.assert_array_equal(kernel, plain.params["layers"]["mlp"]["up"]["kernel"])
    assert spread.fingerprint == plain.fingerprint


def test_random_init_holds_no_float32_copy():
    config = get_model("llama2-7b")
    lowered = jax.jit(lambda key: base.random_params(config, key, jnp.bfloat16)).lower(jax.random.key(0))
    memory = lowered.compile().memory_analysis()
    assert memory.output_size_in_bytes == pytest.approx(2 * 6_738_415_616, rel=0.001)
    # Layers are drawn one by one. Embedding and head are drawn whole: random bits and float32 values, 0.5 GB each.
    assert memory.temp_size_in_bytes < 8 * 4 * config.vocab_size * config.hidden_size < 0.2 * 4 * 6_738_415_616


def test_fingerprint_sees_every_part_of_a_tree():
    params = {path: np.asarray(leaf) for path, leaf in flatten(toy().params).items()}
    seen = {fingerprint(unflatten(params))}
    for path, leaf in params.items():
        for place in (-1, 0):
            other = leaf.copy()
            other[(place,) * leaf.ndim] += 1
            seen.add(fingerprint(unflatten({**params, path: other})))
        seen.add(fingerprint(unflatten({**params, path: leaf * 1.02})) if not path.endswith("scale") else path)
        seen.add(fingerprint(unflatten({**params, path: np.concatenate([leaf, leaf])})))
        seen.add(fingerprint(unflatten({**{k: v for k, v in params.items() if k != path}, path + "x": leaf})))
    assert len(seen) == 1 + 5 * len(params)


def test_fingerprint_of_numpy_and_of_a_mesh():
    params = toy().params
    host = jax.tree.map(np.asarray, params)
    spread = unflatten(
        {path: jax.device_put(leaf, sharded(path, leaf.shape)) for path, leaf in flatten(params).items()}
    )
    assert fingerprint(host) == fingerprint(spread) == fingerprint(params)
    assert len(fingerprint(params)) == len("2:") + 64 + len(":") + 64


def test_abstract_base_reads_no_weights(untied_folder, tmp_path, cache):
    (tmp_path / "config.json").write_bytes((untied_folder / "config.json").read_bytes())  # and nothing else
    for name in ("toy-llama", "llama2-7b", "smollm2-135m", str(tmp_path)):
        base = abstract_base(BaseConfig(name, dtype="bfloat16"), sharded)
        assert base.fingerprint is None
        leaves = jax.tree.leaves(base.params)
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None for leaf in leaves)
        tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
        logits = jax.eval_shape(lambda p, t, m=base.model: m.apply({"params": p}, t), base.params, tokens)
        assert logits.shape == (2, 8, base.config.vocab_size)
    assert nbytes(abstract_base(BaseConfig("llama2-7b", dtype="bfloat16")).params) == 2 * 6_738_415_616


def test_abstract_equals_loaded(untied_folder):
    config = BaseConfig(str(untied_folder), dtype="bfloat16")
    abstract, loaded = abstract_base(config), load_base(config)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), loaded.params)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), abstract.params)
    assert abstract.config == loaded.config
    assert abstract.model == loaded.model


def test_loading_into_a_mesh(untied_folder):
    plain = load_base(BaseConfig(str(untied_folder)))
    spread = load_base(BaseConfig(str(untied_folder)), sharding_fn=sharded)
    assert spread.params["head"]["kernel"].addressable_shards[0].data.shape[-1] == 259  # does not divide
    assert spread.params["layers"]["mlp"]["up"]["kernel"].addressable_shards[0].data.shape == (3, 32, 16)
    assert spread.fingerprint == plain.fingerprint


def test_the_shipped_base_and_a_fetched_one(cache, tmp_path, monkeypatch, subwords, capfd):

    def ones(config):
        return unflatten({path: np.ones(shape, np.float32) for path, shape in base.param_shapes(config).items()})

    monkeypatch.setattr(locate, "shipped_folder", lambda: tmp_path / "pico")
    with pytest.raises(UserError, match=r"pico-llama's weights are missing"):
        load_base(BaseConfig("pico-llama"))
    assert abstract_base(BaseConfig("pico-llama")).source == "registry"
    export_params(ones(get_model("pico-llama")), get_model("pico-llama"), tmp_path / "pico", "float16")
    shipped = load_base(BaseConfig("pico-llama"))
    assert isinstance(shipped.tokenizer, ByteTokenizer)
    assert shipped.config == get_model("pico-llama")
    assert shipped.source == abstract_base(BaseConfig("pico-llama")).source == "package:pico-llama"

    with pytest.raises(UserError, match=r"run: python scripts/fetch_weights.py smollm2-135m"):
        load_base(BaseConfig("smollm2-135m"))
    (cache / "smollm2-135m").mkdir(parents=True)
    config = dataclasses.replace(get_model("toy-llama"), vocab_size=subwords.vocab_size + 3)
    export_params(ones(config), config, cache / "smollm2-135m", tokenizer=subwords)
    assert capfd.readouterr().err == ""
    fetched = load_base(BaseConfig("smollm2-135m"))
    assert capfd.readouterr().err == "base smollm2-135m: HuggingFaceTB/SmolLM2-135M-Instruct\n"
    (cache / "smollm2-135m" / "a.Q4_1.gguf").touch()
    locate.say_full_name("smollm2-135m", cache / "smollm2-135m")
    assert "Instruct; its kernels were quantised (a.Q4_1.gguf)" in capfd.readouterr().err
    (cache / "smollm2-135m" / "a.Q4_1.gguf").unlink()
    assert isinstance(fetched.tokenizer, SubwordTokenizer)
    assert fetched.source.startswith("cache:")
    assert isinstance(abstract_base(BaseConfig("smollm2-135m")).tokenizer, SubwordTokenizer)


def test_tokenizer_larger_than_the_model(tmp_path, subwords):
    base = toy()
    export_params(base.params, base.config, tmp_path, tokenizer=subwords)
    with pytest.raises(UserError, match="ids but the model's vocabulary is 259"):
        load_base(BaseConfig(str(tmp_path)))


def test_random_weights_with_the_tokenizer_of_others(tmp_path, subwords):
    """Its folder is read for text, not to lay a run out; it must not have more ids than the shape."""
    for name, content in tokenizer_files(subwords).items():
        (tmp_path / name).write_bytes(content)
    config = BaseConfig("mora-250m", random_init=True, tokenizer=str(tmp_path))
    assert random_tokenizer(config).encode("face") == subwords.encode("face")
    assert abstract_base(dataclasses.replace(config, tokenizer="org/not-fetched")).tokenizer is None
    with pytest.raises(UserError, match="ids but the model's vocabulary is 259"):
        toy(tokenizer=str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no tokenizer\.json in"):
        random_tokenizer(dataclasses.replace(config, tokenizer=str(tmp_path / "empty")))
    with pytest.raises(UserError, match="published ones bring their own"):
        BaseConfig("pico-llama", tokenizer=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pico-lama", "unknown base model 'pico-lama'; did you mean pico-llama"),
        ("smollm2-135", r"did you mean smollm2-135m or smollm2-360m \(a shape without weights\)\?"),
        ("roberta-basis", r"roberta-base \(a shape without weights\)\? pico-llama, smollm2-135m, .* have weights"),
        ("./nowhere", r"no base model at ./nowhere"),
        ("/nowhere/at/all", "no base model at"),
        ("model.gguf", r"no base model at model.gguf"),
        ("toy-llama", "toy-llama is a shape without weights"),
    ],
)
def test_names_that_lead_nowhere(name, message, cache):
    with pytest.raises(UserError, match=message) as error:
        load_base(BaseConfig(name))
    assert "\n" not in str(error.value)


def test_unknown_dtype_and_shape():
    with pytest.raises(UserError, match="unknown dtype 'bf16'; did you mean bfloat16"):
        load_base(BaseConfig("toy-llama", dtype="bf16", random_init=True), jax.random.key(0))
    with pytest.raises(UserError, match="unknown model 'gpt5'"):
        load_base(BaseConfig("gpt5", random_init=True), jax.random.key(0))


def hub_says(monkeypatch, answer, download=None):
    """Stands for the Hub: `answer` to the question whether it has the repository, `download` to the download."""
    import huggingface_hub

    asked = []

    def model_info(self, repository, **options):
        if isinstance(answer, Exception):
            raise answer

    def snapshot_download(repository, **options):
        asked.append((repository, options))
        if isinstance(download, Exception):
            raise download
        return str(download)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def refusal(kind):
    from huggingface_hub import errors

    return getattr(errors, kind).__new__(getattr(errors, kind))  # its __init__ wants a response of the HTTP library


def test_hub_names_and_revisions(monkeypatch, untied_folder):
    asked = hub_says(monkeypatch, "yes", untied_folder)
    base = load_base(BaseConfig("org/name", revision="abc"))
    assert base.source == f"hub:org/name@{untied_folder.name}"
    abstract_base(BaseConfig("org/name"))
    (name, full), (_, plan) = asked
    assert (name, full["revision"], plan["revision"]) == ("org/name", "abc", "main")
    assert "*.safetensors" in full["allow_patterns"]
    assert "*.safetensors" not in plan["allow_patterns"]


def test_hub_cache_serves_without_network(monkeypatch, untied_folder):
    asked = hub_says(monkeypatch, ConnectionError("no route"), untied_folder)
    load_base(BaseConfig("org/name"))
    assert asked[0][1]["local_files_only"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GatedRepoError", "org/name is gated: accept its licence"),
        ("RepositoryNotFoundError", "the Hub has no org/name at revision 'main'"),
        ("RevisionNotFoundError", "the Hub has no org/name at revision 'main'"),
    ],
)
def test_hub_refusals(monkeypatch, kind, message):
    hub_says(monkeypatch, refusal(kind))
    with pytest.raises(UserError, match=message):
        load_base(BaseConfig("org/name"))


def test_hub_errors_are_one_line_with_the_remedies(monkeypatch):
    hub_says(monkeypatch, ConnectionError("x"), FileNotFoundError("not in the cache\nsecond line"))
    with pytest.raises(UserError) as error:
        load_base(BaseConfig("org/name"))
    message = str(error.value)
    assert all(part in message for part in ("local folder", "with network", "fetch_weights.py"))
    assert "\n" not in message
    hub_says(monkeypatch, "yes", OSError(28, "No space left on device"))
    with pytest.raises(UserError, match="disk is full"):
        load_base(BaseConfig("org/name"))


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
@pytest.mark.timeout(120)
def test_no_network_is_said(monkeypatch, tmp_path, answers):
    import huggingface_hub.constants

    monkeypatch.setattr(locate, "HUB_TIMEOUT", 1.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen()  # takes the connection and says nothing, like a firewall that drops packets
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UserError, match="cannot reach the Hub for org/name"):
            load_base(BaseConfig("org/name"))


def test_the_hubs_torch_weights_are_taken_only_without_safetensors(monkeypatch, untied_folder):
    from types import SimpleNamespace

    for files, pattern in (
        (["pytorch_model.bin", "model.safetensors"], "*.safetensors"),
        (["pytorch_model.bin", "config.json"], "pytorch_model*.bin"),
    ):
        info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])
        asked = hub_says(monkeypatch, info, untied_folder)
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, info=info, **options: info)
        load_base(BaseConfig("org/name"))
        assert asked[0][1]["allow_patterns"][-1] == pattern


@pytest.mark.parametrize("name", unlike(MODELS))
def test_every_registered_shape_has_a_model(name):
    base = abstract_base(BaseConfig(name, random_init=True, dtype="bfloat16"))
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    shapes = jax.eval_shape(base.model.init, jax.random.key(0), tokens)["params"]
    assert flatten(jax.tree.map(lambda x: x.shape, shapes)) == flatten(jax.tree.map(lambda x: x.shape, base.params))


def test_a_model_type_that_is_not_read(tmp_path):
    for values, message in (('{"model_type": "t5"}', "model_type 't5' is not read here"), ("{}", "model_type None")):
        (tmp_path / "config.json").write_text(values)
        with pytest.raises(UserError, match=message):
            abstract_base(BaseConfig(str(tmp_path)))
