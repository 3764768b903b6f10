"""Files as people have them: the same rows are read alike from every kind of file, and nothing is lost in silence."""

import codecs
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from mlgov_nb.data.card import Card, Reading
from mlgov_nb.data.labels import read_labels
from mlgov_nb.data.prepare import prepare, read_prepared
from mlgov_nb.data.read import read_raw, read_rows, write_rows
from mlgov_nb.data.split import content_hash, same_season
from mlgov_nb.data.table import open_table
from mlgov_nb.data.values import DataError, as_category, as_times, numbers
from mlgov_nb.pipeline.card_page import small_picture
from mlgov_nb.pipeline.drift_check import drift_of
from mlgov_nb.profile.build import read_profile

COMMON = dict(path="x.csv", task="binary", title="", source="", licence="", id="id", numeric=["a"])
RICH = Card(**COMMON, target=dict(name="rich", expr="income > 20000"))


def written(frame, folder):
    "The frame as CSV, as Parquet, and as it is"
    frame.to_csv(folder/"x.csv", index=False)
    frame.to_parquet(folder/"x.parquet", index=False)
    return [folder/"x.csv", folder/"x.parquet", frame, pa.Table.from_pandas(frame, preserve_index=False)]


def test_one_odd_cell_costs_one_label_and_is_told(tmp_path):
    incomes = [str(1000 * row) for row in range(50)]
    incomes[7] = "n/a"
    pd.DataFrame(dict(id=range(50), a=1.0, income=incomes)).to_csv(tmp_path/"x.csv", index=False)
    found = read_prepared(tmp_path/"x.csv", RICH, labelled=True)
    assert found.rows.rich.isna().sum() == 1 and found.rows.rich.sum() == 29
    assert found.notes == ["income: 'n/a': no outcome can be computed from it; these rows are unlabelled"]


def test_an_outcome_that_cannot_be_computed_at_all_is_told(tmp_path):
    pd.DataFrame(dict(id=range(50), a=1.0, income="much")).to_csv(tmp_path/"x.csv", index=False)
    (note,) = read_prepared(tmp_path/"x.csv", RICH).notes
    assert note.startswith("no row is labelled: ") and "cannot be evaluated" in note
    pd.DataFrame(dict(id=range(50), a=1.0)).to_csv(tmp_path/"y.csv", index=False)
    assert read_prepared(tmp_path/"y.csv", RICH).notes == []       # labels may come later, in a file of their own
    pd.DataFrame(dict(id=range(50), a=1.0, income="")).to_csv(tmp_path/"z.csv", index=False)
    empty = read_prepared(tmp_path/"z.csv", RICH, labelled=True)
    assert empty.rows.rich.isna().all() and empty.notes == []


@pytest.mark.parametrize("mark", ["-999", "-999.0"])
def test_a_number_that_means_no_value_is_one_in_every_file(tmp_path, mark):
    reading = Reading(missing=[mark])
    for column in ([1, -999, 3], [1.5, -999.0, 3.0], [1.0, -999.0, None]):
        for source in written(pd.DataFrame(dict(a=column)), tmp_path):
            values = read_raw(source, reading).frame.a
            expected = [np.nan if value in (None, -999) else value for value in column]
            np.testing.assert_array_equal(numbers(values, reading)[0], expected)
            assert as_category(values, reading).isna().tolist() == np.isnan(expected).tolist()
    frame = pd.DataFrame(dict(a=[*range(500), *[-999] * 500]))
    answer = drift_of(*written(frame, tmp_path)[:2], how=reading)
    assert answer.verdict["verdict"] == "pass", answer.verdict["line"]


def test_periods_are_periods_in_a_fresh_process(tmp_path):
    quarters = pd.PeriodIndex(pd.date_range("2019-01-01", periods=8, freq="QS"), freq="Q")
    pd.DataFrame(dict(q=quarters)).to_parquet(tmp_path/"x.parquet")
    file = str(tmp_path/"x.parquet")
    code = f"from mlgov_nb.data.read import read_raw; print(read_raw({file!r}).frame.q.astype(str)[0])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "2019Q1"
    assert as_times(read_raw(tmp_path/"x.parquet").frame.q).iloc[1] == pd.Timestamp("2019-04-01")


