// The client in real tabs, against a real daemon and a real Redis. In each case the text on the page, the
// assembled text and the iterated text must equal, byte for byte, the text that was produced.

import assert from "node:assert/strict";

import { expectSame, Producer, Proxy, Random, Tab, sleep, startDaemon, startRedis, token, waitFor } from "./harness.mjs";

const STREAM = "s1/gpt-4o";
const URL = `/v1/streams/${STREAM}`;

async function world(settings) {
  const redis = await startRedis();
  const daemon = await startDaemon(redis, settings);
  const proxy = await Proxy.start(daemon.port);
  return { redis, daemon, proxy, producer: new Producer(redis, STREAM) };
}

function expectText(seen, producer, { hasIterated = true } = {}) {
  expectSame(seen.shown, producer.text, "appended");
  expectSame(seen.text, producer.text, "put together");
  if (hasIterated) expectSame(seen.iterated, producer.text, "iterated");
  assert.equal(seen.complete, true);
}

const gaps = seen => seen.frames.filter(frame => frame.type === "gap").map(({ reason }) => reason);
const count = (seen, type) => seen.frames.filter(frame => frame.type === type).length;

async function cutOften(transport, seed, cutsWanted) {
  const { producer, proxy } = await world();
  const random = new Random(seed);
  proxy.plan = () => (proxy.cuts < cutsWanted ? { frames: 1 + random.below(6), bytes: random.of([0, 0, 1, 2, 7, 30]) } : null);
  const tab = await Tab.open(proxy.origin);
  await tab.watch("a", URL, { transport });
  await producer.start("g1");
  await producer.write(random, () => proxy.cuts < cutsWanted);
  await producer.write(random, n => n < 200);
  await producer.end();
  const seen = await tab.ended("a");
  expectText(seen, producer);
  assert.deepEqual(seen.closed, { reason: "ended", code: null });
  assert.deepEqual([count(seen, "start"), count(seen, "end"), count(seen, "gap")], [1, 1, 0]);
  assert.ok(proxy.cuts >= cutsWanted, `${proxy.cuts} cuts`);
  assert.ok(proxy.requests.slice(1).some(({ line }) => line.includes("after=")), "it resumed");
  assert.deepEqual(tab.errors, []);
}

export const a_websocket_cut_at_any_frame_loses_and_repeats_nothing = () => cutOften("websocket", 20251, 40);

export const an_event_stream_cut_at_any_frame_loses_and_repeats_nothing = () => cutOften("sse", 20252, 40);

export async function cuts_over_whichever_transport_lose_and_repeat_nothing() { await cutOften("auto", 20253, 25); }

export async function a_browsers_own_event_source_reads_the_other_formats() {
  const { producer, proxy } = await world();
  const tab = await Tab.open(proxy.origin);
  const listen = format => tab.page.evaluate(address => new Promise(resolve => {
    const source = new EventSource(address);
    let text = "";
    let done = false;
    source.onmessage = ({ data }) => {
      if (data === "[DONE]") { done = true; return; }
      const chunk = JSON.parse(data);
      if (chunk.type === "text-delta") text += chunk.delta;
      for (const { delta } of chunk.choices ?? []) text += delta.content ?? "";
    };
    // It reconnects by itself until it gets 204.
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) resolve({ text, done }); };
  }), `${proxy.origin}${URL}?after=0&format=${format}`);
  const cut = new Set();
  proxy.plan = () => {
    const { line } = proxy.requests.at(-1);
    return cut.has(line) ? null : (cut.add(line), { frames: 5, bytes: 3 });
  };
  const heard = [listen("openai"), listen("ai-sdk")];
  await producer.start("g1");
  // Both are cut before the end: after a cut between the last chunk and [DONE] there is nothing to resume.
  await producer.write(new Random(20254), n => n < 100 || proxy.cuts < 2);
  await producer.end();
  for (const { text, done } of await Promise.all(heard)) {
    expectSame(text, producer.text, "the text");
    assert.ok(done);
  }
  assert.equal(proxy.cuts, 2);
  assert.deepEqual(tab.errors, []);
}

