"""Sealed regression against statsmodels; its products against whole numbers; bad peers; what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from fedlearn.channel import Limits
from fedlearn.crypto import bfv
from fedlearn.errors import BeyondContract, FedlearnError, Malformed, OverBudget, WrongLength
from fedlearn.learner.anderson import Block, Mixture
from fedlearn.protocols import sealed
from fedlearn.v1 import sealed_pb2 as pb
from tests import regression
from tests.boosting import spoiling
from tests.parties import Pair
from tests.regression import contract, data
from tests.test_glm_end_to_end import CARD, glm_pair, keyring, read_csv, simulated

__all__ = ["keyring"]


meet = partial(regression.meet, protocol=sealed)


def table(n: int, active: int, passive: int, slope: float, intercept: float) -> tuple[np.ndarray, np.ndarray]:
    """Columns that correlate across the sides, and labels."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=(active + passive, n))
    x[active] += x[0]
    x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    eta = intercept + rng.normal(size=len(x)) * slope @ x
    return x, (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float)


# --- the fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "intercept", "extra"), [(4000, -1.0, 0), (8000, -3.0, 700)])
def test_the_sealed_fit_is_that_of_pooled_rows(rows: int, intercept: float, extra: int) -> None:
    x, y = table(rows, 3, 3, 0.5, intercept)
    agreed = contract(3, 3, disclosure_none=True, max_steps=20, mode="one-sided" if extra else "mutual")
    weight = np.random.default_rng(5).uniform(0.5, 2, len(y))
    (active, ledger), ((passive, beyond), same) = meet(agreed, *data(x, y, 3, weight, extra=extra))
    pooled = sm.GLM(y, sm.add_constant(x.T), family=sm.families.Binomial(), var_weights=weight).fit()
    found = np.concatenate([active.coefficients, passive.coefficients])
    errors = np.abs((found - pooled.params) / pooled.bse)
    assert errors[1:].max() < 0.1
    assert errors[0] < 0.3  # the polynomial's error is nearly the same for all rows
    score, due = sm.add_constant(x.T) @ found, sm.add_constant(x.T) @ pooled.params
    assert abs(roc_auc_score(y, score) - roc_auc_score(y, due)) < 2e-4
    calibrated = sm.GLM(y, sm.add_constant(score), family=sm.families.Binomial(), var_weights=weight).fit()
    np.testing.assert_allclose(calibrated.params, [0, 1], atol=0.01)
    assert active.converged
    assert passive.converged
    assert passive.steps == len(active.changes) < 16
    assert passive.changes == ([] if extra else active.changes)
    assert passive.errors is None
    assert active.model_id == passive.model_id
    assert beyond == 0
    assert ledger.digest() == same.digest()


def test_a_penalty_and_an_offset() -> None:
    x, y = table(4000, 2, 2, 0.5, -1.0)
    offset = np.random.default_rng(6).normal(size=len(y)) * 0.5
    agreed = contract(2, 2, disclosure_none=True, max_steps=20, l2=0.1)
    (active, _), ((passive, _), _) = meet(agreed, *data(x, y, 2, offset=offset))
    model = sm.GLM(y, sm.add_constant(x.T), family=sm.families.Binomial(), offset=offset)
    due = model.fit_regularized(alpha=np.array([0, *[0.1] * 4]), L1_wt=0.0, maxiter=500).params
    np.testing.assert_allclose(np.concatenate([active.coefficients, passive.coefficients]), due, atol=2e-3)


def test_what_stops_early_says_so_on_both_sides() -> None:
    x, y = table(3000, 2, 2, 1.0, -1.0)
    (active, _), ((passive, _), _) = meet(contract(2, 2, disclosure_none=True, max_steps=2), *data(x, y, 2))
    assert not active.converged
    assert not passive.converged
    assert passive.steps == 2


