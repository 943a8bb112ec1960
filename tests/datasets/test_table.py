import datetime as dt
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_array_equal

from recollect.datasets import read_series
from recollect.errors import DataError


@pytest.fixture
def csv(tmp_path):
    def write(content):
        file = tmp_path / "data.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


def assert_same(first, second):
    assert (first.name, first.season_length) == (second.name, second.season_length)
    assert_array_equal(first.values, second.values)
    assert_array_equal(first.time, second.time)


def times(series):
    assert series.time is not None
    return series.time.tolist()


# What is read.


def test_pandas_polars_csv_and_parquet_agree(tmp_path):
    days = pd.date_range("2024-01-01", periods=10)
    table = {"ds": days, "y": np.linspace(0, 1, 10), "note": list("abcdefghij")}
    pandas_frame = pd.DataFrame(table)
    polars_frame = pl.DataFrame({**table, "ds": days.to_numpy()})
    pandas_frame.to_csv(tmp_path / "d.csv", index=False)
    polars_frame.write_parquet(tmp_path / "d.parquet")
    expected = read_series(pandas_frame)
    assert_array_equal(expected.values, table["y"])
    assert_array_equal(expected.time, days.to_numpy())
    assert expected.season_length == 7
    for data in (polars_frame, tmp_path / "d.csv", str(tmp_path / "d.csv"), tmp_path / "d.parquet"):
        assert_same(read_series(data), expected)
        assert_same(read_series(data, "y", time="ds"), expected)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 4],
        (1.0, 2.0, 4.0),
        np.array([1, 2, 4], np.int32),
        np.array([1, 2, 4], np.float32),
        pd.Series([1, 2, 4]),
        pd.Series([1, 2, 4], dtype="Int64"),
        pl.Series([1, 2, 4]),
        pl.Series(["1", "2", "4"]).cast(pl.Decimal(10, 2)),
        ["1", "2", "4"],
    ],
    ids=lambda values: type(values).__module__.partition(".")[0],
)
def test_one_column_alone_and_its_label(values):
    series = read_series(values, "load")
    assert (series.name, series.time, series.season_length) == ("load", None, None)
    assert series.values.dtype == np.float64
    assert_array_equal(series.values, [1, 2, 4])
    assert read_series(values).name == "y"


def test_a_series_keeps_its_own_name():
    assert read_series(pd.Series([1, 2], name="a")).name == read_series(pl.Series("a", [1, 2])).name == "a"


def test_a_pandas_index_is_the_time_where_it_means_one():
    months = pd.date_range("2000-01", periods=5, freq="MS")
    for index in (months, months.rename("month"), months.to_period().rename("month")):
        for data in (pd.DataFrame({"y": range(5)}, index=index), pd.Series(range(5), index=index, name="y")):
            series = read_series(data)
            assert_array_equal(series.time, months.to_numpy())
            assert series.season_length == 12
    years = pd.DataFrame({"year": [1700.0, 1701.0], "y": [5, 11]}).set_index("year")
    assert times(read_series(years)) == [1700, 1701]
    assert read_series(pd.DataFrame({"y": [1, 2, 3]}, index=[4, 9, 2])).time is None


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC"])
def test_times_with_a_zone_become_utc(zone):
    hours = pd.date_range("2024-10-26 12:00", periods=24, freq="h", tz=zone)
    expected = hours.tz_convert("UTC").tz_localize(None).to_numpy()
    for data in (pd.DataFrame({"time": hours, "y": range(24)}), pd.Series(range(24), index=hours)):
        series = read_series(data)
        assert_array_equal(series.time, expected)
        assert series.season_length == 24


@pytest.mark.parametrize(
    ("header", "time", "name"),
    [
        ("Date,y", "Date", "y"),
        ("y,TIMESTAMP", "TIMESTAMP", "y"),
        ("month,y", "month", "y"),
        ("year,month", "year", "month"),
        ("month,time", "time", "month"),
        (",y", "", "y"),
    ],
)
def test_the_time_column_is_known_by_its_name(csv, header, time, name):
    series = read_series(csv(f"{header}\n1,2\n2,3\n"))
    assert series.name == name
    assert times(series) == ([1, 2] if header.split(",")[0] == time else [2, 3])