export async function a_killed_and_a_drained_daemon_are_outlived() {
  const { daemon, producer, proxy } = await world();
  const random = new Random(3);
  const tab = await Tab.open(proxy.origin);
  for (const name of ["websocket", "sse", "auto"]) await tab.watch(name, URL, { transport: name });
  await producer.start("g1");
  let isOver = false;
  const writing = producer.write(random, () => !isOver);
  for (const signal of ["SIGKILL", "SIGTERM", "SIGKILL"]) {
    const lengths = new Map();
    for (const name of ["websocket", "sse", "auto"]) {
      lengths.set(name, (await tab.until(name, "some text", seen => seen.text.length > 0)).text.length);
    }
    await daemon.end(signal);
    await daemon.start();
    for (const [name, length] of lengths) await tab.until(name, "more text", seen => seen.text.length > length);
  }
  isOver = true;
  await writing;
  await producer.end();
  for (const name of ["websocket", "sse", "auto"]) expectText(await tab.ended(name), producer);
}

export async function a_reloaded_tab_goes_on_with_all_of_the_text() {
  const { producer, proxy } = await world();
  const random = new Random(4);
  const tab = await Tab.open(proxy.origin, "?storage");
  await producer.start("g1");
  let isOver = false;
  const writing = producer.write(random, () => !isOver);
  for (let reload = 0; reload < 4; reload++) {
    await tab.watch("a", URL);
    const before = await tab.until("a", "some text", seen => seen.text.length > 400 * (reload + 1));
    await tab.load();
    assert.ok(before.lastId);
  }
  await tab.watch("a", URL);
  const resumed = proxy.requests.length;
  isOver = true;
  await writing;
  await producer.delta("ضحك 😀\n", "reasoning");
  await producer.end();
  const seen = await tab.ended("a");
  expectText(seen, producer);
  assert.deepEqual(new Map(seen.texts), producer.texts);
  await waitFor("the resumed request", () => proxy.requests.length > resumed - 1);
  assert.ok(proxy.requests.slice(1).every(({ line }) => /after=\d+-\d+/.test(line)), JSON.stringify(proxy.requests));
  // The answer is complete, and still shown after one more reload.
  await tab.load();
  await tab.watch("a", URL);
  const again = await tab.ended("a");
  expectText(again, producer);
  assert.equal(count(again, "end"), 1);
}

export async function an_answer_too_long_to_be_stored_comes_again_from_its_beginning() {
  const { producer, proxy } = await world();
  const random = new Random(5);
  const tab = await Tab.open(proxy.origin, "?storage");
  await producer.start("g1");
  await producer.write(random, n => n < 600);
  const limits = { storedChars: 1000 };
  await tab.watch("a", URL, { limits });
  await tab.until("a", "all so far", seen => seen.text === producer.text);
  await tab.load();
  await tab.watch("a", URL, { limits });
  await producer.end();
  expectText(await tab.ended("a"), producer);
}

export async function stop_reaches_the_producer_and_both_tabs_see_the_same_end() {
  const { proxy, redis } = await world();
  const random = new Random(6);
  const tabs = [await Tab.open(proxy.origin), await Tab.open(proxy.origin)];
  for (const transport of ["websocket", "sse"]) {
    const producer = new Producer(redis, `s1/${transport}`);
    for (const tab of tabs) await tab.watch(transport, `/v1/streams/s1/${transport}`, { transport });
    await producer.start("g1");
    let isOver = false;
    const writing = producer.write(random, () => !isOver);
    for (const tab of tabs) await tab.until(transport, "some text", seen => seen.text.length > 50);
    await tabs[0].page.evaluate(name => window.views[name].answer.cancel("enough, תודה"), transport);
    const request = await producer.cancelRequest();
    assert.equal(request.type, "cancel");
    assert.equal(request.reason, "enough, תודה");
    isOver = true;
    await writing;
    await producer.end("cancelled");
    const [one, other] = [await tabs[0].ended(transport), await tabs[1].ended(transport)];
    for (const seen of [one, other]) {
      expectText(seen, producer);
      assert.equal(seen.finish.finish_reason, "cancelled");
    }
    assert.deepEqual(one.finish, other.finish);
    assert.equal(one.lastId, other.lastId);
  }
}

