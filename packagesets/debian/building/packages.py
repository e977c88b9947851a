"""What single packages need beyond the general rules, because they look for their files at compiled-in places."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from building.graphviz import list_plugins
from building.outputs import Outputs
from building.wrappers import WRAPPED, wrap, wrap_with_names


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


def _base_accounts(outputs: Outputs) -> None:
    """The accounts that every Debian has, with the numbers that it has assigned to them (base-passwd)."""
    file = Path(outputs.own, "lib/sysusers.d/base-passwd.conf")
    file.parent.mkdir(exist_ok=True)
    groups = "".join(f"g {name} {number}\n" for name, number in _BASE_GROUPS.items())
    users = "".join(
        f'u {name} {number}:{number if name in _BASE_GROUPS else 65534} "{name}" {home} {shell}\n'
        for name, (number, home, shell) in _BASE_USERS.items()
    )
    file.write_text(groups + users)


_NO_LOGIN = "/usr/sbin/nologin"
_BASE_USERS = {
    "daemon": (1, "/usr/sbin", _NO_LOGIN), "bin": (2, "/bin", _NO_LOGIN), "sys": (3, "/dev", _NO_LOGIN),
    "sync": (4, "/bin", "/bin/sync"), "games": (5, "/usr/games", _NO_LOGIN), "man": (6, "/var/cache/man", _NO_LOGIN),
    "lp": (7, "/var/spool/lpd", _NO_LOGIN), "mail": (8, "/var/mail", _NO_LOGIN), "news": (9, "/var/spool/news", _NO_LOGIN),
    "uucp": (10, "/var/spool/uucp", _NO_LOGIN), "proxy": (13, "/bin", _NO_LOGIN), "www-data": (33, "/var/www", _NO_LOGIN),
    "backup": (34, "/var/backups", _NO_LOGIN), "list": (38, "/var/list", _NO_LOGIN), "irc": (39, "/run/ircd", _NO_LOGIN),
}  # fmt: skip
_BASE_GROUPS = {
    "daemon": 1, "bin": 2, "sys": 3, "adm": 4, "tty": 5, "disk": 6, "lp": 7, "mail": 8, "news": 9, "uucp": 10, "man": 12,
    "proxy": 13, "kmem": 15, "dialout": 20, "fax": 21, "voice": 22, "cdrom": 24, "floppy": 25, "tape": 26, "sudo": 27,
    "audio": 29, "dip": 30, "www-data": 33, "backup": 34, "operator": 37, "list": 38, "irc": 39, "src": 40, "shadow": 42,
    "utmp": 43, "video": 44, "sasl": 45, "plugdev": 46, "staff": 50, "games": 60, "users": 100,
}  # fmt: skip


def _pam(outputs: Outputs) -> None:
    """The configuration that pam-auth-update makes of Debian's own profile: accounts of /etc/passwd."""
    directory = Path(outputs.own, "etc/pam.d")
    directory.mkdir(parents=True, exist_ok=True)
    for kind, (control, arguments) in _PAM.items():
        module = kind.partition("-")[0]
        lines = [
            f"{module} {control} pam_unix.so{arguments}",
            f"{module} requisite pam_deny.so",
            f"{module} required pam_permit.so",
        ]
        if module == "session":
            lines = ["session required pam_permit.so", "session required pam_unix.so"]
        (directory / f"common-{kind}").write_text("".join(f"{line}\n" for line in lines))


_PAM = {
    "account": ("[success=1 new_authtok_reqd=done default=ignore]", ""),
    "auth": ("[success=1 default=ignore]", " nullok"),
    "password": ("[success=1 default=ignore]", " obscure yescrypt"),
    "session": ("", ""),
    "session-noninteractive": ("", ""),
}


_NODE_PATHS = re.compile(rb' *"node_relative_path": "([A-Za-z0-9_/:-]+)"')


def _nodejs(outputs: Outputs) -> None:
    """The modules of all packages are below /usr in an image; Node looks for them relative to its own place.

    The list is JSON inside the library, with an indentation that leaves room for absolute paths.
    """

    def absolute(found: re.Match[bytes]) -> bytes:
        paths = b":".join(b"/usr/" + path for path in found[1].split(b":"))
        text = b'"node_relative_path": "' + paths + b'"'
        return text.rjust(len(found[0])) if len(text) <= len(found[0]) else found[0]

    for library in sorted(Path(outputs.own).glob("lib/*/libnode.so.*")):
        if not library.is_symlink() and library.is_file():
            library.write_bytes(_NODE_PATHS.sub(absolute, library.read_bytes()))


