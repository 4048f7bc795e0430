"""What changes during training, free of any trainer."""

from .attention_switching import AttentionState, AttentionSwitching
from .progressive_tokenization import Phase, ProgressiveTokenization

__all__ = ["AttentionState", "AttentionSwitching", "Phase", "ProgressiveTokenization"]
