"""Hugging Face by config: names, settings and refusals; and a sample of architectures trained on
two ranks as in one process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip(
    "transformers", reason="Hugging Face models need the extra: pip install 'shardwright[hf]'"
)

from architectures import ask_of, rows_of
from architectures_page import KINDS, MORE, Row, page
from kinds import RANDOM, kinds_for
from matrix import TOLERANCE
from tiny_configs import ARCHITECTURES

from cost_models.errors import BadValue, UnknownName
from planner.models.hugging_face_config import with_settings
from planner.models.hugging_face_module import static_experts
from planner.trace.trace import trace
from planner.workload.ask import build
from planner.workload.load import load_workload, resolve_options
from planner.workload.workload import Workload

SMALL = {"n_layer": "1", "n_embd": "16", "n_head": "2", "vocab_size": "32", "n_positions": "16"}
SAMPLE = ["gpt2", "bert", "mixtral", "paligemma"]


def load(spec: str, seq: int | None = 8, **settings: str) -> Workload:
    torch.manual_seed(0)
    return load_workload(spec, batch=2, seq=seq, settings=settings, num_devices=1)


def test_names_of_a_type_of_a_class_and_of_a_file_give_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "model_type": "gpt2",
                "n_layer": 1,
                "n_embd": 16,
                "n_head": 2,
                "vocab_size": 32,
                "n_positions": 16,
            }
        )
    )
    models = [load("hf:gpt2", **SMALL), load("hf:GPT2Config", **SMALL), load(f"hf:{path}")]
    shapes = [
        {name: tuple(p.shape) for name, p in work.module.named_parameters()} for work in models
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert models[0].batch[0].shape == (2, 8)


def test_gradient_checkpointing_of_a_config_gives_the_graph_without_it(tmp_path: Path) -> None:
    """It was refused: torch's bookkeeping of what is computed again does not hold while tracing."""
    ops = []
    for again in (False, True):
        path = tmp_path / f"{again}.json"
        path.write_text(
            json.dumps(
                {
                    "model_type": "gpt2",
                    "n_layer": 2,
                    "n_embd": 16,
                    "n_head": 2,
                    "vocab_size": 32,
                    "gradient_checkpointing": again,
                }
            )
        )
        assert (
            any(
                getattr(m, "gradient_checkpointing", False)
                for m in load(f"hf:{path}").module.modules()
            )
            is again
        )
        ops.append([node.op for node in trace(partial(load, f"hf:{path}"), "gpt2").graph.nodes])
    assert ops[0] == ops[1]


def test_tasks_give_other_heads() -> None:
    assert type(load("hf:gpt2", **SMALL).module.model).__name__ == "GPT2LMHeadModel"
    work = load("hf:gpt2", task="base", **SMALL)
    assert type(work.module.model).__name__ == "GPT2Model"
    assert work.batch[-1].shape == (2, 8, 16)


def test_dropout_is_that_of_the_config_and_can_be_set() -> None:
    def rates(**settings: str) -> set[float]:
        module = load("hf:gpt2", **SMALL, **settings).module
        assert module.training
        return {m.p for m in module.modules() if isinstance(m, torch.nn.Dropout)}

    assert rates() == {0.1}
    assert rates(resid_pdrop="0.2", embd_pdrop="0", attn_pdrop="0") == {0.2, 0.0}


def test_clips_have_the_size_and_frames_of_the_config() -> None:
    special = ARCHITECTURES["vision"]["vjepa2"]
    assert build(ask_of("vjepa2", special)).batch[0].shape == (4, 4, 3, 32, 32)


def test_layers_are_not_skipped_unless_asked_for() -> None:
    small = {
        "num_hidden_layers": "1",
        "hidden_size": "16",
        "num_attention_heads": "2",
        "intermediate_size": "16",
    }
    assert load("hf:wav2vec2", seq=800, **small).module.model.config.layerdrop == 0
    with pytest.raises(BadValue, match="mask_time_prob masks with numpy's random numbers"):
        load("hf:wav2vec2", seq=800, mask_time_prob="0.1", **small)


def test_another_number_of_layers_takes_their_types_along(tmp_path: Path) -> None:
    entries = {
        "model_type": "qwen3",
        "num_hidden_layers": 4,
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(entries))
    config = with_settings(f"hf:{tmp_path}/config.json", {"num_hidden_layers": 3})
    assert config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    # Lists are cut to the new number of layers.
    assert with_settings("hf:axk2", {"num_hidden_layers": 2}).num_hidden_layers == 2


def test_experts_one_by_one_are_as_transformers_runs_them() -> None:
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        SwitchTransformersSparseMLP,
    )

    config = SwitchTransformersConfig(
        d_model=8, d_ff=16, num_experts=4, expert_capacity=3, dropout_rate=0.0
    )
    torch.manual_seed(0)
    module = SwitchTransformersSparseMLP(config).eval()
    x = torch.randn(2, 8, 8)
    theirs = module(x)
    static_experts(module)
    torch.testing.assert_close(module(x), theirs)


