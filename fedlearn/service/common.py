"""What both services do alike: refuse with a status, hold limits, repeat answers, count, know models.

No network here, and no clock but those passed in or of the operating system.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from fedlearn.contract import Contract
from fedlearn.learner.woe import stability
from fedlearn.models import reference
from fedlearn.models.linear import LinearShare
from fedlearn.models.reference import Reference
from fedlearn.service.registry import SERVED, Entry, Registry
from fedlearn.service.store import Features, Row, StoreAway

#: status: gRPC status code, HTTP status code, what it means. A refusal names one of these, and adds a sentence.
STATUSES: dict[str, tuple[str, int, str]] = {
    "malformed": ("INVALID_ARGUMENT", 400, "a field is missing or is not what it should be"),
    "oversized": ("INVALID_ARGUMENT", 413, "the request is larger than any request need be"),
    "old-client": ("FAILED_PRECONDITION", 426, "the client speaks another version of the protocol"),
    "not-a-caller": ("PERMISSION_DENIED", 403, "the certificate is of nobody who may ask"),
    "contract-expired": ("PERMISSION_DENIED", 403, "the contract's last day has passed"),
    "contract-differs": ("FAILED_PRECONDITION", 409, "the two sides hold different contracts"),
    "wrong-purpose": ("PERMISSION_DENIED", 403, "the contract does not allow this purpose"),
    "consent-expired": ("PERMISSION_DENIED", 403, "the applicant's consent has expired"),
    "too-many": ("RESOURCE_EXHAUSTED", 429, "more requests than the caller is allowed"),
    "used-up": ("RESOURCE_EXHAUSTED", 429, "the sealed answers that the contract allows for this model are used up"),
    "no-first-step": ("ABORTED", 409, "the first step of this request was not answered, or was used already"),
    "request-reused": ("ALREADY_EXISTS", 409, "the request ID was used for another request"),
    "unknown-applicant": ("NOT_FOUND", 404, "there are no features of this applicant"),
    "unknown-at-peer": ("NOT_FOUND", 404, "the other party has no features of this applicant"),
    "features-missing": ("FAILED_PRECONDITION", 422, "too many features of this applicant are missing"),
    "feature-out-of-range": ("OUT_OF_RANGE", 422, "a feature of this applicant is no finite number"),
    "store-unavailable": ("UNAVAILABLE", 503, "the store of features does not answer"),
    "no-model": ("UNAVAILABLE", 503, "no model is promoted on this side"),
    "wrong-pair": ("FAILED_PRECONDITION", 409, "the other party has not the other half of this model"),
    "model-retired": ("FAILED_PRECONDITION", 410, "the model is retired"),
    "peer-unavailable": ("UNAVAILABLE", 503, "the other party did not answer in time, and there is no fallback"),
    "peer-misbehaved": ("INTERNAL", 502, "the other party's answer does not fit the model"),
    "internal": ("INTERNAL", 500, "the service failed; see its log"),
}
MOST_BYTES = 16 << 10
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{8,64}")
_CONSENT = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


class Refusal(Exception):
    """A request that is not answered; ``status`` is a key of :data:`STATUSES`, ``str`` one clear sentence."""

    def __init__(self, status: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def plain(refusal: Refusal) -> Refusal:
    """With the status's own sentence: for the other party, whom a count or a column's name is no business of."""
    return Refusal(refusal.status, STATUSES[refusal.status][2])


def check_terms(contract: Contract, request: Any) -> None:
    """Whether the contract allows this purpose today, under a consent that lasts. Raises Refusal."""
    today = datetime.now(UTC).date()
    if today > contract.expires:
        raise Refusal("contract-expired", f"contract {contract.name!r} expired on {contract.expires}")
    if not _REQUEST_ID.fullmatch(request.request_id):
        raise Refusal("malformed", "request_id must be 8 to 64 letters, digits or any of _.:-")
    if not 0 < len(request.applicant) <= 200:
        raise Refusal("malformed", "applicant must have 1 to 200 characters")
    if contract.serving is None or request.purpose not in contract.serving.purposes:
        raise Refusal("wrong-purpose", f"contract {contract.name!r} does not allow the purpose of this request")
    if not _CONSENT.fullmatch(request.consent):
        raise Refusal("malformed", "consent must be a reference of 1 to 128 letters, digits or any of _.:/-")
    try:
        expires = date.fromisoformat(request.consent_expires)
    except ValueError:
        raise Refusal("malformed", "consent_expires must be a date such as 2026-12-31") from None
    if today > expires:
        raise Refusal("consent-expired", f"the consent expired on {expires}")


def features_of(store: Features, applicant: str, most_missing: float) -> Row:
    """An applicant's features. Raises Refusal: unknown, too many missing, out of range, or away."""
    try:
        row = store.get(applicant)
    except ValueError as error:
        raise Refusal("feature-out-of-range", f"feature {error} of this applicant is no finite number") from None
    except StoreAway:
        raise Refusal("store-unavailable", "the store of features does not answer; ask again later") from None
    if row is None:
        raise Refusal("unknown-applicant", "there are no features of this applicant")
    missing = sum(value is None or value != value for value in row)  # noqa: PLR0124  (NaN)
    if missing > most_missing * len(row):
        raise Refusal("features-missing", f"{missing} of {len(row)} features of this applicant are missing")
    return row


