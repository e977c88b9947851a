"""Rules: which identity may do what."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from nixery.access.identity import ANONYMOUS, Identity, Kind, Limits, Right
from nixery.access.policy import Access, Policy, Rule, check_term, matches
from nixery.errors import (
    AccessDenied,
    LoginRequired,
    NixeryError,
    NotVisible,
    PackagesUnavailable,
    PlatformFailed,
    Reason,
    UnavailablePackage,
)
from nixery.image.name import requests_for
from nixery.image.platform import AMD64, ARM64

ALL = frozenset(Right)
PULL = frozenset({Right.PULL})
NOTHING: frozenset[Right] = frozenset()
BOB = Identity(Kind.PASSWORD, "bob", frozenset({"web"}))


def rule(may: frozenset[Right], *packages: str, who: str = "everyone") -> Rule:
    return Rule((who,), may, packages or ("*",))


def may_pull(rules: list[Rule], name: str, tag: str = "latest", identity: Identity = BOB) -> bool:
    return Access(identity, rules).allows(Right.PULL, requests_for(name, [AMD64]), tag)


def test_nothing_is_allowed_by_default() -> None:
    assert not may_pull([], "git")
    assert not may_pull([rule(ALL, "curl")], "git")
    assert Access(BOB, None).allows(Right.PULL, requests_for("git", [AMD64]), "latest")


@pytest.mark.parametrize("name", ["amd64", "arm64", "arm64/arm64"])
def test_an_image_without_packages_needs_a_rule_as_well(name: str) -> None:
    requests = requests_for(name, [AMD64, ARM64])
    for rules in ([], [rule(NOTHING)], [rule(ALL, "git")]):
        access = Access(ANONYMOUS, rules)
        for right in Right:
            assert not access.allows(right, requests, "latest")
            assert not access.allows_name(right, requests[0])
    assert may_pull([rule(PULL, "a*64")], name)
    assert may_pull([rule(PULL)], name)


def test_the_first_rule_that_matches_decides() -> None:
    rules = [rule(NOTHING, "git"), rule(ALL)]
    assert not may_pull(rules, "git")
    assert may_pull(rules, "curl")
    assert may_pull(rules[::-1], "git")
    # A rule that allows something else forbids.
    assert not may_pull([rule(frozenset({Right.BUILD})), rule(ALL)], "git")


def test_every_package_of_an_image_has_to_be_allowed() -> None:
    rules = [rule(PULL, "git", "hello")]
    assert may_pull(rules, "git/hello")
    assert not may_pull(rules, "git/curl")
    assert not may_pull(rules, "shell/git")
    assert may_pull([rule(PULL, "git", "shell")], "shell/git")


@pytest.mark.parametrize(
    ("forbidden", "name"),
    [
        ("curl", "curl"),
        ("CURL", "curl"),
        ("curl", "library/curl"),
        ("curl", "arm64/curl"),
        ("curl", "curl/curl"),
        ("curl", "git/curl"),
        ("curl", "pkgs.curl"),
        ("curl", "pkgs.pkgs.curl"),
        ("cu*", "pkgs.curl"),
        # The same attribute, as it is and as image names have it.
        ("g++", "g__2b__2b"),
        ("g*+", "g__2b__2b"),
        ("g__2b__2b", "g__2b__2b"),
        ("g++", "pkgs.g__2b__2b"),
        ("@angular", "x__40angular"),
        ("a+", "x__61__2b"),
        ("_7zz", "7zz"),
        ("_7zz", "pkgs.7zz"),
        # Its outputs and other attributes.
        ("curl", "curl.dev"),
        ("curl", "curl.src"),
        ("g++", "g__2b__2b.out"),
    ],
)
def test_a_package_is_forbidden_under_each_of_its_names(forbidden: str, name: str) -> None:
    assert not may_pull([rule(NOTHING, forbidden), rule(ALL)], name)
    assert not Access(BOB, [rule(NOTHING, forbidden), rule(ALL)]).allows_package(
        Right.PULL, name.rpartition("/")[2]
    )


@pytest.mark.parametrize("name", ["curlie", "libcurl", "cur", "x-ray", "7zip"])
def test_other_packages_stay_allowed(name: str) -> None:
    assert may_pull([rule(NOTHING, "curl", "g++"), rule(ALL)], name)


def test_a_rule_that_forbids_everything_forbids_what_is_about_no_package() -> None:
    forbidden = rule(NOTHING, who="user:bob")
    everything = rule(ALL, who="authenticated")
    for right in Right:
        assert not Access(BOB, [forbidden, everything]).allows_anything(right)
        assert Access(BOB, [everything, forbidden]).allows_anything(right)
        # A rule about some images leaves others to later rules.
        for partial in (rule(NOTHING, "curl"), Rule(("everyone",), NOTHING, tags=("main",))):
            assert Access(BOB, [partial, everything]).allows_anything(right)


@pytest.mark.parametrize(
    ("pattern", "text", "is_match"),
    [
        ("a*", "a", True),
        ("*", "", True),
        ("a*b", "ab", True),
        ("a*b", "aba", False),
        ("*ab*ab", "abab", True),
        ("*ab*ab", "aab", False),
        ("*ab*b", "abb", True),
        ("a**c*e", "abcde", True),
        ("a*c*e", "acd\ne", True),
        ("aa*aa", "aaa", False),
        ("a.c", "abc", False),
        # With backtracking, each of these takes years.
        ("*a*a*a*a*a*a*a*a*b", "a" * 250, False),
        ("*-*-*-*-*-*-*-*x", "a-" * 120, False),
    ],
)
def test_patterns(pattern: str, text: str, is_match: bool) -> None:  # noqa: FBT001
    assert matches(pattern, text) is is_match


def test_threads_decide_for_one_identity_at_the_same_time() -> None:
    # Searches and pages run in threads, and all anonymous clients are one identity.
    access = Access(ANONYMOUS, [rule(PULL, "a*")])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def decide(_: int) -> int:
        # More names than are remembered.
        names = [f"{'ab'[number % 2]}{number}" for number in range(300)]
        return sum(access.allows_package(Right.PULL, name) for _ in range(60) for name in names)

    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(decide, range(4))) == [9000] * 4
    finally:
        sys.setswitchinterval(interval)


def test_an_escaped_name_is_allowed_by_its_attribute() -> None:
    assert may_pull([rule(PULL, "g++")], "g__2b__2b")
    assert not may_pull([rule(PULL, "g++")], "g__2b")


def test_patterns_are_no_regular_expressions() -> None:
    assert not may_pull([rule(PULL, "g.t")], "git")
    assert may_pull([rule(PULL, "python3*requests")], "python3-requests")
    assert not may_pull([rule(PULL, "git")], "gitfull")


def test_tags_and_platforms() -> None:
    rules = [Rule(("everyone",), PULL, ("*",), ("stable*",), ("linux/amd64",))]
    assert may_pull(rules, "git", "stable-1")
    assert not may_pull(rules, "git", "latest")
    assert not may_pull(rules, "arm64/git", "stable-1")
    both = requests_for("git", [AMD64, ARM64])
    assert not Access(BOB, rules).allows(Right.PULL, both, "stable-1")
    # The name may be shown: some tag can be pulled.
    assert Access(BOB, rules).allows_package(Right.PULL, "git")


@pytest.mark.parametrize(
    ("who", "identity", "is_meant"),
    [
        ("everyone", ANONYMOUS, True),
        ("anonymous", ANONYMOUS, True),
        ("authenticated", ANONYMOUS, False),
        ("user:*", ANONYMOUS, False),
        ("everyone", BOB, True),
        ("anonymous", BOB, False),
        ("authenticated", BOB, True),
        ("user:bob", BOB, True),
        ("user:bo", BOB, False),
        ("group:web", BOB, True),
        ("group:w", BOB, False),
        ("claim:ref=main", BOB, False),
        ("claim:ref=ma*", Identity(Kind.OIDC, "ci", claims={"ref": "main"}), True),
        ("claim:ref=main", Identity(Kind.OIDC, "ci", claims={"ref": "main2"}), False),
    ],
)
def test_who_is_meant(who: str, identity: Identity, is_meant: bool) -> None:  # noqa: FBT001
    assert may_pull([rule(PULL, who=check_term(who))], "git", identity=identity) is is_meant


@pytest.mark.parametrize("term", ["bob", "user:", "claim:ref", "claim:=x", "Everyone", ""])
def test_a_term_that_matches_nobody_is_a_mistake(term: str) -> None:
    with pytest.raises(ValueError, match=r"matches no identity|should be"):
        check_term(term)


def test_credentials_never_allow_more_than_rules_or_limits() -> None:
    limited = Identity(Kind.API_TOKEN, "bob", limits=Limits(PULL, ("git",)))
    assert may_pull([rule(ALL)], "git", identity=limited)
    assert not may_pull([rule(ALL)], "curl", identity=limited)
    assert not may_pull([rule(ALL, "curl")], "git", identity=limited)
    access = Access(limited, [rule(ALL)])
    assert not access.allows(Right.BUILD, requests_for("git", [AMD64]), "latest")
    assert not access.allows_package(Right.PULL, "curl")
    assert not access.allows_anything(Right.ADMIN)


def test_identities_that_differ_in_claims_or_limits_alone_have_their_own_rights() -> None:
    policy = Policy([rule(PULL, who="claim:ref=main")])
    main, other = (Identity(Kind.OIDC, "ci", claims={"ref": ref}) for ref in ("main", "other"))
    for identity, is_allowed in ((main, True), (other, False), (main, True)):
        assert policy.access(identity).allows_package(Right.PULL, "git") is is_allowed


@pytest.mark.parametrize(
    ("identity", "shows_denials", "expected"),
    [(ANONYMOUS, True, LoginRequired), (BOB, False, NotVisible), (BOB, True, AccessDenied)],
)
def test_the_error_of_a_missing_right(
    identity: Identity,
    shows_denials: bool,  # noqa: FBT001
    expected: type[NixeryError],
) -> None:
    access = Access(identity, [], shows_denials=shows_denials)
    with pytest.raises(expected):
        access.require(Right.PULL, requests_for("git", [AMD64]), "git", "latest")


@pytest.mark.parametrize("is_nested", [False, True])
def test_errors_suggest_no_hidden_names(is_nested: bool) -> None:  # noqa: FBT001
    missing = UnavailablePackage("gitt", Reason.MISSING, near_names=("git", "secret"))
    error: NixeryError = PackagesUnavailable((missing,))
    if is_nested:
        error = PlatformFailed("linux/arm64", error)
    said = str(Access(BOB, [rule(PULL, "git")]).without_hidden(error))
    assert "git" in said
    assert "secret" not in said


def test_rights_end_with_their_policy() -> None:
    policy = Policy([rule(PULL)])
    access = policy.access(BOB)
    before = access.is_in_force
    policy.is_in_force = False
    assert (before, access.is_in_force, Access(BOB, None).is_in_force) == (True, False, True)
