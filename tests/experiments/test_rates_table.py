"""The table `rates` over fabricated records: the best rate over seeds, edges, what is claimed and what is not, cost."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.records import json_files, run_folder, run_record
from experiments.tables import figures as style_of_figures
from experiments.tables import find
from experiments.tables.rates import claims, cost, figure, rates
from experiments.tables.rates.rows import settings

TASKS = {"math": "data/gsm8k/train.jsonl.gz", "instruct": "data/dolly/train.jsonl"}
FORGETTING = {"forgetting": {"novels": {"start": 3.0, "end": 3.5, "rise": 0.5, "tokens": 16_320}}}
PARAMETERS = {None: 134_515_008, 8: 2_442_240, 32: 9_768_960}


def run(method, rank, rate, loss, seed=0, stage="swept", task="math", variant=None, base="smollm2-135m"):
    """The record of a run; loss None: it diverged."""
    labels = {"method": method, "rank": rank, "stage": stage, **({"variant": variant} if variant else {})}
    train = {"steps": 150, "batch_size": 8}
    if task == "uuid":
        labels, section, name = labels | {"scale": "gpu"}, {"name": "uuid", "pairs": 500}, "mora_uuid"
    else:
        labels, section, name = labels | {"task": task}, {"name": "text", "path": TASKS[task]}, "mora_finetune"
    config = {
        "experiment": name, "seed": seed, "labels": labels, "base": {"name": base}, "adapter": {"method": method},
        "optimizer": {"learning_rate": rate}, "task": section, "train": train,
    }  # fmt: skip
    end = math.inf if loss is None else loss
    score = {"char_accuracy": 0.1} if task == "uuid" else {"loss": loss}
    late = {"char_accuracy": 1.0 - loss / 10} if task == "uuid" and loss is not None else score
    found = run_record.result_record(
        run_folder.run_name(config), config, "finished" if loss is not None else "diverged", wall_seconds=9.0,
        train_seconds=8.0, parameters={"trainable": PARAMETERS[rank], "frozen": 10**8},
        evaluations=[{"step": 75, **score}, {"step": 150, **late}] if loss is not None else [],
        losses=[(140, end), (150, end)], environment={}, seq_len=256,
    )  # fmt: skip
    return found | (FORGETTING if loss is not None and task != "uuid" else {})


def row(method, rank, losses, spread=0.001, seeds=3, **more):
    """Rates of one seed, and at the best and its neighbours two seeds more; {rate: loss}."""
    found = [run(method, rank, rate, loss, **more) for rate, loss in losses.items()]
    rates_, best = sorted(losses), min((one for one in losses if losses[one]), key=lambda one: losses[one])
    place = rates_.index(best)
    for rate in rates_[max(place - 1, 0) : place + 2]:
        for seed in range(1, seeds):
            loss = losses[rate] and losses[rate] + spread * (-1) ** seed
            found.append(run(method, rank, rate, loss, seed, "near", **more))
    return found


@pytest.fixture(scope="module")
def records():
    """LoRA's best rate is ten times full fine-tuning's; MoRA's loss is lower at r=8 and not separated at r=32."""
    u = {1e-4: 1.3, 1e-3: 1.2, 1e-2: 1.25, 1e-1: None}
    found = row("fft", None, {1e-5: 1.3, 1e-4: 1.1, 1e-3: 1.5})
    found += row("lora", 8, u) + row("lora", 32, u) + row("rslora", 8, {1e-4: 1.2, 1e-3: 1.3, 1e-2: 1.4})
    found += row("rslora", 32, {1e-5: 1.25, 1e-4: 1.2, 1e-3: 1.3})
    found += row("mora", 8, {rate: loss and loss - 0.1 for rate, loss in u.items()}, variant="rotation")
    found += row("mora", 32, {rate: loss and loss - 0.0005 for rate, loss in u.items()}, variant="rotation")
    found += row("mora", 8, u, seeds=1) + [run("dora", 8, 1e-3, None), run("lora", 8, 1e-3, 0.5, stage="full")]
    return found + row("lora", 8, {1e-3: 0.9, 1e-2: 0.5, 1e-1: 0.9}, task="uuid")


def shown(records, measured=(), model=None):
    return rates.table((records, measured), SimpleNamespace(model=model))


def lines_of(table):
    return {line[0]: dict(zip(table.lines[0], line, strict=True)) for line in table.lines[1:]}


