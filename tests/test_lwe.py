"""The hint scheme: exact sums on random shapes, the planner's promises, and the noise as the planner counts it."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from fedlearn.crypto import lwe
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.matrix import LARGEST_ENTRY, Dense, Indicator, Matrix
from fedlearn.errors import OverBudget
from fedlearn.kernels import lattice
from fedlearn.kernels.negacyclic import H, N, inverse, transform
from tests import lwe_verifier as slow

SEED = b"public elements of these tests.."
BUDGET = 2.0**-20
WIDTHS = (4, 5, 6, 7, 8)


def key(name: str) -> Draws:
    """A stream that is the same in every run, so that statistics never flicker."""
    return Draws(name.encode().ljust(32)[:32])


def indicator(rng: np.random.Generator, features: int, samples: int, bins: int) -> Indicator:
    """Random bins, of random numbers up to ``bins`` and at random skew; the last bin may be empty."""
    sizes = rng.integers(2, bins + 1, features)
    drawn = [(rng.random(samples) ** rng.integers(1, 4) * size).astype(np.uint8) for size in sizes]
    return Indicator(np.array(drawn, np.uint8), sizes)


def dense(rng: np.random.Generator, rows: int, samples: int) -> Dense:
    return Dense(rng.integers(-LARGEST_ENTRY, LARGEST_ENTRY + 1, (rows, samples)))


def plain(matrix: Matrix, values: np.ndarray) -> np.ndarray:
    """M·v by NumPy, int64 (K, R)."""
    if isinstance(matrix, Dense):
        return values.astype(np.int64) @ matrix.entries.T
    sums = [
        np.bincount(bins, v, size)  # float64 weights are exact here: sums stay below 2^53
        for v in values
        for bins, size in zip(matrix.bins, matrix.sizes, strict=True)
    ]
    return np.concatenate(sums).astype(np.int64).reshape(len(values), matrix.rows)


def plan_of(matrix: Matrix, largest_value: int, vectors: int, kl_nats: float = BUDGET) -> lwe.Plan:
    return lwe.make_plan(
        rows=matrix.rows,
        samples=matrix.samples,
        largest=matrix.largest,
        squares=matrix.squares,
        largest_value=largest_value,
        vectors=vectors,
        kl_nats=kl_nats,
    )


def budget_of_width(matrix: Matrix, largest_value: int, vectors: int, width: int) -> float:
    """A budget, in nats, that is just enough for ciphertext words of this width."""
    shift = 64 - (matrix.samples * matrix.largest * largest_value).bit_length() - 1
    word = 10 + (0 if width == 8 else (256 ** (2 * (8 - width)) + 2) / 12)
    share = 1 if width == 8 else 1 / 16
    signal = word * (matrix.squares + matrix.rows * 2 * N / 3) + 10 * matrix.rows * 2 * N / 3
    return vectors * signal / (2 * min(2.0 ** (shift - 4.5), 2.0**46) ** 2) * (1 + 1e-9) / share


def run(matrix: Matrix, values: np.ndarray, plan: lwe.Plan) -> np.ndarray:
    public = lwe.expand(SEED, matrix.samples)
    hint, mask = lwe.make_hint(matrix, public)
    ciphertext, secrets = lwe.encrypt(values, public, plan)
    assert len(ciphertext) == len(values) * plan.query_bytes
    answer = lwe.respond(matrix, mask, ciphertext, len(values), plan)
    return lwe.decode(hint, secrets, answer, plan)


# --- every sum is exact -------------------------------------------------------------------------------

SAMPLES = st.one_of(
    st.integers(1, 200),
    st.sampled_from([N - 1, N, N + 1, 2 * N - 1, 2 * N, 2 * N + 1]),
    st.integers(1, 10_000),
)


@settings(max_examples=120, deadline=None)
@example(samples=N, count=20, bits=1, width=6, seed=1, kind="indicator")
@example(samples=2 * N + 1, count=9, bits=16, width=8, seed=2, kind="dense")
@given(
    samples=SAMPLES,
    count=st.integers(1, 20),
    bits=st.integers(1, 16),
    width=st.sampled_from(WIDTHS),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["indicator", "dense"]),
)
def test_sums_are_exact(samples: int, count: int, bits: int, width: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    matrix: Matrix
    if kind == "indicator":
        matrix = indicator(rng, int(rng.integers(1, 6)), samples, int(rng.choice([2, 5, 32, 256])))
    else:
        matrix = dense(rng, int(rng.integers(1, 6)), samples)
    largest = 2**bits - 1
    values = rng.integers(-largest, largest + 1, (count, samples)).astype(np.int32)
    values[rng.integers(count)] = largest * rng.choice([-1, 1])
    fitting = [w for w in WIDTHS if budget_of_width(matrix, largest, count, w) <= lwe.LARGEST_KL]
    if not fitting:
        with pytest.raises(OverBudget):
            plan_of(matrix, largest, count, lwe.LARGEST_KL)
        return
    width = max(width, fitting[0])
    plan = plan_of(matrix, largest, count, budget_of_width(matrix, largest, count, width))
    assert plan.width == width
    np.testing.assert_array_equal(run(matrix, values, plan), plain(matrix, values))


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width(width: int) -> None:
    rng = np.random.default_rng(width)
    matrix = indicator(rng, 1, 5, 2)
    values = rng.integers(-3, 4, (11, 5)).astype(np.int32)
    plan = plan_of(matrix, 3, 11, budget_of_width(matrix, 3, 11, width))
    assert plan.width == width
    assert plan.query_bytes == width * (N + 8)
    np.testing.assert_array_equal(run(matrix, values, plan), plain(matrix, values))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("entry", "largest"), [(1, 1), (1, 2**16 - 1), (1, 2**20), (LARGEST_ENTRY, 1), (LARGEST_ENTRY, 2**12)]
)
def test_the_largest_sums(entry: int, largest: int, sign: int) -> None:
    """The plan's bound is reached, with either sign, and one Δ beyond it is noticed."""
    samples = 5000
    matrix = (
        Indicator(np.ones((1, samples), np.uint8), np.array([2])) if entry == 1 else Dense(np.full((1, samples), entry))
    )
    plan = plan_of(matrix, largest, 1)
    assert plan.largest_sum == samples * entry * largest
    public = lwe.expand(SEED, samples)
    hint, mask = lwe.make_hint(matrix, public)
    ciphertext, secrets = lwe.encrypt(np.full((1, samples), sign * largest, np.int32), public, plan)
    answer = lwe.respond(matrix, mask, ciphertext, 1, plan)
    assert lwe.decode(hint, secrets, answer, plan)[0, -1] == sign * plan.largest_sum
    beyond = np.frombuffer(answer, "<i8") + sign * 2**plan.shift
    with pytest.raises(ValueError, match="no honest answer"):
        lwe.decode(hint, secrets, beyond.tobytes(), plan)


