"""A bridge from Redis Streams to WebSocket with FastAPI and redis-py, as a careful user would write it:
one task in XREAD BLOCK over all watched streams, a bounded queue per viewer, history for who comes late.
An entry's value becomes one frame, with the entry's id in it to resume at.

    REDIS_URL=redis://127.0.0.1:6379 uvicorn server:app --port 8080 --no-access-log
"""

import asyncio
import contextlib
import logging
import os
import re

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from redis.asyncio import Redis
from redis.exceptions import RedisError

NAME = re.compile(r"[\w.~-]{1,128}/[\w.~:/@+-]{1,128}", re.ASCII)
ID = re.compile(r"\d+-\d+", re.ASCII)
# Batches that a viewer may have outstanding before it is closed as too slow.
OUTSTANDING_MAX = 1_024
# Entries of a stream that one reply brings at most.
COUNT = 1_000
# The stream that ends a blocked XREAD when there is one more to watch.
WAKE = f"bridge:wake:{os.getpid()}".encode()


def frame(id: bytes, fields: dict[bytes, bytes]) -> str:
    """An entry as a frame's text, made once for all viewers: its JSON object with the id put in."""
    return (fields[b"data"][:-1] + b',"id":"' + id + b'"}').decode()


class Stream:
    """A watched stream."""

    def __init__(self, key: bytes):
        self.key = key
        self.last_id: bytes | None = None
        self.users = 0
        self.queues: set[asyncio.Queue] = set()


class Bridge:
    """What all viewers share: the watched streams and who reads them."""

    def __init__(self, url: str):
        self.redis = Redis.from_url(url)
        self.reader = Redis.from_url(url, socket_timeout=None)
        self.streams: dict[bytes, Stream] = {}
        self.opening = asyncio.Lock()
        self.wake_id: bytes = b"0"

    async def read_all(self):
        """Passes on what comes, for ever."""
        while True:
            ids = {key: stream.last_id for key, stream in self.streams.items() if stream.last_id}
            try:
                reply = await self.reader.xread({WAKE: self.wake_id, **ids}, count=COUNT, block=0)
            except RedisError as error:
                logging.error("reading failed: %s", error)
                await asyncio.sleep(0.25)
                continue
            for key, entries in reply:
                if key == WAKE:
                    self.wake_id = entries[-1][0]
                elif stream := self.streams.get(key):
                    stream.last_id = entries[-1][0]
                    if stream.queues:
                        batch = [frame(id, fields) for id, fields in entries]
                        for queue in stream.queues:
                            put(queue, batch)

    @contextlib.asynccontextmanager
    async def watch(self, key: bytes):
        """The stream with that key; a new one is read from where it is."""
        stream = self.streams.setdefault(key, Stream(key))
        stream.users += 1
        try:
            async with self.opening:
                if stream.last_id is None:
                    newest = await self.redis.xrevrange(key, count=1)
                    stream.last_id = newest[0][0] if newest else b"0-0"
                    await self.redis.xadd(WAKE, {"watch": key}, maxlen=1, approximate=False)
            yield stream
        finally:
            stream.users -= 1
            if stream.users == 0:
                del self.streams[key]

    async def history(self, stream: Stream, after: bytes):
        """Batches of frames up to where the stream is read."""
        while after != stream.last_id:
            to = stream.last_id
            page = await self.redis.xrange(stream.key, min=b"(" + after, max=to, count=COUNT)
            if page:
                yield [frame(id, fields) for id, fields in page]
            after = page[-1][0] if len(page) == COUNT else to


def put(queue: asyncio.Queue, batch: list[str]):
    """Hands a batch to a viewer; the one who is too slow finds the end after what is in its queue."""
    if not queue.full():
        queue.put_nowait(batch if queue.qsize() < OUTSTANDING_MAX else None)


async def deliver(socket: WebSocket, bridge: Bridge, stream: Stream, after: bytes):
    """Sends a viewer what was, then what comes."""
    async for batch in bridge.history(stream, after):
        for text in batch:
            await socket.send_text(text)
    queue = asyncio.Queue(OUTSTANDING_MAX + 1)
    stream.queues.add(queue)
    try:
        while (batch := await queue.get()) is not None:
            for text in batch:
                await socket.send_text(text)
        await socket.close(1013, "too slow")
    finally:
        stream.queues.discard(queue)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI):
    """The reader lives as long as the application."""
    app.state.bridge = Bridge(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))
    reader = asyncio.create_task(app.state.bridge.read_all())
    yield
    reader.cancel()


app = FastAPI(lifespan=lifespan, openapi_url=None)


@app.websocket("/v1/streams/{name:path}")
async def follow(socket: WebSocket, name: str, after: str = "0-0"):
    """Follows one stream."""
    if not NAME.fullmatch(name) or not ID.fullmatch(after):
        await socket.close(1008)
        return
    await socket.accept()
    session, model = name.split("/", 1)
    bridge: Bridge = socket.app.state.bridge
    async with bridge.watch(f"llm:stream:{session}:{model}".encode()) as stream:
        sender = asyncio.create_task(deliver(socket, bridge, stream, after.encode()))
        try:
            # A viewer says nothing; to wait for it is how its end is noticed.
            while True:
                await socket.receive_text()
        except (WebSocketDisconnect, RuntimeError, KeyError):
            pass
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await sender
