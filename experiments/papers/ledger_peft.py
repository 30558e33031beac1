"""Where PEFT's own comparison of methods differs from ours; it has code and no paper."""

from experiments.papers.disagreement import Disagreement

# huggingface/peft, method_comparison/MetaMathQA, as configs/peft_metamath.py takes it.
PEFT = (
    Disagreement(
        "EOS of a batch's longest row",
        "none (a benchmark without a paper)",
        "EOS is the padding, its first one is a target: the longest row of a batch has none, as its comment says",
        "every row ends with EOS and learns it, but for one that is cut at 768 tokens",
        "task.add_eos",
    ),
)
