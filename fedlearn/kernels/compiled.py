"""Numba's ``njit`` with a cache on disk that several processes may fill at once.

Numba as it comes may run wrong machine code when two processes compile the same kernels at the same time: wrong
numbers, silently, until the cache is removed. Two parties that start on one machine for the first time do just that.
There are three ways to it, and each is closed here (docs/decisions/0023):

- Files of a function's compiled signatures are numbered in an index without a lock, so two processes take one number.
  Here a file is named after what it holds, and is there before the index names it; a race loses an entry, no more.
- Symbols of functions that one factory makes differ only by a number that each process counts for itself. A function
  compiled here and another loaded from a neighbour's cache may share a symbol, and the linker keeps one of the two.
  Here the number is random.
- A cache notices that its own source file has changed, not that the file of a function called from there has. Here it
  is bound to the text of all kernels.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import numba
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import IndexDataCacheFile

# Every function that Numba compiles takes its symbol's number from here, its own helpers too.
FunctionIdentity._unique_ids = cast(Any, iter(lambda: secrets.randbits(63), None))


class KeyedCacheFile(IndexDataCacheFile):
    """Index and data files of one function, the data files named after source and signature."""

    def save(self, key: Any, data: Any) -> None:
        """Keep the compiled code of a key (signature, processor, hash of the bytecode)."""
        name = hashlib.sha256(repr((self._version, self._source_stamp, key)).encode()).hexdigest()[:24]
        name = self._data_name_pattern.replace("{number:d}", name)
        self._save_data(name, data)
        self._save_index(self._load_index() | {key: name})


@cache
def kernels_hash() -> str:
    """SHA-256 of the text of all files of this package, hexadecimal."""
    hasher = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        hasher.update(f"{path.name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return hasher.hexdigest()


def njit(**flags: Any) -> Callable[[Callable[..., Any]], Any]:
    """As :func:`numba.njit`."""

    def compiled(function: Callable[..., Any]) -> Any:
        made = numba.njit(**flags)(function)
        if flags.get("cache"):
            cached = made._cache
            stamp = (cached._impl.locator.get_source_stamp(), kernels_hash())
            cached._cache_file = KeyedCacheFile(cached.cache_path, cached._impl.filename_base, stamp)
        return made

    return compiled
