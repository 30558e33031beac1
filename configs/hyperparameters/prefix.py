"""Makes the adapter section of a config for preembed or prelayer: how many tokens, and where they start."""

# Hu et al. do not say where PreLayer's vectors start. Layers after the first never read embeddings: with random words'
# embeddings in every layer SmolLM2-135M begins E2E at 3.5 times its loss without them; with states at 0.91 times.
STARTS = {"prelayer": "states"}


def section(method: str, tokens: int, infix: int) -> dict:
    """{"method", "prefix"} of preembed or prelayer with so many prefix and infix tokens."""
    start = {"init": STARTS[method]} if method in STARTS else {}
    return {"method": method, "prefix": {"tokens": tokens, "infix": infix, **start}}
