"""The README's table of models: counted parameters and MACs beside published accuracies with their source.

python tools/model_table.py
"""

import timm

from asvit_plugin import list_models
from asvit_plugin.costs import macs, params

# ImageNet-1k top-1 in percent at the model's own size, and where it was read. Numbers without a source that can be
# checked stay out.
_AS_VIT_SOURCE = "[As-ViT](https://arxiv.org/abs/2202.11921), as reprinted in DIMAP (ICLR 2024), table 2"
_FBNETV2_SOURCE = "[mobile-vision](https://github.com/facebookresearch/mobile-vision), of its own weights"
PUBLISHED = {
    "as_vit_small": (81.2, _AS_VIT_SOURCE),
    "as_vit_base": (82.5, _AS_VIT_SOURCE),
    "as_vit_large": (83.5, _AS_VIT_SOURCE),
    "fbnetv2_f1": (68.28, _FBNETV2_SOURCE),
    "fbnetv2_f2": (70.98, _FBNETV2_SOURCE),
    "fbnetv2_f3": (73.03, _FBNETV2_SOURCE),
    "fbnetv2_f4": (75.82, _FBNETV2_SOURCE),
    "fbnetv2_l1": (77.04, _FBNETV2_SOURCE),
    "fbnetv2_l2": (78.24, _FBNETV2_SOURCE),
}


def table() -> str:
    """The table in Markdown; models are built on the meta device, so nothing is computed."""
    rows = ["| model | px | parameters | GMACs | published top-1 | source |", "|---|---|---|---|---|---|"]
    for name in list_models():
        model = timm.create_model(name, device="meta")
        top1, source = PUBLISHED.get(name, ("", ""))
        side = model.pretrained_cfg["input_size"][-1]
        rows.append(f"| `{name}` | {side} | {params(model):,} | {macs(model) / 1e9:.3f} | {top1} | {source} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
