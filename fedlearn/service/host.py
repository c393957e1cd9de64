"""``serve``: one party's service from its party file, until it is told to stop."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from fedlearn.contract import Contract, PartyFile, Service
from fedlearn.errors import BadConfig, FedlearnError, NotInContract
from fedlearn.keys import check_own
from fedlearn.service.answering import Answering
from fedlearn.service.audit import AuditLog
from fedlearn.service.common import Metrics, Models, Refusal, log
from fedlearn.service.deciding import Deciding
from fedlearn.service.registry import open_registry
from fedlearn.service.rpc import METHODS, Client, Server
from fedlearn.service.scorer import active_scorer, passive_scorer
from fedlearn.service.sealed import SealedAnswering, SealedDeciding, sealed_active_scorer, sealed_passive_scorer
from fedlearn.service.store import Features, open_store
from fedlearn.service.tracing import TracedStore, Tracer
from fedlearn.service.web import Web, scoring, status_page

Answer = Callable[[str, bytes], bytes]
_LOOK = 0.5  # seconds between two looks at registry and certificates
_GRACE = 5.0  # seconds for requests under way at the end


#: Scorer of a share, by role and whether the contract's mode is sealed.
_SCORERS: dict[tuple[str, bool], Callable[..., Any]] = {
    ("active", False): active_scorer,
    ("passive", False): passive_scorer,
    ("active", True): sealed_active_scorer,
    ("passive", True): sealed_passive_scorer,
}


def serve(party: PartyFile, stop: threading.Event) -> None:
    """Serve until ``stop`` is set or the process is interrupted; then finish what is under way.

    Raises:
        OwnMistake, Refused: the party file, contract, certificate, store, registry or audit log cannot be used.
    """
    registry, contract = open_registry(party)
    service = _checked(party, contract)
    role = contract.role_of(party.party)
    features = _columns(contract, role)
    sealed = contract.serving is not None and contract.serving.mode == "sealed"
    names, scorer = list(features), _SCORERS[role, sealed]
    tracer = Tracer(service.traces, party.party)
    store = _store(service, contract, features, tracer)
    models = Models(registry, contract, party.party, lambda share: scorer(share, names, contract))
    _first_look(models, service.model if role == "active" else None)
    metrics = Metrics()
    with ExitStack() as stack:
        stack.callback(tracer.close)
        stack.callback(store.close)
        audit = AuditLog(service.audit, party.party, party.tls.key)
        stack.callback(audit.close)
        # Apart from the others, which a registry that is locked or a model that takes long to load may not hold up.
        stack.enter_context(_watching([lambda: _look_at(models)]))
        looks: list[Callable[[], object]] = []
        if role == "active":
            client = Client(str(service.peer), party.tls, party.party, contract.passive.name, "Parts", tracer)
            stack.callback(client.close)
            looks.append(client.renew)
            deciding = SealedDeciding if sealed else Deciding
            answer: Answer = deciding(contract, service, models, store, audit, client, metrics).answer
        else:
            answering = SealedAnswering if sealed else Answering
            answer = answering(contract, party.party, service, models, store, audit).answer
        answer = _counted(answer, metrics)
        stream, call = METHODS[role]
        callers = tuple(service.callers) if role == "active" else (contract.active.name,)
        server = Server(
            service.listen, party.tls, party.party, stream, answer, service.workers, callers, tracer, call=call,
            turned_away=lambda: metrics.count('requests_total{status="too-many"}'),
        )  # fmt: skip
        looks.append(server.renew)
        web = None
        if service.http is not None:
            # One bound for gRPC and HTTP together: [service] workers is of all requests under way.
            web = Web(service.http, scoring(answer, tracer, server.turns), party.tls, party.party)
            stack.callback(web.close)
            looks.append(web.renew)
        if service.status is not None:
            page = status_page(lambda: server.serving and bool(models.served), lambda: metrics.text(models))
            stack.callback(Web(service.status, page).close)  # after the draining, which it shows
        stack.callback(_drain, server, web, _GRACE)
        server.start()
        gc.collect()
        gc.freeze()  # tables and models stay: no need to look through them again and again
        log("ready", party=party.party, role=role, models=[model.entry.label for model in models.served.values()])
        _watch(looks, stop)
        log("draining")
        gc.unfreeze()
    log("stopped")


def _store(service: Service, contract: Contract, features: dict[str, Any], tracer: Tracer) -> Features:
    store = open_store(service.store, contract.align.key, features)
    return store if service.traces is None else TracedStore(store, tracer)


def _columns(contract: Contract, role: str) -> dict[str, Any]:
    """What this side's store must hold of an applicant."""
    features: dict[str, Any] = dict(contract.side(role).features)
    if role == "active" and contract.label.offset is not None:
        features[contract.label.offset] = "number"
    return features


