"""The commands that build images without a server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import StartServer
from tests.support.command_line import CommandLine
from tests.support.nix import processes_with_environment, wait_until
from tests.support.server import clean_environment


@pytest.fixture
def nixery(settings: Mapping[str, str], tmp_path: Path) -> CommandLine:
    return CommandLine(settings, tmp_path)


def layout(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The index of a layout, and its first manifest."""
    index = json.loads((directory / "index.json").read_text())
    digest = index["manifests"][0]["digest"].removeprefix("sha256:")
    return index, json.loads((directory / "blobs" / "sha256" / digest).read_text())


def test_a_built_image_has_the_digest_that_the_server_answers(
    nixery: CommandLine, start_server: StartServer
) -> None:
    built = nixery("build", "shell/hello", "--output", "image", "--quiet")
    digest = built.stdout.strip()
    assert built.stderr == ""
    assert start_server().client.digest("shell/hello") == digest
    index, manifest = layout(nixery.directory / "image")
    (entry,) = index["manifests"]
    assert entry["digest"] == digest
    assert entry["annotations"] == {
        "org.opencontainers.image.ref.name": "latest",
        "io.containerd.image.name": "localhost/shell/hello:latest",
    }
    assert json.loads((nixery.directory / "image" / "oci-layout").read_text()) == {
        "imageLayoutVersion": "1.0.0"
    }
    blobs = {
        path.name: path.stat().st_size for path in (nixery.directory / "image" / "blobs" / "sha256").iterdir()
    }
    described = [entry, manifest["config"], *manifest["layers"]]
    assert blobs == {d["digest"].removeprefix("sha256:"): d["size"] for d in described}


def test_an_edited_package_set_is_built_in_its_current_state(nixery: CommandLine, tmp_path: Path) -> None:
    package_set = tmp_path / "edited"
    package_set.mkdir()
    results = []
    for port in (80, 81, 80):
        # An edit, and the command right after it: on a server, the pin of the first build would be valid for
        # an hour.
        (package_set / "default.nix").write_text(
            f"{{ ... }}: {{ web = {{ contents = [ ]; config.ExposedPorts = [ {port} ]; }}; }}"
        )
        built = nixery("build", "web", "--json", NIXERY_PKGS_PATH=str(package_set))
        assert "error" not in built.stdout + built.stderr
        results.append(json.loads(built.stdout.splitlines()[-1]))
    assert results[0]["digest"] != results[1]["digest"]
    assert results[0]["revision"] != results[1]["revision"]
    assert results[0] == results[2]
    # With a time to live, the command uses pins as a server does.
    quiet = nixery("build", "web", "--quiet", NIXERY_PKGS_PATH=str(package_set), NIXERY_PIN_TTL="3600")
    assert quiet.stdout.strip() == results[2]["digest"]


@pytest.mark.parametrize("platforms", ["linux/amd64", "linux/amd64,linux/arm64"])
def test_an_archive_has_the_files_that_docker_load_needs(nixery: CommandLine, platforms: str) -> None:
    nixery("build", "shell/hello", "-o", "image", "--tag", "1.0", NIXERY_PLATFORMS=platforms)
    nixery("build", "amd64/shell/hello", "-o", "amd64", "--tag", "1.0")
    directory = nixery.directory / "image"
    _, manifest = layout(nixery.directory / "amd64")
    paths = [
        f"blobs/{part['digest'].replace(':', '/')}" for part in (manifest["config"], *manifest["layers"])
    ]
    assert json.loads((directory / "manifest.json").read_text()) == [
        {"Config": paths[0], "Layers": paths[1:], "RepoTags": ["localhost/shell/hello:1.0"]}
    ]
    assert all((directory / path).exists() for path in paths)


def test_an_archive_is_reproducible(nixery: CommandLine) -> None:
    nixery("build", "hello", "-o", "one.tar")
    nixery("build", "hello", "-o", "two.tar")
    one, two = (nixery.directory / name for name in ("one.tar", "two.tar"))
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as archive:
        assert {"index.json", "oci-layout", "blobs/sha256"} < set(archive.getnames())
    assert {path.name for path in nixery.directory.iterdir()} >= {"one.tar", "two.tar"}
    assert not [path for path in nixery.directory.iterdir() if path.name.startswith(".")]


