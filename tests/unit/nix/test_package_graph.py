import os
from pathlib import Path

import pytest

from nixery.nix.realisation import _is_fixed_output

FIXED = 'Derive([("out","/nix/store/x-source.tar.gz","sha256","00ff")],[],[],"x","x",[],[])'
BUILT = 'Derive([("out","/nix/store/x-hello","","")],[],[],"x","x",[],[])'


@pytest.mark.parametrize(("content", "expected"), [(FIXED, True), (BUILT, False), ("", False)])
def test_a_derivation_tells_whether_it_fetches(tmp_path: Path, content: str, *, expected: bool) -> None:
    (tmp_path / "x.drv").write_text(content)
    assert _is_fixed_output(str(tmp_path / "x.drv")) == expected


def test_a_source_with_the_name_of_a_derivation_leads_nowhere(tmp_path: Path) -> None:
    """A package set can copy any symlink into the store, under any name."""
    (tmp_path / "fixed").write_text(FIXED)
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("a.drv", "fixed"), ("b.drv", "pipe"), ("c.drv", "/dev/zero")):
        (tmp_path / name).symlink_to(target)
        assert not _is_fixed_output(str(tmp_path / name))
    assert not _is_fixed_output(str(tmp_path / "pipe"))
