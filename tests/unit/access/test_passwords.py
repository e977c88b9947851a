"""Users of an htpasswd file, with real hashes of small cost."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import argon2
import bcrypt
import pytest
from structlog.testing import capture_logs

from nixery.access import passwords
from nixery.access.passwords import Htpasswd, check_htpasswd, htpasswd_line
from nixery.errors import SettingsError, TooBusy
from nixery.request_context import Client, RequestContext, enter_request

# Of the test vectors of crypt_blowfish, and of the README of argon2's reference implementation.
BCRYPT = "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
ARGON2 = "$argon2i$v=19$m=65536,t=2,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b+dWRWJTmaaJObG"


def quick(password: str, rounds: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds)).decode()


def quick_argon2(password: str) -> str:
    return argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(password)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "htpasswd"


def problems(path: Path, content: str | bytes) -> tuple[str, ...]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = check_htpasswd(path)
    assert not any("$" in line or "secret" in line for line in found), found
    return tuple(line.removeprefix(f"{path}, ") for line in found)


def write(path: Path, content: str | None) -> None:
    """Write the file; ``None`` deletes it."""
    if content is None:
        path.unlink()
    else:
        path.write_text(content)


def link(path: Path, target: str) -> None:
    path.symlink_to(target)


async def test_hashes_of_other_programs_are_checked(path: Path) -> None:
    write(path, f"# users\n\nalice:{BCRYPT}\r\n  bob:{ARGON2}:comment \nzoë:{quick_argon2('ü')}")
    users = Htpasswd(path)
    assert await users.verify("alice", "U*U")
    assert not await users.verify("alice", "U*V")
    assert await users.verify("bob", "password")
    assert not await users.verify("bob", "passwort")
    assert await users.verify("zoë", "ü")
    assert not await users.verify("carol", "U*U")


async def test_a_line_of_ours_is_accepted(path: Path) -> None:
    line = htpasswd_line("alice", "päss:word")
    assert line.startswith("alice:$argon2id$v=19$m=65536,t=3,p=4$")
    write(path, line)
    assert await Htpasswd(path).verify("alice", "päss:word")


@pytest.mark.parametrize(
    ("user", "password", "message"),
    [
        ("", "x", "user name ''"),
        ("a:b", "x", "no colon"),
        ("a\nb", "x", r"user name 'a\nb'"),
        ("a" * 257, "x", "1 to 256"),
        ("anonymous", "x", "without credentials"),
        ("alice", "", "empty"),
        ("alice", "x" * 1025, "has 1025 bytes"),
    ],
)
def test_a_line_that_would_be_refused_is_not_made(user: str, password: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"name|password") as caught:
        htpasswd_line(user, password)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bob:$apr1$secret$secret", "line 2, user 'bob': MD5 is not accepted"),
        ("bob:{SHA}secret", "line 2, user 'bob': SHA-1 is not accepted"),
        ("bob:$5$secret$secret", "SHA-256 crypt"),
        ("bob:$6$secret$secret", "SHA-512 crypt"),
        ("bob:$2x$05$secret", "a broken bcrypt"),
        ("bob:secret", "plain text or crypt"),
        ("bob:", "plain text or crypt"),
        ("my-secret", "line 2: no colon"),
        (f"bob:{BCRYPT[:-1]}", "cut off"),
        (f"bob:{ARGON2[:40]}", "cut off"),
        (f"bob:{BCRYPT.replace('$05$', '$15$')}", "bcrypt with a cost of 15"),
        (f"bob:{BCRYPT.replace('$05$', '$03$')}", "bcrypt with a cost of 3"),
        (f"bob:{ARGON2.replace('m=65536', 'm=262145')}", "m=262145"),
        (f"bob:{ARGON2.replace('t=2', 't=11')}", "t=11"),
        (f"bob:{ARGON2.replace('p=4', 'p=17')}", "p=17"),
        (f"bob:{ARGON2.replace('m=65536', 'm=31')}", "at least m=8*p"),
        (f"alice:{BCRYPT}", "line 1 has this user, too"),
        (f"anonymous:{BCRYPT}", "without credentials"),
        (f"b\x1b[2Jb:{BCRYPT}", r"user 'b\x1b[2Jb'"),
        (f"{'b' * 300}:{BCRYPT}", "1 to 256 printable"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_without_its_hash(path: Path, line: str, message: str) -> None:
    (found,) = problems(path, f"alice:{BCRYPT}\n{line}\n")
    assert message in found
    assert found.isprintable()
    with pytest.raises(SettingsError):
        Htpasswd(path)


def test_a_file_that_cannot_be_used_is_refused(path: Path) -> None:
    assert check_htpasswd(path) == (f"cannot read the password file {path}: No such file or directory",)
    assert problems(path, b"alice:x\n\xff:x\n") == ("line 2: not UTF-8",)
    assert problems(path, b"#" * (1024 * 1024 + 1)) == (
        f"the password file {path} has more than 1048576 bytes",
    )
    many = problems(path, "secret\n" * 100)
    assert len(many) == 21
    assert many[-1] == "and 80 more problems"
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in check_htpasswd(path)[0]
    path.unlink()
    path.symlink_to(path)
    assert "cannot read" in check_htpasswd(path)[0]


def test_the_number_of_users_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_MOST_USERS", 3)
    lines = [f"user{number}:{BCRYPT}" for number in range(5)]
    assert problems(path, "\n".join(lines)) == ("line 4: more than 3 users",)
    assert problems(path, "\n".join(lines[:3])) == ()


async def test_a_password_of_bcrypt_has_72_bytes(path: Path) -> None:
    write(path, f"alice:{quick('x' * 72)}")
    users = Htpasswd(path)
    assert await users.verify("alice", "x" * 72)
    assert not await users.verify("alice", "x" * 73)
    assert not await users.verify("alice", "x" * 100_000)
    assert not await users.verify("alice", "\udcff")


async def test_an_unknown_user_costs_what_a_known_one_does(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    actual = passwords._has_hash

    def observed(password: bytes, hashed: str) -> bool:
        checked.append(hashed)
        return actual(password, hashed)

    monkeypatch.setattr(passwords, "_has_hash", observed)
    write(path, f"alice:{quick('right', 5)}\nbob:{quick_argon2('right')}\n")
    users = Htpasswd(path)
    names = [f"stranger-{number}" for number in range(40)]
    for name in names * 2:
        assert not await users.verify(name, "right")
    # Each name has one cost, of those of the users; and no user's hash is checked for it.
    assert checked[:40] == checked[40:]
    assert {hashed.rpartition("$")[0][:28] for hashed in checked if "argon2" in hashed} == {
        "$argon2id$v=19$m=8,t=1,p=1$" + next(one for one in checked if "argon2" in one)[27]
    }
    assert {hashed[:7] for hashed in checked if "argon2" not in hashed} == {"$2b$05$"}
    assert not set(checked) & set(users._users.hashes.values())


async def test_a_file_without_users_refuses_all(path: Path) -> None:
    write(path, "# none yet\n")
    assert not await Htpasswd(path).verify("alice", "")


async def test_a_changed_file_is_read_again(path: Path) -> None:
    write(path, f"alice:{quick('old')}\n")
    users = Htpasswd(path)
    first = users.version
    await users.refresh()
    assert users.version == first
    write(path, f"alice:{quick('new')}\nbob:{quick('new')}\n")
    assert await users.verify("bob", "new")
    assert not await users.verify("alice", "old")
    assert users.version != first


async def test_a_file_is_replaced_as_kubernetes_does(tmp_path: Path, path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "htpasswd", f"alice:{quick(name)}\n")
    (tmp_path / "data").symlink_to("one")
    link(path, "data/htpasswd")
    users = Htpasswd(path)
    assert await users.verify("alice", "one")
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "data")
    assert await users.verify("alice", "two")
    assert not await users.verify("alice", "one")


async def test_a_broken_new_file_keeps_the_users_and_is_logged_once(path: Path) -> None:
    write(path, f"alice:{quick('right')}\n")
    users = Htpasswd(path)
    first = users.version
    for broken in ("alice:secret\n", None):
        write(path, broken)
        with capture_logs() as logs:
            assert await users.verify("alice", "right")
            await users.refresh()
        (entry,) = logs
        assert entry["log_level"] == "error"
        assert entry["kept_users"] == 1
        assert "secret" not in str(entry)
        assert users.version == first
    write(path, f"bob:{quick('right')}\n")
    assert not await users.verify("alice", "right")
    assert users.version != first


class Checks:
    """Password checks that wait until the test lets them go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Semaphore(0)
        self.end = threading.Event()
        self.count = 0
        monkeypatch.setattr(passwords, "_has_hash", self._check)

    def _check(self, _password: bytes, _hashed: str) -> bool:
        self.count += 1
        self.begun.release()
        assert self.end.wait(30)
        return True

    async def wait(self, number: int) -> None:
        for _ in range(number):
            assert await asyncio.to_thread(self.begun.acquire, timeout=30)


