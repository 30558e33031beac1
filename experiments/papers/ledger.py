"""Where papers and official code disagree, and which reading we take: MoRA; LoRA on GLUE and GPT, with prefixes."""

from typing import Any, NamedTuple

from experiments.tables.table import Table, no_figures


class Disagreement(NamedTuple):
    """One point: the paper's reading, the code's, ours, and the config key that switches."""

    name: str
    paper: str
    code: str
    ours: str
    switch: str


# Jiang et al.; kongds/MoRA, commit de5df31.
MORA = (
    Disagreement(
        "size of the square",
        "floor(sqrt((d + k) r))",
        "rounded half up; rotation then rounds down to an even size",
        "code",
        "adapter.mora.rounding = half_up | floor",
    ),
    Disagreement(
        "rotated pairs",
        "neighbours (2j, 2j+1); Eq. 9 numbers its blocks 1 to n-1",
        "(j, j + size/2); block 0 is not rotated",
        "code (the two differ by a permutation of the square)",
        "adapter.mora.layout = half | pairs",
    ),
    Disagreement(
        "padding of the input",
        "says that it is padded, not with what",
        "its own first entries again (a zero-pad line is commented out)",
        "code",
        "adapter.mora.padding = wrap | zero",
    ),
    Disagreement(
        "compression for UUID",
        "names Eq. 8 (decoupling) but describes sharing, Eq. 6",
        "no UUID script; default is type 1, sharing by stride",
        "sharing (type 1)",
        "adapter.mora.compression = sharing | decoupling | ...",
    ),
    Disagreement(
        "truncation and decoupling",
        "Eqs. 4, 5 and 8",
        "absent: types 1, 2, 3, 4 and 6 only",
        "both are written from the equations",
        "adapter.mora.compression = truncation | decoupling",
    ),
    Disagreement(
        "alpha",
        "no scale in MoRA's equations",
        "lora_alpha is accepted and ignored (scale 1)",
        "both: MoRA ignores alpha",
        "none",
    ),
    Disagreement(
        "batch and pairs a step",
        "1,000",
        "1,024 by the author's script (8 GPUs x 128)",
        "paper: 1,000 pairs, 1,000 steps are 100 epochs",
        "train.batch_size",
    ),
    Disagreement(
        "loss",
        "not said",
        "all tokens, the unpredictable key too (the author's answer)",
        "config by config: see config.task.loss_on",
        "task.loss_on = all | value",
    ),
    Disagreement(
        "base weights",
        "not said",
        "8-bit, since the script gives no 16-bit flag",
        "bfloat16 on accelerators, float32 on CPU",
        "base.dtype",
    ),
    Disagreement(
        "accuracy",
        "'character-level', not defined",
        "no evaluation code; 9.9% at the start fits the 32 digits without hyphens (chance 9.77%; with them 19.8%)",
        "the 32 digits, greedy decoding of the value",
        "none",
    ),
    Disagreement(
        "LoRA's dropout",
        "not said",
        "train.py's default 0.05, seed 42",
        "0",
        "adapter.dropout",
    ),
)

# Jiang et al., Table 3; the same commit, and ReLoRA's repository (Guitaricet/relora, 176f376).
MORA_PRETRAIN = (
    Disagreement(
        "ReMoRA's next grouping",
        "two that alternate (appendix B; an example in the text is of neither)",
        "four in turn, types 1, 2, 3, 4, by default",
        "both readings",
        "restart.groups = paper | code | fixed",
    ),
    Disagreement(
        "rate after a merge",
        "jagged: one cosine with 50 steps of warm-up after each merge",
        "the README's command leaves that scheduler off: the schedule begins again from the rate reached",
        "both readings",
        "restart.schedule = jagged | restart | none",
    ),
    Disagreement(
        "moments at a merge",
        "reset",
        "dropped with their step count for merged adapters; ReLoRA's repository prunes 99.9% at random or by magnitude",
        "dropped; pruning goes matrix by matrix and keeps the count",
        "restart.reset = all | magnitude | random | none",
    ),
    Disagreement(
        "last merge",
        "not said",
        "after the last step too",
        "none: an export adds the adapters to the base anyway",
        "none",
    ),
    Disagreement(
        "alpha in pre-training",
        "not said",
        "64 at r=128 (LoRA; MoRA ignores it)",
        "r / 2",
        "adapter.alpha",
    ),
)

