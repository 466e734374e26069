"""The search: any number of devices, what fits, what a person would have typed, and what is
refused."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import networkx as nx
import pytest
from small_plans import ask_for, mesh_of

from cost_models.cluster import load_cluster
from cost_models.errors import DoesNotFit, NoPlan
from cost_models.machine import Cluster
from cost_models.memory import MEMORY_HEADROOM
from cost_models.topology import build_graph
from planner.graph.layout import Mesh, local_shape
from planner.plans.models import modelled
from planner.plans.plan_file import read_plan, write_plan
from planner.plans.replay import program_of
from planner.report.report import report
from planner.search import over_numbers
from planner.search.fitting import fitted, fitting, is_hopeless
from planner.search.meshes import meshes_of
from planner.search.proposals import Candidate, Proposal, Proposer
from planner.search.search import Found, search
from planner.solver.exact.ilp import solve
from planner.solver.problem.pairs import completed
from planner.strategy.pins import Pin, parse_pin
from planner.strategy.problem import problem_of
from planner.trace.trace import trace
from planner.workload.ask import Ask, build

BASELINES = ["data parallel", "ZeRO-3", "tensor parallel", "Megatron 2-D", "ZeRO-3 x tensor"]
SIZES = {"vocab": 512, "embed": 32, "hidden": 32, "layers": 1, "seq": 10}


def with_memory(cluster: Cluster, nbytes: float) -> Cluster:
    """The cluster whose plans may hold so many bytes per device."""
    return cluster.with_memory(math.ceil(nbytes / (1 - MEMORY_HEADROOM)))


def check(found: Found, num_devices: int) -> None:
    """What every plan keeps."""
    plan = found.plan
    assert plan.mesh.num_devices == num_devices
    step = plan.summary["step_time_s"]
    assert 0 < plan.solver.bound <= step * (1 + 1e-9)
    assert plan.solver.gap == pytest.approx(1 - plan.solver.bound / step, abs=1e-12)
    assert plan.summary["fits"]
    for row in plan.alternatives:
        assert (row.step_time_s is None) == bool(row.reason)
        assert (
            not (row.fits and row.allowed) or row.step_time_s is None or step <= row.step_time_s
        ), row


@pytest.mark.parametrize("num_devices", [1, 2, 3, 5, 7, 64])
def test_any_number_of_devices(num_devices: int) -> None:
    settings = {key: str(size) for key, size in SIZES.items()}
    ask = Ask(
        model="lstm",
        batch=None,
        seq=None,
        settings=settings,
        dtype="float32",
        num_devices=num_devices,
    )
    found = search(ask, load_cluster("dgx-h100", num_devices=num_devices))
    check(found, num_devices)
    assert math.prod(found.plan.mesh.sizes) == num_devices


@pytest.mark.parametrize("model", ["mlp", "cnn", "gpt"])
@pytest.mark.parametrize("hardware", ["cpu", "dgx-h100"])
def test_no_fitting_alternative_is_faster(model: str, hardware: str) -> None:
    found = search(ask_for(model, dtype="float32"), load_cluster(hardware, num_devices=4))
    check(found, 4)
    assert [row.name for row in found.plan.alternatives] == BASELINES


def test_a_pinned_mesh_is_kept() -> None:
    found = search(
        ask_for("gpt"),
        load_cluster("cpu", num_devices=4),
        mesh=mesh_of("dp=2,tp=2"),
        pins=(parse_pin("*=zero1"),),
    )
    assert str(found.plan.mesh) == "dp=2,tp=2"
    assert all(o[0].kind == "update" for o in found.plan.parameters)


@pytest.mark.parametrize("batch", [7, 5])
def test_a_batch_of_fewer_samples_than_devices(batch: int) -> None:
    message = (
        rf"a batch of {batch} has fewer samples than 8 devices, .*: use --batch 8, or --mesh tp=8 "
        r"to plan without splitting"
    )
    with pytest.raises(NoPlan, match=message):
        search(ask_for("mlp", batch=batch), load_cluster("cpu", num_devices=8))


@pytest.mark.parametrize("batch", [9, 32, 35])
def test_a_batch_that_shares_no_factor_with_the_devices_is_planned(batch: int) -> None:
    """Three devices, 32 samples: pieces of 11, 11 and 10."""
    num_devices = 3 if batch == 32 else 8
    found = search(
        ask_for("mlp", batch=batch),
        load_cluster("cpu", num_devices=num_devices),
        mesh=mesh_of(f"dp={num_devices}"),
    )
    state = next(s for s in found.program.inputs if s.name == "0")
    assert local_shape(state.subshape, state.layout, (num_devices,))[0] == -(-batch // num_devices)
    assert found.program.rank == 0


def test_the_advice_about_the_batch_is_right() -> None:
    ask = ask_for("mlp", batch=7)
    cluster = load_cluster("cpu", num_devices=8)
    assert search(replace(ask, batch=8), cluster).plan.summary["fits"]
    assert str(search(ask, cluster, mesh=mesh_of("tp=8")).plan.mesh) == "tp=8"


@pytest.mark.parametrize(
    ("hardware", "num_devices", "nodes", "sizes"),
    [
        ("dgx-h100", 1, 1, {(1,)}),
        ("dgx-h100", 7, 1, {(7,)}),
        ("dgx-h100", 8, 1, {(8,), (4, 2), (2, 2, 2)}),
        ("dgx-h100", 16, 2, {(16,), (2, 8), (4, 4), (8, 2), (2, 4, 2)}),
        (
            "dgx-h100",
            64,
            8,
            {(64,), (2, 32), (32, 2), (4, 16), (16, 4), (8, 8), (8, 4, 2), (4, 2, 8)},
        ),
        (
            "p3.16xlarge",
            8,
            1,
            {(8,), (4, 2), (2, 4), (2, 2, 2)},
        ),  # direct links: not all pairs of devices have the same
    ],
)
def test_meshes(hardware: str, num_devices: int, nodes: int, sizes: set[tuple[int, ...]]) -> None:
    """On one switch each shape once, largest axis first; over nodes in all orders that differ in
    what their axes run over, three axes with the nodes first or the devices of one last."""
    cluster = load_cluster(hardware, num_devices=num_devices)
    assert cluster.num_nodes == nodes
    found = [mesh.sizes for mesh in meshes_of(cluster)]
    assert len(found) == len(set(found))
    assert set(found) == sizes


def test_orders_that_are_left_out_have_the_links_of_one_that_is_searched() -> None:
    """By networkx: the axes of 4 x 2 x 8 and 2 x 4 x 8 devices over 8 nodes pass the same kinds
    of links, those of 4 x 8 x 2 others."""
    cluster = load_cluster("dgx-h100", num_devices=64)
    graph = build_graph(cluster)

    def kinds(sizes: tuple[int, ...]) -> set[tuple[int, frozenset[str]]]:
        out = set()
        for axis, size in enumerate(sizes):
            (first, *others), *_ = Mesh(("a", "b", "c"), sizes).groups((axis,))
            passed = [
                nx.shortest_path(graph, f"device{first}", f"device{other}") for other in others
            ]
            links = {
                graph.edges[edge]["kind"] for path in passed for edge in itertools.pairwise(path)
            }
            out.add((size, frozenset(links)))
        return out

    assert kinds((4, 2, 8)) == kinds((2, 4, 8)) != kinds((4, 8, 2))
    found = {mesh.sizes for mesh in meshes_of(cluster)}
    assert (4, 2, 8) in found and (2, 4, 8) not in found


@pytest.mark.parametrize(
    ("mesh", "told"),
    [
        ("dp=2,tp=8", "tp=8 inside a node over NVLink; dp=2 between nodes over InfiniBand"),
        ("tp=2,dp=8", "dp=8 inside a node over NVLink; tp=2 between nodes over InfiniBand"),
    ],
)
def test_what_an_axis_runs_over_is_told(mesh: str, told: str) -> None:
    plan = search(
        ask_for("mlp", 16, batch=64), load_cluster("dgx-h100", num_devices=16), mesh=mesh_of(mesh)
    ).plan
    assert told in next(section.body for section in report(plan, {}) if section.title == "Mesh")
    assert [axis["name"] for axis in plan.summary["axes"]] == list(plan.mesh.names)


# ------------------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def roomy() -> Found:
    return search(large(), load_cluster("dgx-h100", num_devices=4))


def large() -> Ask:
    """Parameters are nearly all that is held: 6.3 million of them against a batch of 8."""
    return ask_for("mlp", dtype="float32", inputs=1024, hidden=1024, outputs=1024, layers=5)


@pytest.mark.parametrize("share", [0.4])
def test_where_memory_binds_the_plan_is_cut_and_proved(roomy: Found, share: float) -> None:
    """Whole copies do not fit: parameters, or at least their optimizer state, are kept in
    pieces, and no plan is better."""
    whole = next(row for row in roomy.plan.alternatives if row.name == "data parallel").memory_bytes
    found = search(large(), with_memory(load_cluster("dgx-h100", num_devices=4), share * whole))
    check(found, 4)
    assert found.plan.summary["memory_bytes"]["total"] <= share * whole
    assert not next(row for row in found.plan.alternatives if row.name == "data parallel").fits
    made = [row.name for row in found.plan.alternatives if row.made_to_fit]
    assert all(row.fits for row in found.plan.alternatives if row.name in made)
    kinds = {option.kind for options in found.plan.parameters for option in options}
    assert kinds & {"split", "update"}
    assert (
        found.plan.solver.bound
        <= roomy.plan.summary["step_time_s"]
        <= found.plan.summary["step_time_s"]
    )


def test_what_does_not_fit_is_told_with_all_its_parts_and_a_change_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Activations are nearly all that is held, so microbatches fit; if the batch could not be cut, a
    smaller one, or more devices."""
    ask = ask_for(
        "gpt", 2, dtype="float32", batch=64, layers=1, width=16, vocab=512, positions=64, seq=64
    )
    cluster = load_cluster("cpu", num_devices=2)
    needed = search(ask, cluster)
    least = with_memory(
        cluster, 0.6 * min(row.memory_bytes for row in needed.plan.alternatives if row.memory_bytes)
    )
    with pytest.raises(DoesNotFit, match=r"; what fits: --microbatches 2$"):
        search(ask, least)
    assert search(replace(ask, microbatches=2), least).plan.summary["fits"]
    monkeypatch.setattr(over_numbers, "possible_microbatches", lambda graph, dims: (1,))
    with pytest.raises(DoesNotFit) as caught:
        search(ask, least)
    message = str(caught.value)
    parts = (
        "'gpt' does not fit 2 x cpu-core: the plan with the least memory (mesh ",
        ") needs ",
        " allowed (5 % of ",
        " is kept free: --memory-headroom), ",
        " too much, at ",
        "; largest: ",
    )
    for part in (*parts, "; what fits: --batch ", " or --gpus "):
        assert part in message, (part, message)
    assert len(message.split("; largest: ")[1].split(";")[0].split(", ")) == 3
    assert "\n" not in message
    advice = message.split("what fits: ")[1]
    smaller, more = advice.split(" or ")
    batch = int(smaller.split()[1])
    assert batch < 64
    assert search(replace(ask, batch=batch), least).plan.summary["fits"]
    words = more.split()
    devices = int(words[1])
    assert words[0] == "--gpus" and words[2:] == ["--batch", "64"]
    larger = with_memory(load_cluster("cpu", num_devices=devices), ask.allowed_memory(least.device))
    assert search(replace(ask, num_devices=devices), larger).plan.summary["fits"]


