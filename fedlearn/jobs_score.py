"""Batch scoring, piece by piece of the shared order, so that it goes on after a crash where it stood.

Beside the result, ``<result>.checkpoint`` keeps the alignment on both sides and, on the active side, what was found of
each piece that is done. Both vanish when the result is there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv, feather, parquet

from fedlearn.channel import Channel
from fedlearn.data import Binning
from fedlearn.errors import WrongCheckpoint
from fedlearn.models.share import ActiveShare, PassiveShare
from fedlearn.protocols import score

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Kinds = Mapping[str, np.dtype[Any]]
Found = Mapping[str, NDArray[Any]]
PIECE_ROWS = 1 << 17  #: rows of the shared order that are scored at a time


class Pieces:
    """What was found, by piece, kept in a folder; or nowhere, where all fits into one piece."""

    def __init__(self, folder: Path, binding: dict[str, str], size: int, align: Callable[[Path], None]) -> None:
        """Go on from what is in ``folder``, or begin anew.

        Args:
            folder: made if need be.
            binding: what the pieces are of: alignment, model and table. Pieces of another alignment are discarded.
            size: rows of the shared order.
            align: saves the alignment into a folder.

        Raises:
            WrongCheckpoint: it is of another model or table.
        """
        self.count, self._folder, self._keeps = max(1, -(-size // PIECE_ROWS)), folder, size > PIECE_ROWS
        self.done = 0
        if not self._keeps:
            return
        before = _read(folder)
        if before.get("alignment") != binding["alignment"]:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            align(folder)
            (folder / "pieces.json").write_text(json.dumps(binding) + "\n", encoding="utf-8")
        elif before != binding:
            raise WrongCheckpoint(f"{folder} is of another model or of a table with other values than this one")
        while self.done < self.count and self._path(self.done).exists():
            self.done += 1

    def keep(self, number: int, found: Found) -> None:
        """Write what was found of a piece's m own rows, each of shape (m,); there whole or not at all."""
        if self._keeps:
            partial = self._folder / f".partial-{os.getpid()}"
            columns = {name: pa.array(values) for name, values in found.items()}
            feather.write_feather(pa.table(columns), partial, compression="uncompressed")
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self._path(number))

    def load(self, number: int, kinds: Kinds, rows: int) -> Found:
        """What was found of a piece's own rows, of these dtypes by name. Raises WrongCheckpoint when it is damaged."""
        try:
            table = feather.read_table(self._path(number))
            found = {name: table[name].to_numpy() for name in kinds}
        except (OSError, KeyError, pa.ArrowException) as error:
            raise WrongCheckpoint(f"{self._path(number)} is damaged: {error}") from None
        if any(values.shape != (rows,) or values.dtype != kinds[name] for name, values in found.items()):
            raise WrongCheckpoint(f"{self._path(number)} is damaged: it has not {rows} rows")
        return found

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.arrow"


def _read(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "pieces.json").read_text(encoding="utf-8")))
    except OSError:
        return {}
    except (ValueError, TypeError):
        raise WrongCheckpoint(f"{folder / 'pieces.json'} is damaged: not JSON") from None


def run_active(
    channel: Channel, pieces: Pieces, order: I64, rows: int, kinds: Kinds, one: Callable[[I64, I64, int], Found]
) -> Found:
    """Score own rows piece by piece.

    Args:
        channel: after handshake and alignment.
        pieces: what was done before, and where to keep what is done now.
        order: int64 (n,), own row at each place of the shared order, -1 for none.
        rows: number of own rows, aligned or not.
        kinds: by name, dtypes of what is found of each row.
        one: finds it with the peer for one piece; given are own rows int64 (m,), their places in the piece int64 (m,),
            and the piece's length.

    Returns:
        By name, shape (rows,); undefined for rows that are not aligned.
    """
    out = {name: np.empty(rows, kind) for name, kind in kinds.items()}
    score.begin_active(channel, pieces.done)
    for k in range(pieces.count):
        part = order[k * PIECE_ROWS : (k + 1) * PIECE_ROWS]
        place = np.flatnonzero(part >= 0)
        if k < pieces.done:
            found = pieces.load(k, kinds, len(place))
        else:
            found = one(part[place], place, len(part))
            pieces.keep(k, found)
            channel.progress(k * PIECE_ROWS + len(part), len(order), "rows")
        for name, values in found.items():
            out[name][part[place]] = values
    return out


def run_passive(channel: Channel, pieces: Pieces, order: I64, one: Callable[[I64], None]) -> int:
    """Serve one batch piece by piece; ``one`` serves a piece of own rows int64 (m,), of ``order`` int64 (n,).

    Returns:
        how many pieces the active side has from before; this session's ledger does not count them again.
    """
    before = score.begin_passive(channel, pieces.count)
    for k in range(before, pieces.count):
        part = order[k * PIECE_ROWS : (k + 1) * PIECE_ROWS]
        one(part)
        channel.progress(k * PIECE_ROWS + len(part), len(order), "rows")
    return before


def score_active(
    channel: Channel, share: ActiveShare, bins: Mapping[str, NDArray[np.uint8]], order: I64, rows: int, pieces: Pieces
) -> list[F64]:
    """Margins of own rows by trees, K of float64 (rows,).

    Args:
        channel, order, rows, pieces: as :func:`run_active`.
        share: the active side's.
        bins: own rows', by feature uint8 (rows,).
    """
    kinds = {str(k): np.dtype(np.float64) for k in range(len(share.forest.base))}

    def one(own: I64, place: I64, length: int) -> Found:
        chosen = _chosen(bins, share.binning, own)
        margins = score.score_active(channel, share.forest, share.passive_splits, chosen, place, length)
        return dict(zip(kinds, margins, strict=True))

    return list(run_active(channel, pieces, order, rows, kinds, one).values())


def score_passive(
    channel: Channel, share: PassiveShare, bins: Mapping[str, NDArray[np.uint8]], order: I64, pieces: Pieces
) -> int:
    """Serve one batch of trees: bins of own rows by feature; else, and what it returns, as :func:`run_passive`."""

    def one(own: I64) -> None:
        score.score_passive(channel, share.feature, share.masks, _chosen(bins, share.binning, own))

    return run_passive(channel, pieces, order, one)


def _chosen(bins: Mapping[str, NDArray[np.uint8]], binning: Binning, rows: I64) -> NDArray[np.uint8]:
    """The bins uint8 (F, m) of some rows."""
    chosen = np.empty((len(binning.features), len(rows)), np.uint8)
    for feature, out in zip(binning.features, chosen, strict=True):
        np.take(bins[feature.name], rows, out=out)
    return chosen


def write_table(path: Path, columns: dict[str, Any]) -> None:
    """CSV, with numbers that read back exactly; or Parquet."""
    write_rows(path, len(next(iter(columns.values()))), lambda part: {name: v[part] for name, v in columns.items()})


def write_rows(path: Path, rows: int, columns: Callable[[slice], dict[str, Any]]) -> None:
    """As :func:`write_table`, row group by row group: ``columns`` makes those of a part of the rows."""
    parts = (slice(low, min(low + PIECE_ROWS, rows)) for low in range(0, max(1, rows), PIECE_ROWS))
    tables = (pa.table({name: pa.array(values) for name, values in columns(part).items()}) for part in parts)
    first = next(tables)
    with ExitStack() as stack:
        if path.suffix == ".parquet":
            file = stack.enter_context(parquet.ParquetWriter(path, first.schema, compression="zstd"))
        else:
            file = stack.enter_context(csv.CSVWriter(path, first.schema))
        for table in chain([first], tables):
            file.write_table(table)
