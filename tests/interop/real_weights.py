"""Published weights against transformers, as one record: `python -m tests.interop.real_weights --out=FILE`.

Needs the extra [parity], and the weights: `python scripts/fetch_weights.py smollm2-135m`, `minilm-l6`, `gemma3-270m`.
"""

import argparse
import functools
import importlib.metadata
import json
import lzma
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.bases.base import Base, BaseConfig, load_base
from lowrank_jax.bases.locate import cache_folder
from lowrank_jax.decoding.greedy import greedy, left_pad
from lowrank_jax.models.parts.cache import init_cache

TEXTS = {
    "farm": "The sun rises in the east and sets in the west. Every morning the farmer walks to the field, feeds the "
    "animals and checks the fences. In the evening he returns home, eats dinner with his family and reads a book "
    "before going to sleep.",
    "bridge": "The old bridge across the river was closed last spring after engineers found cracks in two of its "
    "pillars. Since then, people who live on the north side have had to drive twenty minutes longer to reach the "
    "hospital, and several shops near the crossing have lost most of their customers.",
    "method": "Fine-tuning a large model updates all of its weights. A low-rank update keeps the weights as they are "
    "and learns the difference as a product of two thin matrices, which need far less memory for their gradients.",
}
PROMPTS = (
    "The capital of France is",
    "To make a good cup of tea, you should first",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees, and it freezes at",
)
NEW_TOKENS = 40
NOVELS = "text-en/novels_validation.jsonl.xz"  # below the folder of public data sets
WINDOWS, WINDOW, SKIPPED = 3, 512, 20_000  # one of each novel, in tokens, past its first characters
SENTENCES = [
    "A man is playing a guitar on the street.",
    "Someone plays an instrument outdoors.",
    "The stock market fell sharply on Monday.",
    "Shares lost much of their value at the start of the week, and traders were worried about the months to come.",
]


def main() -> None:
    """Compares, prints the record and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*COMPARED], help=f"of {', '.join(COMPARED)}; all by default")
    parser.add_argument("--data", type=Path, help=f"folder with {NOVELS}, from which windows are compared too")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    from experiments.records.environment import environment_record

    novels = None if given.data is None else given.data / NOVELS
    words = [*given.names, *(["--data=FOLDER"] if given.data else []), "--out=FILE"]
    record = {
        "what": f"python -m tests.interop.real_weights {' '.join(words)}",
        **{name: COMPARED[name](load_base(BaseConfig(name)), novels) for name in given.names},
        "peers": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        **environment_record(),
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


def compare_decoder(base: Base, novels: Path | None = None) -> dict[str, Any]:
    """{"perplexity": ours and theirs of each text, "greedy": the continuations of each prompt, "logits": largest error
    over largest logit}; both read the same GGUF in float32.

    Args:
      novels: JSON lines with windows to compare too.
    """
    import torch
    import transformers

    folder = cache_folder(base.name)
    source = {"gguf_file": next(folder.glob("*.gguf")).name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **source)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **source, dtype=torch.float32).eval()
    first = first_ids(base)
    texts = {name: (text, None) for name, text in TEXTS.items()}
    for number, novel in enumerate(windows(novels) if novels else ()):
        texts[f"novel {number}"] = novel, WINDOW
    perplexities, error = {}, 0.0
    for name, (text, length) in texts.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert base.tokenizer.encode(text) == ids
        ids = [*first, *ids][:length]
        with torch.no_grad():
            theirs = model(torch.tensor([ids])).logits[0].numpy()
        ours = logits(base, ids)
        error = max(error, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        pair = {"ours": perplexity(ours, ids), "transformers": perplexity(theirs, ids)}
        perplexities[name] = {"tokens": len(ids), **pair}
    continuations = []
    for prompt, ours in zip(PROMPTS, continue_greedily(base, PROMPTS), strict=True):
        ids = torch.tensor([[*first, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        theirs = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        continuations.append({"prompt": prompt, "ours": ours, "transformers": theirs, "same": ours == theirs})
    return {"perplexity": perplexities, "logits": error, "greedy": continuations}


def first_ids(base: Base) -> list[int]:
    """BOS, for a model that was trained with it in front of every text."""
    return [base.tokenizer.bos_id] if base.config.family == "gemma3_text" else []


def windows(novels: Path) -> list[str]:
    """A part of each of the first novels, long enough for a window of tokens."""
    with lzma.open(novels, "rt", encoding="utf-8") as lines:
        found = [json.loads(line)["text"] for line, _ in zip(lines, range(WINDOWS), strict=False)]
    return [text[SKIPPED : SKIPPED + 8 * WINDOW] for text in found]


def compare_minilm(base: Base, novels: Path | None = None) -> dict[str, Any]:
    """{"ours", "transformers": cosine similarities of SENTENCES' mean vectors, "largest_difference"}."""
    import torch
    import transformers

    folder = cache_folder("minilm-l6")
    special = {name: base.tokenizer.backend.token_to_id(f"[{name}]") for name in ("CLS", "SEP", "PAD")}
    ids = [[special["CLS"], *base.tokenizer.encode(text), special["SEP"]] for text in SENTENCES]
    tokens = np.full((len(ids), max(map(len, ids))), special["PAD"], np.int32)
    for row, values in zip(tokens, ids, strict=True):
        row[: len(values)] = values
    mask = np.arange(tokens.shape[1]) < np.array([len(row) for row in ids])[:, None]
    encoded = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True)
    np.testing.assert_array_equal(tokens, encoded["input_ids"])

    def similarities(hidden):
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        mean = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
        return mean @ mean.T

    ours = similarities(np.asarray(base.model.apply({"params": base.params}, tokens, mask)[0]))
    with torch.no_grad():
        model = transformers.BertModel.from_pretrained(folder).eval()
        theirs = similarities(model(torch.tensor(tokens), torch.tensor(mask)).last_hidden_state.numpy())
    return {
        "ours": ours.round(6).tolist(),
        "transformers": theirs.round(6).tolist(),
        "largest_difference": float(np.abs(ours - theirs).max()),
    }


def logits(base: Base, ids: list[int]) -> np.ndarray:
    """[T, V] of one text."""
    return np.asarray(base.model.apply({"params": base.params}, jnp.array([ids]))[0])


def perplexity(logits: np.ndarray, ids: list[int]) -> float:
    """exp of the mean negative log-likelihood of each token but the first."""
    log_probs = jax.nn.log_softmax(jnp.asarray(logits[:-1], jnp.float32))
    return float(jnp.exp(-jnp.take_along_axis(log_probs, jnp.array(ids)[1:, None], -1).mean()))


def continue_greedily(base: Base, prompts: tuple[str, ...]) -> list[str]:
    """The prompts in one batch, padded on the left, through the key/value cache."""
    tokenizer = base.tokenizer
    first = first_ids(base)
    tokens, mask = left_pad([[*first, *tokenizer.encode(prompt)] for prompt in prompts], tokenizer.pad_id)
    cache = functools.partial(init_cache, base.config, dtype=jnp.float32)
    decode = jax.jit(
        lambda params, tokens, mask: greedy(
            base.model.apply, {"params": params}, cache, tokens, mask, NEW_TOKENS, tokenizer.eos_id, tokenizer.pad_id
        )
    )
    return [tokenizer.decode(row) for row in np.asarray(decode(base.params, tokens, mask)).tolist()]


COMPARED = {"smollm2-135m": compare_decoder, "minilm-l6": compare_minilm, "gemma3-270m": compare_decoder}


if __name__ == "__main__":
    main()
