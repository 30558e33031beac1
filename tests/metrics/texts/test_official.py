"""Metrics of generated texts equal the official scripts' numbers, on a few rows written here and on published ones."""

import contextlib
from pathlib import Path

import pytest
from by_path import module_at

from lowrank_jax.metrics.texts import bleu, chrf, coco, forms, meteor, nist, ptb, score
from lowrank_jax.metrics.texts.java import NoJava, java
from lowrank_jax.metrics.texts.rows import Texts

# In modes perl and python (-p) of tuetschek/e2e-metrics' measure_scores.py, which prints four decimals. An empty
# prediction and one of one word are what the modes differ in.
E2E = {
    "The Vaults is a cheap pub near Café Adriatic.": [
        "The Vaults is a low-cost pub near Café Adriatic.",
        "Near Café Adriatic there is a cheap pub, The Vaults.",
    ],
    "Cotto serves English food.": ["Cotto serves English food in the city centre."],
    "": ["Wildwood is a pub."],
    "Aromi": ["Aromi is a coffee shop.", "Aromi, a coffee shop, is family friendly.", "Try Aromi."],
    "It costs £20-25; kids aren't welcome!": [
        "Prices are £20-25 and it isn't child friendly.",
        "It costs £20-25. Kids aren't welcome.",
    ],
    "Zizzi is rated 5 out of 5, by the river.": [
        "By the river, Zizzi is rated 5 out of 5.",
        "Zizzi has a customer rating of 5 out of 5.",
    ],
}
E2E_OFFICIAL = {
    **{"bleu": 50.99, "bleu_python": 55.68, "nist": 3.4370, "nist_python": 3.7519},
    **{"meteor": 49.68, "rouge_l": 64.11, "cider": 3.9193},
}
# By the parts of WebNLG/GenerationEval's eval.py, on this text as LoRA splits it: multi-bleu-detok.perl, meteor-1.5.jar
# -r 3 on NLTK's words, the least pyter.ter of a row, computeChrF. Two rows have empty references, as files with a
# fixed number of references a row do; without them BLEU would be 24.71.
TRIPLES = {
    "Alan Bean was born in Wheeler, Texas.": [
        "Alan Bean was born in Wheeler, Texas and was an astronaut.",
        "Wheeler, Texas is the birthplace of Alan Bean.",
        "",
    ],
    "Adare Manor is in Ireland": ["Adare Manor can be found in County Limerick, Ireland.", "", ""],
    "": ["Buzz Aldrin was a test pilot.", "Buzz Aldrin worked as a test pilot.", ""],
    "Bakewell": ["Bakewell pudding comes from the Derbyshire Dales.", "", ""],
    "The leader is Joko Widodo.": [
        "Joko Widodo is the leader of Indonesia.",
        "Indonesia's leader is Joko Widodo.",
        "The leader of Indonesia is Joko Widodo.",
    ],
}
SMALL = ("example", "edge")  # of the published sets of E2E
TRIPLES_OFFICIAL = {"bleu": 73.88, "meteor": 0.2743573358763009, "ter": 0.6138111888111888, "chrf": 0.3961726596486608}


@pytest.fixture(scope="module")
def program():
    """METEOR's process, of which each costs 7 s to start."""
    try:
        java()
    except NoJava:
        pytest.skip("needs Java")
    with meteor.Program() as running:
        yield running


@pytest.fixture
def one_program(program, monkeypatch):
    monkeypatch.setattr(meteor, "Program", lambda: contextlib.nullcontext(program))


@pytest.fixture(scope="module")
def goldens(data_folder):
    """The module goldens.py, and the folder of published outputs."""
    if not (data_folder / "goldens").is_dir():
        pytest.skip("the folder of data sets has no goldens")
    return module_at(Path(__file__).with_name("goldens.py")), data_folder / "goldens"


def printed(values, decimals):
    return {name: pytest.approx(value, abs=0.50001 * 10 ** -decimals[name]) for name, value in values.items()}


E2E_DECIMALS = {"bleu": 2, "bleu_python": 2, "nist": 4, "nist_python": 4, "meteor": 2, "rouge_l": 2, "cider": 4}
TRIPLES_DECIMALS = {"bleu": 2, "meteor": 12, "ter": 12, "chrf": 12}


