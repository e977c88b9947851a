"""Do at build time what maintainer scripts do at the first installation: alternatives, configuration, accounts, directories.

Accounts and owners of directories cannot be in a store path. They are declared in the formats of sysusers.d(5) and
tmpfiles.d(5), in `lib/sysusers.d` and `lib/tmpfiles.d`, for whatever makes a file system of the package.
"""

import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from building.layout import output_path
from building.outputs import Outputs
from building.shell import TEMPORARY, Command, commands
from building.unpack import Links

# The names that adduser and the tools of shadow allow; a name cannot break the line that it is written into.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")
_NUMBER = re.compile(r"\d{1,9}")
_MODE = re.compile(r"[0-7]{3,4}")
# Text that fits between the quotes and colons of an account's line.
_TEXT = re.compile(r"[^\x00-\x1f\"\\:%]{0,200}")
_PATH = re.compile(r"/[A-Za-z0-9_.@+,=/-]{1,300}")

# Where scripts make files; everything else belongs to the machine or to the package's .deb.
_WRITABLE = ("/etc/", "/var/", "/srv/", "/opt/", "/usr/share/", "/usr/lib/", "/usr/bin/", "/usr/sbin/")
_OF_THE_SYSTEM = (
    "/var/run/",
    "/var/lock/",
    "/var/lib/dpkg",
    "/var/lib/apt",
    "/etc/rc",
    "/etc/systemd/",
)
# A directory with an owner may also be one that the image gets when it starts.
_OWNED = ("/etc/", "/var/", "/srv/", "/run/", "/home/")


@dataclass(slots=True)
class Owner:
    """Who owns a directory, and its mode."""

    mode: str = "0755"
    user: str = "root"
    group: str = "root"

    def is_default(self) -> bool:
        """Whether any directory of a package is like this."""
        return (self.mode, self.user, self.group) == ("0755", "root", "root")


@dataclass(slots=True)
class Accounts:
    """Lines of sysusers.d by what they declare; the first declaration of a name counts."""

    users: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    members: set[tuple[str, str]] = field(default_factory=set)

    def lines(self) -> list[str]:
        """The file's lines: groups, then users, which may name them."""
        memberships = [f"m {user} {group}" for user, group in sorted(self.members)]
        return [
            *(self.groups[name] for name in sorted(self.groups)),
            *(self.users[n] for n in sorted(self.users)),
            *memberships,
        ]


def install(group: str, links: Links, outputs: Outputs) -> None:
    """Do what the scripts of the group do; alternatives and links are only added to `links`."""
    installation = Installation(outputs, links)
    for script in links.early_scripts:
        installation.add_accounts(script)
    for script in links.scripts:
        installation.run(script)
    installation.add_units()
    installation.declare(group)