def test_the_best_rate_is_that_of_most_seeds(records):
    """A neighbour of one seed with a lower loss does not win, nor a rate of which a seed diverged; others are edges."""
    lucky = [run("lora", 8, 2e-3, 0.1), run("lora", 8, 5e-3, 0.2, seed=0)]
    lucky += [run("lora", 8, 5e-3, loss, seed, "near") for seed, loss in ((1, None), (2, 0.2), (3, 0.2))]
    part = shown(records + lucky).parts[-2]
    assert part.title == "math (train.jsonl.gz), smollm2-135m, 150 steps of 8 x 256 tokens"
    lines = lines_of(part)
    lora = lines["LoRA 8"]
    assert (lora["best rate"], lora["tried"], lora["seeds"]) == ("0.001 edge of 3 seeds", "6: 0.0001 to 0.1", "3")
    assert (lora["loss"], lora["neighbours"]) == ("1.2000+-0.0010", "1.3000 | 0.1000")
    assert (lora["trainable"], lora["forgotten"]) == ("2,442,240", "novels +0.500")
    assert lines["rsLoRA 8"]["best rate"] == "0.0001 edge"
    assert lines["DoRA 8"]["loss"] == "all diverged"
    assert lines["MoRA 8 sharing"]["place"] == "1 seed(s)"
    assert {lines[name]["place"] for name in ("MoRA 8 rotation", "FFT")} == {"1", "2~"}
    digits = lines_of(shown(records).parts[-1])["LoRA 8"]
    assert (digits["best rate"], digits["digits"]) == ("0.01", "95.0")


def test_a_best_rate_at_the_edge_of_what_has_three_seeds_is_marked():
    """The best of one seed lies between two others; over three seeds one of these is better, and beyond it is one."""
    at = {1e-4: 1.4, 3e-4: 1.3, 1e-3: 1.2, 3e-3: 1.25}
    near = {3e-4: 1.3, 1e-3: 1.2, 3e-3: 1.0}
    one = row("lora", 8, at, seeds=1) + [
        run("lora", 8, rate, near[rate], seed, "near") for rate in near for seed in (1, 2)
    ]
    others = row("mora", 8, at | {1e-2: 1.5}, seeds=1) + row("dora", 8, at | {1e-2: 1.5})
    beyond = [run("lora", 8, 1e-2, 1.5)] + [run("lora", 8, 1e-2, 1.5, seed, "far1") for seed in (1, 2)]
    (part,) = shown(one + others + beyond[:1]).parts
    best = {name: line["best rate"] for name, line in lines_of(part).items()}
    assert best == {"LoRA 8": "0.003 edge of 3 seeds", "DoRA 8": "0.001", "MoRA 8 sharing": "0.001"}
    assert "edge of N seeds: a rate beside the best one was run with fewer than its N seeds" in part.text()
    for more in (beyond, [run("lora", 8, 1e-2, None)]):  # three seeds there; one that diverged, which is no better rate
        (part,) = shown(one + others + more).parts
        assert lines_of(part)["LoRA 8"]["best rate"] == "0.003"
        assert "edge of N seeds" not in part.text()
    (part,) = shown(one).parts
    assert lines_of(part)["LoRA 8"]["best rate"] == "0.003 edge"


def test_claims_are_made_of_the_records_or_absent(records):
    table = shown(records)
    assert table.lines[0] == ["setting", "MoRA", "against", "r=8", "r=32"]
    assert table.lines[1] == ["math, smollm2-135m", "rotation", "LoRA", "lower", "not separated"]
    text = table.text()
    assert "MoRA rotation against LoRA, each at its own rate: a lower loss at r=8; not separated at r=32." in text
    assert "LoRA's best rate (alpha/r) over full fine-tuning's: 10 at r=8, 10 at r=32." in text
    assert "0.001 at r=8, 0.001 at r=32; within one step of the rates that were tried (a factor of 10)" in text
    assert "MoRA sharing" not in text  # one seed says nothing
    assert "rsLoRA's best rate by rank" not in text  # that of r=8 is an edge
    moved = row("lora", 8, {1e-4: 2.0, 1e-3: 1.0, 1e-2: 2.0}) + row("lora", 32, {1e-2: 2.0, 1e-1: 1.0, 1.0: 2.0})
    (sentence,) = claims.sentences(*settings(moved).values())
    assert sentence.endswith("over a factor of 100, where neighbours are a factor of 10 apart, so that a dependence on "
                             "the rank is seen.")  # fmt: skip
    assert "No conclusion is drawn" not in text
    assert shown([]).text() == "Methods at tuned rates: nothing is recorded"
    assert not shown(records, model="gemma3-270m").parts


