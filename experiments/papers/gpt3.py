"""LoRA (Hu et al., arXiv 2106.09685 v2): the published numbers of its GPT-3 175B experiments (Tables 4, 15 to 17)."""

from typing import NamedTuple

MODEL = "gpt3-175b"
# Columns of Table 4: WikiSQL's logical form on the validation set, MNLI matched, SAMSum's ROUGE-1, -2, -L; all in %.
COLUMNS = (("wikisql", "logical_form"), ("mnli", "matched"), *(("samsum", f"rouge{n}") for n in ("1", "2", "_l")))
SPREADS = (0.5, 0.1, 0.2, 0.2, 0.1)  # over seeds, as the caption gives them for all rows
# Section 4.2 and its footnote: memory of training with Adam, files, and 100 adapted models.
MEMORY_RANK = 4
MEMORY = {
    "full": "1.2 TB",
    "lora": "350 GB",
    "base": "350 GB",
    "adapter": "35 MB",
    "tasks_full": "35 TB",
    "tasks_lora": "354 GB",
}


class Published(NamedTuple):
    """One printed row of Table 4 or 15.


    Attributes:
      method: family or rule as our configs call it; "lora+pe" and "lora+pl" are LoRA with a prefix method.
      name: the paper's.
      setting: rank or tokens, as printed; "" where the table has none.
      parameters: as printed.
      scores: by COLUMNS, the first two in Table 15.
    """

    method: str
    name: str
    setting: str
    parameters: str
    scores: tuple[float, ...]


TABLE4 = (
    Published("fft", "FT", "", "175,255.8M", (73.8, 89.5, 52.0, 28.0, 44.5)),
    Published("bitfit", "BitFit", "", "14.2M", (71.3, 91.0, 51.3, 27.4, 43.5)),
    Published("preembed", "PreEmbed", "", "3.2M", (63.1, 88.6, 48.3, 24.2, 40.5)),
    Published("prelayer", "PreLayer", "", "20.2M", (70.1, 89.5, 50.8, 27.3, 43.5)),
    Published("houlsby", "Adapter-H", "", "7.1M", (71.9, 89.8, 53.0, 28.9, 44.8)),
    Published("houlsby", "Adapter-H", "", "40.1M", (73.2, 91.5, 53.2, 29.0, 45.1)),
    Published("lora", "LoRA", "", "4.7M", (73.4, 91.7, 53.8, 29.8, 45.9)),
    Published("lora", "LoRA", "", "37.7M", (74.0, 91.6, 53.4, 29.2, 45.1)),
)
TABLE15 = (
    Published("fft", "FT", "", "175B", (73.8, 89.5)),
    *(
        Published("preembed", "PrefixEmbed", f"l_p={prefix}, l_i=8", parameters, scores)
        for prefix, parameters, scores in (
            (32, "0.4M", (55.9, 84.9)),
            (64, "0.9M", (58.7, 88.1)),
            (128, "1.7M", (60.6, 88.0)),
            (256, "3.2M", (63.1, 88.6)),
            (512, "6.4M", (55.9, 85.8)),
        )
    ),
    *(
        Published("prelayer", "PrefixLayer", f"l_p={prefix}, l_i={infix}", parameters, scores)
        for prefix, infix, parameters, scores in (
            (2, 2, "5.1M", (68.5, 89.2)),
            (8, 0, "10.1M", (69.8, 88.2)),
            (8, 8, "20.2M", (70.1, 89.5)),
            (32, 4, "44.1M", (66.4, 89.6)),
            (64, 0, "76.1M", (64.9, 87.9)),
        )
    ),
    *(
        Published("houlsby", "Adapter-H", f"r={rank}", parameters, scores)
        for rank, parameters, scores in (
            (1, "7.1M", (71.9, 89.8)),
            (4, "21.2M", (73.2, 91.0)),
            (8, "40.1M", (73.2, 91.5)),
            (16, "77.9M", (73.2, 91.5)),
            (64, "304.4M", (72.6, 91.5)),
        )
    ),
    *(
        Published("lora", "LoRA", setting, parameters, scores)
        for setting, parameters, scores in (
            ("v r=2", "4.7M", (73.4, 91.7)),
            ("q,v r=1", "4.7M", (73.4, 91.3)),
            ("q,v r=2", "9.4M", (73.3, 91.4)),
            ("q,k,v,o r=1", "9.4M", (74.1, 91.2)),
            ("q,v r=4", "18.8M", (73.7, 91.3)),
            ("q,k,v,o r=2", "18.8M", (73.7, 91.7)),
            ("q,v r=8", "37.7M", (73.8, 91.6)),
            ("q,k,v,o r=4", "37.7M", (74.0, 91.7)),
            ("q,v r=64", "301.9M", (73.6, 91.4)),
            ("q,k,v,o r=64", "603.8M", (73.9, 91.4)),
        )
    ),
    Published("lora+pe", "LoRA+PE", "q,v r=8, l_p=8, l_i=4", "37.8M", (75.0, 91.4)),
    Published("lora+pe", "LoRA+PE", "q,v r=32, l_p=8, l_i=4", "151.1M", (75.9, 91.1)),
    Published("lora+pe", "LoRA+PE", "q,v r=64, l_p=8, l_i=4", "302.1M", (76.2, 91.3)),
    Published("lora+pl", "LoRA+PL", "q,v r=8, l_p=8, l_i=4", "52.8M", (72.9, 90.2)),
)

# MNLI with few training rows, matched accuracy in % (Tables 16 and 17); seeds vary by 0.3.
FEW = (100, 1_000, 10_000, 392_702)
TABLE16 = {
    "fft": (60.2, 85.8, 88.9, 89.5),
    "preembed": (37.6, 75.2, 79.5, 88.6),
    "prelayer": (48.3, 82.5, 85.9, 89.6),
    "lora": (63.8, 85.6, 89.2, 91.7),
}
