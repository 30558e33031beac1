"""Whether two fingerprints are of one base, across the kinds that were ever written: `bases.fingerprint` makes them."""

KIND = "2:"  # then the digest of everything, a colon, and the fingerprint as it was before kinds had a number
SHOWN = 14


def same(made: str, ours: str, where: str) -> bool:
    """Whether a file's fingerprint is that of the base in use; one of the older kind is compared as such, and said.

    Args:
      made: in the file.
      ours: of the base.
      where: what the file is called in the note that is printed.
    """
    if made == ours:
        return True
    if made.startswith(KIND) == ours.startswith(KIND) or _older(made) != _older(ours):
        return False
    print(
        f"{where} has a fingerprint of the older kind, by 16 values a leaf alone: it fits this base, unless other "
        "values or the config were edited since",
        flush=True,
    )
    return True


def join(digest: str, older: str) -> str:
    """A fingerprint from the digest of everything and that of the older kind."""
    return f"{KIND}{digest}:{older}"


def shown(fingerprint: str) -> str:
    """As much of it as tells two apart in a message."""
    return fingerprint if len(fingerprint) <= SHOWN else fingerprint[:SHOWN] + "..."


def _older(fingerprint: str) -> str:
    return fingerprint.rpartition(":")[2] if fingerprint.startswith(KIND) else fingerprint
