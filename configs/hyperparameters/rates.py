"""What the grids rates_*.py share: every method's rate is searched by one rule before methods are compared.

Stages, each row (a method at a rank) by itself:
  swept   a geometric series of rates, one seed;
  wider1, wider2, wider3  where the best is the smallest or largest rate tried, one more beyond it; otherwise nothing;
  near    the best and its two neighbours, `seeds` seeds each;
  far1, far2, far3  where the mean over seeds is best at the lowest or highest rate that has all of them, the next rate
          beyond it with `seeds` seeds: one that has fewer of them, or a new one; otherwise nothing. With seeds=1 they
          go on where wider3 ended.
Runs that a stage before has done are left out of near and far.

Arguments of each grid (--grid=FILE:rates=13,per_decade=4): rates and per_decade, how many rates are tried at
first and how many of them in a factor of ten (13 and 4 in literature on tuned rates, arXiv 2602.04998); seeds; steps.

`python -m experiments.tables rates` has the tables and figures of all of them.
"""

RATE = "optimizer.learning_rate"
WIDER = 3  # stages that add a rate, before `near` and after it; the table marks a best rate that is still at an edge
SWEPT, NEAR, FAR = "swept", "near", "far"
RANKS = (2, 8, 32, 128)
# A square of r=128 (314 to 587 wide) is wider than the key and value projections of both bases (192, 256).
MORA_RANKS = (2, 8, 32)
# Nothing is kept of a run but its record.
BARE = {"checkpoint.every": 0, "export.adapter": False, "export.merged": "", "tracking.wandb": "disabled"}
# alpha is the same at every rank, so that alpha/r and alpha/sqrt(r) are what the method says.
ALPHA = {"adapter.alpha": 16.0}


def rates_tried(first: float, rates: int, per_decade: int) -> list[float]:
    """Rates upwards from the first, in equal factors, of three digits."""
    return [float(f"{first * 10 ** (step / per_decade):.3g}") for step in range(rates)]


def methods(ranks=RANKS, mora_ranks=MORA_RANKS):
    """Arguments of the rows: full fine-tuning, and five methods at their ranks."""
    found = ["method=fft"]
    found += [f"method={method},rank={rank}" for method in ("lora", "rslora", "dora") for rank in ranks]
    squares = ("sharing", "rotation")
    return found + [f"method=mora,compression={name},rank={rank}" for name in squares for rank in mora_ranks]


def swept(firsts, choice, overrides, score=""):
    """[(stage, cells)] of one seed: the rates tried at first, and those added beyond a best one at an end.

    Args:
      firsts: a row's argument -> the first of its rates.
      choice: of `parse_arg`, with rates and per_decade.
      overrides: of every cell.
      score: by which the best is chosen; "": the training loss at the end.
    """
    cells = [
        dict(arg=arg, overrides={**overrides, RATE: rate, "seed": 0})
        for arg, first in firsts.items()
        for rate in rates_tried(first, choice.rates, choice.per_decade)
    ]
    stages = [(SWEPT, cells)]
    for step in range(1, WIDER + 1):
        value = best(stages, score, "beyond")
        more = [dict(arg=arg, overrides={**overrides, RATE: value, "seed": 0}) for arg in firsts]
        stages.append((f"wider{step}", more))
    return stages


def seeded(args, stages, seeds, overrides, score="", drawn=()):
    """[(stage, cells)] of several seeds: the best rate of `stages`, its two neighbours, and rates beyond a best mean.

    Args:
      args: of the rows.
      stages: of `swept`.
      seeds: how many.
      overrides, score: as there.
      drawn: further keys that take the seed, where a run of another seed would otherwise be the same run.
    """

    def cells(values):
        return [
            dict(arg=arg, once=True, overrides={**overrides, RATE: value, **dict.fromkeys(("seed", *drawn), seed)})
            for arg in args
            for seed in range(seeds)
            for value in values
        ]

    found = [(NEAR, cells(three(stages, score)))]
    for step in range(1, WIDER + 1):
        found.append((f"{FAR}{step}", cells([best([*stages, *found], score, "beyond", mean=True)])))
    return found


def three(stages, score, mean=False):
    """The overrides that take the best rate from the stages, and its two neighbours."""
    return [best(stages, score, which, mean) for which in ("", "lower", "higher")]


def best(stages, score, which, mean=False):
    """The override that takes a rate from the stages, by the loss of one run or by its mean over seeds."""
    return f"best:{'+'.join(name for name, _ in stages)}:{score}:{which}{':mean' if mean else ''}"


# ---- UUID pairs ----

# configs/mora_uuid.py:scale=gpu on Gemma 3 270M, which has 18 layers and a vocabulary of 262,144.
UUID_GEMMA = {"base.name": "gemma3-270m", "base.scan_unroll": 18, "train.chunk_tokens": 2_048, "task.add_bos": True}

# ---- GSM8K's and Dolly's answers ----

FORGET = ("data/text/novels.jsonl", "data/text/peps.jsonl")  # 64 x 256 tokens of each
WITH_BOS = ("gemma3-270m",)  # bases that expect every text to begin with BOS
# The lowest rates that are tried at first, of adapters and of full fine-tuning. In grids on E2E and UUID pairs the best
# ones are near 1e-3 and 1e-4.
FIRST, FFT_FIRST = 1e-4, 1e-5
STEPS = 150


def answers(choice, data):
    """[(stage, cells)] of configs/mora_finetune.py on one data set, by the held-out loss.

    Args:
      choice: of `parse_arg`: model, rates, per_decade, seeds, steps.
      data: further arguments of the config.
    """
    forgetting = {"type": "forgetting", "path": list(FORGET), "at_start": True, "add_bos": choice.model in WITH_BOS}
    common = {**BARE, **ALPHA, "evals": {"forgetting": forgetting}}
    rest = f"model={choice.model},packed,batch=8,seq_len=256,steps={choice.steps or STEPS}"
    firsts = {f"{data},{method},{rest}": FFT_FIRST if method == "method=fft" else FIRST for method in methods()}
    found = swept(firsts, choice, common, "loss")
    return [*found, *seeded(firsts, found, choice.seeds, common, "loss")]
