"""What the two parties agree to (:class:`Contract`) and what each keeps to itself (:class:`PartyFile`).

The contract is one TOML file that both sides hold. Its hash is taken over its meaning (canonical JSON), not its
bytes, so comments and layout may differ. Everything private (paths, addresses, certificates) stands in each
side's own party file. Unknown keys are errors in both.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from fedlearn.errors import BadConfig, ContractExpired, FileMissing, UnknownKey

Kind = Literal["number", "category"]
#: Of parties and models: 1 to 63 letters, digits, '_', '-' or '.', of which the first is a letter or digit.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
Name = Annotated[str, Field(pattern=NAME)]


_WEEK = 7 * 86_400  #: seconds that one may wait at most


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Key(_Strict):
    """How rows of the two sides are matched.

    ``digits`` keeps the decimal digits only; ``text`` applies Unicode NFKC, trims and folds case; ``exact`` compares
    the text as it is. ``phone`` brings numbers to E.164, those without an international prefix as of ``country``;
    ``national-id`` checks and shortens a number by ``scheme``; ``email``, ``uuid`` and ``integer`` bring theirs to
    one form. Of these five, what is none counts as ``invalid``.
    """

    column: str = Field(description="name of the key column in both tables")
    normalise: Literal["digits", "text", "exact", "phone", "national-id", "email", "uuid", "integer"] = "text"
    country: str | None = Field(None, pattern="^[A-Z]{2}$", description="for phone: ISO 3166 code, for instance ES")
    scheme: str | None = Field(
        None,
        pattern="^[a-z]{2}[.][a-z0-9_]+$",
        description="for national-id: python-stdnum's name, for instance es.nif",
    )
    duplicates: Literal["error", "first"] = "error"
    nulls: Literal["error", "drop"] = "error"
    invalid: Literal["error", "drop"] = Field("error", description="drop: an invalid identifier counts as missing")

    @model_validator(mode="after")
    def _complete(self) -> Key:
        if (self.country is not None) != (self.normalise == "phone"):
            raise ValueError("country must be given with normalise phone, and only then")
        if (self.scheme is not None) != (self.normalise == "national-id"):
            raise ValueError("scheme must be given with normalise national-id, and only then")
        return self


class Queries(_Strict):
    """How many IDs the active side may ask of a prepared table (method ``cached``); the passive side counts."""

    session: int = Field(100_000, ge=1, description="in one session")
    day: int = Field(200_000, ge=1, description="on one day (UTC), in all sessions")
    total: int = Field(
        1_000_000,
        ge=1,
        description="as long as the table's key lives; in cardinality, of all keys",
    )


class Align(_Strict):
    """Private set intersection: what each side learns of the other's list."""

    mode: Literal["mutual", "one-sided", "cardinality"] = "mutual"
    method: Literal["auto", "ecdh", "ot", "cached"] = Field(
        "auto", description="auto: ecdh for short lists, ot for long ones; cached: of a table prepared ahead"
    )
    queries: Queries = Queries()
    pad_rows: int = Field(0, ge=0, description="rows that lists are padded to, so that lengths do not show; 0: none")
    key: Key
    also: tuple[Key, ...] = Field((), max_length=7, description="further keys, for rows that those before do not match")

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys, in the order of priority."""
        return (self.key, *self.also)

    @model_validator(mode="after")
    def _possible(self) -> Align:
        if self.method == "cached" and self.mode == "mutual" and self.pad_rows:
            raise ValueError(
                "method cached takes pad_rows in modes one-sided and cardinality: in mutual, versions of the table are "
                "kept, and show how many rows came and went whatever their padding"
            )
        if self.method == "cached" and self.pad_rows * len(self.keys) > self.queries.session:
            raise ValueError(
                f"lists of pad_rows {self.pad_rows} make {self.pad_rows * len(self.keys)} questions in a session, "
                f"and queries.session is {self.queries.session}"
            )
        return self


class Side(_Strict):
    """One party: its name (which its certificate must carry) and the columns it brings."""

    name: Name
    features: dict[str, Kind] = Field(min_length=1, description="column name to kind")
    monotone: dict[str, Literal[-1, 1]] = Field(
        {}, description="number columns with which predictions must not fall (1) or not rise (-1)"
    )

    @model_validator(mode="after")
    def _monotone_numbers(self) -> Side:
        for column in self.monotone:
            if self.features.get(column) != "number":
                raise ValueError(f"monotone names {column!r}, which is not a number column of {self.name!r}")
        return self


class Target(_Strict):
    """A further label column of the same rows, for a model of its own in the same run."""

    column: str
    objective: Literal["logistic", "squared"] = "logistic"
    positive: str = Field("1", description="the value that counts as 1, with objective logistic")

    @property
    def alone(self) -> Label:
        """The same as a label by itself."""
        return Label(column=self.column, positive=self.positive)


class Label(_Strict):
    """The active side's label column.

    With objective ``logistic`` it has two values, of which ``positive`` is one; with ``softmax`` it has ``classes``;
    else it is a number. Only ``[kmeans]`` goes without.
    """

    column: str = ""
    positive: str = "1"
    classes: tuple[str, ...] = Field((), description="label values, for objective softmax; at least two")
    weight: str | None = Field(None, description="column of positive row weights on the active side")
    offset: str | None = Field(None, description="column added to the linear predictor of [glm], on the active side")
    also: tuple[Target, ...] = Field(
        (), max_length=199, description="further label columns; their models grow in lock-step on the same hint"
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """All label columns, the first one first."""
        return (self.column, *(target.column for target in self.also))


class OutOfTime(_Strict):
    """Later rows, which neither train nor validate: the model is judged on them apart, as it will be used.

    The column and its values stay with the active side; the passive side cannot tell such rows from the others. A row
    without a value neither trains nor is judged.
    """

    column: str = Field(description="the active side's column that tells when a row is from")
    first: str = Field(min_length=1, description="from this value on: a number, or a text that sorts as a date does")


class Boost(_Strict):
    """Gradient-boosted trees. Names follow XGBoost where it has one."""

    objective: Literal["logistic", "softmax", "squared", "poisson", "tweedie"] = "logistic"
    tweedie_power: float = Field(1.5, gt=1, lt=2, description="variance power of objective tweedie")
    start: float | None = Field(None, description="margin to start from; by default that of the mean label")
    scale_pos_weight: float = Field(1.0, gt=0, description="factor on the weight of positive rows")
    trees: int = Field(100, ge=1, le=10_000, description="rounds; each grows one tree per class")
    forest: Literal["boost", "random"] = Field("boost", description="random: all trees from the start, averaged")
    growth: Literal["level", "leaf"] = Field("level", description="by level, or always the leaf that gains most")
    depth: int = Field(4, ge=1, le=12)
    max_leaves: int = Field(31, ge=2, le=4096, description="leaves of a tree grown by leaf")
    learning_rate: float = Field(0.1, gt=0, le=1)
    bins: int = Field(32, ge=2, le=255, description="bins per feature, not counting the one for missing values")
    reg_lambda: float = Field(1.0, ge=0, description="L2 on leaf weights")
    reg_alpha: float = Field(0.0, ge=0, description="L1 on leaf weights")
    gamma: float = Field(0.0, ge=0, description="least gain of a split")
    max_delta_step: float = Field(0.0, ge=0, description="largest leaf weight before the rate; 0: none (poisson: 0.7)")
    min_child_weight: float = Field(1.0, ge=0, description="least sum of hessians in a child")
    min_child_size: int = Field(1, ge=1, description="least number of training rows in a child")
    subsample: float = Field(1.0, gt=0, le=1, description="share of training rows for each tree")
    feature_share: float = Field(1.0, gt=0, le=1, description="share of both sides' features for each tree")
    goss_top: float = Field(0.0, ge=0, lt=1, description="GOSS: share of rows kept for large gradients; 0: no GOSS")
    goss_rest: float = Field(0.1, gt=0, le=1, description="GOSS: share of rows sampled from the others")
    active_trees: int = Field(0, ge=0, description="first rounds that use the active side's features alone")
    gradient_bits: int = Field(8, ge=2, le=16, description="bits of a quantised gradient, sign included")
    routing: Literal["oblivious", "bits", "shared"] = Field("oblivious", description="how rows find their side")
    pad_vectors: bool = Field(False, description="ask for as many vectors at each level as a full tree would need")
    validation: float = Field(0.0, ge=0, le=0.5, description="share of rows kept out of training for early stopping")
    early_stopping: int = Field(0, ge=0, description="rounds without improvement before stopping; 0 never stops")
    metric: Literal["loss", "error", "auc", "rmse", "mae"] = Field("loss", description="what early stopping follows")
    folds: int = Field(0, ge=0, le=20, description="cross-validation folds beside the final fit; 0 for none")
    seed: int = Field(0, ge=0, lt=2**63)

    @property
    def step_bound(self) -> float:
        """Bound on leaf weights before the rate, 0 for none; as in XGBoost, 0.7 by default for Poisson counts."""
        return 0.7 if self.objective == "poisson" and not self.max_delta_step else self.max_delta_step

    @property
    def rounds(self) -> int:
        """Rounds of a run: all trees of a random forest are grown in one."""
        return 1 if self.forest == "random" else self.trees

    @model_validator(mode="after")
    def _consistent(self) -> Boost:
        if self.early_stopping and not self.validation:
            raise ValueError("early_stopping needs validation > 0")
        if self.folds == 1:
            raise ValueError("folds must be 0 or at least 2")
        if self.forest == "random" and (self.early_stopping or self.active_trees):
            raise ValueError("a random forest has one round: early_stopping and active_trees do not apply")
        if self.goss_top and self.subsample < 1:
            raise ValueError("goss_top and subsample are two ways to sample rows: choose one")
        if self.goss_top + self.goss_rest > 1 and self.goss_top:
            raise ValueError("goss_top and goss_rest together must not exceed 1")
        if self.metric == "auc" and self.objective != "logistic":
            raise ValueError("metric auc needs objective logistic")
        if self.metric in ("rmse", "mae") and self.objective == "softmax":
            raise ValueError("metrics rmse and mae need a number to predict")
        if self.metric == "error" and self.objective not in ("logistic", "softmax"):
            raise ValueError("metric error needs objective logistic or softmax")
        if self.scale_pos_weight != 1.0 and self.objective != "logistic":
            raise ValueError("scale_pos_weight needs objective logistic")
        return self


class Select(_Strict):
    """Which columns of a regression are left out; each side keeps a plan of its own columns."""

    correlation: float = Field(1.0, gt=0, le=1, description="largest correlation of two columns of one side; 1: any")
    vif: float = Field(0.0, ge=0, description="largest variance inflation among one side's columns; 0: any")
    p_value: float = Field(0.0, ge=0, lt=1, description="backward elimination down to this p-value; 0: none")


class Glm(_Strict):
    """A generalised linear model instead of trees. Links: logit for ``logistic``, identity for ``linear``, else log.

    Penalties act on coefficients of standardised columns: deviance / (2·Σ weight) + l2/2·‖b‖² + l1·‖b‖₁.
    """

    family: Literal["logistic", "linear", "poisson", "gamma", "tweedie"] = "logistic"
    tweedie_power: float = Field(1.5, gt=1, lt=2, description="variance power of family tweedie")
    l1: float = Field(0.0, ge=0)
    l2: float = Field(0.0, ge=0)
    max_steps: int = Field(12, ge=1, le=100, description="Newton steps at most; each reveals one partial score a row")
    tolerance: float = Field(1e-3, gt=0, le=0.1, description="converged when a step is below this, in standard errors")
    digits: int = Field(15, ge=8, le=24, description="bits of a standardised value of the passive side")
    woe: bool = Field(False, description="replace every column by the weight of evidence of its bins")
    bins: int = Field(20, ge=2, le=255, description="bins per feature before merging, with woe")
    binning: Literal["quantile", "width", "tree", "monotone"] = Field("monotone", description="how bins are made")
    max_groups: int = Field(8, ge=2, le=255, description="bins per feature after merging (tree, monotone)")
    least_share: float = Field(0.02, ge=0, le=0.5, description="least share of rows in a merged bin")
    least_events: int = Field(1, ge=0, description="least number of rows of either label value in a merged bin")
    least_rate: float = Field(0.0, ge=0, lt=0.5, description="least share of either label value in a merged bin")
    least_iv: float = Field(0.0, ge=0, description="features of a smaller information value are left out, with woe")
    special: dict[str, tuple[float, ...]] = Field({}, description="values that are codes, by column: bins of their own")
    statistics: bool = Field(False, description="the active side learns correlations and VIF across the sides")
    errors: bool = Field(True, description="the passive side learns the standard errors of its coefficients")
    select: Select = Select()
    disclosure: Literal["score", "none"] = Field(
        "score", description="score: partial scores meet on the active side, exact fit; none: sealed, they never meet"
    )
    degree: int = Field(10, ge=3, le=15, description="of the sigmoid's polynomial, with disclosure none")
    reach: float = Field(5.0, ge=1, le=10, description="passive partial scores are clipped here, with disclosure none")

    @model_validator(mode="after")
    def _consistent(self) -> Glm:
        if self.least_iv and not self.woe:
            raise ValueError("least_iv needs woe = true")
        if self.woe and self.family != "logistic":
            raise ValueError("woe needs family logistic")
        codes = max((len(set(values)) for values in self.special.values()), default=0)
        if self.woe and self.bins + codes > 255:
            raise ValueError(f"bins and the {codes} values that are codes of their own must not exceed 255 together")
        if self.select.p_value and (self.l1 or self.disclosure == "none"):
            raise ValueError("select.p_value needs standard errors: disclosure score and no l1")
        if self.disclosure == "none" and (self.family != "logistic" or self.l1 or self.statistics):
            raise ValueError("disclosure none needs family logistic, no l1 and no statistics")
        return self


class Limits(_Strict):
    """Which columns of either side the job ``statistics`` leaves out of the plan that both sides keep.

    In this order: by information value, missing rate, stability and importance each column by itself; then the lesser
    of two that correlate, across the sides too; then by variance inflation, the largest first.
    """

    iv: float = Field(0.0, ge=0, description="least information value; 0: any")
    missing: float = Field(1.0, ge=0, le=1, description="largest share of missing values")
    stability: float = Field(0.0, ge=0, description="largest stability index between the two periods; 0: any")
    importance: float = Field(0.0, ge=0, lt=1, description="least share of the boosted trees' gain; 0: any")
    correlation: float = Field(1.0, gt=0, le=1, description="largest correlation of two columns; 1: any")
    vif: float = Field(0.0, ge=0, description="largest variance inflation among both sides' columns; 0: any")


class Statistics(_Strict):
    """Joint statistics of the aligned rows, each only where it is switched on; without this table, none."""

    iv: bool = Field(False, description="counts and events of the passive bins to the active side; WOE and IV back")
    missing: bool = Field(False, description="missing rates of the passive columns over the active side's rows")
    correlation: bool = Field(False, description="the active side learns Pearson correlations across the sides")
    vif: bool = Field(
        False, description="variance inflation across the sides; all passive covariances to the active side"
    )
    period: str | None = Field(None, description="the active side's column that tells two periods apart, for stability")
    second_from: str = Field(
        "", description="first value of the second period: a number, or a text that sorts as a date"
    )
    coding: Literal["values", "woe"] = Field("values", description="columns of correlations: numbers, or WOE of all")
    trees: int = Field(0, ge=0, le=1000, description="boosted trees whose gain ranks the columns; 0: none")
    depth: int = Field(3, ge=1, le=12, description="of these trees")
    stepwise: bool = Field(False, description="then eliminate by [glm.select] p_value, in joint fits of what is left")
    select: Limits = Limits()

    @property
    def counts(self) -> bool:
        """Whether the active side counts rows in the passive side's bins."""
        return self.iv or self.missing or self.period is not None

    @model_validator(mode="after")
    def _consistent(self) -> Statistics:
        if not (self.counts or self.correlation or self.vif or self.trees or self.stepwise):
            raise ValueError("nothing is switched on: iv, missing, correlation, vif, period, trees or stepwise")
        if (self.period is not None) != bool(self.second_from):
            raise ValueError("period and second_from go together")
        if self.coding == "woe" and not self.iv:
            raise ValueError("coding woe needs iv = true")
        needs = {
            "iv": (self.select.iv > 0, self.iv), "missing": (self.select.missing < 1, self.missing),
            "stability": (self.select.stability > 0, self.period is not None),
            "importance": (self.select.importance > 0, self.trees > 0),
            "correlation": (self.select.correlation < 1, self.correlation), "vif": (self.select.vif > 0, self.vif),
        }  # fmt: skip
        for name, (limited, known) in needs.items():
            if limited and not known:
                raise ValueError(f"select.{name} limits what is not switched on")
        return self


