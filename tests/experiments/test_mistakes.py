"""Every mistake in a config or in its data is one line, before any weight is read."""

import json

import jax.numpy as jnp
import pytest

from experiments.session import experiment, export, training
from experiments.sweeps.grid import Grid
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.shortage import ELSEWHERE, REMEDIES
from lowrank_jax.forms.base import Evaluation

TEXT = dict(config="configs/mora_uuid.py:data=text", task__pairs=None, task__eval_pairs=None)

# What the user changes -> words of the one line. The mesh has 8 devices along "data".
MISTAKES = {
    "unknown key": (["--config.optimizer.learing_rate=1"], {}, ["config.optimizer.learing_rate", "learning_rate"]),
    "unknown section": (["--config.optimiser.b1=1"], {}, ["unknown config key config.optimiser", "optimizer"]),
    "no integer": (["--config.train.steps=many"], {}, ["--config.train.steps=many", "int"]),
    "a fraction": (["--config.train.steps=2.5"], {}, ["--config.train.steps=2.5", "'2.5'"]),
    "no boolean": (["--config.base.random_init=maybe"], {}, ["--config.base.random_init=maybe"]),
    "no list of integers": (
        ["--config.train.eval_steps=(2,'a')"],
        {"train__eval_steps": "()"},
        ["config.train.eval_steps[1]='a'", "an int"],
    ),
    "no such choice": ([], {"schedule__kind": "lin"}, ["config.schedule.kind='lin'", "'linear', 'cosine'"]),
    "not finite": ([], {"optimizer__learning_rate": "nan"}, ["config.optimizer.learning_rate=nan"]),
    "no config file": ([], {"config": "configs/mora_uid.py"}, ["no config file configs/mora_uid.py"]),
    "a folder as config": ([], {"config": "configs"}, ["no config file configs"]),
    "unknown config argument": ([], {"config": "configs/mora_uuid.py:metod=lora"}, ["'metod'", "method"]),
    "no such config choice": ([], {"config": "configs/mora_uuid.py:method=lor"}, ["method=lor", "mora, lora, fft"]),
    "unknown flag": (["--nam=x"], {}, ["'nam'", "name"]),
    "stray word": (["fast"], {}, ["unknown argument 'fast'"]),
    "rank 0": ([], {"adapter__rank": 0}, ["adapter.rank is 0", "at least 1"]),
    "square too large": ([], {"adapter__rank": 400}, ["layers/attention/query", "rank 400", "lower adapter.rank"]),
    "targets": (["--config.adapter.targets=('queery',)"], {}, ["'queery'", "did you mean query"]),
    "base missing": ([], {"base__name": "/no/where", "base__random_init": False}, ["no base model at /no/where"]),
    "unknown base": ([], {"base__name": "picolama", "base__random_init": False}, ["'picolama'", "pico-llama"]),
    "unknown shape": ([], {"base__name": "picolama"}, ["'picolama'", "pico-llama"]),
    "base without tokenizer": ([], {"base__name": "llama2-7b"}, ["llama2-7b comes without a tokenizer", "pico-llama"]),
    "batch": ([], {"train__batch_size": 12}, ["batch_size 12", "8 batch shards", "use 8 or 16"]),
    "micro-batch": ([], {"train__accumulate": 3}, ["batch_size 8", "3 accumulation steps", "use 24"]),
    "mesh": ([], {"mesh__data": 3}, ["'data': 3", "needs 3 devices, 8 are here"]),
    "mesh with a rest": ([], {"mesh__fsdp": 3}, ["'fsdp': 3", "8 are here"]),
    "mesh with a rest of 0": (
        [],
        {"mesh__tensor": 16},
        ["'data': -1, 'fsdp': 1, 'tensor': 16", "needs a multiple of 16 devices, 8 are here", "sizes that divide 8"],
    ),
    "base without a name": ([], {"base__name": ""}, ["base.name is empty", "pico-llama"]),
    "a target, wrong pattern": (
        [],
        {"adapter__targets": "('((',)"},
        ["adapter.targets entry '((' is no regular"],
    ),
    "a pattern only by itself": ([], {"adapter__targets": "('(?i)query',)"}, ["adapter.targets entry", "global flags"]),
    "an exclusion, wrong pattern": (
        [],
        {"adapter__exclude": "('*',)"},
        ["adapter.exclude entry '*' is no regular"],
    ),
    "a fresh leaf, wrong pattern": (
        [],
        {"base__fresh": "('((',)", "base__random_init": False},
        ["base.fresh entry '(('"],
    ),
    "too many pairs": ([], {"task__pairs": 10**9}, ["config.task.pairs is 1000000000; it must lie in [1, 1000000]"]),
    "too many epochs": ([], {"train__epochs": 10**9}, ["config.train.epochs is 1000000000"]),
    "a folder as data": ([], {**TEXT, "task__path": "configs"}, ["configs: a folder without data files (.jsonl"]),
    "a device as data": ([], {**TEXT, "task__path": "/dev/zero"}, ["/dev/zero is a device, not a file"]),
    "a device as a base": (
        [],
        {"base__name": "/dev/zero", "base__random_init": False},
        ["/dev/zero is a device, not a file"],
    ),
    "a device as an adapter": ([], {"start__adapter": "/dev/zero"}, ["no adapter in /dev/zero"]),
    "mesh of 0": ([], {"mesh__data": 0}, ["config.mesh.data is 0; it must be at least 1, or -1"]),
    "warm-up": ([], {"schedule__warmup_steps": 6}, ["schedule.warmup_steps is 6", "[0, 6)"]),
    "no data file named": ([], TEXT, ["path is empty"]),
    "data file missing": ([], {**TEXT, "task__path": "no.jsonl"}, ["no.jsonl: no such file"]),
    "no biases": ([], {"trainable": "bitfit"}, ["nothing to train", "bias"]),
    "tied head": ([], {"trainable": "head"}, ["nothing to train", "params/head"]),
    "no layer to freeze": ([], {"trainable": "ft-top2"}, ['"ft-top2" leaves nothing of 2 layers', '"full"']),
    "full beside adapters": (
        [],
        {"trainable": "full"},
        ["config.trainable='full' would leave the adapters as they start", "adapter.method=none", "trainable=adapters"],
    ),
    "rules for adapters that are not": (
        [],
        {"trainable": "adapters+head", "adapter__method": "none"},
        ["nothing to train"],
    ),
    "unknown rules": ([], {"trainable": "adapter"}, ["config.trainable='adapter'", "adapters"]),
    "evaluation too late": (["--config.train.eval_steps=(2,9)"], {}, ["train.eval_steps [9]", "train.steps 6"]),
    "evaluation too early": (["--config.train.eval_steps=(0,)"], {}, ["config.train.eval_steps[1] is 0", "at least 1"]),
    "negative rhythm": ([], {"train__eval_every": -1}, ["train.eval_every is -1"]),
    "profile": (["--profile_steps=2-3"], {}, ["train.profile_steps is '2-3'", "10:15"]),
    "profile backwards": (["--profile_steps=3:2"], {}, ["'3:2'", "10:15"]),
    "profile of digits that are not ASCII": (["--profile_steps=²:³"], {}, ["'²:³'", "10:15"]),
    "profile of many digits": ([f"--profile_steps={'9' * 5000}:2"], {}, ["train.profile_steps is '9999", "10:15"]),
    "profile too late": (["--profile_steps=7:9"], {}, ["7:9", "last step, 6"]),
    "stop after the end": ([], {"train__stop_at": 7}, ["train.stop_at is 7", "[0, 6]"]),
    "seed": ([], {"seed": -1}, ["config.seed is -1"]),
    "seed that jax folds": ([], {"seed": 2**32}, ["config.seed is 4294967296; it must lie in [0, 4294967295]"]),
    "alpha 0": ([], {"adapter__alpha": 0}, ["config.adapter.alpha is 0.0; it must be above 0"]),
    "rate of a leaf that is not there": (
        [],
        {"optimizer__multipliers": "(('adapters/.*/b', 4.0),)"},
        ["optimizer.multipliers has 'adapters/.*/b'", "MoRA's one square has none"],
    ),
    "eps 0": ([], {"optimizer__eps": 0}, ["config.optimizer.eps is 0.0; it must be above 0"]),
    "run name": ([], {"name": "../x"}, ["run name '../x'"]),
    "dtype": ([], {"base__dtype": "float31"}, ["'float31'", "float32"]),
    "dtype of the merged model": ([], {"export__merged": "float31"}, ["config.export.merged='float31'", "'bfloat16'"]),
    "no place": (["--workdir=/dev/null/x"], {}, ["cannot write /dev/null/x/run"]),
}


