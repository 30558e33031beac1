"""Virtual tokens in the rows of tasks: where they stand, that they are no targets, and that no other target changes."""

import json

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.tasks.framing import Framing
from lowrank_jax.tasks.registry import build_task
from lowrank_jax.tasks.text import TextConfig
from lowrank_jax.tasks.uuid import UuidConfig
from lowrank_jax.text.chat import find_template
from lowrank_jax.text.tokenizers import ByteTokenizer

BYTES = ByteTokenizer(find_template(ByteTokenizer(), "zephyr").source)
V = BYTES.vocab_size
BOTH, PREFIX = Framing((V, V + 1), (V + 2,)), Framing((V, V + 1))
ROWS = {
    "completion": [{"prompt": "ab", "completion": "cdefg"}, {"prompt": "", "completion": "hi"}],
    "text": [{"text": "abcdefghijklmnopqrstuvwxyz" * 2}, {"text": "xyz"}],
    "chat": [{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"},
                           {"role": "user", "content": "c?"}, {"role": "assistant", "content": "d"}]}],
}  # fmt: skip


@pytest.fixture
def task_of(tmp_path):
    """task_of("text", framing, seq_len=...) -> the task over ROWS."""

    def make(kind, framing, **config):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
        made = TextConfig(path=str(path), validation_path=str(path), **config)
        return build_task("text", made, BYTES, 512, framing)

    return make


def targets(task):
    """[(tokens up to the last target, the targets)] of each training row; the targets alone are also what is scored."""
    source = task.train_source()
    features = [task.features(source[index]) for index in range(len(source))]
    return [(one["tokens"], one["weights"] > 0) for one in features]


@pytest.mark.parametrize(
    ("kind", "framing", "config"),
    [
        ("completion", BOTH, {"packed": False}),
        ("completion", BOTH, {"packed": False, "add_bos": True}),
        ("completion", BOTH, {"documents": "separate"}),
        ("text", PREFIX, {"packed": False}),
        ("text", PREFIX, {}),
        ("text", PREFIX, {"documents": "separate", "add_bos": True}),
        ("chat", PREFIX, {"packed": False}),
    ],
)
def test_targets_are_those_without_virtual_tokens(task_of, kind, framing, config):
    """A prefix begins each row, and an infix follows a prompt; as much is predicted, and so much longer are rows."""
    size = 24 if kind == "text" and config.get("packed", True) else 64
    with_them = task_of(kind, framing, seq_len=size, **config)
    # Windows and parts of texts are as long as before only where a row is longer by its prefix.
    without = task_of(kind, Framing(), seq_len=size - framing.count * (size == 24), **config)
    count = 0
    for (tokens, found), (plain, wanted) in zip(targets(with_them), targets(without), strict=True):
        np.testing.assert_array_equal(tokens[found], plain[wanted])
        assert (tokens[found] < V).all()
        assert tuple(tokens[: len(framing.prefix_ids)]) == framing.prefix_ids
        assert framing.text(tokens[tokens != BYTES.pad_id]) == plain[plain != BYTES.pad_id].tolist()
        count += int((tokens >= V).sum())
    scored = {"loss_sum": 6.0, "weight_sum": 3.0}
    assert with_them.validation_metrics(**scored) == without.validation_metrics(**scored)
    documents = len(targets(with_them)) if config.get("documents") != "separate" else None
    assert count == framing.count * documents if documents else count >= framing.count * 2


def test_rows_begin_as_their_prompts(task_of):
    """What decoding starts from is what stands before the completion in training, in texts and in UUIDs."""
    task = task_of("completion", BOTH, packed=False, seq_len=0, add_bos=True)
    assert task.longest == 2 + 1 + 2 + 1 + 5 + 1
    tokens, found = targets(task)[0]
    assert task.prompt_tokens("ab") == [V, V + 1, BYTES.bos_id, *b"ab", V + 2] == tokens[: np.argmax(found)].tolist()
    for loss_on, scored in (("value", 36), ("all", 36 + 36)):  # of a key and ":", all but the first character
        uuid = build_task("uuid", UuidConfig(pairs=2, loss_on=loss_on), BYTES, framing=BOTH)
        row = uuid.train_source()[0]
        made = uuid.features(row)
        prompt = uuid.prompt_tokens(row["key"] + ":")
        assert made["tokens"][: len(prompt)].tolist() == prompt
        assert made["weights"].sum() == scored
        assert not made["weights"][made["tokens"] >= V].any()


@pytest.mark.parametrize(
    ("kind", "framing", "config", "message"),
    [
        ("text", BOTH, {}, "prefix.infix is 1, tokens between a prompt and its completion, and the rows are texts"),
        ("text", BOTH, {"packed": False}, "the rows are texts; set it to 0"),
        ("chat", BOTH, {"packed": False}, "the rows are conversations, with a prompt before each answer"),
        ("text", Framing(tuple(range(V, V + 15))), {"seq_len": 16}, "15 virtual tokens leave too little of a row of 1"),
    ],
)
def test_rows_that_have_no_place_for_virtual_tokens(task_of, kind, framing, config, message):
    with pytest.raises(UserError, match=message):
        task_of(kind, framing, **config)
