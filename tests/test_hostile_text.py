"""Names and categories that mean something in some language are shown as they are, everywhere.

They go through every page, picture, table and export. The fast tests are of the functions that escape."""
import json
import re
from html.parser import HTMLParser

import msgspec
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import AUDITS, ROOT, small_project
from matplotlib import pyplot as plt
from nbconvert.filters import markdown2html

from mlgov_nb.data.card import load_card
from mlgov_nb.data.groups import cross, plain_subject, subject_name
from mlgov_nb.fairness.rates import fairness_measures
from mlgov_nb.fairness.summary import label_text
from mlgov_nb.files import from_spreadsheet, spreadsheet_text
from mlgov_nb.html import markdown_text, styled
from mlgov_nb.log.query import export
from mlgov_nb.pictures import plot_bars, plot_heat, plot_shares, plot_shifts, plot_trend, use_style
from mlgov_nb.pipeline.audits import audit_stage
from mlgov_nb.pipeline.data import ingest, split_stage
from mlgov_nb.pipeline.judge import harm_stage, judge_stage
from mlgov_nb.pipeline.model_card import card_stage
from mlgov_nb.pipeline.select import select_stage
from mlgov_nb.pipeline.train import train_stage
from mlgov_nb.serve.request import Schema
from mlgov_nb.settings import ConfigError, Limit, load_params
from mlgov_nb.stats.measures import measure, record
from mlgov_nb.verdict.judge import judge

HOSTILE = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "[/closed]", "[bold]x", ":warning:",
    "$a_b$", "$10% - $20%", "cost_$ / rev_$", r"\frac", "a|b", "`code`", "**bold**", "- item", "1. item",
    '=HYPERLINK("http://x.y")', "@SUM(1)", "-cmd", "_hidden", "x\ny", "R & D", "R and D", "a@b", "a(at)b", "a%40b",
    "{{7*7}}", "%s", "&amp;", "him against her", "features", "all rows", "\x1b[31mred", "\u202etfel",
]


# Names that a field of a request can have
SERVED = [name for name in HOSTILE if not re.search(r'[\\"\n\x1b]', name)]


def written(text):
    "A text in Markdown, which cannot hold a control character"
    return text.replace("\x1b", r"\x1b")


class Page(HTMLParser):
    "The elements of a page, the text of the whole, and that of each cell and item"
    def __init__(self, html):
        super().__init__()
        self.elements, self.parts, self.cells, self.inside = [], [], [], []
        self.feed(html)
        self.close()

    @property
    def text(self): return "".join(self.parts)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("td", "th", "li"): self.inside.append([])

    def handle_endtag(self, tag):
        if tag in ("td", "th", "li"): self.cells.append("".join(self.inside.pop()))

    def handle_data(self, data):
        self.parts.append(data)
        for parts in self.inside: parts.append(data)

    def check(self):
        "Nothing in it runs, fetches or leads somewhere else"
        for tag, attributes in self.elements:
            assert tag not in ("script", "iframe", "object", "embed", "form", "base"), (tag, attributes)
            assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
            if tag == "img": assert attributes["src"].startswith("data:image/png;base64,"), attributes
            if tag == "a": assert not attributes["href"].startswith(("http", "mailto", "javascript")), attributes


PLACES = ["{}", "- **{}**: x", "- {} (0.1).\n- more", "<code>{}</code> x", "**{}**\n\n{}\n\nend"]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", PLACES)
def test_markdown_shows_text_as_it_is(text, place):
    page = Page(markdown2html(place.replace("{}", markdown_text(text))))
    page.check()
    assert written(text) in page.text
    assert {tag for tag, _ in page.elements} <= {"p", "ul", "li", "strong", "span", "code"}


def test_no_formula_is_made_of_dollars():
    "MathJax reads the finished page's text, and looks no further than an element"
    html = markdown2html(f"{markdown_text('$0-$9,999')} and {markdown_text('$10,000')}")
    assert html.count("<span>$</span>") == 3 and "$" not in html.replace("<span>$</span>", "")


