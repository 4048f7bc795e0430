"""A progress bar for commands that work step by step."""

from tqdm import tqdm


class StepProgress:
    """Shows the candidates of the present step; how many steps there will be, nobody knows."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.bar: tqdm | None = None

    def __call__(self, step: int, done: int, count: int) -> None:
        if step != self.step:
            self.close()
            self.step, self.bar = step, tqdm(total=count, desc=f"step {step}", unit="net", leave=False)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.close()
