"""CIRKD's nets: their shapes and costs, what a recipe may say of them, their weights, and published checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import tutelage
from tests.errors import raises_code
from tests.projects import CLASSES as PROJECT_CLASSES
from tests.projects import Project
from tutelage.errors import TutelageError
from tutelage.nets.build import build
from tutelage.nets.cost import flops, parameters
from tutelage.nets.published.cirkd_checkpoint import import_checkpoint
from tutelage.nets.published.nets import NETS, published_name
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import PUBLISHED, NetSettings
from tutelage.nets.storage import load_segmentor, read_metadata, save_segmentor
from tutelage.recipe.loading import parse_recipe

CLASSES = 5
SMALL = [name for name, settings in NETS.items() if not settings.encoder.endswith(("resnet101", "mit_b4"))]
ONE_OF_EACH = ["deeplabv3_resnet18_v1", "upernet_resnet18", "pspnet_mobilenetv3_small", "pspnet_mobilevit_xxs"]
ONE_OF_EACH += ["deeplabv3_mobilenetv2", "segformer_b0"]
TINY = "pspnet_mobilenetv3_small"


def _net(name: str, classes: int = CLASSES, **changes: object) -> Segmentor:
    return build(NETS[name].model_copy(update=changes), classes, seed=0)


def _images(height: int = 65, width: int = 97, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


# Nets


@pytest.mark.parametrize("name", SMALL)
def test_every_map_covers_images_of_any_size(name: str) -> None:
    net = _net(name).eval()
    for size in ((64, 96), (65, 97), (57, 40)):
        images = _images(*size, batch=1)
        with torch.no_grad():
            prediction, again = net(images), net(images)

        def grid(stride: int, size: tuple[int, int] = size) -> tuple[int, int]:
            return math.ceil(size[0] / stride), math.ceil(size[1] / stride)

        assert prediction.logits.shape == (1, CLASSES, *grid(net.stride))
        assert prediction.embedding.shape == (1, net.embedding_channels, *grid(net.stride))
        assert (prediction.auxiliary is not None) == ("resnet" in name)
        if prediction.auxiliary is not None:
            assert prediction.auxiliary.shape == prediction.logits.shape
        assert [level.shape for level in prediction.features] == [
            (1, channels, *grid(stride))
            for channels, stride in zip(net.feature_channels, net.feature_strides, strict=True)
        ]
        torch.testing.assert_close(net.classifier(prediction.embedding), prediction.logits)
        assert torch.equal(prediction.logits, again.logits)


def test_filling_up_would_change_what_is_published() -> None:
    """So it is not done: the multiple of these encoders is 1."""
    for name in SMALL:
        assert _net(name).spec.multiple == 1
    net = _net("pspnet_resnet18").eval()
    filled = nn.functional.pad(_images() - net.mean, (0, 7, 0, 7)) + net.mean
    with torch.no_grad():
        assert not torch.allclose(net(_images()).logits, net(filled).logits[..., :9, :13], rtol=0.01)


@pytest.mark.parametrize("name", SMALL)
def test_one_step_of_training_has_finite_gradients(name: str) -> None:
    net = _net(name).train()
    prediction = net(_images())
    loss = prediction.logits.square().mean()
    if prediction.auxiliary is not None:
        loss = loss + 0.4 * prediction.auxiliary.square().mean()
    loss.backward()
    assert [key for key, one in net.named_parameters() if one.grad is None or not one.grad.isfinite().all()] == []


# Parameters in millions and multiply-adds in thousands of millions, 19 classes, as CIRKD's specification counts them.
COSTS = {
    "deeplabv3_resnet101_v1": (61.12, 2063),
    "deeplabv3_resnet101_v2": (79.08, 2635),
    "deeplabv3_resnet18_v1": (13.61, 517),
    "deeplabv3_resnet18_v2": (22.76, 811),
    "pspnet_resnet18": (12.92, 489),
    "deeplabv3_mobilenetv2": (3.23, 107),
    "upernet_resnet18": (16.57, 632),
    "deeplabv3_mobilenetv3_small": (3.30, 91),
    "pspnet_mobilenetv3_small": (2.59, 59),
    "deeplabv3_mobilenetv3_large": (6.77, 169),
    "pspnet_mobilenetv3_large": (6.11, 121),
    "deeplabv3_mobilevit_xxs": (2.37, 473),
    "pspnet_mobilevit_xxs": (1.79, 452),
    "segformer_b0": (3.72, 44),
    "segformer_b4": (64.01, 478),
}


@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in COSTS]
)
def test_nets_cost_what_the_specification_counts(name: str) -> None:
    millions, giga = COSTS[name]
    net = _net(name, 19)
    assert parameters(net) / 1e6 == pytest.approx(millions, abs=0.006)
    assert flops(net, (1024, 1024 if "segformer" in name else 2048)) / 1e9 == pytest.approx(giga, abs=1)


def test_the_first_layer_sees_bgr_minus_its_mean() -> None:
    images = _images()
    expected = 255 * images.flip(1) - torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)
    seen = []
    for settings in (
        NETS[TINY],
        NETS[TINY].model_copy(update={"normalisation": "caffe"}),
        NetSettings(encoder="mobilenetv3_small_050", decoder="lraspp", width=32, normalisation="caffe"),
        NETS[TINY].model_copy(update={"normalisation": "none"}),
    ):
        net = build(settings, CLASSES, seed=0).eval()
        first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        net(images)
    for given in seen[:3]:
        torch.testing.assert_close(given[..., :65, :97], expected, atol=1e-3, rtol=0)
    assert torch.equal(seen[3], images)


def test_weights_start_as_in_the_specification() -> None:
    net = _net("deeplabv3_resnet18_v1")
    conv = net.encoder.layer4[1].conv2.weight
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.02)
    assert all((one.weight == 1).all() for one in net.modules() if isinstance(one, nn.BatchNorm2d))
    bound = 1 / math.sqrt(128)
    assert net.classifier.weight.abs().max() <= bound
    assert net.classifier.bias.abs().max() > 0
    assert net.decoder.bottleneck[0].weight.abs().max() <= 1 / math.sqrt(128 * 9)
    depthwise = _net("deeplabv3_mobilenetv2").encoder.features[17].conv[3]
    assert (depthwise.dilation, depthwise.weight.std().item()) == (
        (4, 4),
        pytest.approx(1 / math.sqrt(480 * 9), rel=0.1),
    )


def test_dropout_and_drop_path_are_the_papers_unless_set() -> None:
    def shares(name: str, **changes: object) -> list[float]:
        return [layer.p for layer in _net(name, **changes).decoder.modules() if isinstance(layer, nn.Dropout)]

    assert shares("deeplabv3_resnet18_v1") == [0.5, 0.1]
    assert shares("deeplabv3_resnet18_v1", dropout=0.3) == [0.5, 0.3]
    assert shares(TINY) == [0.1]
    assert shares("segformer_b0") == [0.0]
    assert NETS["segformer_b0"].drop_path == 0.1
    rates = [one.drop_prob for one in _net("segformer_b0").modules() if type(one).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.1)
    assert not any(one.drop_prob for one in _net("segformer_b0", drop_path=0.0).modules() if hasattr(one, "drop_prob"))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_exports_for_one_size(name: str) -> None:
    net = _net(name).eval()
    images = _images(batch=1)
    with torch.no_grad():
        exported = torch.export.export(net, (images,), strict=False).module()
        torch.testing.assert_close(exported(images).logits, net(images).logits)


@pytest.mark.parametrize("name", ["deeplabv3_resnet18_v1", "pspnet_mobilevit_xxs"])
def test_exports_for_any_size(name: str) -> None:
    net = _net(name).eval()
    sides = torch.export.Dim.AUTO
    with torch.no_grad():
        program = torch.export.export(net, (_images(),), strict=False, dynamic_shapes=({2: sides, 3: sides},))
        exported = program.module()
        for height, width in ((64, 96), (70, 128), (49, 65)):
            images = _images(height, width)
            torch.testing.assert_close(exported(images).logits, net(images).logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_traces_without_a_break(name: str) -> None:
    torch._dynamo.reset()
    net = _net(name).eval()
    with torch.no_grad():
        traced = torch.compile(net, fullgraph=True, backend="eager")(_images())
        torch.testing.assert_close(traced.logits, net(_images()).logits)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_net_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    net = _net(name).eval()
    names, palette = [f"c{i}" for i in range(CLASSES)], [(i, i, i) for i in range(CLASSES)]
    save_segmentor(net, tmp_path / "net.safetensors", classes=names, palette=palette)
    loaded, _ = load_segmentor(tmp_path / "net.safetensors")
    assert loaded.settings == net.settings
    with torch.no_grad():
        assert torch.equal(loaded(_images()).logits, net(_images()).logits)


# Recipes


def _recipe(net: str) -> str:
    return f"""\
