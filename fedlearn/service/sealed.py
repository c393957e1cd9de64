"""Both services in sealed mode: the same requests, refusals, limits and logs, another exchange between the two sides.

See :mod:`fedlearn.protocols.serve_sealed`. The passive side gives no reason codes: points lost by column would tell its
part. Reasons are those of the active side's own columns.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from fedlearn.contract import Band, Contract, Service
from fedlearn.errors import BadConfig
from fedlearn.models.linear import LinearShare
from fedlearn.models.scorecard import total
from fedlearn.models.share import ActiveShare, PassiveShare, replace_file, sync_folder
from fedlearn.protocols import serve_sealed as protocol
from fedlearn.protocols.serve_sealed import Agreed, Told
from fedlearn.service.answering import Answering, named
from fedlearn.service.common import MOST_BYTES, Model, Refusal, features_of, plain
from fedlearn.service.deciding import Deciding
from fedlearn.service.scorer import Linear, Outcome, Part, TreesActive, TreesPassive, passive_scorer
from fedlearn.service.store import Row
from fedlearn.v1 import serve_pb2 as pb
from fedlearn.v1 import serve_sealed_pb2 as sealed_pb

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_MOST = 15 * MOST_BYTES  #: bytes of a question; a channel takes 16
_WAITING = 10_000  #: masks kept for a second step
_AHEAD = 1_000  #: answers that are set aside in the file at a time


def _agreed(contract: Contract, model_id: bytes, splits: int | None) -> Agreed:
    at = protocol.agree(contract, model_id, splits)
    if at.largest > _MOST - MOST_BYTES:
        raise BadConfig(
            f"a sealed question of this model has {at.largest} bytes, more than {_MOST - MOST_BYTES}: the trees have "
            "too many passive splits for sealed mode"
        )
    protocol.rehearse(at)
    return at


# --- active ------------------------------------------------------------------------------------------

Bands = Callable[[F64, dict[str, F64 | None]], I64]  # of means and, where there are such, other measures by name


class SealedTrees(TreesActive):
    """The active half of trees, with questions."""

    def __init__(self, share: ActiveShare, names: Sequence[str], contract: Contract) -> None:
        """``names``: the order of a row's values.

        Raises:
            BadConfig: the model cannot be served sealed under this contract.
            OverBudget: nor within its budget.
        """
        super().__init__(share, names, contract)
        self._at, forest = _agreed(contract, share.model_id, share.passive_splits), share.forest
        self._trees = protocol.Trees.of(self._at, forest.roots, forest.feature, forest.masks, forest.left, forest.value)
        self._base = float(forest.base[0])
        self._trees.numbers(np.zeros(len(share.binning.features), np.uint8))  # compiles the kernel

    def exchange(self, asked: pb.PartRequest, row: Row, bands: Bands, told: Told) -> Outcome:
        """Ask for the total, or for its band. Raises Unfit, and what ``told`` raises."""
        constant, numbers = self._trees.numbers(self._bins.codes(row))
        share = protocol.ask_sum(self._at, asked, self._trees.nesting, numbers, told)
        if self._at.table is None:
            return self._told(self._base + (constant + share) / self._at.unit)
        margins = self._base + (constant + protocol.totals(self._at, share))[None, :] / self._at.unit
        others = {"calibrated": None if self._calibration is None else self._calibration.of(margins[0])}
        return Outcome(None, None, band=protocol.ask_band(self._at, asked, bands(self._mean(margins)[0], others), told))


class SealedLinear(Linear):
    """The active half of a linear model, with questions."""

    def __init__(self, share: LinearShare, names: Sequence[str], contract: Contract) -> None:
        """``names``: as of :class:`Linear`. Raises as :class:`SealedTrees`."""
        super().__init__(share, names, contract)
        self._at = _agreed(contract, share.model_id, None)
        self._parts = protocol.parts(self._at)

    def exchange(self, asked: pb.PartRequest, row: Row, bands: Bands, told: Told) -> Outcome:
        """Ask for the band. Raises Unfit, and what ``told`` raises."""
        own = self.outcome(row, Part())
        margins = (own.margin or 0.0) + self._parts
        means = self._family.mean(margins) if self._family else margins
        card = self._contract.scorecard
        scores = None if card is None else total(card, margins)
        band = protocol.ask_band(self._at, asked, bands(means, {"score": scores}), told)
        return Outcome(None, None, reasons=own.reasons, band=band)


class SealedDeciding(Deciding):
    """The active side's service in sealed mode."""

    def __init__(self, contract: Contract, service: Service, *others: Any) -> None:
        """As :class:`Deciding`. Raises BadConfig when the contract tells bands and the party file has none that fit."""
        super().__init__(contract, service, *others)
        serving = contract.serving
        if serving is not None and serving.tells == "band" and not 1 < len(service.bands) <= serving.bands:
            raise BadConfig(f"[serving] tells the band alone, so [service] needs 2 to {serving.bands} bands")

    def _part(self, request: pb.ScoreRequest, applicant: str, row: Row, model: Model) -> Part:
        if model.entry.facts["alone"]:
            return Part()
        asked = self._asked(request, applicant, model)
        end = time.monotonic() + self._service.deadline_ms / 1000

        def told(question: bytes) -> bytes:
            return self._told(question, max(0.001, end - time.monotonic()))

        try:
            return Part(sealed=model.scorer.exchange(asked, row, self._bands, told))
        except protocol.Unfit as error:
            raise Refusal("peer-misbehaved", f"the other party {error}") from None

    def _bands(self, means: F64, others: dict[str, F64 | None]) -> I64:
        chosen = others.get(self._service.measure)
        return band_numbers(self._service.bands, means if chosen is None else chosen)


