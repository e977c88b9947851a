"""What a failure that is remembered counts for."""

from __future__ import annotations

from nixery.builds.coordinator import size_of
from nixery.errors import LONGEST_MESSAGE, PackagesUnavailable, Reason, UnavailablePackage


def test_what_is_said_of_packages_counts_as_well() -> None:
    # The message has an end, and the packages have not.
    packages = tuple(UnavailablePackage(f"p{number}", Reason.THROWS, "x" * 2000) for number in range(100))
    error = PackagesUnavailable(packages)
    assert len(str(error)) <= LONGEST_MESSAGE + 1
    assert size_of(error) > 100 * 2000
