"""The parser of Contents indexes and of the Release files that list them, with hostile input as well."""

from collections.abc import Iterator

import pytest
from locking import contents
from locking.contents import MOST_PROGRAMS, ListedFile, parse_contents, parse_release
from locking.errors import LockError


def test_programs_of_each_package() -> None:
    text = (
        b"bin/bash                                                shells/bash\n"
        b"sbin/ip\tnet/iproute2\n"
        b"usr/bin/[                                               utils/coreutils\n"
        b"usr/bin/g++-12                                          non-free/devel/g++-12\n"
        b"usr/games/sl                                            games/sl\n"
        b"usr/lib/jq/bin/helper                                   utils/jq\n"
        b"usr/sbin/sendmail                                       mail/exim4-daemon-light,mail/postfix\n"
        b"usr/share/bin/jq                                        utils/jq\n"
    )
    assert parse_contents([text]) == {
        "bash": ["bash"],
        "coreutils": ["["],
        "exim4-daemon-light": ["sendmail"],
        "g++-12": ["g++-12"],
        "iproute2": ["ip"],
        "postfix": ["sendmail"],
        "sl": ["sl"],
    }


def test_programs_that_the_builder_links_into_bin() -> None:
    text = (
        b"usr/lib/jvm/java-17-openjdk-amd64/bin/java              java/openjdk-17-jre-headless\n"
        b"usr/lib/postgresql/15/bin/psql                          database/postgresql-client-15\n"
        b"usr/lib/postgresql/15/bin/partman.py                    database/postgresql-15-partman\n"
    )
    assert parse_contents([text]) == {
        "openjdk-17-jre-headless": ["java"],
        "postgresql-client-15": ["psql"],
    }


@pytest.mark.parametrize(
    "line",
    [
        b"usr/bin/tool",
        b"usr/bin/tool ",
        b"usr/bin/ utils/other",
        b"usr/bin/.. utils/other",
        b"usr/bin/. utils/other",
        b"usr/bin/../../etc/passwd utils/other",
        b"usr/bin/mh/ali mail/nmh",
        b"./usr/bin/tool utils/other",
        b"/usr/bin/tool utils/other",
        b"usr/bin/two words utils/other",
        b"usr/bin/\x1b[31mred utils/other",
        b"usr/bin/nul\0 utils/other",
        b"usr/bin/caf\xc3\xa9 utils/other",
        b"usr/bin/latin\xe9 utils/other",
        b"usr/bin/" + b"a" * 65 + b" utils/other",
        b"usr/bin/tool utils/..",
        b"usr/bin/tool utils/",
        b"usr/bin/tool utils/Other",
        b"usr/bin/tool utils/\x1b[31m",
        b"usr/bin/tool utils/" + b"o" * 200,
        b"usr/bin/tool utils/other\r",
        b"usr/bin/tool " + b"utils/other," * 10_000,
    ],
)
def test_a_line_in_another_form_is_left_out_alone(line: bytes) -> None:
    text = b"bin/first utils/first\n" + line + b"\nusr/sbin/last utils/last\n"
    found = parse_contents([text])
    assert found.pop("first") == ["first"]
    assert found.pop("last") == ["last"]
    assert all(name == "other" and programs == ["tool"] for name, programs in found.items())


def test_the_longest_name_that_is_kept() -> None:
    assert parse_contents([b"usr/bin/" + b"a" * 64 + b" utils/a\n"]) == {"a": ["a" * 64]}


@pytest.mark.parametrize("size", [1, 7, 64])
def test_lines_are_found_wherever_the_chunks_end(size: int) -> None:
    text = b"bin/bash shells/bash\nusr/bin/jq utils/jq\nusr/sbin/sshd net/openssh-server"
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    assert parse_contents(chunks) == {"bash": ["bash"], "jq": ["jq"], "openssh-server": ["sshd"]}


def test_a_line_without_an_end_is_not_kept_in_memory() -> None:
    longest = 0

    def endless() -> Iterator[bytes]:
        yield b"usr/bin/first utils/first\nusr/bin/"
        for _ in range(1_000):
            yield b"x" * 65_536
        yield b" utils/endless\nusr/bin/last utils/last\nusr/bin/"
        yield b"y" * 100_000

    for block in contents._blocks(endless()):
        longest = max(longest, len(block))
    assert longest <= 3 * 65_536
    assert parse_contents(endless()) == {"first": ["first"], "last": ["last"]}


def test_each_package_has_the_first_of_its_many_programs() -> None:
    text = b"".join(b"usr/bin/p%04d utils/many,utils/many\n" % number for number in reversed(range(1_000)))
    assert parse_contents([text]) == {"many": [f"p{number:04}" for number in range(MOST_PROGRAMS)]}


def test_an_index_with_too_many_programs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_MOST_NAMES", 10)
    text = b"".join(b"usr/bin/p%d utils/p%d\n" % (number, number) for number in range(11))
    with pytest.raises(LockError, match="more than 10 programs"):
        parse_contents([text])


def test_the_text_before_the_programs_is_no_program() -> None:
    text = (
        b"This file maps each file available in Debian\n\nFILE                LOCATION\nbin/sh shells/dash\n"
    )
    assert parse_contents([text]) == {"dash": ["sh"]}


DIGEST = "0123456789abcdef" * 4


def test_release_files_list_hashes_and_sizes() -> None:
    text = (
        "Origin: Debian\nMD5Sum:\n 0123 7 main/Contents-amd64.gz\nSHA256:\n"
        f" {DIGEST}  34017224 main/Contents-all.gz\n {DIGEST} 20 main/x\nValid: no\n {DIGEST} 1 main/later\n"
    )
    assert parse_release(text) == {
        "main/Contents-all.gz": ListedFile(DIGEST, 34_017_224),
        "main/x": ListedFile(DIGEST, 20),
    }


def test_only_the_signed_part_of_a_release_file_counts() -> None:
    text = f"Origin: x\n-----BEGIN PGP SIGNATURE-----\nSHA256:\n {DIGEST} 1 main/Contents-all.gz\n"
    assert parse_release(text) == {}


@pytest.mark.parametrize(
    "line", ["", " 0123 1 main/x", f" {DIGEST} -1 main/x", f" {DIGEST} {'9' * 16} main/x"]
)
def test_a_malformed_release_file_lists_nothing(line: str) -> None:
    assert parse_release(f"Origin: x\nSHA256:\n{line}\n") == {}
