"""The numbers of a report, worked out by hand, and how a person reads them."""

import math

import numpy as np
import pytest

from vaegis.models.calibration import calibrate
from vaegis.training.report.contents import plain
from vaegis.training.report.judgement import number, percent
from vaegis.training.report.numbers import bits_per_dimension, false_alarm_interval


def test_bits_per_dimension_by_hand():
    # 4 values of 3 bits each under the normalised density, and a scale of 4 = 2 bits that each was divided by.
    assert bits_per_dimension(4 * 3 * math.log(2), 4 * math.log(4), 4) == pytest.approx(5.0)
    assert bits_per_dimension(1.0, None, 4) is None


def test_bits_per_dimension_of_uniform_noise_is_its_depth():
    # A density of 1/256 per grey value: y = x / 256 has density 1, so 0 nats, and the log-Jacobian is D log 256.
    assert bits_per_dimension(0.0, 100 * math.log(256), 100) == pytest.approx(8.0)


def test_false_alarm_interval_by_hand():
    # At alpha = 1 / (n + 1) the rate is Beta(1, n): its quantile q is 1 - (1 - q)^(1/n).
    calibration = calibrate({"score": np.arange(99.0)}, None, None, (0.0, 1.0))
    low, high = false_alarm_interval(calibration, 0.01)
    assert low == pytest.approx(1 - 0.995 ** (1 / 99))
    assert high == pytest.approx(1 - 0.005 ** (1 / 99))


def test_plain_numbers():
    given = {"a": np.float32(1.5), "b": [np.int64(2), math.nan, np.inf], "c": np.array([True]), 4: ("x", None)}
    assert plain(given) == {"a": 1.5, "b": [2, None, None], "c": [True], "4": ["x", None]}


def test_a_number_that_is_none_or_not_finite_is_a_dash():
    assert [number(v) for v in (1.23456, None, math.nan, math.inf)] == ["1.235", "–", "–", "–"]


def test_percent_keeps_two_digits():
    assert [percent(p) for p in (0.01, 0.05, 0.000512, 0.1, 1.0)] == ["1 %", "5 %", "0.051 %", "10 %", "100 %"]
