import os
from pathlib import Path

import pytest

from nixery.closure import StorePath
from nixery.nix.realisation import _is_fixed_output, parse_registrations

A, B = "/nix/store/" + "a" * 32 + "-a", "/nix/store/" + "b" * 32 + "-b"


def test_registrations_are_parsed_with_self_references_apart() -> None:
    text = f"{A}\n00ff\n160\n\n2\n{A}\n{B}\n{B}\nff00\n8\n{B}.drv\n0\n"
    first, second = parse_registrations(text)
    assert (first.nar_hash, first.nar_size, first.references) == ("00ff", 160, (StorePath.parse(B),))
    assert (second.nar_hash, second.references) == ("ff00", ())
    assert (first.refers_to_itself, second.refers_to_itself) == (True, False)


@pytest.mark.parametrize(
    "text", [f"{A}\n00ff\n", f"{A}\n00ff\n160\n\n1\n", "rubbish\n", f"{A}\nh\nmany\n\n0\n"]
)
def test_output_in_another_format_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- the caller adds the command
        list(parse_registrations(text))


FIXED = 'Derive([("out","/nix/store/x-source.tar.gz","sha256","00ff")],[],[],"x","x",[],[])'
BUILT = 'Derive([("out","/nix/store/x-hello","","")],[],[],"x","x",[],[])'


@pytest.mark.parametrize(("content", "expected"), [(FIXED, True), (BUILT, False), ("", False)])
def test_a_fixed_output_derivation_is_recognised(tmp_path: Path, content: str, *, expected: bool) -> None:
    (tmp_path / "x.drv").write_text(content)
    assert _is_fixed_output(str(tmp_path / "x.drv")) == expected


def test_a_symlink_with_the_name_of_a_derivation_is_not_followed(tmp_path: Path) -> None:
    """A package set can copy any symlink into the store, under any name."""
    (tmp_path / "fixed").write_text(FIXED)
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("a.drv", "fixed"), ("b.drv", "pipe"), ("c.drv", "/dev/zero")):
        (tmp_path / name).symlink_to(target)
        assert not _is_fixed_output(str(tmp_path / name))
    assert not _is_fixed_output(str(tmp_path / "pipe"))
