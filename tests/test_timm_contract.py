"""What timm's users rely on and timm's own tests do not check, for every model of the plugin."""

import inspect
import math

import pytest
import timm
import torch
from plugin_models import CHEAP, IMAGE_SIZE, MODELS, SIZED, blocks_of, cheap, grid_of, grid_size, images
from timm.models import MobileNetV3, get_model_input_config, group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn

pytestmark = pytest.mark.parametrize("name", list(MODELS))


def no_weight_decay(model: nn.Module) -> set[str]:
    return model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()


def test_registered_with_its_config(name: str) -> None:
    assert timm.is_model(name)
    assert name in timm.list_models(module=MODELS[name])
    model = timm.create_model(name, device="meta")
    parameters = dict(model.named_parameters())
    for field in ("first_conv", "classifier"):
        assert f"{model.pretrained_cfg[field]}.weight" in parameters
    assert model.pretrained_cfg["architecture"] == name
    assert {p.device.type for p in parameters.values()} == {"meta"}


def test_signature_takes_user_arguments_over_defaults(name: str) -> None:
    entrypoint = timm.model_entrypoint(name)
    assert list(inspect.signature(entrypoint).parameters) == ["pretrained", "kwargs"]
    assert entrypoint.__doc__
    assert cheap(name, num_classes=3)(images()).shape == (2, 3)


def test_unknown_argument_is_a_type_error(name: str) -> None:
    with pytest.raises(TypeError, match="no_such_argument"):
        cheap(name, no_such_argument=1, device="meta")


def test_bare_reset_gives_unpooled_features(name: str) -> None:
    model = cheap(name)
    x = images()
    features = model.forward_features(x)
    if isinstance(model, MobileNetV3):  # its layer between pooling and classifier stays
        features = model.act2(model.conv_head(features))
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in cheap(name, num_classes=0, global_pool="").parameters()
    )


def test_reset_keeps_pooling_type_and_mode(name: str) -> None:
    model = cheap(name, dtype=torch.bfloat16).train()
    pool = str(model.global_pool)
    model.reset_classifier(7)
    assert str(model.global_pool) == pool
    assert model.num_classes == 7
    assert all(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(images().bfloat16()).shape == (2, 7)


def test_zero_classes_give_the_pre_logits(name: str) -> None:
    model = cheap(name)
    x = images()
    pre_logits = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pre_logits.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(pre_logits), model(x))
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pre_logits)


def test_layer_groups_follow_the_blocks(name: str) -> None:
    """One group for the stem, one per block, at most one per merge, one for the head; later layers come later."""
    model = timm.create_model(name, device="meta")
    blocks = blocks_of(model)
    group_of = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(group_of) == {parameter for parameter, _ in model.named_parameters()}
    block_groups = []
    for block in blocks:
        groups = {group for parameter, group in group_of.items() if parameter.startswith(f"{block}.")}
        assert len(groups) == 1, f"{block} is in groups {groups}"
        block_groups.append(groups.pop())
    assert block_groups == sorted(set(block_groups))
    merges = sum(path.split(".")[-1] == "downsample" for path, _ in model.named_modules())
    last = max(group_of.values())
    assert len(blocks) + 1 <= last <= len(blocks) + merges + 1
    assert set(group_of.values()) == set(range(last + 1))
    assert group_of[model.pretrained_cfg["first_conv"] + ".weight"] == 0 < block_groups[0]
    assert group_of[model.pretrained_cfg["classifier"] + ".weight"] == last > block_groups[-1]


def test_coarse_groups_are_fewer(name: str) -> None:
    model = timm.create_model(name, device="meta")
    fine = group_parameters(model, model.group_matcher())
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    assert 3 <= len(coarse) <= len(fine)
    assert sum(map(len, coarse.values())) == sum(map(len, fine.values())) == len(list(model.parameters()))


def test_layer_decay_rises_from_stem_to_head(name: str) -> None:
    model = cheap(name)
    decay_free_names = no_weight_decay(model)
    groups = param_groups_layer_decay(model, weight_decay=0.05, no_weight_decay_list=decay_free_names, layer_decay=0.5)
    scale_of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(scale_of) == len(list(model.parameters()))
    first_weights = [next(block.parameters()) for block in blocks_of(model).values()]
    stem = model.get_parameter(model.pretrained_cfg["first_conv"] + ".weight")
    scales = [scale_of[id(p)] for p in (stem, *first_weights, model.get_classifier().weight)]
    assert scales == sorted(set(scales))
    assert scales[-1] == 1.0
    decay_free = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]
    assert {id(model.get_parameter(n)) for n in decay_free_names} <= {id(p) for p in decay_free}


