"""Users of containers: of definitions, and any others."""

from __future__ import annotations

import pytest

from tests.support.container import Container, pull
from tests.support.server import Server

pytestmark = pytest.mark.xdist_group("debian")

# Of OpenShift: any number, and group 0.
_ARBITRARY = 1_000_650_000

_WHO = 'echo "$(id -u):$(id -g) $(whoami) $HOME $PWD"'
_WRITES = "for place; do mkdir $place/of-$$ && rmdir $place/of-$$; stat -c '%n %u:%g %a' $place; done"


@pytest.fixture(scope="module")
def numeric(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return pull(server.port, "users.numeric", "latest", tmp_path_factory.mktemp("numeric"))


@pytest.fixture(scope="module")
def named(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return pull(server.port, "users.named", "latest", tmp_path_factory.mktemp("named"))


@pytest.fixture(scope="module")
def root(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return pull(server.port, "users.root", "latest", tmp_path_factory.mktemp("root"))


def test_a_numeric_user_has_a_name_and_a_home(numeric: Container) -> None:
    assert numeric.run("bash", "-c", _WHO) == "1000:0 user1000 /home/user1000 /\n"
    assert numeric.run("bash", "-c", _WRITES, "-", "/home/user1000") == "/home/user1000 1000:0 775\n"


def test_programs_that_look_up_the_user_work(numeric: Container) -> None:
    script = """
        set -e
        ssh-keygen -q -t ed25519 -N '' -f ~/key
        ssh -T -G example.org | head -n 2 | tail -n 1
        ssh -T -o BatchMode=yes -o ConnectTimeout=1 127.0.0.1 -p 1 2>&1 | tail -n 1
        git config --global user.email a@b
        git init -q ~/repository; cd ~/repository; git commit -q --allow-empty -m x; git log --format='%an %ae'
        initdb --auth=trust -D ~/database >/dev/null
        ls ~/database/PG_VERSION
    """
    listed = numeric.run("bash", "-c", script).splitlines()
    assert listed[0] == "user user1000"
    assert "Connection refused" in listed[1] or "Network is unreachable" in listed[1]
    assert listed[-2:] == ["user1000 a@b", "/home/user1000/database/PG_VERSION"]


def test_programs_of_root_work(numeric: Container) -> None:
    script = """
        set -e
        ssh -V 2>&1
        ssh-keygen -q -t ed25519 -N '' -f ~/key
        git config --global user.email a@b
        whoami
    """
    listed = numeric.run("bash", "-c", script, user=0, env={"HOME": "/root"}).splitlines()
    assert listed[0].startswith("OpenSSH")
    assert listed[1:] == ["root"]


def test_a_user_without_an_entry_runs_what_needs_none(numeric: Container) -> None:
    script = """
        set -e
        git -c user.name=x -c user.email=a@b init -q /tmp/of-$$; rm -r /tmp/of-$$
        initdb --version
        HOME=/tmp git config --global core.editor true
        find / -maxdepth 1 -name tmp -writable
    """
    listed = numeric.run("bash", "-c", script, user=4321, env={"HOME": "/"}).splitlines()
    assert listed[0].startswith("initdb (PostgreSQL)")
    assert listed[1:] == ["/tmp"]  # noqa: S108 -- of the container


def test_a_named_user_owns_its_home_its_working_directory_and_its_volumes(named: Container) -> None:
    assert named.run("bash", "-c", _WHO) == "1000:1000 web /home/web /srv\n"
    places = ("/home/web", "/srv")
    printed = named.run("bash", "-c", _WRITES, "-", *places).splitlines()
    assert printed == [f"{place} 1000:1000 755" for place in places]
    # umoci mounts an empty directory over a volume.
    status = (named.root / "data").stat()
    assert (status.st_uid, status.st_gid) == (1000, 1000)
    assert named.run("bash", "-c", "id -gn; stat -c %G .") == "www\nwww\n"


def test_a_user_that_every_image_has_gets_a_home(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    container = pull(server.port, "users.existing", "latest", tmp_path_factory.mktemp("existing"))
    assert container.run("bash", "-c", _WHO) == "65534:65534 nobody /home/nobody /tmp\n"
    container.run("git", "config", "--global", "user.email", "a@b")
    assert container.run("stat", "-c", "%a", ".") == "1777\n"


def test_users_that_packages_declare_exist_and_own_their_directories(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    container = pull(server.port, "users.declared", "latest", tmp_path_factory.mktemp("declared"))
    script = "initdb --auth=trust -D ~/database >/dev/null; whoami; echo $HOME; stat -c %U:%G /run/postgresql"
    assert container.run("bash", "-c", script).split() == [
        "postgres",
        "/var/lib/postgresql",
        "postgres:postgres",
    ]
    # It looks up the user of its worker processes before it gives them a directory, which runc's default
    # capabilities do not allow.
    _, printed = container.status("nginx", "-t", user=0)
    assert "syntax is ok" in printed
    assert 'chown("/var/lib/nginx/body", 33)' in printed


@pytest.mark.parametrize("image", ["numeric", "root"])
def test_an_arbitrary_user_of_group_0_may_write_what_belongs_to_group_0(
    request: pytest.FixtureRequest, root: Container, image: str
) -> None:
    container: Container = request.getfixturevalue(image)
    place = {"numeric": "/home/user1000", "root": "/srv/app"}[image]
    printed = container.run("bash", "-c", _WRITES, "-", place, user=_ARBITRARY, group=0)
    assert printed.endswith(":0 775\n")
    assert (root.root / "data").stat().st_mode & 0o777 == 0o775


def test_root_and_nobody_have_names_and_groups(numeric: Container) -> None:
    listed = numeric.run("getent", "group", "root", "tty", "nobody", "nogroup").splitlines()
    assert listed == ["root:x:0:", "tty:x:5:", "nobody:x:65534:", "nogroup:x:65534:"]


def test_os_release_is_read_by_a_shell(numeric: Container) -> None:
    for file in ("/etc/os-release", "/usr/lib/os-release"):
        assert numeric.run("sh", "-euc", f'. {file}; echo "$ID $VERSION_ID $PRETTY_NAME"').split()[0]
        # A regular file that readers of layers find without following a symlink into the store.
        assert numeric.find(file) == numeric.root / "usr/lib/os-release"
