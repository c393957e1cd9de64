"""Slot-packed integers under BFV, by Microsoft SEAL through TenSEAL: products of encrypted and known values, masked.

Brakerski (CRYPTO 2012), Fan & Vercauteren (ePrint 2012/144): a ciphertext holds SLOTS integers modulo the prime T. One
side has the :class:`Key`; the other multiplies with what it knows, adds, and sends an :func:`answer`:

* it adds a mask under the public key: a fresh encryption, so the second polynomial says nothing of what was multiplied;
* it drops a prime of the modulus and adds uniform noise of FLOOD bits to every coefficient of the first polynomial, so
  the noise that the owner of the key sees says nothing either: it is within :func:`distance` of one that does not
  depend on what was multiplied (noise flooding: Gentry, "A fully homomorphic encryption scheme", 2009).

Parameters are those of 128-bit security in the Homomorphic Encryption Standard (198 bits of modulus in use, 218 with
the key's prime, at N = 8192), enforced by SEAL.

TenSEAL is an optional extra, imported when a context is made. SEAL objects have no bytes in Python but through files:
these are files in memory where the system has them. No secret key is ever written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedlearn.crypto.draws import Draws
from fedlearn.errors import BadConfig

U64 = NDArray[np.uint64]

SLOTS = 8192
#: Plaintext modulus: the prime that SEAL gives for 60 bits.
T = 1152921504606830593
#: Bits of the ciphertext modulus; the last prime serves keys only.
_BITS = (50, 50, 49, 49, 20)
#: Primes of an answer's modulus.
_LIMBS = 3
#: Noise added to every coefficient of an answer is uniform on 2^FLOOD values around 0.
FLOOD = 87
#: Bound on a fresh error: SEAL cuts its Gaussian (3.2) at 6 deviations; and the rounding of the plaintext.
_FRESH = 20.0
WORDS = 2 * _LIMBS * SLOTS


class BadCiphertext(ValueError):
    """Bytes that are no ciphertext or key of these parameters."""


def distance(terms: int, answers: int) -> float:
    """Bound on the statistical distance of all answers' noise from noise that depends on nothing.

    The noise before flooding is at most terms·(fresh error)·SLOTS·T/2; dropping a prime divides it by 2^49 and adds a
    rounding of at most (1 + SLOTS)/2, twice with the mask's own fresh noise (SLOTS·(fresh error)·2 before dropping).

    Args:
        terms: products of a ciphertext and a plaintext that are added up in one answer, at most.
        answers: how many answers the key's owner sees.
    """
    noise = terms * _FRESH * SLOTS * (T / 2) / 2.0**48.9 + SLOTS + 1
    return float(answers * SLOTS * noise / 2.0**FLOOD)


@cache
def _seal() -> Any:
    """SEAL, its context and tools. Raises BadConfig where TenSEAL is not installed."""
    try:
        from tenseal import sealapi
    except ModuleNotFoundError:
        raise BadConfig(
            'glm.disclosure = "none" needs the optional package tenseal: pip install "fedlearn[seal]"'
        ) from None
    return sealapi


class _Context:
    def __init__(self) -> None:
        seal = _seal()
        params = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
        params.set_poly_modulus_degree(SLOTS)
        params.set_coeff_modulus(seal.CoeffModulus.Create(SLOTS, list(_BITS)))
        params.set_plain_modulus(seal.PlainModulus.Batching(SLOTS, 60))
        self.primes = [int(prime.value()) for prime in params.coeff_modulus()]
        self.seal = seal
        self.context = seal.SEALContext(params, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set() or params.plain_modulus().value() != T:
            raise BadConfig("this release of TenSEAL does not take the parameters: install tenseal 0.3.16 or later")
        self.evaluator = seal.Evaluator(self.context)
        self.encoder = seal.BatchEncoder(self.context)

    def plain(self, values: U64) -> Any:
        out = self.seal.Plaintext()
        self.encoder.encode(values.tolist(), out)
        return out


@cache
def context() -> Any:
    """The one context of these parameters. Raises BadConfig where TenSEAL is not installed."""
    return _Context()


class Key:
    """A secret key with what its owner does: encrypt under it, and decrypt answers."""

    def __init__(self) -> None:
        self._at = at = context()
        generator = at.seal.KeyGenerator(at.context)
        secret = generator.secret_key()
        public = at.seal.PublicKey()
        generator.create_public_key(public)
        self.public = _saved(public)
        self._encryptor = at.seal.Encryptor(at.context, public, secret)
        self._decryptor = at.seal.Decryptor(at.context, secret)
        zero = at.seal.Ciphertext()
        self._encryptor.encrypt_zero_symmetric(zero)
        at.evaluator.mod_switch_to_next_inplace(zero)
        self._frame = _stream(_saved(zero))[: -8 * WORDS]

    def encrypt(self, values: U64) -> bytes:
        """SLOTS integers below T as SEAL's bytes, the random half as its seed."""
        return _saved(self._encryptor.encrypt_symmetric(self._at.plain(values)))

    def decrypt(self, words: bytes) -> U64:
        """An answer's slots, uint64 (SLOTS,). Raises BadCiphertext for words that are none."""
        if len(words) != 8 * WORDS:
            raise BadCiphertext(f"{len(words)} bytes where {8 * WORDS} were due")
        limbs = np.frombuffer(words, "<u8").reshape(2, _LIMBS, SLOTS)
        if np.any(limbs >= np.array(self._at.primes[:_LIMBS], np.uint64)[:, None]):
            raise BadCiphertext("words beyond their modulus")
        found = _loaded(self._at.seal.Ciphertext(), _unpacked(self._frame + words), self._at.context)
        plain = self._at.seal.Plaintext()
        self._decryptor.decrypt(found, plain)
        return np.array(self._at.encoder.decode_uint64(plain), np.uint64)


