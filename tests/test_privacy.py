"""Differential privacy: the noise, the accountant against figures of others, both back ends, and trees under noise."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats
from sklearn.metrics import roc_auc_score

from fedlearn.channel import Channel, simulate
from fedlearn.crypto import lwe, paillier, privacy
from fedlearn.crypto.draws import Draws
from fedlearn.crypto.matrix import Indicator
from fedlearn.crypto.privacy import Change, Noise
from fedlearn.errors import NotInContract, OverBudget, PeerAborted
from fedlearn.jobs import _privacy_spent
from fedlearn.learner import booster
from fedlearn.learner.noisy import reconciled
from fedlearn.protocols import boost, matvec
from fedlearn.protocols.matvec import Shape, Terms
from fedlearn.v1 import matvec_pb2 as pb
from tests.boosting import Case, meet, numbers

BITS = 2048


def draws(number: int) -> Draws:
    return Draws(bytes([number]) * 32)


# --- the noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [0.3, 1.0, 2.5, 9.7])
def test_noise_is_discrete_gaussian(deviation: float) -> None:
    count = 200_000
    values = privacy.discrete_gaussian(deviation, (count,), draws(1))
    top = math.ceil(3 * deviation)
    x = np.arange(-40 * top, 40 * top + 1)
    chance = np.exp(-(x**2) / (2 * deviation**2))
    chance /= chance.sum()
    inside = np.abs(x) <= top
    expected = np.append(chance[inside], chance[~inside].sum()) * count
    seen = [np.sum(values == v) for v in x[inside]]
    assert stats.chisquare([*seen, count - sum(seen)], expected).pvalue > 1e-4


@pytest.mark.parametrize("deviation", [34_567.8, 2.0**33 / 3])
def test_wide_noise_is_gaussian(deviation: float) -> None:
    values = privacy.discrete_gaussian(deviation, (50_000,), draws(2)) / deviation
    assert stats.kstest(values, "norm").pvalue > 1e-3
    parity = privacy.discrete_gaussian(deviation, (50_000,), draws(3)) & 1
    assert stats.chisquare(np.bincount(parity)).pvalue > 1e-3


@pytest.mark.parametrize("deviation", [0.01, 1.0, 1e4, 1e9])
def test_noise_keeps_to_its_bound(deviation: float) -> None:
    noise = Noise(deviation, 1.0, 1.0, 1e-6)
    values = noise.draw((1000, 7), draws(4))
    assert values.shape == (1000, 7)
    assert np.abs(values).max() <= noise.largest
    assert 12 * deviation <= noise.largest <= max(2, 24 * deviation)


# --- the accountant ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho", "delta", "epsilon"),
    [(0.01, 1e-6, 0.6216926550405276), (0.5, 1e-5, 4.728386985768596), (1e-4, 1e-9, 0.07436279316750624)],
)
def test_conversion_against_dp_accounting(rho: float, delta: float, epsilon: float) -> None:
    """Google's dp-accounting 0.6.0: RdpAccountant, one GaussianDpEvent, 200,000 orders from 1.001 to 10^6."""
    assert privacy.epsilon_of(rho, delta) == pytest.approx(epsilon, rel=1e-7)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-6, 1e-3])
def test_conversion_is_sound_and_tight(epsilon: float, delta: float) -> None:
    """Balle and Wang (ICML 2018, theorem 8): the exact δ of a Gaussian mechanism, which zCDP cannot undercut."""
    rho = privacy.rho_of(epsilon, delta)
    shift = math.sqrt(2 * rho)  # sensitivity over deviation
    exact = stats.norm.cdf(shift / 2 - epsilon / shift) - math.exp(epsilon) * stats.norm.cdf(
        -shift / 2 - epsilon / shift
    )
    assert delta / 20 < exact <= delta
    assert privacy.epsilon_of(rho, delta) == pytest.approx(epsilon)


@pytest.mark.parametrize("shift", [1, 4])
def test_one_sum_by_brute_force(shift: int) -> None:
    """The hockey-stick divergence of the discrete Gaussian and its shift, summed over the integers."""
    change = Change(shift**2, 6 * shift**2)
    noise = Noise.of(change, 1.0, 1e-4)
    x = np.arange(-100 * shift * 20, 100 * shift * 20)
    square = noise.deviation**2 / 6  # six equal vectors are one of six times the squared change
    here, there = (np.exp(-((x - s) ** 2) / (2 * square)) for s in (0, shift))
    exact = np.maximum(here / here.sum() - math.e * there / there.sum(), 0).sum()
    assert 1e-6 < exact <= 1e-4


