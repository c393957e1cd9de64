"""The batched OPRF and cuckoo hashing: parts against hashlib, OpenSSL and SciPy; failures at weak sizes."""

import functools
import hashlib
import math

import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.special import gammaln
from scipy.stats import binom

from fedlearn.crypto import cuckoo, oprf, ot
from fedlearn.kernels import psi as kernel

TAG = bytes(range(100, 116))


# --- digests -----------------------------------------------------------------------------------------


def expected_digest(one: bytes, tag: bytes = TAG) -> bytes:
    message = len(one).to_bytes(4, "little") + one.ljust(kernel.SHORT, b"\0")
    return hashlib.blake2s(message, salt=tag[:8], person=tag[8:]).digest()


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.binary(max_size=kernel.SHORT), max_size=40))
def test_digests_are_blake2s(ids: list[bytes]) -> None:
    found = oprf.digests(pa.array(ids, pa.binary()), TAG)
    assert [row.tobytes() for row in found] == [expected_digest(one) for one in ids]


def test_digests_of_slices_and_long_ids() -> None:
    ids = [b"a" * k for k in range(200)]
    found = oprf.digests(pa.array(ids, pa.binary())[5:], TAG)
    assert len(np.unique(found, axis=0)) == 195
    assert found[0].tobytes() == expected_digest(ids[5])
    marked = b"\xff" * 28 + hashlib.blake2s(ids[100]).digest()
    assert found[95].tobytes() == expected_digest(marked)


# --- cuckoo hashing ----------------------------------------------------------------------------------


def places(count: int, segment: int, seed: int) -> np.ndarray:
    digests = np.random.default_rng(seed).integers(0, 2**32, (count, 8), np.uint32)
    return kernel.places(digests, segment)


def test_one_bin_in_each_third_evenly() -> None:
    found = places(90_000, 30, 1)
    assert (found // 30 == [0, 1, 2]).all()
    counts = np.bincount(found.ravel(), minlength=90)
    assert abs(counts - 3000).max() < 6 * 3000**0.5


@pytest.mark.parametrize("seed", range(150))
def test_it_fails_exactly_when_no_placement_exists(seed: int) -> None:
    """Around the threshold of 0.918 items per bin, where either outcome is common; SciPy finds largest matchings."""
    count = 20 + seed % 7 * 40
    segment = math.ceil(count / 3 * (1.0 + seed % 5 * 0.06))
    bins, table = places(count, segment, seed), np.empty(3 * segment, np.int32)
    stuck = kernel.insert(bins, table)
    graph = csr_array((np.ones(3 * count), bins.ravel(), np.arange(0, 3 * count + 1, 3)), (count, 3 * segment))
    matched = (maximum_bipartite_matching(graph, perm_type="column") >= 0).sum()
    assert (stuck < 0) == (matched == count)
    if stuck < 0:
        full = np.flatnonzero(table >= 0)
        assert sorted(table[full]) == list(range(count))
        assert all(at in bins[table[at]] for at in full)
    else:
        first = csr_array(graph[: stuck + 1])
        assert (maximum_bipartite_matching(first, perm_type="column") >= 0).sum() == stuck


@pytest.mark.parametrize(
    ("count", "segment", "trials"), [(4, 2, 40_000), (5, 3, 100_000), (8, 5, 100_000), (12, 6, 40_000), (60, 26, 4000)]
)
def test_failures_are_no_more_than_the_bound(count: int, segment: int, trials: int) -> None:
    table = np.empty(3 * segment, np.int32)
    drawn = places(count * trials, segment, count).reshape(trials, count, 3)
    failed = sum(kernel.insert(bins, table) >= 0 for bins in drawn)
    bound = 2.0 ** cuckoo.failure_log2(count, segment)
    assert failed > 0
    assert failed / trials < bound * (1 + 5 / failed**0.5)
    if count == 4:  # all four have the same three bins: 2^-9 is exact
        assert abs(failed - trials / 512) < 5 * (trials / 512) ** 0.5


@pytest.mark.parametrize("count", [4, 100, 513, 3000])
def test_the_bound_is_the_sum_in_the_docstring(count: int) -> None:
    segment = cuckoo.segment_for(count)
    t = np.arange(4, count + 1)
    bins = 3 * segment

    def choose(n: int, k: np.ndarray) -> np.ndarray:
        return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)

    terms = choose(count, t) + choose(bins, t - 1) + 3 * gammaln(t + 1)
    x = np.linspace(1, 5, 400)[:, None]
    best = ((t - 1) * np.log(np.expm1(x) - x) - 3 * t * np.log(x * segment)).min(axis=0)
    due = np.log2(np.exp(terms + best - (terms + best).max()).sum()) + (terms + best).max() / math.log(2)
    assert due - 0.01 <= cuckoo.failure_log2(count, segment) < due + 0.5
    assert cuckoo.failure_log2(count, segment) <= -40


