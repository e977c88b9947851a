"""Ask the machine's own apt for its package indexes; no address of a mirror passes through here.

The machine's own architecture is read from the machine's own lists. Another one, or a machine whose lists are missing and
cannot be made for want of rights, gets a private configuration with its own lists, which uses the machine's sources and keys.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from locking.contents import parse_release
from locking.errors import LockError
from locking.release import Release, parse_targets

ARCHITECTURES = {
    "x86_64-linux": "amd64",
    "aarch64-linux": "arm64",
    "i686-linux": "i386",
    "armv7l-linux": "armhf",
    "riscv64-linux": "riscv64",
    "powerpc64le-linux": "ppc64el",
    "s390x-linux": "s390x",
}
TRIPLETS = {
    "amd64": "x86-64-linux-gnu",
    "arm64": "aarch64-linux-gnu",
    "i386": "i686-linux-gnu",
    "armhf": "arm-linux-gnueabihf",
    "riscv64": "riscv64-linux-gnu",
    "ppc64el": "powerpc64le-linux-gnu",
    "s390x": "s390x-linux-gnu",
}

_PRIVATE_CONFIGURATION = """\
#clear APT::Architectures;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
Dir::State "{directory}/state";
Dir::State::lists "{directory}/lists";
Dir::State::status "/dev/null";
Dir::Cache "{directory}/cache";
Acquire::Languages "none";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb::Contents-deb;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons-small;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-hidpi;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large-hidpi;
"""

# An index target of our own: apt says where its files are, and `apt-get update` does not fetch them.
_CONTENTS = (
    "-o", "Acquire::IndexTargets::deb::nixery-contents::MetaKey=$(COMPONENT)/Contents-$(ARCHITECTURE)",
    "-o", "Acquire::IndexTargets::deb::nixery-contents::ShortDescription=Contents",
    "-o", "Acquire::IndexTargets::deb::nixery-contents::Description=Contents",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ContentsIndex:
    """A compressed Contents index that a signed Release file lists: its URL, its hash, its size in bytes."""

    url: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Apt:
    """How to call apt for one architecture: where its lists are, and the options that make it use them."""

    architecture: str
    lists: Path
    options: tuple[str, ...]

    def has_lists(self) -> bool:
        """Whether there is any package index to read."""
        return any(self.lists.glob("*_Packages*"))

    def update(self) -> None:
        """Fetch the indexes again."""
        _run(["apt-get", *self.options, "-qq", "update"])
        if not self.has_lists():
            raise LockError(
                f"apt-get update brought no package index for {self.architecture}: does a source in /etc/apt offer it?"
            )

    def fingerprint(self) -> list[object]:
        """Name, size and modification time of each index, and all preferences: equal as long as the answers of apt are."""
        found = ((path.name, path.stat()) for path in sorted(self.lists.glob("*_Packages*")))
        indexes = [(name, status.st_size, status.st_mtime_ns) for name, status in found]
        return [*indexes, *self._preferences()]

    def _preferences(self) -> list[str]:
        """The texts that pin packages to a version or a release."""
        settings = (
            "F",
            "Dir::Etc::preferences/f",
            "D",
            "Dir::Etc::preferencesparts/d",
            "R",
            "APT::Default-Release",
        )
        answer = _run(["apt-config", *self.options, "shell", *settings])
        found = dict(word.partition("=")[::2] for word in shlex.split(answer))
        files = [Path(found.get("F", "")), *sorted(Path(found.get("D", "")).glob("*"))]
        texts = [file.read_text(errors="replace") for file in files if file.is_file()]
        return [found.get("R", ""), *texts]

    def stanzas(self) -> Iterator[str]:
        """The index entry of every package's candidate, whatever is installed on this machine."""
        command = ["apt-cache", *self.options, "-o", "Dir::State::status=/dev/null", "dumpavail"]
        yield from _run(command).split("\n\n")

    def release(self) -> Release:
        """The release that most packages are of, by the Release file that apt has fetched and verified."""
        fields = "$(FILENAME)\t$(ORIGIN)\t$(CODENAME)\t$(VERSION)"
        answer = _run(["apt-get", *self.options, "indextargets", "--format", fields, "Created-By: Packages"])
        lines = (line.partition("\t") for line in answer.splitlines())
        # A field that a Release file does not have stays as it is written here.
        known = ((file, re.sub(r"\$\([A-Z]+\)", "", rest)) for file, _, rest in lines)
        return parse_targets("".join(f"{_size_of(Path(file))}\t{rest}\n" for file, rest in known))

    def contents(self) -> list[ContentsIndex]:
        """The Contents indexes that the sources offer, by the Release files that apt has fetched and verified."""
        question = ["indextargets", "--no-release-info", "--format", "$(METAKEY) $(URI) $(FILENAME)"]
        answer = _run(["apt-get", *self.options, *_CONTENTS, *question, "Created-By: nixery-contents"])
        found: dict[str, ContentsIndex] = {}
        for line in answer.splitlines():
            key, url, file = [*line.split(" ", 2), "", ""][:3]
            prefix = file.rpartition(key.replace("/", "_"))[0]
            text = _first_text(Path(f"{prefix}InRelease"), Path(f"{prefix}Release"))
            listed = parse_release(text).get(f"{key}.gz")
            if listed is not None:
                by_hash = f"{url.rpartition('/')[0]}/by-hash/SHA256/{listed.sha256}"
                found[listed.sha256] = ContentsIndex(
                    by_hash if "\nAcquire-By-Hash: yes\n" in text else f"{url}.gz", listed.sha256, listed.size
                )
        return list(found.values())

    def download(self, index: ContentsIndex, file: Path, seconds: float) -> None:
        """Download `index` to `file`; apt checks the hash, and no file becomes larger than the index."""
        command = ["prlimit", f"--fsize={index.size}", "/usr/lib/apt/apt-helper", *self.options]
        command += ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]
        if os.geteuid() == 0:
            command += ["-o", "APT::Sandbox::User=root"]
        command += ["download-file", index.url, str(file), f"SHA256:{index.sha256}"]
        _run(command, "the download of a Contents index", seconds)


