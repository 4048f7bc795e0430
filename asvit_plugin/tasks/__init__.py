"""What a batch is learnt from: mixed images, patches, a teacher; for timm's training loop and any other."""

from .distillation import DistillationTask
from .inplace_distillation import InplaceDistillationTask
from .switch_token_mix import PatchHeadCrossEntropy, SwitchTokenMix

__all__ = ["DistillationTask", "InplaceDistillationTask", "PatchHeadCrossEntropy", "SwitchTokenMix"]
