"""The stored vectors of the hint scheme: the slow verifier makes them anew, and the package makes the same."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest

from fedlearn.crypto import lwe
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.matrix import Dense, Indicator, Matrix
from fedlearn.kernels import lattice
from tests import lwe_verifier as slow
from tests.make_lwe_vectors import PATH, expected

CASES: list[dict[str, Any]] = json.loads(PATH.read_text())["cases"]
each_case = pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])


def numbers(words: list[str]) -> np.ndarray:
    return np.array([int(word, 16) for word in words], np.uint64)


def same_but_for_the_last_bit(left: np.ndarray, right: np.ndarray) -> bool:
    """Answers hold a Gaussian, whose logarithm and cosine may differ between machines by the last bit."""
    return bool(np.abs((left - right).view(np.int64)).max() <= 1)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@each_case
def test_the_verifier_makes_the_vectors(case: dict[str, Any]) -> None:
    made, stored = expected(case), case["expected"]
    assert same_but_for_the_last_bit(numbers(made.pop("answer")), numbers(stored["answer"]))
    assert made.pop("plan") == pytest.approx(stored["plan"], rel=1e-12)
    assert made == {name: value for name, value in stored.items() if name not in ("answer", "plan")}


@each_case
def test_the_package_makes_the_vectors(case: dict[str, Any]) -> None:
    stored = case["expected"]
    key = {use: bytes.fromhex(text) for use, text in case["keys"].items()}
    matrix: Matrix
    if case["kind"] == "dense":
        matrix = Dense(np.array(case["matrix"], np.int64))
    else:
        matrix = Indicator(np.array(case["matrix"], np.uint8), np.array(case["sizes"], np.int64))
    values = np.array(case["values"], np.int32)

    plan = lwe.make_plan(
        rows=matrix.rows,
        samples=matrix.samples,
        largest=matrix.largest,
        squares=matrix.squares,
        largest_value=case["largest_value"],
        vectors=case["vectors"],
        kl_nats=case["kl_nats"],
    )
    assert {name: getattr(plan, name) for name in stored["plan"]} == pytest.approx(stored["plan"], rel=1e-12)

    public = lwe.expand(key["seed"], matrix.samples)
    hint, mask = lwe.make_hint(matrix, public, Draws(key["hint"]))
    assert sha256(mask.tobytes()) == stored["mask_sha256"]
    assert [[f"{word:016x}" for word in row[:4]] for row in hint] == stored["hint_first_words"]
    assert sha256(hint.astype("<u8").tobytes()) == stored["hint_sha256"]

    ciphertext, secrets = lwe.encrypt(values, public, plan, Draws(key["query"]))
    assert sha256(secrets.tobytes()) == stored["secrets_sha256"]
    assert sha256(ciphertext) == stored["ciphertext_sha256"]

    answer = lwe.respond(matrix, mask, ciphertext, len(values), plan, Draws(key["flood"]))
    assert same_but_for_the_last_bit(np.frombuffer(answer, "<u8"), numbers(stored["answer"]))
    assert lwe.decode(hint, secrets, answer, plan).tolist() == stored["sums"]
    stored_answer = numbers(stored["answer"]).astype("<u8").tobytes()
    assert lwe.decode(hint, secrets, stored_answer, plan).tolist() == stored["sums"]


@pytest.mark.parametrize("width", [4, 5, 6, 7, 8])
def test_words_on_the_wire(width: int) -> None:
    """Every width against the verifier, with ties of both kinds and words that round up to 2^64."""
    unit = 1 << (64 - 8 * width)
    edges = [0, 1, 2**64 - 1, 2**63, 2**64 - unit // 2 - 1, *(k * unit + unit // 2 for k in (0, 1, 2, 3))]
    uniform = np.random.default_rng(width).integers(0, 2**64, 50, np.uint64)
    words = np.concatenate([np.array([e % 2**64 for e in edges], np.uint64), uniform])
    plan = lwe.Plan(1, 1, 1, 40, 1.0, width, 1, 0.0)
    padded = np.zeros(plan.words, np.uint64)
    padded[: len(words)] = words
    packed = np.empty(plan.query_bytes, np.uint8)
    for start in range(0, plan.words, 1000):  # in pieces
        lattice.pack(padded[start : start + 1000], width, packed, start)
    assert packed.tobytes() == slow.pack([int(w) for w in padded], width)
    dropped = [int(w) if width == 8 else slow.drop(int(w), width) for w in padded]
    for first, count in ((0, plan.words), (3, 60), (plan.words - 1, 1)):
        stretch = np.empty(count, np.uint64)
        lattice.unpack(packed, plan.words, width, first, stretch)
        assert stretch.tolist() == dropped[first : first + count]
