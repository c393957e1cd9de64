"""Quantile bins against NumPy and scikit-learn, their invariants, and what a damaged file gives."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import KBinsDiscretizer

from fedlearn.contract import Kind
from fedlearn.data import Binning, fit_binning, make_table
from fedlearn.errors import BadConfig, ColumnMissing, TooManyCategories, WrongModel

NUMBER: dict[str, Kind] = {"x": "number"}
CATEGORY: dict[str, Kind] = {"x": "category"}


def table(values, kinds=NUMBER):
    return make_table(list(range(len(values))), {"x": values}, kinds)


def fit(values, max_bins, kinds=NUMBER):
    """The one feature's bins, and the bin of each value."""
    rows = table(values, kinds)
    binning = fit_binning(rows, max_bins, kinds)
    return binning.features[0], binning.transform(rows)[0]


# Few distinct values, many repetitions, gaps, and the ugly ends of the float range.
values = st.lists(
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False),
        st.integers(-3, 3).map(float),
        st.sampled_from([np.nan, 0.0, -0.0, 5e-324, -5e-324, 1.0, np.nextafter(1.0, 2.0), 1.7e308, -1.7e308]),
    ),
    min_size=1,
    max_size=120,
)


@given(values, st.integers(1, 12))
def test_no_regular_bin_is_empty_and_missing_values_are_in_the_last(xs, max_bins):
    feature, codes = fit(xs, max_bins)
    present = ~np.isnan(xs)
    distinct = len(np.unique(np.array(xs)[present]))
    assert feature.regular <= max_bins
    assert (codes[~present] == feature.regular).all()
    assert set(codes[present]) == set(range(feature.regular)) or distinct == 0
    if distinct <= max_bins:
        assert feature.regular == max(1, distinct)


@given(values, values, st.integers(1, 12))
def test_bins_are_monotone_and_lie_between_their_edges_for_new_values_too(fitted, new, max_bins):
    binning = fit_binning(table(fitted), max_bins, NUMBER)
    xs = np.sort(np.array([x for x in new if not np.isnan(x)] + [0.0]))
    codes = binning.transform(table(xs))[0].astype(int)
    bounds = np.concatenate([[-np.inf], binning.features[0].edges, [np.inf]])
    assert (np.diff(codes) >= 0).all()
    assert (bounds[codes] < xs).all()
    assert (xs <= bounds[codes + 1]).all()


@given(st.lists(values, min_size=1, max_size=3), st.integers(1, 255))
def test_json_restores_every_edge_and_category(columns, max_bins):
    rows = min(map(len, columns))
    data = {f"n{i}": column[:rows] for i, column in enumerate(columns)}
    kinds: dict[str, Kind] = {**dict.fromkeys(data, "number"), "c": "category"}
    data["c"] = ["é\n\"'"] * rows
    binning = fit_binning(make_table(list(range(rows)), data, kinds), max_bins, kinds)
    restored = Binning.from_json(json.loads(json.dumps(binning.to_json())))
    for old, new in zip(binning.features, restored.features, strict=True):
        assert (old.name, old.kind, old.categories) == (new.name, new.kind, new.categories)
        assert old.edges.tobytes() == new.edges.tobytes()


@pytest.mark.parametrize("max_bins", [2, 7, 32, 255])
def test_distinct_values_are_spread_as_numpy_and_scikit_learn_spread_them(max_bins):
    xs = np.random.default_rng(1).lognormal(size=5_000)
    feature, codes = fit(xs, max_bins)
    sizes = np.bincount(codes)
    assert len(sizes) == max_bins
    assert sizes.max() - sizes.min() <= 2

    ranks = np.searchsorted(np.sort(xs), feature.edges)  # rows below each edge
    np.testing.assert_allclose(ranks, len(xs) * np.arange(1, max_bins) / max_bins, atol=1)
    peer = KBinsDiscretizer(max_bins, encode="ordinal", strategy="quantile", quantile_method="averaged_inverted_cdf")
    theirs = peer.fit_transform(xs[:, None])[:, 0]
    assert (theirs != codes).mean() <= max_bins / len(xs)


@pytest.mark.parametrize("heavy", [0.0, 0.5, 1.0])
def test_a_value_that_most_rows_have_leaves_the_other_bins_to_the_others(heavy):
    # KBinsDiscretizer and plain quantiles give the one value 80% of the bins; where it lies must not matter.
    xs = np.concatenate([np.random.default_rng(2).uniform(size=1_000), np.full(4_000, heavy)])
    feature, codes = fit(xs, 16)
    sizes = np.sort(np.bincount(codes))
    assert feature.regular == 16
    assert sizes[-1] >= 4_000
    assert sizes[-2] <= 1.6 * 1_000 / 15
    assert sizes[0] >= 0.4 * 1_000 / 15
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = KBinsDiscretizer(16, strategy="quantile", quantile_method="averaged_inverted_cdf").fit(xs[:, None])
    assert plain.n_bins_[0] < 8


def test_rounded_values_stay_balanced_within_one_value():
    xs = np.random.default_rng(3).normal(40, 12, 20_000).round()
    _, codes = fit(xs, 10)
    most_repeated = np.unique(xs, return_counts=True)[1].max()
    sizes = np.bincount(codes)
    assert len(sizes) == 10
    assert np.abs(sizes - 2_000).max() <= most_repeated


