"""What single packages need beyond the general rules, because they look for their files at compiled-in places."""

import re
from collections.abc import Callable
from pathlib import Path

from building.outputs import Outputs
from building.wrappers import WRAPPED, wrap, wrap_with_names

_TERMINFO_PATH = b"/etc/terminfo:/lib/terminfo:/usr/share/terminfo\0"


def _git(outputs: Outputs) -> None:
    own = Path(outputs.own)
    variables = {
        "GIT_EXEC_PATH": f"{own}/lib/git-core",
        "GIT_TEMPLATE_DIR": f"{own}/share/git-core/templates",
    }
    wrap_with_names(outputs, "git", variables)
    # Git's own programs run with the variables set already, so they need no wrapper.
    link = own / "lib/git-core/git"
    if link.is_symlink():
        link.unlink()
        link.symlink_to(f"../../{WRAPPED}/git")


def _perl(outputs: Outputs) -> None:
    own = Path(outputs.own)
    patterns = ("lib/*/perl-base", "lib/*/perl/5.*", "share/perl/5.*")
    found = [str(path) for pattern in patterns for path in sorted(own.glob(pattern)) if not path.is_symlink()]
    wrap(
        outputs,
        "perl",
        {"PERL5LIB": ":".join(sorted(found, key=lambda path: "perl-base" in path))},
        extend=True,
    )


def _vim(outputs: Outputs) -> None:
    for runtime in sorted(Path(outputs.own, "share/vim").glob("vim[0-9]*")):
        wrap(outputs, "vim.basic", {"VIM": str(runtime.parent), "VIMRUNTIME": str(runtime)})


def _terminfo(outputs: Outputs) -> None:
    """Entries at the top of the output, for libtinfo's patched search path."""
    own = Path(outputs.own)
    for directory in ("lib/terminfo", "share/terminfo"):
        for entry in sorted((own / directory).glob("?")):
            link = own / entry.name
            if not link.is_symlink():
                link.symlink_to(f"{directory}/{entry.name}")


def _libtinfo(outputs: Outputs) -> None:
    entries = next((output for output in outputs.dependencies if output.endswith("-ti")), None)
    if entries is None:
        return
    replacement = entries.encode().ljust(len(_TERMINFO_PATH), b"\0")
    for library in sorted(Path(outputs.own, "lib").glob("*/libtinfo.so.*.*")):
        content = library.read_bytes()
        if len(replacement) == len(_TERMINFO_PATH) and _TERMINFO_PATH in content:
            library.write_bytes(content.replace(_TERMINFO_PATH, replacement))


def _certificates(outputs: Outputs) -> None:
    """The bundle that Debian's update-ca-certificates would make at installation."""
    own = Path(outputs.own)
    certificates = sorted((own / "share/ca-certificates/mozilla").glob("*.crt"))
    directory = own / "etc/ssl/certs"
    directory.mkdir(parents=True, exist_ok=True)
    texts = [certificate.read_text().rstrip("\n") + "\n" for certificate in certificates]
    (directory / "ca-bundle.crt").write_text("".join(texts))
    (directory / "ca-certificates.crt").symlink_to("ca-bundle.crt")


def _postgresql(outputs: Outputs) -> None:
    own = Path(outputs.own)
    for program in sorted(own.glob("lib/postgresql/*/bin/*")):
        link = own / "bin" / program.name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"../{program.relative_to(own)}")


def _java(outputs: Outputs) -> None:
    own = Path(outputs.own)
    (own / "bin").mkdir(exist_ok=True)
    for program in sorted(own.glob("lib/jvm/java-[0-9]*-openjdk-*/bin/*")):
        link = own / "bin" / program.name
        if not link.exists() and not link.is_symlink() and not program.parent.parent.is_symlink():
            link.symlink_to(f"../{program.relative_to(own)}")


def _gcc(outputs: Outputs) -> None:
    """Drivers that find headers, start files, loader and libraries in the store; what they link runs without `/lib`."""
    arguments = _compiler_arguments(outputs)
    if arguments is None:
        return
    directory = Path(outputs.own, "bin")
    for program in sorted(directory.glob("*-linux-gnu-*-[0-9]*")):
        match = re.fullmatch(r".+-linux-gnu-(gcc|g\+\+|cpp)-\d+", program.name)
        if match is None or program.is_symlink():
            continue
        wrap(outputs, program.name, {"GCC_EXEC_PREFIX": f"{outputs.own}/lib/gcc/"}, arguments=arguments)
        for name in (match[1], *_COMPILER_NAMES.get(match[1], ())):
            if not (directory / name).is_symlink():
                (directory / name).symlink_to(program.name)


