"""Wilson's interval of a share: how far the true share may lie from the one that was counted."""

import math

Z95 = 1.959963984540054  # the normal distribution has 95% of its mass within so many standard deviations


def wilson(correct: float, n: float, z: float = Z95) -> tuple[float, float]:
    """(low, high) of the share correct / n, (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Args:
      correct, n: how many of how many.
      z: standard deviations; by default those of 95%.

    Raises:
      ValueError: n is not above 0, or correct is not within 0 and n.
    """
    if not 0 <= correct <= n or n <= 0:
        raise ValueError(f"{correct} correct of {n}")
    share, room = correct / n, z * z / n
    middle, spread = share + room / 2, z * math.sqrt(share * (1 - share) / n + room / (4 * n))
    # Exactly 0 or 1 where none or all are right: rounding could leave 0 or 1 outside, and a base with none right would
    # count as separated.
    low = (middle - spread) / (1 + room) if correct else 0.0
    return max(0.0, low), min(1.0, (middle + spread) / (1 + room)) if correct < n else 1.0
