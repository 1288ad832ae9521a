import math

import pytest
import torch
from torch import distributions as law

from vaegis.models.errors import Refusal
from vaegis.models.families.parts.likelihoods import UNSEEN, Bernoulli, ColumnLikelihoods, LocationScale, likelihood_for
from vaegis.models.spec import ImageSpec, VectorSpec

SPEC = VectorSpec(("a", "b", "c", "d"))


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_bernoulli():
    out = 3 * draw(5, 4)
    y = (draw(5, 4) > 0).float()
    assert torch.allclose(Bernoulli().log_prob(y, y, out), law.Bernoulli(logits=out).log_prob(y))
    assert torch.allclose(Bernoulli().mean(out), law.Bernoulli(logits=out).mean)


@pytest.mark.parametrize("laplace", [False, True], ids=["gaussian", "laplace"])
@pytest.mark.parametrize("variance", ["fixed", "feature", "predicted"])
def test_location_and_scale(laplace, variance):
    given = LocationScale((4,), variance, 0.7, laplace)
    given.floor.fill_(0.01)
    mean, raw, y = draw(5, 4), draw(6, 4)[:5], draw(7, 4)[:5]
    spread = torch.full((4,), math.sqrt(0.7**2 + 0.01)).expand(5, 4)
    if variance == "feature":
        with torch.no_grad():
            given.log_variance.copy_(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
        spread = (torch.tensor([-1.0, 0.0, 1.0, 2.0]).exp() + 0.01).sqrt().expand(5, 4)
    if variance == "predicted":
        spread = (torch.nn.functional.softplus(raw) + 0.01).sqrt()
    out = torch.cat([mean, raw], 1) if variance == "predicted" else mean
    # Both have the stated variance: that of a Laplace distribution is 2 b^2.
    expected = law.Laplace(mean, spread / math.sqrt(2)) if laplace else law.Normal(mean, spread)
    assert torch.allclose(expected.variance, spread.square())
    assert torch.allclose(given.log_prob(y, y, out), expected.log_prob(y), atol=1e-5)
    assert torch.equal(given.mean(out), mean)
    assert torch.allclose(given.error(y, y, out), (y - mean).square())


def test_images_may_have_a_scale_per_value():
    given = LocationScale((2, 3, 3), "feature", 1.0, False)
    y, mean = draw(5, 2, 3, 3), draw(6, 2, 3, 3)[:5]
    expected = law.Normal(mean, math.sqrt(1.0001)).log_prob(y)
    assert torch.allclose(given.log_prob(y, y, mean), expected, atol=1e-5)
    predicted = LocationScale((2, 3, 3), "predicted", 1.0, False)
    assert torch.equal(predicted.mean(torch.cat([mean, y], 1)), mean)


def test_a_column_of_counts():
    table = likelihood_for(SPEC, (4,), {"": "gaussian", "b": "poisson"}, "fixed", 1.0)
    assert isinstance(table, ColumnLikelihoods)
    counts = torch.tensor([0.0, 1.0, 2.0, 7.0, 8.0, 9.0, 40.0, 1000.0])
    rate = torch.tensor([0.1, 1.0, 5.0, 6.0, 8.0, 20.0, 30.0, 1100.0])
    x = draw(8, 4)
    x[:, 1] = counts
    out = draw(8, 4)  # three plain columns first, then b
    out[:, 3] = rate.log()
    found = table.log_prob(x, x, out)
    assert torch.allclose(found[:, 1], law.Poisson(rate).log_prob(counts), rtol=1e-4, atol=1e-4)
    plain = law.Normal(out[:, :3], math.sqrt(1.0001)).log_prob(x[:, [0, 2, 3]])
    assert torch.allclose(found[:, [0, 2, 3]], plain, atol=1e-5)
    table.centre[1], table.scale[1] = 3.0, 2.0
    assert torch.allclose(table.mean(out)[:, 1], (rate - 3.0) / 2.0, rtol=1e-5)


def test_a_column_of_codes():
    table = likelihood_for(SPEC, (4,), {"c": "categorical:3"}, "fixed", 1.0)
    assert table.total == 3 + 3
    logits, codes = draw(6, 3), torch.tensor([0.0, 1.0, 2.0, 2.0, 5.0, 0.5])
    x = draw(6, 4)
    x[:, 2] = codes
    out = torch.cat([draw(7, 3)[:6], logits], 1)
    found = table.log_prob(x, x, out)[:, 2]
    expected = law.Categorical(logits=logits[:4]).log_prob(codes[:4])
    assert torch.allclose(found[:4], expected, atol=1e-6)
    assert (found[4:] == UNSEEN).all()
    # The error of a code is 1 - p(code), not a distance between codes.
    error = table.error(x, x, out)[:, 2]
    assert torch.allclose(error[:4], 1 - expected.exp(), atol=1e-6)
    assert (error[4:] == 1.0).all()
    assert torch.equal(table.mean(out)[:, 2], logits.argmax(1).float())


def test_mixed_columns_keep_their_places():
    named = {"": "laplace", "a": "categorical:2", "d": "poisson"}
    table = likelihood_for(SPEC, (4,), named, "predicted", 1.0)
    assert table.total == 2 * 2 + 2 + 1
    x = torch.tensor([[1.0, 0.3, -0.4, 5.0], [0.0, -2.0, 0.1, 0.0]])
    out = draw(2, 7)
    mean, raw, logits, rate = out[:, :2], out[:, 2:4], out[:, 4:6], out[:, 6].exp()
    scale = ((torch.nn.functional.softplus(raw) + 1e-4) / 2).sqrt()
    expected = torch.stack(
        [
            law.Categorical(logits=logits).log_prob(x[:, 0]),
            *law.Laplace(mean, scale).log_prob(x[:, 1:3]).unbind(1),
            law.Poisson(rate).log_prob(x[:, 3]),
        ],
        dim=1,
    )
    assert torch.allclose(table.log_prob(x, x, out), expected, atol=1e-5)


def test_a_table_of_nothing_but_special_columns():
    spec = VectorSpec(("n", "k"))
    table = likelihood_for(spec, (2,), {"n": "poisson", "k": "categorical:2"}, "feature", 1.0)
    x, out = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 0.2, 0.5]])
    expected = law.Poisson(math.e).log_prob(torch.tensor(3.0)) + law.Categorical(logits=out[0, 1:]).log_prob(
        torch.tensor(1)
    )
    assert table.log_prob(x, x, out).sum().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("poisson", [0.0, 1.5], "'b' holds 1.5; likelihood poisson needs counts"),
        ("poisson", [-1.0, 2.0], "'b' holds -1;"),
        ("categorical:3", [0.0, 3.0], "holds 3; likelihood categorical:3 needs codes 0 to 2"),
        ("categorical:3", [0.5, 1.0], "holds 0.5;"),
    ],
)
def test_values_that_cannot_be_such_are_named(kind, values, said):
    table = likelihood_for(SPEC, (4,), {"b": kind}, "fixed", 1.0)
    x = torch.zeros(2, 4)
    x[:, 1] = torch.tensor(values)
    with pytest.raises(Refusal, match=said):
        table.check(x)
    x[:, 1] = torch.tensor([float("nan"), 2.0])  # missing values may be anything
    table.check(x)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("gauss", "Likelihood 'gauss' .*choose bernoulli, gaussian, laplace"),
        ("poisson", "set per column"),
        ({"e": "poisson"}, "no column 'e'; the columns are a, b, c, d"),
        ({"a": "gaussian"}, "'gaussian' of column a is unknown; choose poisson or categorical:K"),
        ({"a": "categorical"}, "write categorical:5"),
        ({"a": "categorical:1"}, "write categorical:5"),
        ({"": "poisson", "a": "poisson"}, "'poisson' is not one for every value"),
    ],
)
def test_unknown_likelihoods_are_refused(named, said):
    with pytest.raises(Refusal, match=said):
        likelihood_for(SPEC, (4,), named, "fixed", 1.0)


def test_options_of_likelihoods_are_checked():
    with pytest.raises(Refusal, match="Variance 'free' is unknown; choose fixed, feature, predicted"):
        likelihood_for(SPEC, (4,), "gaussian", "free", 1.0)
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(Refusal, match="standard deviation must be above 0"):
            likelihood_for(SPEC, (4,), "gaussian", "fixed", sigma)
    with pytest.raises(Refusal, match="needs a table; the input is image"):
        likelihood_for(ImageSpec(16, 16, 1), (1, 16, 16), {"a": "poisson"}, "fixed", 1.0)
