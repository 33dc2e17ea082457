"""Policies at work, and what a policy of your own is made of.

A policy of one's own is a frozen dataclass derived from :class:`Policy` whose ``stage`` returns a
:class:`Stage`; see docs/extending.md.
"""

from gradwatch.clipping.policies import Policy, policy_to_json
from gradwatch.clipping.stages import Scope, Situation, Stage
from gradwatch.kernels import Row

__all__ = ["Policy", "Row", "Scope", "Situation", "Stage", "policy_to_json"]
