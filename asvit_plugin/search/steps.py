"""Steps that each look at several candidates: every candidate is a trial, whichever process measures it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from .study import SearchStudy

STEP, CANDIDATE = "step", "candidate"  # user attributes of a trial


class Steps:
    """Measures the candidates of one step after the other; all COMPLETE trials of earlier runs count.

    Args:
        search: The study.
        watch: Called with the step, its candidates measured, and all of them.
    """

    def __init__(self, search: SearchStudy, watch: Callable[[int, int, int], None]) -> None:
        self.search, self._watch = search, watch
        self._trials = 0  # of all steps so far

    def run(
        self,
        step: int,
        candidates: Sequence[Mapping[str, Any]],
        measure: Callable[[optuna.Trial, Mapping[str, Any]], Sequence[float]],
    ) -> list[FrozenTrial]:
        """The COMPLETE trials of a step's candidates, in their order.

        Args:
            step: Its number.
            candidates: Names and numbers of each; the same whenever the step is run again.
            measure: The objectives' values of a candidate.
        """

        def on_trial(*_: Any) -> None:
            self._watch(step, len(self._done(step)), len(candidates))

        self._trials += len(candidates)
        if candidates:
            on_trial()
        self.search.run(lambda trial: self._take(trial, step, candidates), measure, self._trials, on_trial)
        done = self._done(step)
        return [done[index] for index in range(len(candidates))]

    def _done(self, step: int) -> dict[int, FrozenTrial]:
        """The COMPLETE trials of a step, by candidate."""
        trials = [trial for trial in self.search.complete if trial.user_attrs.get(STEP) == step]
        return {trial.user_attrs[CANDIDATE]: trial for trial in trials}

    def _take(self, trial: optuna.Trial, step: int, candidates: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The first candidate that nobody has measured or is measuring."""
        states = (TrialState.COMPLETE, TrialState.RUNNING)
        others = self.search.study.get_trials(deepcopy=False, states=states)
        taken = {each.user_attrs.get(CANDIDATE) for each in others if each.user_attrs.get(STEP) == step}
        index = next(index for index in range(len(candidates)) if index not in taken)
        trial.set_user_attr(STEP, step)
        trial.set_user_attr(CANDIDATE, index)
        for name, value in candidates[index].items():
            trial.suggest_float(name, value, value)  # for whoever looks at the study
        return candidates[index]
