"""What a kernel's main loop consists of, counted in its machine code."""

from __future__ import annotations

import re
from collections import Counter

_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_JUMP = re.compile(r"BRA.*?`\((\.L_x_\d+)\)")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d\s+)?([A-Z0-9_]+)")


_KEPT = ("HMMA", "LDS", "STS", "SHFL", "LDG", "BAR")


def main_loop(sass: str) -> Counter[str]:
    """Instructions by name of the shortest loop that multiplies matrices; empty without one."""
    return _count(_loop(sass))


def _loop(sass: str) -> list[str]:
    lines, labels = sass.splitlines(), {}
    best: list[str] = []
    for number, line in enumerate(lines):
        if match := _LABEL.match(line):
            labels[match[1]] = number
    for number, line in enumerate(lines):
        jump = _JUMP.search(line)
        if jump and labels.get(jump[1], number) < number:
            body = lines[labels[jump[1]] : number + 1]
            if any("HMMA" in text for text in body) and (not best or len(body) < len(best)):
                best = body
    return best


def steady(sass: str, most: int = 40) -> Counter[str]:
    """The same without what a tile skips when all its keys are visible.

    That is what a jump forward passes over, if it is more than `most` lines of arithmetic alone.
    """
    loop = _loop(sass)
    labels = {match[1]: n for n, line in enumerate(loop) if (match := _LABEL.match(line))}
    kept, number = [], 0
    while number < len(loop):
        kept.append(loop[number])
        jump = _JUMP.search(loop[number])
        end = labels.get(jump[1], 0) if jump else 0
        skipped = loop[number + 1 : end]
        if len(skipped) > most and not any(name in " ".join(skipped) for name in _KEPT):
            number = end
        else:
            number += 1
    return _count(kept)


def _count(lines: list[str]) -> Counter[str]:
    names = (_INSTRUCTION.search(line) for line in lines)
    return Counter(match[1] for match in names if match)
