"""The task `nlg`: the official tokens and targets, packing, what is decoded, its scores, and what it refuses."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.generation.framing import make_framing
from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.nlg.rows import NlgRow
from lowrank_jax.data.builders.nlg.specs import NLG, SEEN
from lowrank_jax.data.prompts import Asked
from lowrank_jax.forms import generation
from lowrank_jax.metrics.texts import Scores
from lowrank_jax.tasks.base import GenerationTask, LikelihoodTask
from lowrank_jax.tasks.framing import PLAIN, Framing
from lowrank_jax.tasks.nlg import scores
from lowrank_jax.tasks.nlg.rows import NlgEncoder
from lowrank_jax.tasks.nlg.task import NlgConfig, NlgTask
from lowrank_jax.tasks.registry import build_task
from lowrank_jax.text.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()
EOS = BYTES.eos_id


@pytest.fixture
def build(tiny_nlg):
    def make(positions=512, tokenizer=BYTES, framing=PLAIN, **config):
        made = NlgConfig(data_dir=str(tiny_nlg), allow_partial=True, **config)
        return build_task("nlg", made, tokenizer, positions, framing)

    return make


def test_the_official_tokens(build):
    """Input, end token, a space and the text, end token; the loss is on the text and its end."""
    task = build()
    assert isinstance(task, GenerationTask)
    assert isinstance(task, LikelihoodTask)
    made = task.features(task.train_source()[4])
    context, text = "name : The Vaults train café | Type : pub", " The Vaults train café is a pub, said 1."
    ids = [*context.encode(), EOS, *text.encode(), EOS]
    assert made["tokens"][: len(ids)].tolist() == ids
    assert set(made["tokens"][len(ids) :].tolist()) <= {BYTES.pad_id}
    assert BYTES.decode(made["tokens"][made["weights"] > 0]) == text
    assert made["weights"].sum() == len(text.encode()) + 1
    assert task.prompt_tokens(context) == [*context.encode(), EOS]
    assert (task.seq_len % 8, task.seq_len - task.longest < 8) == (0, True)
    assert (len(task.train_source()), len(task.validation_source())) == (15, 6)
    assert "e2e train: 15 texts, officially 42,061" in task.notes
    assert task.validation_metrics(6.0, 3.0) == {"loss": 2.0, "perplexity": pytest.approx(np.exp(2))}


def test_subwords_end_at_their_own_eos_and_at_a_newline(build, subwords):
    task = build(tokenizer=subwords)
    made = task.features(task.train_source()[0])
    prompt = task.prompt_tokens("name : Blue Spice train | Type : pub")
    assert made["tokens"][: len(prompt)].tolist() == prompt
    assert prompt[-1] == subwords.eos_id == 1
    assert subwords.decode(made["tokens"][made["weights"] > 0]) == " Blue Spice train is a pub, said 0."
    assert task.end_ids == (1, *subwords.encode("\n"))
    assert build().end_ids == (EOS, 10)
    assert build(separator="<|bos|>").stop_id == BYTES.bos_id
    assert len(build(separator="<|bos|>", tokenizer=BYTES).prompt_tokens("ab")) == 3


def test_a_blank_line_ends_a_text_where_it_is_one_token():
    """As GPT-2's 628."""

    class Blank:
        name, eos_id, vocab_size, special_tokens = "blank", 9, 700, {}

        def encode(self, text):
            return [628] if text == "\n\n" else [198] if text == "\n" else list(range(len(text)))

        def decode(self, ids):
            return "".join("x" for _ in ids)

    assert NlgEncoder(NLG["e2e"], Blank()).ends() == (9, 628)
    row = NlgRow("abc", ("de",))
    separated, joined = (NlgEncoder(NLG[task], Blank()).row(row) for task in ("e2e", "samsum"))
    assert (separated.tokens.tolist(), joined.tokens.tolist()) == ([0, 1, 2, 9, 0, 1, 2, 9], [0, 1, 2, 0, 1, 9])
    assert (separated.targets.sum(), joined.targets.sum()) == (4, 3)


@pytest.mark.parametrize("virtual", [PLAIN, Framing((BYTES.vocab_size,), (BYTES.vocab_size + 1,))])
@pytest.mark.parametrize(("kind", "bos"), [("e2e", False), ("webnlg", False), ("e2e", True)])
def test_generate_frames_a_prompt_as_training_did(build, kind, bos, virtual):
    task = build(task=kind, framing=virtual, add_bos=bos)
    model = SimpleNamespace(base=SimpleNamespace(tokenizer=BYTES, path=None), task=task.config, virtual=virtual)
    for template in ("", "none"):
        framing = make_framing(model, template, None, "", False)
        assert framing.ids(Asked(prompt="name : Aromi")) == task.prompt_tokens("name : Aromi")
    assert NlgConfig("samsum").after_prompt(BYTES) == []


