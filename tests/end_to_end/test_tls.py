"""Clients in an image verify certificates against the bundle that the image's variables name."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trustme

from tests.support.container import Container
from tests.support.server import HOST
from tests.support.web_server import serving

BUNDLE = "/etc/ssl/certs/ca-bundle.crt"
OTHER_NAME = "/etc/ssl/certs/ca-certificates.crt"
ELSEWHERE = "/srv/bundle.pem"
VARIABLES = ("SSL_CERT_FILE", "NIX_SSL_CERT_FILE", "GIT_SSL_CAINFO")
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# A git repository without objects, as a plain web server has it: enough to list its branches.
_FILES = {
    "/repository/info/refs": f"{COMMIT}\trefs/heads/main\n",
    "/repository/HEAD": "ref: refs/heads/main\n",
}

pytestmark = pytest.mark.xdist_group("debian")


class _Handler(BaseHTTPRequestHandler):
    timeout = 30

    def do_GET(self) -> None:
        content = _FILES.get(self.path.partition("?")[0], "").encode()
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class' name for it
        """Log nothing."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def url(authority: trustme.CA) -> Iterator[str]:
    """The URL of a repository on a server with a certificate of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    with serving(_Handler, tls=context) as port:
        yield f"https://{HOST}:{port}/repository"


@pytest.fixture(params=["curl", "git", "python"])
def command(request: pytest.FixtureRequest, url: str) -> tuple[str, ...]:
    code = f"import urllib.request; print(urllib.request.urlopen('{url}/info/refs').read().decode())"
    commands = {
        "curl": ("curl", "--silent", "--show-error", "--fail", f"{url}/info/refs"),
        "git": ("git", "ls-remote", url),
        "python": ("python3", "-c", code),
    }
    return commands[request.param]


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> Path:
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    return file


def _assert_refused(answer: tuple[int, str]) -> None:
    status, printed = answer
    assert status != 0
    assert COMMIT not in printed
    assert "certificate" in printed.lower()
    assert "verif" in printed.lower() or "issuer" in printed


def test_an_unknown_authority_is_refused(tools: Container, command: tuple[str, ...]) -> None:
    _assert_refused(tools.status(*command, network_of_the_host=True))


def test_an_authority_mounted_over_the_bundle_is_trusted(
    tools: Container, command: tuple[str, ...], bundle: Path
) -> None:
    assert COMMIT in tools.run(*command, network_of_the_host=True, files={BUNDLE: bundle})


def test_the_variables_name_the_bundle(tools: Container, command: tuple[str, ...], bundle: Path) -> None:
    env = dict.fromkeys(VARIABLES, ELSEWHERE)
    assert COMMIT in tools.run(*command, network_of_the_host=True, env=env, files={ELSEWHERE: bundle})


# Debian's git uses GnuTLS, which also trusts all of /etc/ssl/certs.
@pytest.mark.parametrize("command", ["curl", "python"], indirect=True)
def test_compiled_in_bundles_are_ignored(
    tools: Container, command: tuple[str, ...], bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    env = dict.fromkeys(VARIABLES, ELSEWHERE)
    # Both names in /etc/ssl/certs lead to the file that is replaced.
    files = {BUNDLE: bundle, ELSEWHERE: other}
    assert tools.run("cat", OTHER_NAME, files=files) == bundle.read_text()
    _assert_refused(tools.status(*command, network_of_the_host=True, env=env, files=files))


def test_the_bundle_has_both_names(hello: Container) -> None:
    for name in (BUNDLE, OTHER_NAME):
        assert hello.find(name).read_text().startswith("-----BEGIN CERTIFICATE-----")
    assert {hello.image.env[variable] for variable in VARIABLES} == {BUNDLE}
