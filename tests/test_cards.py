"Cards that draft themselves, and the check that finds what later stages would refuse"
import json

import numpy as np
import pandas as pd
import pytest
import yaml

from mlgov_nb.data.card import Card, load_card, raw_name
from mlgov_nb.data.card_draft import Wishes, draft_card
from mlgov_nb.data.prepare import read_prepared
from mlgov_nb.data.split import split
from mlgov_nb.data.values import DataError
from mlgov_nb.pipeline.card_page import drafted_page

COUNT = 400
RAW = "data/raw/gss_wages.parquet"
CARD = "data/raw/gss_wages.yaml"


def some_rows(**columns):
    "Rows with a number that tells a little of the outcome, an outcome, and further columns"
    rng = np.random.default_rng(5)
    signal = rng.normal(size=COUNT)
    outcome = np.where(signal + rng.normal(size=COUNT) > 0, "yes", "no")
    return pd.DataFrame({"amount": np.round(signal * 10 + 50, 2), **columns, "y": outcome})


@pytest.fixture
def draft(tmp_path):
    "Draft a card for rows that were written as CSV; the card and what was decided"
    def drafted(rows, target="y", name="my.csv", **wishes):
        (tmp_path/"data/raw").mkdir(parents=True, exist_ok=True)
        (tmp_path/"params.yaml").write_text("data:\n  card: none\n")
        if isinstance(rows, pd.DataFrame): rows.to_csv(tmp_path/name, index=False)
        found = draft_card(tmp_path, tmp_path/name, target, wishes=Wishes(**wishes), force=True)
        return load_card(found.card), found
    return drafted


def hash_of_text(text): return sum(ord(letter) * 31 ** place for place, letter in enumerate(text))


def days(spelling="%Y-%m-%d"): return pd.Series(pd.date_range("2023-01-01", periods=COUNT)).dt.strftime(spelling)


@pytest.mark.parametrize("name, values, dates", [
    ("time_hour", days("%Y-%m-%dT10:00:00Z"), ""),
    ("created", days(), ""),
    ("InvoiceDate", days("%d/%m/%Y"), "day first"),
    ("OrderDate", days("%m/%d/%Y"), "month first"),
    ("x7", days("%d.%m.%Y"), "day first"),
    ("x7", days("%b %d, %Y"), "%b %d, %Y"),
    ("x7", days("%Y%m%d"), "%Y%m%d"),
    ("x7", days("%d/%m/%y"), "%d/%m/%y"),
    ("x7", days("%b %Y"), "%b %Y"),
    ("x7", days("%d. %B %Y"), "%d. %B %Y"),
    ("x7", days("%Y.%m.%d"), "%Y.%m.%d"),
    ("x7", days("%m/%d/%Y 07:05 PM"), "month first"),
    ("week", days("%G-W%V"), ""),
    ("month", days("%Y-%m"), ""),
    ("x7", pd.Series(pd.date_range("1999-01-01", periods=COUNT, freq="MS")).dt.to_period("Q").astype(str), ""),
    ("period", [f"Q{1 + row // 100} 2023" for row in range(COUNT)], ""),
    ("ts", 1_700_000_000 + np.arange(COUNT) * 3600, "seconds"),
    ("ts", (1_700_000_000 + np.arange(COUNT) * 3600) * 1000, "milliseconds"),
    ("season", np.arange(COUNT) % 3 + 2021, ""),
])
def test_time_is_found_by_its_values(draft, name, values, dates):
    card, found = draft(some_rows(**{name: values}))
    assert (raw_name(card.time), card.reading.dates) == (name, dates), found.notes
    prepared = read_prepared(found.card.parent/card.path, card, labelled=True)
    assert len(prepared.rows) == COUNT and len(split(prepared.rows, card, 1)) > 2