def test_hidden_folders_hold_no_data(tmp_path):
    rows = pd.DataFrame(dict(id=range(4)))
    for place in (".ipynb_checkpoints", "_temporary"):
        (tmp_path/place).mkdir()
        rows.to_csv(tmp_path/place/"copy.csv", index=False)
    rows.to_csv(tmp_path/"a.csv", index=False)
    assert len(read_raw(tmp_path).frame) == 4 and len(read_raw([tmp_path]).frame) == 4


def test_columns_of_later_files_are_told(tmp_path):
    pd.DataFrame(dict(id=[1])).to_csv(tmp_path/"1.csv", index=False)
    pd.DataFrame(dict(id=[2], extra=[3])).to_csv(tmp_path/"2.csv", index=False)
    assert read_raw(tmp_path).notes == ["columns that the first file does not have, not read: extra"]


def test_truth_values_with_gaps_are_truth_values(tmp_path):
    frame = pd.DataFrame(dict(id=range(6), a=1.0, y=[True, False, None] * 2))
    card = Card(**COMMON, target=dict(name="t", column="y", positive=["True"], negative=["False"]))
    for source in written(frame, tmp_path):
        assert read_prepared(source, card).rows.t.fillna(-1).tolist() == [1, 0, -1] * 2


def test_the_index_that_pandas_only_describes_is_read(tmp_path):
    pd.DataFrame(dict(id=range(5, 2005), a=1.5)).set_index("id").to_parquet(tmp_path/"x.parquet")
    raw = read_raw(tmp_path/"x.parquet")
    assert list(raw.frame) == ["id", "a"] and raw.frame.id.tolist() == list(range(5, 2005))
    assert read_raw(tmp_path/"x.parquet", columns=["id"]).frame.id.tolist() == list(range(5, 2005))
    pieces = [piece["id"].to_pylist() for piece in open_table(tmp_path/"x.parquet").batches(["id"], rows=999)]
    assert [value for piece in pieces for value in piece] == list(range(5, 2005)) and len(pieces) > 1
    pd.DataFrame(dict(a=[1, 2]), index=["x", "y"]).to_parquet(tmp_path/"y.parquet")
    assert "the index has no name and is not read" in read_raw(tmp_path/"y.parquet").notes[0]


def test_a_letter_on_the_border_of_two_blocks(tmp_path):
    head = b"town\n"
    filler = b"a" * ((1 << 16) - len(head) - 1)
    (tmp_path/"x.csv").write_bytes(head + filler + "ä\n".encode())
    assert read_raw(tmp_path/"x.csv").frame.town[0].endswith("aä")


def test_a_letter_at_the_very_end(tmp_path):
    (tmp_path/"x.csv").write_bytes(b"town\nBonn\nCaf\xe9")
    raw = read_raw(tmp_path/"x.csv")
    assert raw.frame.town.tolist() == ["Bonn", "Café"] and raw.notes == ["read as: latin-1"]


def test_one_broken_byte_does_not_make_a_text_latin(tmp_path):
    (tmp_path/"x.csv").write_bytes(b"id,n\n" + "".join(f"{row},Zoë\n" for row in range(8)).encode() + b"8,Zo\xeb\n")
    with pytest.raises(DataError, match="not UTF-8 text"): read_raw(tmp_path/"x.csv")


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-le", "utf-32-be", "utf-16", "utf-16-le"])
def test_wide_texts(tmp_path, encoding):
    (tmp_path/"x.csv").write_bytes("id,town\n1,Köln\n2,Åre\n".encode(encoding))
    raw = read_raw(tmp_path/"x.csv")
    assert raw.frame.town.tolist() == ["Köln", "Åre"] and raw.notes == [f"read as: {codecs.lookup(encoding).name}"]


@pytest.mark.parametrize("name", ["PARENT_ID", "ORCHID", "[id]", "<5", "{x}", "GIF8", "PAR1", "BZhang", "Obj\x01"[:3]])
def test_a_text_is_known_by_more_than_its_first_letters(tmp_path, name):
    (tmp_path/"x.csv").write_text(f"{name},b\n1,2\n")
    assert list(read_raw(tmp_path/"x.csv").frame) == [name, "b"]


