"""The model report: its numbers against scikit-learn, its structure, and how it looks in a browser."""

from __future__ import annotations

import html
import html.parser
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import calibration, metrics

from fedlearn.cli.main import run as command_line
from fedlearn.contract import load_contract, load_party
from fedlearn.errors import FileMissing, OutputExists, WrongModel
from fedlearn.report import curves, draw, markup, page, words
from tests.parties import MODULES, Pair, make_keys, make_pair

CARD = {"base_score": 600, "base_odds": 20, "pdo": 30}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "br", "img", "input", "hr"}


def scored(seed: int = 1, rows: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw_ = np.random.default_rng(seed)
    true = draw_.normal(size=rows)
    label = (draw_.random(rows) < 1 / (1 + np.exp(1 - true))).astype(float)
    return label, true + draw_.normal(size=rows).round(1), (true + 2 * draw_.normal(size=rows)).round(1)


# --- numbers -----------------------------------------------------------------------------------------


def test_delong_against_its_definition_and_scikit_learn() -> None:
    label, joint, alone = scored()
    scores = np.stack([joint, alone])
    areas, covariance = curves.delong(label, scores)
    assert areas == pytest.approx([metrics.roc_auc_score(label, s) for s in scores])
    bad, good = scores[:, label == 1], scores[:, label == 0]
    wins = (bad[:, :, None] > good[:, None, :]) + 0.5 * (bad[:, :, None] == good[:, None, :])
    expected = np.cov(wins.mean(axis=2)) / bad.shape[1] + np.cov(wins.mean(axis=1)) / good.shape[1]
    np.testing.assert_allclose(covariance, expected, rtol=1e-10)


def test_uplift_interval_against_the_bootstrap() -> None:
    label, joint, alone = scored()
    draws = np.random.default_rng(5).integers(0, len(label), (150, len(label)))
    found = [metrics.roc_auc_score(label[d], joint[d]) - metrics.roc_auc_score(label[d], alone[d]) for d in draws]
    gain = curves.uplift_of(label, joint, alone)
    assert gain is not None
    assert (gain.high - gain.low) / (2 * curves.Z95) == pytest.approx(np.std(found), rel=0.25)


def test_intervals_need_two_rows_of_each_class() -> None:
    assert curves.auc_of(np.array([0.0, 0, 0, 1]), np.arange(4.0)) is None
    assert curves.uplift_of(np.zeros(4), np.arange(4.0), np.arange(4.0)) is None


def test_curves_against_scikit_learn() -> None:
    label, joint, _ = scored()
    false, true, _ = metrics.roc_curve(label, joint, drop_intermediate=False)
    _, good, bad = curves.distributions(label, -joint)
    np.testing.assert_allclose(good, false[1:])
    np.testing.assert_allclose(bad, true[1:])
    x, y = curves.gains(label, np.arange(len(label)) + 0.0)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    np.testing.assert_allclose(y[1:], np.cumsum(label[::-1]) / label.sum())


def test_bands_are_those_of_a_calibration_curve() -> None:
    label, joint, _ = scored(rows=1000)
    probability = 1 / (1 + np.exp(-joint - np.arange(1000) * 1e-9))  # no ties, so that equal sizes are possible
    lines = curves.band_table(label, probability, probability)
    observed, predicted = calibration.calibration_curve(label, probability, n_bins=10, strategy="quantile")
    np.testing.assert_allclose([b["mean"] for b in lines][::-1], observed)
    np.testing.assert_allclose([b["predicted"] for b in lines][::-1], predicted)
    assert lines[-1]["captured"] == pytest.approx(1)
    assert lines[-1]["mean_so_far"] == pytest.approx(label.mean())


def test_cut_offs_against_scikit_learn() -> None:
    label, joint, _ = scored()
    for line in curves.cut_offs(label, joint):
        said = joint >= line["cut"]
        tn, fp, fn, tp = metrics.confusion_matrix(label, said).ravel()
        assert (line["tn"], line["fp"], line["fn"], line["tp"]) == (tn, fp, fn, tp)
        assert line["precision"] == pytest.approx(metrics.precision_score(label, said))
        assert line["recall"] == pytest.approx(metrics.recall_score(label, said))


def test_wilson_against_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    counts, rows = np.array([0.0, 3, 10, 50]), np.array([10.0, 10, 10, 400])
    low, high = curves.wilson(counts, rows)
    expected = [proportion.proportion_confint(c, n, method="wilson") for c, n in zip(counts, rows, strict=True)]
    np.testing.assert_allclose(np.transpose([low, high]), expected, atol=1e-12)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_within(low: float, span: float) -> None:
    found = draw.ticks(low, low + span)
    assert len(found) <= 7
    assert np.all(found >= low - 1e-6 * span - 1e-8 * abs(low))
    assert np.all(found <= low + span + 1e-6 * span + 1e-8 * abs(low))


# --- the page ----------------------------------------------------------------------------------------


class Outline(html.parser.HTMLParser):
    """Checks that tags nest; keeps headings, and every address that a browser would ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []
        self.asked: list[str] = []
        self.marks: set[str] = set()
        self.svg = 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.svg += tag == "svg"
        self.asked += [str(v) for k, v in attrs if k in ("src", "href", "action", "onload", "onclick")]
        self.marks |= {f"#{v}" for k, v in attrs if k == "id"}
        assert tag != "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return trained(tmp_path_factory.mktemp("trees"), {})


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return trained(tmp_path_factory.mktemp("card"), {"glm": {"woe": True, "bins": 8, "l2": 0.001}, "scorecard": CARD})


def trained(folder: Path, more: dict[str, object]) -> Pair:
    def change(pair: Pair) -> None:
        if "glm" in more:
            del pair.contract["boost"]
        else:
            pair.contract["boost"] |= {"folds": 3}
        pair.contract |= more
        pair.contract["purpose"] = "Risk <b>&</b> \"limits\" of <script>alert('x')</script> loans"

    pair = make_pair(folder, make_keys(folder / "keys"), change=change)
    files = [str(pair.party_file(party)) for party in MODULES]
    assert command_line(["simulate", *files, "--json", "--progress", "none"]) == 0
    return pair


def report_of(pair: Pair, party: str) -> str:
    return (pair.output(party) / "model" / "report.html").read_text(encoding="utf-8")


def test_training_leaves_a_report_on_either_side(trees: Pair) -> None:
    bank, platform = (Outline(report_of(trees, party)) for party in ("bank", "platform"))
    for side in (bank, platform):  # the contents name places of the same page, and nothing is asked from outside
        assert set(side.asked) == side.marks
        assert len(side.asked) == len(side.marks) > 3
    assert "Stability over folds" in bank.titles
    assert [t for t in bank.titles if t.startswith("Discrimination")]
    assert "Own features in the model" in platform.titles
    assert not [t for t in platform.titles if t.startswith("Discrimination") or "folds" in t]
    assert (bank.svg, platform.svg) == (13, 1)  # six curves of each sample: held-out and training rows


def test_everything_is_escaped(trees: Pair) -> None:
    text = report_of(trees, "bank")
    assert "<script" not in text
    assert "Risk &lt;b&gt;&amp;&lt;/b&gt; &quot;limits&quot;" in text


def test_no_report_tells_of_single_customers(trees: Pair, card: Pair) -> None:
    for pair in (trees, card):
        for party in MODULES:
            text = report_of(pair, party)
            for row in pair.rows["bank"] + pair.rows["platform"]:
                assert row["phone"] not in text
                assert "".join(c for c in row["phone"] if c.isdigit()) not in text


def test_a_scorecard_shows_its_points_and_the_peer_does_not(card: Pair) -> None:
    bank, platform = report_of(card, "bank"), report_of(card, "platform")
    for text in (bank, platform):
        assert {"The regression", "Weights of evidence and points, own columns"} <= set(Outline(text).titles)
    assert "work-1" in bank
    assert "work-1" not in platform
    assert "city-1" in platform
    assert "city-1" not in bank


def test_the_figures_are_those_of_the_rows(trees: Pair) -> None:
    contract = load_contract(load_party(trees.party_file("bank")).contract)
    run = page.load(trees.output("bank") / "model", contract, "bank")
    area = metrics.roc_auc_score(run.rows["label"], run.rows["log_odds_joint"])
    gain = area - metrics.roc_auc_score(run.rows["label"], run.rows["log_odds_alone"])
    text = page.page(run)
    assert f"<td>{area:.4f} (" in text
    assert f"<b>{gain:+.4f}</b>" in text


def test_amounts_and_classes(trees: Pair) -> None:
    """Of rows made up here: predictions of an amount, and of three classes."""
    contract = load_contract(load_party(trees.party_file("bank")).contract)
    run = page.load(trees.output("bank") / "model", contract, "bank")
    _, joint, alone = scored()
    figures = {"rmse": 1.0, "mae": 2.0, "r2": 0.5}
    rows = {"label": np.abs(joint), "prediction_joint": np.abs(joint) + 0.1, "prediction_alone": np.abs(alone)}
    amounts = replace(run, rows=rows, others={}, facts=run.facts | {"joint": figures, "alone": figures})
    outline = Outline(page.page(amounts))
    assert [t for t in outline.titles if t.startswith("Predicted amounts")]
    assert outline.svg == 3

    names = ("low", "mid", "high")
    body = json.loads(contract.model_dump_json())
    body["label"]["classes"], body["boost"]["objective"] = names, "softmax"
    many = type(contract).model_validate(body)
    draws = np.random.default_rng(3)
    which = draws.integers(0, 3, 500)
    rows = {"label": which.astype(float)}
    for suffix, skill in (("joint", 2.0), ("alone", 1.0)):
        margin = draws.normal(size=(3, 500)) + skill * (which == np.arange(3)[:, None])
        share = np.exp(margin) / np.exp(margin).sum(axis=0)
        rows |= {f"probability_{n}_{suffix}": share[k] for k, n in enumerate(names)}
    text = page.page(replace(run, rows=rows, others={}, contract=many, facts=run.facts | {"joint": {}, "alone": {}}))
    assert "Confusion of the joint model" in text
    said = np.stack([rows[f"probability_{n}_joint"] for n in names]).argmax(axis=0)
    for line, name in zip(metrics.confusion_matrix(which, said), names, strict=True):
        cells = "".join(f'<td class="n">{n}</td>' for n in line)
        assert f"<td>is {name}</td>{cells}" in text


def test_a_prediction_shows_drift_but_no_count_that_its_side_did_not_learn(card: Pair) -> None:
    """Facts as a one-sided prediction of a scorecard has them on the passive side."""
    contract = load_contract(load_party(card.party_file("platform")).contract)
    run = page.load(card.output("platform") / "model", contract, "platform")
    facts = run.facts | {"job": "predict", "rows_shared": None, "stability_index": {"city": 0.1234, "spend": 0.0}}
    text = page.page(replace(run, facts=facts))
    assert "Stability against the training rows" in Outline(text).titles
    assert "0.1234" in text
    assert "Shared customers" not in text
    said = words.explain(replace(run, facts=facts), card.output("platform") / "model")
    assert not [sentence for sentence in said["What happened"] if "whom both have" in sentence]


@pytest.mark.parametrize("width", [400, 1100])
@pytest.mark.parametrize("party", ["bank", "platform"])
def test_in_a_browser(trees: Pair, party: str, width: int, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium here: how the report looks was not tested, only its structure")
    from matplotlib import image

    path, picture = trees.output(party) / "model" / "report.html", tmp_path / "picture.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2400",
               f"--screenshot={picture}"]  # fmt: skip
    said = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, check=True, timeout=120).stderr
    assert "CONSOLE" not in said
    seen = image.imread(picture)[:, :, :3]
    for part in np.array_split(seen, 6):  # text or lines from top to bottom
        assert 0.002 < np.mean(part.min(axis=2) < 0.8) < 0.6
    right = seen[:, -6:]  # nothing runs out of the page on the right
    assert np.mean(right.min(axis=2) < 0.8) < 0.01


#: Appended to a copy of the report: which boxes overlap, and what is wider than the page. The report has no script.
PROBE = """<script>
const box = e => e.getBoundingClientRect();
const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
const found = [];
const pairs = list => list.forEach((a, i) => list.slice(i + 1).forEach(b => {
  if (meet(box(a), box(b))) found.push(`${a.textContent.slice(0, 30)} over ${b.textContent.slice(0, 30)}`);
}));
pairs([...document.body.children].filter(e => e.tagName !== "SCRIPT"));
document.querySelectorAll("svg").forEach(svg => pairs([...svg.querySelectorAll("text")]));
document.querySelectorAll("td, th").forEach(cell => pairs([...cell.children]));
document.querySelectorAll("body > *").forEach(e => {
  if (box(e).right > innerWidth + 1) found.push("wide: " + e.tagName);
});
const told = document.createElement("pre");
told.id = "found"; told.textContent = "FOUND" + JSON.stringify(found) + "END";
document.body.append(told);
</script>"""


def chromium(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    command = [CHROMIUM, *quiet, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


@pytest.mark.parametrize("width", [400, 1100])
def test_nothing_overlaps(trees: Pair, card: Pair, width: int, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium here: whether parts of the report overlap was not tested")
    for pair, party in ((trees, "bank"), (card, "bank"), (card, "platform")):
        copy = tmp_path / "probed.html"
        copy.write_text(report_of(pair, party).replace("</body>", PROBE + "</body>"), encoding="utf-8")
        dom = chromium(tmp_path / "profile", f"--window-size={width},2400", "--dump-dom", copy.as_uri()).stdout
        found = html.unescape(dom.split(">FOUND")[1].split("END<")[0])
        assert json.loads(found) == [], (party, found)


def test_it_prints(trees: Pair, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium here: printing was not tested")
    path = trees.output("bank") / "model" / "report.html"
    chromium(tmp_path / "profile", f"--print-to-pdf={tmp_path / 'report.pdf'}", path.as_uri())
    printed = (tmp_path / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") + printed.count(b"/Type/Page/") >= 2


# --- the commands ------------------------------------------------------------------------------------


def test_commands(trees: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    party, folder = str(trees.party_file("platform")), str(trees.output("platform") / "model")
    out = tmp_path / "committee.html"
    assert command_line(["report", folder, "--party", party, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(out)}
    assert out.read_text(encoding="utf-8") == report_of(trees, "platform")
    assert command_line(["report", folder, "--party", party, "--out", str(out)]) == OutputExists.exit_code
    assert command_line(["report", str(tmp_path), "--party", party]) == FileMissing.exit_code
    assert command_line(["report", folder, "--party", str(trees.party_file("bank"))]) == WrongModel.exit_code
    capsys.readouterr()
    assert command_line(["explain", "--party", party]) == 0
    said = capsys.readouterr().out
    assert "What bank learned" in said
    assert "for each of the receiver's IDs, whether the sender has it" in said
    assert "report.html" in said
    assert "another file" not in said


def test_markup() -> None:
    assert markup.tag("a", "<", markup.Markup("<b/>"), None, class_='x"y', stroke_width=2) == (
        '<a class="x&quot;y" stroke-width="2">&lt;<b/></a>'
    )
    assert [markup.size(n) for n in (12, 1200, 3.4e6, 5e9)] == ["12 B", "1.2 kB", "3.4 MB", "5.0 GB"]