def band_numbers(bands: Sequence[Band], values: F64) -> I64:
    """The number of the band of each value: a band holds values up to and including its ``up_to``."""
    cuts = np.array([band.up_to for band in bands[:-1]], np.float64)
    return np.searchsorted(cuts, values, side="left").astype(np.int64)


def sealed_active_scorer(share: object, names: Sequence[str], contract: Contract) -> SealedTrees | SealedLinear:
    """The active side's scorer of a share."""
    if isinstance(share, ActiveShare):
        return SealedTrees(share, names, contract)
    if isinstance(share, LinearShare) and share.role == "active":
        return SealedLinear(share, names, contract)
    raise BadConfig("the model is not the active side's share")


# --- passive -----------------------------------------------------------------------------------------


class SealedHalf:
    """The passive half of either kind of model, with what its answers need."""

    def __init__(self, share: object, names: Sequence[str], contract: Contract) -> None:
        """``names``: the order of a row's values. Raises as :class:`SealedTrees`."""
        self._scorer: TreesPassive | Linear = passive_scorer(share, names, contract)
        self.codes = self._scorer.codes
        splits = len(share.feature) if isinstance(share, PassiveShare) else None
        model_id: bytes = share.model_id  # type: ignore[attr-defined]
        self.at, self._nesting = _agreed(contract, model_id, splits), b""

    def held(self, row: Row) -> bytes:
        """What this side holds of one applicant: its sides, or its partial score."""
        part = self._scorer.part(row)
        return struct.pack("<d", part.points) if self.at.splits is None else part.sides

    def check(self, message: sealed_pb.SealedAsk) -> None:
        """Raises Refusal unless the message is what is due, with the nesting that it always had."""
        try:
            protocol.check(self.at, message)
        except protocol.Unfit as error:
            raise Refusal("malformed", f"the other party {error}") from None
        if message.weights:
            self._nesting = self._nesting or message.nesting
            if message.nesting != self._nesting:
                raise Refusal("wrong-pair", "the nesting of this model's splits is not that of earlier requests")

    def sides(self, held: bytes) -> NDArray[np.uint8]:
        """The side of each split, 1 for left, from what :meth:`held` gave."""
        return np.unpackbits(np.frombuffer(held, np.uint8), count=self.at.splits, bitorder="little")


