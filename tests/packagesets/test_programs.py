"""Programs of an archive that the machine's own apt reads, from the Release file to `meta.programs`."""

import gzip
import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from locking import programs as reading
from locking.apt import Apt, native_architecture
from locking.index import Package
from locking.programs import read_programs
from locking.records import add_programs, make_records
from locking.writing import is_current, write_lock

SET = Path(__file__).resolve().parents[2] / "packagesets/debian"


class Archive:
    """An archive of Debian packages on loopback; `requested` has the paths of all requests."""

    def __init__(self, architecture: str, contents: dict[str, str]) -> None:
        self.requested: list[str] = []
        self.files: dict[str, bytes] = {"main/binary-" + architecture + "/Packages": b""}
        for name, text in contents.items():
            self.files[f"main/Contents-{name}.gz"] = gzip.compress(text.encode(), mtime=0)
        listed = "".join(
            f" {hashlib.sha256(content).hexdigest()} {len(content)} {name}\n"
            for name, content in self.files.items()
        )
        self.files["Release"] = (
            f"Suite: test\nCodename: test\nArchitectures: {architecture} all\nComponents: main\n"
            f"No-Support-for-Architecture-all: Packages\nSHA256:\n{listed}"
        ).encode()
        archive = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                archive.requested.append(self.path)
                content = archive.files.get(self.path.removeprefix("/dists/test/"))
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                # apt ends the connection when a file is larger than it should be.
                with suppress(ConnectionError):
                    self.wfile.write(content or b"")

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def apt(self, directory: Path, architecture: str) -> Apt:
        """apt with this archive as its only source; it has fetched the Release file."""
        for name in ("state", "lists/partial", "cache/archives/partial", "etc"):
            (directory / name).mkdir(parents=True)
        (directory / "etc/sources.list").write_text(
            f"deb [trusted=yes] http://127.0.0.1:{self.server.server_port}/ test main\n"
        )
        configuration = directory / "apt.conf"
        configuration.write_text(
            f'Dir::Etc "{directory}/etc";\nDir::State "{directory}/state";\n'
            f'Dir::State::lists "{directory}/lists";\nDir::State::status "/dev/null";\n'
            f'Dir::Cache "{directory}/cache";\nAPT::Architecture "{architecture}";\n'
            f'APT::Sandbox::User "root";\nAcquire::http::Proxy "DIRECT";\nAcquire::Languages "none";\n'
        )
        apt = Apt(architecture, directory / "lists", ("-c", str(configuration)))
        subprocess.run(["apt-get", *apt.options, "-qq", "update"], check=True)
        self.requested.clear()
        return apt


@pytest.fixture
def architecture() -> str:
    return native_architecture()


@pytest.fixture
def archive(architecture: str) -> Iterator[Archive]:
    archive = Archive(
        architecture,
        {
            architecture: "usr/bin/jq utils/jq\nusr/bin/onig utils/jq\n",
            "all": "usr/bin/psql database/postgresql-client-common,utils/jq\n",
        },
    )
    thread = threading.Thread(target=archive.server.serve_forever)
    thread.start()
    yield archive
    archive.server.shutdown()
    thread.join()
    archive.server.server_close()


def test_a_pin_makes_the_lock_out_of_date(archive: Archive, architecture: str, tmp_path: Path) -> None:
    apt = archive.apt(tmp_path / "apt", architecture)
    before = apt.fingerprint()
    assert apt.fingerprint() == before
    (tmp_path / "apt/etc/preferences").write_text("Package: jq\nPin: version 1.0\nPin-Priority: 1001\n")
    pinned = apt.fingerprint()
    assert pinned != before
    (tmp_path / "apt/etc/preferences.d").mkdir()
    (tmp_path / "apt/etc/preferences.d/acme").write_text("Package: *\nPin: release n=sid\nPin-Priority: 50\n")
    assert apt.fingerprint() not in (before, pinned)


def test_programs_come_from_all_indexes_and_each_is_fetched_once(
    archive: Archive, architecture: str, tmp_path: Path
) -> None:
    apt = archive.apt(tmp_path / "apt", architecture)
    first = read_programs(apt, tmp_path / "contents")
    assert first.failure is None
    assert first.names == {"jq": ["jq", "onig", "psql"], "postgresql-client-common": ["psql"]}
    assert len(archive.requested) == 2
    assert read_programs(apt, tmp_path / "contents") == first
    assert len(archive.requested) == 2


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("missing", "Failed to fetch "),
        ("other content", "Failed to fetch "),
        # prlimit ends the method that writes more than the Release file says.
        ("larger", "Method http has died "),
    ],
)
def test_an_index_that_is_not_what_the_release_file_says_is_not_used(
    archive: Archive, architecture: str, tmp_path: Path, harm: str, reason: str
) -> None:
    apt = archive.apt(tmp_path / "apt", architecture)
    name = f"main/Contents-{architecture}.gz"
    good = archive.files.pop(name)
    if harm == "other content":
        archive.files[name] = good[:-1] + bytes([good[-1] ^ 1])
    elif harm == "larger":
        archive.files[name] = good + bytes(10_000_000)
    programs = read_programs(apt, tmp_path / "contents")
    assert programs.failure is not None
    assert programs.failure.startswith(f"the download of a Contents index failed: {reason}")
    assert programs.names == {"jq": ["psql"], "postgresql-client-common": ["psql"]}
    archive.files[name] = good
    assert read_programs(apt, tmp_path / "contents").names["jq"] == ["jq", "onig", "psql"]