class Installation:
    """What the scripts of a group's packages do."""

    def __init__(self, outputs: Outputs, links: Links) -> None:
        self._outputs = outputs
        self._links = links
        self._accounts = Accounts()
        self._owners: dict[str, Owner] = {}
        self._directory_of_script = "/"
        self._temporary: dict[str, str] = {}
        for directory in links.directories:
            self._owner(directory.path, directory.mode, directory.user, directory.group)

    def run(self, script: str) -> None:
        """Do what a postinst does when its package is installed."""
        self._directory_of_script = "/"
        for command in commands(script):
            name = posixpath.basename(command[0] or "")
            if action := _ACTIONS.get(name):
                action(self, command[1:])

    def add_accounts(self, script: str) -> None:
        """Add the accounts that a preinst adds (`mysql`); the rest of it is about earlier versions of the package."""
        for command in commands(script, ("install",)):
            name = posixpath.basename(command[0] or "")
            if name in _OF_ACCOUNTS:
                _ACTIONS[name](self, command[1:])

    def change_directory(self, arguments: Command) -> None:
        """`cd DIRECTORY`: names of files that follow are relative to it."""
        self._directory_of_script = self._full((arguments or ("/",))[0] or "/")

    def _full(self, name: str) -> str:
        """An absolute name, in the directory that the script is in; with its last slash, which says that it is a directory."""
        full = posixpath.normpath(posixpath.join(self._directory_of_script, name)) if name else ""
        if full.startswith("/var/run/"):
            full = full.removeprefix("/var")
        return full + "/" if name.endswith("/") and full != "/" else full

    def add_units(self) -> None:
        """Declare the directories that systemd makes for the services of the package."""
        for unit in sorted(Path(self._outputs.own, "lib/systemd/system").glob("*.service")):
            if not unit.is_symlink() and unit.is_file():
                self._add_unit(unit.read_text(errors="replace"))

    def _add_unit(self, text: str) -> None:
        found: list[tuple[str, str]] = re.findall(r"(?m)^([A-Za-z]+)=(.*?)[ \t]*$", text)
        settings = dict(found)
        user = settings.get("User", "root")
        group = settings.get("Group", user)
        for kind, above in _UNIT_DIRECTORIES.items():
            mode = _mode(settings.get(f"{kind}DirectoryMode"))
            for name in settings.get(f"{kind}Directory", "").split():
                path = f"{above}/{name.partition(':')[0]}"
                if posixpath.normpath(path) not in self._owners:
                    self._directory(path, Owner(mode, user, group))

    def declare(self, name: str) -> None:
        """Write the accounts and owners that were found to files which `name` tells from other packages'."""
        self._write(f"lib/sysusers.d/{name}.conf", self._accounts.lines())
        lines = [
            f"d {path} {owner.mode} {owner.user} {owner.group} - -"
            for path, owner in sorted(self._owners.items())
            if not owner.is_default() or path.startswith("/run/")
        ]
        self._write(f"lib/tmpfiles.d/{name}-directories.conf", lines)

    def _write(self, relative: str, lines: Iterable[str]) -> None:
        if text := "".join(f"{line}\n" for line in lines):
            path = Path(self._outputs.own, relative)
            path.parent.mkdir(parents=True, exist_ok=True)
            # A package may declare the same by itself: its own file stays.
            if not path.exists():
                path.write_text(text)

    def alternatives(self, arguments: Command) -> None:
        """`update-alternatives --install LINK NAME PATH PRIORITY [--slave LINK NAME PATH]...`."""
        for at, word in enumerate(arguments):
            if word in ("--install", "--slave") and at + 3 < len(arguments):
                link, path = arguments[at + 1], arguments[at + 3]
                if link and path and _PATH.fullmatch(link) and _PATH.fullmatch(path):
                    self._links.alternatives.setdefault(link, path)

    def adduser(self, arguments: Command) -> None:
        """Declare what `adduser` adds: a system account, a group, or a membership."""
        options, names = _options(arguments, _ADDUSER_VALUES)
        if len(names) == 2:  # noqa: PLR2004  # a user and a group
            self._member(*names)
        elif "--group" in options and "--system" not in options:
            self.addgroup(arguments)
        elif len(names) == 1:
            group = (
                options.get("--ingroup")
                or options.get("--gid")
                or ("" if "--group" in options else "nogroup")
            )
            home = options.get("--home") or ""
            self._user(
                names[0], options.get("--uid"), group, options.get("--gecos"), home, options.get("--shell")
            )
            if home and "--no-create-home" not in options:
                self._owner(home, "0755", names[0], group or names[0])

    def useradd(self, arguments: Command) -> None:
        """Declare the account that `useradd` adds."""
        options, names = _options(arguments, _USERADD_VALUES, _USERADD_LONG)
        if len(names) == 1:
            home = options.get("--home-dir") or ""
            shell = options.get("--shell")
            self._user(
                names[0],
                options.get("--uid"),
                options.get("--gid") or "",
                options.get("--comment"),
                home,
                shell,
            )
            for group in (options.get("--groups") or "").split(","):
                self._member(names[0], group)
            if home and ("--create-home" in options or "-m" in options):
                self._owner(home, "0755", names[0], options.get("--gid") or names[0])

    def usermod(self, arguments: Command) -> None:
        """`usermod -a -G GROUP NAME`; other changes are of accounts that exist already."""
        options, names = _options(arguments, _USERADD_VALUES, _USERADD_LONG)
        for group in (options.get("--groups") or "").split(","):
            for name in names:
                self._member(name, group)

    def addgroup(self, arguments: Command) -> None:
        """Read `addgroup [--system] [--gid ID] NAME`, and `groupadd`."""
        options, names = _options(arguments, _ADDUSER_VALUES, {"-g": "--gid"})
        number = options.get("--gid") or "-"
        for name in names[:1]:
            if _NAME.fullmatch(name):
                self._accounts.groups.setdefault(
                    name, f"g {name} {number if _NUMBER.fullmatch(number) else '-'}"
                )

    def _user(
        self, name: str, number: str | None, group: str, text: str | None, home: str, shell: str | None
    ) -> None:
        if not _NAME.fullmatch(name):
            return
        user_id = number if number and _NUMBER.fullmatch(number) else "-"
        if group and (_NAME.fullmatch(group) or _NUMBER.fullmatch(group)):
            user_id += f":{group}"
        gecos = text.split(",")[0] if text and _TEXT.fullmatch(text) else ""
        places = [path if path and _PATH.fullmatch(path) else "-" for path in (home, shell)]
        self._accounts.users.setdefault(name, f'u {name} {user_id} "{gecos}" {" ".join(places)}')

    def _member(self, user: str, group: str) -> None:
        if _NAME.fullmatch(user) and _NAME.fullmatch(group):
            self._accounts.members.add((user, group))

    def mkdir(self, arguments: Command) -> None:
        """`mkdir [-p] [-m MODE] DIRECTORY...`."""
        options, names = _options(arguments, "m")
        for name in map(self._full, names):
            self._directory(name, Owner(_mode(options.get("-m"))))

    def install(self, arguments: Command) -> None:
        """`install -d [-m MODE] [-o USER] [-g GROUP] DIRECTORY...`, or `install [-m MODE] SOURCE... PLACE`."""
        options, names = _options(arguments, "mogtS")
        if "-d" in options or "--directory" in options:
            owner = Owner(_mode(options.get("-m")), options.get("-o") or "root", options.get("-g") or "root")
            for name in map(self._full, names):
                self._directory(name, owner)
        else:
            self.copy(tuple(names))

    def chown(self, arguments: Command) -> None:
        """`chown [-R] USER[:GROUP] DIRECTORY...`; files of a store path have no owner."""
        _, names = _options(arguments, "")
        for name in names[1:]:
            user, _, group = names[0].replace(".", ":").partition(":")
            self._change(name, user=user or None, group=group or None)

    def chgrp(self, arguments: Command) -> None:
        """`chgrp [-R] GROUP DIRECTORY...`."""
        _, names = _options(arguments, "")
        for name in names[1:]:
            self._change(name, group=names[0])

    def chmod(self, arguments: Command) -> None:
        """`chmod MODE DIRECTORY...`, with the mode as a number."""
        _, names = _options(arguments, "")
        for name in names[1:]:
            if _MODE.fullmatch(names[0]):
                self._change(name, mode=_mode(names[0]))

    def statoverride(self, arguments: Command) -> None:
        """`dpkg-statoverride --update --add USER GROUP MODE PATH`."""
        _, names = _options(arguments, "")
        if "--add" in arguments and len(names) == 4:  # noqa: PLR2004  # user, group, mode, path
            user, group, mode, path = names
            self._change(path, user=user, group=group, mode=_mode(mode))

    def copy(self, arguments: Command) -> None:
        """`cp SOURCE... PLACE`, and `ucf SOURCE PLACE`: configuration that a script puts into place."""
        _, names = _options(arguments, _UCF_VALUES)
        *sources, place = names or [""]
        place = self._full(place)
        for name in sources:
            source = self._full(name)
            source = self._temporary.get(source, source)
            if place.startswith(TEMPORARY):
                self._temporary[place] = source
                continue
            found = self._outputs.find(source) if _PATH.fullmatch(source) else None
            target = self._place(place, source)
            if found and target and Path(found).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, target)

    def write(self, arguments: Command) -> None:
        """`cat SOURCE > PLACE`; and `sed ... SOURCE > PLACE`, whose changes are lost: they are the machine's."""
        match arguments:
            case (*_, str() as source, ">", str() as place) if source.startswith("/"):
                self.copy((source, place))

    def link(self, arguments: Command) -> None:
        """`ln -s TARGET LINK`."""
        options, names = _options(arguments, "")
        if any("s" in option for option in options) and len(names) == 2:  # noqa: PLR2004  # target and link
            target, link = names[0], self._full(names[1])
            if link.endswith("/") or Path(self._outputs.own, output_path(link)).is_dir():
                link = f"{link.rstrip('/')}/{posixpath.basename(target)}"
            if target and self._place(link, target):
                self._links.declared.setdefault(link, target)

    def enable_php_module(self, arguments: Command) -> None:
        """`php_invoke enmod VERSION INTERFACE MODULE`: a link to the module's configuration, whose name orders it."""
        match arguments:
            case ("enmod", str() as version, str() as interface, str() as module):
                available = f"/etc/php/{version}/mods-available/{module}.ini"
                file = Path(self._outputs.own, output_path(available))
                if _PATH.fullmatch(available) and file.is_file():
                    priority = re.search(r"(?m)^;\s*priority=(\d{1,3})", file.read_text(errors="replace"))
                    name = f"{priority[1] if priority else '20'}-{module}.ini"
                    for each in _PHP_INTERFACES if interface == "ALL" else (interface,):
                        place = f"/etc/php/{version}/{each}/conf.d/{name}"
                        self._links.declared.setdefault(place, available)

    def _place(self, place: str, source: str) -> Path | None:
        """Where in the output a script's file is to be; None if something is there or it does not belong to the package."""
        if not _PATH.fullmatch(place):
            return None
        target = Path(self._outputs.own, output_path(place))
        if place.endswith("/") or target.is_dir():
            target = target / posixpath.basename(source)
        normal = posixpath.normpath(place)
        if not normal.startswith(_WRITABLE) or normal.startswith(_OF_THE_SYSTEM):
            return None
        return None if os.path.lexists(target) else target

    def _directory(self, path: str, owner: Owner) -> None:
        normal = posixpath.normpath(path)
        if not _PATH.fullmatch(path) or normal.startswith(_OF_THE_SYSTEM):
            return
        if normal.startswith(("/var/", "/etc/", "/srv/")):
            directory = Path(self._outputs.own, output_path(normal))
            if not directory.is_symlink() and not directory.is_file():
                directory.mkdir(parents=True, exist_ok=True)
        self._owner(normal, owner.mode, owner.user, owner.group)

    def _owner(self, path: str, mode: str, user: str, group: str) -> None:
        normal = posixpath.normpath(path)
        if f"{normal}/".startswith(_OWNED) and _PATH.fullmatch(path) and _MODE.fullmatch(mode):
            names = [name if _NAME.fullmatch(name) else "root" for name in (user, group)]
            self._owners[normal] = Owner(mode.zfill(4), *names)

    def _change(
        self, path: str, *, user: str | None = None, group: str | None = None, mode: str | None = None
    ) -> None:
        normal = posixpath.normpath(self._full(path))
        is_own = Path(self._outputs.own, output_path(normal)).is_dir() if _PATH.fullmatch(normal) else False
        if normal in self._owners or is_own:
            owner = self._owners.get(normal, Owner())
            self._owner(normal, mode or owner.mode, user or owner.user, group or owner.group)


