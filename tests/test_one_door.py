"""One file means the same to every command, whatever its format: rows, codes, scores, counts, explanations."""

import bz2
import gzip
import io
import lzma
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mlgov_nb.data.card import Card, Reading
from mlgov_nb.data.prepare import prepare, read_prepared
from mlgov_nb.data.read import read_raw, read_rows
from mlgov_nb.data.values import DataError, as_times
from mlgov_nb.explanation.reasons import explain_row
from mlgov_nb.log.segment import Segment
from mlgov_nb.model.artifact import load, parity_rows, save
from mlgov_nb.model.candidates import fit
from mlgov_nb.model.encoding import codes, fit_encoder
from mlgov_nb.pipeline.train import describe_features
from mlgov_nb.profile.build import profile
from mlgov_nb.profile.source import kinds_of
from mlgov_nb.serve.batch import open_scorer, score_file
from mlgov_nb.serve.request import from_records
from mlgov_nb.settings import Candidate

CODES = ["01067", "1067", "NA", "None", "1.50", "O'Neil", 'say "so"', "a;b", "x\ny", "Köln", "1.0", "true", "-"]
CARD = dict(path="rows.csv", task="binary", title="", source="", licence="", id="key", numeric=["amount", "visits"],
            categorical=["code", "active", "score"], protected=dict(town=dict(column="place")),
            target=dict(name="left", column="churned", positive=["yes"], negative=["no"]))


def table_of(draw_codes, amounts, visits, active):
    "Typed rows, as a database holds them"
    n = len(draw_codes)
    return pd.DataFrame(dict(
        key=[f"{row:05d}" for row in range(n)], code=draw_codes,
        amount=amounts, visits=pd.array(visits, dtype="Int64"), active=pd.array(active, dtype="boolean"),
        score=[code if code is None else code[::-1] for code in draw_codes],
        place=["Köln" if row % 2 else "NA" for row in range(n)],
        churned=["yes" if row % 3 else "no" for row in range(n)]))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A model of such rows"
    rng = np.random.default_rng(0)
    n = 400
    frame = table_of(rng.choice(CODES, n).tolist(), rng.normal(50, 20, n).round(2), rng.integers(0, 9, n).tolist(),
                     (rng.random(n) < 0.5).tolist())
    card = Card(**CARD)
    rows, refused = prepare(frame, card)
    assert refused.empty
    encoder = fit_encoder(rows, card)
    y = (rows.amount + 30 * (rows.code == "01067") > 55).to_numpy(float)
    fitted = fit(Candidate(estimator="linear"), card.task, encoder, codes(encoder, rows), y, 7)
    about = dict(name="linear", task=card.task, card="rows", threshold=0.5, features=describe_features(rows, card))
    folder = tmp_path_factory.mktemp("door")/"model"
    save(folder, fitted, encoder, about, parity_rows(rows, card), dict(card=card.model_dump()))
    return folder


def csv_forms(frame, folder):
    "CSV files of a frame: separators, encodings, line ends, packing, the index as a column"
    def text(**options): return frame.to_csv(index=False, **options)
    plain = text()
    contents = dict(
        plain=plain.encode(), semicolon=text(sep=";").encode(), tab=text(sep="\t").encode(), bar=text(sep="|").encode(),
        marked=plain.encode("utf-8-sig"), wide=plain.encode("utf-16"), crlf=text(lineterminator="\r\n").encode(),
        quoted=text(quoting=1).encode(), numbered=frame.to_csv().encode(), gz=gzip.compress(plain.encode()),
        xz=lzma.compress(plain.encode()), bz2=bz2.compress(plain.encode()),
        zst=pa.Codec("zstd").compress(plain.encode(), asbytes=True))
    try: contents["latin"] = text(sep=";").encode("latin-1")
    except UnicodeEncodeError: pass
    for name, content in contents.items():
        file = folder/f"{name}.CSV"
        file.write_bytes(content)
        yield name, file


def parquet_forms(frame, folder):
    "Parquet files of a frame: row groups, dictionaries, decimals, an index, a folder"
    forms = dict(
        plain=frame, index=frame.set_index("key"), numbered=frame.set_axis(frame.index + 5),
        category=frame.astype(dict(code="category", place="category", churned="category")),
        decimal=frame.assign(amount=[None if pd.isna(v) else Decimal(repr(float(v))) for v in frame.amount]),
        floats=frame.astype(dict(visits="float64")), text=frame.assign(
            visits=frame.visits.astype("string"), active=frame.active.astype("string").str.lower()))
    for name, form in forms.items():
        file = folder/f"{name}.parquet"
        form.to_parquet(file, row_group_size=3)
        yield f"parquet {name}", file
    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    with pq.ParquetWriter(folder/"empty_groups.parquet", arrow.schema) as writer:
        for part in (arrow.slice(0, 0), arrow, arrow.slice(0, 0)): writer.write_table(part)
    yield "parquet with empty row groups", folder/"empty_groups.parquet"
    parts = folder/"parts"
    parts.mkdir(exist_ok=True)
    frame.iloc[:2].to_parquet(parts/"0.parquet")
    frame.iloc[2:].to_parquet(parts/"1.parquet")
    yield "folder", parts


