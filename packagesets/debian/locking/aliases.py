"""What Debian's names do not say: nixpkgs' names for the same things, main programs, priorities, undeclared dependencies.

An alias points to a package by a pattern, since many names carry a version; the highest version that exists is taken. An
alias wins over a Debian package of the same name, which is then an empty or an unrelated one (`dnsutils`, `fd`).
"""

import re
from collections.abc import Iterable, Mapping

from locking.index import Package
from locking.versions import version_key

ALIASES: Mapping[str, str] = {
    "apacheHttpd": "apache2-bin",
    "apacheKafka": "kafka",
    "awscli": "awscli",
    "bashInteractive": "bash",
    "bat": "bat",
    "bind": "bind9",
    "boost": r"libboost\d+(\.\d+)*-dev",
    "bzip2": "bzip2",
    "coreutils-full": "coreutils",
    "cron": "cron",
    "delta": "git-delta",
    "deno": "deno",
    "diffutils": "diffutils",
    "dig": "bind9-dnsutils",
    "dnsutils": "bind9-dnsutils",
    "docker": r"docker\.io",
    "docker-client": r"docker-cli|docker\.io",
    "dotnet-sdk": r"dotnet-sdk-[\d.]+",
    "elixir": "elixir",
    "erlang": "erlang-base",
    "fd": "fd-find",
    "ffmpeg-full": "ffmpeg",
    "fish": "fish",
    "fzf": "fzf",
    "gcc": r"gcc-\d+",
    "gcc-unwrapped": r"gcc-\d+",
    "ghc": "ghc",
    "git-lfs": "git-lfs",
    "gitFull": "git",
    "gitMinimal": "git",
    "gnugrep": "grep",
    "gnum4": "m4",
    "gnumake": "make",
    "gnupatch": "patch",
    "gnupg": "gpg",
    "gnused": "sed",
    "gnutar": "tar",
    "gnutls": "gnutls-bin",
    "go": "golang-go",
    "graphicsmagick": "graphicsmagick",
    "gtk3": "libgtk-3-0(t64)?",
    "haproxy": "haproxy",
    "helm": "helm",
    "iana-etc": "netbase",
    "imagemagick": r"imagemagick-\d+\.q16",
    "iproute2": "iproute2",
    "iputils": "iputils-ping",
    "jdk": r"openjdk-\d+-jdk-headless",
    "jdk_headless": r"openjdk-\d+-jdk-headless",
    "jdk17": "openjdk-17-jdk-headless",
    "jdk21": "openjdk-21-jdk-headless",
    "jre": r"openjdk-\d+-jre-headless",
    "jre_headless": r"openjdk-\d+-jre-headless",
    "kubectl": "kubernetes-client",
    "libcap": "libcap2-bin",
    "libressl": "openssl",
    "libuuid": "uuid-runtime",
    "libxml2": "libxml2-utils",
    "libxslt": "xsltproc",
    "lua": r"lua5\.\d+",
    "lua5": r"lua5\.\d+",
    "mariadb": "mariadb-server-core",
    "mysql": "mariadb-server-core",
    "mysql-client": "mariadb-client-core",
    "ncurses": "ncurses-bin",
    "neofetch": "neofetch",
    "netcat": "netcat-openbsd",
    "netcat-gnu": "netcat-traditional",
    "nettools": "net-tools",
    "nix": "nix-bin",
    "node": "nodejs",
    "openjdk": r"openjdk-\d+-jdk-headless",
    "openldap": "ldap-utils",
    "openssh": "openssh-client",
    "openvpn": "openvpn",
    "p7zip": "p7zip-full|7zip",
    "perl": "perl",
    "php": r"php\d+\.\d+-cli",
    "pip": "python3-pip",
    "pkg-config": "pkgconf",
    "postgresql": r"postgresql-\d+",
    "procps": "procps",
    "ps": "procps",
    "python": "python3",
    "rabbitmq-server": "rabbitmq-server",
    "redis": "redis-tools",
    "redis-server": "redis-server",
    "ruby": r"ruby\d+\.\d+",
    "rust": "rustc",
    "sqlite": "sqlite3",
    "sqlite-interactive": "sqlite3",
    "terraform": "terraform",
    "texinfo": "texinfo",
    "tzdata": "tzdata",
    "util-linux": "util-linux",
    "valkey": "valkey-tools",
    "vimNox": "vim-nox",
    "which": "debianutils",
    "xz": "xz-utils",
    "yarn": "yarnpkg",
    "zlib": "zlib1g(t64)?",
    "zsh": "zsh",
    "zstd": "zstd",
}  # fmt: skip

