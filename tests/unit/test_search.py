"""Searches: what may choose a setting, trials that are resumed, found, retried and stopped early.

Optuna's own work (what to try next) is not tested. Oracles: closed forms written as results, brute-force fronts, and
the ranking metrics themselves on scores that are right and on scores that are wrong.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from outlie import cli
from outlie.data.protocols import partition
from outlie.errors import UserError
from outlie.metrics.evaluation import Metrics, evaluate
from outlie.results import store
from outlie.sweeps import objective, search, space, worker
from outlie.sweeps.cells import Event
from outlie.sweeps.local import Local, Queue

optuna = pytest.importorskip("optuna")
from optuna.trial import TrialState  # noqa: E402

from outlie.sweeps import pruning, search_report, trials  # noqa: E402

VALIDATION = "dataset.protocol=split_validation"
KNN = ("detector=knn", VALIDATION, "metrics=fast")
TEST_NUMBER = 0.123456


def planned(tmp_path: Path, *words: str, **options) -> search.Plan:
    return search.planned(search.Search(**options), [*words, f"output_dir={tmp_path}"], (), "train", None)


class Here(Local):
    """Cells in this process, as a Local launcher asks for them: when it has time for one."""

    def __init__(self, computed: Callable[[dict, Path], None]) -> None:
        super().__init__()
        self.computed, self.did = computed, []

    def run(self, cells, tell) -> None:
        queue = cells if isinstance(cells, Queue) else Queue(cells)
        while (cell := queue.next("")) is not None:
            tell(Event(cell, "started"))
            self.did.append(cell.folder.name)
            try:
                self.computed(cell.config, cell.folder)
                tell(Event(cell, "done", 0.1))
            except UserError as error:
                tell(Event(cell, "failed", 0.1, error=str(error)))


def store_result(folder: Path, auroc: float | None, **more) -> None:
    measured = {"names": Metrics().names, "false_alarms": 0.01, "bootstrap": 0}
    metrics = {"test": {"auroc": TEST_NUMBER}, "validation": {"auroc": auroc}}
    result = {"schema": 1, "status": "done", "metrics": metrics, "evaluated_with": measured}
    store.write_json(folder / "result.json", result | more)


def by_k(config: dict, folder: Path) -> None:
    """A result whose validation AUROC is best at k = 17."""
    store_result(folder, 1 - (config["detector"]["k"] - 17) ** 2 / 1e4, cost={"flops_per_row": config["detector"]["k"]})


def ran(plan: search.Plan, launcher) -> optuna.Study:
    study = trials.opened(plan)
    trials.recover(study)
    trials.run(plan, study, launcher)
    return study


# what may choose


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("test/auroc", "measured on test rows.*validation/auroc with dataset.protocol=split_validation"),
        ("cifar100/fpr95_ood_positive", "measured on test rows"),
        ("ood_near/auroc", "rows that choose cannot test"),
        (["validation/auroc", "test/auroc"], "measured on test rows"),
        ("auroc", "does not say of which rows: search.objective=validation/auroc"),
        ("validation/aurok", "did you mean 'validation/auroc'"),
        ("latency_p50_ms", "the cheapest setting may detect nothing"),
        (["validation/auroc", "validation/auroc"], "several different ones"),
        ([], "give one objective"),
    ],
)
def test_objectives_that_are_refused(names, said):
    with pytest.raises(UserError, match=said):
        objective.read(names)


@pytest.mark.parametrize("metric", objective.metrics())
def test_a_direction_prefers_scores_that_separate_the_classes(metric):
    label = np.repeat([0, 1], [200, 50])
    good = evaluate(label + 0.0, label, Metrics([metric], bootstrap=0))["metrics"][metric]
    bad = evaluate(1.0 - label, label, Metrics([metric], bootstrap=0))["metrics"][metric]
    (one,) = objective.read(f"validation/{metric}")
    assert (good > bad) == (one.direction == "maximize") and good != bad


def test_directions_of_costs_and_of_the_loss():
    names = ["validation_loss", "latency_p50_ms", "flops_per_row", "parameters", "throughput_per_s"]
    directions = [one.direction for one in objective.read(names)]
    assert directions == ["minimize", "minimize", "minimize", "minimize", "maximize"]


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        (["detector=knn", "detector.k=1,2"], {}, "add dataset.protocol=split_validation"),
        (["dataset=adbench/wine", "detector=knn", "detector.k=1,2"], {}, "may not choose; add dataset.protocol"),
        (["dataset=digits_ood", "backbone=resnet18", "detector=knn", "detector.k=1,2"], {}, "that is for tables"),
        ([*KNN, "detector.k=1,2", "metrics.names=[auroc]"], {"objective": "validation/f1_at_k"}, "leaves it out"),
        ([*KNN, "detector.k=1,2"], {"objective": ["validation/auroc", "latency_p50_ms"]}, "metrics.latency=true"),
        ([*KNN, "detector.k=1,2"], {"objective": "validation_loss"}, "holds no training rows out"),
        ([*KNN, "detector.k=1,2"], {"pruner": "asha"}, "search=asha stops a training.*holds no training rows out"),
        (["detector=vae", "detector.lr=1e-3,1e-4"], {"pruner": "asha", "seeds": 2}, "search.seeds=1"),
        (["detector=vae", "detector.validation=0,0.1"], {"objective": "validation_loss"}, "holds no training rows"),
        ([*KNN, "detector.kk=1,2"], {}, "unknown key of detector 'kk'"),
        ([*KNN, "detector.k=interval(1,50)"], {}, r"detector.k=1.0: expected an integer"),
        ([*KNN, "detector.k=range(0,5)"], {}, r"detector.k=0: expected an integer of at least 1"),
        ([*KNN, "detector.k=5"], {}, "nothing is searched"),
        ([*KNN, "detector.k=range(5,5)"], {}, "empty range"),
        ([*KNN, "detector.k=range(5,6)"], {}, "empty space"),
        (["detector.lr=interval(1,1)", VALIDATION], {}, "empty space"),
        (["detector.lr=tag(log, interval(0,1))", VALIDATION], {}, "logarithmic scale starts above 0"),
        ([*KNN, "detector.k=1,2", "detector.k=range(1,9)"], {}, "searched twice"),
        ([*KNN, "detector.k=1,2", "seed=range(3)"], {}, "search.seeds=3"),
        ([*KNN, "detector.k=1,2", "dataset.test=0.2,0.3"], {}, "the same rows"),
        (["dataset=adbench/small", "detector=knn", "detector.k=1,2", VALIDATION], {}, "the same rows"),
        ([*KNN, "detector.k=1,2", "trainer.threads=1,2"], {}, "changes no number"),
        ([*KNN, "detector.k=1,2,"], {}, "cannot read"),
    ],
)
def test_searches_that_are_refused(tmp_path, words, options, said):
    with pytest.raises(UserError, match=f"(?s){said}"):
        planned(tmp_path, *words, **options)
    assert not (tmp_path / "search").exists()


def test_the_command_line_says_so_and_does_nothing(tmp_path, capsys):
    words = ["train", "-m", "detector=knn", "detector.k=1,2", f"output_dir={tmp_path}"]
    assert cli.main([*words, "search=tpe", "search.objective=test/auroc"]) == 2
    assert "rows that choose cannot test" in capsys.readouterr().err
    assert cli.main([*words, "search.trails=3"]) == 2
    assert "did you mean 'search.trials'" in capsys.readouterr().err
    assert cli.main([*words, VALIDATION, "search.trials=0"]) == 2
    assert cli.main([*words, VALIDATION, "search.trials=3", "dry_run=true"]) == 0
    assert "# 3 trials by tpe: maximize validation/auroc" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


# the rows that choose


def test_the_rows_that_test_are_never_looked_at_under_any_seed():
    y = np.random.default_rng(0).permutation(np.repeat([0, 1], [200, 31]))
    every = [partition("split_validation", y, len(y), seed) for seed in range(5)]
    for parts in every:
        several = [parts.train, parts.calibration, parts.validation, parts.test]
        assert sorted(np.concatenate(several)) == list(range(len(y)))  # each row in one part
        assert [len(rows) for rows in several] == [80, 60, 30 + 15, 30 + 16]
        assert [int(y[rows].sum()) for rows in several] == [0, 0, 15, 16]
        assert np.array_equal(parts.scaled_on, parts.train)
        for name in ("test", "validation"):
            assert np.array_equal(getattr(parts, name), getattr(every[0], name))
    assert not np.array_equal(every[0].train, every[1].train)


def test_a_cap_on_rows_keeps_the_test_rows_of_every_seed():
    y = np.repeat([0, 1], [900, 100])
    tests = [partition("split_validation", y, 1000, seed, max_rows=300).test for seed in range(3)]
    assert all(np.array_equal(tests[0], one) for one in tests)


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (None, "needs labels"),
        (np.repeat([0, 1], [100, 1]), "leaves no anomalies for validation"),
        (np.repeat([0, 1], [100, 0]), "leaves no anomalies"),
        (np.repeat([0, 1], [4, 9]), "leaves no normal rows for validation"),
    ],
)
def test_rows_that_cannot_be_halved(y, said):
    with pytest.raises(UserError, match=said):
        partition("split_validation", y, 100 if y is None else len(y), 0)


# the space


def test_words_become_a_space_and_values_become_words():
    words = [
        "a.lr=tag(log, interval(1e-4,1e-2))", "a.k=range(1,10,3)", "a.n=int(interval(2,8))", "a.x=range(0,1,0.25)",
        "a.name=one,two", "a.fixed=[1,2]",
    ]  # fmt: skip
    found = space.read(words)
    given = {one.key: one for one in found.dimensions.values()}
    assert (given["a.lr"].low, given["a.lr"].high, given["a.lr"].log) == (1e-4, 1e-2, True)
    assert (given["a.k"].low, given["a.k"].high, given["a.k"].step) == (1, 7, 3)  # as range: 10 is not in it
    assert (given["a.n"].low, given["a.n"].high, given["a.n"].whole) == (2, 8, True)
    assert given["a.x"].high == 0.75 and not given["a.x"].whole
    assert given["a.name"].choices == ("one", "two")
    setting = {"a.lr": 0.00123456789, "a.k": 4, "a.n": 3, "a.x": 0.5, "a.name": "two"}
    assert found.at(setting) == ["a.lr=0.00123457", "a.k=4", "a.n=3", "a.x=0.5", "a.name=two", "a.fixed=[1,2]"]
    ends = {word for corner in found.corners() for word in corner}
    assert {"a.lr=0.0001", "a.lr=0.01", "a.k=1", "a.k=7", "a.name=one", "a.name=two"} <= ends


@pytest.mark.parametrize("word", ["a.b=range(1,9,2)", "a.b=range(0,1,0.1)", "a.b=int(interval(1,5))", "a.b=x,y"])
def test_optuna_proposes_only_what_a_grid_would_hold(word):
    (one,) = space.read([word]).dimensions.values()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {one.word(study.ask({"a.b": one.distribution()}).params["a.b"]) for _ in range(200)}
    grids = {
        "a.b=range(1,9,2)": {"1", "3", "5", "7"},
        "a.b=range(0,1,0.1)": {repr(i / 10) for i in range(10)},
        "a.b=int(interval(1,5))": {"1", "2", "3", "4", "5"},
        "a.b=x,y": {"x", "y"},
    }
    assert drawn == grids[word]


# trials


def test_a_search_goes_on_and_computes_nothing_twice(tmp_path):
    words, first = (*KNN, "detector.k=range(1,101)"), Here(by_k)
    study = ran(planned(tmp_path, *words, trials=4, startup=2), first)
    before = [(trial.params, trial.value) for trial in study.trials]
    assert len(before) == 4
    again = Here(by_k)
    assert len(ran(planned(tmp_path, *words, trials=4, startup=2), again).trials) == 4 and again.did == []
    more = Here(by_k)
    study = ran(planned(tmp_path, *words, trials=9, startup=2), more)
    assert [(trial.params, trial.value) for trial in study.trials[:4]] == before and len(study.trials) == 9
    assert not set(more.did) & set(first.did)
    in_one_go = ran(planned(tmp_path / "other", *words, trials=9, startup=2), Here(by_k))
    assert [trial.params for trial in in_one_go.trials] == [trial.params for trial in study.trials]
    best = max(trial.value for trial in study.trials)
    assert study.best_value == best == pytest.approx(1 - (study.best_params["detector.k"] - 17) ** 2 / 1e4)


def test_other_words_are_another_search_with_the_same_runs(tmp_path):
    words = (*KNN, "detector.k=1,2")
    folders = {
        planned(tmp_path, *words, **options).folder
        for options in ({}, {"sampler": "random"}, {"seeds": 2}, {"objective": "validation/f1_at_k"}, {"seed": 1})
    }
    folders.add(planned(tmp_path, *words, "detector.aggregate=mean").folder)
    folders.add(planned(tmp_path, *KNN, "detector.k=1,3").folder)
    assert len(folders) == 7
    assert planned(tmp_path, *words).folder == planned(tmp_path, *words, trials=99, at_once=2).folder
    first, second = Here(by_k), Here(by_k)
    ran(planned(tmp_path, *words, trials=5), first)
    study = ran(planned(tmp_path, *words, trials=5, sampler="random"), second)
    assert len(set(first.did)) == len(first.did) <= 2 and len(study.trials) == 5  # equal settings are found
    assert not set(first.did) & set(second.did)


def test_a_seed_is_a_run_and_the_mean_counts(tmp_path):
    def computed(config: dict, folder: Path) -> None:
        store_result(folder, config["detector"]["k"] / 10 + config["seed"] / 100)

    plan = planned(tmp_path, *KNN, "seed=4", "detector.k=1,2", trials=1, seeds=3)
    launcher = Here(computed)
    (trial,) = ran(plan, launcher).trials
    k = int(trial.params["detector.k"])
    assert len(launcher.did) == 3 and trial.value == pytest.approx(k / 10 + 0.05)
    said = search_report.command(plan, trial)
    assert said.startswith("run train -m") and "seed=4 " in said and said.endswith("seed=4,5,6")


def test_a_launcher_that_takes_its_cells_in_one_go(tmp_path):
    class Batch:
        def __init__(self) -> None:
            self.rounds: list[int] = []

        def run(self, cells, tell) -> None:
            self.rounds.append(len(cells))
            for cell in cells[:-1]:  # the last one is lost
                by_k(cell.config, cell.folder)
                tell(Event(cell, "done"))

    launcher = Batch()
    study = ran(planned(tmp_path, *KNN, "detector.k=range(1,1001)", trials=7, at_once=3, seed=3), launcher)
    assert launcher.rounds == [3, 3, 1]
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert [trial.user_attrs["error"] for trial in failed] == ["nobody computed it"] * 3
    launcher = Batch()
    study = ran(planned(tmp_path, *KNN, "detector.k=range(1,1001)", trials=7, at_once=3, seed=3), launcher)
    assert launcher.rounds == [3]  # those that failed are not counted


def test_trials_that_a_killed_search_left_running_are_tried_again(tmp_path):
    plan = planned(tmp_path, *KNN, "detector.k=range(1,1001)", trials=3)
    study = trials.opened(plan)
    distributions = {one.key: one.distribution() for one in plan.space.dimensions.values()}
    killed = [study.ask(distributions).params for _ in range(2)]
    with (plan.folder / trials.JOURNAL).open("a") as journal:
        journal.write('{"op_code": 6, "wor')  # killed in the middle of a line
    study = ran(plan, Here(by_k))
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 3
    assert [trial.params for trial in study.trials[2:4]] == killed


def test_a_journal_that_is_none_is_said(tmp_path):
    plan = planned(tmp_path, *KNN, "detector.k=1,2")
    plan.folder.mkdir(parents=True)
    (plan.folder / trials.JOURNAL).write_text("not json\nat all\n")
    with pytest.raises(UserError, match=r"cannot read .*journal\.log.*remove it"):
        trials.opened(plan)


def test_where_every_trial_fails_the_search_stops(tmp_path, capsys):
    def computed(config: dict, folder: Path) -> None:
        raise UserError("no such thing")

    plan = planned(tmp_path, *KNN, "detector.k=range(1,1001)", trials=40)
    launcher = Here(computed)
    study = ran(plan, launcher)
    assert len(launcher.did) == trials.HOPELESS
    assert "no such thing" in capsys.readouterr().err
    assert search_report.show(plan, study, 5) == 1
    assert "no trial succeeded: no such thing" in capsys.readouterr().out


def test_a_run_without_the_number_is_a_failed_trial(tmp_path):
    def computed(config: dict, folder: Path) -> None:
        store_result(folder, None if config["detector"]["k"] > 500 else 0.5)

    study = ran(planned(tmp_path, *KNN, "detector.k=range(1,1001)", trials=8), Here(computed))
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert [trial.params["detector.k"] > 500 for trial in study.trials] == [trial in failed for trial in study.trials]
    assert failed and all("has no validation/auroc" in trial.user_attrs["error"] for trial in failed)


# what is said


def test_test_numbers_are_shown_once_for_the_chosen_setting_only(tmp_path, capsys):
    plan = planned(tmp_path, *KNN, "detector.k=range(1,101)", trials=12)
    study = ran(plan, Here(by_k))
    assert search_report.show(plan, study, 12) == 0
    out, err = capsys.readouterr()
    written = (plan.folder / "trials.csv").read_text()
    assert out.count("12.35") == 1 and "12.35" not in err and "0.1234" not in out + err + written
    assert "chosen on validation rows, 12 trials" in out and "shown after" not in out
    assert f"run train detector=knn {VALIDATION} metrics=fast detector.k={study.best_params['detector.k']} " in out
    assert len(written.splitlines()) == 13 and (plan.folder / "history.png").stat().st_size > 5000
    search_report.show(plan, study, 0)
    assert "shown after" not in capsys.readouterr().out  # the same numbers again
    more = planned(tmp_path, *KNN, "detector.k=range(1,101)", trials=14)
    study = ran(more, Here(by_k))
    search_report.show(more, study, 2)
    assert "test numbers were shown after 12 trials already" in capsys.readouterr().out


def test_several_objectives_give_the_front(tmp_path, capsys):
    goals = ["validation/auroc", "flops_per_row"]
    plan = planned(tmp_path, *KNN, "detector.k=range(1,101)", trials=15, objective=goals, sampler="random")
    study = ran(plan, Here(by_k))
    points = {trial.number: tuple(trial.values) for trial in study.trials}
    best = {
        number
        for number, (auroc, cost) in points.items()
        if not any(a >= auroc and c <= cost and (a, c) != (auroc, cost) for a, c in points.values())
    }
    search_report.show(plan, study, 15)
    out = capsys.readouterr().out
    assert 1 < len(best) < 15 and f"{len(best)} settings that no other one beats" in out
    assert {int(number) for number in re.findall(r"^(\d+): run train", out, re.M)} == best
    assert "12.35" not in out and (plan.folder / "history.png").exists()


def test_latency_is_measured_one_at_a_time(tmp_path, monkeypatch):
    jobs = []

    def run(plan, study, launcher) -> int:
        jobs.append(launcher.jobs)
        return 0

    monkeypatch.setattr(trials, "run", run)
    words = ["train", "-m", "detector=knn", "detector.k=1,2", VALIDATION, f"output_dir={tmp_path}"]
    for more in (["search=pareto"], ["search=pareto", "launcher.jobs=2"], ["search=tpe"]):
        assert cli.main([*words, *more]) == 1  # no trial succeeded
    assert jobs == [1, 2, None]


def test_optuna_that_is_not_installed_and_a_search_under_way(tmp_path, monkeypatch, capsys):
    words = ["train", "-m", "search=tpe", *KNN, "detector.k=1,2", f"output_dir={tmp_path}"]
    with store.lock(planned(tmp_path, *KNN, "detector.k=1,2").folder):
        assert cli.main(words) == 2
    assert "another process is computing" in capsys.readouterr().err
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    assert cli.main(words) == 2
    assert "pip install 'outlie[search]'" in capsys.readouterr().err


# early stopping


def test_a_lagging_training_is_stopped_and_leaves_nothing_that_is_done(tmp_path):
    words = (
        "detector=vae", "detector.epochs=9", "detector.patience=0", "detector.lr=tag(log, interval(1e-9,1e-2))",
        "metrics=fast", "trainer.threads=1",
    )  # fmt: skip
    plan = planned(tmp_path, *words, pruner="asha", objective="validation_loss", trials=3, first_epoch=2, reduction=2)
    data = worker.Data()

    def computed(config: dict, folder: Path) -> None:
        answer = worker.compute("train", json.loads(json.dumps(config)), data)
        if answer["status"] != "done":
            raise UserError(answer["error"])

    study = trials.opened(plan)
    for lr in (1e-3, 1e-9, 2e-3):
        study.enqueue_trial({"detector.lr": lr})
    study = ran(plan, Here(computed))
    good, bad, _ = study.trials
    assert good.state == TrialState.COMPLETE and bad.state == TrialState.PRUNED
    losses = objective.least_loss(Path(good.user_attrs["runs"][0]) / "metrics.csv")
    assert good.value == losses and set(good.intermediate_values) == {2, 4, 8}
    assert bad.user_attrs[pruning.PRUNED_AT] == 2 and bad.intermediate_values[2] > good.intermediate_values[2]
    stopped = Path(bad.user_attrs["runs"][0])
    result = store.read_result(stopped)
    assert result and result["status"] == "failed" and "stopped by the search at epoch 2" in result["error"]
    assert "search" not in (stopped / "config.yaml").read_text()
    assert len(ran(plan, Here(computed)).trials) == 3  # stopped ones count
    command = [word for word in bad.user_attrs["words"] if not word.startswith("output_dir")]
    assert cli.main(["train", *command, f"output_dir={tmp_path}"]) == 0  # whoever wants it trains it to the end
    assert store.read_result(stopped)["status"] == "done"
    assert len((stopped / "metrics.csv").read_text().splitlines()) == 1 + 9


@pytest.mark.parametrize("maximise", [False, True])
def test_what_a_worker_reports_ranks_losses_whatever_the_objective(tmp_path, maximise):
    journal = tmp_path / "journal.log"
    direction = "maximize" if maximise else "minimize"
    study = optuna.create_study(study_name=pruning.STUDY, storage=pruning.storage(journal), direction=direction)
    rungs = pruning.Rungs(1, 2)
    stopped = []
    for number, level in enumerate([1.0, 0.5, 2.0, 0.25, 0.6]):
        assert study.ask().number == number
        told = pruning.watch(pruning.hook(journal, number, rungs, maximise))
        try:
            for epoch in range(1, 5):
                told([0.0] * epoch, [level] * epoch)
        except pruning.PrunedError:
            stopped.append(level)
    assert stopped == [2.0, 0.6]  # each of the others was among the better half of those before it


def test_epochs_before_a_restart_are_reported_too(tmp_path):
    journal = tmp_path / "journal.log"
    study = optuna.create_study(study_name=pruning.STUDY, storage=pruning.storage(journal))
    study.ask()
    told = pruning.watch(pruning.hook(journal, 0, pruning.Rungs(2, 3), False))
    told([], [5.0, 4.0, 6.0, 3.0, 7.0, 8.0, 1.0])
    assert study.trials[0].intermediate_values == {2: 4.0, 6: 3.0}


# killed


def test_kill_9_costs_the_trials_that_were_under_way(tmp_path):
    words = [
        "train", "-m", "search=random", "search.trials=6", *KNN, "detector=dte_c", "trainer.max_epochs=2",
        "detector.lr=tag(log, interval(1e-4,1e-2))", "launcher.jobs=1", "trainer.threads=1", f"output_dir={tmp_path}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "outlie.cli", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while time.monotonic() < until and len(list(tmp_path.glob("train/*/result.json"))) < 2:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: json.loads(path.read_text())["started"] for path in tmp_path.glob("train/*/result.json")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert all(json.loads(path.read_text())["started"] == started for path, started in kept.items())
    (journal,) = tmp_path.glob(f"search/*/{trials.JOURNAL}")
    found, _ = pruning.opened(str(journal), pruning.Rungs(10, 3))
    states = [trial.state for trial in found.trials]
    assert states.count(TrialState.COMPLETE) == 6 and TrialState.RUNNING not in states
    retried = [trial.params for trial in found.trials if trial.state == TrialState.FAIL]
    complete = [trial.params for trial in found.trials if trial.state == TrialState.COMPLETE]
    assert all(params in complete for params in retried)
    assert len({json.dumps(params) for params in complete}) == len(list(tmp_path.glob("train/*/result.json"))) == 6
    for one, other in itertools.combinations(found.trials, 2):
        assert one.params != other.params or TrialState.FAIL in (one.state, other.state)
