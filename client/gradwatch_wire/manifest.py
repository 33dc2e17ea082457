"""What a run's tensors are called and how large they are: sent once, then named by its hash."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradwatch_wire.errors import Problem, WireError
from gradwatch_wire.fields import Fields

__all__ = [
    "HASH_PATTERN",
    "MAX_NAME_BYTES",
    "Manifest",
    "TensorInfo",
    "default_group",
    "is_run_id",
    "manifest_hash",
]

MAX_NAME_BYTES = 512
MAX_DIMENSIONS = 64
MAX_TAGS = 64
MAX_POLICY_BYTES = 16_384
HASH_PATTERN = re.compile("[0-9a-f]{16}")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SESSION = re.compile(r"[A-Za-z0-9._-]{1,128}")
_DTYPE = re.compile("[a-z][a-z0-9_]{0,31}")


def is_run_id(text: str) -> bool:
    """Whether the text may name a run: a letter or digit, then up to 127 of ``A-Za-z0-9._-``."""
    return _RUN_ID.fullmatch(text) is not None


def default_group(name: str) -> str:
    """The group of a tensor that names none.

    The name up to and including its first numeric component, else its first component.

    >>> default_group("encoder.layers.3.attention.weight"), default_group("rnn.weight_ih_l0")
    ('encoder.layers.3', 'rnn')
    """
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: index + 1])
    return parts[0]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One gradient tensor.

    Attributes:
        name: As ``named_parameters()`` calls it; unique in its manifest, at most 512 bytes.
        shape: Elements along each dimension; of the whole tensor where it is sharded.
        dtype: torch's name of the gradient's type, without ``torch.``.
        group: The name its numbers are summed under.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: str

    @property
    def numel(self) -> int:
        """Elements in the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Who reports, and the tensors that its reports' columns stand for, in this order.

    Attributes:
        tensors: The tensors.
        project: Where the run belongs.
        name: What people call the run; None: its id.
        session: Random name of this job start, the same on its ranks; None: attempt 0.
        world_size: Ranks in the job.
        rank: This one.
        optimizer: Name of the optimizer that these tensors belong to.
        optimizer_class: Its class, for display.
        policy: The clipping policy as its kind and numbers; None: no clipping.
        tags: Free text by name.
        extends: Hash of the manifest whose tensors these begin with.
    """

    tensors: tuple[TensorInfo, ...]
    project: str = "default"
    name: str | None = None
    session: str | None = None
    world_size: int = 1
    rank: int = 0
    optimizer: str = "default"
    optimizer_class: str | None = None
    policy: Mapping[str, Any] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    extends: str | None = None

    @property
    def hash(self) -> str:
        """What reports name this manifest by: 16 hexadecimal digits."""
        return manifest_hash(self.optimizer, self.tensors)

    def to_json(self) -> dict[str, Any]:
        """The body of ``PUT /runs/{run}``."""
        return {
            "project": self.project,
            "name": self.name,
            "session": self.session,
            "world_size": self.world_size,
            "rank": self.rank,
            "optimizer": self.optimizer,
            "optimizer_class": self.optimizer_class,
            "policy": None if self.policy is None else dict(self.policy),
            "tags": dict(self.tags),
            "extends": self.extends,
            "tensors": [
                {"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "group": t.group}
                for t in self.tensors
            ],
        }

    @classmethod
    def from_json(cls, obj: object) -> "Manifest":
        """Read the body of ``PUT /runs/{run}``; only ``tensors`` is required.

        Raises:
            WireError: It does not keep to the format; every wrong field is named.
        """
        fields = Fields(obj)
        world_size = fields.integer("world_size", 1, 1, 2**24)
        manifest = cls(
            tensors=fields.read(lambda: _tensors(fields.get("tensors")), ()),
            project=fields.text("project", "default"),
            name=fields.optional_text("name"),
            session=fields.matching("session", _SESSION),
            world_size=world_size,
            rank=fields.integer("rank", 0, 0, world_size),
            optimizer=fields.text("optimizer", "default"),
            optimizer_class=fields.optional_text("optimizer_class"),
            policy=_policy(fields),
            tags=_tags(fields),
            extends=fields.matching("extends", HASH_PATTERN),
        )
        fields.done()
        return manifest


def manifest_hash(optimizer: str, tensors: Sequence[TensorInfo]) -> str:
    """First 16 hexadecimal digits of SHA-256 over the canonical JSON of what columns stand for.

    Canonical: sorted keys, no spaces, UTF-8 as it is; a tensor is ``[name, shape, dtype, group]``.
    """
    content = {
        "optimizer": optimizer,
        "tensors": [[t.name, list(t.shape), t.dtype, t.group] for t in tensors],
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _tensors(given: object) -> tuple[TensorInfo, ...]:
    if not isinstance(given, list):
        raise WireError(Problem("tensors", "required: a list of {name, shape, dtype, group}"))
    tensors = tuple(_tensor(item, f"tensors[{i}]") for i, item in enumerate(given))
    seen: set[str] = set()
    for index, tensor in enumerate(tensors):
        if tensor.name in seen:
            raise WireError(Problem(f"tensors[{index}].name", f"{tensor.name!r} comes twice"))
        seen.add(tensor.name)
    return tensors


def _tensor(given: object, at: str) -> TensorInfo:
    fields = Fields(given, at)
    name = fields.optional_text("name", MAX_NAME_BYTES)
    if name is None:
        fields.refuse("name", "required: the tensor's name")
    elif len(name.encode()) > MAX_NAME_BYTES:
        fields.refuse("name", f"allowed: at most {MAX_NAME_BYTES} bytes")
    shape = fields.get("shape")
    if not _is_shape(shape):
        fields.refuse(
            "shape", "required: a list of whole numbers, none below 0, product below 2^53"
        )
    dtype = fields.matching("dtype", _DTYPE) or "float32"
    group = fields.optional_text("group") or default_group(name or "")[:128]
    fields.done()
    return TensorInfo(name or "", tuple(shape) if isinstance(shape, list) else (), dtype, group)


def _is_shape(given: object) -> bool:
    if not isinstance(given, list) or len(given) > MAX_DIMENSIONS:
        return False
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**53 for n in given):
        return False
    return math.prod(given) < 2**53


def _policy(fields: Fields) -> Mapping[str, Any] | None:
    if fields.get("policy") is None:
        return None
    policy = fields.mapping("policy", 64)
    try:
        size = len(json.dumps(policy, allow_nan=False))
    except (ValueError, TypeError, RecursionError):
        fields.refuse("policy", "NaN, Infinity or too deep; allowed: finite numbers, text, lists")
        return None
    if size > MAX_POLICY_BYTES:
        fields.refuse("policy", f"{size} bytes given; allowed: at most {MAX_POLICY_BYTES}")
    return policy


def _tags(fields: Fields) -> Mapping[str, str]:
    tags = {}
    for key, value in fields.mapping("tags", MAX_TAGS).items():
        # {"lr": 0.1} is what people write; a tag is text all the same.
        text = value if isinstance(value, str) else json.dumps(value)
        if not 1 <= len(key) <= 128 or not key.isprintable() or len(text) > 128:
            fields.refuse(
                "tags", f"{key[:40]!r}: names and values are printable, at most 128 characters"
            )
        elif not text.isprintable():
            fields.refuse("tags", f"{key!r}: the value is not printable")
        else:
            tags[key] = text
    return tags
