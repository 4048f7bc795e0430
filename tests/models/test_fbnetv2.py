"""FBNetV2: the published counts, the arithmetic of the published tables, and what timm's tests do not ask."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from doc_blocks import DOCS, run_block
from plugin_models import CHEAP
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import nn
from torch.export import Dim

from asvit_plugin.costs import macs, params

# Stem width, then blocks by stage: kernel, channels, stride (1 unless given), [expanded width], SE, hard-swish.
_F1 = (
    "8: k5 8[8] | k5 24/2[48] k5 24[112] | k5se 32/2[128] k5se 24[144] | k5hs 56/2[136] k3hs 56[232] k3sehs 56[288] "
    "skip 80 k5sehs 80[360] k5sehs 80[144] | k3sehs 144/2[368] k5sehs 144[840] k5sehs 144[992] skip 224"
)
_F4 = (
    "16: k3hs 16[16] | k5hs 24/2[88] k5hs 24[48] k5hs 24[48] | k5se 32/2[128] k5se 32[112] k5se 32[144] k5se 32[144] | "
    "k5hs 64/2[184] k3hs 64[136] skip 64 k3hs 104[320] k5sehs 104[264] k5sehs 104[184] k5sehs 112[392] | "
    "k3sehs 184/2[624] k5sehs 184[520] k5sehs 184[896] skip 224"
)
_L1 = (
    "16: k3hs 16[16] | k5hs 24/2[88] k5hs 24[48] k3hs 24[48] k5hs 24[48] | "
    "k5sehs 40/2[128] k5sehs 32[144] k5sehs 32[144] k5sehs 32[144] | "
    "k5hs 64/2[184] k3hs 64[136] skip 64 k3hs 64[200] k3hs 112[320] k5sehs 112[280] k5sehs 112[200] k5sehs 112[312] "
    "k5sehs 112[424] k5sehs 112[424] | "
    "k3sehs 184/2[624] k5sehs 184[520] k5sehs 184[520] k5sehs 184[896] k5sehs 184[896] skip 224"
)
# Table, image size, size before the crop, published parameters (weights of convolutions), all parameters, published
# million MACs.
PUBLISHED = {
    "fbnetv2_f1": (_F1, 128, 151, 5_999_408, 6_024_736, 56.41056),
    "fbnetv2_f2": (_F1, 160, 179, 5_999_408, 6_024_736, 85.441392),
    "fbnetv2_f3": (_F1, 192, 208, 6_899_504, 6_924_832, 121.824),
    "fbnetv2_f4": (_F4, 224, 251, 6_994_824, 7_022_864, 238.351984),
    "fbnetv2_l1": (_L1, 224, 256, 8_496_520, 8_538_776, 326.023008),
    "fbnetv2_l2": (_L1, 256, 287, 8_496_520, 8_538_776, 423.912768),
}
BLOCK = re.compile(r"(?:k(\d)(se)?(hs)?|skip) (\d+)(?:/(\d))?(?:\[(\d+)\])?")
every_model = pytest.mark.parametrize("name", PUBLISHED)


def tiny(**kwargs: Any) -> nn.Module:
    """A small net in which nothing hides behind initial values."""
    torch.manual_seed(0)
    model = timm.create_model("fbnetv2_f1", **{**CHEAP["fbnetv2"], "num_classes": 10, **kwargs})
    return shaken(model).eval()


def shaken(model: nn.Module) -> nn.Module:
    """The model with every gain, bias and statistic away from 0 and 1."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model


@every_model
def test_counts_are_the_published_ones(name: str) -> None:
    _, _, _, weights, everything, million_macs = PUBLISHED[name]
    model = timm.create_model(name, device="meta")
    assert sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))) == weights
    assert params(model) == everything
    assert macs(model) == pytest.approx(million_macs * 1e6, rel=0.005)


