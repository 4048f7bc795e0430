"""--freeze stem: the mechanism is the package's, and so are the modes of all modules."""

import timm
from freezing import freeze, hold_still

from asvit_plugin.backbones import FeatureTrunk

VIT = dict(depth=2, embed_dim=16, num_heads=2, img_size=64, pos_drop_rate=0.1)


def test_a_frozen_stem_is_that_of_a_trunk() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **VIT).train()
    freeze(model, ["stem"])
    hold_still(model)
    trunk = FeatureTrunk("vit_tiny_patch16_224", frozen_stages=0, model_kwargs=VIT).train().model
    modes = {name: module.training for name, module in model.named_modules()}
    assert {name: module.training for name, module in trunk.named_modules()}.items() <= modes.items()
    assert (modes["pos_drop"], modes["blocks"], modes["head_drop"]) == (False, True, True)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in trunk.named_parameters() if not parameter.requires_grad}