class Kmeans(_Strict):
    """Clusters over both sides' standardised columns, instead of trees; the active side learns them. No label."""

    clusters: int = Field(ge=2, le=32)
    max_steps: int = Field(20, ge=1, le=100, description="steps at most; each reveals some bits of every row")
    least_rows: int = Field(
        20, ge=1, description="least rows in a cluster whose centre is asked for, and in what changed since it was"
    )
    levels: int = Field(255, ge=15, le=255, description="to which differences of distances are told apart")
    digits: int = Field(15, ge=8, le=24, description="bits of a standardised value of the passive side")
    bins: int = Field(20, ge=2, le=255, description="texts of a category at most")
    seed: int = Field(0, ge=0, lt=2**32, description="of the active side's own clusters, which are the start")


class Screen(_Strict):
    """Which of the passive side's many columns trees may use: those of the highest information values.

    By turns for each label; of a label with classes, for each class against the rest.
    """

    keep: int = Field(ge=1, le=10_000, description="columns kept at most")
    bins: int = Field(8, ge=2, le=50, description="bins per column, not counting the one for missing values")
    least_iv: float = Field(0.0, ge=0, description="columns of a smaller information value are not kept")


class Scorecard(_Strict):
    """Points of a logistic model on WOE columns: base_score at base_odds (good to bad); pdo points double the odds."""

    base_score: float = 600.0
    base_odds: float = Field(50.0, gt=0)
    pdo: float = Field(20.0, gt=0)
    reasons: int = Field(4, ge=0, le=20, description="reason codes per row; 0 for none")
    against: Literal["best", "mean"] = Field("best", description="points are lost against the best bin or the mean")
    codes: dict[str, Name] = Field({}, description="reason code by column of either side; none for a column without")


