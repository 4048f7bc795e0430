"""A search as an Optuna study that several processes share, that may be killed, and that goes on where it was.

The storage is the only record. A process that starts, wherever it starts, fails the RUNNING trials of dead ones and
draws what an undisturbed one would have drawn next: random numbers are keyed (see ``sampling.keyed_generator``).
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from .storage import clear_errors, connect, resolve, shown
from .workers import WORKER, Workers

SETTINGS = "settings"  # user attribute of a study: what it was begun with
_POLL = 0.2  # seconds between looks at what the other processes are doing

Suggest = Callable[[optuna.Trial], Any]
Measure = Callable[[optuna.Trial, Any], Sequence[float]]
OnTrial = Callable[[optuna.Study, FrozenTrial], None]


class SearchStudy:
    """An open study; :func:`open_study` makes it.

    Attributes:
        study: The Optuna study.
    """

    def __init__(self, study: optuna.Study, workers: Workers) -> None:
        self.study = study
        self._workers = workers

    @property
    def complete(self) -> list[FrozenTrial]:
        """All COMPLETE trials, by number."""
        return complete_trials(self.study)

    def run(self, suggest: Suggest, measure: Measure, trials: int, on_trial: OnTrial | None = None) -> None:
        """Work until the study has so many COMPLETE trials, whoever makes them.

        Args:
            suggest: Turns a trial into a choice, by its ``suggest_*``; the other processes wait meanwhile.
            measure: The objectives' values of a choice. One that is not finite is stored as the worst infinity, for
                Optuna refuses NaN.
            trials: COMPLETE trials that the study is to have.
            on_trial: Called after each trial of this process.
        """
        while True:
            with self._workers.guard:
                self.fail_stale()
                running = len(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
                missing = trials - len(self.complete)
                if missing > running:
                    self._run_one(suggest, measure, on_trial)
            if missing <= 0:
                return
            if missing <= running:
                time.sleep(_POLL)

    def _run_one(self, suggest: Suggest, measure: Measure, on_trial: OnTrial | None) -> None:
        """One trial; the guard is let go of as soon as its choice is stored."""
        if not (self._workers.complete or self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))):
            # Where nobody knows all processes, a trial must be signed from its first moment.
            self.study.enqueue_trial({}, user_attrs={WORKER: self._workers.name})
        measured: list[int] = []

        def objective(trial: optuna.Trial) -> list[float]:
            trial.set_user_attr(WORKER, self._workers.name)
            choice = suggest(trial)
            self._workers.guard.release(force=True)
            values = _storable(measure(trial, choice), self.study)
            measured.append(trial.number)
            return values

        try:
            self.study.optimize(objective, n_trials=1, callbacks=[on_trial] if on_trial else None)
        except (AssertionError, ValueError):  # what Optuna raises for a trial that is RUNNING no more
            if not measured or self.study.trials[measured[0]].state is not TrialState.FAIL:
                raise
            # Suspended for minutes, say: another process took this one for dead, and its trial is drawn again.
            warnings.warn("another process gave this one up for dead, so one trial is measured again", stacklevel=2)

    def fail_stale(self) -> None:
        """Fail the RUNNING trials of processes that have ended."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)  # by their heartbeat
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._workers.is_dead(trial):
                with suppress(ValueError):  # it has just been failed, or has just ended
                    self.study.tell(trial.number, state=TrialState.FAIL)


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All COMPLETE trials of a study, by number: the order in which a search is replayed."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(trials, key=lambda trial: trial.number)


def _storable(values: Sequence[float], study: optuna.Study) -> list[float]:
    worst = {optuna.study.StudyDirection.MAXIMIZE: -math.inf, optuna.study.StudyDirection.MINIMIZE: math.inf}
    return [
        float(value) if math.isfinite(value) else worst[direction]
        for value, direction in zip(values, study.directions, strict=True)
    ]


@contextmanager
def open_study(
    name: str,
    objectives: Mapping[str, bool],
    settings: Mapping[str, Any],
    sampler: optuna.samplers.BaseSampler,
    storage: Path | str | None = None,
    lock_seconds: float = 60,
) -> Iterator[SearchStudy]:
    """Open a study, or begin it.

    Args:
        name: Its name in the storage.
        objectives: Names of its objectives, and whether each is to be maximised.
        settings: All that the trials depend on, as JSON can hold it. A study that was begun with others is refused.
        sampler: What suggests.
        storage: A file (SQLite) or a URL of Optuna; None keeps everything in memory.
        lock_seconds: How long to wait for a locked SQLite file.

    Raises:
        ValueError: if the study was begun with other settings, or by something else.
        RuntimeError: if the database is locked, broken or out of reach.
    """
    with TemporaryDirectory() as nowhere:
        url, workers = resolve(storage, Path(nowhere))
        try:
            with clear_errors(url), workers.guard:
                study = _create(name, objectives, sampler, url, lock_seconds)
                _claim(study, json.loads(json.dumps(settings)), url)
                _name_objectives(study, list(objectives))
            with clear_errors(url):
                yield SearchStudy(study, workers)
        finally:
            workers.close()


def _create(
    name: str, objectives: Mapping[str, bool], sampler: optuna.samplers.BaseSampler, url: str | None, seconds: float
) -> optuna.Study:
    return optuna.create_study(
        storage=None if url is None else connect(url, seconds),
        sampler=sampler,
        study_name=name,
        directions=["maximize" if maximize else "minimize" for maximize in objectives.values()],
        load_if_exists=True,
    )


def _claim(study: optuna.Study, settings: dict[str, Any], url: str | None) -> None:
    """Write the settings into a new study, and refuse one that has others."""
    begun = study.user_attrs.get(SETTINGS)
    if begun is None:
        if study.get_trials(deepcopy=False):
            raise ValueError(
                f"study {study.study_name!r} in {shown(url)} was begun by another program; choose another name"
            )
        study.set_user_attr(SETTINGS, settings)
        return
    for key in [*settings, *begun]:
        if begun.get(key) != settings.get(key):
            raise ValueError(
                f"study {study.study_name!r} in {shown(url)} was begun with {key} {begun.get(key)!r}, not "
                f"{settings.get(key)!r}; keep that, or give the study another name or storage"
            )


def _name_objectives(study: optuna.Study, names: list[str]) -> None:
    """For whoever looks at the study."""
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(names)