class SealedAnswering(Answering):
    """The passive side's service in sealed mode.

    What a repeated request is answered from is kept, as in plain mode, but it is encrypted anew: the active side does
    not keep the secret of a question that was not answered.
    """

    def __init__(self, contract: Contract, me: str, service: Service, *others: Any) -> None:
        """As :class:`Answering`."""
        super().__init__(contract, me, service, *others)
        self._most = contract.serving.answers if contract.serving else 0
        self._folder = service.registry / "sealed"
        self._counts: dict[str, Allowance] = {}
        self._masks: OrderedDict[str, tuple[bytes, int]] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, caller: str, raw: bytes) -> bytes:
        """A :class:`SealedAsk` answered with a :class:`SealedAnswer`, both serialised. As :meth:`Answering.answer`."""
        if caller != self._peer:
            raise Refusal("not-a-caller", "only the other party of the contract may ask")
        message = _parsed(raw)
        request = message.asked
        waiting = not message.weights and request.request_id in self._masks  # counted at its first step
        try:
            self._check(request, counted=not waiting)
            half = self._model(request.model_id.hex()).scorer
            half.check(message)
            second = half.at.splits is not None and bool(message.table)
            reply = (self._second if second else self._first)(message, half)
            self._audit.add(
                "answer", request=request.request_id, consent=request.consent, purpose=request.purpose,
                model=request.model_id.hex(), mode="sealed", step=2 if second else 1,
            )  # fmt: skip
            return reply
        except Refusal as refusal:
            if waiting:
                with self._lock:
                    self._masks.pop(request.request_id, None)  # a step that was counted once has one second step
            self._audit.add("refuse", request=request.request_id[:64], status=refusal.status)
            raise plain(refusal) from None

    def _first(self, message: sealed_pb.SealedAsk, half: SealedHalf) -> bytes:
        request = message.asked
        terms = _terms(request)
        held = self._memo.once(named(request), terms, lambda: self._held(request))
        self._allowance(request.model_id.hex()).take()
        if half.at.splits is None:
            step = protocol.step_of_part(half.at, struct.unpack("<d", held)[0])
            if step is None:
                raise Refusal("feature-out-of-range", "the part of this applicant is beyond [serving] reach")
            return protocol.answer_band(half.at, message, step)
        reply, mask = protocol.answer_sum(half.at, message, half.sides(held))
        if half.at.table is not None:
            with self._lock:
                self._masks[request.request_id] = (terms, mask)
                if len(self._masks) > _WAITING:
                    self._masks.popitem(last=False)
        return reply

    def _second(self, message: sealed_pb.SealedAsk, half: SealedHalf) -> bytes:
        """A mask serves once: a second table for it would tell another band of the same total."""
        with self._lock:
            terms, mask = self._masks.pop(message.asked.request_id, (b"", 0))
        if terms != _terms(message.asked):
            raise Refusal("no-first-step", "the first step of this request was not answered, or was used already")
        return protocol.answer_band(half.at, message, protocol.step_of_mask(half.at, mask))

    def _held(self, request: pb.PartRequest) -> bytes:
        model = self._model(request.model_id.hex())
        row = features_of(self._store, request.applicant, self._service.most_missing)
        model.drift.count(model.scorer.codes(row))
        held: bytes = model.scorer.held(row)
        return held

    def _allowance(self, model_id: str) -> Allowance:
        with self._lock:
            if model_id not in self._counts:
                self._counts[model_id] = Allowance(self._folder / model_id, self._most)
            return self._counts[model_id]


class Allowance:
    """Counts the answers of one model for as long as its file lives; what is set aside ahead counts as used.

    The leakage of the answers' noise adds up over all of them: the contract's budget is for so many.
    """

    def __init__(self, path: Path, most: int) -> None:
        """Go on from the file at ``path``. Raises ValueError when it is damaged."""
        self._path, self._most, self._lock = path, most, threading.Lock()
        self._used = self._reserved = int(path.read_text(encoding="ascii")) if path.exists() else 0

    def take(self) -> None:
        """Count one answer. Raises Refusal when it is one too many, OSError when it cannot be written down."""
        with self._lock:
            if self._used >= self._most:
                raise Refusal("used-up", f"more than {self._most} sealed answers for this model")
            if self._used == self._reserved:
                self._reserve(min(self._most, self._used + _AHEAD))
            self._used += 1

    def _reserve(self, count: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(self._path.parent.parent)
        replace_file(self._path, str(count).encode())
        self._reserved = count


def sealed_passive_scorer(share: object, names: Sequence[str], contract: Contract) -> SealedHalf:
    """The passive side's scorer of a share."""
    return SealedHalf(share, names, contract)


def _parsed(raw: bytes) -> sealed_pb.SealedAsk:
    if len(raw) > _MOST:
        raise Refusal("oversized", f"the request has {len(raw)} bytes, more than {_MOST}")
    try:
        message = sealed_pb.SealedAsk.FromString(raw)
    except DecodeError:
        raise Refusal("malformed", "the request is no SealedAsk") from None
    if not message.HasField("asked"):
        raise Refusal("contract-differs", "the request is not one of sealed mode, which this side's contract has")
    return message


def _terms(request: pb.PartRequest) -> bytes:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
