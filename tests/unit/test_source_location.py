import pytest

from nixery.source_location import SourceLocation, redacted


@pytest.mark.parametrize(
    ("url", "address", "published"),
    [
        ("https://example.org/set.git", "https://example.org/set.git", True),
        ("https://token@example.org/@scope/set", "https://example.org/@scope/set", False),
        ("https://user:p@ss@example.org/set.git", "https://example.org/set.git", False),
        ("ssh://git@example.org/set", "ssh://git@example.org/set", True),
        ("ssh://git:secret@example.org/set", "ssh://git@example.org/set", True),
        ("git@example.org:team/set.git", "git@example.org:team/set.git", True),
        ("file:///srv/set", "file:///srv/set", False),
        ("/srv/set", "/srv/set", False),
        ("/srv/a@b:c/set", "/srv/a@b:c/set", False),
        ("https://example.org/{rev}.tar.gz?private_token=secret", None, False),
    ],
)
def test_urls_are_parsed_without_their_secrets(url: str, address: str | None, published: bool) -> None:  # noqa: FBT001 -- a parameter
    location = SourceLocation.parse(url)
    assert location.address == (address or url)
    assert location.published == (location.address if published else None)
    assert "secret" not in location.shown + location.identity + location.name + repr(location.public)
    assert location.name == "the package source"


def test_a_public_source_is_named_without_its_secrets() -> None:
    location = SourceLocation.parse("https://user:secret@example.org/set?private_token=hidden", public=True)
    assert location.name == location.published == "https://example.org/set?…"
    assert SourceLocation.parse("file:///srv/set", public=True).published is None
    assert SourceLocation.parse("https://example.org/set", public=False).published is None


def test_credentials_are_decoded_for_git() -> None:
    location = SourceLocation.parse("https://a%40b:p%3Aq%2F@example.org/set")
    assert (location.username, location.password) == ("a@b", "p:q/")
    assert SourceLocation.parse("https://token@example.org/set").password is None
    assert SourceLocation.parse("https://example.org/set").username is None


def test_sources_with_different_queries_have_different_identities() -> None:
    one, other = (
        SourceLocation.parse(f"https://example.org/{{rev}}?set={name}") for name in ("one", "other")
    )
    assert one.identity != other.identity
    assert SourceLocation.parse("https://example.org/{rev}").identity == "https://example.org/{rev}"


SECRET = "s3cr+t/e"  # noqa: S105 -- made up
USER = "https://user:s3cr%2Bt%2Fe@example.org/set"


@pytest.mark.parametrize(
    "said",
    [
        f"unable to access '{USER}/': 401",
        "unable to access https://user:s3cr%2bt%2fe@example.org/set",
        "https%3A%2F%2Fuser%3As3cr%2Bt%2Fe%40example.org",
        "Authorization: Basic dXNlcjpzM2NyK3QvZQ==",
        f"the password {SECRET} is wrong",
        "could not resolve user:s3cr+t/e",
    ],
)
def test_secrets_are_removed_in_every_form(said: str) -> None:
    told = SourceLocation.parse(USER).redact(said)
    assert not any(form in told for form in (SECRET, "s3cr%2Bt%2Fe", "s3cr%2bt%2fe", "dXNlcjpzM2NyK3QvZQ"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://a:b@h/x?t=1#f, please", "see https://h/x?… please"),
        ("git+https://t@h/x?ref=1", "git+https://h/x?…"),
        ("ssh://git:p@h/x and git+ssh://git@h/y", "ssh://git@h/x and git+ssh://git@h/y"),
        ("github:a/b?dir=x", "github:a/b?…"),
        ("error: is it there? yes", "error: is it there? yes"),
        ("'http://h/x?token=a'", "'http://h/x?…'"),
        ("http://user:pa ss@h", "http://user:pa ss@h"),
    ],
)
def test_urls_in_any_text_are_redacted(text: str, expected: str) -> None:
    assert redacted(text) == expected
