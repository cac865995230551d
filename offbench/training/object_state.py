"""The state of a Python object, of a user's PyTorch class, as tensors and plain JSON; nothing is pickled.

`read` walks the attributes of an object: numbers, text, lists, dicts, tensors, arrays, generators, modules,
optimisers, schedulers, and objects of other classes by their attributes. `write` puts that back into an object that
its constructor made anew with the same arguments: no class is named by a file, none is looked up, none is called.
What cannot be read, or is not equal after it was written back, is a `NotPlain` that names the attribute.
"""

import enum
import functools
import random
import types
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

# a value in JSON, under the name of its kind: {"is": 3}, {"list": [..]}, {"tensor": 0}, {"same": path of another}
Node = dict[str, Any]


class NotPlain(Exception):
    """An attribute that is neither plain data nor an object of such; the message names it."""


class State(NamedTuple):
    """The state of an object: a tree of JSON values, with tensors by their number."""

    tree: Node
    tensors: list[Tensor]
    # (path, class) of all that is more than a value
    classes: frozenset[tuple[str, str]] = frozenset()

    def equals(self, other: "State") -> bool:
        """Whether the two are the same, bit for bit."""
        pairs = list(zip(self.tensors, other.tensors))
        same = len(self.tensors) == len(other.tensors) and self.tree == other.tree
        return same and all(_bits(a) == _bits(b) for a, b in pairs)


def read(root: Any, made: frozenset[tuple[str, str]] | None = None) -> State:
    """The state of an object, its tensors copied to the CPU.

    `made` are the `classes` of an object as its constructor left it. Raises NotPlain, and for an object
    that is not among them.
    """
    reader = _Reader(made)
    tree = reader.node(root, "")
    return State(tree, reader.tensors, frozenset(reader.classes))


def write(root: Any, state: State, device: str) -> None:
    """Puts a state into an object that its constructor has made; tensors made anew lie on `device`.

    Raises NotPlain where the object is of another shape, or not in that state afterwards.
    """
    made = read(root).classes
    try:
        _Writer(state.tensors, device).value(state.tree, root, "")
    except NotPlain:
        raise
    # a file can say anything
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise NotPlain(f"its object cannot be put back ({words})") from None
    if not read(root, made).equals(state):
        raise NotPlain("its object is not the same when it is put back")


# --- kinds of values ------------------------------------------------------------------------

# kept as the constructor makes them
_CONSTANTS = (torch.device, torch.dtype, torch.Size, torch.layout, np.dtype, enum.Enum, type)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, np.ufunc)
_NO_OBJECTS = (*_FUNCTIONS, types.MethodType, types.ModuleType, functools.partial)
# hooks and flags of nn.Module itself
_OF_MODULES = set(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}


def _constant(x: Any) -> str | None:
    """The name of a value that is the same in every object of its class: a device, a function of a module."""
    if isinstance(x, _FUNCTIONS):
        name = f"{getattr(x, '__module__', '')}.{getattr(x, '__qualname__', x.__name__)}"
        # a lambda or an inner function may hold values of its own
        return None if "<" in name else name
    return repr(x) if isinstance(x, _CONSTANTS) else None


def _generator(x: Any) -> Any:
    """The state of a random number generator, as plain data; None for anything else."""
    if isinstance(x, torch.Generator):
        return x.get_state()
    if isinstance(x, np.random.Generator):
        return x.bit_generator.state
    if isinstance(x, np.random.RandomState):
        return x.get_state(legacy=False)
    return x.getstate() if isinstance(x, random.Random) else None


def _set_generator(x: Any, state: Any) -> None:
    if isinstance(x, np.random.Generator):
        x.bit_generator.state = state
    elif isinstance(x, random.Random):
        x.setstate(state)
    else:
        x.set_state(state)


def _stateful(x: Any) -> bool:
    """Whether it is an optimiser, a learning-rate scheduler or the like, with a state dict of its own."""
    own = hasattr(x, "state_dict") and hasattr(x, "load_state_dict")
    return own and not isinstance(x, nn.Module | type)


def _parameters(x: Any) -> list[list[Tensor]]:
    return [g["params"] for g in x.param_groups] if isinstance(x, torch.optim.Optimizer) else []


def _is_of_attributes(x: Any) -> bool:
    """Whether the attributes of an object are all there is to it: no list, no C type, no slots below."""
    heap_type = 1 << 9
    classes = [c for c in type(x).__mro__ if c is not object]
    plain = all(c.__flags__ & heap_type and not vars(c).get("__slots__") for c in classes)
    return plain and hasattr(x, "__dict__") and not isinstance(x, _NO_OBJECTS)