def _texlive(outputs: Outputs) -> None:
    """TeX finds its files without an index, knows its formats, which it makes when they are first used, and its own fonts.

    Debian merges the declarations of all installed packages for that. These are the ones of TeX Live's base.
    """
    own = Path(outputs.own)
    trees, generated = own / "share/texlive/texmf-dist", own / "var/lib/texmf"
    configuration = trees / "web2c/texmf.cnf"
    if not configuration.is_file():
        return
    # `!!` says that a tree has an index (ls-R), and that only the index counts.
    configuration.write_text(re.sub(r"!!(?=\$)", "", configuration.read_text()))
    languages = generated / "tex/generic/config"
    languages.mkdir(parents=True, exist_ok=True)
    for kind, ending in (("us", "dat"), ("us.def", "def"), ("us.lua", "dat.lua")):
        source = trees / f"tex/generic/config/language.{kind}"
        if source.is_file():
            (languages / f"language.{ending}").write_bytes(source.read_bytes())
    (generated / "fmtutil.cnf-TEXLIVEDIST").write_text(_TEX_FORMATS)
    maps = generated / "fonts/map/pdftex/updmap"
    maps.mkdir(parents=True, exist_ok=True)
    names = sorted(
        name
        for file in own.glob("var/lib/tex-common/fontmap-cfg/*/*.cfg")
        for name in re.findall(r"(?m)^(?:Mixed)?Map[ \t]+(\S+)", file.read_text())
    )
    found = {path.name: path for path in sorted(trees.glob("fonts/map/**/*.map"))}
    text = "".join(found[name].read_text(errors="replace") for name in names if name in found)
    (maps / "pdftex.map").write_text(text)
    dvips = generated / "fonts/map/dvips/updmap"
    dvips.mkdir(parents=True, exist_ok=True)
    (dvips / "psfonts.map").write_text(text)


TEX_MARK = ".d"


def _tex_directories(outputs: Outputs) -> None:
    """An empty directory in each directory of TeX's trees.

    TeX takes a directory with two links for one without subdirectories, and that is what an image's root has where packages
    are merged: its subdirectories are symlinks. A name that each package has is a real directory there.
    """
    for tree in ("share/texlive/texmf-dist", "share/texmf"):
        for directory, _, _ in os.walk(Path(outputs.own, tree)):
            if not directory.endswith(f"/{TEX_MARK}"):
                Path(directory, TEX_MARK).mkdir(exist_ok=True)


_TEX_FORMATS = """\
etex pdftex language.def -translate-file=cp227.tcx *etex.ini
tex tex - tex.ini
pdftex pdftex language.def -translate-file=cp227.tcx *pdfetex.ini
luatex luatex language.def,language.dat.lua luatex.ini
latex pdftex language.dat -translate-file=cp227.tcx *latex.ini
pdflatex pdftex language.dat -translate-file=cp227.tcx *pdflatex.ini
dvilualatex luatex language.dat,language.dat.lua dvilualatex.ini
lualatex luahbtex language.dat,language.dat.lua lualatex.ini
xetex xetex language.def -etex xetex.ini
xelatex xetex language.dat -etex xelatex.ini
mptopdf pdftex - -translate-file=cp227.tcx mptopdf.tex
"""


def _certificates(outputs: Outputs) -> None:
    """The bundle that Debian's update-ca-certificates would make at installation."""
    own = Path(outputs.own)
    certificates = sorted((own / "share/ca-certificates/mozilla").glob("*.crt"))
    directory = own / "etc/ssl/certs"
    directory.mkdir(parents=True, exist_ok=True)
    texts = [certificate.read_text().rstrip("\n") + "\n" for certificate in certificates]
    (directory / "ca-bundle.crt").write_text("".join(texts))
    (directory / "ca-certificates.crt").symlink_to("ca-bundle.crt")
    # The script and its configuration are in the output of the package, which depends on this one.
    for place in ("bin", "etc/ca-certificates"):
        shutil.rmtree(own / place, ignore_errors=True)


def _certificates_package(outputs: Outputs) -> None:
    """What update-ca-certificates reads: the certificates are in an output of their own, and all of them are trusted."""
    own = Path(outputs.own)
    certificates = own / "share/ca-certificates"
    names = sorted(str(path.relative_to(certificates)) for path in certificates.glob("mozilla/*.crt"))
    (own / "etc/ca-certificates.conf").write_text("".join(f"{name}\n" for name in names))
    for place in ("share/ca-certificates", "etc/ssl"):
        shutil.rmtree(own / place)


def _apache(outputs: Outputs) -> None:
    """The directories that apachectl makes at its start, which only root may."""
    file = Path(outputs.own, "lib/tmpfiles.d/apache2-run.conf")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "d /run/apache2 0755 root root - -\n"
        "d /run/apache2/socks 0755 www-data root - -\n"
        "d /run/lock/apache2 0755 www-data root - -\n"
    )


# Runtimes give a user without an entry in /etc/passwd the home `/`, where the user cannot write.
_SHELL_HOME = """if [ "${HOME-}" = / ] && [ ! -w / ]; then
    home="${TMPDIR:-/tmp}/home-$(@id@ -u)"
    (umask 077 && mkdir "$home") 2>/dev/null || :
    if [ -d "$home" ] && [ ! -L "$home" ] && [ -O "$home" ]; then
        export HOME="$home"
    fi
fi
"""


def _erlang(outputs: Outputs) -> None:
    """Erlang writes a cookie into the user's home when it starts."""
    program, identify = Path(outputs.own, "lib/erlang/bin/erl"), outputs.find_program("id")
    if program.is_file() and identify is not None:
        first, newline, rest = program.read_text().partition("\n")
        program.write_text(f"{first}{newline}{_SHELL_HOME.replace('@id@', identify)}{rest}")


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


