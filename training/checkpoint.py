"""A fit's state on disk, as safetensors: weights, best and averaged ones, optimiser moments and the loop's own numbers.

Nothing is pickled: a checkpoint is tensors and one JSON object. It is written aside, synced and renamed, so that a
kill at any moment leaves the last whole one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as tensor_files
from torch import Tensor, nn
from torch.optim import Optimizer

from vaegis.models.errors import Refusal
from vaegis.models.outputs.atomic import write_bytes, writing


@dataclass
class State:
    """Where the loop stands."""

    key: str  # of the fit: data, family, arguments, seed, steps; another fit's checkpoint is not resumed
    step: int = 0
    seconds: float = 0.0
    best: float = float("inf")  # validation loss
    best_step: int = 0
    waited: int = 0  # epochs since it improved
    history: list[dict[str, float]] | None = None  # a row per epoch
    stopped: str = ""  # why the fit ended; empty while it goes on


def save(
    path: Path,
    state: State,
    family: nn.Module,
    best: dict[str, Tensor],
    optimisers: dict[str, Optimizer],
    average: dict[str, Tensor],
) -> None:
    """Writes the checkpoint. The seed and the step determine every random draw, so no generator state is needed.

    Raises:
        Refusal: the disk is full, the folder cannot be written.
    """
    tensors = {f"weights.{k}": v for k, v in family.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in best.items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    for player, optimiser in optimisers.items():
        for i, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"moments.{player}.{i}.{k}": v for k, v in moments.items()}
    # A copy each: safetensors refuses tensors that share memory.
    copies = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    remedy = "Free space there, or set VAEGIS_HOME to a folder that can be written."
    with writing(f"The checkpoint {path}", remedy):
        write_bytes(path, tensor_files.save(copies, {"state": _json(state)}))


def load(
    path: Path,
    key: str,
    family: nn.Module,
    optimisers: dict[str, Optimizer],
    average: dict[str, Tensor],
    device: torch.device,
) -> tuple[State, dict[str, Tensor]]:
    """Restores a fit into the family, its averaged weights and the optimisers; returns the loop's state and the best
    weights.

    Raises:
        Refusal: no checkpoint of this very fit.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as data:
            state = State(**json.loads(data.metadata()["state"]))
            tensors = {name: data.get_tensor(name) for name in data.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise Refusal("There is no interrupted fit of this command to resume; run it without --resume.") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Refusal(f"The checkpoint {path.name} cannot be read ({error}); run without --resume.") from error
    if state.key != key:
        raise Refusal("The interrupted fit had other data or options; run without --resume to start anew.")
    state.best = float(state.best)
    try:
        family.load_state_dict(_under(tensors, "weights."))
        for name, value in average.items():
            value.copy_(tensors[f"average.{name}"])
    except (RuntimeError, KeyError) as error:  # the same command, but a version that builds another network from it
        raise Refusal(f"The checkpoint {path.name} cannot be read (other weights); run without --resume.") from error
    for player, optimiser in optimisers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(tensors, f"moments.{player}.").items():
            i, _, field = name.partition(".")
            moments.setdefault(int(i), {})[field] = tensor
        optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return state, _under(tensors, "best.")


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _json(state: State) -> str:
    return json.dumps(
        {k: str(v) if isinstance(v, float) and v == float("inf") else v for k, v in asdict(state).items()}
    )
