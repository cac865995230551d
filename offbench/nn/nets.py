"""Networks as pure functions of parameters: a list of layers, each a dict of a weight and a bias.

`mlp_init` makes the parameters from a key, `mlp` applies them. An ensemble is the same network
with a leading axis on every parameter; `mlp` broadcasts over it. `from_module` makes the same two
functions of a module of torch.nn.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from offbench import rng
from offbench.errors import UserError, expect

Layer = dict[str, Tensor]
Params = list[Layer]
Activation = Literal["relu", "gelu", "gelu_tanh", "tanh"]


class Gaussian(TypedDict):
    """Parameters of a Gaussian actor: a network for the mean, a log standard deviation (A,)."""

    mean: Params
    log_std: Tensor


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU, x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), as x sigmoid(2u).

    A CPU computes sigmoids in a ninth of the time of torch's tanh.
    """
    return x * torch.sigmoid(x * (_GELU * 0.044715 * x * x + _GELU))


_GELU = 2 * (2 / math.pi) ** 0.5
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    # flax's gelu
    "gelu_tanh": gelu_tanh,
    "tanh": torch.tanh,
}


def mlp_init(
    key: Tensor,
    sizes: tuple[int, ...],
    *,
    ensemble: int | None = None,
    weight: Literal["torch", "xavier", "orthogonal"] = "torch",
    bias: float | None = None,
    last: float | None = None,
    layer_norm: bool = False,
) -> Params:
    """Parameters of an MLP with layer widths `sizes`, `ensemble` independent copies of it.

    `weight="torch"`: weights and biases uniform in +-1/sqrt(n_in), which is what `torch.nn.Linear`
    does. "xavier": uniform in +-sqrt(6 / (n_in + n_out)), biases 0. "orthogonal": gain sqrt(2),
    biases 0. `bias` sets the hidden biases, `last` makes the last layer uniform in +-last.
    `layer_norm` gives every hidden layer a learned scale and shift, which `mlp` applies.
    """
    lead = () if ensemble is None else (ensemble,)
    params: Params = []
    for k, n_in, n_out in zip(rng.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True):
        k_w, k_b = rng.split(k)
        final = len(params) == len(sizes) - 2
        bound = {"torch": n_in**-0.5, "xavier": (6 / (n_in + n_out)) ** 0.5}.get(weight, 1.0)
        if final and last is not None:
            bound = last
        layer = {
            "w": bound * (2 * rng.uniform(k_w, (*lead, n_in, n_out)) - 1),
            "b": bound * (2 * rng.uniform(k_b, (*lead, 1, n_out)) - 1),
        }
        if weight == "orthogonal" and not (final and last is not None):
            layer["w"] = 2**0.5 * _orthogonal(k_w, (*lead, n_in, n_out))
        if weight != "torch" and not (final and last is not None):
            layer["b"] = torch.zeros_like(layer["b"])
        if bias is not None and not final:
            layer["b"] = torch.full_like(layer["b"], bias)
        if layer_norm and not final:
            layer |= {"scale": torch.ones_like(layer["b"]), "shift": torch.zeros_like(layer["b"])}
        params.append(layer)
    return params


