"""What changes during training, free of any trainer."""

from .progressive_tokenization import Phase, ProgressiveTokenization

__all__ = ["Phase", "ProgressiveTokenization"]
