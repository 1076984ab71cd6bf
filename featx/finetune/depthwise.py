"""Mixed precision on a CPU: bfloat16 except for depthwise convolutions.

Dense layers take half the time in bfloat16 on CPUs with instructions for it. But the weight gradients of wide
or strided depthwise convolutions take 4 to 40 times as long in oneDNN (85 ms instead of 20 for 5×5 on 1,152
maps of 7×7 and a batch of 32, torch 2.14), so that mobile networks were slower in mixed precision than in
single precision. These convolutions are about 1 % of the operations, so float32 costs almost no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Float32Depthwise(TorchFunctionMode):
    """Context in which depthwise convolutions run in float32 in spite of autocast."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function."""
        kwargs = kwargs or {}
        if func is not torch.conv2d or not _is_depthwise(*args[:2]):
            return func(*args, **kwargs)
        with torch.autocast(args[0].device.type, enabled=False):
            return func(args[0].float(), *args[1:], **kwargs)


def _is_depthwise(x: Tensor, weight: Tensor) -> bool:
    """Whether each channel has a kernel of its own."""
    return weight.shape[1] == 1 and x.shape[1] == weight.shape[0] > 1
