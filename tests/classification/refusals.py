"""How the scripts refuse what they are given."""

from collections.abc import Callable

import pytest
import train


def refusal(capfd: pytest.CaptureFixture[str], *argv: str, main: Callable[[list[str]], object] = train.main) -> str:
    """The one line that a script prints as it ends with exit status 2."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([*argv])
    assert stopped.value.code == 2
    (message,) = capfd.readouterr().err.splitlines()
    assert "error: " in message
    return message