async def test_equal_attempts_at_the_same_time_are_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, f"alice:{BCRYPT}\n")
    users, checks = Htpasswd(path), Checks(monkeypatch)
    attempts = [asyncio.create_task(users.verify("alice", "x")) for _ in range(20)]
    await checks.wait(1)
    checks.end.set()
    assert await asyncio.gather(*attempts) == [True] * 20
    assert checks.count == 1


async def test_few_passwords_are_checked_at_once_even_if_clients_leave(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, f"alice:{BCRYPT}\n")
    users, checks = Htpasswd(path), Checks(monkeypatch)
    attempts = [asyncio.create_task(users.verify("alice", f"x{number}")) for number in range(66)]
    await checks.wait(2)
    with pytest.raises(TooBusy, match="checks 2 passwords at once, and 64 more"):
        await users.verify("alice", "one too many")
    for attempt in attempts[:2]:
        attempt.cancel()
    await asyncio.gather(*attempts[:2], return_exceptions=True)
    assert checks.count == 2
    # Another client gets a place, which the greedy one loses.
    enter_request(RequestContext("other", Client("192.0.2.7")))
    other = asyncio.create_task(users.verify("alice", "of another client"))
    checks.end.set()
    assert await other
    left = await asyncio.gather(*attempts[2:], return_exceptions=True)
    assert sum(isinstance(one, TooBusy) for one in left) == 1
    await users.close()