def test_a_styled_table_shows_text_as_it_is():
    names = pd.Index(HOSTILE, name="<b>index</b>")
    frame = pd.DataFrame(dict.fromkeys(HOSTILE, HOSTILE), index=names).assign(n=0.5)
    page = Page(styled(frame).format(precision=2).to_html())
    page.check()
    assert set(HOSTILE) <= set(page.cells) and "<b>index</b>" in page.cells and "0.50" in page.cells
    assert page.cells.count("&amp;") == 2 + len(HOSTILE)


def test_pictures_show_text_as_it_is():
    use_style()
    numbers = np.linspace(0, 1, len(HOSTILE))
    frame = pd.DataFrame(dict.fromkeys(("$a", "b$"), numbers), index=HOSTILE)
    trend = pd.DataFrame(dict(window=HOSTILE, value=numbers, low=numbers, high=numbers))
    fig, (heat, shares, shifts, bars, line) = plt.subplots(5, 1, figsize=(12, 60))
    plot_heat(heat, frame, frame > 0.5)
    plot_shares(shares, {"_then": numbers, "$now$": numbers}, HOSTILE, r"\frac$x")
    plot_shifts(shifts, HOSTILE, numbers, numbers, ("_then", "$now$"))
    plot_bars(bars, pd.Series(numbers, HOSTILE), "$a_b$")
    for name in HOSTILE: plot_trend(line, trend, name)
    fig.canvas.draw()
    for ax in (heat, shifts, bars): assert [tick.get_text() for tick in ax.get_yticklabels()] == HOSTILE
    for tick, name in zip(shares.get_yticklabels(), HOSTILE, strict=True): assert tick.get_text()[:20] == name[:20]
    shown = [tick.get_text() for tick in line.get_xticklabels()]
    assert len(shown) == len(HOSTILE) and [name for name in shown if name] == HOSTILE[::3]      # every third has room
    drawn = {"shares": shares.get_legend_handles_labels()[1], "line": line.get_legend_handles_labels()[1]}
    assert [label.removeprefix("\u200b") for label in drawn["shares"]] == ["_then", "$now$"]
    assert [label.removeprefix("\u200b") for label in drawn["line"]] == HOSTILE
    assert not any(text.get_parse_math() for text in fig.findobj(plt.Text))
    plt.close(fig)


def test_every_group_is_a_group_of_its_own():
    "Whatever their names, as a group alone and with another attribute"
    count = 40 * len(HOSTILE)
    rows = pd.DataFrame(dict(team=np.resize(HOSTILE, count), site=np.repeat(HOSTILE, 40)))
    names = cross(rows, ["team"])
    assert names.nunique() == len(HOSTILE) == rows.assign(name=names).groupby("team").name.nunique().sum()
    assert [plain_subject(name) for name in names.unique()] == [f"team={name}" for name in HOSTILE]
    assert cross(rows, ["team", "site"]).nunique() == len(rows.drop_duplicates())
    y, score = np.resize([0, 1], count), np.resize([.2, .8, .6], count)
    measured = fairness_measures(rows, [["team"]], "binary", y, score, 0.5, draws=20)
    assert len({m.subject for m in measured if m.name == "selection_rate"}) == len(HOSTILE)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_sentence_on_groups_shows_their_names_as_they_are(name):
    shares = {name: .5, "other": .6}
    found = [measure("label_coverage", f"team={subject_name(group)}", share, 100) for group, share in shares.items()]
    page = Page(markdown2html(label_text(found, ["team"], "now", "binary")))
    page.check()
    assert f"50% of {written(name)} and 60% of other" in page.text


