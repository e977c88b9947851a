import re
from collections.abc import Iterator

import pytest

from nixery import errors
from nixery.errors import (
    BuildFailed,
    NixeryError,
    PackagesUnavailable,
    Reason,
    TooBusy,
    UnavailablePackage,
    UnsafeContents,
)


def tree(root: type[NixeryError]) -> Iterator[type[NixeryError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def test_the_tree_of_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn = re.findall(r"^    ([│ ]*)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE)
    parents: list[str] = ["NixeryError"]
    found = set()
    for indent, name in drawn:
        depth = len(indent) // 4 + 1
        parents[depth:] = [name]
        found.add((parents[depth - 1], name))
    children = {child for child in tree(NixeryError) if child is not NixeryError}
    assert found == {(child.__base__.__name__, child.__name__) for child in children if child.__base__}
    assert len(drawn) == len(children)


@pytest.mark.parametrize("log", [(), ("",), ("error: no space left on device",)])
def test_a_failed_build_does_not_repeat_its_reason(log: tuple[str, ...]) -> None:
    error = BuildFailed(None, log, "error: no space left on device")
    assert str(error) == "Nix could not build the packages: error: no space left on device"


def test_a_file_name_is_escaped_and_shortened() -> None:
    error = UnsafeContents(b"/bin/\x1b[31m\n\xe2\x80\xae\xff" + b"d/" * 2000, "too deep")
    assert error.file.startswith(r"/bin/\x1b[31m\n\u202e" "\ufffdd/d/")
    assert (len(error.file), error.file[-1]) == (300, "…")
    assert str(error) == f"{error.file} cannot be in an image: too deep"


def test_the_length_of_a_message_is_bounded() -> None:
    packages = tuple(UnavailablePackage("x" * 255, Reason.THROWS, "y" * 2000) for _ in range(100))
    assert len(str(PackagesUnavailable(packages))) == 16_001


def test_an_error_without_frames_is_equal_and_has_no_traceback() -> None:
    with pytest.raises(TooBusy) as caught:
        raise TooBusy(1, 4, 10, TooBusy.LISTINGS)
    error = caught.value
    error.build = "0123"
    copy = error.without_frames()
    assert (type(copy), str(copy), copy.retry_after, copy.build) == (TooBusy, str(error), 10, "0123")
    assert copy.__traceback__ is None
    assert error.__traceback__ is not None


def test_the_error_of_a_busy_server_has_the_limit_and_the_retry_time() -> None:
    assert str(TooBusy(2, 7, 10)) == (
        "the server is busy: it runs 2 builds at once (NIXERY_MAX_BUILDS), and 7 more are queued (NIXERY_MAX_QUEUED); "
        "retry in 10 seconds"
    )


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            ("cc -c a.c", "a.c:1:5: error: no semicolon", "make: *** [all] Error 2"),
            "; its log has: a.c:1:5: error: no semicolon",
        ),
        (("error[E0425]: unknown", "aborting"), "; its log has: error[E0425]: unknown"),
        (("no errors", "make: *** [all] Error 2", " "), "; its log ends with: make: *** [all] Error 2"),
        ((), "; it wrote nothing"),
    ],
)
def test_the_message_of_a_failed_builder_has_the_telling_line(log: tuple[str, ...], reason: str) -> None:
    error = BuildFailed(f"{'0' * 32}-a-1.drv", log, "builder failed with exit code 2")
    assert str(error) == f"building a-1 failed: builder failed with exit code 2{reason}"


def test_the_message_of_a_failed_dependency_names_what_needs_it() -> None:
    error = BuildFailed("a.drv", (), "builder failed with exit code 2", needed_by="app")
    assert str(error).startswith("building a, which app needs, failed: builder failed")
