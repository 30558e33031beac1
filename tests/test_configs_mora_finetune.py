"""configs/mora_finetune.py: every row of MoRA's Tables 1, 4, 6 and 7 on shapes, Table 5's numbers, and refusals."""

import importlib
from pathlib import Path

import jax
import pytest
from config_files import unpack_file

from configs.hyperparameters import mora_finetune as numbers
from experiments.cli import complete_file
from experiments.config.plain import config_hash, content_hash, to_plain
from experiments.session.build import build
from experiments.sweeps.compatible import group_key
from experiments.sweeps.grid import Grid
from lowrank_jax.core.errors import UserError

ROOT = Path(__file__).parents[1]
FILE = "configs/mora_finetune.py"
CONFIG = importlib.import_module("configs.mora_finetune")


@pytest.fixture(autouse=True)
def nothing_fetched(monkeypatch, tmp_path):
    """No weights in the cache, no Hub, and the paths that configs are named by."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LOWRANK_JAX_CACHE", str(tmp_path / "cache"))


def laid_out(arg, shape="llama2-7b"):
    config = unpack_file(f"{FILE}:{arg}", base__name=shape, base__random_init=True)
    return build(config, 16, devices=jax.devices()[:1])


# Trained scalars of LLaMA-2 7B by the papers' formulas.
LORA, MAGNITUDES = 19_988_480, 32 * (5 * 4096 + 2 * 11008)
ROWS = {
    "method=fft": 6_738_415_616,
    "method=lora": LORA,
    "method=lora+": LORA,
    "method=relora": LORA,
    "method=asylora": LORA,
    "method=asylora,frozen": 32 * 8 * (5 * 4096 + 2 * 11008),  # B alone
    "method=dora": LORA + MAGNITUDES,
    "method=mora": 20_014_592,
    "method=mora,rank=256": 639_433_088,
    "method=lora,rank=256": 639_631_360,
}


@pytest.mark.parametrize("arg", ROWS)
def test_rows_of_table_1_on_the_papers_shape(arg):
    assert laid_out(arg).parameters["trainable"] == ROWS[arg]


def test_the_plan_is_printed_and_every_cell_has_a_name_of_its_own():
    """Tables 1, 4, 6 and 7: methods, ranks, tasks, compressions and readings are all different runs."""
    args = [
        f"task={task},method={method},rank={rank},reading={reading},data={task}.jsonl"
        for task in numbers.TABLE5
        for method in CONFIG.ADAPTERS
        for rank in numbers.RANKS
        for reading in ("paper", "code")
    ]
    args += [
        f"task=math,method=mora,rank={rank},compression={name},data=math.jsonl"
        for rank, own in numbers.COMPRESSIONS.items()
        for name in ("truncation", "sharing", "decoupling", "rotation", "type2", "type3", "type4")
        if name != own
    ]
    plains = [to_plain(complete_file(f"{FILE}:{arg}")) for arg in args]
    assert len({config_hash(plain) for plain in plains}) == len(args)
    text = str(laid_out("method=mora,rank=8").plan)
    assert "layers/mlp/down         32      11008  4096   8     m 348x348" in text
    assert "mora (rotation): 20,014,592 trainable parameters, float32" in text


# arg -> rate, schedule, warm-up steps and share, epochs, alpha, dropout, compression, tokens a row, template
SPOTS = {
    "task=math": (3e-4, "cosine", 300, 0, 3, 16, 0, "rotation", 512, "alpaca"),
    "task=math,reading=code": (3e-4, "cosine", 0, 0.03, 3, 16, 0.05, "rotation", 512, "alpaca"),
    "task=math,rank=256": (5e-5, "cosine", 300, 0, 3, 128, 0, "sharing", 512, "alpaca"),
    "task=math,method=lora,rank=256": (2e-4, "cosine", 300, 0, 3, 128, 0, "sharing", 512, "alpaca"),
    "task=instruct,method=dora": (2e-4, "cosine", 500, 0, 2, 16, 0, "sharing", 2048, "tulu"),
    "task=biomed,data=a.jsonl": (5e-4, "linear", 150, 0, 3, 16, 0, "rotation", 2048, ""),
    "task=finance,data=a.jsonl,method=lora": (4e-4, "linear", 150, 0, 3, 16, 0, "sharing", 2048, ""),
    "task=biomed,data=a.jsonl,rank=256": (7e-5, "linear", 150, 0, 3, 128, 0, "sharing", 2048, ""),
    "task=domain,data=a.jsonl": (5e-4, "linear", 150, 0, 3, 16, 0, "rotation", 2048, ""),
    "task=math,data=a.jsonl,rate=1e-2": (1e-2, "cosine", 300, 0, 3, 16, 0, "rotation", 512, "question"),
    "task=math,model=smollm2-135m,data=a.jsonl": (1e-3, "cosine", 0, 0.03, 3, 16, 0, "rotation", 512, "question"),
    "task=instruct,model=smollm2-135m,data=a.jsonl": (1e-3, "cosine", 0, 0.03, 2, 16, 0, "rotation", 1024, ""),
}


@pytest.mark.parametrize("arg", SPOTS)
def test_hyperparameters(arg):
    config = unpack_file(f"{FILE}:{arg}")
    schedule, train, adapter, task = config.schedule, config.train, config.adapter, config.task
    found = (config.optimizer.learning_rate, schedule.kind, schedule.warmup_steps, schedule.warmup_fraction)
    found += (train.epochs, adapter.alpha, adapter.dropout, adapter.mora.compression, task.seq_len, task.chat_template)
    assert found == SPOTS[arg]
    paper = config.labels["model"] == "llama2-7b"
    assert (train.batch_size, task.add_bos) == ((128, True) if paper else (numbers.OWN_BATCH, False))
    assert (task.packed, task.truncate) == (config.labels["task"] in numbers.DOMAINS, True)


def test_methods_and_evaluations():
    plus = unpack_file(f"{FILE}:method=lora+")
    assert plus.optimizer.multipliers == (("adapters/.*/b", 4.0),)
    assert unpack_file(f"{FILE}:method=lora+,ratio=2").optimizer.multipliers[0][1] == 2.0
    assert [unpack_file(f"{FILE}:method={name}").labels["method"] for name in CONFIG.ADAPTERS] == list(CONFIG.ADAPTERS)
    merging = unpack_file(f"{FILE}:method=relora").restart
    assert (merging.every, merging.warmup_steps, merging.schedule, merging.reset) == (1_000, 50, "jagged", "all")
    assert unpack_file(f"{FILE}:task=biomed,data=a,method=relora").restart.schedule == "restart"
    assert unpack_file(f"{FILE}:method=relora,reading=code").restart.schedule == "restart"
    for reading, init in (("paper", "asylora"), ("code", "asylora_uncentred")):
        config = unpack_file(f"{FILE}:method=asylora,reading={reading}")
        assert (config.adapter.init, config.labels["method"]) == (init, "asylora")
    assert not any(unpack_file(f"{FILE}:method={name}").restart.every for name in ("lora", "mora", "asylora"))
    config = unpack_file(f"{FILE}:task=math,validation=b.jsonl,forgetting=c.jsonl,d.jsonl,steps=9")
    assert (config.evals["forgetting"].path, config.evals["forgetting"].rows) == (("c.jsonl", "d.jsonl"), 64)
    assert (config.evals["forgetting"].tokens, config.evals["forgetting"].add_bos) == (256, True)
    assert (config.train.steps, config.train.epochs, config.train.eval_steps) == (9, 0, (9,))
    assert unpack_file(f"{FILE}:task=math").evals == {}
    asked = {
        "instruct": [("mmlu", 0, "choice"), ("mmlu", 5, "choice")],
        "math": [("gsm8k", 0, "generation"), ("math", 0, "generation")],
        "biomed": [(name, 0, "choice") for name in ("mmlu", "medqa", "pubmedqa", "rct")],
        "finance": [
            (name, 0, "generation" if name in ("convfinqa", "ner") else "choice")
            for name in ("convfinqa", "fiqa_sa", "fpb", "headline", "ner", "phrasebank")
        ],
        "domain": [("mmlu", 0, "choice")],
    }
    for task, exams in asked.items():
        evals = unpack_file(f"{FILE}:task={task},data=a.jsonl,exams,questions=7").evals
        assert [(one.task, one.shots, one.type) for one in evals.values()] == exams
        assert all(one.at_start and one.at_end and one.max_rows == 7 for one in evals.values())
        assert all(one.optional == (task in numbers.DOMAINS) for one in evals.values())
    assert all(larger == max(rates) for rates in numbers.RATES["math"].values() for larger in rates[-1:])
    bare = to_plain(complete_file(f"{FILE}:method=lora"))
    plain = {**bare, "optimizer": {**bare["optimizer"], "multipliers": []}}
    assert content_hash(bare) == content_hash(plain)


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("method=lora,compression=rotation", "compression is not read by method=lora"),
        ("method=lora,frozen", "frozen is not read by method=lora; leave it out, or take asylora"),
        ("method=mora,ratio=4", r"ratio is not read by method=mora; leave it out, or take lora\+"),
        ("task=biomed", "task=biomed has no data set to download; give data=FILE"),
        ("task=finance,data=a.jsonl,chat=tulu", "which no chat template writes; leave chat out"),
        ("task=math,questions=9", "add exams, or leave it out"),
        ("rate=0", "learning_rate is 0.0; it must be above 0"),
        ("method=lora+,ratio=0", "multipliers.* is 0.0; it must be above 0"),
        ("steps=3,epochs=2", "steps= and epochs= both say how long a run is"),
        ("task=maths", "allowed: math, instruct"),
        ("forgetting=", '"forgetting" has no path; give it a file'),
        ("forgetting=a/b.jsonl,c/b.jsonl", "two files of a forgetting evaluation are called b; rename one"),
        ("compression=rotate", "'rotate' is a str; wanted one of 'truncation', 'sharing', 'decoupling', 'rotation'"),
    ],
)
def test_what_is_refused(arg, message):
    with pytest.raises(UserError, match=message):
        unpack_file(f"{FILE}:{arg}")


@pytest.mark.parametrize("compression", ["truncation", "sharing", "decoupling", "rotation"])
def test_a_square_as_wide_as_the_layer_is_one_line(compression):
    """SmolLM2's key has 192 columns, for which r=256 would need a square of 443."""
    with pytest.raises(
        UserError, match=r"layers/attention/key: MoRA rank 256 needs a square of 44[23], too large for a"
    ):
        laid_out(f"model=smollm2-135m,rank=256,compression={compression}", "smollm2-135m")


