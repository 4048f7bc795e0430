"""What all proxies have in common: the call, seeds, the given model left alone, and what they refuse."""

import copy
import math
import subprocess
import sys

import pytest
import timm
import torch
from nets import NETS, TRANSFORMERS, make, side

from asvit_plugin import costs
from asvit_plugin.search import (
    PROXIES,
    dss,
    length_distortion,
    macs,
    ntk_condition,
    num_parameters,
    spectrum_entropy,
    synflow,
)
from asvit_plugin.search.features import measuring

DRAWN = [name for name in PROXIES if name not in ("parameters", "macs")]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("proxy", DRAWN)
def test_every_proxy_measures_every_family(proxy: str, name: str) -> None:
    if proxy == "dss" and name not in TRANSFORMERS:
        pytest.skip("no attention")
    score = PROXIES[proxy].measure(make(name), img_size=side(name), repeats=2, seed=0)
    assert len(score.values) == 2
    assert math.isfinite(score.value)
    assert score.spread > 0.0


@pytest.mark.parametrize("proxy", DRAWN)
def test_a_score_follows_from_architecture_and_seed(proxy: str) -> None:
    measure = PROXIES[proxy].measure
    first, other = make("scaled_vit"), make("scaled_vit")  # their weights differ
    score = measure(first, img_size=32, repeats=2, seed=3)
    assert measure(other.eval(), img_size=32, repeats=2, seed=3) == score
    assert measure(first, img_size=32, repeats=1, seed=3).values == score.values[:1]
    assert measure(first, img_size=32, repeats=1, seed=4).values != score.values[:1]


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("name", ["as_vit", "swin_tiny_patch4_window7_224", "vit_resnas"])
def test_nothing_of_the_caller_changes(proxy: str, name: str) -> None:
    model = make(name).train()
    model.set_grad_checkpointing()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    structure, random_state = str(model), torch.get_rng_state()
    PROXIES[proxy].measure(model, img_size=side(name), repeats=1)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert str(model) == structure
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_dropout_plays_no_part() -> None:
    with_dropout = make("scaled_vit", proj_drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5, pos_drop_rate=0.5)
    for proxy in DRAWN:
        measure = PROXIES[proxy].measure
        assert measure(with_dropout, img_size=32, repeats=1) == measure(make("scaled_vit"), img_size=32, repeats=1)


def test_cudnn_stays_on() -> None:
    with measuring("any", make("as_vit"), (3, 32, 32)):
        assert torch.backends.cudnn.enabled
        assert torch.backends.cudnn.deterministic


def test_half_precision_is_measured_in_full() -> None:
    expected = length_distortion(make("scaled_vit"), img_size=32, repeats=1)
    assert length_distortion(make("scaled_vit").bfloat16(), img_size=32, repeats=1) == expected


def test_counts() -> None:
    model = make("scaled_vit")
    assert num_parameters(model).values == (costs.params(model),)
    assert macs(model, img_size=32).values == (costs.macs(model, (3, 32, 32)),)
    assert macs(model) == macs(model, img_size=32)


def test_images_may_be_oblong_and_have_any_channels() -> None:
    model = make("as_vit", img_size=(32, 64), in_chans=1)
    assert length_distortion(model, repeats=1) == length_distortion(model, img_size=(32, 64), repeats=1)


def test_an_image_size_that_a_model_does_not_take() -> None:
    message = "length_distortion cannot measure vit_tiny_patch16_224 on images of 3 x 48 x 48: .*48"
    with pytest.raises(ValueError, match=message):
        length_distortion(make("vit_tiny_patch16_224"), img_size=48)
    with pytest.raises(ValueError, match="img_size is 0; it must be"):
        length_distortion(make("scaled_vit"), img_size=0)


def test_models_that_a_definition_does_not_fit() -> None:
    with pytest.raises(ValueError, match="resnet18 has no attention"):
        dss(make("resnet18"), img_size=32)
    with pytest.raises(ValueError, match=r"vgg11 has no modules named blocks.N or layerN.N"):
        spectrum_entropy(timm.create_model("vgg11"), img_size=32)
    with pytest.raises(ValueError, match="Linear has no forward_intermediates"):
        length_distortion(torch.nn.Linear(3, 3), img_size=32)
    with torch.device("meta"):
        model = make("scaled_vit")
    with pytest.raises(ValueError, match="model is on the meta device"):
        length_distortion(model, img_size=32)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "vit_resnas"])
@pytest.mark.parametrize("proxy", ["synflow", "dss"])
def test_sums_that_no_weight_changes(proxy: str, name: str) -> None:
    """Without a head the output is a layer norm's, whose sum has no gradient but rounding errors."""
    if name == "convnext_atto" and proxy == "dss":
        pytest.skip("no attention")
    for seed in range(3):
        with pytest.raises(ValueError, match=f"the outputs of {name} sum to 0 .*num_classes of at least 1"):
            PROXIES[proxy].measure(make(name, num_classes=0), img_size=side(name), repeats=1, seed=seed)


def test_headless_nets_whose_sums_tell_something() -> None:
    assert synflow(make("resnet18", num_classes=0), img_size=32, repeats=1).value > 0.0
    headless, headed = (make("vit_tiny_patch16_224", num_classes=classes) for classes in (0, 10))
    assert ntk_condition(headless, img_size=32, repeats=1) == ntk_condition(headed, img_size=32, repeats=1)


def test_stages_that_end_in_a_norm_have_no_tangent_kernel() -> None:
    model = timm.create_model("pvt_v2_b0", embed_dims=(4, 4, 8, 8), num_heads=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="features before the head of pvt_v2_b0 sum to 0 .* ntk_condition cannot"):
        ntk_condition(model, img_size=32, images=2, repeats=1)


def test_models_without_a_configuration() -> None:
    model = make("scaled_vit")
    model.pretrained_cfg = None
    with pytest.raises(ValueError, match="ScaledViT has None for a pretrained_cfg"):
        length_distortion(model, img_size=32)


@pytest.mark.parametrize("proxy", DRAWN)
def test_no_repeats(proxy: str) -> None:
    with pytest.raises(ValueError, match="repeats is 0"):
        PROXIES[proxy].measure(make("scaled_vit"), img_size=32, repeats=0)


def test_importing_needs_no_optional_package() -> None:
    code = "import sys, asvit_plugin.search; print({'optuna', 'scipy', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
