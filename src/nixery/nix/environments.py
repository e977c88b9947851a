"""The environment of each kind of child process, from allow-lists: no child inherits the server's unchanged.

A builder can read every variable of the process that builds: a fixed-output derivation names them in
``impureEnvVars`` (Nix manual, "Advanced attributes"). A package set in a directory can read every variable of
its evaluation (``builtins.getEnv``). Neither gets a secret: this module drops variables outside of the list,
and also listed ones whose value contains a login, for example a proxy's.

Nix also reads its configuration files, which ``RESTRICTED`` overrides for the evaluation of untrusted expressions.

Every environment has the mark by which the warden finds the processes of a server
(``nixery.nix.processes.guarded``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

# Search path, user, language, and directories of the user's files.
_PROCESS = r"PATH|HOME|USER|LOGNAME|TMPDIR|TZ|LANG|LANGUAGE|LC_\w+|LOCALE_ARCHIVE|XDG_\w+_(HOME|DIRS)|NIXERY_STARTED_BY"

# Certificates and proxies.
_NETWORK = (
    r"SSL_CERT_\w+|NIX_SSL_CERT_FILE|CURL_CA_BUNDLE|GIT_SSL_CAINFO|GIT_SSL_CAPATH"
    r"|(https?|ftp|all|no)_proxy|(HTTPS?|FTP|ALL|NO)_PROXY"
)

# Documented by Nix, and nixpkgs' mirrors. Not every NIX_*: NIX_CURL_FLAGS may hold a password.
_NIX = (
    r"NIX_(PATH|REMOTE|CONFIG|CONF_DIR|USER_CONF_FILES|STORE|DAEMON_SOCKET_PATH|IGNORE_SYMLINK_STORE|BUILD_HOOK|SSHOPTS)"
    r"|NIX_(STORE|STATE|DATA|LOG|LOCALSTATE|LIBEXEC|BIN|SYSCONF)_DIR|NIX_HASHED_MIRRORS|NIX_CONNECT_TIMEOUT|NIX_MIRRORS_\w+"
    r"|GC_INITIAL_HEAP_SIZE"
)

# Logins for git and ssh. GIT_DIR and similar ones would redirect git to another repository, GIT_TRACE would
# log passwords.
_GIT = (
    r"SSH_AUTH_SOCK|SSH_AGENT_PID|GIT_SSH|GIT_SSH_COMMAND|GIT_SSH_VARIANT|GIT_SSL_\w+|GIT_PROXY_\w+|GIT_HTTP_\w+"
    r"|GIT_CONFIG_\w+|GIT_EXEC_PATH|GIT_ALLOW_PROTOCOL|KRB5CCNAME"
)

# Read by credential helpers of Docker and podman, of clouds and of desktops.
_CREDENTIALS = (
    r"DOCKER_\w+|REGISTRY_AUTH_FILE|XDG_RUNTIME_DIR|DBUS_SESSION_BUS_ADDRESS|DISPLAY|WAYLAND_DISPLAY|XAUTHORITY|GNUPGHOME|GPG_TTY"
    r"|PASSWORD_STORE_\w+|SSH_AUTH_SOCK|(AWS|GOOGLE|CLOUDSDK|AZURE|ECR|ACR)_\w+"
)

_BUILD = re.compile(f"{_PROCESS}|{_NETWORK}|{_NIX}")
_FETCH = re.compile(f"{_PROCESS}|{_NETWORK}|{_NIX}|{_GIT}|NETRC")
_REPOSITORY = re.compile(f"{_PROCESS}|{_NETWORK}|{_GIT}")
_HELPER = re.compile(f"{_PROCESS}|{_NETWORK}|{_CREDENTIALS}")

_PROXY = re.compile(r"(?:https?|ftp|all)_proxy", re.IGNORECASE | re.ASCII)

# A login in a URL: anything before the `@` with HTTP and FTP; for ssh, a user alone does not count. And a
# parameter with the name of a secret.
_LOGIN = re.compile(
    r"(?:https?|ftps?)://[^/\s@]+@|://[^/\s@:]*:[^/\s@]*@"
    r"|[?&][a-z_-]*(?:token|secret|password|signature|credential|key)[a-z_-]*=",
    re.IGNORECASE,
)

# Options of Nix that are secrets, or pass variables to builders.
_SECRET_OPTION = re.compile(r"(?:extra-)?(?:access-tokens|impure-env)", re.ASCII)

# Options of an evaluation that reads nothing but what the command names, whatever the configuration of Nix says: no
# search path, which such an evaluation may read, and no functions that run programs.
RESTRICTED = (
    *("--option", "restrict-eval", "true", "--option", "nix-path", ""),
    *("--option", "allow-unsafe-native-code-during-evaluation", "false"),
)

# Settings of a git that reads hostile repositories; they override those of all files. Most of these features are
# unnecessary here and can make git run a program; `GitRepository` collects garbage, in the foreground. A submodule
# cannot be a repository of this machine, as in newer versions of git by default.
SAFE_GIT = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.alternateRefsCommand": "true",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "fetch.writeCommitGraph": "true",
    "transfer.bundleURI": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.file.allow": "user",
    "protocol.ext.allow": "never",
}

# Otherwise git maps whole packs of any size, and fails if it may not.
_FEW_MAPPINGS = {"core.packedGitWindowSize": "32m", "core.packedGitLimit": "512m"}

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def build_environment(ours: Mapping[str, str], named: Collection[str] = ()) -> Mapping[str, str]:
    """Return the environment of builders, and of evaluations that read variables: no secret but in ``named``.

    Args:
        ours: the environment of this process.
        named: variables that are passed as they are.
    """
    found = {name: value for name, value in ours.items() if _BUILD.fullmatch(name)}
    if "NIX_CONFIG" in found:
        found["NIX_CONFIG"] = _without_secret_lines(found["NIX_CONFIG"])
    found = {name: value for name, value in found.items() if not _has_login(name, value)}
    return found | {name: ours[name] for name in named if name in ours}


def withheld_variables(ours: Mapping[str, str], named: Collection[str] = ()) -> tuple[str, ...]:
    """Return variables that builders usually get, but that are dropped or cut because of a secret."""
    given = build_environment(ours, named)
    return tuple(
        sorted(name for name, value in ours.items() if _BUILD.fullmatch(name) and given.get(name) != value)
    )


def fetch_environment(ours: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment of Nix commands that fetch, and run no author's code: with logins."""
    return _with_certificates_for_git({name: value for name, value in ours.items() if _FETCH.fullmatch(name)})