def test_where_nothing_helps_it_says_so() -> None:
    ask = ask_for("mlp", 2, inputs=64, hidden=64, batch=2)
    with pytest.raises(DoesNotFit, match="neither a smaller batch nor more of these devices helps"):
        search(ask, with_memory(load_cluster("cpu", num_devices=2), 1000))


def test_progress_rises_to_one() -> None:
    told: list[tuple[str, float]] = []
    search(
        ask_for("mlp"),
        load_cluster("cpu", num_devices=4),
        progress=lambda what, done: told.append((what, done)),
    )
    shares = [done for _, done in told]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0
    assert all(what for what, _ in told)


def test_a_plan_keeps_the_headroom_free_and_one_without_says_so() -> None:
    ask = ask_for("mlp", 2, dtype="float32", batch=64)
    on = load_cluster("cpu", num_devices=2)
    needed = search(ask, on, mesh=mesh_of("dp=2"), pins=(parse_pin("*=ddp"),)).plan.summary[
        "memory_bytes"
    ]["total"]
    tight = on.with_memory(needed)
    pinned = {"mesh": mesh_of("dp=2"), "pins": (parse_pin("*=ddp"),)}
    with pytest.raises(DoesNotFit, match=r"5 % of .* is kept free"):
        search(ask, tight, **pinned)
    full = search(replace(ask, memory_headroom=0.0), tight, **pinned).plan
    assert full.summary["fits"] and full.summary["memory_allowed_bytes"] == needed
    body = next(section.body for section in report(full, {}) if section.title.startswith("Memory"))
    assert "100.0 % of the usable memory" in str(body[-1])


