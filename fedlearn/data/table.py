"""One party's rows, read and checked: a CSV or Parquet file, or columns in memory, to a :class:`PartyTable`.

The steps, the same for files and for memory (:func:`_build`):

1. read the named columns in chunks; every CSV cell arrives as text, so that identifiers keep leading zeros;
2. convert each column strictly: a cell that is neither a number nor a missing value is an error, not a guess;
3. normalise the identifiers, and refuse or drop (as the contract says) those that are null or repeated;
4. check the label.

A table to score is encoded chunk by chunk after step 2 (``encode`` of :func:`load_table`), so that its features never
stand in memory in full.

Row numbers in messages count data rows from 1, in the order of the file; the header and blank lines do not count.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedlearn.contract import Data, Key, Kind, Label
from fedlearn.contract import Target as Further
from fedlearn.data import identifiers, postgres
from fedlearn.errors import (
    BadConfig,
    BadIds,
    BadLabel,
    ColumnMissing,
    DuplicateIds,
    EmptyTable,
    FileMissing,
    NotFinite,
    NotNumeric,
    NullIds,
    OverBudget,
)

Column: TypeAlias = npt.NDArray[np.float64] | pa.DictionaryArray

_ASCII_SPACE = " \t\n\v\f\r\x1c\x1d\x1e\x1f"  # what str.strip() strips, so that both paths of `text` agree
_CLOSED: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
_DEFAULT_KEY = Key(column="id")
_EXAMPLES = 5  # rows that a message names
_AT_ONCE, _GROUPS = 1 << 18, 16  # identifiers that are looked through for repeats at once; groups of more


Target = npt.NDArray[np.int8] | npt.NDArray[np.int32] | npt.NDArray[np.float64]

#: What a label column holds: two values, several classes, any number, or a number that is not negative.
TargetKind = Literal["binary", "classes", "number", "count"]


Encoded: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class PartyTable:
    """One party's checked rows, in the order of its source. Never leaves this party.

    Attributes:
        ids: shape (n,), normalised identifiers, distinct and without nulls.
        columns: feature name to values of shape (n,): a ``number`` is float64 with NaN for missing (never infinite);
            a ``category`` is an Arrow dictionary<int32, string> with nulls for missing.
        label: shape (n,); int8, 1 for the contract's positive value and 0 for the other; int32, the number of the
            class; or float64, the value; None without label.
        weight: shape (n,), float64, positive row weights; None without.
        skipped: rows that were left out of the source as the contract allows, by reason (``null_ids``,
            ``duplicate_ids``); with several keys, identifiers that were left out, by reason and column.
        more: further labels (``[label] also``), each like ``label``.
        encoded: in place of ``columns``, what they were encoded to as they were read, each of shape (n,).
        content: a digest of the columns that were encoded and let go, rows skipped included; empty without.
        also: further keys, each of shape (n,), distinct, null where a row has not that key (and then so may ``ids``).
    """

    ids: pa.StringArray
    columns: dict[str, Column]
    label: Target | None = None
    weight: npt.NDArray[np.float64] | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    also: tuple[pa.StringArray, ...] = ()
    more: tuple[Target, ...] = ()
    encoded: dict[str, Encoded] = field(default_factory=dict)
    content: bytes = b""

    @property
    def keys(self) -> pa.StringArray | tuple[pa.StringArray, ...]:
        """What rows are aligned by: ``ids``, or a tuple of all keys where there are several."""
        return (self.ids, *self.also) if self.also else self.ids

    @property
    def rows(self) -> int:
        """The number of rows, n."""
        return len(self.ids)

    def take(self, indices: npt.NDArray[np.int64]) -> PartyTable:
        """The rows at ``indices`` (int64, shape (m,), each in [0, n)), in that order."""
        positions = pa.array(indices, pa.int64())
        return replace(
            self,
            ids=self.ids.take(positions),
            also=tuple(ids.take(positions) for ids in self.also),
            columns={
                name: values[indices] if isinstance(values, np.ndarray) else values.take(positions)
                for name, values in self.columns.items()
            },
            encoded={name: values[indices] for name, values in self.encoded.items()},
            label=None if self.label is None else self.label[indices],
            more=tuple(values[indices] for values in self.more),
            weight=None if self.weight is None else self.weight[indices],
        )

    def fingerprint(self) -> bytes:
        """SHA-256 over identifiers, columns and label: equal only for equal values in the same order.

        It depends on values alone, not on how they lie in memory. It is a digest of low-entropy data, so it is
        for this party's own records and must not be shown to the peer.
        """
        digest = hashlib.sha256(b"fedlearn table 1")
        _feed(digest, "ids", self.ids)
        for k, ids in enumerate(self.also):
            _feed(digest, f"key {k + 1}", ids)
        for name in sorted(self.columns):
            _feed(digest, f"column {name}", self.columns[name])
        if self.content:
            _feed(digest, "content", np.frombuffer(self.content, np.uint8))
        if self.label is not None:
            _feed(digest, "label", self.label)
        for k, values in enumerate(self.more):
            _feed(digest, f"label {k + 1}", values)
        if self.weight is not None:
            _feed(digest, "weight", self.weight)
        return digest.digest()


#: See ``encode`` of :func:`load_table`.
Encode: TypeAlias = Callable[[PartyTable], Mapping[str, Encoded]]


def load_table(
    data: Data,
    key: Key,
    features: Mapping[str, Kind],
    label: Label | None,
    max_rows: int,
    target: TargetKind = "binary",
    also: Sequence[Key] = (),
    encode: Encode | None = None,
) -> PartyTable:
    """Read a party's CSV (``.csv``, ``.csv.gz``) or Parquet (``.parquet``) file, or a query's result, and check it.

    A file is read chunk by chunk, a query's result batch by batch.

    A CSV file is UTF-8 with a header, quoted as RFC 4180 says, with comma, semicolon, tab or bar as delimiter. Text is
    trimmed, except identifiers, which follow ``key.normalise``. An empty CSV cell is always missing.

    Args:
        data: the path or the server, the query on a database, and the texts that mean a missing value.
        key: the identifier column, and what to do with null and repeated identifiers.
        features: columns to read, by kind, in the order in which they are kept.
        label: the label column, or None where there is none (the passive side, and prediction).
        max_rows: the most rows that the contract allows.
        target: what the label is: two values, classes, any number, or a number that is not negative.
        also: further identifier columns.
        encode: what to keep in place of the columns, for scoring: of a table of a chunk's rows, checked but for nulls
            and repeats among its identifiers, arrays of shape (rows,) by name, which depend on each row alone.

    Raises:
        FileMissing: no such file or server, or not readable.
        BadConfig: not a CSV or Parquet file, or a column of a type that cannot be used.
        ColumnMissing, EmptyTable, NullIds, DuplicateIds, NotNumeric, NotFinite, BadLabel: as their names say.
        OverBudget: more than ``max_rows`` rows.
    """
    asked = [name for name in (*label.columns, label.weight) if name] if label else []
    keys = (key, *also)
    names = list(dict.fromkeys([*(one.column for one in keys), *features, *asked]))
    chunks = (
        _Chunk(
            ids=tuple(batch[one.column] for one in keys),
            columns={name: batch[name] for name in features},
            label=batch[label.column] if label else None,
            weight=batch[label.weight] if label and label.weight else None,
            more=tuple(batch[name] for name in label.columns[1:]) if label else (),
        )
        for batch in read_chunks(data, names)
    )
    return _build(
        chunks,
        data.source,
        keys=keys,
        features=features,
        label=label,
        missing=data.missing,
        max_rows=max_rows,
        target=target,
        encode=encode,
    )


def make_table(
    ids: Any,
    columns: Mapping[str, Any],
    features: Mapping[str, Kind],
    label_values: Any = None,
    *,
    key: Key = _DEFAULT_KEY,
    positive: str = "1",
    missing: Sequence[str] = (),
    max_rows: int = 10_000_000,
    source: str = "the table in memory",
) -> PartyTable:
    """A table of columns in memory, with the checks of :func:`load_table`.

    Args:
        ids: identifiers, shape (n,): text or whole numbers; a list, NumPy or Arrow array, or a pandas Series.
        columns: name to values of shape (n,), of the same types; a pandas DataFrame will do. None and NaN are missing.
        features: which of ``columns`` to take, by kind.
        label_values: two distinct values, shape (n,), or None.
        key: its column serves in messages only.
        positive: the text of the label's positive value.
        missing: texts that mean a missing value.
        max_rows: the most rows allowed.
        source: what messages call this table.

    Raises:
        BadConfig: columns of unequal length, or that cannot be converted.
        ColumnMissing, EmptyTable, NullIds, DuplicateIds, NotNumeric, NotFinite, BadLabel, OverBudget: as above.
    """
    _check_columns(features, list(columns), source)
    label = None if label_values is None else Label(column="label", positive=positive)
    chunk = _Chunk(
        ids=(_to_arrow(ids, _Place(source, key.column)),),
        columns={name: _to_arrow(columns[name], _Place(source, name)) for name in features},
        label=None if label is None else _to_arrow(label_values, _Place(source, label.column)),
    )
    for name, values in {**chunk.columns, **({} if label is None else {label.column: chunk.label})}.items():
        if len(values) != len(chunk.ids[0]):
            raise BadConfig(
                f"{_Place(source, name)} has {len(values)} rows, but there are {len(chunk.ids[0])} identifiers"
            )
    return _build(
        iter([chunk]), source, keys=(key,), features=features, label=label, missing=missing, max_rows=max_rows
    )


def normalise(ids: pa.StringArray, how: str) -> pa.StringArray:
    """Bring identifiers into the form in which both sides compare them.

    ``digits`` keeps decimal digits only, those of other scripts as their ASCII equals. ``text`` is compatibility
    caseless matching (Unicode standard, D146) of the trimmed text. ``exact`` changes nothing. Applying it twice is
    the same as once.

    Args:
        ids: shape (n,), with nulls.
        how: ``digits``, ``text`` or ``exact``, as in :class:`fedlearn.contract.Key`.

    Returns:
        Shape (n,); null where the input is null or nothing is left.
    """
    if how == "digits":
        text = _off_ascii(ids, pc.replace_substring_regex(ids, r"[^0-9]+", ""), _ascii_digits)
    elif how == "text":
        text = _off_ascii(ids, pc.ascii_lower(pc.ascii_trim(ids, _ASCII_SPACE)), _fold)
    elif how == "exact":
        text = ids
    else:
        raise BadConfig(f"unknown normalisation {how!r}; it must be digits, text or exact")
    return _nullify(text, pc.equal(text, ""))


def _off_ascii(ids: pa.StringArray, converted: pa.StringArray, convert: Any) -> pa.StringArray:
    """Replace, in ``converted``, the rows that are not ASCII by ``convert`` of the original text."""
    odd = pc.invert(pc.string_is_ascii(ids)).fill_null(False)
    if not pc.any(odd).as_py():
        return converted
    return pc.replace_with_mask(
        converted, odd, pa.array([convert(t) for t in ids.filter(odd).to_pylist()], pa.string())
    )


def _ascii_digits(text: str) -> str:
    return "".join(str(unicodedata.decimal(c)) for c in text if c.isdecimal())


def _fold(text: str) -> str:
    folded = unicodedata.normalize("NFD", text).casefold()
    folded = unicodedata.normalize("NFKD", folded).casefold()
    return unicodedata.normalize("NFKC", folded).strip()


# --- checks ----------------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    """Consecutive rows as they were read, in any Arrow type."""

    ids: tuple[pa.Array, ...]
    columns: dict[str, pa.Array]
    label: pa.Array | None
    weight: pa.Array | None = None
    more: tuple[pa.Array, ...] = ()


class _Place(NamedTuple):
    """Where a value stands, for messages: the source, the column, and the rows before this chunk."""

    source: str
    column: str
    start: int = 0

    def __str__(self) -> str:
        return f"column {self.column!r} of {self.source}"

    def row(self, mask: npt.NDArray[np.bool_]) -> int:
        """The number, counted from 1, of the first row that is set in the chunk's ``mask``."""
        return self.start + int(np.argmax(mask)) + 1