tutelage: 1
name: published
data:
  city: {{root: ., classes: [a, b], splits: {{train: train.txt}}}}
nets:
  student: {{{net}}}
stages:
  student: {{method: supervised, streams: {{labeled: {{data: city/train}}}}}}
"""


def test_a_recipe_names_them_and_gets_the_nets_of_the_papers() -> None:
    for name, settings in NETS.items():
        width = f", width: {settings.width}" if settings.width else ""
        text = _recipe(f"encoder: {settings.encoder}, decoder: {settings.decoder}{width}")
        assert parse_recipe(text, Path()).recipe.nets["student"] == settings, name
    assert {settings.encoder for settings in NETS.values()} == set(PUBLISHED)
    plain = parse_recipe(_recipe("encoder: cirkd_resnet18, decoder: pspnet, auxiliary: false"), Path())
    assert not plain.recipe.nets["student"].auxiliary


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"encoder": ["cirkd_resnet18"], "decoder": "unet"}, "valid string"),
        ({"encoder": "cirkd_resnet18", "decoder": "unet"}, "take deeplabv3 or pspnet or upernet, or an encoder of"),
        ({"encoder": "cirkd_mit_b0", "decoder": "deeplabv3"}, "take segformer, or an encoder of timm, such as mit_b0"),
        ({"encoder": "cirkd_resnet101", "decoder": "upernet"}, "take deeplabv3 or pspnet, or"),
        ({"encoder": "cirkd_resnet18", "decoder": "pspnet", "output_stride": 16}, "leave output_stride out"),
        ({"encoder": "cirkd_mobilevit_xxs", "decoder": "pspnet", "auxiliary": True}, "leave auxiliary out"),
        ({"encoder": "cirkd_mobilenetv2", "decoder": "pspnet", "drop_path": 0.1}, "leave drop_path out"),
    ],
)
def test_what_the_papers_do_not_have_is_refused_with_the_remedy(settings: dict, remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        NetSettings(**settings)


def test_a_misspelt_encoder_names_the_one_that_was_meant() -> None:
    with raises_code("unknown-encoder", "cirkd_resnet18"):
        build(NetSettings(encoder="cirkd_resnet_18", decoder="deeplabv3"), 2)
    with pytest.raises(TutelageError, match=r"cirkd_resnet18.*decoder fpn"):
        parse_recipe(_recipe("encoder: cirkd_resnet18, decoder: fpn"), Path())


@pytest.mark.parametrize("prefix", ["", "module.", "pretrained."])
def test_imagenet_files_of_the_papers_fill_encoders_by_name(prefix: str, tmp_path: Path) -> None:
    for name in ("deeplabv3_resnet18_v1", "pspnet_mobilevit_xxs"):
        source = build(NETS[name], CLASSES, seed=1)
        stored = {
            published_name(f"encoder.{key}", source.settings): one for key, one in source.encoder.state_dict().items()
        }
        torch.save({prefix + key.removeprefix("pretrained."): one for key, one in stored.items()}, tmp_path / "net.pth")
        net = _net(name, weights=str(tmp_path / "net.pth"))
        assert net.load_report.fraction == 1
        assert (
            net.load_report.missing
            == [key for key in net.state_dict() if key.startswith(("decoder", "classifier", "aux"))][
                : len(net.load_report.missing)
            ]
        )
        state, wanted = net.encoder.state_dict(), source.encoder.state_dict()
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_hub_weights_that_do_not_exist_are_refused_before_the_network() -> None:
    with raises_code("weights-unavailable"):
        _net(TINY, weights="hub")


# Published checkpoints


def _published(net: Segmentor, counters: bool = False) -> dict[str, Tensor]:
    """What the papers' repository would have saved of ``net``; older files hold no counters."""
    return {
        published_name(key, net.settings): one.clone()
        for key, one in net.state_dict().items()
        if key not in ("mean", "std") and (counters or not key.endswith("num_batches_tracked"))
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(_published(build(NETS[TINY], CLASSES, seed=1)), tmp_path / "student.pth")
    return tmp_path / "student.pth"


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_published_checkpoint_becomes_a_net(name: str, wrapped: bool, tmp_path: Path) -> None:
    source = build(NETS[name], CLASSES, seed=1).eval()
    tensors = _published(source, counters=wrapped)
    prefixed = {"state_dict": {f"module.{key}": one for key, one in tensors.items()}, "epoch": 3}
    torch.save(prefixed if wrapped else tensors, tmp_path / "net.pth")
    net, report = import_checkpoint(tmp_path / "net.pth", name, CLASSES)
    with torch.no_grad():
        mine, theirs = net(_images()), source(_images())
    assert torch.equal(mine.logits, theirs.logits)
    if theirs.auxiliary is not None:
        assert torch.equal(mine.auxiliary, theirs.auxiliary)
    assert (report.tensors, report.unused) == (len(tensors), ())
    assert f"100.0% of {name}" in str(report)


def test_published_names_are_those_of_the_papers() -> None:
    names = _published(_net("deeplabv3_resnet18_v1"))
    assert {"pretrained.conv1.weight", "pretrained.layer4.1.bn2.running_var", "head.block.4.bias"} <= set(names)
    assert {"head.aspp.b4.gap.1.weight", "auxlayer.block.4.weight", "head.aspp.b3.block.1.bias"} <= set(names)
    assert "patch_embed1.proj.weight" in _published(_net("segformer_b0"))
    assert "pretrained.net.features.17.conv.6.weight" in _published(_net("deeplabv3_mobilenetv2"))
    vit = _published(_net("pspnet_mobilevit_xxs"))
    assert "pretrained.layers.4.1.global_rep.2.attn.attn.in_proj_weight" in vit
    with pytest.raises(KeyError):
        published_name("mean", NETS[TINY])


def test_the_auxiliary_head_may_lack_and_more_may_be_there(tmp_path: Path) -> None:
    tensors = _published(build(NETS["deeplabv3_resnet18_v1"], CLASSES, seed=1))
    kept = {key: one for key, one in tensors.items() if not key.startswith("auxlayer.")}
    torch.save({**kept, "criterion.weight": torch.ones(3)}, tmp_path / "net.pth")
    net, report = import_checkpoint(tmp_path / "net.pth", "deeplabv3_resnet18_v1", CLASSES)
    assert net.auxiliary is None
    assert not net.settings.auxiliary
    assert report.unused == ("criterion.weight",)
    assert "without the auxiliary head" in str(report)
    assert "not needed 1: criterion.weight" in str(report)


def _refusal(file: Path, name: str, classes: int = CLASSES, code: str = "weights-mismatch") -> str:
    with raises_code(code) as raised:
        import_checkpoint(file, name, classes)
    return str(raised.value)


def test_other_classes_are_refused_with_their_number(checkpoint: Path) -> None:
    said = _refusal(checkpoint, TINY, 19)
    assert "of another shape 2: head.classifier.weight ([5, 128, 1, 1] in the file, [19, 128, 1, 1] expected)" in said
    assert "99.9% of its values found" in said
    assert f"it fits --net {TINY} with 5 classes, not 19" in said


def test_another_net_is_refused_and_the_right_one_named(checkpoint: Path, tmp_path: Path) -> None:
    said = _refusal(checkpoint, "deeplabv3_mobilenetv3_small")
    assert "missing" in said
    assert f"it fits --net {TINY} with 5 classes" in said
    torch.save(_published(build(NETS["deeplabv3_resnet18_v2"], CLASSES, seed=0)), tmp_path / "wide.pth")
    said = _refusal(tmp_path / "wide.pth", "deeplabv3_resnet18_v1")
    assert "head.aspp.b0.0.weight ([512, 512, 1, 1] in the file, [128, 512, 1, 1] expected)" in said
    assert "and" in said
    assert "it fits --net deeplabv3_resnet18_v2" in said


def test_an_incomplete_file_is_refused_naming_what_lacks(checkpoint: Path, tmp_path: Path) -> None:
    tensors = torch.load(checkpoint)
    del tensors["pretrained.layer3.linear_conv.conv.weight"]
    torch.save(tensors, checkpoint)
    said = _refusal(checkpoint, TINY)
    assert "missing 1: pretrained.layer3.linear_conv.conv.weight" in said
    assert "under weights: in a recipe" in said
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pth")
    assert "0.0% of its values" in _refusal(tmp_path / "other.pth", TINY)
    torch.save({"net": nn.Linear(1, 1)}, tmp_path / "code.pth")
    _refusal(tmp_path / "code.pth", TINY, code="weights-unsafe")
    _refusal(tmp_path / "none.pth", TINY, code="file-missing")
    assert "deeplabv3_resnet18_v" in _refusal(checkpoint, "deeplabv3_resnet18", code="unknown-net")


# The command


@pytest.fixture
def project(project: Project) -> Project:
    """The tiny project with a published checkpoint of its classes."""
    torch.save(_published(build(NETS[TINY], len(PROJECT_CLASSES), seed=1)), project.root / "student.pth")
    return project


def test_the_command_writes_a_net_that_other_commands_read(project: Project) -> None:
    ran = project.tutelage(
        "import-checkpoint", "student.pth", "--net", TINY, "--like", "recipe.yaml", "--out", "n.safetensors"
    )
    assert (ran.status, ran.err) == (0, "")
    assert f"100.0% of {TINY}" in ran.out
    assert ran.out.endswith("wrote n.safetensors\n")
    metadata = read_metadata(project.root / "n.safetensors")
    assert metadata.classes == PROJECT_CLASSES
    assert metadata.extra == {"imported": {"file": "student.pth", "net": TINY}}
    scored = project.tutelage("evaluate", "n.safetensors", "--recipe", "recipe.yaml", "--data", "city/val")
    assert (scored.status, scored.err) == (0, "")
    predicted = project.tutelage("predict", "n.safetensors", str(project.image(1)), "--out", "masks")
    assert predicted.status == 0


def test_the_command_takes_a_number_of_classes_or_names(project: Project) -> None:
    ran = project.tutelage(
        "import-checkpoint", "student.pth", "--net", TINY, "--classes", "5", "--out", "a.safetensors"
    )
    assert ran.status == 0
    assert read_metadata(project.root / "a.safetensors").classes == tuple(f"class {i}" for i in range(5))
    report = tutelage.import_checkpoint("student.pth", net=TINY, classes="a,b,c,d,e", out="b.safetensors")
    assert report.net == TINY
    assert read_metadata(project.root / "b.safetensors").classes == tuple("abcde")


def test_the_command_refuses_with_the_remedy(project: Project) -> None:
    def refused(*arguments: str) -> str:
        ran = project.tutelage("import-checkpoint", "student.pth", "--net", TINY, *arguments)
        assert ran.status == 1
        assert "remedy: " in ran.err
        return ran.err

    assert "error[missing-option]" in refused("--out", "n.safetensors")
    assert "--out n.safetensors" in refused("--out", "n.pth", "--classes", "5")
    assert "it fits" in refused("--out", "n.safetensors", "--classes", "6")
    (project.root / "n.safetensors").write_bytes(b"mine")
    assert "--force" in refused("--out", "n.safetensors", "--classes", "5")
    assert (project.root / "n.safetensors").read_bytes() == b"mine"
    again = ("import-checkpoint", "student.pth", "--net", TINY, "--out", "n.safetensors", "--classes", "5", "--force")
    assert project.tutelage(*again).status == 0