def test_text_that_is_cut_off_is_not_used(architecture: str, tmp_path: Path, archive: Archive) -> None:
    # The Release file lists what the archive has, so the hash is right.
    name = f"main/Contents-{architecture}.gz"
    old, new = archive.files[name], archive.files[name][:-9]
    archive.files[name] = new
    archive.files["Release"] = (
        archive.files["Release"]
        .replace(hashlib.sha256(old).hexdigest().encode(), hashlib.sha256(new).hexdigest().encode())
        .replace(f" {len(old)} {name}".encode(), f" {len(new)} {name}".encode())
    )
    programs = read_programs(archive.apt(tmp_path / "apt", architecture), tmp_path / "contents")
    assert programs.failure == "a Contents index is cut off"
    assert programs.names == {"jq": ["psql"], "postgresql-client-common": ["psql"]}


def test_an_index_that_is_too_large_is_not_fetched(
    archive: Archive, architecture: str, tmp_path: Path
) -> None:
    name = f"main/Contents-{architecture}.gz"
    archive.files["Release"] = archive.files["Release"].replace(
        f" {len(archive.files[name])} {name}".encode(), f" {1024**4} {name}".encode()
    )
    apt = archive.apt(tmp_path / "apt", architecture)
    programs = read_programs(apt, tmp_path / "contents")
    assert programs.failure == f"a Contents index has {1024**4} bytes; at most {256 * 1024**2} are read"
    assert programs.names == {"jq": ["psql"], "postgresql-client-common": ["psql"]}
    assert [path for path in archive.requested if architecture in path] == []


def test_text_that_is_too_large_is_not_read_to_its_end(
    archive: Archive, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_LARGEST_TEXT", 50)
    programs = read_programs(archive.apt(tmp_path / "apt", architecture), tmp_path / "contents")
    assert programs.failure == "a Contents index has more than 50 bytes"
    assert programs.names == {"jq": ["jq", "onig"]}


def test_without_apt_there_are_no_programs(tmp_path: Path) -> None:
    missing = Apt("amd64", tmp_path, ("-c", str(tmp_path / "missing.conf")))
    programs = read_programs(missing, tmp_path / "contents")
    assert (programs.names, programs.indexes) == ({}, ())
    assert programs.failure is not None


def evaluate(expression: str, directory: Path) -> object:
    command = ["nix-instantiate", "--eval", "--strict", "--json", "--readonly-mode", "-E", expression]
    done = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("programs", "expected"), [({"jq": ["jq", "onig"]}, ["jq", "onig"]), ({}, [])])
def test_programs_are_in_meta_and_a_lock_without_them_has_none(
    tmp_path: Path, programs: dict[str, list[str]], expected: list[str]
) -> None:
    shutil.copy(SET / "default.nix", tmp_path)
    shutil.copy(SET / "fetch.py", tmp_path)
    shutil.copy(SET / "build.py", tmp_path)
    package = Package("jq", "1.6-2", "jq", "utils", "JSON", "", "pool/jq.deb", "0" * 64, (), ())
    records = make_records({"jq": package}, "x86-64-linux-gnu")
    add_programs(records, programs)
    write_lock(tmp_path / "lock", "x86_64-linux", "fingerprint", records, {}, {})
    found = evaluate('(import ./. { system = "x86_64-linux"; }).jq.meta', tmp_path)
    assert isinstance(found, dict)
    assert (found["programs"], found["mainProgram"]) == (expected, "jq")


def test_programs_do_not_change_derivations(tmp_path: Path) -> None:
    for name in ("default.nix", "fetch.py", "build.py"):
        shutil.copy(SET / name, tmp_path)
    package = Package("jq", "1.6-2", "jq", "utils", "JSON", "", "pool/jq.deb", "0" * 64, (), ())
    derivations = set()
    for programs in ({}, {"jq": ["jq"]}):
        records = make_records({"jq": package}, "x86-64-linux-gnu")
        add_programs(records, programs)
        write_lock(tmp_path / "lock", "x86_64-linux", f"fingerprint{len(programs)}", records, {}, {})
        derivations.add(evaluate('(import ./. { system = "x86_64-linux"; }).jq.drvPath', tmp_path))
    assert len(derivations) == 1


def test_a_lock_is_current_until_its_indexes_change_and_update_sees_new_programs(tmp_path: Path) -> None:
    package = Package("jq", "1.6-2", "jq", "utils", "JSON", "", "pool/jq.deb", "0" * 64, (), ())
    records = make_records({"jq": package}, "x86-64-linux-gnu")
    write_lock(tmp_path, "x86_64-linux", "indexes-programs", records, {}, {})
    assert is_current(tmp_path, "x86_64-linux", "indexes")
    assert not is_current(tmp_path, "x86_64-linux", "others")
    assert not is_current(tmp_path, "x86_64-linux", "indexes-more")


def test_the_package_with_psql_in_all_of_debian() -> None:
    found = evaluate(
        'let set = import ./. { system = "x86_64-linux"; }; in builtins.filter'
        ' (name: builtins.elem "psql" set.${name}.meta.programs)'
        ' (builtins.filter (name: builtins.match "postgresql-client-.*" name != null) (builtins.attrNames set))',
        SET,
    )
    assert isinstance(found, list)
    assert "postgresql-client-common" in found
    assert any(name.removeprefix("postgresql-client-").isdigit() for name in found)
