// Server behaviour that the daemon does not have, or not on demand: tokens, refusals, closes with every code. A small
// server imitates it, over WebSocket and HTTP; the client runs in a real tab.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import http from "node:http";

import { freePort, later, Tab, waitFor } from "./harness.mjs";

const MODULE = readFileSync(new URL("../../src/web/llm-bridge.js", import.meta.url));

/** The server's end of a WebSocket: texts below 64 KiB, which is all that is said here. */
class Peer {
  constructor(socket, request) {
    this.socket = socket;
    this.protocols = (request.headers["sec-websocket-protocol"] ?? "").split(",").map(word => word.trim());
    this.after = new URL(request.url, "http://h").searchParams.get("after");
    this.received = Buffer.alloc(0);
    this.onMessage = () => {};
    socket.on("data", data => this.#take(data));
    socket.on("error", () => {});
  }

  /** The token that was offered. */
  get token() { return this.protocols.find(word => word.startsWith("bearer."))?.slice(7); }

  #take(data) {
    this.received = Buffer.concat([this.received, data]);
    while (this.received.length >= 6) {
      const short = this.received[1] & 0x7f;
      const [head, length] = short === 126 ? [4, this.received.readUInt16BE(2)] : [2, short];
      if (this.received.length < head + 4 + length) return;
      const mask = this.received.subarray(head, head + 4);
      const payload = this.received.subarray(head + 4, head + 4 + length).map((byte, at) => byte ^ mask[at % 4]);
      const opcode = this.received[0] & 0xf;
      this.received = this.received.subarray(head + 4 + length);
      if (opcode === 1) this.onMessage(JSON.parse(Buffer.from(payload).toString()));
      if (opcode === 8) this.socket.end();
    }
  }

  #frame(opcode, payload) {
    const head = payload.length < 126 ? Buffer.from([0x80 | opcode, payload.length]) : Buffer.from([0x80 | opcode, 126, payload.length >> 8, payload.length & 255]);
    this.socket.write(Buffer.concat([head, payload]));
  }

  send(...frames) { for (const frame of frames) this.#frame(1, Buffer.from(JSON.stringify(frame))); }

  open(state = "live") { this.send({ type: "open", stream: "s/m", after: this.after ?? "0-0", state }); }

  close(code, reason = "") {
    this.#frame(8, Buffer.concat([Buffer.from([code >> 8, code & 255]), Buffer.from(reason)]));
    this.socket.end();
  }
}

/** Serves module and test page; `onSocket(peer, n)` gets each WebSocket, `onRequest` all other requests. */
async function server({ onSocket, onRequest = (request, response) => response.writeHead(404).end("{}") }) {
  const listener = http.createServer((request, response) => {
    if (request.url === "/llm-bridge.js") return response.writeHead(200, { "Content-Type": "text/javascript" }).end(MODULE);
    if (request.url.startsWith("/test")) return response.writeHead(200, { "Content-Type": "text/html" }).end(Tab.page);
    return onRequest(request, response);
  });
  let count = 0;
  listener.on("upgrade", (request, socket) => {
    if (!onSocket) return socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    const accept = createHash("sha1").update(`${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
    const chosen = request.headers["sec-websocket-protocol"] ? "Sec-WebSocket-Protocol: llm-bridge.v1\r\n" : "";
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n${chosen}Sec-WebSocket-Accept: ${accept}\r\n\r\n`);
    onSocket(new Peer(socket, request), count++);
  });
  const port = await freePort();
  await new Promise(resolve => listener.listen(port, "127.0.0.1", resolve));
  later(() => { listener.closeAllConnections(); listener.close(); });
  return Tab.open(`http://127.0.0.1:${port}`);
}

const delta = (id, text) => ({ type: "delta", id, text });
const end = id => ({ type: "end", id, finish_reason: "stop" });
const jwt = (name, inMs) => `e30.${Buffer.from(JSON.stringify({ sub: name, exp: (Date.now() + inMs) / 1000 })).toString("base64url")}.c2ln`;

/** Watches with a token callback that gives these one after another, the last again and again. */
function watchWith(tab, tokens, options = {}) {
  return tab.page.evaluate(([tokens, options]) => {
    window.asked = 0;
    const token = async () => tokens[Math.min(window.asked++, tokens.length - 1)];
    window.watch("a", "/v1/streams/s/m", { token, ...options });
  }, [tokens, options]);
}

