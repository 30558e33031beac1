"""MNLI on a causal model: prompts, completions, samples of the training rows, incomplete files, scores, bad configs."""

import numpy as np
import pytest

from experiments.records import data_record
from lowrank_jax.core.errors import UserError
from lowrank_jax.tasks.glue.task import GlueConfig, GlueTask
from lowrank_jax.tasks.mnli import MnliConfig, MnliTask, splits_of
from lowrank_jax.text.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()


@pytest.fixture
def build(tiny_glue):
    def make(**config):
        return MnliTask(MnliConfig(data_dir=str(tiny_glue), allow_partial=True, **config), BYTES)

    return make


def texts(task):
    source = task.train_source()
    return [BYTES.decode(source[at][0].tokens.tolist()) for at in range(len(source))]


def test_a_row_is_a_prompt_and_its_label_s_word(build, tiny_glue):
    lines = (tiny_glue / "MNLI" / "train.tsv").read_text(encoding="utf-8").split("\n")[1:-1]
    columns = [line.split("\t")[1:] for line in lines]
    wanted = [f"Premise: {a}\nHypothesis: {b}\nLabel: {label}" for a, b, label in columns]
    task = build()
    assert texts(task) == wanted
    made = task.features(task.train_source()[0])
    assert BYTES.decode(made["tokens"][made["weights"] == 1].tolist()) == f" {columns[0][2]}"
    dev = task.validation_sources()["matched"]
    endings = [BYTES.decode(one.tokens[one.start :].tolist()) for one in dev[0]]
    assert endings == [" entailment", " neutral", " contradiction"]
    prompt, answer = task.prompts(1)[0]
    assert answer == endings[dev.answers[0]]
    assert task.prompt_tokens(prompt) == dev[0][0].tokens[: dev[0][0].start].tolist()


def test_few_rows_are_the_same_for_every_method_and_those_of_glue(build, tiny_glue):
    """A sample depends on subset_seed alone, is part of a larger one, and is noted."""
    small, large, other = (texts(build(**how)) for how in (
        {"train_examples": 3}, {"train_examples": 5}, {"train_examples": 5, "subset_seed": 1},
    ))  # fmt: skip
    assert small == large[:3]
    assert other != large
    task = build(train_examples=3)
    assert "mnli train: 3 of 8 rows, subset_seed=0" in task.notes
    assert task.partial
    glue = GlueTask(GlueConfig("mnli", data_dir=str(tiny_glue), allow_partial=True, train_examples=3), BYTES)
    names = ("entailment", "neutral", "contradiction")
    assert [text.rpartition(" ")[2] for text in small] == [names[label] for label in glue.train_source().labels]


def test_a_record_has_the_digests_of_what_is_read(build, tiny_glue):
    for dev in ("matched", "both"):
        task = {"name": "mnli", "data_dir": str(tiny_glue), "dev": dev}
        found = data_record.make({"task": task})
        read = data_record.of_task(build(dev=dev))
        assert {key: one["sha256"] for key, one in found.items()} == read
        assert {*read} == {f"task.{split}" for split in splits_of(dev)}


def test_scores_are_those_of_glue_s_mnli(build, tiny_glue):
    rng, glue = (
        np.random.default_rng(0),
        GlueTask(GlueConfig("mnli", data_dir=str(tiny_glue), allow_partial=True), BYTES),
    )
    outputs = {name: rng.normal(size=(5, 3)) for name in ("matched", "mismatched")}
    outputs["matched"][2, 1] = np.nan
    found, wanted = build(dev="both").score(outputs), glue.score(outputs)
    assert np.isnan(found.pop("loss"))  # of zeros it would be log 3, less than most runs begin with, hence the best
    assert found == {**wanted, "main": wanted["matched"]}
    assert found["nonfinite"] == 1
    assert build().score({"matched": outputs["matched"]})["main"] == found["matched"]
    outputs["matched"][2, 1] = 0.0
    likely = np.concatenate([outputs[name] for name in ("matched", "mismatched")])
    answers = np.concatenate([rows.answers for rows in build(dev="both").validation_sources().values()])
    shares = np.exp(likely) / np.exp(likely).sum(1, keepdims=True)
    loss = -np.log(shares[np.arange(10), answers]).mean()
    assert build(dev="both").score(outputs)["loss"] == pytest.approx(loss, rel=1e-5)


def test_what_cannot_be_read_is_named(build):
    with pytest.raises(UserError, match=r"^mnli train, row \d+: has \d+ tokens with .*; raise it"):
        build(seq_len=64)
    cut = build(seq_len=64, truncate=True)
    assert any("row(s) longer than task.seq_len=64" in note for note in cut.notes)
    assert cut.train_source().lengths.max() == 64
    with pytest.raises(UserError, match=r"task\.likelihood 'mean'"):
        MnliConfig(likelihood="mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"task\.dev 'all'"):
        MnliConfig(dev="all")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"must ascend up to seq_len=768"):
        MnliConfig(buckets=(64, 128))
    with pytest.raises(UserError, match=r"seq_len is 768 and the base has 512 positions"):
        MnliTask(MnliConfig(), BYTES, 512)
