"""The yardstick of ``fedlearn bench serve``: the same streams, threads and hops with nothing behind them.

``python -m fedlearn.bench.echo --party FILE`` serves as ``fedlearn serve`` does, but the passive side sends back what
it was sent, and the active side passes it on. What it takes is what gRPC, TLS and the operating system take.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from fedlearn.contract import load_contract, load_party
from fedlearn.errors import BadConfig
from fedlearn.service.common import log
from fedlearn.service.rpc import METHODS, Client, Server


def serve(file: Path, stop: threading.Event) -> None:
    """Serve until ``stop`` is set. Raises BadConfig: the party file has no ``[service]``."""
    party = load_party(file)
    service, contract = party.service, load_contract(party.contract)
    if service is None:
        raise BadConfig(f"{file} has no [service]")
    client = None
    if service.peer is not None:
        client = Client(service.peer, party.tls, party.party, contract.passive.name, "Parts")

    def answer(caller: str, raw: bytes) -> bytes:
        return raw if client is None else client.ask(raw, 10.0)

    stream, call = METHODS[contract.role_of(party.party)]
    callers = tuple(service.callers) or (contract.active.name,)  # the active side's party file has callers
    server = Server(service.listen, party.tls, party.party, stream, answer, service.workers, callers, call=call)
    server.start()
    log("ready", party=party.party)
    stop.wait()
    server.drain(1.0)
    if client is not None:
        client.close()


if __name__ == "__main__":
    serve(Path(sys.argv[-1]), threading.Event())
