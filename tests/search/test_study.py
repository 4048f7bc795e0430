"""Studies: killed, shared by processes, refused, and in databases that are locked or broken."""

import math
import sqlite3
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from studies import OBJECTIVES, SPACE, kill, moments, run, sampler_of, start, states, values_of

from asvit_plugin.search import open_study
from asvit_plugin.search.sampling import suggest
from asvit_plugin.search.storage import clear_errors
from asvit_plugin.search.workers import Workers


@pytest.mark.parametrize("sampler", ["reinforce", "tpe", "nsga2", "random"])
def test_killed_at_any_moment_it_ends_as_if_undisturbed(sampler: str, tmp_path: Path) -> None:
    trials, kills = (20, 8) if sampler == "reinforce" else (14, 4)
    expected = run(None, trials, sampler)
    file = tmp_path / "study.db"
    begin = partial(start, file, trials, sampler, seconds=0.08)  # 0.9 s, the first three moments, are not enough
    assert kill(begin, moments(sampler, 0.05, 0.3), kills) >= 3
    assert run(file, trials, sampler) == expected
    assert states(file).count("RUNNING") == 0


def test_the_choice_that_a_kill_lost_is_drawn_again(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    run(file, 3)
    process = start(file, 4, seconds=60)
    while "RUNNING" not in states(file) or len(running(file)[0].params) < 4:
        time.sleep(0.02)
    killed = running(file)[0].params
    process.kill()
    process.join()
    assert run(file, 4)[-1]["choice"] == killed
    assert states(file) == ["COMPLETE"] * 3 + ["FAIL", "COMPLETE"]


def test_killed_while_it_is_created(tmp_path: Path) -> None:
    """Optuna's tables and indices come one by one; half of them would stay half for good."""
    when = moments(0, 0.02, 0.15)
    for attempt in range(8):
        file = tmp_path / str(attempt) / "study.db"
        assert kill(partial(start, file, 2, seconds=0.2), when, 2) == 2
        if file.exists():
            indices = sqlite3.connect(file).execute("SELECT name FROM sqlite_master WHERE type = 'index'")
            assert ("ix_studies_study_name",) in indices.fetchall()
    assert run(file, 3) == run(None, 3)


def running(file: Path) -> list[optuna.trial.FrozenTrial]:
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{file}")
    return study.get_trials(states=(optuna.trial.TrialState.RUNNING,))


def test_two_processes_begin_and_share_a_study(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    processes = [start(file, 20, seconds=0.05) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    trials = optuna.load_study(study_name="toy", storage=f"sqlite:///{file}").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 20
    workers = [trial.user_attrs["worker"] for trial in trials]
    assert min(workers.count(worker) for worker in set(workers)) >= 5
    assert len(set(workers)) == 2
    first, second = trials[0].params, trials[1].params
    assert first != second  # begun with the same knowledge, yet drawn apart
    assert not list((tmp_path / "study.db.locks").glob("*.worker"))


def test_a_live_process_is_not_taken_for_dead(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    run(file, 1)
    slow = start(file, 2, seconds=2)
    while not running(file):
        time.sleep(0.02)
    assert len(run(file, 2)) == 2  # waits for the other's
    slow.join(60)
    assert states(file) == ["COMPLETE"] * 2


def test_another_process_fills_in_for_a_dead_one(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    slow = start(file, 1, seconds=60)
    while not file.exists() or not has_study(file) or not running(file):
        time.sleep(0.05)
    waiting = start(file, 1)
    time.sleep(0.5)
    assert waiting.is_alive()
    slow.kill()
    waiting.join(60)
    assert waiting.exitcode == 0
    assert states(file) == ["FAIL", "COMPLETE"]


def has_study(file: Path) -> bool:
    try:
        return bool(states(file) or True)
    except Exception:
        return False


def test_many_create_one_study_at_once(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    processes = [start(file, 4) for _ in range(4)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert states(file) == ["COMPLETE"] * 4


def test_more_steps_continue_a_study(tmp_path: Path) -> None:
    run(tmp_path / "a.db", 5)
    assert run(tmp_path / "a.db", 9) == run(None, 9)


def test_values_that_are_not_finite_are_kept_as_the_worst() -> None:
    with open_study("s", OBJECTIVES, {}, sampler_of("random")) as search:
        values = iter([[math.nan, 1.0], [2.0, math.nan], [math.inf, -math.inf], [1.0, 2.0]])
        search.run(lambda trial: trial.suggest_categorical("a", SPACE.decisions["a"]), lambda *_: next(values), 4)
        kept = [trial.values for trial in search.complete]
    assert kept == [[-math.inf, 1], [2, math.inf], [-math.inf, math.inf], [1, 2]]


def test_an_error_ends_the_run_and_the_study_goes_on(tmp_path: Path) -> None:
    def fail(*_: object) -> list[float]:
        raise KeyError("broken net")

    file = tmp_path / "study.db"
    run(file, 2)
    with (
        open_study("toy", OBJECTIVES, {"seed": 8}, sampler_of("reinforce"), file) as search,
        pytest.raises(KeyError, match="broken net"),
    ):
        search.run(lambda trial: suggest(SPACE, trial), fail, 3)
    assert run(file, 5) == run(None, 5)


def test_a_process_that_was_given_up_for_dead_goes_on(tmp_path: Path) -> None:
    """Suspended, say, until its heartbeat was too old."""

    def measure(trial: optuna.Trial, choice: dict[str, int]) -> list[float]:
        if trial.number == 1:
            other = optuna.load_study(study_name="toy", storage=f"sqlite:///{tmp_path / 'study.db'}")
            other.tell(1, state=optuna.trial.TrialState.FAIL)
        return values_of(choice)

    with open_study("toy", OBJECTIVES, {"seed": 8}, sampler_of("reinforce"), tmp_path / "study.db") as search:
        with pytest.warns(UserWarning, match="gave this one up for dead"):
            search.run(lambda trial: suggest(SPACE, trial), measure, 4)
        trials = [{"choice": trial.params, "values": trial.values} for trial in search.complete]
    assert trials == run(None, 4)


def test_a_password_is_not_shown() -> None:
    with pytest.raises(RuntimeError, match=r"database postgresql\+nosuch://me:\*\*\*@host/db cannot be used"):
        run("postgresql+nosuch://me:secret@host/db", 1)


def test_a_study_of_other_settings_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    run(file, 1)
    with (
        pytest.raises(ValueError, match="study 'toy' in .*study.db was begun with seed 8, not 9; keep that, or give"),
        open_study("toy", OBJECTIVES, {"seed": 9}, sampler_of("reinforce"), file),
    ):
        pass
    assert run(file, 2) == run(None, 2)


def test_another_programs_study_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=url, study_name="toy")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ValueError, match="was begun by another program"):
        run(url, 1)


def test_a_broken_database_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    file.write_bytes(b"no database at all" * 100)
    with pytest.raises(RuntimeError, match="database .*study.db cannot be used: file is not a database$"):
        run(file, 1)
    assert file.read_bytes().startswith(b"no database")


def test_a_database_that_breaks_off_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    run(file, 3)
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(RuntimeError, match="database .*study.db cannot be used: .*malformed$"):
        run(file, 5)


def test_a_locked_database_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    run(file, 2)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RuntimeError, match="cannot be used: database is locked; what was stored is kept, so run the"):
        run(file, 4, lock_seconds=0.1)
    holder.close()
    assert run(file, 4) == run(None, 4)


@pytest.mark.parametrize(
    "error, later",
    [
        (sqlalchemy.exc.OperationalError("", {}, sqlite3.OperationalError("database or disk is full")), True),
        (sqlalchemy.exc.OperationalError("", {}, sqlite3.OperationalError("no such table: studies")), False),
        (sqlalchemy.exc.OperationalError("", {}, Exception("connection to server lost")), True),
        (sqlalchemy.exc.DatabaseError("", {}, Exception("gone"), connection_invalidated=True), True),
        (sqlalchemy.exc.ProgrammingError("", {}, Exception("syntax error")), False),
        (sqlalchemy.exc.NoSuchModuleError("Can't load plugin"), False),
    ],
    ids=["full", "no_table", "lost", "invalidated", "syntax", "no_plugin"],
)
def test_only_what_may_pass_is_worth_another_try(error: Exception, later: bool) -> None:
    with pytest.raises(RuntimeError, match="database memory cannot be used: ") as caught, clear_errors(None):
        raise error
    assert ("run the same again later" in str(caught.value)) is later


@pytest.mark.parametrize(
    "storage, message",
    [
        ("://x", "storage is '://x'; it must be a file or a URL"),
        ("sqlite://", "it must name the SQLite file"),
        (Path("/"), "a folder"),
    ],
)
def test_bad_storages_are_refused(storage: str | Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(storage, 1)


def test_processes_elsewhere_are_left_to_the_heartbeat(tmp_path: Path) -> None:
    """Of a database on another machine, an unknown process may well be alive there."""
    workers = Workers(tmp_path, complete=False)
    signed = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, user_attrs={"worker": "elsewhere"})
    unsigned = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)
    assert not workers.is_dead(signed)
    assert not workers.is_dead(unsigned)
    workers.complete = True
    assert workers.is_dead(signed)
    assert workers.is_dead(unsigned)
    workers.close()


def test_a_database_elsewhere_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes may be unknown there, and trials are signed as they are made."""
    init = Workers.__init__
    monkeypatch.setattr(Workers, "__init__", lambda self, folder, complete: init(self, folder, False))
    file = tmp_path / "study.db"
    assert kill(partial(start, file, 12, seconds=0.08), moments(3, 0.1, 0.3), 3) == 3
    assert run(file, 12) == run(None, 12)
    assert not {"RUNNING", "WAITING"} & set(states(file))


def test_nothing_is_imported_before_it_is_needed() -> None:
    program = (
        "import sys, asvit_plugin; heavy = {'optuna', 'sqlalchemy', 'scipy', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy; import asvit_plugin.search; assert 'optuna' not in sys.modules; "
        "sys.modules['optuna'] = None; from asvit_plugin.search import search_topology"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "searching needs optuna: pip install 'asvit-plugin[search]'" in done.stderr.splitlines()[-1]