def test_a_column_with_an_at_is_judged():
    "A candidate's measures follow an '@': a column's own name must not look like one"
    found = [measure("drifted", subject_name("a@b"), 1.0, 100, note="a@b: rises"), measure("drifted", "c", 0.0, 100)]
    model = dict(name="none", version="1")
    window = dict(name="now", start=None, end=None, rows=100, labelled=0, sha256="0" * 16)
    verdict = judge("drift", [record("drift", model, None, window, found)], [Limit(measure="drifted", max=0.0)])
    assert verdict["verdict"] == "fail" and "a@b" in verdict["line"]
    named = [Limit(measure="drifted", subject="a@b", max=0.0)]
    assert judge("drift", [record("drift", model, None, window, found)], named)["verdict"] == "fail"


def test_an_attribute_is_not_named_like_a_group_or_a_candidate(project):
    card = project.root/"data/raw/gss_wages.yaml"
    card.write_text(card.read_text().replace("  gender: {column", "  gender@work: {column"))
    with pytest.raises(ConfigError, match="name them differently"): load_card(card)


@pytest.mark.parametrize("text", [*HOSTILE, "'=x", "''=x", "'quoted'", "-5", "+1e3", "0017", ""])
def test_cells_for_a_spreadsheet_come_back(text):
    cell = spreadsheet_text(text)
    assert from_spreadsheet(cell) == text
    assert re.fullmatch(r"[+-]?[\d.e]+", cell) or not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_the_log_is_exported_for_a_spreadsheet_as_csv_and_exactly_otherwise(tmp_path):
    folder, texts = tmp_path/"log", [*HOSTILE, "-5"]
    folder.mkdir()
    quoted = ", ".join("'" + text.replace("'", "''") + "'" for text in texts)
    for name in ("out.csv", "out.jsonl"): export(folder, f"select unnest([{quoted}]) as \"=x\", -1 as n", tmp_path/name)
    table = pd.read_csv(tmp_path/"out.csv", dtype={"'=x": "str"}, keep_default_na=False)
    assert table["'=x"].tolist() == [spreadsheet_text(text) for text in texts] and set(table.n) == {-1}
    assert [json.loads(line)["=x"] for line in (tmp_path/"out.jsonl").read_text().splitlines()] == texts


def test_the_api_documentation_shows_text_as_it_is():
    features = [dict(name=name, kind="categorical", categories=HOSTILE[:12], about="") for name in SERVED]
    schema = Schema(features, load_card(ROOT/"data/raw/gss_wages.yaml").model_copy(update={"protected": {}}))
    _, schemas = msgspec.json.schema_components([schema.row])
    for name, described in schemas["Row"]["properties"].items():
        if name == "subject": continue
        page = Page(markdown2html(described["description"]))
        page.check()
        assert page.text.strip().startswith(name) and HOSTILE[0] in page.text


# What shows text from data without escaping it, and the only places that may use it
BARE = {
    r"\.add_row\(": {"mlgov_nb/cli/console.py"},
    r"\.style\b": {"mlgov_nb/html.py"},
    r"\.to_csv\(": {"mlgov_nb/pipeline/label_requests.py", "mlgov_nb/pipeline/scope.py"},
    r"\.to_(html|markdown|latex|excel)\(": set(),
    r"\bmarkup=": set(),
    r"\bMarkup\(": {"mlgov_nb/html.py"},
}


@pytest.mark.parametrize("bare", BARE)
def test_text_is_escaped_in_one_place(bare):
    modules = {str(file.relative_to(ROOT)): file.read_text() for file in (ROOT/"mlgov_nb").rglob("*.py")}
    used = {name for name, code in modules.items() if re.search(bare, code)}
    for notebook in (ROOT/"nbs/audits").glob("*.ipynb"):
        cells = json.loads(notebook.read_text())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        if re.search(bare, code): used.add(notebook.name)
    assert used == BARE[bare]


