"""The Paillier back end, against phe's own encryption and against NumPy."""

import subprocess
import sys

import gmpy2
import numpy as np
import phe
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlearn.crypto import paillier
from fedlearn.errors import BadConfig, OverBudget, Refused

BITS = 2048
FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def key() -> paillier.PrivateKey:
    return paillier.generate(BITS)


@pytest.fixture(scope="module")
def theirs(key: paillier.PrivateKey) -> tuple[phe.PaillierPublicKey, phe.PaillierPrivateKey]:
    """The same key as phe has it."""
    public = phe.PaillierPublicKey(key.n)
    return public, phe.PaillierPrivateKey(public, key.p, key.q)


def numbers(data: bytes, key: paillier.PrivateKey) -> list[int]:
    width = key.public.width
    return [int.from_bytes(data[i : i + width], "big") for i in range(0, len(data), width)]


def as_bytes(ciphertexts: list[int], key: paillier.PrivateKey) -> bytes:
    return b"".join(c.to_bytes(key.public.width, "big") for c in ciphertexts)


# --- against phe -------------------------------------------------------------------------------------


def test_phe_decrypts_what_we_encrypt(key: paillier.PrivateKey, theirs: tuple) -> None:
    public, private = theirs
    vectors = np.array([[3, -3, 0, 2**30, -(2**30)]])
    encrypted = [phe.EncryptedNumber(public, c) for c in numbers(paillier.encrypt(vectors, 40, key), key)]
    assert [private.decrypt(c) for c in encrypted] == vectors[0].tolist()
    assert private.decrypt(encrypted[0] + encrypted[1] * 2 + encrypted[4]) == -3 - 2**30


def test_we_decode_what_phe_encrypts(key: paillier.PrivateKey, theirs: tuple) -> None:
    public, _ = theirs
    values = [0, 1, -1, 12345, -12345]
    answer = as_bytes([public.encrypt(v).ciphertext() for v in values], key)
    assert paillier.decode(answer, 5, 1, 16, key).tolist() == [values]


def test_we_respond_to_what_phe_encrypts_and_phe_decrypts_it(key: paillier.PrivateKey, theirs: tuple) -> None:
    public, private = theirs
    query = as_bytes([public.encrypt(v).ciphertext() for v in (5, -7, 11)], key)
    matrix = np.array([[1, 2, -3], [0, 0, 0], [-1, 0, 255]])
    answer = numbers(paillier.respond_dense(matrix, query, 1, 20, key.public), key)
    assert [private.decrypt(phe.EncryptedNumber(public, c)) for c in answer] == [-42, 0, 2800]


# --- against NumPy -----------------------------------------------------------------------------------


