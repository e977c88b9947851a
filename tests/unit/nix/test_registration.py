import pytest

from nixery.closure import StorePath
from nixery.nix.garbage_collection import parse_registrations

A, B = "/nix/store/" + "a" * 32 + "-a", "/nix/store/" + "b" * 32 + "-b"


def test_reads_paths_and_leaves_self_references_out() -> None:
    text = f"{A}\n00ff\n160\n\n2\n{A}\n{B}\n{B}\nff00\n8\n{B}.drv\n0\n"
    first, second = parse_registrations(text)
    assert (first.nar_hash, first.nar_size, first.references) == ("00ff", 160, (StorePath.parse(B),))
    assert (second.nar_hash, second.references) == ("ff00", ())


@pytest.mark.parametrize(
    "text", [f"{A}\n00ff\n", f"{A}\n00ff\n160\n\n1\n", "rubbish\n", f"{A}\nh\nmany\n\n0\n"]
)
def test_refuses_another_format(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- whichever it is, the caller names the command
        list(parse_registrations(text))
