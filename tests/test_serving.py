"""Online scoring with real processes and real TLS: the same scores as batch, every refusal, fallbacks, kills."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fedlearn import keys
from fedlearn.contract import load_party
from fedlearn.service import audit
from fedlearn.service.common import Refusal
from fedlearn.service.rpc import Client
from tests.parties import MODULES, Pair, Process, digits, make_keys, read_csv, wait_for
from tests.serving import (
    ask,
    command,
    lender,
    logs,
    promote,
    request,
    said,
    service,
    services,
    serving_pair,
    shared_applicants,
    train,
)
from tests.test_glm_end_to_end import CARD

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, keyring: Path) -> Pair:
    """Trees, with a fallback under the name ``alone`` that the bank's file does not yet name."""
    made = serving_pair(tmp_path_factory.mktemp("serving"), keyring, folds=2)
    train(made)
    promote(made)
    assert command(made, "bank", "train-alone", "--json") == 0
    place = str(made.output("bank") / "alone")
    assert command(made, "bank", "registry", "add", "--model", place, "--name", "alone", "--json") == 0
    assert command(made, "bank", "registry", "promote", "alone", "1", "--json") == 0
    return made


@pytest.fixture(scope="module")
def running(pair: Pair) -> Iterator[dict[str, Process]]:
    with services(pair) as processes:
        yield processes


def status(client: Client, applicant: str, **fields: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        ask(client, applicant, **fields)
    assert str(refusal.value)
    return refusal.value.status


def batch_scores(pair: Pair) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in read_csv(pair.output("bank") / "predictions" / "scores.csv")}


def test_every_refusal_has_its_status(pair: Pair, running: dict[str, Process]) -> None:
    both = shared_applicants(pair)
    only_bank = sorted({digits(row["phone"]) for row in pair.rows["bank"]} - set(both))[0]
    with lender(pair) as client, lender(pair, "platform") as stranger:
        assert status(client, "0000000000") == "unknown-applicant"
        assert status(client, only_bank) == "unknown-at-peer"
        assert status(client, both[0], purpose="marketing") == "wrong-purpose"
        assert status(client, both[0], consent_expires="2020-01-01") == "consent-expired"
        assert status(client, both[0], consent_expires="soon") == "malformed"
        assert status(client, both[0], request_id="short") == "malformed"
        assert status(client, both[0], consent="") == "malformed"
        assert status(client, both[0], protocol=0) == "old-client"
        assert status(client, both[0] * 2000) == "oversized"
        assert status(stranger, both[0]) == "not-a-caller"
        first = request(both[0]).SerializeToString()
        assert client.ask(first, 5) == client.ask(first, 5)
        again = type(request(both[0])).FromString(first)
        assert status(client, both[1], request_id=again.request_id) == "request-reused"
    answered = [e for e in audit.entries(logs(pair, "platform")) if e.get("request") == again.request_id]
    assert len(answered) == 1


def test_http_says_the_same(pair: Pair, running: dict[str, Process]) -> None:
    tls = load_party(pair.party_file("bank")).tls
    context = ssl.create_default_context(cafile=tls.authority)
    context.check_hostname = False
    host, _, port = pair.settings["bank"]["service"]["http"].rpartition(":")

    def call(method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        connection.request(method, path, body)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())

    bare = http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
    with pytest.raises(OSError):  # noqa: PT011, PT012  (how TLS says it, and when, depends on the moment)
        bare.request("GET", "/openapi.json")
        bare.getresponse()
    bare.close()
    context.load_cert_chain(tls.certificate, tls.key)
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
    applicant = shared_applicants(pair)[0]
    fields = {"request_id": "http-0001", "applicant": applicant, "purpose": "loan", "consent": "C-1",
              "consent_expires": "2999-12-31", "protocol": 1}  # fmt: skip
    code, reply = call("POST", "/v1/score", json.dumps(fields).encode())
    assert code == 200
    assert reply["margin"] == pytest.approx(float(batch_scores(pair)[applicant]["log_odds"]))
    assert reply["fallback"] is False
    code, page = call("GET", "/openapi.json")
    assert set(page["paths"]["/v1/score"]["post"]["responses"]["200"]["content"]["application/json"]["schema"][
        "properties"]) >= set(reply)  # fmt: skip
    for change, (due, name) in {
        ("applicant", "000"): (404, "unknown-applicant"), ("purpose", "x"): (403, "wrong-purpose"),
        ("protocol", 7): (426, "old-client"), ("strange", 1): (400, "malformed"),
    }.items():  # fmt: skip
        code, reply = call(
            "POST", "/v1/score", json.dumps({**fields, "request_id": "http-0002", **dict([change])}).encode()
        )
        assert (code, reply["status"]) == (due, name)
    assert call("POST", "/v1/score", b"not json")[0] == 400
    assert call("GET", "/elsewhere")[0] == 404
    assert call("POST", "/v1/score", b"x" * 20_000)[0] == 413
    for header, value in (("Content-Length", "1_0"), ("Content-Length", "x"), ("Transfer-Encoding", "chunked")):
        connection.close()
        connection.putrequest("POST", "/v1/score")
        connection.putheader(header, value)
        connection.endheaders()
        answer = connection.getresponse()  # what follows must not be taken for another request
        assert (answer.status, answer.getheader("Connection")) == (413, "close")
    connection.close()


