"""Real PostgreSQL and Redis servers of Debian's packages, for the length of a block."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
import redis

from fedlearn.bench.pair import free_port

PASSWORD = "hush-1734"  # noqa: S105


@dataclass(frozen=True)
class Postgres:
    """A server that listens on a Unix socket only."""

    folder: Path
    pg_ctl: tuple[str, ...] = field(default=(), repr=False)

    def url(self, user: str = "tester", password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@/postgres?host={self.folder}"

    def run(self, *statements: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off"
        run(*self.pg_ctl, "-l", str(self.folder / "log"), "-o", options, "start", folder=self.folder)

    def stop(self) -> None:
        run(*self.pg_ctl, "-m", "immediate", "stop", folder=self.folder)


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A running server. It refuses to run as root, so root starts it as another user."""
    place = _programs()
    if place is None:
        pytest.skip("PostgreSQL is not tested: there is no initdb (Debian package postgresql)")
    other = [name for name in ("postgres", "nobody") if _exists(name)][:1] if os.getuid() == 0 else []
    user = ("runuser", "-u", other[0], "--") if other else ()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # pytest's own folders are closed to other users
    try:
        (folder / "password").write_text(PASSWORD)
        if other:
            shutil.chown(folder, other[0])
            shutil.chown(folder / "password", other[0])
        data = str(folder / "data")
        run(
            *user, str(place / "initdb"), "-D", data, "-U", "tester", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync",
            f"--pwfile={folder / 'password'}", folder=folder,
        )  # fmt: skip
        server = Postgres(folder, (*user, str(place / "pg_ctl"), "-D", data, "-w"))
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@dataclass
class Redis:
    """A server with a password, on loopback."""

    program: str
    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def url(self, password: str = PASSWORD) -> str:
        return f"redis://:{password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [
            self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", "",
            "--dir", str(self.folder),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with redis.Redis.from_url(
            self.url(), retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.05), 200)
        ) as base:
            base.ping()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def redis_server(folder: Path) -> Iterator[Redis]:
    """A running server."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("Redis is not tested: there is no redis-server (Debian package redis-server)")
    server = Redis(program, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def run(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120)


def _programs() -> Path | None:
    """The folder of initdb and pg_ctl, newest version first."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[-3]), reverse=True)
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).resolve().parent if on_path else None


def _exists(user: str) -> bool:
    return subprocess.run(["id", user], check=False, capture_output=True).returncode == 0