def test_a_best_rate_of_few_seeds_makes_no_claim():
    """One seed, and three at the best rate with one beside it; a neighbour whose seeds diverged is enough."""
    at, one = {1e-4: 2.0, 1e-3: 1.0, 1e-2: 2.0}, dict(seeds=1)
    few = row("fft", None, at, **one) + row("lora", 8, at, **one) + row("lora", 32, at) + row("rslora", 8, at, **one)
    few = [each for each in few if (each["labels"]["rank"], each["labels"]["stage"]) != (32, "near")]
    few += [run("lora", 32, 1e-3, 1.0, seed, "near") for seed in (1, 2)]
    assert claims.sentences(*settings(few).values()) == [
        "No conclusion is drawn from the best rate of FFT, LoRA 8, LoRA 32, rsLoRA 8: it, or a rate beside it, has "
        "fewer than 3 seeds."
    ]
    full, lost = row("fft", None, at), {1e-4: 2.0, 1e-3: 1.0, 1e-2: None}
    said = claims.sentences(*settings(full + row("lora", 8, lost) + row("lora", 32, at, **one)).values())
    assert said == [
        "LoRA's best rate (alpha/r) over full fine-tuning's: 1 at r=8.",
        "No conclusion is drawn from the best rate of LoRA 32: it, or a rate beside it, has fewer than 3 seeds.",
    ]


def test_a_comparison_with_a_best_rate_at_an_edge_says_so():
    at, rising = {1e-4: 2.0, 1e-3: 1.0, 1e-2: 2.0}, {1e-4: 3.0, 1e-3: 2.5, 1e-2: 2.0}
    table = shown(row("lora", 8, rising) + row("lora", 32, at) + row("mora", 8, at) + row("mora", 32, at))
    assert table.lines[1:] == (["math, smollm2-135m", "sharing", "LoRA", "lower (edge)", "not separated"],)
    assert "(edge): a better rate may lie beyond" in table.text()
    assert (
        "MoRA sharing against LoRA, each at its own rate: a lower loss at r=8; not separated at r=32. "
        "Not settled: a better rate may lie beyond the best one of LoRA 8." in table.text()
    )
    low = shown(row("lora", 8, at) + row("mora", 8, at) + row("rslora", 8, {1e-4: 2.0, 1e-3: 0.5, 1e-2: 2.0}))
    assert [line[2:] for line in low.lines[1:]] == [["LoRA", "not separated"], ["rsLoRA", "higher"]]
    assert "MoRA sharing against rsLoRA, each at its own rate: a higher loss at r=8." in low.text()
    sound = shown(row("lora", 8, at) + row("mora", 8, at)).text()
    assert "(edge)" not in sound
    assert "Not settled" not in sound


def test_cost_stands_beside_quality_at_equal_rank(records, tmp_path):
    def measured(method, rank, ms, gib, shape="smollm2-135m"):
        labels = {"method": method, "rank": rank, "shape": shape, "seq_len": 256}
        return {"side": "ours", "record": {"labels": labels, "ms": ms, "peak_gib": gib, "batch": [8, 256]}}

    rows_ = [measured("fft", 8, 9.0, 4.0), measured("mora rotation", 8, 6.0, 2.0), measured("lora", 8, 5.0, 1.5)]
    rows_ += [measured("lora", 8, 5.2, 1.5), measured("lora", 8, 5.1, 1.5), measured("lora", 8, 50.0, 9.0, "other")]
    rows_ += [{"side": "ours", "error": "no memory"}]
    json_files.write_json(tmp_path / "speed" / cost.FILE, {"suite": "rates", "rows": [], "measurements": rows_})
    json_files.write_json(tmp_path / "one.json", records[0])
    loaded = rates.load([tmp_path])
    assert [len(part) for part in loaded] == [1, 6]
    (table,) = [part for part in shown(records, loaded[1]).parts if part.title.startswith("Cost")]
    assert table.title == "Cost beside quality, smollm2-135m, steps of 8 x 256 tokens"
    lines = lines_of(table)
    assert list(lines["LoRA 8"].values())[1:] == ["2,442,240", "5.10", "1.50", "1.2000+-0.0010", "0.5000+-0.0010"]
    assert list(lines["rsLoRA 8"].values())[2:4] == ["5.10", "1.50"]
    assert list(lines["FFT"].values())[2:5] == ["9.00", "4.00", "1.1000+-0.0010"]
    assert list(lines["MoRA 32 rotation"].values())[2:4] == ["-", "-"]


assert_points = np.testing.assert_allclose


def series(axes):
    """{label: its points} of a panel's lines."""
    return {line.get_label(): [*zip(*(map(float, one) for one in line.get_data()), strict=True)]
            for line in axes.get_lines()}  # fmt: skip


@pytest.fixture
def panels():
    """Draws a figure of the rows of one setting; its panels by title, and every panel has names of both axes."""
    opened = []

    def of(make, setting, rows):
        opened.append(make(setting, [row for row in rows if row.best]))
        found = {axes.get_title(): axes for axes in opened[-1].axes}
        assert all(axes.get_xlabel() for axes in found.values())
        return found

    yield of
    for one in opened:
        style_of_figures.pyplot().close(one)