def test_a_row_begins_with_bos_where_the_base_expects_it(build):
    """The targets stay the same, and one more token stands before the input."""
    tasks = plain, marked = build(), build(add_bos=True)
    rows = [task.features(task.train_source()[3]) for task in tasks]
    kept = [row["tokens"][: task.longest].tolist() for row, task in zip(rows, tasks, strict=True)]
    assert kept[1][0] == BYTES.bos_id
    assert kept[1][1 : 1 + len(kept[0])] == kept[0]
    texts = [row["tokens"][row["weights"] > 0].tolist() for row in rows]
    assert texts[0] == texts[1]
    assert marked.prompt_tokens("ab") == [BYTES.bos_id, *plain.prompt_tokens("ab")]


def test_virtual_tokens_stand_around_the_input(build):
    """And are never targets: the targets are those of the row without them."""
    first = BYTES.vocab_size
    plain, framed = (build(framing=framing) for framing in (PLAIN, Framing((first, first + 1), (first + 2,))))
    rows = [task.features(task.train_source()[3]) for task in (plain, framed)]
    tokens, targets = ([row["tokens"].tolist() for row in rows], [row["weights"] > 0 for row in rows])
    start = int(np.argmax(targets[0]))
    ids = tokens[0]
    assert tokens[1][: len(ids)] == [first, first + 1, *ids[:start], first + 2, *ids[start:]][: len(ids)]
    assert rows[0]["tokens"][targets[0]].tolist() == rows[1]["tokens"][targets[1]].tolist()
    assert framed.longest == plain.longest + 3
    assert framed.prompt_tokens("ab") == [first, first + 1, *plain.prompt_tokens("ab"), first + 2]


def test_packed_rows_are_the_same_rows(build):
    """Each row once, with its targets, in a segment of its own; tests/models/test_packed.py holds the loss equal."""
    alone, packed, fitted = build(), build(packed=True, seq_len=300), build(packed=True, max_seq_len=300)
    assert (packed.seq_len, packed.config.segmented) == (300, True)
    assert fitted.seq_len == alone.seq_len  # few rows: longer examples would be fewer than a batch

    def rows(task):
        for example in task.train_source():
            made = task.features(example)
            segments = made.get("segments", (np.arange(task.seq_len) < len(example["tokens"])).astype(np.int32))
            for number in range(1, segments.max() + 1):
                own = segments == number
                yield made["tokens"][own].tolist(), made["weights"][own].tolist()

    assert len(packed.train_source()) < len(alone.train_source()) / 2
    assert sorted(rows(alone)) == sorted(rows(packed))


def test_what_is_decoded(build):
    """Equal inputs once, with all their references; a share of them evenly spaced."""
    task = build()
    prompts = task.prompts()
    assert [len(references) for _, references in prompts] == [2] * 4
    assert prompts[1][0] == "name : The Vaults test café | Type : pub"
    assert build(max_prompts=2).prompts() == [prompts[0], prompts[2]] == task.prompts(2)
    assert len(build(decoded="dev").prompts()) == 3
    assert build(task="webnlg").prompts()[1][1] == ("Artist is thing 1.",) * 6
    assert len(build(train_examples=4, max_dev_examples=2).train_source()) == 4


def test_webnlg_is_scored_seen_unseen_and_together(build, monkeypatch):
    """Of the test inputs City and Food are seen, of the paper's reading Food alone; what is missing is kept."""
    calls = []

    def score(kind, predictions, references, known_ter):
        calls.append((kind, predictions, len(references)))
        return Scores({"bleu": float(len(predictions))}, {"meteor": "not computed: needs Java"})

    monkeypatch.setattr(scores.texts, "score", score)
    task = build(task="webnlg")
    found = task.score([" a", "b", "c\n"], [references for _, references in task.prompts()])
    assert found == {"seen/bleu": 2, "unseen/bleu": 1, "all/bleu": 3}
    assert calls[0] == ("webnlg", ["a", "c"], 2)
    assert task.missing["unseen/meteor"] == "not computed: needs Java"
    paper = build(task="webnlg", seen="paper")
    assert paper.score(["a", "b", "c"], [None] * 3)["seen/bleu"] == 1
    assert set(SEEN["code"]) - set(SEEN["paper"]) == {"City"}
    alone = build(task="webnlg", max_prompts=1)
    alone.score(["a"], [None])
    assert alone.missing["unseen"] == "not computed: no unseen input is decoded"


def test_queries_are_scored_by_form_and_result():
    """A query that means the same is right; a sample's queries are read from its texts, and have no tables."""
    header, types = ["Player", "No."], ["text", "real"]
    table = {"id": "1", "header": header, "types": types, "rows": [["a", 1], ["b", 2]]}
    text = "SELECT No. FROM 1 WHERE Player = 'b'"
    row = NlgRow("x", (text,), "", "", {**table, "sql": {"sel": 1, "agg": 0, "conds": [[0, 0, "b"]]}})
    given = [text.replace("'b'", "'B'"), "SELECT No. FROM 1 WHERE No. > 1", "nonsense", "SELECT Player FROM 1"]
    found = scores.score_by("wikisql", given, [row] * 4, ())
    assert found == ({"logical_form": 25, "execution": 50}, {})
    bare = {"id": "1", "header": header}
    rows = [dataclasses.replace(row, table=bare), NlgRow("x", ("no query",), "", "", bare)]
    found = scores.score_by("wikisql", [text, text], rows, ())
    assert found.values == {"logical_form": 100, "unread": 1}
    assert found.missing == {"execution": "not computed: the tables are not in this sample"}


