"""REINFORCE: the published update, its sampler, and what a net without a value does to it."""

import math
from itertools import product

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import create_trial

from asvit_plugin.search import ReinforceSampler, ReinforceSettings, Space, load_space
from asvit_plugin.search.reinforce import Policy, RelativeReward
from asvit_plugin.search.sampling import distributions, suggest

SPACE = Space("toy", "none", {"a": (1, 2, 3), "b": ("x", "y"), "c": (4, 5, 6, 7)})


def test_relative_reward_by_hand() -> None:
    reward = RelativeReward([True, False], buffer=3)
    assert reward([1.0, 10.0]) == 0
    assert reward([3.0, 12.0]) == pytest.approx(2 / 2 - 2 / 2, abs=1e-5)
    assert reward([2.0, 11.0]) == pytest.approx(-1 / 2 + 1 / 2, abs=1e-5)
    assert reward([2.5, 7.0]) == pytest.approx(0.5 / 1 + 4 / 5, abs=1e-5)  # 1.0 and 10.0 have left the buffer


def test_a_net_without_a_value_is_the_worst_and_is_forgotten() -> None:
    reward = RelativeReward([True], buffer=20)
    assert reward([math.nan]) == -1
    assert reward([1.0]) == 0
    assert reward([math.inf]) == reward([math.nan]) == -1
    assert reward([2.0]) == pytest.approx(1, abs=1e-5)


def test_policy_is_the_published_one() -> None:
    """Against the published loop written anew: a parameter per decision, torch's Categorical, Adam, EMA baseline."""
    rng = np.random.default_rng(0)
    policy = Policy(SPACE, [True, False], seed=3)
    logits = [part.clone().detach().requires_grad_() for part in policy.logits.detach().split([3, 2, 4])]
    assert torch.cat(logits).abs().max() < 0.005
    adam = torch.optim.Adam(logits, lr=0.08)
    history, average, weight = [], 0.0, 0.0
    for _ in range(60):
        values = [float(rng.normal()), float(rng.normal())]
        history.append(values)
        choice = SPACE.sample(rng)
        policy.learn(choice, values)

        recent, reward = history[-20:], 0.0
        for j, sign in enumerate((1, -1)):
            column = [each[j] for each in recent]
            change = values[j] - history[-2][j] if len(history) > 1 else 0.0
            reward += sign * change / (max(column) - min(column) + 1e-6)
        average, weight = 0.9 * average + 0.1 * reward, 0.9 * weight + 0.1
        actions = [choices.index(choice[name]) for name, choices in SPACE.decisions.items()]
        log_prob = sum(
            torch.distributions.Categorical(logits=each).log_prob(torch.tensor(action))
            for each, action in zip(logits, actions)
        )
        adam.zero_grad()
        (-log_prob * (reward - average / weight)).backward()
        adam.step()
        assert policy.rewards[-1] == pytest.approx(reward, abs=1e-12)
    torch.testing.assert_close(policy.logits.detach(), torch.cat(logits).detach(), rtol=1e-9, atol=1e-9)
    entropy = sum(torch.distributions.Categorical(logits=each).entropy() for each in logits)
    assert policy.entropies[-1] == pytest.approx(float(entropy.detach()))
    assert policy.most_probable() == {
        name: choices[int(each.argmax())] for (name, choices), each in zip(SPACE.decisions.items(), logits)
    }


def test_first_policy_is_all_but_even() -> None:
    policy = Policy(load_space("as_vit"), [True, False], seed=8)
    even = sum(math.log(len(choices)) for choices in load_space("as_vit").decisions.values())
    assert policy.entropy == pytest.approx(even, abs=1e-4)
    assert policy.settings == ReinforceSettings(lr=0.08, momentum=0.9, buffer=20, init_std=1e-3)


def test_most_probable_point_meets_the_constraints() -> None:
    space = Space("toy", "none", dict.fromkeys("abcd", (0, 1, 2)), {}, ("a + b + c + d == 2", "a != b"))
    policy = Policy(space, [True], seed=0, settings=ReinforceSettings(init_std=2.0))
    chances = {
        point: math.prod(each[i] for each, i in zip(policy.probabilities, point))
        for point in product(range(3), repeat=4)
    }
    feasible = [point for point in chances if space.allows(dict(zip("abcd", point)))]
    assert tuple(policy.most_probable().values()) == max(feasible, key=chances.__getitem__)
    orders = [tuple(choice.values()) for choice in policy._by_probability()]
    assert len(orders) == 81
    assert orders == sorted(chances, key=lambda point: -chances[point])


def study_of(trials: list[tuple[int, dict, list[float]]], sampler: ReinforceSampler) -> optuna.Study:
    study = optuna.create_study(directions=["maximize"], sampler=sampler)
    for _, choice, values in trials:
        study.add_trial(create_trial(params=choice, distributions=distributions(SPACE), values=values))
    return study


def test_state_is_replayed_even_where_an_older_trial_ends_late() -> None:
    rng = np.random.default_rng(0)
    trials = [(i, SPACE.sample(rng), [float(rng.normal())]) for i in range(6)]
    sampler = ReinforceSampler(SPACE, seed=1)
    study = optuna.create_study(directions=["maximize"], sampler=sampler)
    asked = [study.ask() for _ in trials]
    for trial, (_, choice, _) in zip(asked, trials):
        trial._relative_params = dict(choice)
        trial.relative_search_space = distributions(SPACE)
        assert suggest(SPACE, trial) == choice
    for late in (0, 1, 3, 4, 5, 2):
        study.tell(asked[late], trials[late][2])
        sampler.policy(study)
    fresh = ReinforceSampler(SPACE, seed=1).policy(study_of(trials, sampler))
    torch.testing.assert_close(sampler.policy(study).logits, fresh.logits, rtol=0, atol=0)


def test_finds_the_best_of_a_toy_space() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = ReinforceSampler(SPACE, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        choice = suggest(SPACE, trial)
        return choice["a"] + 2 * (choice["b"] == "y"), choice["c"]

    study.optimize(objective, n_trials=200)
    policy = sampler.policy(study)
    assert policy.most_probable() == {"a": 3, "b": "y", "c": 4}
    assert policy.entropies[-1] < 0.5 * policy.entropies[0]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"lr": 0}, "lr is 0; it must be positive"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"buffer": 0}, "buffer is 0"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReinforceSettings(**kwargs)