def forms_in_memory(frame):
    "The rows as objects"
    yield "frame", frame
    yield "indexed frame", frame.set_index("key")
    yield "arrow", pa.Table.from_pandas(frame, preserve_index=False)
    yield "objects", frame.astype(object).where(frame.notna(), None)


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=12)
MAYBE = st.one_of(st.none(), st.sampled_from(CODES), TEXT)
AMOUNT = st.one_of(st.none(), st.floats(-1e6, 1e6).map(lambda value: round(value, 3)))
VISITS, ACTIVE = st.one_of(st.none(), st.integers(0, 10**9)), st.one_of(st.none(), st.booleans())
ROWS = st.lists(st.tuples(MAYBE, AMOUNT, VISITS, ACTIVE), min_size=3, max_size=12)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
          phases=[Phase.explicit, Phase.generate])
@given(ROWS)
def test_the_same_rows_mean_the_same_in_every_form(model, tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("forms")
    frame = table_of(*map(list, zip(*rows, strict=True)))
    frame = frame.assign(amount=frame.amount.astype(float))
    card, artifact, scorer = Card(**CARD), load(model), open_scorer(model, {})
    want, refused = prepare(frame, card)
    assert refused.empty
    want_codes, want_scores = codes(artifact.encoder, want), artifact.score(want)
    bins = profile(want, kinds=kinds_of(want, card))
    for name, source in [*csv_forms(frame, folder), *parquet_forms(frame, folder), *forms_in_memory(frame)]:
        found = read_prepared(source, card)
        assert found.refused.empty, (name, found.reasons)
        pd.testing.assert_frame_equal(found.rows, want, obj=name, check_exact=True)
        np.testing.assert_array_equal(codes(artifact.encoder, found.rows), want_codes, err_msg=name)
        assert profile(found.rows, bins) == bins, name
        if not hasattr(source, "is_file") or not source.is_file(): continue
        out = folder/"answer.parquet"
        summary = score_file(scorer, Segment(folder/"log"/name, "predictions"), source, out)
        answer = pd.read_parquet(out)
        assert (summary["rows"], summary["refused"]) == (len(want), 0), name
        np.testing.assert_array_equal(answer.score.to_numpy(), want_scores, err_msg=name)
        assert answer.key.tolist() == want.key.tolist(), name
        explained = explain_row(model, source, want.key.iloc[-1])
        assert explained["score"] == want_scores[-1], name


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
          phases=[Phase.explicit, Phase.generate])
@given(ROWS)
def test_a_request_means_what_the_file_means(model, rows):
    frame = table_of(*map(list, zip(*rows, strict=True)))
    frame = frame.assign(amount=frame.amount.astype(float))
    scorer = open_scorer(model, {})
    want = load(model).score(prepare(frame, Card(**CARD))[0])
    plain = frame[scorer.schema.names].astype(object).where(frame[scorer.schema.names].notna(), None)
    records = [{name: str(value).lower() if isinstance(value, bool) else value for name, value in record.items()}
               for record in plain.to_dict("records")]
    np.testing.assert_array_equal(scorer.score(from_records(scorer.schema, records)).score, want)


def test_a_file_beyond_one_block_with_quoted_line_breaks(tmp_path):
    "Where a block of the file ends does not matter"
    row = 'x,"street\ntown\n{}",01067,z\n'
    text = "a,address,zip,d\n" + "".join(row.format("y" * (number % 97)) for number in range(250_000))
    (tmp_path/"long.csv").write_text(text)
    assert len(text) > 1 << 23
    raw = read_raw(tmp_path/"long.csv")
    assert (len(raw.frame), raw.aside) == (250_000, [])
    assert set(raw.frame.zip) == {"01067"}


def test_a_code_that_begins_with_digits_for_long(tmp_path):
    "The first megabytes do not decide what a column is"
    lines = [f"{number % 9},{number}" for number in range(700_000)] + ["A7,1"]
    (tmp_path/"codes.csv").write_text("code,n\n" + "\n".join(lines) + "\n")
    assert kinds_of(tmp_path/"codes.csv") == dict(code="categorical", n="numeric")
    assert read_rows(tmp_path/"codes.csv").code.iloc[-1] == "A7"