def _build(
    chunks: Iterator[_Chunk],
    source: str,
    *,
    keys: Sequence[Key],
    features: Mapping[str, Kind],
    label: Label | None,
    missing: Sequence[str],
    max_rows: int,
    target: TargetKind = "binary",
    encode: Encode | None = None,
) -> PartyTable:
    absent = pa.array(missing, pa.string())
    ids: list[list[pa.StringArray]] = [[] for _ in keys]
    labels: list[Any] = []
    weights: list[npt.NDArray[np.float64]] = []
    further: list[list[Any]] = [[] for _ in label.also] if label else []
    columns = _Columns(features, absent, source, encode)
    rows = 0
    for chunk in chunks:
        start, rows = rows, rows + len(chunk.ids[0])
        if rows > max_rows:
            raise OverBudget(f"{source} has more rows than the {max_rows} that the contract allows")
        for key, values, part in zip(keys, chunk.ids, ids, strict=True):
            part.append(_normalised(values, key, absent, _Place(source, key.column, start)))
        columns.add(chunk, ids[0][-1], start)
        if label is not None:
            read = _trimmed if target in ("binary", "classes") else _numbers
            labels.append(read(chunk.label, absent, _Place(source, label.column, start)))
            _read_more(further, label, chunk, absent, source, start)
            if label.weight is not None:
                weights.append(_numbers(chunk.weight, absent, _Place(source, label.weight, start)))
    if rows == 0:
        raise EmptyTable(f"{source} has no rows")

    table = columns.end()
    if len(keys) == 1:
        first = pa.concat_arrays(ids[0])
        kept, skipped = _select(first, keys[0], source)
        table = replace(table, ids=first, skipped=skipped)
    else:
        first, *others = (pa.concat_arrays(part) for part in ids)
        (first, *others), kept, skipped = _select_several([first, *others], keys, source)
        table = replace(table, ids=first, skipped=skipped, also=tuple(others))
    if len(kept) < rows:
        table = table.take(kept)
    if label is not None:
        more = tuple(
            _target(part, kept, one.alone, source, _kind(one)) for one, part in zip(label.also, further, strict=True)
        )
        table = replace(table, label=_target(labels, kept, label, source, target), more=more)
        if label.weight is not None:
            table = replace(table, weight=_weights(np.concatenate(weights)[kept], kept, label.weight, source))
    return table