# Jiang et al., Tables 1 and 4 to 7; the same commit.
MORA_FINETUNE = (
    Disagreement(
        "warm-up on MetaMath",
        "300 steps (Table 5)",
        "3% of the steps (about 278), whatever the flags say",
        "both readings",
        "schedule.warmup_steps = 300 | schedule.warmup_fraction = 0.03",
    ),
    Disagreement(
        "rates and ratios",
        "two rates for each cell of Table 5, two ratios of LoRA+ (2 and 4); which won is not said",
        "3e-4, the larger, in the README's example (MoRA on MetaMath)",
        "the larger rate, ratio 4",
        "optimizer.learning_rate, optimizer.multipliers",
    ),
    Disagreement(
        "prompt and length on MetaMath",
        "not said",
        "Alpaca's; the query's first line is the instruction, the rest the input; 512 tokens, the loss on the response",
        "code",
        "task.chat_template = alpaca, task.seq_len",
    ),
    Disagreement(
        "Tulu v2's tokens",
        "326k filtered samples, the filter is not said",
        "read as ids from disk; those of 32,000 and more, which the base lacks, become 0 (<unk>)",
        "the published conversations in Open Instruct's format, encoded with the base's own tokenizer",
        "none",
    ),
    Disagreement(
        "AsyLoRA",
        "only its start is taken, A is trained (its authors freeze A)",
        "A from the decomposition of a matrix of [0, 1) numbers, which the authors centre; freezing A is commented out",
        "an orthonormal basis of a Gaussian matrix's columns, as likely as the authors'; A trained, or frozen",
        "adapter.init = asylora, trainable",
    ),
    Disagreement(
        "what LoRA+ multiplies",
        "B's rate",
        "the rate of names with lora_B that have weight decay (LoRA+'s own code: also of one-dimensional parameters)",
        "B's rate; for MoRA, which has no B, such a rule is refused",
        "optimizer.multipliers",
    ),
    Disagreement(
        "the biomedical mean of LoRA r=8",
        "52.3 in Table 1, 51.9 in Table 6; the four numbers of Table 6 average to 52.05",
        "no evaluation code",
        "each table as printed",
        "none",
    ),
    Disagreement(
        "fine-tuning's base and scores",
        "a size is given for UUID alone; how MMLU, GSM8K and MATH were scored is not said",
        "no evaluation code; the example's base is LLaMA-2",
        "LLaMA-2 7B; lm-eval's prompts and filters, math-verify for MATH",
        "evals",
    ),
)

