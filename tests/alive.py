"""Memory of tensors, on any device, `meta` included."""

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside it and alive at once: `most`."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._bytes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented  # of a split tensor, what is done with this rank's part comes here again
        out = func(*args, **(kwargs or {}))
        given = {StorageWeakRef(each.untyped_storage()) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        made = [each.untyped_storage() for each in tree_leaves(out) if type(each) is torch.Tensor]
        self._bytes |= {ref: each.nbytes() for each in made if (ref := StorageWeakRef(each)) not in given}
        self._bytes = {ref: count for ref, count in self._bytes.items() if not ref.expired()}
        self.most = max(self.most, sum(self._bytes.values()))
        return out