class _Columns:
    """The features as they are read: kept, or encoded chunk by chunk, with a digest of what is let go."""

    def __init__(
        self, features: Mapping[str, Kind], absent: pa.StringArray, source: str, encode: Encode | None
    ) -> None:
        self._features, self._absent, self._source, self._encode = features, absent, source, encode
        self._parts: dict[str, list[Any]] = {}
        self._content = _Content()

    def add(self, chunk: _Chunk, ids: pa.StringArray, start: int) -> None:
        """The next chunk, which begins at row ``start``."""
        read: dict[str, Column] = {}
        for name, kind in self._features.items():
            convert = _numbers if kind == "number" else _categories
            read[name] = convert(chunk.columns[name], self._absent, _Place(self._source, name, start))
        kept: Mapping[str, Any] = read
        if self._encode is not None:
            self._content.add(read)
            kept = self._encode(PartyTable(ids, read))
        for name, values in kept.items():
            self._parts.setdefault(name, []).append(values)

    def end(self) -> PartyTable:
        """All chunks' columns, in a table still without identifiers; to be called once."""
        parts, none = self._parts, pa.array([], pa.string())
        joined = {name: _join(parts.pop(name)) for name in list(parts)}  # few columns stand there twice at a time
        if self._encode is None:
            return PartyTable(none, joined)
        return PartyTable(none, {}, encoded=joined, content=self._content.digest())


