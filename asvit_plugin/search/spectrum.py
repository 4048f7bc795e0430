"""Feature-spectrum entropy: over how many directions a net spreads what it is shown.

Lee, Ham: "AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search", CVPR 2024 (arXiv 2403.19232): its
expressivity.
"""

import torch
from torch import nn

from .features import block_outputs, image_shape, measuring
from .images import Images, check_images, draw_images
from .redrawing import draws
from .score import Score


def spectrum_entropy(
    model: nn.Module,
    img_size: int | tuple[int, int] | None = None,
    images: Images = 16,
    repeats: int = 5,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Score:
    """Sum over the blocks of the entropy of their features' PCA spectrum, in nats; more is better.

    The tokens of all images behind a block are centred; the variances along their principal directions, divided by
    their sum, are the distribution whose entropy counts. It is at most log(channels), and at most log(tokens of all
    images): give more images where a last stage has few tokens and many channels.

    Args:
        model: Any timm model whose blocks have timm's usual names; not changed.
        img_size: Side of the images in pixels or (height, width); None for the model's own.
        images: How many of Gaussian noise, a tensor (count, C, H, W), "digits", or a folder.
        repeats: Nets with new weights, each with images of its own (except a tensor's).
        seed: Of weights and images.
        device: Where to compute; None for the model's own.

    Raises:
        ValueError: for a model that the definition does not fit, or an argument outside what is allowed.
        ModuleNotFoundError: for "digits" without scikit-learn.
    """
    shape = image_shape(model, img_size)
    check_images(images, shape)
    values = []
    with measuring("spectrum_entropy", model, shape):
        for draw in draws(model, repeats, seed, device):
            batch = draw_images(images, shape, model, draw.generator).to(next(draw.model.parameters()))
            outputs = block_outputs(draw.model, batch)
            values.append(sum(entropy(tokens) for tokens in outputs))
    return Score(tuple(values))


def entropy(tokens: torch.Tensor) -> float:
    """Entropy in nats of the normalised PCA spectrum of tokens (count, channels); NaN where they are not finite."""
    tokens = tokens.double()
    centred = tokens - tokens.mean(0)
    # Both products have the same eigenvalues apart from zeros.
    product = centred.T @ centred if tokens.shape[1] <= len(tokens) else centred @ centred.T
    if not product.isfinite().all():
        return float("nan")
    variances = torch.linalg.eigvalsh(product).clamp(min=0.0)
    return torch.special.entr(variances / variances.sum()).sum().item()