def test_the_only_column_of_dates_in_a_frame_is_the_time():
    days = [dt.date(2024, 1, 1), dt.date(2024, 1, 2)]
    assert times(read_series(pl.DataFrame({"y": [1, 2], "when": days}))) == [
        dt.datetime(2024, 1, 1),
        dt.datetime(2024, 1, 2),
    ]
    assert read_series(pl.DataFrame({"y": [1, 2], "from": days, "to": days})).time is None


@pytest.mark.parametrize(
    "content",
    [
        "t,y\n1,2.5\n2,3\n",
        "t;y\r\n1;2.5\r\n2;3",
        "t\ty\r1\t2.5\r2\t3\r",
        "\ufefft,y\n1,2.5\n2,3\n\n\n",
        '"t" , "y"\n1,"2.5"\n\n2, 3 \n'.replace(" , ", ","),
    ],
    ids=["comma", "semicolon", "tab", "bom", "quotes and empty lines"],
)
def test_dialects_of_csv_read_alike(csv, content):
    series = read_series(csv(content), "y", time="t")
    assert_array_equal(series.values, [2.5, 3])
    assert times(series) == [1, 2]


def test_a_file_goes_before_an_embedded_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(read_series("sunspots", "sunspots", time="year")) == 309
    (tmp_path / "sunspots").write_text("y\n1\n2\n")
    assert_array_equal(read_series("sunspots").values, [1, 2])


# Missing values.


def test_fill_linear_and_forward(csv):
    file = csv("y\n1\n\nNA\n4\nnan\n6\n")
    assert_array_equal(read_series(file, fill="linear").values, [1, 2, 3, 4, 5, 6])
    assert_array_equal(read_series(file, fill="forward").values, [1, 1, 1, 4, 4, 6])


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, "", " NA ", "null"])
def test_each_kind_of_missing_value_is_counted_and_placed(missing):
    with pytest.raises(DataError, match=r"'y' has 2 missing values, the first in row 2") as caught:
        read_series([1, missing, 3, missing])
    assert "--fill linear|forward" in str(caught.value)
    assert "fill='linear' or fill='forward'" in str(caught.value)
    assert_array_equal(read_series([1, missing, 3], fill="linear").values, [1, 2, 3])


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_missing_values_in_a_frame(frame):
    data = frame({"y": [1.0, None, 3.0]})
    with pytest.raises(DataError, match="1 missing value, the first in row 2"):
        read_series(data)
    assert_array_equal(read_series(data, fill="forward").values, [1, 1, 3])


@pytest.mark.parametrize(
    ("values", "fill", "message"),
    [
        ([None, None, 1], "forward", "cannot fill the start .*2 rows missing.*remove the rows before row 3"),
        ([None, 1, 2], "linear", "cannot fill the start .*1 row missing"),
        ([1, 2, None], "linear", "cannot fill the end .*remove the rows after row 2, or use --fill forward"),
        ([None, None], "linear", "no values at all"),
        ([1, None], "foward", "did you mean 'forward'"),
        ([1, 2], "zero", "'linear' or 'forward'"),
        ([1, np.inf, None], "linear", "1 infinite value, first in row 2"),
    ],
)
def test_what_cannot_be_filled(values, fill, message):
    with pytest.raises(DataError, match=message):
        read_series(values, fill=fill)
    if fill == "forward":
        assert_array_equal(read_series([1, None, None], fill=fill).values, [1, 1, 1])


# What is refused, each with one sentence.

