"""Checkpoints of a run: one safetensors file, its bookkeeping as JSON in the header, written whole.

After each epoch the file holds the weights, the best weights, the moving average and the optimizer's state.
Chance needs no keeping: each epoch seeds its own (see `training`).
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
"""What moves in an optimizer's parameter groups besides the learning rate, which the schedule sets."""


class Checkpoint:
    """The best weights of a run, and the file that it can go on from.

    Parameters
    ----------
    path : Path or None
        The file; None keeps the best weights in memory only.
    module : nn.Module
        What is trained. If the file exists it is put back to where the run was.

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
        """The bookkeeping that was saved, or None if there is none."""
        return self._run

    def load_phase(self, phase: int, optimizer: torch.optim.Optimizer, average: Any) -> None:
        """Put the optimizer and the moving average back, once, if the file was written in this phase."""
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
                if torch.is_tensor(value) and value.shape == parameter.shape:  # norms sum in memory's order
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if average is not None:
            average.module.load_state_dict(_part(self._state, "average"))
        self._run, self._state = None, {}

    def keep_best(self, module: nn.Module, judged: nn.Module | None = None) -> None:
        """Remember the weights; those of `judged` (a moving average, or the head alone) take precedence."""
        self._best = _copy(module.state_dict())
        if judged is None or judged is module:
            return
        found = judged.state_dict()
        if found.keys() == self._best.keys():
            self._best = _copy(found)
        else:  # the head alone was trained, as (dropout, head)
            self._best |= {f"head.{k.removeprefix('1.')}": v for k, v in _copy(found).items()}

    def restore_best(self, module: nn.Module) -> None:
        """Put the remembered weights into the module."""
        if self._best:
            module.load_state_dict(self._best)

    def save(
        self, run: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer, average: Any
    ) -> None:
        """Write the file, whole or not at all."""
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
        numbers = {  # not as tensors: arithmetic with those rounds otherwise
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
                f"{path}: not a checkpoint of this run ({error}); delete it to start afresh."
            ) from error
        self._best = _part(self._state, "best")
        for name in ("best", "best_score"):
            run[name] = tuple(run[name]) if run[name] is not None else None
        self._run = run


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