def test_few_items_have_enough_bins() -> None:
    assert max(cuckoo.failure_log2(count, cuckoo.segment_for(count)) for count in range(1, 300)) <= -40


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000, 2**14, 2**17, 10**6])
def test_bins_are_enough_and_not_many(count: int) -> None:
    segment = cuckoo.segment_for(count)
    assert cuckoo.failure_log2(count, segment) <= -40
    assert 3 * segment < max(count * 12 + 4, 400)
    assert count < 4096 or 3 * segment < 1.4 * count + 4
    table = np.empty(3 * segment, np.int32)
    assert kernel.insert(places(count, segment, count), table) < 0


# --- the code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [3, 3000, 3 * 10**6, 3 * 10**7])
def test_code_length_is_the_least_that_is_enough(pairs: int) -> None:
    bits = oprf.code_bits(pairs)
    assert math.log2(pairs) + binom.logcdf(127, bits, 0.5) / math.log(2) <= -40 + 1e-6
    assert math.log2(pairs) + binom.logcdf(127, bits - 8, 0.5) / math.log(2) > -40
    assert bits % 8 == 0


def test_no_items_have_no_codes() -> None:
    assert oprf.codes(np.empty((0, 8), np.uint32), bytes(16)).shape == (4, 0, 4)


def test_code_words_are_aes_and_distances_those_of_coins() -> None:
    items = np.random.default_rng(1).integers(0, 2**32, (20_000, 4), np.uint32)
    words = oprf.codes(items, TAG)
    for k in range(4):
        key = hashlib.sha256(b"fedlearn/1 oprf code" + TAG + bytes([k])).digest()[:16]
        cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 (the reference)
        assert cipher.update(items[7].tobytes()) == words[k, 7].tobytes()
    rows = np.concatenate(list(words), axis=1)
    for bits in (448, 192):  # at the weak length, words are closer than 80 bits about as often as coins would say
        apart = np.bitwise_count(rows[::2, : bits // 32] ^ rows[1::2, : bits // 32]).sum(axis=1)
        due = 10_000 * binom.cdf(79, bits, 0.5)
        assert abs((apart < 80).sum() - due) < 6 * due**0.5 + 1
        assert abs(apart.mean() - bits / 2) < 0.6


# --- the function ------------------------------------------------------------------------------------


@functools.cache
def bases(count: int) -> tuple[bytes, list[tuple[bytes, bytes]], np.ndarray, list[bytes]]:
    choice, blinded = ot.choose(b"test", count)
    raised, tag, pairs = ot.offer(b"test", blinded)
    return tag, pairs, choice.bits, ot.accept(b"test", choice, blinded, raised)[1]


def evaluated(plan: oprf.Plan, own: np.ndarray, theirs: np.ndarray, piece: int = 512):
    """Both ends on digests uint32 (n, 8): the receiver's placement and values, the sender, and what it sends."""
    tag, pairs, delta, seeds = bases(plan.bits)
    receiver, sender = oprf.Receiver(tag, pairs, plan), oprf.Sender(tag, delta, seeds, plan)
    placed = oprf.place(own, plan)
    assert placed is not None
    values = []
    for first in range(0, plan.bins, piece):
        masked, part = receiver.ask(placed.piece(first, min(first + piece, plan.bins)))
        sender.take(masked)
        values.append(part)
    sent = np.frombuffer(sender.values(theirs), np.uint8).reshape(len(theirs), -1)
    return placed, np.concatenate(values), sender, sent


@pytest.mark.parametrize("piece", [512, 1024, 1 << 17])
def test_values_agree_on_shared_items_and_on_no_others(piece: int) -> None:
    digests = oprf.draw_items(1500)
    own, theirs = digests[:1000], digests[600:]
    plan = oprf.Plan.of(1000, 900)
    placed, values, _, sent = evaluated(plan, own, theirs, piece)
    found = oprf.Index(values, placed.table, plan.segment).match(sent)
    assert (found[400:] == -1).all()
    assert placed.table[found[:400]].tolist() == list(range(600, 1000))


def test_the_function_by_its_definition() -> None:
    """F_b(y) is BLAKE2s of q_b ⊕ (C(y) ∧ Δ), salted with the tag and b."""
    theirs, plan = oprf.draw_items(40), oprf.Plan.of(50, 40)
    placed, values, sender, sent = evaluated(plan, oprf.draw_items(50), theirs)
    bins = kernel.places(theirs, plan.segment)
    words = np.concatenate(list(oprf.codes(theirs[:, :4], sender.tag)), axis=1)
    size = plan.value_bytes
    for j, k in ((0, 0), (17, 1), (39, 2)):
        row = sender._rows[bins[j, k]] ^ (words[j] & sender._delta)
        salt = sender.tag[:12] + int(bins[j, k]).to_bytes(4, "little")
        digest = hashlib.blake2s(row.tobytes(), salt=salt[:8], person=salt[8:]).digest()
        assert sent[j, k * size : (k + 1) * size].tobytes() == digest[:size]
    at = int(np.flatnonzero(placed.table >= 0)[0])
    own = np.concatenate(list(oprf.codes(placed.items[placed.table[at : at + 1], :4], sender.tag)), axis=1)[0]
    row = sender._rows[at] ^ (own & sender._delta)  # = t_b, which only the receiver has
    salt = sender.tag[:12] + at.to_bytes(4, "little")
    digest = hashlib.blake2s(row.tobytes(), salt=salt[:8], person=salt[8:]).digest()
    assert values[at].tobytes()[:size] == digest[:size]


def test_masked_rows_look_uniform_whatever_the_items() -> None:
    plan = oprf.Plan.of(1000, 1000)
    tag, pairs, _, _ = bases(plan.bits)
    masked, _ = oprf.Receiver(tag, pairs, plan).ask(np.zeros((1024, 8), np.uint32))
    bits = np.unpackbits(np.frombuffer(masked, np.uint8)).reshape(1024, plan.bits)
    assert abs(bits.sum(axis=0) - 512.0).max() < 6 * 16
    assert abs(bits.sum(axis=1) - plan.bits / 2).max() < 6 * plan.bits**0.5 / 2


def test_values_that_are_too_short_coincide_as_often_as_they_must() -> None:
    """With 16-bit values and two disjoint lists, each of n_1 n_2 pairs coincides with probability 2^-16."""
    full = oprf.Plan.of(1500, 1500)
    plan = oprf.Plan(1500, 1500, full.segment, full.bits, 2)
    placed, values, _, sent = evaluated(plan, oprf.draw_items(1500), oprf.draw_items(1500))
    found = oprf.Index(values, placed.table, plan.segment).match(sent)
    due = 1500 * 1500 / 2**16
    assert abs((found != -1).sum() - due) < 6 * due**0.5
    assert full.value_bytes * 8 >= 40 + math.log2(1500**2)


def test_rows_that_fit_no_bin_one_bin_or_two() -> None:
    values = np.random.default_rng(3).integers(0, 2**32, (6, kernel.VALUE_WORDS), np.uint32)  # two bins in each third
    index = oprf.Index(values, np.array([5, -1, 7, 8, -1, 9], np.int32), 2)
    parts = [value.tobytes() for value in values]
    rows = [
        (parts[0], parts[1], parts[4]),
        (parts[1], parts[0], parts[2]),  # an empty bin, and values in the wrong thirds
        (parts[1], parts[2], parts[4]),
        (parts[0], parts[3], parts[4]),
    ]
    received = np.frombuffer(b"".join(b"".join(row) for row in rows), np.uint8).reshape(4, -1)
    assert index.match(received).tolist() == [0, -1, 2, -2]


def test_rows_beyond_the_plan_are_refused() -> None:
    plan = oprf.Plan.of(10, 10)
    tag, _, delta, seeds = bases(plan.bits)
    for size in (0, 1, plan.row_bytes + 1, (plan.bins + 1) * plan.row_bytes):
        with pytest.raises(ValueError, match="are not rows"):
            oprf.Sender(tag, delta, seeds, plan).take(bytes(size))
