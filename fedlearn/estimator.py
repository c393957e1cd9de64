"""Both parties in one scikit-learn estimator, for experiments on a table that one person holds.

The columns are divided between an *active* side, which also has the labels, and a *passive* side; then the real
protocols run in memory: every message is serialised, checked, counted and entered in the ledger as it would be between
two companies. What comes out (scores, rounds, bytes, leakage) is what two companies would get; what does not come
out is privacy, because this object holds both halves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from fedlearn.channel import Channel, simulate
from fedlearn.contract import Align, Boost, Budget, Contract, Encryption, Key, Kind, Label, Side
from fedlearn.crypto.draws import Draws
from fedlearn.data import PartyTable, fit_binning, make_table
from fedlearn.jobs import features_of
from fedlearn.learner.booster import Rows
from fedlearn.learner.objective import objective_of
from fedlearn.models.share import ActiveShare, PassiveShare
from fedlearn.protocols import boost, handshake, score

A = TypeVar("A")
P = TypeVar("P")
Columns = Sequence[str] | Sequence[int]

_LEAST_ROWS = 10


class VerticalBoostingClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Gradient-boosted trees for two or more classes, trained by two simulated parties that hold different columns.

    Rows are aligned by position: row i of ``X`` is one and the same person on both sides, so no private set
    intersection runs here. Missing values (NaN, None) are allowed and get a bin of their own. Labels may be any
    distinct values. The same seed and rows give the same model.

    Args:
        trees: number of trees, at most when ``early_stopping`` is set.
        depth: levels of splits in a tree.
        learning_rate: factor on every leaf weight.
        bins: bins per feature, not counting the one for missing values; 2 to 255.
        reg_lambda: L2 on leaf weights.
        gamma: least gain of a split.
        min_child_weight: least sum of hessians in a child.
        min_child_size: least number of training rows in a child; above 1 it costs half as many encrypted vectors more.
        gradient_bits: bits of a quantised gradient, sign included; 2 to 16.
        validation: share of rows kept out of training for early stopping.
        early_stopping: trees without improvement on those rows before stopping; 0 never stops.
        seed: of validation rows and rounding.
        passive_columns: the columns of the passive side, by name or index; None for the second half. Each side
            must have at least one.
        categories: the columns that are categories, by name or index; None for none. ``"auto"`` takes the text and
            categorical columns of a DataFrame, and none of an array.
        routing: how rows find their side of a split: ``"oblivious"``, ``"bits"`` or ``"shared"``; same trees.
        backend: of the encrypted product, ``"lwe"`` or ``"paillier"`` (slow, and needs the package phe). With the
            smallest key that a contract may have, 2048 bits, since nobody is protected here.

    Attributes:
        classes_: the labels, sorted.
        n_features_in_: number of columns.
        feature_names_in_: names of the columns, when ``X`` was a DataFrame with names of text.
        n_trees_: trees of the model, one per round (and class, where there are more than two), those up to the best
            round with early stopping.
        validation_log_loss_: after each tree that was grown; empty without validation rows.
        feature_importances_: total gain of each column, as a share of all; float64 (n_features_in_,). Two companies
            could not make this list: the active side knows the passive side's features by number only.
        contract_: the contract that the two sides ran under.
        active_share_, passive_share_: the two halves of the model.
        ledger_: who learned what during training; one dict for each kind of message.
        kl_nats_: bound on what the noise of the encrypted product leaked, in nats; 0 with ``paillier``.
        bytes_sent_: bytes that ``"active"`` and ``"passive"`` sent during training.
    """

    def __init__(
        self,
        *,
        trees: int = 100,
        depth: int = 4,
        learning_rate: float = 0.1,
        bins: int = 32,
        reg_lambda: float = 1.0,
        gamma: float = 0.0,
        min_child_weight: float = 1.0,
        min_child_size: int = 1,
        gradient_bits: int = 8,
        validation: float = 0.0,
        early_stopping: int = 0,
        seed: int = 0,
        passive_columns: Columns | None = None,
        categories: Columns | Literal["auto"] | None = "auto",
        routing: Literal["oblivious", "bits", "shared"] = "oblivious",
        backend: Literal["lwe", "paillier"] = "lwe",
    ) -> None:
        self.trees = trees
        self.depth = depth
        self.learning_rate = learning_rate
        self.bins = bins
        self.reg_lambda = reg_lambda
        self.gamma = gamma
        self.min_child_weight = min_child_weight
        self.min_child_size = min_child_size
        self.gradient_bits = gradient_bits
        self.validation = validation
        self.early_stopping = early_stopping
        self.seed = seed
        self.passive_columns = passive_columns
        self.categories = categories
        self.routing = routing
        self.backend = backend

    def fit(self, X: Any, y: Any) -> VerticalBoostingClassifier:
        """Divide the columns, let both sides meet and train, keep both halves of the model.

        Args:
            X: array or pandas DataFrame, shape (n, features).
            y: two or more distinct labels, shape (n,).

        Raises:
            ValueError: a parameter out of range, fewer than 10 rows or 2 columns, one class only.
            NotFinite, NotNumeric, TooManyCategories: a column of a DataFrame cannot be used.
            OverBudget: no parameters of the encrypted product fit so many rows and trees.
        """
        columns = self._columns(X, fitting=True)
        label = self._label(y, len(next(iter(columns.values()))))
        kinds = self._kinds(columns)
        passive = self._named(self.passive_columns, list(kinds), "passive_columns")
        contract = self._contract(kinds, passive, len(label))
        table = _table(columns, kinds)
        own, other = (fit_binning(table, self.bins, side.features) for side in (contract.active, contract.passive))
        rows = np.arange(len(label))
        mine = Rows(
            own.transform(table), features_of(own, contract.active), label, np.ones(len(label)), contract.outputs
        )
        data = boost.ActiveData(mine, rows, len(rows))
        features = boost.PassiveData(other.transform(table), features_of(other, contract.passive))
        draws = Draws(hashlib.sha256(f"fedlearn/1 simulation {self.seed}".encode()).digest())

        def train_active(channel: Channel) -> tuple[boost.ActiveResult, Channel]:
            result = boost.train_active(channel, contract, data)
            boost.exchange_saved(channel)
            return result, channel

        def train_passive(channel: Channel) -> tuple[boost.PassiveResult, Channel]:
            result = boost.train_passive(channel, contract, features, draws)
            boost.exchange_saved(channel)
            return result, channel

        (active, at_active), (served, at_passive) = _meet(contract, "train", b"", train_active, train_passive)
        forest = active.fit.forest
        self.contract_ = contract
        self.active_share_ = ActiveShare(active.model_id, own, forest, len(served.feature))
        self.passive_share_ = PassiveShare(served.model_id, other, served.feature, served.masks)
        self.n_trees_ = forest.trees
        self.validation_log_loss_ = active.fit.history
        self.feature_importances_ = self._importances(list(kinds))
        self.ledger_ = at_active.ledger.lines()
        self.kl_nats_ = at_active.ledger.kl_nats
        self.bytes_sent_ = {"active": at_active.bytes_sent, "passive": at_passive.bytes_sent}
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Log-odds of ``classes_[1]``, float64 (n,), or with more classes the margins, (n, classes).

        Both sides meet once more to score.

        Args:
            X: as in :meth:`fit`, the same columns in the same order.
        """
        margins = self._margins(X)
        return margins[0] if len(margins) == 1 else margins.T

    def _margins(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self)
        active, passive = self.active_share_, self.passive_share_
        kinds = {f.name: f.kind for share in (active, passive) for f in share.binning.features}
        table = _table(self._columns(X, fitting=False), kinds)
        own, other = (share.binning.transform(table) for share in (active, passive))
        rows = np.arange(table.rows)
        margins, _ = _meet(
            self.contract_,
            "predict",
            active.model_id,
            lambda channel: score.score_active(channel, active.forest, active.passive_splits, own, rows, len(rows)),
            lambda channel: score.score_passive(channel, passive.feature, passive.masks, other),
        )
        return margins

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities of the classes in the order of ``classes_``, float64 (n, classes)."""
        margins = self._margins(X)
        mean = objective_of(self.contract_.boost, self.contract_.outputs).mean(margins)
        return np.stack([1 - mean[0], mean[0]], axis=1) if len(margins) == 1 else mean.T

    def predict(self, X: Any) -> NDArray[Any]:
        """The likelier label of each row, shape (n,)."""
        margins = self._margins(X)  # first, so that an unfitted estimator says so
        chosen = (margins[0] > 0).astype(int) if len(margins) == 1 else margins.argmax(axis=0)
        labels: NDArray[Any] = self.classes_[chosen]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # --- what comes in ------------------------------------------------------------------------------

    def _columns(self, X: Any, fitting: bool) -> dict[str, Any]:
        """The columns of ``X`` by name (x0, x1, … where they have none), in order; checks their number and names."""
        if hasattr(X, "iloc"):  # a DataFrame keeps the type of each column, which an array would not
            validate_data(self, X, reset=fitting, skip_check_array=True)
            columns = [X.iloc[:, i] for i in range(X.shape[1])]
        else:
            mixed = self.categories is not None and not isinstance(self.categories, str)
            kind = None if mixed else np.float64
            X = validate_data(self, X, reset=fitting, dtype=kind, ensure_all_finite="allow-nan")
            columns = list(np.ascontiguousarray(X.T))
        least = max(_LEAST_ROWS, 2 * int(self.min_child_size)) if fitting else 1
        if X.shape[0] < least:
            raise ValueError(f"Found {X.shape[0]} sample(s) where at least {least} are needed")
        if len(columns) < 2:
            raise ValueError(f"Found {len(columns)} feature(s) where two sides need at least one each")
        names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(len(columns))])
        return dict(zip(map(str, names), columns, strict=True))

    def _label(self, y: Any, rows: int) -> NDArray[np.float64]:
        """The number of each row's label in ``classes_``, which it sets."""
        if y is None:
            raise ValueError("This classifier requires y to be passed, but the target y is None")
        y = column_or_1d(y, warn=True)
        check_consistent_length(range(rows), y)
        check_classification_targets(y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError("Training needs two classes, but y has one class only")
        self.classes_ = classes
        return codes.astype(np.float64)

    def _kinds(self, columns: Mapping[str, Any]) -> dict[str, Kind]:
        if isinstance(self.categories, str):
            if self.categories != "auto":
                raise ValueError(f"categories must be 'auto', None or a list of columns, not {self.categories!r}")
            chosen = {name for name, values in columns.items() if _is_text(values)}
        else:
            chosen = set(self._named(self.categories or (), list(columns), "categories"))
        return {name: "category" if name in chosen else "number" for name in columns}

    def _named(self, chosen: Columns | None, names: list[str], parameter: str) -> list[str]:
        """Columns given by name or index as names, in the order of the table; None means the second half."""
        if chosen is None:
            return names[(len(names) + 1) // 2 :]
        found = set()
        for column in chosen:
            known = column in names if isinstance(column, str) else -len(names) <= column < len(names)
            if not known:
                raise ValueError(f"{parameter} has {column!r}, which is not a column of X")
            found.add(column if isinstance(column, str) else names[column])
        return [name for name in names if name in found]

    def _contract(self, kinds: dict[str, Kind], passive: list[str], rows: int) -> Contract:
        """What two companies would have to agree to for this run. Raises ValueError for a parameter out of range."""
        settings = {name: getattr(self, name) for name in Boost.model_fields if hasattr(self, name)}
        classes = tuple(str(k) for k in range(len(self.classes_))) if len(self.classes_) > 2 else ()
        settings["objective"] = "softmax" if classes else "logistic"
        label = "label"
        while label in kinds:
            label += "_"
        return Contract(
            name="simulation",
            purpose="simulation of both parties in one process",
            expires=date.max,
            active=Side(name="active", features={n: k for n, k in kinds.items() if n not in passive}),
            passive=Side(name="passive", features={n: kinds[n] for n in passive}),
            label=Label(column=label, classes=classes),
            align=Align(key=Key(column="row")),
            boost=Boost(**settings),
            encryption=Encryption(backend=self.backend, paillier_bits=2048),
            budget=Budget(rows=rows, vectors=10**9),
        )

    # --- what comes out -----------------------------------------------------------------------------

    def _importances(self, names: list[str]) -> NDArray[np.float64]:
        forest, passive = self.active_share_.forest, self.passive_share_
        gain = dict.fromkeys(names, 0.0)
        for at in np.flatnonzero(forest.left >= 0):
            f = int(forest.feature[at])
            side, number = (self.active_share_, f) if f >= 0 else (passive, int(passive.feature[-1 - f]))
            gain[side.binning.features[number].name] += float(forest.gain[at])
        total = np.array(list(gain.values()))
        return total / total.sum() if total.any() else total


def _meet(
    contract: Contract,
    job: str,
    model_id: bytes,
    active: Callable[[Channel], A],
    passive: Callable[[Channel], P],
) -> tuple[A, P]:
    """Greet, play both roles, part."""

    def side(role: str, play: Callable[[Channel], Any]) -> Callable[[Channel], Any]:
        def run(channel: Channel) -> Any:
            handshake.greet(channel, contract, role=role, job=job, model_id=model_id)
            result = play(channel)
            handshake.part(channel)
            return result

        return run

    return simulate(side("active", active), side("passive", passive))


def _table(columns: Mapping[str, Any], kinds: dict[str, Kind]) -> PartyTable:
    rows = len(next(iter(columns.values())))
    return make_table(np.arange(rows), columns, kinds, max_rows=max(rows, 1), source="X")


def _is_text(values: Any) -> bool:
    """Whether a column holds text, or is of pandas' categorical type."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return False
    try:
        kind = pa.array(values, from_pandas=True).type
    except pa.ArrowException:
        return False  # neither text nor numbers; reading the column says what is wrong
    return bool(
        pa.types.is_dictionary(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )
