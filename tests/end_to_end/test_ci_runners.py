"""Jobs of CI systems in images of the meta-package ``ci``: what succeeds there, and what fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ci_runners
from tests.support.container import Container, Options, pull
from tests.support.server import Server

pytestmark = pytest.mark.xdist_group("debian")

_USERS: dict[str, Options] = {"root": {}, "plain user": {"user": 1000}}


@pytest.fixture(scope="module")
def job(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    """The image of the recipe for continuous integration."""
    return pull(server.port, "ci/gnumake/jq", "latest", tmp_path_factory.mktemp("ci"))


@pytest.fixture(params=_USERS)
def user(request: pytest.FixtureRequest) -> Options:
    return _USERS[request.param]


def gitlab(container: Container, user: Options, *commands: str) -> tuple[int, str]:
    return container.status(*ci_runners.gitlab_job(commands), **user)


def test_the_image_starts_a_shell(job: Container) -> None:
    assert job.image.cmd == ["bash"]


def test_a_good_job_of_gitlab_passes(job: Container, user: Options) -> None:
    makefile = r"printf 'check:\n\tjq --null-input 7\n' > /tmp/Makefile.$$"
    status, output = gitlab(
        job, user, '[ -n "$BASH_VERSION" ]', makefile, "make --file /tmp/Makefile.$$", "rm /tmp/Makefile.$$"
    )
    assert (status, output.splitlines()[-2]) == (0, "7"), output


@pytest.mark.parametrize(
    "command",
    [
        "false",
        # The last program of a pipe succeeds.
        "jq --raw-output .nothing /nonexistent | cat",
        "echo 'all: ; @exit 3' | make --file - | cat",
        "echo 'no match' | grep --quiet needle",
        "nosuchprogram",
        "(exit 7); echo after",
    ],
)
def test_a_bad_job_of_gitlab_fails(job: Container, user: Options, command: str) -> None:
    status, output = gitlab(job, user, "true", command, "echo reached the end")
    assert status != 0, output
    assert "\nreached the end" not in output


def test_the_stages_of_gitlabs_runner_pass(job: Container, user: Options) -> None:
    status, output = gitlab(job, user, *ci_runners.GITLAB_STAGES)
    assert status == 0, output


def test_gitlabs_runner_stops_a_job(job: Container) -> None:
    status, output = job.status("sh", "-c", ci_runners.GITLAB_STOP)
    assert status == 0, output


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "step.sh"


@pytest.mark.parametrize("shell", [ci_runners.GITHUB_BASH, ci_runners.GITHUB_SH], ids=["bash", "sh"])
def test_steps_of_github_pass_and_fail(
    job: Container, user: Options, script: Path, shell: tuple[str, ...]
) -> None:
    step: Options = {
        **user,
        "files": {"/__w/_temp/step.sh": script},
        "env": {"HOME": "/github/home"},
    }
    good = "GITHUB_OUTPUT=$(mktemp)\necho answer=$(jq -n 42) > $GITHUB_OUTPUT\ncat $GITHUB_OUTPUT\n"
    script.write_text(good)
    assert job.status(*shell, "/__w/_temp/step.sh", **step) == (0, "answer=42\n")
    for bad in (
        "false\necho after\n",
        "jq . /nonexistent\necho after\n",
        "grep -q needle /etc/passwd\ntrue\n",
    ):
        script.write_text(bad)
        status, output = job.status(*shell, "/__w/_temp/step.sh", **step)
        assert status != 0, bad
        assert "after" not in output


def test_a_step_of_github_in_bash_fails_with_any_program_of_a_pipe(job: Container, script: Path) -> None:
    script.write_text("jq . /nonexistent | cat\n")
    status, _ = job.status(
        *ci_runners.GITHUB_BASH, "/__w/_temp/step.sh", files={"/__w/_temp/step.sh": script}
    )
    assert status != 0


def test_githubs_runner_keeps_the_container_and_reads_its_distribution(job: Container) -> None:
    with job.started(*ci_runners.GITHUB_MAIN_PROCESS) as run:
        found = run(*ci_runners.GITHUB_DISTRIBUTION).splitlines()
        assert "ID=nixery" in found
        # It would mount a Node for musl.
        assert not [line for line in found if "alpine" in line.lower()]


def test_actions_check_out_and_cache(job: Container, user: Options) -> None:
    """``actions/checkout`` calls git; ``actions/cache`` calls tar with zstd, or with gzip where that is missing."""
    script = """
        set -e
        work=$(mktemp -d); cd $work; export HOME=$work
        git init --quiet origin
        git -C origin -c user.name=a -c user.email=a@b commit --quiet --allow-empty --message first
        git config --global --add safe.directory $work/origin
        git init --quiet checkout; cd checkout
        git remote add origin file://$work/origin
        git -c protocol.version=2 fetch --no-tags --prune --depth=1 origin HEAD
        git checkout --quiet --force FETCH_HEAD
        echo content > file; echo file > manifest.txt
        for compression in zstdmt gzip; do
            tar --posix -cf cache.tar --exclude cache.tar -P -C . --files-from manifest.txt --use-compress-program $compression
            rm file
            tar -xf cache.tar -P -C . --use-compress-program "$compression -d"
            grep --quiet content file
        done
        rm -rf $work
    """
    status, output = job.status("bash", "-c", script, **user)
    assert status == 0, output


def test_the_server_of_visual_studio_code_finds_its_libraries(job: Container, user: Options) -> None:
    status, output = job.status("sh", "-c", ci_runners.VSCODE_REQUIREMENTS, **user)
    assert status == 0, output
