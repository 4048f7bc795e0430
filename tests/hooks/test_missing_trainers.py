"""Without its trainer, a hook's module says in one sentence what to install."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    "module, package, message",
    [
        ("detectron2_hook", "detectron2.engine", "detectron2_hook needs detectron2; it is on no package index"),
        ("mmengine_hook", "mmengine.hooks", r"mmengine_hook needs mmengine and OpenCV: pip install .*\[openmmlab\]"),
        ("lightning_callback", "lightning.pytorch", r"lightning_callback needs lightning: pip install .*\[lightning\]"),
    ],
)
def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, module: str, package: str, message: str) -> None:
    name = f"asvit_plugin.hooks.{module}"
    monkeypatch.setitem(sys.modules, name, None)  # put back as it was afterwards
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=message) as caught:
        importlib.import_module(name)
    assert "\n" not in str(caught.value)
