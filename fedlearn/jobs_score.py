"""Batch scoring with trees, piece by piece of the shared order, so that it goes on after a crash where it stood.

Beside the result, ``<result>.checkpoint`` keeps the alignment on both sides and, on the active side, the margins of
each piece that is done. Both vanish when the result is there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv, feather, parquet

from fedlearn.channel import Channel
from fedlearn.errors import WrongCheckpoint
from fedlearn.models.share import ActiveShare, PassiveShare
from fedlearn.protocols import score

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
PIECE_ROWS = 1 << 17  #: rows of the shared order that are scored at a time


class Pieces:
    """Margins by piece, kept in a folder; or nowhere, where all fits into one piece."""

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

    def keep(self, number: int, margins: F64) -> None:
        """Write the margins float64 (K, m) of a piece; there whole or not at all."""
        if self._keeps:
            partial = self._folder / f".partial-{os.getpid()}"
            columns = {str(k): pa.array(row) for k, row in enumerate(margins)}
            feather.write_feather(pa.table(columns), partial, compression="uncompressed")
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self._path(number))

    def load(self, number: int, outputs: int, rows: int) -> F64:
        """The margins of a piece, float64 (K, m). Raises WrongCheckpoint when they are damaged."""
        try:
            table = feather.read_table(self._path(number))
            found = np.stack([table[str(k)].to_numpy() for k in range(outputs)])
        except (OSError, KeyError, pa.ArrowException) as error:
            raise WrongCheckpoint(f"{self._path(number)} is damaged: {error}") from None
        if found.shape != (outputs, rows) or found.dtype != np.float64:
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


def score_active(
    channel: Channel, share: ActiveShare, bins: NDArray[np.uint8], position: I64, universe: int, pieces: Pieces
) -> F64:
    """Margins of own rows, float64 (K, m).

    Args:
        channel: after handshake and alignment.
        share: the active side's.
        bins: uint8 (F, m), of the rows to score.
        position: int64 (m,), their places in the shared order.
        universe: length n of the shared order.
        pieces: what was done before, and where to keep what is done now.
    """
    outputs = len(share.forest.base)
    out = np.empty((outputs, len(position)))
    order = np.argsort(position, kind="stable")
    first = np.searchsorted(position[order], PIECE_ROWS * np.arange(pieces.count + 1))
    score.begin_active(channel, pieces.done)
    for k in range(pieces.count):
        rows, low = order[first[k] : first[k + 1]], k * PIECE_ROWS
        if k < pieces.done:
            out[:, rows] = pieces.load(k, outputs, len(rows))
            continue
        length = min(PIECE_ROWS, universe - low)
        forest, splits = share.forest, share.passive_splits
        margins = score.score_active(channel, forest, splits, bins[:, rows], position[rows] - low, length)
        pieces.keep(k, margins)
        out[:, rows] = margins
        channel.progress(low + length, universe, "rows")
    return out


def score_passive(channel: Channel, share: PassiveShare, bins: NDArray[np.uint8], pieces: Pieces) -> int:
    """Serve one batch: bins uint8 (F, n) of the aligned rows, in the shared order.

    Returns:
        how many pieces the active side has from before; this session's ledger does not count them again.
    """
    universe, before = bins.shape[1], score.begin_passive(channel, pieces.count)
    for k in range(before, pieces.count):
        part = slice(k * PIECE_ROWS, min((k + 1) * PIECE_ROWS, universe))
        score.score_passive(channel, share.feature, share.masks, bins[:, part])
        channel.progress(part.stop, universe, "rows")
    return before


def write_table(path: Path, columns: dict[str, Any]) -> None:
    """CSV, with numbers that read back exactly; or Parquet, row group by row group."""
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    if path.suffix != ".parquet":
        csv.write_csv(table, path)
        return
    with parquet.ParquetWriter(path, table.schema, compression="zstd") as file:
        for batch in table.to_batches(PIECE_ROWS):
            file.write_batch(batch)
