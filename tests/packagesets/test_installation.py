"""What maintainer scripts do becomes links, files and declarations of the output."""

from pathlib import Path

import pytest
from building.installation import install
from building.links import link_programs, link_siblings, make_links
from building.outputs import Outputs
from building.references import called_names, record_dependencies
from building.unpack import Directory, Links


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    (tmp_path / "own").mkdir()
    return Outputs(str(tmp_path / "own"), [])


def put(outputs: Outputs, name: str, content: str = "", mode: int = 0o644) -> Path:
    path = Path(outputs.own, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    return path


def run(outputs: Outputs, script: str) -> None:
    links = Links(scripts=[script])
    install("tool", links, outputs)
    make_links(links, outputs)


def declared(outputs: Outputs, kind: str) -> list[str]:
    files = sorted(Path(outputs.own, "lib").glob(f"{kind}.d/*.conf"))
    return [line for file in files for line in file.read_text().splitlines()]


def test_alternatives_of_a_loop_are_made(outputs: Outputs) -> None:
    put(outputs, "bin/convert-im6")
    run(
        outputs,
        "for i in convert stream; do\n"
        "  update-alternatives --install /usr/bin/$i $i /usr/bin/$i-im6 10 \\\n"
        "    --slave /usr/share/man/man1/$i.1.gz $i.1.gz /usr/share/man/man1/$i-im6.1.gz\ndone\n",
    )
    assert (Path(outputs.own) / "bin/convert").readlink() == Path("convert-im6")
    assert not (Path(outputs.own) / "bin/stream").is_symlink()


def test_configuration_that_a_script_writes_is_the_packages_default(outputs: Outputs) -> None:
    put(outputs, "lib/R/etc/Renviron.ucf", "default\n")
    run(
        outputs,
        't=$(mktemp)\ncat /usr/lib/R/etc/Renviron.ucf > "$t"\nsed -i s/a/b/ "$t"\nucf "$t" /etc/R/Renviron\n'
        "sed -e s/a/b/ /usr/lib/R/etc/Renviron.ucf >/etc/R/other\ncat <<X >/etc/R/text\ny\nX\n",
    )
    own = Path(outputs.own)
    assert (own / "etc/R/Renviron").read_text() == "default\n"
    assert (own / "etc/R/other").read_text() == "default\n"
    assert not (own / "etc/R/text").exists()


def test_configuration_is_copied_and_linked(outputs: Outputs) -> None:
    put(outputs, "share/tool/tool.conf", "new\n")
    put(outputs, "share/tool/other.conf", "new\n")
    put(outputs, "etc/tool/other.conf", "of the package\n")
    put(outputs, "etc/tool/available/site", "site\n")
    run(
        outputs,
        't=$(mktemp); cp -a /usr/share/tool/tool.conf "$t"; ucf --three-way "$t" /etc/tool/tool.conf\n'
        "cp /usr/share/tool/other.conf /etc/tool/\nln -s /etc/tool/available/site /etc/tool/enabled/site\n"
        "cp /usr/share/tool/tool.conf /root/x; cp /usr/share/tool/tool.conf /etc/../root/x\n",
    )
    own = Path(outputs.own)
    assert (own / "etc/tool/tool.conf").read_text() == "new\n"
    assert (own / "etc/tool/other.conf").read_text() == "of the package\n"
    assert (own / "etc/tool/enabled/site").read_text() == "site\n"
    assert not (own / "root").exists()


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("adduser --system --group --home /var/lib/x --no-create-home --gecos 'The X, y' x", 'u x - "The X" /var/lib/x -'),
        ("adduser --quiet --system --no-create-home --home /run/sshd --shell /usr/sbin/nologin sshd", 'u sshd -:nogroup "" /run/sshd /usr/sbin/nologin'),
        ("useradd -r -M -d /srv/x -s /bin/false -g daemon -u 101 x", 'u x 101:daemon "" /srv/x /bin/false'),
        ("groupadd -r -g 77 x", "g x 77"),
        ("addgroup --system x", "g x -"),
        ("adduser --quiet x y", "m x y"),
        ("usermod -aG y x", "m x y"),
    ],
)  # fmt: skip
def test_accounts_are_declared(outputs: Outputs, script: str, line: str) -> None:
    run(outputs, f"if ! getent passwd x >/dev/null; then {script} || true; fi\n")
    assert declared(outputs, "sysusers") == [line]


def test_accounts_of_a_preinst_are_declared(outputs: Outputs) -> None:
    """MariaDB's, which does other things for earlier versions."""
    script = """
if [ "$1" = "upgrade" ]; then adduser --system old; fi
mkdir -p /var/lib/leftover
if ! getent passwd mysql >/dev/null; then
    adduser --system --disabled-login --ingroup mysql --no-create-home --home /nonexistent mysql >/dev/null 2>&1
fi
"""
    install("mariadb-server", Links(early_scripts=[script]), outputs)
    assert any(line.startswith("u mysql ") for line in declared(outputs, "sysusers"))
    assert not any(" old " in line for line in declared(outputs, "sysusers"))
    assert not Path(outputs.own, "var/lib/leftover").exists()


