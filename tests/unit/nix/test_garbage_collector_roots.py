from pathlib import Path

from nixery.nix.garbage_collector_roots import GarbageCollectorRoots


def test_roots_last_as_long_as_they_are_held(tmp_path: Path) -> None:
    roots = GarbageCollectorRoots(tmp_path)
    with roots.hold() as root:
        root.symlink_to("/nix/store")
        assert list(tmp_path.glob("server-*/build-*/result"))
    assert not list(tmp_path.glob("server-*/build-*"))
    roots.close()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_server_left_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    left_behind = tmp_path / "server-killed"
    (left_behind / "build-1").mkdir(parents=True)
    living = GarbageCollectorRoots(tmp_path)
    assert not left_behind.exists()
    with living.hold() as root:
        root.symlink_to("/nix/store")
        GarbageCollectorRoots(tmp_path).close()
        assert root.is_symlink()
    living.close()
