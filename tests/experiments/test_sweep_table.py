"""`experiments.tables sweep`: any grid, by what differs between the configs; a median is over seeds alone."""

import json
import math

import pytest

from experiments.config.labels import with_labels
from experiments.config.vary import named, seeds_alone, varying
from experiments.records import json_files, results, run_folder, run_record
from experiments.sweeps.cells_file import described
from experiments.tables import sweep
from experiments.tables.__main__ import table_of
from lowrank_jax.core.errors import UserError


def plain(rank=8, seed=0, rate=1e-3, method="lora", **task):
    return {
        "experiment": "finetune",
        "seed": seed,
        "labels": {},
        "trainable": "full" if method == "none" else "adapters",
        "base": {"name": "pico-llama"},
        "adapter": {"method": method, "rank": rank},
        "task": {"name": "text", "path": "mine.jsonl", **task},
        "optimizer": {"learning_rate": rate},
    }


def record(config, loss, held_out, status="finished", seconds=60.0):
    config = with_labels(config)
    return run_record.result_record(
        run_folder.run_name(config), config, status, wall_seconds=90.0, train_seconds=seconds,
        parameters={"trainable": 1000 * config["adapter"]["rank"], "frozen": 5},
        evaluations=[{"step": 5, "loss": 0.1}, {"step": 9, "loss": held_out, "perplexity": 9.0}],
        losses=[(1, 50.0), *((step, loss) for step in range(30, 51))], environment={},
    )  # fmt: skip


GRID = [
    record(plain(rank, seed), rank / 8 + seed, rank + 10 * seed, seconds=rank + seed)
    for rank in (2, 4, 8)
    for seed in (2, 0, 1)
]


def test_a_row_for_each_rank_and_medians_over_its_seeds(tmp_path):
    """From a file and run folders, in any order; ranks stand by size, and no median pools two of them."""
    for one in GRID[:4]:
        json_files.write_json(tmp_path / "runs" / one["name"] / run_folder.RESULT, one)
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(one) + "\n" for one in reversed(GRID[4:])))
    table = sweep.table(results.load_results([tmp_path / "runs", tmp_path / "more.jsonl"]), None)
    assert [list(line) for line in table.lines] == [
        [
            "method", "rank", "seeds", "training loss", "held-out loss", "perplexity", "trainable", "training time"
        ],
        ["lora", "2", "3", "1.2500", "12", "9", "2,000", "3 s"],
        ["lora", "4", "3", "1.5000", "14", "9", "4,000", "5 s"],
        ["lora", "8", "3", "2.0000", "18", "9", "8,000", "9 s"],
    ]  # fmt: skip
    assert table.title == "finetune: 9 runs in 3 setting(s), medians over seeds"
    assert sweep.TOGETHER not in table.captions
    assert sweep.TOGETHER in sweep.of([*GRID[1:], {**GRID[0], "together": 3}]).captions


def test_the_caption_says_how_many_steps_a_loss_averages():
    """A run of fewer steps than the window has the mean of all."""
    short = [{**one, "losses": [[step, 1.0] for step in range(1, 13)]} for one in GRID[:2]]
    assert "mean of a run's last 20 steps. " in sweep.of(GRID).captions[0]
    assert "mean of all steps of a run (12). " in sweep.of(short).captions[0]
    assert "last 20 steps, or of all where it has fewer (12). " in sweep.of([*short, *GRID[2:]]).captions[0]