@pytest.mark.parametrize("name", ["$(id -un)", "'a\" /bin/sh'", "a:b", "A%u", "'x y'"])
def test_names_that_could_break_a_line_are_left_out(outputs: Outputs, name: str) -> None:
    run(outputs, f"adduser --system {name}; addgroup --system {name}\n")
    assert declared(outputs, "sysusers") == []


def test_owners_of_directories_are_declared(outputs: Outputs) -> None:
    links = Links(
        directories=[Directory("/var/log/tool", "2775", "root", "adm")],
        scripts=[
            """mkdir -p /var/lib/tool /var/lib/plain; chown -R tool:tool /var/lib/tool; chmod 0750 /var/lib/tool
            install -d -m 2775 -o tool -g adm /var/run/tool
            chown tool /usr/bin/tool /var/lib/missing
            """
        ],
    )
    install("tool", links, outputs)
    assert declared(outputs, "tmpfiles") == [
        "d /run/tool 2775 tool adm - -",
        "d /var/lib/tool 0750 tool tool - -",
        "d /var/log/tool 2775 root adm - -",
    ]
    assert Path(outputs.own, "var/lib/plain").is_dir()


def test_directories_of_services_are_declared(outputs: Outputs) -> None:
    put(
        outputs,
        "lib/systemd/system/redis.service",
        "[Service]\nUser=redis\nRuntimeDirectory=redis\nRuntimeDirectoryMode=2755\nStateDirectory=redis\n",
    )
    run(outputs, "")
    assert declared(outputs, "tmpfiles") == [
        "d /run/redis 2755 redis redis - -",
        "d /var/lib/redis 0755 redis redis - -",
    ]


def test_programs_keep_their_names_outside_bin(outputs: Outputs) -> None:
    put(outputs, "bin/adduser")
    link_programs(Links(programs={"sbin/adduser", "usr/games/adduser", "sbin/gone"}), outputs)
    own = Path(outputs.own)
    assert (own / "sbin/adduser").readlink() == Path("../bin/adduser")
    assert (own / "usr/games/adduser").resolve() == own / "bin/adduser"
    assert not (own / "sbin/gone").is_symlink()


def test_data_of_a_dependency_is_linked_beside_a_program(tmp_path: Path) -> None:
    own, common = tmp_path / "own", tmp_path / "common"
    outputs = Outputs(str(own), [str(common)])
    put(outputs, "lib/chromium/chromium", "\x7fELF", 0o755)
    put(outputs, "lib/data/file")
    for name in ("lib/chromium/icudtl.dat", "lib/data/other"):
        (common / name).parent.mkdir(parents=True)
        (common / name).touch()
    link_siblings(outputs)
    assert (own / "lib/chromium/icudtl.dat").readlink() == common / "lib/chromium/icudtl.dat"
    assert not (own / "lib/data/other").exists()


def test_declared_dependencies_are_recorded_and_essential_ones_that_a_script_calls(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("own", "modules", "licence", "grep", "sed")}
    for name in (
        "modules/share/nodejs/semver/index.js",
        "licence/share/doc/licence/copyright",
        "grep/bin/grep",
        "sed/bin/sed",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    outputs = Outputs(
        str(paths["own"]),
        [str(paths["modules"]), str(paths["licence"])],
        [str(paths["grep"]), str(paths["sed"])],
    )
    put(outputs, "bin/tool", "#!/bin/sh\nls | grep x\n", 0o755)
    record_dependencies(outputs)
    record = (paths["own"] / "nix-support/dependencies").read_text()
    assert record == f"{paths['modules']}\n{paths['grep']}\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"#!/bin/sh\nif LC_ALL=C grep -q x; then cat y | sed s/a/b/; fi\nx=$(awk 1) || exit\n", {"grep", "cat", "sed", "awk", "exit", "fi"}),
        (b"#!/usr/bin/env bash\necho grep\nsed=1\n", {"bash"}),
        (b"#!/usr/bin/python3\ngrep\n", set()),
        (b"\x7fELF\0popen\0", {"sh"}),
        (b"\x7fELF\0/usr/bin/tar\0/bin/mount\0", {"tar", "mount"}),
        (b"\x7fELF\0opopen\0", set()),
    ],
)  # fmt: skip
def test_programs_that_a_file_calls(content: bytes, expected: set[str]) -> None:
    assert called_names(content) == expected


def test_commands_of_a_sourced_part_of_a_shell_script_count(tmp_path: Path) -> None:
    own, which = tmp_path / "own", tmp_path / "which"
    (which / "bin").mkdir(parents=True)
    (which / "bin/which").touch()
    outputs = Outputs(str(own), [], [str(which)])
    put(outputs, "share/doc/tool/example.sh", "which x\n", 0o644)
    record_dependencies(outputs)
    assert not (own / "nix-support").exists()
    put(outputs, "lib/tool/part.sh", "which x\n", 0o644)
    record_dependencies(outputs)
    assert (own / "nix-support/dependencies").read_text() == f"{which}\n"