class Encryption(_Strict):
    """The back end of the encrypted matrix-vector product."""

    backend: Literal["lwe", "paillier"] = "lwe"
    paillier_bits: int = Field(3072, ge=2048, le=8192)


class Budget(_Strict):
    """What the passive side allows in one run at most, resumed or not; it refuses what goes beyond."""

    rows: int = Field(10_000_000, ge=1, description="rows a side may bring to alignment")
    least_rows: int = Field(1, ge=1, description="least training rows in a child of any split, for anonymity")
    vectors: int = Field(200_000, ge=1, description="encrypted vectors that may be asked for")
    kl_nats: float = Field(2.0**-20, gt=0, description="leakage of all noisy responses together")


class Disclosure(_Strict):
    """What a side may be told beyond what the protocols need."""

    names: bool = Field(False, description="the active side learns the names of the passive features in its trees")
    model: bool = Field(False, description="the active side learns the passive splits of its trees in plain terms")


class Privacy(_Strict):
    """Differential privacy of the passive side's answers: noise on every sum it returns; without this table, none.

    Neighbouring tables differ in all of the passive side's values of one row. Alignment and the routing of rows are not
    covered; see SECURITY.md.
    """

    epsilon: float = Field(gt=0, le=100, description="ε of all noisy sums of one session together")
    delta: float = Field(gt=0, le=0.01, description="δ; well below one over the number of rows")