def test_what_differs_has_a_column_and_what_was_lost_a_note(tmp_path):
    rows = [
        record(plain(8, rate=0.01), 1.0, 5.0),
        record(plain(8, rate=0.001), 2.0, 6.0),
        record(plain(8, rate=0.001, seed=1), 2.0, 6.0, status="diverged"),
        record(plain(8, rate=0.001, method="none"), 3.0, 7.0),
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    text = table_of(["sweep", "--results=all.jsonl", "--lines"], tmp_path)
    header, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    assert (header[:4], header[-1]) == (["method", "rank", "learning_rate", "seeds"], "note")
    assert [(*line[:5], line[-1]) for line in lines] == [
        ("fft", "-", "0.001", "1", "3.0000", ""),
        ("lora", "8", "0.001", "1", "2.0000", "diverged at step 50"),
        ("lora", "8", "0.01", "1", "1.0000", ""),
    ]
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(UserError, match="has no record of a run"):
        table_of(["sweep", "--results=none.jsonl"], tmp_path)


def test_records_of_several_experiments_are_refused():
    other = record({**plain(), "experiment": "mora_uuid"}, 1.0, 1.0)
    with pytest.raises(UserError, match="runs of finetune and mora_uuid; name the files or folders of one"):
        sweep.table([*GRID, other], None)


def test_varying_names_keys_shortly_and_knows_defaults():
    found = varying([plain(2), plain(4, seq_len=512), plain(4, seed=3, rate=3e-3, path="other.jsonl")])
    assert found[0] == {"rank": 2, "learning_rate": 1e-3, "path": "mine.jsonl", "seed": 0}  # 512 is the default
    assert named(found[2]) == "rank 4, learning_rate 0.003, path other.jsonl, seed 3"
    assert varying([plain(), plain()]) == [{}, {}]
    assert "base" in varying([plain(), {**plain(), "base": {"name": "x"}}])[0]


def test_the_closing_lines_of_trials_pool_seeds_alone():
    """Last, best (the least of a loss) and median; nothing over several ranks."""
    seeds = [one for one in GRID if one["labels"]["rank"] == 2]
    *lines, loss, _ = results.scores(seeds).splitlines()
    assert len(lines) == 3
    assert loss == "held-out loss: last 22.0000, 2.0000, 12.0000; median 12.0000 (last), 0.1000 (best)"
    assert "median" not in results.scores(GRID)
    assert seeds_alone([one["config"] for one in seeds])
    assert not seeds_alone([one["config"] for one in GRID])


def test_the_closing_lines_of_trials_name_a_seed_whose_score_is_not_finite():
    """The last update may spoil the weights of a run that ended; the others keep their median."""
    seeds = [record(plain(2, seed), 1.0, held) for seed, held in enumerate((None, 4.0, 6.0))]
    *_, loss, _ = results.scores(seeds).splitlines()
    assert loss == "held-out loss: last not finite, 4.0000, 6.0000; median 5.0000 (last), 0.1000 (best)"
    for one in seeds:
        one["evaluations"][-1]["loss"] = None
    assert "held-out loss: last not finite, not finite, not finite\n" in results.scores(seeds)
    seeds[1]["evaluations"][-1].pop("loss")
    assert "held-out loss" in results.scores(seeds)


def test_the_trials_of_a_program_are_named_by_what_differs():
    plains = [plain(2), plain(8, rate=3e-3)]
    assert described(["a", "b"], plains, [2000, 8000], 1).splitlines() == [
        "2 trials of 2,000-8,000 trainable parameters over one base on 1 device(s); above is the plan of the largest",
        "  a: rank 2, learning_rate 0.001; 2,000 trainable",
        "  b: rank 8, learning_rate 0.003; 8,000 trainable",
    ]
    seeds = described(["a", "b"], [plain(), plain(seed=4)], [8000, 8000], 2)
    assert seeds == "2 trials of 8,000 trainable parameters over one base on 2 device(s): seed 0; seed 4"


def test_the_last_line_of_a_run_says_which_loss_is_which():
    last = "1.1 s of training, 90.0 s from start to end"
    result = record(plain(), 2.0, 6.0, seconds=1.1)
    assert run_record.summary(result) == (
        "training loss 2.0000 (mean of the last 20 steps), held-out loss 6 (lowest 0.1, at step 5), perplexity 9, "
        + last
    )
    result |= {"losses": [[1, 3.0], [2, 1.0]], "evaluations": []}
    assert run_record.summary(result) == f"training loss 2.0000 (mean of the last 2 steps), {last}"
    result |= {"losses": [], "evaluations": [{"step": 1, "quick/loss": 2.5}]}
    assert run_record.summary(result) == f"quick/held-out loss 2.5, {last}"
    result |= {"wall_seconds": None}  # older records
    assert run_record.summary(result) == "quick/held-out loss 2.5, 1.1 s of training"
    for lowest, words in ((2.46, ""), (2.4, " (lowest 2.4, at step 10)"), (math.nan, "")):
        earlier = [{"step": 5, "quick/loss": 9.0}, {"step": 10, "quick/loss": lowest}, {"step": 15, "loss": 0.1}]
        risen = result | {"evaluations": [*earlier, *result["evaluations"]]}
        assert run_record.summary(risen) == f"quick/held-out loss 2.5{words}, 1.1 s of training"
