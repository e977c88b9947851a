"""Each runtime of the Debian set finds the image's certificates and time zones, by whichever name it knows them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trustme

from nixery.packing.java_keystore import java_keystore
from tests.support.container import Container, pull
from tests.support.server import HOST, Server
from tests.support.web_server import serving

pytestmark = pytest.mark.xdist_group("debian")

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
KEYSTORE = "/etc/ssl/certs/java/cacerts"
ANSWER = "verified"

# Without the variables, programs read the names that they have compiled in: under `env -i`, sudo, or cron.
WITHOUT_VARIABLES = {"SSL_CERT_FILE": "", "NIX_SSL_CERT_FILE": "", "GIT_SSL_CAINFO": ""}

_NODE = """
    const request = require("https").get(process.argv[1], (answer) => answer.pipe(process.stdout));
    request.on("error", (error) => { console.log(error.message); process.exitCode = 1; });
"""
_JAVA = """
    import java.net.URL;
    import java.security.KeyStore;
    import java.time.Instant;
    import java.time.ZoneId;
    import javax.net.ssl.TrustManagerFactory;
    import javax.net.ssl.X509TrustManager;

    public class Client {
        public static void main(String[] arguments) throws Exception {
            var factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
            factory.init((KeyStore) null);
            var manager = (X509TrustManager) factory.getTrustManagers()[0];
            System.out.println(manager.getAcceptedIssuers().length);
            System.out.println(Instant.EPOCH.atZone(ZoneId.of("Europe/Berlin")).getOffset());
            if (arguments.length > 0) {
                System.out.println(new String(new URL(arguments[0]).openStream().readAllBytes()));
            }
        }
    }
"""


class _Handler(BaseHTTPRequestHandler):
    timeout = 30

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class' name for it
        """Log nothing."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def port(authority: trustme.CA) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    with serving(_Handler, tls=context) as port:
        yield port


@pytest.fixture(scope="module")
def runtimes(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    name = "bash/coreutils/openssl/gnutls-bin/nodejs/gophers/tzdata"
    return pull(server.port, name, "latest", tmp_path_factory.mktemp("runtimes"))


@pytest.fixture(scope="module")
def java(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return pull(server.port, "bash/jdk", "latest", tmp_path_factory.mktemp("java"))


@pytest.mark.parametrize("variables", [{}, WITHOUT_VARIABLES], ids=["variables", "names"])
@pytest.mark.parametrize("client", ["openssl", "gnutls", "node", "go"])
def test_a_mounted_authority_is_the_only_one_that_is_trusted(
    runtimes: Container,
    authority: trustme.CA,
    port: int,
    tmp_path: Path,
    client: str,
    variables: dict[str, str],
) -> None:
    address = f"{HOST}:{port}"
    command, expected = {
        "openssl": (
            f"openssl s_client -verify_return_error -connect {address} </dev/null",
            "Verify return code: 0 (ok)",
        ),
        "gnutls": (f"gnutls-cli --port={port} {HOST} </dev/null", "The certificate is trusted"),
        "node": (f"node -e '{_NODE}' https://{address}/", ANSWER),
        "go": (f"built https://{address}/", ANSWER),
    }[client]
    unset = " ".join(f"--unset={name}" for name in variables)
    script = f"env {unset} {command}"
    status, printed = runtimes.status("bash", "-c", script, network_of_the_host=True)
    assert status != 0
    assert expected not in printed
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    printed = runtimes.run("bash", "-c", script, network_of_the_host=True, files={BUNDLE: bundle})
    assert expected in printed


def test_go_finds_time_zones_without_variables(runtimes: Container) -> None:
    assert runtimes.run("env", "--unset=TZDIR", "built") == "built 2026-07-01T02:00:00+02:00\n"


def test_java_trusts_the_authorities_of_the_image(java: Container, tmp_path: Path) -> None:
    (tmp_path / "Client.java").write_text(_JAVA)
    files = {"/srv/Client.java": tmp_path / "Client.java"}
    issuers, offset = java.run("java", "/srv/Client.java", files=files, user=1000).splitlines()
    assert int(issuers) > 100
    assert offset == "+01:00"
    bundle = java.find(BUNDLE).read_text()
    assert bundle.count("BEGIN CERTIFICATE") == int(issuers)
    listed = java.run("keytool", "-list", "-cacerts", "-storepass", "changeit")
    assert f"Your keystore contains {issuers} entries" in listed


def test_java_trusts_an_authority_in_a_mounted_keystore(
    java: Container, authority: trustme.CA, port: int, tmp_path: Path
) -> None:
    (tmp_path / "Client.java").write_text(_JAVA)
    keystore = java_keystore(authority.cert_pem.bytes())
    assert keystore is not None
    (tmp_path / "cacerts").write_bytes(keystore)
    files = {"/srv/Client.java": tmp_path / "Client.java"}
    command = ("java", "/srv/Client.java", f"https://{HOST}:{port}/")
    status, printed = java.status(*command, files=files, network_of_the_host=True)
    assert status != 0
    assert "unable to find valid certification path" in printed
    files[KEYSTORE] = tmp_path / "cacerts"
    printed = java.run(*command, files=files, network_of_the_host=True)
    assert printed.splitlines()[0] == "1"
    assert printed.splitlines()[-1] == ANSWER
