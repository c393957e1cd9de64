"""The cache of compiled kernels, filled by several processes at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from fedlearn.kernels import compiled, trees

KERNEL = """
from fedlearn.kernels.compiled import njit

@njit(cache=True)
def doubled(x):
    return x + x
"""
RUN = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
import kernel
for name in sys.argv[2:]:
    value = np.ones(3, name)
    assert kernel.doubled(value).dtype == (value + value).dtype, name
    assert (kernel.doubled(value) == 2).all(), name
"""
# Two functions of one factory, and a caller of both; `other` takes the first of a process's numbers.
FACTORY = """
from fedlearn.kernels.compiled import njit

def times(factor):
    @njit(cache=True)
    def multiply(x):
        for _ in range(3):
            for i in range(x.size):
                x[i] = x[i] * factor + (i & 1)
    return multiply

two, three = times(2.0), times(3.0)

@njit(cache=True)
def other(x):
    x[0] += 1

@njit(cache=True)
def both(x):
    two(x)
    three(x)
"""
FIRST = "import factory; factory.other(np.ones(8)); factory.three(np.ones(8))"
THEN = "import factory; x = np.ones(8); factory.both(x); assert x[0] == 6.0**3, x"
CALLER = """
from fedlearn.kernels.compiled import njit
from callee import inner

@njit(cache=True)
def outer(x):
    return inner(x) + 1
"""
CALLEE = """
from fedlearn.kernels.compiled import njit

@njit(cache=True)
def inner(x):
    return x * {factor}
"""


def run(folder: Path, code: str) -> str:
    setup = f"import sys; sys.path.insert(0, {str(folder)!r}); import numpy as np; "
    done = subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def files(folder: Path) -> tuple[compiled.KeyedCacheFile, compiled.KeyedCacheFile]:
    return tuple(compiled.KeyedCacheFile(str(folder), "f-1.py", (1.0, 2)) for _ in range(2))


def test_entries_written_at_once_are_lost_but_never_mixed_up(tmp_path: Path, monkeypatch) -> None:
    one, other = files(tmp_path)
    monkeypatch.setattr(other, "_load_index", dict)  # it read the index before the first wrote its entry
    one.save("int", "code of int")
    other.save("float", "code of float")
    reader = files(tmp_path)[0]
    assert (reader.load("int"), reader.load("float")) == (None, "code of float")
    reader.save("int", "code of int")
    assert (reader.load("int"), reader.load("float")) == ("code of int", "code of float")


def test_a_file_is_there_before_its_name(tmp_path: Path, monkeypatch) -> None:
    one, other = files(tmp_path)
    monkeypatch.setattr(one, "_save_index", lambda index: None)
    one.save("int", "code")
    assert other.load("int") is None
    changed = compiled.KeyedCacheFile(str(tmp_path), "f-1.py", (9.0, 2))  # of another source
    changed.save("int", "new code")
    assert changed.load("int") == "new code"
    assert len(list(tmp_path.glob("*.nbc"))) == 2


def test_processes_that_compile_at_once(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(KERNEL, encoding="utf-8")
    kinds = ["int8", "uint8", "int32", "float64", "uint64", "float32"]
    for names in (kinds, kinds[::-1]):
        command = [sys.executable, "-c", RUN, str(tmp_path)]
        started = [subprocess.Popen([*command, *names[k:], *names[:k]]) for k in (0, 3)]
        assert [process.wait() for process in started] == [0, 0]


def test_what_a_neighbour_compiled_is_not_taken_for_another_of_its_factory(tmp_path: Path) -> None:
    """Without random numbers the first process's `three` and the second's `two` are one symbol, for ever."""
    (tmp_path / "factory.py").write_text(FACTORY, encoding="utf-8")
    for code in (FIRST, THEN, THEN):
        run(tmp_path, code)


def test_a_change_in_another_kernel_file_is_seen(tmp_path: Path) -> None:
    """As an upgrade is: the caller's file stays as it was, to the second, and its callee's changes."""
    (tmp_path / "caller.py").write_text(CALLER, encoding="utf-8")
    kernels = f"from fedlearn.kernels import compiled; compiled.__file__ = {str(tmp_path / 'compiled.py')!r}; "
    for factor, due in ((2, "7"), (5, "16")):
        (tmp_path / "callee.py").write_text(CALLEE.format(factor=factor), encoding="utf-8")
        assert run(tmp_path, kernels + "import caller; print(caller.outer(3))") == due


def test_kernels_use_it() -> None:
    assert isinstance(trees.quantise._cache._cache_file, compiled.KeyedCacheFile)
    assert trees.leaf_weight(np.float64(2.0), 1.0, 1.0, 0.0, 0.0, -np.inf, np.inf) == -1.0