# Hu et al., what concerns GLUE; microsoft/LoRA, commit c4593f0, examples/NLU.
LORA = (
    Disagreement(
        "size of DeBERTa-XXL's LoRA",
        "Table 10: r=8, alpha 8; its 4.7M parameters are those of r=16",
        "r=16, alpha 32",
        "both readings; take reading=code for the 4.7M",
        "adapter.rank, adapter.alpha = 8, 8 | 16, 32",
    ),
    Disagreement(
        "RoBERTa-base's alpha",
        "8 (Table 9)",
        "16, with r=8",
        "both readings",
        "adapter.alpha = 8 | 16",
    ),
    Disagreement(
        "batch",
        "Tables 9 and 10 print what the code gives to each process",
        "8 processes of that size (2 on RoBERTa-base's CoLA)",
        "both readings: the printed number, or the product",
        "train.batch_size",
    ),
    Disagreement(
        "weight decay on RoBERTa",
        "not in Table 9",
        "0.1",
        "0 | 0.1 by the reading",
        "optimizer.weight_decay = 0 | 0.1",
    ),
    Disagreement(
        "start of A",
        "a Gaussian of unstated std",
        "uniform within 1/sqrt(d_in) on RoBERTa, N(0, 0.02^2) on DeBERTa",
        "reading=paper N(0, 0.02^2); reading=code as the code; MiniLM as loralib and PEFT, uniform",
        "adapter.init = gaussian | kaiming_uniform",
    ),
    Disagreement(
        "warm-up on DeBERTa-XXL",
        "a tenth of the steps",
        "a number of steps for each task (a tenth on MRPC alone)",
        "both readings",
        "schedule.warmup_fraction | schedule.warmup_steps",
    ),
    Disagreement(
        "RoBERTa-large on SST-2, CoLA, STS-B",
        "batch 4, 4, 8; rate 4e-4, 2e-4, 2e-4; STS-B 30 epochs; 128, 128, 512 tokens",
        "batch 8, 4, 4; rate 4e-4, 3e-4, 3e-4; STS-B 10 epochs; 512, 128, 128 tokens",
        "both readings",
        "train.batch_size, optimizer.learning_rate, train.epochs, task.seq_len",
    ),
    Disagreement(
        "MNLI's head in a warm start",
        "the LoRA modules of MNLI start MRPC, RTE and STS-B",
        "the file holds the head too; it is read leniently, which takes no other shapes",
        "the adapter alone; the task's head is drawn fresh (STS-B's could not fit either)",
        "start.head = fresh | adapter",
    ),
    Disagreement(
        "trainable parameters on GLUE",
        "the head is not counted (RoBERTa-base LoRA: 0.3M)",
        "top README 0.8M, with the head; the NLU README 0.3M",
        "without the head; records hold both",
        "none",
    ),
    Disagreement(
        "the score of a run",
        "its best epoch on dev, then the median of 5 seeds",
        "an evaluation each epoch (DeBERTa: each 10 to 500 steps), seed 0",
        "the last epoch's, with the best epoch's beside it",
        "none",
    ),
)
# Hu et al., what concerns GPT-2 and GPT-3; the same commit, examples/NLG.
LORA_NLG = (
    Disagreement(
        "E2E's length penalty",
        "0.9 (Table 11)",
        "0.8 in the README's command",
        "both readings",
        "evals.decode.length_penalty = 0.9 | 0.8",
    ),
    Disagreement(
        "WebNLG's seen categories",
        "9 of 14, without names",
        "10 of 15, all that the training file has",
        "both readings; the paper's leaves out City, which is a guess",
        "task.seen = paper | code",
    ),
    Disagreement(
        "E2E's texts",
        "not said",
        "training and references in a tokenised form",
        "the challenge's own texts in training, decoding and scoring",
        "none",
    ),
    Disagreement(
        "the loss of a batch",
        "not said",
        "divided by the number of targets plus 1e-4",
        "by the number of targets",
        "none",
    ),
    Disagreement(
        "trainable parameters on GPT-2",
        "LoRA r=4: 0.35M (medium), 0.77M (large)",
        "the formula gives 393,216 and 737,280",
        "the formula's",
        "none",
    ),
    Disagreement(
        "trainable parameters of BitFit on GPT-3",
        "14.2M, which is 12 d a layer",
        "none",
        "the model's biases, 11 d a layer and d: 13.0M",
        "none",
    ),
    Disagreement(
        "GPT-3's alpha and decoding",
        "not printed",
        "none",
        "alpha = r; beams as on E2E, for queries without the ban on n-grams",
        "adapter.alpha, evals.decode",
    ),
)
# Hu et al., section 5.1 and appendix E; their code for GPT-3 is not published.
PREFIX = (
    Disagreement(
        "parameters of PreLayer",
        "L d (l_p + l_i); the counts in Table 15 are 1% to 8% above it (20.2M for 18.87M), LoRA+PL's 52.8M for 51.9M",
        "not published",
        "the formula",
        "none",
    ),
    Disagreement(
        "which L states PreLayer trains",
        "the embeddings, and the activations after every layer, which would be L + 1",
        "not published",
        "those that the L layers read: a completion's first token is predicted from the last layer's own output",
        "none",
    ),
    Disagreement(
        "where virtual tokens start",
        "does not say",
        "not published; Li & Liang and Lester et al. find real words better than random vectors",
        "rows of the base's table, drawn at random",
        "adapter.prefix.init = vocabulary | normal",
    ),
)
LEDGERS = {
    "MoRA (Jiang et al.)": MORA,
    "MoRA's fine-tuning (Jiang et al.)": MORA_FINETUNE,
    "MoRA's pre-training (Jiang et al.)": MORA_PRETRAIN,
    "LoRA on GLUE (Hu et al.)": LORA,
    "LoRA on GPT-2 and GPT-3 (Hu et al.)": LORA_NLG,
    "prefix methods (Hu et al.)": PREFIX,
}
LEDGER = MORA + MORA_FINETUNE + MORA_PRETRAIN + LORA + LORA_NLG + PREFIX


def load(places: Any) -> None:
    """It reads no results."""


def table(results: Any, options: Any) -> Table:
    """The ledgers as text, one block a point."""
    blocks, number = [], 0
    for paper, points in LEDGERS.items():
        blocks.append(paper)
        for point in points:
            number += 1
            lines = [f"{number:2}. {point.name}"]
            lines += [f"    {field:7}{getattr(point, field)}" for field in point._fields[1:]]
            blocks.append("\n".join(lines))
    return Table("\n".join(blocks))


figures = no_figures
