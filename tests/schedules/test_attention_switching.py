"""AttentionSwitching: where it is when, that it ends linear for sure, and who follows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from plugin_models import cheap, images
from timm.utils import ModelEmaV3
from torch import nn

import asvit_plugin
from asvit_plugin import AttentionState, AttentionSwitching, ProgressiveTokenization
from asvit_plugin.layers import castled_attention


def states(model: nn.Module) -> set[tuple[float, float]]:
    return {(attention.blend, attention.threshold) for attention in castled_attention(model).values()}


def test_goes_from_softmax_to_linear() -> None:
    model = cheap("castled")
    schedule = AttentionSwitching(model, blend_until=0.2, mask_from=0.4, linear_from=0.8, threshold=0.01)
    assert schedule.step(0.0).blend == pytest.approx(0, abs=1e-6)
    assert schedule.step(0.1) == AttentionState(0.5, 0.01)
    assert schedule.step(0.4) == AttentionState(1.0, 0.01)
    assert schedule.step(0.6).threshold == pytest.approx(0.1)  # half of the way by equal factors
    ((blend, threshold),) = states(model)
    assert (blend, threshold) == (1.0, pytest.approx(0.1))
    for progress in (0.8, 0.9, 1.0):
        assert schedule.step(progress) == AttentionState(1.0, 1.0)
    assert states(model) == {(1.0, 1.0)}


def test_ends_linear_for_sure() -> None:
    """Even where one weight of a row takes nearly all, which no threshold below 1 would leave out."""
    model, x = cheap("castled"), images()
    with torch.no_grad():
        for attention in castled_attention(model).values():
            attention.qkv.weight *= 1000
    schedule = AttentionSwitching(model)
    schedule.step(0.79)
    assert max(each.density for each in asvit_plugin.mask_statistics(model, x).values()) > 0.01
    with pytest.raises(ValueError, match="the softmax branch is in use"):
        asvit_plugin.finish(model, x)
    schedule.step(0.8)
    assert {each.density for each in asvit_plugin.mask_statistics(model, x).values()} == {0.0}
    expected = model(x)
    asvit_plugin.finish(model)
    assert torch.equal(model(x), expected)


def test_every_parameter_learns_from_the_first_step_on() -> None:
    model = cheap("castled").train()
    AttentionSwitching(model).step(0.0)
    model(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_threshold_starts_above_a_uniform_row() -> None:
    """Of 17 tokens here, and of 197 in DeiT, where the released block's 0.02 is not more than four times uniform."""
    assert AttentionSwitching(cheap("castled")).threshold == 4 / 17
    deit = asvit_plugin.castle(timm.create_model("deit_tiny_patch16_224", depth=1))
    assert AttentionSwitching(deit).threshold == pytest.approx(4 / 197)
    assert AttentionSwitching(cheap("castled"), threshold=0.5).threshold == 0.5


def test_copies_follow_through_wrappers() -> None:
    model = cheap("castled")
    ema = ModelEmaV3(model)
    AttentionSwitching(torch.compile(model, backend="eager"), copies=[ema.module]).step(0.5)
    assert states(model) == states(ema.module) != {(1.0, 1.0)}


def test_a_copy_needs_no_list() -> None:
    model, copied = cheap("castled"), cheap("castled")
    AttentionSwitching(model, copies=copied).step(0.5)
    assert states(model) == states(copied) != {(1.0, 1.0)}
    with pytest.raises(ValueError, match="copies is a int; it must be a model or a list of models"):
        AttentionSwitching(model, copies=1)


def test_a_state_of_numpy_numbers_can_be_saved(tmp_path: Path) -> None:
    model = cheap("castled")
    AttentionSwitching(model).step(np.float32(0.5))
    timm.models.save_for_hf(model, str(tmp_path / "stepped"))
    asvit_plugin.switch_attention(model, np.float32(0.5), np.float32(0.25))
    timm.models.save_for_hf(model, str(tmp_path / "switched"))
    assert states(timm.create_model(f"local-dir:{tmp_path / 'switched'}", pretrained=True)) == {(0.5, 0.25)}


def test_both_schedules_drive_one_model() -> None:
    model, x = asvit_plugin.castle(cheap("as_vit")), images()
    switching, tokens = AttentionSwitching(model, threshold=0.1), ProgressiveTokenization(model)
    seen = set()
    for progress in (0.0, 0.3, 0.6, 1.0):
        state, phase = switching.step(progress), tokens.step(progress)
        model(x).sum().backward()
        assert states(model) == {(state.blend, state.threshold)}
        seen.add((state, phase))
    assert len(seen) == 4


def test_the_same_progress_twice_changes_nothing() -> None:
    model, x = cheap("castled"), images()
    schedule = AttentionSwitching(model)
    schedule.step(0.4)
    expected = model(x)
    schedule.step(0.9)
    AttentionSwitching(model).step(0.4)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(blend_until=0.9), "blend_until is 0.9, mask_from 0.3 and linear_from 0.8"),
        (dict(mask_from=0.8), "the second must lie from 0 to below it"),
        (dict(linear_from=1.0), "linear_from below 1"),
        (dict(threshold=0.0), "threshold is 0.0; it must be above 0 and at most 1"),
    ],
)
def test_bad_stretches_get_one_sentence(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionSwitching(cheap("castled"), **kwargs)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match=r"ScaledViT has no castled block: castle\(model\) makes them"):
        AttentionSwitching(cheap("scaled_vit"))
    with pytest.raises(ValueError, match=r"progress is 1.1; it must be between 0 and 1"):
        AttentionSwitching(cheap("castled")).step(1.1)
