"""The GLUE task: rows and splits, subsets, buckets, scores of Table 2's kind, collapsed runs, bad configs."""

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.glue.specs import GLUE
from lowrank_jax.data.pipeline import Batches, bucketed_pass
from lowrank_jax.metrics.classification import f1, matthews
from lowrank_jax.metrics.correlation import pearson, spearman
from lowrank_jax.tasks.base import LabelTask
from lowrank_jax.tasks.glue.task import GlueConfig, GlueTask, default_buckets
from lowrank_jax.text.tokenizers import ByteTokenizer, encode_pair

BYTES = ByteTokenizer()


@pytest.fixture
def build(tiny_glue):
    def make(task, **config):
        return GlueTask(GlueConfig(task=task, data_dir=str(tiny_glue), allow_partial=True, **config), BYTES)

    return make


def labels_of(task):
    return {name: rows.labels for name, rows in task.validation_sources().items()}


def one_hot(predictions, classes):
    return np.eye(classes, dtype=np.float32)[predictions]


@pytest.mark.parametrize("name", GLUE)
def test_every_task_gives_what_its_protocol_says(name, build):
    task, spec = build(name), GLUE[name]
    protocol = LabelTask
    assert isinstance(task, protocol)
    assert task.head == ("regression" if name == "stsb" else "classification")
    assert task.num_labels == len(task.label_names) == {"stsb": 1, "mnli": 3}.get(name, 2)
    assert list(task.validation_sources()) == (["matched", "mismatched"] if name == "mnli" else [""])
    assert task.partial
    assert len([note for note in task.notes if "tokens are lost" not in note]) == len(spec.splits)
    for split, source in {"train": task.train_source(), **task.validation_sources()}.items():
        assert len(source) == (8 if split == "train" else 5)
        lengths = task.lengths(source)
        assert lengths.dtype == np.int32
        for i in range(len(source)):
            made = task.features(source[i])
            assert made["tokens"].shape == made["types"].shape == (lengths[i],)
            assert lengths[i] <= task.seq_len
            assert made["labels"] == source.labels[i]
            assert made["labels"].dtype == (np.float32 if name == "stsb" else np.int32)
            assert made["weights"] == 1


def test_a_pair_is_encoded_as_one(build, tiny_glue):
    task = build("mnli", seq_len=40)
    line = (tiny_glue / "MNLI" / "dev_mismatched.tsv").read_text(encoding="utf-8").split("\n")[3]
    row = task.validation_sources()["mismatched"][2]
    assert row["tokens"].tolist() == encode_pair(BYTES, *line.split("\t")[1:3], 40)[0]
    assert task.label_names[row["label"]] == line.split("\t")[3]


def test_batches_for_the_model(build):
    task = build("rte", seq_len=64, buckets=(48, 64))
    source = task.train_source()
    padded = {"lengths": task.lengths(source), "buckets": task.buckets, "pad": task.pad}
    batch = next(Batches(source, task.features, 4, **padded))
    assert {name: value.dtype for name, value in batch.items()} == {
        **dict.fromkeys(("tokens", "types", "labels"), np.int32),
        "mask": bool,
        "weights": np.float32,
    }
    assert batch["tokens"].shape[1] in (48, 64)
    assert (batch["tokens"][~batch["mask"]] == BYTES.pad_id).all()

    (dev,) = task.validation_sources().values()
    padded["lengths"] = task.lengths(dev)
    outputs = np.zeros((len(dev), 2), np.float32)
    for indices, batch in bucketed_pass(dev, task.features, 4, **padded):
        there = indices >= 0
        outputs[indices[there]] = one_hot(batch["labels"], 2)[there]
    assert task.score({"": outputs})["main"] == 1


def test_low_data_samples_are_nested_and_named(build):
    whole = build("mnli").train_source()
    rows = {tuple(whole[i]["tokens"]) for i in range(8)}
    samples = {}
    for count in (2, 5, 8):
        task = build("mnli", train_examples=count, subset_seed=3)
        samples[count] = [tuple(task.train_source()[i]["tokens"]) for i in range(count)]
        assert f"mnli train: {count} of 8 rows, subset_seed=3" in task.notes
    assert samples[8][:5] == samples[5]
    assert samples[5][:2] == samples[2]
    assert set(samples[8]) == rows
    again = build("mnli", train_examples=5, subset_seed=4).train_source()
    assert [tuple(again[i]["tokens"]) for i in range(5)] != samples[5]
    for task in (build("mnli", train_examples=2), build("mnli")):
        assert len(task.validation_sources()["matched"]) == 5  # dev stays whole


