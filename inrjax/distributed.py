"""Several processes on one job: they meet, share out the work, and notice when one of them dies.

JAX lets the processes find each other (`jax.distributed.initialize`: addresses from SLURM, Open
MPI or Kubernetes, or given) and gives each its own accelerators. Then they leave it again, before
any device is used: its coordination service aborts every process when one dies, and fits of
different images need no communication. What is left is a `Team`: one TCP connection from each
process to process 0, at the coordinator's own port, over which they say that they are alive.
Messages are JSON, never code, but nobody is asked for a password: as with JAX's own service, the
network must be trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

MEETING_SECONDS = 300.0
"""How long the processes of a job wait for each other to start."""

BEAT_SECONDS = 5.0
"""Seconds between two signs of life of a process."""

SILENCE_SECONDS = 30.0
"""A process that gave no sign of life for so long is dead. One that ends is noticed at once."""

_RETRY_SECONDS = 0.2
_WELCOME_SECONDS = 3.0
_LENGTH_BYTES = 4
_MAX_BYTES = 1 << 30
_LOST = (OSError, ValueError, EOFError)  # how reading and writing fail, time-outs included


class Place(NamedTuple):
    """Which process this is: ``index`` of ``count``; ``host`` and ``port`` are process 0's."""

    index: int
    count: int
    host: str
    port: int


def share(items: Sequence[T], index: int, count: int) -> list[T]:
    """The part of a list that process ``index`` of ``count`` works on: every count-th item.

    The parts of all processes are the list, each item once; their lengths differ by one at most,
    and large items that stand together in the list are spread.
    """
    return list(items[index::count])


# ---------------------------------------------------------------------------- meeting


def meet(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = MEETING_SECONDS,
) -> Place:
    """Wait until every process of the job is there; before JAX has computed anything.

    Args:
      coordinator: ``HOST:PORT`` of process 0, a port that nobody else uses.
      num_processes, process_id: how many there are, and which this is, from 0. All three None:
        they come from the cluster's environment, as JAX finds it.
      timeout: seconds to wait.

    Raises:
      ValueError: no cluster was found, an argument is out of range, or not all came in time.
    """
    import jax
    from jax._src import distributed as state  # the only place that says what was found

    def initialize() -> None:
        host = (coordinator or "").rpartition(":")[0]
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # This function gives up first, in a sentence; JAX would abort the process.
            initialization_timeout=2 * int(timeout) + 60,
            # Without this, JAX listens on every interface, even for a job on one machine.
            coordinator_bind_address=coordinator if _is_loopback(host) else None,
        )

    _in_thread(
        initialize,
        timeout,
        f"not all processes of the job came within {timeout:.0f} seconds: start every one of them "
        "with the same coordinator and number of processes, each with its own process id",
    )
    found = state.global_state
    assert found.coordinator_address is not None
    host, _, port = found.coordinator_address.rpartition(":")
    place = Place(found.process_id, found.num_processes, host.strip("[]"), int(port))
    jax.distributed.shutdown()
    # It leaves these, and JAX lets process 0 alone keep compiled programs.
    state.global_state.process_id, state.global_state.num_processes = 0, 1
    return place


def _in_thread(function: Callable[[], None], timeout: float, too_late: str) -> None:
    """Call a function that may block in foreign code, where neither Ctrl-C nor time reaches it."""
    failures: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise ValueError(too_late)
    if failures:
        reason = " ".join(str(failures[0]).split())
        raise ValueError(
            f"the processes of the job cannot meet ({reason}): check the coordinator's address, "
            "the number of processes and the process id, or the cluster's environment"
        ) from failures[0]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# ---------------------------------------------------------------------------- a team


