"""Two processes on loopback with certificates of their own: the stage on which benchmarks run."""

from __future__ import annotations

import json
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from fedlearn import keys
from fedlearn.channel import Channel
from fedlearn.channel.faulty import SlowLink
from fedlearn.channel.grpc_link import dial, listen
from fedlearn.channel.link import Link
from fedlearn.contract import Tls
from fedlearn.errors import FedlearnError

P = ParamSpec("P")
R = TypeVar("R")

PARTIES = ("active", "passive")

#: Simulated links by name: milliseconds of a round trip, megabits a second each way.
LINKS = {"lan": (0.5, 1000.0), "100mbit": (20.0, 100.0), "10mbit": (50.0, 10.0)}


def run_pair(module: str, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run ``python -m module`` once as each party and return what each printed as JSON (active's first).

    Raises:
        FedlearnError: a party failed, with what it said.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        keys.create_authority(folder / "authority", "bench authority")
        for party in PARTIES:
            keys.issue(folder / "authority", folder / party, party)
        settings = {**settings, "folder": place, "address": f"127.0.0.1:{free_port()}"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, json.dumps({**settings, "party": party})],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for party in PARTIES
        ]
        said = [process.communicate() for process in processes]
        for party, process, (_, complaint) in zip(PARTIES, processes, said, strict=True):
            if process.returncode:
                raise FedlearnError(f"the {party} side of the benchmark failed: {complaint.strip()[-2000:]}")
        active, passive = (json.loads(printed) for printed, _ in said)
        return active, passive


#: Ports below those that systems give to outgoing connections, one of which could take a port before it is listened on.
_FIRST_PORT, _PORTS = 20_000, 12_000
_next_port = count(secrets.randbelow(_PORTS))


def free_port() -> int:
    """A port of this machine that nobody listens on; another one at each call."""
    while True:
        port = _FIRST_PORT + next(_next_port) % _PORTS
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def party_channel(settings: dict[str, Any]) -> Iterator[Channel]:
    """This process's end, inside a process started by :func:`run_pair`; the passive side listens.

    ``settings["link"]`` may name one of :data:`LINKS`, which then stands between both sides.
    """
    me = settings["party"]
    peer = PARTIES[1 - PARTIES.index(me)]
    folder = Path(settings["folder"]) / me
    tls = Tls(certificate=folder / f"{me}.pem", key=folder / f"{me}.key", authority=folder / "authority.pem")
    open_link = listen if me == "passive" else dial
    link: Link = open_link(settings["address"], tls, me, peer, 60.0)
    if settings.get("link", "loopback") != "loopback":
        milliseconds, megabits = LINKS[settings["link"]]
        link = SlowLink(link, delay_seconds=milliseconds / 2000, bytes_per_second=megabits * 125_000)
    with Channel(link, me=me, peer=peer) as channel:
        channel.session = bytes(16)  # a benchmark has no contract and so no handshake
        yield channel


def peak_mib() -> float:
    """Largest resident memory of this process so far.

    From /proc where there is one: ``ru_maxrss`` starts from what the process that started this one had used.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text(encoding="ascii").partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Seconds spent in functions, by name, summed over threads within a round."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._adding = threading.Lock()

    def timed(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """The function, with its time added under ``name``."""

        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            spent = time.perf_counter() - started
            with self._adding:
                self.seconds[name] = self.seconds.get(name, 0.0) + spent
            return result

        return run

    def lap(self) -> dict[str, float]:
        """The seconds so far; starts again from zero."""
        seconds, self.seconds = self.seconds, {}
        return seconds
