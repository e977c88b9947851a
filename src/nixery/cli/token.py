"""``nixery token``."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nixery.access.identity import Right

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nixery.access.api_tokens import ApiToken
    from nixery.access.audit import AuditLog
    from nixery.settings import StorageSettings

_FAILED = 1

_NEVER = "never"

token = typer.Typer(help="API tokens, with which programs log in.", no_args_is_help=True)


def _seconds(text: str) -> object:
    from nixery.quantities import seconds

    return None if text == _NEVER else seconds(text)


@token.command()
def create(
    user: Annotated[str, typer.Option("--user", metavar="NAME", help="User that the token identifies.")],
    group: Annotated[
        list[str] | None, typer.Option("--group", metavar="NAME", help="Group of this user. Repeatable.")
    ] = None,
    may: Annotated[
        list[Right] | None,
        typer.Option(
            "--may",
            metavar="RIGHT",
            help=f"Right that the token can be used for: {', '.join(Right)}; default: pull. Repeatable.",
        ),
    ] = None,
    packages: Annotated[
        list[str] | None,
        typer.Option(
            "--packages",
            metavar="PATTERN",
            help="Packages that the token can be used for, e.g. 'python3*'; default: all. Repeatable.",
        ),
    ] = None,
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="Time until it expires, e.g. 30d, or never.")
    ] = "90d",
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Note for the list of tokens.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Create an API token, and print it once.

    Rights and packages are limits: the token allows what both they and the rules for its user allow. All servers
    on the storage accept it at once. Example:

        nixery token create --user ci --group builders --may pull --may build --expires 30d
    """
    from nixery.access.api_tokens import ApiTokens
    from nixery.cli.session import open_storage_session, run

    try:
        life = _seconds(expires)
    except ValueError as error:
        raise typer.BadParameter(f"{error}, or never", param_hint="--expires") from None

    async def command() -> tuple[str, ApiToken]:
        with open_storage_session() as (settings, opened), _audit(settings) as audit:
            text, created = await ApiTokens(opened.records).create(
                user,
                groups=group or (),
                rights=may or (Right.PULL,),
                packages=packages or ("*",),
                expires_in=life if isinstance(life, int) else None,
                note=note,
            )
            if audit is not None:
                audit.token_created(created.id, created.identity.name)
            return text, created

    text, created = run(command, quiet=True)
    if as_json:
        typer.echo(json.dumps({"token": text, **_as_json(created)}))
        return
    typer.echo(
        f"nixery: API token {created.id} for {created.identity.name}, expires {_date(created.expires)}; "
        "it is not shown again:",
        err=True,
    )
    typer.echo(text)


@token.command(name="list")
def list_tokens(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print all API tokens, expired ones included, without their secrets.

    The last use is recorded at most once an hour.
    """
    from nixery.access.api_tokens import ApiTokens
    from nixery.cli.session import open_storage_session, run

    async def command() -> list[ApiToken]:
        with open_storage_session() as (_, opened):
            return await ApiTokens(opened.records).list()

    found = run(command, quiet=True)
    if as_json:
        typer.echo(json.dumps([_as_json(one) for one in found]))
        return
    if not found:
        typer.echo("nixery: the storage has no API tokens", err=True)
        return
    rows: list[tuple[str, ...]] = [
        ("ID", "USER", "GROUPS", "MAY", "PACKAGES", "CREATED", "EXPIRES", "USED", "NOTE")
    ]
    rows += [_row(one) for one in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@token.command()
def revoke(
    tokens: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Ids of tokens, or tokens that leaked.")
    ],
) -> None:
    """Delete API tokens. All servers on the storage refuse them within a minute; exit with 1 if one does not exist."""
    from nixery.access.api_tokens import ApiTokens, token_id
    from nixery.cli.logs import print_line
    from nixery.cli.session import open_storage_session, run

    ids = [token_id(text) for text in tokens]

    async def command() -> list[bool]:
        with open_storage_session() as (settings, opened), _audit(settings) as audit:
            stored = ApiTokens(opened.records)
            owners = {one.id: one.identity.name for one in await stored.list()} if audit is not None else {}
            revoked = [one is not None and await stored.revoke(one) for one in ids]
            for one, existed in zip(ids, revoked, strict=True):
                if audit is not None and one is not None and existed:
                    audit.token_revoked(one, owners.get(one, ""))
            return revoked

    revoked = run(command, quiet=True)
    for number, (identity, existed) in enumerate(zip(ids, revoked, strict=True), start=1):
        if existed:
            print_line(f"revoked API token {identity}")
        elif identity is None:
            # It may be a secret: it is not repeated.
            print_line(f"argument {number} is not the id of an API token, which has 16 hexadecimal digits")
        else:
            print_line(f"there is no API token {identity}; `nixery token list` prints all")
    if not all(revoked):
        raise typer.Exit(_FAILED)


@contextmanager
def _audit(settings: StorageSettings) -> Iterator[AuditLog | None]:
    """Open the audit log; ``None`` without one, or if it is the standard output, which is the server's."""
    from nixery.access.audit import AuditLog

    if settings.audit_log is None or str(settings.audit_log) == "-":
        yield None
        return
    log = AuditLog(settings.audit_log)
    try:
        yield log
    finally:
        log.close()


def _as_json(one: ApiToken) -> dict[str, Any]:
    return {
        "id": one.id,
        "user": one.identity.name,
        "groups": sorted(one.identity.groups),
        "may": _rights(one),
        "packages": list(one.identity.limits.packages if one.identity.limits else ()),
        "created": one.created,
        "expires": one.expires,
        "used": one.used,
        "note": one.note,
    }


def _row(one: ApiToken) -> tuple[str, ...]:
    from nixery.plain_text import escaped

    texts = _as_json(one)
    cells = (
        one.id,
        one.identity.name,
        ",".join(texts["groups"]),
        ",".join(texts["may"]),
        ",".join(texts["packages"]),
        _date(one.created),
        _date(one.expires),
        "-" if one.used is None else _date(one.used),
        one.note,
    )
    return tuple(escaped(cell) or "-" for cell in cells)


def _rights(one: ApiToken) -> list[str]:
    return sorted(one.identity.limits.rights if one.identity.limits else ())


def _date(seconds: float | None) -> str:
    return _NEVER if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")
