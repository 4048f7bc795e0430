"""A trunk by the file of a net: the net that the file names, at the detector's image size, or one sentence."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from plugin_models import CHEAP

from asvit_plugin.backbones import FeatureTrunk
from asvit_plugin.backbones.net_file import resolve_net

NETS = {
    "scaled_vit": dict(depth=3, num_heads=[1, 2, 2], embed_dim=16, head_dim=8, mlp_ratio=[2, 1.5, 3.0], patch_size=8),
    "scaled_pit": dict(depth=[1, 2, 1], num_heads=[1, [2, 3], 4], embed_dims=[8, 16, 16], head_dim=8, stride=4),
    "as_vit": dict(genotype=CHEAP["as_vit"]["genotype"]),
}


def write(folder: Path, content: Any) -> str:
    path = folder / "net_3.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return str(path)


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A model's name and the file of such a net."""
    return request.param, write(tmp_path, {"model": request.param, "img_size": 64, "model_kwargs": NETS[request.param]})


def test_the_trunk_is_the_net(net: tuple[str, str]) -> None:
    name, file = net
    model = timm.create_model(name, img_size=64, **NETS[name]).eval()
    trunk = FeatureTrunk(file).eval()
    missing, unexpected = trunk.model.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    assert all(key.startswith(("head", "norm", "fc")) for key in unexpected)
    x = torch.randn(1, 3, 64, 64)
    expected = model.forward_intermediates(x, indices=list(trunk.indices), intermediates_only=True)
    for own, feature in zip(trunk.maps(x), expected, strict=True):
        torch.testing.assert_close(own[:, :, : feature.shape[2], : feature.shape[3]], feature)


def test_the_detector_has_an_image_size_of_its_own(net: tuple[str, str]) -> None:
    _, file = net
    sizes = [FeatureTrunk(file, img_size=size).model.pos_embed.shape for size in (None, 64, 128)]
    assert sizes[0] == sizes[1] != sizes[2]


def test_other_arguments_of_the_trunk_stay_its_own(tmp_path: Path) -> None:
    file = write(tmp_path, {"model": "scaled_vit", "img_size": 64, "model_kwargs": NETS["scaled_vit"]})
    kwargs = dict(depth=3, num_heads=(1, 2, 2), qk_norm=True, num_classes=7)  # two of them are the file's
    trunk = FeatureTrunk(file, in_chans=1, drop_path_rate=0.3, model_kwargs=kwargs)
    assert trunk.recipe.name == "scaled_vit"
    assert trunk.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    assert isinstance(trunk.model.blocks[0].attn.q_norm, torch.nn.LayerNorm)
    assert [block.attn.num_heads for block in trunk.model.blocks] == [1, 2, 2]
    assert trunk.maps(torch.randn(1, 1, 32, 32))[0].shape == (1, 16, 4, 4)


def test_weights_of_a_classifier_of_the_net(net: tuple[str, str], tmp_path: Path) -> None:
    """Trained at the file's image size, read into a trunk of another, as from classification/train.py."""
    name, file = net
    classifier = timm.create_model(name, img_size=64, num_classes=5, **NETS[name])
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "weights.pth")
    weights = classifier.state_dict()
    for trunk in (FeatureTrunk(file, weights=str(tmp_path / "weights.pth"), img_size=128), FeatureTrunk(file)):
        trunk.load_weights(str(tmp_path / "weights.pth"))
        same = {key: value for key, value in trunk.model.state_dict().items() if key != "pos_embed"}
        assert len(same) > 20
        assert all(torch.equal(value, weights[key]) for key, value in same.items())
    assert torch.equal(trunk.model.pos_embed, weights["pos_embed"])


def test_a_trained_net_is_a_trunk_by_its_folder(net: tuple[str, str], tmp_path: Path) -> None:
    """The export that classification/train.py writes at its end."""
    name, _ = net
    classifier = timm.create_model(name, img_size=64, num_classes=5, **NETS[name])
    timm.models.save_for_hf(classifier, str(tmp_path / "export"), safe_serialization=True)
    trunk = FeatureTrunk(f"local-dir:{tmp_path / 'export'}")
    weights = classifier.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in trunk.model.state_dict().items())


def test_what_is_no_file_stays_as_it_is() -> None:
    assert resolve_net("scaled_vit", 64, {"mlp_ratio": [2, 3]}) == ("scaled_vit", 64, {"mlp_ratio": (2, 3)})


def test_only_a_model_is_needed(tmp_path: Path) -> None:
    assert resolve_net(write(tmp_path, {"model": "as_vit_small"}), None, {}) == ("as_vit_small", None, {})
    inside = {"model": "as_vit_small", "model_kwargs": {"img_size": 96}}
    assert resolve_net(write(tmp_path, inside), None, {}) == ("as_vit_small", 96, {})


@pytest.mark.parametrize(
    "content, message",
    [
        ("a: [", "the file is no YAML"),
        (b"\xff\xfe\x00".decode("latin-1"), "the file is no YAML"),
        ("- scaled_vit", "a net's file must have the entry model, the name of a timm model"),
        ({"img_size": 64}, "a net's file must have the entry model"),
        ({"model": 3}, "a net's file must have the entry model"),
        (
            {"model": "scaled_vit", "lr": 0.1},
            "it has the entry 'lr', and a net's file model, img_size, model_kwargs",
        ),
        ({"model": "scaled_vit", "model_kwargs": [1]}, "its model_kwargs must be arguments by name"),
    ],
)
def test_refuses_what_is_no_net(content: Any, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        FeatureTrunk(file)
    assert str(caught.value).startswith(f"name is {file!r}; ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, kwargs, message",
    [
        ({"model": "scaled_vot"}, {}, r"name is 'scaled_vot'; it must be the name of a timm model"),
        ({"model": "net_4.yaml"}, {}, r"name is 'net_4.yaml'; it must be the name of a timm model"),
        ({"model": "scaled_vit", "model_kwargs": {"deep": 3}}, {}, r"deep is 3; scaled_vit does not take it"),
        ({"model": "scaled_vit", "model_kwargs": {"depth": 0}}, {}, r"depth is 0; it must be a whole number"),
        (
            {"model": "scaled_vit", "model_kwargs": {"num_heads": [1, 2]}},
            {"num_heads": [2, 2]},
            r"num_heads is \(2, 2\); the net in '.*net_3.yaml' has \(1, 2\): leave it out",
        ),
    ],
)
def test_refuses_nets_that_are_none(content: Any, kwargs: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureTrunk(write(tmp_path, content), model_kwargs=kwargs)


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path / "folder.yml"):
        (tmp_path / "folder.yml").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"\.ya?ml'; the file cannot be read: (No such file|Is a directory)"):
            FeatureTrunk(str(path))