def test_each_value_gets_its_own_bin_when_there_are_few():
    feature, codes = fit([3.0, 1.0, np.nan, 1.0, 2.0], 3)
    assert feature.edges.tolist() == [1.5, 2.5]
    assert codes.tolist() == [2, 0, 3, 0, 1]


@pytest.mark.parametrize(("xs", "codes"), [([7.0, 7.0, np.nan], [0, 0, 1]), ([np.nan, np.nan], [1, 1])])
def test_constant_and_missing_columns_get_one_regular_bin(xs, codes):
    feature, found = fit(xs, 8)
    assert (feature.regular, feature.bins) == (1, 2)
    assert found.tolist() == codes


def test_categories_go_by_frequency_then_text_and_unseen_ones_with_the_missing():
    rows = table(["b", "c", "a", "c", None], CATEGORY)
    binning = fit_binning(rows, 3, CATEGORY)
    assert binning.features[0].categories == ("c", "a", "b")
    assert binning.transform(rows)[0].tolist() == [2, 0, 1, 0, 3]
    assert binning.transform(table(["new", "c", None], CATEGORY))[0].tolist() == [3, 0, 3]


def test_a_category_without_values_gets_one_regular_bin():
    feature, codes = fit([None, None], 3, CATEGORY)
    assert feature.regular == 1
    assert codes.tolist() == [1, 1]


def test_too_many_categories_names_column_count_and_limit():
    rows = table(["a", "b", "c", "a"], CATEGORY)
    with pytest.raises(TooManyCategories, match=r"'x' has 3 distinct values.* 2 bins"):
        fit_binning(rows, 2, CATEGORY)
    # A value that no remaining row has does not count.
    assert fit_binning(rows.take(np.array([3, 1])), 2, CATEGORY).features[0].categories == ("a", "b")


def test_transform_is_one_contiguous_uint8_block_in_the_order_of_the_features():
    kinds: dict[str, Kind] = {"b": "category", "a": "number"}
    rows = make_table(range(300), {"a": np.arange(300.0), "b": ["x", "y", None] * 100}, kinds)
    binning = fit_binning(rows, 255, kinds)
    codes = binning.transform(rows)
    assert codes.dtype == np.uint8
    assert codes.shape == (2, 300)
    assert codes.flags.c_contiguous
    assert binning.offsets.dtype == np.int64
    assert binning.offsets.tolist() == [0, 3, 3 + 256]
    assert [f.name for f in binning.features] == ["b", "a"]
    assert codes.max(axis=1).tolist() == [2, 254]


def test_a_column_that_is_absent_or_of_another_kind():
    rows = table([1.0, 2.0])
    with pytest.raises(ColumnMissing, match=r"'y' is not in the table, which has: x"):
        fit_binning(rows, 4, {"y": "number"})
    with pytest.raises(BadConfig, match=r"'x' of the table is not a category"):
        fit_binning(rows, 4, CATEGORY)
    with pytest.raises(BadConfig, match="1 to 255, not 256"):
        fit_binning(rows, 256, NUMBER)


GOOD = {"features": [{"name": "x", "kind": "number", "edges": [0.5]}]}


def feature(**changes):
    return {"features": [{**GOOD["features"][0], **changes}]}


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        ([], "no list of features"),
        ({"features": {}}, "no list of features"),
        ({**GOOD, "more": 1}, "no list of features"),
        ({"features": GOOD["features"] * 2}, "a feature occurs twice"),
        ({"features": [3]}, "feature 1 has no name"),
        (feature(name=7), "feature 1 has no name"),
        (feature(kind="date"), r"feature 1 \('x'\) has not the fields"),
        (feature(kind=[]), r"feature 1 \('x'\) has not the fields"),
        (feature(kind="category"), r"feature 1 \('x'\) has not the fields"),
        (feature(edges=[1.0, 1.0]), r"feature 1 \('x'\) has unusable edges"),
        (feature(edges=[2.0, 1.0]), "unusable edges"),
        (feature(edges=[float("nan")]), "unusable edges"),
        (feature(edges=[float("inf")]), "unusable edges"),
        (feature(edges=[True]), "unusable edges"),
        (feature(edges=["1"]), "unusable edges"),
        (feature(edges=[float(i) for i in range(255)]), "unusable edges"),
        ({"features": [{"name": "x", "kind": "category", "categories": ["a", "a"]}]}, "unusable categories"),
        ({"features": [{"name": "x", "kind": "category", "categories": [1]}]}, "unusable categories"),
        ({"features": [{"name": "x", "kind": "category", "categories": "ab"}]}, "unusable categories"),
    ],
)
def test_damaged_bins_are_refused(saved, sentence):
    with pytest.raises(WrongModel, match=sentence):
        Binning.from_json(saved)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.just("number") | st.just("category"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["features", "name", "kind", "edges", "categories"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(json_values)
def test_any_json_is_restored_or_refused(saved):
    try:
        binning = Binning.from_json({"features": [saved]})
    except WrongModel:
        return
    assert binning.offsets[-1] >= 2