def test_the_sample_of_a_seed_is_the_same_for_ever(build):
    task, whole = build("rte", train_examples=8), build("rte").train_source()
    place = {tuple(whole[i]["tokens"]): i for i in range(8)}
    source = task.train_source()
    assert [place[tuple(source[i]["tokens"])] for i in range(8)] == [6, 2, 1, 7, 3, 0, 5, 4]


def test_fewer_dev_rows(build):
    whole, part = build("stsb"), build("stsb", max_dev_examples=2)
    labels = labels_of(whole)[""]
    np.testing.assert_array_equal(labels_of(part)[""], labels[[0, 2]])
    assert "stsb dev: 2 of 5 rows scored" in part.notes
    for field in ("train_examples", "max_dev_examples"):
        with pytest.raises(UserError, match=f"task.{field}=9 is more than the . rows of"):
            build("stsb", **{field: 9})


PREDICTED = np.array([0, 1, 1, 1, 0])


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "qqp", "qnli", "rte", "wnli"])
def test_scores_of_classes(name, build):
    task = build(name)
    truth = labels_of(task)[""]
    scores = task.score({"": one_hot(PREDICTED, 2) * 3 - 1})
    right = np.mean(truth == PREDICTED)
    expected = {"accuracy": right, "main": right, "distinct": 2, "nonfinite": 0}
    if name == "cola":
        expected |= {"matthews": matthews(PREDICTED, truth), "main": matthews(PREDICTED, truth)}
    if name in ("mrpc", "qqp"):
        expected["f1"] = f1(PREDICTED, truth)
    assert scores == pytest.approx(expected)
    assert all(type(value) is float for value in scores.values())


def test_mnli_is_scored_over_both_sets_together(build):
    task = build("mnli")
    truth = labels_of(task)
    outputs = {"mismatched": one_hot(truth["mismatched"], 3), "matched": one_hot((truth["matched"] + 1) % 3, 3)}
    outputs["matched"][0] = one_hot(truth["matched"][0], 3)
    expected = {"matched": 0.2, "mismatched": 1, "overall": 0.6, "main": 0.6, "distinct": 3, "nonfinite": 0}
    assert task.score(outputs) == pytest.approx(expected)


def test_mnli_with_one_dev_set(tmp_path, tiny_glue):
    (tmp_path / "MNLI").mkdir()
    for name in ("train.tsv", "dev_matched.tsv"):
        (tmp_path / "MNLI" / name).write_bytes((tiny_glue / "MNLI" / name).read_bytes())
    config = {"task": "mnli", "data_dir": str(tmp_path)}
    task = GlueTask(GlueConfig(**config, allow_partial=True), BYTES)
    assert list(task.validation_sources()) == ["matched"]
    assert "mnli dev_mismatched: no file" in task.notes
    scores = task.score({"matched": one_hot(labels_of(task)["matched"], 3)})
    assert scores == {"matched": 1, "main": 1, "distinct": 3, "nonfinite": 0}
    with pytest.raises(UserError, match=r"train\.tsv: has 8 rows, officially 392702"):
        GlueTask(GlueConfig(**config), BYTES)
    (tmp_path / "MNLI" / "dev_matched.tsv").unlink()
    with pytest.raises(UserError, match=r"has no dev_matched\.tsv"):
        GlueTask(GlueConfig(**config, allow_partial=True), BYTES)


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_scores_of_regression(shape, build):
    task = build("stsb")
    truth, predicted = labels_of(task)[""], np.array([0.5, 0.2, 3, 2, 4], np.float32)
    assert task.score({"": predicted.reshape(shape)}) == pytest.approx(
        {
            "pearson": pearson(predicted, truth),
            "spearman": spearman(predicted, truth),
            "main": pearson(predicted, truth),
            "spread": np.std(predicted),
            "nonfinite": 0,
        }
    )


