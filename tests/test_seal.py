"""Both parties' product against an implementation that is not ours: BFV of Microsoft SEAL, through TenSEAL."""

import numpy as np
import pytest

from fedlearn.channel import Channel, simulate
from fedlearn.crypto.matrix import Dense, Indicator, Matrix
from fedlearn.protocols.matvec import Shape, Terms, open_holder, open_querier
from fedlearn.v1 import matvec_pb2 as pb

tenseal = pytest.importorskip("tenseal")

PLAIN_MODULUS = 1032193  # a prime that is 1 modulo 8192, as batching needs; sums stay below half of it


def by_seal(rows: np.ndarray, values: np.ndarray) -> list[list[int]]:
    """M·v: one BFV ciphertext for each vector, and for each row a plaintext product and a sum over slots."""
    context = tenseal.context(tenseal.SCHEME_TYPE.BFV, poly_modulus_degree=4096, plain_modulus=PLAIN_MODULUS)
    context.generate_galois_keys()
    sums = []
    for vector in values:
        encrypted = tenseal.bfv_vector(context, vector.tolist())
        sums.append([encrypted.dot(row.tolist()).decrypt()[0] for row in rows])
    return sums


def by_lwe(matrix: Matrix, values: np.ndarray) -> list[list[int]]:
    terms = Terms("lwe", 2048, int(np.abs(values).max()), len(values), 2.0**-20)

    def holder(channel: Channel) -> None:
        open_holder(channel, matrix, terms).answer(channel.receive(pb.MatvecQuery))

    sums, _ = simulate(lambda channel: open_querier(channel, Shape.of(matrix), terms).ask(values)(), holder)
    return sums.tolist()


def test_histograms() -> None:
    rng = np.random.default_rng(1)
    matrix = Indicator(rng.integers(0, 3, (2, 100)).astype(np.uint8), np.array([3, 4]))
    rows = np.array([bins == v for bins, size in zip(matrix.bins, matrix.sizes, strict=True) for v in range(size)])
    values = rng.integers(-127, 128, (2, 100)).astype(np.int32)
    assert by_lwe(matrix, values) == by_seal(rows.astype(np.int64), values)


def test_dense_rows() -> None:
    rng = np.random.default_rng(2)
    matrix = Dense(rng.integers(-15, 16, (3, 60)))
    values = rng.integers(-500, 501, (2, 60)).astype(np.int32)
    assert by_lwe(matrix, values) == by_seal(matrix.entries, values)
