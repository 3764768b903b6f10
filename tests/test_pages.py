"Pages as a reader meets them: many groups, long names of windows, windows without a class or without labels"
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
import yaml
from conftest import ROOT, small_project

from mlgov_nb.pipeline.audits import audit_stage
from mlgov_nb.pipeline.data import ingest, split_stage
from mlgov_nb.pipeline.judge import harm_stage, judge_stage
from mlgov_nb.pipeline.model_card import card_stage
from mlgov_nb.pipeline.select import select_stage
from mlgov_nb.pipeline.train import train_stage
from mlgov_nb.settings import load_params

AUDITS = ("drift", "fairness", "explanation", "performance")
ONE_CLASS, UNLABELLED = "1994-03-01_to_2002-05-31", "2014-03-29_to_2018-11-12"
WINDOWS = {"1985-02-14_to_1993-04-30": [1985, 1993], ONE_CLASS: [1994, 2002], UNLABELLED: [2014, 2018]}


def odd_rows():
    "Real rows: in one window nobody has the outcome, in another it is not known yet; the age is a group of its own"
    rows = pd.read_parquet(ROOT/"data/raw/gss_wages.parquet").iloc[::4]
    high = rows.realrinc > 20_000
    rows = rows[~(rows.year.between(1994, 2002) & high)]
    rows.loc[rows.year >= 2014, "realrinc"] = None
    return rows.assign(age_in_words="aged " + rows.age.astype("Int64").astype("string"))


@pytest.fixture(scope="module")
def scope(tmp_path_factory):
    "The folder of the reports of such a project"
    project = small_project(tmp_path_factory.mktemp("pages")/"project")
    odd_rows().to_parquet(project.root/"data/raw/odd.parquet", index=False)
    card = yaml.safe_load((project.root/"data/raw/gss_wages.yaml").read_text())
    card |= dict(path="odd.parquet", protected={"birth": dict(column="age_in_words", parity=True)})
    card["split"]["windows"] = WINDOWS
    (project.root/"data/raw/odd.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    params = yaml.safe_load((project.root/"params.yaml").read_text())
    params["data"] |= dict(card="odd", sample=1.0)
    params["candidates"] = {name: params["candidates"][name] for name in ("linear", "gradient_boosting")}
    params["audit"] |= dict(resamples=200, explain_rows=60, min_n=10)
    (project.root/"params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    stages = project.root, load_params(project.root/"params.yaml")
    ingest(*stages)
    split_stage(*stages)
    for name in params["candidates"]: train_stage(*stages, name)
    select_stage(*stages)
    for name in AUDITS: audit_stage(*stages, name)
    harm_stage(*stages)
    for name in AUDITS: judge_stage(*stages, name)
    card_stage(*stages)
    return project.scope("odd")


SLOW = pytest.mark.slow("trains two models and runs every audit notebook")


class Reader(HTMLParser):
    "The pictures of a page with their descriptions, and its headings"
    def __init__(self, html):
        super().__init__()
        self.pictures, self.courses, self.headings = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "img": self.pictures.append(found.get("alt", ""))
        if tag == "svg": self.courses.append(found.get("aria-label", ""))


@SLOW
@pytest.mark.parametrize("name", [*AUDITS, "model_card"])
def test_a_page_can_be_read_without_eyes(scope, name):
    reader = Reader((scope/f"{name}.html").read_text())
    assert reader.pictures and reader.courses
    assert not [text for text in reader.pictures if len(text) < 12 or "No description" in text]
    assert all(": " in text for text in reader.courses)


@SLOW
def test_many_groups_are_drawn_and_the_extremes_named(scope):
    reader = Reader((scope/"fairness.html").read_text())
    first = next(text for text in reader.pictures if "each group's own figure" in text)
    assert re.search(r"\d\d other groups", first) and first.count("aged") <= 6


@SLOW
@pytest.mark.parametrize("name", AUDITS)
def test_a_limit_is_drawn_in_the_course_of_what_it_limits(scope, name):
    html = (scope/f"{name}.html").read_text()
    table = html[html.index('class="limits"'):html.index("</table>")]
    rows = table.split("<tr>")[2:]
    assert rows and all('class="limit"' in row and 'class="out"' in row for row in rows)
    badge = r'class="badge (pass|warn|fail|unknown)">(within|warning|outside|cannot tell)<'
    assert all(re.search(badge, row) for row in rows)


@SLOW
def test_what_is_not_known_is_a_gap_with_its_reason(scope):
    html = (scope/"performance.html").read_text()
    assert 'class="gap"' in html[:html.index("</table>")]
    fairness = (scope/"fairness.html").read_text()
    assert "negative outcome: ." not in fairness
    for name in (*AUDITS, "model_card"): assert ">nan<" not in (scope/f"{name}.html").read_text().lower(), name


@SLOW
def test_names_of_programs_are_no_headings(scope):
    for name in (*AUDITS, "model_card"):
        headings = re.findall(r"<th[^>]*>([^<]+)</th>", (scope/f"{name}.html").read_text())
        snakes = {each.strip() for each in headings if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", each.strip())}
        assert not snakes - {"high_income", "gradient_boosting"}, name          # names from data and parameters


@SLOW
def test_code_is_out_of_sight_until_asked_for(scope):
    html = (scope/"fairness.html").read_text()
    style = html[html.index("<style>"):html.index("</style>")]
    assert ".code,.celltag_aside" in style and "main:has(.show-code input:checked)" in style
    assert html.count('type="checkbox"') == 1 and html.count('<div class="code">') > 5
