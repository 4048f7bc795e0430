"""Attention windows as views: no loop over windows, no arithmetic on symbolic sizes."""

import torch


def window_partition(x: torch.Tensor, num_windows: tuple[int, int], window_size: tuple[int, int]) -> torch.Tensor:
    """Cut a token map into windows.

    Per axis one of ``num_windows`` and ``window_size`` may be -1 and follows from the map; so the same code serves
    windows of a fixed number and windows of a fixed size.

    Args:
        x: Tokens, (B, H, W, C); H and W are multiples of what is given.
        num_windows: Windows along height and width.
        window_size: Tokens per window along height and width.

    Returns:
        Windows, (B, rows, columns, window height, window width, C).
    """
    x = x.unflatten(1, (num_windows[0], window_size[0]))  # (B, rows, h, W, C)
    x = x.unflatten(3, (num_windows[1], window_size[1]))  # (B, rows, h, columns, w, C)
    return x.transpose(2, 3)


def window_reverse(windows: torch.Tensor) -> torch.Tensor:
    """Put windows (B, rows, columns, h, w, C) back together, (B, rows * h, columns * w, C)."""
    return windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)
