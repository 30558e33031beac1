"""Where PEFT's own comparison of methods differs from ours; it has code and no paper."""

from experiments.papers.disagreement import Disagreement

# huggingface/peft, method_comparison/MetaMathQA, as configs/peft_metamath.py takes it.
PEFT = (
    Disagreement(
        "EOS of a batch's longest row",
        "none (a benchmark without a paper)",
        "EOS pads, and the first one is a target: a batch's longest row has none, as a comment in the code says",
        "every row ends with EOS as a target, except one that is cut at 768 tokens",
        "task.add_eos",
    ),
)
