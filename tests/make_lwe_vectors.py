"""Writes tests/vectors/lwe.json with the slow verifier: ``python -m tests.make_lwe_vectors``."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from tests import lwe_verifier as slow

PATH = Path(__file__).parent / "vectors" / "lwe.json"
SOURCE = "tests/lwe_verifier.py (Python integers; shares no code with the package): python -m tests.make_lwe_vectors"


def inputs() -> list[dict[str, Any]]:
    """What the cases start from. Any numbers would do: bins and values are those of Python's seeded generator."""
    pick = random.Random("hint scheme vectors")
    indicator = [[0, 1, 0, 0, 1, 1, 0, 1, 0, 1], [0] * 10]
    two_blocks = [[pick.randrange(2) for _ in range(slow.N + 3)]]
    return [
        case("indicator", "indicator", indicator, [2, 1], vectors(pick, 2, 10, 127), 127, kl_nats=2.0**-20),
        case("dense", "dense", [[255, -255, 17]], [], [[2047, -2047, 5]], 2047, kl_nats=2.0**-45),
        case("two blocks", "indicator", two_blocks, [2], vectors(pick, 1, slow.N + 3, 2**18), 2**18, kl_nats=2.0**-19),
    ]


def vectors(pick: random.Random, count: int, samples: int, largest: int) -> list[list[int]]:
    return [[pick.randint(-largest, largest) for _ in range(samples)] for _ in range(count)]


def case(
    name: str,
    kind: str,
    matrix: list[list[int]],
    sizes: list[int],
    values: list[list[int]],
    largest_value: int,
    kl_nats: float,
) -> dict[str, Any]:
    """One case: its inputs, with keys derived from its name. ``matrix`` is bins by feature, or dense rows."""
    keys = {use: hashlib.sha256(f"{name} {use}".encode()).hexdigest() for use in ("seed", "hint", "query", "flood")}
    given = {"matrix": matrix, "sizes": sizes, "values": values, "largest_value": largest_value, "vectors": 100}
    return {"name": name, "kind": kind, "keys": keys, "kl_nats": kl_nats} | given


def rows_of(given: dict[str, Any]) -> tuple[slow.Rows, int, int]:
    """M row by row, the bound on its entries and the bound on the sum of their squares."""
    matrix = given["matrix"]
    if given["kind"] == "dense":
        return matrix, 255, 255**2 * len(matrix) * len(matrix[0])
    rows = [[int(b == v) for b in bins] for bins, size in zip(matrix, given["sizes"], strict=True) for v in range(size)]
    return rows, 1, len(matrix) * len(matrix[0])


def expected(given: dict[str, Any]) -> dict[str, Any]:
    """What the scheme makes of a case's inputs."""
    key = {use: bytes.fromhex(text) for use, text in given["keys"].items()}
    matrix, largest, squares = rows_of(given)
    values, samples = given["values"], len(matrix[0])
    plan = slow.plan(len(matrix), samples, largest, squares, given["largest_value"], given["vectors"], given["kl_nats"])
    assert plan is not None
    delta = 2**plan.shift
    a = slow.public_elements(key["seed"], samples)
    hint, mask = slow.make_hint(matrix, a, slow.Stream(key["hint"]))
    words, secrets = slow.encrypt(values, a, delta, slow.Stream(key["query"]))
    flood = slow.gaussian(slow.Stream(key["flood"]), plan.flood, len(values) * len(matrix))
    kept = [[slow.drop(word, plan.width) for word in vector] for vector in words]
    clean = [h for vector in kept for h in slow.answer(matrix, mask, vector)]
    answers = [(h + f) % slow.Q for h, f in zip(clean, flood, strict=True)]
    rows = len(matrix)
    sums = [slow.decode(hint, s, answers[k * rows : (k + 1) * rows], delta) for k, s in enumerate(secrets)]
    assert sums == [[slow.Weights(row) @ vector for row in matrix] for vector in values]
    packed = b"".join(slow.pack(vector, plan.width) for vector in words)
    return {
        "plan": {"shift": plan.shift, "width": plan.width, "flood": plan.flood, "kl_vector": plan.kl_vector},
        "mask_sha256": digest_small(mask),
        "hint_sha256": hashlib.sha256(b"".join(slow.pack(row, 8) for row in hint)).hexdigest(),
        "hint_first_words": [[f"{word:016x}" for word in row[:4]] for row in hint],
        "secrets_sha256": digest_small(secrets),
        "ciphertext_sha256": hashlib.sha256(packed).hexdigest(),
        "ciphertext_first_words": [[f"{word:016x}" for word in vector[slow.N : slow.N + 3]] for vector in kept],
        "answer": [f"{word:016x}" for word in answers],
        "sums": sums,
    }


def digest_small(rows: slow.Rows) -> str:
    """SHA-256 of small integers, one byte each, two's complement."""
    return hashlib.sha256(bytes(x % 256 for row in rows for x in row)).hexdigest()


def main() -> None:
    cases = [given | {"expected": expected(given)} for given in inputs()]
    # One line for each field: readable, and a change shows as a change of its line.
    body = ",\n".join(
        " {\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in c.items()) + "\n }" for c in cases
    )
    PATH.write_text(f'{{"source": {json.dumps(SOURCE)},\n "cases": [\n{body}\n]}}\n')


if __name__ == "__main__":
    main()
