"""What people read, and what cannot become markup."""

from __future__ import annotations

from nixery.server.pages.templating import breakable, derivation, size


def test_a_name_may_be_broken_between_packages_and_is_escaped() -> None:
    assert breakable("shell/git/<b>") == "shell/<wbr>git/<wbr>&lt;b&gt;"


def test_a_derivation_is_known_by_its_name() -> None:
    assert derivation(f"{'a' * 32}-hello-1.0.drv") == "hello-1.0"
    assert derivation("hello") == "hello"


def test_sizes_are_in_powers_of_ten() -> None:
    assert [size(n) for n in (0, 999, 1000, 123_456, 10**9)] == ["0 B", "999 B", "1.0 kB", "123 kB", "1.0 GB"]
