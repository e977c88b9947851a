"""The words of ``nix-store --realise --dry-run``, in several versions of Nix."""

from __future__ import annotations

import pytest

from nixery.closure import StorePath
from nixery.nix.plan import Plan, PlanReader

A, B, C = (StorePath("0" * 32 + f"-{name}") for name in ("a.drv", "b", "c"))


def read(*lines: str) -> Plan:
    reader = PlanReader()
    for line in lines:
        reader.read_line(line)
    return reader.plan


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert read() == read("warning: unable to download 'https://cache.example.org/nix-cache-info'") == Plan()
    assert Plan().is_empty


@pytest.mark.parametrize("heading", ["this derivation will be built:", "these 2 derivations will be built:"])
def test_derivations_to_build_are_read(heading: str) -> None:
    plan = read("warning: something", heading, f"  {A}", "another line", f"  {B}")
    assert plan == Plan(builds=(A,))
    assert not plan.is_empty


@pytest.mark.parametrize(
    ("heading", "sizes"),
    [
        ("this path will be fetched (0.25 MiB download, 1.50 MiB unpacked):", (256 * 1024, 1536 * 1024)),
        ("these 2 paths will be fetched (12.5 KiB download, 2.0 GiB unpacked):", (12800, 2 << 30)),
        ("these 2 paths will be fetched:", (None, None)),
    ],
)
def test_paths_to_download_are_read_with_their_sizes(
    heading: str, sizes: tuple[int | None, int | None]
) -> None:
    plan = read("this derivation will be built:", f"  {A}", heading, f"  {C}", f"  {B}", f"  {B}")
    assert (plan.builds, plan.downloads) == ((A,), (B, C))
    assert (plan.download_size, plan.unpacked_size) == sizes


@pytest.mark.parametrize("rest", ["", " (may be caused by read-only store access)"])
def test_paths_that_nix_cannot_provide_are_read(rest: str) -> None:
    assert read(f"don't know how to build these paths{rest}:", f"  {B}") == Plan(unknown=(B,))


def test_a_line_that_is_no_store_path_ends_a_list() -> None:
    assert read("this derivation will be built:", "  /etc/passwd", f"  {A}") == Plan()