export async function what_a_tab_acknowledges_is_written_down() {
  const { proxy, redis } = await world(["stream.receipts=true", "stream.receipts_after=1h"]);
  const receipts = async () => {
    const entries = await redis.run("XRANGE", "llm:receipts:llm-bridge", "-", "+");
    return entries.map(([, words]) => `${words[1]} ${words[3]} ${words[5]} ${words[7]}`);
  };
  const written = line => waitFor(line, async () => (await receipts()).includes(line));
  const tab = await Tab.open(proxy.origin);
  // If the tab did not run until the connection was closed, this proves nothing about the end: try again.
  for (let attempt = 0; attempt < 20; attempt++) {
    const name = `s${attempt}/m`;
    const producer = new Producer(redis, name);
    await producer.start("g1");
    const id = await producer.delta("half of ");
    await tab.watch(name, `/v1/streams/${name}`, { transport: "websocket" });
    await tab.until(name, "text", seen => seen.text === "half of ");
    const ask = body => tab.page.evaluate(`(answer => { ${body} })(window.views[${JSON.stringify(name)}].answer)`);
    assert.equal(await ask("return answer.ack();"), true);
    await written(`${name} ${id} g1 acked`);
    assert.equal(await ask("return answer.ack();"), true, "it is known to be supported");
    await ask('answer.on("end", () => answer.ack());');
    const end = await producer.end();
    await tab.ended(name);
    await sleep(200);
    if ((await receipts()).includes(`${name} ${end} g1 acked`)) {
      // One receipt for each, whatever happens meanwhile.
      const own = (await receipts()).filter(line => line.startsWith(`${name} `));
      assert.deepEqual(own, [`${name} ${id} g1 acked`, `${name} ${end} g1 acked`]);
      assert.deepEqual(tab.errors, []);
      return;
    }
  }
  assert.fail("no tab could ever acknowledge the end");
}

export async function without_websockets_it_goes_by_events_and_remembers_that() {
  const { producer, proxy } = await world();
  proxy.blocksWebSockets = true;
  const random = new Random(7);
  let cuts = 3;
  proxy.plan = () => (cuts-- > 0 ? { frames: 3, bytes: 1 } : null);
  const tab = await Tab.open(proxy.origin);
  await tab.watch("a", URL);
  await producer.start("g1");
  await producer.write(random, () => proxy.cuts < 3);
  await producer.end();
  const seen = await tab.ended("a");
  expectText(seen, producer);
  assert.equal(seen.transport, "sse");
  await tab.watch("b", URL);
  expectText(await tab.ended("b"), producer);
  assert.equal(proxy.requests.filter(({ isWebSocket }) => isWebSocket).length, 1, JSON.stringify(proxy.requests));
}

export async function channels_choices_and_tool_calls_are_put_together() {
  const { producer, proxy } = await world();
  const random = new Random(8);
  const tab = await Tab.open(proxy.origin);
  await tab.watch("live", URL);
  await tab.watch("merged", URL, { transport: "sse", batchMs: 200 });
  await producer.start("g1");
  for (let n = 0; n < 300; n++) {
    const piece = random.of(["a😀", "ש", "\n", "{\"q\":", "漢"]);
    await producer.delta(piece, random.of(["content", "content", "reasoning", "refusal", "own channel"]), random.below(2));
  }
  const written = ["{\"q\":", "\"weather 🌦\"", "}"];
  await producer.add({ type: "tool_call", index: 0, call: 0, id: "call_9", name: "search", arguments: "" });
  for (const piece of written) {
    await producer.add({ type: "tool_call", index: 0, call: 0, arguments: piece });
    await producer.add({ type: "tool_call", index: 1, call: 2, id: "call_x", name: "sum", arguments: piece });
  }
  await producer.add({ type: "mine", any: [1, null, "😀"] });
  await producer.redis.run("XADD", producer.key, "*", "data", "no json");
  await producer.end("tool_calls");
  await tab.watch("late", URL);
  const text = written.join("");
  for (const name of ["live", "merged", "late"]) {
    const seen = await tab.ended(name);
    expectText(seen, producer);
    assert.deepEqual(Object.fromEntries(seen.texts), Object.fromEntries(producer.texts));
    assert.deepEqual(seen.toolCalls, [
      [{ index: 0, call: 0, id: "call_9", name: "search", arguments: text }],
      [{ index: 1, call: 2, id: "call_x", name: "sum", arguments: text + "" }],
    ]);
    assert.deepEqual(seen.frames.find(frame => frame.type === "custom").data.any, [1, null, "😀"]);
    assert.deepEqual([count(seen, "skipped"), seen.finish.finish_reason], [1, "tool_calls"]);
  }
}

