"""A share of a model for readers and for other programs: as JSON, as text, and (if disclosed) as an XGBoost model.

The view and the text say what this party knows and nothing else. The XGBoost model needs both halves: it can be made of
a model without passive splits, and of one whose passive splits were disclosed under the contract.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.contract import Contract
from fedlearn.data.binning import FeatureBins
from fedlearn.errors import NotDisclosed, NotInContract, WrongModel
from fedlearn.models.forest import Forest
from fedlearn.models.share import ActiveShare, PassiveShare, Share

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

VIEW_FORMAT = 1

#: The oldest release of XGBoost whose models hold the texts of categories.
_XGBOOST = [3, 1, 0]
_LARGEST = np.finfo(np.float32).max
_NO_PARENT = 2**31 - 1

#: The contract's objective, XGBoost's, and the base score that XGBoost turns into a margin of 0.
_OBJECTIVES = {
    "logistic": ("binary:logistic", "5E-1"),
    "softmax": ("multi:softprob", "0E0"),
    "squared": ("reg:squarederror", "0E0"),
    "poisson": ("count:poisson", "1E0"),
    "tweedie": ("reg:tweedie", "1E0"),
}


@dataclass(frozen=True)
class Rule:
    """A split in its feature's own terms.

    Attributes:
        feature: with its name, and its edges or texts.
        cut: of a number, how many regular bins lie below the threshold; 0 when all present values go one way.
        left: for a number, whether values up to the threshold (all present values at cut 0) go left; unused else.
        values: of a category, the numbers of the texts that go left.
        missing: whether missing values, and texts that were not there in training, go left.
    """

    feature: FeatureBins
    cut: int
    left: bool
    values: tuple[int, ...]
    missing: bool

    @classmethod
    def of(cls, feature: FeatureBins, mask: NDArray[np.uint8]) -> Rule:
        """The rule that a bin mask stands for. Raises WrongModel for a mask that cuts a number twice."""
        bits = np.unpackbits(mask, bitorder="little")[: feature.bins].astype(np.bool_)
        regular, missing = bits[:-1], bool(bits[-1])
        if feature.kind == "category":
            values = np.flatnonzero(regular[: len(feature.categories)])
            return cls(feature, 0, False, tuple(values.tolist()), missing)
        turns = np.flatnonzero(regular[1:] != regular[:-1]) + 1
        if len(turns) > 1:
            raise WrongModel(f"the model is damaged: a split of number {feature.name!r} has more than one threshold")
        return cls(feature, int(turns[0]) if len(turns) else 0, bool(regular[0]), (), missing)

    @property
    def parted(self) -> list[int]:
        """Of a category, the numbers of the texts that do not go with missing values."""
        return [v for v in range(len(self.feature.categories)) if (v in self.values) != self.missing]

    @property
    def parts(self) -> bool:
        """Whether anything goes another way than the rest."""
        return bool(self.parted if self.feature.kind == "category" else self.cut or self.left != self.missing)

    @property
    def swapped(self) -> bool:
        """Whether our left child is XGBoost's right one."""
        if self.feature.kind == "category":
            return not self.missing
        return self.left != bool(self.cut)

    def to_json(self) -> dict[str, Any]:
        """What goes left, under ``up_to``, ``above``, ``in`` or ``present``; and where missing values go."""
        missing = {"missing": "left" if self.missing else "right"}
        if self.feature.kind == "category":
            return {"in": [self.feature.categories[v] for v in self.values], **missing}
        if not self.cut:
            return {"present": "left" if self.left else "right", **missing}
        return {"up_to" if self.left else "above": float(self.feature.edges[self.cut - 1]), **missing}

    def __str__(self) -> str:
        """The condition under which a row goes left."""
        said, parts = self.to_json(), []
        if self.values:
            parts.append("in {" + ", ".join(said["in"]) + "}")
        elif self.cut:
            parts.append(f"<= {said['up_to']!r}" if self.left else f"> {said['above']!r}")
        elif self.left:
            parts.append("present")
        if self.missing:
            parts.append("missing" if self.feature.kind == "number" else "missing or new")
        return f"{self.feature.name} {' or '.join(parts) or 'never'}"


# --- the view ----------------------------------------------------------------------------------------


