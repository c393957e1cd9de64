"""Sealed online scoring with real processes and real TLS: scores and bands of batch scoring, refusals, kills, logs."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.contract import load_contract, load_party
from fedlearn.errors import BadAudit, BadConfig
from fedlearn.models.share import ActiveShare
from fedlearn.protocols import serve_sealed as protocol
from fedlearn.service import audit
from fedlearn.service.common import Refusal
from fedlearn.service.registry import load_share
from fedlearn.service.rpc import Client, Server
from fedlearn.v1 import serve_pb2 as pb
from fedlearn.v1 import serve_sealed_pb2 as sealed_pb
from tests.parties import MODULES, Pair, digits, make_keys, wait_for
from tests.serving import (
    ask,
    command,
    lender,
    logs,
    promote,
    request,
    service,
    services,
    serving_pair,
    shared_applicants,
    train,
)
from tests.test_glm_end_to_end import CARD
from tests.test_serving import batch_scores, outcome

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, keyring: Path) -> Pair:
    """Trees, with a fallback; the contract tells the score."""

    def turn(made: Pair) -> None:
        made.contract["serving"]["mode"] = "sealed"
        made.settings["bank"]["service"]["fallback"] = "alone"

    made = serving_pair(tmp_path_factory.mktemp("sealed"), keyring, turn)
    train(made)
    promote(made)
    assert command(made, "bank", "train-alone", "--json") == 0
    place = str(made.output("bank") / "alone")
    assert command(made, "bank", "registry", "add", "--model", place, "--name", "alone", "--json") == 0
    assert command(made, "bank", "registry", "promote", "alone", "1", "--json") == 0
    return made


@contextmanager
def straight(pair: Pair) -> Iterator[Client]:
    """The bank's own connection to the platform's service, for questions that the bank's service would not put."""
    client = Client(
        pair.settings["platform"]["service"]["listen"],
        load_party(pair.party_file("bank")).tls,
        "bank",
        "platform",
        "Parts",
    )
    try:
        yield client
    finally:
        client.close()


class Questions:
    """Questions about the trained model, as the bank would put them."""

    def __init__(self, pair: Pair) -> None:
        contract = load_contract(load_party(pair.party_file("bank")).contract)
        share = load_share(pair.output("bank") / "model", contract, "bank")
        assert isinstance(share, ActiveShare)
        self.at = protocol.agree(contract, share.model_id, share.passive_splits)
        forest = share.forest
        parts = (forest.roots, forest.feature, forest.masks, forest.left, forest.value)
        self.trees = protocol.Trees.of(self.at, *parts)
        self._usual = {"serving_hash": contract.serving_hash(), "model_id": share.model_id, "protocol": 1}

    def asked(self, applicant: str, **fields: Any) -> pb.PartRequest:
        usual = {"purpose": "loan", "consent": "C-1", "consent_expires": "2999-12-31", "request_id": "straight-1"}
        return pb.PartRequest(**(self._usual | usual | {"applicant": applicant} | fields))

    def message(self, applicant: str, **fields: Any) -> sealed_pb.SealedAsk:
        """A first step in order."""
        kept: list[bytes] = []

        def told(raw: bytes) -> bytes:
            kept.append(raw)
            return b""

        with pytest.raises(protocol.Unfit):
            protocol.ask_sum(
                self.at, self.asked(applicant, **fields), self.trees.nesting,
                np.zeros(len(self.trees.nesting), np.int64), told,
            )  # fmt: skip
        return sealed_pb.SealedAsk.FromString(kept[0])


def refused(client: Client, message: sealed_pb.SealedAsk | pb.PartRequest | bytes) -> str:
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    with pytest.raises(Refusal) as refusal:
        client.ask(raw, 10)
    return refusal.value.status


