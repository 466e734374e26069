"""Tracing: what the graph says of paths, phases and names; what is refused, and in which words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rule_proof import run_op
from torch import Tensor, nn
from trace_models import BUILDERS, MLP, Linear, built_in, graph_named, workload

from cost_models.errors import NotTraceable
from planner.graph.graph import Graph, Serial, map_refs
from planner.rules import RULES
from planner.trace.trace import trace
from planner.workload.parts import workload_of
from planner.workload.workload import Workload

HERE = Path(__file__).name


class Apply(nn.Module):
    """A linear layer, then `f` of its result."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.linear(x))


def graph_of(
    module: Callable[[], nn.Module], loss: Callable[..., Tensor] = F.mse_loss, compute: str = ""
) -> Graph:
    def build() -> Workload:
        return replace(
            workload(module(), torch.randn(8, 6), torch.randn(8, 4), loss=loss), compute=compute
        )

    return trace(build).graph


def refusal(module: Callable[[], nn.Module], loss: Callable[..., Tensor] = F.mse_loss) -> str:
    with pytest.raises(NotTraceable) as caught:
        graph_of(module, loss)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------------------- the graph


@pytest.mark.parametrize("name", BUILDERS)
def test_graphs_are_well_formed(name: str) -> None:
    graph = graph_named(name)
    written = {v.id for v in graph.values if v.writer is None}
    for index, node in enumerate(graph.nodes):
        assert node.index == index
        assert set(node.operands) <= written
        assert node.op in RULES
        written |= {v for v in node.results if v is not None}
    assert written == {v.id for v in graph.values}
    assert graph.values[graph.loss].shape == ()
    for parameter in graph.parameters:
        assert graph.values[parameter.gradient].shape == graph.values[parameter.value].shape
    phases = [node.phase for node in graph.nodes]
    assert phases == sorted(phases, key=["forward", "backward"].index)


def test_backward_nodes_carry_the_modules_path() -> None:
    graph = trace(built_in("gpt", layers=2, width=12, heads=2, vocab=18, positions=12, seq=6)).graph
    products = [(node.phase, node.path) for node in graph.nodes if node.op == "aten.mm.default"]
    forward = [path for phase, path in products if phase == "forward"]
    layer = ["attn.qkv", "attn.proj", "mlp.fc", "mlp.proj"]
    assert forward == [f"h.{i}.{name}" for i in range(2) for name in layer] + ["lm_head"]
    backward = [path for phase, path in products if phase == "backward"]
    assert backward == [path for path in reversed(forward) for _ in range(2)]
    assert [n.path for n in graph.nodes if n.op == "shardwright.attention_backward"] == [
        "h.1.attn",
        "h.0.attn",
    ]


def test_names_and_kinds_of_values() -> None:
    graph = graph_of(Linear)
    assert [(v.name, v.kind) for v in graph.values[:4]] == [
        ("linear.weight", "parameter"),
        ("linear.bias", "parameter"),
        ("0", "input"),
        ("1", "input"),
    ]
    assert [p.name for p in graph.parameters] == ["linear.weight", "linear.bias"]
    assert graph.num_parameters == 28
    assert graph.inputs == (2, 3)


def test_frozen_parameters_are_buffers() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
        model[0].requires_grad_(False)
        return model

    graph = graph_of(build)
    assert [p.name for p in graph.parameters] == ["1.weight", "1.bias"]
    assert [graph.values[v].name for v in graph.buffers] == ["0.weight", "0.bias"]


def test_a_shared_parameter_is_one() -> None:
    tied = trace(built_in("gpt", layers=1, width=8, heads=2, vocab=16, positions=8, seq=4)).graph
    assert not any("lm_head" in p.name for p in tied.parameters)


def test_the_digest_is_stable_and_knows_sizes() -> None:
    sizes = {"layers": 1, "width": 8, "heads": 2, "vocab": 16, "positions": 8, "seq": 4}
    first, second = (trace(built_in("gpt", **sizes)).graph.digest() for _ in range(2))
    assert first == second
    for name in sizes:
        assert trace(built_in("gpt", **{**sizes, name: 2 * sizes[name]})).graph.digest() != first, (
            name
        )


