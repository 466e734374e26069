"""`plan --model NAME`: the options become a plan, its files and its report."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.group import uncollected
from planner.cli.options import (
    check_clip_norm,
    check_folder,
    check_global_batch,
    optimizer_settings,
    settings_of,
    share_of,
    slug,
)
from planner.cli.output import print_plan, progress_bar, write_files
from planner.graph.checking import checking, passes_words
from planner.search.budget import TIME_LIMIT, Budget

__all__ = ["DEFAULT_HARDWARE", "plan_model"]


#: The default of `--hardware`.
DEFAULT_HARDWARE = "dgx-h100"


@uncollected()
def plan_model(
    *,
    model: str,
    gpus: int | None,
    nodes: int | None,
    hardware: str | None,
    batch: int | None,
    global_batch: int | None,
    microbatches: int,
    per_microbatch: tuple[str, ...],
    seq: int | None,
    settings: tuple[str, ...],
    precision: str | None,
    reduce_gradients: str | None,
    accumulate_gradients: str | None,
    optimizer: str | None,
    lr: float | None,
    weight_decay: float | None,
    momentum: float | None,
    betas: str | None,
    clip_norm: float | None,
    memory_headroom: str,
    mesh: str | None,
    pins: tuple[str, ...],
    recompute: str | None,
    pipeline: int | None,
    schedule: str | None,
    chunks: int | None,
    time_limit: float | None,
    compile_: bool,
    check: bool,
    out: Path | None,
    json_: bool,
) -> None:
    """Plans, writes the files, prints the report."""
    from cost_models.cluster import load_cluster

    cluster = load_cluster(hardware or DEFAULT_HARDWARE, num_devices=gpus, num_nodes=nodes)
    folder = check_folder(out or Path("plans") / f"{slug(model)}-{cluster.num_devices}")
    values = settings_of(settings)
    check_clip_norm(clip_norm)
    check_global_batch(batch, global_batch)
    trained = optimizer_settings(weight_decay=weight_decay, momentum=momentum, betas=betas)
    headroom = share_of("--memory-headroom", memory_headroom)
    with progress_bar() as progress:
        progress("loading torch", 0.0)
        from planner.report.files import plan_files
        from planner.search.asked import plan_asked
        from planner.strategy.pipeline_options import pipeline_options
        from planner.workload.ask import Ask, default_precision
        from planner.workload.precision import precision_of

        formats = precision_of(
            precision or default_precision(model, cluster.device),
            reduce_gradients or "",
            accumulate_gradients or "",
        )
        ask = Ask(
            model=model,
            batch=global_batch if batch is None else batch,
            seq=seq,
            microbatches=microbatches or 1,
            per_microbatch=per_microbatch,
            settings=values,
            num_devices=cluster.num_devices,
            **formats.fields(),
            clip_norm=clip_norm,
            memory_headroom=headroom,
            optimizer=optimizer or "",
            learning_rate=lr,
            optimizer_settings=trained,
            compile=compile_,
        )
        options = pipeline_options(
            num_devices=cluster.num_devices,
            pipeline=pipeline,
            schedule=schedule,
            chunks=chunks,
            mesh=mesh,
            microbatches=microbatches,
            recompute=recompute,
            pins=pins,
        )
        budget = Budget.start(time_limit or TIME_LIMIT)
        with checking(check) as passes:
            found = plan_asked(
                ask,
                cluster,
                options,
                progress=progress,
                any_microbatches=microbatches == 0,
                own_process=True,
                budget=budget,
            )
        files, contents = plan_files(found, cluster, folder)
    write_files(folder, contents)
    print_plan(found.plan, files, json_)
    if check:
        click.echo(passes_words(passes), err=True)