@pytest.fixture
def no_work(monkeypatch):
    """Fails where weights are read."""
    monkeypatch.setattr(experiment.Experiment, "load", lambda self: pytest.fail("weights were loaded"))


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_before_any_weight_is_read(run, no_work, case):
    words, changes, parts = MISTAKES[case]
    ended = run(*words, **changes)
    assert ended.status == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1, ended.err
    for part in parts:
        assert part in ended.err
    assert not ended.folder.exists() or case == "run name"


def test_a_rate_by_rule_is_refused_wherever_it_is_asked_for(run, program, tmp_path):
    """By a flag in both spellings, an argument, a config file, a grid: one line that says how a rate is found."""
    said = (
        "no rule for a learning rate is built in; give a number, or search it as the grids configs/sweeps/rates_*.py "
        "do (docs/reproducing.md, Methods at tuned rates)\n"
    )
    flag = "--config.optimizer.learning_rate"
    for words in ([f"{flag}=auto"], [flag, "AUTO"]):
        assert run(*words).err == f"error: {flag}={words[-1].rpartition('=')[2]}: {said}"
    assert program("plan", "--config=configs/finetune.py:rate=auto").err == f"error: config argument rate=auto: {said}"
    file = tmp_path / "own.json"
    own = {"base": {"name": "pico-llama"}, "task": {"name": "uuid"}, "optimizer": {"learning_rate": "auto"}}
    file.write_text(json.dumps(own))
    assert program("plan", f"--config={file}").err == f"error: config.optimizer.learning_rate=auto: {said}"
    grid = tmp_path / "grid.py"
    for overrides, keys in (("{'optimizer.learning_rate': 'auto'}", ()), ("{}", ("optimizer.learning_rate=auto",))):
        grid.write_text(f"def cells():\n    return [dict(overrides={overrides})]\n")
        with pytest.raises(UserError) as error:
            Grid("configs/mora_uuid.py", str(grid), keys)
        assert f"{error.value}\n" == f"override optimizer.learning_rate=auto: {said}"


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 512, "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def local_base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()

    def make(config):
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def test_a_base_of_another_architecture(run, no_work, local_base):
    folder = local_base(
        {"architectures": ["MambaForCausalLM"], "model_type": "mamba", "d_model": 32, "vocab_size": 300}
    )
    ended = run(base__name=folder, base__random_init=False)
    assert ended.status == 2
    assert ended.err.startswith(f"error: {folder}/config.json: ")
    assert "mamba" in ended.err.lower()
    assert ended.err.count("\n") == 1


