"""The pure parts of the builder: places, paths in text, alternatives, RUNPATHs."""

import struct
import zipfile
from pathlib import Path

import pytest
from building.elf import Dynamic, new_run_path, read_dynamic
from building.layout import is_left_out, output_path
from building.links import link_class_paths, link_siblings, make_links
from building.outputs import Outputs
from building.roomy_elf import patch_in_place
from building.text import rewrite_text
from building.unpack import Links

STORE = {
    "/bin/sh": "/nix/store/dash/bin/sh",
    "/usr/bin/perl": "/nix/store/perl/bin/perl",
    "/usr/share/app/data": "/nix/store/app/share/app/data",
    "/usr/lib": "/nix/store/app/lib",
}


def rewrite(text: str) -> str:
    programs = {"perl": "/nix/store/perl/bin/perl"}
    return rewrite_text(text.encode(), STORE.get, programs.get).decode()


@pytest.mark.parametrize(
    ("debian", "expected"),
    [
        ("./usr/sbin/ip", "bin/ip"),
        ("/sbin/ip", "bin/ip"),
        ("/usr/games/fortune", "bin/fortune"),
        ("./lib64/ld-linux-x86-64.so.2", "lib/ld-linux-x86-64.so.2"),
        ("./usr/lib/x86_64-linux-gnu/libz.so.1", "lib/x86_64-linux-gnu/libz.so.1"),
        ("./etc/protocols", "etc/protocols"),
        ("./", ""),
        ("/usr", ""),
    ],
)
def test_places(debian: str, expected: str) -> None:
    assert output_path(debian) == expected


def test_licences_are_kept_and_other_documentation_is_removed() -> None:
    assert not is_left_out("share/doc/hello/copyright")
    assert is_left_out("share/doc/hello/changelog.gz")


def test_shebangs_lead_to_store_paths() -> None:
    assert rewrite("#!/bin/sh -e\n") == "#!/nix/store/dash/bin/sh -e\n"
    assert rewrite("#! /usr/bin/env perl\n") == "#!/nix/store/perl/bin/perl\n"
    assert rewrite("#!/usr/bin/env unknown\n") == "#!/usr/bin/env unknown\n"


def test_absolute_paths_are_rewritten_where_a_file_is_known() -> None:
    assert rewrite('data="/usr/share/app/data"') == 'data="/nix/store/app/share/app/data"'
    assert rewrite("/usr/share/other/file") == "/usr/share/other/file"


@pytest.mark.parametrize(
    "text", ["$prefix/usr/share/app/data", "x/usr/share/app/data", "${root}/bin/sh", "prefix=/usr/lib"]
)
def test_parts_of_longer_paths_and_shared_directories_are_not_rewritten(text: str) -> None:
    assert rewrite(text) == text


def test_links_stay_inside_or_lead_to_dependencies_or_are_removed(tmp_path: Path) -> None:
    own, library = tmp_path / "own", tmp_path / "library"
    (own / "bin").mkdir(parents=True)
    (own / "bin/gawk").touch()
    (library / "lib").mkdir(parents=True)
    (library / "lib/libz.so.1").touch()
    links = Links(
        declared={
            "/usr/sbin/tool": "../bin/gawk",
            "/usr/lib/libz.so": "libz.so.1",
            "/usr/lib/gone": "nowhere",
        },
        alternatives={"/usr/bin/awk": "/usr/bin/gawk", "/usr/bin/vi": "/usr/bin/vim"},
    )
    make_links(links, Outputs(str(own), [str(library)]))
    assert (own / "bin/tool").readlink() == Path("gawk")
    assert (own / "bin/awk").readlink() == Path("gawk")
    assert (own / "lib/libz.so").readlink() == library / "lib/libz.so.1"
    assert not (own / "bin/vi").is_symlink()
    assert not (own / "lib/gone").is_symlink()