def test_a_layout_of_an_index_has_all_images(nixery: CommandLine) -> None:
    nixery("build", "hello", "-o", "image", NIXERY_PLATFORMS="linux/amd64,linux/arm64")
    index, inner = layout(nixery.directory / "image")
    assert (
        index["manifests"][0]["mediaType"] == inner["mediaType"] == "application/vnd.oci.image.index.v1+json"
    )
    assert len(inner["manifests"]) == 2
    for entry in inner["manifests"]:
        path = nixery.directory / "image" / "blobs" / "sha256" / entry["digest"].removeprefix("sha256:")
        for part in json.loads(path.read_text())["layers"]:
            assert (path.parent / part["digest"].removeprefix("sha256:")).exists()


def test_an_expression_is_built(nixery: CommandLine) -> None:
    nixery("build", "--expr", "[ pkgs.hello [ pkgs.left ] ] # and that is all", "-o", "image")
    _, manifest = layout(nixery.directory / "image")
    assert manifest["annotations"]["org.opencontainers.image.title"] == "expression"
    packages = manifest["annotations"]["dev.nixery.packages"]
    assert "hello 1.0" in packages
    assert "left 1.0" in packages


def test_a_nix_file_is_built(nixery: CommandLine) -> None:
    path = nixery.directory / 'My ${web} "image".nix'
    path.write_text('{ pkgs }: { contents = [ pkgs.hello ]; config.Cmd = [ "hello" "${./data}" ]; }')
    (nixery.directory / "data").write_text("data")
    nixery("build", "--file", path.name, "-o", "image", "--platform", "linux/arm64")
    _, manifest = layout(nixery.directory / "image")
    assert manifest["annotations"]["org.opencontainers.image.title"] == "my-web-image"
    config = (
        nixery.directory / "image" / "blobs" / "sha256" / manifest["config"]["digest"].removeprefix("sha256:")
    )
    document = json.loads(config.read_text())
    assert document["architecture"] == "arm64"
    assert document["config"]["Cmd"][0] == "hello"
    # The current content of the file counts, not that of the earlier build.
    first = nixery("build", "--file", path.name, "-q").stdout
    path.write_text("{ pkgs }: [ pkgs.left ]")
    assert nixery("build", "--file", path.name, "-q").stdout != first