def test_a_tokenizer_larger_than_the_vocabulary(run, no_work, local_base, subwords):
    from lowrank_jax.text.tokenizers import save_tokenizer

    size = subwords.vocab_size
    folder = local_base({**LLAMA, "vocab_size": size - 1})
    save_tokenizer(subwords, folder)
    ended = run(base__name=folder, base__random_init=False)
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    assert f"has {size} ids but the model's vocabulary is {size - 1}; the vocabulary has grown without" in ended.err


def test_a_base_without_tokenizer_or_weights(run, local_base):
    folder = local_base(LLAMA)
    ended = run(base__name=folder, base__random_init=False)
    assert ended.status == 2
    assert "comes without a tokenizer; put its tokenizer.json beside the weights" in ended.err
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByteTokenizer"}')
    ended = run(base__name=folder, base__random_init=False)
    assert ended.status == 2
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"txt": "a"}', ['line 2: its keys are "txt"; understood are "text"']),
        ('{"text": "a"', ["line 2: not JSON"]),
        ('{"prompt": "a", "completion": "b"}', ["line 2", "separate runs"]),
    ],
)
@pytest.mark.parametrize("where", ["path", "validation_path"])
def test_bad_rows_name_file_and_line(run, no_work, tmp_path, where, row, words):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"text": "some text"}\n')
    bad.write_text(f'{{"text": "some text"}}\n{row}\n')
    paths = {"task__path": good} | {f"task__{where}": bad}
    ended = run(**TEXT, **paths)
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    assert str(bad) in ended.err
    for word in words:
        assert word in ended.err


