"""A plan in the model's own words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_plans import Planned, ask_for, planned, traced

from cost_models.cluster import load_cluster
from planner.plans.words import (
    GroupWords,
    atom_names,
    axis_names,
    describe,
    op_words,
    replicated_ops,
)


def rows(plan: Planned) -> dict[str, GroupWords]:
    found = describe(plan.model, plan.workload, plan.mesh, plan.choices, plan.table.costing)
    assert len({row.group for row in found}) == len(found)
    return {row.group: row for row in found}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            "gpt",
            {
                "batch",
                "sequence",
                "vocab",
                "embed",
                "heads",
                "head_dim",
                "mlp",
                "three",
                "positions",
            },
        ),
        ("lstm", {"batch", "sequence", "vocab", "embed", "gates", "hidden"}),
        ("mlp", {"batch", "inputs", "hidden", "outputs"}),
        ("cnn", {"batch", "channels", "width", "classes"}),
        ("bilstm", {"batch", "sequence", "hidden units"}),
    ],
)
def test_sub_dims_have_the_models_words(model: str, words: set[str]) -> None:
    found, workload = traced(ask_for(model))
    names = atom_names(found, workload)
    assert words <= set(names.values())
    assert {names[atom] for atom in found.batch_atoms} == {"batch"}


def test_all_parameters_have_words() -> None:
    """Also those of a user's model, which gives none: by the module and the place."""
    for model in ("gpt", "lstm", "bilstm", "cnn", "mlp"):
        found, workload = traced(ask_for(model))
        names = atom_names(found, workload)
        assert all(
            names.get(atom) for p in found.graph.parameters for atom in found.dims.atoms[p.value]
        )


def test_data_and_tensor_axes_of_gpt() -> None:
    plan = planned(ask_for("gpt", layers=3), "dp=2,tp=2", ("*=tensor", "*=zero1"))
    found = rows(plan)
    attention, up, down = found["h.*.attn.qkv"], found["h.*.mlp.fc"], found["h.*.mlp.proj"]
    assert (attention.count, attention.ops[0]) == (3, "batch")
    assert {attention.ops[1], up.ops[1], down.ops[1]} <= {
        "heads",
        "head_dim",
        "mlp",
        "embed",
        "sequence",
    }
    assert all(
        "whole, updated by" in row.parameters[0] and "(ZeRO)" in row.parameters[0]
        for row in (attention, up, down)
    )
    assert found["wte"].count == 1


def test_kept_in_pieces_and_whole() -> None:
    assert rows(planned(ask_for("mlp"), "dp=4", ("*=ddp",)))["output"].parameters == ("whole",)
    pieces = rows(planned(ask_for("mlp"), "dp=4", ("*=zero3",)))["output"].parameters[0]
    assert set(pieces.split("; ")) <= {"by outputs", "by hidden"}


def test_what_runs_whole_says_so() -> None:
    plan = planned(ask_for("mlp"), "x=2", ("layers.*=replicate",))
    assert rows(plan)["layers.*"].ops == ("whole",)
    named = replicated_ops(plan.model, plan.choices, plan.table.costing, plan.mesh)
    assert "layers.*: mm (forward)" in named and "layers.*: mm (backward)" in named
    assert not any(name.startswith("output") for name in replicated_ops_of("dp=4"))


OTHERS = """
import torch
from torch import nn

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.held = nn.Linear(8, 8)

    def forward(self, x):
        return nn.functional.linear(x, self.held.weight, self.held.bias)

def build(batch=8):
    module = nn.Sequential(Reader(), Reader())
    return module, (torch.randn(batch, 8), torch.randn(batch, 8)), lambda out, y: (out - y).square().mean()
"""


def test_modules_whose_parameters_others_read_are_counted(tmp_path: Path) -> None:
    """As the output projection of torch's attention: no op runs in it, and a plan counts at
    least one of everything."""
    file = tmp_path / "reader.py"
    file.write_text(OTHERS)
    found = rows(planned(replace(ask_for("bilstm"), model=f"{file}:build"), "dp=2", ("*=ddp",)))
    assert (found["*.held"].count, found["*.held"].parameters) == (2, ("whole",))


def replicated_ops_of(mesh: str) -> tuple[str, ...]:
    plan = planned(ask_for("mlp"), mesh)
    return replicated_ops(plan.model, plan.choices, plan.table.costing, plan.mesh)


def test_on_one_device_nothing_is_replicated() -> None:
    assert replicated_ops_of("a=1") == ()


def test_partial_sums_have_words() -> None:
    plan = planned(ask_for("gpt"), "t=2", words={"wte": "vocab"})
    names = atom_names(plan.model, plan.workload)
    node = next(
        n for n in plan.model.graph.nodes if n.path == "wte" and "embedding.default" in n.op
    )
    assert op_words(plan.model, names, plan.choices, node, 0, plan.mesh) == "vocab"
    assert op_words(plan.model, names, plan.choices, None, 0, plan.mesh) == "-"


@pytest.mark.parametrize(
    ("mesh", "pins", "names"),
    [
        ("a=4", ("*=data",), ("dp",)),
        ("a=4", ("*=tensor",), ("tp",)),
        ("dp=2,tp=2", ("*=tensor",), ("dp", "tp")),
        ("dp=2,dp2=2", (), ("dp1", "dp2")),
    ],
)
def test_axes_are_named_after_what_they_split(
    mesh: str, pins: tuple[str, ...], names: tuple[str, ...]
) -> None:
    plan = planned(ask_for("gpt"), mesh, pins, cluster=load_cluster("dgx-h100", num_devices=4))
    assert axis_names(plan.model, plan.choices, plan.table.costing, plan.mesh.sizes) == names
