"""Operations whose bits may differ from one run to the next on a CUDA device.

There threads add into the same number in the order in which they come, and a sum of floats depends on
its order. The list is that of `torch.use_deterministic_algorithms`, with the backward passes that torch's
compiler makes such sums of, and those of fused attention. It goes by the operation: a `scatter_add` that
meets every place once repeats its bits and is named all the same. Random numbers of a global generator
are no concern here: under `vmap` they raise.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# by the first part of aten's name, in-place forms and all overloads with it
UNORDERED = (
    "index_put",
    "_index_put_impl",
    "_unsafe_index_put",
    "put",
    "scatter_add",
    "scatter_reduce",
    "scatter",
    "index_add",
    "index_copy",
    "index_reduce",
    "segment_reduce",
    "embedding_dense_backward",
    "embedding_backward",
    "_embedding_bag",
    "histc",
    "bincount",
    "kthvalue",
    "median",
    "nanmedian",
    "max_unpool2d",
    "max_unpool3d",
    "nll_loss2d_forward",
    "nll_loss2d_backward",
    "_ctc_loss_backward",
    "convolution",
    "convolution_backward",
    "avg_pool3d_backward",
    "max_pool3d_with_indices_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    *(f"reflection_pad{n}d_backward" for n in (1, 2, 3)),
    *(f"replication_pad{n}d_backward" for n in (1, 2, 3)),
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward",
    "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_efficient_attention_backward",
    "_scaled_dot_product_cudnn_attention_backward",
)
# of whole numbers the order does not matter
UNORDERED_FLOATS = ("cumsum", "cumprod", "logcumsumexp")


def unrepeatable(run: Callable[..., Any], *args: Any) -> list[str]:
    """Names of the operations of `run(*args)`, each once, whose bits may differ on a CUDA device.

    Runs it once, where its tensors are. What it does under `vmap` and `grad` is seen too.
    """
    with _Watch() as watch:
        run(*args)
    return list(watch.found)


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        name = name.removesuffix("_")
        if namespace == "aten" and (
            name in UNORDERED or (name in UNORDERED_FLOATS and _has_floats(result))
        ):
            self.found[name] = None
        return result


def _has_floats(tree: Any) -> bool:
    return any(
        x.is_floating_point() or x.is_complex()
        for x in tree_leaves(tree)
        if isinstance(x, torch.Tensor)
    )