def test_generous_budgets_do_not_spoil_sums() -> None:
    """A contract may allow any leakage; the signal must still stay below the flood or sums would be wrong."""
    matrix = indicator(np.random.default_rng(3), 2, 3000, 4)
    values = np.random.default_rng(4).integers(-9, 10, (4, 3000)).astype(np.int32)
    for kl_nats in (1.0, 1e6, math.inf):
        plan = plan_of(matrix, 9, 4, kl_nats)
        assert plan.kl_total <= 2.0**-6
        np.testing.assert_array_equal(run(matrix, values, plan), plain(matrix, values))


# --- the hint against its definition ------------------------------------------------------------------


def row_words(elements: np.ndarray, samples: int, column: int) -> np.ndarray:
    """Column ``column`` of A without the mask block: coefficients of X^column·a_b, uint64 (samples,)."""
    shifted = np.concatenate([np.uint64(0) - elements[1:, N - column :], elements[1:, : N - column]], axis=1)
    return shifted.ravel()[:samples]


@pytest.mark.parametrize("samples", [64 * N, 65 * N + 1])
@pytest.mark.parametrize("kind", ["indicator", "dense"])
def test_the_hint_is_exact_over_many_blocks(samples: int, kind: str) -> None:
    """More blocks than are summed before rounding; masks and errors are taken off, which leaves M·A."""
    rng = np.random.default_rng(samples)
    if kind == "indicator":
        matrix: Matrix = Indicator((rng.random((1, samples)) < 0.01).astype(np.uint8), np.array([3]))
        rows = np.stack([matrix.bins[0] == v for v in range(3)]).astype(np.uint64)
    else:
        matrix = Dense(LARGEST_ENTRY * rng.choice([-1, 1], (2, samples)))  # as large as entries may be
        rows = matrix.entries.view(np.uint64)
    public = lwe.expand(SEED, samples)
    hint, mask = lwe.make_hint(matrix, public, key("hint"))
    nothing, same_mask = lwe.make_hint(Dense(np.zeros((matrix.rows, N), np.int64)), public[:2], key("hint"))
    assert np.array_equal(mask, same_mask)
    elements = np.array(slow.public_elements(SEED, samples), np.uint64)
    for column in (0, 1, H, N - 1, *rng.integers(0, N, 20)):
        exact = (rows * row_words(elements, samples, int(column))).sum(axis=1)
        np.testing.assert_array_equal(hint[:, column] - nothing[:, column], exact)


