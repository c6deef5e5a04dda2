"""Models of many families compute with portattn what they compute with their own eager attention.

Both run in float32 and round differently, by some 1e-6 of the largest logit; a key too many or too
few moves logits by as much as they are large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="pip install 'portattn[transformers]'")

from portattn.explain import record
from tests.integrations.families import (
    DECODERS,
    ENCODERS,
    decoder,
    encoder,
    encoder_inputs,
    left_padded,
    tokens,
)

pytestmark = pytest.mark.usefixtures("registered")

GENERATE = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
each_decoder = pytest.mark.parametrize("name", DECODERS)


def both(build: Callable[[str, str], Any], name: str, run: Callable[[Any], Tensor]) -> list[Tensor]:
    """The result with eager attention and with portattn's, which must really have run."""
    with torch.no_grad():
        expected = run(build(name, "eager"))
        with record() as ran:
            found = run(build(name, "portattn"))
    assert ran
    return [expected, found]


def check_close(expected: Tensor, found: Tensor) -> None:
    assert bool(found.isfinite().all())
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@each_decoder
def test_logits(name: str) -> None:
    ids = tokens(2, 12)
    check_close(*both(decoder, name, lambda model: model(ids).logits))


@each_decoder
def test_logits_with_left_padding(name: str) -> None:
    inputs = left_padded(2, 12)
    real = inputs["attention_mask"].bool()
    check_close(*both(decoder, name, lambda model: model(**inputs).logits[real]))


@each_decoder
def test_logits_of_packed_sequences(name: str) -> None:
    ids = tokens(1, 12)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    packed = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    check_close(*both(decoder, name, lambda model: model(**packed).logits))


@each_decoder
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 2},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
    ],
    ids=["greedy", "beams", "static cache", "chunked prefill"],
)
def test_generation(name: str, how: dict[str, Any]) -> None:
    inputs = left_padded(2, 12)
    expected, found = both(decoder, name, lambda model: model.generate(**inputs, **GENERATE, **how))
    assert expected.tolist() == found.tolist()
    assert len(expected[:, 12:].unique()) > 2, "the model says the same thing whatever it sees"


@pytest.mark.parametrize("name", ENCODERS)
def test_other_models(name: str) -> None:
    inputs = encoder_inputs(name)
    real = inputs.get("attention_mask", torch.ones(1)).bool()

    def run(model: Any) -> Tensor:
        output = model(**inputs)
        result: Tensor = output[0]
        return result[real] if real.shape == result.shape[:2] else result

    check_close(*both(encoder, name, run))


@pytest.mark.parametrize("name", [name for name, spec in ENCODERS.items() if spec[3] == "pair"])
@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_generation_from_an_encoder(name: str, how: dict[str, Any]) -> None:
    inputs = encoder_inputs(name)
    del inputs["decoder_input_ids"]
    expected, found = both(encoder, name, lambda model: model.generate(**inputs, **GENERATE, **how))
    assert expected.tolist() == found.tolist()