@pytest.mark.parametrize("name", BUILDERS)
def test_ops_that_change_nothing_are_gone(name: str) -> None:
    graph = graph_named(name)
    for node in graph.nodes:
        if node.op in ("aten.slice.Tensor", "aten.expand.default", "shardwright.reshape"):
            assert graph.values[node.operands[0]].shape != node.result_shapes[0]
        assert node.op not in ("aten.detach.default", "aten.alias.default")


def test_tracing_leaves_the_module_as_it_was() -> None:
    kept: list[nn.Module] = []

    def build() -> nn.Module:
        kept.append(nn.Sequential(MLP(6), nn.Linear(2, 4)))
        return kept[0]

    graph_of(build)
    for module in kept[0].modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(p.grad is None for p in kept[0].parameters())


def test_tracing_holds_no_memory() -> None:
    """Two layers of a million by a million: 8 TB in float32."""

    def build() -> Workload:
        model = nn.Sequential(nn.Linear(10**6, 10**6), nn.ReLU(), nn.Linear(10**6, 1))
        return workload(model, torch.randn(10**5, 10**6), torch.randn(10**5, 1))

    assert trace(build).graph.num_parameters == 10**12 + 10**6 + 10**6 + 1


def test_a_bias_is_added_after_the_product() -> None:
    """So that a partial product is reduced before."""
    ops = [n.op for n in graph_of(Linear).nodes if n.phase == "forward" and n.path == "linear"]
    assert ops == ["aten.permute.default", "aten.mm.default", "aten.add.Tensor"]


def test_the_gradient_of_a_lookup_is_that_of_an_embedding() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(10, 4))

        def forward(self, ids: Tensor) -> Tensor:
            return self.table[ids]

    graph = trace(lambda: workload(Table(), torch.randint(0, 10, (8,)), torch.randn(8, 4))).graph
    looked_at, summed = [n for n in graph.nodes if n.phase == "backward"][-2:]
    assert (looked_at.op, summed.op) == (
        "shardwright.checked_ids",
        "aten.embedding_dense_backward.default",
    )
    assert looked_at.args[1:] == (10, True)  # row -1 is row 9


# ----------------------------------------------------------------------------------------- in place


def test_in_place_relu_is_out_of_place() -> None:
    assert "aten.relu.default" in {
        n.op for n in graph_of(lambda: Apply(lambda x: F.relu(x, inplace=True))).nodes
    }


def _slice_assignment(x: Tensor) -> Tensor:
    x = x * 2
    x[:, 0] = x[:, 1]
    return x


def _view_written(x: Tensor) -> Tensor:
    y = x * 2
    y.view(-1).relu_()
    return y


def _read_again(x: Tensor) -> Tensor:
    y = x * 2
    return y.view(-1).tanh_().view(y.shape) + y


def _under_a_mask(x: Tensor) -> Tensor:
    x = x * 2
    x[x > 0.5] = 3.0
    return x


def _copied_over_a_turned_one(x: Tensor) -> Tensor:
    """What is copied lies otherwise than what is written to, of which a view is taken after."""
    y = x.new_zeros(4, 4, 2).transpose(0, 1)
    y.copy_(x.view(2, 4, 4).permute(2, 1, 0))
    return y.transpose(0, 1).view(8, 4)


def _joined_with_nothing(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(0), x * 2])