# --- limits and repeats ------------------------------------------------------------------------------


class Limiter:
    """A caller's requests a second (a bucket of one second's worth) and a day (UTC, since the service started)."""

    def __init__(self, per_second: float, per_day: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._per_day, self._clock = per_second, per_day, clock
        self._tokens, self._at = max(1.0, per_second), clock()
        self._day, self._count, self._lock = 0, 0, threading.Lock()

    def take(self) -> None:
        """Count one request. Raises Refusal when it is one too many."""
        now, day = self._clock(), int(time.time() // 86400)
        with self._lock:
            self._tokens = min(max(1.0, self._rate), self._tokens + (now - self._at) * self._rate)
            self._at = now
            if day != self._day:
                self._day, self._count = day, 0
            if self._tokens < 1:
                raise Refusal("too-many", f"more than {self._rate:g} requests a second")
            if self._count >= self._per_day:
                raise Refusal("too-many", f"more than {self._per_day} requests a day")
            self._tokens -= 1
            self._count += 1


class EachLimiter:
    """Requests a day (UTC, since the service started) about one applicant; no limit when it is 0."""

    def __init__(self, most: int) -> None:
        self._most, self._day, self._counts, self._lock = most, 0, dict[str, int](), threading.Lock()

    def take(self, applicant: str) -> None:
        """Count one request. Raises Refusal when it is one too many."""
        if not self._most:
            return
        day = int(time.time() // 86400)
        with self._lock:
            if day != self._day:
                self._day, self._counts = day, {}
            count = self._counts.get(applicant, 0)
            if count >= self._most:
                raise Refusal("too-many", f"more than {self._most} requests a day about this applicant")
            self._counts[applicant] = count + 1


class Memo:
    """Answers by request ID, so that a request that is sent again is answered the same and costs nothing.

    Refusals are not kept. Kept in memory: after a restart a request is computed again, from the features of then.
    """

    def __init__(self, most: int = 100_000) -> None:
        self._most, self._lock = most, threading.Lock()
        self._kept: OrderedDict[str, _Answer] = OrderedDict()

    def once(self, request_id: str, content: bytes, work: Callable[[], bytes]) -> bytes:
        """The answer that was given to this request, or that of ``work``.

        Raises:
            Refusal: the ID belongs to another request; or as ``work`` raises.
        """
        mine = _Answer(hashlib.sha256(content).digest())
        with mine.working:
            with self._lock:
                found = self._kept.setdefault(request_id, mine)
                if len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            if found is mine:
                try:
                    mine.given = work()
                except BaseException as error:
                    mine.error = error
                    with self._lock:
                        self._kept.pop(request_id, None)
                    raise
                return mine.given
        if found.digest != mine.digest:
            raise Refusal("request-reused", "this request_id was used for another request")
        with found.working:  # until the first of them is answered
            if found.error is not None:
                raise found.error
            return found.given


class _Answer:
    """Of one request; ``working`` is held by the thread that finds it."""

    __slots__ = ("digest", "error", "given", "working")

    def __init__(self, digest: bytes) -> None:
        self.digest, self.given, self.working = digest, b"", threading.Lock()
        self.error: BaseException | None = None


# --- models ------------------------------------------------------------------------------------------


@dataclass
class Model:
    """A model that is served: its entry, its scorer, and what it has seen."""

    entry: Entry
    scorer: Any
    drift: Drift


class Models:
    """The registry's models of a name as they are now; looked at again when the registry changes."""

    def __init__(self, registry: Registry, contract: Contract, party: str, make: Callable[[object], Any]) -> None:
        self._registry, self._contract, self._party, self._make = registry, contract, party, make
        self._seen, self.served, self.retired = -1, dict[str, Model](), set[str]()

    def refresh(self) -> bool:
        """Take out the models that are retired or gone, then load what was added; returns whether anything changed.

        Raises:
            Exception: of the first model that cannot be loaded (WrongModel when it is damaged), after everything else
                is done. The model whose place it was to take keeps that; it is tried again at the next look.
        """
        change = self._registry.last_change()
        if change == self._seen:
            return False
        mine = [e for e in self._registry.list() if e.facts["contract_hash"] == self._contract.hash().hex()]
        standing = {entry.facts["model_id"]: entry for entry in mine if entry.state in SERVED}
        self.retired = {entry.facts["model_id"] for entry in mine if entry.state == "retired"}
        # States stay as they were until all is loaded, or there would be no champion meanwhile.
        kept = self.served = {model_id: model for model_id, model in self.served.items() if model_id in standing}
        served, damaged = dict[str, Model](), list[tuple[Entry, Exception]]()
        for model_id, entry in standing.items():
            try:
                served[model_id] = replace(kept[model_id], entry=entry) if model_id in kept else self._load(entry)
            except Exception as error:
                damaged.append((entry, error))
        for entry, _ in damaged:
            former = self.in_state(entry.facts["name"], entry.state)  # of the states before
            if former is not None and entry.state != "superseded":  # a place that one model has
                served[former.entry.facts["model_id"]] = former
        self.served = served
        if damaged:
            raise damaged[0][1]
        self._seen = change
        return True

    def in_state(self, name: str, state: str) -> Model | None:
        """The model of a name in a state, if there is one."""
        found = [m for m in self.served.values() if (m.entry.facts["name"], m.entry.state) == (name, state)]
        return found[0] if found else None

    def _load(self, entry: Entry) -> Model:
        share = self._registry.load(entry, self._contract, self._party)
        linear = isinstance(share, LinearShare)
        before = reference.of_linear(share) if linear else reference.load(self._registry.place(entry))  # type: ignore[arg-type]
        return Model(entry, self._make(share), Drift(before))


class Drift:
    """Counts of live scores and features, and their stability index against the training rows."""

    def __init__(self, before: Reference) -> None:
        self._before = before
        self._features = [[0] * len(counts) for counts in before.features.values()]
        self._scores, self._lock = [0] * 10, threading.Lock()

    def count(self, codes: list[int], margin: float | None = None) -> None:
        """Enter one applicant: the bin of each feature, and the margin where this side knows it."""
        with self._lock:
            for counts, code in zip(self._features, codes, strict=False):
                counts[code] += 1
            if margin is not None and self._before.tenths is not None:
                self._scores[int(np.searchsorted(self._before.tenths.cuts, margin))] += 1

    def indices(self) -> dict[str, float]:
        """Population stability index by feature, and of the ``score``; only of what was counted at all."""
        with self._lock:
            live = dict(zip(self._before.features, map(np.array, self._features), strict=True))
            scores = np.array(self._scores)
        found = {f"feature:{n}": stability(self._before.features[n], now) for n, now in live.items() if now.sum()}
        tenths = self._before.tenths
        return found | ({"score": tenths.stability(scores)} if tenths is not None and scores.sum() else {})


# --- figures and log ---------------------------------------------------------------------------------

_BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """Counters and latencies in Prometheus' text format; nothing about applicants."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._buckets, self._sum = [0] * (len(_BUCKETS) + 1), 0.0

    def count(self, name: str) -> None:
        """Add one to a counter, for instance ``fallbacks_total{reason="timeout"}``."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + 1

    def request(self, status: str, seconds: float) -> None:
        """Enter one request that has ended."""
        self.count(f'requests_total{{status="{status}"}}')
        with self._lock:
            self._buckets[sum(seconds > edge for edge in _BUCKETS)] += 1
            self._sum += seconds

    def text(self, models: Models) -> str:
        """All of it, with the models served and their stability indices."""
        with self._lock:
            counts, buckets, total = dict(self._counts), list(self._buckets), self._sum
        lines = ["# TYPE fedlearn_requests_total counter", "# TYPE fedlearn_request_seconds histogram"]
        lines += [f"fedlearn_{name} {value}" for name, value in sorted(counts.items())]
        below = 0
        for edge, count in zip((*map(str, _BUCKETS), "+Inf"), buckets, strict=True):
            below += count
            lines.append(f'fedlearn_request_seconds_bucket{{le="{edge}"}} {below}')
        lines += [f"fedlearn_request_seconds_sum {total:.6f}", f"fedlearn_request_seconds_count {below}"]
        for model in models.served.values():
            label = f'model="{model.entry.label}"'
            lines.append(f'fedlearn_model_served{{{label},state="{model.entry.state}"}} 1')
            for of, value in model.drift.indices().items():
                quoted = of.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
                lines.append(f'fedlearn_stability_index{{{label},of="{quoted}"}} {value:.6f}')
        return "\n".join(lines) + "\n"


def log(event: str, **facts: Any) -> None:
    """One line of JSON on standard error. Never an applicant, a feature or a score."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    sys.stderr.write(json.dumps({"at": at, "event": event, **facts}) + "\n")
    sys.stderr.flush()
