"""Where LoRA's paper and official code disagree, and which reading we take: GLUE, GPT-2 and GPT-3, prefixes."""

from experiments.papers.disagreement import Disagreement

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
        "RoBERTa-large's adapters on MNLI",
        "warm-up of 6% of the steps; 10 epochs for Houlsby's of size 8 (Table 9)",
        "10%; 5 epochs",
        "paper",
        "schedule.warmup_fraction = 0.06 | 0.1, train.epochs = 10 | 5",
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
    Disagreement(
        "alpha by rank",
        "the first r that is tried, and not tuned; yet 32 at r=4 (Table 11), and not printed for the ranks of Table 18",
        "32 at r=4, in its only command",
        "32 at every rank on GPT-2 and on our bases",
        "adapter.alpha",
    ),
    Disagreement(
        "length of Table 18's runs",
        "26,000 steps",
        "5 epochs of E2E are 26,289 steps, the README's last checkpoint",
        "5 epochs",
        "train.epochs",
    ),
    Disagreement(
        "MNLI on GPT-3",
        "prints neither the prompt nor alpha (Tables 12, 15 to 17), nor the rows of the small training sets",
        "not published",
        "premise, hypothesis and label, a line each, and the labels' names; alpha 16; a random sample by the seed",
        "adapter.alpha, task.subset_seed",
    ),
    Disagreement(
        "warm-up on GPT-3",
        "250,000 tokens (Tables 12 and 17); does not say whether padding counts",
        "not published",
        "padding counts: steps of batch x length tokens, on MNLI 768 a row",
        "schedule.warmup_steps",
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
        "rows of the base's table, drawn at random; PreLayer, by the tables' configs, at the states that the base "
        "computes at such rows",
        "adapter.prefix.init = vocabulary | states | normal",
    ),
)