@pytest.mark.parametrize("gap", ["", "0000-00-00", "?", "9999-12-31", "1900-01-01"])
def test_a_missing_date_costs_its_row_and_not_the_time(draft, gap):
    values = days()
    values[7] = gap
    card, found = draft(some_rows(x7=values))
    assert card.time == "x7" and "1 of 400 rows have none" in found.uses["x7"].reason
    assert read_prepared(found.card.parent/card.path, card).reasons == {"x7: missing": 1}


def test_day_and_month_that_cannot_be_told_apart_are_asked_for(draft):
    rng = np.random.default_rng(0)
    ambiguous = [f"{day:02}/{month:02}/2024" for day, month in rng.integers(1, 13, (COUNT, 2))]
    card, found = draft(some_rows(signed=ambiguous))
    assert card.time is None and "day and month cannot be distinguished" in found.uses["signed"].look
    card, _ = draft(some_rows(signed=ambiguous), dates="month first")
    assert (card.time, card.reading.dates) == ("signed", "month first")


def test_a_date_of_birth_is_not_the_time(draft):
    rng = np.random.default_rng(0)
    born = pd.Series(pd.Timestamp("1930-01-01") + pd.to_timedelta(rng.integers(0, 25000, COUNT), "D"))
    born = born.dt.strftime("%Y-%m-%d")
    for name in ("birth_date", "dob", "x1"):
        card, found = draft(some_rows(**{name: born, "x2": days()}))
        assert card.time == "x2" and found.uses[name].use == "left out"
    card, found = draft(some_rows(geburtsdatum=born))
    assert card.time is None and "age" in found.uses["geburtsdatum"].look


def test_year_month_and_day_become_one_date(draft):
    stamps = pd.date_range("2013-01-01", periods=COUNT)
    card, found = draft(some_rows(year=stamps.year, month=stamps.month, day=stamps.day))
    assert card.time == "date" and any("later files need" in look for look in found.looks)


def test_unique_times_and_measures_are_no_ids(draft):
    card, _ = draft(some_rows(ts=days("%Y-%m-%dT08:00:00")))
    assert (card.id, raw_name(card.time)) == ("row_id", "ts")
    rng = np.random.default_rng(0)
    amounts = rng.permutation(10**6)
    card, _ = draft(some_rows(balance_cents=amounts[:COUNT], fnlwgt=amounts[-COUNT:] + 9999))
    assert card.id == "row_id" and card.numeric == ["amount", "balance_cents"]


@pytest.mark.parametrize("values", [
    np.arange(COUNT), [f"c{i}" for i in range(COUNT)], [str(1234567890123456000 + i) for i in range(COUNT)]])
def test_ids_are_found(draft, values):
    assert draft(some_rows(customer_id=values))[0].id == "customer_id"


