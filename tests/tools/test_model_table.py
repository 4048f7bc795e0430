"""tools/model_table.py, and that the README shows its output."""

import subprocess
import sys
from pathlib import Path

import timm

ROOT = Path(__file__).parents[2]


def test_readme_shows_the_table() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "model_table.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = done.stdout.strip()
    assert table in (ROOT / "README.md").read_text()
    names = {line.split("`")[1] for line in table.splitlines()[2:]}
    assert {"as_vit_small", "vit_resnas_tiny", "scaled_vit"} <= names
    assert all(timm.is_model(name) for name in names)
