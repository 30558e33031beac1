"""The UUID task: what is learnt, what is decoded from, and the scorer's fixed values and chance level."""

import uuid

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.uuid_pairs.pairs import generate_pairs
from lowrank_jax.tasks.uuid import CHANCE, UuidConfig, UuidTask, score_uuids
from lowrank_jax.text.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()


def build(tokenizer=BYTES, **config):
    return UuidTask(UuidConfig(pairs=6, seed=1, **config), tokenizer)


def targets(made, tokenizer):
    return tokenizer.decode(made["tokens"][made["weights"] == 1])


def test_bytes_with_loss_on_the_value():
    task = build()
    (key, value) = generate_pairs(6, 1)[4]
    made = task.features(task.train_source()[4])
    assert task.seq_len == 74  # 36 + 1 + 36 = 73 bytes
    assert task.max_new_tokens == 36
    assert task.stop_id is None
    assert bytes(made["tokens"][:73].tolist()).decode() == f"{key}:{value}"
    assert set(made["tokens"][73:]) == {BYTES.pad_id}
    np.testing.assert_array_equal(made["weights"], [0] * 37 + [1] * 36 + [0])


def test_a_prepared_folder_with_other_pairs_is_refused(tmp_path, monkeypatch):
    """A run's config has only the seed: every row read must be the seed's, not only those checked at the opening."""
    from lowrank_jax.data.builders.uuid_pairs import uuid_pairs

    def spoilt(pairs, seed):
        made = generate_pairs(pairs, seed)
        return [made[0], (made[1][0], made[0][1]), *made[2:]]

    monkeypatch.setattr(uuid_pairs, "generate_pairs", spoilt)
    with pytest.raises(UserError, match=r"pairs_200_seed_5.* has other pairs than its seed gives; delete it"):
        UuidTask(UuidConfig(pairs=200, seed=5, data_dir=str(tmp_path)), BYTES)


def test_marks_and_loss_on_all():
    task = build(add_bos=True, add_eos=True, loss_on="all")
    made = task.features(task.train_source()[0])
    assert made["tokens"][0] == BYTES.bos_id
    assert made["tokens"][74] == BYTES.eos_id == task.stop_id
    np.testing.assert_array_equal(made["weights"], [0] + [1] * 74 + [0])  # after BOS the first digit is a target
    made = build(loss_on="all").features(task.train_source()[0])
    np.testing.assert_array_equal(made["weights"], [0] + [1] * 72 + [0])  # and is none without
    made = build(add_bos=True, add_eos=True).features(task.train_source()[0])
    np.testing.assert_array_equal(made["weights"], [0] * 38 + [1] * 37 + [0])


@pytest.mark.parametrize("marks", [{}, {"add_bos": True, "add_eos": True}])
@pytest.mark.parametrize("kind", ["bytes", "subwords"])
def test_the_prompt_is_what_training_saw_before_the_value(kind, marks, subwords):
    tokenizer = {"bytes": BYTES, "subwords": subwords}[kind]
    task = build(tokenizer, **marks)
    for row, (prompt, target) in zip(task.train_source(), task.prompts(), strict=True):
        assert (prompt, target) == (row["key"] + ":", row["value"])
        made = task.features(row)
        ids = task.prompt_tokens(prompt)
        assert made["tokens"][: len(ids)].tolist() == ids
        assert not made["weights"][: len(ids)].any()
        assert targets(made, tokenizer) == target
        assert made["weights"].sum() <= task.max_new_tokens + (task.stop_id is not None)


def test_apart_equals_whole_for_subwords_that_split_at_punctuation(subwords):
    task = build(subwords)
    assert any(len(subwords.encode(key)) < 36 for key, _ in generate_pairs(6, 1))  # some tokens are longer than a byte
    for row in task.train_source():
        whole = subwords.encode(f"{row['key']}:{row['value']}")
        assert task.features(row)["tokens"][: len(whole)].tolist() == whole