def test_the_scores_of_batch_without_the_parts(pair: Pair) -> None:
    known, both = batch_scores(pair), shared_applicants(pair)
    with services(pair) as running, lender(pair) as client, straight(pair) as rogue:
        for applicant in both[:40]:
            reply = ask(client, applicant)
            assert reply.margin == pytest.approx(float(known[applicant]["log_odds"]), abs=1e-3)
            assert reply.probability == pytest.approx(float(known[applicant]["probability"]), abs=1e-3)
            assert reply.band == ("A" if reply.probability <= 0.3 else "B" if reply.probability <= 0.6 else "C")
            assert not reply.fallback
            assert list(reply.reasons) == []
        once = request(both[0]).SerializeToString()
        assert client.ask(once, 5) == client.ask(once, 5)
        refuse_what_does_not_fit(pair, rogue, both)
        running["platform"].signal(signal.SIGKILL)
        running["platform"].process.wait()
        reply = ask(client, both[0])
        assert (reply.fallback, reply.fallback_reason, reply.model) == (True, "peer-unavailable", "alone-1")
        assert reply.HasField("probability")
        spoil(pair, client, both[3])
        with service(pair, "platform"):
            wait_for(lambda: not ask(client, both[1]).fallback)
    for party in MODULES:
        audit.verify(logs(pair, party), load_party(pair.party_file(party)).tls.key)
        written = logs(pair, party).read_text()
        assert not any(applicant in written for applicant in both)
        assert '"mode":"sealed"' in written
    entries = [e for e in audit.entries(logs(pair, "platform")) if e["kind"] == "answer"]
    assert {entry["step"] for entry in entries} == {1}


def spoil(pair: Pair, client: Client, applicant: str) -> None:
    """In the platform's place answers something that is too short, then bytes that are no message."""
    answers = [sealed_pb.SealedAnswer(hint=bytes(8), word=bytes(8)).SerializeToString(), b"\xff"]
    listen, tls = pair.settings["platform"]["service"]["listen"], load_party(pair.party_file("platform")).tls
    server = Server(listen, tls, "platform", "Parts", lambda _caller, _raw: answers[0], 2, ("bank",))
    server.start()
    wait_for(lambda: outcome(client, applicant) == "peer-misbehaved")
    answers.pop(0)
    assert outcome(client, applicant) == "peer-misbehaved"
    server.drain(1)


def refuse_what_does_not_fit(pair: Pair, client: Client, both: list[str]) -> None:
    questions = Questions(pair)
    assert refused(client, b"\xff") == "malformed"
    assert refused(client, questions.asked(both[0])) == "contract-differs"  # as plain mode would put it
    assert refused(client, b"\x00" * (16 * 15 * 1024 + 1)) == "oversized"
    right = questions.message(both[0])
    for field, value in (("weights", right.weights[:-1]), ("nesting", right.nesting[4:]), ("table", bytes(8))):
        wrong = sealed_pb.SealedAsk.FromString(right.SerializeToString())
        setattr(wrong, field, value)
        assert refused(client, wrong) == "malformed"
    other = np.frombuffer(right.nesting, "<i4").copy()
    other[-1] = -1 if other[-1] >= 0 else 0
    wrong = sealed_pb.SealedAsk.FromString(right.SerializeToString())
    wrong.nesting = other.tobytes()
    assert refused(client, wrong) == "wrong-pair"
    assert refused(client, questions.message(both[0], purpose="marketing")) == "wrong-purpose"
    assert refused(client, questions.message(both[0], serving_hash=bytes(32))) == "contract-differs"
    assert refused(client, questions.message(both[0], model_id=bytes(16))) == "wrong-pair"
    assert refused(client, questions.message("0000000000", request_id="straight-2")) == "unknown-applicant"
    first, again = (client.ask(right.SerializeToString(), 5) for _ in range(2))
    assert first != again  # the same total, encrypted anew
    assert client.ask(questions.message(both[0]).SerializeToString(), 5)
    assert refused(client, questions.message(both[1])) == "request-reused"


