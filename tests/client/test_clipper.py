"""A Clipper's state: recommended thresholds, saving, growing."""

import io
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import gradwatch
from gradwatch import clip
from gradwatch.clipping import Policy, Row, Stage, policy_to_json
from gradwatch.errors import PolicyError

torch.set_num_threads(1)


def noise(step, scale=1.0):
    return [
        torch.randn(500, generator=torch.Generator().manual_seed(step)) * scale for _ in range(2)
    ]


def test_a_recommended_threshold_is_used_from_the_next_step_on():
    clipper = gradwatch.Clipper(
        clip.chain(clip.value(9.0), clip.recommended(clip.norm(1.0), interval=7))
    )
    first = clipper.clip_([torch.tensor([3.0, 4.0])]).to_dict()

    clipper.follow(2.5, version=3)
    second = clipper.clip_([torch.tensor([3.0, 4.0])]).to_dict()

    assert (clipper.interval, clipper.version) == (7, 3)
    assert (first["threshold_2"], second["threshold_2"]) == (1.0, 2.5)
    assert second["global_norm_after"] == pytest.approx(2.5)


def test_recommended_thresholds_per_tensor_go_by_name():
    clipper = gradwatch.Clipper(clip.recommended(clip.per_tensor(1.0)), ["a", "b"])
    clipper.clip_([torch.ones(4), torch.ones(4)])

    clipper.follow({"b": 0.5}, version=1)
    stats = clipper.clip_([torch.ones(4), torch.ones(4)]).to_dict()

    assert stats["threshold"] == [1.0, 0.5]
    assert stats["norm_after"] == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 0.05, 20.0, {"a": 0.0}], ids=repr)
def test_a_recommendation_that_makes_no_sense_or_breaks_the_users_bounds_changes_nothing(bad):
    clipper = gradwatch.Clipper(clip.recommended(clip.norm(1.0), minimum=0.1, maximum=10.0), ["a"])
    clipper.clip_([torch.ones(4)])

    with pytest.raises(PolicyError):
        clipper.follow(bad, version=1)

    assert clipper.version == 0
    assert clipper.clip_([torch.ones(4)]).to_dict()["threshold"] == 1.0


def test_a_policy_that_follows_nobody_refuses_a_recommendation():
    with pytest.raises(PolicyError, match="recommended"):
        gradwatch.Clipper(clip.norm(1.0)).follow(1.0, version=1)


@pytest.mark.parametrize(
    "policy",
    [
        clip.value_rms(2.0),
        clip.recommended(clip.norm(5.0)),
        clip.chain(clip.value_rms(3.0), clip.schedule({0: clip.norm(9.0), 6: clip.norm(1.0)})),
    ],
    ids=repr,
)
def test_a_job_that_is_restarted_from_a_checkpoint_clips_the_same_bits(policy):
    straight, broken = gradwatch.Clipper(policy), gradwatch.Clipper(policy)
    for step in range(5):
        for clipper in (straight, broken):
            clipper.clip_(noise(step))
            if step == 2 and clipper.interval:
                clipper.follow(3.0, version=1)
    file = io.BytesIO()
    torch.save(broken.state_dict(), file)
    file.seek(0)
    restarted = gradwatch.Clipper(policy)
    restarted.load_state_dict(torch.load(file, weights_only=True))

    for step in range(5, 9):
        expected, got = noise(step, 3.0), noise(step, 3.0)
        straight.clip_(expected)
        restarted.clip_(got)
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert restarted.version == straight.version


def test_a_state_of_another_policy_is_refused():
    with pytest.raises(PolicyError, match="1 parts"):
        gradwatch.Clipper(None).load_state_dict(gradwatch.Clipper(clip.value(1)).state_dict())


def test_tensors_added_later_start_fresh_and_the_others_keep_what_they_learned():
    clipper = gradwatch.Clipper(clip.value_rms(2.0), ["a"])
    for step in range(3):
        clipper.clip_(noise(step)[:1])

    clipper.extend(["b"])
    stats = clipper.clip_(noise(9))

    known, fresh = stats.to_dict()["threshold"]
    assert known == pytest.approx(2.0, rel=0.2)
    assert math.isnan(fresh)


def test_statistics_of_one_step_stay_what_they_were():
    clipper = gradwatch.Clipper(clip.value(1.0))
    first = clipper.clip_([torch.tensor([2.0])])
    kept = first.to_dict()

    clipper.clip_([torch.tensor([7.0])])

    assert first.to_dict() == kept


def test_one_buffer_holds_everything_that_is_reported():
    policy = {"a": clip.value(1.0), "b": clip.norm(1.0)}
    stats = gradwatch.Clipper(policy, ["a", "b"]).clip_([torch.ones(2), torch.ones(3)])

    height = len(stats.columns)
    assert stats.buffer.shape == (height * 2 + len(stats.scalar_names),)
    assert torch.equal(
        stats.buffer[: height * 2].view(height, 2).nan_to_num(), stats.packed.nan_to_num()
    )
    assert stats.packed.data_ptr() == stats.buffer.data_ptr()
    assert stats["norm"].equal(stats.norm)


@dataclass(frozen=True)
class HalfNorm(Policy):
    """A policy as a user would write it: at most half of the norm of the step before."""

    kind: ClassVar[str] = "half_norm"
    first: float = 1.0

    def stage(self, scope):
        return HalfNormStage(scope, self.first)


class HalfNormStage(Stage):
    kind = "scale"

    def coefficients(self, now):
        norm = now.norms(2).square().sum().sqrt()
        return (self.threshold / norm).clamp(max=1)

    def update(self, now):
        self.tensors["threshold"] = now.rows[Row.NORM_AFTER].square().sum().sqrt() / 2

    def state(self):
        return dict(self.tensors)


def test_a_policy_written_outside_the_library_clips_chains_and_is_saved():
    clipper = gradwatch.Clipper(clip.chain(clip.value(100.0), HalfNorm(8.0)))
    seen = [clipper.clip_([torch.tensor([30.0, 40.0])]).to_dict() for _ in range(3)]
    restarted = gradwatch.Clipper(clip.chain(clip.value(100.0), HalfNorm(8.0)))
    restarted.load_state_dict(clipper.state_dict())

    assert [s["global_norm_after"] for s in seen] == pytest.approx([8.0, 4.0, 2.0])
    assert restarted.clip_([torch.tensor([30.0, 40.0])]).to_dict()["threshold_2"] == pytest.approx(
        1.0
    )
    assert policy_to_json(HalfNorm(8.0)) == {"kind": "half_norm", "first": 8.0}