def hostile_rows(count, seed):
    "Every name is a column, a category and a group"
    rng = np.random.default_rng(seed)
    middle = len(HOSTILE) // 2
    signal = rng.normal(size=count)
    numbers = {name: np.round(rng.normal(size=count) + signal * (i % 3), 3) for i, name in enumerate(HOSTILE[:middle])}
    words = {name: rng.choice(HOSTILE, count) for name in HOSTILE[middle:]}
    outcome = (signal + rng.normal(size=count) + (words[HOSTILE[-1]] < "a") > 0).astype(int)
    ids = [f"={i}" if i % 2 else f"@{i}" for i in range(count)]
    return pd.DataFrame({"row": ids, **numbers, **words, "=R & D@<b>": rng.choice(HOSTILE, count), "y": outcome})


def card_of_names(names):
    "A card whose features have these names, and whose prose is as hostile"
    words = HOSTILE[len(HOSTILE) // 2:]
    prose = " ".join(HOSTILE)
    return dict(
        path="hostile.parquet", task="binary", title=prose, about=prose, source=prose, licence=prose, use=prose,
        limits=HOSTILE, target=dict(name="outcome", expr="y"), id="row",
        numeric=[name for name in names if name not in words],
        categorical=[name for name in names if name in words], columns=dict(zip(names, reversed(names), strict=True)),
        protected={"<i>team</i> _$x$_": dict(column="=R & D@<b>", parity=True)},
        phrases={name: dict(raises=f"{prose} {{value}}", lowers=f"{prose} {{value}}") for name in names},
        actionable={name: {} for name in names[:2]},
    )


def write_hostile(project, card):
    "The raw file, its card, and parameters that take little time"
    root = project.root
    hostile_rows(5000, 0).to_parquet(root/"data/raw/hostile.parquet", index=False)
    (root/"data/raw/hostile.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    params = yaml.safe_load((root/"params.yaml").read_text())
    params["data"] |= dict(card="hostile", sample=1.0)
    params["candidates"] = {"linear": params["candidates"]["linear"]}
    params["audit"] |= dict(resamples=100, explain_rows=40, background=10, history=[])
    (root/"params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def train(project):
    "The stages as far as a trained model; what the next stages take"
    stages = project.root, load_params(project.root/"params.yaml")
    ingest(*stages)
    split_stage(*stages)
    train_stage(*stages, "linear")
    return stages


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    "A project on such data, from the raw file to its pages"
    project = small_project(tmp_path_factory.mktemp("hostile")/"project")
    write_hostile(project, card_of_names(HOSTILE))
    stages = train(project)
    select_stage(*stages)
    for name in AUDITS: audit_stage(*stages, name)
    harm_stage(*stages)
    for name in AUDITS: judge_stage(*stages, name)
    card_stage(*stages)
    return project


SLOW = pytest.mark.slow("trains a model and runs every audit notebook on hostile data")


def page_of(audited, name): return Page((audited.scope("hostile")/f"{name}.html").read_text())


@SLOW
@pytest.mark.parametrize("name", [*AUDITS, "model_card", "../index"])
def test_a_page_holds_no_markup_from_data(audited, name):
    page = page_of(audited, name)
    page.check()
    policy = [attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes]
    assert len(policy) == 1 and "default-src 'none'" in policy[0]
    assert "%40" not in page.text.replace("a%40b", "") and "%26" not in page.text


@SLOW
def test_pages_show_names_as_they_are(audited):
    for name in ("drift", "explanation", "model_card"):
        cells = {cell.replace("\n", r"\n") for cell in page_of(audited, name).cells}     # as pandas shows a new line
        assert {name.replace("\n", r"\n") for name in HOSTILE} <= cells, name
    fairness = page_of(audited, "fairness")
    assert {f"<i>team</i> _$x$_={name}" for name in HOSTILE} <= set(fairness.cells)
    selected = next(cell for cell in fairness.cells if "selected:" in cell)
    named = [name for name in HOSTILE if f" {written(name)} " in selected]
    assert len(named) >= 6, "the lowest and the highest of many groups"
    assert any(written(" ".join(HOSTILE)) in cell for cell in page_of(audited, "model_card").cells)


@SLOW
def test_reasons_are_in_the_words_of_the_card(audited):
    "The phrase of the card holds every name; it is said where its feature is among the reasons"
    phrase = written(" ".join(HOSTILE))
    said = [cell for cell in page_of(audited, "explanation").cells if phrase in cell]
    features = json.loads((audited.root/"release/champion/metadata.json").read_text())["features"]
    assert said and {feature["name"] for feature in features} == set(HOSTILE)


@SLOW
def test_the_report_of_evidently_runs_nothing_from_data(audited):
    html = (audited.scope("hostile")/"drift.evidently.html").read_text()
    assert "alert(2)" in html and "<script>alert" not in html and "<img src=x" not in html
    assert not [name for name in HOSTILE if "<" in name and name in html]


def on_terminal(name):
    "A name with its control characters written out"
    return re.sub("[\x00-\x1f\u202e]", lambda found: repr(found[0])[1:-1], name)


@SLOW
def test_the_terminal_shows_names_as_they_are(audited):
    rows = hostile_rows(3000, 1).drop(columns="row")
    rows.assign(**{"x\ny": "changed"}).to_parquet(audited.root/"now.parquet", index=False)
    rows.to_parquet(audited.root/"then.parquet", index=False)
    shown = [on_terminal(name) for name in HOSTILE]
    output = audited.run("mlgov drift then.parquet now.parquet").stdout
    assert all(name in output for name in shown if " " not in name and len(name) < 20)
    answer = json.loads(audited.run("mlgov drift then.parquet now.parquet --json").stdout)
    assert set(HOSTILE) <= {plain_subject(found["subject"]) for found in answer["measures"]}
    audited.run("mlgov gate --scope hostile", code=3)      # small groups: nobody can tell


@SLOW
def test_one_row_is_explained_on_the_terminal(audited):
    rows = hostile_rows(40, 2).assign(row=[f"r{i}" for i in range(40)])
    rows.to_parquet(audited.root/"rows.parquet", index=False)
    output = audited.run("mlgov explain release/champion rows.parquet --row r3").stdout
    for name in HOSTILE:
        if " " not in name and len(name) < 20: assert on_terminal(name) in output, name
    answer = json.loads(audited.run("mlgov explain release/champion rows.parquet --row r3 --json").stdout)
    assert {part["feature"] for part in answer["contributions"]} == set(HOSTILE)


@SLOW
def test_ids_that_look_like_formulas_come_back_from_the_spreadsheet(audited):
    hostile_rows(400, 3).drop(columns="y").assign(y=np.nan).to_parquet(audited.root/"new.parquet", index=False)
    audited.run("mlgov label next new.parquet --budget 60 -o ask.csv")
    asked = pd.read_csv(audited.root/"ask.csv", dtype="str")
    assert asked.row.str.startswith(("'=", "'@")).all()
    asked.assign(outcome=1).to_csv(audited.root/"ask.csv", index=False)
    answer = json.loads(audited.run("mlgov label estimate new.parquet ask.csv --json").stdout)
    assert {found["n"] for found in answer if found["measure"] == "accuracy"} == {60}


@SLOW
def test_a_model_whose_columns_no_request_could_name_is_not_served(audited):
    hostile_rows(5, 4).to_parquet(audited.root/"batch.parquet", index=False)
    audited.refuses("mlgov predict release/champion batch.parquet -o scores.csv", r"'\\frac'", r"'x\ny'", "rename them")


@pytest.mark.slow("trains a model on hostile data")
def test_the_answer_of_predict_has_the_ids_that_came_and_no_formula_in_words(project):
    write_hostile(project, card_of_names(SERVED))
    train(project)
    rows = hostile_rows(50, 4).drop(columns="y").assign(**{"-cmd": "=never()"})
    rows.to_parquet(project.root/"batch.parquet", index=False)
    project.run("mlgov predict models/linear batch.parquet -o scores.csv")
    answer = pd.read_csv(project.root/"scores.csv", dtype="str")
    assert answer.row.tolist() == rows.row.tolist()
    assert answer.warnings.str.startswith("'-cmd: '=never()'").all()
