import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.client.norm_streams import follow, gradients_of_norm, recorded_like

import gradwatch
from gradwatch import Clipper, clip
from gradwatch.clipping.stages import Scope
from gradwatch.clipping.window import WindowStage
from gradwatch_service.recommenders import norm as service


def service_thresholds(norms, preference):
    """What the service recommends before each step."""
    state, found = service.initial_state(), []
    for step, norm in enumerate(norms):
        found.append(state.threshold(preference) or math.nan)
        state = service.advance_norms(
            state,
            np.array([step]),
            np.array([norm]),
            np.array([math.isfinite(norm)]),
            np.array([math.nan]),
        )
    return found


@pytest.mark.parametrize(("preference", "quantile"), [("balanced", 0.25), ("tight", 0.1)])
def test_the_limit_is_what_the_service_would_recommend_before_that_step(preference, quantile):
    norms = recorded_like(300)
    norms[7] = norms[150] = math.nan
    norms[20] = 0.0
    found = follow(Clipper(clip.adaptive(quantile)), norms)

    expected = service_thresholds(norms, preference)
    assert [threshold for threshold, _ in found] == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert all(after <= limit * (1 + 1e-6) for limit, after in found if limit > 0)


def test_it_falls_at_once_and_rises_at_most_by_its_share_per_step():
    limits = [limit for limit, _ in follow(Clipper(clip.adaptive(rise=0.01)), recorded_like(200))]

    ratios = [new / old for old, new in pairwise(limits[3:])]
    assert max(ratios) == pytest.approx(1.01)
    assert min(ratios) < 0.97


def test_an_explosion_does_not_lift_the_limit_with_it():
    calm, wild = [1.0] * 64, [1.1**step for step in range(60)]
    found = follow(Clipper(clip.adaptive()), calm + wild)

    assert found[-1][1] <= 1.001**60 * (1 + 1e-6)


def test_bounds_hold_and_the_initial_limit_is_for_the_time_before_three_norms():
    policy = clip.adaptive(initial=7.0, minimum=2.0, maximum=3.0)

    high = [limit for limit, _ in follow(Clipper(policy), [50.0] * 5)]
    low = [limit for limit, _ in follow(Clipper(policy), [0.1] * 5)]

    assert high == [7.0, 7.0, 7.0, 3.0, 3.0]
    assert low == [7.0, 7.0, 7.0, 2.0, 2.0]


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