MAIN_PROGRAMS: Mapping[str, str] = {
    "7zip": "7z", "apache2-bin": "apache2", "bind9-dnsutils": "dig", "binutils": "ld", "bsdmainutils": "cal",
    "coreutils": "ls", "dnsutils": "dig", "docker.io": "docker", "fd-find": "fd", "golang-go": "go", "findutils": "find", "git-delta": "delta",
    "gnupg": "gpg", "gnutls-bin": "gnutls-cli", "httpie": "http", "imagemagick": "convert", "iproute2": "ip", "iputils-ping": "ping",
    "kubernetes-client": "kubectl", "ldap-utils": "ldapsearch", "libxml2-utils": "xmllint", "mariadb-client-core": "mariadb",
    "mariadb-server-core": "mariadbd", "moreutils": "sponge", "neovim": "nvim", "net-tools": "ifconfig", "netcat-openbsd": "nc",
    "netcat-traditional": "nc", "nix-bin": "nix", "nodejs": "node", "openssh-client": "ssh", "openssh-server": "sshd",
    "procps": "ps", "python3-pip": "pip3", "rabbitmq-server": "rabbitmqctl", "redis-tools": "redis-cli", "ripgrep": "rg",
    "silversearcher-ag": "ag", "util-linux": "lsblk", "uuid-runtime": "uuidgen", "xz-utils": "xz", "yarnpkg": "yarnpkg",
}  # fmt: skip
_MAIN_PROGRAM_PATTERNS = (
    (r"golang-1\.\d+-go", "go"),
    (r"openjdk-\d+-jdk-headless", "javac"),
    (r"openjdk-\d+-jre-headless", "java"),
    (r"gcc-\d+", "gcc"),
    (r"php(\d+\.\d+)-cli", "php"),
    (r"postgresql-\d+", "postgres"),
    (r"postgresql-client-\d+", "psql"),
)
_ANY_PATTERN = re.compile("|".join(pattern for pattern, _ in _MAIN_PROGRAM_PATTERNS))
_WITHOUT_PROGRAM = re.compile(
    r"^(.*/)?(libs|libdevel|oldlibs|doc|fonts|localization|kernel|debug|introspection|perl|javascript|metapackages)$"
)

# Nix: the lower number wins a clash of file names, 5 being the default. These yield to the programs whose names they reuse.
PRIORITIES: Mapping[str, int] = {
    "bsdutils": 6, "busybox": 8, "busybox-static": 8, "moreutils": 6, "mawk": 6, "netcat-traditional": 6, "original-awk": 7,
    "toybox": 8, "vim-tiny": 6,
}  # fmt: skip

# What a package needs at run time and does not declare, because Debian always has it installed.
EXTRA_DEPENDENCIES = (
    (re.compile(r"bash"), ("dash",)),
    # Its modules, and the configuration that leads to them.
    (re.compile(r"libpam0g"), ("libpam-runtime",)),
    # The formats that people convert most.
    (re.compile(r"imagemagick-\d+\.q16"), ("libmagickcore-6.q16-6-extra", "libmagickcore-7.q16-10-extra")),
    # Wheels may expect a system to have it (PEP 600).
    (re.compile(r"python3-pip"), ("libstdc++6",)),
    (re.compile(r"libtinfo\d+(t64)?"), ("ncurses-base",)),
    (re.compile(r"file"), ("libmagic-mgc",)),
    # Its program includes a file of a package that it only recommends.
    (re.compile(r"php-horde-db"), ("php-horde-autoloader",)),
    (re.compile(r"gcc-\d+"), ("libc6-dev", "linux-libc-dev")),
)  # fmt: skip
# Essential and required packages whose programs scripts call undeclared. The builder of every group outside the closure of
# one can use it; each may use those before it.
ESSENTIAL = (
    "dash", "bash", "perl-base", "coreutils", "sed", "grep", "mawk", "hostname", "findutils", "diffutils", "debianutils",
    "gzip", "tar", "ncurses-bin", "util-linux", "bsdutils", "dpkg",
)  # fmt: skip
# Declared for a program that only maintainer scripts call: add-shell.
NEEDLESS = frozenset({("bash", "debianutils"), ("dash", "debianutils")})


def resolve_aliases(names: Iterable[str]) -> dict[str, str]:
    """The aliases whose target exists, as attribute name to package name."""
    any_target = re.compile("|".join(ALIASES.values()))
    targets = [name for name in sorted(names) if any_target.fullmatch(name)]
    found: dict[str, str] = {}
    for alias, pattern in ALIASES.items():
        matches = [name for name in targets if re.fullmatch(pattern, name)]
        if matches:
            found[alias] = max(matches, key=version_key)
    return {alias: name for alias, name in found.items() if alias != name}


def extra_dependencies(name: str) -> tuple[str, ...]:
    """The packages that `name` needs beside those it declares."""
    return next((extra for pattern, extra in EXTRA_DEPENDENCIES if pattern.fullmatch(name)), ())


def main_program(package: Package) -> str | None:
    """The program that one means by the package's name; a guess unless the table has it, so `bin/` may lack it."""
    if package.name in MAIN_PROGRAMS:
        return MAIN_PROGRAMS[package.name]
    if _ANY_PATTERN.fullmatch(package.name):
        return next(
            program for pattern, program in _MAIN_PROGRAM_PATTERNS if re.fullmatch(pattern, package.name)
        )
    return None if _WITHOUT_PROGRAM.match(package.section) else package.name