def _kind(target: Further) -> TargetKind:
    return "binary" if target.objective == "logistic" else "number"


def _read_more(
    parts: list[list[Any]], label: Label, chunk: _Chunk, absent: pa.StringArray, source: str, start: int
) -> None:
    """The further labels of a chunk."""
    for one, values, part in zip(label.also, chunk.more, parts, strict=True):
        read = _trimmed if _kind(one) == "binary" else _numbers
        part.append(read(values, absent, _Place(source, one.column, start)))


def _target(labels: list[Any], kept: npt.NDArray[np.int64], label: Label, source: str, target: TargetKind) -> Target:
    if target == "binary":
        return _binary(pa.concat_arrays(labels).take(kept), kept, label, source)
    if target == "classes":
        return _classes(pa.concat_arrays(labels).take(kept), kept, label, source)
    return _values(np.concatenate(labels)[kept], kept, label, source, target)


def _classes(texts: pa.StringArray, kept: npt.NDArray[np.int64], label: Label, source: str) -> npt.NDArray[np.int32]:
    """The number of each row's class in the contract's list."""
    name = f"label column {label.column!r} of {source}"
    found = pc.index_in(texts, pa.array(label.classes, pa.string()))
    unknown = found.is_null().to_numpy(zero_copy_only=False)
    if unknown.any():
        row = kept[np.argmax(unknown)] + 1
        raise BadLabel(
            f"{name} is missing or not one of the contract's classes in {unknown.sum()} row(s), first in {row}"
        )
    if len(texts.unique()) == 1:
        raise BadLabel(f"{name} is constant: every row has {texts[0].as_py()!r}")
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int32)


def _values(
    values: npt.NDArray[np.float64],
    kept: npt.NDArray[np.int64],
    label: Label,
    source: str,
    target: TargetKind,
) -> npt.NDArray[np.float64]:
    """A numeric label: present, not constant, and not negative where the objective has a log link."""
    name = f"label column {label.column!r} of {source}"
    if np.isnan(values).any():
        raise BadLabel(
            f"{name} is missing in {np.isnan(values).sum()} row(s), the first is row {_first(np.isnan(values), kept)}"
        )
    if target == "count" and (values < 0).any():
        raise BadLabel(
            f"{name} is negative in {(values < 0).sum()} row(s), the first is row {_first(values < 0, kept)}"
        )
    if (values == values[0]).all():
        raise BadLabel(f"{name} is constant: every row has {values[0]:g}")
    return values


def _weights(
    values: npt.NDArray[np.float64], kept: npt.NDArray[np.int64], column: str, source: str
) -> npt.NDArray[np.float64]:
    wrong = ~(values > 0)
    if wrong.any():
        raise BadLabel(
            f"weight column {column!r} of {source} is missing or not positive first in row {_first(wrong, kept)}"
        )
    return values