@pytest.mark.parametrize(
    ("spec", "settings", "error", "words"),
    [
        ("hf:gpt3", {}, UnknownName, "unknown Hugging Face model type 'gpt3': did you mean 'gptj'"),
        (
            "hf:gpt2",
            {"n_layers": "2"},
            UnknownName,
            "unknown hf:gpt2 option 'n_layers': did you mean 'n_layer'",
        ),
        ("hf:gpt2", {"task": "poetry"}, UnknownName, "unknown task 'poetry'"),
        ("hf:none/config.json", {}, UnknownName, "no file none/config.json"),
        ("hf:llama", {"num_attention_heads": "5"}, BadValue, "LlamaConfig refuses"),
    ],
)
def test_a_mistake_is_one_line(
    spec: str, settings: dict[str, str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        resolve_options(spec, batch=2, seq=None, settings=settings, num_devices=1)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bit", "fsmt"])
def test_models_that_read_values_which_depend_on_no_data_are_traced(name: str) -> None:
    """One reads them in its constructor, the other looks for padding."""
    special = {name: entries for kind in ARCHITECTURES.values() for name, entries in kind.items()}
    assert trace(partial(build, ask_of(name, special[name]))).graph.nodes


def test_a_backward_pass_that_adds_to_the_gradients_itself_is_refused() -> None:
    special = ARCHITECTURES["decoder"]["reformer"]
    with pytest.raises(BadValue, match="adds to the gradients itself"):
        trace(partial(build, ask_of("reformer", special)))


def wrong(
    names: list[str], ranks: int = 2, dtype: str = "float64", kinds: Sequence[str] = KINDS
) -> list[str]:
    rows = rows_of(names, ranks=ranks, dtype=dtype, kinds=kinds)
    return [
        f"{row.name}: {row.refused or row.replicated or row.errors}"
        for row in rows
        if not row.passed
    ]


def test_a_sample_trains_as_one_process_does() -> None:
    assert TOLERANCE == 1e-9
    assert wrong(SAMPLE) == []


def test_sequences_and_experts_are_split_over_four_ranks_in_float32() -> None:
    kinds = ("chosen", "expert", "sequence")
    (row,) = rows_of(["mixtral"], ranks=4, dtype="float32", kinds=kinds)
    assert row.passed, row.errors
    assert tuple(row.errors) == kinds


def test_a_plan_that_a_model_does_not_admit_is_told_and_not_counted() -> None:
    (row,) = rows_of(["gpt2"], kinds=("expert",))
    assert "the model has no experts" in row.not_admitted["expert"]
    assert not row.passed


def test_the_second_part_of_the_page_counts_and_leaves_the_first() -> None:
    rows = [
        Row(
            "decoder",
            "gpt2",
            errors={"chosen": 1e-12, "data": 1e-3},
            not_admitted={"expert": "no experts"},
            ranks=4,
        ),
        Row("decoder", "gpt2", errors={"random 0": 1e-12}, left_out=0.25, ranks=4),
        Row("decoder", "llama", errors={"chosen": 1e-12, "random 0": "it said why"}, ranks=4),
    ]
    first, heading, second = page(rows, f"the table\n\n{MORE}\n\nold").partition(MORE)
    assert (first, heading) == ("the table\n\n", MORE)
    assert (
        "| 4 | float64 | 2 | 2 of 2 | - | 0 of 1 | - | - | - | - | - | 1 of 2 | 1e-03 | 25.0% (gpt2) |"
        in second
    )
    assert "* `gpt2`: no experts" in second
    assert "* `gpt2`, 4 ranks, float64, data: 1e-03" in second
    assert "* `llama`, 4 ranks, float64, random 0: it said why" in second
    assert "old" not in second


#: What is known not to pass; docs/architectures.md says why.
KNOWN = {"dbrx", "gemma3n_text", "ibert", "jetmoe", "reformer", "udop"}


def test_the_page_has_every_architecture_that_is_tried_and_says_why_some_fail() -> None:
    text = (Path(__file__).parents[1] / "docs" / "architectures.md").read_text(encoding="utf-8")
    lines = text.partition(MORE)[0].splitlines()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    failing = {line.split("`")[1] for line in lines if line.startswith("* `")}
    assert [row for row in rows if row != "architecture"] == [
        name for kind in ARCHITECTURES.values() for name in kind
    ]
    assert failing == KNOWN


@pytest.mark.slow_matrix
@pytest.mark.parametrize(
    ("ranks", "dtype"), [(2, "float64"), (2, "float32"), (4, "float64"), (4, "float32")]
)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_all_train_as_one_process_does(kind: str, ranks: int, dtype: str) -> None:
    names = [name for name in ARCHITECTURES[kind] if name not in KNOWN]
    assert wrong(names, ranks, dtype, (*kinds_for(ranks), *RANDOM[ranks])) == []
