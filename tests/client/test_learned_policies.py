"""What holds for every policy that learns from norms, ours and the published ones."""

import io
import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.client.no_host_sync import no_host_sync
from tests.client.norm_streams import LEARNED, gradients_of_norm, recorded_like

import gradwatch
from gradwatch import Clipper, clip
from gradwatch.clipping.policies import policy_to_json
from gradwatch.errors import PolicyError, WatchError
from gradwatch_wire import Manifest, TensorInfo

published = clip.published
every_policy = pytest.mark.parametrize("policy", LEARNED, ids=repr)
NORMS = recorded_like(40)


def run(clipper, norms):
    """Return what is left of every step's gradients."""
    left = []
    for norm in norms:
        grads = gradients_of_norm(norm)
        clipper.clip_(grads)
        left.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(left)


@every_policy
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=repr)
@pytest.mark.parametrize("at", [0, 4, 30])
def test_a_step_that_is_not_finite_changes_nothing_for_those_after_it(policy, bad, at):
    disturbed, undisturbed = Clipper(policy), Clipper(policy)
    before = run(disturbed, NORMS[:at]) if at else None
    poison = gradients_of_norm(1.0)
    for grad in poison:
        grad.view(-1)[0] = bad
    disturbed.clip_(poison)
    after = run(disturbed, NORMS[at:])

    expected = run(undisturbed, NORMS)
    assert torch.equal(after, expected[at:])
    assert before is None or torch.equal(before, expected[:at])
    assert all(grad[grad.isfinite()].numel() == grad.numel() - 1 for grad in poison)


@every_policy
def test_a_job_that_is_restarted_from_a_checkpoint_clips_the_same_bits(policy):
    straight, broken = Clipper(policy), Clipper(policy)
    run(straight, NORMS[:25])
    run(broken, NORMS[:25])
    file = io.BytesIO()
    torch.save(broken.state_dict(), file)
    run(broken, NORMS[:5])  # what was saved must not change with what saved it
    file.seek(0)
    restarted = Clipper(policy)
    restarted.load_state_dict(torch.load(file, weights_only=True))

    assert torch.equal(run(straight, NORMS[25:]), run(restarted, NORMS[25:]))
    assert repr(straight.state_dict()) == repr(restarted.state_dict())


@every_policy
def test_what_state_dict_returned_stays_what_it_was(policy):
    clipper = Clipper(policy)
    run(clipper, NORMS[:25])
    saved = clipper.state_dict()
    kept = repr(saved)
    run(clipper, NORMS[25:])

    assert repr(saved) == kept


@every_policy
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_nothing_is_read_back_to_the_host(policy, device):
    grads = [torch.zeros(3, 4, device=device) for _ in range(3)]
    clipper = Clipper({"a": None, "*": policy}, ["a", "b", "c"], kernel="reference")
    clipper.clip_(grads)

    with no_host_sync():
        for _ in range(3):
            clipper.clip_(grads)


@every_policy
def test_gradients_of_zeros_alone_stay_zeros_and_do_no_harm(policy):
    clipper = Clipper(policy)
    left = run(clipper, [0.0] * 20 + [1.0] * 20)

    assert torch.equal(left[:20], torch.zeros(20, 3, dtype=torch.float64))
    assert left.isfinite().all()


@every_policy
def test_no_gradient_grows_or_turns(policy):
    norms = recorded_like(60, seed=5)
    left = run(Clipper(policy), norms)

    for norm, row in zip(norms, left, strict=True):
        given = torch.cat([grad.flatten() for grad in gradients_of_norm(norm)])
        assert bool((row >= 0).all() and (row <= given).all())


@every_policy
def test_it_is_frozen_pickles_and_fits_into_a_manifest(policy):
    assert pickle.loads(pickle.dumps(policy)) == policy  # noqa: S301 -- our own bytes
    with pytest.raises(AttributeError):
        policy.kind = "other"
    form = policy_to_json(policy)
    manifest = Manifest((TensorInfo("w", (2,), "float32", "all"),), policy=form)

    assert Manifest.from_json(manifest.to_json()).policy == form
    assert form["kind"] == policy.kind
    assert all(isinstance(n, int | float | str | None) for n in form.values())


