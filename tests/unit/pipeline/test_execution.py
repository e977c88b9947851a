from nixery.closure.store_path import StorePath
from nixery.image.request import parse_image_name
from nixery.nix.builder import Package
from nixery.packing.tree import Link, Tree
from nixery.pipeline.execution import execution_parameters

PATH = StorePath("a" * 32 + "-p")


def package(requested_name: str, name: str, main_program: str | None = None) -> Package:
    return Package(requested_name, requested_name, PATH, {"out": PATH}, name, main_program=main_program)


def tree(*programs: str) -> Tree:
    root = Tree()
    for program in programs:
        root.add(f"bin/{program}".encode(), Link(b"somewhere"))
    return root


def test_a_shell_starts_bash() -> None:
    execution = execution_parameters(parse_image_name("shell/git"), [package("git", "git")], tree("git"))
    assert execution.cmd == ("bash",)


def test_one_package_starts_its_main_program() -> None:
    ripgrep = package("ripgrep", "ripgrep", "rg")
    certificates = package("cacert", "nss-cacert")
    execution = execution_parameters(
        parse_image_name("ripgrep"), [ripgrep, certificates], tree("rg", "ripgrep")
    )
    assert execution.cmd == ("rg",)


def test_a_main_program_that_is_not_there_is_not_started() -> None:
    request = parse_image_name("ripgrep")
    ripgrep = package("ripgrep", "ripgrep", "rg")
    assert execution_parameters(request, [ripgrep], tree("ripgrep")).cmd == ("ripgrep",)
    assert execution_parameters(request, [ripgrep], tree()).cmd == ()


def test_two_packages_start_nothing() -> None:
    packages = [package("git", "git"), package("htop", "htop")]
    assert execution_parameters(parse_image_name("git/htop"), packages, tree("git", "htop")).cmd == ()


def test_programs_and_certificates_are_found_by_stable_names() -> None:
    env = dict(entry.split("=", 1) for entry in execution_parameters(parse_image_name("git"), [], tree()).env)
    assert env["PATH"].split(":")[0] == "/bin"
    assert env["SSL_CERT_FILE"] == env["GIT_SSL_CAINFO"] == "/etc/ssl/certs/ca-bundle.crt"
    assert "HOME" not in env
