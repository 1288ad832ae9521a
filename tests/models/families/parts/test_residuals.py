"""The shrinking of clean mean squares, worked by hand."""

import pytest
import torch

from vaegis.models.families.parts.residuals import LEAST, MeanSquares, shrunk


def test_each_mean_is_drawn_a_tenth_of_the_way_to_that_of_all():
    assert shrunk(torch.tensor([1.0, 3.0, 8.0])).tolist() == pytest.approx([1.3, 3.1, 7.6])


def test_where_nothing_is_left_over_a_map_can_still_be_divided():
    assert shrunk(torch.zeros(4)).tolist() == pytest.approx([0.1 * LEAST] * 4)


def test_batches_of_any_size_count_sample_by_sample():
    squares = torch.arange(30.0).view(10, 3)
    whole, parts = MeanSquares(torch.ones(3)), MeanSquares(torch.ones(3))
    whole.add(squares)
    for some in squares.split(4):
        parts.add(some)
    assert torch.equal(whole.shrunk(), parts.shrunk())
    assert whole.shrunk().tolist() == pytest.approx([0.9 * m + 0.1 * 14.5 for m in (13.5, 14.5, 15.5)])


def test_missing_values_enter_no_mean():
    squares = torch.tensor([[4.0, 0.0], [2.0, 6.0]])
    gathered = MeanSquares(torch.ones(2))
    gathered.add(squares, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert gathered.shrunk().tolist() == pytest.approx([0.9 * 3 + 0.1 * 4.5, 0.9 * 6 + 0.1 * 4.5])


def test_a_value_that_was_never_observed_takes_its_share_of_the_others():
    gathered = MeanSquares(torch.ones(2))
    gathered.add(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    assert gathered.shrunk().tolist() == pytest.approx([0.9 * 2 + 0.1, 0.1])


def test_a_least_square_is_added_for_every_sample():
    gathered = MeanSquares(torch.ones(2), least=0.5)
    gathered.add(torch.tensor([[1.0, 3.0], [1.0, 3.0]]))
    assert gathered.shrunk().tolist() == pytest.approx([0.9 * 1.5 + 0.1 * 2.5, 0.9 * 3.5 + 0.1 * 2.5])