def test_a_repeated_unit_stays_on_one_side_of_the_split(draft):
    card, found = draft(some_rows(patient_id=np.arange(COUNT) // 3, visit_id=np.arange(COUNT)))
    assert (card.id, card.unit) == ("visit_id", "patient_id") and "patient_id" not in card.features
    rows = read_prepared(found.card.parent/card.path, card, labelled=True).rows
    parts = split(rows, card, 3)
    sides = pd.concat([part.assign(part=name) for name, part in parts.items()])
    assert sides.groupby("patient_id").part.nunique().max() == 1 and len(parts["reference"]) > 30


def test_matched_groups_are_a_unit_and_hours_are_not(draft):
    card, found = draft(some_rows(stratum=np.arange(COUNT) // 4 + 1, hour=np.arange(COUNT) % 25))
    assert card.unit == "stratum" and "has 4 rows" in found.uses["stratum"].look and "hour" in card.numeric


@pytest.mark.parametrize("name, values", [
    ("fcode", 410032 + np.arange(COUNT) // 4 * 7),                       # four rows of each firm
    ("q1", [f"s{row // 8}" for row in range(COUNT)]),
    ("zper", np.random.default_rng(2).integers(0, 120, COUNT) * 13 + 5),     # about three of each, in any order
])
def test_a_unit_is_known_by_what_is_the_same_in_its_rows(draft, name, values):
    region = pd.Series(values).astype("str").map(hash_of_text) % 5
    card, found = draft(some_rows(**{name: values, "region": region}))
    assert card.unit == name and "the rows of one value have the same region" in found.uses[name].look


def test_bands_of_a_number_do_not_make_it_a_unit(draft):
    values = np.random.default_rng(2).integers(18, 60, COUNT)
    card, _ = draft(some_rows(score=values, decade=values // 10, noise=np.arange(COUNT) * 7 % 11))
    assert card.unit is None


def test_the_id_without_gaps_is_the_id(draft):
    number = pd.Series([f"{row:05d}CF" for row in range(COUNT)])
    number[:3] = ""
    card, _ = draft(some_rows(c_case_number=number, id=np.arange(COUNT) + 5))
    assert card.id == "id"


@pytest.mark.parametrize("mark", ["?", "\\N", ".", "-", "(null)", "NA", " ", "N/A"])
def test_marks_for_no_value_leave_a_column_of_numbers(draft, mark):
    total = pd.Series(np.random.default_rng(0).normal(9, 2, COUNT).round(3)).astype(str)
    total[[3, 5, 8]] = mark
    card, found = draft(some_rows(total=total))
    prepared = read_prepared(found.card.parent/card.path, card, labelled=True)
    assert "total" in card.numeric and prepared.rows.total.isna().sum() == 3 and not len(prepared.refused)


@pytest.mark.parametrize("spelled, reading", [
    (lambda number: f"{number:.2f}".replace(".", ","), dict(decimal=",")),
    (lambda number: f"{number * 1000:,.2f}", dict(thousands=",")),
    (lambda number: f"${number:.2f}", dict(units=["$"])),
    (lambda number: f"{number:.1f} %", dict(units=["%"])),
    (lambda number: f"{number * 1000:,.2f}".replace(",", "x").replace(".", ",").replace("x", "."),
     dict(decimal=",", thousands=".")),
])
def test_numbers_in_other_spellings(draft, spelled, reading):
    numbers = np.random.default_rng(0).normal(9, 2, COUNT)
    rows = some_rows(total=[spelled(number) for number in numbers]).drop(columns="amount")
    card, found = draft(rows)
    assert card.numeric == ["total"]
    for key, value in reading.items(): assert getattr(card.reading, key) == value
    prepared = read_prepared(found.card.parent/card.path, card, labelled=True)
    assert not len(prepared.refused) and np.corrcoef(prepared.rows.total, numbers)[0, 1] > .999


def test_codes_that_begin_with_the_letter_of_a_unit_are_codes(draft):
    waits = [f"{minutes}min" for minutes in np.random.default_rng(0).integers(0, 90, COUNT)]
    card, _ = draft(some_rows(ward=[f"m{row % 9}" for row in range(COUNT)], wait=waits))
    assert ("ward" in card.categorical, "wait" in card.numeric, card.reading.units) == (True, True, ["min"])


def test_limited_numbers_pairs_and_codes_are_told(draft):
    crp = pd.Series(np.random.default_rng(0).normal(9, 2, COUNT).round(3)).astype(str)
    crp[:40] = "<5"
    pressure = [f"{110 + i % 30}/{60 + i % 25}" for i in range(COUNT)]
    card, found = draft(some_rows(crp=crp, bp=pressure, zip=[f"0{1000 + i % 40}" for i in range(COUNT)]))
    assert "crp" in card.numeric and "measured only up to a limit" in found.uses["crp"].look
    assert "two numbers in a cell" in found.uses["bp"].reason and "zip" in card.categorical


def test_decimals_of_parquet_are_numbers(draft, tmp_path):
    import decimal
    rows = some_rows()
    rows["price"] = [decimal.Decimal(f"{i}.25") for i in range(COUNT)]
    rows.to_parquet(tmp_path/"my.parquet", index=False)
    assert "price" in draft(None, name="my.parquet")[0].numeric


def test_a_flag_with_nothing_as_its_other_value_is_kept_and_told(draft):
    card, found = draft(some_rows(deceased=["Y", "", "", ""] * (COUNT // 4), site=["web"] * COUNT))
    assert "deceased" in card.categorical and "is an empty cell a 'no' here?" in found.uses["deceased"].look
    assert found.uses["site"].use == "left out"


@pytest.mark.parametrize("positive, negative", [
    ("fraud", "legit"), ("Left", "Stayed"), ("Attrited Customer", "Existing Customer"), ("ja", "nein"), ("bad", "good"),
    ("Default", "Paid"), ("churned", "active"), ("1", "-1"), ("True", "False"), (">50K", "<=50K"), ("1", "0"),
    ("oui", "non"), ("sí", "no"), ("malignant", "benign"), ("spam", "ham"), ("late", "on time"), ("Died", "Alive"),
    ("Charged Off", "Fully Paid"), ("not paid", "paid"), ("unpaid", "paid"), ("inactive", "active"),
    ("Insolvent", "Solvent"), ("no show", "show"),
    ("not_fraud", "is_fraud")[::-1], ("wahr", "falsch"), ("high risk", "low risk")])
def test_the_event_is_positive(draft, positive, negative):
    card, found = draft(some_rows().replace({"y": {"yes": positive, "no": negative}}))
    assert (card.target.positive, card.target.negative) == ([positive], [negative])
    assert not any(look.startswith("target") for look in found.looks)


def test_an_unclear_outcome_is_told_and_asked(draft):
    rows = some_rows().replace({"y": {"yes": "2", "no": "1"}})
    card, found = draft(rows)
    assert card.target.positive == ["2"] and any("may mean anything" in look for look in found.looks)
    card, found = draft(rows, ask=lambda _target, values, _guess: values[0])
    assert card.target.positive == ["1"] and not any("may mean anything" in look for look in found.looks)


def test_another_spelling_of_an_outcome_is_told(draft):
    rows = some_rows()
    rows.loc[:9, "y"] = "YES"
    card, found = draft(rows, positive="yes")
    assert (card.target.positive, card.target.negative, card.target.unlabelled) == (["yes"], ["no"], ["YES"])
    assert any("differs from 'yes' only by case" in look for look in found.looks)


def test_labels_that_are_not_known_yet(draft):
    rows = some_rows()
    rows.loc[:9, "y"] = "pending"
    card, found = draft(rows)
    assert (card.target.positive, card.target.unlabelled) == (["yes"], ["pending"])
    assert read_prepared(found.card.parent/card.path, card, labelled=True).rows[card.target.name].isna().sum() == 10


@pytest.mark.parametrize("name", [
    "sex", "GESCHLECHT", "sexe", "género", "male", "hispan", "married", "MARRIAGE_1", "old", "SeniorCitizen",
    "religion", "nationality", "disabled", "pregnant", "race_Black", "nonwhite", "pct_white"])
def test_protected_attributes_by_name(draft, name):
    card, _ = draft(some_rows(**{name: np.random.default_rng(0).integers(0, 2, COUNT)}))
    assert [attribute.column for attribute in card.protected.values()] == [name] and name not in card.features


@pytest.mark.parametrize("values", [["M", "F"], ["weiblich", "männlich"], ["Married", "Divorced"], ["White", "Black"],
                                    ["Mr.", "Mrs."]])
def test_protected_attributes_by_values(draft, values):
    card, _ = draft(some_rows(q17=np.random.default_rng(0).choice(values, COUNT)))
    assert [attribute.column for attribute in card.protected.values()] == ["q17"]


@pytest.mark.parametrize("name", ["edad", "âge", "alter", "age"])
def test_ages_get_bands(draft, name):
    card, _ = draft(some_rows(**{name: np.random.default_rng(0).integers(18, 90, COUNT)}))
    (attribute,) = card.protected.values()
    assert attribute.column == name and len(attribute.bands) == 3


def test_the_country_of_birth_is_no_date(draft):
    countries = np.random.default_rng(0).choice(["Chile", "Peru", "Ghana"], COUNT)
    card, _ = draft(some_rows(country_of_birth=countries))
    assert [attribute.column for attribute in card.protected.values()] == ["country_of_birth"]


def test_what_sounds_like_something_else_is_a_feature(draft):
    rng = np.random.default_rng(0)
    named = ("#", "steroid", "repaid", "runtime", "candidate_votes")
    numbers = {name: rng.integers(100, 3000, COUNT) for name in named}
    texts = {name: rng.choice(["a", "b", "c"], COUNT) for name in ("asset_age", "religare", "battery_age", "mar_2020")}
    rooms = [f"Room {row % 40}" for row in range(COUNT)]
    card, found = draft(some_rows(**numbers, **texts, place=rooms))
    assert {*numbers, *texts, "place"} <= set(card.features), found.notes
    assert (card.time, card.unit, card.protected, found.private) == (None, None, {}, [])


def test_numbers_that_may_be_years_are_told(draft):
    _, found = draft(some_rows(rent=np.arange(COUNT) % 50 + 1960))
    assert "taken for years because of its values only" in found.uses["rent"].look
    card, _ = draft(some_rows(rent=np.random.default_rng(0).integers(1951, 2039, COUNT)))
    assert card.time is None


def test_several_units_in_one_column_are_told(draft):
    rng = np.random.default_rng(0)
    weights = [f"{number} kg" for number in rng.integers(40, 120, COUNT)]
    doses = [f"{number} g" for number in rng.integers(1, 500, COUNT)]
    ways = [f"{number} {'km' if number % 2 else 'mi'}" for number in rng.integers(1, 500, COUNT)]
    card, found = draft(some_rows(wt=weights, dose=doses, way=ways))
    assert {"wt", "dose", "way"} <= set(card.numeric) and "several units (km, mi)" in found.uses["way"].look


def test_what_only_sounds_protected_is_a_feature(draft):
    card, _ = draft(some_rows(account_age=np.arange(COUNT) % 97, white_wine=np.arange(COUNT) % 2))
    assert not card.protected and {"account_age", "white_wine"} <= set(card.features)


def test_one_of_a_family_of_words_is_enough(draft):
    names = ["ethn", "nwhite", "marry", "divorce", "evermarr", "xage", "parcath", "blackfemale", "is_hispanic"]
    rng = np.random.default_rng(0)
    card, _ = draft(some_rows(**{name: rng.integers(0, 2, COUNT) for name in names}))
    assert {attribute.column for attribute in card.protected.values()} == {*names}


def test_m_and_f_are_no_second_sex(draft):
    rng = np.random.default_rng(0)
    card, found = draft(some_rows(sex=rng.choice(["Male", "Female"], COUNT), degree=rng.choice(["F", "M"], COUNT)))
    assert "degree" in card.categorical and "no sexes here, because sex is there" in found.uses["degree"].look


def test_what_may_be_protected_is_asked(draft):
    card, found = draft(some_rows(foreign=np.arange(COUNT) % 2))
    assert "foreign" in card.categorical and "list it under `protected`" in found.uses["foreign"].look


@pytest.mark.parametrize("name", ["yob", "Geburtsjahr", "birth_year", "yearborn"])
def test_years_of_birth_are_ages(draft, name):
    card, found = draft(some_rows(**{name: np.random.default_rng(0).integers(1930, 2004, COUNT)}))
    (attribute,) = card.protected.values()
    assert (attribute.column, len(attribute.bands)) == (name, 3) and name not in card.features, found.looks


def test_a_feature_that_gives_a_group_away_is_told(draft):
    age = np.random.default_rng(0).integers(18, 80, COUNT)
    _, found = draft(some_rows(age=age, agesq=age ** 2))
    assert any(look.startswith("agesq: with it a model can tell a group of age") for look in found.looks)


def test_proxies_are_measured(draft):
    rng = np.random.default_rng(0)
    gender = rng.choice(["f", "m"], COUNT)
    card, _ = draft(some_rows(gender=gender, height=np.where(gender == "m", 178, 165) + rng.normal(0, 6, COUNT)))
    assert card.protected["gender_group"].proxies == ["height"]


def test_leaks_are_left_out_with_a_comment(draft):
    rows = some_rows()
    is_yes = rows.y == "yes"
    rows = rows.assign(reject=1 - is_yes, why_left=np.where(is_yes, np.arange(COUNT) % 7, None), copy=rows.y)
    card, found = draft(rows)
    assert {name for name, use in found.uses.items() if use.is_leak} == {"reject", "why_left", "copy"}
    assert card.features == ["amount"] and "# - reject   # leak: " in found.card.read_text()


def test_what_is_dated_after_the_row_is_a_leak(draft):
    after = pd.Series(pd.date_range("2023-02-01", periods=COUNT)).dt.strftime("%Y-%m-%d")
    kinds = np.random.default_rng(0).choice(["a", "b"], COUNT)
    card, found = draft(some_rows(signed=days(), r_date=after, r_kind=kinds, s_kind=kinds))
    assert card.time == "signed" and found.uses["r_date"].is_leak and found.uses["r_kind"].is_leak
    assert "s_kind" in card.categorical


def test_doubtful_names_and_values_are_told(draft):
    rows = some_rows(event=np.arange(COUNT) % 3, tstop=np.arange(COUNT) % 91, reason_given=np.arange(COUNT) % 2)
    later = np.where((rows.y == "yes") & (np.arange(COUNT) % 4 > 0), "a", "b")
    _, found = draft(rows.assign(kind=later).rename(columns={"y": "has_recid"}).assign(
        is_violent_recid=lambda rows: (rows.has_recid == "yes") & (np.arange(COUNT) % 3 == 0)), "has_recid")
    for name, words in [("event", "only after the outcome"), ("tstop", "only after the outcome"),
                        ("kind", "rows with the value 'a' are of class 1"), ("is_violent_recid", "of class 1")]:
        assert words in found.uses[name].look + found.uses[name].reason, name


@pytest.mark.parametrize("name, values, is_personal", [
    ("attending_physician", [f"Dr. {chr(65 + row % 26)}. Novak" for row in range(COUNT)], True),
    ("physician_name", [f"Q{row % 64} Zzyzx" for row in range(COUNT)], True),
    ("business_name", [f"Cafe {chr(97 + row % 26)}{chr(97 + row // 26)}" for row in range(COUNT)], False),
])
def test_names_of_persons_and_of_things(draft, name, values, is_personal):
    assert (name in draft(some_rows(**{name: values}))[1].private) is is_personal


def test_personal_data_is_left_out_and_kept_from_git(draft):
    first = np.random.default_rng(0).choice(["Anna", "Peter", "Maria", "Thomas"], COUNT)
    rows = some_rows(customer=[f"{name} Smith{i}" for i, name in enumerate(first)],
                     contact=[f"u{i}@example.org" for i in range(COUNT)],
                     remark=[f"called on day {i} and was not at home" for i in range(COUNT)])
    card, found = draft(rows)
    assert card.features == ["amount"] and found.private == ["customer", "contact"]
    assert "/my." in (found.card.parent/".gitignore").read_text()
    assert any("holds personal data" in look for look in found.looks)
    assert "u17@example.org" not in drafted_page(found) and "Smith17" not in drafted_page(found)


def test_survey_weights_are_refused_by_name(draft):
    weights = np.random.default_rng(0).uniform(10_000, 900_000, COUNT).round()
    card, found = draft(some_rows(fnlwgt=weights, weight=np.random.default_rng(1).normal(75, 9, COUNT).round()))
    assert "fnlwgt" not in card.features and "survey weights are not supported" in found.uses["fnlwgt"].reason
    assert "weight" in card.numeric and "if it is a weight of a survey" in found.uses["weight"].look
    with pytest.raises(ValueError, match="survey weights are not supported"):
        Card.model_validate({**yaml.safe_load(found.card.read_text()), "weight": "fnlwgt"})


def test_families_of_numbers_are_of_one_kind(draft):
    rng = np.random.default_rng(0)
    counts = {f"PAY_{i}": rng.integers(0, most, COUNT) for i, most in ((1, 12), (2, 3), (3, 15))}
    card, _ = draft(some_rows(**counts))
    assert {"PAY_1", "PAY_2", "PAY_3"} <= set(card.numeric)


def test_a_header_that_is_a_row_is_told(draft, tmp_path):
    rows = some_rows()
    lines = rows.assign(b=np.arange(COUNT) + .5).to_csv(index=False).splitlines()
    (tmp_path/"my.csv").write_text("\n".join(["51.2,y,17.5", *lines[1:]]) + "\n")
    _, found = draft(None, "y")
    assert any("looks like a row of data" in look for look in found.looks)


@pytest.mark.parametrize("text, fault", [("id,x,y\n", "holds no row"),
                                         ("id,x,y\n1,2\n3,4,yes,no\n", "row 2 has 2 cells")])
def test_a_file_without_a_whole_row_is_refused_for_that(draft, tmp_path, text, fault):
    (tmp_path/"my.csv").write_text(text)
    with pytest.raises(DataError, match=fault): draft("my.csv")


def test_files_of_two_months_get_two_cards(draft):
    assert draft(some_rows(), name="sales.2024-01.csv")[0].name == "sales.2024-01"
    assert draft(some_rows(), name="sales.2024-02.csv.gz")[0].name == "sales.2024-02"


@pytest.mark.filterwarnings("error")
def test_a_draft_warns_of_nothing(draft):
    draft(some_rows(signed=days(), plan=np.random.default_rng(0).choice(["a", "b"], COUNT)))


def test_the_page_is_one_file_and_escapes_everything(draft):
    _, found = draft(some_rows(**{"<script>x</script>": ["<b>", "c"] * (COUNT // 2)}))
    page = drafted_page(found)
    assert "<script" not in page and "<b>c" not in page and "&lt;script&gt;" in page
    assert "<svg" in page and "src=" not in page and "http" not in page.split("<body>")[1]


# mlgov card new and card check, as a user calls them

def test_card_new_says_what_it_decided(project):
    some_rows(signed=days(), geschlecht=["m", "w"] * (COUNT // 2)).to_csv(project.root/"my.csv", index=False)
    output = project.run("mlgov card new my.csv --target y").stdout
    assert "1 means y = yes" in output and "time: signed" in output and "protected: geschlecht" in output
    assert (project.root/"data/raw/my.card.html").is_file()
    message = project.refuses("mlgov card check my", "use: not filled in yet", "source: not filled in yet")
    assert "4 faults" in message
    project.edit("data/raw/my.yaml", "FILL IN: ", "")
    assert "400 rows fit the card, 0 are refused" in project.run("mlgov card check my").stdout


@pytest.mark.parametrize("old, new, texts", [
    ("privileged: Male", "privileged: male", ["no group 'male' (did you mean 'Male'?)"]),
    (r"numeric: \[age,", "numeric: [realrinc, age,", ["realrinc is among the features", "realrinc is a leak"]),
    ("Not for decisions", "FILL IN", []),
    (r"to: \[Full-Time", "to: [Full Time", ["wrkstat.to: there is no value 'Full Time' (did you mean 'Full-Time'?)"]),
    (r"order: \[Less Than High School", "order: [Primary", ["educcat.order: there is no value 'Primary'"]),
    (r"2014-18: \[2014, 2018\]", "2014-18: [2030, 2034]", ["window '2014-18' [2030, 2034] has no rows"]),
    ("realrinc > 20000", "realrinc > 20000000", ["one class"]),
    ("id: id", "id: id\nunit: gender_", ["missing columns 'gender_'"]),
    (r"\{column: age, bands: \[30, 45, 60\]", "{column: age", ["different numbers are too many groups"]),
])
def test_card_check_finds_what_later_stages_would_refuse(project, old, new, texts):
    project.edit(CARD, old, new)
    if texts: project.refuses("mlgov card check gss_wages", *texts)
    else: project.run("mlgov card check gss_wages")


@pytest.mark.parametrize("old, new, texts", [
    ("measure: drift_share,", "measure: drift_shares,", ["no measure 'drift_shares' (did you mean 'drift_share'?)"]),
    ("subject: score, window", "subject: scores, window", ["no subject 'scores' (did you mean 'score'?)"]),
    ("measure: outlier_share, window: windows", "measure: outlier_share, window: 2014-19",
     ["no window '2014-19' (did you mean '2014-18'?)"]),
])
def test_card_check_finds_limits_on_nothing(project, old, new, texts):
    project.edit("policy.yaml", old, new)
    project.refuses("mlgov card check gss_wages", *texts)


def test_card_check_counts_refused_rows(project):
    rows = pd.read_parquet(project.root/RAW)
    rows.loc[:len(rows) // 2, "id"] = 7
    rows.to_parquet(project.root/RAW, index=False)
    project.refuses("mlgov card check gss_wages", "of the rows are refused, more than 5%")


def test_card_check_takes_the_limit_of_the_policy(project):
    limit = "leak_auc_max, subject: all rows, max: "
    project.edit("policy.yaml", f"{limit}0.98", f"{limit}0.6")
    project.refuses("mlgov card check gss_wages", "is a leak", "above 0.6 (policy.yaml: pre_release.leakage)")


def test_card_check_tells_what_is_no_fault(project):
    project.edit(CARD, "privileged: Male", "privileged: Male, as_input: true")
    output = project.run("mlgov card check gss_wages").stdout
    assert "as_input is true, but 'gender' is not among the features" in output


@pytest.mark.parametrize("old, new, text", [
    ("parity: true", "parity: false", "`no_parity` does not say why: the fairness audit will be 'cannot tell'"),
    ("id: id", "id: id\nunit: id", "unit: id is another one in every row, so it joins nothing"),
])
def test_card_check_tells_what_later_stages_cannot_tell(project, old, new, text):
    project.edit(CARD, old, new)
    assert text in " ".join(project.run("mlgov card check gss_wages").stdout.split())


def test_card_check_tells_of_persons_and_repeated_units(project):
    rows = some_rows(patient_id=np.arange(COUNT) // 4, email=[f"u{row}@example.org" for row in range(COUNT)])
    rows.to_csv(project.root/"my.csv", index=False)
    project.run("mlgov card new my.csv --target y")
    project.edit("data/raw/my.yaml", "FILL IN: ", "")
    project.edit("data/raw/my.yaml", "unit: patient_id.*", "")
    project.edit("data/raw/my.yaml", "categorical: .*", "categorical: [email]")
    output = " ".join(project.run("mlgov card check my").stdout.split())
    assert "email: e-mail addresses: personal data among the features" in output
    assert "unit: none is named, and patient_id has 100 different values, 4.0 rows each" in output


def test_a_split_by_time_needs_a_time(project):
    project.edit(CARD, "time: year", "")
    project.refuses("mlgov card check gss_wages", "are of no use without `time`")


def test_every_measure_of_the_reports_can_be_limited():
    from conftest import ROOT

    from mlgov_nb.stats.measures import KNOWN
    for section, known in KNOWN.items():
        file = ROOT/"reports/gss_wages"/f"{'select' if section == 'pre_release' else section}.json"
        measured = {found["name"] for window in json.loads(file.read_text()) for found in window["measures"]}
        assert measured <= known, section
