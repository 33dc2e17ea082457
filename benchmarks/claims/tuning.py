"""Every arm tuned alike, then run on seeds that tuning never saw; two processes, one thread each."""

import concurrent.futures
import contextlib
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from benchmarks.claims.job import Fault, Job, Outcome, Trial, run

__all__ = ["FINAL_SEEDS", "Experiment", "Outcomes", "conduct", "key"]

FIRST_TUNING_SEED, MORE_TUNING_SEEDS = 100, (101, 102)
FINALISTS = 3
FINAL_SEEDS = tuple(range(8))

Unit = tuple[Job, str, Trial, int, Fault]
Id = tuple[str, str, Trial, int, str]
Outcomes = MutableMapping[Id, Outcome]
Step = Callable[[str, int, int], None]
Train = Callable[[str, Iterable[Unit]], dict[Id, Outcome]]


@dataclass(slots=True)
class Experiment:
    """What came of a job.

    Attributes:
        job: The job.
        best: Of each arm, the trial that did best on the tuning seeds.
        tuning: Of each arm, the outcomes of that trial on the tuning seeds.
        finals: Outcomes by fault and arm, one for each final seed, in order.
    """

    job: Job
    best: dict[str, Trial] = field(default_factory=dict)
    tuning: dict[str, list[Outcome]] = field(default_factory=dict)
    finals: dict[tuple[str, str], list[Outcome]] = field(default_factory=dict)


def conduct(
    jobs: Sequence[Job],
    seeds: Sequence[int] = FINAL_SEEDS,
    workers: int = 2,
    on_step: Step = lambda _stage, _done, _of: None,
    outcomes: Outcomes | None = None,
) -> dict[str, Experiment]:
    """Tune every arm of every job, then run the tuned arms.

    Each arm has the same number of trials. All are run on one tuning seed, the best three on two
    more; the trial with the best mean wins. Ties go to the lower mean loss over the training.

    Args:
        jobs: What to train.
        seeds: Of the final runs.
        workers: Processes; 0 trains in this one.
        on_step: Called with stage, units done and units in all.
        outcomes: What is known already; grows while this runs.
    """
    known = {} if outcomes is None else outcomes
    with _pool(workers) as pool:

        def train(stage: str, units: Iterable[Unit]) -> dict[Id, Outcome]:
            return _all(stage, units, pool, on_step, known)

        experiments = _tuned(jobs, train)
        _run_tuned(experiments, seeds, train)
    return experiments


def _tuned(jobs: Sequence[Job], train: Train) -> dict[str, Experiment]:
    """Find the best trial of every arm."""
    arms = [(job, arm) for job in jobs for arm in job.arms]
    tried = train(
        "trying",
        [(j, a, t, FIRST_TUNING_SEED, j.tuned_under) for j, a in arms for t in j.trials(a)],
    )
    tried |= train(
        "tuning",
        [
            (job, arm, trial, seed, job.tuned_under)
            for job, arm in arms
            for trial in _finalists(job, arm, tried)
            for seed in MORE_TUNING_SEEDS
        ],
    )
    experiments = {job.name: Experiment(job) for job in jobs}
    for job, arm in arms:
        tests = {trial: _of(job, arm, trial, tried) for trial in _finalists(job, arm, tried)}
        best = min(tests, key=lambda trial: key(tests[trial]))
        experiments[job.name].best[arm] = best
        experiments[job.name].tuning[arm] = tests[best]
    return experiments


def _run_tuned(experiments: Mapping[str, Experiment], seeds: Sequence[int], train: Train) -> None:
    """Run the best trial of every arm on the final seeds."""
    units = [
        (found.job, arm, final_trial(found, arm, fault), seed, fault)
        for found in experiments.values()
        for fault in found.job.finals
        for arm in found.job.arms
        for seed in seeds
    ]
    done = train("running", units)
    for unit in units:
        job, arm, _, _, fault = unit
        experiments[job.name].finals.setdefault((fault.name, arm), []).append(done[_id(unit)])


def final_trial(experiment: Experiment, arm: str, fault: Fault) -> Trial:
    """The arm's best trial, at the rate that the fault asks for."""
    best = experiment.best[fault.like or arm]
    if not fault.unclipped_rate:
        return best
    return Trial(experiment.best["none"].rate * fault.unclipped_rate, best.limit)


def key(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """What trials are ordered by: the mean score to three digits, then the mean loss."""
    score = sum(o.score for o in outcomes) / len(outcomes)
    losses = [loss for o in outcomes for loss in o.curve]
    mean = sum(losses) / len(losses)
    return round(score, 3), mean if math.isfinite(mean) else math.inf


def _id(unit: Unit) -> Id:
    job, arm, trial, seed, fault = unit
    return job.name, arm, trial, seed, fault.name


def _finalists(job: Job, arm: str, tried: Mapping[Id, Outcome]) -> list[Trial]:
    def first(trial: Trial) -> tuple[float, float]:
        return key([tried[job.name, arm, trial, FIRST_TUNING_SEED, job.tuned_under.name]])

    return sorted(job.trials(arm), key=first)[:FINALISTS]


def _of(job: Job, arm: str, trial: Trial, tried: Mapping[Id, Outcome]) -> list[Outcome]:
    seeds = (FIRST_TUNING_SEED, *MORE_TUNING_SEEDS)
    return [tried[job.name, arm, trial, seed, job.tuned_under.name] for seed in seeds]


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[concurrent.futures.Executor | None]:
    """Fresh processes: a fork would share the threads that torch has started."""
    if workers < 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield pool


def _all(
    stage: str,
    units: Iterable[Unit],
    pool: concurrent.futures.Executor | None,
    on_step: Step,
    known: Outcomes,
) -> dict[Id, Outcome]:
    """Run every unit once; the order in which they end makes no difference."""
    wanted = {_id(unit): unit for unit in units}
    found = {name: known[name] for name in wanted if name in known}
    for name, outcome in _outcomes({n: u for n, u in wanted.items() if n not in known}, pool):
        found[name] = known[name] = outcome
        on_step(stage, len(found), len(wanted))
    return found


def _outcomes(
    units: Mapping[Id, Unit], pool: concurrent.futures.Executor | None
) -> Iterator[tuple[Id, Outcome]]:
    """Outcomes as they come."""
    if pool is None:
        for name, unit in units.items():
            yield name, run(*unit)
        return
    running = {pool.submit(run, *unit): name for name, unit in units.items()}
    for future in concurrent.futures.as_completed(running):
        yield running[future], future.result()
