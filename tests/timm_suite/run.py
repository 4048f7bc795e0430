"""Run timm's own model tests over the models of this package.

    python tests/timm_suite/run.py [--all] [pytest options]

The tests come from timm's source distribution, in the version that is installed; it is fetched once, into ``.cache``.
pytest's exit code is passed on, and it is a failure if no test was run.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import timm

from asvit_plugin import list_models

sys.path.insert(0, str(Path(__file__).parents[1]))

from public_weights import hub_cache, public_models

# Left out without --all: what runs the same code as a smaller one.
LARGER = {"as_vit_base", "as_vit_large", "vit_resnas_small", "vit_resnas_medium"}
LARGER |= {name for name in list_models() if name.startswith("castling_")}
LARGER |= {"fbnetv2_f2", "fbnetv2_f3", "fbnetv2_f4", "fbnetv2_l2"}
LARGER -= {"castling_deit_tiny_patch16_224", "castling_pit_ti_224"}
HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache"


def fetch_timm_source(version: str) -> Path:
    """The folder of timm's source distribution, fetched with pip unless it is there already."""
    folder = CACHE / f"timm-{version}"
    if not folder.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as download:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "timm", f"timm=={version}"]
            subprocess.run([*pip, "--dest", download], check=True)
            unpacked = Path(download) / "unpacked"
            with tarfile.open(Path(download) / f"timm-{version}.tar.gz") as archive:
                archive.extractall(unpacked, filter="data")
            (unpacked / f"timm-{version}").rename(folder)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help=f"also the larger models ({', '.join(sorted(LARGER))})")
    args, pytest_options = parser.parse_known_args()
    source = fetch_timm_source(timm.__version__)
    models = [name for name in list_models() if args.all or name not in LARGER]
    with tempfile.TemporaryDirectory() as cache:  # fresh weights in the place of public ones: nothing is downloaded
        hub_cache(Path(cache), public_models(models))
        return run_pytest(source, models, cache, pytest_options)


def run_pytest(source: Path, models: list[str], hub: str, pytest_options: list[str]) -> int:
    """timm's tests over the models, with weights from the hub's cache in folder ``hub``."""
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_CACHE": hub,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        "TIMM_PLUGIN_MODULES": "asvit_plugin",
        "TIMM_PLUGIN_MODELS": ",".join(models),
    }
    environment.pop("TORCH_BACKEND", None)  # timm's tests would import what it names
    pytest = [sys.executable, "-m", "pytest", "-p", "timm_plugin_tests", "-p", "no:cacheprovider"]
    where = ["-c", str(source / "pyproject.toml"), f"--rootdir={source}", str(source / "tests" / "test_models.py")]
    return subprocess.run([*pytest, *where, "-ra", *pytest_options], env=environment).returncode


if __name__ == "__main__":
    raise SystemExit(main())
