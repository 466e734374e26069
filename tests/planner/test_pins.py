"""Pins: what each leaves, the roles of axes, and every error message."""

from __future__ import annotations

import re

import pytest
from small_plans import Planned, ask_for, mesh_of, planned, table_of, traced

from cost_models.errors import BadValue, NoPlan, UnknownName
from planner.plans.words import atom_names
from planner.strategy.pinned import check_pins, pins_for
from planner.strategy.pins import PINS, Pin, parse_mesh, parse_pin, role_of


def splits(plan: Planned, path: str, axis: int = 0, kind: str = "") -> set[str]:
    """What the ops in a module do on an axis: `batch`, `other`, `whole` or `linear`."""
    batch, out = plan.model.batch_atoms, set()
    for index, strategy in plan.choices.strategies.items():
        node, dims, option = (
            plan.model.graph.nodes[index],
            plan.model.dims.ops[index],
            strategy.options[axis],
        )
        if node.path.startswith(path) and dims.signature.kind.startswith(kind):
            in_batch = option.kind == "split" and dims.atoms[option.number] in batch
            out.add("batch" if in_batch else "other" if option.kind == "split" else option.kind)
    return out


def kept(plan: Planned, axis: int = 0) -> set[str]:
    return {strategy.options[axis].kind for strategy in plan.choices.parameters}


# ---------------------------------------------------------------------------------- what they leave


def test_data_splits_the_batch() -> None:
    plan = planned(ask_for("gpt"), "x=2", ("*=data",))
    assert splits(plan, "h.", kind="gemm") == {"batch"}
    assert "other" not in splits(plan, "")


@pytest.mark.parametrize("word", ["tensor", "tp"])
def test_tensor_splits_something_else(word: str) -> None:
    plan = planned(ask_for("gpt"), "x=2", (f"*={word}",))
    assert splits(plan, "h.", kind="gemm") == splits(plan, "h.", kind="attention") == {"other"}
    assert "batch" not in splits(plan, "")


def test_replicate_runs_whole() -> None:
    plan = planned(ask_for("gpt"), "x=2", ("h.*.mlp=replicate",))
    assert splits(plan, "h.0.mlp") == splits(plan, "h.1.mlp") == {"whole"}


def test_a_pattern_reaches_what_is_in_a_module() -> None:
    plan = planned(ask_for("gpt"), "x=2", ("*=data", "h.*.attn=tensor"))
    assert splits(plan, "h.0.attn", kind="gemm") == {"other"}
    assert splits(plan, "h.0.mlp", kind="gemm") == {"batch"}


def test_the_last_pin_wins() -> None:
    one = planned(ask_for("mlp"), "x=2", ("*=data", "layers.*=replicate"))
    two = planned(ask_for("mlp"), "x=2", ("layers.*=replicate", "*=data"))
    assert splits(one, "layers.0") == {"whole"}
    assert splits(two, "layers.0", kind="gemm") == {"batch"}


@pytest.mark.parametrize(
    ("word", "kinds"),
    [("ddp", {"whole"}), ("zero1", {"update"}), ("zero2", {"update"}), ("zero3", {"split"})],
)
def test_how_parameters_are_kept(word: str, kinds: set[str]) -> None:
    assert kept(planned(ask_for("mlp"), "dp=4", (f"*={word}",))) == kinds


def test_what_does_not_divide_is_kept_whole() -> None:
    """The LSTM's linear.bias has one element: no way to cut it, and no reason to refuse the pin."""
    plan = planned(ask_for("lstm"), "dp=4", ("*=zero3",))
    by_name = {
        p.name: s.options[0].kind
        for p, s in zip(plan.model.graph.parameters, plan.choices.parameters, strict=True)
    }
    assert by_name.pop("linear.bias") == "whole"
    assert set(by_name.values()) == {"split"}


def test_parameter_pins_leave_tensor_axes_alone() -> None:
    plan = planned(ask_for("mlp"), "dp=2,tp=2", ("*=ddp", "*=tensor"))
    assert kept(plan, axis=0) == {"whole"}
    assert "split" in kept(plan, axis=1)


def test_pins_may_be_by_parameter_name() -> None:
    plan = planned(ask_for("mlp"), "dp=4", ("*=ddp", "layers.0.weight=zero3"))
    by_name = {
        p.name: s.options[0].kind
        for p, s in zip(plan.model.graph.parameters, plan.choices.parameters, strict=True)
    }
    assert [name for name, kind in by_name.items() if kind == "split"] == ["layers.0.weight"]


def test_every_pin_has_a_description() -> None:
    assert all(description for description in PINS.values())
    assert {parse_pin(f"a=b={word}").choice for word in PINS} == set(PINS)
    assert parse_pin("a=b=ddp").pattern == "a=b"


