"""A two-layer GPT trained with portattn's attention and with torch's math attention from one seed.

Both runs see the same weights and the same text, in bfloat16 with float32 master weights, so their
losses differ by bfloat16's rounding only. A third run, torch's with another seed for nothing but
one rounding of the first weights, shows how far such noise drives two curves apart.

    python benchmarks/training_sanity.py [--steps 200] [--backend triton] [--output FILE.json]

draws FILE.png beside the numbers, where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import portattn
from portattn.cli.environment import record

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

LAYERS, WIDTH, HEADS, CONTEXT, BATCH = 2, 256, 4, 256, 16
ROOT = Path(__file__).resolve().parents[1]


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, WIDTH] to the same."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        x = x + self.out(self.attend(*qkv.unbind(2)).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A model of bytes."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block(attend) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, S] bytes to logits [B, S, 256]."""
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def math_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's unfused attention, [B, S, H, D]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def text() -> Tensor:
    """The project's own sources as bytes."""
    files = sorted(ROOT.glob("portattn/**/*.py")) + sorted(ROOT.glob("docs/**/*.md"))
    return torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in files)), dtype=torch.uint8)


def losses(attend: Attend, steps: int, device: torch.device, nudge: float = 0.0) -> list[float]:
    """Cross-entropy in nats after each step."""
    torch.manual_seed(0)
    model = GPT(attend).to(device)
    with torch.no_grad():
        model.tokens.weight.mul_(1 + nudge)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data, chooser = text(), torch.Generator().manual_seed(1)
    found = []
    for _ in range(steps):
        starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,), generator=chooser)
        rows = torch.stack([data[s : s + CONTEXT + 1] for s in starts]).long().to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1).float(), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def draw(curves: dict[str, list[float]], file: Path) -> None:
    """Loss by step, and below it the distance to torch's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    base = curves["torch math"]
    for number, (name, curve) in enumerate(curves.items()):
        style = {"label": name, "linewidth": 1, "color": f"C{number}"}
        above.plot(curve, **style)
        if curve is not base:
            below.plot([a - b for a, b in zip(curve, base, strict=True)], **style)
    above.set(ylabel="loss in nats a byte")
    below.set(ylabel="minus torch math", xlabel="step")
    above.legend()
    below.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Train three times, print how far apart the curves are, write and draw them where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--backend", default=None)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours = partial(portattn.attention, causal=True, backend=options.backend)
    curves = {
        "torch math": losses(math_attention, options.steps, device),
        "portattn": losses(ours, options.steps, device),
        "torch math, weights nudged by 2^-9": losses(
            math_attention, options.steps, device, nudge=2.0**-9
        ),
    }
    base = curves["torch math"]
    apart = {
        name: max(abs(a - b) for a, b in zip(curve, base, strict=True))
        for name, curve in curves.items()
    }
    for name, curve in curves.items():
        print(f"{name}: {curve[0]:.4f} to {curve[-1]:.4f}, at most {apart[name]:.4f} apart")
    if options.output is not None:
        document = {**record(device), "backend": options.backend, "loss": curves, "apart": apart}
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        if importlib.util.find_spec("matplotlib") is not None:
            draw(curves, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
