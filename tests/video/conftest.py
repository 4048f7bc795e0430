"""Makes the scripts in video/ importable, as they are for each other, and digits_scenes to compare with."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "video"))
sys.path.append(str(ROOT / "detection"))
