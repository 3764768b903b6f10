"""Labels: only declared values are outcomes, and the sheet of a label budget is the one that was handed out."""

import numpy as np
import pandas as pd
import pytest

from mlgov_nb.data.card import Card
from mlgov_nb.data.labels import join_labels, read_labels
from mlgov_nb.data.prepare import prepare, read_prepared, target_values
from mlgov_nb.data.values import DataError
from mlgov_nb.pipeline import label_requests
from mlgov_nb.settings import ConfigError, parse_model

COMMON = dict(path="x.csv", task="binary", title="", source="", licence="", id="cust", numeric=["age"])
DECLARED = dict(name="left", column="churned", positive=["yes"], negative=["no"], unlabelled=["open"])


def card(**target): return Card(**COMMON, target=target or DECLARED)


def by_expression(expression): return card(name="left", expr=expression)


@pytest.fixture
def rows():
    "Ten customers without an outcome"
    return prepare(pd.DataFrame(dict(cust=[f"c{row}" for row in range(10)], age=range(10), churned=None)), card())[0]


def label_file(folder, values):
    "Labels of the first customers, as another system writes them"
    file = folder/"labels.csv"
    lines = [f"c{row},{value}" for row, value in enumerate(values)]
    file.write_text("\n".join(["cust,churned", *lines, ""]))
    return file


@pytest.mark.parametrize("odd", ["pending", "Yes", "NO", "?", "unknown", "N/A", "y", "1", "maybe "])
@pytest.mark.parametrize("which", ["declared", "expression"])
def test_what_is_no_outcome_is_no_label(tmp_path, odd, which):
    "A value that nobody declared is refused by its id; never is it taken for a negative"
    chosen = card() if which == "declared" else by_expression("churned = 'yes'")
    file = label_file(tmp_path, ["yes", "no", "yes", odd])
    with pytest.raises(DataError) as error: read_labels(file, chosen)
    assert repr(odd.strip()) in str(error.value) or repr(odd) in str(error.value)
    assert str(file) in str(error.value)


def test_declared_outcomes_are_joined(tmp_path, rows):
    file = label_file(tmp_path, ["yes", " no", "open", "", "yes "])
    joined, report = join_labels(rows, read_labels(file, card()), card())
    assert joined.left.fillna(-1).tolist() == [1, 0, -1, -1, 1] + [-1] * 5
    assert (report.joined, report.missing) == (3, 2)


@pytest.mark.parametrize("expression", ["churned = 'yes'", '"churned" in (\'yes\', \'Y\')', "lower(churned) = 'yes'",
                                        "case when churned = 'yes' then 1 else 0 end"])
def test_an_expression_takes_no_open_case_for_a_negative(expression):
    frame = pd.DataFrame(dict(churned=["yes", "no", "pending"]))
    with pytest.raises(DataError, match=r"does not name the values .*'pending'"):
        target_values(frame, by_expression(expression))
    assert target_values(frame.head(2), by_expression(expression)).tolist() == [1, 0]


def test_an_expression_that_names_every_outcome_is_right():
    named = "case churned when 'yes' then 1 when 'no' then 0 end"
    frame = pd.DataFrame(dict(churned=["yes", "no", "pending"]))
    assert target_values(frame, by_expression(named)).fillna(-1).tolist() == [1, 0, -1]


def test_rows_with_an_undeclared_outcome_are_unlabelled_and_told(tmp_path):
    frame = pd.DataFrame(dict(cust=range(6), age=range(6), churned=["yes", "no", "pending", "pending", "open", "Yes"]))
    frame.to_csv(tmp_path/"x.csv", index=False)
    found = read_prepared(tmp_path/"x.csv", card())
    assert found.rows.left.fillna(-1).tolist() == [1, 0, -1, -1, -1, -1]
    assert found.notes == ["churned: 'pending' (2 rows), 'Yes' (1 rows) is no outcome that the card declares: "
                           "these rows are unlabelled"]


@pytest.mark.parametrize("values,positive", [([1, 2], ["2"]), ([True, False], ["True"]), (["-1", "1"], ["1"]),
                                             ([1.0, 0.0, None], ["1"]), (["Y", None], ["Y"])])
def test_values_of_any_type_are_declared_as_text(values, positive):
    names = {str(value) for value in ["0", "1", "2", "-1", "False", "N"]} - set(positive)
    chosen = card(name="left", column="churned", positive=positive, negative=sorted(names))
    expected = [np.nan if value is None else float(str(value).removesuffix(".0") in positive) for value in values]
    np.testing.assert_array_equal(target_values(pd.DataFrame(dict(churned=values)), chosen), expected)


@pytest.mark.parametrize("target,words", [
    (dict(name="left", column="churned", positive=["yes"]), "must both name values"),
    (dict(name="left", column="churned", positive=["yes"], negative=["yes"]), "stand in two of"),
    (dict(name="left", column="churned", expr="x > 1"), "needs expr, or column"),
    (dict(name="left", column="age", positive=["1"], negative=["0"]), "would be given the answer"),
    (dict(name="left", expr="x > 1", positive=["1"]), "are values of a column"),
])
def test_a_target_is_stated_in_one_way(target, words):
    with pytest.raises(ConfigError, match=words): parse_model(Card, COMMON | dict(target=target), "x.yaml")


def sheet(**columns):
    "A sheet of two strata, as `label next` hands it out: ten rows stand for 70"
    frame = pd.DataFrame(dict(stratum=["a"] * 4 + ["b"] * 6, weight=[10.0] * 4 + [5.0] * 6))
    return frame.assign(**columns)


@pytest.mark.parametrize("changed", [
    sheet(weight=1.0), sheet().assign(weight=lambda drawn: 10 * drawn.weight), sheet().drop(index=[3, 9]),
    sheet(weight=[10.0] * 3 + [9.0] + [5.0] * 6), sheet(weight=[np.nan] + [10.0] * 3 + [5.0] * 6), sheet(weight=0.5),
    pd.concat([sheet(), sheet().head(1)])])
def test_weights_that_were_not_handed_out_are_refused(changed):
    label_requests._check_weights(sheet(), 70, "sheet.csv")
    with pytest.raises(DataError, match=r"sheet.csv: .*the lines and weights as `mlgov label next` wrote them"):
        label_requests._check_weights(changed, 70, "sheet.csv")
