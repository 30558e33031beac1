"""UUID pairs from a seed, the same on every machine."""

import hashlib
import uuid

VERSION = "1.0.0"  # of the generator, and thereby of the prepared folders


def generate_pairs(pairs: int, seed: int) -> list[tuple[str, str]]:
    """The (key, value) pairs of a seed: the first 128 bits of SHA-256("seed:index:key|value"), as version-4 UUIDs.

    A hash and not a random generator: it gives the same pairs on every machine, Python and numpy, and pair i does not
    depend on the number of pairs.

    Args:
      pairs: how many, at least 1.
      seed: any integer.
    """

    def draw(index: int, role: str) -> str:
        digest = hashlib.sha256(f"{seed}:{index}:{role}".encode()).digest()
        return str(uuid.UUID(bytes=digest[:16], version=4))  # sets the version digit and the two variant bits

    return [(draw(index, "key"), draw(index, "value")) for index in range(pairs)]


def config_name(pairs: int, seed: int) -> str:
    """Name of the TFDS config, and of its folder."""
    return f"pairs_{pairs}_seed_{seed}"
