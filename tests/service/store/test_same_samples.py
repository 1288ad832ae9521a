"""Whether two versions read samples alike, where their clean data have a step in time."""

from dataclasses import replace

import pytest

from vaegis.models.spec import SeriesSpec
from vaegis.service.store.servings import same_samples

SPEC = SeriesSpec(("flow",), 8, timestamp="timestamp")


@pytest.mark.parametrize(
    ("ours", "theirs", "same"), [(None, None, True), (None, 60.0, True), (60.0, 60.02, True), (60.0, 120.0, False)]
)
def test_a_measured_step_may_differ_a_little_or_be_unknown(ours, theirs, same):
    assert same_samples(replace(SPEC, step=ours), replace(SPEC, step=theirs)) is same
    assert same_samples(replace(SPEC, step=theirs), replace(SPEC, step=ours)) is same
    assert not same_samples(replace(SPEC, step=ours), replace(SPEC, window=9, step=theirs))
