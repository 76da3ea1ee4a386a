import numpy as np
import pytest

from prefopt.report.series import Series, change, smooth, thin_out, window


def series(values) -> Series:
    return Series(np.arange(1.0, len(values) + 1), np.asarray(values, dtype=float))


def test_change_takes_the_outer_tenths_but_three_lines_at_least():
    moved = change(series([1, 2, 3, 50, 50, 7, 8, 9]))
    assert moved is not None
    assert (moved.start, moved.end) == (2.0, 8.0)
    assert moved.error == pytest.approx((1 / 3 + 1 / 3) ** 0.5)
    assert moved.rose
    assert not moved.fell


def test_change_within_the_scatter_is_no_change():
    moved = change(series([0, 10, 5, 5, 6, 1, 11]))
    assert moved is not None
    assert not moved.rose
    assert not moved.fell


def test_change_leaves_out_what_is_not_finite():
    moved = change(series([np.nan, 4, np.inf, 2]))
    assert moved is not None
    assert (moved.start, moved.end, moved.error) == (4.0, 2.0, 0.0)
    assert change(series([np.nan])) is None
    assert change(None) is None


def test_smooth_is_a_centred_mean():
    values = np.random.default_rng(1).normal(size=100)
    values[[7, 40, 41]] = np.nan
    half = window(100)
    assert half == 4
    expected = [np.nanmean(values[max(0, i - half) : i + half + 1]) for i in range(100)]
    np.testing.assert_allclose(smooth(values), expected, atol=1e-12)


def test_smooth_of_few_values_changes_nothing():
    np.testing.assert_array_equal(smooth(np.array([3.0, 1.0, 2.0])), [3.0, 1.0, 2.0])


def test_smooth_without_a_finite_value_is_nan():
    assert np.isnan(smooth(np.array([np.nan, np.inf]))).all()


def test_thin_out_keeps_peaks_and_gaps():
    values = np.zeros(10_000)
    values[4321] = 9.0
    values[8765] = -9.0
    values[6000:6100] = np.nan
    thin = thin_out(series(values), limit=400)
    assert len(thin.values) <= 400
    assert thin.steps[np.nanargmax(thin.values)] == 4322
    assert thin.steps[np.nanargmin(thin.values)] == 8766
    assert np.isnan(thin.values).any()
    assert (np.diff(thin.steps) > 0).all()


def test_thin_out_leaves_short_series_alone():
    thin = thin_out(series([1, np.inf, 3]))
    np.testing.assert_array_equal(thin.values, [1, np.nan, 3])
