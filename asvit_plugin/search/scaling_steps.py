"""The steps of a scaling path as trials: every net of a step is one, whichever process measures it."""

from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from .scaling_nets import NET, Evaluation, Record, value
from .space import Choice
from .study import SearchStudy

STEP, CANDIDATE = "step", "candidate"  # user attributes of a trial


class Steps:
    """Measures the nets of one step after the other; all COMPLETE trials of earlier runs count.

    Args:
        search: The study.
        evaluate: Measures nets.
        watch: Called with the step, the nets measured in it, and all of them.
    """

    def __init__(self, search: SearchStudy, evaluate: Evaluation, watch: Callable[[int, int, int], None]) -> None:
        self.search, self.evaluate, self.watch = search, evaluate, watch
        self._trials = 0  # of all steps so far

    def measure(
        self, step: int, candidates: Sequence[Choice], wanted: Callable[[float], bool] = lambda cost: True
    ) -> list[Record]:
        """The records of a step's nets, in their order; those whose cost is not wanted have no score."""

        def on_trial(*_: Any) -> None:
            self.watch(step, len(self._done(step)), len(candidates))

        self._trials += len(candidates)
        if candidates:
            on_trial()
        self.search.run(
            lambda trial: self._take(trial, step, candidates),
            lambda trial, choice: [value(self.evaluate.trial(self.search, trial, choice, wanted))],
            self._trials,
            on_trial,
        )
        done = self._done(step)
        return [done[index] for index in range(len(candidates))]

    def _done(self, step: int) -> dict[int, Record]:
        """The records of a step, by candidate."""
        trials = [trial for trial in self.search.complete if trial.user_attrs.get(STEP) == step]
        return {trial.user_attrs[CANDIDATE]: trial.user_attrs[NET] for trial in trials}

    def _take(self, trial: "optuna.Trial", step: int, candidates: Sequence[Choice]) -> Choice:
        """The first candidate that nobody has measured or is measuring."""
        states = (TrialState.COMPLETE, TrialState.RUNNING)
        others = self.search.study.get_trials(deepcopy=False, states=states)
        taken = {each.user_attrs.get(CANDIDATE) for each in others if each.user_attrs.get(STEP) == step}
        index = next(index for index in range(len(candidates)) if index not in taken)
        trial.set_user_attr(STEP, step)
        trial.set_user_attr(CANDIDATE, index)
        for name, chosen in candidates[index].items():
            trial.suggest_float(name, chosen, chosen)  # for whoever looks at the study
        return candidates[index]


def unique(choices: Sequence[Choice]) -> list[Choice]:
    """Choices without those that were there before."""
    return list({tuple(choice.items()): choice for choice in reversed(choices)}.values())[::-1]
