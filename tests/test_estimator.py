"""The scikit-learn estimator: scikit-learn's own checks, its tools around it, and what it says of the simulation."""

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from fedlearn import VerticalBoostingClassifier
from fedlearn.errors import NotFinite, TooManyCategories


@pytest.fixture(scope="module")
def table():
    """Numbers with gaps and a category, as a DataFrame; the columns of both sides matter."""
    rng = np.random.default_rng(5)
    n = 800
    frame = pd.DataFrame(rng.normal(size=(n, 5)), columns=["age", "income", "debt", "amount", "price"])
    town = rng.integers(0, 6, n)
    frame["town"] = np.array(["ann", "bor", "cel", "dor", "eft", "fen"])[town]
    signal = frame["age"] + frame["amount"] * frame["debt"] + np.array([2, -2, 2, -2, 2, -2])[town]
    label = np.where(signal + rng.normal(size=n) > 0, "bad", "good")
    frame.loc[rng.random(n) < 0.1, "amount"] = np.nan
    frame.loc[rng.random(n) < 0.1, "town"] = None
    return frame, label


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")  # scikit-learn's own data
@parametrize_with_checks([VerticalBoostingClassifier(trees=4, depth=2)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_import_stays_light():
    code = (
        "import sys, fedlearn; light = 'sklearn' not in sys.modules;"
        "from fedlearn import VerticalBoostingClassifier; sys.exit(not light)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(ImportError):
        from fedlearn import NoSuchThing  # noqa: F401


def test_as_good_as_one_table_in_one_place(table):
    frame, label = table
    codes = frame.assign(town=frame["town"].astype("category"))
    joint = VerticalBoostingClassifier(trees=30, passive_columns=["amount", "price", "town"])
    pooled = HistGradientBoostingClassifier(max_iter=30, max_depth=4, early_stopping=False)
    train, test = slice(0, 600), slice(600, None)
    joint.fit(frame[train], label[train])
    pooled.fit(codes[train], label[train])
    ours = roc_auc_score(label[test] == "good", joint.predict_proba(frame[test])[:, 1])
    theirs = roc_auc_score(label[test] == "good", pooled.predict_proba(codes[test])[:, 1])
    assert ours > max(0.75, theirs - 0.02)


def test_what_it_tells(table):
    frame, label = table
    divided = VerticalBoostingClassifier(trees=10, passive_columns=["amount", "price", "town"], routing="bits")
    model = divided.fit(frame, label)
    assert model.classes_.tolist() == ["bad", "good"]
    assert model.feature_names_in_.tolist() == frame.columns.tolist()
    assert model.n_features_in_ == 6
    assert model.n_trees_ == 10
    importance = dict(zip(frame.columns, model.feature_importances_, strict=True))
    assert sum(importance.values()) == pytest.approx(1)
    assert min(importance["town"], importance["age"]) > max(importance["income"], importance["price"])
    lines = {(line["message"], line["sender"]): line for line in model.ledger_}
    assert lines["BoostSides", "passive"]["values"] == len(frame) // 8 * 8 * lines["BoostSplits", "active"]["values"]
    assert 0 < model.kl_nats_ <= model.contract_.budget.kl_nats
    for role, sent in model.bytes_sent_.items():
        said = sum(line["bytes"] for line in model.ledger_ if line["sender"] == role)
        assert said < sent < 1.02 * said  # the rest is framing
    assert list(model.contract_.passive.features.values()) == ["number", "number", "category"]


def test_frame_and_array_agree(table):
    frame, label = table
    codes = pd.Series(frame["town"]).map({t: float(k) for k, t in enumerate(sorted(set(frame["town"].dropna())))})
    numbers = frame.assign(town=codes).to_numpy(float)
    settings = {"trees": 6, "min_child_size": 5}
    by_name = VerticalBoostingClassifier(passive_columns=["debt", "town"], **settings).fit(frame, label)
    by_index = VerticalBoostingClassifier(passive_columns=[2, -1], categories=[5], **settings).fit(numbers, label)
    np.testing.assert_array_equal(by_name.decision_function(frame), by_index.decision_function(numbers))


def test_back_ends_agree_bit_for_bit():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    y = x[:, 0] + x[:, 2] > 0
    fits = [VerticalBoostingClassifier(trees=2, depth=2, backend=b).fit(x, y) for b in ("lwe", "paillier")]
    np.testing.assert_array_equal(*(fit.decision_function(x) for fit in fits))
    assert fits[1].kl_nats_ == 0


def test_the_same_seed_gives_the_same_model_even_with_ties():
    rng = np.random.default_rng(2)
    x = rng.integers(0, 3, (60, 6)).astype(float)
    x[:, 4] = x[:, 5]
    y = rng.integers(0, 2, 60)
    settings = {"trees": 5, "min_child_weight": 0.1, "validation": 0.2}
    first, again = (VerticalBoostingClassifier(**settings, seed=3).fit(x, y) for _ in range(2))
    np.testing.assert_array_equal(first.decision_function(x), again.decision_function(x))
    other = VerticalBoostingClassifier(**settings, seed=4).fit(x, y)
    assert (first.decision_function(x) != other.decision_function(x)).any()


def test_scikit_learn_tools(table):
    frame, label = table
    numbers = frame.drop(columns="town")
    small = VerticalBoostingClassifier(trees=8, depth=3)
    assert cross_val_score(small, numbers, label, cv=3, scoring="roc_auc").mean() > 0.55
    piped = make_pipeline(SimpleImputer(), small).fit(numbers, label)
    assert piped.score(numbers, label) > 0.6
    search = GridSearchCV(small, {"depth": [1, 3]}, cv=2).fit(numbers, label)
    assert search.best_params_["depth"] in (1, 3)
    copy = pickle.loads(pickle.dumps(search.best_estimator_))  # noqa: S301
    np.testing.assert_array_equal(copy.predict(numbers), search.predict(numbers))


def test_early_stopping(table):
    frame, label = table
    model = VerticalBoostingClassifier(trees=60, learning_rate=0.6, validation=0.3, early_stopping=3).fit(frame, label)
    losses = model.validation_log_loss_
    assert model.n_trees_ == 1 + int(np.argmin(losses)) == len(losses) - 3 < 57


def test_columns_of_both_sides(table):
    frame, label = table
    small = VerticalBoostingClassifier(trees=1, depth=1)
    assert list(small.fit(frame.iloc[:, :5], label).contract_.passive.features) == ["amount", "price"]
    for chosen in ([], list(frame.columns), ["nonsense"], [6]):
        with pytest.raises(ValueError, match=r"at least 1 item|nonsense|not a column"):
            VerticalBoostingClassifier(trees=1, passive_columns=chosen).fit(frame, label)


def test_unseen_and_missing_values_in_prediction(table):
    frame, label = table
    model = VerticalBoostingClassifier(trees=4).fit(frame, label)
    strange = frame.head(20).assign(town="a town that was never seen")
    np.testing.assert_array_equal(
        model.decision_function(strange), model.decision_function(strange.assign(town=np.nan).astype({"town": object}))
    )


@pytest.mark.parametrize(
    "wrong", [{"bins": 300}, {"trees": 0}, {"backend": "ckks"}, {"early_stopping": 2}, {"categories": "all"}]
)
def test_parameters_out_of_range(table, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VerticalBoostingClassifier(**wrong).fit(*table)


def test_bad_columns(table):
    frame, label = table
    with pytest.raises(NotFinite, match="income"):
        VerticalBoostingClassifier(trees=1).fit(frame.assign(income=np.inf), label)
    with pytest.raises(TooManyCategories, match="income"):
        VerticalBoostingClassifier(trees=1).fit(frame.assign(income=[f"t{i}" for i in range(len(frame))]), label)
    with pytest.raises(ValueError, match="unique column names"):
        VerticalBoostingClassifier(trees=1).fit(frame.rename(columns={"debt": "income"}), label)


def test_three_classes_and_all_routings(table):
    frame, _ = table
    rng = np.random.default_rng(1)
    score = frame["age"] + frame["price"] + rng.normal(size=len(frame)) / 2
    label = np.array(["low", "middle", "high"])[np.digitize(score, [-0.6, 0.6])]
    fits = {
        routing: VerticalBoostingClassifier(trees=8, learning_rate=0.3, routing=routing).fit(frame, label)
        for routing in ("oblivious", "bits", "shared")
    }
    model = fits["oblivious"]
    margins, chances = model.decision_function(frame), model.predict_proba(frame)
    assert model.classes_.tolist() == ["high", "low", "middle"]
    assert model.n_trees_ == 24
    assert margins.shape == chances.shape == (len(frame), 3)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    assert (model.predict(frame) == model.classes_[chances.argmax(axis=1)]).all()
    assert np.mean(model.predict(frame) == label) > 0.75
    for other in ("bits", "shared"):
        np.testing.assert_array_equal(fits[other].decision_function(frame), margins)
    said = {routing: {line["message"]: line["values"] for line in fit.ledger_} for routing, fit in fits.items()}
    assert said["oblivious"]["TransferBits"] % len(frame) == 0 < said["oblivious"]["TransferBits"]
    assert "BoostSides" not in said["oblivious"]
    assert said["bits"]["BoostSides"] == len(frame) * said["bits"]["BoostSplits"]
    assert 0 < said["shared"]["BoostSides"] == said["shared"]["BoostNodes"] < said["bits"]["BoostSides"]
