import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from size_limit import size_limit
from vaegis.models.errors import Refusal
from vaegis.training.checkpoint import State, load, save

CPU = torch.device("cpu")


def learner():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return model, {"one": torch.optim.AdamW(model.parameters(), lr=0.1)}


def learn(model, optimisers, steps):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimisers["one"].zero_grad()
        model(x).square().mean().backward()
        optimisers["one"].step()


@pytest.fixture
def kept(tmp_path):
    """A learner after three steps, and its checkpoint."""
    model, optimisers = learner()
    learn(model, optimisers, 3)
    best = {k: v.clone() for k, v in model.state_dict().items()}
    average = {"0.weight": torch.randn(4, 3)}
    state = State("key", 3, 1.5, 0.25, 2, 1, [{"step": 3, "total": 0.1, "validate": float("inf")}], "time")
    path = tmp_path / "sub" / "checkpoint.safetensors"
    save(path, state, model, best, optimisers, average)
    return path, state, model, best, optimisers, average


def test_everything_comes_back_bit_for_bit(kept):
    path, state, model, best, optimisers, average = kept
    other, others = learner()
    averaged = {"0.weight": torch.zeros(4, 3)}
    found, held = load(path, "key", other, others, averaged, CPU)
    assert torch.equal(averaged["0.weight"], average["0.weight"])
    assert found == state
    assert {k: v.tolist() for k, v in held.items()} == {k: v.tolist() for k, v in best.items()}
    # The next steps are the same: weights, batch statistics and moments were restored.
    learn(model, optimisers, 2)
    learn(other, others, 2)
    one, two = model.state_dict(), other.state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_it_is_one_file_of_tensors_and_json(kept):
    path = kept[0]
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.safetensors"]
    with safe_open(path, "pt") as data:
        assert json.loads(data.metadata()["state"])["key"] == "key"
        parts = {n.split(".")[0] for n in data.keys()}  # noqa: SIM118 (not a dict)
    assert parts == {"weights", "best", "average", "moments"}


def test_a_first_state_has_no_best_loss_yet(tmp_path):
    model, optimisers = learner()
    save(tmp_path / "c", State("k"), model, {}, optimisers, {})
    found, best = load(tmp_path / "c", "k", *learner(), {}, CPU)
    assert found == State("k")
    assert found.best == float("inf")
    assert best == {}


def test_another_fits_checkpoint_is_refused(kept):
    with pytest.raises(Refusal, match="had other data or options"):
        load(kept[0], "another", *learner(), {}, CPU)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(Refusal, match="no interrupted fit of this command to resume"):
        load(tmp_path / "none.safetensors", "key", *learner(), {}, CPU)


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_torn_file_is_refused(kept, cut):
    path = kept[0]
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(Refusal, match=r"checkpoint\.safetensors cannot be read"):
        load(path, "key", *learner(), {}, CPU)


@pytest.mark.parametrize(
    "metadata", [None, {}, {"state": "{"}, {"state": "[]"}, {"state": '{"key": "key", "luck": 1}'}], ids=str
)
def test_a_file_without_the_loops_state_is_refused(tmp_path, metadata):
    path = tmp_path / "checkpoint.safetensors"
    save_file({"weights.x": torch.zeros(1)}, path, metadata)
    with pytest.raises(Refusal, match="cannot be read"):
        load(path, "key", *learner(), {}, CPU)


def test_weights_of_another_network_are_refused(kept):
    """The key is that of the data and options; a newer version may build another network from them."""
    other = nn.Linear(3, 1)
    with pytest.raises(Refusal, match="cannot be read"):
        load(kept[0], "key", other, {"one": torch.optim.AdamW(other.parameters())}, {}, CPU)


def test_a_checkpoint_without_the_averages_that_are_wanted_is_refused(kept):
    with pytest.raises(Refusal, match="cannot be read"):
        load(kept[0], "key", *learner(), {"2.weight": torch.zeros(1, 4)}, CPU)


def test_a_failed_write_leaves_the_last_whole_one(kept):
    path, state, model, best, optimisers, average = kept
    before = path.read_bytes()
    sentence = r"^The checkpoint \S+ cannot be written: File too large\. Free space there, or set VAEGIS_HOME"
    with size_limit(100), pytest.raises(Refusal, match=sentence):
        save(path, State("key", 4), model, best, optimisers, average)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
