"""Checkpoints of a training: one safetensors file, with the state of the run as JSON in its header.

After each epoch the file is replaced. It contains the weights, the best weights, the moving average and the
state of the optimizer. There is no random state, since each epoch sets its own seed (see `training`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from featx.exceptions import ModelFileError
from featx.files import atomic_write

FORMAT = "2"
COUNTERS = ("step",)
"""Values of an optimizer's parameter groups that change, besides the learning rate of the schedule."""


class Checkpoint:
    """The best weights of a training, and the file from which it resumes.

    Parameters
    ----------
    path : Path or None
        None keeps the best weights in memory only.
    module : nn.Module
        The trained module. If the file exists, its weights are loaded into the module.

    Raises
    ------
    ModelFileError
        If the file is damaged, of another format or of another network.
    """

    def __init__(self, path: Path | None, module: nn.Module) -> None:
        self.path = path
        self._best: dict[str, Tensor] = {}
        self._run: dict[str, Any] | None = None
        self._state: dict[str, Tensor] = {}
        self._numbers: dict[str, Any] = {}
        if path is not None and path.exists():
            self._open(path, module)

    def load_run(self) -> dict[str, Any] | None:
        """Return the saved state of the run, or None."""
        return self._run

    def load_phase(self, phase: int, optimizer: torch.optim.Optimizer, average: Any) -> None:
        """Restore the optimizer and the moving average, once, if the file was written in this phase."""
        if self._run is None or self._run["phase"] != phase or not self._run["epoch"]:
            return
        state: dict[int, dict[str, Any]] = {}
        for name, value in {**_part(self._state, "optimizer"), **self._numbers["state"]}.items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        fresh = optimizer.state_dict()["param_groups"]
        groups = [one | kept for one, kept in zip(fresh, self._numbers["groups"], strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                if (
                    torch.is_tensor(value) and value.shape == parameter.shape
                ):  # keep the memory format: it decides the order of sums
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if average is not None:
            average.module.load_state_dict(_part(self._state, "average"))
        self._run, self._state = None, {}

    def keep_best(self, module: nn.Module, validated: nn.Module | None = None) -> None:
        """Copy the weights; those of `validated` (a moving average, or the head alone) take precedence."""
        self._best = _copy(module.state_dict())
        if validated is None or validated is module:
            return
        found = validated.state_dict()
        if found.keys() == self._best.keys():
            self._best = _copy(found)
        else:  # the head alone was trained, as (dropout, head)
            self._best |= {f"head.{k.removeprefix('1.')}": v for k, v in _copy(found).items()}

    def restore_best(self, module: nn.Module) -> None:
        """Load the best weights into the module."""
        if self._best:
            module.load_state_dict(self._best)

    def save(
        self, run: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer, average: Any
    ) -> None:
        """Replace the file atomically."""
        if self.path is None:
            return
        tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self._best.items()}
        if average is not None:
            tensors |= {f"average.{k}": v for k, v in average.module.state_dict().items()}
        state = {
            f"{number}.{name}": value
            for number, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        tensors |= {f"optimizer.{name}": value for name, value in state.items() if torch.is_tensor(value)}
        numbers = {  # not as tensors: arithmetic with tensors rounds differently
            "state": {name: value for name, value in state.items() if not torch.is_tensor(value)},
            "groups": [
                {name: float(group[name]) for name in COUNTERS if name in group}
                for group in optimizer.param_groups
            ],
        }
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = {"format": FORMAT, "run": json.dumps(run), "numbers": json.dumps(numbers)}
        atomic_write(self.path, save(plain, header))

    def _open(self, path: Path, module: nn.Module) -> None:
        try:
            data = path.read_bytes()
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}, not {FORMAT}")
            self._state = load(data)
            run, self._numbers = json.loads(header["run"]), json.loads(header["numbers"])
            module.load_state_dict(_part(self._state, "module"))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelFileError(
                f"{path}: not a checkpoint of this run ({error}); delete it to start again."
            ) from error
        self._best = _part(self._state, "best")
        self._run = run


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
