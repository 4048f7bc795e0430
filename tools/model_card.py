"""Model cards of converted weights, and the licence that they name."""

from pathlib import Path

from torch import nn
from weight_files import Weights

from asvit_plugin import __version__

# A licence's identifier, and what is to be said about it.
AUTHORS = (
    "cc-by-nc-4.0",
    "ViT-ResNAS's authors publish under CC-BY-NC-4.0. These weights were converted from the layout of their code and "
    "stay under it: no commercial use.",
)
UNKNOWN = ("unknown", "The file does not say under which licence its weights may be used: ask who trained them.")

CARD = """---
tags:
- {task}
- timm
pipeline_tag: {task}
library_name: timm
license: {licence}
---
# {architecture}

{paper}Converted by `tools/convert.py` of asvit_plugin {version} from {source}.

**Licence: {licence}.** {terms}

## Usage

```python
import asvit_plugin  # registers the model
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True)  # the path of this folder, or hf-hub:OWNER/NAME
```
"""


def licence_of(weights: Weights, stated: str | None) -> tuple[str, str]:
    """The licence of weights and what is to be said about it; that of the authors cannot be changed.

    Args:
        weights: The weights under the names of their file.
        stated: What the user says.
    """
    if "tokens" in weights:  # only ViT-ResNAS's authors call a tensor so; As-ViT's have published no weights
        if stated not in (None, AUTHORS[0]):
            raise ValueError(f"--licence is {stated}; weights in the layout of ViT-ResNAS's authors stay {AUTHORS[0]}")
        return AUTHORS
    return (stated, "It was stated by who converted the weights.") if stated else UNKNOWN


def model_card(model: nn.Module, licence: tuple[str, str], source: str, folder: Path) -> str:
    """The card in Markdown, with the front matter that the Hugging Face hub reads."""
    cfg = model.pretrained_cfg
    arxiv = (cfg.get("paper_ids") or "").removeprefix("arXiv:")
    paper = f"*{cfg['paper_name']}*, [arXiv {arxiv}](https://arxiv.org/abs/{arxiv}); " if arxiv else ""
    code = f"the authors' code: {cfg['origin_url']}.\n" if paper else ""
    return CARD.format(
        task="image-classification" if model.num_classes else "image-feature-extraction",
        architecture=cfg["architecture"],
        licence=licence[0],
        terms=licence[1],
        paper=paper + code,
        source=source,
        version=__version__,
        folder=folder.name,
    )