def test_composition_adds_up_to_the_session() -> None:
    noise = Noise.of(Change.of_indicator(features=7, largest_value=127, vectors=40), 2.0, 1e-6)
    assert noise.vector * 40 == pytest.approx(noise.session)
    assert privacy.epsilon_of(noise.session, 1e-6) == pytest.approx(2.0)
    assert noise.vector == pytest.approx(2 * 7 * 127**2 / (2 * noise.deviation**2))
    parts = [noise.cost(before, 8) for before in range(0, 80, 8)]
    assert sum(parts) == pytest.approx(noise.session)  # vectors whose nodes share no row cost nothing more
    assert parts[4] > 0
    assert parts[6:] == [0.0] * 4


def test_one_row_moves_the_sums_no_further() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([3, 5, 2])
    values = rng.integers(-127, 128, (4, 30))
    bins = np.array([rng.integers(0, s, 30) for s in sizes], np.uint8)
    other = bins.copy()
    other[:, 11] = (bins[:, 11] + 1) % sizes
    values[:, 11] = 127
    before, after = (
        np.concatenate([[np.bincount(f, v, s) for v in values] for f, s in zip(b, sizes, strict=True)], axis=1)
        for b in (bins, other)
    )
    moved = ((before - after) ** 2).sum()
    assert moved == Change.of_indicator(features=3, largest_value=127, vectors=4).session


# --- both back ends ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _one_key() -> Any:
    made = paillier.generate(BITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paillier, "generate", lambda _bits: made)
        yield


def product(terms: Terms, matrix: Indicator, values: np.ndarray, asks: int = 1) -> tuple[np.ndarray, Channel, Channel]:
    def querier(channel: Channel) -> tuple[np.ndarray, Channel]:
        channel.session = bytes(16)
        end = matvec.open_querier(channel, Shape.of(matrix), terms)
        return np.concatenate([end.ask(values)() for _ in range(asks)]), channel

    def holder(channel: Channel) -> Channel:
        channel.session = bytes(16)
        end, left = matvec.open_holder(channel, matrix, terms), asks * len(values)
        while left:
            query = channel.receive(pb.MatvecQuery)
            left -= query.count if end.answer(query) else 0
        return channel

    (sums, at_querier), at_holder = simulate(querier, holder)
    return sums, at_querier, at_holder