def test_a_link_to_a_file_of_an_indirect_dependency_leads_there(tmp_path: Path) -> None:
    """`mvn` of Debian's `maven` starts with a library of a package that another one depends on."""
    own, direct, indirect = (tmp_path / name for name in ("own", "direct", "indirect"))
    (own / "share/maven").mkdir(parents=True)
    (direct / "nix-support").mkdir(parents=True)
    (direct / "nix-support/dependencies").write_text(f"{indirect}\n")
    (indirect / "share/java").mkdir(parents=True)
    (indirect / "share/java/launcher.jar").touch()
    (indirect / "nix-support").mkdir()
    (indirect / "nix-support/dependencies").write_text(f"{direct}\n")
    links = Links(declared={"/usr/share/maven/boot/launcher.jar": "../../java/launcher.jar"})
    make_links(links, Outputs(str(own), [str(direct)]))
    link = own / "share/maven/boot/launcher.jar"
    assert link.readlink() == indirect / "share/java/launcher.jar"


def test_modules_of_node_have_the_files_that_other_packages_put_beside_them(tmp_path: Path) -> None:
    """Node follows the link of a program, so it looks beside the program's own file: `uglifyjs`."""
    own, library = tmp_path / "own", tmp_path / "library"
    module = "share/nodejs/uglify-js"
    (own / module / "bin").mkdir(parents=True)
    (own / module / "bin/uglifyjs").touch(mode=0o755)
    (library / module / "tools").mkdir(parents=True)
    (library / module / "tools/tty.js").touch()
    link_siblings(Outputs(str(own), [str(library)]))
    assert (own / module / "tools/tty.js").exists()


def test_files_that_php_includes_are_beside_the_one_that_includes_them(tmp_path: Path) -> None:
    """Debian's `composer` includes `Composer/CaBundle` of another package, relative to its own file."""
    own, libraries = tmp_path / "own", [tmp_path / "library", tmp_path / "other"]
    (own / "share/php/Composer").mkdir(parents=True)
    (own / "share/php/Composer/autoload.php").touch()
    for library, name in zip(libraries, ("JsonLint", "Signal"), strict=True):
        for directory in (f"Composer/{library.name}", f"Seld/{name}"):
            (library / "share/php" / directory).mkdir(parents=True)
            (library / "share/php" / directory / "autoload.php").touch()
        (library / "share/php/Seld/circle").symlink_to(".")
    link_siblings(Outputs(str(own), list(map(str, libraries))))
    for name in ("Composer/library", "Composer/other", "Seld/JsonLint", "Seld/Signal"):
        assert (own / "share/php" / name / "autoload.php").exists()


def test_archives_of_a_class_path_are_beside_the_one_that_names_them(tmp_path: Path) -> None:
    """Java follows the link to `gradle-launcher.jar`, whose manifest names archives of other packages."""
    own, library = tmp_path / "own", tmp_path / "library"
    for directory in (own, library):
        (directory / "share/java").mkdir(parents=True)
    (library / "share/java/core.jar").touch()
    (library / "share/java/a-name-that-is-so-long-that-the-line-goes-on.jar").touch()
    manifest = (
        "Manifest-Version: 1.0\r\nClass-Path: core.jar a-name-that-is-so-long-that-the-\r\n line-goes-on.jar"
        " gone.jar ../../../core.jar /usr/share/java/core.jar\r\n"
    )
    with zipfile.ZipFile(own / "share/java/launcher.jar", "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", manifest)
    (own / "share/java/broken.jar").write_bytes(b"no archive")
    link_class_paths(Outputs(str(own), [str(library)]))
    assert {path.name for path in (own / "share/java").iterdir()} == {
        "a-name-that-is-so-long-that-the-line-goes-on.jar",
        "broken.jar",
        "core.jar",
        "launcher.jar",
    }


def test_a_run_path_names_only_the_directories_that_are_needed(tmp_path: Path) -> None:
    own, needed, unneeded = tmp_path / "own", tmp_path / "needed", tmp_path / "unneeded"
    for output, library in ((needed, "liba.so.1"), (unneeded, "libb.so.1")):
        (output / "lib/x86_64-linux-gnu").mkdir(parents=True)
        (output / "lib/x86_64-linux-gnu" / library).touch()
    (own / "lib/private").mkdir(parents=True)
    dynamic = Dynamic(
        True, ("liba.so.1", "libmissing.so"), ("$ORIGIN/x", "/usr/lib/private", "/usr/lib/x86_64-linux-gnu")
    )
    outputs = Outputs(str(own), [str(needed), str(unneeded)])
    assert new_run_path(dynamic, outputs) == [
        "$ORIGIN/x",
        f"{own}/lib/private",
        f"{needed}/lib/x86_64-linux-gnu",
    ]


