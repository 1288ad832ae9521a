"""Dialects of csv: read as told, found by themselves where they are certain, else refused with the option."""

import codecs
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vaegis.models.errors import Refusal
from vaegis.models.inputs import blocks, from_files
from vaegis.models.sources import SourceOptions, open_source
from vaegis.models.sources.tables import Roles, open_table, roles
from vaegis.models.spec import VectorSpec

FLOW = [30.069, 30.5, 1006.9, -2.25, 12.125, 7.0]
TEMP = [60.472, 60.476, 60.556, 0.44, 60.375, 61.0]


def text(sep: str = ",", number=str, head: str = "", header: str | None = None, below: str = "") -> str:
    names = header or sep.join(("timestamp", "flow", "temp"))
    rows = [
        sep.join((f"2026-01-01 22:{i:02d}:00", number(a), number(b)))
        for i, (a, b) in enumerate(zip(FLOW, TEMP, strict=True))
    ]
    return head + "\n".join([names, *([below] if below else []), *rows]) + "\n"


def comma(value: float) -> str:
    return str(value).replace(".", ",")


def english(value: float) -> str:
    return f'"{value:,}"'


def german(value: float) -> str:
    return f"{value:,}".translate(str.maketrans(".,", ",."))


def read(content: str | bytes, **options) -> tuple[np.ndarray, Roles]:
    data = content if isinstance(content, bytes) else content.encode()
    table = open_table("t.csv", data, SourceOptions(**options))
    role = roles(table, SourceOptions(**options))
    whole = pa.Table.from_batches(table.batches(role.features, role.timestamp))
    return np.array([whole[name].to_pylist() for name in role.features], float), role


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (text(";", comma), "--decimal ,"),
        (text("\t", comma), "--decimal ,"),
        (text(",", lambda v: f'"{comma(v)}"'), "--decimal ,"),
        (text(",", english), "--decimal . --thousands ,"),
        (text(";", german), "--decimal , --thousands ."),
        (text(";", lambda v: f"{v:,}".replace(",", " ")), "--thousands space"),
        (text(";", lambda v: f"{v:,}".replace(",", "\u202f").replace(".", ",")), "--decimal , --thousands space"),
        (text(";", lambda v: f"{v:,}".replace(",", "'")), '--thousands "\'"'),
        (text(";", head="sep=;\n"), "';' separates"),
        (text(";", comma, head='"sep=;"\n'), "--decimal ,"),
        (text(head="# exported\n# line 4, hall 2\n"), "comments"),
        (text(below="s,l/min,degC"), "(s, l/min, degC)"),
        (text(";", comma, below="[s];[l/min];[°C]"), "units"),
        (text(head="# by a logger\n", below=",l/min,degC"), "units"),
        (codecs.BOM_UTF16_LE + text("\t").encode("utf-16-le"), "UTF-16"),
        (codecs.BOM_UTF16_BE + text(";", comma).encode("utf-16-be"), "--decimal ,"),
        (text().encode("utf-32"), "UTF-32"),
    ],
)
def test_a_certain_dialect_is_read_and_noted(content, note):
    values, role = read(content)
    assert role.features == ("flow", "temp")
    assert role.timestamp == "timestamp"
    np.testing.assert_array_equal(values, [FLOW, TEMP])
    assert any(note in sentence for sentence in role.notes), role.notes


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (text(";", comma), {"decimal": ","}),
        (text(";", german), {"thousands": "."}),
        (text(",", english), {"thousands": ","}),
        (text(head="% by hand\n").replace("2026-01-01 22:03", "%\n2026-01-01 22:03"), {"comment": "%"}),
        (text(head="Exported by X\nLine 4\n"), {"skip": 2}),
        (text(below="s,l/min,degC"), {"skip_after_header": 1}),
        (text(header="time,flow,temp").encode("utf-16-le"), {"encoding": "utf-16-le"}),
        (text(header="Zeit ä,flow,temp").encode("latin-1"), {"encoding": "latin-1", "timestamp": "Zeit ä"}),
    ],
)
def test_a_dialect_is_read_as_the_options_say(content, options):
    values, role = read(content, **options)
    np.testing.assert_array_equal(values, [FLOW, TEMP])
    assert [n for n in role.notes if "taken as the timestamp" not in n] == []


