"""Tables from a query on a PostgreSQL server, streamed.

The query runs in one read-only transaction through a server-side cursor, which takes one SELECT and nothing else, so
neither side ever holds more than one batch beside the table that is built. Needs the extra ``fedlearn[postgres]``.

What a row's values are: whole numbers, floating-point numbers, truth values and bytes as such, everything else
(numeric, dates, UUIDs) in PostgreSQL's own text form, as it would stand in a CSV file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa

from fedlearn.errors import BadConfig, ColumnMissing, FileMissing

_BATCH = 50_000
_KINDS = {
    "bool": pa.bool_(),
    "int2": pa.int64(),
    "int4": pa.int64(),
    "int8": pa.int64(),
    "float4": pa.float64(),
    "float8": pa.float64(),
    "bytea": pa.large_binary(),
}
_AS_TEXT = (
    "numeric",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
    "uuid",
    "json",
    "jsonb",
    "inet",
)


def read(url: str, query: str, names: Sequence[str], source: str) -> Iterator[dict[str, pa.Array]]:
    """The named columns of a query's result, batch by batch.

    Args:
        url: a libpq connection URL or string; what it leaves out comes from libpq's environment and password file.
        query: one SELECT.
        names: columns of its result.
        source: what messages call it.

    Raises:
        FileMissing: the server cannot be reached, or refuses this user.
        BadConfig: no such connection string, not one SELECT, or the server cannot run it.
        ColumnMissing: the result has no such column.
    """
    try:
        import psycopg
        from psycopg.types.string import TextLoader
    except ImportError:
        raise BadConfig("a PostgreSQL source needs the package psycopg: install fedlearn[postgres]") from None
    try:
        given = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:  # its text holds the string, and so the password
        raise BadConfig("[data] url is not a PostgreSQL connection URL") from None
    try:
        settings: dict[str, Any] = {"connect_timeout": 15} | given
        connection = psycopg.connect(**settings)
    except (psycopg.Error, UnicodeError) as error:
        raise FileMissing(f"cannot connect to PostgreSQL: {_reason(error, given)}") from None
    try:
        with closing(connection):  # which never commits
            connection.read_only = True
            for name in _AS_TEXT:
                connection.adapters.register_loader(name, TextLoader)
            with connection.cursor("fedlearn") as cursor:
                cursor.execute(query.strip().rstrip(";").encode())
                found = [(column.name, column.type_code) for column in cursor.description or ()]
                _check(names, [name for name, _ in found], source)
                places = [[name for name, _ in found].index(name) for name in names]
                types = {info.oid: kind for name, kind in _KINDS.items() if (info := psycopg.adapters.types.get(name))}
                while rows := cursor.fetchmany(_BATCH):
                    columns = list(zip(*rows, strict=True))
                    yield {
                        name: pa.array(columns[place], types.get(found[place][1], pa.string()))
                        for name, place in zip(names, places, strict=True)
                    }
    except (psycopg.Error, UnicodeError) as error:
        raise BadConfig(f"{source} failed: {_reason(error, given)}") from None
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise BadConfig(f"{source} has a column of a type that cannot be used, such as an array") from None


def _check(names: Sequence[str], found: list[str], source: str) -> None:
    for name in names:
        if name not in found:
            raise ColumnMissing(f"column {name!r} is not in {source}, which has: {', '.join(found[:50])}")
        if found.count(name) > 1:
            raise BadConfig(f"{source} has more than one column {name!r}")


def _reason(error: Exception, given: dict[str, Any]) -> str:
    """The first line of what went wrong, if no password is in it."""
    said = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
    line = next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)
    password = str(given.get("password") or "")
    return type(error).__name__ if password and password in line else line
