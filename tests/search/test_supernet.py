"""The supernet: every example is computed by its own net, by masks as by slices, and extraction gives that net."""

import copy
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from supernets import LINEAR_STEM, ONE_STAGE, TWO_STAGES, add_to_whole, choices, supernet
from timm.models import get_model_args
from timm.utils import ModelEmaV3

from asvit_plugin import NetworkDef, ViTResNAS
from asvit_plugin.search import Space
from asvit_plugin.search.network_space import NetworkSpace
from asvit_plugin.search.space import Choice
from asvit_plugin.search.supernet import MODES, SuperNet, faster_mode, make_supernet
from asvit_plugin.search.supernet_masks import ChannelMask, MaskedLayerNorm
from asvit_plugin.search.supernet_slices import sliced_net

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # of the largest value
# Space, arguments of the supernet, image size, and whether the net is in training mode (its stem never is).
CASES: dict[str, tuple[NetworkSpace, dict[str, Any], tuple[int, int], bool]] = {
    "plain": (TWO_STAGES, {}, (56, 56), False),
    "padded_image": (TWO_STAGES, {}, (50, 75), False),
    "wide_supernet": (TWO_STAGES, {"img_size": (28, 84)}, (28, 84), False),
    "average": (TWO_STAGES, {"global_pool": "avg", "in_chans": 1}, (56, 56), False),
    "maximum": (TWO_STAGES, {"global_pool": "max"}, (56, 56), False),
    "unpooled": (TWO_STAGES, {"global_pool": ""}, (56, 56), False),
    "distilled": (TWO_STAGES, {"distilled": True}, (56, 56), False),
    "two_heads": (TWO_STAGES, {"distilled": True}, (56, 56), True),
    "patch_head": (TWO_STAGES, {"patch_head": True}, (56, 56), True),
    "linear_stem": (LINEAR_STEM, {"patch_head": True}, (56, 56), True),
    "one_stage": (ONE_STAGE, {"distilled": True}, (42, 56), True),
}


