"""dpkg's stanzas of the packages that an output was made of."""

from pathlib import Path

from building.database import record_packages
from building.outputs import DPKG_STATUS, Outputs
from building.references import record_dependencies

CONTROL = """\
Package: hello
Source: hello-source
Version: 1:2.10-3+b1
Architecture: amd64
Maintainer: A <a@example.org>
Depends: libc6 (>= 2.34)
Essential: yes
Description: greets
 Status: half-installed
 .
 Version: 9
"""


def test_a_package_is_installed_in_its_exact_version_without_dependencies(tmp_path: Path) -> None:
    record_packages([CONTROL.replace("hello\n", "zz\n"), CONTROL], Outputs(str(tmp_path), []))
    first, second = (tmp_path / DPKG_STATUS).read_text().split("\n\n")
    assert first == (
        "Package: hello\nStatus: install ok installed\nMaintainer: A <a@example.org>\nArchitecture: amd64\n"
        "Source: hello-source\nVersion: 1:2.10-3+b1\nDescription: greets"
    )
    assert second.startswith("Package: zz\n")


def test_a_control_file_without_a_valid_name_is_left_out(tmp_path: Path) -> None:
    record_packages(["Package: ../x\nVersion: 1\n", "Version: 1\n"], Outputs(str(tmp_path), []))
    assert not (tmp_path / DPKG_STATUS).exists()


def test_an_output_with_nothing_but_its_licence_and_stanza_is_no_dependency(tmp_path: Path) -> None:
    own, name_alone, used = (tmp_path / name for name in ("own", "name", "used"))
    (name_alone / "share/doc/name").mkdir(parents=True)
    (used / "etc").mkdir(parents=True)
    own.mkdir()
    for output in (name_alone, used):
        record_packages([CONTROL], Outputs(str(output), []))
    record_dependencies(Outputs(str(own), [str(name_alone), str(used)]))
    assert (own / "nix-support/dependencies").read_text() == f"{used}\n"