export async function a_refused_token_is_asked_for_once_more() {
  const offered = [];
  const tab = await server({
    onSocket: peer => {
      offered.push(peer.token);
      assert.equal(peer.protocols[0], "llm-bridge.v1");
      if (peer.token !== "good") return peer.close(4401, "expired");
      peer.open();
      peer.send(delta("1-0", "in"), end("2-0"));
      peer.close(1000);
    },
  });
  await watchWith(tab, ["bad", "good"]);
  assert.deepEqual((await tab.ended("a")).closed, { reason: "ended", code: null });
  assert.deepEqual(offered, ["bad", "good"]);
  offered.length = 0;
  await watchWith(tab, ["bad", "worse", "good"]);
  assert.deepEqual((await tab.ended("a")).closed, { reason: "failed", code: "unauthorized" });
  assert.deepEqual(offered, ["bad", "worse"]);
}

export async function events_carry_the_token_and_obey_what_the_status_says() {
  const heard = [];
  const tab = await server({
    onRequest: (request, response) => {
      heard.push([request.method, request.headers.authorization, new URL(request.url, "http://h").searchParams.get("after")]);
      if (request.method === "POST") return response.writeHead(202).end("{}");
      if (heard.length === 1) return response.writeHead(401).end(JSON.stringify({ error: { code: "unauthorized", message: "no" } }));
      if (heard.length === 2) return response.writeHead(503, { "Retry-After": "0" }).end("busy");
      if (heard.length === 3) {
        response.writeHead(200, { "Content-Type": "text/event-stream" });
        return response.end(`id: 1-0.1\ndata: ${JSON.stringify(delta("1-0.1", "one"))}\n\n`);
      }
      if (heard.length > 5) return response.writeHead(204).end();
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      const frames = heard.length === 4 ? [delta("1-0.1", "one"), delta("1-0.2", "two"), delta("1-0", "three")] : [end("2-0")];
      response.end(frames.map(frame => `data: ${JSON.stringify(frame)}\r\n\r\n`).join(""));
    },
  });
  await watchWith(tab, ["bad", "good"]);
  const seen = await tab.ended("a");
  assert.deepEqual(seen.closed, { reason: "ended", code: null });
  assert.equal(seen.shown, "onetwothree");
  assert.deepEqual(heard.map(([, token, after]) => [token, after]), [
    ["Bearer bad", null], ["Bearer good", null], ["Bearer good", null], ["Bearer good", "1-0.1"], ["Bearer good", "1-0"], ["Bearer good", "2-0"],
  ]);
}

export async function a_token_is_renewed_before_it_expires() {
  const renewed = [];
  const tab = await server({
    onSocket: peer => {
      peer.open();
      peer.onMessage = message => {
        if (message.type !== "auth") return;
        renewed.push(message.token);
        peer.send({ type: "authorized", exp: 0 }, delta(`${renewed.length}-0`, "x"));
        if (renewed.length === 2) { peer.send(end("3-0")); peer.close(1000); }
      };
    },
  });
  const tokens = [jwt("first", 1500), jwt("second", 2500), jwt("third", 3_600_000)];
  await watchWith(tab, tokens);
  const seen = await tab.ended("a");
  assert.deepEqual(renewed, tokens.slice(1));
  assert.equal(seen.text, "xx");
  assert.equal(seen.events.filter(event => event === "open").length, 1, "over one connection");
}

export async function closes_mean_what_the_contract_says() {
  const codes = [1001, 1013, 4408, 4429, 1006, 1011, 1000];
  let after = [];
  const tab = await server({
    onSocket: (peer, n) => {
      after.push(peer.after);
      peer.open();
      // Everything up to here is sent again, as a faulty server might do: nothing of it is shown twice.
      for (let at = 1; at <= n + 1; at++) peer.send(delta(`${at}-0`, `${at} `));
      if (n === codes.length) { peer.send(end("99-0")); return peer.close(1000); }
      if (codes[n] === 1006) peer.socket.destroySoon();
      else peer.close(codes[n]);
    },
  });
  await tab.watch("a", "/v1/streams/s/m");
  const seen = await tab.ended("a");
  assert.equal(seen.shown, "1 2 3 4 5 6 7 8 ");
  assert.equal(seen.iterated, seen.shown);
  assert.deepEqual(after, [null, "1-0", "2-0", "3-0", "4-0", "5-0", "6-0", "7-0"]);
}

