"""The tables of LoRA's GPT experiments over fabricated records, and the published numbers."""

import math
from types import SimpleNamespace

import pytest

from experiments.papers import gpt3, nlg
from experiments.records import run_folder, run_record
from experiments.tables import SHOWN_BY, TABLES, find
from experiments.tables.nlg import lora_table18
from experiments.tables.nlg.rows import score_of
from lowrank_jax.core.errors import UserError

E2E = {"bleu_python": 68.0, "nist_python": 8.5, "nist": 8.4, "meteor": 45.0, "rouge_l": 70.0, "cider": 2.4}


def record(task, method="lora", rank=4, seed=0, scores=(), losses=(1.5, 1.2, 1.3), status="finished", **more):
    config = {
        "experiment": more.pop("experiment", "lora_nlg"),
        "seed": seed,
        "labels": dict(method=method, rank=rank, model="smollm2-135m", task=task, stage="full")
        | more.pop("labels", {}),
        "base": {"name": "smollm2-135m"},
        "adapter": {"method": method, "rank": rank, "targets": ["query", "value"]},
        "task": {"name": "nlg", "task": task, **more.pop("data", {})},
        "optimizer": {"learning_rate": more.pop("rate", 2e-4)},
    }
    evaluations = [{"step": 100 * (i + 1), "loss": loss} for i, loss in enumerate(losses)]
    evaluations[-1] |= {f"decoded/{name}": value for name, value in dict(scores).items()}
    return run_record.result_record(
        run_folder.run_name(config), config, status, wall_seconds=9.0, train_seconds=8.0,
        parameters={"trainable": 1_000 * (rank or 9), "frozen": 10**7}, evaluations=evaluations,
        losses=[(300, 0.5)], environment={}, **more,
    )  # fmt: skip


def shown(name, results, model=None):
    module = find([name])
    return module.table(results, SimpleNamespace(model=model))


def line_of(table, label):
    (line,) = [line for line in table.lines if line[0] == label]
    return dict(zip(table.lines[0], line, strict=True))


def test_the_mean_over_seeds_beside_the_papers_rows():
    runs = [
        record("e2e", seed=seed, scores=E2E | {"bleu_python": bleu}) for seed, bleu in enumerate((67.0, 68.0, 70.0))
    ]
    runs += [
        record("e2e", rank=8, scores=E2E),  # Table 18's
        record("e2e", rate=1e-3, scores=E2E | {"bleu_python": 1.0}),  # of another setting, one seed
        record("webnlg", "fft", None, scores=E2E),
        record("e2e", "mora", scores={"bleu_python": 60.0}, missing={"meteor": "not computed: needs Java"}),
        record("e2e", "fft", None, status="diverged", losses=(1.0,)),
        record("e2e", "lora", labels={"stage": "rates"}, scores=E2E),
    ]
    table = shown("lora_table3", runs)
    lora = line_of(table, "LoRA 4")
    assert lora["BLEU"] == "68.3+-1.5"  # 68.33, 1.53
    assert (lora["NIST"], lora["val. loss"], lora["rate"], lora["seeds"]) == (
        "8.50+-0.00",
        "1.200+-0.000",
        "0.0002",
        "3",
    )
    assert lora["trainable"] == "4,000"
    mora = line_of(table, "MoRA 4")
    assert (mora["BLEU"], mora["METEOR"], mora["seeds"]) == ("60.0", "-", "1")
    text = table.text()
    assert "LoRA 8" not in text
    for words in (
        "MoRA 4: meteor not computed: needs Java.",
        "FFT: diverged at step 300.",
        "LoRA 4: 1 run(s) of other settings left out",
        "Not run: FT-Top2, Adapter-H, Adapter-L, PreLayer.",
        "The paper's Table 3, ANOTHER base model, gpt2-medium",
        "LoRA        0.35M      70.4+-0.1  8.85+-0.02  46.8+-0.2  71.8+-0.1  2.53+-0.02",
    ):
        assert words in text, words
    assert "the same base model, gpt2-large" in shown("lora_table3", [], "gpt2-large").text().split("\n\n")[3]


def test_webnlgs_splits_and_an_empty_dart():
    scores = {f"{split}/{metric}": 10.0 * i for i, (metric, split) in enumerate(nlg.WEBNLG)}
    webnlg = line_of(shown("lora_table14", [record("webnlg", scores=scores)]), "LoRA 4")
    assert [webnlg[name] for name in ("BLEU unseen", "BLEU seen", "BLEU all", "TER all")] == [
        "0.0",
        "10.0",
        "20.0",
        "80.00",
    ]
    assert "dart-v1.1.1-full-train.json" in shown("lora_table13", []).text()
    assert "full-train" not in shown("lora_table13", [record("dart", scores={"bleu": 40.0})]).text()