def test_plain_csv_has_no_note_on_its_dialect():
    values, role = read(text())
    np.testing.assert_array_equal(values, [FLOW, TEMP])
    assert role.notes == ("Column 'timestamp' is taken as the timestamp.",)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("a;b\n30,069;60,472\n30,264;60,476\n", r"30\.069 \(--decimal ,\) or 30069 \(--decimal \. --thousands ,\)"),
        ("a;b\n992;1.5\n999;1.5\n1.009;1.5\n1.010;1.5\n", r"'1\.009' beside '992'.*--thousands \."),
        (text(head="Exported by X\nLine 4\n"), r"2 lines above its header \('Exported by X'\).*--skip 2"),
        (text().encode("utf-16-le"), r"--encoding utf-16-le"),
        (text(header="Temp °C,flow,temp").encode("latin-1"), r"not UTF-8.*--encoding"),
        (b"\x00\x01\x02\x03" * 9, r"neither csv text nor Parquet"),
    ],
)
def test_an_uncertain_dialect_is_refused_with_the_option(content, match):
    with pytest.raises(Refusal, match=match):
        read(content)


def test_a_point_is_decimal_where_the_option_says_so():
    values, _ = read("a;b\n992;1.5\n999;1.5\n1.009;1.5\n1.010;1.5\n", decimal=".")
    np.testing.assert_array_equal(values[0], [992, 999, 1.009, 1.01])


def test_dates_with_points_settle_that_a_comma_is_decimal():
    values, _ = read("Zeit;a\n01.01.2026 22:00:00;30,069\n01.01.2026 22:01:00;30,264\n", timestamp="Zeit")
    np.testing.assert_array_equal(values, [[30.069, 30.264]])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"decimal": ";"}, "--decimal ;"),
        ({"thousands": "x"}, "--thousands 'x'"),
        ({"decimal": ",", "thousands": ","}, "must differ"),
        ({"encoding": "klingon"}, "--encoding klingon is unknown"),
        ({"encoding": "utf-16"}, "UTF-16"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, match):
    with pytest.raises(Refusal, match=match):
        read(text(), **options)


def test_thousands_that_are_not_by_three_are_refused_with_the_cell():
    with pytest.raises(Refusal, match=r"'12\.5'"):
        read("a;b\n1.000;1\n12.5;1\n", thousands=".", columns=("a",))


def test_a_first_value_that_fails_is_no_row_of_units():
    table = open_table("t.csv", text().replace("30.069", "error").encode())
    assert roles(table, SourceOptions()).features == ("flow", "temp")
    (rows,) = table.pieces(("flow", "temp"))
    assert rows.bad == {(0, "flow"): "error"}
    assert rows.batch["flow"].to_pylist()[:2] == [None, 30.5]


def test_a_header_that_begins_with_a_hash_stays_the_header():
    values, role = read("# flow,temp\n1,2\n3,4\n")
    assert role.features == ("# flow", "temp")
    np.testing.assert_array_equal(values, [[1, 3], [2, 4]])


def test_comments_and_encodings_hold_past_the_first_block(tmp_path):
    rows = 120_000
    lines = [f"{i},5;ä" for i in range(rows)]
    lines[70_000:70_000] = ["# pause", "# further"]
    path = tmp_path / "t.csv"
    path.write_bytes(("# ä\na;b\n" + "\n".join(lines) + "\n").encode("utf-16"))
    table = open_source(path, SourceOptions()).open("t.csv")
    values = np.concatenate([batch.column(0).to_numpy() for batch in table.batches(["a"])])
    np.testing.assert_array_equal(values, np.arange(rows) + 0.5)


def test_fit_score_and_upload_read_the_same_values(tmp_path: Path):
    content = text(";", comma, below="s;l/min;°C").encode("utf-16")
    (tmp_path / "t.csv").write_bytes(content)
    spec = VectorSpec(("flow", "temp"))
    (scored,) = blocks(open_source(tmp_path / "t.csv", SourceOptions(kind="vector")), spec)
    sent = from_files(spec, [("t.csv", content)])
    np.testing.assert_array_equal(np.asarray(scored.parts), np.array([FLOW, TEMP], np.asarray(sent.parts).dtype).T)
    np.testing.assert_array_equal(np.asarray(scored.parts), np.asarray(sent.parts))
    with pytest.raises(Refusal, match=r"--decimal ,"):
        from_files(VectorSpec(("a", "b")), [("t.csv", b"a;b\n30,069;60,472\n")])


@pytest.mark.parametrize("first", ["01.01.2026 22:00:00", "2026/01/01 22:00", "2026-01-01T22:00:00Z"])
def test_the_one_column_of_dates_and_times_is_the_timestamp_whatever_its_name(first):
    values, role = read(f"Zeit;a\n{first};30,5\n{first};30,264\n")
    assert role.timestamp == "Zeit"
    assert "Column 'Zeit' is taken as the timestamp." in role.notes
    np.testing.assert_array_equal(values, [[30.5, 30.264]])


@pytest.mark.parametrize("row", ["2026-01-01 22:00:00;b;1", "lot 7;1;1"])
def test_other_text_is_no_timestamp(row):
    with pytest.raises(Refusal, match="not numeric"):
        read(f"when;what;a\n{row}\n{row}\n")
