import pytest

from nixery.packing.accounts import add_passwords
from nixery.packing.root_filesystem import Content, Link, Tree

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\nopen::1001:1001::/:/bin/sh\n"


def test_no_user_has_a_password() -> None:
    tree = Tree()
    tree.add(b"etc/passwd", Content(PASSWD))
    add_passwords(tree)
    assert tree.get(b"etc/shadow") == Content(b"root:*:::::::\nweb:*:::::::\n", 0o600)


@pytest.mark.parametrize("name", [b"etc/passwd", b"etc/shadow"])
def test_files_of_packages_stay(name: bytes) -> None:
    tree = Tree()
    tree.add(name, Link(b"/nix/store/package"))
    tree.add(b"etc/passwd", Content(PASSWD))
    before = tree.get(b"etc/shadow")
    add_passwords(tree)
    assert tree.get(b"etc/shadow") == before
