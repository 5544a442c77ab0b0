// A stand-in for the balancer's page and JSON, with synthetic figures: for looking at the page, and for its test.
//   node mock.mjs [PORT] [busy|waiting|empty|hostile]
// Loads are log-normal as in the demo; the boot placement is modelled by summing experts per rank, the measured
// map by small noise around the mean. Nothing here comes from a real run.

import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const PAGE = new URL("../../balancer/src/page/", import.meta.url);
const FILES = {
  "/": ["index.html", "text/html; charset=utf-8"],
  "/page.css": ["page.css", "text/css; charset=utf-8"],
  ...Object.fromEntries(
    ["page.js", "words.js", "heat.js", "charts.js", "tables.js"].map((file) => [`/${file}`, [file, "text/javascript; charset=utf-8"]]),
  ),
};
/** What a hostile agent might call its unit. */
export const MARKUP = "<img src=x onerror=document.title='owned'>";
const WINDOW_STEPS = 400;
const PLAN_EVERY_WINDOWS = 4;

/** Numbers in 0..1 from a seed (mulberry32). */
function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const normal = (next) => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());

export const UNITS = [
  { unit: "prefill", role: "prefill", layers: 58, experts: 256, nodes: 4, slots: 9, spare: 1, noise: 0.0015, sigma: 0.5 },
  { unit: "decode", role: "decode", layers: 58, experts: 256, nodes: 18, slots: 2, spare: 1, noise: 0.016, sigma: 0.5 },
  { unit: "v2lite", role: "prefill", layers: 26, experts: 64, nodes: 1, slots: 9, spare: 1, noise: 0.004, sigma: 0.4 },
];

function heatOf(shape, window) {
  const next = random(window * 7919 + shape.layers * shape.nodes);
  const ranks = shape.nodes * 8;
  const measured = [];
  const boot = [];
  for (let layer = 0; layer < shape.layers; layer++) {
    const experts = Array.from({ length: shape.experts }, () => Math.exp(shape.sigma * normal(next)));
    const slots = ranks * shape.slots;
    const replicas = experts.map((_, e) => Math.ceil((slots - e) / shape.experts));
    const row = Array(ranks).fill(0);
    for (let slot = 0; slot < slots; slot++) {
      const expert = slot % shape.experts;
      row[Math.floor(slot / shape.slots)] += (1000 * experts[expert]) / replicas[expert];
    }
    const mean = row.reduce((a, b) => a + b, 0) / ranks;
    boot.push(row);
    const drift = 1 + 0.6 * (window % PLAN_EVERY_WINDOWS); // a plan fits its own window best
    measured.push(Array.from({ length: ranks }, () => mean * (1 + drift * shape.noise * normal(next))));
  }
  return { measured, boot };
}

const maxMean = (rows) =>
  rows.reduce((a, row) => a + (Math.max(...row) * row.length) / row.reduce((x, y) => x + y, 0), 0) / rows.length;