def _orthogonal(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Matrices with orthonormal rows or columns, Haar distributed: (..., n_in, n_out)."""
    *lead, n_in, n_out = shape
    tall = (*lead, max(n_in, n_out), min(n_in, n_out))
    q, r = torch.linalg.qr(rng.normal(key, tall))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return (q if n_in >= n_out else q.mT).contiguous()


def mlp(
    params: Params,
    x: Tensor,
    *,
    activation: Activation = "relu",
    layer_norm: bool | Literal["before", "after"] = False,
    eps: float = 1e-5,
    dropout: float | Tensor = 0.0,
    key: Tensor | None = None,
) -> Tensor:
    """(B, n_in) -> (B, n_out), or (E, B, n_out) when the parameters are an ensemble of E.

    `layer_norm` normalises each hidden layer "before" (True means that) or "after" its activation,
    with the layer's learned scale and shift where it has them. With a `key`, outputs of hidden layers
    are zeroed with probability `dropout` and the others scaled up, which is for training.
    """
    keys = [None] * len(params) if key is None else rng.split(key, len(params))
    for layer, k in zip(params[:-1], keys, strict=False):
        x = x @ layer["w"] + layer["b"]
        if layer_norm in (True, "before"):
            x = _normalised(layer, x, eps)
        x = ACTIVATIONS[activation](x)
        if layer_norm == "after":
            x = _normalised(layer, x, eps)
        if k is not None:
            kept = rng.uniform(k, tuple(x.shape), x.dtype) >= dropout
            x = torch.where(kept, x / (1 - dropout), 0.0)
    return x @ params[-1]["w"] + params[-1]["b"]


def _normalised(layer: Layer, x: Tensor, eps: float) -> Tensor:
    x = F.layer_norm(x, x.shape[-1:], eps=eps)
    return x * layer["scale"] + layer["shift"] if "scale" in layer else x


class Net(NamedTuple):
    """A PyTorch module as two pure functions of one seed, for use in a functional method."""

    # key -> the parameters by their names in the module
    init: Callable[[Tensor], dict[str, Tensor]]
    # (parameters, *inputs) -> output of the module's forward
    apply: Callable[..., Any]


def from_module(make: Callable[[], nn.Module]) -> Net:
    """A PyTorch module for a functional method: `from_module(lambda: MyModule(...))`.

    `init` constructs a new module on the CPU with torch's generator seeded by the key, and restores the
    generator. Buffers are constants, the same for every seed. Parameters that require no gradient get none.
    Raises UserError, naming it, for a stateful or random part: running statistics and other buffers that
    `forward` changes, dropout in training mode, buffers that differ between constructions.
    """

    if not callable(make) or isinstance(make, nn.Module):
        raise UserError("from_module takes a function that makes a module: lambda: MyModule(...)")

    def built(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            made = make()
        expect("module", made, nn.Module, "a torch.nn.Module")
        return made

    # in another thread, outside any vmap or tracing: a method may call this inside `update`
    with ThreadPoolExecutor(1) as outside:
        module = outside.submit(lambda: _constant(built(0), built(1))).result()
    name, buffers = type(module).__name__, dict(module.named_buffers())
    frozen = {key for key, p in module.named_parameters() if not p.requires_grad}

    def init(key: Tensor) -> dict[str, Tensor]:
        return {k: p.detach().clone() for k, p in built(int(key)).named_parameters()}

    def apply(params: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        first = next(iter(params.values())).detach()

        def call(held: dict[str, Tensor]) -> Any:
            given = {k: p.detach() if k in frozen else p for k, p in params.items()} | held
            versions = {k: b._version for k, b in held.items()}
            output = functional_call(module, given, args, kwargs)
            # dynamo has no versions of tensors
            compiling = torch.compiler.is_dynamo_compiling()
            for k, b in held.items() if not compiling else ():
                if given[k] is not b or b._version != versions[k]:
                    raise UserError(
                        f"{name}.forward changes buffer {k!r}; buffers must be constant"
                    )
            return output

        try:
            return call({k: b.to(first.device, copy=True) for k, b in buffers.items()})
        except RuntimeError as error:
            if "randomness" in str(error):
                raise UserError(f"{name}.forward draws random numbers; it must not") from None
            # in-place changes of a shared buffer fail under vmap: detect them with one buffer per seed
            seat = torch.zeros_like(first.reshape(-1)[0])
            call({k: seat.to(b.dtype).expand(b.shape).clone().copy_(b) for k, b in buffers.items()})
            raise

    return Net(init, apply)


def _constant(module: nn.Module, again: nn.Module) -> nn.Module:
    """The module. UserError for a stateful or random part."""
    name, other = type(module).__name__, dict(again.named_buffers())
    for key, buffer in module.named_buffers():
        if not torch.equal(buffer, other[key]):
            raise UserError(
                f"{name}: buffer {key!r} is drawn at random; make it a parameter with requires_grad=False"
            )
    for where, part in module.named_modules():
        kind = f"{name}: {where or 'it'} ({type(part).__name__})"
        if part.training and getattr(part, "track_running_stats", False):
            raise UserError(f"{kind} keeps running statistics; use LayerNorm, or .eval() it")
        if part.training and isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            raise UserError(f"{kind} draws random numbers; leave it out, or .eval() it")
    return module