def test_official_rows_fit_their_scorers(data_folder):
    """Where they are: WikiSQL's sample scored with its own references, of which a few cannot be read."""
    task = NlgTask(NlgConfig("wikisql", str(data_folder), allow_partial=True), BYTES)
    found = task.score([references[0] for _, references in task.prompts()], [None] * 100)
    assert found["logical_form"] == 100
    assert found["unread"] <= 5
    assert "a sample as text" in task.notes[0]


REFUSED = {
    "an unknown special token": ({"separator": "<|eot|>"}, r"unknown special token \(task.separator\).*<\|eos\|>"),
    "a long row": ({"seq_len": 40}, r"trainset.csv, row 1: has \d+ tokens, task.seq_len is 40; .*truncate=True"),
    "more than the base reads": ({"seq_len": 1024}, "task.seq_len is 1024 and the base has 512 positions"),
    "no room": ({"positions": 32}, r"row 1: has \d+ tokens, task.seq_len is 32; .* a base with more positions than 32"),
    "no room beside virtual tokens": (
        {"positions": 512, "framing": Framing(tuple(range(300, 900))), "truncate": True},
        r"keeps a target within seq_len=512; take fewer virtual tokens \(a row has 600\)",
    ),
    "a data set": ({"task": "e2"}, "unknown task.task 'e2'; did you mean e2e"),
    "a split": ({"decoded": "tests"}, "unknown task.decoded 'tests'; did you mean test"),
    "categories": ({"seen": "scripts"}, "unknown task.seen 'scripts'"),
    "a folder without it": ({"task": "dart"}, "has no dart-v1.1.1-full-train.json"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_mistakes(build, what):
    config, message = REFUSED[what]
    with pytest.raises(UserError, match=message):
        build(**config)


def test_a_cut_is_noted(build):
    task = build(seq_len=64, truncate=True)
    assert any("e2e train: " in note and "tokens are lost" in note for note in task.notes)
    assert max(len(row["tokens"]) for row in task.train_source()) == 64


def test_long_prompts_lose_their_beginnings(build, monkeypatch, caplog):
    """Cut prompts leave room for new tokens; BOS and virtual tokens stay, and the record's notes name the rows."""
    framing = Framing(prefix_ids=(900, 901), infix_ids=(902,))
    setting = SimpleNamespace(tokenizer=BYTES, model=SimpleNamespace(max_position_embeddings=64))
    monkeypatch.setattr(generation, "_generator", lambda setting, ids, *_, **__: lambda variables: seen.append(ids))
    monkeypatch.setattr(NlgTask, "score", lambda self, texts, targets: {})
    config, seen = {"positions": 64, "framing": framing, "truncate": True}, []
    task = build(**config)
    whole = [task.prompt_tokens(prompt) for prompt, _ in task.prompts()]
    long = [row for row, ids in enumerate(whole) if len(ids) > 40]
    assert 0 < len(long) < len(whole)
    generation.generation(setting, task, generation.GenerationOptions(max_new_tokens=24)).one({})
    assert seen == [[[900, 901, *ids[2:][-38:]] if len(ids) > 40 else ids for ids in whole]]
    (note,) = [note for note in task.notes if "beginnings" in note]
    assert f"e2e test: the beginnings of {len(long)} of {len(whole)} prompt(s) are cut, to 40 tokens" in note
    assert task.places()[long[0]] in note
    assert note in caplog.text
    begun = build(**config, add_bos=True)
    whole = [begun.prompt_tokens(prompt) for prompt, _ in begun.prompts()]
    cut = [900, 901, BYTES.bos_id, *whole[long[0]][-37:]]
    assert whole[long[0]][2] == BYTES.bos_id
    assert begun.fitted(whole, 40)[long[0]] == cut
    assert begun.fitted(whole, 4) == whole  # no room for a token of the input
    with pytest.raises(
        UserError, match=r"its prompt has \d+ tokens, and 24 new ones .*; set task.truncate=True to cut"
    ):
        generation.generation(setting, build(positions=512), generation.GenerationOptions(max_new_tokens=24))
    with pytest.raises(UserError, match=r"61 new ones exceed the model's 64 positions; lower max_new_tokens"):
        generation.generation(setting, task, generation.GenerationOptions(max_new_tokens=61))


def test_a_tokenizer_without_eos(build):
    class Endless(ByteTokenizer):
        eos_id = None

    with pytest.raises(UserError, match=r"tokenizer 'bytes' has no EOS .*task.separator"):
        build(tokenizer=Endless())