def test_seq_len_and_new_tokens_hold_the_longest_example(subwords):
    task = build(subwords, add_eos=True)
    lengths = [len(subwords.encode(k + ":")) + len(subwords.encode(v)) + 1 for k, v in generate_pairs(6, 1)]
    assert max(lengths) <= task.seq_len < max(lengths) + 2
    assert task.seq_len % 2 == 0
    assert task.max_new_tokens == max(len(subwords.encode(v)) for _, v in generate_pairs(6, 1))


def test_seq_len_has_room_for_the_marks():
    class Filled(ByteTokenizer):  # key and value fill 80 tokens exactly
        def encode(self, text):
            return super().encode(text if text.endswith(":") else text + "." * 7)

    lengths = [
        build(Filled(), **marks).seq_len for marks in ({}, {"add_bos": True}, {"add_eos": True, "add_bos": True})
    ]
    assert lengths == [80, 82, 82]
    assert build(Filled(), add_eos=True).seq_len == 82


def test_samples_are_fixed_spread_out_and_bounded():
    task = build(eval_pairs=3)
    pairs = [(k + ":", v) for k, v in generate_pairs(6, 1)]
    assert task.prompts() == task.prompts() == [pairs[0], pairs[2], pairs[4]]
    assert task.prompts(2) == [pairs[0], pairs[3]]
    assert task.prompts(6) == task.prompts(99) == pairs == build().prompts()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pairs": 0}, "task.pairs is 0"),
        ({"pairs": 2.5}, "task.pairs is 2.5"),
        ({"seed": -1}, "task.seed is -1"),
        ({"loss_on": "values"}, "unknown loss_on 'values'; did you mean value"),
        ({"eval_pairs": 0}, "task.eval_pairs is 0"),
        ({"eval_pairs": 65}, "eval_pairs=65 is more than pairs=64"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(UserError, match=message):
        UuidConfig(**config)


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_mark_that_the_tokenizer_lacks(name):
    class Bare(ByteTokenizer):
        bos_id = eos_id = None

    with pytest.raises(UserError, match=f"no {name.upper()} token; set add_{name}=False"):
        build(Bare(), **{f"add_{name}": True})


def test_every_pair_is_encoded_once():
    class Counting(ByteTokenizer):
        texts = 0

        def encode(self, text):
            self.texts += 1
            return super().encode(text)

    tokenizer = Counting()
    UuidTask(UuidConfig(pairs=100), tokenizer)
    assert tokenizer.texts == 200  # a key and its value


TRUTH = "01234567-89ab-4def-8123-456789abcdef"


@pytest.mark.parametrize(
    ("prediction", "accuracy", "exact"),
    [
        (TRUTH, 1, 1),
        (TRUTH + "0123", 1, 1),  # what follows is left out
        ("", 0, 0),
        (TRUTH[:8], 8 / 32, 0),
        (TRUTH.replace("-", "x"), 1, 0),  # hyphens do not count as digits
        ("f" + TRUTH[1:], 31 / 32, 0),
        (" " + TRUTH, 0, 0),  # a shifted place is wrong
        (TRUTH.upper(), 21 / 32, 0),  # case counts: 11 letters
        ("--------" + TRUTH[8:], 24 / 32, 0),
        ("é" + TRUTH[1:], 31 / 32, 0),
    ],
)
def test_scores_of_one_value(prediction, accuracy, exact):
    assert score_uuids([prediction], [TRUTH]) == {"char_accuracy": pytest.approx(accuracy), "exact_match": exact}


def test_scores_are_means_over_the_values():
    assert build().score([TRUTH, ""], [TRUTH, TRUTH]) == {"char_accuracy": 0.5, "exact_match": 0.5}
    with pytest.raises(ValueError, match="1 predictions for 2 targets"):
        score_uuids([TRUTH], [TRUTH, TRUTH])
    with pytest.raises(ValueError, match="0 predictions"):
        score_uuids([], [])


def test_chance_level_is_that_of_random_uuids():
    assert CHANCE == 0.09765625
    rng = np.random.default_rng(0)
    texts = [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(20_000)]
    score = score_uuids(texts[:10_000], texts[10_000:])
    # 320,000 digits: the standard error is 0.0005
    assert score["char_accuracy"] == pytest.approx(CHANCE, abs=0.002)
    assert score["exact_match"] == 0
