import pytest

from nixery.errors import TagUnknown
from nixery.sources.channel import channel_reference, channel_rule
from nixery.sources.source import CommitRule, Reference

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEFAULT = ("nixos-*", "nixpkgs-*", "commits")
RULE = CommitRule.parse("reachable")


@pytest.mark.parametrize(
    ("tag", "configured", "expected"),
    [
        ("latest", "nixos-24.05", Reference("nixos-24.05", moving=True)),
        ("nixos-24.05", "nixos-24.05", Reference("nixos-24.05", moving=True)),
        ("nixos-23.11", "nixos-24.05", Reference("nixos-23.11", moving=True)),
        (COMMIT, "nixos-24.05", Reference(COMMIT, moving=False, rule=RULE.identity)),
        ("latest", COMMIT, Reference(COMMIT, moving=False)),
        ("latest", "master", Reference("master", moving=True)),
        ("master", "master", Reference("master", moving=True)),
    ],
)
def test_a_tag_selects_a_channel_or_a_commit(tag: str, configured: str, expected: Reference) -> None:
    assert channel_reference(tag, configured, DEFAULT, RULE) == expected


@pytest.mark.parametrize("tag", ["master", "staging", "v1", COMMIT[:39], COMMIT.upper(), "xnixos-24.05"])
def test_a_tag_that_is_not_allowed_is_refused(tag: str) -> None:
    with pytest.raises(TagUnknown, match=r"nixos-\*, nixpkgs-\*, a commit's 40 digits"):
        channel_reference(tag, "nixos-24.05", DEFAULT, RULE)


def test_without_patterns_only_the_configured_channel_is_allowed() -> None:
    assert channel_reference("latest", "nixos-24.05", (), RULE).name == "nixos-24.05"
    with pytest.raises(TagUnknown):
        channel_reference(COMMIT, "nixos-24.05", (), RULE)


def test_a_pattern_does_not_allow_commits() -> None:
    with pytest.raises(TagUnknown):
        channel_reference(COMMIT, "nixos-24.05", ("*",), RULE)


@pytest.mark.parametrize(
    ("setting", "configured", "patterns"),
    [
        ("reachable", "nixos-24.05", ("nixos-24.05", "nixos-*", "nixpkgs-*")),
        ("reachable", COMMIT, ("nixos-*", "nixpkgs-*")),
        ("staging,next-*", "nixos-24.05", ("staging", "next-*")),
        ("any", "nixos-24.05", None),
    ],
)
def test_commits_of_allowed_channels_are_accepted(
    setting: str, configured: str, patterns: tuple[str, ...] | None
) -> None:
    assert channel_rule(CommitRule.parse(setting), configured, DEFAULT).patterns == patterns