def _attributes(x: Any) -> dict[str, Any]:
    """The attributes that make up the state of an object, by name."""
    found = dict(sorted(vars(x).items()))
    if isinstance(x, nn.Module):
        found = {k: v for k, v in found.items() if k not in _OF_MODULES}
        # torch's own layers hold their state in parameters and buffers; the rest is as they were made
        if type(x).__module__.startswith("torch."):
            number = (bool, int, float, str, type(None))
            found = {k: v for k, v in found.items() if k[0] == "_" or isinstance(v, number)}
            inner = ("_parameters", "_buffers", "_modules")
            found = {k: v for k, v in found.items() if k[0] != "_" or k in inner}
    return found


def _class(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"


def _bits(x: Tensor) -> tuple[Any, bytes]:
    plain = x.detach().contiguous().reshape(-1).view(torch.uint8)
    return (x.dtype, tuple(x.shape)), plain.numpy().tobytes()


# --- reading --------------------------------------------------------------------------------


class _Reader:
    """Turns an object into nodes; one seen before becomes a reference to where it was."""

    def __init__(self, made: frozenset[tuple[str, str]] | None):
        self.made, self.places = made, {path for path, _ in made or ()}
        self.tensors: list[Tensor] = []
        self.classes: set[tuple[str, str]] = set()
        self.seen: dict[int, str] = {}
        # ids are those of living objects only
        self.alive: list[Any] = []

    def node(self, x: Any, path: str) -> Node:
        if x is None or type(x) in (bool, int, float, str):
            # nan is not equal to itself
            return {"float": x.hex()} if type(x) is float else {"is": x}
        if (constant := _constant(x)) is not None:
            return {"constant": constant}
        if id(x) in self.seen:
            return {"same": self.seen[id(x)]}
        # equal tuples are one or several as it happens
        if type(x) is not tuple:
            self.seen[id(x)] = path
            self.alive.append(x)
            self.classes.add((path, _class(x)))
        if isinstance(x, Tensor):
            return self.tensor(x, path)
        if isinstance(x, np.ndarray | np.generic):
            return self.array(x, path)
        if type(x) in (list, tuple, deque):
            kind = type(x).__name__
            more = {"maxlen": x.maxlen} if isinstance(x, deque) else {}
            return {kind: [self.node(v, f"{path}[{i}]") for i, v in enumerate(x)], **more}
        if isinstance(x, dict):
            if type(x) not in (dict, OrderedDict):
                self.check_made(x, path)
            return {"dict": self.items(x.items(), path), "class": _class(x)}
        if (state := _generator(x)) is not None:
            self.check_made(x, path)
            return {"generator": self.node(state, f"{path}.state"), "class": _class(x)}
        return self.object(x, path)

    def check_made(self, x: Any, path: str) -> None:
        if self.made is not None and (path, _class(x)) not in self.made:
            raise NotPlain(f"{path} is a {_class(x)}, which the constructor does not make")

    def object(self, x: Any, path: str) -> Node:
        if not _stateful(x) and not _is_of_attributes(x):
            raise NotPlain(f"{path or 'it'} is a {getattr(x, '__qualname__', None) or _class(x)}")
        self.check_made(x, path)
        if _stateful(x):
            params = [
                [self.node(p, f"{path}.params[{i}][{j}]") for j, p in enumerate(group)]
                for i, group in enumerate(_parameters(x))
            ]
            state = self.node(x.state_dict(), f"{path}.state_dict()")
            return {"stateful": state, "params": params, "class": _class(x)}
        # what the constructor made first: an attribute that is new may be another name for it
        new = lambda item: f"{path}.{item[0]}".lstrip(".") not in self.places
        items = sorted(_attributes(x).items(), key=new)
        return {"object": self.items(items, path, "."), "class": _class(x)}

    def items(self, items: Iterable[tuple[Any, Any]], path: str, dot: str = "") -> list[list[Node]]:
        found = []
        for key, value in items:
            where = f"{path}{dot}{key}".lstrip(".") if dot else f"{path}[{key!r}]"
            found.append([self.node(key, f"key of {where}"), self.node(value, where)])
        return found

    def tensor(self, x: Tensor, path: str) -> Node:
        if x.layout != torch.strided or x.is_quantized:
            raise NotPlain(f"{path} is a tensor of layout {x.layout}")
        node = {"tensor": self.kept(x), "needs_grad": x.requires_grad, "class": _class(x)}
        # a gradient that is there adds to the next one
        grad = x.grad if x.is_leaf else None
        return node | ({"grad": self.kept(grad)} if grad is not None else {})

    def kept(self, x: Tensor) -> int:
        self.tensors.append(x.detach().cpu().contiguous().clone())
        return len(self.tensors) - 1

    def array(self, x: Any, path: str) -> Node:
        if x.dtype.kind not in "biufc":
            raise NotPlain(f"{path} is an array of {x.dtype}")
        content = np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8).copy()
        number = self.kept(torch.from_numpy(content))
        scalar = isinstance(x, np.generic)
        return {"array": number, "dtype": x.dtype.str, "shape": list(x.shape), "scalar": scalar}


