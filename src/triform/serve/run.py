"""Listening, and ending well."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from .state import State

_BACKSTOP = 10  # seconds that are left for sending the last words after the running requests were given up


class Server(uvicorn.Server):
    """Uvicorn, but that SIGTERM and SIGINT let running requests finish within the settings' `drain` and then end with exit code 0.

    A second SIGINT ends at once.
    """

    def __init__(self, app: FastAPI) -> None:
        self.triform: State = app.state.triform
        seconds = int(self.triform.settings.drain) + _BACKSTOP
        super().__init__(
            uvicorn.Config(
                app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=seconds, timeout_keep_alive=30,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )  # fmt: skip

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals while serving."""
        if sys.platform == "win32":  # where a loop cannot
            with super().capture_signals():
                yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and wait for what runs."""
        draining = asyncio.create_task(self.triform.drain())
        await super().shutdown(sockets)
        if self.force_exit:
            draining.cancel()
            raise KeyboardInterrupt
        await draining


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError for an address that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise ValueError(f"{host}:{port}: cannot listen there ({error}); choose another --host or --port") from None


def run(app: FastAPI, listening: socket.socket, on_start: Callable[[str], None] | None = None) -> None:
    """Serve until a signal comes. on_start: called with the address once requests are taken."""
    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def serve() -> None:
        server = Server(app)
        if on_start is not None:
            on_start(address)
        await server.serve(sockets=[listening])

    asyncio.run(serve())