def _size_of(file: Path) -> int:
    # Another format of the file that apt names may be the one that is there.
    return max((one.stat().st_size for one in file.parent.glob(f"{file.stem}*")), default=0)


def native_architecture() -> str:
    """Debian's name of the architecture that the machine's own apt is set up for."""
    return _run(["dpkg", "--print-architecture"]).strip()


def apt_for(architecture: str, private: Path) -> Apt:
    """The machine's own apt if it serves `architecture`, else one with its state below `private`."""
    if shutil.which("apt-get") is None:
        raise LockError("there is no apt-get on this machine: the Debian package set needs a Debian with apt")
    if architecture == native_architecture():
        own = Apt(architecture, Path("/var/lib/apt/lists"), ())
        if own.has_lists() or os.geteuid() == 0:
            return own
    directory = private.absolute() / architecture
    for name in ("state", "lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    configuration = directory / "apt.conf"
    text = _PRIVATE_CONFIGURATION.format(architecture=architecture, directory=directory)
    if os.geteuid() == 0:
        # apt would drop to the user _apt, who may not be able to reach this directory.
        text += 'APT::Sandbox::User "root";\n'
    configuration.write_text(text)
    return Apt(architecture, directory / "lists", ("-c", str(configuration)))


def _first_text(*files: Path) -> str:
    return next((file.read_text(errors="replace") for file in files if file.is_file()), "")


def _run(command: list[str], title: str | None = None, seconds: float | None = None) -> str:
    title = title or f"{command[0]} {command[-1]}"
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise LockError(f"{title} took too long") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it did not say why"]
        # The last line of apt often only counts the errors.
        reason = next((line for line in lines if line.startswith("E: ")), lines[-1])
        raise LockError(f"{title} failed: {reason.removeprefix('E: ')}")
    return done.stdout.decode(errors="replace")
