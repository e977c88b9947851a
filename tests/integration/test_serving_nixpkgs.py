"""A server of nixpkgs: from a channel, with a binary cache, behind a proxy, and without a network.

The package set stands for nixpkgs. Its package can be built on the build farm only, so that a server that has
it took it from the farm's cache.
"""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.integration.conftest import StartServer
from tests.support.command_line import CommandLine
from tests.support.forward_proxy import ForwardProxy, forward_proxy
from tests.support.git_server import git_server
from tests.support.nix import wait_until
from tests.support.private_nix import PrivateNix
from tests.support.repository import Repository
from tests.support.server import Server, clean_environment, running_server
from tests.support.web_server import file_server

_ROOT = Path(__file__).parents[2]
_CHANNEL = "nixos-26.05"
_FEATURES = ("--extra-experimental-features", "nix-command")

# As nixpkgs does it.
_NEEDS_NIX = """\
let required = import ./lib/minver.nix; in
if builtins.compareVersions required builtins.nixVersion == 1 then
  abort "This version of Nixpkgs requires Nix >= ${required}, please upgrade"
else
  { system, ... }: { }
"""

_PACKAGE = """\
{{ system, ... }}: {{
  hello = derivation {{
    name = "hello-26.05";
    inherit system;
    builder = "/bin/sh";
    PATH = "/usr/bin:/bin";
    args = [ "-c" "{condition} && mkdir -p $out/share && echo built > $out/share/version" ];
  }};
}}
"""


@dataclass
class Farm:
    """A build farm, with the channel that it built.

    Attributes:
        web: the directory that it publishes: the repository ``nixpkgs``, ``archives`` and ``cache``.
        commit: of the channel.
        key: the public key of the cache.
    """

    web: Path
    commit: str
    key: str


@pytest.fixture
def directories() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def private_nix(directory: Path, stack: ExitStack) -> PrivateNix:
    made = PrivateNix.create(directory)
    stack.callback(made.remove)
    return made


@pytest.fixture
def farm(tmp_path: Path, directories: ExitStack) -> Farm:
    web = tmp_path / "web"
    (web / "archives").mkdir(parents=True)
    # Nix remembers, for all stores of a user, who signed a path of a cache: each farm has an own key and an own path.
    machine = tmp_path / f"this-is-the-farm-{uuid.uuid4()}"
    machine.touch()
    repository = Repository(web / "nixpkgs")
    repository.git("checkout", "--quiet", "-b", _CHANNEL)
    (repository.directory / "default.nix").write_text(_PACKAGE.format(condition=f"test -e {machine}"))
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "--message", "release")
    commit = repository.git("rev-parse", "HEAD")
    archive = web / "archives" / f"{commit}.tar.gz"
    repository.git("archive", "--format=tar.gz", f"--prefix=nixpkgs-{commit}/", f"--output={archive}", commit)
    nix = private_nix(tmp_path / "farm", directories)
    secret, public = tmp_path / "secret-key", tmp_path / "public-key"

    def run(*command: str) -> str:
        completed = nix.run(*command)
        assert completed.returncode == 0, completed.stderr
        return completed.stdout.strip()

    run("nix-store", "--generate-binary-cache-key", "farm-1", str(secret), str(public))
    path = run(
        *("nix-build", "--no-out-link", str(repository.directory), "--attr", "hello"),
        *("--arg", "system", "builtins.currentSystem"),
    )
    run("nix", *_FEATURES, "copy", "--to", f"file://{web / 'cache'}?secret-key={secret}", path)
    machine.unlink()
    return Farm(web, commit, public.read_text().strip())