@FEW
@given(data=st.data())
def test_indicator_products(key: paillier.PrivateKey, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    slot = data.draw(st.sampled_from([2, 9, 17, 33, 64]))
    features, samples, vectors = (data.draw(st.integers(1, high)) for high in (3, 6, 5))
    sizes = rng.integers(1, 4, features)  # bins without a sample occur
    bins = np.array([rng.integers(0, size, samples) for size in sizes], np.uint8)
    largest = ((1 << (slot - 1)) - 1) // samples  # sums up to the edge of the slot
    values = rng.integers(-largest, largest + 1, (vectors, samples))
    query = paillier.encrypt(values, slot, key)
    assert len(query) == paillier.query_bytes(vectors, samples, slot, key.public)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    answer = paillier.respond_indicator(bins, offsets, query, vectors, slot, key.public)
    rows = np.concatenate([bins[f] == np.arange(size)[:, None] for f, size in enumerate(sizes)]).astype(np.int64)
    decoded = paillier.decode(answer, len(rows), vectors, slot, key)
    assert decoded.dtype == np.int64
    assert np.array_equal(decoded, values @ rows.T)


@FEW
@given(data=st.data())
def test_dense_products(key: paillier.PrivateKey, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows, samples, vectors = (data.draw(st.integers(1, 4)) for _ in range(3))
    matrix = rng.integers(-255, 256, (rows, samples))
    values = rng.integers(-(2**20), 2**20, (vectors, samples))
    query = paillier.encrypt(values, 32, key)
    answer = paillier.respond_dense(matrix, query, vectors, 32, key.public)
    assert np.array_equal(paillier.decode(answer, rows, vectors, 32, key), values @ matrix.T)


def test_more_vectors_than_slots(key: paillier.PrivateKey) -> None:
    size = paillier.slots(64, key.public)
    values = np.random.default_rng(1).integers(-(2**62), 2**62, (2 * size + 1, 2))
    query = paillier.encrypt(values, 64, key)
    assert len(query) == 3 * 2 * key.public.width
    answer = paillier.respond_dense(np.array([[1, 1]]), query, len(values), 64, key.public)
    assert np.array_equal(paillier.decode(answer, 1, len(values), 64, key)[:, 0], values.sum(axis=1))


@pytest.mark.parametrize("slot", [2, 8, 63, 64])
@pytest.mark.parametrize("sign", [1, -1])
def test_full_slots_at_their_largest(key: paillier.PrivateKey, slot: int, sign: int) -> None:
    values = np.full((paillier.slots(slot, key.public), 1), sign * ((1 << (slot - 1)) - 1))
    assert np.array_equal(paillier.decode(paillier.encrypt(values, slot, key), 1, len(values), slot, key), values)


# --- secrecy -----------------------------------------------------------------------------------------


def test_every_ciphertext_is_fresh(key: paillier.PrivateKey) -> None:
    values = np.zeros((1, 3), np.int64)
    queries = numbers(paillier.encrypt(values, 16, key), key) + numbers(paillier.encrypt(values, 16, key), key)
    assert len(set(queries)) == 6


def test_every_answer_is_fresh_even_of_empty_bins(key: paillier.PrivateKey) -> None:
    query = paillier.encrypt(np.ones((1, 2), np.int64), 16, key)
    bins, offsets = np.zeros((1, 2), np.uint8), np.array([0, 3])
    answers = [paillier.respond_indicator(bins, offsets, query, 1, 16, key.public) for _ in range(2)]
    once, again = (numbers(answer, key) for answer in answers)
    assert len({*once, *again}) == 6
    assert 1 not in once  # the empty product as it is


def test_randomness_is_an_nth_residue_from_the_whole_group(key: paillier.PrivateKey) -> None:
    """An encryption of zero is r^n; its n-th root modulo n is r, which is to be uniform: squares and others."""
    zeros = numbers(paillier.encrypt(np.zeros((1, 30), np.int64), 16, key), key)
    root = gmpy2.invert(key.n, (key.p - 1) * (key.q - 1))
    roots = [int(gmpy2.powmod(c, root, key.n)) for c in zeros]
    assert [int(gmpy2.powmod(r, key.n, key.n**2)) for r in roots] == zeros
    assert max(roots).bit_length() > BITS - 8
    for prime in (key.p, key.q):
        assert {gmpy2.legendre(r, prime) for r in roots} == {1, -1}


def test_the_private_key_does_not_show_itself(key: paillier.PrivateKey) -> None:
    assert str(key.p) not in repr(key)
    assert str(key.p) not in repr(key.halves)


# --- keys --------------------------------------------------------------------------------------------


def test_public_keys_travel(key: paillier.PrivateKey) -> None:
    assert paillier.PublicKey.from_bytes(key.public.to_bytes(), BITS) == key.public


def test_bad_public_keys(key: paillier.PrivateKey) -> None:
    good = key.public.to_bytes()
    half = gmpy2.next_prime(gmpy2.mpz(3) << (BITS // 2 - 2))
    bad = {
        "bits where 3072": (good, 3072),
        "bits where 2048": (good[:-1], BITS),
        "of 2048 bits where": (b"\0" + good, BITS),
        "of 0 bits": (b"", BITS),
        "below 2048": (((key.p >> 1) | 1).to_bytes(128, "big"), int(key.p).bit_length() - 1),
        "small factor": ((key.n - 1).to_bytes(256, "big"), BITS),
        "prime or a perfect power": (int(half * half).to_bytes(256, "big"), BITS),
        "is a prime": (int(gmpy2.next_prime(key.n)).to_bytes(256, "big"), BITS),
    }
    for sentence, (modulus, bits) in bad.items():
        with pytest.raises(ValueError, match=sentence if sentence != "is a prime" else "prime or a perfect"):
            paillier.PublicKey.from_bytes(modulus, bits)


@pytest.mark.parametrize("bits", [0, 1024, 2046, 2049])
def test_small_keys_are_refused(bits: int) -> None:
    with pytest.raises(Refused, match="2048"):
        paillier.generate(bits)


def test_without_phe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phe", None)
    with pytest.raises(BadConfig, match="fedlearn\\[paillier\\]"):
        paillier.generate(BITS)


def test_phe_is_imported_only_when_a_key_is_made() -> None:
    code = "import sys, fedlearn.crypto.paillier; sys.exit('phe' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- bad input ---------------------------------------------------------------------------------------


def test_ciphertexts_that_are_none(key: paillier.PrivateKey) -> None:
    good = numbers(paillier.encrypt(np.ones((1, 2), np.int64), 16, key), key)
    n, n_squared = key.n, key.n**2
    matrix = np.ones((2, 2), np.int64)
    for bad in (0, n, key.p, 5 * key.q, n_squared, n_squared + 1, 256**key.public.width - 1):
        data = as_bytes([good[0], bad], key)
        with pytest.raises(paillier.BadCiphertext):
            paillier.respond_dense(matrix, data, 1, 16, key.public)
        with pytest.raises(paillier.BadCiphertext):
            paillier.decode(data, 2, 1, 16, key)


@pytest.mark.parametrize("cut", [1, 512])
def test_wrong_lengths(key: paillier.PrivateKey, cut: int) -> None:
    good = paillier.encrypt(np.ones((1, 2), np.int64), 16, key)
    bins, offsets = np.zeros((1, 2), np.uint8), np.array([0, 1])
    for data in (good[:-cut], good + bytes(cut), b""):
        with pytest.raises(paillier.BadCiphertext, match="are due"):
            paillier.respond_indicator(bins, offsets, data, 1, 16, key.public)
        with pytest.raises(paillier.BadCiphertext, match="are due"):
            paillier.decode(data, 2, 1, 16, key)


@pytest.mark.parametrize("value", [2**15, -(2**15) - 1, 2**100])
def test_sums_beyond_their_slot(key: paillier.PrivateKey, theirs: tuple, value: int) -> None:
    answer = as_bytes([theirs[0].raw_encrypt(value % key.n)], key)
    with pytest.raises(paillier.BadCiphertext, match="overflows"):
        paillier.decode(answer, 1, 1, 16, key)


@pytest.mark.parametrize("value", [2**15, -(2**15)])
def test_entries_beyond_their_slot(key: paillier.PrivateKey, value: int) -> None:
    with pytest.raises(ValueError, match="16 bits"):
        paillier.encrypt(np.array([[value]]), 16, key)


@pytest.mark.parametrize("slot", [0, 1, 65])
def test_slots_out_of_range(key: paillier.PrivateKey, slot: int) -> None:
    with pytest.raises(OverBudget):
        paillier.slots(slot, key.public)
