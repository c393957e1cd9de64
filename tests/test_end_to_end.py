"""Whole runs of two real processes over mutual TLS: check, align, train, predict; simulate beside them; the demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import feather

from fedlearn.cli.main import run as command_line
from fedlearn.contract import load_contract
from fedlearn.errors import NotInContract, OutputExists
from fedlearn.models import share as shares
from fedlearn.protocols import boost
from tests.parties import (
    MODULES,
    NEW,
    SHARED,
    Ended,
    Pair,
    Process,
    Rows,
    digits,
    make_keys,
    make_pair,
    read_csv,
    tables,
    write_csv,
)

pytestmark = pytest.mark.processes

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys"))


def results(ended: dict[str, Ended]) -> Results:
    return {party: one.result for party, one in ended.items()}


def on_disk(pair: Pair, party: str, what: str) -> dict[str, Any]:
    return dict(json.loads((pair.output(party) / what / "run.json").read_text(encoding="utf-8")))


def scores(folder: Path) -> dict[str, float]:
    """Log-odds by ID."""
    return {row["id"]: float(row["log_odds"]) for row in read_csv(folder / "scores.csv")}


def ids(rows: Rows) -> set[str]:
    return {digits(row["phone"]) for row in rows}


def shared_ids(rows: dict[str, Rows]) -> set[str]:
    return ids(rows["platform"]) & ids(rows["bank"])


# --- the main job, once, for the tests that look at it -----------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, keyring: Path) -> Pair:
    """The bank has the labels, the platform listens; each also has a table of new customers."""
    made = make_pair(tmp_path_factory.mktemp("pair"), keyring, folds=2)
    for party, rows in tables(seed=8, shared=NEW, only=5).items():
        unlabelled = [{name: cell for name, cell in row.items() if name != "outcome"} for row in rows]
        write_csv(made.folder / party / "new.csv", unlabelled)
    return made


@pytest.fixture(scope="module")
def done(pair: Pair) -> dict[str, Results]:
    """What check, align, train, predict (new customers) printed, by job and party."""
    found = {job: results(pair.run(job)) for job in ("check", "align", "train")}
    return found | {"predict": results(pair.run("predict", "--data", "new.csv"))}


def test_check_says_what_would_happen(pair: Pair, done: dict[str, Results]) -> None:
    for party, said in done["check"].items():
        assert said["rows"] == said["peer_rows"] == len(pair.rows[party])
        assert said["peer_features"] == 3
        assert said["most_vectors"] == 3 * 4 * 2 * 3  # runs, trees, nodes of the last level, vectors of a node
        assert 0 < said["kl_nats_at_most"] <= pair.contract["budget"]["kl_nats"]


def test_the_shared_customers_are_found(pair: Pair, done: dict[str, Results]) -> None:
    order = {}
    for party, said in done["align"].items():
        assert said["rows_shared"] == SHARED
        rows = feather.read_table(pair.output(party) / "alignment" / "rows.arrow")["row"].to_pylist()
        order[party] = [digits(pair.rows[party][row]["phone"]) for row in rows]
    assert order["bank"] == order["platform"]
    assert set(order["bank"]) == shared_ids(pair.rows)


def test_train_uses_the_alignment_on_file(done: dict[str, Results]) -> None:
    sent = {job: {line["message"] for line in done[job]["bank"]["ledger"]} for job in ("align", "train", "predict")}
    assert "AlignBlinded" in sent["align"]
    assert "AlignOpen" in sent["train"]
    assert "AlignBlinded" not in sent["train"]
    assert "AlignBlinded" in sent["predict"]  # other customers


def test_two_processes_with_one_ledger(pair: Pair, done: dict[str, Results]) -> None:
    for job, what in (("align", "alignment"), ("train", "model"), ("predict", "predictions")):
        bank, platform = (on_disk(pair, party, what) for party in ("bank", "platform"))
        assert bank == done[job]["bank"]
        assert platform == done[job]["platform"]
        assert bank["ledger"] == platform["ledger"]
        assert bank["kl_nats"] == platform["kl_nats"]
        assert bank["session"] == platform["session"]
        assert bank["pid"] != platform["pid"]
        assert bank["bytes_sent"] == platform["bytes_received"] > 0
        assert platform["bytes_sent"] == bank["bytes_received"] > 0


def test_the_joint_model_is_better_and_both_hold_a_share(pair: Pair, done: dict[str, Results]) -> None:
    bank, platform = done["train"]["bank"], done["train"]["platform"]
    assert bank["joint"]["auc"] > bank["alone"]["auc"] + 0.03
    assert bank["model_id"] == platform["model_id"]
    assert set(platform["splits_by_feature"]) == set(pair.contract["passive"]["features"])
    assert sum(platform["splits_by_feature"].values()) > 0
    assert {path.name for path in (pair.output("platform") / "model").iterdir()} == {
        "share.json",
        "share.arrow",
        "run.json",
        "report.html",
        "reference.json",
    }


def test_nothing_of_the_other_side_is_kept(pair: Pair, done: dict[str, Results]) -> None:
    """Neither names of columns nor categories nor IDs that only the other side has."""
    for party, peer in (("bank", "platform"), ("platform", "bank")):
        written = b"".join(path.read_bytes() for path in pair.output(party).rglob("*") if path.is_file()).decode(
            "utf-8", "replace"
        )
        for name in pair.contract["active" if peer == "bank" else "passive"]["features"]:
            assert f'"{name}"' not in written
        for value in ("work-1", "city-1"):
            assert (value in written) == any(value in row.values() for row in pair.rows[party])
        assert not [one for one in ids(pair.rows[peer]) - ids(pair.rows[party]) if one in written]


def test_new_customers_are_scored(pair: Pair, done: dict[str, Results]) -> None:
    new = {party: read_csv(pair.folder / party / "new.csv") for party in MODULES}
    assert set(scores(pair.output("bank") / "predictions")) == shared_ids(new)
    assert done["predict"]["bank"]["rows_scored"] == NEW
    assert not (pair.output("platform") / "predictions" / "scores.csv").exists()


def test_a_second_run_is_refused_and_the_first_model_untouched(pair: Pair, done: dict[str, Results]) -> None:
    def model() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for party in MODULES
            for path in (pair.output(party) / "model").iterdir()
            if path.is_file()
        }

    before = model()
    for one in pair.run("train").values():
        assert one.code == OutputExists.exit_code
        assert json.loads(one.err)["message"] == f"{pair.output(one.party) / 'model'} already exists"
    assert model() == before
    assert not [path for path in pair.written() if "partial" in path]


def test_simulate_gives_what_the_two_processes_give(
    pair: Pair, done: dict[str, Results], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same alignment, ledger and figures; and margins in training equal to what both saved shares score."""
    twin = Pair(pair.folder.with_name("twin"), pair.keyring, pair.contract, pair.settings, pair.rows).write()
    kept: list[boost.ActiveResult] = []
    train = boost.train_active

    def train_and_keep(*arguments: Any, **named: Any) -> boost.ActiveResult:
        kept.append(train(*arguments, **named))
        return kept[-1]

    monkeypatch.setattr(boost, "train_active", train_and_keep)
    files = [str(twin.party_file(party)) for party in MODULES]
    for job in ("align", "train"):
        assert command_line(["simulate", *files, "--job", job, "--json", "--progress", "none"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["active"]["ledger"] == said["passive"]["ledger"] == done[job]["bank"]["ledger"]
        assert said["active"]["rows_shared"] == SHARED
    assert said["active"]["joint"] == pytest.approx(done["train"]["bank"]["joint"])
    assert said["passive"]["splits_by_feature"] == done["train"]["platform"]["splits_by_feature"]

    again = results(pair.run("predict", "--out", "again"))
    scored = scores(pair.folder / "bank" / "again")
    assert again["bank"]["rows_scored"] == SHARED == len(scored)
    own = [digits(row["phone"]) for row in pair.rows["bank"] if digits(row["phone"]) in scored]
    np.testing.assert_allclose([scored[one] for one in own], kept[0].fit.margins[0], rtol=0, atol=1e-12)


def test_the_saved_share_is_bound_to_its_contract(pair: Pair, done: dict[str, Results]) -> None:
    contract = load_contract(pair.folder / "bank" / "contract.toml")
    active = shares.load(pair.output("bank") / "model", contract, "bank")
    passive = shares.load(pair.output("platform") / "model", contract, "platform")
    assert active.model_id == passive.model_id == bytes.fromhex(done["train"]["bank"]["model_id"])
    assert isinstance(active, shares.ActiveShare)
    assert isinstance(passive, shares.PassiveShare)
    assert active.passive_splits == len(passive.feature)


# --- the other ways round ----------------------------------------------------------------------------


def test_the_platform_has_the_labels_and_the_bank_listens(tmp_path: Path, keyring: Path) -> None:
    pair = make_pair(tmp_path, keyring, active="platform", listener="bank")
    trained = results(pair.run("train"))
    assert trained["platform"]["role"] == "active"
    assert trained["platform"]["ledger"] == trained["bank"]["ledger"]
    scored = results(pair.run("predict"))
    assert scored["platform"]["rows_scored"] == SHARED
    assert set(scores(pair.output("platform") / "predictions")) == shared_ids(pair.rows)
    assert not (pair.output("bank") / "predictions" / "scores.csv").exists()


def numbers(value: Any) -> list[int]:
    """Every whole number in a JSON value."""
    if isinstance(value, dict):
        return [n for name, inner in value.items() if name != "pid" for n in numbers(inner)]
    if isinstance(value, list):
        return [n for inner in value for n in numbers(inner)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def test_one_sided_the_passive_side_does_not_learn_who_is_shared_nor_how_many(tmp_path: Path, keyring: Path) -> None:
    pair = make_pair(tmp_path, keyring, mode="one-sided")
    everybody = len(pair.rows["platform"])
    for job in ("align", "train", "predict"):
        ended = pair.run(job)
        said = results(ended)
        assert said["bank"]["rows_shared"] == SHARED
        assert said["platform"]["rows_shared"] is None
        assert said["platform"]["rows_common_order"] == everybody
        assert SHARED not in numbers(said["platform"])
        assert str(SHARED) not in ended["platform"].err
    for path in pair.output("platform").rglob("*.json"):
        assert SHARED not in numbers(json.loads(path.read_text(encoding="utf-8"))), path
    rows = feather.read_table(pair.output("platform") / "alignment" / "rows.arrow")["row"].to_pylist()
    assert sorted(rows) == list(range(everybody))
    assert set(scores(pair.output("bank") / "predictions")) == shared_ids(pair.rows)


def test_by_oblivious_transfer_and_two_keys(tmp_path: Path, keyring: Path) -> None:
    """Some of the bank's shared customers have no phone number; those are found by their address."""
    shared = shared_ids(tables())
    lost = sorted(shared)[:30]

    def change(pair: Pair) -> None:
        for party, rows in pair.rows.items():
            for row in rows:
                phone = digits(row["phone"])
                row["mail"] = f"Customer.{phone}@Example.ORG" if party == "bank" else f" customer.{phone}@example.org"
                if party == "bank" and phone in lost:
                    row["phone"] = ""
        key = pair.contract["align"]["key"] | {"nulls": "drop"}
        pair.contract["align"] |= {"method": "ot", "key": key, "also": [{"column": "mail", "normalise": "email"}]}

    pair = make_pair(tmp_path, keyring, mode="one-sided", change=change)
    for job in ("align", "train"):
        said = results(pair.run(job))
        assert said["bank"]["rows_by_key"] == {"phone": SHARED - 30, "mail": 30}
        assert said["platform"]["rows_by_key"] == {}
        assert said["bank"]["rows_shared"] == SHARED
        assert SHARED not in numbers(said["platform"])
    orders = {
        party: feather.read_table(pair.output(party) / "alignment" / "rows.arrow")["row"].to_pylist()
        for party in MODULES
    }
    for mine, theirs in zip(orders["bank"], orders["platform"], strict=True):
        mail = digits(pair.rows["platform"][theirs]["mail"])
        assert (mine >= 0) == (mail in shared)
        assert mine < 0 or digits(pair.rows["bank"][mine]["mail"]) == mail


def test_cardinality_gives_a_count_and_nothing_to_train_on(
    tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = make_pair(tmp_path, keyring, mode="cardinality")
    for party, said in results(pair.run("align")).items():
        assert said["rows_shared"] == SHARED
        assert not feather.read_table(pair.output(party) / "alignment" / "rows.arrow").num_rows
    for job in ("train", "predict"):
        for party in MODULES:
            assert command_line(pair.arguments(party, job)) == NotInContract.exit_code
            assert "cardinality" in capsys.readouterr().err


# --- the demo ----------------------------------------------------------------------------------------

DEMO = [
    "rows_platform",
    "rows_bank",
    "rows_shared",
    "auc_bank_only",
    "auc_joint",
    "ks_bank_only",
    "ks_joint",
    "seconds",
    "bytes_sent_platform",
    "bytes_sent_bank",
    "pids",
    "kl_nats",
    "ledger",
]


def test_the_demo_over_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "demo" / "bank").mkdir(parents=True)
    (tmp_path / "demo" / ".fedlearn-demo").touch()
    (tmp_path / "demo" / "bank" / "old.csv").write_text("id\n", encoding="utf-8")
    program = ["-c", "from fedlearn.cli.main import main; main()", "demo", "demo", "--json"]
    summary = Process("demo", program, tmp_path).wait().result
    assert not (tmp_path / "demo" / "bank" / "old.csv").exists()
    assert json.loads((tmp_path / "demo" / "summary.json").read_text(encoding="utf-8")) == summary
    assert set(DEMO) <= set(summary)
    assert len(set(summary["pids"])) == 2
    assert summary["rows_shared"] < min(summary["rows_platform"], summary["rows_bank"])
    assert summary["auc_joint"] >= summary["auc_bank_only"] + 0.03
    assert summary["ks_joint"] > summary["ks_bank_only"]
    assert abs(summary["auc_joint"] - summary["auc_pooled_xgboost"]) <= 0.01
    assert summary["ledgers_identical"]
    for path in summary["written"].values():
        assert (tmp_path / path).exists()