export async function merged_frames_give_the_same_text() {
  const { producer, proxy } = await world();
  const random = new Random(9);
  const tab = await Tab.open(proxy.origin);
  for (const transport of ["websocket", "sse"]) await tab.watch(transport, URL, { transport, batchMs: 100 });
  await producer.start("g1");
  await producer.write(random, n => n < 1500);
  await producer.end();
  for (const transport of ["websocket", "sse"]) expectText(await tab.ended(transport), producer);
}

export async function a_new_generation_clears_the_text_when_its_first_frame_comes() {
  const { producer, proxy, redis } = await world();
  const tab = await Tab.open(proxy.origin);
  for (const transport of ["websocket", "sse"]) await tab.watch(transport, URL, { transport, follow: true });
  await producer.start("g1");
  await producer.delta("one 😀");
  await producer.end();
  for (const name of ["websocket", "sse"]) await tab.until(name, "the first answer", seen => seen.finish && seen.text === "one 😀");
  // Cut between two answers: the text stays, and nothing of the first is repeated.
  proxy.cutAll();
  for (const name of ["websocket", "sse"]) await tab.until(name, "being back", seen => seen.events.at(-1) === "open" && seen.text === "one 😀");
  await producer.start("g2");
  await producer.delta("two\r\n");
  for (const name of ["websocket", "sse"]) await tab.until(name, "the second answer", seen => seen.text === "two\r\n" && seen.shown === "two\r\n");
  // Deleted and recreated: reported by a gap, and cleared with the first frame.
  await redis.run("DEL", producer.key);
  await producer.start("g3");
  await producer.delta("anew ☂");
  for (const name of ["websocket", "sse"]) {
    const seen = await tab.until(name, "the stream begun anew", seen => seen.text === "anew ☂");
    assert.deepEqual([seen.shown, seen.complete, gaps(seen)], ["anew ☂", true, ["recreated"]]);
  }
  // An older end, as after a failover: the text stays, the last id becomes lower, and later entries are accepted.
  await redis.run("DEL", producer.key);
  await redis.run("XADD", producer.key, "5-1", "data", JSON.stringify({ type: "delta", text: "old" }));
  for (const name of ["websocket", "sse"]) {
    const seen = await tab.until(name, "the failover", seen => gaps(seen).includes("failover"));
    assert.deepEqual([seen.text, seen.shown, seen.lastId, seen.complete], ["anew ☂", "anew ☂", "5-1", false]);
  }
  proxy.cutAll();
  await redis.run("XADD", producer.key, "5-2", "data", JSON.stringify({ type: "start", generation: "g4" }));
  await redis.run("XADD", producer.key, "5-3", "data", JSON.stringify({ type: "delta", text: "on" }));
  for (const name of ["websocket", "sse"]) {
    const seen = await tab.until(name, "what follows", seen => seen.text === "on" && seen.iterated.endsWith("on"));
    assert.deepEqual([seen.shown, seen.lastId, seen.complete], ["on", "5-3", true]);
    assert.equal(seen.iterated, "one 😀two\r\nanew ☂on");
  }
}

