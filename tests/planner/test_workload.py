"""Built-in models and their sizes: parameter counts against closed forms, real steps, fake
construction, each error."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from cost_models.cluster import load_cluster
from cost_models.errors import BadValue, UnknownName
from planner.models import MODELS
from planner.workload.ask import default_precision
from planner.workload.load import known_models, load_workload, resolve_options
from planner.workload.precision import DTYPES
from planner.workload.workload import Workload

SMALL = {
    "lstm": {"vocab": "50", "embed": "8", "hidden": "12", "layers": "2", "seq": "7"},
    "mlp": {"inputs": "16", "hidden": "24", "layers": "2", "outputs": "3"},
    "cnn": {"image": "16", "width": "8", "blocks": "2"},
    "gpt": {
        "layers": "2",
        "width": "32",
        "heads": "4",
        "vocab": "64",
        "positions": "16",
        "seq": "8",
    },
}


def load(
    spec: str,
    num_devices: int = 1,
    dtype: str = "float32",
    batch: int | None = None,
    **settings: str,
) -> Workload:
    torch.manual_seed(0)
    return load_workload(
        spec, batch=batch, seq=None, settings=settings, num_devices=num_devices, dtype=dtype
    )


def fake(spec: str, dtype: str = "float32", **settings: str) -> Workload:
    with FakeTensorMode():
        return load(spec, dtype=dtype, **settings)


def resolve(
    spec: str,
    *,
    batch: int | None = None,
    seq: int | None = None,
    num_devices: int = 1,
    **settings: str,
) -> dict:
    return dict(
        resolve_options(spec, batch=batch, seq=seq, settings=settings, num_devices=num_devices)
    )


def num_parameters(work: Workload) -> int:
    return sum(parameter.numel() for parameter in work.module.parameters())


def loss_of(work: Workload) -> torch.Tensor:
    return work.loss(work.module(*work.batch[:-1]), work.batch[-1])


def gpt_parameters(layers: int, width: int, vocab: int = 50_257, positions: int = 1024) -> int:
    """Embeddings, then in each block 4 w^2 + 8 w^2 weights, 3 w + w + 4 w + w biases and 4 w for
    two norms, then a norm."""
    return (vocab + positions) * width + layers * (12 * width**2 + 13 * width) + 2 * width


@pytest.mark.parametrize(
    ("preset", "layers", "width", "count"),
    [
        ("gpt2", 12, 768, 124_439_808),
        ("gpt2-medium", 24, 1024, 354_823_168),
        ("gpt2-large", 36, 1280, 774_030_080),
        ("gpt2-xl", 48, 1600, 1_557_611_200),
    ],
)
def test_gpt2_presets_have_the_published_number_of_parameters(
    preset: str, layers: int, width: int, count: int
) -> None:
    assert gpt_parameters(layers, width) == count
    assert num_parameters(fake(preset)) == count


def test_untied_gpt_has_a_head_of_its_own() -> None:
    tied, untied = fake("gpt", **SMALL["gpt"]), fake("gpt", tied="false", **SMALL["gpt"])
    assert num_parameters(untied) - num_parameters(tied) == 64 * 32
    assert tied.module.lm_head.weight is tied.module.wte.weight


def test_lstm_parameters() -> None:
    vocab, embed, hidden = 10_000, 64, 64
    assert (
        num_parameters(fake("lstm"))
        == vocab * embed + 4 * hidden * (embed + hidden + 2) + hidden + 1
    )
    assert (
        num_parameters(fake("lstm-large"))
        == 50_000 * 2048 + 4 * 4 * 2048 * (2 * 2048 + 2) + 2048 + 1
    )


def test_mlp_and_cnn_parameters() -> None:
    assert num_parameters(fake("mlp", **SMALL["mlp"])) == (16 * 24 + 24) + (24 * 24 + 24) + (
        24 * 3 + 3
    )
    assert num_parameters(fake("cnn", **SMALL["cnn"])) == (3 * 8 * 9 + 8) + (8 * 16 * 9 + 16) + (
        16 * 10 + 10
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("model", sorted(SMALL))
def test_each_model_learns_its_batch(model: str, dtype: str) -> None:
    work = load(model, dtype=dtype, batch=4, **SMALL[model])
    optimizer = torch.optim.Adam(work.module.parameters(), lr=3e-3)
    first = loss_of(work)
    assert first.dtype == DTYPES[dtype]
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(work).backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in work.module.parameters())
    assert loss_of(work).item() < first.item()


@pytest.mark.parametrize("model", sorted(SMALL))
def test_the_same_seed_starts_every_dtype_at_the_same_point(model: str) -> None:
    single, double = (
        load(model, batch=2, **SMALL[model]),
        load(model, dtype="float64", batch=2, **SMALL[model]),
    )
    for (name, a), (other, b) in zip(
        single.module.named_parameters(), double.module.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(a.double(), b)
    torch.testing.assert_close(loss_of(single).double(), loss_of(double), rtol=1e-5, atol=1e-6)


def test_the_default_dtype_is_neither_used_nor_changed() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert {p.dtype for p in load("gpt", batch=1, **SMALL["gpt"]).module.parameters()} == {
            torch.float32
        }
        assert torch.get_default_dtype() == torch.float64
        with pytest.raises(BadValue):
            load(f"{__name__}:fails")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "model", [name for spec in MODELS.values() for name in (spec.name, *spec.presets)]
)
def test_fake_construction_allocates_nothing(model: str, dtype: str) -> None:
    work = fake(model, dtype=dtype)
    tensors = [*work.module.parameters(), *work.module.buffers(), *work.batch]
    assert all(isinstance(tensor, FakeTensor) for tensor in tensors)
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {DTYPES[dtype]}


def test_a_fake_step_runs() -> None:
    with FakeTensorMode():
        loss_of(load("lstm", dtype="float64")).backward()


@pytest.mark.parametrize("model", sorted(SMALL))
def test_batch_is_valid_and_sized(model: str) -> None:
    work = load(model, batch=6, **SMALL[model])
    assert {tensor.shape[0] for tensor in work.batch} == {6}
    assert work.options["batch"] == 6
    if model in ("lstm", "gpt"):
        ids, vocab = work.batch[0], work.options["vocab"]
        assert ids.shape == (6, work.options["seq"])
        assert 0 <= int(ids.min()) <= int(ids.max()) < vocab
    assert work.tokens_per_sample == (work.options["seq"] if model in ("lstm", "gpt") else 1)


@pytest.mark.parametrize("model", sorted(SMALL))
def test_dim_names_fit_every_parameter(model: str) -> None:
    work = load(model, batch=1, **SMALL[model])
    for name, parameter in work.module.named_parameters():
        names = next((names for glob, names in work.dim_names.items() if fnmatch(name, glob)), None)
        assert names is not None, name
        assert len(names) == parameter.dim(), name


@pytest.mark.parametrize(
    ("model", "per_device"),
    [
        ("lstm", 256),
        ("mlp", 256),
        ("cnn", 64),
        ("gpt", 8),
        ("gpt2", 4),
        ("gpt2-xl", 4),
        ("lstm-large", 256),
    ],
)
def test_default_batch_grows_with_the_devices(model: str, per_device: int) -> None:
    assert [resolve(model, num_devices=n)["batch"] for n in (1, 3, 64)] == [
        per_device,
        3 * per_device,
        64 * per_device,
    ]


def test_sizes_come_from_preset_settings_and_flags() -> None:
    assert resolve("gpt2-xl") == {
        "batch": 4,
        "layers": 48,
        "width": 1600,
        "heads": 25,
        "vocab": 50_257,
        "positions": 1024,
        "tied": True,
        "seq": 1024,
    }
    options = resolve("lstm-large", batch=10, seq=20, hidden="1_024")
    assert (options["batch"], options["seq"], options["hidden"], options["layers"]) == (
        10,
        20,
        1024,
        4,
    )
    assert resolve("lstm", batch=8, num_devices=4)["batch"] == 8
    from_settings = resolve_options(
        "lstm", batch=None, seq=None, settings={"seq": "9"}, num_devices=1
    )
    assert from_settings == resolve("lstm", seq=9)
    assert resolve("gpt", tied="No")["tied"] is False


def test_known_models_describe_themselves() -> None:
    assert set(known_models()) == set(MODELS) >= {"lstm", "mlp", "cnn", "gpt", "llama", "moe", "t5"}
    for spec in known_models().values():
        assert spec.description
        for preset in spec.presets.values():
            assert preset.description
            assert preset.source
            assert set(preset.options) <= set(spec.options)


@pytest.mark.parametrize(
    ("model", "arguments", "kind", "words"),
    [
        (
            "lsmt",
            {},
            UnknownName,
            ["unknown model 'lsmt'", "did you mean 'lstm'?", "gpt2-xl", "module:function"],
        ),
        (
            "lstm",
            {"hiden": "3"},
            UnknownName,
            ["unknown lstm option 'hiden'", "did you mean 'hidden'?", "vocab"],
        ),
        ("lstm", {"hidden": "abc"}, BadValue, ["--set hidden=abc", "whole number"]),
        ("lstm", {"hidden": "1.5"}, BadValue, ["--set hidden=1.5", "whole number"]),
        ("lstm", {"hidden": "0"}, BadValue, ["hidden is 0", "at least 1"]),
        ("lstm", {"layers": "-2"}, BadValue, ["layers is -2", "at least 1"]),
        ("lstm", {"batch": 0}, BadValue, ["batch is 0", "at least 1"]),
        ("lstm", {"seq": -5}, BadValue, ["seq is -5", "at least 1"]),
        ("lstm", {"num_devices": 0}, BadValue, ["number of devices is 0", "at least 1"]),
        ("mlp", {"seq": 5}, BadValue, ["--seq 5", "'mlp'", "leave out --seq"]),
        ("gpt", {"heads": "7"}, BadValue, ["width 256", "heads 7", "--set heads=8"]),
        ("gpt2", {"seq": 2048}, BadValue, ["seq 2048", "1024", "--set positions=2048"]),
        ("gpt", {"tied": "maybe"}, BadValue, ["--set tied=maybe", "true or false"]),
        ("cnn", {"image": "4"}, BadValue, ["image 4", "3 blocks", "--set image=8"]),
    ],
)
def test_wrong_sizes(model: str, arguments: dict, kind: type[Exception], words: list[str]) -> None:
    with pytest.raises(kind) as raised:
        resolve(model, **arguments)
    assert [word for word in words if word not in str(raised.value)] == []
    assert "\n" not in str(raised.value)


def test_a_size_given_twice() -> None:
    with pytest.raises(BadValue, match="--batch 4 and --set batch=8 both set the batch"):
        resolve_options("lstm", batch=4, seq=None, settings={"batch": "8"}, num_devices=1)


def test_unknown_dtype() -> None:
    with pytest.raises(UnknownName, match="unknown dtype 'float23': did you mean 'float32'"):
        load("lstm", dtype="float23")


def fails() -> None:
    raise RuntimeError("no")


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("llama3-8b", 8030),
        ("llama3-70b", 70_554),
        ("llama3-405b", 405_853),
        ("mixtral-8x7b", 46_703),
        ("bert-base", 109.5),
        ("bert-large", 335.2),
        ("t5-small", 60.5),
        ("t5-base", 222.9),
        ("t5-large", 737.7),
        ("vit-base-16", 86.6),
        ("vit-large-16", 304.3),
        ("vit-huge-14", 632.0),
        ("resnet-18", 11.69),
        ("resnet-50", 25.56),
        ("unet-64", 31.0),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset: str, millions: float) -> None:
    assert num_parameters(fake(preset)) == pytest.approx(millions * 1e6, rel=2e-3)


# --------------------------------------------------------------- the precision of who asks for none


@pytest.mark.parametrize(
    ("hardware", "model", "precision"),
    [
        ("dgx-h100", "mlp", "bf16-mixed"),
        ("g6.48xlarge", "hf:gpt2", "bf16-mixed"),
        ("p3.16xlarge", "mlp", "fp16-mixed"),  # a V100 has units for float16 alone
        ("cpu", "mlp", "fp32"),  # a CPU has, and converts it to float32 and back
        ("dgx-h100", "keras:nets:make", "fp32"),  # Keras has a dtype policy of its own
    ],
)
def test_the_precision_follows_the_device(hardware: str, model: str, precision: str) -> None:
    assert default_precision(model, load_cluster(hardware).device) == precision
