"""Options of the classification scripts: typed, named as timm's own training script names them, read with jsonargparse.

Every option can be given on the command line (`--drop-path 0.1` or `--drop_path 0.1`) and in a YAML file
(`--config recipe.yaml`, with underscores); what comes later on the command line wins.
"""

from dataclasses import dataclass

from data_options import ModelOptions
from supernet_options import SupernetOptions


@dataclass
class TrainOptions(SupernetOptions):
    """Run.

    Args:
        seed: Seed of everything that is random; same seed, same run.
        output: Folder that holds experiments.
        experiment: Name of this run's folder in `output`; by default the model's name.
        resume: `auto` continues this experiment where it stopped (or starts it), a path continues that checkpoint.
        log_interval: Batches between two updates of the loss in the progress bar.
        tensorboard: Write TensorBoard logs.
    """

    seed: int = 42
    output: str = "output"
    experiment: str = ""
    resume: str = ""
    log_interval: int = 20
    tensorboard: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.demand("log_interval", lambda value: value >= 1, "a whole number from 1 up")
        self.demand("seed", lambda value: 0 <= value < 2**32, "a whole number from 0 to 2**32 - 1")


@dataclass
class ValidateOptions(ModelOptions):
    """Checkpoint.

    Args:
        checkpoint: Weights to measure. One that train.py wrote knows its model and its data; other options given
            here win over what it knows.
        results_file: JSON file to write the measurements to.
        use_ema: Measure the averaged weights where the checkpoint has them, as training does.
    """

    model: str = ""
    checkpoint: str = ""
    results_file: str = ""
    use_ema: bool = True
