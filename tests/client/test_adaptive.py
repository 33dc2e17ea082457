import io
import math
import statistics
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.client.no_host_sync import no_host_sync
from tests.client.norm_streams import follow, gradients_of_norm, recorded_like

import gradwatch
from gradwatch import Clipper, clip
from gradwatch.clipping import adaptive, restraint
from gradwatch.clipping.adaptive import PREFERENCES
from gradwatch.clipping.hold import HOLD_STEPS, RATES
from gradwatch.clipping.stages import Scope
from gradwatch.clipping.window import WindowStage
from gradwatch_service.recommenders import norm as service
from gradwatch_service.recommenders import restraint as service_restraint


def service_thresholds(norms, preference, rates=None):
    """What the service's rule allows at each step, by the steps before it; NaN for no limit."""
    rates = [math.nan if rate is None else rate for rate in rates or [None] * len(norms)]
    finite = np.isfinite(norms)
    rows = service.in_force(np.array(norms), finite, np.array(rates))
    return rows[service.PREFERENCES[preference]].tolist()


every_preference = pytest.mark.parametrize("preference", sorted(PREFERENCES))


@every_preference
def test_the_limit_is_what_the_service_would_recommend_before_that_step(preference):
    norms = recorded_like(300)
    norms[7] = norms[150] = math.nan
    norms[20] = 0.0
    found = follow(Clipper(clip.adaptive(preference=preference)), norms)

    expected = service_thresholds(norms, preference)
    assert [threshold for threshold, _ in found] == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert all(after <= limit * (1 + 1e-6) for limit, after in found if limit > 0)


def rates_with_changes(steps):
    """A warm-up, a step of a schedule, a return, a slow cosine, and steps that tell no rate."""
    rates = [0.1 * min(1.0, (step + 1) / 10) for step in range(steps)]
    rates[60:90] = [0.02] * 30
    rates[90:130] = [0.1] * 40
    rates[130:] = [0.1 * math.cos(step / steps) for step in range(steps - 130)]
    rates[62] = rates[95] = rates[200] = None
    rates[160] = 0.0
    return rates


@every_preference
def test_the_learning_rate_holds_the_limit_at_the_same_steps_as_in_the_service(preference):
    # Norms that rise throughout: without the hold the limit would rise at every step.
    norms = [math.exp(0.01 * step) * norm for step, norm in enumerate(recorded_like(240))]
    norms[63] = norms[100] = math.inf
    rates = rates_with_changes(len(norms))
    policy = clip.adaptive(preference=preference)
    held = [threshold for threshold, _ in follow(Clipper(policy), norms, rates)]
    free = [threshold for threshold, _ in follow(Clipper(policy), norms)]

    expected = service_thresholds(norms, preference, rates)
    assert held == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert held != pytest.approx(free, rel=1e-6, nan_ok=True)
    assert all(after <= before for before, after in pairwise(held[61:81]))


@pytest.mark.parametrize("stopped", [59, 66, 79])
def test_a_job_that_is_restarted_within_the_hold_goes_on_holding(stopped):
    norms, rates = recorded_like(120), rates_with_changes(240)[:120]
    straight, first = Clipper(clip.adaptive()), Clipper(clip.adaptive())
    expected = follow(straight, norms, rates)
    follow(first, norms[:stopped], rates[:stopped])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    restarted = Clipper(clip.adaptive())
    restarted.load_state_dict(torch.load(file, weights_only=True))

    found = follow(restarted, norms[stopped:], rates[stopped:])
    assert found == expected[stopped:]
    assert repr(restarted.state_dict()) == repr(straight.state_dict())


def test_a_state_saved_before_learning_rates_were_followed_still_loads():
    clipper, norms = Clipper(clip.adaptive()), recorded_like(80)
    follow(clipper, norms[:40])
    state = clipper.state_dict()
    for name in ("rates", "since"):
        del state["stages"][0]["tensors"][name]
    restarted = Clipper(clip.adaptive())
    restarted.load_state_dict(state)

    assert follow(restarted, norms[40:]) == follow(clipper, norms[40:])


