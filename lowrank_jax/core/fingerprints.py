"""Compares fingerprints of bases, older versions too; `bases.fingerprint` makes them."""

VERSION = "2:"  # followed by the digest of everything, a colon, and the older fingerprint, which had no version
SHOWN = 14  # characters of a fingerprint in a message


def same(made: str, ours: str, where: str) -> bool:
    """Whether a file was made for the base in use. Prints a note where only older fingerprints can be compared.

    Args:
      made: the fingerprint in the file.
      ours: that of the base.
      where: what the note calls the file.
    """
    if made == ours:
        return True
    if made.startswith(VERSION) == ours.startswith(VERSION) or _older(made) != _older(ours):
        return False
    print(
        f"{where} has an older fingerprint, of 16 values a leaf and without the config: it fits this base, but edits "
        "of other values or of the config would not show",
        flush=True,
    )
    return True


def join(digest: str, older: str) -> str:
    """A fingerprint from the digest of everything and the older fingerprint."""
    return f"{VERSION}{digest}:{older}"


def shown(fingerprint: str) -> str:
    """The beginning of a fingerprint, for a message."""
    return fingerprint if len(fingerprint) <= SHOWN else fingerprint[:SHOWN] + "..."


def _older(fingerprint: str) -> str:
    return fingerprint.rpartition(":")[2] if fingerprint.startswith(VERSION) else fingerprint
