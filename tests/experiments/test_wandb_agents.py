"""Two offline W&B agents run the W&B file of a rank sweep."""

from drills import wandb_agents


def test_w_and_b_s_records_make_the_table_of_the_json_lines(tmp_path, one_device, monkeypatch):
    for name in ("XLA_FLAGS", "NPROC"):  # of the runs: eight devices take more CPU time
        monkeypatch.setenv(name, one_device[name])
    kept, of_wandb = wandb_agents.both(tmp_path, ranks=[2, 4])
    for record, shown in zip(kept, of_wandb, strict=True):  # every digit: a table's rounded seconds hide a difference
        for key in ("labels", "status", "train_seconds"):
            assert shown[key] == record[key]
    ours, theirs = wandb_agents.tables(kept, of_wandb)
    assert ours == theirs
    rows = [line.split()[:2] for line in ours.splitlines() if line.startswith("lora")]
    assert rows == [["lora", "2"], ["lora", "4"]]