def tensors(output: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def images(model: torch.nn.Module, batch: int, size: tuple[int, int] = (56, 56)) -> torch.Tensor:
    return torch.randn(batch, model.in_chans, *size, dtype=model.cls_token.dtype)


def gradients(model: torch.nn.Module, output: Any, weights: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the sum of all outputs times weights."""
    loss = sum((each * weight).sum() for each, weight in zip(tensors(output), weights))
    names, parameters = zip(*model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, parameters)))


def assert_same(got: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    error = (got - expected).abs().max().item()
    assert error <= TOLERANCE[expected.dtype] * max(1.0, expected.abs().max().item()), f"{what} is off by {error}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_every_example_is_computed_by_its_net(case: str, mode: str, dtype: torch.dtype) -> None:
    networks, kwargs, size, training = CASES[case]
    model = supernet(networks, **kwargs).to(dtype)
    model.train(training).patch_embed.eval()
    model.distilled_training = True
    chosen, x = choices(networks, 3), images(model, 6, size)
    model.mode = mode
    model.choose(chosen)
    output = tensors(model(x))
    weights = [torch.randn_like(each) for each in output]
    expected = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for index, choice in enumerate(chosen):
        alone = model.extract(choice)
        alone.patch_embed.eval()
        alone.distilled_training = True
        own = tensors(alone(x[index::3]))
        assert len(own) == len(output)
        for got, each in zip(output, own):
            assert_same(got[index::3], each, "the output")
        own_gradients = gradients(alone, own, [weight[index::3] for weight in weights])
        add_to_whole(expected, own_gradients, NetworkDef.parse(alone.network_def))
    for name, gradient in gradients(model, output, weights).items():
        assert_same(gradient, expected[name], name)


def test_the_shipped_space_of_vit_resnas_tiny() -> None:
    """Real widths: 18 blocks, 256 to 1,024 channels; all-close in float32 too."""
    model = make_supernet("sr_tiny_mh", num_classes=10, img_size=56).eval()
    chosen = choices(model.networks, 2)
    x = images(model, 2)
    model.choose(chosen)
    for mode in MODES:
        model.mode = mode
        with torch.no_grad():
            for index, got in enumerate(model(x)):
                assert_same(got, model.extract(chosen[index])(x[index : index + 1])[0])


def test_the_stem_sees_the_whole_batch_once_in_both_modes() -> None:
    model = supernet().double().train()
    chosen, x = choices(TWO_STAGES, 2), images(model, 4)
    found = {}
    for mode in MODES:
        copied = copy.deepcopy(model)
        copied.mode = mode
        copied.choose(chosen)
        output = copied(x)
        found[mode] = {
            "output": output,
            **gradients(copied, output, [torch.ones_like(output)]),
            **dict(copied.named_buffers()),
        }
    assert found["masks"]["patch_embed.conv1.bn.num_batches_tracked"] == 1
    for name, value in found["masks"].items():
        torch.testing.assert_close(found["slices"][name], value, rtol=1e-10, atol=1e-10)


def test_without_a_choice_it_is_a_plain_net_to_the_last_bit() -> None:
    model = supernet(patch_head=True).train()
    arguments = get_model_args(model)
    assert arguments["network_def"] == str(TWO_STAGES.largest)
    assert model.pretrained_cfg["architecture"] == "vit_resnas"
    plain = timm.create_model("vit_resnas", **arguments).train()
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    assert list(plain.state_dict()) == list(model.state_dict())
    x = images(model, 2)
    model.choose(choices(TWO_STAGES, 2))
    model.eval()(x)
    model.train().choose(None)
    for mode in MODES:
        model.mode = mode
        assert all(torch.equal(got, expected) for got, expected in zip(model(x), plain(x)))


@pytest.mark.parametrize("mode", MODES)
def test_the_largest_choice_is_the_whole_net(mode: str) -> None:
    model = supernet()
    x = images(model, 2)
    expected = model(x)
    model.mode = mode
    model.choose([TWO_STAGES.largest_choice()])
    torch.testing.assert_close(model(x), expected)


def test_features_have_zeros_where_a_net_has_no_channels() -> None:
    model = supernet().double()
    chosen, x = choices(TWO_STAGES, 2), images(model, 2, (50, 75))
    model.choose(chosen)
    final, pyramid = model.forward_intermediates(x)
    for index, choice in enumerate(chosen):
        alone = model.extract(choice)
        own_final, own_pyramid = alone.forward_intermediates(x[index : index + 1])
        for got, own in zip((final.mT, *pyramid), (own_final.mT, *own_pyramid)):
            width = own.shape[1]
            assert_same(got[index, :width], own[0])
            assert not got[index, width:].any()
    torch.testing.assert_close(model.forward_features(x), final)


def test_without_a_classifier_features_are_as_wide_as_the_largest() -> None:
    model = supernet().double()
    model.reset_classifier(0)
    chosen, x = choices(TWO_STAGES, 2), images(model, 2)
    model.choose(chosen)
    by_masks = model(x)
    model.mode = "slices"
    assert torch.equal(model(x), by_masks)
    width = chosen[0]["dim_2"]
    assert_same(by_masks[0, :width], model.extract(chosen[0])(x[:1])[0])


@pytest.mark.parametrize("mode", MODES)
def test_weights_that_no_net_has_get_zero_gradients(mode: str) -> None:
    model = supernet(patch_head=True).train()
    model.mode = mode
    model.choose([TWO_STAGES.smallest_choice()] * 2)
    logits, patch_logits = model(images(model, 4))
    (logits.sum() + patch_logits.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(parameter.grad.any() for parameter in model.stages[1].blocks.parameters())
    norm = model.stages[0].blocks[0].norm1.weight
    assert norm.grad[:9].all()
    assert not norm.grad[9:].any()


@pytest.mark.parametrize("mode", MODES)
def test_gradient_checkpointing_changes_nothing(mode: str) -> None:
    model = supernet().double()
    model.mode = mode
    model.choose(choices(TWO_STAGES, 2))
    x = images(model, 4)

    def step() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(x).square().sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    plain = step()
    model.set_grad_checkpointing()
    torch.testing.assert_close(step(), plain)


@pytest.mark.parametrize("mode", MODES)
def test_several_forward_passes_before_one_backward_pass(mode: str) -> None:
    """As for the sandwich rule: the largest, then others, and one loss of all."""
    model = supernet().double()
    model.mode = mode
    x, chosen = images(model, 2), choices(TWO_STAGES, 2)
    parameters = list(model.parameters())
    apart, losses = [], []
    for each in (None, chosen[:1], chosen[1:]):
        model.choose(each)
        apart.append(torch.autograd.grad(model(x).square().sum(), parameters))
        losses.append(model(x).square().sum())
    together = torch.autograd.grad(sum(losses), parameters)
    torch.testing.assert_close(together, tuple(map(sum, zip(*apart))))


@pytest.mark.parametrize("mode", MODES)
def test_hooks_of_the_supernet_run_once_per_batch(mode: str) -> None:
    model, batches = supernet(), []
    model.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    model.mode = mode
    model.choose(choices(TWO_STAGES, 2))
    model(images(model, 4))
    assert batches == [4]


def test_arguments_of_the_space_and_of_the_caller() -> None:
    space = replace(TWO_STAGES.space, template={**TWO_STAGES.space.template, "img_size": 42, "in_chans": 1})
    model = make_supernet(space, in_chans=2, num_classes=None)
    assert (model.img_size, model.in_chans, model.num_classes) == ((42, 42), 2, 5)
    assert model.extract(TWO_STAGES.smallest_choice()).img_size == (42, 42)
    assert make_supernet(space, num_classes=7).head.out_features == 7


# Extraction -----------------------------------------------------------------------------------------------------------


def test_an_extracted_net_is_an_ordinary_timm_model() -> None:
    model = supernet(distilled=True, in_chans=1).double()
    model.set_input_size((112, 70))
    model.reset_classifier(7)
    choice = choices(TWO_STAGES, 2)[1]
    alone = model.extract(choice, drop_path_rate=0.3)
    assert type(alone) is ViTResNAS
    assert (alone.training, alone.cls_token.dtype, alone.num_classes) == (False, torch.float64, 7)
    assert alone.network_def == str(TWO_STAGES.network(choice))
    assert alone.network_def.count(", 0)") == 3
    assert [len(stage.blocks) for stage in alone.stages] == [1, 0]
    again = timm.create_model("vit_resnas", **get_model_args(alone)).double().eval()
    again.load_state_dict(alone.state_dict())
    x = images(model, 1, (112, 70))
    assert torch.equal(again(x), alone(x))
    model.choose([choice])
    for mode in MODES:
        model.mode = mode
        assert_same(model(x), alone(x))
    assert alone.pretrained_cfg == again.pretrained_cfg
    with torch.no_grad():
        alone.cls_token.zero_()
    assert model.cls_token.all()  # the weights are copies


def test_blocks_keep_their_rates_of_drop_path() -> None:
    model = supernet(drop_path_rate=0.3, proj_drop_rate=0.1).train()
    choice = TWO_STAGES.largest_choice() | {"exists_b": 0, "exists_c": 0}
    nets = [
        model.extract(choice, drop_path_rate=0.3),
        sliced_net(model, TWO_STAGES.largest, TWO_STAGES.network(choice)),
    ]
    for net in nets:
        paths = [block.drop_path1 for stage in net.stages for block in stage.blocks]
        rates = [getattr(part, "drop_prob", None) for path in paths for part in path.modules()]
        assert [rate for rate in rates if rate is not None] == [pytest.approx(0.3)]
        assert net.training
    assert nets[1].stages[0].blocks[0].mlp.drop1.p == 0.1


@pytest.mark.parametrize("mode", MODES)
def test_drop_path_drops_branches_of_single_examples(mode: str) -> None:
    model = supernet(drop_path_rate=0.5).double().train()
    model.patch_embed.eval()
    model.mode = mode
    model.choose([TWO_STAGES.smallest_choice() | {"exists_d": 1}, TWO_STAGES.largest_choice()])
    output = model(images(model, 1).expand(128, -1, -1, -1))
    assert (
        len(output[::2].detach().round(decimals=9).unique(dim=0)) == 4
    )  # each of the two branches of the one block with drop path, or not


# Copies and files -----------------------------------------------------------------------------------------------------


def test_copies_are_independent() -> None:
    model = supernet()
    chosen, x = choices(TWO_STAGES, 4), images(model, 2)
    model.choose(chosen[:2])
    model(x)  # masks of a batch are part of what is copied
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not set(model.modules()) & set(copied.modules())
        assert torch.equal(copied(x), model(x))
        copied.choose(chosen[2:])
        copied.mode = "slices"
        expected = [model.extract(choice)(x[index : index + 1]) for index, choice in enumerate(chosen[2:])]
        assert_same(copied(x), torch.cat(expected))
        assert (model.mode, len(model.nets)) == ("masks", 2)
        before = model(x)
        torch.nn.init.zeros_(copied.head.weight)
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("mode", MODES)
def test_averaged_weights_are_those_of_a_net_by_themselves(mode: str) -> None:
    model = supernet()
    ema = ModelEmaV3(model, decay=0.5)
    old = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.choose(choices(TWO_STAGES, 2))
    ema.update(model)
    ema.module.mode = old.mode = mode
    for parameter in old.parameters():
        parameter.data.mul_(2)  # (1 + 3) / 2
    chosen, x = choices(TWO_STAGES, 2, seed=1), images(model, 2)
    for each in (None, chosen):
        ema.module.choose(each)
        old.choose(each)
        torch.testing.assert_close(ema.module(x), old(x))


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_bfloat16(how: str, mode: str) -> None:
    model = make_supernet(TWO_STAGES, img_size=56).eval()
    x = images(model, 4)
    model.choose(choices(TWO_STAGES, 2))
    expected = model(x)
    model.mode = mode
    if how == "bfloat16":
        model, x = model.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        output = model(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.02)
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def masked_norm(width: int, kept: int) -> MaskedLayerNorm:
    norm = MaskedLayerNorm(torch.nn.LayerNorm(width, eps=1e-6), ChannelMask("embed", 0))
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    norm.channels.widths = torch.tensor([kept])
    norm.channels.mask = torch.arange(width)[None] < kept
    return norm


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_masked_norm_is_the_norm_of_the_slice(mean: float) -> None:
    norm, x = masked_norm(24, 15), torch.randn(1, 5, 24) + mean
    x[..., 15:] = 0
    expected = F.layer_norm(x[..., :15].double(), (15,), norm.weight[:15].double(), norm.bias[:15].double(), 1e-6)
    got = norm(x)
    torch.testing.assert_close(got[..., :15].double(), expected, rtol=0, atol=1e-5 if mean == 0 else 3e-4)
    assert not got[..., 15:].any()


def test_masked_norm_computes_in_float32_as_torch_does() -> None:
    norm, x = masked_norm(24, 15).bfloat16(), (torch.randn(1, 5, 24) + 10).bfloat16()
    x[..., 15:] = 0
    expected = F.layer_norm(x[..., :15], (15,), norm.weight[:15], norm.bias[:15], 1e-6)
    torch.testing.assert_close(norm(x)[..., :15], expected, rtol=2**-7, atol=2**-7)


def test_these_tests_would_notice_a_norm_over_all_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    def naive(self: MaskedLayerNorm, x: torch.Tensor) -> torch.Tensor:
        return self.channels(torch.nn.LayerNorm.forward(self, x))

    monkeypatch.setattr(MaskedLayerNorm, "forward", naive)
    with pytest.raises(AssertionError, match="the output is off by"):
        test_every_example_is_computed_by_its_net("plain", "masks", torch.float32)


def test_these_tests_would_notice_heads_taken_from_the_front_of_qkv(monkeypatch: pytest.MonkeyPatch) -> None:
    def naive(tensor: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
        return tensor[: 3 * widths[0], : widths[1]] if tensor.ndim == 2 else tensor[: 3 * widths[0]]

    monkeypatch.setattr("asvit_plugin.search.supernet_slices.leading_qkv", naive)
    with pytest.raises(AssertionError, match="the output is off by"):
        test_every_example_is_computed_by_its_net("plain", "masks", torch.float32)


# The faster mode ------------------------------------------------------------------------------------------------------


def test_timing_the_modes_leaves_no_trace() -> None:
    model = supernet(drop_path_rate=0.5).train()
    model.choose(choices(TWO_STAGES, 2))
    model(images(model, 2)).sum().backward()
    before = copy.deepcopy(model)
    gradients_before = [parameter.grad.clone() for parameter in model.parameters()]
    x = images(model, 4)
    rng = torch.get_rng_state()
    assert faster_mode(model, x, choices(TWO_STAGES, 4)) in MODES
    assert torch.equal(torch.get_rng_state(), rng)
    for (name, value), expected in zip(model.state_dict().items(), before.state_dict().values()):
        assert torch.equal(value, expected), name
    for parameter, expected in zip(model.parameters(), gradients_before):
        assert torch.equal(parameter.grad, expected)
    assert (model.mode, model.nets, model.training) == (before.mode, before.nets, True)


def test_the_faster_mode_is_the_one_that_took_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = supernet()
    seconds = {"masks": iter([0.0, 3.0, 5.0, 4.0]), "slices": iter([9.0, 6.0, 2.0, 1.0])}
    monkeypatch.setattr("asvit_plugin.search.supernet._time_step", lambda model, _: next(seconds[model.mode]))
    assert faster_mode(model, images(model, 2), choices(TWO_STAGES, 2)) == "slices"


# Refusals -------------------------------------------------------------------------------------------------------------


def run(model: SuperNet, count: int, batch: int, mode: str = "masks") -> None:
    model.choose(choices(TWO_STAGES, count))
    model.mode = mode
    model(images(model, batch))


def one(**changes: Any) -> Choice:
    return TWO_STAGES.largest_choice() | changes


MISTAKES = {
    "batch_masks": (lambda model: run(model, 4, 6), "the batch has 6 examples; 4 chosen nets do not divide it"),
    "batch_slices": (lambda model: run(model, 3, 2, "slices"), "the batch has 2 examples; 3 chosen nets do not"),
    "one_choice": (lambda model: model.choose(one()), "choices are a single one; they must be a list"),
    "other_net": (
        lambda model: SuperNet(ONE_STAGE, timm.create_model("vit_resnas", network_def=str(TWO_STAGES.largest))),
        "model has the network_def .*; it must be the space's largest net",
    ),
    "no_choices": (lambda model: model.choose([]), "choices are empty; there must be at least one, or None"),
    "value": (lambda model: model.choose([one(dim_1=17)]), r"'dim_1' is 17; it must be one of \[16, 12, 9\]"),
    "decision": (lambda model: model.choose([{"dim_1": 16}]), r"the decisions \['dim_1'\]; it must have"),
    "extract": (lambda model: model.extract(one(dim_1=17)), "'dim_1' is 17"),
    "classes": (lambda model: model.extract(one(), num_classes=3), r"do not fit a net with \{'num_classes': 3\}"),
    "mode": (lambda model: setattr(model, "mode", "slice"), "mode is 'slice'; it must be one of 'masks', 'slices'"),
    "definition": (lambda model: make_supernet(TWO_STAGES, network_def="x"), "network_def is 'x'"),
    "features": (lambda model: make_supernet(TWO_STAGES, features_only=True), "features_only is True"),
    "space": (lambda model: make_supernet("plain_vit"), "space 'plain_vit' is of the model 'scaled_vit'"),
    "no_space": (lambda model: make_supernet("tiny_one"), "space is 'tiny_one'; it must be one of"),
    "other_space": (
        lambda model: make_supernet(Space("s", "as_vit", {"a": (1,)}, {"genotype": "{a}"})),
        "space 's' is of the model 'as_vit'",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_one_sentence(case: str) -> None:
    mistake, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message) as caught:
        mistake(supernet())
    assert "\n" not in str(caught.value)
