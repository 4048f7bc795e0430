"""Gates over the nets inside a plain ViT: DeiT and its kin, as they are, cut out, reordered and with fewer tokens."""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from gated import settle
from timm.data import resolve_data_config
from torch import nn

from asvit_plugin.costs import macs, params
from asvit_plugin.models.scaled_vit import ScaledViT, StridedViT, sample_tokens, spread_tokens
from asvit_plugin.search.budget import Budget
from asvit_plugin.search.gated_vit import GatedViT, gate_vit
from asvit_plugin.search.importance import reorder
from asvit_plugin.search.mask_choice import judged_nets, most_probable
from asvit_plugin.search.space import Choice, Space

SMALL: dict[str, Any] = dict(img_size=32, depth=3, num_heads=4, head_dim=6, num_classes=5)
ODD: dict[str, Any] = dict(
    img_size=(40, 70), depth=3, embed_dim=20, num_heads=(1, 2, 5), head_dim=6, mlp_ratio=(1, 2.5, 4), num_classes=5
)
ALL: dict[str, Sequence[int] | None] = dict(
    embed_dim=(12, 15), depth=(1, 2), num_heads=None, mlp_hidden=(7, 33, 50), token_stride=(2, 3)
)
# Model, its arguments, and what is decided.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "grids": ("scaled_vit", SMALL, None),
    "everything": ("scaled_vit", SMALL | {"img_size": 64}, ALL),
    "blocks_differ": ("scaled_vit", ODD, dict(exists=None, embed_dim=(10, 12), num_heads=None, mlp_hidden=None)),
    "norms": (
        "scaled_vit",
        SMALL | dict(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True, pre_norm=True, init_values=0.1),
        dict(embed_dim=None, num_heads=None, mlp_hidden=None),
    ),
    "registers": (
        "scaled_vit",
        SMALL | dict(reg_tokens=2, no_embed_class=True, global_pool="avg", qkv_bias=False, in_chans=1),
        dict(embed_dim=None, num_heads=None, token_stride=None),
    ),
    "no_class_token": (
        "scaled_vit",
        SMALL | dict(class_token=False, global_pool="avg", fc_norm=False, proj_bias=False, pos_embed="none"),
        dict(mlp_hidden=None, embed_dim=None),
    ),
    "unpooled": ("scaled_vit", SMALL | dict(global_pool=""), dict(embed_dim=None, token_stride=(2,))),
    "deit": ("deit_tiny_patch16_224", dict(img_size=32, num_classes=5), dict(depth=(3, 1), embed_dim=None)),
}
HOW = ("fixed", "drawn")


def model(name: str = "scaled_vit", **kwargs: Any) -> nn.Module:
    """A ViT whose weights are large enough that nothing hides behind them, in eval mode."""
    net = timm.create_model(name, **kwargs)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.double().eval()


def gated(case: str = "grids") -> GatedViT:
    name, kwargs, options = CASES[case]
    return gate_vit(model(name, **kwargs), options)


def images(net: GatedViT, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, net.network.in_chans, *net.network.patch_embed.img_size, dtype=torch.float64)


def choices(net: GatedViT, count: int) -> list[Choice]:
    rng = np.random.default_rng(0)
    return [net.space.sample(rng) for _ in range(count)]


def assert_same(got: torch.Tensor, expected: torch.Tensor, what: str = "the output") -> None:
    error = (got - expected).abs().max().item()
    assert error <= 1e-10 * max(1.0, expected.abs().max().item()), f"{what} is off by {error}"


def put_back(own: Mapping[str, torch.Tensor], whole: nn.Module, kept: Sequence[int]) -> dict[str, torch.Tensor]:
    """A net's tensors as the leading parts of the whole net's, which are found by shape alone; zeros elsewhere."""
    found = {name: torch.zeros_like(each) for name, each in whole.named_parameters()}
    for name, tensor in own.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[1] = str(kept[int(parts[1])])
        target = found[".".join(parts)]
        if ".qkv." in name:
            target, tensor = target.unflatten(0, (3, -1)), tensor.unflatten(0, (3, -1))
        target[tuple(slice(size) for size in tensor.shape)] += tensor
    return found


def blocks_kept(choice: Choice, depth: int) -> list[int]:
    return [n for n in range(depth) if n < choice.get("depth", depth) and choice.get(f"exists_{n + 1}", 1)]


