"""Where a service finds the features of one applicant. Rows are tuples in the order of the names asked for."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from fedlearn.contract import Data, Key, Kind, Store
from fedlearn.data.identifiers import canonical, is_known
from fedlearn.data.table import load_table, normalise
from fedlearn.errors import BadConfig, ColumnMissing
from fedlearn.models.row import Value

Row = tuple[Value, ...]
_MOST_ROWS = 100_000_000


class StoreAway(Exception):
    """The store does not answer now, or not in time; a later request may find it back."""


class Features(Protocol):
    """One party's applicants. ``get`` may be called by several threads."""

    def get(self, applicant: str) -> Row | None:
        """The features of a normalised identifier; None for an unknown one.

        A missing number is NaN, a missing text None.

        Raises:
            ValueError: with the column's name, for what is no finite number where a number belongs.
            StoreAway: there is no answer in time.
        """

    def close(self) -> None:
        """Give up its connections."""


def open_store(store: Store, key: Key, features: dict[str, Kind]) -> Features:
    """The store that a party file names.

    Raises:
        OwnMistake: it cannot be read, or lacks a column.
    """
    if store.kind in ("postgres", "redis"):
        from fedlearn.service import remote  # whose packages are extras

        if store.kind == "redis":
            return remote.RedisStore(store, features)
        return remote.PostgresStore(store, key, features)
    path = Path() if store.path is None else store.path
    return SqliteStore(path, store.table, key, features) if store.kind == "sqlite" else TableStore(path, key, features)


def normaliser(key: Key) -> Callable[[str], str | None]:
    """Brings one identifier into the contract's form; None for what is no identifier."""

    def one(text: str) -> str | None:
        ids = pa.array([text], pa.string())
        found: str | None = (canonical(ids, key) if is_known(key) else normalise(ids, key.normalise))[0].as_py()
        return found

    if key.normalise == "digits":  # the usual one, without a detour
        return lambda text: "".join(filter(str.isdigit, text)) or None if text.isascii() else one(text)
    return one


class TableStore:
    """A table in memory, checked as a table to train on is."""

    def __init__(self, path: Path, key: Key, features: dict[str, Kind]) -> None:
        """Read a CSV or Parquet file; see :func:`fedlearn.data.load_table` for the errors."""
        table = load_table(Data(path=path), key, features, None, _MOST_ROWS)
        self._places = {name: place for place, name in enumerate(table.ids.to_pylist())}
        columns = [table.columns[name] for name in features]
        numbers = [values if isinstance(values, np.ndarray) else np.full(table.rows, np.nan) for values in columns]
        self._rows = np.column_stack(numbers)  # a row's numbers lie together
        self._texts = [(at, _reader(v)) for at, v in enumerate(columns) if not isinstance(v, np.ndarray)]

    def get(self, applicant: str) -> Row | None:
        """See :class:`Features`."""
        place = self._places.get(applicant)
        if place is None:
            return None
        row: list[Value] = self._rows[place].tolist()
        for at, text in self._texts:
            row[at] = text(place)
        return tuple(row)

    def close(self) -> None:
        """Nothing to give up."""


def _reader(values: pa.DictionaryArray) -> Callable[[int], str | None]:
    texts: list[str | None] = [*values.dictionary.to_pylist(), None]
    places = values.indices.fill_null(len(texts) - 1).to_numpy()
    return lambda at: texts[places[at]]


class SqliteStore:
    """A table of an SQLite database, read anew for each request, so that what others write there counts at once."""

    def __init__(self, path: Path, table: str, key: Key, features: dict[str, Kind]) -> None:
        """Check that the table has the columns. Raises BadConfig, ColumnMissing."""
        self._uri, self._kinds = f"{path.absolute().as_uri()}?mode=ro", features
        self._connections, self._normal = threading.local(), normaliser(key)
        names = ", ".join(_quoted(name) for name in (key.column, *features))
        where = f"{_quoted(table)} WHERE {_quoted(key.column)}"
        self._query = f"SELECT {names} FROM {where} = ?"  # noqa: S608  (quoted, and ours)
        try:
            found = {row[1] for row in self._base().execute(f"PRAGMA table_info({_quoted(table)})")}
        except sqlite3.Error as error:
            raise BadConfig(f"the store {path} cannot be read: {error}") from None
        for name in (key.column, *features):
            if name not in found:
                raise ColumnMissing(f"column {name!r} is not in table {table!r} of {path}")

    def get(self, applicant: str) -> Row | None:
        """See :class:`Features`."""
        try:
            row = self._base().execute(self._query, (applicant,)).fetchone()
        except sqlite3.Error:
            raise StoreAway from None
        return row_of(row, applicant, self._normal, self._kinds)

    def close(self) -> None:
        """Each thread's connection ends with the thread."""

    def _base(self) -> sqlite3.Connection:
        base: sqlite3.Connection | None = getattr(self._connections, "base", None)
        if base is None:
            base = self._connections.base = sqlite3.connect(self._uri, uri=True, timeout=1)
        return base


def row_of(
    found: Sequence[object] | None, applicant: str, normal: Callable[[str], str | None], kinds: dict[str, Kind]
) -> Row | None:
    """What a database found, the key first; None unless the key is this applicant's.

    A column of numbers finds 7 for '07', ' 7' and '7.0' too. Raises ValueError as :func:`typed` does.
    """
    if found is None or normal(str(found[0])) != applicant:
        return None
    return tuple(typed(value, *column) for value, column in zip(found[1:], kinds.items(), strict=True))


def typed(value: object, name: str, kind: Kind) -> Value:
    """A value as a database gives it. Raises ValueError, with the column's name; see :class:`Features`."""
    if kind == "category":
        text = str(value).lower() if isinstance(value, bool) else str(value)  # true and false, as tables have them
        return None if value is None else text.strip() or None
    if value is None:
        return float("nan")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise ValueError(name) from None
    if number in (float("inf"), float("-inf")):
        raise ValueError(name)
    return number


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