@every_policy
def test_only_the_tensors_it_is_for_are_measured_and_clipped(policy):
    mapped, alone = Clipper({"b*": policy, "*": None}, ["a", "b1", "b2"]), Clipper(policy)
    for norm in NORMS:
        other = torch.full((2,), math.nan)
        mine, expected = gradients_of_norm(norm), gradients_of_norm(norm)
        mapped.clip_([other, *mine])
        alone.clip_(expected)
        assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))


@pytest.mark.parametrize("number", [-1.0, math.nan, math.inf, "1", True, 10**7], ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        clip.adaptive,
        lambda n: clip.adaptive(window=n),
        lambda n: clip.adaptive(rise=n),
        clip.spike_skip,
        lambda n: clip.spike_skip(window=n),
        published.autoclip,
        lambda n: published.autoclip(history=n),
        lambda n: published.zclip(decay=n),
        lambda n: published.zclip(warmup=n),
        lambda n: published.adagc(decay=n),
        lambda n: published.adagc(warmup=n),
        published.quantile,
        lambda n: published.quantile(rate=n),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_with_what_is_allowed(make, number):
    with pytest.raises(PolicyError, match=r"give a (finite|whole) number") as error:
        make(number)

    assert repr(number) in str(error.value)


@pytest.mark.parametrize("number", [0, -1.0, math.nan, math.inf, "1", True], ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        lambda n: clip.adaptive(initial=n),
        lambda n: clip.adaptive(minimum=n),
        lambda n: clip.adaptive(maximum=n),
        published.zclip,
        lambda n: published.zclip(max_norm=n),
        lambda n: published.zclip(factor=n),
        published.adagc,
        lambda n: published.adagc(max_norm=n),
        lambda n: published.quantile(initial=n),
    ],
)
def test_a_limit_that_is_not_a_finite_number_above_zero_is_refused(make, number):
    with pytest.raises(PolicyError, match="above 0"):
        make(number)


def test_bounds_the_wrong_way_round_are_refused():
    with pytest.raises(PolicyError, match="minimum is above the maximum"):
        clip.adaptive(minimum=2.0, maximum=1.0)


def test_a_state_with_a_window_of_another_length_is_refused():
    short = Clipper(clip.adaptive(window=8))
    run(short, NORMS[:3])
    long = Clipper(clip.adaptive(window=9))
    long.load_state_dict(short.state_dict())

    with pytest.raises(PolicyError, match="window of 8"):
        run(long, NORMS[:1])


@every_policy
def test_ranks_that_hold_shards_decide_alike_also_when_only_one_has_a_nan(policy):
    barrier, sums = threading.Barrier(2, timeout=30), [None, None]

    def train(rank):
        def reduce(mine, how):
            assert how == "sum"
            sums[rank] = mine
            barrier.wait()
            whole = sums[0] + sums[1]
            barrier.wait()
            return whole

        clipper, thresholds = Clipper(policy, reduce=reduce), []
        for step, norm in enumerate(NORMS):
            shard = torch.tensor([0.6, 0.8][rank], dtype=torch.float64).view(1) * norm
            shard = torch.full_like(shard, math.nan) if (step, rank) == (30, 1) else shard
            thresholds.append(clipper.clip_([shard]).to_dict()["threshold"])
        return repr(thresholds), repr(clipper.state_dict())

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(train, range(2))

    assert first == second


def test_a_learned_joint_norm_is_refused_where_optimizers_step_inside_backward():
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(60)))
    optimizers = [torch.optim.SGD([weight], lr=0.1) for weight in model.parameters()]

    with pytest.raises(WatchError, match="joint norm"):
        gradwatch.watch(model, optimizers, clip=clip.adaptive(), mode="disabled")


@every_policy
def test_tensors_added_later_leave_what_was_learned_about_the_others(policy):
    grown, other = Clipper(policy, ["a", "b"]), Clipper(policy, ["a", "b"])
    for step, norm in enumerate(NORMS):
        mine, expected = gradients_of_norm(norm), gradients_of_norm(norm)
        if step == 20:
            grown.extend(["late"])
        grown.clip_([*mine, torch.zeros(3, dtype=torch.float64)] if step >= 20 else mine)
        other.clip_(expected)
        assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))
