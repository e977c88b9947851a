import json
from collections.abc import Iterator

import pytest

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
from nixery.server.registry.errors import STATUS_AND_CODE, error_response


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