def test_e2e(one_program):
    found = score("e2e", list(E2E), list(E2E.values()))
    assert not found.missing
    assert found.values == printed(E2E_OFFICIAL, E2E_DECIMALS)


def test_white_space_is_only_that(one_program):
    """Lines, even in a text, and what Java or METEOR's protocol would read as an end of line, keep rows apart."""
    found = score("e2e", list(E2E), list(E2E.values()))
    spaces = ["\n", "\r\n", "\u2028", "\x85", "\x0b", "\t "]
    odd = [text.replace(" ", spaces[i]) + "\n" for i, text in enumerate(E2E)]
    references = [[text.replace(" ", spaces[i]) for text in row] for i, row in enumerate(E2E.values())]
    assert score("e2e", odd, references) == found
    split = [text.replace(" is ", " is ||| ") + "\ud800" for text in E2E]
    assert not score("e2e", split, list(E2E.values())).missing


@pytest.mark.parametrize("kind", ["webnlg", "dart"])
def test_triples(kind, one_program):
    found = score(kind, list(TRIPLES), list(TRIPLES.values()))
    assert not found.missing
    assert found.values == printed(TRIPLES_OFFICIAL, TRIPLES_DECIMALS)


def test_six_references_of_triples_count(monkeypatch):
    found = []
    monkeypatch.setattr(meteor, "meteor", lambda words: float(found.append(words) or 0))
    score("dart", ["A b."], [["A b.", "c", "d", "e", "f", "g", "h", "i"]])
    assert found == [Texts(["a b ."], [["a b .", "c", "d", "e", "f", "g"]])]


def test_no_smoothing_of_triples():
    """multi-bleu-detok prints 0.00 where no four words match; mteval-v13a would not."""
    texts = Texts(["a b c d e"], [["a b c x d e"]])
    assert bleu.multi_bleu(texts) == 0
    assert bleu.e2e(texts)["bleu"] > 1


def test_samsum():
    """By hand: of 4 and 5 stems 3 match, of 3 and 4 pairs one, and 3 stand in one order; the second row is perfect."""
    found = score("samsum", ["Amanda baked some cookies", "Hi"], [["Amanda bakes cookie for Jerry"], ["no", "hi!"]])
    f = {"rouge1": 2 * 3 / 9, "rouge2": 2 * 1 / 7, "rouge_l": 2 * 3 / 9}
    assert found.values == {name: pytest.approx(100 * (value + 1) / 2) for name, value in f.items()} | {
        "rouge2": pytest.approx(100 * f["rouge2"] / 2)  # one word has no pair
    }


def test_published_bleu_and_nist(goldens):
    """Of the small sets, as below; goldens.py as a program has all six."""
    module, folder = goldens
    found = module.e2e(folder)
    assert len(found) == 6
    for name in SMALL:
        predictions, references, official = found[name]
        texts = Texts(predictions, references)
        ours = bleu.e2e(texts) | nist.nist(texts)
        assert ours == printed({metric: official[metric] for metric in ours}, E2E_DECIMALS), name


def test_published_caption_metrics(goldens, program):
    module, folder = goldens
    found = module.e2e(folder)
    for name in SMALL:
        predictions, references, official = found[name]
        words = ptb.tokenize(Texts(predictions, references))
        counts = program.statistics(list(zip(words.predictions, words.references, strict=True)))
        ours = {"meteor": 100 * program.total(counts), "rouge_l": 100 * coco.rouge_l(words), "cider": coco.cider(words)}
        assert ours == printed({metric: official[metric] for metric in ours}, E2E_DECIMALS), name


def test_published_triples(goldens):
    module, folder = goldens
    found = module.triples(folder)
    assert found.keys() == {"webnlg", "dart"}
    for name, (predictions, references, official) in found.items():
        texts = forms.split_lower(Texts(predictions, references))
        assert texts == Texts(predictions, references)  # they are split already
        ours = {"bleu": bleu.multi_bleu(texts), "chrf": chrf.chrf(texts)}
        assert ours == printed({metric: official[metric] for metric in ours}, TRIPLES_DECIMALS), name
