import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery.errors import (
    ApiTokenRefused,
    BuildError,
    BuildFailed,
    CollectionRunning,
    NixError,
    NixeryError,
    OperatorError,
    PackageSetError,
    PackagesUnavailable,
    PlatformFailed,
    PushFailed,
    QuotaExceeded,
    Reason,
    RequestError,
    SettingsError,
    ShuttingDown,
    SourceUnreachable,
    StorageError,
    TagUnknown,
    TooBusy,
    TooManyFailedLogins,
    Unavailable,
    UnavailablePackage,
    UnsafeContents,
)
from nixery.plain_text import escaped
from nixery.server.errors import (
    STATUS_AND_CODE,
    error_response,
    errors_body,
    heading,
    retry_headers,
    status_and_code,
)


def tree(root: type[NixeryError]) -> Iterator[type[NixeryError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def test_every_error_that_a_request_can_end_with_has_a_row() -> None:
    """A new error needs a row, or an exception here for an error that no request ends with."""
    groups = {RequestError, BuildError, PackageSetError, NixError, OperatorError, Unavailable}
    never_in_requests = {SettingsError, PushFailed, CollectionRunning, ApiTokenRefused}
    # The row of its base.
    without = groups | never_in_requests | {PlatformFailed, TooManyFailedLogins}
    assert set(tree(NixeryError)) == set(STATUS_AND_CODE) | without
    assert not set(STATUS_AND_CODE) & without


def test_an_error_without_a_row_has_the_row_of_its_base() -> None:
    assert status_and_code(CollectionRunning()) == status_and_code(StorageError("no")) == (500, "UNKNOWN")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PackagesUnavailable(()), (404, "MANIFEST_UNKNOWN")),
        (SourceUnreachable("no route to host"), (503, "UNKNOWN")),
        (TooBusy(1, 4, 10), (429, "TOOMANYREQUESTS")),
        (QuotaExceeded(QuotaExceeded.BUILDS, 10, 360), (429, "TOOMANYREQUESTS")),
    ],
)
def test_an_error_of_one_platform_is_answered_as_its_cause(
    error: NixeryError, expected: tuple[int, str]
) -> None:
    failed = PlatformFailed("linux/arm64", error)
    assert status_and_code(failed) == expected
    assert heading(failed) == heading(error)
    assert error_response(failed).headers.get("Retry-After") == retry_headers(error).get("Retry-After")
    (entry,) = json.loads(error_response(failed).content)["errors"]
    assert entry["message"].startswith("linux/arm64: ")


def test_all_unavailable_packages_are_named() -> None:
    error = PackagesUnavailable(
        (
            UnavailablePackage("htpo", Reason.MISSING, near_names=("htop",)),
            UnavailablePackage("old", Reason.THROWS, "old was removed"),
        )
    )
    response = error_response(error)
    (entry,) = json.loads(response.content)["errors"]
    assert (response.status, entry["code"]) == (404, "MANIFEST_UNKNOWN")
    assert "htpo (missing; did you mean htop?)" in entry["message"]
    assert "old (does not evaluate: old was removed)" in entry["message"]
    assert [package["name"] for package in entry["detail"]["packages"]] == ["htpo", "old"]


def test_a_failed_build_shows_its_log() -> None:
    response = error_response(BuildFailed("x.drv", ("line 1", "line 2", ""), "exit code 1."))
    (entry,) = json.loads(response.content)["errors"]
    # Clients show the message of a 4xx, that of a 5xx they do not; they ask again for what is UNKNOWN.
    assert (response.status, entry["code"]) == (422, "MANIFEST_UNKNOWN")
    assert entry["message"] == "building x failed: exit code 1; its log ends with: line 2"
    assert entry["detail"] == {"derivation": "x.drv", "log": ["line 1", "line 2", ""]}


def test_a_stopping_server_says_when_to_retry() -> None:
    # Clients that show no message of a 5xx, and do not retry one, do both with a 429.
    response = error_response(ShuttingDown())
    assert (response.status, response.headers["Retry-After"]) == (429, "10")


def test_the_name_of_a_forbidden_file_is_escaped_and_shortened() -> None:
    response = error_response(
        UnsafeContents(b"/nix/store/x/\x1b[31m\xe2\x80\xae\xff" + b"d/" * 2000, "too deep")
    )
    (entry,) = json.loads(response.content)["errors"]
    assert (response.status, entry["code"]) == (422, "MANIFEST_UNKNOWN")
    assert entry["message"].startswith(r"/nix/store/x/\x1b[31m\u202e" "\ufffdd/d/")
    assert entry["message"].endswith("… cannot be in an image: too deep")
    assert len(entry["message"]) < 400


def test_the_error_of_a_build_links_to_its_log() -> None:
    failed, missing = BuildFailed("x.drv", ("line",), "exit code 1"), TagUnknown("x", "no")
    failed.build = missing.build = "0123"
    message = json.loads(error_response(failed, "http://registry.example").content)["errors"][0]["message"]
    assert message.endswith("; its log: http://registry.example/builds/0123")
    for response in (error_response(missing, "http://registry.example"), error_response(failed)):
        assert "/builds/" not in json.loads(response.content)["errors"][0]["message"]


@given(st.text(), st.text(), st.text())
def test_untrusted_text_is_one_line_of_visible_characters(name: str, untrusted: str, client: str) -> None:
    bodies = [
        error_response(PackagesUnavailable((UnavailablePackage(name, Reason.THROWS, untrusted, (client,)),))),
        error_response(BuildFailed(name, (untrusted, client), untrusted)),
        errors_body(404, "UNSUPPORTED", client, {name: [untrusted]}),
    ]
    for response in bodies:
        (entry,) = json.loads(response.content)["errors"]
        texts = [entry["message"], json.dumps(entry["detail"], ensure_ascii=False)]
        assert [escaped(text) for text in texts] == texts


def test_the_length_of_a_message_is_bounded() -> None:
    packages = tuple(UnavailablePackage("x" * 255, Reason.THROWS, "y" * 2000) for _ in range(100))
    error = PackagesUnavailable(packages)
    assert len(str(error)) <= 16_001
    assert str(error).startswith("packages not available: xxx")
    (entry,) = json.loads(errors_body(404, "UNSUPPORTED", "/" * 65_000).content)["errors"]
    assert len(entry["message"]) <= 17_000
