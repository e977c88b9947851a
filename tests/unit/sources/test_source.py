import pytest

from nixery.errors import TagUnknown
from nixery.sources.source import CommitRule


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("reachable", ("*",)),
        ("any", None),
        ("none", ()),
        ("main", ("main",)),
        (" main , release-* ", ("main", "release-*")),
    ],
)
def test_commit_rules_are_parsed(text: str, patterns: tuple[str, ...] | None) -> None:
    assert CommitRule.parse(text).patterns == patterns


@pytest.mark.parametrize("text", ["", ",", "main,any", "none,reachable", "a b", "x^{}", "a:b", "refs\nx"])
def test_malformed_commit_rules_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="reachable, any, none"):
        CommitRule.parse(text)


def test_patterns_admit_branches() -> None:
    rule = CommitRule.parse("main,release-*")
    assert [name for name in ("main", "main2", "release-1", "xrelease-1") if rule.admits(name)] == [
        "main",
        "release-1",
    ]


def test_the_refusal_names_the_setting() -> None:
    rule = CommitRule.parse("main")
    assert "not an ancestor of a branch or tag of this package source (NIXERY_COMMITS=main)" in str(
        rule.refusal("f" * 40)
    )
    with pytest.raises(TagUnknown, match="NIXERY_COMMITS=none"):
        CommitRule.parse("none").require_commits("f" * 40)


def test_each_rule_has_its_own_identity() -> None:
    rules = [CommitRule.parse(text) for text in ("reachable", "any", "main", "main,next")]
    assert len({rule.identity for rule in [*rules, rules[0].within(["nixos-*"])]}) == 5
