"Who is behind a figure, and what a mitigation costs and whom"
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from mlgov_nb.audit.card_content import candidate_frame, gained_and_paid
from mlgov_nb.data.card import card_path, load_card
from mlgov_nb.fairness.rates import fairness_measures
from mlgov_nb.pipeline.select import choose
from mlgov_nb.settings import Limit, load_params
from mlgov_nb.stats.measures import measure, record
from mlgov_nb.verdict.judge import judge

WINDOW = dict(name="reference", start=None, end=None, rows=900, labelled=900, sha256="0" * 16)
FOUR_FIFTHS = Limit(measure="selection_rate_ratio_all", subject="parity", min=.8)


def about(name, subject, value, half=.02, n=900):
    return measure(name, subject, value, n, value - half, value + half)


def found(name, measures, window="reference"):
    return record("select", dict(name=name, version="0"), None, {**WINDOW, "name": window}, measures)


def people(rates, n=400):
    "Groups with so many true and false positives of each hundred positives and negatives"
    rows = [pd.DataFrame(dict(group=group, y=y, score=np.arange(n) < share * n))
            for group, shares in rates.items() for y, share in zip((1.0, 0.0), shares, strict=True)]
    return pd.concat(rows, ignore_index=True)


def compared(rates, **more):
    "Measures between groups, by name"
    rows = people(rates)
    measures = fairness_measures(rows, [["group"]], "binary", rows.y.to_numpy(), rows.score.to_numpy(float), .5,
                                 draws=200, **more)
    return {each.name: each for each in measures if each.subject == "group"}


def test_the_disparate_impact_names_the_group_behind_it():
    measures = compared(dict(a=(.5, .1), b=(.9, .3), c=(.7, .2)), privileged=dict(group="b"))
    assert measures["disparate_impact"].note == "lowest a 0.3, privileged b 0.6"


def test_a_ratio_names_the_rate_that_it_is_of():
    measures = compared(dict(a=(.6, .01), b=(.9, .1)))
    assert measures["equalized_odds_difference"].note.startswith("true positive rate lowest a 0.6")
    assert measures["equalized_odds_ratio"].note.startswith("false positive rate lowest a 0.01")


def test_refused_candidates_stand_under_the_attribute_that_they_are_refused_for():
    def candidate(name, auc, sex, race):
        ratios = [about(FOUR_FIFTHS.measure, attribute, ratio) for attribute, ratio in (("sex", sex), ("race", race))]
        return found(name, [about("auc", "all rows", auc), *ratios])
    records = [candidate("sharp", .85, .4, .9), candidate("keen", .84, .5, .6), candidate("fair", .8, .9, .9)]
    line = choose(records, "auc", [FOUR_FIFTHS], ["sex", "race"])["line"]
    ratio = "selection-rate ratio of everyone scored"
    assert line.endswith(f"Refused by {ratio}, sex (limit ≥ 0.8): sharp 0.4, keen 0.5; "
                         f"{ratio}, race (limit ≥ 0.8): keen 0.6.")


def test_candidates_are_compared_only_where_a_limit_is_about_the_attribute():
    measures = [about(FOUR_FIFTHS.measure, "sex", .9), about(FOUR_FIFTHS.measure, "sex@other", .4),
                about(FOUR_FIFTHS.measure, "age_band@other", .2)]
    context = judge("fairness", [found("model", measures)], [FOUR_FIFTHS], ["sex"])["context"]
    assert len(context) == 1 and ", sex of the candidates" in context[0] and "0.2" not in context[0]


@pytest.mark.parametrize(("name", "task"), [("gss_wages", "binary"), ("gss_income", "regression")])
def test_calibration_and_error_rates_are_limited_before_the_release_and_after(name, task):
    limits = load_params(ROOT/"params.yaml").limits[load_card(card_path(ROOT, name)).task]
    wanted = dict(binary={"equalized_odds_difference", "calibration_gap_difference"},
                  regression={"mae_ratio", "mean_error_difference"})[task]
    for stage in (limits.pre_release, limits.fairness):
        assert wanted <= {limit.measure for limit in stage if limit.subject == "parity"}


def test_the_model_card_says_what_was_gained_and_who_paid():
    "On the committed evidence: women are selected as often as men, and scores overstate them and understate men"
    card = load_card(card_path(ROOT, "gss_wages"))
    frame = candidate_frame(json.loads((ROOT/"reports/gss_wages/select.json").read_text()))
    plain = ["gradient_boosting", "linear", "mlp"]
    gained, everybody, groups, others = gained_and_paid(frame, card, "boosting_reduced", plain)
    assert "against gradient_boosting" in gained and "Female" in gained and "Male" in gained
    def value(candidate, name, subject):
        own = frame[(frame.candidate == candidate) & (frame.name == name) & (frame.subject == subject)]
        return f"{own.value.iloc[0]:.3f}".rstrip("0")
    told = ("auc_promised", "all rows", everybody), ("calibration_gap", "gender=Male", groups)
    for name, subject, sentence in told:
        figures = [value(candidate, name, subject) for candidate in ("boosting_reduced", "gradient_boosting")]
        assert f"{figures[0]} (instead of {figures[1]})" in sentence
    assert "Parity of age_band is not asked" in others and "lowest for 60+" in others
