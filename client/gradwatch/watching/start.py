"""``gradwatch.watch``: everything between the one line and the first step."""

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradwatch import shutdown
from gradwatch.clipping.clipper import Clipper
from gradwatch.clipping.learned import JointPolicy
from gradwatch.clipping.policies import Norm, PerTensor, Policy, as_policy, policy_to_json, walk
from gradwatch.console import LogOnce
from gradwatch.errors import WatchError
from gradwatch.identity import Identity, default_store, identify
from gradwatch.reporting.reporter import Reporter
from gradwatch.settings import Settings, resolve
from gradwatch.statistics import STATISTICS
from gradwatch.version import __version__
from gradwatch.watching.agreement import Agreement
from gradwatch.watching.finding import Optimizers, find_optimizers, lay_out, visible_scaler
from gradwatch.watching.following import Following, recommended_part
from gradwatch.watching.gates import Gates
from gradwatch.watching.hooks import StepHook
from gradwatch.watching.layout import Parameters, patterns
from gradwatch.watching.names import Names, unwrap_model
from gradwatch.watching.outlet import Outlet
from gradwatch.watching.replicas import check_interval
from gradwatch.watching.sampling import Sampling
from gradwatch.watching.tracked import Tracked
from gradwatch.watching.watch import Watch
from gradwatch_wire import manifest_hash

__all__ = ["MOST_OPTIMIZERS", "is_watched", "watch"]

# Optimizer -> the Watch that has it, both weakly: watching again replaces, and keeps nothing alive.
_watched: "weakref.WeakKeyDictionary[Optimizer, weakref.ref[Watch]]" = weakref.WeakKeyDictionary()


def _refuse_joint_norm(policy: Policy | None, found: Mapping[str, Optimizer]) -> None:
    """Refuse a norm over all gradients where they are never all there at once."""
    joint = any(isinstance(part, Norm | JointPolicy) for part in walk(policy))
    if joint and len(found) > MOST_OPTIMIZERS:
        raise WatchError(
            f"watch(clip=...): {len(found)} optimizers look like one per parameter, stepped inside "
            "backward(). A joint norm cannot exist there: each gradient is gone before the next one "
            "comes. Use gradwatch.clip.value, per_tensor or agc."
        )


def is_watched(optimizer: Optimizer) -> bool:
    """Whether an optimizer has a Watch."""
    watch_of = _watched.get(optimizer)
    return watch_of is not None and watch_of() is not None


