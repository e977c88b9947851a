from pathlib import Path

import pytest

from nixery.errors import TagUnknown
from nixery.sources.flake import FlakeReference, flake_reference
from nixery.sources.source import CommitRule, Reference

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RULE = CommitRule.parse("reachable")


@pytest.mark.parametrize(
    ("configured", "repository"),
    [
        ("github:NixOS/nixpkgs", "https://github.com/NixOS/nixpkgs"),
        ("github:NixOS/nixpkgs/nixos-24.05?dir=lib", "https://github.com/NixOS/nixpkgs"),
        ("github:team/set?host=git.example", "https://git.example/team/set"),
        ("gitlab:group%2Fteam/set", "https://gitlab.com/group/team/set.git"),
        ("sourcehut:~a/set", "https://git.sr.ht/~a/set"),
        ("sourcehut:~a/set?host=hg.sr.ht", None),
        ("github:team/set?host=a/b", None),
        ("github:team/set?host=-oProxyCommand", None),
        ("git+https://example.org/set?ref=main", "https://example.org/set"),
        ("git+ssh://git@example.org/set", "ssh://git@example.org/set"),
        ("git+file:///srv/set", "file:///srv/set"),
        ("git://example.org/set", "git://example.org/set"),
        ("hg+https://example.org/set", None),
        ("nixpkgs", None),
        ("path:/set", None),
        ("/nowhere", None),
        ("https://example.org/set.tar.gz", None),
    ],
)
def test_the_repository_of_a_flake_reference(configured: str, repository: str | None) -> None:
    assert FlakeReference(configured).repository == repository


@pytest.mark.parametrize("tag", ["v1", "main", "abcdef1", "0123456", COMMIT[:39], COMMIT.upper()])
def test_a_tag_without_40_digits_is_a_branch_or_a_tag(tag: str) -> None:
    # A forge would take seven digits for a commit; here they are the name of a branch.
    assert flake_reference(tag, FlakeReference("github:a/b"), RULE) == Reference(tag, moving=True)


def test_a_commit_is_pinned_and_subject_to_the_rule() -> None:
    reference = flake_reference(COMMIT, FlakeReference("github:a/b"), RULE)
    assert reference == Reference(COMMIT, moving=False, rule=RULE.identity)
    with pytest.raises(TagUnknown, match="NIXERY_COMMITS=none"):
        flake_reference(COMMIT, FlakeReference("github:a/b"), CommitRule.parse("none"))


@pytest.mark.parametrize(
    ("configured", "moving"), [("github:a/b", True), (f"github:a/b/{COMMIT}", False), ("/nowhere", True)]
)
def test_latest_is_the_configured_flake(configured: str, moving: bool) -> None:  # noqa: FBT001 -- a parameter
    assert flake_reference("latest", FlakeReference(configured), RULE) == Reference(configured, moving=moving)


@pytest.mark.parametrize(
    ("configured", "name", "expected"),
    [
        ("github:NixOS/nixpkgs", None, f"github:NixOS/nixpkgs/{COMMIT}"),
        (
            "github:NixOS/nixpkgs/nixos-23.11?dir=lib&ref=x",
            "refs/heads/v1",
            f"github:NixOS/nixpkgs/{COMMIT}?dir=lib",
        ),
        ("git+file:///set?ref=main", None, f"git+file:///set?allRefs=1&ref=HEAD&rev={COMMIT}"),
        (
            "git+https://example.org/set?ref=main&dir=x",
            "refs/tags/v1",
            f"git+https://example.org/set?dir=x&ref=refs%2Ftags%2Fv1&rev={COMMIT}",
        ),
    ],
)
def test_the_reference_of_a_commit(configured: str, name: str | None, expected: str) -> None:
    assert FlakeReference(configured).at(COMMIT, name) == expected


def test_a_directory_with_a_git_repository_has_versions(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert FlakeReference(str(tmp_path)).repository == f"file://{tmp_path}"


@pytest.mark.parametrize("configured", ["path:/set", "/nowhere", "https://example.org/set.tar.gz", "nixpkgs"])
def test_a_flake_without_versions_has_only_latest(configured: str) -> None:
    with pytest.raises(TagUnknown, match="without versions"):
        flake_reference("v1", FlakeReference(configured), RULE)


@pytest.mark.parametrize(
    ("flake", "identity", "is_believed"),
    [
        ("github:NixOS/nixpkgs", f"github:NixOS/nixpkgs/{COMMIT}", True),
        (
            "github:NixOS/nixpkgs/nixos-unstable?dir=a",
            f"github:NixOS/nixpkgs/{COMMIT}?dir=a&narHash=sha256-x",
            True,
        ),
        ("github:NixOS/nixpkgs", f"github:NixOS/nixpkgs/{COMMIT}?host=evil.example", False),
        ("github:NixOS/nixpkgs", f"github:NixOS/nixpkgs/{COMMIT}?dir=evil", False),
        ("github:NixOS/nixpkgs", f"github:evil/nixpkgs/{COMMIT}", False),
        ("github:NixOS/nixpkgs", f"github:NixOS/nixpkgs/evil/{COMMIT}", False),
        ("github:NixOS/nixpkgs", "github:NixOS/nixpkgs/main", False),
        ("github:NixOS/nixpkgs", f"path:/nix/store/{'0' * 32}-source?narHash=sha256-x", False),
        (
            "git+https://example.org/set",
            f"git+https://example.org/set?ref=refs/heads/main&rev={COMMIT}",
            True,
        ),
        (
            "git+https://example.org/set",
            f"git+https://example.org/set?ref=refs/pull/6/head&rev={COMMIT}",
            True,
        ),
        ("git+https://example.org/set", "git+https://example.org/set?ref=main", False),
        ("git+https://example.org/set", f"git+https://example.org/set?rev={COMMIT}&submodules=1", False),
        ("git+https://example.org/set", f"git+file:///root/set?rev={COMMIT}", False),
        ("git+file:///srv/set", f"path:/nix/store/{'0' * 32}-source?narHash=sha256-x", True),
        ("/srv/set", f"path:/nix/store/{'0' * 32}-source?narHash=sha256-x", True),
        ("/srv/set", f"git+file:///srv?dir=set&rev={COMMIT}", True),
        ("/srv/set", f"git+file:///srv/settle?rev={COMMIT}", False),
        ("/srv/set", "path:/root?narHash=sha256-x", False),
        ("/srv/set", "path:/etc", False),
        ("nixpkgs", f"github:NixOS/nixpkgs/{COMMIT}", True),
        ("nixpkgs", f"git+file:///root/set?rev={COMMIT}", False),
        ("https://example.org/set.tar.gz", "https://cdn.example.org/set.tar.gz?narHash=sha256-x", True),
        ("https://example.org/set.tar.gz", "file:///etc/passwd", False),
        ("https://example.org/set.tar.gz", "path:/nix/store/../../etc?narHash=sha256-x", False),
    ],
)
def test_a_pin_from_a_record_must_have_the_form_of_the_flake(
    flake: str, identity: str, *, is_believed: bool
) -> None:
    assert FlakeReference(flake).may_be_locked_as(identity, None) is is_believed
    assert not FlakeReference(flake).may_be_locked_as(identity, "9" * 40)
