"""Real text that every installation has: the sources of Python's standard library."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Batches", "Text", "read_text"]

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
HELD_OUT_EVERY = 20  # each 20th file is kept from training
LARGEST = 4_000_000  # characters; more would only take longer to read


@dataclass(frozen=True, slots=True)
class Text:
    """Characters as indices into :data:`ALPHABET`, split by file.

    Attributes:
        train: [n] int64.
        held_out: [m] int64, from files that training never sees.
        files: How many files were read.
    """

    train: Tensor
    held_out: Tensor
    files: int


def read_text(folder: Path | None = None, *, largest: int = LARGEST) -> Text:
    """Read Python sources, in the order of their names, and split them into train and held out.

    Args:
        folder: Where to look for ``*.py``. None is this interpreter's standard library.
        largest: Characters to stop at.

    Raises:
        FileNotFoundError: The folder holds too little Python source to train on.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    train: list[str] = []
    held_out: list[str] = []
    size = files = 0
    for path in sorted(folder.glob("*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        (train if files % HELD_OUT_EVERY else held_out).append(source)
        files += 1
        size += len(source)
        if size > largest:
            break
    if size < 20_000 or not train:
        raise FileNotFoundError(
            f"{folder} holds {size} characters of Python source; the demo needs at least 20000"
        )
    return Text(_indices("".join(train)), _indices("".join(held_out)), files)


class Batches:
    """Random windows of a text; the same seed gives the same batches."""

    def __init__(self, text: Tensor, *, batch: int, length: int, seed: int) -> None:
        self._text = text
        self._batch = batch
        self._length = length
        self._generator = torch.Generator().manual_seed(seed)

    def next(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both [batch, length] int64; a target is the next character."""
        last = len(self._text) - self._length - 1
        starts = torch.randint(0, last, (self._batch,), generator=self._generator)
        windows = self._text.unfold(0, self._length + 1, 1)[starts]
        return windows[:, :-1], windows[:, 1:]


def _indices(source: str) -> Tensor:
    table = {ord(character): index for index, character in enumerate(ALPHABET)}
    known = [table[code] for code in map(ord, source) if code in table]
    return torch.tensor(known, dtype=torch.int64)
