"""detectron2's own end-to-end tests of Mask R-CNN and RetinaNet, over our backbones.

They are not part of its installation: set DETECTRON2_TESTS to the tests folder of a checkout of detectron2.
"""

import importlib.util
import os
import unittest
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

import torch
from detectors import levels_of
from detectron2 import model_zoo
from detectron2.modeling import build_model
from trunks import PLAIN, arguments

from asvit_plugin.backbones.detectron2_config import add_timm_config

FOLDER = os.environ.get("DETECTRON2_TESTS", "")
if not FOLDER:
    pytest.skip("DETECTRON2_TESTS does not name the tests folder of a detectron2 checkout", allow_module_level=True)

NAMES = (
    "as_vit",
    "vit_resnas",
    "scaled_pit",
    "castled",
    "scaled_vit",
    "swin_tiny_patch4_window7_224",
    "vit_small_patch14_dinov2",
)
BUILDERS = {"MaskRCNNE2ETest": "build_timm_fpn_backbone", "RetinaNetE2ETest": "build_retinanet_timm_fpn_backbone"}


def _read_suite() -> object:
    spec = importlib.util.spec_from_file_location("test_model_e2e", Path(FOLDER, "modeling", "test_model_e2e.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _over(base: type[unittest.TestCase], name: str) -> type[unittest.TestCase]:
    """The tests with detectron2's own config, of which only the backbone and its maps are other ones."""

    def set_up(self: unittest.TestCase) -> None:
        torch.manual_seed(43)
        cfg = model_zoo.get_config(self.CONFIG_PATH)
        add_timm_config(cfg)
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
        cfg.MODEL.BACKBONE.NAME = BUILDERS[base.__name__]
        cfg.MODEL.TIMM.NAME = name
        cfg.MODEL.TIMM.KWARGS.update(arguments(name)["model_kwargs"])
        cfg.MODEL.FPN.IN_FEATURES = []
        cfg.MODEL.FPN.NORM = "LN" if name in PLAIN else ""
        _name_maps(cfg, name)
        self.model = build_model(cfg)

    return type(f"{base.__name__}_{name}", (base,), {"setUp": set_up, "__module__": __name__})


def _name_maps(cfg, name: str) -> None:
    retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    levels = {"scaled_pit": ["p3", "p4", "p5", "p6"]}.get(name, levels_of(name))
    if retinanet:
        levels = ["p4", "p5", "p6", "p7", "p8"] if name == "vit_resnas" else ["p3", "p4", "p5", "p6", "p7"]
        cfg.MODEL.RETINANET.IN_FEATURES = levels
    else:
        cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = levels, levels[:-1]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = cfg.MODEL.ANCHOR_GENERATOR.SIZES[: len(levels)]


def _every_case() -> dict[str, type[unittest.TestCase]]:
    suite = _read_suite()
    cases = [_over(getattr(suite, base), name) for base in BUILDERS for name in NAMES]
    return {case.__name__: case for case in cases}


globals().update(_every_case())  # where pytest looks for them
