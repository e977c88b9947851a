from pathlib import Path

from nixery.nix.garbage_collection import GarbageCollectorRoots


def test_roots_last_as_long_as_they_are_held(tmp_path: Path) -> None:
    roots = GarbageCollectorRoots(tmp_path)
    with roots.hold() as root, roots.hold() as other:
        root.symlink_to("/nix/store")
        other.symlink_to("/nix/store")
        assert len(list(tmp_path.glob("build-*/result"))) == 2
    assert not list(tmp_path.iterdir())
