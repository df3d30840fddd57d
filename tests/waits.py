"""What must not happen from forward to backward."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "unique_dim", "is_nonzero"}


class NoWaits(TorchDispatchMode):
    """Forbids every operation at which the host would wait for a GPU, or whose shape depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = [x for x in args[1] if x is not None and x.dtype == torch.bool] if name.startswith("index") else []
        assert name not in WAITS and not masks, name
        return func(*args, **(kwargs or {}))