def test_the_first_letter_that_is_not_ascii_stands_late(tmp_path):
    (tmp_path/"late.csv").write_bytes(b"town;n\n" + b"Bonn;1\n" * 400_000 + "Köln;2\n".encode("latin-1"))
    raw = read_raw(tmp_path/"late.csv")
    assert raw.frame.town.iloc[-1] == "Köln"
    assert raw.notes == ["read as: semicolons, latin-1"]


REFUSED = {
    "id,active,churned,vip\n" + "".join(f"{row},1,{row % 2},{row % 3},\n" for row in range(99)):
        "the line of names has 4 cells and every row has 5: each row ends with a separator",
    "id,churned,age,churned\n1,yes,3,no\n": "'churned' occurs twice, with different values",
    "Churn,churn,id\n1,2,3\n": "'churn' and 'Churn' differ only by case",
    "id, ID ,x\n1,2,3\n": "differ only by case or spaces",
    "a,,b\nx,y,z\n": "column 2 has no name",
    "<html><body>no</body></html>": "HTML",
}


@pytest.mark.parametrize("text", REFUSED)
def test_structure_is_checked(tmp_path, text):
    file = tmp_path/"x.csv"
    file.write_text(text)
    with pytest.raises(DataError) as error: list(read_rows(file))
    assert REFUSED[text] in str(error.value) and str(file) in str(error.value)


def test_a_repeated_column_with_the_same_values_is_read_once(tmp_path):
    (tmp_path/"x.csv").write_text("id,decile,x,decile\n1,3,a,3\n2,4,b,4\n")
    raw = read_raw(tmp_path/"x.csv")
    assert list(raw.frame) == ["id", "decile", "x"]
    assert raw.notes == ["decile: there more than once, with the same values; read once"]


def test_torn_rows_are_set_aside_with_their_place(tmp_path):
    (tmp_path/"x.csv").write_text('key,amount,visits,code,active,score,place,churned\n1,1,1,a,True,x,P,yes\n2,1\n'
                                  '3,1,1,"a\nb",True,x,P,no\n4,x,1,a,True,x,P,no\n5,1,1,a,True,x,P,no,,\n')
    found = read_prepared(tmp_path/"x.csv", Card(**CARD))
    assert found.rows.key.tolist() == [1, 3]
    places = dict(zip(found.refused.file_row, found.refused.reason, strict=True))
    assert places == {3: "2 cells; expected 8", 5: "amount: not a number", 6: "10 cells; expected 8"}


def test_long_ids_are_not_rounded(tmp_path):
    ids = [str(1234567890123456000 + row) for row in range(50)]
    frame = table_of(["a"] * 50, [1.0] * 50, [1] * 50, [True] * 50).assign(key=ids)
    frame.loc[7, "key"] = None
    frame.to_csv(tmp_path/"x.csv", index=False)
    found = read_prepared(tmp_path/"x.csv", Card(**CARD))
    assert found.rows.key.astype(str).tolist() == [identity for row, identity in enumerate(ids) if row != 7]
    assert found.reasons == {"key: missing": 1}
    with pytest.raises(DataError, match="are decimals, which run into one another"):
        read_prepared(frame.assign(key=pd.to_numeric(frame.key).astype(float)), Card(**CARD))


def test_marks_commas_and_units_are_facts_of_the_card(tmp_path):
    text = ('key;amount;visits;code;active;score;place;churned\n'
            '001;1.234,50 €;?;NA;True;x;P;yes\n002;k.A.;3;NA;True;x;P;no\n003;7,5;4;?;True;x;P;maybe\n')
    (tmp_path/"x.csv").write_text(text, encoding="latin-1", errors="ignore")
    reading = dict(decimal=",", thousands=".", units=["€"], missing=dict(amount=["k.A."], visits=["?"]))
    found = read_prepared(io.BytesIO(text.encode()), Card(**CARD, reading=reading), where="x.csv")
    np.testing.assert_array_equal(found.rows.amount, [1234.5, np.nan, 7.5])
    np.testing.assert_array_equal(found.rows.visits, [np.nan, 3, 4])
    assert found.rows.code.tolist() == ["NA", "NA", "?"]
    assert found.rows.left.fillna(-1).tolist() == [1, 0, -1]
    assert found.notes[-1] == ("churned: 'maybe' (1 rows) is no outcome that the card declares: these rows are "
                               "unlabelled")


