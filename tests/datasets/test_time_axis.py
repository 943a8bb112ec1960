import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from recollect.datasets import infer_season_length
from recollect.datasets.time_axis import parse_time
from recollect.errors import DataError


def steps(start, stop, unit):
    return np.arange(start, stop, dtype=f"datetime64[{unit}]").astype("datetime64[us]")


def month_ends(count):
    return np.arange("1999-02", np.datetime64("1999-02") + count, dtype="datetime64[M]").astype(
        "datetime64[D]"
    ) - np.timedelta64(1, "D")


@pytest.mark.parametrize(
    ("time", "season_length"),
    [
        (steps("1999-01", "2005-01", "M"), 12),
        (month_ends(40), 12),
        (steps("1999-01", "2005-01", "M")[::3], 4),
        (month_ends(40)[::3], 4),
        (steps("2000-02-01", "2000-03-10", "D"), 7),
        (steps("2000-02-28T05", "2000-03-02T05", "h"), 24),
        (steps("2000-01-01", "2001-01-01", "D")[::7], None),
        (steps("2000-01-01T00:00", "2000-01-01T05:00", "m"), None),
        (steps("1999", "2005", "Y"), None),
        (np.delete(steps("1999-01", "2005-01", "M"), 5), None),
        (np.delete(steps("2000-02-01", "2000-03-10", "D"), 5), None),
        # Three days over a turn of the month are days, not months.
        (np.array(["2000-01-31", "2000-02-01", "2000-03-31"], "datetime64[D]"), None),
        (np.array(["2000-01-01", "2000-02-01"], "datetime64[D]"), None),
        (np.arange(1700, 2009), None),
        (None, None),
    ],
)
def test_the_season_is_told_from_the_spacing(time, season_length):
    assert infer_season_length(time) == season_length


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1999", "2000", "2002"], np.array([1999, 2000, 2002])),
        (["1999.0", "2000.0"], np.array([1999, 2000])),
        (["-5", "+3"], np.array([-5, 3])),
        (["9007199254740993"], np.array([9007199254740993])),
        (["1999-12", "2000-01"], np.array(["1999-12-01", "2000-01-01"], "datetime64[us]")),
        (
            [" 2000-01-01 ", "2000-01-01 12:30"],
            np.array(["2000-01-01", "2000-01-01T12:30"], "datetime64[us]"),
        ),
        (
            ["2000-01-01T00:30+01:00", "2000-01-01T00:00Z"],
            np.array(["1999-12-31T23:30", "2000-01-01T00:00"], "datetime64[us]"),
        ),
    ],
)
def test_texts_become_integers_or_instants(texts, expected):
    time = parse_time(np.array(texts, dtype=object), "t")
    assert time.dtype == expected.dtype
    assert_array_equal(time, expected)


@given(st.lists(st.datetimes(), unique=True, min_size=1, max_size=20))
def test_what_isoformat_writes_is_read_back(instants):
    instants.sort()
    texts = np.array([instant.isoformat() for instant in instants], dtype=object)
    assert parse_time(texts, "t").tolist() == instants


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["2000-01-01", "01/02/2000"], "row 2; given: '01/02/2000'; expected: ISO 8601"),
        (["2000-01-01", ""], "row 2; given: no time"),
        (["2000", "2001-01"], "row 2; given: '2001-01'"),
        (["1958.2"], "row 1; given: '1958.2'"),
        (["99999999999999999999"], "row 1"),
        (["0001-01-01T00:00+14:00"], "row 1"),  # of the year 0 in UTC, and of the year 10000
        (["2000-01-01", "9999-12-31T23:00-02:00"], "row 2"),
        (
            ["2000-01-01", "2000-01-03", "2000-01-02"],
            "not sorted: row 3 .*given: 2000-01-02 after 2000-01-03.*sort",
        ),
        (["1", "2", "2"], "repeat: row 3 has the same time as row 2"),
        (["2000-01-01T01:00+01:00", "2000-01-01T00:00Z"], "repeat: row 2"),
    ],
)
def test_a_bad_time_is_named_with_its_row(texts, message):
    with pytest.raises(DataError, match=message):
        parse_time(np.array(texts, dtype=object), "t")