def test_parameters_are_cast_again_for_backward_if_their_copies_do_not_fit(tmp_path: Path) -> None:
    """It costs time, and so is done only then; a plan that is read back does the same."""
    ask = ask_for("llama", 2, dtype="float32", compute="bfloat16", batch=64, layers=1)
    on, pinned = (
        load_cluster("cpu", num_devices=2),
        {"mesh": mesh_of("dp=2"), "pins": (parse_pin("*=ddp"),)},
    )
    roomy = search(ask, on, **pinned)
    assert not roomy.plan.recast
    tight = search(
        ask, with_memory(on, roomy.plan.summary["memory_bytes"]["total"] - 1024), **pinned
    )
    assert tight.plan.recast and tight.plan.summary["fits"]
    body = next(
        section.body for section in report(tight.plan, {}) if section.title.startswith("Memory")
    )
    assert any("cast to bfloat16 again" in str(line) for line in body)
    assert tight.plan.summary["step_time_s"] > roomy.plan.summary["step_time_s"]
    write_plan(tight.plan, tmp_path / "plan.json")
    assert program_of(read_plan(tmp_path / "plan.json")).instructions == tight.program.instructions


def test_a_plan_is_made_to_fit_from_one_of_another_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ask_for("gpt", dtype="float32")
    traced = trace(lambda: build(ask), ask.model)
    proposer = Proposer(
        ask, modelled(traced), traced.workload, load_cluster("dgx-h100", num_devices=4), ()
    )
    free = proposer.proposals(Mesh(("a",), (4,)))[0]
    held = proposer.candidate(free).prediction.total_memory_bytes
    tight, wide = (
        problem_of(free.table, limit=0.9 * held),
        problem_of(free.table, limit=50.0 * held),
    )
    assert len(tight.costs) > len(wide.costs)  # more values are large under the smaller limit
    proposer.capacity = 50.0 * held
    found = proposer.candidate(replace(free, solution=solve(tight)))
    answers = iter([False, True])
    monkeypatch.setattr(Candidate, "fits", lambda self, capacity: next(answers))
    again = fitting(proposer, found)
    assert again.proposal.solution.objective == pytest.approx(
        wide.cost(completed(wide, free.solution.choice)), rel=3e-3
    )