ROWS_IN_BETWEEN = "".join(f"{row},fine,{row}\n" for row in range(9))


@pytest.mark.parametrize("text", [
    '9,"broken,9\n' + ROWS_IN_BETWEEN + '9,whole",9\n',      # closed much later, in a row of the right width
    '9,"broken,9\n' + ROWS_IN_BETWEEN + '9,who",le,9\n',     # in a torn row
    '9,"broken,9\n' + ROWS_IN_BETWEEN,                       # never
    '9,"broken,9\n10,fine,3\n',
    '9,fine,"9\n10,fine,3\n',
])
@pytest.mark.parametrize("read", [lambda file: list(read_rows(file)), read_raw])
def test_rows_do_not_vanish_between_quotation_marks(tmp_path, text, read):
    (tmp_path/"x.csv").write_text("key,note,n\n" + ROWS_IN_BETWEEN + text)
    with pytest.raises(DataError, match=r"a quotation mark is (opened there and closed much later|never closed)"):
        read(tmp_path/"x.csv")


def test_an_inch_mark_in_a_cell_is_text(tmp_path):
    (tmp_path/"x.csv").write_text('key,note,n\n1,5" pipe,2\n2,"two\nlines",3,4\n3,fine,4\n')
    raw = read_raw(tmp_path/"x.csv")
    assert raw.frame.note.tolist() == ['5" pipe', "fine"] and raw.aside[0][1:] == (3, "4 cells; expected 3")


def test_a_decimal_as_a_category_has_the_text_of_the_csv(tmp_path):
    frame = table_of(["1.50", "2.00", "1.50"], [1.0] * 3, [1] * 3, [True] * 3)
    frame.to_csv(tmp_path/"x.csv", index=False)
    as_decimal = [Decimal(code) for code in frame.code]
    table = pa.Table.from_pandas(frame.assign(code=as_decimal), preserve_index=False)
    pq.write_table(table, tmp_path/"x.parquet")
    read = [read_prepared(tmp_path/name, Card(**CARD)).rows.code.tolist() for name in ("x.csv", "x.parquet")]
    assert read == [["1.50", "2", "1.50"]] * 2       # 2.00 is a spelling of 2


def test_marks_for_no_value_are_found_under_any_name(tmp_path):
    "A column that is called score is another one inside; its marks, given under its own name, count there too"
    frame = table_of(["a"] * 4, [1.0] * 4, [1] * 4, [True] * 4).assign(score=["?", "x", "?", "y"])
    frame.to_csv(tmp_path/"x.csv", index=False)
    found = read_prepared(tmp_path/"x.csv", Card(**CARD, reading=dict(missing=dict(score=["?"]))))
    assert found.rows["column.score"].isna().tolist() == [True, False, True, False]


def test_parts_of_a_folder_may_hold_a_column_in_different_types(tmp_path):
    frame = table_of(["17", "4"] * 3, [1.5] * 6, [1] * 6, [True] * 6)
    frame.to_csv(tmp_path/"x.csv", index=False)
    (tmp_path/"parts").mkdir()
    frame.head(2).assign(code=[17, 4], amount=[Decimal("1.5")] * 2).to_parquet(tmp_path/"parts/1.parquet")
    frame.iloc[2:4].assign(code=pd.Categorical(["17", "4"])).to_parquet(tmp_path/"parts/2.parquet", index=False)
    frame.iloc[4:].assign(visits=[1.0, 1.0]).to_parquet(tmp_path/"parts/3.parquet", index=False)
    read = [read_prepared(tmp_path/name, Card(**CARD)).rows for name in ("x.csv", "parts")]
    pd.testing.assert_frame_equal(*read)


def test_seconds_beyond_all_dates_are_no_dates():
    times = as_times(pd.Series([1_700_000_000, 1e18, -1e18, np.inf, None]), Reading(dates="seconds"))
    assert times.isna().tolist() == [False, True, True, True, True]


def test_a_column_that_has_the_name_of_another_inside_is_refused(tmp_path):
    "A file with `score` and `column.score`, which is what `score` is called inside"
    frame = table_of(["a"] * 4, [1.0] * 4, [1] * 4, [True] * 4)
    frame.assign(**{"column.score": "x"}).to_csv(tmp_path/"x.csv", index=False)
    with pytest.raises(DataError, match=r"'score' and 'column.score'.* rename"):
        read_prepared(tmp_path/"x.csv", Card(**CARD))
    with pytest.raises(DataError, match=r"'score' and 'column.score'.* rename"):
        kinds_of(tmp_path/"x.csv", Card(**CARD))
