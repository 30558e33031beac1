"""configs/peft_metamath.py against PEFT's recipe in torch: rows and their order, the losses of 20 steps; its scores."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from config_files import unpack_file
from late import peft, torch, transformers

from experiments.session.build import build
from lowrank_jax.core.errors import UserError
from lowrank_jax.metrics.answers.stated import same, stated
from lowrank_jax.tasks.exams.options import ExamOptions
from lowrank_jax.tasks.exams.rows import read_questions
from lowrank_jax.text.tokenizers import load_tokenizer

ROOT = Path(__file__).parents[2]
PICO = ROOT / "lowrank_jax" / "assets" / "pico-llama"
STEPS, LENGTH, RATE = 20, 96, 1e-2  # a rate at which 20 steps change the loss
BOS, EOS = 256, 257


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("peft_metamath")


@pytest.fixture(scope="module")
def texts(script, tmp_path_factory):
    """A file of 100 rows of many lengths, one of them left out, as the script writes it."""
    folder = tmp_path_factory.mktemp("metamath")
    rows = [
        {"query": f"What is {n} + {n}?", "response": f"{n}! " * (n * 7 % 5) + f"The answer is: {2 * n}"}
        for n in range(100)
    ]
    rows[50]["response"] = "x" * 1_300
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "texts.jsonl"
    assert script.main([str(folder / "rows.jsonl"), str(out), "--tokenizer=pico-llama"]) == 0
    assert script.main([str(folder / "rows.jsonl"), str(out), "--tokenizer=pico-llama"]) == 2  # it exists
    return out


def test_rows_are_written_as_peft_s_buckets_read_them(texts):
    found = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    assert len(found) == 99
    assert "Question: What is 7 + 7? Think step by step.\nAnswer:" + "7! " * 4 + "The answer is: 14" in found
    first, second = found[:80], found[80:]
    for bucket in (first, second):
        assert [len(text) for text in bucket] == sorted(map(len, bucket), reverse=True)
    assert "What is 80 + 80?" in "".join(first)  # row 50 is none of the first 80
    assert "What is 81 + 81?" in "".join(second)


def test_the_losses_of_20_steps_are_peft_s(texts, monkeypatch):
    """In float32 from the same weights on the same rows; each row has its EOS on both sides (see the config)."""
    monkeypatch.chdir(ROOT)
    changes = dict(base__dtype="float32", base__remat="none", task__seq_len=LENGTH, train__chunk_tokens=0)
    config = unpack_file(f"configs/peft_metamath.py:base=pico-llama,data={texts},steps={STEPS},rate={RATE}", **changes)
    experiment = build(config, devices=jax.devices()[:1])
    compiled = experiment.compile()
    state, frozen, _ = experiment.load()
    adapters = jax.device_get(state.trainable)["adapters"]["layers"]["attention"]
    step, batches, ours = experiment.step_function(compiled), experiment.batches(), []
    for _ in range(STEPS):
        state, metrics = step(state, frozen, experiment.place(next(batches)))
        ours.append(float(metrics["loss"]))
    batches.close()

    theirs = in_torch([json.loads(line)["text"] for line in texts.read_text().splitlines()], adapters)
    assert theirs[0] - theirs[-1] > 0.3, theirs
    # Rounding grows to 2e-4 in 20 steps of this rate; without decay or with another eps the losses differ by 7e-3.
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    np.testing.assert_allclose(ours[:5], theirs[:5], rtol=1e-5)


def in_torch(rows, adapters):
    """The losses of PEFT's loop: their optimizer, schedule, clipping, labels and divisor."""
    torch.set_num_threads(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(PICO, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(r=32, lora_alpha=64, task_type="CAUSAL_LM")).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_A" in name:
                layer, site = int(name.split(".layers.")[1].split(".")[0]), "query" if "q_proj" in name else "value"
                weight.copy_(torch.tensor(np.array(adapters[site]["a"][layer])).T)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=RATE, weight_decay=0.1)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, int(0.1 * STEPS), STEPS)
    encode, losses = load_tokenizer(PICO).encode, []
    for start in range(0, 4 * STEPS, 4):
        ids = [[BOS, *encode(text)] for text in rows[start : start + 4]]
        longest = max(map(len, ids)) + 1
        assert longest <= LENGTH  # none is cut
        tokens = torch.tensor([[*row, *[EOS] * (longest - len(row))] for row in ids])
        lengths = torch.tensor([len(row) for row in ids])[:, None]
        places = torch.arange(longest)[None, :]
        labels = torch.where(places > lengths, -100, tokens)
        output = model(input_ids=tokens, attention_mask=(places < lengths).long(), labels=labels,
                       num_items_in_batch=lengths.sum())  # fmt: skip
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(output.loss.item())
    return losses


def test_rows_of_the_comparison(monkeypatch):
    """LoRA r=32 has PEFT's 9,175,040 parameters on Llama 3.2 3B's shape; MoRA about as many."""
    monkeypatch.chdir(ROOT)
    lora, mora = (unpack_file(f"configs/peft_metamath.py:method={name}") for name in ("lora", "mora"))
    assert (lora.train.steps, lora.train.batch_size, lora.schedule.warmup_steps) == (5_000, 4, 500)
    assert (lora.adapter.rank, lora.adapter.alpha, lora.optimizer.weight_decay) == (32, 64.0, 0.1)
    assert (lora.task.seq_len, lora.task.ordered, lora.optimizer.clip_norm) == (768, True, 1.0)
    kernels = ((3_072, 3_072), (3_072, 1_024))
    assert 28 * sum(32 * (d_in + d_out) for d_in, d_out in kernels) == 9_175_040
    squares = sum(int((32 * (d_in + d_out)) ** 0.5 + 0.5) ** 2 for d_in, d_out in kernels)
    assert 28 * squares == pytest.approx(9_175_040, rel=0.01)
    assert (mora.adapter.method, mora.optimizer.learning_rate) == ("mora", 3e-4)
    asked = unpack_file("configs/peft_metamath.py:exams=FOLDER,forgetting=wiki.jsonl").evals
    assert (asked["gsm8k"].options.max_new_tokens, asked["gsm8k"].options.prompt) == (300, "step by step")
    assert (asked["forgetting"].options.rows, asked["forgetting"].options.tokens) == (100, 768)


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("So 4 * 4.\nThe answer is: 16", "16", True),
        ("The answer is: 3. Wait. The answer is: $16.00.", "16", True),  # the last, as a number
        ("#### 16\nQuestion: more", "16", True),  # to the end of the line
        ("#### 3\nThe answer is: 16", "16", True),  # "The answer is" comes before "####", wherever they stand
        ("The final answer is 1/2!", "0.5", True),
        ("The answer is 50%", "50", True),
        ("The answer is: 1,000", "1000", True),
        ("It is 16", "16", False),
        ("The answer is: 1/0", "16", False),
        ("The answer is: sixteen", "16", False),
    ],
)
def test_stated_answers(text, gold, right):
    assert same(stated(text), gold) is right


def test_the_exam_is_asked_step_by_step(tmp_path):
    row = {"question": "What is 2 + 2?", "answer": "2 + 2 = 4\n#### 4"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    (one,) = read_questions(ExamOptions("gsm8k", str(tmp_path), prompt="step by step"))
    assert one.prompt == "Question: What is 2 + 2? Think step by step.\nAnswer:"
    with pytest.raises(UserError, match="prompt of mmlu"):
        ExamOptions("mmlu", str(tmp_path), prompt="step by step")
