"""A first look at a table, for drafting a contract: which columns it has, and what kind each seems to be.

It guesses, from the first rows; what it guesses is written into a file that people read. :func:`load_table` does not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from fedlearn.contract import Data, Kind
from fedlearn.data.table import read_chunks, read_header
from fedlearn.errors import BadConfig, FileMissing

#: Chunks that kinds are guessed from.
_CHUNKS = 2
#: A text column with more distinct values than this is no category: names, dates, identifiers.
_MOST_CATEGORIES = 200


@dataclass(frozen=True)
class Outline:
    """The columns of a table.

    Attributes:
        kinds: column name to the kind it seems to be; None for one that is neither a number nor a category.
    """

    path: Path
    kinds: dict[str, Kind | None]

    def values(self, column: str, most: int = 50) -> Counter[str]:
        """How often each text of a column occurs in the whole table, without missing ones; at most ``most`` + 1 texts.

        Raises as :func:`fedlearn.data.load_table`.
        """
        found: Counter[str] = Counter()
        for chunk in read_chunks(Data(path=self.path), [column]):
            counts = pc.value_counts(_texts(chunk[column])).to_pylist()
            found.update({c["values"].strip(): c["counts"] for c in counts if c["values"] is not None})
            if len(found) > most:
                break
        missing = Data(path=self.path).missing
        return Counter({text: count for text, count in found.items() if text not in missing})


def outline(path: Path) -> Outline:
    """Look at a CSV or Parquet file.

    Raises:
        FileMissing, BadConfig, EmptyTable: it cannot be read.
    """
    if not path.exists():
        raise FileMissing(f"cannot read {path}: no such file")
    names = parquet.read_schema(path).names if path.suffix == ".parquet" else read_header(path)
    if len(set(names)) < len(names):
        raise BadConfig(f"{path} has two columns of one name")
    columns: dict[str, list[pa.Array]] = {name: [] for name in names}
    for chunk in islice(read_chunks(Data(path=path), names), _CHUNKS):
        for name in names:
            columns[name].append(chunk[name])
    return Outline(path, {name: _kind(parts, Data(path=path).missing) for name, parts in columns.items()})


def _kind(parts: list[pa.Array], missing: tuple[str, ...]) -> Kind | None:
    if not parts or pa.types.is_nested(parts[0].type):
        return None
    if pa.types.is_integer(parts[0].type) or pa.types.is_floating(parts[0].type):
        return "number"
    texts = pc.utf8_trim_whitespace(pa.concat_arrays([_texts(part) for part in parts]))
    distinct = [text for text in pc.unique(texts).to_pylist() if text is not None and text not in missing]
    if all(_is_number(text) for text in distinct):
        return "number"
    return "category" if len(distinct) <= _MOST_CATEGORIES else None


def _texts(part: pa.Array) -> pa.StringArray:
    return (part.dictionary_decode() if pa.types.is_dictionary(part.type) else part).cast(pa.string())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