def test_curves_have_a_panel_a_method_and_a_line_a_rank(records, panels):
    (setting, rows), _ = settings(records).items()
    found = panels(figure.curves, setting, rows)
    assert list(found) == ["LoRA", "MoRA sharing", "MoRA rotation", "rsLoRA"]
    assert found["LoRA"].get_ylabel() == "held-out loss"
    assert {axes.get_xlabel() for axes in found.values()} == {"peak learning rate"}
    assert {axes.get_xscale() for axes in found.values()} == {"log"}
    full = [(1e-5, 1.3), (1e-4, 1.1), (1e-3, 1.5)]
    for title, ranks in (("LoRA", (8, 32)), ("rsLoRA", (8, 32)), ("MoRA sharing", (8,)), ("MoRA rotation", (8, 32))):
        lines = series(found[title])
        assert list(lines) == ["FFT", *(f"r={rank}" for rank in ranks)]
        assert_points(lines["FFT"], full)
    assert_points(series(found["MoRA rotation"])["r=8"], [(1e-4, 1.2), (1e-3, 1.1), (1e-2, 1.15)])
    legend = found["rsLoRA"].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["FFT", "r=8", "r=32"]


def test_what_is_reached_at_the_best_rates(records, panels):
    """Each method is a series of its own, in one colour in all panels, and none lies on another."""
    (setting, rows), _ = settings(records).items()
    found = panels(figure.reached, setting, rows)
    size, rate, forgetting = found.values()
    assert [axes.get_ylabel() for axes in found.values()] == ["held-out loss", "peak learning rate", "held-out loss"]
    assert (size.get_xlabel(), rate.get_xlabel()) == ("trainable parameters", "rank r")
    kinds = ["FFT", "LoRA", "MoRA sharing", "MoRA rotation", "rsLoRA"]
    assert list(series(size)) == list(series(rate)) == kinds
    assert_points(series(size)["MoRA rotation"], [(2_442_240, 1.1), (9_768_960, 1.1995)])
    assert [y for _, y in series(rate)["rsLoRA"]] == [1e-4, 1e-4]
    assert [x for x, _ in series(rate)["LoRA"]] == pytest.approx([8, 32], rel=0.2)  # methods stand side by side
    points = [point for name, line in series(rate).items() if name != "FFT" for point in line]
    assert len(set(points)) == len(points)  # though LoRA and MoRA have the same best rate
    assert [tick.get_text() for tick in rate.get_xticklabels()] == ["8", "32"]
    colours = [{line.get_label(): line.get_color() for line in axes.get_lines()} for axes in (size, rate)]
    assert colours[0] == colours[1]
    assert len({*colours[0].values()}) == len(kinds)
    best = [line for line in forgetting.get_lines() if line.get_alpha() is None]
    assert [line.get_color() for line in best] == [*colours[0].values()]
    assert {float(x) for line in best for x in line.get_xdata()} == {0.5}  # FORGETTING's rise
    assert all(low <= 0.5 <= high for low, high in [forgetting.get_xlim()])


def test_digits_are_drawn_at_the_steps_where_they_were_counted(panels):
    at = {1e-3: 0.9, 1e-2: 0.5, 1e-1: 0.9}
    runs = [run for method, rank in (("fft", None), ("lora", 8), ("lora", 32)) for run in row(
        method, rank, at, task="uuid")]  # fmt: skip
    runs += row("mora", 8, {1e-3: 0.9, 1e-2: 0.1, 1e-1: 0.9}, task="uuid")
    ((setting, rows),) = settings(runs).items()
    axes = panels(figure.reached, setting, rows)["digits recalled at the best rate"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", "digits recalled, %")
    lines = series(axes)
    assert list(lines) == ["FFT", "LoRA 8", "LoRA 32", "MoRA 8 sharing", "chance"]
    assert_points(lines["MoRA 8 sharing"], [(75, 10.0), (150, 99.0)])
    assert_points(lines["LoRA 32"], [(75, 10.0), (150, 95.0)])
    looks = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert looks["LoRA 8"][0] == looks["LoRA 32"][0] != looks["MoRA 8 sharing"][0]
    assert len({*looks.values()}) == len(looks)


def test_figures_of_what_there_is(records, tmp_path, monkeypatch):
    """Two files a setting, small ones; nothing of nothing."""
    monkeypatch.setattr(style_of_figures, "DPI", 40)
    few = [run for run in records if run["labels"]["method"] in ("fft", "lora")]
    drawn = find(["rates"]).figures(shown(few), tmp_path)
    assert [path.name for path in drawn] == [
        f"rates_{task}_smollm2_135m_150_{what}.png" for task in ("math", "uuid") for what in ("curves", "best")
    ]
    assert all(1_000 < path.stat().st_size < 100_000 for path in drawn)
    assert rates.figures(shown([]), tmp_path) == []