def configuration(kind: str, substituters: str, key: str) -> str:
    """Return what set-up writes, with another cache in place of the public one."""
    printed = subprocess.run(
        ["bash", "-c", f"source scripts/setup.sh && nix_configuration '' false {kind}"],
        cwd=_ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    printed = printed.replace(" https://cache.nixos.org\n", f" {substituters}\n")
    return re.sub(r"(?m)^trusted-public-keys = .*", f"trusted-public-keys = {key}", printed)


@dataclass
class Checkout:
    """A checkout of this project with little more in it than what ``make serve`` runs.

    Attributes:
        directory: of the checkout.
        nix: the store and the configuration directories of its servers.
    """

    directory: Path
    nix: PrivateNix

    @property
    def script(self) -> Path:
        return self.directory / "scripts" / "serve.sh"

    def settings(self, **settings: str) -> Mapping[str, str]:
        return {"NIX_CONF_DIR": str(self.directory / "var" / "nix"), **settings}


@pytest.fixture
def checkout(tmp_path: Path, directories: ExitStack) -> Checkout:
    directory = tmp_path / "checkout"
    for name in ("scripts", ".venv/bin", "packagesets/debian", "var/nix/public-cache"):
        (directory / name).mkdir(parents=True)
    shutil.copy(_ROOT / "scripts" / "serve.sh", directory / "scripts")
    program = directory / ".venv" / "bin" / "nixery"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m nixery "$@"\n')
    program.chmod(0o755)
    (directory / "packagesets" / "debian" / "default.nix").write_text(_PACKAGE.format(condition="true"))
    return Checkout(directory, private_nix(tmp_path / "served", directories))


def version(server: Server) -> str:
    return server.client.pull("hello").filesystem.read("share/version").decode().strip()


def test_make_serve_takes_a_channel_from_the_cache_and_debians_set_from_nowhere(
    checkout: Checkout, farm: Farm, tmp_path: Path
) -> None:
    with file_server(farm.web) as web:
        for kind in ("", "public-cache"):
            file = checkout.directory / "var" / "nix" / kind / "nix.conf"
            file.write_text(configuration(kind, f"{web.url}/cache", farm.key))
        channel = {
            "NIXERY_CHANNEL": _CHANNEL,
            "NIXERY_CHANNEL_REPO": f"file://{farm.web}/nixpkgs",
            "NIXERY_CHANNEL_URL": f"{web.url}/archives/{{rev}}.tar.gz",
        }
        launcher = (*checkout.nix.launcher, str(checkout.script))
        with running_server(tmp_path / "debian", checkout.settings(), launcher=launcher) as server:
            assert version(server) == "built"
        assert web.requests == []
        with running_server(tmp_path / "nixpkgs", checkout.settings(**channel), launcher=launcher) as server:
            assert version(server) == "built"
        assert [path for path in web.requests if path.endswith(".narinfo")]


@pytest.mark.parametrize(
    ("variable", "value", "cached"),
    [
        ("NIXERY_CHANNEL", _CHANNEL, True),
        ("NIXERY_PKGS_REPO", "https://git.example/packages", True),
        ("NIXERY_FLAKE", "github:example/packages", True),
        ("NIXERY_PKGS_PATH", "packages", False),
        ("NIXERY_PKGS_PATH", "nixpkgs", True),
        ("NIXERY_STORAGE_BACKEND", "memory", False),
    ],
)
def test_a_variable_of_the_operator_wins(
    checkout: Checkout, variable: str, value: str, *, cached: bool
) -> None:
    (checkout.directory / ".venv" / "bin" / "nixery").write_text("#!/bin/sh\nexec env\n")
    (checkout.directory / "var" / "nix" / "public-cache" / "nix.conf").touch()
    nixpkgs = checkout.directory / "nixpkgs" / "pkgs" / "top-level"
    nixpkgs.mkdir(parents=True)
    (nixpkgs / "all-packages.nix").touch()
    printed = subprocess.run(
        [str(checkout.script)],
        env=clean_environment(checkout.settings(**{variable: value})),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    environment = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    assert environment[variable] == value
    sources = {"NIXERY_CHANNEL", "NIXERY_PKGS_REPO", "NIXERY_FLAKE", "NIXERY_PKGS_PATH"} & environment.keys()
    assert sources == ({variable} if variable != "NIXERY_STORAGE_BACKEND" else {"NIXERY_PKGS_PATH"})
    assert environment["NIX_CONF_DIR"].endswith("/public-cache") == cached


@pytest.mark.security
def test_a_package_with_the_signature_of_another_key_is_not_taken(
    farm: Farm, tmp_path: Path, directories: ExitStack
) -> None:
    other = f"farm-1:{'A' * 43}="
    nix = private_nix(tmp_path / "served", directories)
    (tmp_path / "served" / "etc" / "nix.conf").write_text(
        configuration("public-cache", f"file://{farm.web}/cache", other)
    )
    with running_server(tmp_path, without_network(nix, farm), launcher=nix.launcher) as server:
        response = server.client.manifest("hello")
    # Nix ignores the cache's package, and tries to build it.
    assert response.status == 422
    assert "hello-26.05 failed" in response.error["message"]


def without_network(nix: PrivateNix, farm: Farm) -> Mapping[str, str]:
    return {
        **nix.environment(),
        "NIXERY_CHANNEL": farm.commit,
        "NIXERY_CHANNEL_URL": f"file://{farm.web}/archives/{{rev}}.tar.gz",
    }


def test_sources_and_binaries_from_files(farm: Farm, tmp_path: Path, directories: ExitStack) -> None:
    nix = private_nix(tmp_path / "served", directories)
    (tmp_path / "served" / "etc" / "nix.conf").write_text(
        configuration("public-cache", f"file://{farm.web}/cache", farm.key)
    )
    with running_server(tmp_path, without_network(nix, farm), launcher=nix.launcher) as server:
        assert version(server) == "built"


BehindProxy = Callable[..., AbstractContextManager[tuple[Server, ForwardProxy]]]

_NAMES = ("channel.example", "archives.example", "cache.example")


@pytest.fixture
def behind_proxy(
    farm: Farm, tmp_path: Path, directories: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> BehindProxy:
    """Start servers whose names for channel, archives and cache only a proxy knows, which has an own authority."""
    for variable in ("GIT_SSL_CAINFO", "NIX_SSL_CERT_FILE", "CURL_CA_BUNDLE", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*_NAMES).configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    nix = private_nix(tmp_path / "served", directories)
    (tmp_path / "served" / "etc" / "nix.conf").write_text(
        configuration("public-cache", "https://cache.example/cache", farm.key)
    )

    @contextmanager
    def start(login: str = "", **settings: str) -> Iterator[tuple[Server, ForwardProxy]]:
        with git_server(farm.web, context) as web:
            ports = dict.fromkeys(_NAMES, web.port)
            with forward_proxy(ports, login) as proxy:
                usual = {
                    **nix.environment(),
                    "NIXERY_CHANNEL": _CHANNEL,
                    "NIXERY_CHANNEL_REPO": "https://channel.example/nixpkgs",
                    "NIXERY_CHANNEL_URL": "https://archives.example/archives/{rev}.tar.gz",
                    "HTTPS_PROXY": proxy.url,
                    "SSL_CERT_FILE": str(tmp_path / "authority.pem"),
                }
                with running_server(tmp_path, {**usual, **settings}, launcher=nix.launcher) as server:
                    yield server, proxy

    return start


def hosts(proxy: ForwardProxy) -> set[str]:
    return {target.partition(":")[0] for target in proxy.targets}


def test_behind_a_proxy_with_an_authority_of_its_own(behind_proxy: BehindProxy) -> None:
    with behind_proxy() as (server, proxy):
        assert version(server) == "built"
    assert hosts(proxy) == set(_NAMES)


@pytest.mark.security
def test_another_authority_is_not_trusted(behind_proxy: BehindProxy, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    with behind_proxy(SSL_CERT_FILE=str(tmp_path / "other.pem")) as (server, proxy):
        assert server.client.manifest("hello").status == 503
    assert hosts(proxy) == {"channel.example"}


def test_a_proxy_with_a_login(behind_proxy: BehindProxy) -> None:
    with behind_proxy("user:secret", NIXERY_BUILD_ENVIRONMENT="HTTPS_PROXY") as (server, proxy):
        assert version(server) == "built"
    assert hosts(proxy) == set(_NAMES)


@pytest.mark.security
def test_the_login_of_a_proxy_is_not_for_builders(behind_proxy: BehindProxy) -> None:
    # Nix tries five times, longer each time, in the hope that the cache answers.
    once = "download-attempts = 1"
    with behind_proxy("user:secret", NIX_CONFIG=once) as (server, proxy):
        assert server.client.manifest("hello").status == 422
        assert "variables with a login are withheld from builders" in server.log
    assert hosts(proxy) == {"channel.example", "archives.example"}


@pytest.fixture
def demanding_set(tmp_path: Path) -> Path:
    """A package set like nixpkgs that needs a Nix which does not exist yet."""
    directory = tmp_path / "demanding"
    (directory / "lib").mkdir(parents=True)
    (directory / "lib" / "minver.nix").write_text('# Expose the minimum required version\n"99.1"\n')
    (directory / "default.nix").write_text(_NEEDS_NIX)
    return directory


_DEMAND = "it needs Nix 99.1 or newer, and this machine has Nix 2."
_ADVICE = "docs/how-to/serve-nixpkgs.md says how to get a newer one"


def test_a_set_that_needs_a_newer_nix(start_server: StartServer, demanding_set: Path) -> None:
    server = start_server(NIXERY_PKGS_PATH=str(demanding_set))
    wait_until(lambda: "Nix is too old for the package set" in server.log, "the server has warned")
    response = server.client.manifest("hello")
    message = response.error["message"]
    assert response.status == 500
    assert message.startswith(f"the package set does not evaluate: {_DEMAND}")
    assert _ADVICE in message
    assert "\n" not in message
    assert server.log.count("Nix is too old for the package set") == 1


@pytest.mark.parametrize(("variable", "scheme"), [("NIXERY_PKGS_REPO", "file"), ("NIXERY_FLAKE", "git+file")])
def test_a_commit_that_needs_a_newer_nix(
    start_server: StartServer, demanding_set: Path, tmp_path: Path, variable: str, scheme: str
) -> None:
    repository = Repository(tmp_path / "nixpkgs")
    shutil.copytree(demanding_set, repository.directory, dirs_exist_ok=True)
    (repository.directory / "flake.nix").write_text(
        "{ outputs = { self }: { legacyPackages.x86_64-linux = import ./. { }; }; }"
    )
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "--message", "release")
    source = {"NIXERY_PKGS_PATH": None, variable: f"{scheme}://{repository.directory}"}
    server = start_server(**source, NIXERY_PLATFORMS="linux/amd64")
    assert _DEMAND in server.client.manifest("hello").error["message"]
    assert "Nix is too old for the package set" in server.log


def test_check_says_which_nix_a_set_needs(
    demanding_set: Path, settings: Mapping[str, str], tmp_path: Path
) -> None:
    nixery = CommandLine({**settings, "NIXERY_PKGS_PATH": str(demanding_set)}, tmp_path)
    printed = nixery("check", status=1).stdout
    (line,) = [line for line in printed.splitlines() if line.startswith("WRONG source")]
    assert _DEMAND in line
    assert _ADVICE in line
