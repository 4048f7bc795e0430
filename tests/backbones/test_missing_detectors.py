"""Without its library, an adapter's module says in one sentence what to install; the package itself needs none."""

import importlib
import subprocess
import sys

import pytest

DETECTRON2 = ("backbone", "config", "checkpointer", "optimizer")
INDEX = "needs detectron2 for this; it is on no package index"


@pytest.mark.parametrize(
    "module, package, message",
    [
        *((f"detectron2_{module}", "detectron2.config", INDEX) for module in DETECTRON2),
        ("simple_feature_pyramid", "detectron2.config", INDEX),
        ("mmengine_backbone", "mmengine.model", r"needs mmengine and OpenCV: pip install .*\[openmmlab\]"),
    ],
)
def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, module: str, package: str, message: str) -> None:
    for name in (f"asvit_plugin.backbones.{module}", "asvit_plugin.backbones._detectron2"):
        monkeypatch.setitem(sys.modules, name, None)  # put back as it was afterwards
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=message) as caught:
        importlib.import_module(f"asvit_plugin.backbones.{module}")
    assert "\n" not in str(caught.value)


def test_the_package_imports_neither() -> None:
    script = (
        "import sys, asvit_plugin; assert 'asvit_plugin.backbones' not in sys.modules; import asvit_plugin.backbones; "
        "print(sorted(set(sys.modules) & {'detectron2', 'mmengine', 'omegaconf'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