def test_more_columns_than_the_channel_takes_in_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """If both sides sent all products before they read any, neither would ever read."""
    monkeypatch.setattr(sealed, "_AHEAD", 1)
    small = Limits(step=20, frame=1 << 13, message=1 << 22)
    x, y = table(200, 16, 16, 0.5, 0.0)
    agreed = contract(16, 16, disclosure_none=True, max_steps=1)
    (active, _), ((passive, _), _) = meet(agreed, *data(x, y, 16), limits=small)
    assert len(active.coefficients) == 17
    assert len(passive.coefficients) == 16


def test_the_series_is_near_the_sigmoid() -> None:
    z, v = np.linspace(-20, 20, 201), np.linspace(-5, 5, 101)
    terms, basis = sealed.series(z, 10, 5.0), sealed.chebyshev(v, 10, 5.0)
    found = terms[0][:, None] + terms[1:].T @ basis
    assert np.abs(found - 1 / (1 + np.exp(-(z[:, None] + v)))).max() < 2e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_mixing_solves_a_quadratic_as_newton_does(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(2 * size, 3 * size))
    whole, aim = root @ root.T / size + np.eye(2 * size), rng.normal(size=2 * size)
    parts = [slice(0, size), slice(size, None)]
    sides = [Block(whole[p, p], np.zeros(size)) for p in parts]
    mixtures = [Mixture(), Mixture()]
    for _ in range(2 * size + 2):
        gradient = whole @ (aim - np.concatenate([side.at for side in sides]))
        if np.linalg.norm(gradient) < 1e-7:
            break
        shared = np.sum([side.products(gradient[p]) for side, p in zip(sides, parts, strict=True)], axis=0)
        for side, mixture in zip(sides, mixtures, strict=True):
            mixture.add(shared)
            side.move(mixture.weights)
    np.testing.assert_allclose(np.concatenate([side.at for side in sides]), aim, atol=1e-3)


# --- the ciphertexts ---------------------------------------------------------------------------------


def test_answers_are_sums_of_products_plus_the_mask() -> None:
    key = bfv.Key()
    peer = bfv.Peer(key.public)
    values, known, mask = (bfv.uniform(3 * bfv.SLOTS).reshape(3, -1) for _ in range(3))
    pairs = [(peer.take(key.encrypt(v), transform=True), peer.known(k)) for v, k in zip(values, known, strict=True)]
    got = key.decrypt(peer.answer(pairs, mask[0]))
    due = (values.astype(object) * known.astype(object)).sum(axis=0) + mask[0].astype(object)
    assert np.array_equal(got, (due % bfv.T).astype(np.uint64))
    assert np.array_equal(key.decrypt(peer.answer([(pairs[0][0], peer.known(mask[0] * 0))], mask[1])), mask[1])


def test_noise_of_an_answer_is_flooded() -> None:
    """Seen by the key's owner: noise fills the flooding's width, whatever was multiplied, and still decrypts."""
    key = bfv.Key()
    peer = bfv.Peer(key.public)
    zero, full = np.zeros(bfv.SLOTS, np.uint64), bfv.uniform(bfv.SLOTS)
    at = bfv.context()
    for known in (zero, full):
        words = peer.answer([(peer.take(key.encrypt(full), transform=True), peer.known(known))], full)
        found = bfv._loaded(at.seal.Ciphertext(), bfv._unpacked(key._frame + words), at.context)
        budget = key._decryptor.invariant_noise_budget(found)
        assert 1 <= budget <= 4  # without flooding: 60 and more
    assert bfv.distance(13, 10_000) < 2**-24


def test_the_number_theory_is_that_of_the_prime() -> None:
    share = bfv.uniform(1000)
    assert share.max() < bfv.T
    columns = np.random.default_rng(0).integers(-(2**20), 2**20, (2, 1000))
    assert sealed._dot(columns, share) == [int(s) for s in columns.astype(object) @ share.astype(object)]
    assert sealed._total(share) == sum(int(s) for s in share)