# What systemd makes for a service, by the first part of the setting's name.
_UNIT_DIRECTORIES = {
    "Runtime": "/run", "State": "/var/lib", "Cache": "/var/cache", "Logs": "/var/log", "Configuration": "/etc",
}  # fmt: skip
_PHP_INTERFACES = ("apache2", "cgi", "cli", "embed", "fpm", "phpdbg")
_ADDUSER_VALUES = (
    "--home", "--shell", "--uid", "--gid", "--ingroup", "--gecos", "--comment", "--firstuid", "--lastuid", "--conf",
)  # fmt: skip
_UCF_VALUES = ("--sum-file", "--src-dir", "--state-dir", "--debug")
_USERADD_VALUES = (
    "--home-dir", "--shell", "--uid", "--gid", "--comment", "--groups", "--base-dir", "--key", "--expiredate", "--password",
)  # fmt: skip
_USERADD_LONG = {
    "-d": "--home-dir", "-s": "--shell", "-u": "--uid", "-g": "--gid", "-c": "--comment", "-G": "--groups",
    "-b": "--base-dir", "-K": "--key", "-aG": "--groups", "-m": "--create-home", "--home": "--home-dir", "-p": "--password",
}  # fmt: skip

_OF_ACCOUNTS = ("adduser", "useradd", "addgroup", "groupadd")
_ACTIONS: dict[str, Callable[[Installation, Command], None]] = {
    "update-alternatives": Installation.alternatives,
    "adduser": Installation.adduser,
    "useradd": Installation.useradd,
    "usermod": Installation.usermod,
    "addgroup": Installation.addgroup,
    "groupadd": Installation.addgroup,
    "mkdir": Installation.mkdir,
    "install": Installation.install,
    "chown": Installation.chown,
    "chgrp": Installation.chgrp,
    "chmod": Installation.chmod,
    "dpkg-statoverride": Installation.statoverride,
    "cp": Installation.copy,
    "ucf": Installation.copy,
    "cat": Installation.write,
    "sed": Installation.write,
    "ln": Installation.link,
    "cd": Installation.change_directory,
    "php_invoke": Installation.enable_php_module,
}


def _mode(text: str | None) -> str:
    return text.zfill(4) if text and _MODE.fullmatch(text) else "0755"


def _options(
    arguments: Command, with_value: str | Sequence[str], other_names: dict[str, str] | None = None
) -> tuple[dict[str, str | None], list[str]]:
    """The options of a command with their values, and its other words; words that are not known count as none.

    Args:
        arguments: of the command.
        with_value: letters or long names of the options that a value follows.
        other_names: of options, which stand for the long ones.
    """
    valued = {f"-{letter}" for letter in with_value} if isinstance(with_value, str) else set(with_value)
    options: dict[str, str | None] = {}
    names: list[str] = []
    words = [word for word in arguments if word is not None]
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            names.append(word)
            continue
        option, equals, value = word.partition("=")
        option = (other_names or {}).get(option, option)
        if equals:
            options[option] = value
        elif option in valued:
            options[option] = words.pop(0) if words else None
        elif not option.startswith("--") and option[:2] in valued:
            options[option[:2]] = option[2:]
        else:
            options[option] = None
    return options, names
