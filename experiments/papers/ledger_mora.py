"""Where MoRA's paper and official code disagree, and which reading we take."""

from experiments.papers.disagreement import Disagreement

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
        "rows of C4",
        "C4, 512 tokens; not said how texts become rows",
        "the authors point to ReLoRA's preprocessing: it joins texts, each with EOS, and cuts every 512 tokens",
        "one document a row, cut or padded: fewer tokens are read than steps x batch x 512, and ends of texts are lost",
        "task.packed, task.lazy",
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
        "an orthonormal basis of a Gaussian matrix's columns, distributed as the authors'; or, as in the code, with "
        "the constant vector first; A trained, or frozen",
        "adapter.init = asylora, asylora_uncentred; trainable",
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
        "weights that ReLoRA merges into in fine-tuning",
        "not said",
        "16 bits by the example's flags (--use_16bit --use_bf16), 8 without them; a merge is stored in that type",
        "bfloat16: each merge rounds the weights to 8 significant bits (not in pre-training, whose base is float32)",
        "base.dtype = float32 | bfloat16",
    ),
    Disagreement(
        "fine-tuning's base and scores",
        "a size is given for UUID alone; how MMLU, GSM8K and MATH were scored is not said",
        "no evaluation code; the example's base is LLaMA-2",
        "LLaMA-2 7B; lm-eval's prompts and filters, math-verify for MATH",
        "evals",
    ),
    Disagreement(
        "prompts of the two domains' exams",
        "not said; names AdaptLLM's pre-processing; the first author's cleaned rows (2401.07284) are not published",
        "no evaluation code; AdaptLLM's rows are whole prompts, for written answers its code cuts them to 2,048 tokens",
        "AdaptLLM's rows, cut to the base's length; PubMedQA's and MedQA's official rows in lm-eval's prompts",
        "evals",
    ),
    Disagreement(
        "scores of the two domains' exams",
        "not said, nor which subjects of MMLU are BioMMLU's",
        "AdaptLLM's: micro F1 (RCT), weighted F1 (FiQA SA, FPB, Headline), entity F1 (NER), right numbers (ConvFinQA)",
        "AdaptLLM's for its exams; accuracy for PubMedQA, MedQA and six medical subjects of MMLU",
        "evals",
    ),
)
