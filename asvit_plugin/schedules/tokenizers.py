"""Tokenizers whose stride can change while a model trains: As-ViT's own, and the patch embedding of timm's ViTs."""

from collections.abc import Iterator
from contextlib import contextmanager

from timm.layers import Format, PatchEmbed, to_2tuple
from timm.models import VisionTransformer
from timm.utils import unwrap_model
from torch import nn

_EMBED_STATE = ("__class__", "flatten", "output_fmt", "strict_img_size", "dynamic_img_pad", "patch_size")


class Tokenizer:
    """How densely a model samples its image; all state is in the model.

    Attributes:
        model: The module that holds the patch embedding, free of wrappers.
        base_stride: Pixels per token that the model was built with.
        kernel_size: Side of the kernel, in pixels where it is not dilated.
    """

    def __init__(self, model: nn.Module, base_stride: int) -> None:
        self.model = model
        self.base_stride = base_stride
        self.kernel_size: int = model.patch_embed.proj.kernel_size[0]

    def default_dilation(self, stride: int) -> int:
        """The paper's: samples of the kernel span one stride."""
        return max(1, (stride - 1) // max(1, self.kernel_size - 1))

    def get(self) -> tuple[int, int]:
        """Present stride and dilation, in pixels."""
        proj = self.model.patch_embed.proj
        return proj.stride[0], proj.dilation[0]

    def set(self, stride: int, dilation: int) -> None:
        """Change them; the weights stay as they are. By default the model knows how (our own families)."""
        if self.get() != (stride, dilation):
            self.model.set_tokenization(stride, dilation)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is set in between, the model is as before in the end."""
        before = self.get()
        try:
            yield
        finally:
            self.set(*before)


class _StridedPatchEmbed(PatchEmbed):
    """timm's patch embedding while its stride is not its kernel's side.

    ``patch_size`` is the stride, which is what timm pads to and derives the present grid from. The grid of the position
    table stays that of the kernel, also when the nominal image size changes meanwhile.
    """

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """As timm's, of which this is called; the patch size cannot change."""
        stride, kernel = self.patch_size, tuple(self.proj.kernel_size)
        if patch_size is not None and to_2tuple(patch_size) != kernel:
            raise ValueError(
                f"patch_size is {patch_size}; it must stay {kernel} while a schedule has the stride at {stride[0]}"
            )
        self.patch_size = kernel
        try:
            super().set_input_size(img_size, patch_size)
        finally:
            self.patch_size = stride


class PatchEmbedTokenizer(Tokenizer):
    """timm's plain ViTs: the stride of the patch convolution, with timm's dynamic image size and padding turned on."""

    def __init__(self, model: VisionTransformer) -> None:
        kernel = model.patch_embed.proj.kernel_size
        if kernel[0] != kernel[1]:
            raise ValueError(f"progressive tokenization needs square patches; the model's are {kernel} pixels")
        super().__init__(model, base_stride=kernel[0])

    def set(self, stride: int, dilation: int) -> None:
        span = dilation * (self.kernel_size - 1) + 1
        if span > stride:  # the convolution has no padding: tokens would be lost at the border
            raise ValueError(
                f"phase of stride {stride} has dilation {dilation}, whose kernel spans {span} pixels; for a ViT with "
                f"{self.kernel_size}-pixel patches it must be at most {self.default_dilation(stride)}"
            )
        self.model.dynamic_img_size = True
        embed = self.model.patch_embed
        embed.__class__ = PatchEmbed if stride == self.base_stride else _StridedPatchEmbed
        embed.flatten, embed.output_fmt = False, Format.NHWC
        embed.strict_img_size, embed.dynamic_img_pad = False, True
        embed.patch_size = (stride, stride)
        embed.proj.stride, embed.proj.dilation = (stride, stride), (dilation, dilation)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """As of any model; how it takes images comes back, too."""
        model, embed = self.model, self.model.patch_embed
        owners = ((model, ("dynamic_img_size",)), (embed, _EMBED_STATE), (embed.proj, ("stride", "dilation")))
        before = [(owner, name, getattr(owner, name)) for owner, names in owners for name in names]
        try:
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)


def find_tokenizer(model: nn.Module) -> Tokenizer:
    """The tokenizer of a model, looking through wrappers (DDP, compile, EMA, feature extractors, detectors).

    Raises:
        ValueError: naming the model and why its tokens are tied to one grid.
    """
    for module in model.modules():
        if callable(getattr(module, "set_tokenization", None)) and hasattr(module, "stem_stride"):
            return Tokenizer(module, module.stem_stride)
        if isinstance(module, VisionTransformer) and type(module.patch_embed) in (PatchEmbed, _StridedPatchEmbed):
            return PatchEmbedTokenizer(module)
    inner = unwrap_model(model)
    name = getattr(inner, "pretrained_cfg", {}).get("architecture", "the model")
    raise ValueError(
        f"progressive tokenization cannot drive {name} ({type(inner).__name__}): {_obstacle(inner)}; it takes As-ViT "
        f"and timm's VisionTransformer (vit, deit, dinov2, clip, siglip) with absolute positions and a patch embedding "
        f"that is one convolution"
    )


def _obstacle(model: nn.Module) -> str:
    names = {name.rpartition(".")[2] for name, _ in (*model.named_modules(), *model.named_parameters())}
    if any("rel_pos" in name or "relative_position" in name for name in names):
        return "its relative positions fix the token grid"
    if any("rope" in name for name in names):
        return "its rotary positions are not resampled"
    if isinstance(model, VisionTransformer):
        return f"its patch embedding is a {type(model.patch_embed).__name__}, not one convolution"
    return "it has no patch embedding that can change its stride"
