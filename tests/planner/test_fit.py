"""What is said where nothing fits, and the search for the nearest change that does."""

from __future__ import annotations

from cost_models.cluster import load_cluster
from cost_models.machine import Cluster
from planner.predict.predict import CATEGORIES, Prediction
from planner.search.fit import OutOfTime, explain_misfit, nearest_change
from planner.workload.ask import Ask


def ask(batch: int | None = 64) -> Ask:
    return Ask(model="mlp", batch=batch, seq=None, settings={}, dtype="float32", num_devices=4)


def told(
    fits: object, *, batch: int = 64, hardware: str = "dgx-h100", num_devices: int = 4
) -> tuple[str, list[tuple[int | None, int]]]:
    tried: list[tuple[int | None, int]] = []

    def record(asked: Ask, cluster: Cluster) -> bool:
        tried.append((asked.batch, cluster.num_devices))
        return fits(asked.batch, cluster.num_devices)  # type: ignore[operator]

    def sure(asked: Ask, cluster: Cluster) -> bool:
        return fits(asked.batch, cluster.num_devices)  # type: ignore[operator]

    return nearest_change(
        ask(batch), batch, None, load_cluster(hardware, num_devices=num_devices), record, sure
    ), tried


def test_the_largest_batch_and_the_fewest_devices() -> None:
    text, tried = told(lambda batch, devices: batch / devices <= 4)
    assert text == "what fits: --batch 16 or --gpus 16 --batch 64"
    assert tried[0] == (32, 4) and {(16, 4), (64, 8), (64, 16)} <= set(tried)
    assert len(tried) == len(set(tried)) <= 8


def test_more_devices_take_their_nodes() -> None:
    seen: list[tuple[int, int, int]] = []

    def fits(asked: Ask, cluster: Cluster) -> bool:
        seen.append((cluster.num_devices, cluster.num_nodes, cluster.node_width))
        return cluster.num_devices >= 64

    text = nearest_change(
        ask(1024), 1024, None, load_cluster("dgx-h100", num_devices=8), fits, fits
    )
    assert text == "what fits: --gpus 64 --batch 1024"
    assert (16, 2, 8) in seen and (32, 4, 8) in seen


def test_only_one_of_the_two_helps() -> None:
    assert told(lambda batch, devices: devices >= 8)[0] == "what fits: --gpus 8 --batch 64"
    assert told(lambda batch, devices: batch <= 8)[0] == "what fits: --batch 8"


def test_a_smaller_batch_is_one_that_the_devices_divide() -> None:
    assert told(lambda batch, devices: batch <= 13, batch=99)[0] == "what fits: --batch 12"
    assert told(lambda batch, devices: batch <= 13, batch=99, num_devices=5)[0].startswith(
        "what fits: --batch 10"
    )


def test_neither_helps() -> None:
    text, tried = told(lambda batch, devices: False)
    assert text.startswith(
        "neither a smaller batch nor more of these devices helps: take a smaller model"
    )
    assert (2, 4) in tried and (1, 4) not in tried  # a batch of 1 shares no factor with 4 devices
    assert all(batch >= devices for batch, devices in tried if devices > 4)


def test_a_shorter_sequence_where_neither_helps() -> None:
    def fits(asked: Ask, _: Cluster) -> bool:
        return asked.seq is not None and asked.seq <= 1024

    def shortest(asked: Ask, _: Cluster) -> bool:
        return asked.seq == 64

    cluster = load_cluster("dgx-h100", num_devices=4)
    text = nearest_change(ask(8), 8, 4096, cluster, fits, fits)
    assert text == "neither a smaller batch nor more of these devices helps; what fits: --seq 1024"
    assert "take a smaller model" in nearest_change(ask(8), 8, 1024, cluster, shortest, shortest)


def test_batches_and_devices_that_cannot_be_are_not_tried() -> None:
    """Batches that share no factor with more devices than they have samples, more devices than
    samples, more devices than there are."""
    text, tried = told(lambda batch, devices: False, batch=12)
    assert tried == [(4, 4), (12, 8)]  # 3 samples share no factor with 4 devices
    assert "neither" in text
    _, tried = told(lambda batch, devices: False, batch=64, hardware="p3.16xlarge")
    assert max(devices for _, devices in tried) <= 64


def test_the_line_has_all_parts_in_si_and_words() -> None:
    cluster = load_cluster("dgx-h100", num_devices=4)
    capacity = ask().allowed_memory(cluster.device)
    held = dict.fromkeys(CATEGORIES, 0) | {
        "parameters": capacity,
        "optimizer": 2**33,
        "activations": 2**32,
        "inputs": 5,
    }
    least = Prediction(
        step_time_s=1.0,
        compute_time_s=1.0,
        exposed_communication_time_s=0.0,
        idle_time_s=0.0,
        memory_bytes=held,
    )
    line = explain_misfit(
        "mlp", ask(), cluster, least, "backward.h.0.mm#1", "2x2", 1, "what fits: --batch 8"
    )
    assert line.startswith(
        "'mlp' does not fit 4 x h100-sxm: the plan with the least memory (mesh 2x2) needs "
    )
    assert "12.0 GiB too much, at backward.h.0.mm#1; " in line
    largest = line.split("largest: ")[1].split(";")[0]
    assert [part.split()[0] for part in largest.split(", ")] == [
        "parameters",
        "optimizer",
        "activations",
    ]
    assert line.endswith("; what fits: --batch 8")
    assert "\n" not in line


def test_only_what_a_search_finds_a_plan_for_is_told() -> None:
    """A batch that looks as if it fitted, and for which no plan is found, is passed over for the
    next; few are looked at."""
    searched: list[int | None] = []

    def fits(asked: Ask, cluster: Cluster) -> bool:
        searched.append(asked.batch)
        return cluster.num_devices == 4 and (asked.batch or 0) <= 8

    cluster = load_cluster("dgx-h100", num_devices=4)
    text = nearest_change(
        ask(64), 64, None, cluster, lambda asked, on: (asked.batch or 0) <= 16, fits
    )
    assert (text, searched[:2]) == ("what fits: --batch 8", [16, 8])
    searched.clear()
    assert "neither" in nearest_change(
        ask(4096), 4096, None, cluster, lambda asked, on: on.num_devices == 4, fits
    )
    assert searched == [2048, 1024, 512]


def test_the_time_may_be_over_before_anything_is_found() -> None:
    def late(asked: Ask, cluster: Cluster) -> bool:
        raise OutOfTime(60.0)

    cluster = load_cluster("dgx-h100", num_devices=4)
    assert nearest_change(ask(64), 64, None, cluster, late, late).startswith(
        "the time limit of 60 s was reached before a change that fits was found"
    )
    found = nearest_change(
        ask(64),
        64,
        None,
        cluster,
        lambda asked, on: on.num_devices == 4 or late(asked, on),
        lambda asked, on: True,
    )
    assert found == "what fits: --batch 32"  # what was found before that is told


def test_on_a_mesh_that_was_typed_no_other_number_of_devices_is_offered() -> None:
    cluster = load_cluster("dgx-h100", num_devices=4)
    text = nearest_change(
        ask(64), 64, None, cluster, lambda *_: False, lambda *_: False, more=False
    )
    assert text.startswith("no smaller batch helps on this mesh")
