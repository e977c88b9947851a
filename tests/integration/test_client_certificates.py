"""Client certificates that a real nginx verifies, and hands on to the server."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme

from tests.integration.conftest import StartServer
from tests.support.client import RegistryClient
from tests.support.nix import wait_until
from tests.support.server import HOST, end_process, free_port

RULES = """
show-denials = true

[groups]
platform = ["alice"]

[client-certificates]
addresses = ["127.0.0.1"]
ca-file = "clients.pem"
groups = "organizational-unit"

[[rule]]
who = ["group:platform", "group:ci"]
may = ["pull", "build"]

[[rule]]
who = ["user:bob"]
packages = ["greeting"]
may = ["pull"]
"""

# `optional_no_ca` accepts every certificate: then only the server's own check is left.
_CONFIGURATION = """\
user {user};
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/temporary-1;
    proxy_temp_path {directory}/temporary-2;
    fastcgi_temp_path {directory}/temporary-3;
    uwsgi_temp_path {directory}/temporary-4;
    scgi_temp_path {directory}/temporary-5;
    server {{
        listen {host}:{port} ssl;
        ssl_certificate {directory}/server.crt;
        ssl_certificate_key {directory}/server.key;
        ssl_client_certificate {authorities};
        ssl_verify_client {verify};
        location / {{
            proxy_pass http://{host}:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Client-Cert $ssl_client_escaped_cert;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Proxy:
    """A running nginx."""

    port: int
    authority: trustme.CA

    def client(self, certificate: trustme.LeafCert | None = None) -> RegistryClient:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        return RegistryClient(HOST, self.port, context=context)


@contextmanager
def running_nginx(directory: Path, upstream: int, authorities: Path, verify: str) -> Iterator[Proxy]:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "make test installs nginx"
    directory.mkdir()
    authority = trustme.CA()
    issued = authority.issue_cert(HOST)
    (directory / "server.crt").write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    (directory / "server.key").write_bytes(issued.private_key_pem.bytes())
    port = free_port()
    configuration = directory / "nginx.conf"
    user = pwd.getpwuid(os.geteuid()).pw_name
    places = {"directory": directory, "host": HOST, "port": port, "upstream": upstream}
    configuration.write_text(
        _CONFIGURATION.format(user=user, authorities=authorities, verify=verify, **places)
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-c", str(configuration), "-e", "stderr", "-p", str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def listens() -> bool:
        assert process.poll() is None, (directory / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0

    try:
        wait_until(listens, "nginx listens")
        yield Proxy(port, authority)
    finally:
        end_process(process)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def access(tmp_path: Path, authority: trustme.CA) -> Mapping[str, str]:
    (tmp_path / "clients.pem").write_bytes(authority.cert_pem.bytes())
    (tmp_path / "access.toml").write_text(RULES)
    return {"NIXERY_ACCESS": str(tmp_path / "access.toml"), "NIXERY_AUDIT_LOG": str(tmp_path / "audit.jsonl")}


def status(client: RegistryClient, name: str, headers: Mapping[str, str] | None = None) -> int:
    return client.get(f"/v2/{name}/manifests/latest", headers or {}).status


def test_nginx_hands_on_a_certificate_that_names_a_user(
    start_server: StartServer, tmp_path: Path, access: Mapping[str, str], authority: trustme.CA
) -> None:
    server = start_server(**access)
    alice = authority.issue_cert("alice@example.org", common_name="alice")
    bob = authority.issue_cert("bob@example.org", common_name="bob")
    job = authority.issue_cert("job@example.org", common_name="job 7", organization_unit_name="ci")
    with running_nginx(tmp_path / "nginx", server.port, tmp_path / "clients.pem", "optional") as proxy:
        anonymous = proxy.client()
        assert status(anonymous, "greeting") == 401
        assert status(proxy.client(alice), "greeting") == 200
        assert status(proxy.client(bob), "greeting") == 200
        assert status(proxy.client(bob), "hello") == 403
        assert status(proxy.client(job), "hello") == 200
        # A client that pings first need not log in.
        assert proxy.client(bob).get("/v2/").status == 200
        # nginx replaces the field of its client, and without a certificate it sends none.
        pem = quote(alice.cert_chain_pems[0].bytes().decode())
        assert status(anonymous, "greeting", {"Client-Cert": pem}) == 401
        assert status(proxy.client(bob), "hello", {"Client-Cert": pem}) == 403
    log = (tmp_path / "audit.jsonl").read_text()
    assert '"identity": "alice", "kind": "certificate"' in log
    assert '"identity": "job 7", "kind": "certificate"' in log


def test_skopeo_needs_a_certificate_and_no_login(
    start_server: StartServer, tmp_path: Path, access: Mapping[str, str], authority: trustme.CA
) -> None:
    server = start_server(**access)
    directory = tmp_path / "certificates"
    directory.mkdir()

    def copy(user: str) -> subprocess.CompletedProcess[str]:
        certificate = authority.issue_cert(f"{user}@example.org", common_name=user)
        (directory / "client.cert").write_bytes(certificate.cert_chain_pems[0].bytes())
        (directory / "client.key").write_bytes(certificate.private_key_pem.bytes())
        source = f"docker://{HOST}:{proxy.port}/hello:latest"
        command = ["skopeo", "copy", "--src-cert-dir", str(directory), source, f"oci:{tmp_path / user}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    with running_nginx(tmp_path / "nginx", server.port, tmp_path / "clients.pem", "optional") as proxy:
        (directory / "ca.crt").write_bytes(proxy.authority.cert_pem.bytes())
        pulled = copy("alice")
        assert pulled.returncode == 0, pulled.stderr
        refused = copy("bob")
        assert refused.returncode == 1
        assert "bob may not pull hello" in refused.stderr


def test_the_server_verifies_what_a_careless_proxy_accepts(
    start_server: StartServer, tmp_path: Path, access: Mapping[str, str], authority: trustme.CA
) -> None:
    server = start_server(**access)
    foreign = trustme.CA().issue_cert("alice@example.org", common_name="alice")
    right = authority.issue_cert("alice@example.org", common_name="alice")
    with running_nginx(tmp_path / "nginx", server.port, tmp_path / "clients.pem", "optional_no_ca") as proxy:
        refused = proxy.client(foreign).get("/v2/greeting/manifests/latest")
        assert (refused.status, refused.error["code"]) == (401, "UNAUTHORIZED")
        assert "of an authority that this registry does not trust" in refused.error["message"]
        assert status(proxy.client(right), "greeting") == 200


def test_the_field_of_a_client_that_is_no_proxy_is_ignored(
    start_server: StartServer, access: Mapping[str, str], authority: trustme.CA
) -> None:
    server = start_server(**access)
    pem = quote(authority.issue_cert("a@example.org", common_name="alice").cert_chain_pems[0].bytes())
    assert status(server.client, "greeting", {"Client-Cert": pem}) == 200  # from the proxy's address
    other = RegistryClient(HOST, server.port, source="127.0.0.2")
    assert status(other, "greeting", {"Client-Cert": pem}) == 401


def test_other_authorities_apply_without_a_restart(
    start_server: StartServer, tmp_path: Path, access: Mapping[str, str], authority: trustme.CA
) -> None:
    server = start_server(**access)
    before = quote(authority.issue_cert("a@example.org", common_name="alice").cert_chain_pems[0].bytes())
    assert status(server.client, "greeting", {"Client-Cert": before}) == 200
    other = trustme.CA()
    (tmp_path / "clients.new").write_bytes(other.cert_pem.bytes())
    (tmp_path / "clients.new").replace(tmp_path / "clients.pem")
    after = quote(other.issue_cert("a@example.org", common_name="alice").cert_chain_pems[0].bytes())
    wait_until(
        lambda: status(server.client, "greeting", {"Client-Cert": after}) == 200,
        "the other authority applies",
    )
    assert status(server.client, "greeting", {"Client-Cert": before}) == 401
