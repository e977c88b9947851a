import pytest

from nixery.sources.location import public_url, without_credentials


@pytest.mark.parametrize(
    ("url", "shown", "public"),
    [
        ("https://example.org/set.git", "https://example.org/set.git", True),
        ("https://user:secret@example.org/set.git", "https://example.org/set.git", True),
        ("https://user:p@ss@example.org/set.git", "https://example.org/set.git", True),
        ("https://token@example.org/@scope/set", "https://example.org/@scope/set", True),
        ("git+https://user:p@example.org/set?ref=x", "git+https://example.org/set?ref=x", True),
        ("ssh://git@example.org/set", "ssh://git@example.org/set", True),
        ("git@example.org:team/set.git", "git@example.org:team/set.git", True),
        ("file:///srv/set", "file:///srv/set", False),
        ("/srv/set", "/srv/set", False),
        ("/srv/a@b:c/set", "/srv/a@b:c/set", False),
    ],
)
def test_urls(url: str, shown: str, public: bool) -> None:  # noqa: FBT001 -- pytest's parameters
    assert without_credentials(url) == shown
    assert public_url(url) == (shown if public else None)
