"""One entry of the ledger: a point on which a paper and its official code disagree, or say too little."""

from typing import NamedTuple


class Disagreement(NamedTuple):
    """The paper's reading, the code's, ours, and the config key that switches."""

    name: str
    paper: str
    code: str
    ours: str
    switch: str