def test_collapsed_and_diverged_runs_show(build):
    scores = build("cola").score({"": np.full((5, 2), [0.3, 0.1])})
    assert (scores["distinct"], scores["matthews"], scores["main"]) == (1, 0, 0)
    scores = build("stsb").score({"": np.full((5, 1), 2.6)})
    assert (scores["spread"], scores["pearson"], scores["spearman"], scores["main"]) == (0, 0, 0, 0)
    for name in ("cola", "stsb"):
        task = build(name)
        outputs = np.ones((5, task.num_labels), np.float32)
        outputs[1], outputs[3] = np.nan, np.inf
        scores = task.score({"": outputs})
        assert scores["nonfinite"] == 2
        assert np.isfinite(list(scores.values())).all()


def test_outputs_of_another_shape_are_refused(build):
    task = build("rte")
    for outputs in ({"": np.zeros((4, 2))}, {"": np.zeros((5, 3))}, {"": np.zeros(5)}):
        with pytest.raises(ValueError, match=r"outputs .* of the split ''; wanted \(5, 2\)"):
            task.score(outputs)
    with pytest.raises(ValueError, match=r"outputs of \['matched'\] for the splits \[''\]"):
        task.score({"matched": np.zeros((5, 2))})


def test_default_buckets():
    assert default_buckets(128) == (32, 64, 128)
    assert default_buckets(512) == (32, 64, 128, 256, 512)
    assert default_buckets(320) == (40, 80, 160, 320)
    assert default_buckets(50) == (50,)
    assert default_buckets(16) == (16,)
    assert GlueConfig(buckets=[64, 128]).buckets == (64, 128)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"task": "sst-2"}, "unknown GLUE task 'sst-2'; did you mean sst2"),
        ({"seq_len": 0}, "task.seq_len is 0"),
        ({"train_examples": 0}, "task.train_examples is 0"),
        ({"max_dev_examples": -1}, "task.max_dev_examples is -1"),
        ({"subset_seed": -1}, "task.subset_seed is -1"),
        ({"buckets": (32, 64)}, r"task.buckets is \(32, 64\); it must ascend up to seq_len=128"),
        ({"buckets": (64, 32, 128)}, "must ascend up to"),
        ({"buckets": ()}, "must ascend up to"),
        ({"buckets": (0, 128)}, r"task.buckets\[0\] is 0"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(UserError, match=message):
        GlueConfig(**config)


def test_a_length_without_room(build):
    with pytest.raises(UserError, match="a length of 4 is too short for tokenizer 'bytes'"):
        build("rte", seq_len=4)


def test_rows_that_are_cut_are_said(build, caplog):
    whole = build("mrpc", seq_len=512)
    assert not caplog.messages
    lengths = {"mrpc train": whole.train_source().lengths, "mrpc dev": whole.validation_sources()[""].lengths}
    task = build("mrpc", seq_len=40)
    assert caplog.messages == [
        f"{split}: {(n > 40).sum()} of {len(n)} row(s) longer than task.seq_len=40; {np.maximum(n - 40, 0).sum()} of "
        f"{n.sum()} tokens are lost; task.seq_len={n.max()} keeps all"
        for split, n in lengths.items()
    ]
    assert set(task.notes) == {*whole.notes, *caplog.messages}


def test_real_mrpc_with_the_checkpoints_tokenizer(data_folder):
    from lowrank_jax.bases.locate import cache_folder
    from lowrank_jax.text.tokenizers import load_tokenizer

    folder = cache_folder("minilm-l6")
    if not (folder / "tokenizer.json").is_file() or not (data_folder / "glue-mrpc").is_dir():
        pytest.skip("needs MRPC, and: python scripts/fetch_weights.py minilm-l6")
    task = GlueTask(GlueConfig(task="mrpc", data_dir=str(data_folder)), load_tokenizer(folder))
    assert (len(task.train_source()), len(task.validation_sources()[""])) == (3668, 408)
    assert not task.partial
    assert task.notes == ()
    row = task.train_source()[0]
    assert (row["tokens"][0], row["tokens"][-1], row["types"][0], row["types"][-1]) == (101, 102, 0, 1)
    yes = task.score({"": one_hot(np.ones(408, int), 2)})
    assert yes["accuracy"] == pytest.approx(279 / 408)
    assert yes["f1"] == pytest.approx(0.812, abs=5e-4)
    assert yes["distinct"] == 1
