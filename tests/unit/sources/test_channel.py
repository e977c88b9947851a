import pytest

from nixery.errors import TagUnknown
from nixery.sources.channel import channel_reference
from nixery.sources.source import Reference

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEFAULT = ("nixos-*", "nixpkgs-*", "commits")


@pytest.mark.parametrize(
    ("tag", "configured", "expected"),
    [
        ("latest", "nixos-24.05", Reference("nixos-24.05", moving=True)),
        ("nixos-24.05", "nixos-24.05", Reference("nixos-24.05", moving=True)),
        ("nixos-23.11", "nixos-24.05", Reference("nixos-23.11", moving=True)),
        (COMMIT, "nixos-24.05", Reference(COMMIT, moving=False)),
        ("latest", COMMIT, Reference(COMMIT, moving=False)),
        ("latest", "master", Reference("master", moving=True)),
        ("master", "master", Reference("master", moving=True)),
    ],
)
def test_what_a_tag_selects(tag: str, configured: str, expected: Reference) -> None:
    assert channel_reference(tag, configured, DEFAULT) == expected


@pytest.mark.parametrize("tag", ["master", "staging", "v1", COMMIT[:39], COMMIT.upper(), "xnixos-24.05"])
def test_what_it_may_not(tag: str) -> None:
    with pytest.raises(TagUnknown, match=r"nixos-\*, nixpkgs-\*, a commit's 40 digits"):
        channel_reference(tag, "nixos-24.05", DEFAULT)


def test_nothing_but_the_configured_one() -> None:
    assert channel_reference("latest", "nixos-24.05", ()).name == "nixos-24.05"
    with pytest.raises(TagUnknown):
        channel_reference(COMMIT, "nixos-24.05", ())
