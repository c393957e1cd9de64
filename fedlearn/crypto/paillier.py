"""Encrypted matrix-vector products by Paillier's additively homomorphic scheme: slow, classical, simple to check.

Paillier (1999), "Public-key cryptosystems based on composite degree residuosity classes", with g = n + 1:
Enc(m) = (1 + n m) r^n mod n^2, so that Enc(a) Enc(b) = Enc(a + b). As many of the K vectors as fit share one plaintext,
one slot of ``slot_bits`` each; negative values borrow from the next slot, and as long as every sum s has
|s| < 2^(slot_bits - 1), all sums decode exactly.

Layout: with S = ``slots(...)`` vectors to a plaintext there are G = ceil(K / S) groups. A query is G x n ciphertexts,
an answer G x R, row by row, each of ``PublicKey.width`` bytes, big-endian.

Keys come from ``phe``, which is GPLv3: it is an optional extra, imported here only, and only when a key is made. The
arithmetic is GMP's through ``gmpy2``. It is not constant-time: what it takes is visible to other programs on the same
machine.

What this back end does not enforce: a querier that deviates may put more than K values into the plaintexts of a query
for K vectors, up to S for each ciphertext of a sample, and a modulus that shares a factor with its totient would
weaken the re-randomisation. The threat model is semi-honest.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import gmpy2
import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import BadConfig, OverBudget, Refused
from fedlearn.kernels.threads import CORES, spread

#: Smallest modulus, in bits: 112 bits of security (NIST SP 800-57 part 1, table 2).
MIN_BITS = 2048

_SMALL_FACTOR = 1 << 16  # a modulus with a prime factor below this is refused
_MAX_SLOT = 64  # sums are int64

T = TypeVar("T")
U = TypeVar("U")


class BadCiphertext(ValueError):
    """Bytes that are not as many ciphertexts as are due, or a number that is not a ciphertext under this key."""


@dataclass(frozen=True)
class PublicKey:
    """The modulus n."""

    n: int

    @cached_property
    def n_squared(self) -> Any:
        """n^2, the modulus of ciphertexts (mpz)."""
        return gmpy2.mpz(self.n) ** 2

    @property
    def bits(self) -> int:
        """Size of n."""
        return self.n.bit_length()

    @property
    def width(self) -> int:
        """Bytes of one ciphertext."""
        return (2 * self.bits + 7) // 8

    def to_bytes(self) -> bytes:
        """The modulus, big-endian."""
        return self.n.to_bytes((self.bits + 7) // 8, "big")

    @classmethod
    def from_bytes(cls, modulus: bytes, bits: int) -> PublicKey:
        """A key from the peer.

        Args:
            modulus: big-endian, without leading zeros.
            bits: the size that the contract sets.

        Raises:
            ValueError: another size, too small, even, prime, a perfect power, or with a small prime factor.
        """
        n = int.from_bytes(modulus, "big")
        if n.bit_length() != bits or len(modulus) != (bits + 7) // 8:
            raise ValueError(f"a modulus of {n.bit_length()} bits where {bits} are agreed")
        if bits < MIN_BITS:
            raise ValueError(f"a modulus of {bits} bits, below {MIN_BITS}")
        if gmpy2.gcd(n, gmpy2.primorial(_SMALL_FACTOR)) != 1:
            raise ValueError("a modulus with a small factor")
        if gmpy2.is_power(n) or gmpy2.is_prime(n):
            raise ValueError("a modulus that is a prime or a perfect power")
        return cls(n)


@dataclass(frozen=True)
class PrivateKey:
    """The prime factors of n, with what decryption and fast encryption need of them. Never leaves its party.

    Attributes:
        public: the modulus.
        p, q: its prime factors, of equal size.
    """

    public: PublicKey
    p: int = field(repr=False)
    q: int = field(repr=False)

    @property
    def n(self) -> int:
        """The modulus."""
        return self.public.n

    @cached_property
    def halves(self) -> tuple[_Half, _Half]:
        """What is computed modulo p^2 and modulo q^2."""
        return _Half.of(self.p, self.q), _Half.of(self.q, self.p)


@dataclass(frozen=True)
class _Half:
    """Arithmetic modulo the square of one prime factor (Paillier 1999, section 7). All numbers are mpz.

    Attributes:
        prime, square: p and p^2.
        scale: inverse modulo p of L(g^(p - 1) mod p^2), where L(u) = (u - 1) / p.
        lift, lift_square: what is 1 modulo p and 0 modulo q; the same for p^2 and q^2.
    """

    prime: Any = field(repr=False)
    square: Any = field(repr=False)
    scale: Any = field(repr=False)
    lift: Any = field(repr=False)
    lift_square: Any = field(repr=False)

    @classmethod
    def of(cls, prime: int, other: int) -> _Half:
        p, q = gmpy2.mpz(prime), gmpy2.mpz(other)
        return cls(
            prime=p,
            square=p * p,
            scale=gmpy2.invert(-q % p, p),  # L((1 + n)^(p - 1)) = (p - 1) q = -q modulo p
            lift=q * gmpy2.invert(q, p),
            lift_square=q * q * gmpy2.invert(q * q, p * p),
        )


def generate(bits: int) -> PrivateKey:
    """A fresh key pair, by ``phe``, which draws the primes from the operating system's generator.

    Args:
        bits: size of the modulus, even.

    Raises:
        Refused: fewer than ``MIN_BITS``.
        BadConfig: ``phe`` is not installed.
    """
    if bits < MIN_BITS or bits % 2:
        raise Refused(f"a Paillier key of {bits} bits was asked for; it must have at least {MIN_BITS}, an even number")
    try:
        from phe import generate_paillier_keypair
    except ImportError:
        raise BadConfig(
            'encryption.backend = "paillier" needs the optional package phe (GPLv3): pip install "fedlearn[paillier]"'
        ) from None
    while True:
        public, private = generate_paillier_keypair(n_length=bits)
        p, q = int(private.p), int(private.q)
        if gmpy2.gcd(p * q, (p - 1) * (q - 1)) == 1:  # certain for primes of equal size, and all rests on it
            return PrivateKey(PublicKey(int(public.n)), p, q)


def slots(slot_bits: int, public: PublicKey) -> int:
    """How many vectors share a plaintext.

    Raises:
        OverBudget: a sum does not fit the 64 bits of a slot.
    """
    if not 2 <= slot_bits <= _MAX_SLOT:
        raise OverBudget(f"sums of {slot_bits} bits do not fit a slot, which has 2 to {_MAX_SLOT} bits")
    return (public.bits - 1) // slot_bits  # packed sums then stay within -n/2 .. n/2


def query_bytes(count: int, samples: int, slot_bits: int, public: PublicKey) -> int:
    """Bytes of a query of ``count`` vectors of ``samples`` entries; of an answer, with the rows as ``samples``."""
    return _groups(count, slot_bits, public) * samples * public.width


def encrypt(vectors: NDArray[np.int64], slot_bits: int, private: PrivateKey) -> bytes:
    """Encrypt K vectors entry by entry, every ciphertext with its own randomness.

    The secret key makes r^n mod n^2 several times cheaper: modulo p^2 it depends on r modulo p only, and is a^p mod p^2
    for a uniform a, since raising to the power q permutes the residues modulo p.

    Args:
        vectors: int64 (K, n), each entry below 2^(slot_bits - 1) in absolute value.
        slot_bits: such that every sum asked for is below 2^(slot_bits - 1) in absolute value.
        private: this party's key.

    Returns:
        G x n ciphertexts.

    Raises:
        ValueError: an entry is too large.
        OverBudget: as for :func:`slots`.
    """
    size = slots(slot_bits, private.public)
    bound = 1 << (slot_bits - 1)
    if vectors.size and (int(vectors.min()) <= -bound or int(vectors.max()) >= bound):
        raise ValueError(f"an entry does not fit a slot of {slot_bits} bits")
    plain = [
        _pack(column, slot_bits)
        for start in range(0, len(vectors), size)
        for column in vectors[start : start + size].T.tolist()
    ]
    n, n_squared = private.n, private.public.n_squared
    left, right = (
        _powers([gmpy2.mpz(1 + secrets.randbelow(int(h.prime) - 1)) for _ in plain], h.prime, h.square)
        for h in private.halves
    )
    half_p, half_q = private.halves

    def ciphertext(i: int) -> Any:
        randomness = left[i] * half_p.lift_square + right[i] * half_q.lift_square
        return (1 + n * plain[i]) * randomness % n_squared

    return _to_bytes(map(ciphertext, range(len(plain))), private.public)


def respond_indicator(
    bins: NDArray[np.uint8], offsets: NDArray[np.int64], query: bytes, count: int, slot_bits: int, public: PublicKey
) -> bytes:
    """The encrypted sums of the vectors over each bin of each feature.

    Args:
        bins: uint8 (F, n); sample i is in bin ``bins[f, i]`` of feature f.
        offsets: int64 (F + 1,); the rows of feature f are offsets[f] to offsets[f + 1].
        query: G x n ciphertexts from the peer.
        count: K, how many vectors are in it.
        slot_bits: as agreed.
        public: the peer's key.

    Returns:
        G x R ciphertexts, R = offsets[F]; re-randomised, so that they tell the products only.

    Raises:
        BadCiphertext: the query is not what is due.
    """
    rows = [
        np.flatnonzero(feature == b)
        for feature, size in zip(bins, np.diff(offsets), strict=True)
        for b in range(int(size))
    ]

    def row_products(group: Sequence[Any]) -> list[Any]:
        return _parallel(lambda row: _product(group, row.tolist(), public.n_squared), rows)

    return _respond(row_products, query, count, bins.shape[1], slot_bits=slot_bits, public=public)


def respond_dense(matrix: NDArray[np.int64], query: bytes, count: int, slot_bits: int, public: PublicKey) -> bytes:
    """The encrypted products of a matrix of small integers with the vectors.

    Args:
        matrix: int64 (R, n).
        query: G x n ciphertexts from the peer.
        count: K, how many vectors are in it.
        slot_bits: as agreed.
        public: the peer's key.

    Returns:
        G x R ciphertexts, re-randomised.

    Raises:
        BadCiphertext: the query is not what is due.
    """

    def row_products(group: Sequence[Any]) -> list[Any]:
        return _parallel(lambda row: _weighted_product(group, row, public.n_squared), list(matrix))

    return _respond(row_products, query, count, matrix.shape[1], slot_bits=slot_bits, public=public)


def shifted(answer: bytes, offsets: NDArray[np.int64], slot_bits: int, public: PublicKey) -> bytes:
    """An answer to which integers are added: it decodes to M v + offsets.

    Its randomness stays what it was, fresh, so the ciphertexts tell the shifted sums only.

    Args:
        answer: G x R ciphertexts of this side's own making.
        offsets: int64 (K, R), such that every shifted sum fits its slot.
        slot_bits: as agreed.
        public: the peer's key.
    """
    size = slots(slot_bits, public)
    plain = [
        _pack(row, slot_bits)
        for first in range(0, len(offsets), size)
        for row in offsets[first : first + size].T.tolist()
    ]
    ciphertexts = _from_bytes(answer, len(plain), public)
    products = (c * (1 + public.n * m) % public.n_squared for c, m in zip(ciphertexts, plain, strict=True))
    return _to_bytes(products, public)


def decode(answer: bytes, rows: int, count: int, slot_bits: int, private: PrivateKey) -> NDArray[np.int64]:
    """Decrypt an answer.

    Args:
        answer: G x R ciphertexts from the peer.
        rows: R, how many rows the matrix has.
        count: K, how many vectors were asked for.
        slot_bits: as in :func:`encrypt`.
        private: the key of the query.

    Returns:
        int64 (K, R): M v for each vector v.

    Raises:
        BadCiphertext: a wrong length, a number that is not a ciphertext, or sums that overflow their slots.
    """
    public, size = private.public, slots(slot_bits, private.public)
    ciphertexts = _from_bytes(answer, _groups(count, slot_bits, public) * rows, public)
    plain = _decrypt(ciphertexts, private)
    sums = np.empty((count, rows), np.int64)
    for first in range(0, count, size):
        part, plain = plain[:rows], plain[rows:]
        used = min(size, count - first)
        sums[first : first + used] = np.array([_unpack(m, used, slot_bits) for m in part], np.int64).reshape(-1, used).T
    return sums


# --- numbers -----------------------------------------------------------------------------------------


def _groups(count: int, slot_bits: int, public: PublicKey) -> int:
    return -(-count // slots(slot_bits, public))


def _pack(values: Sequence[int], slot_bits: int) -> int:
    """Sum of values[j] 2^(j slot_bits), an integer of either sign."""
    packed = 0
    for value in reversed(values):
        packed = (packed << slot_bits) + value
    return packed


def _unpack(packed: int, used: int, slot_bits: int) -> list[int]:
    """The values of the ``used`` lowest slots; nothing may be left above them."""
    values = []
    for _ in range(used):
        value = packed & ((1 << slot_bits) - 1)
        if value >> (slot_bits - 1):
            value -= 1 << slot_bits
        values.append(value)
        packed = (packed - value) >> slot_bits
    if packed:
        raise BadCiphertext("a sum overflows its slot")
    return values


def _decrypt(ciphertexts: Sequence[Any], private: PrivateKey) -> list[int]:
    """Plaintexts between -n/2 and n/2, by the Chinese remainder theorem."""
    parts = []
    for h in private.halves:
        powers = _powers([c % h.square for c in ciphertexts], h.prime - 1, h.square)
        parts.append([(u - 1) // h.prime * h.scale % h.prime * h.lift for u in powers])
    n = private.n
    plain = (int((left + right) % n) for left, right in zip(*parts, strict=True))
    return [m - n if m > n // 2 else m for m in plain]


def _respond(
    row_products: Callable[[Sequence[Any]], list[Any]],
    query: bytes,
    count: int,
    samples: int,
    *,
    slot_bits: int,
    public: PublicKey,
) -> bytes:
    """Check the query, take the products group by group, and multiply each with a fresh encryption of zero."""
    groups = _groups(count, slot_bits, public)
    ciphertexts = _from_bytes(query, groups * samples, public)
    products = [
        product for g in range(groups) for product in row_products(ciphertexts[g * samples : (g + 1) * samples])
    ]
    draws = [gmpy2.mpz(1 + secrets.randbelow(public.n - 1)) for _ in products]
    zeros = _powers(draws, gmpy2.mpz(public.n), public.n_squared)
    return _to_bytes((a * b % public.n_squared for a, b in zip(products, zeros, strict=True)), public)


def _product(ciphertexts: Sequence[Any], chosen: Sequence[int], modulus: Any) -> Any:
    product = gmpy2.mpz(1)
    for i in chosen:
        product = product * ciphertexts[i] % modulus
    return product


def _weighted_product(ciphertexts: Sequence[Any], weights: NDArray[np.int64], modulus: Any) -> Any:
    """Product of ciphertexts[i]^weights[i]: bit by bit for all i together, negative weights apart."""

    def of(magnitudes: NDArray[np.int64]) -> Any:
        product = gmpy2.mpz(1)
        for bit in reversed(range(int(magnitudes.max(initial=0)).bit_length())):
            chosen = np.flatnonzero(magnitudes >> bit & 1).tolist()
            product = product * product * _product(ciphertexts, chosen, modulus) % modulus
        return product

    return of(np.maximum(weights, 0)) * gmpy2.invert(of(np.maximum(-weights, 0)), modulus) % modulus


def _powers(bases: list[Any], exponent: Any, modulus: Any) -> list[Any]:
    """Each base to the same power; GMP lets go of the interpreter lock, so threads share the list."""
    chunks = [bases[i::CORES] for i in range(CORES)]
    done = _parallel(lambda chunk: gmpy2.powmod_base_list(chunk, exponent, modulus) if chunk else [], chunks)
    return [done[i % CORES][i // CORES] for i in range(len(bases))]


def _parallel(work: Callable[[T], U], items: Sequence[T]) -> list[U]:
    """``work`` on each item, in order, on one thread per core; GMP lets go of the interpreter lock meanwhile."""

    def released(item: T) -> U:
        with gmpy2.context(allow_release_gil=True):
            return work(item)

    return spread(released, items)


def _to_bytes(ciphertexts: Any, public: PublicKey) -> bytes:
    return b"".join(int(c).to_bytes(public.width, "big") for c in ciphertexts)


def _from_bytes(data: bytes, due: int, public: PublicKey) -> list[Any]:
    """Ciphertexts from the peer, checked: 0 < c < n^2 and no factor in common with n."""
    width = public.width
    if len(data) != due * width:
        raise BadCiphertext(f"{len(data)} bytes where {due} ciphertexts of {width} bytes are due")
    ciphertexts = [gmpy2.mpz(int.from_bytes(data[i : i + width], "big")) for i in range(0, len(data), width)]
    product = gmpy2.mpz(1)  # one gcd for all: it is 1 for the product if and only if it is 1 for each
    for i, c in enumerate(ciphertexts):
        product = product * c % public.n
        if not 0 < c < public.n_squared:
            raise BadCiphertext(f"ciphertext {i} of {due} is out of range")
    if gmpy2.gcd(product, public.n) != 1:
        raise BadCiphertext("a ciphertext has a factor in common with the modulus")
    return ciphertexts
