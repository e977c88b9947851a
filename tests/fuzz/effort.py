"""How many examples the fuzz tests try.

``make test`` tries the same inputs for the same code, so that a failure is due to a change. ``make fuzz``
multiplies the number of examples by ``FUZZ_EFFORT`` and draws new ones each time; Hypothesis keeps those that
failed in ``.hypothesis`` and prints how to repeat them.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_EFFORT = int(os.environ.get("FUZZ_EFFORT", "0"))


def examples(count: int) -> settings:
    """Return settings for a test with this many examples in ``make test``."""
    return settings(
        max_examples=count * max(1, _EFFORT),
        derandomize=_EFFORT == 0,
        # No deadline for an example: each exchange has its own timeout.
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
