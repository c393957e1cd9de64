"""Oblivious transfer of single bits, many at a time: base transfers on ristretto255 and their extension.

For each row the *sender* has one bit for each of s options, the *receiver* a choice among them. The receiver learns
the chosen bits, the sender nothing. A few hundred base transfers, once a session, need the group; everything after
that is AES and BLAKE3. Semi-honest throughout.

**Base transfers** of random seeds, 1 of 2, with the roles reversed: the extension's sender chooses. They are the
oblivious pseudorandom function of Jarecki, Kiayias and Krawczyk (ASIACRYPT 2014; mode OPRF of RFC 9497) with a key of
its own for each transfer i and the two inputs (i, 0), (i, 1)::

    extension's sender, choice b                    extension's receiver, key k
      M = H(i, b)^r                           ──►
                                              ◄──   M^k
      H(i, b)^k = (M^k)^(1/r)                       H(i, 0)^k, H(i, 1)^k

M is uniform whatever b is, so the choice is hidden without any assumption. The other seed is a hash of H(i, 1-b)^k, a
Diffie-Hellman value of a point whose logarithm nobody knows: as hard as the computational Diffie-Hellman problem, H and
the key derivation being random oracles. A key answers once, so even a deviating chooser gets only one seed of each pair
(under the paper's one-more gap Diffie-Hellman assumption), but it may settle on which as late as it likes, as with Chou
and Orlandi (LATINCRYPT 2015); against such, take the transfer of Masny and Rindal (CCS 2019), which binds it by its
first message. Seeds are bound to the session, to both messages, to the transfer's number and to the option.

**Extension** after Ishai, Kilian, Nissim and Petrank (CRYPTO 2003) with the codes of Kolesnikov and Kumaresan (CRYPTO
2013). Δ are the sender's base choices, c(w) is the word of option w, G(seed) a stream of AES-256-CTR, T the matrix of
columns G(seed_i,0) and t_j its row j::

    receiver                                                   sender
      U_i = G(seed_i,0) ⊕ G(seed_i,1) ⊕ (bit i of each
            row's c(choice))                             ──►   Q_i = G(seed_i,Δ_i) ⊕ Δ_i·U_i, so that row j of Q is
                                                               q_j = t_j ⊕ (c(choice_j) ∧ Δ)
      takes the chosen one; its pad is hash(j, t_j)      ◄──   bit_w ⊕ hash(j, q_j ⊕ (c(w) ∧ Δ)) for every option w

U is masked by streams of which the sender has only one of each pair: it learns nothing, AES being a pseudorandom
permutation. To the receiver the pad of any other option is the hash of t_j ⊕ (d ∧ Δ), where the difference d of two
words has at least :data:`SECURITY` ones: that many uniform bits of Δ must be guessed. With the hash a random oracle, q
evaluations hit some pad with probability at most q·s·2^-128 (in general, Kolesnikov and Kumaresan's code-correlation
robustness is just what is asked of it). The hash is BLAKE3 on one block: seven of BLAKE2s's ten rounds, for which its
authors claim 128 bits in every use (why seven are enough: Aumasson, "Too Much Crypto", ePrint 2019/1492). Its input
holds a tag of the session, the number of the batch and that of the row, so no two rows share an input; streams run on
from batch to batch, so no mask is used twice.

There is no statistical parameter: between semi-honest parties nothing is checked at random and nothing can fail. A
deviating receiver may send rows that are no words of the code, and so test bits of Δ against option bits that it
already knows; with Δ it reads every option of every row. Against that one would add the consistency check of Orrù,
Orsini and Scholl (CT-RSA 2017), made for linear codes such as this one. A deviating sender can spoil bits, no more;
what it learns from how the receiver goes on is the calling protocol's matter.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fedlearn.crypto import ristretto
from fedlearn.crypto.draws import Draws
from fedlearn.kernels import ot as kernel
from fedlearn.kernels.threads import spread

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
B1 = NDArray[np.bool_]

#: Computational security in bits: the least distance of a code, hence the unknown bits of Δ in every other pad.
SECURITY = 128

#: Most options of one transfer.
OPTIONS = 256

# Bytes of a stream that are made at once.
_AHEAD = 1 << 16

_DST = b"fedlearn-V01-transfer-ristretto255_XMD:SHA-512_R255MAP_RO_"


# --- codes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """A simplex code (punctured Walsh-Hadamard), repeated until its distance is SECURITY.

    Bit i of the word of w is the parity of w ∧ (1 + i mod (2^dimension - 1)): any two words differ in exactly
    2^(dimension-1) of 2^dimension - 1 bits. By Plotkin's bound no code of 2^dimension words has this distance and is
    shorter.

    Attributes:
        dimension: bits of an option's number.
        repeats: how often the simplex code is repeated.
    """

    dimension: int
    repeats: int

    @classmethod
    def of(cls, options: int) -> Code:
        """The code for so many options. Raises ValueError for fewer than 2 or more than OPTIONS."""
        if not 2 <= options <= OPTIONS:
            raise ValueError(f"a transfer has 2 to {OPTIONS} options, not {options}")
        dimension = (options - 1).bit_length()
        return cls(dimension, -(-SECURITY // 2 ** (dimension - 1)))

    @property
    def period(self) -> int:
        """Length of the simplex code itself."""
        return int(2**self.dimension - 1)

    @property
    def length(self) -> int:
        """Bits of a word: 128 for 2 options, 192 for 4, 240 for 16, 255 for 256."""
        return self.period * self.repeats

    def columns(self, choices: U8) -> U8:
        """The first ``period`` columns of the words of choices uint8 (n,), packed: uint8 (period, ⌈n/8⌉)."""
        out = np.empty((self.period, -(-len(choices) // 8)), np.uint8)
        for d in range(self.dimension):
            out[2**d - 1] = np.packbits(choices >> d & 1, bitorder="little")
            for x in range(2**d + 1, 2 ** (d + 1)):
                np.bitwise_xor(out[x - 2**d - 1], out[2**d - 1], out=out[x - 1])
        return out

    @cache  # noqa: B019 - of few codes, and small
    def words(self, options: int) -> U8:
        """The words of options 0, 1, ...: bits, uint8 (options, length). Not to be changed."""
        columns = self.columns(np.arange(options, dtype=np.uint8))
        return np.tile(np.unpackbits(columns, axis=1, count=options, bitorder="little").T, self.repeats)


#: Base transfers that the extension needs: as many as the longest code has bits.
BASES = Code.of(OPTIONS).length


# --- base transfers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What the choosing side of the base transfers keeps: secret, for one session.

    Attributes:
        bits: bool (n,), the choices; for the extension, Δ.
        scalars: the blinding of each.
    """

    bits: B1
    scalars: list[bytes]


