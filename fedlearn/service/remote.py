"""Stores on a server: PostgreSQL (a table, read by its key column) and Redis (a hash for each key).

Each keeps a pool of connections that come back by themselves after the server was away, and waits no longer than the
party file's ``timeout_ms``: to be told that the store is away is worth more to a caller than a late score. Errors never
hold the server's own text, which may quote a password or an applicant.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from fedlearn.contract import Key, Kind, Store
from fedlearn.errors import BadConfig, ColumnMissing, FileMissing
from fedlearn.models.row import Value
from fedlearn.service.store import Row, StoreAway, normaliser, row_of, typed

#: Types of PostgreSQL that are read in its own text form, as tables to train on are (see data/postgres.py).
_AS_TEXT = ("numeric", "date", "time", "timetz", "timestamp", "timestamptz", "interval", "uuid")


class PostgresStore:
    """A table of a PostgreSQL server, read anew for each request in a read-only transaction."""

    def __init__(self, store: Store, key: Key, features: dict[str, Kind]) -> None:
        """Connect, and check that the table has the columns.

        Raises:
            FileMissing: the server does not answer, or refuses this user.
            BadConfig: no such URL or table, or the packages are missing.
            ColumnMissing: the table lacks the key or a feature.
        """
        try:
            import psycopg
            from psycopg import sql
            from psycopg.types.string import TextLoader
            from psycopg_pool import ConnectionPool, PoolTimeout
        except ImportError:
            raise BadConfig("a store in PostgreSQL needs psycopg and its pool: install fedlearn[postgres]") from None
        logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())  # it would write between our lines of JSON
        self._kinds, self._slow = features, (psycopg.errors.QueryCanceled, PoolTimeout)
        self._lost, self._no_key, self._normal = psycopg.OperationalError, psycopg.DataError, normaliser(key)
        table = sql.Identifier(*store.table.split("."))
        names = sql.SQL(", ").join(map(sql.Identifier, (key.column, *features)))
        self._query = sql.SQL("SELECT {} FROM {} WHERE {} = %s").format(names, table, sql.Identifier(key.column))
        url = store.url.get_secret_value() if store.url else ""
        settings: dict[str, Any] = {
            "autocommit": True, "connect_timeout": 2, "prepare_threshold": 0, "tcp_user_timeout": store.timeout_ms,
            "options": f"-c default_transaction_read_only=on -c statement_timeout={store.timeout_ms}",
        }  # fmt: skip

        def configure(connection: Any) -> None:
            for name in _AS_TEXT:
                connection.adapters.register_loader(name, TextLoader)

        try:
            given = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error:  # its text holds the string, and so the password
            raise BadConfig("[service.store] url is not a PostgreSQL connection URL") from None
        self._seconds = store.timeout_ms / 1000
        self._pool: Any = ConnectionPool(
            "", kwargs=given | settings, min_size=1, max_size=store.connections, timeout=self._seconds,
            reconnect_timeout=5, configure=configure, open=False, name="store",
        )  # fmt: skip
        try:
            with psycopg.connect(**(given | settings | {"connect_timeout": 15})) as connection:
                connection.execute(sql.SQL("SELECT {} FROM {} LIMIT 0").format(names, table))
        except psycopg.errors.UndefinedColumn as error:
            self._pool.close()
            raise ColumnMissing(f"table {store.table!r} of the store: {error.diag.message_primary}") from None
        except psycopg.OperationalError as error:
            self._pool.close()
            raise FileMissing(f"the store in PostgreSQL cannot be reached: {type(error).__name__}") from None
        except psycopg.Error as error:
            self._pool.close()
            raise BadConfig(f"table {store.table!r} of the store cannot be read: {type(error).__name__}") from None
        self._pool.open(wait=True, timeout=15)

    def get(self, applicant: str) -> Row | None:
        """See :class:`fedlearn.service.store.Features`."""
        try:
            row = self._row(applicant)
        except self._slow:
            raise StoreAway from None
        except self._lost:
            row = self._row_again(applicant)
        return row_of(row, applicant, self._normal, self._kinds)

    def _row_again(self, applicant: str) -> tuple[Any, ...] | None:
        """On a new connection: one that broke while it was idle says nothing about the server now."""
        try:
            self._pool.check()  # drops the others that broke with it
            return self._row(applicant)
        except (*self._slow, self._lost):
            raise StoreAway from None

    def _row(self, applicant: str) -> tuple[Any, ...] | None:
        with self._pool.connection() as connection:
            try:
                found: tuple[Any, ...] | None = connection.execute(self._query, (applicant,)).fetchone()
            except self._no_key:  # no value of the key's type: 'x1' or thirty digits in a column of numbers
                return None
            return found

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


class RedisStore:
    """A hash for each applicant, at ``<table>:<normalised key>``; a field that is not there is missing."""

    def __init__(self, store: Store, features: dict[str, Kind]) -> None:
        """Connect.

        Raises:
            FileMissing: the server does not answer, or refuses this user.
            BadConfig: no such URL, or the package is missing.
        """
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise BadConfig("a store in Redis needs the package redis: install fedlearn[redis]") from None
        self._kinds, self._prefix, self._lost = features, f"{store.table}:", redis.RedisError
        seconds, url = store.timeout_ms / 1000, store.url.get_secret_value() if store.url else ""
        try:
            pool = redis.BlockingConnectionPool.from_url(
                url, max_connections=store.connections, timeout=seconds, socket_timeout=seconds,
                socket_connect_timeout=max(seconds, 0.2), decode_responses=True,
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )  # fmt: skip
        except ValueError:
            raise BadConfig("[service.store] url is not a Redis URL such as rediss://host:6379/0") from None
        self._base: Any = redis.Redis(connection_pool=pool)
        try:
            self._base.ping()
        except redis.RedisError as error:
            self.close()
            raise FileMissing(f"the store in Redis cannot be reached: {type(error).__name__}") from None

    def get(self, applicant: str) -> Row | None:
        """See :class:`fedlearn.service.store.Features`."""
        try:
            values: list[str | None] = self._base.hmget(self._prefix + applicant, *self._kinds)
            if not any(value is not None for value in values) and not self._base.exists(self._prefix + applicant):
                return None
        except (self._lost, UnicodeDecodeError):
            raise StoreAway from None
        return tuple(_parsed(value, *column) for value, column in zip(values, self._kinds.items(), strict=True))

    def close(self) -> None:
        """Close every connection."""
        with contextlib.suppress(self._lost):
            self._base.connection_pool.disconnect()


def _parsed(text: str | None, name: str, kind: Kind) -> Value:
    if kind == "number" and text is not None and not text.strip():
        return float("nan")
    return typed(text, name, kind)
