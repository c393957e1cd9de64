"""Stores of online features: the same rows from a table, SQLite, PostgreSQL and Redis; and what they say when away."""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from fedlearn.contract import Key, Store
from fedlearn.errors import BadConfig, ColumnMissing, FileMissing
from fedlearn.service.common import Refusal, features_of
from fedlearn.service.store import Features, Row, open_store
from tests.servers import Postgres, Redis, postgres_server, redis_server

KEY = Key(column="phone", normalise="digits")
KINDS: dict[str, Any] = {"income": "number", "visits": "number", "city": "category"}
ROWS = {"0611": (1200.5, 3.0, "Rome"), "0622": (math.nan, 0.0, None), "0633": (math.nan, math.nan, None)}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        server.run(
            "CREATE TABLE features (phone text PRIMARY KEY, income numeric(10, 2), visits int2, city text)",
            "INSERT INTO features VALUES ('0611', 1200.50, 3, 'Rome'), ('0622', NULL, 0, ' ')",
            "INSERT INTO features VALUES ('0644', 'NaN', NULL, 'Bonn')",
            "INSERT INTO features (phone) VALUES ('0633')",
            "CREATE TABLE texts (phone text PRIMARY KEY, income text, visits text, city bool)",
            "INSERT INTO texts VALUES ('0611', 'a lot', '3', true), ('0622', 'inf', '3', false)",
            "INSERT INTO texts VALUES ('0633', '1', '2', true)",
        )
        yield server


@pytest.fixture(scope="module")
def redis_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        fill(server)
        yield server


def fill(server: Redis) -> None:
    with redis.Redis.from_url(server.url()) as base:
        base.hset("features:0611", mapping={"income": "1200.5", "visits": 3, "city": "Rome", "other": "x"})
        base.hset("features:0622", mapping={"visits": "0", "city": " ", "income": ""})
        base.hset("features:0633", mapping={"other": "x"})
        base.hset("features:0655", mapping={"income": "a lot"})
        base.hset("features:0666", mapping={"income": "inf"})
        base.set("features:0677", "no hash")


def same(row: Row | None, due: Row) -> bool:
    assert row is not None
    return all(a == b or (a != a and b != b) for a, b in zip(row, due, strict=True))


def check_rows(store: Features) -> None:
    for applicant, due in ROWS.items():
        assert same(store.get(applicant), due)
    assert store.get("0699") is None


def status(store: Features, applicant: str) -> str:
    with pytest.raises(Refusal) as refusal:
        features_of(store, applicant, 0.5)
    return refusal.value.status


def open_postgres(server: Postgres, **fields: Any) -> Features:
    usual = {"kind": "postgres", "url": server.url(), "timeout_ms": 2000, "connections": 4}
    return open_store(Store.model_validate(usual | fields), KEY, KINDS)


def open_redis(server: Redis, **fields: Any) -> Features:
    usual = {"kind": "redis", "url": server.url(), "timeout_ms": 2000, "connections": 4}
    return open_store(Store.model_validate(usual | fields), KEY, KINDS)