# One net --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("case", CASES)
def test_one_option_of_every_gate_is_the_net_cut_out(case: str, how: str) -> None:
    """In output, and in the gradients of all weights."""
    net = gated(case)
    x = images(net)
    for choice in choices(net, 3):
        settle(net, choice, how)
        alone = net.extract(choice)
        output, expected = net(x), alone(x)
        assert_same(output, expected)
        weights = torch.randn_like(expected)
        names, parameters = zip(*net.network.named_parameters())
        found = torch.autograd.grad((output * weights).sum(), parameters, materialize_grads=True, allow_unused=True)
        own = torch.autograd.grad((expected * weights).sum(), list(alone.parameters()))
        kept = blocks_kept(choice, len(net.network.blocks))
        whole = put_back(dict(zip(dict(alone.named_parameters()), own)), net.network, kept)
        for name, gradient in zip(names, found):
            assert_same(gradient, whole[name], name)


@pytest.mark.parametrize("case", CASES)
def test_one_net_costs_what_is_counted_to_the_unit(case: str) -> None:
    net = gated(case)
    for choice in choices(net, 3):
        net.gates.fix(choice)
        alone = net.extract(choice)
        size = net.network.patch_embed.img_size
        assert net.cost("macs", drawn=True).item() == macs(alone, (net.network.in_chans, *size))
        assert net.cost("params", drawn=True).item() == params(alone)
        assert net.cost_of("params", choice) == params(alone)


@pytest.mark.parametrize("case", CASES)
def test_a_net_is_what_timm_builds_from_its_arguments(case: str) -> None:
    net = gated(case)
    x = images(net)
    for choice in (*choices(net, 2), net.smallest_choice()):
        name, arguments = net.space.arguments(choice)
        again = timm.create_model(name, **yaml.safe_load(yaml.safe_dump(arguments))).double().eval()
        alone = net.extract(choice)
        assert type(alone) is type(again) is (StridedViT if choice.get("token_stride", 1) > 1 else ScaledViT)
        again.load_state_dict(alone.state_dict())
        assert torch.equal(again(x), alone(x))
        hidden = [block.mlp.fc1.out_features for block in alone.blocks]
        kept = blocks_kept(choice, len(net.network.blocks))
        own = [net.network.blocks[n].mlp.fc1.out_features for n in kept]
        assert hidden == [choice.get(f"mlp_hidden_{n + 1}", width) for n, width in zip(kept, own)]


def test_every_hidden_width_comes_out_exactly() -> None:
    """The model takes int(embed_dim * ratio), which rounding must not bring to the width below."""
    options = dict(embed_dim=tuple(range(1, 25)), mlp_hidden=tuple(range(1, 97)))
    space = gate_vit(timm.create_model("scaled_vit", device="meta", **SMALL | {"depth": 1}), options).space
    for dim in options["embed_dim"]:
        for hidden in options["mlp_hidden"]:
            ratio = space.arguments({"embed_dim": dim, "mlp_hidden_1": hidden})[1]["mlp_ratio"][0]
            assert int(dim * ratio) == hidden


def test_the_model_stays_and_the_largest_net_is_it_to_the_last_bit() -> None:
    whole = model("deit_tiny_patch16_224", img_size=32, num_classes=5, drop_path_rate=0.2)
    before = copy.deepcopy(whole)
    net = gate_vit(whole, {"depth": None, "token_stride": (1, 2)})
    x = images(net)
    net.gates.fix(net.largest_choice())
    assert net.largest_choice() == {"depth": 12, "token_stride": 1}
    assert torch.equal(net(x), before(x))
    with torch.no_grad():
        net.network.head.weight.zero_()
    assert torch.equal(whole(x), before(x))
    assert [type(module) for module in whole.modules()] == [type(module) for module in before.modules()]
    assert list(net.network.state_dict()) == list(before.state_dict())
    assert net.extract({"depth": 6, "token_stride": 1}).blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    undropped = net.extract(net.largest_choice(), drop_path_rate=0.0)
    assert isinstance(undropped.blocks[-1].drop_path1, nn.Identity)