/** The answers of one moment: `windows` complete windows have passed. */
function moment(scenario, windows, elapsedMs) {
  const waiting = scenario === "waiting";
  const epochOf = (w) => 1 + Math.floor(w / PLAN_EVERY_WINDOWS);
  const digest = (unit, epoch) => Array.from({ length: 64 }, (_, i) => "0123456789abcdef"[(epoch * 31 + unit.length * 7 + i * i * epoch + i * 5) % 16]).join("");
  const units = scenario === "empty" ? [] : UNITS;
  const agents = units.flatMap((shape) =>
    Array.from({ length: shape.nodes }, (_, node) => ({
      node: `${shape.unit}-${node}`,
      unit: shape.unit,
      ranks: Array.from({ length: 8 }, (_, i) => node * 8 + i),
      connected: !waiting && !(shape.unit === "decode" && node === 11),
      applied_epoch: waiting ? 1 : epochOf(windows) - (shape.unit === "decode" && node === 11 ? 2 : 0),
    })),
  );
  const status = {
    version: "0.1.0",
    cluster: "mock",
    term: "1.3",
    agents,
    units: units.map((shape, i) => {
      const next = random(Math.floor(elapsedMs / 1000) + shape.nodes);
      const ranks = shape.nodes * 8;
      const decode = shape.role === "decode";
      const rank_gauges = Array.from({ length: waiting ? 0 : ranks }, (_, rank) => ({
        rank,
        node: `${shape.unit}-${Math.floor(rank / 8)}`,
        kv_used_tokens: Math.round((decode ? 291_000 : 64_000) * (1 + 0.018 * normal(next))),
        kv_total_tokens: 430_000,
        requests: decode ? Math.max(0, Math.round(60 + 2 * normal(next))) : Math.max(0, Math.round(5 + 1.2 * normal(next))),
        step_us_p50: Math.round((decode ? 41_200 : 238_000) * (1 + 0.004 * normal(next))),
        step_us_p99: Math.round((decode ? 47_900 : 291_000) * (1 + 0.006 * normal(next))),
      }));
      const top = (key) => (Math.max(...rank_gauges.map((g) => g[key])) * ranks) / rank_gauges.reduce((a, g) => a + g[key], 0);
      const phase = (windows % PLAN_EVERY_WINDOWS) / PLAN_EVERY_WINDOWS;
      const expert = maxMean(heatOf(shape, windows).measured);
      return {
        unit: scenario === "hostile" && i === 0 ? MARKUP : shape.unit,
        role: shape.role,
        state: waiting ? "waiting for agents" : phase === 0 ? "applying" : "steady",
        layers: shape.layers,
        experts: shape.experts,
        ranks,
        slots_per_rank: shape.slots,
        spare_per_rank: shape.spare,
        head: { epoch: waiting ? 1 : epochOf(windows), digest: digest(shape.unit, waiting ? 1 : epochOf(windows)) },
        ranks_connected: waiting ? 0 : decode ? ranks - 8 : ranks,
        windows_complete: waiting ? 0 : windows,
        last_decision: scenario === "hostile" ? MARKUP : waiting ? "" : phase === 0 ? `committed epoch ${epochOf(windows)}: predicted gain 4.1 % is worth 118 moves` : "kept the plan: predicted gain 0.2 % is below the threshold of 0.5 %",
        imbalance: waiting ? {} : decode ? { expert, decode_kv: top("kv_used_tokens"), decode_requests: top("requests") } : { expert, prefill_tokens: 1.012, prefill_attention: 1.027 },
        rank_gauges,
      };
    }),
  };
  const plans = (shape) =>
    waiting
      ? []
      : Array.from({ length: epochOf(windows) }, (_, i) => {
          const epoch = epochOf(windows) - i;
          const kind = epoch === 1 ? "boot" : epoch % 3 === 2 ? "moves" : "weights";
          const next = random(epoch * 97 + shape.nodes);
          const moves = kind === "moves" ? Math.round(shape.layers * (1 + 3 * next())) : 0;
          const after = 1 + shape.noise * (1.5 + next());
          return {
            epoch,
            digest: digest(shape.unit, epoch),
            kind,
            committed_ms: Date.now() - i * 40_000,
            moves,
            bytes: moves * 44_040_192,
            layers_reweighted: kind === "boot" ? 0 : shape.layers,
            imbalance_before: kind === "boot" ? 1.9 : after + 0.04 + 0.3 * next() * (kind === "moves"),
            imbalance_after: kind === "boot" ? 1.9 : after,
            imbalance_bound: 1,
            from_step: (epoch - 1) * PLAN_EVERY_WINDOWS * WINDOW_STEPS,
            to_step: ((epoch - 1) * PLAN_EVERY_WINDOWS + 1) * WINDOW_STEPS,
          };
        }).slice(0, 50);
  return { status, plans, epochOf };
}

/**
 * Starts the server on loopback; `port` 0 picks a free one. A new window completes every `windowMs`; with 0 the
 * figures stand still. Resolves to `{ url, port, paths, close }`.
 */
export function startMock({ port = 0, scenario = "busy", windowMs = 5_000 } = {}) {
  const started = Date.now() - 22 * windowMs;
  const paths = [];
  const server = createServer((request, response) => {
    const url = new URL(request.url, "http://mock");
    paths.push(url.pathname);
    const send = (code, type, body) => response.writeHead(code, { "content-type": type, "cache-control": "no-store" }).end(body);
    const json = (value) => send(200, "application/json", JSON.stringify(value));
    if (FILES[url.pathname]) {
      const [file, type] = FILES[url.pathname];
      return send(200, type, readFileSync(new URL(file, PAGE)));
    }
    const elapsed = Date.now() - started;
    const windows = windowMs ? Math.floor(elapsed / windowMs) : 22;
    const now = moment(scenario, windows, windowMs ? elapsed : 0);
    if (url.pathname === "/api/v1/status") return json(now.status);
    const [, name, what] = url.pathname.match(/^\/api\/v1\/units\/([^/]+)\/(plans|heat)$/) ?? [];
    const asked = decodeURIComponent(name ?? "");
    const shape = asked === MARKUP ? UNITS[0] : UNITS.find((unit) => unit.unit === asked);
    if (shape && what === "plans") return json({ plans: now.plans(shape) });
    if (shape && what === "heat" && scenario !== "waiting") {
      const steps = { from_step: (windows - 1) * WINDOW_STEPS, to_step: windows * WINDOW_STEPS };
      return json({ epoch: now.epochOf(windows), ...steps, layers: shape.layers, ranks: shape.nodes * 8, ...heatOf(shape, windows) });
    }
    send(404, "application/json", JSON.stringify({ error: "not found" }));
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", () =>
      resolve({
        url: `http://127.0.0.1:${server.address().port}/`,
        port: server.address().port,
        paths,
        close: () => new Promise((done) => {
          server.close(done);
          server.closeAllConnections();
        }),
      }),
    );
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const mock = await startMock({ port: Number(process.argv[2] ?? 7402), scenario: process.argv[3] ?? "busy" });
  console.log(`the page with synthetic figures: ${mock.url}`);
}