def view(share: Share, contract: Contract, party: str) -> dict[str, Any]:
    """One party's share in its features' own terms, as plain values for JSON.

    The active side's has every tree with gain, cover and leaf values; a passive split stands there as the number that
    both sides know it by and its opaque feature, unless names or splits are disclosed. The passive side's has its
    splits by the same numbers, and no trees.
    """
    head: dict[str, Any] = {
        "format": VIEW_FORMAT,
        "party": party,
        "peer": contract.peer_of(party),
        "contract": contract.name,
        "contract_hash": contract.hash().hex(),
        "model_id": share.model_id.hex(),
        "objective": contract.boost.objective,
    }
    if isinstance(share, PassiveShare):
        rules = _passive_rules(share)
        splits = [{"split": s, "feature": r.feature.name, "left": r.to_json()} for s, r in enumerate(rules)]
        return head | {"role": "passive", "splits": splits}
    forest = share.forest
    theirs = _passive_rules(share.disclosed) if share.disclosed is not None else None
    trees = [
        {"output": int(output), "nodes": _nodes(nodes, share, contract, theirs)}
        for nodes, output in zip(_trees(forest), forest.output, strict=True)
    ]
    outputs = list(contract.label.classes) or list(contract.label.columns)
    return head | {"role": "active", "outputs": outputs, "base": forest.base.tolist(), "trees": trees}


def _trees(forest: Forest) -> Iterator[list[int]]:
    """The nodes of each tree, its root first, the two children of a node side by side."""
    for root in forest.roots.tolist():
        nodes = [root]
        for at in nodes:  # grows on the way
            left = int(forest.left[at])
            if left >= 0:
                nodes += [left, left + 1]
        yield nodes


def _passive_rules(half: PassiveShare) -> list[Rule]:
    features = half.binning.features
    return [Rule.of(features[f], mask) for f, mask in zip(half.feature, half.masks, strict=True)]


def _nodes(nodes: list[int], share: ActiveShare, contract: Contract, theirs: list[Rule] | None) -> list[dict[str, Any]]:
    number = {at: k for k, at in enumerate(nodes)}
    return [_node(at, number, share, contract, theirs) for at in nodes]


def _node(
    at: int, number: dict[int, int], share: ActiveShare, contract: Contract, theirs: list[Rule] | None
) -> dict[str, Any]:
    forest = share.forest
    known = {"cover": float(forest.cover[at]), "rows": int(forest.size[at])}
    left = int(forest.left[at])
    if left < 0:
        return {"node": number[at], "leaf": float(forest.value[at]), **known}
    f = int(forest.feature[at])
    if f >= 0:
        rule: Rule | None = Rule.of(share.binning.features[f], forest.masks[at])
        split: dict[str, Any] = {"party": contract.active.name}
    else:
        rule = theirs[-1 - f] if theirs is not None else None
        split = {"party": contract.passive.name, "split": -1 - f, "opaque": int(forest.opaque[at])}
    if rule is not None:
        split |= {"feature": rule.feature.name, "left": rule.to_json(), "text": str(rule)}
    else:
        name = share.names[split["opaque"]] if share.names else f"passive feature #{split['opaque']}"
        split |= {"feature": name, "text": f"{name} (split {-1 - f})"}
    known |= {"gain": float(forest.gain[at])}
    return {"node": number[at], "split": split, "left": number[left], "right": number[left + 1], **known}


def text(share: Share, contract: Contract, party: str) -> str:
    """The view for human readers: one line for each node, indented by depth."""
    seen = view(share, contract, party)
    head = [f"{party}'s share of a {seen['objective']} model under contract {contract.name}, model {seen['model_id']}"]
    if isinstance(share, PassiveShare):
        return "\n".join([*head, *(f"split {s}: {rule}" for s, rule in enumerate(_passive_rules(share))), ""])
    head += [f"margins start at {', '.join(map(repr, seen['base']))}"]
    for k, tree in enumerate(seen["trees"]):
        head += ["", f"tree {k}" + (f", output {seen['outputs'][tree['output']]}" if len(seen["base"]) > 1 else "")]
        stack = [(0, 0)]
        while stack:
            at, depth = stack.pop()
            node = tree["nodes"][at]
            indent, known = "    " * depth + f"{at}: ", f"cover {node['cover']:.6g}, {node['rows']} rows"
            if "leaf" in node:
                head.append(f"{indent}leaf {node['leaf']!r}   ({known})")
                continue
            said = node["split"]["text"]
            head.append(f"{indent}{said}?  yes {node['left']}, no {node['right']}   (gain {node['gain']:.6g}, {known})")
            stack += [(node["right"], depth + 1), (node["left"], depth + 1)]
    return "\n".join([*head, ""])


# --- XGBoost -----------------------------------------------------------------------------------------


