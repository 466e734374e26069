"""Every use of a private torch API, each with its reason. Nothing else in the project imports a
private name of torch's."""

from __future__ import annotations

import copy
import ctypes
import gc
import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.fx.traceback as fx_traceback
import torch.utils.checkpoint
from torch._C import _autograd as _profiler
from torch._C._profiler import (  # the public profiler records every op too, at several times a small op's cost
    ProfilerActivity,
    ProfilerConfig,
    ProfilerState,
    RecordScope,
    _ExperimentalConfig,
)
from torch._decomp import get_decompositions
from torch._subclasses import (
    FakeTensor,
    FakeTensorMode,
)  # no public name for tensors with a shape and no memory but `meta`
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import (
    make_fx,
)  # the only tracer that records through `torch.autograd.grad`
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import (  # a function mode does not see what torch's own Python functions call
    TorchDispatchMode,
    _disable_current_modes,
)

__all__ = [
    "Allocations", "FakeTensorMode", "TorchDispatchMode", "accumulate_hooks", "allocations",
    "assert_on_device", "checkpoints_allowed", "decompositions", "deep_copy_of_fake",
    "distributions_unchecked", "drop_constant", "fake_copies", "fake_mode_is_on", "functional",
    "global_module_hooks", "gradient_hooks", "has_values", "hold_device", "hung_attributes",
    "is_compiled", "is_fake", "joint_trace", "label_new_nodes", "load_fake", "memory_of",
    "parametrized_again", "post_accumulate_hooks", "really", "sequence_number", "unfaked",
    "unlogged", "without_modes", "without_recompute", "writing_as",
]  # fmt: skip


def fake_mode_is_on() -> bool:
    """Whether tensors made now have no memory."""
    return is_fake(torch.empty(()))


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether the tensor has a shape and no memory."""
    return isinstance(tensor, FakeTensor)


def deep_copy_of_fake(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """What `copy.deepcopy` of a fake tensor is to give. torch's own copies the attributes of the
    Python object, its mode among them, and tensors of two modes do not go together."""
    if id(tensor) in memo:
        return cast(torch.Tensor, memo[id(tensor)])
    if not tensor.is_leaf:
        raise RuntimeError(
            "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol"
        )
    made = tensor.detach().clone(memory_format=torch.preserve_format)
    if isinstance(
        tensor, torch.nn.Parameter
    ):  # its attributes are not copied, nor are they by torch
        memo[id(tensor)] = torch.nn.Parameter(made, tensor.requires_grad)
        return cast(torch.Tensor, memo[id(tensor)])
    memo[id(tensor)] = made.requires_grad_(tensor.requires_grad)
    own = set(vars(made))
    for name, value in vars(tensor).items():
        if name not in own:
            setattr(made, name, copy.deepcopy(value, memo))
    return made


def load_fake(path: str | Path) -> Any:
    """What a file of `torch.save` holds, its tensors fake and fresh. torch itself makes them
    from storages on `meta`, and no cast can put its result into those."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            fresh = (module, name) == ("torch._utils", "_rebuild_tensor_v2")
            return _fresh if fresh else super().find_class(module, name)

    return torch.load(
        path,
        weights_only=False,
        pickle_module=SimpleNamespace(Unpickler=Unpickler, __name__=__name__),
    )


def _fresh(
    storage: Any, _: int, size: Any, stride: Any, requires_grad: bool, hooks: Any, __: Any = None
) -> torch.Tensor:
    made = torch.empty_strided(size, stride, dtype=storage.dtype).requires_grad_(requires_grad)
    made._backward_hooks = hooks
    return made


def memory_of(tensor: torch.Tensor) -> int:
    """A number that tensors have in common which are views of one memory. Private: fake tensors
    have no address to compare."""
    return int(tensor.untyped_storage()._cdata)


def drop_constant(tensor: torch.Tensor) -> None:
    """Has a fake tensor forget the value that it may have been made from: a number read from it
    would be that of the first step for ever. Private: no public way to tell such a tensor that
    it is data."""
    if isinstance(tensor, FakeTensor):
        tensor.constant = None