class Serving(_Strict):
    """Online scoring, one applicant at a time, for these purposes and within these limits; without this table, none.

    ``plain``: the active side sends the applicant's identifier and learns the passive side's part of the score.
    ``sealed``: it learns the total, of trees, or the band that the total falls into, and not that part; the passive
    side learns how its own splits of the trees are nested, and else what it learns in ``plain``. See SECURITY.md.
    """

    mode: Literal["plain", "sealed"] = "plain"
    tells: Literal["score", "band"] = Field("score", description="sealed: what the active side learns of both parts")
    purposes: tuple[Name, ...] = Field(min_length=1, description="what a request may be for")
    per_second: float = Field(1000, gt=0, description="requests a second that the passive side answers")
    per_day: int = Field(10_000_000, ge=1, description="requests a day (UTC) that the passive side answers")
    per_applicant: int = Field(
        0, ge=0, description="requests a day (UTC) about one applicant, repeats included; 0: no limit"
    )
    answers: int = Field(
        100_000_000, ge=1, le=2**40, description="sealed: requests that the passive side answers for one model, ever"
    )
    reach: float = Field(32.0, gt=0, description="sealed: bound on the passive side's part, in the margin's units")
    digits: int = Field(16, ge=4, le=24, description="sealed: bits after the point of a leaf's weight")
    bands: int = Field(16, ge=2, le=256, description="sealed: most bands that there may be, where a band is told")

    @model_validator(mode="after")
    def _one_mode(self) -> Serving:
        if self.mode == "plain" and self.tells == "band":
            raise ValueError("tells = band needs mode = sealed: in plain mode the active side learns both parts")
        if self.reach * 2**self.digits < 4096:
            raise ValueError("reach and digits leave too few steps: reach times two to the digits must be 4096 or more")
        if self.reach * 2**self.digits > 2**30:
            raise ValueError("reach and digits ask for more than 2^30 steps: lower one of them")
        return self


