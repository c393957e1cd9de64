"""A trained pair, entered into both registries, and its two services as processes on loopback."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fedlearn.bench.pair import free_port
from fedlearn.cli.main import run as command_line
from fedlearn.contract import Tls, load_party
from fedlearn.service.rpc import Client
from fedlearn.v1 import serve_pb2 as pb
from tests.parties import MODULES, Pair, Process, digits, make_pair

Change = Callable[[Pair], object]


def serving_pair(folder: Path, keyring: Path, change: Change | None = None, **boost: Any) -> Pair:
    """A pair whose contract and party files have services; nothing is trained yet."""

    def turn(pair: Pair) -> None:
        pair.contract["serving"] = {"purposes": ["loan"]}
        ports = {
            name: f"127.0.0.1:{free_port()}" for name in ("platform", "bank", "http", "platform-page", "bank-page")
        }
        for party in MODULES:
            pair.settings[party]["service"] = {
                "listen": ports[party],
                "status": ports[f"{party}-page"],
                "store": {"path": "table.csv"},
                "deadline_ms": 2000,  # a busy machine is no reason to fail a test
            }
        pair.settings["bank"]["service"] |= {
            "peer": ports["platform"],
            "http": ports["http"],
            "callers": {"bank": {}},
            "bands": [
                {"name": "A", "decision": "approve", "up_to": 0.3},
                {"name": "B", "decision": "refer", "up_to": 0.6},
                {"name": "C", "decision": "decline"},
            ],
        }
        if change is not None:
            change(pair)

    return make_pair(folder, keyring, change=turn, **boost)


def train(pair: Pair) -> None:
    """Train and predict in this process."""
    files = [str(pair.party_file(party)) for party in MODULES]
    for job in ("train", "predict"):
        assert command_line(["simulate", *files, "--job", job, "--progress", "none", "--json"]) == 0


def command(pair: Pair, party: str, *arguments: str) -> int:
    """A command in this process, with the party's file."""
    return command_line([*arguments, "--party", str(pair.party_file(party))])


def promote(pair: Pair, name: str = "model", version: int = 1) -> None:
    """Enter the pair's model on both sides, and serve it."""
    for party in MODULES:
        assert command(pair, party, "registry", "add", "--name", name, "--json") == 0
        assert command(pair, party, "registry", "promote", name, str(version), "--json") == 0


@contextmanager
def service(pair: Pair, party: str) -> Iterator[Process]:
    """One side's service, ready."""
    with pair.one(party, "serve", "--party", str(pair.party_file(party))) as process:
        process.wait_until_said('"ready"')
        yield process


@contextmanager
def services(pair: Pair) -> Iterator[dict[str, Process]]:
    """Both sides' services, ready."""
    with ExitStack() as stack:
        yield {party: stack.enter_context(service(pair, party)) for party in MODULES}


@contextmanager
def lender(pair: Pair, caller: str = "bank") -> Iterator[Client]:
    """A client of the bank's service, with the certificate of ``caller``."""
    tls: Tls = load_party(pair.party_file(caller)).tls
    client = Client(pair.settings["bank"]["service"]["listen"], tls, caller, "bank", "Scores")
    try:
        yield client
    finally:
        client.close()


def request(applicant: str, **fields: Any) -> pb.ScoreRequest:
    """A request that is in order, but for ``fields``."""
    usual = {
        "request_id": secrets.token_hex(8), "applicant": applicant, "purpose": "loan", "consent": "C-1",
        "consent_expires": "2999-12-31", "protocol": 1,
    }  # fmt: skip
    return pb.ScoreRequest(**(usual | fields))


def ask(client: Client, applicant: str, **fields: Any) -> pb.ScoreReply:
    """Score one applicant."""
    return pb.ScoreReply.FromString(client.ask(request(applicant, **fields).SerializeToString(), 10))


def shared_applicants(pair: Pair) -> list[str]:
    """Identifiers that both sides have."""
    both = [{digits(row["phone"]) for row in pair.rows[party]} for party in MODULES]
    return sorted(both[0] & both[1])


def logs(pair: Pair, party: str) -> Path:
    """A side's audit log."""
    return pair.folder / party / "audit.jsonl"


def said(process: Process) -> list[dict[str, Any]]:
    """What a service logged."""
    return [json.loads(line) for line in process.said().splitlines()]
