"""The link between host and device: copies beside the computation, ordered by events alone."""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in a queue of copies or kernels."""

    def done(self, timeout: float) -> bool:
        """Wait on the host until everything before it has happened; False after `timeout` s."""
        ...


class Link(Protocol):
    """Copies between host and device on queues of their own.

    `upload` and `download` begin after what the device's computation was given before the call and
    return at once. Their results may be used by the host after `done`, by the device's
    computation after `before_computation`.
    """

    device: torch.device
    pins: bool  # whether copies gain from page-locked memory

    def upload(self, target: Tensor, source: Tensor, after: Event | None = None) -> Event:
        """Host to device; `after` is another event to wait for."""
        ...

    def download(self, target: Tensor, source: Tensor) -> Event:
        """Device to host."""
        ...

    def before_computation(self, event: Event) -> None:
        """What the device is given to compute from now on begins after `event`."""
        ...

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor on the host that copies run fastest from and to."""
        ...

    def register(self, address: int, size: int) -> str | None:
        """Page-lock memory that is there already; the reason where that isn't possible."""
        ...

    def unregister(self, address: int) -> None:
        """Undo `register`."""
        ...


def link_for(device: torch.device) -> Link:
    """The link to a device: streams and events on CUDA, plain copies where it is the host."""
    return CudaLink(device) if device.type == "cuda" else HostLink(device)


class _Done:
    """An event that has happened."""

    def done(self, timeout: float) -> bool:
        return True


DONE = _Done()


class HostLink:
    """The CPU as the device: a copy is over when the call returns."""

    pins = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def upload(self, target: Tensor, source: Tensor, after: Event | None = None) -> Event:
        target.copy_(source)
        return DONE

    def download(self, target: Tensor, source: Tensor) -> Event:
        target.copy_(source)
        return DONE

    def before_computation(self, event: Event) -> None:
        return None

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def register(self, address: int, size: int) -> str | None:
        return None

    def unregister(self, address: int) -> None:
        return None


class _CudaEvent:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event()
        self.event.record(stream)

    def done(self, timeout: float) -> bool:
        # Polled, because CUDA has no wait with a limit; first quickly, a layer takes microseconds.
        end, pause = time.monotonic() + timeout, 0.0
        while not self.event.query():
            if time.monotonic() > end:
                return False
            time.sleep(pause)
            pause = min(pause + 2e-6, 1e-3)
        return True


class CudaLink:
    """A stream for each direction beside the current one; nothing synchronises the device."""

    pins = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._up = torch.cuda.Stream(device)
        self._down = torch.cuda.Stream(device)

    def upload(self, target: Tensor, source: Tensor, after: Event | None = None) -> Event:
        if isinstance(after, _CudaEvent):
            self._up.wait_event(after.event)
        return self._copy(self._up, target, source, target)

    def download(self, target: Tensor, source: Tensor) -> Event:
        return self._copy(self._down, target, source, source)

    def _copy(
        self, stream: torch.cuda.Stream, target: Tensor, source: Tensor, on_device: Tensor
    ) -> Event:
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        # The allocator must not hand it to another tensor before the copy is over.
        on_device.record_stream(stream)
        return _CudaEvent(stream)

    def before_computation(self, event: Event) -> None:
        if isinstance(event, _CudaEvent):
            torch.cuda.current_stream(self.device).wait_event(event.event)

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def register(self, address: int, size: int) -> str | None:
        # 0 is cudaHostRegisterDefault.
        runtime = torch.cuda.cudart()
        code = runtime.cudaHostRegister(address, size, 0)
        return None if int(code) == 0 else f"cudaHostRegister: {runtime.cudaGetErrorString(code)}"

    def unregister(self, address: int) -> None:
        torch.cuda.cudart().cudaHostUnregister(address)
