"""Values that are known while tracing although tensors are fake: those that depend on no parameter,
buffer or input.

A mask of ones, a table of positions, the ends of an even spacing: models branch on such values (`if
mask.any():`, `x[mask]`). For every fake tensor that is made only of numbers, `Known` keeps its
value, computed by the same calls, and answers with it when the value is asked for. Asking for a
value that depends on data is still refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function
from torch.utils.weak import WeakIdKeyDictionary

from planner.torch_private.fake_tensors import deep_copy_of_fake, drop_constant, is_fake
from planner.torch_private.modes import without_modes
from planner.torch_private.trees import tree_leaves, tree_map

__all__ = ["LARGEST", "Known", "begin_step", "is_known", "learn"]

#: Values of larger tensors are not computed.
LARGEST = 1 << 20
#: Parts of the names of functions whose result is not a function of the arguments.
_CHANCE = (
    "rand", "dropout", "bernoulli", "multinomial", "normal", "uniform", "exponential", "gumbel",
    "empty", "poisson", "cauchy", "geometric", "rrelu", "fractional", "seed",
)  # fmt: skip
#: Functions that use only the shape and dtype of their first tensor.
_LIKE = frozenset(("ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full"))


def is_known(tensor: Tensor) -> bool:
    """Whether a branch on the tensor's value can be taken: it is real, or an active `Known` knows
    its value."""
    if has_torch_function((tensor,)):  # a mode is on
        return bool(handle_torch_function(is_known, (tensor,), tensor))
    return not is_fake(tensor)


def learn(tensor: Tensor, value: Tensor) -> None:
    """Tells an active `Known` the value of a fake tensor, such as one read from a file."""
    if has_torch_function((tensor,)):
        handle_torch_function(learn, (tensor,), tensor, value)


def begin_step() -> None:
    """Tells an active `Known` that a step begins: it resets the values that it remembers, whatever
    the last step wrote."""
    anything = torch.empty(())
    if has_torch_function((anything,)):
        handle_torch_function(begin_step, (anything,))


class Known(TorchFunctionMode):
    """The mode that keeps known values. Entered first of all function modes, so that it sees the
    calls that the others make.

    `decided` has the names (of those given to `name`) of the tensors whose values decided a
    branch, a number or an index.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: Any = WeakIdKeyDictionary()
        self.origins: Any = WeakIdKeyDictionary()
        self.decided: set[str] = set()
        self._named: dict[str, tuple[Tensor, Tensor]] = {}
        self._remembered: tuple[str, ...] = ()

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """From here on these tensors are data: parameters, and the batch."""
        for tensor in tensors:
            self.values.pop(tensor, None)
            drop_constant(tensor)

    def name(self, tensors: Mapping[str, Tensor]) -> None:
        """From here on these tensors, with their present values, are known only if `remember` says
        so."""
        for name, tensor in tensors.items():
            value = self.values.get(tensor) if is_fake(tensor) else tensor
            if value is not None and value.numel() <= LARGEST:
                with without_modes():
                    self._named[name] = (tensor, value.detach().clone())
        self.forget(tensors.values())

    @property
    def names(self) -> frozenset[str]:
        """The names of the tensors that may be remembered."""
        return frozenset(self._named)

    def remember(self, names: Iterable[str]) -> None:
        """Makes these of the named tensors known, and no others, with the values that they had;
        clears `decided`."""
        self.decided.clear()
        self._remembered = tuple(names)
        for tensor, _ in self._named.values():
            self.values.pop(tensor, None)
        self._begin()

    def _begin(self) -> None:
        for name in self._remembered:
            tensor, value = self._named[name]
            with without_modes():
                self.values[tensor] = value.clone()
            self.origins[tensor] = frozenset((name,))

    def held(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The values of named tensors, as they were."""
        return {name: self._named[name][1] for name in names}

    def value_of(self, tensor: Tensor) -> Tensor | None:
        """The value of the tensor if it is known, else None."""
        found: Tensor | None = self.values.get(tensor)
        return found

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is is_known:
            return args[0] in self.values or not (is_fake(args[0]) or args[0] in self.origins)
        if func is begin_step:
            self._begin()
            return None
        if func is learn:
            self.values[args[0]] = args[1]
            return None
        if func is Tensor.__deepcopy__ and is_fake(args[0]):
            return self._deep_copy(*args)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._property(func, args)
        if name == "__iter__":
            func, args, kwargs = torch.unbind, args[:1], {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        known = all(t in self.values for t in tensors[int(name in _LIKE) :]) and not any(
            word in name for word in _CHANCE
        )
        try:
            out = func(*args, **kwargs)
        except RuntimeError:  # the value or a shape depends on data: known data?
            out = self._without_data(func, name, args, kwargs, known and bool(tensors))
            if out is NotImplemented:
                raise
            return out
        if name == "__set__" and isinstance(args[0], Tensor):
            drop_constant(args[0])  # of what `x.data` was before
        if known:
            self._follow(func, name, args, kwargs, out)
        elif tensors and _writes(name, kwargs):
            for written in tree_leaves(kwargs.get("out", args[:1] or tensors[:1])):
                self._forget_memory(written)
        return iter(out) if name == "__iter__" else out

    def _deep_copy(self, tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        """`copy.deepcopy` of a fake tensor, which is known where the tensor is."""
        made = deep_copy_of_fake(tensor, memo)
        if tensor in self.values and made not in self.values:
            with without_modes():
                self.values[made] = self.values[tensor].clone()
        return made

    def _without_data(
        self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, known: bool
    ) -> Any:
        """The result if everything that the call reads is known, or at least what decides (masks,
        single numbers); else NotImplemented."""
        if known:
            self._decide(args, kwargs)
            return self._answer(func, args, kwargs)
        if name == "__getitem__" and self._knows_masks(args[1]):
            self._decide(
                [t for t in tree_leaves(args[1]) if isinstance(t, Tensor) and t.dtype == torch.bool]
            )
            return func(args[0], self._indices(args[1]))
        numbers = tree_map(self._number, args), tree_map(self._number, kwargs)
        changed = any(
            a is not b
            for a, b in zip(tree_leaves(numbers), tree_leaves((args, kwargs)), strict=True)
        )
        return func(*numbers[0], **numbers[1]) if changed else NotImplemented

    def _number(self, x: Any) -> Any:
        """A known tensor without dims as the number in it."""
        if isinstance(x, slice):
            return slice(*map(self._number, (x.start, x.stop, x.step)))
        if not isinstance(x, Tensor) or x.dim() or x not in self.values:
            return x
        self._decide(x)
        with without_modes():
            return self.values[x].item()

    def _decide(self, *read: Any) -> None:
        """Notes that the tensors that these were made from have decided something."""
        self.decided |= self._origin(read)

    def _origin(self, *read: Any) -> frozenset[str]:
        """The names of the tensors that these were made from."""
        tensors = [t for t in tree_leaves(read) if isinstance(t, Tensor)]
        return frozenset().union(*(self.origins.get(t, ()) for t in tensors))

    def _property(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """`x.T`, `x.data`; and `x.shape`, which is none of our business."""
        out = func(*args)
        if isinstance(out, Tensor) and out is not args[0] and args[0] in self.values:
            self._follow(func, "", args, {}, out)
        return out

    def _follow(
        self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, out: Any
    ) -> None:
        """Makes the call on the values too, and keeps its result as the value of `out`."""
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        writes = _writes(name, kwargs)
        if not (made or writes) or any(not is_fake(t) or t.numel() > LARGEST for t in made):
            return
        try:
            found = [
                t for t in tree_leaves(self._call(func, args, kwargs)) if isinstance(t, Tensor)
            ]
        except (RuntimeError, TypeError, ValueError):
            # Something that only fake tensors have: unknown from here on.
            found = []
        origin = self._origin(args, kwargs)
        if origin:
            written = [args[0]] if writes and args and isinstance(args[0], Tensor) else []
            for fake in (*made, *written):
                self.origins[fake] = origin
        if len(found) == len(made) and all(
            a.shape == b.shape and a.dtype == b.dtype for a, b in zip(found, made, strict=True)
        ):
            for fake, value in zip(made, found, strict=True):
                self.values[fake] = value

    def _call(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The call on the values, on the CPU."""

        def value(x: Any) -> Any:
            if isinstance(x, Tensor):
                # Of an operand of `_LIKE` that is not known, only the shape and the dtype count.
                return (
                    self.values[x]
                    if x in self.values
                    else torch.empty((), dtype=x.dtype).expand(x.shape)
                )
            return torch.device("cpu") if isinstance(x, torch.device) else x

        kwargs = {
            key: "cpu" if key == "device" and item is not None else item
            for key, item in kwargs.items()
        }
        with without_modes(), torch.no_grad():
            return func(*tree_map(value, args), **tree_map(value, kwargs))

    def _answer(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result computed on the values, with its tensors as constants of the trace."""
        return tree_map(
            lambda x: self._constant(x) if isinstance(x, Tensor) else x,
            self._call(func, args, kwargs),
        )

    def _constant(self, value: Tensor) -> Tensor:
        with without_modes():
            numbers = value.reshape(-1).tolist()
        out = torch.tensor(numbers, dtype=value.dtype).reshape(value.shape)
        self.values[out] = value
        return out

    def _knows_masks(self, index: Any) -> bool:
        masks = [t for t in tree_leaves(index) if isinstance(t, Tensor) and t.dtype == torch.bool]
        return bool(masks) and all(mask in self.values for mask in masks)

    def _indices(self, index: Any) -> tuple[Any, ...]:
        """An index with its masks as the places where they are true."""
        out: list[Any] = []
        for item in index if isinstance(index, tuple) else (index,):
            if isinstance(item, Tensor) and item.dtype == torch.bool:
                out += self._answer(lambda mask: mask.nonzero(as_tuple=True), (item,), {})
            else:
                out.append(item)
        return tuple(out)

    def _forget_memory(self, written: Any) -> None:
        """Forgets the values of tensors that share memory with one that data was written to."""
        gone = self.values.get(written) if isinstance(written, Tensor) else None
        if gone is not None:
            place = gone.untyped_storage().data_ptr()
            same = [
                fake
                for fake, value in self.values.items()
                if value.untyped_storage().data_ptr() == place
            ]
            self.forget(same)


def _writes(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a function changes its first tensor: `add_`, `x[...] = `, `+=`, `out=`."""
    in_place = (name.endswith("_") and not name.endswith("__")) or name in (
        "__setitem__",
        "__set__",
    )
    return (
        in_place
        or (name.startswith("__i") and name not in ("__invert__", "__int__", "__index__"))
        or "out" in kwargs
    )