def _checked(party: PartyFile, contract: Contract) -> Service:
    contract.check_not_expired()
    check_own(party.tls, party.party)
    service = party.service
    if contract.serving is None:
        raise NotInContract(f"contract {contract.name!r} has no [serving]: it allows no online scoring")
    if service is None:
        raise BadConfig(f"the party file of {party.party!r} has no [service]")
    active = contract.role_of(party.party) == "active"
    if active and (service.peer is None or not service.callers):
        raise BadConfig("[service] of the active side needs peer (host:port) and callers")
    if not active and (service.http is not None or service.peer is not None):
        raise BadConfig("[service] http and peer belong to the active side")
    return service


def _counted(answer: Answer, metrics: Metrics) -> Answer:
    """With its status and time in metrics and log; what fails unexpectedly is a status, too."""

    def counted(caller: str, raw: bytes) -> bytes:
        begun, status = time.perf_counter(), "ok"
        try:
            return answer(caller, raw)
        except Refusal as refusal:
            status = refusal.status
            raise
        except Exception as error:
            status = "internal"
            log("failed", error=type(error).__name__)  # its text may hold an applicant's data
            raise Refusal("internal", "the service failed; see its log") from error
        finally:
            seconds = time.perf_counter() - begun
            metrics.request(status, seconds)
            if status != "ok":
                log("refused", caller=caller[:63], status=status, ms=round(1000 * seconds, 2))

    return counted


def _watch(looks: Sequence[Callable[[], object]], stop: threading.Event) -> None:
    """Take over promoted models and new certificates, until it is time to stop.

    Each look is for itself: a damaged model holds up no certificate. Nothing that one meets ends the service. What goes
    wrong is logged once, and again when it has changed or was well meanwhile.
    """
    said = [""] * len(looks)
    try:
        while not stop.wait(_LOOK):
            for n, look in enumerate(looks):
                message = _looked(look)
                if message and message != said[n]:
                    log("not-reloaded", message=message)
                said[n] = message
    except KeyboardInterrupt:
        return


@contextmanager
def _watching(looks: Sequence[Callable[[], object]]) -> Iterator[None]:
    """:func:`_watch` in a thread of its own."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(looks, over), name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_GRACE)


def _looked(look: Callable[[], object]) -> str:
    """What went wrong; empty when nothing did."""
    try:
        look()
    except (FedlearnError, OSError) as error:
        return str(error) or type(error).__name__
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _first_look(models: Models, name: str | None) -> None:
    """Load what is promoted. A damaged model that others can do without does not keep the service from starting.

    The looks that follow say which it is.

    Args:
        models: of this side.
        name: on the active side, the model that is served.

    Raises:
        Exception: of the damaged model (WrongModel), when nothing else can be loaded, or no champion of ``name``.
    """
    try:
        models.refresh()
    except Exception:
        if not models.served or (name is not None and models.in_state(name, "champion") is None):
            raise


def _look_at(models: Models) -> None:
    """Take over promoted and retired models; what has changed is logged, even if another model is damaged."""
    before, changed = _labels(models), False
    try:
        changed = models.refresh()
    finally:
        if changed or _labels(models) != before:
            log("models", served=_labels(models))


def _labels(models: Models) -> list[str]:
    return [f"{model.entry.label} {model.entry.state}" for model in models.served.values()]


def _drain(server: Server, web: Web | None, seconds: float) -> None:
    """Refuse new requests, and wait for those under way; gRPC and HTTP have the same seconds."""
    end = time.monotonic() + seconds
    if web is not None:
        web.stop()
    server.drain(seconds)
    if web is not None:
        web.close(end - time.monotonic())