@contextmanager
def fake_copies(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors as fake ones (as they are, where they are fake already), with the mode that
    goes with them active."""
    if all(map(is_fake, tensors)):
        yield list(tensors)
        return
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        yield [mode.from_tensor(t) for t in tensors]


@contextmanager
def unlogged() -> Iterator[None]:
    """Within it fake tensors do not print the traceback of what they raise: the caller tells it
    in a line, or goes another way."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def gradient_hooks(tensor: torch.Tensor) -> list[Callable[..., Any]]:
    """The hooks of `register_hook`, in their order. Private: torch has no way to ask for them."""
    return list((tensor._backward_hooks or {}).values())


def post_accumulate_hooks(tensor: torch.Tensor) -> list[Callable[..., Any]]:
    """The hooks of `register_post_accumulate_grad_hook`. Private: torch has no way to ask for
    them."""
    return list((getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values())


class _ReadsAll(torch.autograd.Function):
    """A node that all its inputs' nodes lead to: one op, where asking for each tensor's node
    runs an op for each."""

    @staticmethod
    def forward(ctx: Any, *_: Any) -> torch.Tensor:
        return torch.empty(())


def accumulate_hooks(parameters: Sequence[torch.Tensor]) -> list[list[Callable[..., Any]]]:
    """Of each parameter, the hooks on the node that adds to its `grad`. Private: only the
    garbage collector tells what a node refers to."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    nodes = dict(zip(map(id, trained), _nodes_of(trained), strict=True))
    return [_hooks_on(nodes[id(one)], one) if id(one) in nodes else [] for one in parameters]


def _nodes_of(trained: Sequence[torch.Tensor]) -> list[Any]:
    """The nodes alone: a node that another still leads to does not tell the collector what it
    holds."""
    if not trained:
        return []
    with torch.enable_grad():
        return [node for node, _ in _ReadsAll.apply(*trained).grad_fn.next_functions]  # type: ignore[no-untyped-call]


def _hooks_on(node: Any, parameter: torch.Tensor) -> list[Callable[..., Any]]:
    hooks = [
        held
        for held in gc.get_referents(node)
        if isinstance(held, dict) and held is not parameter._backward_hooks
    ]
    return [hook for held in hooks for hook in held.values()]


def parametrized_again(module: torch.nn.Module, names: Sequence[str]) -> None:
    """Makes a module that has no state yet one whose tensors of these names are parametrized.
    Private: torch makes the class and its properties only together with a new parametrization,
    and refuses to write a module that has them."""
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)


def global_module_hooks() -> list[Callable[..., Any]]:
    """The hooks that run for every module of the process. Private: torch has no way to ask for
    them."""
    held = vars(torch.nn.modules.module)
    names = ("forward", "forward_pre", "backward", "backward_pre")
    return [hook for name in names for hook in held[f"_global_{name}_hooks"].values()]


def hung_attributes(tensor: torch.Tensor) -> dict[str, Any]:
    """What a person has set on a tensor, by name. Private: fake tensors keep their own among it."""
    return {name: value for name, value in vars(tensor).items() if name not in _names_of_fakes()}


@cache
def _names_of_fakes() -> frozenset[str]:
    with unset_fake_temporarily():
        fake = FakeTensorMode().from_tensor(torch.empty(0))
    return frozenset(vars(fake)) | {"_is_param"}


def decompositions(ops: list[Any]) -> dict[Any, Callable[..., Any]]:
    """torch's own decompositions of the given ops. Private: the table has no public home outside
    `torch.export`."""
    return get_decompositions(ops)


def unfaked() -> AbstractContextManager[Any]:
    """Within it tensors are real, under fake tensors too. Private: no public way for a library
    that reads its own values (Keras)."""
    return unset_fake_temporarily()


def without_modes() -> AbstractContextManager[Any]:
    """Within it calls on real tensors are neither faked nor recorded. Private: no public way to
    pause all that listens to ops."""
    return _disable_current_modes()


@contextmanager
def checkpoints_allowed() -> Iterator[None]:
    """Within it a reentrant checkpoint's backward runs under `torch.autograd.grad` too, which it
    refuses since that gives no gradients that are left on parameters: the caller adds those.
    Private: only the engine says whether it may run."""
    asked = torch.autograd._is_checkpoint_valid
    torch.autograd._is_checkpoint_valid = lambda: True
    try:
        yield
    finally:
        torch.autograd._is_checkpoint_valid = asked


@contextmanager
def distributions_unchecked() -> Iterator[None]:
    """Within it `torch.distributions` looks at no values, unless told to (`validate_args=True`):
    there are none while tracing."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def label_new_nodes(labels: dict[str, Any]) -> None:
    """From now on, nodes that are traced carry `labels` in `meta["custom"]` (what
    `torch.fx.traceback.annotate` sets, but open-ended: module hooks begin and end a label in
    different calls)."""
    fx_traceback.current_meta["custom"] = labels


@contextmanager
def writing_as(op: str) -> Iterator[None]:
    """Within it, nodes that are traced are also labelled with the op that the person called, of
    whose writing they are part."""
    labels = fx_traceback.current_meta.get("custom", {})
    label_new_nodes({**labels, "writes": op})
    try:
        yield
    finally:
        label_new_nodes(labels)


def sequence_number(node: Any) -> int:
    """The number that autograd gave to a grad_fn when its forward op ran. Private: no public way
    to pair the two."""
    return int(node._sequence_nr())


@contextmanager
def _labels_kept() -> Iterator[None]:
    with fx_traceback.preserve_node_meta():
        yield


def joint_trace(
    step: Callable[..., Any],
    arguments: tuple[Any, ...],
    table: dict[Any, Any],
    *,
    lines: bool = False,
) -> torch.fx.Graph:
    """The FX graph of `step(*arguments)`, with labels and sequence numbers on its nodes; with
    `lines`, the stack that called each."""
    with _labels_kept():
        record = make_fx(
            step, decomposition_table=table, tracing_mode="real", record_stack_traces=lines
        )
        return record(*arguments).graph


def functional(
    graph: torch.fx.Graph, arguments: tuple[Any, ...], table: dict[Any, Any]
) -> torch.fx.Graph:
    """The recorded graph again, with its in-place ops as ops that give a new tensor, and the same
    labels on its nodes.

    Only `torch.func.functionalize` knows which views of a tensor see a write. It knows no autograd:
    the recorded graph has none.
    """
    module = torch.fx.GraphModule(graph.owning_module or torch.nn.Module(), graph)

    def again(*inputs: Any) -> Any:
        return torch.fx.Interpreter(module).run(*inputs, enable_io_processing=False)

    with _labels_kept(), torch.no_grad():
        flat = tuple(torch.utils._pytree.tree_leaves(arguments))
        made = make_fx(
            torch.func.functionalize(again, remove="mutations"),
            decomposition_table=table,
            tracing_mode="real",
        )
        return made(*flat).graph


def is_compiled(called: object) -> bool:
    """Whether calling a module or function runs what torch.compile makes of it:
    `torch.compile(called)`, `module.compile()`."""
    dynamo = sys.modules.get(
        "torch._dynamo.eval_frame"
    )  # not imported for this: it takes a second, and is there if it was used
    wrapped = dynamo is not None and isinstance(called, dynamo.OptimizedModule)
    return wrapped or any(
        getattr(called, name, None) is not None
        for name in ("_compiled_call_impl", "_torchdynamo_orig_callable")
    )


def has_values(tensor: torch.Tensor) -> bool:
    """Whether the tensor's elements can be looked at: not where it is fake, or on `meta`."""
    return not isinstance(tensor, FakeTensor) and tensor.device.type != "meta"


def assert_on_device(good: torch.Tensor, message: str) -> None:
    """Ends the run unless `good` (a scalar) holds, without waiting for the device: torch has no
    public name for that."""
    torch.ops.aten._assert_async.msg(good, message)


def really(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `function` returns outside the mode of fake tensors. Private: the mode has no public
    way to pause."""
    with unfaked():
        return function(*args, **kwargs)


def hold_device(cycles: int) -> None:
    """Keeps the current CUDA device busy for about so many of its clock's cycles. Private: no
    public kernel does nothing for a time."""
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


@contextmanager
def without_recompute(block: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Within it `torch.utils.checkpoint` runs its function once, plainly, in what `block` gives:
    backward has what it would have computed again.

    Reached by whatever name a model has imported it, since it looks these two up when called.
    Private: no public way; under fake tensors its own bookkeeping fails, and a traced graph holds
    either every activation or none. Where no tensor argument of the reentrant kind asks for a
    gradient, torch gives none to what is inside, and so does this.
    """
    module = torch.utils.checkpoint
    kept = module._checkpoint_without_reentrant_generator, module.CheckpointFunction
    ours = partial(_once, block), _Reentrant(block)
    module._checkpoint_without_reentrant_generator, module.CheckpointFunction = ours  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        module._checkpoint_without_reentrant_generator, module.CheckpointFunction = kept  # type: ignore[misc]


def _once(block: Callable[[], AbstractContextManager[Any]], *_: Any, **__: Any) -> Iterator[None]:
    """What `checkpoint` does before its function and after it."""
    with block():
        yield


class _Reentrant:
    """Stands for the autograd function of reentrant checkpoints, of which only `apply` is
    called."""

    def __init__(self, block: Callable[[], AbstractContextManager[Any]]) -> None:
        self.block = block

    def apply(self, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        """The function of its arguments."""
        wanted = any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
        with self.block(), torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
            return function(*args)


@dataclass(slots=True)
class Allocations:
    """What an allocator handed out and took back: `samples` are the times (ns of the Unix epoch)
    and the bytes held from then on.

    On CPU `before` is what the samples began from: only differences mean anything, since the
    allocator does not count what was there before it was watched. On CUDA the samples are the
    device's bytes, all of them.
    """

    before: int = 0
    samples: list[tuple[int, int]] = field(default_factory=list)


@contextmanager
def allocations(device: torch.device) -> Iterator[Allocations]:
    """Records the allocator of `device` within it; the record is filled at its end. What other
    threads free is counted too (gloo's threads let go of what they send), as long as it was
    allocated under a record.

    Private: the public profiler cannot be kept from recording ops, and has no switch for other
    threads.
    """
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "6"
    )  # else the profiler prints that it begins and ends
    found = Allocations()
    activities, scopes = {ProfilerActivity.CPU}, {RecordScope.USER_SCOPE}  # no op has that scope
    config = ProfilerConfig(
        ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig()
    )
    with _all_threads_counted():
        _profiler._prepare_profiler(config, activities)
        _profiler._enable_profiler(config, activities, scopes)  # type: ignore[call-arg]  # the stub knows no scopes
        try:
            yield found
        finally:
            result = _profiler._disable_profiler()
    first = True
    for event in sorted(result.experimental_event_tree(), key=lambda event: event.start_time_ns):
        extra: Any = event.extra_fields
        if (
            event.name == "[memory]"
            and extra.device.type == device.type
            and extra.device.index in (None, -1, device.index)
        ):
            if first:
                found.before, first = extra.total_allocated - extra.alloc_size, False
            found.samples.append((event.start_time_ns, extra.total_allocated))


@contextmanager
def _all_threads_counted() -> Iterator[None]:
    """Within it the CPU allocator keeps its total over all threads, and does not print that it
    meets blocks of before."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    counted = ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage")
    level = ctypes.c_int.in_dll(library, "FLAGS_caffe2_log_level")
    kept = counted.value, level.value
    counted.value, level.value = True, max(level.value, 2)
    try:
        yield
    finally:
        counted.value, level.value = kept