class Contract(_Strict):
    """Everything that both sides agree to."""

    version: Literal[1] = 1
    name: Name
    purpose: str = Field(min_length=10, description="why these data may be used, in words")
    expires: date
    active: Side
    passive: Side
    label: Label = Label()
    out_of_time: OutOfTime | None = None
    align: Align
    boost: Boost = Boost()
    glm: Glm | None = None
    kmeans: Kmeans | None = None
    screen: Screen | None = None
    scorecard: Scorecard | None = None
    statistics: Statistics | None = None
    encryption: Encryption = Encryption()
    budget: Budget = Budget()
    privacy: Privacy | None = None
    disclosure: Disclosure = Disclosure()
    serving: Serving | None = None
    _agreed: bytes = PrivateAttr(b"")

    def narrowed(self, active: Side, passive: Side) -> Contract:
        """This contract on fewer columns, by a plan that both sides keep. Its hash stays that of what was signed."""
        fewer = self.model_copy(update={"active": active, "passive": passive})
        fewer._agreed = self.hash()
        return fewer

    @property
    def target(self) -> Literal["binary", "classes", "number", "count"]:
        """What the label column holds under the objective."""
        kinds: dict[str, Literal["binary", "classes", "number", "count"]] = {
            "logistic": "binary",
            "softmax": "classes",
            "squared": "number",
            "poisson": "count",
            "tweedie": "count",
        }
        if self.glm is not None:
            return {"logistic": "binary", "linear": "number"}.get(self.glm.family, "count")  # type: ignore[return-value]
        return kinds[self.boost.objective]

    @property
    def outputs(self) -> int:
        """Margins per row, which is also trees per round: the number of classes, or of label columns."""
        return len(self.label.classes) if self.boost.objective == "softmax" else 1 + len(self.label.also)

    @property
    def also(self) -> tuple[str, ...]:
        """Objectives of the further label columns."""
        return tuple(target.objective for target in self.label.also)

    @model_validator(mode="after")
    def _consistent(self) -> Contract:
        if self.glm is not None and self.boost != Boost():
            raise ValueError("[boost] and [glm] are two algorithms: choose one")
        if self.scorecard is not None and (self.glm is None or not self.glm.woe):
            raise ValueError("[scorecard] needs [glm] with woe = true")
        if self.privacy and self.glm is not None and self.glm.disclosure == "none":
            raise ValueError("[privacy] does not go with [glm] disclosure none, which adds no noise to its sums")
        self._check_statistics()
        if self.label.offset is not None and (self.glm is None or self.label.offset in self.active.features):
            raise ValueError("[label] offset needs [glm], and cannot also be a feature")
        self._check_codes()
        softmax = self.boost.objective == "softmax"
        if softmax != bool(self.label.classes) or len(set(self.label.classes)) != len(self.label.classes):
            raise ValueError("[label] classes must list distinct values with objective softmax, and only then")
        if softmax and len(self.label.classes) < 2:
            raise ValueError("[label] classes must have at least two values")
        if self.label.weight in self.active.features:
            raise ValueError("the weight column cannot also be a feature")
        self._check_out_of_time()
        if self.active.name == self.passive.name:
            raise ValueError("active and passive must be two different parties")
        serving = self.serving
        if self.glm is not None and serving is not None and (serving.mode, serving.tells) == ("sealed", "score"):
            raise ValueError(
                "[serving] sealed with [glm] needs tells = band: a score and one's own part tell the other"
            )
        if self.privacy and self.boost.routing == "bits":
            raise ValueError(
                "[privacy] does not go with routing bits, which shows the exact side of every row at every split: "
                "choose oblivious or shared, or leave [privacy] out"
            )
        if self.align.pad_rows > self.budget.rows:
            raise ValueError("[align] pad_rows must not exceed [budget] rows")
        if self.label.column in self.active.features:
            raise ValueError("the label column cannot also be a feature")
        return self

    def _check_codes(self) -> None:
        codes = self.scorecard.codes if self.scorecard is not None else {}
        special = self.glm.special if self.glm is not None else {}
        for where, columns in (("[scorecard] codes", [*codes]), ("[glm] special", [*special])):
            for column in columns:
                if column not in {*self.active.features, *self.passive.features}:
                    raise ValueError(f"{where} names {column!r}, which is a column of neither side")
        for side in (self.active, self.passive):
            if len({code for column, code in codes.items() if column in side.features}) > 255:
                raise ValueError(f"[scorecard] codes has more than 255 different codes for columns of {side.name!r}")

    def _check_out_of_time(self) -> None:
        later = self.out_of_time
        if later is None:
            return
        if later.column in (*self.active.features, *self.label.columns, self.label.weight, self.label.offset):
            raise ValueError("[out_of_time] column cannot also be a feature, the label, its weight or its offset")
        if self.glm is not None and self.glm.disclosure == "none":
            raise ValueError(
                "[out_of_time] does not go with [glm] disclosure none, where no row's joint score is known before "
                "scoring: score the later rows with predict"
            )

    def _check_statistics(self) -> None:
        wanted = self.statistics
        if wanted is None:
            return
        if wanted.iv and self.target not in ("binary", "classes"):
            raise ValueError("[statistics] iv needs a label of two values or of classes")
        if wanted.coding == "woe" and self.target != "binary":
            raise ValueError("[statistics] coding woe needs a label of two values")
        if self.disclosure.model and not self.disclosure.names:
            raise ValueError("[statistics] with [disclosure] model needs names too: a plan of opaque columns has none")
        stepwise_fits = self.glm is not None and self.glm.select.p_value > 0 and self.label.offset is None
        if wanted.stepwise and not stepwise_fits:
            raise ValueError("[statistics] stepwise needs [glm.select] p_value, and a label without offset")
        if wanted.period in (*self.active.features, self.label.column, self.label.weight, self.label.offset) and (
            wanted.period is not None
        ):
            raise ValueError("[statistics] period cannot also be a feature, the label, its weight or its offset")
        if self.privacy is not None:
            raise ValueError("[privacy] does not go with [statistics], which adds no noise to its sums")

    @model_validator(mode="after")
    def _screened(self) -> Contract:
        if self.screen is not None and (self.glm or self.kmeans or self.privacy or self.passive.monotone):
            raise ValueError(
                "[screen] goes without [glm], [kmeans], [privacy] and monotone columns on the passive side"
            )
        return self

    @model_validator(mode="after")
    def _several_labels(self) -> Contract:
        boost, columns = self.boost, self.label.columns
        if not self.label.also:
            return self
        if self.glm is not None or boost.objective not in ("logistic", "squared"):
            raise ValueError("[label] also needs [boost] with objective logistic or squared")
        of_one = ("early_stopping", "start", "scale_pos_weight", "goss_top", "metric")
        chosen = [name for name in of_one if getattr(boost, name) != Boost.model_fields[name].default]
        if chosen:
            raise ValueError(f"[label] also goes without [boost] {chosen[0]}, which is of one label")
        if len(set(columns)) < len(columns) or set(columns) & {*self.active.features, self.label.weight}:
            raise ValueError("[label] also must name columns that are neither named twice nor features nor the weight")
        return self

    @model_validator(mode="after")
    def _with_or_without_label(self) -> Contract:
        if self.kmeans is not None and (self.boost != Boost() or self.glm or self.label != Label() or self.serving):
            raise ValueError("[kmeans] goes without [boost], [glm], [label] and [serving]")
        if self.kmeans is not None and self.out_of_time is not None:
            raise ValueError("[out_of_time] does not go with [kmeans], which predicts no outcome")
        if self.kmeans is not None and self.privacy is not None:
            raise ValueError("[privacy] does not go with [kmeans], which adds no noise to its sums")
        if self.kmeans is None and not self.label.column:
            raise ValueError("[label] must name a column: only [kmeans] goes without")
        return self

    def hash(self) -> bytes:
        """SHA-256 over the canonical JSON of all fields but ``serving``, defaults included.

        Models carry it, so that serving can be agreed for a model that is there; see :meth:`serving_hash`.
        """
        return self._agreed or self._hash({"serving"})

    def serving_hash(self) -> bytes:
        """SHA-256 over all fields, ``serving`` included: both sides compare it at every online request."""
        return self._hash(set())

    def _hash(self, without: set[str]) -> bytes:
        body = json.dumps(self.model_dump(mode="json", exclude=without), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(body.encode()).digest()

    def check_not_expired(self) -> None:
        """Raises ContractExpired after the contract's last day (UTC)."""
        if datetime.now(UTC).date() > self.expires:
            raise ContractExpired(f"contract {self.name!r} expired on {self.expires}")

    def role_of(self, party: str) -> Literal["active", "passive"]:
        """The role of a party. Raises BadConfig for a party that the contract does not name."""
        if party == self.active.name:
            return "active"
        if party == self.passive.name:
            return "passive"
        raise BadConfig(
            f"party {party!r} is not in contract {self.name!r}, "
            f"which names {self.active.name!r} and {self.passive.name!r}"
        )

    def side(self, role: str) -> Side:
        """The contract's entry for a role."""
        return self.active if role == "active" else self.passive

    def peer_of(self, party: str) -> str:
        """The other party's name."""
        return self.passive.name if self.role_of(party) == "active" else self.active.name


class Data(_Strict):
    """Where this party's table is.

    ``path`` is a CSV or Parquet file, or a DuckDB database with a ``query``. Or ``url`` is a PostgreSQL server, with a
    ``query``; the password may stand in the URL, but better in libpq's own password file (``~/.pgpass``).
    """

    path: Path | None = None
    url: SecretStr | None = Field(
        None, description="libpq connection URL, for instance postgresql://user@host/database"
    )
    query: str | None = Field(None, description="SELECT on the database; its result is the table")
    missing: tuple[str, ...] = Field(("", "NA", "NaN", "null"), description="texts that mean a missing value")

    @property
    def source(self) -> str:
        """What messages call it."""
        return "the query on PostgreSQL" if self.path is None else str(self.path)

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.path is None) == (self.url is None):
            raise ValueError("exactly one of path and url must be given")
        if self.url is not None and self.query is None:
            raise ValueError("a url needs a query")
        return self