# ------------------------------------------------------------------------------------ names of axes


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("dp", "data"),
        ("ddp", "data"),
        ("fsdp", "data"),
        ("zero", "data"),
        ("dp2", "data"),
        ("tp", "tensor"),
        ("mp", "tensor"),
        ("tensor1", "tensor"),
        ("a", "free"),
        ("x", "free"),
        ("dpx", "free"),
    ],
)
def test_roles(name: str, role: str) -> None:
    assert role_of(name) == role


def test_a_data_axis_splits_the_batch_and_a_tensor_axis_never() -> None:
    plan = planned(ask_for("gpt"), "dp=2,tp=2")
    assert splits(plan, "h.", axis=0, kind="gemm") == {"batch"}
    assert "other" not in splits(plan, "", axis=0)
    assert "batch" not in splits(plan, "", axis=1)


def test_an_axis_of_one_takes_nothing() -> None:
    plan = planned(ask_for("mlp"), "dp=2,tp=1", ("*=tensor", "*=zero3"))
    assert splits(plan, "", axis=1) == {"whole"}
    assert kept(plan, axis=1) == {"whole"}


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "devices", "message"),
    [
        (
            "dp",
            4,
            "--mesh 'dp': 'dp' is not NAME=SIZE with a size of at least 1; write --mesh dp=4,tp=2",
        ),
        ("dp=", 4, "--mesh 'dp=': 'dp=' is not NAME=SIZE"),
        ("dp=two", 4, "'dp=two' is not NAME=SIZE"),
        ("dp=0", 4, "'dp=0' is not NAME=SIZE with a size of at least 1"),
        ("dp=-2", 4, "'dp=-2' is not NAME=SIZE"),
        ("dp=4,", 4, "'' is not NAME=SIZE"),
        ("2p=4", 4, "'2p=4' is not NAME=SIZE"),
        ("", 4, "'' is not NAME=SIZE"),
        ("dp=2,tp=4", 4, "--mesh 'dp=2,tp=4' has 8 devices and --gpus is 4: make them equal"),
        ("a=2,b=2,c=2,d=2", 16, "has 4 axes: at most three are supported"),
        ("dp=2,dp=2", 4, "one distinct name per axis"),
    ],
)
def test_mesh_texts_that_are_refused(text: str, devices: int, message: str) -> None:
    with pytest.raises(BadValue, match=re.escape(message)):
        parse_mesh(text, devices)


def test_mesh_texts_that_are_read() -> None:
    assert parse_mesh(" dp=4, tp=2", 8) == mesh_of("dp=4,tp=2")
    assert str(parse_mesh("dp=4,tp=2", 8)) == "dp=4,tp=2"


@pytest.mark.parametrize("text", ["tensor", "=tensor", ""])
def test_pins_that_are_no_pins(text: str) -> None:
    with pytest.raises(
        BadValue,
        match=re.escape(f"--pin {text!r} is not PATTERN=CHOICE; write --pin 'h.*.attn=tensor'"),
    ):
        parse_pin(text)


def test_an_unknown_choice_lists_what_is_known() -> None:
    with pytest.raises(
        UnknownName,
        match=r"unknown pin 'zero4': did you mean 'zero\d'\? known: data, ddp, expert, keep, "
        r"recompute, replicate, selective, tensor, tp",
    ):
        parse_pin("*=zero4")


def test_an_unknown_pattern_lists_the_parts() -> None:
    model, _ = traced(ask_for("gpt"))
    with pytest.raises(
        UnknownName,
        match=r"--pin 'h.\*.atn' matches nothing in the model: did you mean 'h\.\*\.attn' or .*\? "
        r"its parts are .*attn\.qkv, .*wte",
    ) as error:
        pins_for(model, mesh_of("tp=2"), (Pin("h.*.atn", "tensor"),))
    assert "h.0." not in str(error.value)


def test_a_parameter_pin_matches_parameters_only() -> None:
    model, _ = traced(ask_for("gpt"))
    with pytest.raises(
        UnknownName, match=r"--pin 'h\.\*\.attn\.qkv\.bia' matches nothing .*h\.\*\.attn\.qkv\.bias"
    ):
        pins_for(model, mesh_of("dp=2"), (Pin("h.*.attn.qkv.bia", "zero3"),))


@pytest.mark.parametrize("word", ["tensor", "data", "replicate", "expert"])
def test_what_says_how_ops_run_is_not_said_of_a_parameter(word: str) -> None:
    """It was accepted, and split nothing."""
    model, _ = traced(ask_for("lstm"))
    with pytest.raises(
        UnknownName,
        match=rf"'lstm\.weight\*={word}' matches parameters only \(lstm\.weight_hh_l0, .*\), and {word} is for ops",
    ):
        pins_for(model, mesh_of("tp=2"), (Pin("lstm.weight*", word),))