def _dpkg(outputs: Outputs) -> None:
    """The database of a system without installed packages: programs that ask dpkg get an answer, no error."""
    database = Path(outputs.own, "var/lib/dpkg")
    for directory in ("alternatives", "info", "parts", "triggers", "updates"):
        (database / directory).mkdir(parents=True, exist_ok=True)
    for file in ("available", "diversions", "statoverride", "status"):
        (database / file).touch()


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


# Added to the module that Python imports at its start. Patching site.py would not do: Python has it built in.
_SITE_CUSTOMIZATION = '''\
import os
import site
import stat
import sys


def _make_home():
    """Give a user whose home is `/`, as that of a user without an entry in /etc/passwd is, a home to write to."""
    if os.environ.get("HOME") != "/" or os.access("/", os.W_OK):
        return
    home = "%s/home-%d" % (os.environ.get("TMPDIR") or "/tmp", os.getuid())
    try:
        os.mkdir(home, 0o700)
    except OSError:
        pass
    try:
        status = os.lstat(home)
    except OSError:
        return
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return
    os.environ["HOME"] = home
    if site.ENABLE_USER_SITE:
        # The user's modules are below the home, whose place is known already.
        site.USER_BASE = site.USER_SITE = None
        site.addusersitepackages(set())


def _add_paths_of_packages():
    """Add the modules of other packages, of the script's own package, and the packaged parts of the standard library."""
    version = "python%d.%d" % sys.version_info[:2]
    if sys.base_prefix in site.PREFIXES and "/usr" not in site.PREFIXES:
        site.PREFIXES.append("/usr")
        for directory in ("/usr/local/lib/" + version, "/usr/lib/python3"):
            if os.path.isdir(directory + "/dist-packages"):
                site.addsitedir(directory + "/dist-packages")
    paths = []
    for argument in sys.orig_argv[1:]:
        if argument in ("-c", "-m"):
            break
        if not argument.startswith("-"):
            output = "/".join(os.path.realpath(argument).split("/")[:4])
            try:
                with open(output + "/nix-support/python-path") as file:
                    paths = file.read().split()
            except OSError:
                pass
            break
    for path in (*paths, "/usr/lib/" + version, "/usr/lib/" + version + "/lib-dynload"):
        if path not in sys.path and os.path.isdir(path):
            sys.path.append(path)


_make_home()
_add_paths_of_packages()
'''


_WHEELS = re.compile(r"('WHEEL_PKG_DIR': )'[^']*'")


def _python(outputs: Outputs) -> None:
    """Modules of other packages are below /usr in an image; what pip installs goes to /usr/local, as in Debian.

    Python derives all its places from its own one, which is in the store.
    """
    for library in sorted(Path(outputs.own, "lib").glob("python3.*")):
        customization, sysconfig = library / "sitecustomize.py", library / "sysconfig.py"
        if not sysconfig.is_file():
            continue
        debian = customization.read_text() if customization.is_file() else ""
        customization.unlink(missing_ok=True)
        customization.write_text(f"{_SITE_CUSTOMIZATION}\n{debian}")
        text = sysconfig.read_text()
        for base in ("{base}", "{platbase}"):
            text = text.replace(f"'{base}/local", "'/usr/local")
        sysconfig.write_text(text)
        # It keeps pip from mixing its packages with apt's, which an image does not have.
        (library / "EXTERNALLY-MANAGED").unlink(missing_ok=True)
        # The wheels of ensurepip are in packages of their own, which an image has below /usr.
        for data in sorted(library.glob("_sysconfigdata*.py")):
            data.write_text(_WHEELS.sub(r"\1'/usr/share/python-wheels/'", data.read_text()))


_ADJUSTMENTS: tuple[tuple[str, Callable[[Outputs], None]], ...] = (
    (r"git", _git),
    (r"perl-base", _perl),
    (r"vim", _vim),
    (r"bat", _other_name("batcat", "bat")),
    (r"dpkg", _dpkg),
    (r"file", _file),
    (r"python3", _python),
    (r"php\d+\.\d+-cli", _php),
    (r"fd-find", _other_name("fdfind", "fd")),
    (r"gcc-\d+|cpp-\d+", _gcc),
    (r"libpam0g", _pam),
    (r"texlive-base", _texlive),
    (r".+", _tex_directories),
    (r"nodejs|libnode\d+", _nodejs),
    (r"libc6", _base_accounts),
    (r"libgvc6", list_plugins),
    (r"cacert", _certificates),
    (r"ca-certificates", _certificates_package),
    (r"apache2", _apache),
    (r"erlang-base", _erlang),
    (r"postgresql-\d+", _postgresql),
    (r"openjdk-\d+-(jre|jdk)-headless", _java),
)


def adjust(group: str, outputs: Outputs) -> None:
    """Apply what the group's packages need, if there is anything."""
    for pattern, adjustment in _ADJUSTMENTS:
        if re.fullmatch(pattern, group):
            adjustment(outputs)