def test_the_same_rows_from_files(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE features (phone TEXT PRIMARY KEY, income REAL, visits REAL, city TEXT)")
        base.execute("INSERT INTO features VALUES ('0611', 1200.5, 3, 'Rome'), ('0622', NULL, 0, ' '),"
                     " ('0633', NULL, NULL, NULL)")  # fmt: skip
    base.close()
    check_rows(open_store(Store(kind="sqlite", path=path), KEY, KINDS))
    (tmp_path / "table.csv").write_text("phone,income,visits,city\n06-11,1200.5,3,Rome\n0622,,0, \n0633,,,\n")
    check_rows(open_store(Store(path=tmp_path / "table.csv"), KEY, KINDS))


def test_postgres(postgres: Postgres) -> None:
    store = open_postgres(postgres)
    check_rows(store)
    assert same(store.get("0644"), (math.nan, math.nan, "Bonn"))
    found: list[Row | None] = []
    threads = [threading.Thread(target=lambda: found.append(store.get("0611"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [ROWS["0611"]] * 16
    postgres.run("UPDATE features SET visits = 4 WHERE phone = '0611'")
    assert store.get("0611") == (1200.5, 4.0, "Rome")
    postgres.run("UPDATE features SET visits = 3 WHERE phone = '0611'")
    store.close()
    texts = open_postgres(postgres, table="public.texts")
    assert status(texts, "0611") == status(texts, "0622") == "feature-out-of-range"
    assert texts.get("0633") == (1.0, 2.0, "true")
    texts.close()


def test_a_key_column_of_numbers_finds_no_other_spelling(tmp_path: Path, postgres: Postgres) -> None:
    """A database casts '0600' to the number 600; by the contract it is another applicant."""
    path = tmp_path / "numbers.sqlite"
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE features (phone INTEGER PRIMARY KEY, income REAL, visits REAL, city TEXT)")
        base.execute("INSERT INTO features VALUES (600, 1, 2, 'Rome')")
    base.close()
    postgres.run(
        "CREATE TABLE numbers (phone bigint PRIMARY KEY, income int, visits int, city text)",
        "INSERT INTO numbers VALUES (600, 1, 2, 'Rome')",
        "CREATE TABLE padded (phone char(8) PRIMARY KEY, income int, visits int, city text)",
        "INSERT INTO padded VALUES ('600', 1, 2, 'Rome')",
    )
    stores = [
        open_store(Store(kind="sqlite", path=path), KEY, KINDS),
        *(open_postgres(postgres, table=table) for table in ("numbers", "padded")),
    ]
    for store in stores:
        assert store.get("600") == (1.0, 2.0, "Rome")
        for other in ("0600", " 600", "600.0", "6e2", "abc", "\0", "9" * 30, ""):
            assert store.get(other) is None, other
        store.close()


def test_postgres_is_away_for_a_while(postgres: Postgres) -> None:
    store = open_postgres(postgres, timeout_ms=500)
    check_rows(store)
    postgres.stop()
    assert status(store, "0611") == "store-unavailable"
    postgres.start()
    comes_back(store)
    postgres.run(
        "ALTER TABLE features RENAME TO hidden", "CREATE VIEW features AS SELECT hidden.* FROM hidden, pg_sleep(30)"
    )
    try:
        begun = time.monotonic()
        assert status(store, "0611") == "store-unavailable"  # one slow query holds nobody up
        assert time.monotonic() - begun < 15
    finally:
        postgres.run("DROP VIEW features", "ALTER TABLE hidden RENAME TO features")
        store.close()


def test_postgres_refused_at_the_start(postgres: Postgres) -> None:
    with pytest.raises(ColumnMissing, match="phone"):
        open_postgres(postgres, table="pg_class")
    with pytest.raises(BadConfig, match="nothing"):
        open_postgres(postgres, table="nothing")
    with pytest.raises(BadConfig, match="URL"):
        open_postgres(postgres, url="postgresql://x:hush@[")
    with pytest.raises(FileMissing) as refused:
        open_postgres(postgres, url=postgres.url(password="wrong-hush"))  # noqa: S106
    assert "hush" not in str(refused.value)


def test_redis(redis_base: Redis) -> None:
    store = open_redis(redis_base)
    check_rows(store)
    assert status(store, "0655") == status(store, "0666") == "feature-out-of-range"
    assert status(store, "0633") == "features-missing"
    assert status(store, "0677") == "store-unavailable"  # the key holds something else than a hash
    store.close()
    with pytest.raises(FileMissing) as refused:
        open_redis(redis_base, url=redis_base.url("wrong-hush"))
    assert "hush" not in str(refused.value)
    with pytest.raises(BadConfig, match="URL"):
        open_redis(redis_base, url="http://127.0.0.1")


def test_redis_is_away_for_a_while(redis_base: Redis) -> None:
    store = open_redis(redis_base)
    check_rows(store)
    redis_base.stop()
    assert status(store, "0611") == "store-unavailable"
    redis_base.start()
    fill(redis_base)
    comes_back(store)
    store.close()


def comes_back(store: Features) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            features_of(store, "0611", 0.5)
        except Refusal:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return check_rows(store)


@pytest.mark.parametrize(
    "fields",
    [{"kind": "redis", "path": "x"}, {"kind": "postgres"}, {"kind": "sqlite", "path": "x", "url": "redis://x"}, {}],
)
def test_a_store_has_one_place(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs"):
        Store.model_validate(fields)