def test_what_does_not_fit_the_memory(run, no_work, monkeypatch):
    from lowrank_jax.train.compiled import memory

    monkeypatch.setattr(memory, "device_limit", lambda device=None: 1000)
    ended = run()
    assert ended.status == 2
    assert "step needs 0.01 of 0.00 GiB" in ended.out
    assert "lower train.batch_size" in ended.err
    assert not ended.folder.exists()


def test_memory_that_is_short_after_all_has_the_remedies_too(run, program, monkeypatch):
    """While the step is compiled, in loading, a step, an evaluation and an export, and in another program."""

    def short(*_, **__):
        return jnp.zeros(2**48).block_until_ready()

    asked = "1048576.00 GiB more were asked for than are left"
    monkeypatch.setattr(training.memory, "check_fits", lambda compiled, **more: None)
    ends = training.loop.Outcome(("finished",), ("",), None, None, 0.0)
    for what, place, name, fails in (
        ("compiling the step", experiment.Experiment, "compile", short),
        ("loading the weights", experiment.Experiment, "load", short),
        ("a training step", training.loop, "fit", short),
        ("an evaluation", training.loop, "fit", lambda job: job.evaluators[0].evaluate(job.state, job.frozen)),
        ("exporting", export, "export_run", short),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(experiment.Experiment, "compile", lambda self, **_: None)
            patch.setattr(training.loop, "fit", lambda job: ends)
            patch.setattr(experiment.Experiment, "evaluation", lambda *_: Evaluation(short))
            patch.setattr(place, name, fails)
            ended = run("--fresh")
        assert (ended.status, ended.err) == (2, f"error: out of memory in {what}: {asked}; {REMEDIES}\n")
    monkeypatch.setattr("experiments.config.schema.unpack_run", short)
    ended = program("plan", "--config=configs/finetune.py")
    assert (ended.status, ended.err) == (2, f"error: out of memory in this program: {asked}; {ELSEWHERE}\n")


FUSED_MISTAKES = {
    "trained": ({"trainable": "full", "adapter__method": "none"}, "no frozen layers/attention/query/kernel"),
    "codes": ({"base__quantize": "int8"}, "base.fused joins kernels that base.quantize holds as codes"),
    "split columns": ({"mesh__tensor": 2}, "base.fused joins columns that mesh.tensor splits"),
    "another model": ({"base__name": "gpt2", "adapter__targets": "('all-linear',)"}, "base.fused serves Llama"),
}


@pytest.mark.parametrize("case", FUSED_MISTAKES)
def test_what_cannot_be_fused(run, no_work, case):
    changes, words = FUSED_MISTAKES[case]
    ended = run(base__fused=True, **changes)
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    assert words in ended.err