@pytest.mark.parametrize(
    "f",
    [
        _slice_assignment,
        _view_written,
        _read_again,
        _under_a_mask,
        _copied_over_a_turned_one,
        _joined_with_nothing,
    ],
)
def test_in_place_that_somebody_sees_is_made_functional(f: Callable[[Tensor], Tensor]) -> None:
    """No op of the graph writes in place, and what it computes is what the module does."""
    graph = graph_of(lambda: Apply(f))
    assert not any(n.op.split(".")[1].endswith("_") for n in graph.nodes)
    torch.manual_seed(0)
    module, x, target = Apply(f), torch.randn(8, 6), torch.randn(8, 4)
    values = {p.value: dict(module.named_parameters())[p.name].detach() for p in graph.parameters}
    values |= dict(zip(graph.inputs, (x, target), strict=True))
    for node in graph.nodes:
        args = map_refs(node.args, values.__getitem__)
        out = run_op(node.op, args, node.kwargs)
        values.update({v: r for v, r in zip(node.results, out, strict=True) if v is not None})
    torch.testing.assert_close(values[graph.loss], F.mse_loss(module(x), target))


def _masked_clone(x: Tensor) -> Tensor:
    y = x.clone()
    y[x > 0.5] = 3.0
    return y


def _masked_ids(x: Tensor) -> Tensor:
    ids = torch.zeros_like(x, dtype=torch.int64)
    ids[x > 0.5] = 3
    return x + ids


@pytest.mark.parametrize("f", [_under_a_mask, _masked_clone, _masked_ids])
def test_a_number_written_under_a_mask_is_a_choice(f: Callable[[Tensor], Tensor]) -> None:
    """Every dim of it can be split, whether somebody else sees what is written to or not."""
    ops = {n.op for n in graph_of(lambda: Apply(f)).nodes}
    assert "aten.where.self" in ops
    assert "aten.index_put.default" not in ops


def test_paths_and_phases_survive_being_made_functional() -> None:
    graph = graph_of(lambda: Apply(_slice_assignment))
    assert {(n.phase, n.path) for n in graph.nodes} >= {
        ("forward", "linear"),
        ("backward", "linear"),
        ("forward", ""),
    }


def test_a_shift_by_padding_is_kept() -> None:
    """One before and one less behind has the shape that it had, and is another tensor."""
    graph = graph_of(lambda: Apply(lambda x: F.pad(x, (0, 0, 1, -1))))
    assert "aten.constant_pad_nd.default" in {n.op for n in graph.nodes}


def test_an_input_changed_in_place_is_refused() -> None:
    class Changes(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    assert "aten.mul_.Tensor" in refusal(Changes)


def test_batch_norm_in_training_mode_writes_new_running_statistics() -> None:
    graph = graph_of(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
    names = [graph.values[buffer].name for buffer, _ in graph.updates]
    assert names == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    writers = [graph.nodes[graph.values[new].writer or 0].op for _, new in graph.updates]
    assert writers == ["shardwright.batch_norm", "shardwright.batch_norm", "aten.add.Tensor"]
    assert graph_of(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4).eval())).updates == ()


@pytest.mark.parametrize(
    ("layer", "ops"),
    [
        (nn.SiLU, ["aten.silu.default", "aten.silu_backward.default"]),
        (nn.GELU, ["aten.gelu.default", "aten.gelu_backward.default"]),
        (
            lambda: nn.LayerNorm(4),
            ["aten.native_layer_norm.default", "aten.native_layer_norm_backward.default"],
        ),
        (
            lambda: nn.GroupNorm(2, 4),
            ["aten.native_group_norm.default", "aten.native_group_norm_backward.default"],
        ),
        (lambda: nn.RMSNorm(4), ["shardwright.rms_norm", "shardwright.rms_norm_backward"]),
    ],
)
@pytest.mark.parametrize("compute", ["", "bfloat16"])
def test_activations_and_norms_are_one_op_each_way(
    layer: Callable[[], nn.Module], ops: list[str], compute: str
) -> None:
    def count(last: Callable[[], nn.Module]) -> Counter[str]:
        module = lambda: nn.Sequential(nn.Linear(6, 4), last())  # noqa: E731
        return Counter(
            n.op for n in graph_of(module, compute=compute).nodes if n.op != "aten._to_copy.default"
        )

    assert sorted((count(layer) - count(nn.Identity)).elements()) == ops


