from nixery.builds.builder import execution_parameters
from nixery.closure import StorePath
from nixery.image.name import parse_image_name
from nixery.nix.packages import Contents, Definition, Package
from nixery.oci.documents import ExecutionParameters
from nixery.packing.root_filesystem import Link, Tree

PATH = StorePath("a" * 32 + "-p")


def package(requested_name: str, name: str, main_program: str | None = None) -> Package:
    return Package(requested_name, requested_name, PATH, {"out": PATH}, name, main_program=main_program)


def tree(*programs: str) -> Tree:
    root = Tree()
    for program in programs:
        root.add(f"bin/{program}".encode(), Link(b"somewhere"))
    return root


def of(*packages: Package) -> Contents:
    return Contents(packages)


def test_a_shell_starts_bash() -> None:
    execution = execution_parameters(parse_image_name("shell/git"), of(package("git", "git")), tree("git"))
    assert execution.cmd == ("bash",)


def test_one_package_starts_its_main_program() -> None:
    ripgrep = package("ripgrep", "ripgrep", "rg")
    certificates = package("cacert", "nss-cacert")
    execution = execution_parameters(
        parse_image_name("ripgrep"), of(ripgrep, certificates), tree("rg", "ripgrep")
    )
    assert execution.cmd == ("rg",)


def test_a_main_program_that_is_not_there_is_not_started() -> None:
    request = parse_image_name("ripgrep")
    ripgrep = package("ripgrep", "ripgrep", "rg")
    assert execution_parameters(request, of(ripgrep), tree("ripgrep")).cmd == ("ripgrep",)
    assert execution_parameters(request, of(ripgrep), tree()).cmd == ()


def test_two_packages_start_nothing() -> None:
    packages = of(package("git", "git"), package("htop", "htop"))
    assert execution_parameters(parse_image_name("git/htop"), packages, tree("git", "htop")).cmd == ()


def test_programs_and_certificates_are_found_by_stable_names() -> None:
    env = dict(
        entry.split("=", 1) for entry in execution_parameters(parse_image_name("git"), of(), tree()).env
    )
    assert env["PATH"].split(":")[0] == "/bin"
    assert env["SSL_CERT_FILE"] == env["GIT_SSL_CAINFO"] == "/etc/ssl/certs/ca-bundle.crt"
    assert "HOME" not in env


def test_variables_for_what_only_some_images_have() -> None:
    request = parse_image_name("git")
    root = tree()
    without = execution_parameters(request, of(), root).env
    assert not [entry for entry in without if entry.startswith(("TZDIR", "LOCALE_ARCHIVE"))]
    root.add(b"share/zoneinfo", Link(b"somewhere"))
    assert execution_parameters(request, of(), root).env == (*without, "TZDIR=/share/zoneinfo")
    root.add(b"lib/locale/locale-archive", Link(b"somewhere"))
    both = execution_parameters(request, of(), root).env
    assert both == (*without, "TZDIR=/share/zoneinfo", "LOCALE_ARCHIVE=/lib/locale/locale-archive")


def defined(name: str, execution: ExecutionParameters, *packages: Package) -> ExecutionParameters:
    return execution_parameters(
        parse_image_name(name),
        Contents(packages, Definition("web", "web", execution)),
        tree("bash", "nginx", "curl"),
    )


NGINX, CURL = package("web", "nginx"), package("curl", "curl")


def test_a_definition_has_the_first_word() -> None:
    execution = ExecutionParameters(
        env=("PORT=80", "PATH=/own"), cmd=("serve",), user="65534", labels={"a": "b"}, entrypoint=("/init",)
    )
    result = defined("shell/web", execution, NGINX, CURL)
    assert result.cmd == ("serve",)
    assert (result.user, result.labels, result.entrypoint) == ("65534", {"a": "b"}, ("/init",))
    assert result.env[-2:] == ("PORT=80", "PATH=/own")
    assert len([entry for entry in result.env if entry.startswith("PATH=")]) == 1
    assert any(entry.startswith("SSL_CERT_FILE=") for entry in result.env)


def test_what_a_definition_leaves_open() -> None:
    nothing = ExecutionParameters()
    assert defined("web", nothing, NGINX).cmd == ("nginx",)
    assert defined("web", nothing, NGINX, package("web", "curl")).cmd == ()
    assert defined("shell/web", nothing, NGINX).cmd == ("bash",)
    assert defined("web", ExecutionParameters(cmd=()), NGINX).cmd == ()
    assert not defined("shell/web", ExecutionParameters(entrypoint=("nginx",)), NGINX).cmd


def test_a_list_of_one_is_started_and_a_longer_one_is_not() -> None:
    request = parse_image_name("tools")
    one, two = package("tools", "curl"), package("tools", "nginx")
    assert execution_parameters(request, of(one), tree("curl", "nginx")).cmd == ("curl",)
    assert execution_parameters(request, of(one, two), tree("curl", "nginx")).cmd == ()
