"""Training that breaks off and goes on, and training that goes on from an earlier model: the model of one go."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.channel import Ledger
from fedlearn.cli.main import run as command_line
from fedlearn.crypto.draws import Draws
from fedlearn.errors import (
    BeyondContract,
    JobMismatch,
    Malformed,
    NotInContract,
    OutputExists,
    OverBudget,
    PeerMisbehaved,
    WrongCheckpoint,
    WrongModel,
)
from fedlearn.kernels import trees as kernel
from fedlearn.learner.booster import Model, Split
from fedlearn.models import checkpoint as checkpoints
from fedlearn.models.checkpoint import Checkpoint
from fedlearn.models.forest import Forest, Growth
from fedlearn.protocols import boost
from fedlearn.protocols.align import Alignment
from fedlearn.protocols.resume import Meter, Point, Spent, Start
from fedlearn.v1 import boost_pb2 as pb
from fedlearn.v1 import matvec_pb2
from tests.boosting import Case, meet, mixed, numbers, spoiling
from tests.parties import MODULES, Pair, make_keys, make_pair, tables, write_csv

KEY = bytes(range(32))


class Broke(Exception):
    """A side dies here."""


def case(rows: int = 300, **parameters: Any) -> Case:
    columns, label = numbers(rows, 6, seed=3)
    settings = {"trees": 6, "depth": 3, "bins": 8, "min_child_weight": 2.0} | parameters
    return Case(columns, label, 3, budget={"vectors": 100_000, "kl_nats": 1e-3}, **settings)


def classes(**parameters: Any) -> Case:
    columns, _ = mixed(300, seed=5)
    label = (np.nan_to_num(columns["x0"]) > 0) + (columns["town"] > "d").astype(float)
    budget = {"vectors": 100_000, "kl_nats": 1e-3}
    return Case(columns, label, 3, budget=budget, **{"trees": 6, "depth": 2, "objective": "softmax", **parameters})


class Sides:
    """Both sides' checkpoints of one case, and attempts at training it."""

    def __init__(self, case: Case, folder: Path, **named: Any) -> None:
        self.case, self.folder, self.named = case, folder, named
        self.contract = case.contract()
        rows = np.arange(case.table.rows)
        self.alignment = Alignment(bytes(16), "mutual", len(rows), len(rows), rows)

    def binding(self, role: str) -> dict[str, str]:
        return checkpoints.bind(self.contract.hash(), self.case.table.fingerprint(), role, role, b"")

    def load(self, role: str) -> Checkpoint:
        return checkpoints.load(self.folder / role, self.binding(role))

    def attempt(
        self,
        resume: bool = False,
        dies: str = "",
        at: tuple[Any, int] = (pb.BoostRoundDone, 0),
        contract: Any = None,
        watch: Callable[[Any], Any] | None = None,
        given: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Train, until one side dies when it sends or receives so many messages of one kind."""
        contract = contract or self.contract

        def side(role: str) -> Callable[[Any], Any]:
            def play(channel: Any) -> Any:
                if resume:
                    kept = self.load(role)
                else:
                    run = channel.session
                    kept = Checkpoint(self.folder / role, self.binding(role), run, self.alignment)
                if dies == role:
                    channel = dying(channel, *at)
                if role == "active":
                    seen = spoiling(channel, matvec_pb2.MatvecQuery, watch) if watch else channel
                    result = boost.train_active(seen, contract, self.case.active, checkpoint=kept, **self.named)
                else:
                    seen = spoiling(channel, matvec_pb2.MatvecAnswer, given) if given else channel
                    result = boost.train_passive(seen, contract, self.case.passive, Draws(KEY), checkpoint=kept)
                kept.remove()
                return result, channel.ledger

            return play

        return meet(side("active"), side("passive"), contract)

    def unbroken(self) -> Any:
        return Sides(self.case, self.folder / "unbroken").attempt()


class dying:  # noqa: N801  (used like a function)
    """A channel whose owner dies at the so-manieth message of a kind that it sends or has received."""

    def __init__(self, channel: Any, kind: Any, count: int) -> None:
        self._channel, self._kind, self._left = channel, kind, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def _count(self, message: Any) -> None:
        if isinstance(message, self._kind):
            if not self._left:
                raise Broke
            self._left -= 1

    def send(self, message: Any, bulk: Any = b"") -> None:
        self._count(message)
        self._channel.send(message, bulk)

    def receive(self, *kinds: Any) -> Any:
        message = self._channel.receive(*kinds)
        self._count(message)
        return message


def assert_same(one: Any, other: Any) -> None:
    """The same forest, bit for bit, the same splits on the passive side, the same margins."""
    (active, passive), (other_active, other_passive) = one, other
    assert_same_forest(active.fit.forest, other_active.fit.forest)
    np.testing.assert_array_equal(active.fit.margins, other_active.fit.margins)
    np.testing.assert_array_equal(active.held_out, other_active.held_out)
    assert active.fit.history == other_active.fit.history
    np.testing.assert_array_equal(passive.feature, other_passive.feature)
    np.testing.assert_array_equal(passive.masks, other_passive.masks)


def assert_same_forest(one: Forest, other: Forest) -> None:
    for name, values in vars(one).items():
        assert values.tobytes() == getattr(other, name).tobytes(), name


def results(played: Any) -> Any:
    return played[0][0], played[1][0]


# --- resuming, in memory -----------------------------------------------------------------------------

CASES: dict[str, Callable[[], Case]] = {
    "bits": case,
    "oblivious": lambda: case(routing="oblivious"),
    "shared": lambda: case(routing="shared"),
    "folds": lambda: case(folds=2, min_child_size=5, subsample=0.8),
    "stopping": lambda: case(trees=12, validation=0.3, early_stopping=2, learning_rate=0.9, folds=2),
    "own rounds first": lambda: case(active_trees=1),
    "by leaf": lambda: case(growth="leaf", max_leaves=5, goss_top=0.3),
    "classes": classes,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dies", "kind"), [("active", pb.BoostSplits), ("passive", pb.BoostRoundDone)])
def test_a_resumed_run_gives_the_same_model(tmp_path: Path, name: str, dies: str, kind: Any) -> None:
    sides = Sides(CASES[name](), tmp_path)
    whole = sides.unbroken()
    with pytest.raises(Exception):  # noqa: B017, PT011  (whichever side's error comes first)
        sides.attempt(dies=dies, at=(kind, 5 if kind is pb.BoostSplits else 2))
    rounds = [sides.load(role).points[-1].round for role in ("active", "passive")]
    assert abs(rounds[0] - rounds[1]) <= 1
    with pytest.raises(Exception):  # noqa: B017, PT011  (and once more, right after)
        sides.attempt(resume=True, dies=dies, at=(kind, 1))
    resumed = sides.attempt(resume=True)
    assert_same(results(resumed), results(whole))
    assert resumed[0][0].start.round >= 1
    assert resumed[0][1].digest() == resumed[1][1].digest()
    assert not (tmp_path / "active").exists()
    assert not (tmp_path / "passive").exists()


def test_paillier_resumes_too(tmp_path: Path) -> None:
    sides = Sides(case(rows=40, trees=3, depth=2, gradient_bits=4), tmp_path)
    sides.contract = sides.case.contract(backend="paillier")
    whole = Sides.unbroken(sides)
    with pytest.raises(Exception):  # noqa: B017, PT011
        sides.attempt(dies="active", at=(pb.BoostRoundDone, 1))
    resumed = sides.attempt(resume=True)
    assert_same(results(resumed), results(whole))
    assert resumed[0][1].kl_nats == 0


@pytest.mark.parametrize(("spare", "settings"), [(0, {}), (1, {}), (0, {"forest": "random", "subsample": 0.6})])
def test_after_the_last_round_there_is_nothing_left_to_grow(
    tmp_path: Path, spare: int, settings: dict[str, Any]
) -> None:
    sides = Sides(case(**settings), tmp_path)
    with pytest.raises(Exception):  # noqa: B017, PT011
        sides.attempt(dies="active", at=(pb.BoostFinish, 0) if not spare else (pb.BoostRoundDone, 5))
    counted: list[int] = []
    resumed = sides.attempt(resume=True, watch=lambda query: counted.append(0 if query.first else query.count))
    assert_same(results(resumed), results(sides.unbroken()))
    assert bool(counted) == bool(spare)


def test_both_ledgers_go_on(tmp_path: Path) -> None:
    sides = Sides(case(), tmp_path)
    whole = sides.unbroken()[0][1]
    with pytest.raises(Exception):  # noqa: B017, PT011
        sides.attempt(dies="passive", at=(pb.BoostRoundDone, 3))
    spent = sides.load("passive").spent
    (_, ledger), (_, theirs) = sides.attempt(resume=True)
    assert ledger.lines() == theirs.lines()
    values = {line["message"]: line["values"] for line in ledger.lines()}
    expected = {line["message"]: line["values"] for line in whole.lines()}
    for name in ("MatvecAnswer", "BoostSplits", "BoostSides", "BoostRoundDone"):
        assert values[name] == expected[name]  # what was revealed twice is the same and counts once
    assert values["MatvecShape"] == 2 * expected["MatvecShape"]
    assert ledger.kl_nats > whole.kl_nats > spent.kl_nats > 0  # noise was drawn anew for the round that was repeated


# --- the budget of all attempts ----------------------------------------------------------------------


def vectors_asked(sides: Sides, **attempt: Any) -> int:
    counted: list[int] = []
    try:
        sides.attempt(watch=lambda query: counted.append(0 if query.first else query.count), **attempt)
    except Exception:  # that it breaks is the point
        return sum(counted)
    raise AssertionError("it did not break")


def test_attempts_share_one_budget(tmp_path: Path) -> None:
    """Broken off again and again in the same round, the active side gets no more vectors than the contract has."""
    sides = Sides(case(), tmp_path)
    need = boost.most_vectors(sides.contract)
    sides.case.extra["budget"]["vectors"] = need + 20
    sides.contract = sides.case.contract()
    total = vectors_asked(sides, dies="active", at=(pb.BoostRoundDone, 2))
    for _ in range(50):
        try:
            sides.load("passive")
            total += vectors_asked(sides, resume=True, dies="active", at=(pb.BoostRoundDone, 0))
            spent = sides.load("passive").spent
            assert spent.vectors >= total
        except AssertionError:
            raise
        if spent.vectors + boost.most_vectors(sides.contract, 2) > need + 20:
            break
    assert total <= need + 20
    with pytest.raises(OverBudget, match=r"earlier attempts used up to \d+ vectors"):
        sides.attempt(resume=True)


def test_a_killed_process_loses_no_count(tmp_path: Path) -> None:
    """What stands in the file while a round is under way covers all that the round may be given."""
    sides = Sides(case(), tmp_path)
    seen: list[tuple[int, int]] = []
    counted: list[int] = []

    def look(answer: Any) -> None:
        counted.append(answer.count)
        if (tmp_path / "passive" / "head.json").exists():
            seen.append((sides.load("passive").spent.vectors, sum(counted)))

    sides.attempt(given=look)
    assert len(seen) > 5
    assert all(written >= given for written, given in seen)


class Notes:
    """A checkpoint that only notes what is spent."""

    def __init__(self) -> None:
        self.spent: list[Spent] = []

    def spend(self, spent: Spent) -> None:
        self.spent.append(spent)


def test_the_meter_writes_before_it_gives() -> None:
    notes = Notes()
    meter = Meter(Spent(100, 10, 0, 0.5), Spent(50, 20, 0), Spent(8, 4, 0), 0.01, notes)  # type: ignore[arg-type]
    meter.add(Spent(vectors=2))
    assert notes.spent[-1] == Spent(110, 14, 0, 0.5 + 0.01 * 10)
    meter.add(Spent(vectors=8))
    assert len(notes.spent) == 1
    meter.add(Spent(vectors=1))
    assert notes.spent[-1].vectors == 100 + 11 + 8
    meter.add(Spent(vectors=10**9))
    assert notes.spent[-1].vectors == 150  # whoever asks for more is refused
    meter.settle()
    assert notes.spent[-1].splits == 10


# --- checkpoints that do not fit ---------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> Sides:
    sides = Sides(case(validation=0.2, early_stopping=4), tmp_path)
    with pytest.raises(Exception):  # noqa: B017, PT011
        sides.attempt(dies="active", at=(pb.BoostRoundDone, 3))
    return sides


@pytest.mark.parametrize("name", ["contract", "table", "release", "party", "role", "earlier model"])
def test_a_checkpoint_holds_for_what_it_was_made_with(broken: Sides, name: str) -> None:
    changed = broken.binding("active") | {name: "another"}
    with pytest.raises(WrongCheckpoint, match=f"made with another {name}"):
        checkpoints.load(broken.folder / "active", changed)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(WrongCheckpoint, match="there is no checkpoint to resume from"):
        checkpoints.load(tmp_path / "nothing", {})


@pytest.mark.parametrize("role", ["active", "passive"])
def test_any_changed_byte_is_found(broken: Sides, role: str) -> None:
    folder = broken.folder / role
    last = broken.load(role).points[-1].round
    for path in sorted(folder.iterdir()):
        raw = path.read_bytes()
        path.write_bytes(raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :])
        try:
            kept = broken.load(role)
        except WrongCheckpoint as error:
            assert "damaged" in str(error) or "not a checkpoint" in str(error)  # noqa: PT017
        else:
            assert len(kept.points) == 1 or kept.points[-1].round == last, path
            assert path.suffix == ".npy", path  # margins of one round: the other one is whole
        path.write_bytes(raw)
    assert broken.load(role).points[-1].round == last


def test_a_truncated_file_is_found(broken: Sides) -> None:
    path = broken.folder / "passive" / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(WrongCheckpoint, match="no round of it is whole"):
        broken.load("passive")


def test_the_round_before_serves_when_the_last_is_not_whole(broken: Sides) -> None:
    whole = broken.unbroken()
    kept = broken.load("active")
    (only_last,) = set(checkpoints._arrays_of(kept._saved[1][1])) - set(checkpoints._arrays_of(kept._saved[0][1]))
    (broken.folder / "active" / only_last).unlink()
    assert [point.round for point in broken.load("active").points] == [kept.points[0].round]
    assert_same(results(broken.attempt(resume=True)), results(whole))


def test_a_round_grown_again_has_its_own_margins(tmp_path: Path) -> None:
    """The active side goes back to round 1 and grows another round 2: its margins are not those of the old one."""
    rows = np.arange(4)
    split = Split(rows, rows[:0])
    binding = {"party": "bank"}

    def grow(kept: Checkpoint, model: Model, value: float) -> None:
        tree = Growth()
        tree.roots.append(tree.add())
        tree.value[0] = value
        model.growth.append(tree)
        model.output.append(0)
        model.margins = model.margins + value
        model.best = (value, len(model.output), model.margins)
        kept.save_models(Point(len(model.output), 0, Ledger({}, 0.0)), [model])

    kept = Checkpoint(tmp_path / "active", binding, bytes(16), Alignment(bytes(16), "mutual", 4, 4, rows))
    model = Model(0, split, np.zeros((1, 4)), np.zeros(1))
    grow(kept, model, 1.0)
    grow(kept, model, 2.0)

    kept = checkpoints.load(kept.folder, binding)
    (model,) = kept.restore_models(kept.points[0], [split])
    assert (model.margins == 1).all()
    grow(kept, model, 5.0)

    kept = checkpoints.load(kept.folder, binding)
    assert [point.round for point in kept.points] == [1, 2]
    (model,) = kept.restore_models(kept.points[1], [split])
    assert model.growth.value == [1.0, 5.0]
    assert (model.margins == 6).all()
    assert model.best is not None
    assert (model.best[2] == 6).all()


def test_checkpoints_of_two_runs_do_not_meet(tmp_path: Path) -> None:
    first, second = (Sides(case(), tmp_path / name) for name in "ab")
    for sides in (first, second):
        with pytest.raises(Exception):  # noqa: B017, PT011
            sides.attempt(dies="active", at=(pb.BoostRoundDone, 3))
    (first.folder / "passive").rename(tmp_path / "mine")
    (second.folder / "passive").rename(first.folder / "passive")
    with pytest.raises(WrongCheckpoint, match="is of another run"):
        first.attempt(resume=True)


SPOILS: dict[str, tuple[Callable[[Any], Any], type[Exception]]] = {
    "no rounds": (lambda m: [m.ClearField(name) for name in ("rounds", "splits", "ledgers")], Malformed),
    "rounds out of order": (lambda m: m.rounds.reverse(), Malformed),
    "a round too many": (lambda m: m.rounds.append(99), Malformed),
    "another run": (lambda m: setattr(m, "run", bytes(16)), WrongCheckpoint),
    "a short run": (lambda m: setattr(m, "run", b"x"), Malformed),
    "other rounds": (lambda m: m.rounds.__setitem__(slice(None), [98, 99]), WrongCheckpoint),
    "other splits": (lambda m: m.splits.__setitem__(1, 77), WrongCheckpoint),
    "another ledger": (lambda m: m.ledgers.__setitem__(1, bytes(32)), WrongCheckpoint),
    "no number": (lambda m: setattr(m, "kl_spent", float("nan")), Malformed),
    "negative": (lambda m: setattr(m, "kl_spent", -1.0), Malformed),
    "all of it used": (lambda m: setattr(m, "vectors_spent", 10**6), OverBudget),
    "all leakage used": (lambda m: setattr(m, "kl_spent", 1.0), OverBudget),
}


@pytest.mark.parametrize("name", SPOILS)
def test_the_active_side_checks_what_it_is_told(broken: Sides, name: str) -> None:
    spoil, error = SPOILS[name]
    kept = broken.load("passive")

    def passive(channel: Any) -> Any:
        return boost.train_passive(
            spoiling(channel, pb.BoostResume, spoil), broken.contract, broken.case.passive, Draws(KEY), checkpoint=kept
        )

    def active(channel: Any) -> Any:
        with pytest.raises(error):
            boost.train_active(channel, broken.contract, broken.case.active, checkpoint=broken.load("active"))
        raise Broke

    with pytest.raises(Exception):  # noqa: B017, PT011
        meet(active, passive, broken.contract)


def test_the_active_side_cannot_say_what_was_used(broken: Sides) -> None:
    """Nor make the passive side count less."""

    def active(channel: Any) -> Any:
        spoilt = spoiling(channel, pb.BoostResume, lambda m: setattr(m, "vectors_spent", 1))
        return boost.train_active(spoilt, broken.contract, broken.case.active, checkpoint=broken.load("active"))

    def passive(channel: Any) -> Any:
        with pytest.raises(Malformed, match="use that it cannot have counted"):
            boost.train_passive(
                channel, broken.contract, broken.case.passive, Draws(KEY), checkpoint=broken.load("passive")
            )
        raise Broke

    with pytest.raises(Exception):  # noqa: B017, PT011
        meet(active, passive, broken.contract)


# --- warm start, in memory ---------------------------------------------------------------------------


def warm(case: Case, earlier: Any, contract: Any, active: Any = None, passive: Any = None, spoil: Any = None) -> Any:
    first, second = earlier

    def play_active(channel: Any) -> Any:
        spoilt = spoiling(channel, *spoil) if spoil else channel
        return boost.train_active(spoilt, contract, active or case.active, earlier=first.fit.forest)

    def play_passive(channel: Any) -> Any:
        splits = (second.feature, second.masks)
        return boost.train_passive(channel, contract, passive or case.passive, Draws(KEY), earlier=splits)

    return meet(play_active, play_passive, contract)


def train(case: Case, contract: Any) -> Any:
    return meet(case.active, lambda c: boost.train_passive(c, contract, case.passive, Draws(KEY)), contract)


WARM: dict[str, Callable[[], Case]] = {
    "bits": case,
    "oblivious": lambda: case(routing="oblivious"),
    "shared": lambda: case(routing="shared"),
    "stopping": lambda: case(validation=0.2, early_stopping=6, learning_rate=0.05),
    "by leaf": lambda: case(growth="leaf", max_leaves=5, subsample=0.7),
    "own rounds first": lambda: case(active_trees=3),
    "classes": classes,
}


@pytest.mark.parametrize("name", WARM)
def test_a_warm_start_gives_the_trees_of_one_run(name: str) -> None:
    made = WARM[name]()
    rounds = made.settings.trees
    whole = train(made, made.contract())
    half = train(made, made.contract(trees=rounds // 2))
    grown = warm(made, half, made.contract())
    assert half[0].fit.forest.trees < grown[0].fit.forest.trees
    assert_same_forest(grown[0].fit.forest, whole[0].fit.forest)
    np.testing.assert_array_equal(grown[0].fit.margins, whole[0].fit.margins)
    np.testing.assert_array_equal(grown[1].feature, whole[1].feature)
    np.testing.assert_array_equal(grown[1].masks, whole[1].masks)


@pytest.mark.parametrize("routing", ["bits", "oblivious", "shared"])
def test_a_warm_start_on_other_rows(routing: str) -> None:
    """New applicants, some places of the shared order no customers: margins start from the earlier trees' scores."""
    first = case(routing=routing, depth=4)
    half = train(first, first.contract(trees=3))
    columns, label = numbers(500, 6, seed=9)
    codes = [b.transform(Case(columns, label, 3, bins=8).table) for b in first.binning]
    position = np.sort(np.random.default_rng(1).permutation(500)[:380])
    mine = replace(
        first.active.rows, bins=codes[0][:, position], label=label[position].astype(float), weight=np.ones(380)
    )
    passive = replace(first.passive, bins=codes[1])
    active, served = warm(first, half, first.contract(), boost.ActiveData(mine, position, 500), passive)

    earlier, forest = half[0].fit.forest, active.fit.forest
    assert forest.trees == 6 > earlier.trees
    np.testing.assert_array_equal(forest.value[: len(earlier.value)], earlier.value)
    np.testing.assert_array_equal(served.masks[: len(half[1].masks)], half[1].masks)
    sides = np.zeros((len(served.feature), 63), np.uint8)
    for row, feature, mask in zip(sides, served.feature, served.masks, strict=True):
        kernel.side_bits(codes[1][feature], mask, row)
    np.testing.assert_allclose(active.fit.margins, forest.margins(mine.bins, sides, position), atol=1e-12)


def test_the_earlier_model_stays_the_best_when_new_trees_do_not_help() -> None:
    made = case(validation=0.3, early_stopping=1, learning_rate=1.0, trees=30)
    half = train(made, made.contract(trees=3, early_stopping=0))
    grown = warm(made, half, made.contract())[0].fit.forest
    assert grown.trees >= 3
    np.testing.assert_array_equal(grown.value[: len(half[0].fit.forest.value)], half[0].fit.forest.value)


REPLAYS: dict[str, tuple[Any, Callable[[Any], Any], type[PeerMisbehaved]]] = {
    "a split twice": (pb.BoostReplay, lambda m: m.splits.__setitem__(slice(None), [0] * len(m.splits)), Malformed),
    "no such split": (pb.BoostReplay, lambda m: m.splits.__setitem__(0, 10**6), Malformed),
    "no trees": (pb.BoostReplay, lambda m: m.ClearField("trees"), Malformed),
    "nothing": (pb.BoostReplay, lambda m: (m.ClearField("trees"), m.ClearField("splits")), Malformed),
    "no rounds": (pb.BoostEarlier, lambda m: setattr(m, "rounds", 0), BeyondContract),
    "too many rounds": (pb.BoostEarlier, lambda m: setattr(m, "rounds", 6), BeyondContract),
    "other splits": (pb.BoostEarlier, lambda m: setattr(m, "splits", m.splits + 1), Malformed),
}


@pytest.mark.parametrize("name", REPLAYS)
def test_the_passive_side_checks_a_replay(name: str) -> None:
    kind, spoil, error = REPLAYS[name]
    made = case()
    half = train(made, made.contract(trees=3))
    with pytest.raises(Exception) as caught:  # noqa: PT011
        warm(made, half, made.contract(), spoil=(kind, spoil))
    assert isinstance(caught.value, error) or str(error.exit_code) in str(caught.value)


def first_bin(peer: Any, feature: int) -> bytes:
    """A mask by which the first bin goes left."""
    return b"\1".ljust(-(-int(peer.features.sizes[feature]) // 8), b"\0")


@pytest.mark.parametrize("routing", ["oblivious", "shared"])
@pytest.mark.parametrize("of", ["earlier splits", "new splits", "new splits after none earlier"])
def test_every_row_at_every_split_is_more_than_paths(routing: str, of: str) -> None:
    """A rogue asks for the sides of all rows, split by split, as `bits` routing would tell them."""
    made = case(routing=routing, depth=4, min_child_weight=0.1, trees=2)
    half, contract, rows = train(made, made.contract()), made.contract(trees=3), made.table.rows
    splits = len(half[1].feature)
    assert splits > 2 * 4  # two trees have more passive splits than a row's two paths have levels
    warm_start = of != "new splits after none earlier"
    start = Start(2) if warm_start else Start()
    most = 2 * 4 if of == "earlier splits" else boost.most_transfers(contract, 1, start.round)

    def rogue(channel: Any) -> None:
        channel.open(boost.TABLES[routing], "active")
        if warm_start:
            channel.send(pb.BoostEarlier(rounds=2, splits=splits))
        peer = boost._open_peer(channel, contract, made.active, start, splits if warm_start else 0)
        for n in range(most + 1):
            if of == "earlier splits":
                channel.send(pb.BoostReplay(splits=[n], trees=[1]))
            else:
                channel.send(pb.BoostSplits(feature=[0], left=[first_bin(peer, 0)], trees=[1]))
            if routing == "shared":
                channel.send(pb.BoostNodes(rows=[boost._bitmap(np.arange(rows), rows)]))
                channel.receive(pb.BoostSides)
            else:
                peer.receiver.allowed = 10**9
                peer.receiver.choose_all([(np.zeros(rows, np.uint8), 1)], blank=True)
        raise AssertionError("all of it was told")

    def served(channel: Any) -> Any:
        earlier = (half[1].feature, half[1].masks) if warm_start else None
        return boost.train_passive(channel, contract, made.passive, Draws(KEY), earlier=earlier)

    with pytest.raises(BeyondContract, match=r"sides of rows where paths through the trees leave 0") as caught:
        meet(rogue, served, contract)
    assert caught.value.exit_code == BeyondContract.exit_code


def test_a_row_is_in_one_node_of_a_level() -> None:
    made = case(routing="shared")
    contract, rows = made.contract(), made.table.rows

    def rogue(channel: Any) -> None:
        channel.open(boost.TABLES["shared"], "active")
        peer = boost._open_peer(channel, contract, made.active)
        channel.send(pb.BoostSplits(feature=[0, 1], left=[first_bin(peer, f) for f in (0, 1)], trees=[2]))
        one, other = (boost._bitmap(np.arange(*ends), rows) for ends in ((0, 20), (19, 30)))
        channel.send(pb.BoostNodes(rows=[one, other]))
        channel.receive(pb.BoostSides)

    with pytest.raises(Malformed, match="a row in two nodes"):
        meet(rogue, lambda channel: boost.train_passive(channel, contract, made.passive, Draws(KEY)), contract)


def test_a_replay_needs_an_earlier_model() -> None:
    made = case()

    def active(channel: Any) -> Any:
        def replayed(message: Any) -> None:
            channel.send(pb.BoostReplay(splits=[0], trees=[1]))

        return boost.train_active(spoiling(channel, matvec_pb2.MatvecQuery, replayed), made.contract(), made.active)

    with pytest.raises(Exception) as caught:  # noqa: PT011
        meet(active, made.passive, made.contract())
    assert isinstance(caught.value, Malformed) or str(Malformed.exit_code) in str(caught.value)


# --- two real processes ------------------------------------------------------------------------------

LONG = {"trees": 40, "depth": 3, "folds": 2, "validation": 0.2, "early_stopping": 30, "routing": "oblivious"}


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys"))


def head(pair: Pair, party: str) -> Path:
    return pair.output(party) / "model.checkpoint" / "head.json"


def last_round(pair: Pair, party: str) -> int:
    """The last round that a party's checkpoint holds; 0 without one."""
    if not head(pair, party).exists():
        return 0
    return int(json.loads(head(pair, party).read_text(encoding="utf-8"))["head"]["points"][-1]["round"])


def kill_amid(pair: Pair, victim: str, rounds: int, *more: str) -> None:
    """Start both, kill one as soon as it has saved so many rounds, wait for the other's end."""
    with pair.started("train", *more) as processes:
        deadline = time.monotonic() + 60
        while min(last_round(pair, party) for party in MODULES) < rounds:
            assert time.monotonic() < deadline
            for process in processes.values():
                assert process.process.poll() is None, process.said()
            time.sleep(0.01)
        processes[victim].signal(signal.SIGKILL)
        (honest,) = set(MODULES) - {victim}
        assert processes[honest].wait().code in (52, 54)


def models(pair: Pair) -> dict[str, bytes]:
    return {party: (pair.output(party) / "model" / "share.arrow").read_bytes() for party in MODULES}


def trained(pair: Pair, *more: str) -> dict[str, Any]:
    return {party: ended.result for party, ended in pair.run("train", *more).items()}


@pytest.mark.processes
def test_killed_and_resumed(tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """First the active side is killed, then, in the resumed run, the passive one; then it comes to its end."""
    whole = make_pair(tmp_path / "whole", keyring, **LONG)
    in_one_go = trained(whole)
    pair = make_pair(tmp_path / "broken", keyring, **LONG)
    kill_amid(pair, "bank", 3)
    kill_amid(pair, "platform", 8, "--resume")

    for party in MODULES:
        assert command_line(pair.arguments(party, "train")) == OutputExists.exit_code
        assert "holds training that has not ended: use --resume on both sides" in capsys.readouterr().err

    said = trained(pair, "--resume")
    assert models(pair) == models(whole)
    for party in MODULES:
        assert not head(pair, party).parent.exists()
        assert said[party]["resumed_after_round"] >= 7
        assert said[party]["used_by_earlier_attempts"] == said["bank"]["used_by_earlier_attempts"]
        assert said[party]["ledger"] == said["bank"]["ledger"]
        assert "resumed_after_round" not in in_one_go[party]
    assert said["bank"]["joint"] == in_one_go["bank"]["joint"]
    assert said["bank"]["kl_nats"] > in_one_go["bank"]["kl_nats"]
    left = {p.name for p in (pair.output("platform") / "model").iterdir()}
    assert left == {"share.json", "share.arrow", "run.json", "report.html", "reference.json"}


@pytest.mark.processes
def test_both_must_resume_with_what_they_had(tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = make_pair(tmp_path, keyring, **LONG)
    for party in MODULES:
        assert command_line(pair.arguments(party, "train", "--resume")) == WrongCheckpoint.exit_code
        assert "there is no checkpoint to resume from" in capsys.readouterr().err
    kill_amid(pair, "bank", 2)

    head(pair, "platform").parent.rename(tmp_path / "kept")
    with (
        pair.one("bank", *pair.arguments("bank", "train", "--resume")) as bank,
        pair.one("platform", *pair.arguments("platform", "train")) as platform,
    ):
        ended = [bank.wait(), platform.wait()]
    assert JobMismatch.exit_code in {one.code for one in ended}
    assert any("runs 'train', this side 'train --resume'" in one.err for one in ended) or any(
        "runs 'train --resume', this side 'train'" in one.err for one in ended
    )
    (tmp_path / "kept").rename(head(pair, "platform").parent)

    rows = pair.rows["platform"]
    write_csv(pair.folder / "platform" / "table.csv", [*rows[1:], rows[0] | {"visits": "1"}])
    assert command_line(pair.arguments("platform", "train", "--resume")) == WrongCheckpoint.exit_code
    assert "made with another table than this side has now" in capsys.readouterr().err


@pytest.mark.processes
def test_more_trees_for_new_customers(tmp_path: Path, keyring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten trees on some customers; the same pair grows to fourteen on all of them, and scores."""
    pair = make_pair(tmp_path, keyring, trees=10, depth=3, routing="oblivious")
    first = trained(pair)
    for party, rows in tables(seed=11, shared=300, only=20).items():
        write_csv(pair.folder / party / "table.csv", rows)
    first_model = str(pair.output("bank") / "model")
    assert command_line(pair.arguments("bank", "train", "--from", first_model, "--out", "x")) == WrongModel.exit_code
    assert "has 10 rounds and cannot grow to the contract's 10" in capsys.readouterr().err

    pair.contract["boost"] |= {"trees": 14, "learning_rate": 0.1}
    pair.rows = tables(seed=11, shared=300, only=20)
    pair.write()
    said = trained(pair, "--from", "results/model", "--out", "more")
    assert said["bank"]["trees"] == 14
    assert said["bank"]["ledger"] == said["platform"]["ledger"]
    assert {said[party]["goes_on_from_model"] for party in MODULES} == {first["bank"]["model_id"]}
    old, new = (json.loads((pair.folder / "bank" / f / "share.json").read_text()) for f in ("results/model", "more"))
    assert new["roots"][:10] == old["roots"]
    assert new["binning"] == old["binning"]
    scored = {party: ended.result for party, ended in pair.run("predict", "--model", "more").items()}
    assert scored["bank"]["rows_scored"] == 300

    pair.contract["boost"] |= {"trees": 20, "depth": 2}
    pair.write()
    deep = pair.arguments("bank", "train", "--from", str(pair.folder / "bank" / "more"), "--out", "x")
    assert command_line(deep) == WrongModel.exit_code
    assert "have depth 3, the contract allows 2" in capsys.readouterr().err
    pair.contract["boost"] |= {"depth": 3}

    for change, error, words in (
        ({"trees": 20, "bins": 9}, WrongModel, "was trained with another bins than"),
        ({"bins": 8, "folds": 2}, NotInContract, "cannot go on from an earlier model with [boost] folds"),
        ({"folds": 0, "forest": "random"}, NotInContract, "or with a random forest"),
    ):
        pair.contract["boost"] |= change
        pair.write()
        for party in MODULES:
            more = str(pair.folder / party / "more")
            assert command_line(pair.arguments(party, "train", "--from", more, "--out", "x")) == error.exit_code
            assert words in capsys.readouterr().err


@pytest.mark.processes
def test_a_warm_start_resumes(tmp_path: Path, keyring: Path) -> None:
    half = {"trees": 5, "depth": 3, "routing": "bits"}
    pair = make_pair(tmp_path / "broken", keyring, **half)
    whole = make_pair(tmp_path / "whole", keyring, **half | {"trees": 60})
    trained(pair)
    trained(whole)
    pair.contract["boost"]["trees"] = 60
    pair.write()
    more = ("--from", "results/model", "--out", "results/more")
    with pair.started("train", *more) as processes:
        kept = pair.output("bank") / "more.checkpoint" / "head.json"
        while not kept.exists() or '"round": 8' not in kept.read_text(encoding="utf-8"):
            assert processes["bank"].process.poll() is None
            time.sleep(0.01)
        processes["platform"].signal(signal.SIGKILL)
        processes["bank"].wait()
    said = trained(pair, *more, "--resume")
    assert said["bank"]["resumed_after_round"] >= 7
    for party in MODULES:
        grown = (pair.output(party) / "more" / "share.arrow").read_bytes()
        assert grown == (whole.output(party) / "model" / "share.arrow").read_bytes()
