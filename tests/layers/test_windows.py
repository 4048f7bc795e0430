"""Window partition and its inverse, against a loop over windows."""

import pytest
import torch

from asvit_plugin.layers import window_partition, window_reverse

ANY = (-1, -1)
SHAPES = [((1, 1), (6, 8)), ((2, 2), (3, 4)), ((3, 2), (2, 4)), ((6, 8), (1, 1))]


@pytest.mark.parametrize("num_windows, window_size", SHAPES)
@pytest.mark.parametrize("given", ["num_windows", "window_size", "both"])
def test_partition_equals_loop(num_windows: tuple[int, int], window_size: tuple[int, int], given: str) -> None:
    x = torch.randn(3, 6, 8, 5)
    windows = window_partition(
        x,
        ANY if given == "window_size" else num_windows,
        ANY if given == "num_windows" else window_size,
    )
    assert windows.shape == (3, *num_windows, *window_size, 5)
    height, width = window_size
    for row in range(num_windows[0]):
        for column in range(num_windows[1]):
            cut = x[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
            assert torch.equal(windows[:, row, column], cut)
    assert torch.equal(window_reverse(windows), x)


def test_one_axis_by_number_and_the_other_by_size() -> None:
    x = torch.randn(1, 6, 8, 2)
    assert torch.equal(window_partition(x, (3, -1), (-1, 4)), window_partition(x, (3, 2), (2, 4)))


def test_uneven_cut_is_refused() -> None:
    with pytest.raises(RuntimeError):
        window_partition(torch.randn(1, 6, 8, 2), (4, 2), ANY)
