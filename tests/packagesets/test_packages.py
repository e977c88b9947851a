"""What single packages need beyond the general rules."""

from pathlib import Path

import pytest
from building.outputs import Outputs
from building.packages import adjust


def test_node_finds_the_modules_of_all_packages(tmp_path: Path) -> None:
    library = tmp_path / "lib/x86_64-linux-gnu/libnode.so.108"
    library.parent.mkdir(parents=True)
    before = b"\0{\n" + b" " * 17 + b'"node_relative_path": "lib/x86_64-linux-gnu/nodejs:share/nodejs",\n}\0'
    library.write_bytes(before)
    adjust("nodejs", Outputs(str(tmp_path), []))
    after = library.read_bytes()
    assert len(after) == len(before)
    assert b' "node_relative_path": "/usr/lib/x86_64-linux-gnu/nodejs:/usr/share/nodejs",\n}\0' in after


def test_paths_without_room_stay(tmp_path: Path) -> None:
    library = tmp_path / "lib/x86_64-linux-gnu/libnode.so.108"
    library.parent.mkdir(parents=True)
    library.write_bytes(b'"node_relative_path": "share/nodejs"')
    adjust("nodejs", Outputs(str(tmp_path), []))
    assert library.read_bytes() == b'"node_relative_path": "share/nodejs"'


def test_directories_of_tex_have_a_real_subdirectory_where_packages_are_merged(tmp_path: Path) -> None:
    tree = tmp_path / "share/texlive/texmf-dist"
    (tree / "fonts/tfm/public").mkdir(parents=True)
    (tmp_path / "share/other").mkdir()
    adjust("texlive-fonts", Outputs(str(tmp_path), []))
    assert (tree / ".d").is_dir()
    assert (tree / "fonts/tfm/public/.d").is_dir()
    assert not (tree / ".d/.d").exists()
    assert not (tmp_path / "share/other/.d").exists()


def test_dpkg_has_a_database_without_packages(tmp_path: Path) -> None:
    adjust("dpkg", Outputs(str(tmp_path), []))
    assert (tmp_path / "var/lib/dpkg/status").read_bytes() == b""
    assert (tmp_path / "var/lib/dpkg/info").is_dir()


def test_graphviz_has_a_list_of_the_plug_ins_that_are_there(tmp_path: Path) -> None:
    plugins = tmp_path / "lib/x86_64-linux-gnu/graphviz"
    plugins.mkdir(parents=True)
    for name in ("core", "dot_layout"):
        (plugins / f"libgvplugin_{name}.so.6").touch()
    adjust("libgvc6", Outputs(str(tmp_path), []))
    listed = (plugins / "config6a").read_text()
    assert "svg:svg 1" in listed
    assert "dot 0" in listed
    assert "libgvplugin_pango" not in listed
    assert listed.count("{") == listed.count("}")


@pytest.fixture
def certificates(tmp_path: Path) -> Outputs:
    place = tmp_path / "share/ca-certificates/mozilla"
    place.mkdir(parents=True)
    for name in ("B.crt", "A.crt"):
        (place / name).write_text(f"{name}\n")
    (tmp_path / "etc/ssl/certs").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/update-ca-certificates").touch()
    return Outputs(str(tmp_path), [])


def test_certificates_have_no_script(certificates: Outputs, tmp_path: Path) -> None:
    adjust("cacert", certificates)
    assert (tmp_path / "etc/ssl/certs/ca-certificates.crt").read_text() == "A.crt\nB.crt\n"
    assert not (tmp_path / "bin").exists()


def test_the_script_for_certificates_trusts_all_of_them(certificates: Outputs, tmp_path: Path) -> None:
    adjust("ca-certificates", certificates)
    assert (tmp_path / "etc/ca-certificates.conf").read_text() == "mozilla/A.crt\nmozilla/B.crt\n"
    assert (tmp_path / "bin/update-ca-certificates").exists()
    assert not (tmp_path / "share/ca-certificates").exists()


def test_directories_that_apachectl_makes_are_declared(tmp_path: Path) -> None:
    adjust("apache2", Outputs(str(tmp_path), []))
    (file,) = tmp_path.glob("lib/tmpfiles.d/*")
    assert "d /run/apache2/socks 0755 www-data root - -\n" in file.read_text()