_COMPILER_NAMES = {"gcc": ("cc",), "g++": ("c++",)}


def _compiler_arguments(outputs: Outputs) -> list[str] | None:
    start_file = next(
        (found for output in outputs.dependencies for found in sorted(Path(output, "lib").glob("*/crt1.o"))),
        None,
    )
    assembler = outputs.find_program("as")
    if start_file is None or assembler is None:
        return None
    libraries, triplet = start_file.parent, start_file.parent.name
    headers = [f"{output}/include{part}" for output in outputs.dependencies for part in ("", f"/{triplet}")]
    found = [
        outputs.find_library_directory(name) for name in ("libc.so.6", "libgcc_s.so.1", "libstdc++.so.6")
    ]
    run_path = list(dict.fromkeys(path for path in found if path))
    return [
        f"-B{libraries}/",
        f"-B{Path(assembler).parent}/",
        *(f"-idirafter{path}" for path in headers if Path(path).is_dir()),
        *(f"-L{path}" for path in (libraries, *run_path)),
        f"-Wl,-dynamic-linker,{outputs.loader}",
        *(f"-Wl,-rpath,{path}" for path in run_path),
    ]


def _file(outputs: Outputs) -> None:
    magic = outputs.find("/usr/lib/file/magic.mgc")
    if magic is not None:
        wrap(outputs, "file", {"MAGIC": magic})


def _php(outputs: Outputs) -> None:
    program = next(iter(sorted(Path(outputs.own, "bin").glob("php[0-9].[0-9]"))), None)
    if program is not None:
        _other_name(program.name, "php")(outputs)


def _other_name(program: str, name: str) -> Callable[[Outputs], None]:
    """A second name for a program that Debian had to call otherwise."""

    def adjustment(outputs: Outputs) -> None:
        link = Path(outputs.own, "bin", name)
        if not link.is_symlink() and not link.exists():
            link.symlink_to(program)

    return adjustment


_SITE_PREFIXES = "PREFIXES = [sys.prefix, sys.exec_prefix]"
_SITE_PATHS = "    _trace(\"Processing global site-packages\")\n"


def _python(outputs: Outputs) -> None:
    """Modules of other packages are below /usr in an image; what pip installs goes to /usr/local, as in Debian.

    Python derives all its places from its own one, which is in the store. Modules of the standard library that Debian has
    in packages of their own (tkinter, ensurepip) are found last.
    """
    for library in sorted(Path(outputs.own, "lib").glob("python3.*")):
        site = library / "site.py"
        if site.is_file():
            other = f"/usr/lib/{library.name}"
            text = site.read_text().replace(_SITE_PREFIXES, f'{_SITE_PREFIXES[:-1]}, "/usr"]')
            added = f"    sys.path += [path for path in ({other!r}, '{other}/lib-dynload') if os.path.isdir(path)]\n"
            site.write_text(text.replace(_SITE_PATHS, _SITE_PATHS + added))
        sysconfig = library / "sysconfig.py"
        if sysconfig.is_file():
            text = sysconfig.read_text()
            for base in ("{base}", "{platbase}"):
                text = text.replace(f"'{base}/local", "'/usr/local")
            sysconfig.write_text(text)
        # It keeps pip from mixing its packages with apt's, which an image does not have.
        (library / "EXTERNALLY-MANAGED").unlink(missing_ok=True)


_ADJUSTMENTS: tuple[tuple[str, Callable[[Outputs], None]], ...] = (
    (r"git", _git),
    (r"perl-base", _perl),
    (r"vim", _vim),
    (r"bat", _other_name("batcat", "bat")),
    (r"file", _file),
    (r"python3", _python),
    (r"php\d+\.\d+-cli", _php),
    (r"fd-find", _other_name("fdfind", "fd")),
    (r"gcc-\d+|cpp-\d+", _gcc),
    (r"ncurses-base", _terminfo),
    (r"libtinfo\d+(t64)?", _libtinfo),
    (r"ca-certificates", _certificates),
    (r"postgresql-\d+", _postgresql),
    (r"openjdk-\d+-(jre|jdk)-headless", _java),
)


def adjust(group: str, outputs: Outputs) -> None:
    """Apply what the group's packages need, if there is anything."""
    for pattern, adjustment in _ADJUSTMENTS:
        if re.fullmatch(pattern, group):
            adjustment(outputs)