class Network(_Strict):
    """Either ``listen`` or ``connect`` (host:port), and how long to wait for the peer."""

    listen: str | None = None
    connect: str | None = None
    connect_seconds: float = Field(60, gt=0, le=_WEEK)
    silence_seconds: float = Field(15, ge=4, le=_WEEK, description="at least two heartbeats of 2 s")
    step_seconds: float = Field(1800, gt=0, le=_WEEK)

    @field_validator("listen", "connect")
    @classmethod
    def _host_port(cls, value: str | None) -> str | None:
        if value is not None:
            host, _, port = value.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536 or not _is_host(host):
                raise ValueError("must be host:port")
        return value

    @model_validator(mode="after")
    def _one_of(self) -> Network:
        if (self.listen is None) == (self.connect is None):
            raise ValueError("exactly one of listen and connect must be given")
        return self


class Tls(_Strict):
    """This party's certificate and key, and the authority that both sides trust (all PEM)."""

    certificate: Path
    key: Path
    authority: Path


class Output(_Strict):
    """Where results go; the folder must not hold a result yet."""

    folder: Path


class Store(_Strict):
    """Where online features come from, by the key as the contract normalises it.

    ``table``: a CSV or Parquet file, in memory. ``sqlite``: a file. ``postgres`` and ``redis``: a server, by its URL;
    the password may stand in the URL, or for PostgreSQL better in libpq's own password file.
    """

    kind: Literal["table", "sqlite", "postgres", "redis"] = "table"
    path: Path | None = Field(None, description="of a table or an SQLite file")
    url: SecretStr | None = Field(
        None, description="for instance postgresql://user@host/database, or rediss://:password@host:6379/0"
    )
    table: Name = Field(
        "features",
        description="of the database; its key column holds normalised keys. Of Redis: the hash at table:key",
    )
    timeout_ms: int = Field(50, ge=1, le=60_000, description="for an answer of the server, and for a free connection")
    connections: int = Field(16, ge=1, le=256, description="to the server, at most")

    @model_validator(mode="after")
    def _one_place(self) -> Store:
        remote = self.kind in ("postgres", "redis")
        if remote != (self.url is not None) or remote == (self.path is not None):
            raise ValueError(f"kind {self.kind} needs {'url, and no path' if remote else 'path, and no url'}")
        return self