def test_a_run_path_names_a_directory_of_private_libraries_in_each_package(tmp_path: Path) -> None:
    """`pulseaudio` has modules in the directory in which `libpulse0` has a library that it needs."""
    own, library = tmp_path / "own", tmp_path / "library"
    private = "lib/x86_64-linux-gnu/pulseaudio"
    for output in (own, library):
        (output / private).mkdir(parents=True)
    dynamic = Dynamic(True, ("libpulsecommon-16.1.so",), (f"/usr/{private}",))
    outputs = Outputs(str(own), [str(library)])
    assert new_run_path(dynamic, outputs) == [f"{own}/{private}", f"{library}/{private}"]


def test_only_dynamic_elf_files_are_read() -> None:
    assert read_dynamic(b"#!/bin/sh\n" * 20) is None
    assert read_dynamic(b"\x7fELF" + b"\x02\x01" + b"\0" * 100) is None


_INTERP, _LOAD, _DYNAMIC = 3, 1, 2


def roomy_program(room: int) -> bytes:
    """A program with zeros after its program headers, like the output of Go's own linker."""
    end = 64 + 3 * 56 + room
    dynamic = struct.pack("<qQqQqQ", 5, 0x402000, 21, 0, 0, 0)
    segments = [(_INTERP, end, 10), (_LOAD, 0, 0x1000), (_DYNAMIC, end + 10, len(dynamic))]
    headers = b"".join(
        struct.pack("<IIQQQQQQ", kind, 4, offset, 0x400000 + offset, 0x400000 + offset, size, size, 1)
        for kind, offset, size in segments
    )
    identification = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = identification + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x400100, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    return header + headers + bytes(room) + b"/lib64/ld\0" + dynamic


def test_a_program_with_room_gets_its_loader_and_run_path_in_place() -> None:
    program = roomy_program(200)
    patched = patch_in_place(program, "/nix/store/x/ld.so", "/nix/store/x/lib")
    assert patched is not None
    assert len(patched) == len(program)
    kind, _, offset, address, _, size, _, _ = struct.unpack_from("<IIQQQQQQ", patched, 64)
    assert (kind, patched[offset : offset + size]) == (_INTERP, b"/nix/store/x/ld.so\0")
    assert address == 0x400000 + offset
    dynamic = 64 + 3 * 56 + 200 + 10
    tag, value = struct.unpack_from("<qQ", patched, dynamic + 16)
    assert tag == 29
    place = (value + 0x402000) % (1 << 64) - 0x400000
    assert patched[place:].startswith(b"/nix/store/x/lib\0")


def test_a_program_without_room_is_left_to_patchelf() -> None:
    assert patch_in_place(roomy_program(20), "/nix/store/x/ld.so", "/nix/store/x/lib") is None
    assert patch_in_place(b"#!/bin/sh\n", "/nix/store/x/ld.so", "/nix/store/x/lib") is None


def test_a_program_whose_files_are_in_several_packages_is_called_by_debians_path(tmp_path: Path) -> None:
    own, script, core = (tmp_path / name for name in ("own", "script", "core"))
    for output in (own, script, core):
        (output / "lib/office/program").mkdir(parents=True)
    program = script / "lib/office/program/soffice"
    program.touch(mode=0o755)
    data = core / "lib/office/program/office.rc"
    data.touch(mode=0o644)
    both, alone = Outputs(str(own), [str(script), str(core)]), Outputs(str(tmp_path / "none"), [str(script)])
    assert both.find_for_text("/usr/lib/office/program/soffice") is None
    assert alone.find_for_text("/usr/lib/office/program/soffice") == str(program)
    assert both.find_for_text("/usr/lib/office/program/office.rc") == str(data)


@pytest.mark.parametrize("place", ["bin", "lib/x86_64-linux-gnu"])
def test_a_program_in_a_directory_of_all_packages_is_called_in_its_own(tmp_path: Path, place: str) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for output in (own, other):
        (output / place).mkdir(parents=True)
    (other / place / "tool").touch(mode=0o755)
    found = Outputs(str(own), [str(other)]).find_for_text(f"/usr/{place}/tool")
    assert found == str(other / place / "tool")
