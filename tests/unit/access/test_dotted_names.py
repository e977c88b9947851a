"""Rules for packages also decide about the same packages under dotted names, such as ``pkgs.curl``."""

from __future__ import annotations

import pytest

from nixery.access.identity import ANONYMOUS, Right
from nixery.access.policy import Policy, Rule


def rule(*packages: str, may: bool) -> Rule:
    return Rule(("everyone",), frozenset({Right.PULL} if may else ()), packages)


@pytest.mark.parametrize(
    ("rules", "name", "allowed"),
    [
        # A rule that denies a name denies it under every path.
        ((rule("curl", may=False), rule("*", may=True)), "pkgs.curl", False),
        ((rule("curl", may=False), rule("*", may=True)), "a.pkgs.curl", False),
        ((rule("curl", may=False), rule("*", may=True)), "pkgs.curlie", True),
        ((rule("curl", may=False), rule("*", may=True)), "PKGS.CURL", False),
        ((rule("pkgs.*", may=True), rule("curl", may=False)), "pkgs.curl", False),
        # A rule that allows a name allows it under no other path.
        ((rule("curl", may=True),), "pkgs.curl", False),
        ((rule("curl", "*.curl", may=True),), "pkgs.curl", True),
        # The rule for all names, which denies here, names no package.
        ((rule("pkgs.*", may=True), rule("*", may=False)), "pkgs.curl", True),
        # An output, or another attribute of a package, is a part of it.
        ((rule("curl", may=False), rule("*", may=True)), "curl.out", False),
        ((rule("curl", may=False), rule("*", may=True)), "curl.passthru.tests", False),
        ((rule("curl", may=False), rule("*", may=True)), "pkgs.curl.dev", False),
        ((rule("pkgs.*", may=True), rule("curl", may=False)), "pkgs.curl.dev", False),
        ((rule("_7zz", may=False), rule("*", may=True)), "7zz.doc", False),
        ((rule("pkgs.curl", may=False), rule("*", may=True)), "a.pkgs.curl.dev", False),
        ((rule("curl", may=False), rule("*", may=True)), "curlie.out", True),
        # A rule before it decides about a part by name.
        ((rule("curl.dev", may=True), rule("curl", may=False)), "curl.dev", True),
        # Names of packages, though a rule denies no name that deep.
        ((rule("*", may=True),), ".".join("a" * 15), True),
        ((rule("*", may=True),), ".".join("a" * 16), False),
    ],
)
def test_a_package_under_a_dotted_name(rules: tuple[Rule, ...], name: str, *, allowed: bool) -> None:
    assert Policy(rules).access(ANONYMOUS).allows_package(Right.PULL, name) is allowed