class Caller(_Strict):
    """One of the lender's own systems, known by the name in its certificate."""

    per_second: float = Field(1000, gt=0)
    per_day: int = Field(10_000_000, ge=1)


class Band(_Strict):
    """Decision for values up to and including ``up_to``; the last band has none. Bands ascend."""

    name: Name
    decision: Name
    up_to: float | None = None


class Traces(_Strict):
    """Where this side's OpenTelemetry spans go (OTLP over HTTP): times and statuses, nothing of applicants."""

    url: str = Field(description="the collector's, for instance http://127.0.0.1:4318/v1/traces")
    share: float = Field(1.0, gt=0, le=1, description="share of requests that are traced")
    to_peer: bool = Field(False, description="tell the other party the trace's ID, so that both sides' spans join up")


class Service(_Strict):
    """Online scoring on this side. ``peer``, ``http``, ``callers`` and decisions are the active side's."""

    listen: str = Field(description="host:port of the gRPC service, mutual TLS")
    http: str | None = Field(None, description="host:port of the HTTP/JSON endpoint, mutual TLS")
    status: str | None = Field(None, description="host:port of health and metrics; plain HTTP, nothing personal")
    peer: str | None = Field(None, description="host:port of the passive side's service")
    model: Name = Field("model", description="name in the registry")
    fallback: Name | None = Field(None, description="name in the registry of a model of this side alone")
    registry: Path = Path("registry")
    audit: Path = Path("audit.jsonl")
    store: Store
    callers: dict[Name, Caller] = {}
    deadline_ms: int = Field(100, ge=5, le=60_000, description="for the passive side's part of an answer")
    workers: int = Field(16, ge=1, le=256, description="requests under way at once; 256 more may wait")
    most_missing: float = Field(0.5, ge=0, le=1, description="largest share of missing features that is scored")
    challenger_share: float = Field(0.0, ge=0, le=1, description="share of applicants scored by the challenger")
    traces: Traces | None = None
    measure: Literal["probability", "calibrated", "score"] = Field(
        "probability", description="what bands are about; the probability where a model has no other"
    )
    bands: tuple[Band, ...] = ()

    @field_validator("listen", "http", "status", "peer")
    @classmethod
    def _host_port(cls, value: str | None) -> str | None:
        return Network._host_port(value)

    @model_validator(mode="after")
    def _ordered(self) -> Service:
        cuts = [band.up_to for band in self.bands]
        if cuts and (cuts[-1] is not None or None in cuts[:-1] or cuts[:-1] != sorted(set(cuts[:-1]))):  # type: ignore[type-var]
            raise ValueError("bands must ascend by up_to, and only the last has none")
        return self


