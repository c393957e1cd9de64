"""The audit log against whoever can write its file: what was slipped in, made up, lost, or could not be kept."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlearn import keys
from fedlearn.errors import BadAudit
from fedlearn.service import audit
from fedlearn.service.audit import AuditLog
from tests.parties import wait_for

NEVER = 1e6  # seconds between two seals


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("key")
    keys.create_request(folder, "platform")
    return folder / "platform.key"


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """No seal but those of an orderly end."""
    monkeypatch.setattr(audit, "_SYNC_EVERY", NEVER)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_SYNC_EVERY", 0.01)


def started(path: Path, key: Path, count: int = 3) -> AuditLog:
    log = AuditLog(path, "platform", key)
    for n in range(count):
        log.add("answer", request=f"request-{n}", consent="C")
    return log


def killed(log: AuditLog) -> None:
    """Nothing is written or signed any more."""
    log._synced.set()
    log._syncing.join()
    os.close(log._file)


def ended(path: Path, key: Path, count: int = 3) -> Path:
    started(path, key, count).close()
    return path


def made_up(path: Path, count: int, **facts: Any) -> None:
    """Append entries as the service would, without its key."""
    last = json.loads(path.read_bytes().splitlines()[-1])
    before, seq = last["hash"], last["seq"]
    with path.open("ab") as file:
        for n in range(1, count + 1):
            entry = {"seq": seq + n, "at": "2026-01-01T00:00:00.000+00:00", "kind": "answer", "prev": before, **facts}
            body = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
            before = hashlib.sha256(body).hexdigest()
            file.write(body[:-1] + f',"hash":"{before}"}}\n'.encode())


def refused(log: AuditLog) -> bool:
    try:
        log.add("answer", request="request-x")
    except OSError:
        return True
    return False


# --- text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tamper",
    [
        lambda line: line.replace(b'"kind":"answer"', b'"kind":"refuse","kind":"answer"'),
        lambda line: line.replace(b'{"at"', b'{"hash":"x","at"'),
        lambda line: line.replace(b",", b", "),
        lambda line: line.replace(b"}\n", b"} \n"),
        lambda line: line.replace(b"\n", b"\r\n"),
        lambda line: line.replace(b"answer", rb"\u0061nswer"),
        lambda line: b" " + line,
        lambda line: b"{" + line[-75:-2] + b"," + line[1:-76] + b"}\n",  # the hash first
    ],
)
def test_text_that_means_the_same_is_found(
    tmp_path: Path, key: Path, seldom: None, tamper: Callable[[bytes], bytes]
) -> None:
    path = ended(tmp_path / "audit.jsonl", key)
    lines = path.read_bytes().splitlines(keepends=True)
    other = tamper(lines[2])
    assert other != lines[2]
    path.write_bytes(b"".join([*lines[:2], other, *lines[3:]]))
    with pytest.raises(BadAudit, match="line 3: its hash is not that of its text"):
        audit.verify(path, key)


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"kind":"answer"}', b"[[{},1]]", b"null", b'"\xff"', b"\0" * 50])
def test_what_is_no_entry_is_found(tmp_path: Path, key: Path, seldom: None, line: bytes) -> None:
    path = ended(tmp_path / "audit.jsonl", key)
    with path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(BadAudit, match="line 7: it is no entry"):
        audit.verify(path)
    with pytest.raises(BadAudit, match="line 7: it is no entry"):
        AuditLog(path, "platform", key)


@pytest.mark.parametrize("facts", [{"seq": True}, {"seq": 7.0}, {"kind": ["answer"]}, {"kind": None}])
def test_facts_of_the_wrong_kind_are_found(tmp_path: Path, key: Path, seldom: None, facts: dict[str, Any]) -> None:
    path = ended(tmp_path / "audit.jsonl", key)
    made_up(path, 1, **facts)
    with pytest.raises(BadAudit, match="line 7: it is no entry"):
        audit.verify(path, key)


def test_any_text_that_was_written_is_right(tmp_path: Path, key: Path, seldom: None) -> None:
    log = started(tmp_path / "audit.jsonl", key)
    for text in ("\u2028", "ä\r\n", "\ud83d", "😀", '"kind":"seal"', "\0"):
        log.add("refuse", request=text, share=0.1)
    killed(log)
    assert audit.verify(tmp_path / "audit.jsonl")["kinds"]["refuse"] == 6
    AuditLog(tmp_path / "audit.jsonl", "platform", key).close()
    assert audit.verify(tmp_path / "audit.jsonl", key)["unsealed"] == {"line 11": 10}


# --- both sides ---------------------------------------------------------------------------------------


def logged(path: Path, key: Path, *found: tuple[str, dict[str, Any]]) -> Path:
    log = AuditLog(path, "party", key)
    for kind, facts in found:
        log.add(kind, request="request-1", consent="C-1", **facts)
    log.close()
    return path


@pytest.mark.parametrize(
    ("facts", "counts"),
    [
        ({"fallback": False, "joint": False}, False),
        ({"fallback": True, "joint": False}, False),
        ({"fallback": False, "joint": True}, True),
        ({"fallback": False}, True),
        ({"fallback": True}, False),
    ],
)
def test_only_scores_of_both_sides_need_an_answer(
    tmp_path: Path, key: Path, seldom: None, facts: dict[str, Any], counts: bool
) -> None:
    silent = logged(tmp_path / "silent", key)
    alone = logged(tmp_path / "active", key, ("score", facts))
    if counts:
        with pytest.raises(BadAudit, match="no answer"):
            audit.agree(alone, silent)
    else:
        assert audit.agree(alone, silent) == {"asked": 0, "answered": 0, "scored": 0}
    asked = logged(tmp_path / "asked", key, ("ask", {}), ("score", facts))
    assert audit.agree(asked, logged(tmp_path / "passive", key, ("answer", {})))["scored"] == counts


# --- seals, and what a service takes over -------------------------------------------------------------


def test_what_is_new_is_sealed_in_the_background_once(tmp_path: Path, key: Path, often: None) -> None:
    path = tmp_path / "audit.jsonl"
    log = started(path, key)
    wait_for(lambda: audit.verify(path, key)["after_last_seal"] == 0)
    time.sleep(0.1)  # nothing new: nothing to be sealed
    before = audit.verify(path, key)
    assert before["kinds"]["seal"] <= 5
    log.add("answer", request="request-x")
    wait_for(lambda: audit.verify(path, key)["kinds"]["seal"] == before["kinds"]["seal"] + 1)
    killed(log)


def test_however_many_entries_there_are_some_seal_is_near(
    tmp_path: Path, key: Path, seldom: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "SEAL_EVERY", 5)
    killed(started(tmp_path / "audit.jsonl", key, 23))
    found = audit.verify(tmp_path / "audit.jsonl", key)
    assert (found["kinds"]["seal"], found["after_last_seal"]) == (4, 4)


@pytest.mark.parametrize("count", [1, 1000])  # within what is read at first, and beyond
def test_entries_made_up_while_the_service_is_down_are_counted(
    tmp_path: Path, key: Path, seldom: None, count: int
) -> None:
    path = ended(tmp_path / "audit.jsonl", key)
    assert audit.verify(path, key)["unsealed"] == {}
    made_up(path, count)
    ended(path, key)
    opened = [entry["unsealed"] for entry in audit.entries(path) if entry["kind"] == "open"]
    assert opened == [0, count]
    assert audit.verify(path, key)["unsealed"] == {f"line {7 + count}": count}


def test_a_log_without_any_seal_is_counted_from_its_beginning(tmp_path: Path, key: Path, seldom: None) -> None:
    path = tmp_path / "audit.jsonl"
    killed(started(path, key))
    ended(path, key)
    assert audit.verify(path, key)["unsealed"] == {"line 5": 4}


def test_a_made_up_opening_does_not_hide_what_is_before_it(tmp_path: Path, key: Path, seldom: None) -> None:
    path = ended(tmp_path / "audit.jsonl", key)
    made_up(path, 2)
    made_up(path, 1, kind="open", unsealed=0)
    with pytest.raises(BadAudit, match="line 9: 2 entries before it have no seal"):
        audit.verify(path)


def test_a_service_does_not_go_on_from_a_broken_end(tmp_path: Path, key: Path, seldom: None) -> None:
    path = ended(tmp_path / "audit.jsonl", key)
    made_up(path, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    for missing in (5, 6, 7):  # the seal, and entries after it
        path.write_bytes(b"".join(lines[:missing] + lines[missing + 1 :]))
        with pytest.raises(BadAudit, match="does not follow"):
            AuditLog(path, "platform", key)
    path.write_bytes(b"".join(lines))
    AuditLog(path, "platform", key).close()  # nothing else was wrong, and the file is free


@pytest.mark.parametrize("facts", [{}, {"signature": "00"}, {"signature": None}, {"signature": "no number"}])
def test_a_service_does_not_go_on_from_a_made_up_seal(
    tmp_path: Path, key: Path, seldom: None, facts: dict[str, Any]
) -> None:
    path = ended(tmp_path / "audit.jsonl", key)
    made_up(path, 1)
    made_up(path, 1, kind="seal", **facts)
    made_up(path, 1)
    raw = path.read_bytes()
    with pytest.raises(BadAudit, match="line 8: the last seal is not signed"):
        AuditLog(path, "platform", key)
    assert path.read_bytes() == raw


def test_the_seal_of_another_key_is_refused(tmp_path: Path, key: Path, seldom: None) -> None:
    keys.create_request(tmp_path, "mallory")
    path = ended(tmp_path / "audit.jsonl", tmp_path / "mallory.key")
    with pytest.raises(BadAudit, match="line 6: the last seal is not signed"):
        AuditLog(path, "platform", key)


def test_the_number_of_the_last_seal_is_checked(tmp_path: Path, key: Path, seldom: None) -> None:
    path = ended(tmp_path / "audit.jsonl", key)
    lines = path.read_bytes().splitlines(keepends=True)
    seal = json.loads(lines[-1])
    path.write_bytes(b"".join(lines[:-1]))
    made_up(path, 1, kind="seal", signature=seal["signature"], seq=60)
    with pytest.raises(BadAudit, match="line 6: it does not follow"):
        AuditLog(path, "platform", key)


# --- power failures and full disks --------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [100, 70_000, 1_000_000])
def test_zeros_after_a_power_failure_are_cut_off(tmp_path: Path, key: Path, seldom: None, zeros: int) -> None:
    path = ended(tmp_path / "audit.jsonl", key)
    with path.open("ab") as file:
        file.write(b"\0" * zeros)
    ended(path, key)
    assert audit.verify(path, key)["entries"] == 12
    assert [entry["torn_bytes"] for entry in audit.entries(path) if entry["kind"] == "open"] == [0, zeros]


@pytest.mark.parametrize("content", [b"x", b"\0" * 70_000, b"\n", b'{"seq":1', b"\0" * 200_000 + b"\n"])
def test_numbers_never_begin_anew_in_a_file_that_is_not_empty(tmp_path: Path, key: Path, content: bytes) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadAudit):
        AuditLog(path, "platform", key)
    assert path.read_bytes() == content


def test_the_search_for_a_seal_has_an_end(
    tmp_path: Path, key: Path, seldom: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_FARTHEST", 100_000)
    path = ended(tmp_path / "audit.jsonl", key)
    made_up(path, 1000)
    with pytest.raises(BadAudit, match="last 100,000 bytes are not the end of a log"):
        AuditLog(path, "platform", key)


@pytest.mark.parametrize("broken", ["fsync", "sign"])
def test_nothing_is_added_while_the_log_cannot_be_kept(
    tmp_path: Path, often: None, broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys.create_request(tmp_path, "platform")
    path, key = tmp_path / "audit.jsonl", tmp_path / "platform.key"
    log, usable = started(path, key), key.read_bytes()

    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        if broken == "sign":
            key.write_text("no key")
        else:
            patched.setattr(os, "fsync", fail)
        wait_for(lambda: refused(log))
        before = path.read_bytes().count(b'"answer"')
        time.sleep(0.1)  # some more attempts
        assert log._syncing.is_alive()
        assert refused(log)
        assert path.read_bytes().count(b'"answer"') == before
        key.write_bytes(usable)
    wait_for(lambda: not refused(log))
    log.close()
    audit.verify(path, key)
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["audit-not-kept", "audit-kept-again"]


def test_a_log_that_cannot_be_closed_in_order_is_free_all_the_same(
    tmp_path: Path, key: Path, seldom: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = started(tmp_path / "audit.jsonl", key)

    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input"):
            log.close()
    log.close()
    AuditLog(tmp_path / "audit.jsonl", "platform", key).close()