def test_bytes_that_are_no_ciphertext() -> None:
    key = bfv.Key()
    peer = bfv.Peer(key.public)
    good = key.encrypt(bfv.uniform(bfv.SLOTS))
    for bad in (b"", good[:100], b"\x00" * 500, key.public):
        with pytest.raises(bfv.BadCiphertext):
            peer.take(bad)
    for bad in (b"", b"1234567", b"\xff" * (8 * bfv.WORDS), *(bytes(8 * bfv.WORDS + more) for more in (-8, -1, 1))):
        with pytest.raises(bfv.BadCiphertext):
            key.decrypt(bad)
    with pytest.raises(bfv.BadCiphertext):
        bfv.Peer(good)


# --- bad peers, and what is refused ------------------------------------------------------------------


def _set(**values: Any) -> Any:
    def change(message: Any) -> None:
        for name, value in values.items():
            if isinstance(value, list):
                del getattr(message, name)[:]
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)

    return change


BY_ACTIVE = [
    (pb.SealedOpen, _set(columns=9), BeyondContract),
    (pb.SealedOpen, _set(information=0.5), Malformed),
    (pb.SealedOpen, _set(key=b"no key"), Malformed),
    (pb.SealedMatrix, _set(column=1), WrongLength),
    (pb.SealedMatrix, _set(blocks=[b"no ciphertext"]), Malformed),
    (pb.SealedTerms, _set(terms=[b"x"]), WrongLength),
    (pb.SealedProduct, _set(words=b"12345678"), Malformed),
    (pb.SealedProduct, _set(words=b"1234567"), Malformed),
    (pb.SealedStep, _set(products=[float("nan")]), WrongLength),
    (pb.SealedStep, _set(products=[-1e308]), Malformed),
    (pb.SealedResult, _set(model_id=bytes(16)), Malformed),
    (pb.SealedResult, _set(changes=[]), WrongLength),
]
BY_PASSIVE = [
    (pb.SealedColumns, _set(columns=0), BeyondContract),
    (pb.SealedMatrix, _set(blocks=[]), WrongLength),
    (pb.SealedResidual, _set(words=b""), Malformed),
    (pb.SealedResidual, _set(words=b"1234567"), Malformed),
    (pb.SealedProduct, _set(words=bytes(8 * bfv.WORDS - 1)), Malformed),
    (pb.SealedProduct, _set(column=7), WrongLength),
    (pb.SealedPart, _set(products=[]), WrongLength),
    (pb.SealedPart, _set(products=[-1e308]), Malformed),
    (pb.SealedPart, _set(sum=2**63), Malformed),
]


@pytest.mark.parametrize(("kind", "change", "error"), BY_ACTIVE + BY_PASSIVE)
def test_a_peer_that_lies_is_named(kind: Any, change: Any, error: type[FedlearnError]) -> None:
    x, y = table(200, 2, 2, 0.5, 0.0)
    active, passive = data(x, y, 2)
    agreed = contract(2, 2, disclosure_none=True, max_steps=1)
    wrong = BY_ACTIVE if any(entry[1] is change for entry in BY_ACTIVE) else BY_PASSIVE

    def lying_active(channel: Any) -> Any:
        return sealed.fit_active(spoiling(channel, kind, change), agreed, active)

    def lying_passive(channel: Any) -> Any:
        return sealed.fit_passive(spoiling(channel, kind, change), agreed, passive)

    with pytest.raises(error):
        meet(agreed, *((lying_active, passive) if wrong is BY_ACTIVE else (active, lying_passive)))


