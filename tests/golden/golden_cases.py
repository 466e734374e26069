"""The golden cases: small plans that together cover what planning, lowering and simulating do
differently from one plan to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cost_models.cluster import load_cluster
from cost_models.machine import Cluster
from planner.graph.layout import Mesh
from planner.search.search import Found, search
from planner.strategy.pins import parse_mesh, parse_pin
from planner.workload.ask import Ask

__all__ = ["CASES", "Case", "planned"]

_STEP_MODELS = Path(__file__).resolve().parents[1] / "step_models.py"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is asked, of which cluster. `memory`: bytes that a plan may hold per device, in place
    of the device's own."""

    model: str
    num_devices: int
    hardware: str = "dgx-h100"
    nodes: int | None = None
    batch: int | None = 8
    sizes: Mapping[str, int] = field(default_factory=dict)
    mesh: str = ""
    pins: tuple[str, ...] = ()
    compute: str = ""
    clip_norm: float | None = None
    memory: int | None = None
    compile: bool = False

    def ask(self) -> Ask:
        settings = {name: str(size) for name, size in self.sizes.items()}
        headroom = {} if self.memory is None else {"memory_headroom": 0.0}
        return Ask(
            model=self.model,
            batch=self.batch,
            seq=None,
            settings=settings,
            dtype="float32",
            num_devices=self.num_devices,
            compute=self.compute,
            clip_norm=self.clip_norm,
            compile=self.compile,
            **headroom,
        )

    def cluster(self) -> Cluster:
        cluster = load_cluster(self.hardware, num_devices=self.num_devices, num_nodes=self.nodes)
        return cluster if self.memory is None else cluster.with_memory(self.memory)


_GPT = {"layers": 2, "width": 64, "heads": 4, "vocab": 512, "positions": 32, "seq": 32}
_ONE_LAYER = {**_GPT, "layers": 1}
_HF = {"n_layer": 1, "n_embd": 32, "n_head": 4, "vocab_size": 64, "n_positions": 16}
_LSTM = {"vocab": 512, "embed": 32, "hidden": 32, "layers": 2, "seq": 10}

#: By name, which is also that of the file.
CASES: dict[str, Case] = {
    "mlp": Case(model="mlp", num_devices=8, batch=None),
    "cnn": Case(model="cnn", num_devices=8, batch=None),
    "lstm": Case(model="lstm", num_devices=8, batch=None),
    "gpt": Case(model="gpt", num_devices=8, batch=None, sizes={"layers": 1}),
    "gpt-two-axes": Case(
        model="gpt",
        num_devices=4,
        batch=64,
        sizes=_ONE_LAYER,
        mesh="dp=2,tp=2",
        pins=("h.*=tensor",),
    ),
    "gpt-nodes": Case(
        model="gpt", num_devices=16, nodes=2, batch=32, sizes=_ONE_LAYER, mesh="dp=2,tp=8"
    ),
    "mlp-three": Case(model="mlp", num_devices=3, batch=770, mesh="dp=3", pins=("*=ddp",)),
    "mlp-tight": Case(
        model="mlp",
        num_devices=4,
        batch=64,
        memory=5_000_000,
        sizes={"inputs": 256, "hidden": 512, "layers": 3, "outputs": 8},
    ),
    "gpt-zero3": Case(
        model="gpt", num_devices=4, batch=32, sizes=_GPT, mesh="dp=4", pins=("*=zero3",)
    ),
    "bert-tensor": Case(
        model="bert",
        num_devices=4,
        sizes={
            "layers": 1,
            "width": 64,
            "heads": 4,
            "mlp": 128,
            "vocab": 256,
            "positions": 32,
            "seq": 32,
        },
        mesh="tp=4",
        pins=("*=tensor",),
    ),
    "gpt-odd-vocabulary": Case(
        model="gpt",
        num_devices=4,
        sizes={**_ONE_LAYER, "vocab": 509},
        mesh="tp=4",
        pins=("wte=tensor", "lm_head=tensor"),
    ),
    "lstm-hidden": Case(
        model="lstm", num_devices=4, hardware="cpu", sizes=_LSTM, mesh="tp=4", pins=("lstm=tensor",)
    ),
    "moe": Case(
        model="moe",
        num_devices=4,
        batch=16,
        mesh="ep=4",
        pins=("*=expert",),
        sizes={
            "layers": 1,
            "width": 32,
            "heads": 4,
            "kv_heads": 4,
            "mlp": 64,
            "experts": 4,
            "vocab": 128,
            "seq": 16,
        },
    ),
    "dropout-clipped": Case(
        model=f"{_STEP_MODELS}:dropped",
        num_devices=2,
        hardware="cpu",
        clip_norm=1.0,
        mesh="dp=2",
        pins=("*=data",),
    ),
    "llama-mixed": Case(
        model="llama",
        num_devices=4,
        compute="bfloat16",
        mesh="dp=4",
        pins=("*=zero1",),
        sizes={
            "layers": 1,
            "width": 64,
            "heads": 4,
            "kv_heads": 4,
            "mlp": 128,
            "vocab": 256,
            "seq": 32,
        },
    ),
    "llama-compiled": Case(
        model="llama",
        num_devices=4,
        compute="bfloat16",
        mesh="dp=2,tp=2",
        pins=("layers.*.mlp=tensor",),
        compile=True,
        sizes={
            "layers": 1,
            "width": 64,
            "heads": 4,
            "kv_heads": 4,
            "mlp": 128,
            "vocab": 256,
            "seq": 32,
        },
    ),
    "hf-gpt2": Case(model="hf:gpt2", num_devices=2, hardware="cpu", sizes=_HF),
}


def planned(case: Case) -> Found:
    """The case's plan, with all that it was made from."""
    mesh: Mesh | None = parse_mesh(case.mesh, case.num_devices) if case.mesh else None
    return search(case.ask(), case.cluster(), mesh=mesh, pins=tuple(map(parse_pin, case.pins)))
