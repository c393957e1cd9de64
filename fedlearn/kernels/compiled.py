"""Numba's ``njit`` with a cache on disk that several processes may fill at once.

Numba numbers the files of a function's compiled signatures in the order in which they come, in an index that it reads
and writes without a lock. Two processes that compile different signatures of one function at the same time then take
the same number, and the index that is written last may name the other's machine code: wrong numbers, silently, until
the cache is removed. Two parties that start on one machine for the first time do just that. Here a file is named after
what it holds, and is there before the index names it; what is lost in a race is an entry, which is compiled again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numba
from numba.core.caching import IndexDataCacheFile


class KeyedCacheFile(IndexDataCacheFile):
    """Index and data files of one function, the data files named after source and signature."""

    def save(self, key: Any, data: Any) -> None:
        """Keep the compiled code of a key (signature, processor, hash of the bytecode)."""
        name = hashlib.sha256(repr((self._version, self._source_stamp, key)).encode()).hexdigest()[:24]
        name = self._data_name_pattern.replace("{number:d}", name)
        self._save_data(name, data)
        self._save_index(self._load_index() | {key: name})


def njit(**flags: Any) -> Callable[[Callable[..., Any]], Any]:
    """As :func:`numba.njit`."""

    def compiled(function: Callable[..., Any]) -> Any:
        made = numba.njit(**flags)(function)
        if flags.get("cache"):
            cache = made._cache
            stamp = cache._impl.locator.get_source_stamp()
            cache._cache_file = KeyedCacheFile(cache.cache_path, cache._impl.filename_base, stamp)
        return made

    return compiled