def git_environment(ours: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment in which git contacts a repository, with logins."""
    return _with_certificates_for_git(
        {name: value for name, value in ours.items() if _REPOSITORY.fullmatch(name)}
    )


def credential_environment(ours: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables that locate logins for registries, for this process and for credential helpers."""
    return {name: value for name, value in ours.items() if _HELPER.fullmatch(name)}


def with_safe_git(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Return an environment for a Nix that runs git on hostile repositories, in little address space."""
    return with_git_settings(environment, [*SAFE_GIT.items(), *_FEW_MAPPINGS.items()])


def with_git_settings(
    environment: Mapping[str, str], settings: Sequence[tuple[str, str]]
) -> Mapping[str, str]:
    """Add settings to an environment, which hides them from other users; they override those of all files."""
    given = environment.get("GIT_CONFIG_COUNT", "0")
    start = int(given) if re.fullmatch(r"[0-9]{1,4}", given) else 0
    added = {"GIT_CONFIG_COUNT": str(start + len(settings))}
    for number, (key, value) in enumerate(settings, start):
        added |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return {**environment, **added}


def variable_names(value: object) -> object:
    """Split names of variables at commas.

    Raises:
        ValueError: one of them is not a variable's name.
    """
    if not isinstance(value, str):
        return value
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    wrong = next((name for name in names if not _VARIABLE.fullmatch(name)), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is not the name of a variable; expected names, separated by commas")
    return names


def without_secrets(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse arguments with secrets: every user of the machine can read arguments.

    Raises:
        ValueError: an argument holds a secret.
    """
    if any(
        _SECRET_OPTION.fullmatch(argument.lstrip("-")) or _LOGIN.search(argument) for argument in arguments
    ):
        raise ValueError(
            "it has a secret, and every user of the machine can read arguments; put access-tokens and logins into nix.conf or NIX_CONFIG"
        )
    return arguments


def _with_certificates_for_git(environment: dict[str, str]) -> Mapping[str, str]:
    # Unlike Nix and Python, git reads SSL_CERT_FILE only if it was built with OpenSSL; Debian's has GnuTLS.
    authorities = environment.get("SSL_CERT_FILE")
    return {"GIT_SSL_CAINFO": authorities, **environment} if authorities else environment


def _has_login(name: str, value: str) -> bool:
    # A proxy's URL may lack its scheme.
    return _LOGIN.search(value) is not None or ("@" in value and _PROXY.fullmatch(name) is not None)


def _without_secret_lines(configuration: str) -> str:
    lines = configuration.split("\n")
    return "\n".join(
        line
        for line in lines
        if not _SECRET_OPTION.fullmatch(line.partition("=")[0].strip()) and not _LOGIN.search(line)
    )