def test_no_weight_decay_names_exist(name: str) -> None:
    model = timm.create_model(name, device="meta")
    assert no_weight_decay(model) <= {parameter for parameter, _ in model.named_parameters()}


@pytest.mark.parametrize("index", [0, -2])
def test_pruning_truncates_and_leaves_nothing_unused(name: str, index: int) -> None:
    model = cheap(name)
    x = images()
    expected = model.forward_intermediates(x, indices=[index], intermediates_only=True)[0]
    before = len(blocks_of(model))
    taken = model.prune_intermediate_layers([index])
    assert taken == [index % len(model.feature_info)]
    assert 0 < len(blocks_of(model)) < before
    pruned = model.forward_intermediates(x, indices=taken, intermediates_only=True)[0]
    torch.testing.assert_close(pruned, expected)
    final, taps = model.train().forward_intermediates(x, indices=taken)
    (final.sum() + taps[0].square().sum()).backward()
    unused = [parameter for parameter, p in model.named_parameters() if p.grad is None]
    assert not unused


def test_stop_early_skips_blocks(name: str) -> None:
    model = cheap(name)
    runs: list[str] = []
    for block, module in blocks_of(model).items():
        module.register_forward_hook(lambda *_, block=block: runs.append(block))
    x = images()
    everything = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    assert runs == list(blocks_of(model))
    runs.clear()
    early = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    assert 0 < len(runs) < len(blocks_of(model))
    assert runs == list(blocks_of(model))[: len(runs)]
    assert torch.equal(early[0], everything[0])


@pytest.mark.parametrize("indices", [None, 2, [0, 2], [-1]], ids=str)
def test_intermediates_match_feature_info(name: str, indices: int | list[int] | None) -> None:
    model = cheap(name)
    x = images(1, IMAGE_SIZE, 2 * IMAGE_SIZE)
    final, taps = model.forward_intermediates(x, indices=indices)
    torch.testing.assert_close(final, model.forward_features(x))
    infos = model.feature_info
    chosen = {None: infos, 2: infos[-2:]}[indices] if not isinstance(indices, list) else [infos[i] for i in indices]
    assert len(taps) == len(chosen)
    for tap, info in zip(taps, chosen):
        rows, columns = grid_size(name, model, *x.shape[2:], info["reduction"])
        assert tap.shape == (1, info["num_chs"], rows, columns)
        assert tap.is_contiguous()


def test_set_input_size_changes_the_grid(name: str) -> None:
    if name not in SIZED:
        pytest.skip("convolutions take any size as it is")
    model = cheap(name)
    table = getattr(model, "pos_embed", None)
    before = {parameter: p.shape for parameter, p in model.named_parameters()}
    for p in model.parameters():
        p.requires_grad_(False)
    reduction = model.feature_info[-1]["reduction"]
    model.set_input_size((2 * IMAGE_SIZE, IMAGE_SIZE))
    assert get_model_input_config(model)["input_size"] == (3, 2 * IMAGE_SIZE, IMAGE_SIZE)
    assert not any(p.requires_grad for p in model.parameters())
    x = images(2, 2 * IMAGE_SIZE, IMAGE_SIZE)
    rows, columns = grid_size(name, model, *x.shape[2:], reduction)
    assert grid_of(model, model.forward_features(x)).shape[1] == rows * columns
    assert model(x).isfinite().all()
    if table is not None:
        assert model.pos_embed.numel() > before["pos_embed"].numel()


@pytest.mark.parametrize("height, width", [(65, 64), (63, 97), (100, 70)])
def test_odd_sizes(name: str, height: int, width: int) -> None:
    model = cheap(name)
    reduction = model.feature_info[-1]["reduction"]
    tokens = grid_of(model, model.forward_features(images(1, height, width)))
    assert tokens.shape[1] == math.prod(grid_size(name, model, height, width, reduction))
    assert model(images(1, height, width)).isfinite().all()


def test_features_with_the_final_norm(name: str) -> None:
    if not hasattr(cheap(name), "norm"):
        pytest.skip("no final norm")
    plain = cheap(name, features_only=True)
    normed = cheap(name, features_only=True, feature_cfg=dict(norm=True))
    normed.load_state_dict(plain.state_dict(), strict=False)
    x = images()
    raw, last = plain(x)[-1], normed(x)[-1]
    assert last.shape == raw.shape
    assert not torch.allclose(last, raw)
    assert last.mean(dim=1).abs().max() < 1e-4  # a layer norm just after initialisation
    assert plain.feature_info.channels() == normed.feature_info.channels()


def test_every_family_has_cheap_arguments(name: str) -> None:
    assert MODELS[name] in CHEAP
    assert sum(p.numel() for p in cheap(name, device="meta").parameters()) < 1_000_000