def xgboost(share: ActiveShare, contract: Contract) -> dict[str, Any]:
    """The joint model in XGBoost's JSON format, with all features of the active side and those disclosed.

    Raises:
        NotDisclosed: the model has passive splits and they were not disclosed.
        NotInContract: the model is of several labels with an objective each.
    """
    if contract.label.also:
        raise NotInContract("XGBoost has no model of several labels with an objective each: export as json or text")
    forest, features = joint(share, contract)
    return xgboost_model(forest, features, contract)


def joint(share: ActiveShare, contract: Contract) -> tuple[Forest, tuple[FeatureBins, ...]]:
    """Both halves as one forest of own features: the active side's, then the disclosed ones.

    A passive feature that has the name of an active one is called ``<party>.<name>``.
    """
    forest, own = share.forest, share.binning.features
    at = np.flatnonzero((forest.left >= 0) & (forest.feature < 0))
    if not len(at):
        return forest, own
    half = share.disclosed
    if half is None:
        raise NotDisclosed(
            f"the model has {share.passive_splits} splits on features of {contract.passive.name!r}, "
            f"which contract {contract.name!r} did not disclose to this side"
        )
    feature, masks = forest.feature.copy(), forest.masks.copy()
    split = -1 - forest.feature[at]
    feature[at], masks[at] = len(own) + half.feature[split], half.masks[split]
    taken = {f.name for f in own}
    theirs = (
        replace(f, name=f"{contract.passive.name}.{f.name}") if f.name in taken else f for f in half.binning.features
    )
    return replace(forest, feature=feature, masks=masks), (*own, *theirs)


def xgboost_model(forest: Forest, features: tuple[FeatureBins, ...], contract: Contract) -> dict[str, Any]:
    """A forest of known features in XGBoost's JSON format, for releases from 3.1.

    XGBoost keeps thresholds and leaves in float32 and has one base score where we have a start for each output, in a
    space where it may lose digits; so the start of each output is a tree of one leaf, before the others.

    Args:
        forest: without opaque splits.
        features: that its nodes name.
        contract: for the objective and the number of classes.

    Returns:
        Plain values for ``json.dumps``; every number in it is one that float32 holds.
    """
    objective, outputs = contract.boost.objective, len(forest.base)
    name, base_score = _OBJECTIVES[objective]
    starts = range(outputs) if forest.base.any() else ()
    trees = [_leaf(float(forest.base[k])) for k in starts]
    trees += [_tree(forest, root, features) for root in forest.roots.tolist()]
    for k, tree in enumerate(trees):
        tree |= {"id": k}
        tree["tree_param"] |= {"num_feature": str(len(features))}
    parameters = {
        "logistic": {"reg_loss_param": {"scale_pos_weight": "1"}},
        "softmax": {"softmax_multiclass_param": {"num_class": str(outputs)}},
        "squared": {"reg_loss_param": {"scale_pos_weight": "1"}},
        "poisson": {"poisson_regression_param": {"max_delta_step": repr(contract.boost.step_bound)}},
        "tweedie": {"tweedie_regression_param": {"tweedie_variance_power": repr(contract.boost.tweedie_power)}},
    }[objective]
    model = {
        "cats": _categories(features),
        "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(len(trees))},
        "iteration_indptr": list(range(0, len(trees) + 1, outputs)),
        "tree_info": [*starts, *forest.output.tolist()],
        "trees": trees,
    }
    learner = {
        "attributes": {},
        "feature_names": [f.name for f in features],
        "feature_types": ["c" if f.kind == "category" else "float" for f in features],
        "gradient_booster": {"model": model, "name": "gbtree"},
        "learner_model_param": {
            "base_score": base_score,
            "boost_from_average": "1",
            "num_class": str(outputs if objective == "softmax" else 0),
            "num_feature": str(len(features)),
            "num_target": "1",
        },
        "objective": {"name": name, **parameters},
    }
    return {"learner": learner, "version": _XGBOOST}


def float32_cut(edges: F64) -> F32:
    """For each edge e the t for which ``float32(x) < t`` comes nearest to ``x <= e``.

    Rounding to float32 can divide numbers only midway between two neighbours of float32. An edge lies midway between
    two values that occurred in training (see :mod:`fedlearn.data.binning`), so the dividing point nearest to it lies
    between those two whenever any does: two values that float32 keeps apart are not misrouted.
    """
    near = np.clip(edges, -_LARGEST, _LARGEST).astype(np.float32)
    down, up = np.nextafter(near, -_LARGEST), np.nextafter(near, _LARGEST)
    choices = np.stack([near, up])  # float32(x) < t divides midway between t and its lower neighbour
    middles = np.stack([_middle(down, near), _middle(near, up)])
    best = np.abs(middles - edges).argmin(axis=0)
    return np.asarray(choices[best, np.arange(len(edges))], np.float32)