_NEEDS_FAILS = """derivation {
  name = "app"; builder = "/bin/sh"; args = [ "-c" "echo ${pkgs.fails}" ]; system = builtins.currentSystem;
}"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expr", "pkgs.nope"], "expression (does not evaluate: attribute 'nope' missing)"),
        (["--expr", '"text"'], "expression is a string, not a derivation"),
        (["--expr", "[ 1"], "syntax error"),
        (
            ["--expr", "pkgs.fails"],
            "building fails-1.0 failed: builder failed with exit code 3; its log ends with: only line of the log",
        ),
        (["--expr", _NEEDS_FAILS], "building fails-1.0, which app needs, failed: builder failed"),
        (["nosuch"], "nosuch (missing"),
        (["UPPER"], "invalid image name 'UPPER'"),
    ],
)
def test_an_error_is_one_clear_line(nixery: CommandLine, arguments: list[str], message: str) -> None:
    ended = nixery("build", *arguments, status=1)
    assert message in ended.stderr
    assert ended.stdout == ""


def test_a_failure_is_told_once_and_its_log_is_apart(nixery: CommandLine) -> None:
    lines = nixery("build", "fails", status=1).stderr.splitlines()
    assert len([line for line in lines if "failed" in line]) == 1
    assert lines[-1] == "  | only line of the log"


def test_an_image_that_is_written_nowhere_is_in_the_storage(nixery: CommandLine) -> None:
    hint = "the image is in this machine's storage alone; --output writes or pushes it"
    assert hint in nixery("build", "hello").stderr
    assert hint not in nixery("build", "hello", "-o", "hello.tar").stderr
    assert nixery("build", "hello", "--quiet").stderr == ""


def test_check_names_an_image_without_its_registry(nixery: CommandLine) -> None:
    ended = nixery("check", "127.0.0.1:8080/shell/hello", status=1)
    assert "give the name without the registry: shell/hello" in ended.stdout + ended.stderr


def test_existing_files_are_not_overwritten(nixery: CommandLine) -> None:
    (nixery.directory / "image").mkdir()
    ended = nixery("build", "hello", "-o", "image", status=1)
    assert "image: it exists already" in ended.stderr
    # The check precedes the build.
    assert "nosuch" not in nixery("build", "nosuch", "-o", "image", status=1).stderr
    assert list((nixery.directory / "image").iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [[], ["hello", "--expr", "pkgs.hello"], ["hello", "--platform", "linux/vax"]]
)
def test_invalid_options_exit_with_2(nixery: CommandLine, arguments: list[str]) -> None:
    assert "Usage:" in nixery("build", *arguments, status=2).stderr


def test_a_missing_directory_is_an_error_before_the_build(nixery: CommandLine) -> None:
    ended = nixery("build", "nosuch", "-o", "oci:missing/image", status=1)
    assert "there is no directory" in ended.stderr
    assert "nosuch (" not in ended.stderr


def test_several_outputs_and_platforms_in_one_command(nixery: CommandLine) -> None:
    platforms = ("--platform", "linux/amd64", "--platform", "linux/arm64")
    outputs = ("-o", "oci:image", "-o", "oci-archive:image.oci", "-o", "docker-archive:image.docker")
    built = nixery("build", "hello:1.0", *platforms, *outputs, "--quiet")
    index, inner = layout(nixery.directory / "image")
    assert index["manifests"][0]["digest"] == built.stdout.strip()
    assert index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] == "1.0"
    assert [m["platform"]["architecture"] for m in inner["manifests"]] == ["amd64", "arm64"]
    one, two = (nixery.directory / name for name in ("image.oci", "image.docker"))
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as archive:
        assert "manifest.json" in archive.getnames()


def test_json_output_is_an_event_per_line(nixery: CommandLine) -> None:
    events = [json.loads(line) for line in nixery("build", "hello", "--json").stdout.splitlines()]
    digest = nixery("build", "hello", "-q").stdout.strip()
    assert events[-1] == {
        "event": "result",
        "digest": digest,
        "name": "hello",
        "tag": "latest",
        "revision": events[-1]["revision"],
        "outputs": [],
    }
    assert {"started", "evaluated", "grouped", "stored"} <= {event["event"] for event in events}
    failed = nixery("build", "nosuch", "--json", status=1).stdout.splitlines()
    assert json.loads(failed[-1])["event"] == "error"
    assert "nosuch" in json.loads(failed[-1])["message"]


def test_check_accepts_valid_settings(nixery: CommandLine) -> None:
    findings = json.loads(nixery("check", "--json").stdout)
    assert [finding["what"] for finding in findings] == [
        "settings",
        "nix",
        "sandbox",
        "storage",
        "source",
        "index",
    ]
    assert all(finding["right"] for finding in findings)
    assert "it evaluates" in findings[-2]["found"]


def test_check_names_the_settings_that_a_server_also_needs(nixery: CommandLine) -> None:
    def found(**settings: str) -> str:
        findings: list[dict[str, str]] = json.loads(nixery("check", "--json", **settings).stdout)  # type: ignore[arg-type]
        return findings[0]["found"]

    assert found().endswith("a server also needs PORT, NIXERY_STORAGE_BACKEND, STORAGE_PATH")
    server = {"PORT": "1", "NIXERY_STORAGE_BACKEND": "filesystem"}
    assert found(**server).endswith("a server also needs STORAGE_PATH")
    assert found(**server, STORAGE_PATH=str(nixery.directory / "own")) == "nothing is missing or wrong"


@pytest.mark.parametrize("command", ["gc", "scrub"])
def test_maintenance_commands_do_not_create_a_storage(nixery: CommandLine, command: str) -> None:
    nowhere = nixery.directory / "nowhere"
    ended = nixery(command, status=1, STORAGE_PATH=str(nowhere))
    assert f"there is no storage at {nowhere}: set STORAGE_PATH" in ended.stderr
    assert not nowhere.exists()


def test_check_reports_errors(nixery: CommandLine) -> None:
    (nixery.directory / "file").write_text("")
    storage = nixery("check", status=1, STORAGE_PATH=str(nixery.directory / "file" / "below"))
    assert "WRONG storage" in storage.stdout
    settings = nixery("check", status=1, NIXERY_LAYER_BUDGET="0")
    assert "NIXERY_LAYER_BUDGET is wrong" in settings.stdout
    broken = nixery.directory / "set"
    broken.mkdir()
    (broken / "default.nix").write_text('{ system }: throw "out of order"')
    source = nixery("check", status=1, NIXERY_PKGS_PATH=str(broken))
    assert "WRONG source" in source.stdout
    assert "out of order" in source.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("nixery bu", "build"),
        ("nixery build --platform linux/ar", "linux/arm64"),
        ("nixery build -o reg", "registry:"),
    ],
)
def test_the_shell_completes_options_and_names(nixery: CommandLine, words: str, expected: str) -> None:
    completion = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    completed = subprocess.run(
        [Path(sys.executable).with_name("nixery")],
        env=clean_environment({"_NIXERY_COMPLETE": "complete_bash", **completion}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=nixery.directory,
    )
    assert expected in completed.stdout.split()


@pytest.mark.parametrize(
    "words", [(), ("build",), ("inspect",), ("check",), ("serve",), ("gc",), ("scrub",), ("storage",)]
)
def test_help_imports_nothing_heavy(nixery: CommandLine, words: tuple[str, ...]) -> None:
    shown = nixery(*words, "--help", PYTHONPROFILEIMPORTTIME="1")
    assert "nixery" in shown.stdout
    for heavy in ("granian", "httpx", "structlog"):
        assert heavy not in shown.stderr


HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"


@pytest.mark.parametrize(
    ("arguments", "meanwhile", "result"),
    [
        (("build", "shell/hello"), "linux/amd64 shell/hello", "sha256:"),
        (("inspect", "shell/hello"), "linux/amd64 shell/hello", "layers"),
        (("check",), "evaluating the package source", "names can be completed"),
        (("check", "hello"), "asking Nix and its binary caches", "linux/amd64"),
        (("gc",), "finding images in use", "deleted 0 blobs"),
        (("scrub",), "scrubbing", "0 broken"),
        (("storage", "copy", "{cache}", "{cache}2"), "copying", "blobs copied"),
    ],
)
def test_all_commands_show_the_same_kind_of_bars(
    nixery: CommandLine, arguments: tuple[str, ...], meanwhile: str, result: str
) -> None:
    cache = f"file://{nixery.directory}/cache/nixery"
    (nixery.directory / "cache" / "nixery").mkdir(parents=True)
    shown = nixery.on_terminal(*(argument.format(cache=cache) for argument in arguments))
    # The cursor is restored before the result, so nothing overwrites it.
    during, _, after = shown.rpartition(SHOWN)
    assert HIDDEN in during
    assert meanwhile in during
    assert "━" in during
    assert result in after
    assert "━━━━━" not in after or "layers" in after


def test_a_failed_build_restores_the_terminal(nixery: CommandLine) -> None:
    shown = nixery.on_terminal("build", "failsinbytes", status=1)
    during, _, after = shown.rpartition(SHOWN)
    assert "✗" in during
    assert "nixery: building" not in during
    assert "nixery: building" in after
    assert "\x1b[2K" not in after


def test_package_names_are_completed_after_check_has_listed_them(nixery: CommandLine) -> None:
    def offered() -> list[str]:
        completion = {"COMP_WORDS": "nixery build shell/hel", "COMP_CWORD": "2"}
        cache = {"XDG_CACHE_HOME": str(nixery.directory / "cache")}
        return subprocess.run(
            [Path(sys.executable).with_name("nixery")],
            env=clean_environment({"_NIXERY_COMPLETE": "complete_bash", **completion, **cache}),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd=nixery.directory,
        ).stdout.split()

    assert offered() == []
    nixery("check")
    assert "shell/hello" in offered()


def test_a_tag_cannot_be_given_twice(nixery: CommandLine) -> None:
    assert (
        nixery.inspect("hello:latest")
        == nixery.inspect("hello")
        == nixery.inspect("hello", "--tag", "latest")
    )
    assert "tag" in nixery("inspect", "hello:latest", "--tag", "latest", status=2).stderr


def test_a_missing_package_source_is_an_error(tmp_path: Path) -> None:
    ended = CommandLine({}, tmp_path)("build", "hello", status=1)
    assert ended.stderr == (
        "nixery: no package source: set one of NIXERY_CHANNEL, NIXERY_PKGS_REPO, NIXERY_PKGS_PATH, NIXERY_FLAKE\n"
    )


def test_inspect_describes_an_image(nixery: CommandLine) -> None:
    image = nixery.inspect("mainprogram")
    assert image["digest"] == nixery("build", "mainprogram", "-q").stdout.strip()
    assert image["packages"]["mainprogram"] == "1.0"
    assert image["config"]["Cmd"] == ["the-program"]
    assert image["size"] == sum(layer["size"] for layer in image["layers"])
    assert ["mainprogram-1.0"] in [layer["packages"] for layer in image["layers"]]
    text = nixery("inspect", "mainprogram").stdout
    assert image["digest"] in text
    assert "the-program" in text
    # What makes it large comes first; the layers only if they are asked for.
    assert image["uncompressed size"] == sum(path["size"] for path in image["store paths"])
    alone = {one["name"]: one["size"] for one in image["only for"]}
    assert list(alone.values()) == sorted(alone.values(), reverse=True)
    rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines()]
    assert ["", "mainprogram", "1.0", f"{alone['mainprogram']} bytes", "", ""] in rows
    assert ["", "mainprogram-1.0", f"{alone['mainprogram']} bytes", "mainprogram", ""] in rows
    layer = image["layers"][0]["digest"][7:19]
    assert (layer in text, "--layers lists them" in text) == (False, True)
    assert layer in nixery("inspect", "mainprogram", "--layers").stdout
    # Lines do not wrap, however wide they are.
    assert any(line.startswith("  Env: [") and line.endswith('"LANG=C.UTF-8"]') for line in text.splitlines())


def test_inspect_describes_a_definition(nixery: CommandLine) -> None:
    text = nixery("inspect", "images.web").stdout
    assert '  Labels: {"team": "platform"}\n' in text
    assert '  Healthcheck: {"Interval": 30000000000, "Test": ["CMD", "/bin/hello"]}\n' in text


def test_inspect_prints_the_differences_of_two_images(nixery: CommandLine) -> None:
    difference = nixery.inspect("hello/left", "--diff", "hello/diamond")
    assert difference["added"] == {"diamond": "1.0"}
    assert difference["removed"] == {"left": "1.0"}
    assert difference["changed"] == {}
    assert difference["shared"]["layers"] > 0
    layers = {layer["digest"]: layer["size"] for layer in nixery.inspect("hello/diamond")["layers"]}
    there = {layer["digest"] for layer in nixery.inspect("hello/left")["layers"]}
    assert difference["to pull"]["size"] == sum(
        size for digest, size in layers.items() if digest not in there
    )
    same = nixery("inspect", "hello", "--diff", "hello").stdout
    assert "the same packages" in same
    assert "to pull: 0 layers" in same


def test_no_process_outlives_an_ended_command(settings: Mapping[str, str], tmp_path: Path, salt: str) -> None:
    environment = clean_environment({**settings, "XDG_CACHE_HOME": str(tmp_path / "cache")})
    process = subprocess.Popen(
        [sys.executable, "-m", "nixery", "build", "--quiet", "sleeps"], env=environment, cwd=tmp_path
    )
    try:
        wait_until(lambda: bool(processes_with_environment(salt, "name=sleeps")), "the builder")
        process.terminate()
        assert process.wait(15) == 128 + signal.SIGTERM
        assert processes_with_environment(salt, "name=sleeps") == {}
        assert not list((tmp_path / "cache" / "nixery" / "gc-roots").iterdir())
    finally:
        process.kill()