class Peer:
    """The peer's public key with what the other side does: take ciphertexts, and answer.

    Raises:
        BadCiphertext: bytes that are no key.
    """

    def __init__(self, public: bytes) -> None:
        self._at = at = context()
        key = _loaded(at.seal.PublicKey(), public, at.context)
        self._encryptor = at.seal.Encryptor(at.context, key)

    def take(self, data: bytes, transform: bool = False) -> Any:
        """A ciphertext from the peer's bytes, in transform form if asked. Raises BadCiphertext for other bytes."""
        at = self._at
        found = _loaded(at.seal.Ciphertext(), data, at.context)
        if found.size() != 2 or found.is_ntt_form() or found.parms_id() != at.context.first_parms_id():
            raise BadCiphertext("a ciphertext of another level or form")
        if transform:
            at.evaluator.transform_to_ntt_inplace(found)
        return found

    def known(self, values: U64) -> Any:
        """SLOTS known integers in transform form, to multiply transformed ciphertexts with; None if all are 0."""
        if not values.any():
            return None
        at = self._at
        out = at.seal.Plaintext()
        at.evaluator.transform_to_ntt(at.plain(values), at.context.first_parms_id(), out)
        return out

    def answer(self, pairs: list[tuple[Any, Any]], mask: U64) -> bytes:
        """Σ ciphertext·known + mask, slot by slot, as the words of a fresh, flooded ciphertext.

        Args:
            pairs: ciphertexts in transform form, and what :meth:`known` made.
            mask: uint64 (SLOTS,), below T.
        """
        at = self._at
        total = at.seal.Ciphertext()
        self._encryptor.encrypt(at.plain(mask), total)
        products = None
        for ciphertext, known in pairs:
            if known is not None:
                one = at.seal.Ciphertext()
                at.evaluator.multiply_plain(ciphertext, known, one)
                if products is None:
                    products = one
                else:
                    at.evaluator.add_inplace(products, one)
        if products is not None:
            at.evaluator.transform_from_ntt_inplace(products)
            at.evaluator.add_inplace(total, products)
        at.evaluator.mod_switch_to_next_inplace(total)
        words = np.frombuffer(_stream(_saved(total))[-8 * WORDS :], "<u8").reshape(2, _LIMBS, SLOTS).copy()
        _flood(words[0], at.primes[:_LIMBS])
        return words.astype("<u8").tobytes()


def uniform(count: int) -> U64:
    """Uniform integers below T, uint64 (count,)."""
    draws, kept = Draws(), np.empty(0, np.uint64)
    while len(kept) < count:
        drawn = draws.words(count - len(kept) + 64) >> np.uint64(4)
        kept = np.concatenate([kept, drawn[drawn < T]])
    return kept[:count]


def _flood(limbs: U64, primes: list[int]) -> None:
    """Add one uniform integer of [−2^(FLOOD−1), 2^(FLOOD−1)) to each coefficient, in every prime."""
    digits = [(draw >> np.uint64(3)) for draw in Draws().bytes(2 * 7 * SLOTS).view(np.uint16).reshape(7, SLOTS)]
    digits[0] >>= 13 - (FLOOD - 6 * 13)
    for limb, prime in zip(limbs, primes, strict=True):
        value = np.zeros(SLOTS, np.uint64)
        for digit in digits:
            value = (value * np.uint64(1 << 13) + digit) % np.uint64(prime)
        limb[:] = (limb + value + np.uint64(prime - (1 << (FLOOD - 1)) % prime)) % np.uint64(prime)


# --- SEAL's bytes ------------------------------------------------------------------------------------


@contextmanager
def _file() -> Iterator[tuple[str, int]]:
    """A file for SEAL to write and read: in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("seal")
        try:
            yield f"/proc/self/fd/{handle}", handle
        finally:
            os.close(handle)
    else:
        with tempfile.NamedTemporaryFile() as file:
            yield file.name, file.fileno()


def _saved(thing: Any) -> bytes:
    with _file() as (path, handle):
        thing.save(path)
        return os.pread(handle, os.fstat(handle).st_size, 0)


def _loaded(empty: Any, data: bytes, at: Any) -> Any:
    """SEAL checks what it loads: metadata, sizes, and every word against its modulus."""
    with _file() as (path, handle):
        os.pwrite(handle, data, 0)
        try:
            empty.load(at, path)
        except (RuntimeError, ValueError) as error:
            raise BadCiphertext(str(error)) from None
    return empty


def _stream(saved: bytes) -> bytes:
    """What stands behind SEAL's header of 16 bytes, decompressed; the words of a ciphertext come last."""
    if saved[5] == 0:
        return saved[16:]
    with pa.CompressedInputStream(pa.py_buffer(saved[16:]), "zstd" if saved[5] == 2 else "gzip") as stream:
        return bytes(stream.read())


def _unpacked(stream: bytes) -> bytes:
    """The same with a header that says: not compressed."""
    version = _saved_version()
    return b"\x5e\xa1\x10" + version + b"\x00\x00\x00" + (16 + len(stream)).to_bytes(8, "little") + stream


@cache
def _saved_version() -> bytes:
    at = context()
    return _saved(at.plain(np.zeros(SLOTS, np.uint64)))[3:5]
