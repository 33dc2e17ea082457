"""Hugging Face Trainer: one line between building it and training.

Run it with::

    pip install 'gradwatch[transformers]'
    python examples/hf_trainer.py
"""

import os
import tempfile

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import gradwatch
from gradwatch.integrations.transformers import attach

STEPS = int(os.environ.get("STEPS", "60"))


class Counting(Dataset):
    """Sequences that count up from a random number."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(16) + index * 7) % 50
        return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    torch.manual_seed(0)
    tiny = GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            learning_rate=1e-3,
            logging_steps=20,
            save_strategy="no",
            report_to=[],
        )
        trainer = Trainer(GPT2LMHeadModel(tiny), arguments, train_dataset=Counting())

        attach(trainer, clip=gradwatch.clip.norm(0.5))  # the one line

        trainer.train()


if __name__ == "__main__":
    main()
