"""Kill a server at random moments of cold builds.

    python -m scripts.crash [--rounds 100] [--seed 7]

Prints the seed and the moment of each round; the same seed gives the same moments, as shares of a build. Half
of the moments are shares of the whole build, half of the time after Nix: packing and storing.
"""

from __future__ import annotations

import argparse
import random
import secrets
import tempfile
from collections import Counter
from pathlib import Path

from scripts.crash.rounds import Crash

# The latest moment, as a share of an uninterrupted build: a build may take longer.
_LATEST = 1.15

# The fastest of this many uninterrupted builds counts: after a slow one, most moments would come after the
# end of a build.
_MEASURED = 3


def crash(rounds: int, seed: int, directory: Path) -> Counter[str]:
    """Run rounds; return the number of kills by stage of the build.

    Raises:
        AssertionError: a check failed.
    """
    draw = random.Random(seed)  # noqa: S311 -- for tests, and the same each time
    harness = Crash(directory, f"nixery-crash-{secrets.token_hex(8)}")
    expected = min((harness.uninterrupted() for _ in range(_MEASURED)), key=lambda one: one.seconds)
    print(
        f"seed {seed}; uninterrupted: {expected.digest} after {expected.seconds:.2f} s, "
        f"the last {expected.after_nix:.2f} s of them without Nix",
        flush=True,
    )
    reached: Counter[str] = Counter()
    for number in range(1, rounds + 1):
        # Nix takes most of the time: every other round draws a moment of packing and storing.
        after_nix = number % 2 == 0
        seconds = expected.after_nix if after_nix else expected.seconds
        moment = draw.uniform(0, _LATEST) * seconds
        stage = harness.interrupted(moment, expected, after_nix=after_nix)
        reached[stage.partition(",")[0]] += 1
        since = "after Nix had ended" if after_nix else "after the request"
        print(
            f"round {number}: killed {moment:.3f} s {since}, {stage}; same digest, all blobs intact",
            flush=True,
        )
    return reached


def main() -> None:
    """Run the rounds that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nixery-crash-") as directory:
        reached = crash(arguments.rounds, arguments.seed, Path(directory))
    print("killed while:", ", ".join(f"{stage} {count}" for stage, count in reached.most_common()))


if __name__ == "__main__":
    main()