@pytest.mark.parametrize(
    ("name", "mesh", "pin", "message"),
    [
        (
            "gpt",
            "dp=2",
            "h.*.attn=tensor",
            r"mesh dp=2 has no axis of more than one device that may split anything but the batch",
        ),
        (
            "gpt",
            "dp=2,tp=1",
            "h.*.attn=tp",
            r"mesh dp=2,tp=1 has no axis of more than one device that may split anything",
        ),
        (
            "moe",
            "dp=2",
            "*=expert",
            r"mesh dp=2 has no axis of more than one device that may split anything but the batch",
        ),
        (
            "moe",
            "ep=2",
            "layers.*.attn=expert",
            r"nothing that it matches can split the experts over 2 devices",
        ),
        ("mlp", "a=64", "*=data", r"nothing that it matches can split the batch over 64 devices"),
        ("lstm", "dp=2", "linear.bias=zero3", r"no dim of linear\.bias can be cut into 2 pieces"),
        (
            "lstm",
            "tp=2,dp=1",
            "*=zero1",
            r"mesh tp=2,dp=1 has no data axis of more than one device to keep pieces on",
        ),
    ],
)
def test_a_pin_that_changes_nothing_is_refused(
    name: str, mesh: str, pin: str, message: str
) -> None:
    model, _ = traced(ask_for(name))
    with pytest.raises(NoPlan, match=f"--pin '{re.escape(pin)}': {message}"):
        check_pins(model, [mesh_of(mesh)], (parse_pin(pin),))


def test_a_pin_is_refused_only_where_no_mesh_takes_it() -> None:
    model, _ = traced(ask_for("gpt"))
    pins = (parse_pin("h.*.attn=tensor"), parse_pin("*=zero3"), parse_pin("h.*.mlp=replicate"))
    check_pins(model, [mesh_of("dp=2"), mesh_of("dp=1,tp=2")], pins)
    check_pins(model, [mesh_of("dp=1")], pins)  # one device: nothing is split, and each holds
    check_pins(model, [mesh_of("a=2")], ())


def test_a_pin_of_light_ops_alone_splits_them() -> None:
    """A norm pinned to `tensor` may not run whole where nothing in it does a model's work."""
    plan = planned(ask_for("gpt"), "tp=2", ("h.*.ln_1=tensor",))
    assert (
        splits(plan, "h.0.ln_1", kind="norm") == splits(plan, "h.1.ln_1", kind="norm") == {"other"}
    )


def test_experts_of_a_model_that_has_none() -> None:
    model, _ = traced(ask_for("gpt"))
    with pytest.raises(
        NoPlan, match=r"--pin '\*=expert': the model has no experts .*: pin data or tensor"
    ):
        pins_for(model, mesh_of("ep=2"), (Pin("*", "expert"),))


@pytest.mark.parametrize("precision", [{}, {"dtype": "float32", "compute": "bfloat16"}])
def test_experts_are_known_by_their_parameters_cast_or_not(precision: dict[str, str]) -> None:
    model, _ = traced(ask_for("moe", **precision))
    sizes = {
        size
        for op in model.dims.ops
        for size, atom in zip(op.sizes, op.atoms, strict=True)
        if atom in model.expert_atoms
    }
    assert sizes == {4}
    assert pins_for(model, mesh_of("ep=2"), (Pin("*", "expert"),))


@pytest.mark.parametrize("kv_heads", [2, 3])
def test_fewer_key_heads_than_devices_are_told(kv_heads: int) -> None:
    message = (
        f"{kv_heads} heads cannot be split over 4 devices, at most over {kv_heads}, .*: take "
        "smaller axes, or loosen one"
    )
    ask = ask_for("llama", heads=2 * kv_heads, kv_heads=kv_heads, width=8 * kv_heads)
    with pytest.raises(NoPlan, match=message):
        table_of(ask, "tp=4", ("*=tensor",))


def test_a_batch_of_fewer_samples_than_data_parallel_devices() -> None:
    model, _ = traced(ask_for("mlp", batch=3))
    with pytest.raises(
        NoPlan, match="a batch of 3 has fewer samples than 4 data-parallel devices: use --batch 4"
    ):
        pins_for(model, mesh_of("dp=4"), ())
    assert pins_for(model, mesh_of("dp=3"), ())
    assert pins_for(model, mesh_of("dp=2,tp=2"), ())


def test_a_batch_is_split_unevenly_and_the_three_of_qkv_are_not() -> None:
    table = table_of(ask_for("gpt", batch=3), "a=2")
    names = atom_names(*traced(ask_for("gpt", batch=3)))
    uneven = set()
    for index, node in enumerate(table.node_of):
        dims = table.model.dims.ops[table.model.ties.nodes_of[index][0]]
        for strategy in table.strategies[node] if node is not None else ():
            uneven |= {
                names[dims.atoms[o.number]]
                for o in strategy.options
                if o.kind == "split" and dims.sizes[o.number] % 2
            }
    assert uneven == {"batch"}