export async function a_refused_origin_is_said_once_with_its_reason() {
  const { daemon, proxy, producer } = await world([`listen.origins=["https://chat.example"]`]);
  await producer.start("g1");
  const tab = await Tab.open(proxy.origin);
  // The page comes from the proxy, and requests the daemon's own address, which is another origin.
  const elsewhere = `127.0.0.1:${daemon.port}${URL}`;
  const asked = [];
  tab.page.on("websocket", socket => asked.push(socket.url()));
  // A page can read only the close code: so the connection is upgraded, and then closed.
  const plain = await tab.page.evaluate(url => new Promise(resolve => {
    const events = [];
    const socket = new WebSocket(url);
    socket.onopen = () => events.push("open");
    socket.onmessage = ({ data }) => events.push(data);
    socket.onclose = ({ code, reason }) => resolve({ events, code, reason });
  }), `ws://${elsewhere}`);
  assert.deepEqual([plain.events, plain.code], [["open"], 4403]);
  assert.ok(plain.reason.includes("origin"), plain.reason);
  await tab.watch("refused", `http://${elsewhere}`);
  const seen = await tab.ended("refused");
  assert.deepEqual([seen.closed, seen.shown], [{ reason: "failed", code: "forbidden" }, ""]);
  const error = await tab.page.evaluate(() => window.views.refused.answer.done.catch(({ name, message, closeCode }) => ({ name, message, closeCode })));
  assert.deepEqual([error.name, error.message, error.closeCode], ["LlmBridgeError", plain.reason, 4403]);
  // Retries would follow within a tenth of a second.
  await sleep(1000);
  assert.deepEqual([seen.events.filter(event => event.startsWith("reconnecting")), asked.length], [[], 2]);
  const line = daemon.log.split("\n").find(line => line.includes("listen.origins"));
  assert.ok(line?.includes(proxy.origin), daemon.log);
  // The page's own origin is served as before.
  await tab.watch("own", URL);
  await producer.end();
  expectText(await tab.ended("own"), producer);
}

export async function slow_tabs_and_slow_iterators_get_everything() {
  const { producer, proxy } = await world(["client.send_budget=16KiB"]);
  const random = new Random(10);
  const tab = await Tab.open(proxy.origin);
  const limits = { queuedFrames: 20, queuedChars: 2000 };
  for (const transport of ["websocket", "sse"]) await tab.watch(transport, URL, { transport, iterates: false, limits });
  // Reads one frame, and no more until the case continues it.
  await tab.page.evaluate(() => {
    window.slow = {};
    window.proceed = {};
    for (const [name, { answer }] of Object.entries(window.views)) {
      const go = new Promise(resolve => { window.proceed[name] = resolve; });
      window.slow[name] = (async () => {
        let text = "";
        for await (const frame of answer) {
          await go;
          if (frame.type === "delta") text += frame.text;
        }
        return text;
      })();
    }
  });
  await producer.start("g1");
  await producer.write(random, n => n < 500);
  for (const name of ["websocket", "sse"]) await tab.until(name, "being paused", seen => seen.state === "paused");
  // A tab that is blocked for a while, while the text continues.
  const asleep = tab.page.evaluate(() => { for (const end = Date.now() + 1500; Date.now() < end;); });
  await producer.write(random, n => n < 500);
  await asleep;
  await tab.page.evaluate(() => Object.values(window.proceed).forEach(proceed => proceed()));
  await producer.end();
  for (const name of ["websocket", "sse"]) {
    expectText(await tab.ended(name), producer, { hasIterated: false });
    expectSame(await tab.page.evaluate(name => window.slow[name], name), producer.text, "iterated slowly");
  }
}

export async function a_dead_connection_is_noticed() {
  const { producer, proxy } = await world();
  const tab = await Tab.open(proxy.origin);
  const liveness = { connectMs: 2000, pingAfterMs: 300, pongMs: 300, sseSilenceMs: 600 };
  for (const transport of ["websocket", "sse"]) await tab.watch(transport, URL, { transport, liveness, wait: 1 });
  await producer.start("g1");
  await producer.delta("before ");
  for (const name of ["websocket", "sse"]) await tab.until(name, "the first text", seen => seen.text === "before ");
  proxy.isFrozen = true;
  await producer.delta("meanwhile ");
  for (const name of ["websocket", "sse"]) await tab.until(name, "noticing", seen => seen.events.includes("reconnecting silent"));
  proxy.isFrozen = false;
  await producer.delta("after");
  await producer.end();
  for (const name of ["websocket", "sse"]) expectText(await tab.ended(name), producer);
}