@pytest.mark.parametrize("content", [b'{"a": 1}', b'[{"a": 1}]', b"<html>", b"<?xml version='1.0'?>", b"%PDF-1.4\n%"])
def test_other_formats_are_still_named(tmp_path, content):
    (tmp_path/"x.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"is (JSON|HTML or XML|a PDF)"): read_raw(tmp_path/"x.csv")


def test_a_comment_of_several_lines_is_one_cell(tmp_path):
    comment = "Dear Sir,\nyes, please\nno, thanks\nregards, Bob"
    pd.DataFrame(dict(id=[1, 2], comment=[comment, "ok"])).to_csv(tmp_path/"x.csv", index=False)
    assert read_raw(tmp_path/"x.csv").frame.comment.tolist() == [comment, "ok"]


def test_rows_have_the_numbers_that_an_editor_shows(tmp_path):
    (tmp_path/"x.csv").write_text("sep=,\nid,a,c,y\n1,1,x,Yes\n2\n3,bad,x,Yes\n4,4,x,No\n5,5,y,No\n")
    card = Card(**COMMON, target=dict(name="t", column="y", positive=["Yes"], negative=["No"]))
    found = read_prepared(tmp_path/"x.csv", card)
    assert found.refused.file_row.tolist() == [4, 5] and found.told[-1].endswith("the first is row 4")


def test_whole_numbers_of_days_with_a_gap_are_dates():
    for days in ([20210101.0, np.nan, 20210105.0], ["20210101.0", None, "20210105.0"]):
        times = as_times(pd.Series(days), Reading(dates="%Y%m%d"))
        assert times.tolist() == [pd.Timestamp("2021-01-01"), pd.NaT, pd.Timestamp("2021-01-05")]


def test_labels_may_be_categories_in_memory():
    card = Card(**COMMON, target=dict(name="left", column="churned", positive=["Yes"], negative=["No"]))
    labels = pd.DataFrame(dict(id=[1, 2], left=pd.Categorical(["Yes", "No"])))
    assert read_labels(labels, card).left.tolist() == [1, 0]


def test_labels_in_the_words_of_the_card(tmp_path):
    card = Card(**COMMON, target=dict(name="left", column="churned", positive=["ja"], negative=["nein"],
                                      unlabelled=["offen"]))
    (tmp_path/"labels.csv").write_text("id,left\n1,ja\n2,nein\n3,offen\n4,\n5,1\n")
    assert read_labels(tmp_path/"labels.csv", card).left.fillna(-1).tolist() == [1, 0, -1, -1, 1]
    (tmp_path/"labels.csv").write_text("id,left\n1,jein\n")
    with pytest.raises(DataError, match="'jein'; expected 0 or 1, or one of ja, nein, offen"):
        read_labels(tmp_path/"labels.csv", card)


def test_intervals_have_the_text_of_the_csv(tmp_path):
    bands = pd.cut(pd.Series([1, 5, 9]), [0, 4, 8, 12])
    bands.to_frame("band").to_csv(tmp_path/"x.csv", index=False)
    assert as_category(bands).tolist() == as_category(read_raw(tmp_path/"x.csv").frame.band).tolist()


@pytest.mark.parametrize("cell", [[1], (1,), {1}, {"a": 1}, np.array([1])])
def test_cells_that_are_lists_are_refused_by_name(cell):
    with pytest.raises(DataError, match=r"column 'tags' holds .* one plain value in a cell"):
        read_raw(pd.DataFrame(dict(id=[1], tags=pd.Series([cell], dtype=object))))


@pytest.mark.parametrize("first", [2**62, 2**63])
def test_a_picture_of_large_numbers(first):
    assert "<svg" in small_picture(pd.Series([first + 3 * row for row in range(300)], dtype="uint64"))


def test_a_folder_is_profiled(project, tmp_path):
    (tmp_path/"parts").mkdir()
    for part in range(2): pd.DataFrame(dict(a=range(50))).to_csv(tmp_path/"parts"/f"{part}.csv", index=False)
    project.run(f"mlgov profile {tmp_path/'parts'} -o {tmp_path/'p.json'}")
    assert read_profile(tmp_path/"p.json")["a"].n == 100


def test_prepared_rows_are_read_again_as_they_were(tmp_path):
    "The gate compares hashes of rows: a unit and a category of digits stay text in Parquet"
    card = Card(**COMMON, unit="person", categorical=["code"], target=dict(name="t", column="y", positive=["1"],
                                                                           negative=["0"]))
    frame = pd.DataFrame(dict(id=range(8), a=1.5, person=np.arange(8) // 2, code=[1, 2] * 4, y=[0, 1] * 4))
    frame.to_csv(tmp_path/"x.csv", index=False)
    rows = read_prepared(tmp_path/"x.csv", card).rows
    write_rows(tmp_path/"rows.parquet", rows)
    again = read_rows(tmp_path/"rows.parquet")
    pd.testing.assert_frame_equal(again, rows)
    assert content_hash(again) == content_hash(read_prepared(tmp_path/"rows.parquet", card).rows)


@pytest.mark.parametrize("options", [dict(match="month"), dict(full=True), {}])
def test_drift_refuses_torn_rows_however_it_reads(tmp_path, options):
    rng = np.random.default_rng(0)
    days = pd.date_range("2023-01-01", periods=600).strftime("%Y-%m-%d")
    frame = pd.DataFrame(dict(day=days, x=rng.normal(size=600).round(3), plan=rng.choice(["a", "b"], 600)))
    frame.to_csv(tmp_path/"old.csv", index=False)
    lines = frame.to_csv(index=False).splitlines()
    lines[100:300] = [f"{line},error" for line in lines[100:300]]
    (tmp_path/"torn.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="4 cells; expected 3"):
        drift_of(tmp_path/"old.csv", tmp_path/"torn.csv", **options)
    odd = frame.astype({"x": object})
    odd.loc[:4, "x"] = "error"
    odd.to_csv(tmp_path/"odd.csv", index=False)
    notes = drift_of(tmp_path/"old.csv", tmp_path/"odd.csv", **options).notes
    assert any("x: 5 cells" in note and "no numbers" in note for note in notes), notes


def test_a_season_needs_dates(tmp_path):
    frame = pd.DataFrame(dict(day=["2023-01-05", ""] * 40, region=["A", "B"] * 40, x=range(80)))
    frame.to_csv(tmp_path/"x.csv", index=False)
    with pytest.raises(DataError, match="'region' holds no date"):
        drift_of(tmp_path/"x.csv", tmp_path/"x.csv", match="month", time="region")


def test_rows_without_a_date_are_of_no_season():
    old = pd.DataFrame(dict(day=pd.to_datetime(["2023-01-05", "2023-02-05", None]), x=[1, 2, 3]))
    new = pd.DataFrame(dict(day=pd.to_datetime(["2024-01-09", None]), x=[4, 5]))
    assert same_season(old, new, "day", "month").x.tolist() == [1]
    with pytest.raises(DataError, match="holds no date in the window"): same_season(old, new.tail(1), "day", "month")


def test_a_list_of_frames_is_refused_in_words():
    with pytest.raises(DataError, match="join rows in memory into one table first"):
        read_raw([pd.DataFrame(dict(id=[1]))])


def test_marks_for_no_value_count_in_expressions_labels_and_times(tmp_path):
    reading = dict(missing=["-999", "k.A."])
    frame = pd.DataFrame(dict(id=range(6), a=1.0, income=[30000, -999, 10000] * 2, state=["paid", "k.A.", "open"] * 2))
    for expression, expected in [("income > 20000", [1, -1, 0]), ("state is not null", [1, 0, 1])]:
        card = Card(**COMMON, reading=reading, target=dict(name="t", expr=expression))
        for source in written(frame, tmp_path):
            assert read_prepared(source, card).rows.t.fillna(-1).tolist() == expected * 2, expression
    amount = Card(**COMMON | dict(task="regression"), reading=reading, target=dict(name="t", column="income"))
    for source in written(frame[["id", "income"]], tmp_path):
        assert read_labels(source, amount).t.fillna(-1).tolist() == [30000, -1, 10000] * 2
    for days in (["9999-12-31 00:00:00", "2024-01-01"], [pd.Timestamp("9999-12-31"), pd.Timestamp("2024-01-01")]):
        assert as_times(pd.Series(days), Reading(missing=["9999-12-31"])).isna().tolist() == [True, False]
    seconds = as_times(pd.Series([0.0, np.nan, 1.7e9]), Reading(dates="seconds", missing=["0"]))
    assert seconds.isna().tolist() == [True, True, False]
    assert as_times(pd.Series(["now", "today", "2024-01-01"])).isna().tolist() == [True, True, False]


def test_labels_are_read_as_the_card_says(tmp_path):
    card = Card(**COMMON | dict(task="regression"), reading=dict(decimal=",", thousands="."),
                target=dict(name="price", column="price"))
    (tmp_path/"labels.csv").write_text("id;price\n1;12.500\n2;n/a\n3;980.000\n4;1.250,5\n")
    assert read_labels(tmp_path/"labels.csv", card).price.fillna(-1).tolist() == [12500, -1, 980000, 1250.5]


def test_an_index_described_for_other_rows_is_not_read(tmp_path):
    frame = pd.DataFrame(dict(a=range(50)), index=pd.RangeIndex(1000, 1050, name="id"))
    pq.write_table(pa.Table.from_pandas(frame).slice(10), tmp_path/"x.parquet")
    raw = read_raw(tmp_path/"x.parquet")
    assert list(raw.frame) == ["a"] and "described for other rows" in raw.notes[0]


@pytest.mark.parametrize("names, lines", [
    ("id,review,stars", ["good,5", "bad, very bad", "so so, really", "fine, then", "yes, and no"]),
    ("id,note", ["one, two", "three, four", "five, six"] * 5),
])
def test_long_texts_with_commas_are_no_rows(tmp_path, names, lines):
    text = "\n".join(lines)
    rows = "".join(f'{row},"{text}",5\n' if "stars" in names else f'{row},"{text}"\n' for row in range(5))
    (tmp_path/"x.csv").write_text(f"{names}\n{rows}")
    assert len(read_raw(tmp_path/"x.csv").frame) == 5


@pytest.mark.parametrize("encoding, mark", [("utf-16-be", codecs.BOM_UTF16_BE), ("utf-16-le", codecs.BOM_UTF16_LE),
                                            ("utf-32-be", codecs.BOM_UTF32_BE), ("utf-32-le", codecs.BOM_UTF32_LE)])
@pytest.mark.parametrize("end", ["", "\n"])
def test_wide_texts_of_either_order(tmp_path, encoding, mark, end):
    (tmp_path/"x.csv").write_bytes(mark + f"id,town\n1,Köln\n2,Bonn{end}".encode(encoding))
    raw = read_raw(tmp_path/"x.csv")
    assert raw.frame.town.tolist() == ["Köln", "Bonn"] and not raw.aside


def test_replacement_letters_are_utf_8(tmp_path):
    (tmp_path/"x.csv").write_text("id,town\n1,K\ufffdln\n2,Bonn\n", encoding="utf-8")
    assert read_raw(tmp_path/"x.csv").frame.town[0] == "K\ufffdln"


def test_only_the_files_of_programs_are_passed_over(tmp_path):
    for name in ("_2024-02.csv", "a.csv"): pd.DataFrame(dict(id=[1])).to_csv(tmp_path/name, index=False)
    (tmp_path/"_SUCCESS").touch()
    assert len(read_raw(tmp_path).frame) == 2


def test_units_that_end_alike():
    reading = Reading(units=["g", "kg", "m", "mm"])
    assert numbers(pd.Series(["7 kg", "5mm", "3 m", "2g"]), reading)[0].tolist() == [7, 5, 3, 2]


def test_marks_that_are_codes_are_no_numbers():
    zero = pd.Series([0, 1])
    assert numbers(zero, Reading(missing=["000"]))[0].tolist() == [0, 1]
    minus = Reading(missing=["-999"], decimal=",")
    assert np.isnan(numbers(pd.Series(["-999,0", "1,5"]), minus)[0]).tolist() == [True, False]


def test_ids_of_19_digits_keep_them_behind_a_decimal_point():
    assert as_category(pd.Series(["1234567890123456789.0"])).tolist() == ["1234567890123456789"]


def test_all_odd_cells_of_a_row_are_its_reason():
    frame = pd.DataFrame(dict(id=range(60_000), a=["x", "1", "2"] * 20_000, b=["y", "1", "2", "3"] * 15_000))
    card = Card(**COMMON | dict(numeric=["a", "b"]), target=dict(name="t", expr="true"))
    _, refused = prepare(frame, card)
    assert len(refused) == 30_000 and set(refused.reason) == {"a: not a number", "b: not a number",
                                                              "a: not a number; b: not a number"}


def test_an_index_of_chosen_rows_is_left_out(tmp_path):
    rows = pd.DataFrame(dict(a=range(300), b="x")).sample(100, random_state=1)
    rows.to_csv(tmp_path/"x.csv")
    raw = read_raw(tmp_path/"x.csv")
    assert list(raw.frame) == ["a", "b"] and raw.notes == ["column 1 holds row numbers and is left out"]


def test_a_column_without_any_value_does_not_stop_the_full_comparison():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(dict(x=rng.normal(size=400), y=rng.normal(size=400), empty=np.full(400, np.nan)))
    assert drift_of(frame, frame.sample(300, random_state=1), full=True).verdict["verdict"] in ("pass", "unknown")
