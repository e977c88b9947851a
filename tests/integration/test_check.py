"""``nixery check NAME ...`` and the package index in ``nixery check``, with real Nix."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nixery.access.passwords import htpasswd_line
from nixery.closure import PathInfo
from nixery.nix.machine import some_paths
from tests.integration.conftest import StartServer
from tests.support.binary_cache import (
    Answer,
    SigningKey,
    cache_server,
    nar_of_file,
    narinfo_name,
    narinfo_text,
)
from tests.support.command_line import CommandLine
from tests.support.nix import NixSpy, install_fake_nix, wait_until
from tests.support.oidc_issuer import oidc_provider
from tests.support.repository import Repository

PACKAGES = """
{ system }:
let
  package = name: extra: derivation {
    inherit name system;
    builder = "/bin/sh";
    args = [ "-e" "-c" "mkdir -p $out/bin; echo ${name} > $out/bin/${name}" ];
    PATH = "/usr/bin:/bin";
    nixeryTestSalt = "SALT";
  } // { pname = name; version = "1.5"; meta = { }; } // extra;
  program = name: package name { };
in {
  alpha = program "alpha";
  beta = program "beta";
  gamma = program "gamma";
  unfree = package "unfree" { meta.unfree = true; drvPath = throw "unfree is refused"; };
  Broken = throw "out of order";
  Zaborts = abort "aborts gave up";
  aborts = { recurseForDerivations = true; inner = abort "inner gave up"; };
  web = { contents = [ (program "alpha") ]; config.Cmd = [ "alpha" ]; };
  hostile = package "hostile" { version = "1\n\\u001b[31m"; };
}
"""


@pytest.fixture
def package_set(tmp_path: Path, salt: str) -> Path:
    directory = tmp_path / "checked-set"
    directory.mkdir()
    text = PACKAGES.replace("SALT", salt + tmp_path.name).replace("\\u001b", "\x1b")
    (directory / "default.nix").write_text(text)
    return directory


@pytest.fixture
def nixery(settings: Mapping[str, str], package_set: Path, tmp_path: Path) -> CommandLine:
    return CommandLine({**settings, "NIXERY_PKGS_PATH": str(package_set)}, tmp_path)


def checked(nixery: CommandLine, *names: str, status: int = 0, **settings: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        nixery("check", "--json", *names, status=status, **settings).stdout
    )
    return found


def origins(image: dict[str, Any]) -> dict[str, str]:
    return {package["attribute"]: package["from"] for package in image["packages"]}


def test_packages_are_in_the_store_or_would_be_built(nixery: CommandLine) -> None:
    nixery("build", "alpha", "--quiet")
    alpha, both = checked(nixery, "alpha", "alpha/beta:1.0")
    assert (alpha["image"], alpha["platform"], alpha["right"]) == ("alpha:latest", "linux/amd64", True)
    assert origins(alpha) == {"alpha": "store"}
    assert alpha["packages"][0]["version"] == "1.5"
    assert (alpha["paths"], alpha["builds"]) == (1, [])
    assert alpha["size"] > 0
    assert both["image"] == "alpha/beta:1.0"
    assert both["revision"] == alpha["revision"]
    assert origins(both) == {"alpha": "store", "beta": "build"}
    assert (both["paths"], both["size"]) == (None, None)
    assert [path.partition("-")[2] for path in both["builds"]] == ["beta.drv"]
    # Nothing was built.
    (beta,) = (package for package in both["packages"] if package["attribute"] == "beta")
    assert not os.path.lexists(beta["outputs"]["out"])


def test_a_path_of_a_binary_cache_would_be_downloaded(nixery: CommandLine, tmp_path: Path) -> None:
    (image,) = checked(nixery, "gamma")
    (package,) = image["packages"]
    path = Path(package["outputs"]["out"])
    cache = tmp_path / "cache-of-binaries"
    cache.mkdir()
    (cache / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    (cache / f"{path.name[:32]}.narinfo").write_text(
        f"StorePath: {path}\nURL: nar/gamma.nar\nCompression: none\nFileHash: sha256:{'0' * 52}\n"
        f"FileSize: {1 << 20}\nNarHash: sha256:{'0' * 52}\nNarSize: {3 << 20}\nReferences: \n"
    )
    options = f"--option substituters file://{cache} --option require-sigs false"
    (image,) = checked(nixery, "gamma", NIXERY_NIX_OPTIONS=options)
    assert origins(image) == {"gamma": "download"}
    assert (image["downloads"], image["builds"]) == ([str(path)], [])
    assert (image["download_size"], image["unpacked_size"]) == (1 << 20, 3 << 20)
    shown = nixery("check", "gamma", NIXERY_NIX_OPTIONS=options).stdout
    assert "Nix would download 1 store path of 1.0 MB (3.1 MB unpacked)" in shown
    assert not path.exists()


def test_unavailable_packages_are_explained_in_the_words_of_the_registry(
    nixery: CommandLine, start_server: StartServer, package_set: Path
) -> None:
    names = ("alpha/alpah", "broken", "unfree/beta")
    images = checked(nixery, *names, status=1)
    client = start_server(NIXERY_PKGS_PATH=str(package_set)).client
    for name, image in zip(names, images, strict=True):
        assert not image["right"]
        assert image["error"] == client.manifest(name).json()["errors"][0]["message"]
    assert images[0]["unavailable"] == [
        {"name": "alpah", "reason": "missing", "explanation": "", "near_names": ["alpha"]}
    ]
    assert "alpha" in origins(images[0])
    assert origins(images[2]) == {"beta": "build"}
    shown = nixery("check", "alpha/alpah", "beta", status=1).stdout.splitlines()
    assert shown[0].startswith("WRONG alpha/alpah:latest linux/amd64 1 package not available")
    assert "      alpah (missing; did you mean alpha?)" in shown
    assert any(line.startswith("ok    beta:latest linux/amd64 ") for line in shown)


def test_one_evaluation_serves_several_names(nixery: CommandLine, spy: NixSpy) -> None:
    images = checked(nixery, "alpha", "beta/gamma", "web", "nosuch", status=1, **spy.environment())
    assert [image["right"] for image in images] == [True, True, True, False]
    assert len(spy.calls_of("nix-instantiate", "request")) == 1
    assert images[2]["definition"] == "web"
    assert spy.calls_of("nix-store", "--realise", "--add-root") == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("UPPER", "invalid image name 'UPPER'"),
        ("amd64/arm64/alpha", "it asks for amd64 and arm64 at once"),
        ("alpha:a/b", "invalid reference 'a/b'"),
        ("alpha:sha256:" + "0" * 64, "is a digest"),
        ("alpha/beta", "NIXERY_MAX_PACKAGES"),
        ("web/web2", "NIXERY_MAX_PACKAGES"),
    ],
)
def test_an_invalid_name_costs_the_other_names_nothing(nixery: CommandLine, name: str, message: str) -> None:
    wrong, right = checked(nixery, name, "alpha", status=1, NIXERY_MAX_PACKAGES="1")
    assert message in wrong["error"]
    assert right["right"]


def test_an_image_beyond_the_limit_is_wrong(nixery: CommandLine) -> None:
    nixery("build", "alpha", "--quiet")
    (image,) = checked(nixery, "alpha", status=1, NIXERY_MAX_CLOSURE="1")
    assert "NIXERY_MAX_CLOSURE" in image["error"]


def test_each_platform_is_an_image_of_its_own(nixery: CommandLine) -> None:
    images = checked(nixery, "alpha", "arm64/beta", NIXERY_PLATFORMS="linux/amd64,linux/arm64")
    assert [(image["image"], image["platform"]) for image in images] == [
        ("alpha:latest", "linux/amd64"),
        ("alpha:latest", "linux/arm64"),
        ("arm64/beta:latest", "linux/arm64"),
    ]


@pytest.mark.security
def test_text_of_a_package_set_stays_on_its_line(nixery: CommandLine) -> None:
    shown = nixery("check", "hostile").stdout
    assert "\x1b" not in shown
    assert r"hostile 1\n\x1b[31m" in shown
    assert "\x1b" not in checked(nixery, "hostile")[0]["packages"][0]["version"]


def test_a_broken_package_set_is_the_error_of_each_name(nixery: CommandLine, tmp_path: Path) -> None:
    broken = tmp_path / "broken-set"
    broken.mkdir()
    (broken / "default.nix").write_text('{ system }: throw "out of order"')
    images = checked(nixery, "alpha", "beta", status=1, NIXERY_PKGS_PATH=str(broken))
    assert all("out of order" in image["error"] for image in images)


def test_check_shows_the_index_and_makes_it_on_request(nixery: CommandLine) -> None:
    def index(*options: str) -> dict[str, Any]:
        (found,) = (one for one in checked(nixery, *options) if one["what"] == "index")
        return dict(found)

    before = index()
    assert (before["attributes"], before["evaluated"], before["is_complete"]) == (13, 0, False)
    assert "`nixery check --index` evaluates it here" in before["found"]
    made = index("--index")
    assert (made["evaluated"], made["failed"], made["is_complete"]) == (15, 2, True)
    assert [failure["attribute"] for failure in made["failures"]] == ["Zaborts", "aborts.inner"]
    # It is stored.
    assert index() == made
    shown = nixery("check").stdout.splitlines()
    (line,) = (line for line in shown if line.startswith("      Zaborts "))
    assert "aborts gave up" in line


def test_making_an_index_shows_a_bar(nixery: CommandLine) -> None:
    shown = nixery.on_terminal("check", "--index")
    assert "evaluating the package set" in shown
    assert "11 names can be completed" in shown


def test_an_index_is_made_without_names(nixery: CommandLine) -> None:
    assert "--index" in nixery("check", "--index", "alpha", status=2).stderr


def test_the_log_names_the_attributes_that_failed(start_server: StartServer, package_set: Path) -> None:
    server = start_server(NIXERY_INDEX="1", NIXERY_PKGS_PATH=str(package_set))
    wait_until(lambda: "indexed the package set" in server.log, "the index")
    (line,) = (line for line in server.log.splitlines() if "indexed the package set" in line)
    assert "Zaborts, aborts.inner" in line


def test_a_pin_does_not_hide_a_source_that_is_gone(settings: Mapping[str, str], tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    repository.commit("1.0")
    nixery = CommandLine(
        {
            **{name: value for name, value in settings.items() if name != "NIXERY_PKGS_PATH"},
            "NIXERY_PKGS_REPO": repository.url,
            "NIXERY_PIN_TTL": "3600",
        },
        tmp_path,
    )

    def source(status: int) -> dict[str, Any]:
        return next(finding for finding in checked(nixery, status=status) if finding["what"] == "source")

    assert source(0)["right"]
    newer = repository.commit("2.0")
    assert f"a newer state is {newer}" in source(0)["found"]
    shutil.rmtree(tmp_path / "repository")
    gone = source(1)
    assert not gone["right"]
    assert "what is pinned is served, but no newer state can be found" in gone["found"]
    assert "credentials" in gone["advice"]


def nix_finding(nixery: CommandLine, **settings: str) -> tuple[str, str]:
    findings = {finding["what"]: finding for finding in checked(nixery, status=1, **settings)}
    # Without Nix, there is nothing to say about its builders and its package set.
    assert not findings.keys() & {"sandbox", "source"}
    return findings["nix"]["found"], findings["nix"]["advice"]


def test_an_installed_nix_that_is_not_on_path_is_named(nixery: CommandLine, tmp_path: Path) -> None:
    place = tmp_path / ".nix-profile" / "bin"
    place.mkdir(parents=True)
    (place / "nix-instantiate").touch(0o755)
    found, advice = nix_finding(nixery, PATH=str(tmp_path), HOME=str(tmp_path))
    assert found == f"Nix is installed in {place}, which is not on PATH"
    assert advice == f"add it: export PATH=$PATH:{place}"


def test_a_server_that_reads_binary_caches_needs_no_nix(nixery: CommandLine, tmp_path: Path) -> None:
    with cache_server() as cache:
        (tmp_path / "nix.conf").write_text(f"substituters = {cache.url}\n")
        found = checked(
            nixery,
            NIXERY_SUBSTITUTE="direct",
            NIX_USER_CONF_FILES=str(tmp_path / "nix.conf"),
            PATH=str(tmp_path),
            HOME=str(tmp_path),
        )
    findings = {finding["what"]: finding for finding in found}
    assert findings["nix"]["right"]
    assert findings["nix"]["found"].startswith(
        "Nix is not installed: a server serves stored images, and those"
    )
    assert not findings.keys() & {"sandbox", "source"}
    missing, _ = nix_finding(nixery, PATH=str(tmp_path), HOME=str(tmp_path))
    assert missing == "nix-instantiate is not on PATH"


def test_the_error_of_an_installed_nix_is_quoted(nixery: CommandLine, tmp_path: Path) -> None:
    script = "printf 'error: out of order\\n(use --show-trace to show more)\\n' >&2; exit 1"
    found, advice = nix_finding(nixery, **install_fake_nix(tmp_path / "nix", script))
    assert found == "Nix is installed, but does not work: nix-instantiate failed: out of order"
    assert "install" not in advice


def test_findings_are_broken_between_words_on_a_terminal(nixery: CommandLine) -> None:
    shown = nixery.on_terminal("check", COLUMNS="60").replace("\r\n", "\n")
    assert "nothing is missing or wrong; a server also\n      needs PORT" in shown
    # Programs get one line.
    assert "; a server also needs PORT" in nixery("check").stdout


def access_findings(nixery: CommandLine, file: Path, *, status: int) -> list[dict[str, Any]]:
    findings = checked(nixery, status=status, NIXERY_ACCESS=str(file))
    return [finding for finding in findings if finding["what"] == "access"]


def test_each_mistake_of_the_access_file_is_a_line(nixery: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    file.write_text('show-denial = true\n[[rule]]\nwho = ["everyon"]\nmay = ["pul"]\n[[rule]]\nmay = []\n')
    findings = access_findings(nixery, file, status=1)
    assert not any(finding["right"] for finding in findings)
    first, *others = (finding["found"].removeprefix(f"{file}: ") for finding in findings)
    assert first.startswith("rule 1, who 1: 'everyon' matches no identity: use everyone, ")
    assert others == [
        "rule 1, may 1: should be 'pull', 'build', 'see-builds' or 'admin'",
        "rule 2, who: this key is missing",
        "show-denial: there is no such key; did you mean show-denials?",
    ]


def test_files_and_issuers_of_the_access_file_are_checked(nixery: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    rules = '[[rule]]\nwho = ["everyone"]\nmay = ["pull"]\n'
    with oidc_provider() as provider:
        issuer = f'[[oidc]]\nname = "ci"\nissuer = "{provider.url}"\naudience = "nixery"\n'
        key = '[tokens]\nkey-file = "key.pem"\n'
        file.write_text(f'htpasswd = "users"\n{rules}{issuer}{key}')
        (tmp_path / "users").write_text("alice:secret\n")
        problems = [finding["found"] for finding in access_findings(nixery, file, status=1)]
        assert len(problems) == 2
        assert problems[0].startswith(f"{tmp_path / 'users'}, line 1")
        assert problems[1] == f"cannot read {tmp_path / 'key.pem'}: No such file or directory"
        (tmp_path / "users").write_text(htpasswd_line("alice", "long secret") + "\n")
        file.write_text(f'htpasswd = "users"\n{rules}{issuer}')
        (found,) = access_findings(nixery, file, status=0)
        assert (found["right"], found["found"]) == (True, "1 rule, 1 user, 1 issuer, 0 quotas")
    found, unreachable = access_findings(nixery, file, status=1)
    assert found["right"]
    assert unreachable["found"].startswith(f"the issuer {provider.url} cannot be used: ")


def test_binary_caches_are_named_with_their_state(nixery: CommandLine, tmp_path: Path) -> None:
    nixery("build", "alpha", "--quiet")
    with cache_server() as good, cache_server() as foreign, cache_server() as down:
        known = some_paths(Path("/nix/store"), 64)
        nar = nar_of_file(b"")
        for path in known:
            info = PathInfo(path, hashlib.sha256(nar).hexdigest(), len(nar), ())
            for server, key in ((good, SigningKey("good-1")), (foreign, SigningKey("foreign-1"))):
                server.answers[narinfo_name(path)] = Answer(narinfo_text(info, {"Sig": key.sign(info)}))
        down.answers["nix-cache-info"] = Answer(b"", 404)
        (tmp_path / "nix.conf").write_text(
            f"substituters = {foreign.url} {good.url}?priority=3 {down.url} daemon\n"
            f"trusted-public-keys = {SigningKey('good-1').public}\n"
        )
        found = checked(
            nixery,
            status=1,
            NIXERY_SUBSTITUTE="direct",
            NIX_USER_CONF_FILES=str(tmp_path / "nix.conf"),
        )
    caches = [finding for finding in found if finding["what"] == "cache"]
    refused = "it is signed by foreign-1, which trusted-public-keys does not have"
    assert [(finding["right"], finding["found"]) for finding in caches] == [
        (
            True,
            "not used: 'daemon' is not a binary cache that can be read directly: write http(s)://, file:/// or s3://",
        ),
        (True, f"{good.url} answers; priority 3; a trusted key signs its paths"),
        (False, f"{foreign.url} answers; priority 40; its paths are not trusted: {refused}"),
        (False, f"{down.url}: it has no nix-cache-info, so it is no binary cache"),
    ]
    assert [finding.get("signatures") for finding in caches] == [None, "trusted", "untrusted", "unknown"]