class PartyFile(_Strict):
    """One party's private settings. Relative paths are taken from the file's own folder."""

    party: Name
    contract: Path
    data: Data
    network: Network
    tls: Tls
    output: Output
    service: Service | None = None


T = TypeVar("T", bound=BaseModel)


def load_contract(path: Path) -> Contract:
    """Read and check a contract.

    Raises:
        FileMissing, BadConfig, UnknownKey: with the file and field.
    """
    return _validate(Contract, _read_toml(path), path)


def load_party(path: Path, overrides: dict[str, Any] | None = None) -> PartyFile:
    """Read and check a party file, with single fields overridden from the command line.

    Args:
        path: the TOML file; relative paths in it are taken from its folder.
        overrides: dotted field name to value, for instance ``{"data.path": "new.csv"}``; relative paths in these
            are taken from the working directory.

    Raises:
        FileMissing, BadConfig, UnknownKey: with the file and field.
    """
    raw = _read_toml(path)
    for dotted, value in (overrides or {}).items():
        table = raw
        *parents, leaf = dotted.split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise BadConfig(f"{path}, field {parent}: must be a table")
        table[leaf] = str(value.absolute()) if isinstance(value, Path) else value
    party = _validate(PartyFile, raw, path)
    base = path.absolute().parent

    def placed(given: Path) -> Path:
        return Path(os.path.normpath(base / given))

    tls = {name: placed(given) for name, given in party.tls}
    service = party.service
    if service is not None:
        store = service.store.model_copy(update={"path": service.store.path and placed(service.store.path)})
        places = {"registry": placed(service.registry), "audit": placed(service.audit), "store": store}
        service = service.model_copy(update=places)
    return party.model_copy(
        update={
            "contract": placed(party.contract),
            "data": party.data.model_copy(update={"path": party.data.path and placed(party.data.path)}),
            "tls": party.tls.model_copy(update=tls),
            "output": party.output.model_copy(update={"folder": placed(party.output.folder)}),
            "service": service,
        }
    )


def _is_host(name: str) -> bool:
    """Whether this can be a host's name or address: no part of a name is empty or over 63 characters."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileMissing(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise BadConfig(f"{path} is not valid TOML: it is nested too deeply") from None


def _validate(model: type[T], raw: dict[str, Any], path: Path) -> T:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "(top level)"
        if first["type"] == "extra_forbidden":
            raise UnknownKey(f"{path} has an unknown key {where!r}") from None
        raise BadConfig(f"{path}, field {where}: {first['msg'].removeprefix('Value error, ')}") from None
