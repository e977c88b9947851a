import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery.errors import (
    BuildFailed,
    NixeryError,
    PackagesUnavailable,
    Reason,
    ShuttingDown,
    TagUnknown,
    UnavailablePackage,
    UnsafeContents,
)
from nixery.plain_text import escaped
from nixery.server.errors import STATUS_AND_CODE, error_response, errors_body


def tree(root: type[NixeryError]) -> Iterator[type[NixeryError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def test_every_error_has_a_row() -> None:
    assert set(tree(NixeryError)) == set(STATUS_AND_CODE)


def test_all_missing_packages_are_named() -> None:
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
    assert entry["message"] == "building x.drv failed: exit code 1; its log ends with: line 2"
    assert entry["detail"] == {"derivation": "x.drv", "log": ["line 1", "line 2", ""]}


@pytest.mark.parametrize("log", [(), ("",), ("error: no space left on device",)])
def test_a_failed_build_says_nothing_twice(log: tuple[str, ...]) -> None:
    error = BuildFailed(None, log, "error: no space left on device")
    assert str(error) == "Nix could not build the packages: error: no space left on device"


def test_a_server_that_stops_says_when_to_come_back() -> None:
    response = error_response(ShuttingDown())
    assert (response.status, response.headers["Retry-After"]) == (503, "5")


def test_a_file_that_no_image_may_have_is_named_for_a_terminal() -> None:
    response = error_response(
        UnsafeContents(b"/nix/store/x/\x1b[31m\xe2\x80\xae\xff" + b"d/" * 2000, "too deep")
    )
    (entry,) = json.loads(response.content)["errors"]
    assert (response.status, entry["code"]) == (422, "MANIFEST_UNKNOWN")
    assert entry["message"].startswith("/nix/store/x/\ufffd[31m\ufffd\ufffdd/d/")
    assert entry["message"].endswith("… cannot be in an image: too deep")
    assert len(entry["message"]) < 400


def test_what_has_a_log_leads_to_it() -> None:
    failed, missing = BuildFailed("x.drv", ("line",), "exit code 1"), TagUnknown("x", "no")
    failed.build = missing.build = "0123"
    message = json.loads(error_response(failed, "http://registry.example").content)["errors"][0]["message"]
    assert message.endswith("; its log: http://registry.example/builds/0123")
    for response in (error_response(missing, "http://registry.example"), error_response(failed)):
        assert "/builds/" not in json.loads(response.content)["errors"][0]["message"]


@given(st.text(), st.text(), st.text())
def test_no_text_of_anybody_is_more_than_one_line_of_visible_characters(
    name: str, told: str, client: str
) -> None:
    bodies = [
        error_response(PackagesUnavailable((UnavailablePackage(name, Reason.THROWS, told, (client,)),))),
        error_response(BuildFailed(name, (told, client), told)),
        errors_body(404, "UNSUPPORTED", client, {name: [told]}),
    ]
    for response in bodies:
        (entry,) = json.loads(response.content)["errors"]
        texts = [entry["message"], json.dumps(entry["detail"], ensure_ascii=False)]
        assert [escaped(text) for text in texts] == texts


def test_a_message_is_bounded_whatever_it_is_made_of() -> None:
    packages = tuple(UnavailablePackage("x" * 255, Reason.THROWS, "y" * 2000) for _ in range(100))
    error = PackagesUnavailable(packages)
    assert len(str(error)) <= 16_001
    assert str(error).startswith("packages not available: xxx")
    (entry,) = json.loads(errors_body(404, "UNSUPPORTED", "/" * 65_000).content)["errors"]
    assert len(entry["message"]) <= 17_000