def test_what_several_products_read_is_cast_once() -> None:
    """As they are, autocast casts the operand of each: three copies of what a fused QKV needs
    one of."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.q, self.k = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.layer_norm(self.up(x), (4,))
            return self.q(x) * self.k(x)

    graph = graph_of(Three, compute="bfloat16")
    casts = [n for n in graph.nodes if n.op == "aten._to_copy.default"]
    assert len({(n.phase, n.operands, n.result_dtypes) for n in casts}) == len(casts)
    read = [
        n.operands[0]
        for n in casts
        if n.result_dtypes == ("bfloat16",) and graph.values[n.operands[0]].kind == "activation"
    ]
    norm = next(n.results[0] for n in graph.nodes if n.op == "aten.native_layer_norm.default")
    assert read.count(norm) == 1


class _Counts(Linear):
    def __init__(self, change: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        with torch.no_grad():
            self.change(self.seen, y)  # type: ignore[arg-type]
        return y * self.seen  # type: ignore[operator]


@pytest.mark.parametrize(
    "change",
    [
        lambda seen, y: seen.mul_(0.5).add_(y.sum(0)),
        lambda seen, y: seen.copy_(y.sum(0)),
        lambda seen, y: seen.fill_(2.0),
        lambda seen, y: seen.detach().add_(1),
    ],
)
def test_a_changed_buffer_is_read_as_its_new_value(
    change: Callable[[Tensor, Tensor], object],
) -> None:
    graph = graph_of(lambda: _Counts(change))
    ((buffer, new),) = graph.updates
    assert graph.values[buffer].name == "seen"
    assert graph.values[new].shape == (4,)
    product = next(
        n for n in graph.nodes if n.op == "aten.mul.Tensor" and n.result_shapes == ((8, 4),)
    )
    assert product.operands[1] == new


def test_a_part_of_a_buffer_that_changes_is_a_new_value_of_the_buffer() -> None:
    class Part(_Counts):
        def forward(self, x: Tensor) -> Tensor:
            self.seen[0] = x.sum()
            return self.linear(x) * self.seen  # type: ignore[operator]

    graph = graph_of(lambda: Part(lambda seen, y: None))
    ((buffer, new),) = graph.updates
    assert graph.values[buffer].name == "seen"
    writer = graph.values[new].writer
    assert writer is not None
    assert graph.nodes[writer].op == "aten.select_scatter.default"
    product = next(
        n for n in graph.nodes if n.op == "aten.mul.Tensor" and n.result_shapes == ((8, 4),)
    )
    assert product.operands[1] == new


def test_a_buffer_that_is_set_is_a_changed_buffer() -> None:
    class Sets(_Counts):
        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            self.seen = 0.9 * self.seen + y.detach().sum(0)  # type: ignore[operator]
            return y * self.seen

    graph = graph_of(lambda: Sets(lambda seen, y: None))
    ((buffer, new),) = graph.updates
    assert graph.values[buffer].name == "seen"
    product = next(
        n for n in graph.nodes if n.op == "aten.mul.Tensor" and n.result_shapes == ((8, 4),)
    )
    assert graph.values[new].shape == (4,)
    writer = graph.values[product.operands[1]].writer
    assert writer is not None
    assert graph.nodes[writer].op == "aten.add.Tensor"


def test_a_buffer_that_is_set_to_something_else_is_refused() -> None:
    class Grows(_Counts):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = torch.cat([self.seen, self.seen])  # type: ignore[list-item]
            return self.linear(x)  # type: ignore[no-any-return]

    message = refusal(lambda: Grows(lambda seen, y: None))
    assert (
        message
        == "buffer 'seen' is set to a tensor with a gradient, or of another shape or dtype: set "
        "it to a detached tensor of its own shape and dtype"
    )


# ----------------------------------------------------------------------------------------- refusals


class Body(nn.Module):
    """A model whose layers do what cannot be traced, as those of libraries of models do."""

    def __init__(self, f: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 4), Layer(f)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Layer(nn.Module):
    def __init__(self, f: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.f = nn.Linear(4, 4), f

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.f(self.linear, x)  # line: of the call


def _bias_changed(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        layer.bias.mul_(0.9)  # type: ignore[operator, union-attr]
    return x


def _packed(_: nn.Module, x: Tensor) -> Tensor:
    rnn = nn.LSTM(4, 4, batch_first=True)
    packed = nn.utils.rnn.PackedSequence(x, torch.tensor([8]))
    return rnn(packed)[0].data  # line: a packed sequence


def _compiled(_: nn.Module, x: Tensor) -> Tensor:
    return torch.compile(torch.sin, backend="eager")(x)  # line: a compiled function


_VALUE, _SHAPE = (
    "the step depends on the value of a tensor",
    "the shape of a tensor depends on values",
)
REFUSED: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str]] = {
    "a value": (lambda _, x: x * x.mean().item(), _VALUE),  # line: a value
    "a branch": (lambda _, x: x if (x > 0).any() else -x, _VALUE),  # line: a branch
    "a loop": (lambda _, x: x * len(range(int(x.max()))), _VALUE),  # line: a loop
    "a list": (lambda _, x: x * sum(x[0].tolist()), _VALUE),  # line: a list
    "a mask": (lambda _, x: x[x > 0], _SHAPE),  # line: a mask
    "tokens of an expert": (
        lambda _, x: x[torch.where(x[:, 0] > 0)],  # line: tokens of an expert
        _SHAPE,
    ),
    "repeats": (
        lambda _, x: x.repeat_interleave((x[:, 0] > 0).long() + 1, 0),  # line: repeats
        _SHAPE,
    ),
    "numpy": (
        lambda _, x: x + torch.from_numpy(x.detach().numpy()),  # line: numpy
        "RuntimeError: .numpy()",
    ),
    "a format": (
        lambda _, x: x * float(f"{x.sum():.2f}"),  # line: a format
        "TypeError: unsupported format string",
    ),
    "a compiled function": (_compiled, "dynamo-optimized function"),
    "a masked write": (
        lambda _, x: x.index_put((x > 0,), x.new_ones(32)),  # line: a masked write
        "written under a mask",
    ),
    "a packed sequence": (_packed, "nn.LSTM on a packed sequence is not supported"),
    "a changed bias": (_bias_changed, "changes a tensor in place (aten.mul_.Tensor)"),
    "noise": (lambda _, x: x + torch.poisson(x.detach().abs()), "runs aten.poisson.default"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_module_and_the_line(name: str) -> None:
    f, reason = REFUSED[name]
    message = refusal(lambda: Body(f), loss=lambda y, t: y.sum())
    lines = Path(__file__).read_text().splitlines()
    # For ops that are recorded torch keeps the innermost `forward`.
    if name in ("a changed bias", "noise"):
        name = "of the call"
    at = next(i for i, text in enumerate(lines, 1) if text.endswith(f"# line: {name}"))
    assert f"{HERE}:{at} (" in message
    assert "module 'layers.1'" in message
    assert reason in message


def test_a_value_read_while_tracing_names_the_users_line() -> None:
    def reads(x: Tensor) -> Tensor:
        return x * x.mean().item()  # the line

    message = refusal(lambda: Apply(reads))
    line = next(
        i
        for i, text in enumerate(Path(__file__).read_text().splitlines(), 1)
        if text.endswith("# the line")
    )
    assert f"{HERE}:{line} (return x * x.mean().item()" in message
    assert message.startswith("model 'test' cannot be traced as one static graph at ")
    assert message.endswith(
        "the step depends on the value of a tensor (.item(), int(x), `if x:`): use torch.where"
    )


def test_a_branch_on_a_value_is_refused() -> None:
    assert "if x.sum() > 0" in refusal(lambda: Apply(lambda x: x if x.sum() > 0 else -x))


def test_a_shape_that_depends_on_values_is_refused() -> None:
    assert "the shape of a tensor depends on values" in refusal(
        lambda: Apply(lambda x: x[x > 0]), loss=lambda y, t: y.sum()
    )


def test_a_mistake_in_the_loss_names_its_line() -> None:
    message = refusal(Linear, loss=lambda y, t: (y @ t).sum())  # not a product
    line = next(
        i
        for i, text in enumerate(Path(__file__).read_text().splitlines(), 1)
        if text.endswith("# not a product")
    )
    assert f"{HERE}:{line} " in message
    assert "RuntimeError" in message


def test_dropout_is_one_op_of_ours_and_numbered() -> None:
    graph = graph_of(
        lambda: nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Dropout(0.2), nn.Dropout(0.0))
    )
    drops = [n for n in graph.nodes if n.op == "shardwright.dropout"]
    assert [n.args[2:] for n in drops] == [(0.5, Serial(0)), (0.2, Serial(1))]
    assert graph.values[drops[0].operands[1]].kind == "key"
    assert not any(v.kind == "key" for v in graph_of(Linear).values)


def test_random_numbers_are_ops_of_ours_and_numbered() -> None:
    class Noisy(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x) + torch.empty_like(x).uniform_(0, 2))

    draws = [n for n in graph_of(Noisy).nodes if n.op == "shardwright.uniform"]
    assert [(n.args[1], n.args[2]) for n in draws] == [((8, 6), Serial(0)), ((8, 6), Serial(1))]


def test_random_ops_that_are_not_planned_are_refused_with_their_line() -> None:
    class Noise(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.poisson(x))  # noise

    line = next(
        i
        for i, text in enumerate(Path(__file__).read_text().splitlines(), 1)
        if text.endswith("# noise")
    )
    message = refusal(Noise)
    assert f"{HERE}:{line} (return super().forward(x + torch.poisson(x))" in message
    assert "runs aten.poisson.default: this random op is not supported" in message


def test_a_model_without_parameters_is_refused() -> None:
    assert "there is nothing to train" in refusal(nn.Identity)


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (lambda y, t: y - t, "a tensor of shape (8, 4)"),
        (lambda y, t: (y - t).sum(0), "a tensor of shape (4,)"),
        (lambda y, t: 3.0, "a float"),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused(loss: Callable[..., Tensor], what: str) -> None:
    assert refusal(Linear, loss=loss) == (
        f"model 'test': the loss must be one scalar tensor, got {what}; reduce it with .mean() or .sum()"
    )


def test_a_tensor_made_of_numbers_while_running_is_an_op() -> None:
    graph = graph_of(lambda: Apply(lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0])))
    (node,) = (n for n in graph.nodes if n.op == "shardwright.constant")
    assert node.args == ((1.0, 2.0, 3.0, 4.0), (4,))


def test_nodes_of_one_module_stand_together_in_forward() -> None:
    paths = [
        n.path
        for n in trace(built_in("mlp", inputs=8, hidden=12, layers=2, outputs=4)).graph.nodes
        if n.phase == "forward"
    ]
    changes = [b for a, b in pairwise(["", *paths]) if a != b]
    assert changes == ["layers.0", "", "layers.1", "", "output", ""]


class _Inner(nn.Module):
    """One step of an inner loop, with the gradients of its gradients."""

    def __init__(self, written_out: bool) -> None:
        super().__init__()
        self.weight, self.written_out = nn.Parameter(torch.randn(3, 4)), written_out

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scores = x @ self.weight.t()
        loss = (
            F.nll_loss(F.log_softmax(scores, 1), y)
            if self.written_out
            else F.cross_entropy(scores, y)
        )
        (gradient,) = torch.autograd.grad(loss, self.weight, create_graph=True)
        return x @ (self.weight - 0.1 * gradient).t()


def _inner(written_out: bool) -> Workload:
    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)), torch.randint(0, 3, (6,)))
    return workload_of("inner", _Inner(written_out), batch, F.cross_entropy)


def test_a_gradient_of_a_gradient_through_an_op_of_ours_says_how_to_write_it() -> None:
    with pytest.raises(
        NotTraceable, match=r"not through F\.cross_entropy: use F\.nll_loss"
    ) as caught:
        trace(lambda: _inner(False))
    assert "shardwright." not in str(caught.value)
    assert trace(lambda: _inner(True)).graph.parameters