REFUSED = {
    "empty": ("", "data.csv is empty"),
    "only empty lines": ("\n \n", "data.csv is empty"),
    "NUL bytes": (b"PK\x03\x04\x00\x00", "binary file; given: a NUL byte at position 4"),
    "latin-1": ("y\né\n".encode("latin-1"), "not UTF-8 text; given: byte 0xe9 at position 2"),
    "UTF-16": ("y\n1\n".encode("utf-16"), "UTF-16 text.*save it again as UTF-8"),
    "header only": ("time,y\n", "a header but no rows"),
    "no header": ("1,2\n3,4\n", "no header"),
    "no header but dates": ("2024-01-01,2\n2024-01-02,4\n", "no header"),
    "short row": ("a,y\n1,2\n3\n", "in line 3; given: 2 fields in the header, 1 in that line"),
    "long row": ("a,y\n1,2,3\n", "in line 2; given: 2 fields in the header, 3 in that line"),
    "same name twice": ("y,y\n1,2\n", "2 columns named 'y'"),
    "open quote": ('a,y\n"1,2\n', "cannot be read as CSV near line 2"),
    "text": ("time,y\n1,2\n2,two\n3,x\n", "'y' has something that is not a number in row 2; given: 'two'"),
    "decimal comma": ("time;y\n1;2,5\n", "row 1; given: '2,5'.*write decimals with a point"),
    "infinite": ("y\n1\ninf\n", "infinite value, first in row 2"),
    "two targets": ("time,a,b\n1,2,3\n", "2 columns of numbers besides the time.*'a', 'b'.*--target"),
    "two targets, one misspelt": ("time,a,b\n1,2,3\n2,x,4\n", "2 columns of numbers"),
    "two targets, one with commas": ('time;a;b\n1;2;"3,5"\n', "2 columns of numbers"),
    "no target": ("time,a,b\n1,x,y\n", "no columns of numbers besides the time"),
    "unsorted": ("time,y\n2024-01-02,1\n2024-01-01,2\n", "not sorted: row 2"),
    "duplicate": ("time,y\n2024-01-02,1\n2024-01-02,2\n", "repeat: row 2"),
    "unreadable time": ("time,y\nMonday,1\n", "cannot be read as a time in row 1; given: 'Monday'"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_file_gets_one_sentence(csv, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_series(csv(content))
    error = caught.value
    assert error.expected
    assert error.remedy
    assert "\n" not in str(error)


def test_a_missing_file_suggests_its_neighbour_or_an_embedded_series(csv):
    file = csv("y\n1\n")
    with pytest.raises(DataError, match=r"no such file.*did you mean 'data\.csv'"):
        read_series(file.with_name("dat.csv"))
    with pytest.raises(DataError, match="did you mean 'sunspots'"):
        read_series("sunspot")
    with pytest.raises(DataError, match="is a folder"):
        read_series(file.parent)
    with pytest.raises(DataError, match="cannot be read"):
        read_series("x" * 5000)


def test_a_damaged_parquet_file(tmp_path):
    file = tmp_path / "data.parquet"
    file.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_series(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "vlue"}, "no column 'vlue'; given: target='vlue'; .*did you mean 'value'"),
        ({"time": "tme"}, "no column 'tme'; given: time='tme'; .*did you mean 'time'"),
        ({"target": "value", "time": "value"}, "same column"),
    ],
)
def test_a_wrong_column(arguments, message):
    with pytest.raises(DataError, match=message):
        read_series(pl.DataFrame({"time": [1, 2], "value": [3, 4]}), **arguments)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((3, 2)),
        [[1], [1, 2]],
        {"y": [1]},
        3.0,
        None,
        pl.LazyFrame({"y": [1]}),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pd.DataFrame(),
        pl.DataFrame({"y": []}),
        [],
        [True, False],
        pl.Series([dt.date(2024, 1, 1)]),
        [1, 2 + 1j],
        ["1", "x"],
    ],
    ids=lambda data: type(data).__name__,
)
def test_objects_that_are_not_a_series(data):
    with pytest.raises(DataError) as caught:
        read_series(data)
    assert caught.value.expected
    assert caught.value.remedy


def test_the_package_does_not_import_torch():
    # A process of its own, because another test may have imported torch here.
    program = (
        "import sys, recollect.datasets as d\n"
        "slow = {'torch', 'polars', 'pandas', 'sklearn'} & set(sys.modules)\n"
        "assert not slow, slow\n"
        "d.read_series('sunspots'); d.adding(1, 5, 0); d.digits_rows()\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