def test_the_grid_shares_programs_and_waits_for_its_rates():
    """Four rates, and three seeds, of a row are one program each; the rate with the lowest held-out loss is taken."""
    grid = Grid(FILE, "configs/sweeps/mora_table1.py")
    rates = [cell for cell in grid.cells.values() if cell.stage == "rates"]
    full = [cell for cell in grid.cells.values() if cell.stage == "full"]
    rows = 2 * (9 + 9 + 2)  # models; methods of two tasks, and Table 4's two further compressions
    alone = 4  # models and tasks: ReLoRA's runs share no program
    assert (len(rates), len(full)) == (4 * rows, 3 * rows)
    for cells, size in ((rates, 4), (full, 3)):
        assert len({group_key(cell.plain) for cell in cells}) == rows + (size - 1) * alone
    assert not any(cell.plain["evals"] for cell in rates)
    assert all({"start", "forgetting"} < set(cell.plain["evals"]) for cell in full)
    cell = next(cell for cell in full if "method=lora+" in cell.arg)
    result = {
        name: {"status": "finished", "config": grid.cells[name].plain, "losses": [[1, 1.0]],
               "evaluations": [{"step": 300, "loss": (3.0, 1.0, 2.0, 4.0)[place]}]}
        for place, name in enumerate(cell.trials)
    }  # fmt: skip
    assert grid.resolve(cell, result).overrides["optimizer.learning_rate"] == 1e-3


def test_domains_are_trained_on_and_forgotten_in_turn():
    """Each row at four rates, then three seeds; the loss on the other domain's texts, and MMLU, beside its own."""
    grid = Grid(FILE, "configs/sweeps/domains.py")
    stages = {stage: [cell for cell in grid.cells.values() if cell.stage == stage] for stage in ("rates", "full")}
    assert (len(stages["rates"]), len(stages["full"])) == (2 * 4 * 4, 2 * 4 * 3)
    for cell in stages["full"]:
        task, evals = cell.plain["task"], cell.plain["evals"]
        (forgotten,) = evals["forgetting"]["path"]
        domains = [Path(path).name.partition("_")[0] for path in (task["path"], task["validation_path"], forgotten)]
        assert domains in (["novels", "novels", "peps"], ["peps", "peps", "novels"])
        assert (evals["mmlu0"]["task"], evals["mmlu0"]["shots"], evals["mmlu0"]["max_rows"]) == ("mmlu", 0, 200)
        assert len(cell.trials) == 4
    assert len({group_key(cell.plain) for cell in stages["full"]}) == 2 * 4