def _middle(low: F32, high: F32) -> F64:
    return np.asarray(low.astype(np.float64) / 2 + high.astype(np.float64) / 2)


def _leaf(value: float) -> dict[str, Any]:
    zero = np.zeros(1)
    one = Forest(
        base=zero,
        roots=np.zeros(1, np.int32),
        output=np.zeros(1, np.int32),
        feature=np.zeros(1, np.int32),
        opaque=np.full(1, -1, np.int32),
        masks=np.zeros((1, 32), np.uint8),
        left=np.full(1, -1, np.int32),
        value=np.array([value]),
        gain=zero,
        cover=zero,
        size=np.zeros(1, np.int64),
    )
    return _tree(one, 0, ())


def _tree(forest: Forest, root: int, features: tuple[FeatureBins, ...]) -> dict[str, Any]:
    """One tree as XGBoost's parallel arrays.

    XGBoost sends numbers below ``split_conditions``, and categories that are *not* listed, to the left child; the right
    child must be the next node. Listed are always the categories that part from missing values: then codes that were
    not there in training go with the missing ones, as our rule has it.
    """
    nodes, parents, rules = _laid_out(forest, root, features)
    count = len(nodes)
    value = _floats(forest.value[nodes])
    tree: dict[str, Any] = {
        "base_weights": value,
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "default_left": [0] * count,
        "left_children": [-1] * count,
        "loss_changes": _floats(forest.gain[nodes]),
        "parents": parents,
        "right_children": [-1] * count,
        "split_conditions": value.copy(),
        "split_indices": [0] * count,
        "split_type": [0] * count,
        "sum_hessian": _floats(forest.cover[nodes]),
        "tree_param": {"num_deleted": "0", "num_nodes": str(count), "size_leaf_vector": "1"},
    }
    for child in range(1, count, 2):
        tree["left_children"][parents[child]], tree["right_children"][parents[child]] = child, child + 1
    for k, rule in rules.items():
        tree["split_indices"][k] = int(forest.feature[nodes[k]])
        tree["default_left"][k] = int(rule.missing != rule.swapped)
        if rule.feature.kind == "category":
            listed = rule.parted
            tree["split_type"][k], tree["split_conditions"][k] = 1, 0.0
            tree["categories_nodes"].append(k)
            tree["categories_segments"].append(len(tree["categories"]))
            tree["categories_sizes"].append(len(listed))
            tree["categories"] += listed
        elif rule.cut:
            edge = rule.feature.edges[rule.cut - 1 : rule.cut]
            tree["split_conditions"][k] = float(float32_cut(edge)[0])
        else:  # nothing is below: all present values go right
            tree["split_conditions"][k] = -float(_LARGEST)
    return tree


def _laid_out(
    forest: Forest, root: int, features: tuple[FeatureBins, ...]
) -> tuple[list[int], list[int], dict[int, Rule]]:
    """Nodes in XGBoost's order, the place of each one's parent, and the rule at each place that splits.

    Splits that send every row one way, which no learner makes, are left out.
    """

    def settled(at: int) -> tuple[int, Rule | None]:
        while forest.left[at] >= 0:
            rule = Rule.of(features[forest.feature[at]], forest.masks[at])
            if rule.parts:
                return at, rule
            at = int(forest.left[at]) + (not rule.missing)
        return at, None

    nodes, parents, rules = [root], [_NO_PARENT], {}
    for k, start in enumerate(nodes):  # grows on the way
        nodes[k], rule = settled(start)
        if rule is not None:
            left = int(forest.left[nodes[k]])
            nodes += [left + 1, left] if rule.swapped else [left, left + 1]
            parents += [k, k]
            rules[k] = rule
    return nodes, parents, rules


def _floats(values: F64) -> list[float]:
    return [float(v) for v in values.astype(np.float32)]


def _categories(features: tuple[FeatureBins, ...]) -> dict[str, Any]:
    """XGBoost's list of category texts, by which it numbers the categories of a data frame as the model does.

    Texts are given as signed bytes with offsets, and sorted by these bytes.
    """
    texts = [[t.encode() for t in f.categories] for f in features]
    signed = [[np.frombuffer(t, np.int8).tolist() for t in one] for one in texts]
    return {
        "enc": [
            {
                "offsets": np.cumsum([0, *map(len, one)]).tolist() if f.kind == "category" else [],
                "values": [byte for t in one for byte in t],
            }
            for f, one in zip(features, signed, strict=True)
        ],
        "feature_segments": np.cumsum([0, *map(len, texts)]).tolist(),
        "sorted_idx": [k for one in signed for k in sorted(range(len(one)), key=one.__getitem__)],
    }
