"use strict";
const PERIOD_MS = 1000;
const TREND_POINTS = 120;
const STAGES = {
  produced_to_read: "produced → read",
  read_to_encoded: "read → encoded",
  encoded_to_written: "encoded → written",
  end_to_end: "end to end",
  replay: "replay",
  delivery_round: "delivery round",
};
const $ = (id) => document.getElementById(id);
const trend = [];
let before = null;

// Everything that comes from the server becomes a text node, never markup.
function element(tag, content, className) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...[content ?? ""].flat());
  return made;
}

function rows(table, head, body) {
  const row = (tag, cells) =>
    element("tr", cells.map((cell) => (cell instanceof Node ? cell : element(tag, String(cell)))));
  table.replaceChildren(row("th", head), ...body.map((cells) => row("td", cells)));
}

function amount(value) {
  const rounded = value >= 100 ? Math.round(value) : Math.round(value * 10) / 10;
  return rounded.toLocaleString("en");
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${amount(value)} ${units[unit]}`;
}

function duration(us) {
  if (us < 1000) return `${us} µs`;
  if (us < 1e6) return `${(us / 1000).toPrecision(3)} ms`;
  return `${(us / 1e6).toPrecision(3)} s`;
}

function age(seconds) {
  const whole = Math.floor(seconds);
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h`;
  return `${Math.floor(whole / 86400)} days`;
}

// How fast a counter grows, by the daemon's clock; null until there are two readings of one process.
function rate(now, name) {
  if (!before || before.started_at_s !== now.started_at_s || now.uptime_s <= before.uptime_s) return null;
  return (now.counters[name] - before.counters[name]) / (now.uptime_s - before.uptime_s);
}

function showState(text, isGood, reasons) {
  $("state").textContent = text;
  $("state").className = isGood ? "good" : "bad";
  $("reasons").replaceChildren(...reasons.map((reason) => element("li", reason)));
}

function showTiles(now) {
  const perSecond = (name, show) => {
    const value = rate(now, name);
    return value === null ? "–" : show(value);
  };
  const tiles = [
    ["connections", amount(now.gauges.connections_open)],
    ["subscriptions", amount(now.gauges.subscriptions_open)],
    ["streams live", amount(now.gauges.streams_live)],
    ["entries read/s", perSecond("entries_read", amount)],
    ["frames delivered/s", perSecond("frames_written", amount)],
    ["bytes delivered/s", perSecond("bytes_written", bytes)],
    ["held for clients", bytes(now.gauges.outbox_bytes)],
    ["memory", bytes(now.process.rss_bytes)],
  ];
  $("tiles").replaceChildren(...tiles.map(([name, value]) =>
    element("div", [element("b", value), element("span", name, "quiet")], "tile")));
}

function showTrend(value) {
  trend.push(value);
  if (trend.length > TREND_POINTS) trend.shift();
  const top = Math.max(1, ...trend);
  const start = TREND_POINTS - trend.length;
  $("curve").setAttribute("points",
    trend.map((point, place) => `${start + place},${54 - (point / top) * 52}`).join(" "));
}

function showLatency(latency) {
  rows($("latency"), ["stage", "count", "p50", "p90", "p99", "p99.9", "max"],
    Object.entries(latency).map(([stage, all]) => [STAGES[stage] ?? stage, amount(all.count),
      ...[all.p50, all.p90, all.p99, all.p999, all.max].map((us) => (all.count ? duration(us) : "–"))]));
}

function bar(queue) {
  const share = (part) => `${Math.min(100, (100 * part) / queue.capacity)}%`;
  const most = element("i", "", "max");
  most.style.width = share(queue.depth_max);
  const fill = element("i");
  fill.style.width = share(queue.depth);
  return element("div", [most, fill], queue.depth * 2 > queue.capacity ? "bar warn" : "bar");
}

function showQueues(queues) {
  rows($("queues"), ["queue", "now and most", "depth", "refused"], queues.map((queue) =>
    [queue.name, element("td", bar(queue), "wide"), `${queue.depth} of ${queue.capacity}`, amount(queue.refused)]));
}

function showRedis(now) {
  rows($("redis"), ["role", "state", "for"], [
    ...Object.entries(now.redis).map(([role, link]) => [role,
      element("td", link.up ? "up" : `down: ${link.detail}`, link.up ? "up" : "down"), age(link.since_s)]),
    ["lease of the instance id", element("td", now.lease, now.lease === "held" ? "up" : "down"), ""],
  ]);
}

function showCounters(now) {
  const isShown = ([, value]) => value !== 0 || $("zeros").checked;
  rows($("counters"), ["since the start", "total", "a second"],
    Object.entries(now.counters).filter(isShown).map(([name, value]) => {
      const speed = rate(now, name);
      return [name.replaceAll("_", " "), amount(value), speed === null ? "–" : amount(speed)];
    }));
}

function show(now) {
  showState(now.draining ? "draining" : now.ready ? "ready" : "not ready", now.ready, now.not_ready);
  $("who").textContent = `${now.instance} · version ${now.version} · up ${age(now.uptime_s)} · ` +
    `${now.process.threads.length} threads · ${amount(now.process.open_fds)} of ${amount(now.process.max_fds)} descriptors`;
  showTiles(now);
  showTrend(rate(now, "frames_written") ?? 0);
  showLatency(now.latency_us);
  showQueues(now.queues);
  showRedis(now);
  showCounters(now);
  before = now;
}

async function poll() {
  try {
    const answer = await fetch("stats.json", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
    $("main").className = "";
  } catch (error) {
    showState("not reachable", false, [String(error.message ?? error)]);
    $("main").className = "stale";
  }
  setTimeout(poll, PERIOD_MS);
}
poll();