export async function a_network_that_is_back_is_used_at_once() {
  const { producer, proxy } = await world();
  const tab = await Tab.open(proxy.origin);
  const hours = { baseMs: 1e9, capMs: 1e9 };
  for (const transport of ["auto", "sse"]) await tab.watch(transport, URL, { transport, retry: hours });
  await producer.start("g1");
  await producer.delta("one");
  for (const name of ["auto", "sse"]) await tab.until(name, "the first text", seen => seen.text === "one");
  proxy.isDown = true;
  proxy.cutAll();
  for (const name of ["auto", "sse"]) await tab.until(name, "the loss", seen => seen.state === "reconnecting");
  proxy.isDown = false;
  await producer.end();
  await tab.page.evaluate(() => window.dispatchEvent(new Event("online")));
  for (const name of ["auto", "sse"]) expectText(await tab.ended(name), producer);
}

export async function what_is_not_there_is_said_once() {
  const { proxy, producer } = await world();
  const tab = await Tab.open(proxy.origin);
  for (const transport of ["websocket", "sse", "auto"]) {
    await tab.watch(transport, "/v1/streams/s1/nobody", { transport, wait: 0 });
    await tab.watch(`${transport} bad`, "/v1/streams/s1/m?after=nonsense", { transport: transport === "websocket" ? "auto" : transport });
  }
  for (const transport of ["websocket", "sse", "auto"]) {
    assert.deepEqual((await tab.ended(transport)).closed, { reason: "failed", code: "not_found" });
    const bad = await tab.ended(`${transport} bad`);
    assert.deepEqual([bad.closed.reason, bad.closed.code], ["failed", "bad_query"]);
  }
  // A stream that the page waits for, and that is then created.
  for (const transport of ["websocket", "sse"]) await tab.watch(transport, URL, { transport, wait: 50 });
  await tab.until("websocket", "waiting", seen => seen.streamState === "waiting");
  await producer.delta("here");
  await producer.end();
  for (const transport of ["websocket", "sse"]) expectText(await tab.ended(transport), producer);
}

export async function the_demo_page_cuts_resumes_switches_and_stops() {
  const { producer, proxy } = await world(["listen.demo_page=true"]);
  const random = new Random(11);
  const tab = await Tab.open(proxy.origin);
  const { page } = tab;
  await page.goto(`${proxy.origin}/?stream=${STREAM}`);
  await producer.start("g1");
  let isOver = false;
  // At a model's pace: the page lays out all of its text with every frame.
  const writing = (async () => { while (!isOver) { await producer.delta(token(random)); await sleep(20); } })();
  const id = view => page.locator(".id").nth(view).textContent();
  const chip = view => page.locator(".chip").nth(view).textContent();
  const idsMove = async view => { const before = await id(view); await waitFor("the view to go on", async () => (await id(view)) !== before); };
  await waitFor("text", async () => (await chip(0)) === "live" && (await chip(1)) === "live");
  await page.click("#cut");
  await waitFor("the cut", async () => (await chip(0)) === "cut");
  const held = await id(0);
  await idsMove(1);
  assert.equal(await id(0), held);
  await page.click("#resume");
  await idsMove(0);
  await page.click("label[for=sse]");
  await idsMove(0);
  await page.click("label[for=ws]");
  await idsMove(0);
  await page.click("#stop");
  assert.equal((await producer.cancelRequest()).type, "cancel");
  isOver = true;
  await writing;
  await producer.end("cancelled");
  await waitFor("identical texts", async () => (await page.locator("#same").textContent()).startsWith(`✓ identical: ${producer.text.length} characters`));
  for (const view of [0, 1]) await waitFor("the end", async () => (await chip(view)) === "ended: cancelled");
  await page.click("#restart");
  await sleep(1);
  await waitFor("the same again", async () => (await page.locator("#same").textContent()).startsWith(`✓ identical: ${producer.text.length} characters`));
  assert.deepEqual(tab.errors, []);
}
