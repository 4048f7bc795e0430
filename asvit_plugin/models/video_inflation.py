"""Video models that begin with the weights of image models.

Arnab et al., "ViViT: A Video Vision Transformer" (2021, arXiv 2103.15691), section 3.4.
"""

import copy

import torch
from timm.layers import PatchEmbed
from timm.models import VisionTransformer

from ..checks import check_choice
from .scaled_video_vit import ScaledVideoViT
from .scaled_vit import ScaledViT
from .tubelet_embed import TubeletEmbed

INFLATIONS = ("average", "central")


@torch.no_grad()
def inflate(
    image_model: VisionTransformer, num_frames: int = 16, tubelet_size: int = 2, mode: str = "average"
) -> ScaledVideoViT:
    """A video model with all weights of an image model; its temporal table is zero.

    On one image repeated it gives the image model's output, up to rounding, where a clip is one tubelet long
    (``tubelet_size == num_frames``), and for any number of tubelets where the image model has no class token or other
    prefix token. (The copies of a patch share its attention; a prefix token is there once, so its share falls.)

    Args:
        image_model: A ``scaled_vit``, or a plain ViT of timm's (vit, deit, deit3, dinov2, clip, siglip); left as it is.
            Whether other sizes than the nominal one are taken is what its ``dynamic_img_size`` says.
        num_frames: Nominal number of frames, a multiple of ``tubelet_size``.
        tubelet_size: Frames that a token spans.
        mode: "average" spreads the image kernel evenly over the frames of a tubelet; "central" gives it to frame
            ``tubelet_size // 2`` alone, and the others begin at zero.

    Raises:
        ValueError: if the model is not a plain ViT, or an argument is out of range.
    """
    check_choice("mode", mode, INFLATIONS)
    _check_image_model(image_model)
    tubelets = _inflate_embed(image_model.patch_embed, num_frames, tubelet_size, mode)
    video = copy.deepcopy(image_model)
    video.__class__ = ScaledVideoViT  # all but the embedding is the image model's: nothing is rebuilt from guesses
    video.patch_embed = tubelets
    video.add_time_embed()
    for name in ("pretrained_cfg", "default_cfg", "_model_args", "_traits"):  # timm would save it as the image model
        video.__dict__.pop(name, None)
    return video


def _check_image_model(model: VisionTransformer) -> None:
    embed = getattr(model, "patch_embed", None)
    if type(model) in (VisionTransformer, ScaledViT) and type(embed) is PatchEmbed:
        return
    found = type(model).__name__ + ("" if embed is None else f" with a {type(embed).__name__}")
    raise ValueError(f"image_model is a {found}; it must be a ScaledViT or timm's VisionTransformer with a PatchEmbed")


def _inflate_embed(embed: PatchEmbed, num_frames: int, tubelet_size: int, mode: str) -> TubeletEmbed:
    image = embed.proj
    tubelets = TubeletEmbed(
        num_frames,
        tubelet_size,
        in_chans=image.in_channels,
        embed_dim=image.out_channels,
        bias=image.bias is not None,
        img_size=embed.img_size,
        patch_size=image.kernel_size,
        strict_img_size=embed.strict_img_size,
        dynamic_img_pad=embed.dynamic_img_pad,
        device=image.weight.device,
        dtype=image.weight.dtype,
    )
    kernel = tubelets.proj.weight.zero_()
    if mode == "average":
        kernel.copy_(image.weight.unsqueeze(2).expand_as(kernel) / tubelet_size)
    else:
        kernel[:, :, tubelet_size // 2] = image.weight
    if image.bias is not None:
        tubelets.proj.bias.copy_(image.bias)
    for name, parameter in tubelets.proj.named_parameters():
        parameter.requires_grad_(image.get_parameter(name).requires_grad)
    tubelets.norm = copy.deepcopy(embed.norm)
    return tubelets.train(embed.training)
