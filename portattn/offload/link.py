"""The link between host and device: copies beside the computation, ordered by events alone."""

from __future__ import annotations

import ctypes
import time
from functools import cache
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

    def upload(
        self, target: Tensor, source: Tensor, after: Event | None = None, *, urgent: bool = False
    ) -> Event:
        """Host to device; `after` is another event to wait for. An urgent copy is small and isn't
        queued behind those that aren't."""
        ...

    def download(self, target: Tensor, source: Tensor, *, urgent: bool = False) -> Event:
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

    def upload(
        self, target: Tensor, source: Tensor, after: Event | None = None, *, urgent: bool = False
    ) -> Event:
        target.copy_(source)
        return DONE

    def download(self, target: Tensor, source: Tensor, *, urgent: bool = False) -> Event:
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


# A layer's queries arrive within this; time.sleep takes some 60 us however little is asked for.
_SPIN_SECONDS = 1e-3


class _CudaEvent:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event()
        self.event.record(stream)

    def done(self, timeout: float) -> bool:
        # Polled, because CUDA has no wait with a limit. sleep(0) lets other threads have Python.
        begun = time.monotonic()
        while not self.event.query():
            waited = time.monotonic() - begun
            if waited > timeout:
                return False
            time.sleep(0.0 if waited < _SPIN_SECONDS else min(waited / 16, 1e-3))
        return True


class CudaLink:
    """A stream for each direction and one for small copies, beside the current one; nothing
    synchronises the device."""

    pins = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._up = torch.cuda.Stream(device)
        self._down = torch.cuda.Stream(device)
        # A result of some KB must not wait for the next layer's pages, which take a layer's time.
        self._urgent = torch.cuda.Stream(device, priority=-1)

    def upload(
        self, target: Tensor, source: Tensor, after: Event | None = None, *, urgent: bool = False
    ) -> Event:
        stream = self._urgent if urgent else self._up
        if isinstance(after, _CudaEvent):
            stream.wait_event(after.event)
        return self._copy(stream, target, source, target)

    def download(self, target: Tensor, source: Tensor, *, urgent: bool = False) -> Event:
        return self._copy(self._urgent if urgent else self._down, target, source, source)

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
        # Any call of the runtime makes the device's context this thread's.
        torch.cuda.current_stream(self.device).query()
        driver = _driver()
        code = driver.cuMemHostRegister_v2(address, size, _REGISTER_PORTABLE)
        if code == 0:
            return None
        words = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(words))
        return f"cuMemHostRegister: {(words.value or b'unknown error').decode()} ({code})"

    def unregister(self, address: int) -> None:
        _driver().cuMemHostUnregister(address)


_REGISTER_PORTABLE = 1


@cache
def _driver() -> ctypes.CDLL:
    """The driver's own entries: a refusal by the runtime's would be reported by the next kernel."""
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuMemHostRegister_v2.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
    driver.cuMemHostUnregister.argtypes = [ctypes.c_void_p]
    driver.cuGetErrorString.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    return driver
