"""Messages of nixpkgs' ``check-meta.nix``, of several years."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nixery.errors import Reason
from nixery.nix.error_message import NixMessage
from nixery.nix.refusals import Refusal

OLD = "error: Package \u2018unrar-5.5.8\u2019 in /srv/my set/pkgs/unrar/default.nix:39 {}, refusing to evaluate."
NEW = "error: Refusing to evaluate package 'unrar-5.5.8' in /nix/store/x-source/pkgs/unrar/package.nix:39 because it {}"
UNFREE = "has an unfree license (\u2018unfreeRedistributable\u2019)"


def parsed(line: str, *more: str) -> Refusal:
    found = Refusal.parse(NixMessage.parse([line, *more]))
    assert found is not None
    return found


@pytest.mark.parametrize("form", [OLD, NEW])
@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (UNFREE, Reason.UNFREE),
        ("is marked as broken", Reason.BROKEN),
        ("is marked as insecure", Reason.INSECURE),
        ("is not supported on \u2018x86_64-unknown-linux-gnu\u2019", Reason.WRONG_PLATFORM),
        ("is not available on the requested hostPlatform:", Reason.WRONG_PLATFORM),
    ],
)
def test_nixpkgs_reasons_are_read(form: str, why: str, reason: Reason) -> None:
    found = parsed(form.format(why))
    assert (found.reason, found.name, found.pname) == (reason, "unrar-5.5.8", "unrar")


@pytest.mark.parametrize(
    "message",
    [
        "it is gone",
        "Package \u2018x\u2019 is gone",
        "Package \u2018x\u2019 in y has a blacklisted license, refusing to evaluate",
    ],
)
def test_other_messages_are_no_refusal(message: str) -> None:
    assert Refusal.parse(NixMessage.parse([f"error: {message}"])) is None


def test_a_message_of_megabytes_is_read_in_part() -> None:
    line = "error: Package \u2018x\u2019 in y" + " is z" * 500_000
    assert Refusal.parse(NixMessage.parse([line])) is None


def test_known_issues_are_listed_within_bounds() -> None:
    issues = [f"        - CVE-{number} \x1b[31m{'x' * 500}" for number in range(8)]
    found = parsed(OLD.format("is marked as insecure"), "", "", "Known issues:", *issues, "", "a) advice")
    shown = replace(found, configurable=True).explanation("unrar-5.5.8")
    assert shown.startswith("CVE-0 x")
    assert " and 3 more; the operator of this server can allow it with " in shown
    assert "\x1b" not in shown
    assert len(shown) < 1000


def test_a_package_is_described_by_its_meta_data_and_a_dependency_by_the_message() -> None:
    known = Refusal(Reason.UNFREE, "unrar-5.5.8", "unrar-free", ("a", "b"), configurable=True)
    found = parsed(OLD.format(UNFREE))
    assert found.found_in(known).explanation("unrar-5.5.8").startswith("licence a, b; the operator")
    other = Refusal(Reason.THROWS, "archiver-1", "archiver", ("free",), configurable=True)
    assert found.found_in(other).explanation("archiver-1") == (
        "it needs unrar-5.5.8, licence unfreeRedistributable; the operator of this server can allow it with "
        'NIXERY_NIXPKGS_CONFIG=\'{"allowUnfreePredicate": ["unrar"]}\''
    )


@pytest.mark.parametrize("name", ["a' b", "a\nb", "a;b", 'a"', "$(x)", "\u202eabc", ""])
def test_advice_holds_no_name_that_a_shell_would_interpret(name: str) -> None:
    unfree = Refusal(Reason.UNFREE, "x-1", name, configurable=True).explanation("x-1")
    assert unfree.endswith("can allow unfree packages with NIXERY_NIXPKGS_CONFIG='{\"allowUnfree\": true}'")
    insecure = Refusal(Reason.INSECURE, name, "x", configurable=True).explanation(name)
    assert "NIXERY_NIXPKGS_CONFIG" not in insecure
