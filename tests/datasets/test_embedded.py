import hashlib
from importlib import resources

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from recollect import datasets
from recollect.errors import DataError


def test_sunspots_are_the_published_ones():
    series = datasets.load("sunspots")
    assert len(series) == 309
    assert series.time is not None
    assert_array_equal(series.time, np.arange(1700, 2009))
    assert series.values.max() == 190.2
    assert series.time[series.values.argmax()] == 1957
    assert series.values.sum() == pytest.approx(15373.4)
    assert (series.name, series.season_length) == ("sunspots", 11)


def test_co2_is_monthly_means_of_the_weekly_samples():
    series = datasets.load("co2_monthly")
    assert series.time is not None
    months = series.time.astype("datetime64[M]")
    assert_array_equal(months, np.arange("1958-03", "2002-01", dtype="datetime64[M]"))
    assert_array_equal(series.time, months)  # each on the first of its month
    value = dict(zip(months.astype(str), series.values, strict=True))
    # May 1958 has three samples: 316.9, 317.5 and 317.9.
    assert value["1958-05"] == pytest.approx((316.9 + 317.5 + 317.9) / 3, abs=5e-4)
    # June 1958 and February to April 1964 have none.
    assert value["1958-06"] == pytest.approx((value["1958-05"] + value["1958-07"]) / 2, abs=1e-3)
    gap = [value[f"1964-0{month}"] for month in range(1, 6)]
    assert gap == pytest.approx(np.linspace(gap[0], gap[-1], 5), abs=1e-3)
    assert gap[0] == pytest.approx((319.0 + 319.4 + 319.8) / 3, abs=5e-4)
    assert (series.name, series.season_length) == ("co2", 12)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("co2_monthly", "f7785ba26c138029c25ab615069321d6be95f6c97ba554ce15c0a8f93aeccf81"),
        ("sunspots", "a7459ac790a1e40cf4b78b44fdf8248c9a0514ed672ec42cc555f4e8ddcbfd1b"),
    ],
)
def test_no_byte_of_the_data_has_changed(name, digest, tmp_path):
    file = datasets.write(name, tmp_path / "copy.csv")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("name", datasets.names())
def test_every_series_has_its_note_and_reads_alike_by_every_way(name, tmp_path):
    note = resources.files("recollect.datasets").joinpath("data", f"{name}.md").read_text(encoding="utf-8")
    assert "public domain" in note
    assert "transformation" in note.lower()

    loaded = datasets.load(name)
    assert loaded.values.dtype == np.float64
    assert np.isfinite(loaded.values).all()
    by_name = datasets.read_series(name)
    by_file = datasets.read_series(datasets.write(name, tmp_path))
    for series in (by_name, by_file):
        assert series.name == loaded.name
        assert_array_equal(series.values, loaded.values)
        assert_array_equal(series.time, loaded.time)
    assert by_name.season_length == loaded.season_length
    assert by_name.source == loaded.source


def test_names_are_sorted_and_a_wrong_one_gets_the_nearest():
    assert datasets.names() == ("co2_monthly", "sunspots") == tuple(sorted(datasets.names()))
    with pytest.raises(DataError, match="did you mean 'sunspots'"):
        datasets.load("sunspot")


def test_write_refuses_to_overwrite_until_told(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("mine")
    with pytest.raises(DataError, match="overwrite=True"):
        datasets.write("sunspots", file)
    assert file.read_text() == "mine"
    assert datasets.write("sunspots", file, overwrite=True) == file
    assert file.read_text().startswith("year,sunspots\n1700,5.0\n")


def test_write_into_a_folder_and_into_one_that_is_missing(tmp_path):
    assert datasets.write("sunspots", tmp_path) == tmp_path / "sunspots.csv"
    with pytest.raises(DataError, match="create the folder"):
        datasets.write("sunspots", tmp_path / "missing" / "sunspots.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["sunspots.csv"]


def test_digits_are_rows_of_images():
    X, y = datasets.digits_rows()
    assert (X.shape, X.dtype) == ((1797, 8, 8), np.float32)
    assert (y.shape, y.dtype) == ((1797,), np.int64)
    assert (X.min(), X.max()) == (0, 1)
    # The first image is a zero: its top row is 0 0 5 13 9 1 0 0 sixteenths.
    assert y[0] == 0
    assert_array_equal(X[0, 0] * 16, [0, 0, 5, 13, 9, 1, 0, 0])
    assert_array_equal(np.bincount(y), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
