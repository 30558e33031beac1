"""Two offline W&B agents run the W&B file of a rank sweep."""

from drills import wandb_agents


def test_w_and_b_s_records_make_the_table_of_the_json_lines(tmp_path):
    ours, theirs = wandb_agents.tables(tmp_path, ranks=[2, 4])
    assert ours == theirs
    rows = [line.split()[:2] for line in ours.splitlines() if line.startswith("lora")]
    assert rows == [["lora", "2"], ["lora", "4"]]