def _first(wrong: npt.NDArray[np.bool_], kept: npt.NDArray[np.int64]) -> int:
    return int(kept[np.argmax(wrong)]) + 1


def _normalised(array: pa.Array, key: Key, absent: pa.StringArray, place: _Place) -> pa.StringArray:
    if key.normalise == "uuid" and _is_bytes(array.type):  # 16 bytes, as Parquet stores them
        array = pa.array([None if v is None else v.hex() for v in array.to_pylist()], pa.string())
    texts = _identifiers(array, absent, place)
    if not identifiers.is_known(key):
        return normalise(texts, key.normalise)
    found = identifiers.canonical(texts, key)
    wrong = identifiers.invalid(texts, found).to_numpy(zero_copy_only=False)
    if wrong.any() and key.invalid == "error":
        raise BadIds(
            f"{place} has {wrong.sum()} value(s) up to row {place.start + len(wrong)} that are not of kind "
            f"{key.normalise!r}, the first is {texts[int(np.argmax(wrong))].as_py()[:40]!r} in row {place.row(wrong)}"
            + (f"; the first {_examples(wrong, place.start)}" if wrong.sum() > 1 else "")
        )
    return found


def _examples(mask: npt.NDArray[np.bool_], start: int = 0) -> str:
    """The first few rows that are set, as this party counts them: "is row 3", "are rows 3, 5"."""
    rows = np.flatnonzero(mask)[:_EXAMPLES] + start + 1
    return f"{'is row' if len(rows) == 1 else 'are rows'} {', '.join(map(str, rows))}"


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _select_several(
    columns: list[pa.StringArray], keys: Sequence[Key], source: str
) -> tuple[list[pa.StringArray], npt.NDArray[np.int64], dict[str, int]]:
    """Several keys: each without repeats (null instead), the rows that have one at least, and what was left out."""
    skipped: dict[str, int] = {}
    single = []
    present = np.zeros(len(columns[0]), np.bool_)
    for ids, key in zip(columns, keys, strict=True):
        kept, counts = _select(ids, key, source)
        has = np.zeros(len(ids), np.bool_)
        has[kept] = True
        present |= has
        single.append(pc.if_else(pa.array(has), ids, pa.scalar(None, pa.string())))
        skipped |= {f"{reason} {key.column}": count for reason, count in counts.items()}
    skipped["rows_without_key"] = int((~present).sum())
    return single, np.flatnonzero(present), skipped


def _select(ids: pa.StringArray, key: Key, source: str) -> tuple[npt.NDArray[np.int64], dict[str, int]]:
    """The rows to keep, ascending, and how many were left out, by reason."""
    null = ids.is_null().to_numpy(zero_copy_only=False)
    nulls = int(null.sum())
    if nulls and key.nulls == "error":
        raise NullIds(
            f"{source} has {nulls} row(s) without identifier in column {key.column!r}, the first {_examples(null)}"
        )
    if nulls == len(ids):
        raise EmptyTable(f"{source} has no row with an identifier in column {key.column!r}")

    chosen, pairs = ~null, []
    for rows in _alike(ids, chosen):
        # Arrow numbers values by first appearance, so a row is the first of its identifier if it sets a new maximum.
        codes = ids.take(pa.array(rows)).dictionary_encode().indices.to_numpy()
        first = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
        chosen[rows[~first]] = False
        pairs.append(np.stack([rows[~first], rows[first][codes[~first]]]))
    again, earliest = np.concatenate(pairs, axis=1)
    if len(again) and key.duplicates == "error":
        examples = np.argsort(again)[:_EXAMPLES]
        shown = (f"row {again[k] + 1} repeats row {earliest[k] + 1}" for k in examples)
        raise DuplicateIds(
            f"{source} has {len(again)} row(s) whose identifier in column {key.column!r} occurred before, "
            f"for instance {', '.join(shown)}"
        )
    return np.flatnonzero(chosen), {"null_ids": nulls, "duplicate_ids": len(again)}