class Reference:
    """The net of a table, in functions; it takes the tensors of a state dict one after the other."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.tensors: Iterator[torch.Tensor] = iter(value for value in state.values() if value.ndim)

    def convolve(self, x: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight = next(self.tensors)
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        gain, bias, mean, variance = (next(self.tensors)[:, None, None] for _ in range(4))
        return (x - mean) / torch.sqrt(variance + 1e-5) * gain + bias

    def excite(self, x: torch.Tensor, act: Any) -> torch.Tensor:
        down, down_bias, up, up_bias = (next(self.tensors) for _ in range(4))
        assert len(down) == max(8, (down.shape[1] // 4 + 4) // 8 * 8)  # a quarter, in multiples of 8
        hidden = act(x.mean((2, 3)) @ down[:, :, 0, 0].T + down_bias)
        gate = hidden @ up[:, :, 0, 0].T + up_bias
        return x * (gate + 3).clamp(0, 6)[:, :, None, None] / 6

    def block(self, x: torch.Tensor, block: str) -> torch.Tensor:
        kernel, se, hs, channels, stride, width = BLOCK.fullmatch(block).groups()
        channels, stride = int(channels), int(stride or 1)
        if kernel is None:
            return x if channels == x.shape[1] else F.relu(self.norm(self.convolve(x)))
        act = F.hardswish if hs else F.relu
        shortcut = x
        if int(width) != x.shape[1]:
            x = act(self.norm(self.convolve(x)))
        assert x.shape[1] == int(width)
        x = self.convolve(x, stride, groups=x.shape[1])
        x = act(self.norm(x))
        x = self.excite(x, act) if se else x
        x = self.norm(self.convolve(x))
        return x + shortcut if x.shape == shortcut.shape else x

    def run(self, x: torch.Tensor, table: str) -> torch.Tensor:
        stem, blocks = table.split(": ")
        x = F.hardswish(self.norm(self.convolve(x, 2)))
        assert x.shape[1] == int(stem)
        for match in BLOCK.finditer(blocks):
            x = self.block(x, match[0])
        x = F.hardswish(self.norm(self.convolve(x))).mean((2, 3), keepdim=True)
        x = F.hardswish(self.convolve(x)).flatten(1)
        x = F.linear(x, next(self.tensors), next(self.tensors))
        assert next(self.tensors, None) is None
        return x


@pytest.mark.parametrize("name", ["fbnetv2_f1", "fbnetv2_f4", "fbnetv2_l1"])
def test_computes_what_the_table_says(name: str) -> None:
    torch.manual_seed(0)
    model = shaken(timm.create_model(name, num_classes=10)).double().eval()
    x = torch.randn(2, 3, 72, 97, dtype=torch.float64)
    with torch.no_grad():
        expected = Reference(model.state_dict()).run(x, PUBLISHED[name][0])
        assert expected.std() > 0.01
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@every_model
def test_preprocessing_is_the_authors(name: str) -> None:
    _, size, resize, *_ = PUBLISHED[name]
    config = resolve_data_config(model=timm.create_model(name, device="meta"))
    assert config["input_size"] == (3, size, size)
    resized, cropped, *_ = create_transform(**config, is_training=False).transforms
    assert resized.size in (resize, (resize, resize))
    assert "bilinear" in str(resized)
    assert tuple(cropped.size) == (size, size)
    assert (config["mean"], config["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@every_model
def test_pyramid(name: str) -> None:
    features = timm.create_model(name, features_only=True, device="meta")
    width = {"f": (8, 24, 24, 80, 1344), "l": (16, 24, 32, 112, 1344)}["f" if name < "fbnetv2_f4" else "l"]
    assert features.feature_info.channels() == list(width)
    assert features.feature_info.reduction() == [2, 4, 8, 16, 32]


def test_residual_branches_start_at_zero() -> None:
    model = timm.create_model("fbnetv2_l1").eval()
    shapes = []
    for stage in model.blocks:
        for block in stage:
            conv = next(module for module in block.modules() if isinstance(module, nn.Conv2d))
            x = torch.randn(1, conv.in_channels, 5, 5)
            y = block(x)
            assert y.shape != x.shape or torch.equal(x, y)
            shapes.append(y.shape == x.shape)
    assert shapes.count(True) == 17


@pytest.mark.parametrize(
    "block", ["cn_r2_k3_s1_c8_skip", "er_r2_k3_s1_e2_c8", "ir_r2_k3_s1_e2_c8_noskip", "ds_r2_k3_s1_c8"]
)
def test_residual_branches_of_every_kind_start_at_zero(block: str) -> None:
    model = timm.create_model("fbnetv2_f1", stem_size=8, arch_def=[[f"{block}_nre"]]).eval()
    x = torch.rand(1, 8, 5, 5)
    assert torch.equal(model.blocks(x), x) == ("noskip" not in block)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_net_has_the_same_features_at_more_places(output_stride: int) -> None:
    """Without squeeze-and-excitation, whose mean is over other places."""
    arch = [[block.replace("_se0.25", "") for block in stage] for stage in CHEAP["fbnetv2"]["arch_def"]]
    plain = tiny(arch_def=arch).double()
    dilated = tiny(arch_def=arch, output_stride=output_stride).double().eval()
    dilated.load_state_dict(plain.state_dict())
    assert [info["reduction"] for info in dilated.feature_info] == [min(2**i, output_stride) for i in range(1, 6)]
    x = torch.randn(1, 3, 96, 160, dtype=torch.float64)
    maps = zip(*(model.forward_intermediates(x, intermediates_only=True) for model in (plain, dilated)))
    for i, (ours, denser) in enumerate(maps):
        stride = 2 ** (i + 1) // min(2 ** (i + 1), output_stride)
        torch.testing.assert_close(denser[:, :, ::stride, ::stride], ours)
    assert timm.create_model("fbnetv2_f1", features_only=True, output_stride=8).feature_info.reduction()[-1] == 8


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(arch_def=[["mb_r1_k3_s1_e1_c8"]]), "arch_def has the block 'mb_r1_k3_s1_e1_c8'; it must be in timm's"),
        (dict(arch_def=[["ir_r1_k3_s1_c8"]]), "arch_def has the block 'ir_r1_k3_s1_c8'"),
        (dict(arch_def=[["ir_r1_k3_s3_e1_c8"]]), "arch_def has the block 'ir_r1_k3_s3_e1_c8'"),
        (dict(arch_def=[["uir_r1_k3_s1_e1_c8"]]), "block 'uir_r1_k3_s1_e1_c8'; its kind must be one of ds, ir, er, cn"),
        (dict(arch_def=[["dsa_r1_k3_s1_e1_c8"]]), "block 'dsa_r1_k3_s1_e1_c8'; its kind must be one of ds, ir, er, cn"),
        (dict(arch_def=[["ir_r1_k3_s1_e1_c8_nxx"]]), "with 'nxx'; activations are nre, nr6, nhs, nsw, nmi"),
        (dict(arch_def=["ir_r1_k3_s1_e1_c8"]), "arch_def has the block 'i'"),
        (dict(arch_def=[["ds_r1_k3_s1_e1_c8"], []]), "every stage a block"),
        (dict(arch_def=[]), r"arch_def is \[\]; it must have a stage"),
        (dict(output_stride=4), r"output_stride is 4; it must be one of \(8, 16, 32\)"),
    ],
)
def test_mistakes_get_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        timm.create_model("fbnetv2_f1", **arguments)
    assert "\n" not in str(caught.value)


def test_local_weights_adapt(tmp_path: Path) -> None:
    source = tiny()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = dict(file=str(tmp_path / "weights.pth"), num_classes=10)
    adapted = tiny_from(overlay, in_chans=1, num_classes=5)
    gray = torch.randn(2, 1, 64, 96)
    assert adapted(gray).shape == (2, 5)
    torch.testing.assert_close(
        adapted.forward_features(gray), source.forward_features(gray.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
    )


def tiny_from(overlay: dict[str, Any], **kwargs: Any) -> nn.Module:
    arguments = {**CHEAP["fbnetv2"], "num_classes": 10, **kwargs}
    return timm.create_model("fbnetv2_f1", pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval()


BAD_FILES = {
    "other_family": (lambda w: timm.create_model("test_vit").state_dict(), "it lacks"),
    "block_missing": (lambda w: {k: v for k, v in w.items() if "blocks.2.1" not in k}, "it lacks blocks.2.1"),
    "left_over": (lambda w: {**w, "extra": torch.zeros(1)}, "the model has no extra"),
    "shape": (lambda w: {**w, "bn1.weight": torch.zeros(3)}, r"bn1.weight \(3,\) for \(8,\)"),
}


@pytest.mark.parametrize("classes", [10, 4], ids=["same_classes", "other_classes"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_do_not_fit_are_refused(case: str, classes: int, tmp_path: Path) -> None:
    spoil, message = BAD_FILES[case]
    torch.save(spoil(tiny().state_dict()), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        tiny_from(dict(file=str(tmp_path / "weights.pth"), num_classes=10), num_classes=classes)


def test_hub_round_trip(tmp_path: Path) -> None:
    model = tiny(output_stride=16)
    model.reset_classifier(7)
    save_for_hf(model.eval(), str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 128, 64)
    assert torch.equal(again(x), model(x))


def test_gradient_checkpointing_changes_nothing() -> None:
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    plain = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    torch.testing.assert_close(torch.autograd.grad(model(x).sum(), list(model.parameters())), plain)


def test_export_and_script_serve_other_sizes() -> None:
    model = tiny()
    shapes = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    program = torch.export.export(model, (torch.randn(2, 3, 100, 150),), dynamic_shapes=shapes).module()
    scripted = torch.jit.script(model)
    for size in ((64, 64), (97, 200)):
        x = torch.randn(3, 3, *size)
        torch.testing.assert_close(program(x), model(x))
        torch.testing.assert_close(scripted(x), model(x))


def test_dropout_acts_in_training_only() -> None:
    for kwargs in (dict(drop_rate=0.9), dict(drop_path_rate=0.9)):
        model, x = tiny(**kwargs), torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(model(x), tiny()(x))
        for module in model.train().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        assert not torch.allclose(model(x), model(x))


def test_docs_show_the_counts() -> None:
    page = (DOCS / "fbnetv2.md").read_text()
    for name, (_, size, _, _, everything, published) in PUBLISHED.items():
        counted = macs(timm.create_model(name, device="meta")) / 1e6
        assert f"| `{name}` | {size} | {everything:,} | {counted:.1f} | {published:.1f} |" in page


def test_docs_code_runs() -> None:
    names = run_block("fbnetv2.md", "From Python")
    assert names["logits"].shape == (1, 10)
    assert [tuple(each.shape[2:]) for each in names["maps"]] == [(64, 48), (32, 24), (16, 12), (8, 6), (4, 3)]
    assert names["small"].eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