export async function final_closes_are_final() {
  const expected = new Map([[1008, "refused"], [4403, "forbidden"], [4404, "not_found"], [4401, "unauthorized"]]);
  const left = [...expected.keys()];
  const tab = await server({ onSocket: peer => { peer.open(); peer.close(left.shift(), "why"); } });
  for (const [, code] of expected) {
    await tab.watch(code, "/v1/streams/s/m");
    const seen = await tab.ended(code);
    assert.deepEqual([seen.closed, seen.events.includes("reconnecting")], [{ reason: "failed", code }, false]);
    const error = await tab.page.evaluate(name => window.views[name].answer.done.catch(({ name, message, closeCode }) => ({ name, message, closeCode })), code);
    assert.deepEqual([error.name, error.message, expected.get(error.closeCode)], ["LlmBridgeError", "why", code]);
  }
}

export async function draining_and_malformed_frames_lead_to_another_connection() {
  const tab = await server({
    onSocket: (peer, n) => {
      peer.open();
      if (n === 0) return peer.send(delta("1-0", "a"), { type: "status", state: "draining" });
      if (n === 1) return peer.send(delta("2-0", "b"), { type: "delta", id: "2-5" }, delta("3-0", "never taken"));
      if (n === 2) return peer.send(delta("3-0", "c"), { type: "gap", id: "2-0", after: "3-0", next: null, lost: null, reason: "failover" }, { type: "status", state: "draining" });
      peer.send({ type: "from the future", id: "3-1" }, delta("3-2", "d"), end("4-0"));
      return peer.close(1000);
    },
  });
  await tab.watch("a", "/v1/streams/s/m");
  const seen = await tab.ended("a");
  assert.equal(seen.shown, "abcd");
  const reasons = seen.events.filter(event => event.startsWith("reconnecting "));
  assert.deepEqual(reasons, ["reconnecting draining", "reconnecting malformed", "reconnecting draining"]);
}

export async function acks_and_cancels_are_answered_each_for_itself() {
  const heard = [];
  let supportsAck = true;
  let posted = 0;
  let peerNow = null;
  const tab = await server({
    onRequest: (request, response) => { posted += 1; response.writeHead(202).end("{}"); },
    onSocket: peer => {
      peerNow = peer;
      peer.open();
      peer.send(delta("5-1", "x"));
      peer.onMessage = message => {
        heard.push(message);
        if (message.type === "ping") peer.send({ type: "pong" });
        if (message.type === "ack" && supportsAck) setTimeout(() => peer.send({ type: "acked", id: message.id }), 50);
        if (message.type === "ack" && !supportsAck) peer.send({ type: "refused", code: "unsupported", message: "no receipts" });
        if (message.type === "cancel" && message.reason === "twice") peer.send({ type: "refused", code: "too_many", message: "not so often" });
        else if (message.type === "cancel" && message.reason === "lost") peer.socket.destroy();
        else if (message.type === "cancel") peer.send({ type: "cancel_requested" });
      };
    },
  });
  await tab.watch("a", "/v1/streams/s/m");
  await tab.until("a", "text", seen => seen.text === "x");
  const ask = body => tab.page.evaluate(`(async answer => { ${body} })(window.views.a.answer)`);
  // A later request may be answered first.
  const mixed = await ask(`
    const isTaken = answer.ack();
    const refused = await answer.cancel("twice").catch(error => error.code);
    await answer.cancel("once");
    return [isTaken, refused];`);
  assert.deepEqual(mixed, [true, "too_many"]);
  assert.deepEqual(heard.find(({ type }) => type === "ack"), { type: "ack", id: "5-1" });
  supportsAck = false;
  peerNow.send(delta("5-2", "y"));
  await tab.until("a", "more text", seen => seen.text === "xy");
  await ask("answer.ack(); await answer.cancel();");
  // The acknowledgement is answered later, after the previous one.
  await waitFor("acknowledging to be known as not supported", async () => await ask("return answer.ack('5-9');") === false);
  // A connection that is lost before the answer: the cancel is sent by POST.
  await ask("await answer.cancel('lost');");
  assert.equal(posted, 1);
  await waitFor("going on", async () => (await tab.look("a")).state === "open");
  assert.equal(await ask("return answer.cancel('x'.repeat(5000)).catch(error => error.name);"), "RangeError");
  await ask("answer.close(); await answer.done;");
  assert.equal(await ask("return answer.cancel().catch(error => error.code);"), "closed");
}