def _alike(ids: pa.StringArray, present: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.int64]]:
    """The rows that are ``present``, a few at a time, ascending; equal identifiers come together.

    A table of millions of identifiers at once would take several times their memory.
    """
    starts, characters = _laid_out(ids)
    if len(ids) <= _AT_ONCE:
        yield np.flatnonzero(present)
        return
    lengths = np.diff(starts)
    mixed = lengths.copy()
    for weight, at in ((3, lengths - 1), (5, np.maximum(lengths - 2, 0)), (7, lengths // 2)):
        mixed += weight * characters[np.minimum(starts[:-1] + at, len(characters) - 1)]
    group = (mixed % _GROUPS).astype(np.uint8)
    for g in range(_GROUPS):
        rows = np.flatnonzero(present & (group == g))
        if len(rows):
            yield rows


def _binary(texts: pa.StringArray, kept: npt.NDArray[np.int64], label: Label, source: str) -> npt.NDArray[np.int8]:
    """The label as 0 and 1; ``kept`` (int64, shape (n,)) are the rows' positions in the source."""
    name = f"label column {label.column!r} of {source}"
    if texts.null_count:
        first = kept[np.argmax(texts.is_null().to_numpy(zero_copy_only=False))] + 1
        raise BadLabel(f"{name} is missing in {texts.null_count} row(s), the first is row {first}")
    values = sorted(texts.unique().to_pylist())
    if len(values) > 2:
        shown = ", ".join(repr(value) for value in values[:3])
        raise BadLabel(f"{name} has {len(values)} distinct values ({shown}, ...) where it must have two")
    if len(values) == 1:
        raise BadLabel(f"{name} is constant: every row has {values[0]!r}")
    if label.positive not in values:
        raise BadLabel(f"{name} has {values[0]!r} and {values[1]!r}, but never the positive value {label.positive!r}")
    positive: npt.NDArray[np.bool_] = pc.equal(texts, label.positive).to_numpy(zero_copy_only=False)
    return positive.astype(np.int8)


# --- conversion of one column of one chunk ---------------------------------------------------------


def _numbers(array: pa.Array, absent: pa.StringArray, place: _Place) -> npt.NDArray[np.float64]:
    """Float64, NaN for missing. Raises NotNumeric and NotFinite."""
    array = _decoded(array)
    kind = array.type
    if _is_text(kind):
        array = _parsed(_trimmed(array, absent, place), place)
    elif not any(
        test(kind)
        for test in (
            pa.types.is_integer,
            pa.types.is_floating,
            pa.types.is_decimal,
            pa.types.is_boolean,
            pa.types.is_null,
        )
    ):
        raise NotNumeric(f"{place} holds {kind} from row {place.start + 1} on, but is declared numeric")
    # Not "safe": integers beyond 2^53 are rounded to the nearest double, as a CSV cell would be.
    values: npt.NDArray[np.float64] = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    infinite = np.isinf(values)
    if infinite.any():
        raise NotFinite(f"{place} holds an infinite value in row {place.row(infinite)}")
    return values


def _parsed(texts: pa.StringArray, place: _Place) -> pa.DoubleArray:
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        # Arrow does not say where, so halve the range until one cell is left.
        low, high = 0, len(texts)
        while high - low > 1:
            middle = (low + high) // 2
            try:
                texts[low:middle].cast(pa.float64())
                low = middle
            except pa.ArrowInvalid:
                high = middle
        text = texts[low].as_py()
        shown = repr(text if len(text) <= 40 else text[:40] + "...")
        raise NotNumeric(f"{place} holds {shown} in row {place.start + low + 1}, but is declared numeric") from None


def _categories(array: pa.Array, absent: pa.StringArray, place: _Place) -> pa.DictionaryArray:
    return _trimmed(array, absent, place).dictionary_encode()


def _trimmed(array: pa.Array, absent: pa.StringArray, place: _Place) -> pa.StringArray:
    texts = pc.utf8_trim_whitespace(_texts(array, place))
    return _nullify(texts, pc.is_in(texts, value_set=absent))


def _identifiers(array: pa.Array, absent: pa.StringArray, place: _Place) -> pa.StringArray:
    array = _decoded(array)
    texts = _texts(array, place)
    decimal = pa.types.is_decimal(array.type)
    if decimal:  # 123.00 is 123; Arrow writes 0.0000000000 as 0E-10
        texts = pc.replace_substring_regex(texts, r"^(0)E-[0-9]+$|^(-?[0-9]+)\.0+$", r"\1\2")
    if decimal or pa.types.is_floating(array.type):
        # Whole numbers that got a fraction on their way (a column with gaps, say) are fine; fractions are not IDs.
        broken = pc.match_substring_regex(texts, r"[^0-9-]").fill_null(False).to_numpy(zero_copy_only=False)
        if broken.any():
            raise BadConfig(f"{place} holds a number in row {place.row(broken)} that cannot be an identifier")
    return _nullify(texts, pc.is_in(texts, value_set=absent))


def _texts(array: pa.Array, place: _Place) -> pa.StringArray:
    """The column as text; whole numbers without fraction or exponent, but decimals with their scale; NaN as null."""
    array = _decoded(array)
    try:
        if pa.types.is_decimal(array.type) and array.type.scale < 0:
            array = array.cast(pa.decimal256(76, 0))  # 300, where Arrow would write 3E+2
        if not pa.types.is_floating(array.type):
            return array.cast(pa.string())
        array = array.cast(pa.float64())
        whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), 2.0**53))
        decimal = pc.if_else(whole, array, 0.0).cast(pa.int64()).cast(pa.string())
        return _nullify(pc.if_else(whole, decimal, array.cast(pa.string())), pc.is_nan(array))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise BadConfig(f"{place} holds {array.type}, which cannot be read as text") from None


