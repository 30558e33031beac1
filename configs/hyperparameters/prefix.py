"""The adapter's section of a prefix method, as all configs have it."""

# Hu et al. do not say where PreLayer's vectors start. From random words' embeddings, which are no state of any layer
# but the first, SmolLM2-135M begins E2E at 3.5 times its loss without them; from states at 0.91 times.
STARTS = {"prelayer": "states"}


def section(method: str, tokens: int, infix: int) -> dict:
    """{"method", "prefix"} of preembed or prelayer with so many prefix and infix tokens."""
    start = {"init": STARTS[method]} if method in STARTS else {}
    return {"method": method, "prefix": {"tokens": tokens, "infix": infix, **start}}