@every_preference
def test_a_watched_job_hands_its_learning_rate_to_the_limit(preference, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    policy = clip.adaptive(preference=preference)
    watch = gradwatch.watch(None, optimizer, clip=policy, mode="disabled")
    norms, found = [1.05**step for step in range(80)], []
    rates = [0.1] * 40 + [0.4] * 40
    for norm, rate in zip(norms, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor([0.6, 0.8], dtype=torch.float64) * norm
        optimizer.step()
        found.append(float(watch.threshold))
    watch.close()

    expected = service_thresholds(norms, preference, rates)
    assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert found[40:60] == [found[40]] * 20


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
def test_a_changing_learning_rate_is_never_read_back_to_the_host(device, tensor):
    grads = [torch.zeros(3, 4, device=device) for _ in range(3)]
    clipper = Clipper(clip.adaptive(preference="guard"), kernel="reference")
    rates = [torch.full((), 0.1 * 3**n, device=device) if tensor else 0.1 * 3**n for n in range(4)]
    clipper.clip_(grads, learning_rate=rates[0])

    with no_host_sync():
        for rate in rates:
            clipper.clip_(grads, learning_rate=rate)


def test_a_rate_that_the_optimizer_changes_in_place_is_remembered_as_it_was():
    rate = torch.tensor(0.1)
    moving, fixed = Clipper(clip.adaptive()), Clipper(clip.adaptive())
    found = []
    for step, norm in enumerate(recorded_like(60)):
        rate.fill_(0.1 if step < 30 else 0.5)
        found.append(
            [
                float(clipper.clip_(gradients_of_norm(norm), learning_rate=given).threshold)
                for clipper, given in ((moving, rate), (fixed, 0.1 if step < 30 else 0.5))
            ]
        )

    assert all(a == b or math.isnan(a) for a, b in found)
    assert float(moving.state_dict()["stages"][0]["tensors"]["since"]) == 20


def test_the_numbers_of_the_restraint_are_the_services():
    names = ("LIMIT", "SPREADS", "STEADY", "SHORT", "FEWEST", "TICK", "DROP", "MOST", "QUIET")
    for name in (*names, "FIRST", "OPEN", "SLOW", "FAST"):
        assert getattr(restraint, name) == getattr(service_restraint, name), name
    assert (HOLD_STEPS, RATES) == (service.HOLD_STEPS, service.RATE_LOOKBACK)
    assert adaptive.TIGHT == service.TIGHT


@pytest.mark.parametrize(
    "wrong", [{"preference": "loose"}, {"preference": "guard", "quantile": 0.1}]
)
def test_a_preference_that_says_nothing_is_refused(wrong):
    with pytest.raises(gradwatch.errors.PolicyError, match="guard"):
        clip.adaptive(**wrong)


def test_it_falls_at_once_and_rises_at_most_by_its_share_per_step():
    policy = clip.adaptive(0.25, rise=0.01)
    limits = [limit for limit, _ in follow(Clipper(policy), recorded_like(200))]

    ratios = [new / old for old, new in pairwise(limits[3:])]
    assert max(ratios) == pytest.approx(1.01)
    assert min(ratios) < 0.97


@every_preference
def test_an_explosion_does_not_lift_the_limit_with_it(preference):
    calm, wild = [1.0] * 64, [1.2**step for step in range(60)]
    found = follow(Clipper(clip.adaptive(preference=preference)), calm + wild)

    most = {"tight": 1.001**60, "balanced": 2.5, "guard": 3 * 1.01**60}[preference]
    assert found[-1][1] <= most * (1 + 1e-6)
    assert found[-1][1] < 1e-3 * wild[-1]


def test_spikes_lower_a_balanced_limit_and_quiet_gives_it_back():
    norms = [1.0] * 100 + [4.0] * 4 + [1.0] * 700
    limits = [limit for limit, _ in follow(Clipper(clip.adaptive()), norms)]

    assert limits[99] == pytest.approx(2.5)
    assert limits[101:103] == pytest.approx([2.5 * 1.001**-400, 2.5 * 1.001**-800])
    assert limits[103] == min(limits[3:]) == pytest.approx(1.0), "no lower than tight would aim"
    assert limits[300] == pytest.approx(1.0, rel=1e-3)
    assert limits[300] < limits[380] < limits[-1] == pytest.approx(2.5)


def test_bounds_hold_and_the_initial_limit_is_for_the_time_before_three_norms():
    policy = clip.adaptive(initial=7.0, minimum=2.0, maximum=3.0, preference="tight")

    high = [limit for limit, _ in follow(Clipper(policy), [50.0] * 5)]
    low = [limit for limit, _ in follow(Clipper(policy), [0.1] * 5)]
    early = [
        limit for limit, _ in follow(Clipper(replace(policy, preference="balanced")), [9.0] * 3)
    ]

    assert high == [7.0, 7.0, 7.0, 3.0, 3.0]
    assert low == [7.0, 7.0, 7.0, 2.0, 2.0]
    assert early == [7.0, 3.0, 3.0], "balanced begins with the first norm"


@given(
    values=st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=1, max_size=40),
    size=st.integers(3, 9),
    share=st.floats(0, 1),
)
def test_the_window_holds_the_last_usable_values_in_order_and_their_quantiles(values, size, share):
    window = WindowStage(Scope(), size)
    window.bind(torch.zeros((), dtype=torch.float64), 1)
    for value, usable in values:
        given_value = value if usable else math.nan
        window.remember(torch.tensor(given_value, dtype=torch.float64), torch.tensor(usable))

    kept = [value for value, usable in values if usable][-size:]
    assert window.tensors["ordered"].tolist()[: len(kept)] == sorted(kept)
    if kept:
        expected = np.quantile(kept, share)
        assert float(window.quantile(share)) == pytest.approx(expected, abs=1e-9)
    else:
        assert float(window.quantile(share)) == math.inf


def alarm_level(norms):
    """The service's spike_threshold in plain Python."""
    logs = [math.log(norm) for norm in norms]
    centre = statistics.median(logs)
    spread = max(0.08, 1.4826 * statistics.median(abs(log - centre) for log in logs))
    width = min(max(5 * spread * (1 + 30 / len(logs)), math.log(3)), math.log(1000))
    return math.exp(centre + width)


def test_spike_skip_empties_the_steps_above_the_services_spike_level_and_no_others():
    norms = recorded_like(200)
    norms[60], norms[110] = 300.0, 900.0
    found = follow(Clipper(clip.spike_skip(give_up=1000)), norms)

    kept, skipped = [], 0
    for norm, (limit, after) in zip(norms, found, strict=True):
        expected = alarm_level(kept[-64:]) if len(kept) >= 3 else math.inf
        if math.isfinite(expected):
            assert limit == pytest.approx(expected)
        assert after == (0.0 if norm > expected else pytest.approx(norm))
        skipped += norm > expected
        kept += [norm] if norm <= expected else []
    assert skipped >= 2


def test_spike_skip_gives_up_and_learns_the_new_level():
    found = follow(Clipper(clip.spike_skip(give_up=4)), [1.0] * 50 + [100.0] * 20)

    assert [after > 0 for _, after in found[50:]] == [False] * 4 + [True] * 16


def test_a_skipped_step_moves_no_weight_under_plain_sgd():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    clipper = Clipper(clip.spike_skip())
    for scale in [1.0] * 40 + [1e4]:
        before = weight.detach().clone()
        weight.grad = torch.tensor([0.6, 0.8]) * scale
        clipper.clip_([weight.grad])
        optimizer.step()

    assert torch.equal(weight, before)


def test_a_policy_that_learns_is_refused_where_nothing_is_remembered():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = gradients_of_norm(1.0)[0].float()
    with pytest.raises(gradwatch.errors.PolicyError, match="adaptive learns"):
        gradwatch.clip_grad_(weight, clip.adaptive())