def test_dense_sums_are_rounded_far_from_a_tie() -> None:
    """What is accumulated before rounding, with the largest entries, keeps away from half-integers."""
    blocks = lattice._FLUSH_DENSE
    public = lwe.expand(SEED, blocks * N)
    worst = 0.0
    for row in (np.full(N, 1.0), np.random.default_rng(5).choice([-1.0, 1.0], N)):
        sums, (re, im), work = np.zeros((4, H)), np.empty((2, H)), np.empty((4, H))
        transform(LARGEST_ENTRY * row[:H], LARGEST_ENTRY * row[H:], re, im)
        for b in range(blocks):
            lattice._correlate(public[1 + b], re, im, sums)
        for limb in (0, 2):
            inverse(sums[limb], sums[limb + 1], work[limb], work[limb + 1])
        worst = max(worst, float(np.abs(work - np.rint(work)).max()))
    assert worst < 0.25


# --- planner ------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 100_000),
    samples=st.integers(1, 10**8),
    features=st.integers(1, 1000),
    largest=st.sampled_from([1, 255]),
    bits=st.integers(0, 31),
    vectors=st.integers(1, 10**6),
    budget=st.floats(-60, 10),
)
def test_plans_against_the_verifier(
    rows: int, samples: int, features: int, largest: int, bits: int, vectors: int, budget: float
) -> None:
    """Same parameters or same refusal as the independent formulas; and what they promise holds."""
    given_ = {
        "rows": rows,
        "samples": samples,
        "largest": largest,
        "squares": features * samples * largest**2,
        "largest_value": 2**bits,
        "vectors": vectors,
        "kl_nats": 2.0**budget,
    }
    due = slow.plan(**given_)
    if due is None:
        with pytest.raises(OverBudget):
            lwe.make_plan(**given_)
        return
    plan = lwe.make_plan(**given_)
    assert (plan.shift, plan.width) == (due.shift, due.width)
    assert (plan.flood, plan.kl_vector) == pytest.approx((due.flood, due.kl_vector), rel=1e-9)
    assert plan.kl_total <= 2.0**budget
    assert plan.largest_sum + 0.5 <= 2.0 ** (63 - plan.shift)  # no wrap, with noise of up to Δ/2
    signal = math.sqrt(2 * plan.kl_vector) * plan.flood  # of any single row at most
    assert 2.0 ** (plan.shift - 1) > 11 * math.hypot(plan.flood, signal)  # decoding error: 11 sigma
    assert 2.0**10 <= plan.flood <= 2.0**47  # where the Gaussian is drawn well


def test_refusals_say_the_figure() -> None:
    sizes = {"rows": 100, "samples": 10**9, "largest": 1, "squares": 10**9}
    with pytest.raises(OverBudget, match=r"1048576000000000 need 51 of the 64 bits.* 1000000000 rows .* 1048576"):
        lwe.make_plan(**sizes, largest_value=2**20, vectors=1, kl_nats=1.0)
    with pytest.raises(OverBudget, match=r"777 encrypted vectors over 1000000000 rows .* 0.00011 nats.* 9.5e-07"):
        lwe.make_plan(**sizes, largest_value=2, vectors=777, kl_nats=BUDGET)


@pytest.mark.parametrize("entry", [256, -256, 2**63 - 1, -(2**63)])
def test_large_entries_are_refused(entry: int) -> None:
    with pytest.raises(OverBudget, match="255"):
        Dense(np.array([[0, entry]]))


def test_bins_out_of_range_are_refused() -> None:
    """The kernels index with bins unchecked."""
    bins = np.array([[0, 1], [0, 2]], np.uint8)
    assert Indicator(bins, np.array([2, 3])).rows == 5
    for sizes in ([2, 2], [1, 3], [2], [2, 3, 4]):
        with pytest.raises(ValueError, match="bin"):
            Indicator(bins, np.array(sizes))
    with pytest.raises(ValueError, match="uint8"):
        Indicator(bins.astype(np.int64), np.array([2, 3]))  # type: ignore[arg-type]


# --- noise as it is, against what the plan counts -----------------------------------------------------


def residues(
    matrix: Matrix, values: np.ndarray, plan: lwe.Plan, respond: Callable[..., bytes] = lwe.respond
) -> np.ndarray:
    """h - C·s - Δ·M·v, int64 (K, R)."""
    public = lwe.expand(SEED, matrix.samples)
    hint, mask = lwe.make_hint(matrix, public, key("hint"))
    ciphertext, secrets = lwe.encrypt(values, public, plan, key("query"))
    answer = np.frombuffer(respond(matrix, mask, ciphertext, len(values), plan, key("flood")), "<u8")
    known = secrets.astype(np.int64).view(np.uint64) @ hint.T
    meant = plain(matrix, values).view(np.uint64) << np.uint64(plan.shift)
    return (answer.reshape(known.shape) - known - meant).view(np.int64)