def test_ranks_stand_beside_the_papers(tmp_path):
    runs = [record("e2e", method, rank, scores=E2E) for method in ("lora", "mora") for rank in (1, 4)]
    table = shown("lora_table18", runs)
    first = dict(zip(table.lines[0], table.lines[1], strict=True))
    assert (first["r"], first["BLEU, ours | paper"], first["METEOR, ours | paper"]) == (
        "1",
        "68.0 | 68.72",
        "45.0 | 45.65",
    )
    assert [line[1] for line in table.lines[1:] if line[0] == "MoRA"] == ["1", "4"]
    assert len([line for line in table.lines if line[0] == "LoRA"]) == len(nlg.TABLE18)
    (path,) = lora_table18.figures(table, tmp_path)
    assert path.stat().st_size > 5_000
    assert not lora_table18.figures(shown("lora_table18", []), tmp_path)


def test_gpt3s_columns_are_of_several_tasks():
    runs = [record("wikisql", rank=8, scores={"logical_form": 50.0}), record("samsum", rank=8, scores={"rouge1": 40.0})]
    runs += [record("mnli", rank=8, scores={"matched": 0.8}, experiment="lora_mnli")]
    few = [
        record("mnli", rank=8, scores={"matched": 0.6}, data={"train_examples": count}, experiment="lora_mnli", seed=1)
        for count in (100, 150)
    ]
    table = shown("lora_table4", runs + few)
    assert line_of(table, "LoRA 8 150 examples")["MNLI-m"] == "60.0"
    assert "100 examples" not in table.text()  # which Table 16 shows
    line = line_of(table, "LoRA 8")
    assert [line[name] for name in ("WikiSQL", "MNLI-m", "SAMSum R1", "SAMSum R2")] == ["50.0", "80.0", "40.0", "-"]
    line = line_of(shown("lora_table16", runs + few), "LoRA 8")
    assert [line[name] for name in ("100", "1,000", "10,000", "all")] == ["60.0", "-", "-", "80.0"]


def test_words_of_a_rows_name_and_what_was_left_out_are_explained():
    """Captions stand only where they are needed."""
    captions = shown("lora_table14", [record("webnlg", scores={"all/bleu": 1.0})]).captions
    assert not any(word in caption for caption in captions for word in ("p8i5", "script", "could not be read"))
    labels = {"variant": "p4i3", "reading": "code"}
    scores = {"logical_form": 50.0, "unread": 2.0}
    captions = shown("lora_table4", [record("wikisql", "prelayer", None, scores=scores, labels=labels)]).captions
    for said in ("8 virtual tokens before the prompt", "as in the script", "2 target(s) could not be read"):
        assert sum(said in caption for caption in captions) == 1


def test_published_rows_have_a_number_a_column():
    for rows, columns in ((nlg.TABLE3, nlg.E2E), (nlg.TABLE13, nlg.DART), (nlg.TABLE14, nlg.WEBNLG)):
        for row in rows:
            assert len(row.scores) == len(columns) == len(row.spreads or columns), row
    assert {len(scores) for scores in nlg.TABLE18.values()} == {len(nlg.RANKS)}
    assert {len(row.scores) for row in gpt3.TABLE4} == {len(gpt3.COLUMNS)}
    assert {len(row.scores) for row in gpt3.TABLE15} == {2}
    assert {len(scores) for scores in gpt3.TABLE16.values()} == {len(gpt3.FEW)}


def test_a_loss_is_the_smallest_and_a_score_the_last():
    run = {"evaluations": [{"loss": 2.0, "bleu": 1.0}, {"loss": 3.0, "x/bleu": 0.5, "bleu_other": 9.0}]}
    assert (score_of(run, "loss"), score_of(run, "bleu"), score_of(run, "nist")) == (2.0, 0.5, None)


def test_a_score_that_is_no_number_is_not_replaced_by_an_earlier_one():
    for value in (None, float("nan"), float("inf")):
        assert score_of({"evaluations": [{"bleu": 1.0}, {"bleu": value}]}, "bleu") is None
    spoilt = {
        "evaluations": [{"matched": 0.6, "loss": 0.9}, {"best/matched": 0.3, "best/nonfinite": 5.0, "loss": None}]
    }
    assert (score_of(spoilt, "matched"), score_of(spoilt, "loss")) == (None, 0.9)
    spoilt["evaluations"][-1]["best/nonfinite"] = 0.0
    assert score_of(spoilt, "matched") == 0.3


def test_a_rate_at_the_end_of_its_grid_is_marked_and_of_equal_settings_the_better_is_shown():
    """The rates of other methods do not count; of two settings with as many scores the lower held-out loss is shown."""

    def tried(method, *rates):
        return [record("e2e", method, rate=rate, labels={"stage": "rates"}) for rate in rates]

    runs = [*tried("lora", 2e-4, 5e-4, 1e-3), *tried("mora", 2e-4, 5e-4, 1e-3), *tried("fft", 1e-3)]
    runs += [record("e2e", "lora", rate=1e-3, scores=E2E), record("e2e", "mora", rate=5e-4, scores=E2E)]
    runs += [record("e2e", "lora", rate=5e-4, scores=E2E, losses=(1.1, 1.25)), record("e2e", "fft", None, scores=E2E)]
    table = shown("lora_table3", runs)
    assert [line_of(table, label)["rate"] for label in ("LoRA 4", "MoRA 4", "FFT")] == ["0.0005", "0.0005", "0.0002"]
    assert "edge:" not in table.text()
    table = shown("lora_table3", [run for run in runs if run["losses"] and "lr0.0005" not in run["name"]])
    assert line_of(table, "LoRA 4")["rate"] == "0.001 edge"
    assert "edge: the smallest or the largest of the rates tried" in table.text()


