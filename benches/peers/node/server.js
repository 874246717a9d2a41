// A bridge from Redis Streams to WebSocket on Node, as a careful user of ws and ioredis would write it:
// one connection in XREAD BLOCK over all watched streams, history for who comes late, a bound on what a
// slow viewer may hold. An entry's value becomes one frame, with the entry's id in it to resume at.
//
//   REDIS_URL=redis://127.0.0.1:6379 PORT=8080 node server.js

import { createServer } from "node:http";
import Redis from "ioredis";
import { WebSocketServer } from "ws";

const PATH = /^\/v1\/streams\/([\w.~-]{1,128})\/([\w.~:/@+-]{1,128})$/;
/** Bytes that a viewer may have outstanding before it is closed as too slow. */
const OUTSTANDING_MAX = 8 * 1024 * 1024;
/** Entries of a stream that one reply brings at most. */
const COUNT = 1000;
/** The stream that ends a blocked XREAD when there is one more to watch. */
const WAKE = `bridge:wake:${process.pid}`;

const url = process.env.REDIS_URL ?? "redis://127.0.0.1:6379";
/** For everything that answers at once. */
const redis = new Redis(url);
/** For XREAD BLOCK alone. */
const reader = new Redis(url, { maxRetriesPerRequest: null });

/** The watched streams by key: the last id that was read, and who watches. */
const streams = new Map();
let wakeId = "0";

/** An entry as a frame's bytes, made once for all viewers: its JSON object with the id put in. */
function frame(id, fields) {
  const data = fields[fields.indexOf("data") + 1];
  return Buffer.from(`${data.slice(0, -1)},"id":"${id}"}`);
}

/** Sends frames with one write, or closes the viewer who does not take them. */
function send(viewer, frames) {
  const { ws, socket } = viewer;
  if (ws.readyState !== ws.OPEN) return;
  if (ws.bufferedAmount > OUTSTANDING_MAX) {
    ws.close(1013, "too slow");
    return;
  }
  if (frames.length === 1) {
    ws.send(frames[0], { binary: false });
    return;
  }
  socket.cork();
  for (const each of frames) ws.send(each, { binary: false });
  socket.uncork();
}

/** Passes on what comes, for ever. */
async function readAll() {
  for (;;) {
    const keys = [WAKE];
    const ids = [wakeId];
    for (const [key, stream] of streams) {
      if (stream.lastId === null) continue;
      keys.push(key);
      ids.push(stream.lastId);
    }
    let reply;
    try {
      reply = await reader.xread("COUNT", COUNT, "BLOCK", 0, "STREAMS", ...keys, ...ids);
    } catch (error) {
      console.error(`reading failed: ${error.message}`);
      await new Promise((done) => setTimeout(done, 250));
      continue;
    }
    for (const [key, entries] of reply ?? []) {
      if (key === WAKE) {
        wakeId = entries.at(-1)[0];
        continue;
      }
      const stream = streams.get(key);
      if (!stream) continue;
      stream.lastId = entries.at(-1)[0];
      const frames = entries.map(([id, fields]) => frame(id, fields));
      for (const viewer of stream.viewers) send(viewer, frames);
    }
  }
}

/** The entry of a stream in the table; a new one is read from where it is. */
async function watch(key) {
  let stream = streams.get(key);
  if (!stream) {
    stream = { lastId: null, viewers: new Set(), pending: 0 };
    streams.set(key, stream);
    stream.ready = redis.xrevrange(key, "+", "-", "COUNT", 1).then((newest) => {
      stream.lastId = newest[0]?.[0] ?? "0-0";
      return redis.xadd(WAKE, "MAXLEN", 1, "*", "watch", key);
    });
  }
  stream.pending += 1;
  await stream.ready;
  return stream;
}

/** Brings a viewer up to where the stream is read, then lets it follow. */
async function follow(viewer, key, after) {
  const stream = await watch(key);
  while (after !== stream.lastId && viewer.ws.readyState === viewer.ws.OPEN) {
    const to = stream.lastId;
    const page = await redis.xrange(key, `(${after}`, to, "COUNT", COUNT);
    send(viewer, page.map(([id, fields]) => frame(id, fields)));
    after = page.length === COUNT ? page.at(-1)[0] : to;
  }
  stream.pending -= 1;
  if (viewer.ws.readyState === viewer.ws.OPEN) stream.viewers.add(viewer);
  const leave = () => {
    stream.viewers.delete(viewer);
    if (stream.viewers.size === 0 && stream.pending === 0) streams.delete(key);
  };
  if (viewer.ws.readyState === viewer.ws.OPEN) viewer.ws.once("close", leave);
  else leave();
}

const server = createServer((_, response) => response.writeHead(404).end());
const sockets = new WebSocketServer({ noServer: true, maxPayload: 64 * 1024 });

server.on("upgrade", (request, socket, head) => {
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  const name = PATH.exec(pathname);
  const after = searchParams.get("after") ?? "0-0";
  if (!name || !/^\d+-\d+$/.test(after)) {
    socket.end("HTTP/1.1 400 Bad Request\r\n\r\n");
    return;
  }
  socket.setNoDelay(true);
  sockets.handleUpgrade(request, socket, head, (ws) => {
    ws.on("error", () => ws.terminate());
    follow({ ws, socket }, `llm:stream:${name[1]}:${name[2]}`, after).catch((error) => {
      console.error(`a viewer failed: ${error.message}`);
      ws.close(1011);
    });
  });
});

server.listen({ port: Number(process.env.PORT ?? 8080), host: "127.0.0.1", backlog: 4096 });
readAll();