def test_the_scores_of_batch_a_decision_and_two_logs_that_agree(pair: Pair, running: dict[str, Process]) -> None:
    known = batch_scores(pair)
    with lender(pair) as client:
        for applicant in shared_applicants(pair)[:60]:
            reply = ask(client, applicant)
            assert reply.margin == pytest.approx(float(known[applicant]["log_odds"]), abs=1e-12)
            assert reply.probability == pytest.approx(float(known[applicant]["probability"]), abs=1e-12)
            assert reply.calibrated == pytest.approx(float(known[applicant]["calibrated"]), abs=1e-12)
            low = reply.probability <= 0.3
            assert reply.decision == ("approve" if low else "refer" if reply.probability <= 0.6 else "decline")
            assert not reply.fallback
            assert reply.model == "model-1"
        rotate(pair, "platform")
        fresh = ssl.PEM_cert_to_DER_cert(load_party(pair.party_file("platform")).tls.certificate.read_text())
        wait_for(lambda: certificate_of(pair, "platform") == fresh)
        ask(client, shared_applicants(pair)[0])
    for party, parts in {"platform": ["feature:spend"], "bank": ["feature:income", "score"]}.items():
        with urllib.request.urlopen(f"http://{pair.settings[party]['service']['status']}/metrics") as answer:
            text = answer.read().decode()
        assert 'fedlearn_requests_total{status="ok"} ' in text
        for part in parts:
            assert f'fedlearn_stability_index{{model="model-1",of="{part}"}}' in text
    for process in running.values():
        process.signal(signal.SIGTERM)
        assert process.wait().code == 0
    assert audit.agree(logs(pair, "bank"), logs(pair, "platform"))["answered"] >= 60
    for party in MODULES:
        found = audit.verify(logs(pair, party), load_party(pair.party_file(party)).tls.key)
        assert found["after_last_seal"] == 0
        written = logs(pair, party).read_text() + running[party].said()
        assert not any(applicant in written for applicant in shared_applicants(pair))


def test_either_side_is_killed_under_load_and_comes_back(pair: Pair) -> None:
    """Every request is answered or fails cleanly, and what was answered is in the log."""
    pair.settings["bank"]["service"] |= {"fallback": "alone", "deadline_ms": 300}
    pair.write()
    applicants, stopping = shared_applicants(pair), threading.Event()
    outcomes: list[tuple[str, str, str]] = []  # outcome, model, request ID

    def load(client: Client, first: int) -> None:
        n = first
        while not stopping.is_set():
            identity, n = f"kill-{n:08d}", n + 1
            try:
                reply = ask(client, applicants[n % len(applicants)], request_id=identity)
                outcomes.append((reply.fallback_reason or "answered", reply.model, identity))
            except Refusal as refusal:
                outcomes.append((refusal.status, "", identity))
                time.sleep(0.02)

    def becomes(outcome: str) -> None:
        start = len(outcomes)
        wait_for(lambda: outcome in {found for found, _, _ in outcomes[start:]})

    with ExitStack() as stack:
        stack.callback(pair.write)
        stack.callback(pair.settings["bank"]["service"].update, {"deadline_ms": 2000})
        stack.callback(pair.settings["bank"]["service"].pop, "fallback")
        client = stack.enter_context(lender(pair))
        loads = [threading.Thread(target=load, args=(client, 10_000_000 * k)) for k in range(4)]
        stack.callback(stopping.set)
        with service(pair, "bank") as bank:
            with service(pair, "platform") as platform:
                for thread in loads:
                    thread.start()
                becomes("answered")
                platform.signal(signal.SIGKILL)
                platform.process.wait()
                becomes("peer-unavailable")
            assert {model for _, model, _ in outcomes} == {"model-1", "alone-1"}  # nobody was refused
            with service(pair, "platform"):
                back = time.monotonic()
                becomes("answered")
                assert time.monotonic() - back < 5
                bank.signal(signal.SIGKILL)
                bank.process.wait()
                wait_for(lambda: outcomes[-1][:2] == ("peer-unavailable", ""))
                with service(pair, "bank"):
                    back = time.monotonic()
                    becomes("answered")
                    assert time.monotonic() - back < 5
                    stopping.set()
                    for thread in loads:
                        thread.join()
    assert {outcome for outcome, _, _ in outcomes} == {"answered", "peer-unavailable"}
    scored = {entry["request"] for entry in audit.entries(logs(pair, "bank")) if entry["kind"] == "score"}
    assert {identity for _, model, identity in outcomes if model} <= scored
    audit.verify(logs(pair, "bank"), load_party(pair.party_file("bank")).tls.key)
    audit.agree(logs(pair, "bank"), logs(pair, "platform"))