def test_training_mode_and_arguments_of_the_caller() -> None:
    net = gated().train()
    assert net.extract(net.smallest_choice()).training
    with pytest.raises(ValueError, match="the weights of the choice do not fit a net with {'num_classes': 9}"):
        net.extract(net.smallest_choice(), num_classes=9)
    with pytest.raises(ValueError, match="decision 'depth' is 9; it must be one of"):
        net.extract(net.smallest_choice() | {"depth": 9})


def test_nets_keep_the_preprocessing() -> None:
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear", "crop_pct": 0.8}
    own["crop_mode"] = "squash"
    whole = timm.create_model("scaled_vit", device="meta", pretrained_cfg_overlay=own, **SMALL)
    net = gate_vit(whole)
    for kwargs in ({}, {"pretrained_cfg_overlay": {"crop_pct": 1.0}}):
        alone = net.extract(net.smallest_choice(), **kwargs)
        expected = resolve_data_config(model=whole) | {"input_size": (3, 32, 32)}
        expected |= kwargs.get("pretrained_cfg_overlay", {})
        assert resolve_data_config(model=alone) == expected
        assert {name: alone.pretrained_cfg[name] for name in own} == {name: expected[name] for name in own}


@pytest.mark.parametrize(
    "name",
    ["deit3_small_patch16_224", "vit_tiny_patch16_224", "vit_base_patch16_224", "vit_small_patch14_reg4_dinov2"],
)
def test_timms_plain_vits_are_taken(name: str) -> None:
    net = gate_vit(timm.create_model(name, device="meta"))
    smallest = net.smallest_choice()
    assert net.reach("macs")[0] == macs(net.extract(smallest), (3, *net.network.patch_embed.img_size))
    assert net.reach("params")[1] == params(net.network)


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_token_strides_are_mixed_behind_the_blocks(hard: bool) -> None:
    net = gated("everything")
    whole, x = net.network, images(net)
    net.gates.draw(1.0, hard, torch.Generator().manual_seed(0))
    for name, gate in net.gates.items():
        if name != "token_stride":
            gate.fix(gate.options[0])
    weights, grid = net.gates["token_stride"].weights, (4, 4)
    tokens = whole._pos_embed(whole.patch_embed(x))
    mixed = sum(
        weight * spread_tokens(whole.blocks(sample_tokens(tokens, grid, stride, 1)), grid, stride, 1)
        for stride, weight in zip((1, 2, 3), weights)
    )
    output = net(x)
    assert_same(output, whole.forward_head(whole.norm(mixed)))
    (slopes,) = torch.autograd.grad(output.square().sum(), net.gates["token_stride"].logits)
    assert slopes.abs().min() > 0


@pytest.mark.parametrize(("wanted", "runs"), [(True, 3), (False, 1)], ids=["learning", "frozen"])
def test_frozen_gates_run_the_chosen_stride_alone(wanted: bool, runs: int) -> None:
    net, lengths = gated("everything"), []
    net.network.blocks[0].register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    net.gates.requires_grad_(wanted)
    net.gates.draw(1.0, True, torch.Generator().manual_seed(0))
    net(images(net))
    assert len(lengths) == runs
    assert set(lengths) <= {17, 5}


def test_every_gate_learns() -> None:
    net = gated("everything").train()
    net.gates.draw(2.0, False, torch.Generator().manual_seed(0))
    (net(images(net)).square().sum() + 1e-6 * net.cost("macs")).backward()
    assert all(gate.logits.grad.abs().max() > 0 for gate in net.gates.values())


def test_gradient_checkpointing_changes_nothing() -> None:
    net = gated("everything")
    x = images(net)

    def step() -> list[torch.Tensor]:
        net.gates.draw(1.0, False, torch.Generator().manual_seed(0))
        return list(torch.autograd.grad(net(x).square().sum(), list(net.parameters()), allow_unused=True))

    plain = step()
    net.network.set_grad_checkpointing()
    for got, expected in zip(step(), plain):
        torch.testing.assert_close(got, expected)


# Important ones first -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_sorting_by_importance_leaves_the_whole_net_as_it_is(case: str) -> None:
    net = gated(case)
    x = images(net)
    net.gates.fix(net.largest_choice())
    before, weights = net(x), copy.deepcopy(net.network.state_dict())
    net.reorder()
    assert_same(net(x), before)
    assert any(not torch.equal(weights[name], each) for name, each in net.network.state_dict().items())
    once = copy.deepcopy(net.network.state_dict())
    net.reorder()
    assert all(torch.equal(once[name], each) for name, each in net.network.state_dict().items())