def small(seed: int = 0) -> tuple[Indicator, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = np.array([4, 3])
    matrix = Indicator(np.array([rng.integers(0, s, 9) for s in sizes], np.uint8), sizes)
    return matrix, rng.integers(-127, 128, (40, 9)).astype(np.int32)


def test_both_back_ends_add_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, values = small()
    noise = Noise(1e4, 1e-3, 1.0, 1e-6)
    drawn: list[np.ndarray] = []

    def draw(self: Noise, shape: tuple[int, ...]) -> np.ndarray:
        drawn.append(privacy.discrete_gaussian(self.deviation, shape, draws(5)))
        return drawn[-1]

    monkeypatch.setattr(Noise, "draw", draw)
    truth = values @ np.array([f == v for f, s in zip(matrix.bins, matrix.sizes, strict=True) for v in range(s)]).T
    for backend in ("lwe", "paillier"):
        drawn.clear()
        sums, querier, holder = product(Terms(backend, BITS, 127, 40, 2.0**-20, noise), matrix, values)
        np.testing.assert_array_equal(sums - truth, np.concatenate(drawn))
        assert querier.ledger.digest() == holder.ledger.digest()
        assert querier.ledger.rho == pytest.approx(40 * 1e-3)
        assert any("noise" in line["reveals"] for line in querier.ledger.lines())


def test_sums_carry_fresh_noise_of_the_promised_deviation() -> None:
    matrix, values = small()
    noise = Noise(1e9, 1e-3, 1.0, 1e-6)
    sums, _, _ = product(Terms("lwe", BITS, 127, 80, 2.0**-20, noise), matrix, values, asks=2)
    truth = values @ np.array([f == v for f, s in zip(matrix.bins, matrix.sizes, strict=True) for v in range(s)]).T
    errors = (sums - np.concatenate([truth, truth])) / 1e9
    assert (errors[:40] != errors[40:]).all()  # asked twice, other noise
    assert abs(errors.std() - 1) < 0.15  # 560 values: five deviations of the estimate
    assert abs(errors.mean()) < 0.22


@pytest.mark.parametrize("backend", ["lwe", "paillier"])
def test_the_plan_has_room_for_the_largest_noise(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, _ = small()
    noise = Noise(3e5, 1e-3, 1.0, 1e-6)
    bound = np.full((2, matrix.rows), noise.largest)
    bound[1] *= -1
    monkeypatch.setattr(Noise, "draw", lambda _self, _shape: bound)
    values = np.full((2, 9), 127, np.int32)
    values[1] *= -1
    sums, _, _ = product(Terms(backend, BITS, 127, 2, 2.0**-20, noise), matrix, values)
    assert (np.abs(sums) >= noise.largest).all()
    assert (np.sign(sums) == [[1], [-1]]).all()


def test_noise_that_leaves_no_room_is_refused() -> None:
    matrix, _ = small()
    for backend in ("lwe", "paillier"):
        with pytest.raises(OverBudget):
            product(Terms(backend, BITS, 127, 2, 2.0**-20, Noise(2.0**60, 1e-3, 1.0, 1e-6)), matrix, np.ones((1, 9)))


def test_an_exhausted_budget_ends_the_session() -> None:
    matrix, values = small()
    noise = Noise(1e4, 0.01, 0.4, 1e-6)

    def querier(channel: Channel) -> None:
        channel.session = bytes(16)
        end = matvec.open_querier(channel, Shape.of(matrix), Terms("lwe", BITS, 127, 40, 2.0**-20, noise))
        with pytest.raises(PeerAborted):
            end.ask(values)()

    def holder(channel: Channel) -> None:
        channel.session = bytes(16)
        end = matvec.open_holder(channel, matrix, Terms("lwe", BITS, 127, 40, 2.0**-20, noise))
        channel.ledger.add_rho(0.3)  # an earlier use of the product in this session
        end.answer(channel.receive(pb.MatvecQuery))

    with pytest.raises(OverBudget, match="privacy"):
        simulate(querier, holder)


def test_without_noise_the_plan_is_what_it_was() -> None:
    sizes: dict[str, Any] = {"rows": 5, "samples": 1000, "largest": 1, "squares": 2000, "largest_value": 127}
    assert lwe.make_plan(**sizes, vectors=3, kl_nats=1e-6) == lwe.make_plan(**sizes, vectors=3, kl_nats=1e-6, room=0)


# --- contract ----------------------------------------------------------------------------------------


@cache
def table(n: int = 4000) -> Case:
    return Case(*numbers(n, 6, seed=4), passive=3, trees=5, depth=3, routing="shared", learning_rate=0.5)


def private(case: Case, epsilon: float, **changes: Any) -> Any:
    contract = case.contract(**changes).model_dump(mode="json")
    return type(case.contract()).model_validate(contract | {"privacy": {"epsilon": epsilon, "delta": 1e-5}})


@pytest.mark.parametrize("wrong", [{"epsilon": 0}, {"epsilon": -1}, {"delta": 0}, {"delta": 0.5}, {"epsilon": 1e9}])
def test_bad_values(wrong: dict[str, float]) -> None:
    contract = table().contract().model_dump(mode="json")
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        type(table().contract()).model_validate(contract | {"privacy": {"epsilon": 1, "delta": 1e-6} | wrong})


def test_bits_routing_is_refused() -> None:
    with pytest.raises(ValidationError, match="routing bits"):
        private(table(), 1.0, routing="bits")


def test_a_use_without_noise_is_refused() -> None:
    with pytest.raises(NotInContract, match="privacy"):
        Terms.of(private(table(), 1.0), largest_value=1, vectors=1)


def test_terms_spend_exactly_the_contract() -> None:
    for changes in ({}, {"folds": 3}, {"growth": "leaf", "max_leaves": 3}, {"min_child_size": 9}, {"depth": 1}):
        contract = private(table(), 1.5, **changes)
        noise = boost.terms(contract).noise
        assert noise is not None
        assert privacy.epsilon_of(noise.session, 1e-5) == pytest.approx(1.5)
        assert noise.cost(0, boost.most_vectors(contract)) <= noise.session
    assert boost.terms(table().contract()).noise is None


# --- trees -------------------------------------------------------------------------------------------


def test_no_row_is_in_more_vectors_than_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(*numbers(400, 5, seed=6), passive=3, trees=3, depth=4, folds=2, routing="shared")
    contract = private(case, 50.0)
    touched, original = np.zeros(400, np.int64), boost._NodeVectors.__getitem__

    def counted(self: Any, block: tuple[slice, slice]) -> np.ndarray:
        found = original(self, block)
        touched[block[1]] += (found != 0).sum(axis=0)
        return found

    monkeypatch.setattr(boost._NodeVectors, "__getitem__", counted)
    case.train(contract)
    assert 0 < touched.max() <= boost._touches(contract) == 2 * 3 * 4 * 2


def test_reconciled_bins_add_up_and_come_closer() -> None:
    rng = np.random.default_rng(7)
    sizes = np.array([4, 7, 2])
    truth = np.concatenate([rng.multinomial(1000, np.ones(s) / s, 300) for s in sizes], axis=1)[:, :, None]
    noisy = truth + privacy.discrete_gaussian(50.0, truth.shape, draws(8))
    found = reconciled(noisy, sizes, np.full((300, 1), 1000))
    for part in np.split(found, np.cumsum(sizes)[:-1], axis=1):
        assert (part.sum(axis=1) == 1000).all()
    square = [((s[:, :4] - truth[:, :4]) ** 2).mean() for s in (found, noisy)]
    assert square[0] == pytest.approx(0.75 * square[1], rel=0.1)  # one of four directions is known


def test_tiny_noise_gives_the_exact_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    case = table()
    monkeypatch.setattr(Noise, "of", lambda change, *_: Noise(0.01, 1e-3, 1.0, 1e-5))
    noisy, _ = case.train(private(case, 1.0))
    np.testing.assert_array_equal(noisy.fit.margins, case.fit_pooled().margins)


def test_quality_falls_with_epsilon() -> None:
    case = Case(*numbers(8000, 6, seed=4), passive=3, trees=5, depth=3, routing="shared", validation=0.4)
    valid = booster.split_of(8000, case.settings).valid

    def auc(fit: booster.Fit) -> float:
        return float(roc_auc_score(case.label[valid], fit.margins[0][valid]))

    exact, alone = auc(case.train()[0].fit), auc(case.fit_alone())
    by_epsilon = {e: auc(case.train(private(case, e))[0].fit) for e in (100.0, 2.0, 0.01)}
    assert exact > alone + 0.05
    assert by_epsilon[100.0] > exact - 0.03
    assert alone + 0.02 < by_epsilon[2.0] <= by_epsilon[100.0] + 0.02
    assert abs(by_epsilon[0.01] - alone) < 0.03


@pytest.mark.parametrize("growth", ["level", "leaf"])
def test_leaves_keep_their_least_size_under_noise(growth: str) -> None:
    case = Case(
        *numbers(600, 5, seed=9, missing=0.2), passive=3, trees=4, depth=4, routing="oblivious", min_child_size=25,
        growth=growth, max_leaves=6, min_child_weight=0.0,
    )  # fmt: skip
    for epsilon in (0.5, 100.0):
        result, kept = case.train(private(case, epsilon))
        forest = result.fit.forest
        assert forest.size[forest.left < 0].min() >= 25
        assert forest.feature[forest.left >= 0].min(initial=0) >= -len(kept.feature)


def test_a_split_that_routing_belies_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise as large as the data without the learner knowing: it asks for bad splits and drops them."""
    case = Case(*numbers(300, 4, seed=3), passive=3, trees=6, depth=4, routing="shared", min_child_size=40)
    monkeypatch.setattr(Noise, "of", lambda change, *_: Noise(3000.0, 1e-3, 1.0, 1e-5))
    blind = boost._open_peer
    monkeypatch.setattr(boost, "_open_peer", lambda *given: replace(blind(*given), noise=1e-3))
    result, kept = case.train(private(case, 1.0))
    forest = result.fit.forest
    assert forest.size[forest.left < 0].min() >= 40
    assert len(kept.feature) == len(forest.passive_splits)


def test_both_ledgers_have_what_was_spent() -> None:
    case, ends = table(), {}
    contract = private(case, 3.0)

    def active(channel: Channel) -> boost.ActiveResult:
        ends["active"] = channel
        return boost.train_active(channel, contract, case.active)

    def passive(channel: Channel) -> boost.PassiveResult:
        ends["passive"] = channel
        return boost.train_passive(channel, contract, case.passive)

    meet(active, passive, contract)
    spent = _privacy_spent(ends["active"], contract)
    assert spent == _privacy_spent(ends["passive"], contract)
    assert 0 < spent["epsilon"] <= 3.0 * (1 + 1e-9)
    assert spent["delta"] == 1e-5
    assert ends["active"].ledger.digest() == ends["passive"].ledger.digest()