# --- writing --------------------------------------------------------------------------------


class _Writer:
    """Puts nodes into an object; `made` is what its constructor left at the same place."""

    def __init__(self, tensors: list[Tensor], device: str):
        self.tensors, self.device = tensors, device
        self.at: dict[str, Any] = {}
        # objects that have been written to, which no other node may be
        self.taken: set[int] = set()

    def value(self, node: Node, made: Any, path: str) -> Any:
        if "is" in node:
            return node["is"]
        if "float" in node:
            return float.fromhex(node["float"])
        if "constant" in node:
            if _constant(made) != node["constant"]:
                raise NotPlain(f"{path} was {node['constant']}")
            return made
        if "same" in node:
            return self.at[node["same"]]
        if id(made) in self.taken:
            made = None
        if "tensor" in node:
            return self.put(path, self.tensor(node, made))
        if "array" in node:
            return self.put(path, self.array(node, made))
        if "dict" in node:
            return self.mapping(node, made, path)
        for kind in (list, tuple, deque):
            if kind.__name__ in node:
                return self.sequence(kind, node, made, path)
        if made is None or _class(made) != node["class"]:
            raise NotPlain(f"{path} was a {node['class']}, which the constructor does not make")
        self.put(path, made)
        if "generator" in node:
            _set_generator(made, self.value(node["generator"], None, f"{path}.state"))
        elif "stateful" in node:
            for i, (group, own) in enumerate(zip(node["params"], _parameters(made), strict=True)):
                for j, (one, p) in enumerate(zip(group, own, strict=True)):
                    self.value(one, p, f"{path}.params[{i}][{j}]")
            state = self.value(node["stateful"], None, f"{path}.state_dict()")
            made.load_state_dict(state)
        else:
            self.object(node, made, path)
        return made

    def put(self, path: str, x: Any) -> Any:
        self.at[path] = x
        self.taken.add(id(x))
        return x

    def object(self, node: Node, made: Any, path: str) -> None:
        own = _attributes(made)
        names = [key["is"] for key, _ in node["object"]]
        for (_, inner), name in zip(node["object"], names):
            value = self.value(inner, own.get(name), f"{path}.{name}".lstrip("."))
            if name not in own or value is not own[name]:
                vars(made)[name] = value
        for name in own.keys() - set(names):
            del vars(made)[name]

    def sequence(self, kind: type, node: Node, made: Any, path: str) -> Any:
        alike = type(made) is kind
        old = [*made] if alike else []
        found: Any = made if alike and kind is list else []
        if kind is deque:
            found = deque(maxlen=node["maxlen"])
        # before what is in it, which may refer to it; nothing refers to a tuple
        if kind is not tuple:
            self.put(path, found)
        new = []
        for i, inner in enumerate(node[kind.__name__]):
            new.append(self.value(inner, old[i] if i < len(old) else None, f"{path}[{i}]"))
        if kind is tuple:
            return tuple(new)
        found.clear()
        found.extend(new)
        return found

    def mapping(self, node: Node, made: Any, path: str) -> Any:
        kinds = {_class(x()): x for x in (dict, OrderedDict)}
        if isinstance(made, dict) and _class(made) == node["class"]:
            found: Any = made
        elif node["class"] in kinds:
            found = kinds[node["class"]]()
        else:
            raise NotPlain(f"{path} was a {node['class']}, which the constructor does not make")
        self.put(path, found)
        old, new = dict(found), {}
        for at, inner in node["dict"]:
            key = self.value(at, None, f"{path} key")
            new[key] = self.value(inner, old.get(key), f"{path}[{key!r}]")
        found.clear()
        found.update(new)
        return found

    def tensor(self, node: Node, made: Any) -> Tensor:
        saved = self.tensors[node["tensor"]]
        alike = isinstance(made, Tensor) and _class(made) == node["class"]
        if alike and (made.shape, made.dtype) == (saved.shape, saved.dtype):
            found: Tensor = made
            with torch.no_grad():
                found.copy_(saved)
        else:
            found = saved.to(self.device)
            found = nn.Parameter(found) if node["class"].endswith(".Parameter") else found.clone()
        if found.is_leaf and found.requires_grad != node["needs_grad"]:
            found.requires_grad_(node["needs_grad"])
        grad = node.get("grad")
        if found.is_leaf:
            found.grad = None if grad is None else self.tensors[grad].to(found.device).clone()
        return found

    def array(self, node: Node, made: Any) -> Any:
        content = self.tensors[node["array"]].numpy().tobytes()
        saved = np.frombuffer(content, np.dtype(node["dtype"])).reshape(node["shape"]).copy()
        if node["scalar"]:
            return saved[()]
        if not (isinstance(made, np.ndarray) and made.shape == saved.shape):
            return saved
        if made.dtype != saved.dtype or not made.flags.writeable:
            return saved
        made[...] = saved
        return made