def _decoded(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _nullify(texts: pa.StringArray, mask: pa.BooleanArray) -> pa.StringArray:
    return pc.if_else(mask.fill_null(False), pa.scalar(None, pa.string()), texts)


def _join(parts: list[Any]) -> Column:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return pa.concat_arrays(parts)


# --- reading ---------------------------------------------------------------------------------------


def read_chunks(data: Data, names: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
    """The named columns of a file or a query, in chunks, in its order. Cells of a CSV file are texts.

    Raises:
        FileMissing, BadConfig, ColumnMissing, EmptyTable: with the file or column.
    """
    if data.url is not None:
        return postgres.read(data.url.get_secret_value(), data.query or "", names, data.source)
    path = data.path or Path()
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise FileMissing(f"cannot read {path}: {error.strerror}") from None
    if (path.suffix in (".duckdb", ".db")) != (data.query is not None):
        raise BadConfig(f"{path}: a query is for a DuckDB database (.duckdb or .db), and only for that")
    if data.query is not None:
        return _read_database(path, data.query, names)
    if path.name.endswith((".csv", ".csv.gz")):
        return _read_csv(path, names)
    if path.suffix == ".parquet":
        return _read_parquet(path, names)
    raise BadConfig(f"{path} is of an unknown format: its name must end in .csv, .csv.gz or .parquet, or in .duckdb")


def _read_database(path: Path, query: str, names: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
    """The result of a query, batch by batch; the database is not written, and no other file is read."""
    try:
        with duckdb.connect(str(path), read_only=True, config=_CLOSED | {"enable_external_access": False}) as database:
            statements = database.extract_statements(query)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise BadConfig(f"the query on {path} must be one SELECT")
            result = database.sql(query)
            _check_columns(names, result.columns, f"the query on {path}")
            columns = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
            for batch in pa.RecordBatchReader.from_stream(result.project(columns)):
                yield dict(zip(names, batch.columns, strict=True))
    except (duckdb.Error, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _read_csv(path: Path, names: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
    # Nothing is left to DuckDB's sniffer: it may skip lines and take some for comments. Columns go by position, since
    # DuckDB's names ignore case.
    header, delimiter = _csv_header(path)
    _check_columns(names, header, str(path))
    types = ", ".join(f"c{i}: 'VARCHAR'" for i in range(len(header)))
    query = (
        f"SELECT {', '.join(f'c{header.index(name)}' for name in names)} "  # noqa: S608 (numbers only)
        f"FROM read_csv(?, auto_detect=false, header=true, skip=0, comment='', delim='{delimiter}', quote='\"', "
        f"escape='\"', hive_partitioning=false, columns={{{types}}})"
    )
    return _query(query, path, names)


def _read_parquet(path: Path, names: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
    with _database() as database:
        try:
            found = database.sql(
                "SELECT * FROM read_parquet(?, hive_partitioning=false)", params=[_literal(path)]
            ).columns
        except duckdb.Error as error:
            raise _unreadable(path, error) from None
    _check_columns(names, found, str(path))
    columns = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
    query = f"SELECT {columns} FROM read_parquet(?, hive_partitioning=false)"  # noqa: S608 (quoted, and they exist)
    return _query(query, path, names)


def _query(query: str, path: Path, names: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
    with _database() as database:
        try:
            stream = pa.RecordBatchReader.from_stream(database.sql(query, params=[_literal(path)]))
            for batch in stream:
                yield dict(zip(names, batch.columns, strict=True))
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from None


def _database() -> duckdb.DuckDBPyConnection:
    # CSV and Parquet are built in; nothing may be fetched from the network.
    database = duckdb.connect(":memory:", config=_CLOSED)
    database.execute("SET disable_parquet_prefetching = true")  # whole row groups: twice the memory, and no faster
    return database


def _literal(path: Path) -> str:
    """The path in a form that DuckDB does not take for a pattern."""
    return re.sub(r"[\[*?]", r"[\g<0>]", str(path.absolute()))


def read_header(path: Path) -> list[str]:
    """The column names of a CSV file. Raises BadConfig or EmptyTable."""
    return _csv_header(path)[0]


def _csv_header(path: Path) -> tuple[list[str], str]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        # Rows that are not UTF-8, and were read ahead here, are left to DuckDB, which names their line.
        with opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            unquoted = re.sub(r'"[^"]*"', "", file.readline(1 << 20))
            delimiter = max(",;\t|", key=unquoted.count)
            file.seek(0)
            header = next(csv.reader(file, delimiter=delimiter, strict=True), [])
    except (csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unreadable(path, error) from None
    if not header:
        raise EmptyTable(f"{path} is empty: it has no header")
    if any(mark in name for name in header for mark in "\ufffd\0"):
        raise BadConfig(f"{path} cannot be read: its header is not UTF-8 text")
    return header, delimiter


def _check_columns(names: Mapping[str, Any] | Sequence[str], found: Sequence[str], source: str) -> None:
    for name in names:
        if name not in found:
            shown = ", ".join(str(column) for column in found[:50]) + (", ..." if len(found) > 50 else "")
            raise ColumnMissing(f"column {name!r} is not in {source}, which has: {shown}")
        if found.count(name) > 1:
            raise BadConfig(f"{source} has more than one column {name!r}")


def _unreadable(path: Path, error: Exception) -> BadConfig:
    """BadConfig from another library's error: its first lines, without its advice and without the row itself."""
    text = str(error).split("\nPossible")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Original Line")]
    reason = "; ".join(lines[:2]).removeprefix("Invalid Input Error: ") or type(error).__name__
    return BadConfig(f"{path} cannot be read: {reason}")


def _to_arrow(values: Any, place: _Place) -> pa.Array:
    """Anything one-dimensional to Arrow; None and NaN become null."""
    if getattr(values, "ndim", 1) != 1:
        raise BadConfig(f"{place} must have one dimension, not {values.ndim}")
    try:
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        # Of mixed types, or whole numbers beyond 64 bits.
        array = pa.array([_mixed(value) for value in values], pa.string())
    except (TypeError, ValueError) as error:
        raise BadConfig(f"{place} cannot be converted: {error}") from None
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _mixed(value: Any) -> str | None:
    """A cell of a column of mixed types, as text."""
    text = str(value)
    gone = value is None or (not isinstance(value, str) and text in ("nan", "NaT", "<NA>"))
    return None if gone else text


# --- digest ----------------------------------------------------------------------------------------


class _Content:
    """SHA-256 over columns that come chunk by chunk and are let go; the same however they are cut."""

    def __init__(self) -> None:
        self._running: dict[str, list[Any]] = {}

    def add(self, columns: Mapping[str, Column]) -> None:
        """The next chunk."""
        for name, values in columns.items():
            kind, parts = _parts(values)
            running = self._running.setdefault(f"{name}\0{kind}", [hashlib.sha256() for _ in parts])
            for digest, part in zip(running, parts, strict=True):
                digest.update(np.ascontiguousarray(part).data)

    def digest(self) -> bytes:
        """Over all columns."""
        whole = hashlib.sha256(b"fedlearn content 1")
        for name in sorted(self._running):
            whole.update(hashlib.sha256(name.encode()).digest())
            for digest in self._running[name]:
                whole.update(digest.digest())
        return whole.digest()


def _feed(digest: Any, name: str, values: Column | pa.StringArray | Target) -> None:
    """Each field is its name, type, length and content, so that no two tables give the same bytes."""
    kind, parts = _parts(values)
    header = f"{name}\0{kind}\0{len(values)}".encode()
    digest.update(len(header).to_bytes(8, "little") + header)
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)


def _parts(values: Column | pa.StringArray | Target) -> tuple[str, list[npt.NDArray[Any]]]:
    """A column's type, and its content as arrays that grow with it."""
    if isinstance(values, np.ndarray):
        return values.dtype.str, [_canonical(values)]
    return "text", _text_parts(_decoded(values))


def _canonical(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One NaN and one zero."""
    if values.dtype != np.float64:
        return values
    return np.where(np.isnan(values), np.nan, values) + 0.0


def _text_parts(texts: pa.StringArray) -> list[npt.NDArray[Any]]:
    """Lengths (int32, shape (n,), -1 for null), then the characters one after another (uint8)."""
    lengths = pc.binary_length(texts).fill_null(-1).to_numpy()
    starts, content = _laid_out(pa.concat_arrays([texts.fill_null("")]))
    return [lengths, content[starts[0] : starts[-1]]]


def _laid_out(texts: pa.StringArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Where each text begins, and the last ends, int32 (n + 1,), in the characters; not copied."""
    _, offsets, characters = texts.buffers()
    starts = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return starts, np.frombuffer(characters, np.uint8) if characters else np.empty(0, np.uint8)