def without_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draws, "gaussian", lambda _self, _deviation, shape: np.zeros(shape, np.int64))


def forced(plan: lwe.Plan, matrix: Matrix, width: int) -> tuple[lwe.Plan, float]:
    """The plan at another width, and the sum over all rows of signal² that it counts for one vector."""
    kl_vector = lwe._kl_of_vector(matrix.rows, matrix.squares, plan.flood, width)
    return replace(plan, width=width, kl_vector=kl_vector), kl_vector * 2 * plan.flood**2


def test_noise_is_the_flood() -> None:
    rng = np.random.default_rng(6)
    matrix = indicator(rng, 5, 2000, 128)
    values = rng.integers(-100, 101, (20, 2000)).astype(np.int32)
    plan = plan_of(matrix, 100, 20)
    scaled = residues(matrix, values, plan).ravel() / plan.flood
    assert abs(scaled.mean()) < 5 / math.sqrt(scaled.size)
    assert abs(scaled.std() - 1) < 5 / math.sqrt(2 * scaled.size)
    assert stats.kstest(scaled, "norm").pvalue > 1e-3


@pytest.mark.parametrize("width", WIDTHS)
def test_signal_is_what_the_plan_counts(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For indicator rows the count is not only a bound, it is met."""
    without_flood(monkeypatch)
    rng = np.random.default_rng(7)
    matrix = indicator(rng, 3, 6000, 64)
    plan, counted = forced(plan_of(matrix, 3, 1, 2.0**-6), matrix, width)
    signal = residues(matrix, rng.integers(-3, 4, (20, 6000)).astype(np.int32), plan).astype(np.float64)
    assert 0.9 * counted < (signal**2).sum(axis=1).mean() < 1.1 * counted


@pytest.mark.parametrize("width", [6, 7, 8])
def test_dropped_bits_have_no_mean(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bin of many samples adds up its words' rounding: a mean of 1/2 would be five times the signal at width 7."""
    without_flood(monkeypatch)
    samples = 300_000
    matrix = Indicator(np.zeros((1, samples), np.uint8), np.array([1]))
    plan, counted = forced(plan_of(matrix, 1, 1), matrix, width)
    signal = residues(matrix, np.zeros((16, samples), np.int32), plan).astype(np.float64)
    assert abs(signal.mean()) < 4 * math.sqrt(counted / 16)
    assert (signal**2).mean() < 2.5 * counted  # of 16 values; seven times as much with that mean


def test_signal_of_dense_rows_is_within_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    without_flood(monkeypatch)
    rng = np.random.default_rng(8)
    matrix = Dense(LARGEST_ENTRY * rng.choice([-1, 1], (40, 5000)))  # rows that meet the bound on entries
    for width in (7, 8):
        plan, counted = forced(plan_of(matrix, 3, 1), matrix, width)
        signal = residues(matrix, rng.integers(-3, 4, (20, 5000)).astype(np.int32), plan).astype(np.float64)
        assert 0.85 * counted < (signal**2).sum(axis=1).mean() < 1.15 * counted


# --- secrets ------------------------------------------------------------------------------------------


def test_nothing_is_used_twice() -> None:
    """Same vector, same matrix: other secrets, other words, other masks, other floods."""
    matrix = indicator(np.random.default_rng(9), 2, 3000, 3)
    plan = plan_of(matrix, 1, 4)
    public = lwe.expand(SEED, 3000)
    values = np.ones((2, 3000), np.int32)
    queries = [lwe.encrypt(values, public, plan) for _ in range(2)]
    secrets = np.concatenate([s for _, s in queries])
    hints = [lwe.make_hint(matrix, public) for _ in range(2)]
    masks = np.concatenate([mask for _, mask in hints])
    for ternary in (secrets, masks):
        for i in range(len(ternary)):
            for j in range(i):
                assert abs((ternary[i] == ternary[j]).mean() - 1 / 3) < 0.05
    shared = [np.frombuffer(c, np.uint8).reshape(2, -1) for c, _ in queries]
    ciphertexts = np.concatenate(shared)
    for i in range(4):
        for j in range(i):
            assert (ciphertexts[i] == ciphertexts[j]).mean() < 0.01
    assert (hints[0][0] == hints[1][0]).mean() < 0.001
    answers = [np.frombuffer(lwe.respond(matrix, hints[0][1], queries[0][0], 2, plan), np.uint64) for _ in range(2)]
    assert not (answers[0] == answers[1]).any()


def product_words(public: np.ndarray, secrets: np.ndarray) -> np.ndarray:
    """A·s without errors, uint64 (K, B·N): 20 ones among 40 bits are the error 0."""
    transforms = np.empty((len(secrets), 2, H))
    lattice.transform_small(secrets, transforms)
    shape = (len(secrets), len(public) * N)
    low, high = np.full(shape, 0xFFFFF, np.uint32), np.zeros(shape, np.uint8)
    out = np.empty((len(secrets), 8 * shape[1]), np.uint8)
    lattice.encrypt(public, transforms, low, high, np.zeros((len(secrets), 0), np.int32), 0, -(2**40), 8, out)
    return out.view(np.uint64)


def assert_independent_errors(errors: np.ndarray) -> None:
    """Rows of centred binomial values, of which no two, and no two blocks of one, are related."""
    assert np.abs(errors).max() <= 20
    assert abs(errors.var() - 10) < 0.2
    pieces = errors.reshape(-1, N).astype(np.float64)
    correlations = np.corrcoef(pieces) - np.eye(len(pieces))
    assert np.abs(correlations).max() < 7 / math.sqrt(N)


def test_errors_of_queries_are_fresh() -> None:
    """In every word of every vector and query, also where several threads draw them."""
    samples = 9 * N
    plan = replace(plan_of(Dense(np.zeros((1, samples), np.int64)), 1, 1), width=8)
    public = lwe.expand(SEED, samples)
    errors = []
    for _ in range(2):
        ciphertext, secrets = lwe.encrypt(np.zeros((16, samples), np.int32), public, plan)
        words = np.frombuffer(ciphertext, "<u8").reshape(16, -1)
        errors.append((words - product_words(public, secrets)).view(np.int64))
    assert_independent_errors(np.concatenate(errors))


def test_errors_of_hints_are_fresh() -> None:
    matrix = Dense(np.zeros((24, 1), np.int64))
    public = lwe.expand(SEED, 1)
    errors = []
    for _ in range(2):
        hint, mask = lwe.make_hint(matrix, public)
        transforms, product = np.empty((24, 2, H)), np.zeros((24, N), np.uint64)
        lattice.transform_small(mask, transforms)
        lattice.hint_dense(public, matrix.entries, transforms, product)
        errors.append((hint - product).view(np.int64))
    assert_independent_errors(np.concatenate(errors))


@pytest.mark.parametrize("width", WIDTHS)
def test_ciphertexts_look_uniform(width: int) -> None:
    """Encryptions of zeros and of large values alike, byte by byte: in every plane of every width."""
    matrix = Dense(np.zeros((1, 9000), np.int64))
    plan = replace(plan_of(matrix, 1000, 1), width=width)
    public = lwe.expand(SEED, 9000)
    for value in (0, 1000):
        values = np.full((8, 9000), value, np.int32)
        ciphertext, _ = lwe.encrypt(values, public, plan, key(f"uniform {value}"))
        stretches = np.frombuffer(ciphertext, np.uint8).reshape(8, width, -1)  # each within one plane
        for i in range(width):
            assert stats.chisquare(np.bincount(stretches[:, i].ravel(), minlength=256)).pvalue > 1e-4


def test_hints_look_uniform() -> None:
    """Also where the matrix is all zeros: the mask alone hides it."""
    public = lwe.expand(SEED, 10)
    hint, _ = lwe.make_hint(Dense(np.zeros((64, 10), np.int64)), public, key("hint"))
    by_byte = hint.view(np.uint8).reshape(-1, 8)
    for place in range(8):
        assert stats.chisquare(np.bincount(by_byte[:, place], minlength=256)).pvalue > 1e-4


def test_public_elements_are_shake_128_of_seed_and_number() -> None:
    """And a longer run has those of a shorter one."""
    words = np.array(slow.public_elements(SEED, 2 * N + 1), np.uint64)
    transforms = np.empty((4, 2, 2, H))
    lattice.transform_public(words, transforms)
    # Not bit for bit: the compiler may fuse other operations for another kind of array.
    np.testing.assert_allclose(lwe.expand(SEED, 2 * N + 1), transforms, rtol=0, atol=1e-2)
    np.testing.assert_allclose(lwe.expand(SEED, 1), transforms[:2], rtol=0, atol=1e-2)
    assert np.abs(lwe.expand(SEED[::-1], 1) - transforms[:2]).mean() > 2.0**31