def test_important_channels_heads_and_units_come_first() -> None:
    net = model(**SMALL | {"init_values": 0.1})
    reorder(net)
    units = [
        each.mlp.fc1.weight.abs().sum(1) + each.mlp.fc1.bias.abs() + each.mlp.fc2.weight.abs().sum(0)
        for each in net.blocks
    ]
    assert all(torch.equal(each, each.sort(descending=True).values) for each in units)
    channels = (net.head.weight * net.norm.weight).abs().sum(0)
    for block in net.blocks:
        channels = channels + (block.attn.qkv.weight * block.norm1.weight).abs().sum(0)
        channels = channels + (block.mlp.fc1.weight * block.norm2.weight).abs().sum(0)
        for layer, scale in ((block.attn.proj, block.ls1), (block.mlp.fc2, block.ls2)):
            channels = channels + (layer.weight.abs().sum(1) + layer.bias.abs()) * scale.gamma.abs()
    assert channels.tolist() == pytest.approx(channels.sort(descending=True).values.tolist(), rel=1e-12)


def test_moments_move_along() -> None:
    """A step after sorting gives the very net that sorting after the step gives."""
    first = model(**SMALL)
    second = copy.deepcopy(first)
    nets = [(net, torch.optim.AdamW(net.parameters(), 1e-2)) for net in (first, second)]
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, scale: float) -> None:
        optimizer.zero_grad()
        net(scale * x).square().sum().backward()
        optimizer.step()

    for net, optimizer in nets:
        step(net, optimizer, 1.0)
    leader = copy.deepcopy(first)
    reorder(*nets[0])
    for net, optimizer in nets:
        step(net, optimizer, 2.0)
    reorder(leader, copies=[second])
    for (name, ours), theirs in zip(first.state_dict().items(), second.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_smaller_nets_take_what_is_important() -> None:
    """A net with units and channels that say nothing loses nothing by losing them, once they are last."""
    net = model(**SMALL)
    with torch.no_grad():
        for block in net.blocks:
            block.mlp.fc1.weight[::2] = block.mlp.fc1.bias[::2] = 0
            block.mlp.fc2.weight[:, ::2] = 0
    small = gate_vit(net, {"mlp_hidden": (48,)})
    x = images(small)
    small.gates.fix(small.smallest_choice())
    assert (small(x) - net(x)).abs().max() > 1e-2
    small.reorder()
    assert_same(small(x), net(x))


# Chosen nets ----------------------------------------------------------------------------------------------------------


def test_decisions_of_blocks_that_are_gone_tell_no_nets_apart() -> None:
    """The probabilities of the 12 different nets of 16 choices sum to 1, and no net is drawn twice."""
    net = gate_vit(model(**SMALL | {"num_heads": 2}), {"depth": None, "num_heads": None})
    for gate in net.gates.values():
        nn.init.normal_(gate.logits)
    choices = [dict(zip(net.space.decisions, values)) for values in product(*net.space.decisions.values())]
    nets = {net.gates.net_of(choice): choice for choice in choices}
    built = {str(net.space.arguments(choice)) for choice in choices}
    assert (len(choices), len(nets), len(built)) == (16, 12, 12)
    assert sum(math.exp(net.gates.log_probability(choice)) for choice in nets.values()) == pytest.approx(1)
    budget = Budget("macs", partial(net.cost_of, "macs"), net.reach("macs")[1], 0)
    found = [choice for _, choice in judged_nets(net.gates, budget, 20)]
    assert len({net.gates.net_of(choice) for choice in found}) == len(found) == 12
    found = most_probable(net.gates, budget)
    assert net.gates.net_of(found) == max(nets, key=lambda each: net.gates.log_probability(nets[each]))


def test_gates_are_where_the_model_is_and_as_precise() -> None:
    net = gate_vit(model(**SMALL), {"embed_dim": None})
    assert {each.dtype for each in net.gates.parameters()} == {torch.float64}
    half = gate_vit(model(**SMALL).bfloat16(), {"embed_dim": None})
    assert {each.dtype for each in half.gates.parameters()} == {torch.float32}


def test_features_of_a_narrower_net_end_in_zeros() -> None:
    net = gate_vit(model(**SMALL | {"num_classes": 0}), {"embed_dim": (12,), "num_heads": None})
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    choice = net.smallest_choice()
    net.gates.fix(choice)
    features = net(x)
    torch.testing.assert_close(features[:, :12], net.extract(choice)(x), rtol=1e-10, atol=1e-10)
    assert features.shape == (2, 24)
    assert not features[:, 12:].any()


def test_a_net_says_what_it_takes_and_gives() -> None:
    net = gate_vit(model(**SMALL | {"in_chans": 1}), {"embed_dim": None})
    cut = net.extract(net.smallest_choice())
    assert resolve_data_config(model=cut)["input_size"] == (1, 32, 32)
    assert cut.pretrained_cfg["num_classes"] == 5


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("swin_tiny_patch4_window7_224", {}, "SwinTransformer: its class must be VisionTransformer or ScaledViT"),
        ("deit_tiny_distilled_patch16_224", {}, "VisionTransformerDistilled: its class must be .* parts of its own"),
        ("vit_resnas_tiny", {}, "ViTResNAS: its class must be"),
        ("scaled_vit", {"token_stride": 2}, "StridedViT: its blocks see every 2. row and column of tokens already"),
        (
            "castling_deit_tiny_patch16_224",
            {},
            "blocks.0.attn is a LinearAngularAttention; it must be timm's Attention",
        ),
        ("vit_base_patch16_siglip_224", {}, "global_pool is 'map'"),
        ("vit_base_patch16_clip_224", {}, "norm_pre is .*; it must be a LayerNorm with eps=1e-06"),
        ("vit_small_r26_s32_224", {}, "patch_embed is a HybridEmbed; it must be timm's PatchEmbed without a norm"),
        ("vit_base_patch16_rpn_224", {}, "blocks.0 is a ResPostBlock; it must be timm's Block"),
        ("vit_small_patch14_dinov2", {"mlp_layer": timm.layers.SwiGLU}, "blocks.0.mlp is a SwiGLU"),
        ("scaled_vit", {"act_layer": "silu"}, "blocks.0.mlp.act is a SiLU; it must be GELU"),
        ("scaled_vit", {"final_norm": False}, "it has no norm before its head"),
        ("scaled_vit", {"patch_drop_rate": 0.5}, "patch_drop_rate is not 0"),
    ],
)
def test_models_that_cannot_be_masked_are_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"gates cannot mask this .*{message}") as caught:
        gate_vit(timm.create_model(name, device="meta", **kwargs))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": None}, "options is 'width'; it must be one of 'embed_dim', 'depth'"),
        ({"depth": None, "exists": None}, "options have both 'depth' and 'exists'"),
        ({"depth": (0, 2)}, "options of depth have 0; they must be whole numbers of at least 1"),
        ({"mlp_hidden": (2.5,)}, "options of mlp_hidden have 2.5"),
        ({"depth": 2}, "options of depth are 2; they must be a list or tuple of whole numbers, or None"),
        ({"depth": "2"}, "options of depth are '2'; they must be a list or tuple"),
        ({"token_stride": (2, 3)}, "options of token_stride have 3; the grid has 2 patches a side"),
        ({"num_heads": (5,)}, "options of num_heads have 5; the model has 4, and its nets have no more"),
        ({}, "has no decisions"),
        ({"depth": (3,)}, "has no decision of at least two options"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_options_that_a_model_has_not_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gate_vit(timm.create_model("scaled_vit", device="meta", **SMALL), options)


def test_a_space_goes_with_the_models_that_have_its_sizes() -> None:
    space = gated("everything").space
    assert gate_vit(model(**SMALL | {"img_size": 64}), space).space == space
    with pytest.raises(ValueError, match="decision 'depth' of space 'masked_vit' goes up to 3; the ViT has 4"):
        gate_vit(model(**SMALL | {"depth": 4}), space)
    other = Space("other", "scaled_vit", {"head_dim": (6, 3)})
    with pytest.raises(ValueError, match="space 'other' has the decision 'head_dim', which is none of this ViT's"):
        gate_vit(model(**SMALL), other)
