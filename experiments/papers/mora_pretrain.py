"""MoRA (Jiang et al., arXiv 2405.12130): the published numbers of pre-training from scratch, as data.

Table 3 is printed in the paper. Fig. 5's bars and Fig. 4's curves have no numbers in the text and were not digitised.
"""

TOKENS = 10_000 * 1_024 * 512  # steps, batch, length
DATA = "C4"
DATA_SOURCES = ("tfds:c4/", "hub:allenai/c4/")  # as a config names it

# Table 3: perplexity on C4's validation set at 250M and 1.3B parameters. Full training has no row.
SIZES = ("250M", "1.3B")
TABLE3 = {
    "lora": (33.40, 28.56),
    "mora": (28.54, 25.25),
    "relora": (32.19, 27.80),
    "remora": (26.74, 23.34),
}
# The kinds of matrix in the order of Fig. 5, by our modules' names.
FIG5_KINDS = ("query", "key", "value", "out", "up", "down", "gate")
FIG5_ABOVE = 0.1