def test_columns_at_rates_of_their_own_and_a_note_that_rows_share():
    """A column has its own rate, which is at an end of the grid or not; what is noted of two rows stands once."""

    def few(method, count, rate, stage="full"):
        kinds = {"experiment": "lora_mnli", "scores": {"matched": 0.6} if stage == "full" else {}}
        run = record("mnli", method, 8, rate=rate, data={"train_examples": count}, labels={"stage": stage}, **kinds)
        return run | {"partial": True, "notes": ["3000 rows"]}

    runs = [few("lora", 100, rate, "rates") for rate in (1e-3, 3e-3, 1e-2)]
    runs += [few("lora", 1_000, 3e-3), few("lora", 100, 1e-2), few("mora", 100, 1e-3)]
    table = shown("lora_table16", runs)
    assert line_of(table, "LoRA 8")["rate"] == "0.01 edge, 0.003"
    assert line_of(table, "MoRA 8")["rate"] == "0.001"
    assert "LoRA 8, MoRA 8: 3000 rows." in table.captions


def test_a_row_that_no_run_can_fill_says_why():
    runs = [record("e2e", "lora", 1, scores=E2E)]
    captions = shown("lora_table18", runs).captions
    assert captions[-2:] == (
        "Not run: LoRA 2, LoRA 4, LoRA 8, LoRA 16, LoRA 32, LoRA 64, LoRA 128.",
        "Not run (SmolLM2's value projection, 576 x 192, has no rank above 192): LoRA 256, LoRA 512, LoRA 1024.",
    )
    assert "Not run (SmolLM2 has no biases): BitFit." in shown("lora_table4", []).captions
    assert not any("(" in one for one in shown("lora_table4", [], "gpt2-medium").captions if one.startswith("Not run"))
    with pytest.raises(UserError, match=r"lora_table1 has another name here: python -m experiments\.tables latency"):
        find(["lora_table1"])
    assert {words.split()[0] for words in SHOWN_BY.values()} <= {*TABLES}
    assert not {*SHOWN_BY} & {*TABLES}


def test_settings_of_two_seeds_are_compared_by_their_held_out_loss():
    """Three seeds at a rate at which two diverged do not count more than two seeds at a good one."""
    wild = [record("e2e", seed=seed, scores=E2E, rate=1e-2, losses=(loss,)) for seed, loss in enumerate((1.1, 3, 4))]
    good = [record("e2e", seed=seed, scores=E2E, rate=2e-3, losses=(1.2,)) for seed in (0, 1)]
    for runs, rate in ((wild + good, "0.002"), (wild + good[:1], "0.01"), (wild[:1] + good, "0.002")):
        assert line_of(shown("lora_table3", runs), "LoRA 4")["rate"] == rate
    # The same where no run has the scores that need Java, or the loss of a run that diverged is no number.
    for change in ({"decoded/meteor": None}, {"decoded/meteor": None, "loss": math.nan}):
        for run in wild:
            run["evaluations"][-1] |= change if run["config"]["seed"] else {"decoded/meteor": None}
        for run in good:
            run["evaluations"][-1] |= {"decoded/meteor": None}
        assert line_of(shown("lora_table3", wild + good), "LoRA 4")["rate"] == "0.002", change


def test_two_seeds_with_all_scores_count_more_than_many_with_some():
    some = {name: E2E[name] for name in list(E2E)[:5]}
    runs = [record("e2e", seed=seed, scores=some, rate=1e-3, losses=(1.1,)) for seed in range(4)]
    runs += [record("e2e", seed=seed, scores=E2E, rate=2e-4) for seed in (0, 1)]
    assert line_of(shown("lora_table3", runs), "LoRA 4")["CIDEr"] == "2.40+-0.00"


def test_the_columns_of_a_row_are_of_one_setting():
    """Two seeds at one rate without Java, one at another with it: no BLEU of the one beside a METEOR of the other."""
    python = {name: E2E[name] for name in ("bleu_python", "nist_python", "nist")}
    runs = [record("e2e", seed=seed, scores=python, rate=1e-3) for seed in (0, 1, 2)]
    runs += [record("e2e", seed=0, scores=E2E | {"bleu_python": 1.0}, rate=2e-4)]
    table = shown("lora_table3", runs)
    line = line_of(table, "LoRA 4")
    assert [line[name] for name in ("BLEU", "METEOR", "rate", "seeds")] == ["68.0+-0.0", "-", "0.001", "3"]
    assert "LoRA 4: 1 run(s) of other settings left out." in table.text()
    runs += [record("wikisql", rank=8, scores={"logical_form": 50.0}, rate=rate) for rate in (1e-3, 2e-3)]
    assert "LoRA 8: WikiSQL: 1 run(s) of other settings left out." in shown("lora_table4", runs).text()