class Team:
    """The processes of a job, each connected to process 0. A context manager.

    ``on_death(index)`` is called, from another thread, as soon as process ``index`` is known to be
    dead: it ended without `finish`, or its machine no longer answers. The others go on. If process
    0 is dead, no process learns of further deaths.
    """

    def __init__(self, place: Place, on_death: Callable[[int], None]):
        self.place = place
        self._on_death = on_death
        self._dead: set[int] = set()
        self._done: set[int] = set()
        self._sent: dict[int, Any] = {}
        self._gathered: list[Any] | None = None
        self._over = False
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Team:
        self._thread.start()
        try:
            self._call(self._listen() if self.place.index == 0 else self._connect())
        except OSError as error:
            self._stop()
            host, port = self.place.host, self.place.port
            raise ValueError(f"{host}:{port} cannot be used ({error}): try another port") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._leave())
        self._stop()

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value`` (what JSON can hold), in order; once in the life of a team.

        Raises:
          ValueError: a process ended before it had given its own.
        """
        return self._call(self._gather(value))

    def finish(self) -> list[int]:
        """Say that this process has done its part, and wait until every other has, or is dead.

        Returns the indices of the dead, sorted.
        """
        return self._call(self._finish())

    # Everything below runs in the thread of the loop, which alone touches the fields.
    #
    # Time is limited by `asyncio.timeout`: Python 3.11's `asyncio.wait_for` loses a cancellation
    # that comes as the awaited thing ends, and a task that `_leave` waits for would never end.

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C: nobody waits for it any more
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        host = self.place.host if _is_loopback(self.place.host) else None
        self._server = await asyncio.start_server(self._serve, host, self.place.port)
        self._keep(self._expect_all(time.monotonic() + SILENCE_SECONDS))

    async def _expect_all(self, deadline: float) -> None:
        """Whoever does not connect although it was there a moment ago is dead."""
        await asyncio.sleep(max(0, deadline - time.monotonic()))
        for index in range(1, self.place.count):
            if index not in self._writers:
                await self._bury(index)

    async def _connect(self) -> None:
        deadline = time.monotonic() + SILENCE_SECONDS
        while True:
            try:
                reader, writer = await asyncio.open_connection(self.place.host, self.place.port)
                await _send(writer, {"hello": self.place.index})
                await _receive(reader, _WELCOME_SECONDS)
                break
            except _LOST as failure:  # JAX's service may still listen there for a moment
                if time.monotonic() > deadline:
                    raise ConnectionError("process 0 does not answer") from failure
                await asyncio.sleep(_RETRY_SECONDS)
        self._writers[0] = writer
        self._keep(self._follow(reader))
        self._keep(self._beat(writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Process 0's side of one connection."""
        try:
            hello = await _receive(reader)
            index = hello.get("hello")
        except _LOST:
            index = None
        if index not in range(1, self.place.count) or index in self._writers:
            writer.close()  # a stranger
            return
        assert isinstance(index, int)
        self._writers[index] = writer
        self._keep(self._beat(writer))
        # The welcome; and it may have come late to news that the others have.
        await self._tell(index, {"dead": sorted(self._dead)})
        try:
            while index not in self._done:
                message = await _receive(reader)
                if "value" in message:
                    await self._collect(index, message["value"])
                if message.get("done"):
                    await self._note_done(index)
        except _LOST:
            await self._bury(index)

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        """What the others hear from process 0."""
        try:
            while not self._over:
                message = await _receive(reader)
                for index in message.get("dead", []):
                    await self._bury(index)
                if "values" in message:
                    self._gathered = message["values"]
                self._over = self._over or bool(message.get("over"))
                self._notify()
        except _LOST:
            await self._bury(0)

    async def _beat(self, writer: asyncio.StreamWriter) -> None:
        """Signs of life; a connection that is lost is its reader's to report."""
        try:
            while not writer.is_closing():
                await _send(writer, {})
                await asyncio.sleep(BEAT_SECONDS)
        except OSError:
            return

    async def _bury(self, index: int) -> None:
        if index in self._dead or index in self._done or self._over:
            return
        self._dead.add(index)
        self._on_death(index)
        await self._news({"dead": [index]})
        await self._end_if_all_ended()

    async def _collect(self, index: int, value: Any) -> None:
        self._sent[index] = value
        if len(self._sent) == self.place.count:
            self._gathered = [self._sent[i] for i in range(self.place.count)]
            self._sent = {}
            await self._news({"values": self._gathered})

    async def _note_done(self, index: int) -> None:
        self._done.add(index)
        await self._end_if_all_ended()

    async def _end_if_all_ended(self) -> None:
        if self.place.index == 0 and len(self._done | self._dead) == self.place.count:
            self._over = True
            await self._news({"over": True})

    async def _news(self, message: dict[str, Any]) -> None:
        """Process 0 tells everyone; the fields have changed, whoever waits looks at them."""
        if self.place.index == 0:
            for index in list(self._writers):
                await self._tell(index, message)
        self._notify()

    async def _tell(self, index: int, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # its reader finds out
            await _send(self._writers[index], message)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _gather(self, value: Any) -> list[Any]:
        if self.place.index == 0:
            await self._collect(0, value)
        else:
            await self._tell(0, {"value": value})
        while self._gathered is None:
            if self._dead:
                raise ValueError(
                    f"process {min(self._dead)} of the job ended before the work began: see its "
                    "own output, and start all of them again"
                )
            await self._changed.wait()
        return self._gathered

    async def _finish(self) -> list[int]:
        if self.place.index == 0:
            await self._note_done(0)
        else:
            await self._tell(0, {"done": True})
        while not self._over and 0 not in self._dead:
            await self._changed.wait()
        return sorted(self._dead)

    async def _leave(self) -> None:
        self._over = True  # whatever is heard from now on is no news
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers.values():
            writer.close()
            with contextlib.suppress(OSError):  # the last news must get out, but not to the dead
                async with asyncio.timeout(_WELCOME_SECONDS):
                    await writer.wait_closed()
        if self.place.index == 0:
            self._server.close()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run beside the rest; the loop itself would forget the task."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    writer.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
    async with asyncio.timeout(SILENCE_SECONDS):
        await writer.drain()


async def _receive(reader: asyncio.StreamReader, seconds: float | None = None) -> dict[str, Any]:
    """The next message, within `SILENCE_SECONDS` or those given; `_LOST` if there is none."""

    async with asyncio.timeout(SILENCE_SECONDS if seconds is None else seconds):
        size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        if size > _MAX_BYTES:
            raise ValueError(f"got a message of {size} bytes, expected {_MAX_BYTES} at most")
        message = json.loads(await reader.readexactly(size))
    if not isinstance(message, dict):
        raise ValueError("got something else than a message")
    return message
