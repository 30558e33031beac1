"""experiments.bench --latency: a merged model's program is the base's own; sizes, turns, records and tables."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from experiments.bench.latency.cells import BASE, FIG5, Cell, Variant, adapter_of, read_cells
from experiments.bench.latency.measure import in_turn
from experiments.bench.latency.programs import Model, bare, compile_forward, differences
from experiments.tables.speed import latency
from lowrank_jax.adapters import make_plan
from lowrank_jax.bases.base import BaseConfig, abstract_base
from lowrank_jax.core.errors import UserError

CELL = Cell(2, 16, "0.7k")
MERGED = Variant("lora", True)
# Places in a record, what stands there (... for nothing), and what the message names.
BROKEN = (
    (("labels",), ..., "labels"),
    (("latency", "size"), "small", "size"),
    (("latency", "variants", 1, "rank"), None, "variants' rank"),
    (("latency", "variants", 1, "same"), [], "variants' same"),
    (("latency", "variants", 1, "std_ms"), 10**400, "variants' std_ms"),
    (("environment", "hardware", "devices"), [1], "environment's hardware"),
    (("environment", "versions"), 3, "environment's versions"),
)


@pytest.mark.parametrize(("size", "ranks"), [("0.5M", (5, 9, 5)), ("11M", (112, 222, 111))])
def test_a_size_is_the_rank_with_the_nearest_count(size, ranks):
    """Of GPT-2 medium, 24 layers of width 1024, by the formulas of Hu et al., section 5.1."""
    params, wanted = abstract_base(BaseConfig("gpt2-medium", random_init=True)).params, float(size[:-1]) * 1e6
    formulas = {
        "lora": lambda r: 2 * 48 * 1024 * r,
        "lin": lambda r: 24 * (2 * 1024 * r + r + 1024) + 2 * 24 * 1024,
        "houlsby": lambda r: 48 * (2 * 1024 * r + r + 1024),
    }
    for (method, formula), rank in zip(formulas.items(), ranks, strict=True):
        config = adapter_of(method, size, params)
        assert config.rank == rank == min(range(1, 300), key=lambda r, f=formula: abs(f(r) - wanted))
        assert make_plan(params, config).parameters == formula(rank)
    mora = adapter_of("mora", size, params)
    assert mora.rank == ranks[0]
    assert make_plan(params, mora).parameters == pytest.approx(formulas["lora"](ranks[0]), rel=0.02)


def test_cells_are_read_and_mistakes_named():
    assert read_cells(["32x512x0.5M", "1x128x100"]) == [(32, 512, "0.5M"), (1, 128, "100")]
    params = abstract_base(BaseConfig("toy-llama", random_init=True)).params
    assert adapter_of("lin", "7", params).rank == 7
    for word in ("32x512", "0x512x1M", "32x512x0.5", "32x512x1G", "axbxc", "1x2x0k"):
        with pytest.raises(UserError, match=rf"--cells: '{word}' is no batch x tokens x size"):
            read_cells([word])
    with pytest.raises(UserError, match=r"leave base\.fused at its default"):
        Model(BaseConfig("toy-llama", random_init=True, fused=True))


def test_a_merged_model_is_the_base_s_own_program():
    """Without a loop here, with one below; its logits are the adapter's beside the base."""
    model = Model(BaseConfig("toy-llama", random_init=True, scan_unroll=2))
    base, lora, beside = model.programs(CELL, (BASE, MERGED, Variant("lora")))
    texts = [bare(one.compiled.as_text()) for one in (base, lora, beside)]
    assert texts[0] == texts[1] != texts[2]
    assert "metadata" not in texts[0]
    assert "FileNames" not in texts[0]
    assert " dot" in texts[0], "nothing of the program is left"
    largest = jnp.abs(base.run()).max()
    assert jnp.abs(lora.run() - beside.run()).max() < 1e-4 * largest
    assert jnp.abs(lora.run() - base.run()).max() > 1e-3 * largest
    assert "dot" in differences(base.compiled, beside.compiled)