@pytest.mark.parametrize(
    ("kind", "number"),
    [(pb.SealedPart, -1e308), (pb.SealedPart, 1e308), (pb.SealedStep, -1e308), (pb.SealedStep, -1e9)],
)
@pytest.mark.parametrize("round_", [1, 2])
def test_products_that_no_steps_have_move_nobody(kind: Any, number: float, round_: int) -> None:
    """Finite numbers of the peer's that would make this side's coefficients NaN without an error."""
    active, passive = data(*table(200, 2, 2, 0.5, 0.0), 2)
    agreed = contract(2, 2, disclosure_none=True, max_steps=4)
    blamed, step = ("passive", "SealedPart") if kind is pb.SealedPart else ("active", "SealedStep")

    def change(message: Any) -> None:
        if len(message.products) == round_:
            message.products[:] = [number] * round_

    def lying_active(channel: Any) -> Any:
        return sealed.fit_active(spoiling(channel, kind, change), agreed, active)

    def lying_passive(channel: Any) -> Any:
        return sealed.fit_passive(spoiling(channel, kind, change), agreed, passive)

    sides = (lying_active, passive) if blamed == "active" else (active, lying_passive)
    with pytest.raises(Malformed, match=rf"'{blamed}' sent products that no steps have .* at step sealed\.{step}"):
        meet(agreed, *sides)


def test_what_does_not_mix_is_an_error() -> None:
    for products in ([np.inf], [np.nan], [1e308], [-1e200]):
        with pytest.raises(ValueError, match="no finite products"):
            Mixture().add(np.array(products))
    negative, singular = Mixture(), Mixture()
    negative.add(np.array([-1e9]))
    with pytest.raises(ValueError, match="no finite weights"):
        _ = negative.weights
    singular.add(np.array([1.0]))
    singular.add(np.array([1 + 1e-9, 1.0]))  # with what is added to the diagonal all entries are the same
    with pytest.raises(ValueError, match="Singular"):
        _ = singular.weights
    block = Block(np.eye(1), np.ones(1))
    block.products(np.ones(1))
    with pytest.raises(ValueError, match="no finite coefficients"):
        block.move(np.array([9e99]))
    assert block.at.tolist() == [1.0]


def test_what_a_contract_may_not_ask() -> None:
    for changes in ({"family": "poisson"}, {"l1": 0.1}, {"statistics": True}):
        with pytest.raises(ValidationError, match="disclosure none"):
            contract(1, 1, disclosure_none=True, **changes)


def test_more_rows_or_leakage_than_there_is_room_for() -> None:
    with pytest.raises(OverBudget, match="rows"):
        sealed.flooding(contract(1, 1, disclosure_none=True), 1, 1, 10**7)
    tight = contract(1, 1, disclosure_none=True, budget={"kl_nats": 1e-12})
    with pytest.raises(OverBudget, match="kl_nats"):
        sealed.flooding(tight, 1, 1, 10**6)


def test_without_tenseal_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['tenseal'] = None\n"
        "from fedlearn.crypto import bfv\n"
        "from fedlearn.errors import BadConfig\n"
        "try: bfv.context()\n"
        "except BadConfig as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 'pip install "fedlearn[seal]"' in said


# --- whole runs --------------------------------------------------------------------------------------


def test_a_sealed_scorecard_from_end_to_end(tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    glm = {"woe": True, "bins": 8, "l2": 0.001, "disclosure": "none", "max_steps": 20}

    pair: Pair = glm_pair(tmp_path, keyring, glm, scorecard=CARD)
    assert "sealed" in simulated(pair, capsys, "check")["active"]["would_train"]
    said = simulated(pair, capsys, "train")
    assert said["active"]["converged"]
    assert said["passive"]["converged"]
    assert said["active"]["gradient_rank_at_most"] == said["active"]["steps"] * 4
    assert said["passive"]["gradient_rank_at_most"] == said["active"]["steps"] * 3
    revealed = json.dumps(said["active"]["ledger"])
    assert "partial score" not in revealed
    scored = simulated(pair, capsys, "predict")
    assert "score_stability_index" not in scored["active"]
    rows = read_csv(pair.output("bank") / "predictions" / "scores.csv")
    assert len(rows) == scored["active"]["rows_scored"]