@dataclass(frozen=True, slots=True)
class Further:
    """What is measured beyond the clipping pass: nothing, or what reports are made of."""

    histogram_every: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Further statistics per tensor; the service tells oscillation by the cosine."""
        return () if self.histogram_every is None else ("cosine_previous",)


# More optimizers than this in one job is one per parameter: stepping inside backward().
MOST_OPTIMIZERS = 16


class _Default(int):
    """A default that can be told from the same number given on purpose."""


_EVERY = _Default(1)


def watch(
    model: nn.Module | None = None,
    optimizer: Optimizers | None = None,
    *,
    clip: Policy | Mapping[str, Policy] | None = None,
    every: int = _EVERY,
    run: str | None = None,
    project: str | None = None,
    name: str | None = None,
    tags: Mapping[str, object] | None = None,
    url: str | None = None,
    mode: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    groups: Mapping[str, str] | None = None,
    nonfinite: str = "keep",
    scaler: Any = None,
    spool: str | os.PathLike[str] | bool | None = None,
    histogram_every: int = 10,
    stop_on: Mapping[str, int] | None = None,
    on_incident: Callable[[dict[str, Any]], None] | None = None,
    gates: bool = False,
) -> Watch:
    """Clip, measure and report a model's gradients from now on.

    At every ``optimizer.step()`` the gradients it is about to use (accumulated, reduced, unscaled)
    are clipped by ``clip`` and measured in one pass on their device, without waiting for it. The
    numbers travel in the background: whatever happens to the service, training does not notice.

    Args:
        model: Gives the tensors their names. Alone, without an optimizer, call :meth:`Watch.step`
            before each update.
        optimizer: An optimizer, a sequence of them, or ``{name: optimizer}``. Wrappers that hold
            ``.optimizer`` are unwrapped. Watching one again closes its older Watch.
        clip: A policy of :mod:`gradwatch.clip`, or name patterns to policies. None only measures:
            training is bit-identical to not watching.
        every: Report every so many steps; clipping happens on all. Default ``GRADWATCH_EVERY`` or 1.
        run: Run id; default ``GRADWATCH_RUN``, torchrun's, or a name made up and shared by rank 0.
        project: Project of the run; default ``GRADWATCH_PROJECT`` or ``default``.
        name: Name for people.
        tags: Labels for people.
        url: Address of the service; default ``GRADWATCH_URL`` or ``http://127.0.0.1:8642``.
        mode: ``online``, ``offline`` (spool only) or ``disabled`` (clip only, report nothing).
        include: Patterns of tensor names to watch; the others are neither clipped nor measured.
        exclude: Patterns of tensor names to leave alone; wins over ``include``.
        groups: Pattern of tensor names to group name; the first match counts.
        nonfinite: ``keep``, ``zero`` or ``skip``: what happens to NaN and infinite elements.
        scaler: The loop's GradScaler, so that skipped steps are counted.
        spool: Directory for what cannot be delivered yet, or False for none.
        histogram_every: Steps between magnitude histograms; 0 for none.
        stop_on: For example ``{"nonfinite": 3}``: sets :attr:`Watch.should_stop` after so many
            non-finite steps in a row.
        on_incident: Called on the background thread with each incident the service opens.
        gates: Watch the gates of LSTM and GRU weights as tensors of their own; policies that work per
            tensor then work per gate.

    Returns:
        The running Watch. It may be ignored: the optimizer keeps it.

    Raises:
        WatchError: An option is out of range, or there is nothing to watch.
        PolicyError: ``clip`` is not a policy, for example a bare number.

    Example:
        >>> import torch, gradwatch
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> watch = gradwatch.watch(
        ...     model, optimizer, clip=gradwatch.clip.value(0.01), mode="disabled"
        ... )
        >>> model(torch.ones(2, 4)).sum().backward()
        >>> optimizer.step()
        >>> float(model.weight.grad.abs().max()) <= 0.01
        True
        >>> watch.close()
    """
    policy = as_policy(clip)
    limit = stop_limit(stop_on)
    if not _is_count(histogram_every, least=0):
        raise WatchError(
            f"watch(histogram_every={histogram_every!r}): give a number of steps, 0 for none."
        )
    found = find_optimizers(model, optimizer)
    _refuse_joint_norm(policy, found)
    settings = resolve(
        url=url,
        mode=mode,
        run=run,
        project=project,
        every=None if isinstance(every, _Default) else every,
        spool=spool,
    )
    log = LogOnce()
    layouts = lay_out(
        found,
        Names(model),
        include=patterns("include", include),
        exclude=patterns("exclude", exclude),
        groups=groups,
        gates=Gates(model) if gates and model is not None else None,
        log=log,
    )
    identity = identify(
        run=settings.run,
        project=settings.project,
        name=name,
        tags=_tags(model, tags),
        tensors="/".join(manifest_hash(label, each.tensors) for label, each in layouts.items()),
        log=log,
    )
    reports = settings.mode != "disabled" and identity.shared
    # What only a report needs is only measured where one is made; replicas leave it to rank 0.
    further = Further(histogram_every) if reports and not identity.replica else Further()
    tracked = tuple(
        Tracked(
            name=label,
            optimizer=found[label],
            layout=layout,
            clipper=Clipper(
                policy,
                [tensor.name for tensor in layout.tensors],
                nonfinite=nonfinite,
                kernel=settings.kernel,
                optional=further.columns,
                histogram_every=further.histogram_every or 0,
            ),
            sampling=Sampling(label, found[label], settings.every),
            log=log,
            columns=(*STATISTICS, *further.columns),
        )
        for label, layout in layouts.items()
    )
    made = Watch(
        settings=settings,
        identity=identity,
        tracked=tracked,
        outlet=_outlet(settings, identity, policy, on_incident) if reports else None,
        log_once=log,
        stop_after=limit,
    )
    for each in tracked:
        each.following = _following(policy, each, made)
        if identity.world_size > 1 and identity.shared:
            each.check_every = check_interval(settings.every)
            each.sampling.every = each.check_every if identity.replica else settings.every
        _attach(made, each)
    if (loops := scaler if scaler is not None else visible_scaler(optimizer)) is not None:
        made.use_scaler(loops)
    shutdown.register(made)
    return made


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def stop_limit(stop_on: Mapping[str, int] | None) -> int | None:
    """Check ``stop_on``; return after how many non-finite steps in a row to stop, or None."""
    if stop_on is None:
        return None
    wrong = [key for key in stop_on if key != "nonfinite"]
    limit = stop_on.get("nonfinite", 1)
    if wrong or not _is_count(limit, least=1):
        raise WatchError(
            f"watch(stop_on={dict(stop_on)!r}): the one condition is "
            '{"nonfinite": n}, n non-finite steps in a row, 1 or more.'
        )
    return limit


def _tags(model: nn.Module | None, tags: Mapping[str, object] | None) -> dict[str, object]:
    """Add what dashboards show beside the run; the user's own tags win."""
    known: dict[str, object] = {
        "framework": f"torch {torch.__version__}",
        "client_version": __version__,
    }
    if model is not None:
        known["model"] = type(unwrap_model(model)).__name__
    return {**known, **(tags or {})}


def _outlet(
    settings: Settings,
    identity: Identity,
    policy: Policy | None,
    on_incident: Callable[[dict[str, Any]], None] | None,
) -> Outlet:
    description = None if policy is None else policy_to_json(policy)
    reporter = Reporter(settings, identity)
    if on_incident is not None and identity.rank == 0:
        reporter.on_incident(on_incident)
    return Outlet(settings, identity, description, reporter)


def _following(policy: Policy | None, tracked: Tracked, made: Watch) -> Following | None:
    part = recommended_part(policy)
    if part is None:
        return None
    if isinstance(part.base, PerTensor):
        made.log_once(
            "following",
            "clip.recommended(per_tensor(...)): what travels back to a job is one number; the base "
            "threshold stays in force. gradwatch.recommendation(run, policy='per_tensor') has one per "
            "tensor.",
        )
    return Following(
        part, tracked.clipper, made.newest_recommendation, _agreement(tracked.name, made)
    )


def _agreement(optimizer: str, made: Watch) -> Agreement | None:
    identity, store = made.identity, default_store()
    if identity.world_size == 1 or store is None:
        return None
    return Agreement(
        store=store,
        prefix=f"gradwatch/{identity.session}/{optimizer}",
        rank=identity.rank,
        world_size=identity.world_size,
        log=made.log_once,
    )


def _attach(made: Watch, tracked: Tracked) -> None:
    """Put the hook on, after taking off an older Watch's."""
    if isinstance(tracked.optimizer, Parameters):
        return
    older = _watched.get(tracked.optimizer)
    if older is not None and (former := older()) is not None:
        former.replace_by(made)
    tracked.hook = StepHook(tracked.optimizer, tracked)
    _watched[tracked.optimizer] = weakref.ref(made)