def test_the_band_alone_and_answers_that_are_used_up(pair: Pair) -> None:
    pair.contract["serving"] |= {"tells": "band", "answers": 1000}
    pair.write()
    shutil.rmtree(pair.folder / "platform" / "registry" / "sealed", ignore_errors=True)
    known, both = batch_scores(pair), shared_applicants(pair)
    with services(pair), lender(pair) as client, straight(pair) as rogue:
        for applicant in both[:40]:
            reply, probability = ask(client, applicant), float(known[applicant]["probability"])
            assert not any(map(reply.HasField, ("probability", "margin", "score")))
            assert not reply.fallback
            if min(abs(probability - 0.3), abs(probability - 0.6)) > 0.005:  # half a step is 0.004 in log-odds
                assert reply.band == ("A" if probability <= 0.3 else "B" if probability <= 0.6 else "C")
                assert reply.decision == {"A": "approve", "B": "refer", "C": "decline"}[reply.band]
        once = request(both[0]).SerializeToString()
        assert client.ask(once, 5) == client.ask(once, 5)
        refuse_steps_out_of_order(pair, rogue, both)
        only_bank = sorted({digits(row["phone"]) for row in pair.rows["bank"]} - set(both))[0]
        reply = ask(client, only_bank)
        assert (reply.fallback, reply.fallback_reason) == (True, "unknown-at-peer")
        assert reply.HasField("probability")
    with pytest.raises(BadAudit, match="1 request"):  # those that went around the bank's service show
        audit.agree(logs(pair, "bank"), logs(pair, "platform"))
    with services(pair), lender(pair) as client:  # what was set aside before the restart counts as used
        assert ask(client, both[0]).fallback_reason == "used-up"
        assert command(pair, "platform", "registry", "retire", "model", "1", "--json") == 0
        wait_for(lambda: outcome(client, both[2]) == "model-retired")


def refuse_steps_out_of_order(pair: Pair, client: Client, both: list[str]) -> None:
    questions = Questions(pair)
    assert questions.at.table is not None
    table = sealed_pb.SealedAsk(asked=questions.asked(both[0]), table=bytes(questions.at.table.plan.query_bytes))
    assert refused(client, table) == "no-first-step"
    client.ask(questions.message(both[0]).SerializeToString(), 5)
    assert client.ask(table.SerializeToString(), 5)
    assert refused(client, table) == "no-first-step"  # a mask serves once
    client.ask(questions.message(both[0]).SerializeToString(), 5)
    other = sealed_pb.SealedAsk(asked=questions.asked(both[1]), table=table.table)
    assert refused(client, other) == "no-first-step"  # of another applicant


def test_a_scorecard_tells_the_band_alone(tmp_path: Path, keyring: Path) -> None:
    def turn(made: Pair) -> None:
        del made.contract["boost"]
        made.contract |= {"glm": {"woe": True, "bins": 8, "l2": 0.001}, "scorecard": CARD}
        made.contract["serving"] |= {"mode": "sealed", "tells": "band"}
        bands = [
            {"name": "D", "decision": "decline", "up_to": 540},
            {"name": "R", "decision": "refer", "up_to": 560},
            {"name": "A", "decision": "approve"},
        ]
        made.settings["bank"]["service"] |= {"measure": "score", "bands": bands}

    pair = serving_pair(tmp_path, keyring, turn)
    train(pair)
    promote(pair)
    known, both = batch_scores(pair), shared_applicants(pair)
    found = set()
    with services(pair), lender(pair) as client:
        for applicant in both[:60]:
            reply, score = ask(client, applicant), float(known[applicant]["score"])
            assert not any(map(reply.HasField, ("probability", "margin", "score")))
            assert set(reply.reasons) <= {"B-INCOME", "B-DEBT"}  # the bank's own
            if min(abs(score - 540), abs(score - 560)) > 0.2:  # half a step is 0.17 points
                assert reply.band == ("D" if score <= 540 else "R" if score <= 560 else "A")
                found.add(reply.band)
    assert len(found) > 1
    audit.agree(logs(pair, "bank"), logs(pair, "platform"))
    pair.settings["bank"]["service"] |= {"bands": [{"name": "all", "decision": "refer"}]}
    pair.write()
    with pair.one("bank", "serve", "--party", str(pair.party_file("bank"))) as process:
        ended = process.wait()
    assert ended.code == BadConfig.exit_code
    assert "needs 2 to 16 bands" in ended.err
