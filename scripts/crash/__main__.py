"""Kill a server at random moments of cold builds.

    python -m scripts.crash [--rounds 100] [--seed 7]

The seed is printed first, and the moment of each round; with the same seed the moments are the same parts of a build.
Half of them are of the whole build, half of what comes after Nix: packing and storing.
"""

from __future__ import annotations

import argparse
import random
import secrets
import tempfile
from collections import Counter
from pathlib import Path

from scripts.crash.rounds import Crash

# Later than an undisturbed build, since it may take longer for once.
_LATEST = 1.15

# The quickest of so many undisturbed builds is measured: by a slow one, most moments would come after the end.
_MEASURED = 3


def crash(rounds: int, seed: int, directory: Path) -> Counter[str]:
    """Run rounds; return how often a build had come how far.

    Raises:
        AssertionError: something is not as it has to be.
    """
    draw = random.Random(seed)  # noqa: S311 -- for tests, and the same each time
    harness = Crash(directory, f"nixery-crash-{secrets.token_hex(8)}")
    expected = min((harness.collector_paused() for _ in range(_MEASURED)), key=lambda one: one.seconds)
    print(
        f"seed {seed}; undisturbed: {expected.digest} after {expected.seconds:.2f} s, "
        f"the last {expected.after_nix:.2f} s of them without Nix",
        flush=True,
    )
    reached: Counter[str] = Counter()
    for number in range(1, rounds + 1):
        # Nix takes most of the time. Of the few moments in which layers are packed and stored, every other round draws one.
        after_nix = number % 2 == 0
        seconds = expected.after_nix if after_nix else expected.seconds
        moment = draw.uniform(0, _LATEST) * seconds
        stage = harness.disturbed(moment, expected, after_nix=after_nix)
        reached[stage.partition(",")[0]] += 1
        since = "after Nix had ended" if after_nix else "after the request"
        print(
            f"round {number}: killed {moment:.3f} s {since}, {stage}; the same digest, all blobs true",
            flush=True,
        )
    return reached


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nixery-crash-") as directory:
        reached = crash(arguments.rounds, arguments.seed, Path(directory))
    print("killed while:", ", ".join(f"{stage} {count}" for stage, count in reached.most_common()))


if __name__ == "__main__":
    main()