def choose(session: bytes, count: int = BASES) -> tuple[Choice, bytes]:
    """First step of ``count`` base transfers with random choices.

    Args:
        session: what both sides take for the session, of any length.
        count: number of transfers.

    Returns:
        What to keep, and the blinded points to send.
    """
    bits = np.unpackbits(Draws().bytes(-(-count // 8)), count=count).astype(np.bool_)
    scalars = [ristretto.random_scalar() for _ in range(count)]
    points = ristretto.hash_to_group([_input(session, i, int(bit)) for i, bit in enumerate(bits)], _DST)
    return Choice(bits, scalars), _each(points, scalars)


def offer(session: bytes, blinded: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    """Second step: a fresh key for each transfer, to raise the chooser's point and both options to.

    Args:
        session: as for :func:`choose`.
        blinded: n points from the chooser.

    Returns:
        n points to send; a tag of 16 bytes that both sides get; both 32-byte seeds of each transfer.

    Raises:
        ValueError: a point is invalid.
    """
    count = len(blinded) // ristretto.POINT_BYTES
    keys = [ristretto.random_scalar() for _ in range(count)]
    raised = _each(blinded, keys)
    options = ristretto.hash_to_group([_input(session, i, bit) for i in range(count) for bit in range(2)], _DST)
    pairs = spread(lambda i: ristretto.raise_points(_points(options, 2 * i, 2 * i + 2), keys[i]), range(count))
    bound = _bound(session, blinded, raised)
    seeds = [(_seed(bound, i, 0, _points(p, 0, 1)), _seed(bound, i, 1, _points(p, 1, 2))) for i, p in enumerate(pairs)]
    return raised, _tag(bound), seeds


def accept(session: bytes, choice: Choice, blinded: bytes, raised: bytes) -> tuple[bytes, list[bytes]]:
    """Last step, at the chooser: the tag and the chosen seeds.

    Raises:
        ValueError: a point is invalid.
    """
    chosen = _each(raised, [ristretto.invert(scalar) for scalar in choice.scalars])
    bound = _bound(session, blinded, raised)
    seeds = [_seed(bound, i, int(bit), _points(chosen, i, i + 1)) for i, bit in enumerate(choice.bits)]
    return _tag(bound), seeds


def _input(session: bytes, transfer: int, bit: int) -> bytes:
    """The hashed name of one option; its fixed-length part comes last, so that no two names coincide."""
    return session + transfer.to_bytes(2, "little") + bytes([bit])


def _points(points: bytes, first: int, last: int) -> bytes:
    return points[first * ristretto.POINT_BYTES : last * ristretto.POINT_BYTES]


def _each(points: bytes, scalars: list[bytes]) -> bytes:
    """Each point to its own scalar."""
    one = range(len(scalars))
    return b"".join(spread(lambda i: ristretto.raise_points(_points(points, i, i + 1), scalars[i]), one))


def _bound(session: bytes, blinded: bytes, raised: bytes) -> bytes:
    """Hash of all that was said, which every key depends on."""
    return hashlib.sha256(b"fedlearn/1 transfer said" + hashlib.sha256(session).digest() + blinded + raised).digest()


def _seed(bound: bytes, transfer: int, bit: int, point: bytes) -> bytes:
    return hashlib.sha256(
        b"fedlearn/1 transfer seed" + bound + transfer.to_bytes(2, "little") + bytes([bit]) + point
    ).digest()


def _tag(bound: bytes) -> bytes:
    return hashlib.sha256(b"fedlearn/1 transfer hash" + bound).digest()[:16]


# --- extension ---------------------------------------------------------------------------------------


class _Streams:
    """The streams of base seeds, side by side, made some way ahead of their use.

    A call of the cipher costs as much as kilobytes of its output, and a batch takes only a few of each stream.
    """

    def __init__(self, seeds: list[bytes]) -> None:
        self._ciphers = [Draws(seed) for seed in seeds]
        self._at = np.zeros(len(seeds), np.int64)
        self.made = np.empty((len(seeds), 0), np.uint8)

    def take(self, which: slice, width: int) -> tuple[U8, I64]:
        """The next ``width`` bytes of some streams: what was made of these, and where theirs start, int64.

        They stay there until the next call.
        """
        size = self.made.shape[1]
        if size < max(width, _AHEAD):
            wider = np.empty((len(self._ciphers), max(width, _AHEAD)), np.uint8)
            wider[:, wider.shape[1] - size :] = self.made  # what is left of a stream is at its end
            self._at += wider.shape[1] - size
            self.made, size = wider, wider.shape[1]
        for i in which.start + np.flatnonzero(self._at[which] + width > size):
            row, left = self.made[i], size - int(self._at[i])
            row[:left] = row[size - left :].copy()
            self._ciphers[i].fill(row[left:])
            self._at[i] = 0
        starts = self._at[which].copy()
        self._at[which] += width
        return self.made[which], starts


@dataclass
class _Batch:
    """What the receiver needs for a batch of rows whatever they choose, with a code of ``words`` words.

    Attributes:
        number: of the batch in the session.
        words: of the code; 1 before any column is there.
        columns: the streams that the receiver hashes.
        masks: uint8 (columns, ⌈rows/8⌉), both streams together: what hides the code words.
        pads: uint8 (⌈rows/8⌉,).
    """

    number: int
    rows: int
    words: int
    columns: U8
    masks: U8
    pads: U8


class Receiver:
    """The receiver's end of the extension. One batch after another, in step with the sender.

    Args:
        tag: 16 bytes, from :func:`offer`.
        seeds: both seeds of BASES base transfers.
    """

    def __init__(self, tag: bytes, seeds: list[tuple[bytes, bytes]]) -> None:
        self._tag = np.frombuffer(tag, "<u4").astype(np.uint32)
        self._zeros, self._ones = (_Streams([pair[bit] for pair in seeds]) for bit in range(2))
        self._batches = 0
        self._ready = deque[_Batch]()

    def prepare(self, rows: int, options: int) -> None:
        """Make ready what does not depend on the choices of a batch to come, after those already prepared.

        Args:
            rows: n; the batch must have as many.
            options: as many as it may have. With more the rest is made then, with fewer the larger code is used. A
                batch is prepared for no more than the one before it.

        Raises:
            ValueError: the number of options is out of range, or too many rows or batches.
        """
        if self._ready:  # a column must not be taken for a later batch first: the sender goes batch by batch
            options = min(options, self._ready[-1].words)
        self._ready.append(self._widened(self._begin(rows), options))

    @property
    def prepared(self) -> int:
        """How many batches are ready."""
        return len(self._ready)

    def extend(self, choices: U8, options: int) -> tuple[int, memoryview, U8]:
        """Masked choices for the sender, and the pads of the chosen bits.

        Args:
            choices: uint8 (n,), below ``options``.
            options: s, 2 to 256.

        Returns:
            How many words the code has, s or more; the columns of U, ``Code.of(words).length`` times ⌈n/8⌉ bytes, to
            send; the pads, one bit for each row, uint8 (⌈n/8⌉,), to keep for :func:`open_bits`.

        Raises:
            ValueError: a choice is out of range, another number of rows was prepared for, or too many rows or batches.
        """
        if choices.dtype != np.uint8 or (len(choices) and int(choices.max()) >= options):
            raise ValueError(f"choices are bytes below the number of options, {options}")
        if self._ready and self._ready[0].rows != len(choices):
            raise ValueError(f"{len(choices)} rows choose where {self._ready[0].rows} were prepared for")
        batch = self._widened(self._ready.popleft() if self._ready else self._begin(len(choices)), options)
        kernel.add_words(Code.of(batch.words).columns(choices), batch.masks)
        return batch.words, memoryview(batch.masks.reshape(-1)), batch.pads  # type: ignore[arg-type]

    def _begin(self, rows: int) -> _Batch:
        _check_batch(self._batches, rows)
        self._batches += 1
        nothing = np.empty((0, -(-rows // 8)), np.uint8)
        return _Batch(self._batches - 1, rows, 1, nothing, nothing, nothing)

    def _widened(self, batch: _Batch, options: int) -> _Batch:
        """The batch with a code of at least so many words."""
        code, done = Code.of(options), len(batch.masks)
        if 2**code.dimension <= batch.words:
            return batch
        width, new = batch.masks.shape[1], slice(done, code.length)
        columns, masks = _columns(code, batch.rows), np.empty((code.length, width), np.uint8)
        columns[:done, :width], masks[:done] = batch.columns[:done, :width], batch.masks
        kernel.mask_columns(*self._zeros.take(new, width), *self._ones.take(new, width), columns[new], masks[new])
        pads = np.zeros((1, columns.shape[1]), np.uint8)
        kernel.add_pads(columns, np.zeros((1, kernel.WORDS), np.uint32), self._tag, batch.number, pads)
        return _Batch(batch.number, batch.rows, 2**code.dimension, columns, masks, pads[0, :width])


class Sender:
    """The sender's end of the extension.

    Args:
        tag: 16 bytes, from :func:`accept`.
        choices: bool (BASES,), Δ.
        seeds: the chosen seeds.
    """

    def __init__(self, tag: bytes, choices: B1, seeds: list[bytes]) -> None:
        self._tag = np.frombuffer(tag, "<u4").astype(np.uint32)
        self._choices = choices.astype(np.uint8)
        self._streams = _Streams(seeds)
        self._batches = 0

    def answer(self, masked: bytes | memoryview, bits: U8, rows: int, options: int) -> bytes:
        """The padded bits of a batch.

        Args:
            masked: the receiver's columns.
            bits: uint8 (m, ⌈rows/8⌉), m ≤ ``options``: one bit for each row of each of the first m options, in
                little-endian bit order. A choice beyond m gets nothing.
            rows: n.
            options: words of the receiver's code.

        Returns:
            m times ⌈rows/8⌉ bytes for :func:`open_bits`.

        Raises:
            ValueError: lengths do not agree, or too many rows or batches.
        """
        code, width = Code.of(options), -(-rows // 8)
        if len(masked) != code.length * width or len(bits) > options or bits.shape[1] != width:
            raise ValueError(f"masked columns or bits that do not fit {rows} rows of {options} options")
        _check_batch(self._batches, rows)
        received = np.frombuffer(masked, np.uint8).reshape(code.length, width)
        columns = _columns(code, rows)
        kernel.unmask_columns(*self._streams.take(slice(0, code.length), width), received, self._choices, columns)
        out = np.zeros((len(bits), columns.shape[1]), np.uint8)
        out[:, :width] = bits
        kernel.add_pads(columns, self._offsets(code, len(bits)), self._tag, self._batches, out)
        self._batches += 1
        out = out[:, :width]
        if rows % 8:
            out[:, -1] &= 0xFF >> (8 - rows % 8)  # no row, no bit
        return out.tobytes()

    def _offsets(self, code: Code, options: int) -> U32:
        """c(w) ∧ Δ for every option w: uint32 (options, WORDS)."""
        hidden = np.zeros((options, 32 * kernel.WORDS), np.uint8)
        hidden[:, : code.length] = code.words(options) & self._choices[: code.length]
        return np.packbits(hidden, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def open_bits(answer: bytes | memoryview, pads: U8, choices: U8, count: int) -> U8:
    """The chosen bits, at the receiver.

    Args:
        answer: padded bits of the first ``count`` options, from :meth:`Sender.answer`.
        pads: uint8 (⌈n/8⌉,), from :meth:`Receiver.extend`.
        choices: uint8 (n,), those of the batch.
        count: how many options have bits; a choice beyond gives 0.

    Returns:
        uint8 (⌈n/8⌉,), one bit for each row in little-endian bit order; bits beyond n are zero.

    Raises:
        ValueError: the answer has another length.
    """
    if len(answer) != count * len(pads):
        raise ValueError(f"{len(answer)} bytes are not the bits of {len(choices)} rows and {count} options")
    out = pads.copy()
    kernel.add_chosen(np.frombuffer(answer, np.uint8).reshape(count, len(pads)), choices, out)
    return out


def _columns(code: Code, rows: int) -> U8:
    """A matrix for columns padded to whole blocks, zero where nothing will be written."""
    height = -(-code.length // 32) * 32
    width = -(-rows // (8 * kernel.BLOCK_BYTES)) * kernel.BLOCK_BYTES
    columns = np.empty((height, width), np.uint8)
    columns[code.length :], columns[:, -(-rows // 8) :] = 0, 0
    return columns


def _check_batch(batch: int, rows: int) -> None:
    """Raises ValueError where the number of the batch or of a row would not fit the hash's 32 bits."""
    if batch >= 2**32 or not 0 < rows <= 2**31:
        raise ValueError(f"batch {batch} of {rows} rows does not fit the 32 bits of its numbers")