def test_programs_that_differ_are_told_apart():
    x = jnp.ones((4, 4))
    first = compile_forward(lambda v, t: v @ t, x, x)
    assert "dot" in differences(first, compile_forward(lambda v, t: v @ t @ t, x, x))
    turned = compile_forward(lambda v, t: t @ v, x, x)
    assert not differences(first, turned)  # the same work
    assert bare(first.as_text()) != bare(turned.as_text())  # in another text
    assert "MemoryReport" in differences(first, compile_forward(lambda v, t: v @ t, jnp.ones((8, 4)), x))

    class Wrong(Model):
        """A model whose merge changes the weights' dtype."""

        def __init__(self):
            super().__init__(BaseConfig("toy-llama", random_init=True))
            plain = self._layout
            changed = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), plain.apply(tree))  # noqa: E731
            self._layout = SimpleNamespace(apply=changed)

    with pytest.raises(RuntimeError, match=r"lora merged at 2x16x0\.7k is another program than the base"):
        Wrong().programs(CELL, (BASE, MERGED))


def test_passes_take_turns_and_each_begins_one_round():
    ran = []
    runs = [lambda name=name: ran.append(name) for name in "abc"]
    seconds = in_turn(runs, 4, 2)
    assert "".join(ran) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert [len(each) for each in seconds] == [4, 4, 4]


def test_records_tables_and_a_map(program, tmp_path, monkeypatch):
    path = tmp_path / "latency.jsonl"
    words = ["--latency", "--config=configs/bench.py:shape=toy-llama,dtype=float32", "--passes=2", "--warmup=1"]
    first = program("bench", *words, f"--results={path}", f"--cells={CELL.name}")
    assert first.status == 0, first.err
    (record,) = map(json.loads, path.read_text().splitlines())
    variants = record["latency"]["variants"]
    names = ["base", "LoRA merged", "MoRA merged", "LoRA", "Adapter-L", "Adapter-H"]
    assert list(map(latency.name_of, variants)) == names
    assert [one["same"] for one in variants] == [None, "text", "text", None, None, None]
    assert all(one["mean_ms"] > 0 and one["std_ms"] >= 0 for one in variants)
    assert [one["parameters"] for one in variants if one["method"] == "lora"] == [672, 672]  # r = 3 of 224 each
    again = program("bench", *words, f"--results={path}", f"--cells={CELL.name}")
    assert again.status == 0
    assert "[1/1]" not in again.out, "a recorded cell was measured again"
    assert "2 x 16, 0.7k" in again.out
    assert "1482.0+-1.0 (+2.2%)" in again.out  # the paper's own percentages
    assert "25.8+-2.2 (+30.3%)" in again.out

    def made_up(model, cell, variants, passes, warmup):
        rows = [
            {"method": one.method or "base", "merged": one.merged, "parameters": 1, "mean_ms": 2.0 + i, "std_ms": 0.1}
            for i, one in enumerate(variants)
        ]
        return {"batch": cell.batch, "length": cell.length, "size": cell.size, "variants": rows}

    monkeypatch.setattr("experiments.bench.latency.measure.timed_cell", made_up)
    drawn = program("bench", *words, "--map", f"--results={path}")
    assert drawn.status == 0, drawn.err
    shown = latency.table(latency.load([path]), None)
    assert [part.title.partition(" (")[0] for part in shown.parts] == [
        "LoRA Fig. 5",
        "The paper's Table 1: gpt2-medium, ms, 100 passes on a Quadro RTX8000",
    ]
    assert shown.parts[0].lines[1] == ("1", "128", "10", "2.00", "+50.0%", "+100.0%")
    assert len(shown.parts[0].lines) == 1 + len(FIG5)
    (figure,) = latency.figures(shown, tmp_path / "figures")
    assert figure.name == "latency_toy-llama.png"
    assert figure.stat().st_size > 5_000

    lines = path.read_text().splitlines(keepends=True)
    fewer = json.loads(lines[0].replace("2passes", "1passes"))
    fewer["latency"]["passes"] = 1
    assert len(latency.table([fewer, json.loads(lines[0])], None).lines[0]) == 2  # a cell is one column
    for field, value in (("mean_ms", "fast"), ("mean_ms", 0), ("merged", None), ("method", 7)):
        broken = json.loads(lines[0])
        broken["latency"]["variants"][1][field] = value
        path.write_text(json.dumps(broken) + "\n")
        with pytest.raises(UserError, match=f"see variants' {field}"):
            latency.load([path])
    for place, value, said in BROKEN:
        broken = json.loads(lines[0])
        inner = broken
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        if value is ...:
            del inner[place[-1]]
        path.write_text(json.dumps(broken) + "\n")
        with pytest.raises(UserError, match=rf"see {said}\)"):
            latency.load([path])
    path.write_text("")
    with pytest.raises(UserError, match=r"no record of experiments\.bench --latency"):
        latency.load([path])
    alone = program("bench", "--map", words[1])
    assert alone.status == 2
    assert "--map is a flag of --latency" in alone.err