def test_a_limit_under_which_the_same_plan_is_found_again_is_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lowered program may hold far more than the problem knows of: a limit a little lower
    would leave its choice the best."""
    ask = ask_for("mlp", dtype="float32")
    traced = trace(lambda: build(ask), ask.model)
    proposer = Proposer(
        ask, modelled(traced), traced.workload, load_cluster("dgx-h100", num_devices=4), ()
    )
    free = proposer.proposals(Mesh(("a",), (4,)))[0]
    proposer.capacity = 1.5 * proposer.candidate(free).prediction.total_memory_bytes
    monkeypatch.setattr(Candidate, "fits", lambda self, capacity: False)
    tried: list[tuple[int, ...]] = []
    real = Proposer.candidate

    def noted(self: Proposer, proposal: Proposal, *, whole: bool = False) -> Candidate:
        tried.append(proposal.solution.choice[: len(proposal.table.costs)])
        return real(self, proposal, whole=whole)

    monkeypatch.setattr(Proposer, "candidate", noted)
    fitting(proposer, proposer.candidate(free))
    assert len(tried[1:]) > 1 and len(set(tried[1:])) == len(tried[1:])


def test_what_no_simulation_makes_fit_is_not_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the parameters and their optimizer's state alone are too much, the proposal is made
    to fit at once, to the same plan."""
    ask = ask_for("gpt", dtype="float32")
    traced = trace(lambda: build(ask), ask.model)
    proposer = Proposer(
        ask, modelled(traced), traced.workload, load_cluster("dgx-h100", num_devices=4), ()
    )
    free = proposer.proposals(Mesh(("dp",), (4,)), (Pin("*", "ddp"),), last=True)[0]
    candidate = proposer.candidate(free)
    state = sum(candidate.program.initial_bytes[name] for name in ("parameters", "optimizer"))
    proposer.capacity = float(state)
    assert not is_hopeless(proposer, free)
    proposer.capacity = state - 1.0
    assert is_hopeless(proposer, free) and not candidate.fits(proposer.capacity)
    made = fitting(proposer, candidate)
    simulated: list[Proposal] = []
    real = Proposer.candidate

    def noted(self: Proposer, proposal: Proposal, *, whole: bool = False) -> Candidate:
        simulated.append(proposal)
        return real(self, proposal, whole=whole)

    monkeypatch.setattr(Proposer, "candidate", noted)
    found, had_to = fitted(proposer, free)
    assert had_to and free not in simulated
    assert found.choices == made.choices and found.prediction == made.prediction


@pytest.mark.parametrize(("num_nodes", "shares"), [(1, [0.0, 0.9]), (2, [0.0, 0.8, 0.9])])
def test_over_several_nodes_less_communication_may_hide(
    num_nodes: int, shares: list[float]
) -> None:
    """A third objective proposes there: what hides inside a node does not over a network."""
    cluster = load_cluster("dgx-h100", num_devices=2, num_nodes=num_nodes)
    ask = ask_for("mlp", 2)
    traced = trace(lambda: build(ask), ask.model)
    proposer = Proposer(ask, modelled(traced), traced.workload, cluster, ())
    proposals = proposer.proposals(Mesh(("a",), (2,)))
    overlap = cluster.device.overlap
    assert [p.overlapped for p in proposals] == pytest.approx([share * overlap for share in shares])