def test_a_scorecard_with_reasons_limits_and_a_database(tmp_path: Path, keyring: Path) -> None:
    import sqlite3

    def turn(pair: Pair) -> None:
        del pair.contract["boost"]
        pair.contract |= {"glm": {"woe": True, "bins": 8, "l2": 0.001}, "scorecard": CARD}
        pair.contract["serving"]["per_second"] = 20
        pair.settings["bank"]["service"] |= {"measure": "score", "bands": [{"name": "all", "decision": "refer"}]}
        pair.settings["platform"]["service"]["store"] = {"kind": "sqlite", "path": "store.sqlite"}

    pair = serving_pair(tmp_path, keyring, turn)
    rows = [{**row, "phone": digits(row["phone"])} for row in pair.rows["platform"]]
    with sqlite3.connect(tmp_path / "platform" / "store.sqlite") as base:
        base.execute("CREATE TABLE features (phone TEXT PRIMARY KEY, spend REAL, visits REAL, city TEXT)")
        for row in rows:
            numbers = (float(row["spend"]) if row["spend"] else None, float(row["visits"]))
            base.execute("INSERT INTO features VALUES (?, ?, ?, ?)", (row["phone"], *numbers, row["city"]))
    base.close()
    train(pair)
    promote(pair)
    known, applicants = batch_scores(pair), shared_applicants(pair)
    with services(pair) as running, lender(pair) as client:
        for applicant in applicants[:40]:
            reply = ask(client, applicant)
            assert reply.score == pytest.approx(float(known[applicant]["score"]), abs=1e-9)
            assert list(reply.reasons) == [known[applicant][f"reason_{k}"] for k in (1, 2, 3) if
                                           known[applicant][f"reason_{k}"]]  # fmt: skip
            time.sleep(0.06)
        with sqlite3.connect(tmp_path / "platform" / "store.sqlite") as base:
            base.execute("UPDATE features SET spend = 'a lot' WHERE phone = ?", (applicants[0],))
            base.execute("UPDATE features SET spend = NULL, visits = NULL WHERE phone = ?", (applicants[1],))
        base.close()
        assert status(client, applicants[0]) == "feature-out-of-range"
        assert status(client, applicants[1]) == "features-missing"
        assert {outcome(client, applicants[2]) for _ in range(200)} == {"answered", "too-many"}
        assert command(pair, "platform", "registry", "retire", "model", "1", "--json") == 0
        wait_for(lambda: any(entry["event"] == "models" for entry in said(running["platform"])))
        wait_for(lambda: status(client, applicants[2]) == "model-retired")
        assert command(pair, "bank", "registry", "retire", "model", "1", "--json") == 0
        wait_for(lambda: status(client, applicants[2]) == "no-model")
        assert command(pair, "bank", "registry", "promote", "model", "1", "--json") == 40


def rotate(pair: Pair, party: str) -> None:
    """A new certificate over the old one, for the same key."""
    tls = load_party(pair.party_file(party)).tls
    request = keys.renew_request(tls.key.parent, party)
    fresh = pair.folder / "fresh.pem"
    keys.sign_request(pair.keyring / "ca", request, fresh)
    fresh.replace(tls.certificate)


def certificate_of(pair: Pair, party: str) -> bytes | None:
    """What a service shows to a new connection."""
    tls = load_party(pair.party_file("bank")).tls
    context = ssl.create_default_context(cafile=tls.authority)
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(tls.certificate, tls.key)
    host, _, port = pair.settings[party]["service"]["listen"].rpartition(":")
    plain = socket.create_connection((host, int(port)), 5)
    with context.wrap_socket(plain, server_hostname=party) as secure:
        return secure.getpeercert(binary_form=True)


def outcome(client: Client, applicant: str) -> str:
    try:
        ask(client, applicant)
    except Refusal as refusal:
        return refusal.status
    return "answered"
