// The balancer's live page: asks for JSON once a second and draws it. No build step, no outside resources.
//
// In order: the unit, the tabs, the clockwork; how things are drawn lies in the files beside it.

import { Bars, drawLine } from "./charts.js";
import { heat } from "./heat.js";
import { PLANS_LIMIT, showAgents, showPlans } from "./tables.js";
import { $, clock, count, empty, isNumber, milliseconds, orDash, ratio, say, sum, whole } from "./words.js";

const POLL_MS = 1_000; // one status answer is a few kB
const BACK_OFF_MAX_MS = 10_000; // a returning balancer is seen within ten seconds
const ANSWER_MAX_MS = 4_000; // an answer that takes longer counts as none
const REFRESH_MS = 10_000; // plans and heat are asked again at least this often, else only when the unit changed
const HISTORY_MS = 10 * 60_000; // the line keeps ten minutes ...
const HISTORY_MAX = 1_200; // ... and at most this many points a unit

const IMBALANCES = [
  ["expert", "Experts"],
  ["prefill_tokens", "Prefill tokens"],
  ["prefill_attention", "Prefill attention"],
  ["decode_kv", "Decode KV"],
  ["decode_requests", "Decode requests"],
];

// ---- the unit ----

const view = { status: null, name: null, details: new Map(), history: new Map() };
const bars = {
  kv: new Bars("kv", "KV tokens per rank", "tokens"),
  requests: new Bars("requests", "Requests per rank", "requests"),
};

const selected = () => view.status?.units.find((unit) => unit.unit === view.name);

function showTiles(imbalance) {
  const tiles = $("tiles");
  if (!tiles.children.length) {
    for (const [key, name] of IMBALANCES) {
      const tile = document.createElement("div");
      tile.className = "tile";
      tile.title = "imbalance: the most loaded rank over the mean, 1 is even";
      const value = document.createElement("span");
      value.id = `tile-${key}`;
      const label = document.createElement("span");
      label.className = "label";
      label.textContent = name;
      tile.append(label, value);
      tiles.append(tile);
    }
  }
  for (const [key] of IMBALANCES) {
    const measured = isNumber(imbalance?.[key]);
    say($(`tile-${key}`), measured ? ratio(imbalance[key]) : "not measured");
    $(`tile-${key}`).className = measured ? "value" : "value none";
  }
}

function showFacts(unit) {
  const gauges = unit.rank_gauges ?? [];
  const slowest = (key) => (gauges.some((g) => isNumber(g[key])) ? Math.max(...gauges.map((g) => g[key] ?? 0)) : NaN);
  say($("f-state"), unit.state ?? "–");
  say($("f-role"), unit.role ?? "–");
  say($("f-epoch"), orDash(unit.head?.epoch, whole));
  say($("f-digest"), unit.head?.digest ? String(unit.head.digest).slice(0, 12) : "–");
  $("f-digest").title = unit.head?.digest ?? "";
  say($("f-shape"), `${whole(unit.layers)} × ${whole(unit.experts)}`);
  say($("f-ranks"), `${whole(unit.ranks_connected)} of ${whole(unit.ranks)}`);
  say($("f-slots"), `${whole(unit.slots_per_rank)} + ${whole(unit.spare_per_rank)} spare`);
  say($("f-windows"), isNumber(unit.windows_complete) ? `${whole(unit.windows_complete)} complete` : "–");
  const [p50, p99] = [slowest("step_us_p50"), slowest("step_us_p99")];
  say($("f-step"), isNumber(p99) ? `${milliseconds(p50)} / ${milliseconds(p99)}` : "–");
  say($("f-decision"), unit.last_decision || "none yet");
  $("f-decision").parentElement.title = unit.last_decision ?? "";
}

function showBars(unit) {
  const gauges = [...(unit.rank_gauges ?? [])].sort((a, b) => a.rank - b.rank);
  for (const [chart, key, words] of [
    [bars.kv, "kv_used_tokens", "No rank has reported its KVCache yet."],
    [bars.requests, "requests", "No rank has reported its requests yet."],
  ]) {
    const known = gauges.filter((gauge) => isNumber(gauge[key]));
    chart.show(known, known.map((gauge) => gauge[key]));
    empty(`${chart.id}-empty`, known.length ? null : words);
  }
  const totals = gauges.map((gauge) => gauge.kv_total_tokens).filter((total) => total > 0);
  const used = sum(gauges.map((gauge) => gauge.kv_used_tokens ?? 0));
  say($("kv-sub"), totals.length ? `${((100 * used) / sum(totals)).toFixed(1)} % of ${count(totals[0])} a rank` : "");
  say($("requests-sub"), gauges.length ? `${count(sum(gauges.map((g) => g.requests ?? 0)))} in all` : "");
}

function showLine() {
  const points = view.history.get(view.name) ?? [];
  drawLine(points);
  say($("line-sub"), points.length ? "as polled, max / mean" : "");
  empty("line-empty", points.length ? null : "The expert imbalance is not measured yet: the first load window is not complete.");
}

function showDetails(unit) {
  const details = view.details.get(unit.unit);
  showPlans(details?.plans ?? []);
  if (!details?.plans) empty("plans-empty", details?.plansError ?? "Asking for the plans…");
  const answer = details?.heat;
  if (answer && answer.measured?.length) {
    if (heat.shown !== answer) heat.show((heat.shown = answer));
    say($("heat-window"), `last complete window, steps ${whole(answer.from_step)}–${whole(answer.to_step)}, epoch ${whole(answer.epoch)}`);
    empty("heat-empty", null);
  } else {
    heat.shown = null;
    heat.clear();
    say($("heat-window"), "");
    const waiting = unit.windows_complete > 0 && !details?.key ? "Asking for the last window…" : "No load window is complete yet: the map appears with the first one.";
    empty("heat-empty", details?.heatError ?? waiting);
  }
  $("legend").style.visibility = answer ? "visible" : "hidden";
}

function render() {
  const { status } = view;
  if (!status) return;
  const agents = status.agents ?? [];
  say($("cluster"), status.cluster ?? "");
  say($("version"), status.version ?? "–");
  say($("term"), String(status.term ?? "–"));
  say($("agents-count"), `${agents.filter((agent) => agent.connected).length} of ${agents.length} connected`);
  showTabs(status.units);
  const unit = selected();
  $("no-units").hidden = Boolean(unit);
  $("unit").hidden = !unit;
  if (!unit) return;
  showFacts(unit);
  showTiles(unit.imbalance);
  showBars(unit);
  showLine();
  showDetails(unit);
  showAgents(agents.filter((agent) => agent.unit === unit.unit), unit);
}

// ---- the tabs; the unit's name is the URL's fragment ----

/** The unit that the fragment names, else the first. */
function chooseUnit() {
  let wanted = location.hash.slice(1);
  try {
    wanted = decodeURIComponent(wanted);
  } catch {
    // A fragment that is no encoded text names no unit.
  }
  const names = view.status?.units.map((unit) => unit.unit) ?? [];
  const name = names.includes(wanted) ? wanted : (names[0] ?? null);
  if (name !== view.name) {
    view.name = name;
    heat.cursor = null;
    for (const chart of Object.values(bars)) chart.cursor = null;
  }
}

function showTabs(units) {
  const tabs = $("tabs");
  const names = JSON.stringify(units.map((unit) => unit.unit));
  if (tabs.names !== names) {
    tabs.names = names;
    tabs.replaceChildren(
      ...units.map((unit) => {
        const tab = document.createElement("button");
        Object.assign(tab, { type: "button", unit: unit.unit });
        tab.setAttribute("role", "tab");
        tab.setAttribute("aria-controls", "main");
        tab.title = "the unit, and its expert imbalance (max / mean)";
        tab.append(document.createTextNode(unit.unit), document.createElement("small"));
        tab.addEventListener("click", () => select(unit.unit));
        return tab;
      }),
    );
  }
  [...tabs.children].forEach((tab, i) => {
    const at = tab.unit === view.name;
    tab.setAttribute("aria-selected", at);
    tab.tabIndex = at ? 0 : -1;
    say(tab.lastChild, isNumber(units[i].imbalance?.expert) ? ratio(units[i].imbalance.expert) : units[i].state ?? "");
  });
}

function select(name) {
  location.hash = encodeURIComponent(name);
}

function listenToTabs() {
  $("tabs").addEventListener("keydown", (event) => {
    const names = view.status?.units.map((unit) => unit.unit) ?? [];
    const at = names.indexOf(view.name);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined || !names.length) return;
    event.preventDefault();
    const next = (to + names.length) % names.length;
    select(names[next]);
    $("tabs").children[next].focus();
  });
  window.addEventListener("hashchange", () => {
    chooseUnit();
    render();
    refreshDetails(true);
  });
}

// ---- the clockwork ----

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(ANSWER_MAX_MS), cache: "no-store" });
  if (!answer.ok) {
    throw Object.assign(new Error(`the balancer answered ${answer.status} to ${path}`), { status: answer.status });
  }
  return answer.json();
}

/** Plans and heat of the selected unit, when they may have changed. */
async function refreshDetails(force = false) {
  const unit = selected();
  if (!unit) return;
  const key = `${unit.head?.epoch} ${unit.windows_complete}`;
  const known = view.details.get(unit.unit);
  const fresh = known && known.key === key && performance.now() - known.at < REFRESH_MS;
  if (known?.asking || (fresh && !force)) return;
  view.details.set(unit.unit, { ...known, asking: true });
  const path = `api/v1/units/${encodeURIComponent(unit.unit)}`;
  const [plans, windows] = await Promise.allSettled([
    ask(`${path}/plans?limit=${PLANS_LIMIT}`),
    // Before the first complete window the balancer has no heat map, and says 404: no failure, but not worth asking.
    unit.windows_complete > 0 ? ask(`${path}/heat`).catch((error) => (error.status === 404 ? null : Promise.reject(error))) : null,
  ]);
  const reason = (settled) => (settled.reason ? `No answer: ${settled.reason.message}.` : undefined);
  view.details.set(unit.unit, {
    key,
    at: performance.now(),
    plans: plans.value?.plans ?? known?.plans,
    plansError: reason(plans),
    heat: windows.status === "fulfilled" ? windows.value : known?.heat,
    heatError: reason(windows),
  });
  if (view.name === unit.unit) render();
}

function remember(status) {
  const at = Date.now();
  for (const unit of status.units) {
    if (!isNumber(unit.imbalance?.expert)) continue;
    const points = view.history.get(unit.unit) ?? [];
    points.push({ at, value: unit.imbalance.expert, epoch: unit.head?.epoch });
    while (points.length > HISTORY_MAX || at - points[0].at > HISTORY_MS) points.shift();
    view.history.set(unit.unit, points);
  }
}

const link = { failures: 0, lastAnswer: null, since: null, nextTry: 0, timer: 0 };

function showLink() {
  const lost = link.failures > 0;
  document.body.dataset.link = lost ? "lost" : link.lastAnswer ? "live" : "first";
  document.title = `${lost ? "(no answer) " : ""}Evenkeel${view.status?.cluster ? ` · ${view.status.cluster}` : ""}`;
  if (!lost) {
    say($("link"), link.lastAnswer ? "live" : "asking the balancer…");
    return say($("link-detail"), "");
  }
  say($("link"), link.lastAnswer ? `no answer since ${clock(link.lastAnswer)}` : "no answer yet");
  const wait = Math.max(0, Math.ceil((link.nextTry - Date.now()) / 1000));
  say($("link-detail"), wait > 0 ? `next try in ${wait} s` : "trying…");
}

async function poll() {
  clearTimeout(link.timer);
  link.nextTry = 0;
  let wait = POLL_MS;
  try {
    const status = await ask("api/v1/status");
    if (!Array.isArray(status.units)) throw new Error("the balancer's status has no units");
    Object.assign(link, { failures: 0, lastAnswer: Date.now() });
    view.status = status;
    remember(status);
    chooseUnit();
    render();
    refreshDetails();
  } catch (error) {
    link.failures += 1;
    wait = Math.min(BACK_OFF_MAX_MS, POLL_MS * 2 ** (link.failures - 1));
    $("link").title = error.message;
  }
  link.nextTry = Date.now() + wait;
  link.timer = setTimeout(poll, wait);
  showLink();
}

heat.listen();
listenToTabs();
showTiles({});
$("retry").addEventListener("click", poll);
new ResizeObserver(showLine).observe($("line"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => heat.draw());
setInterval(() => link.failures > 0 && showLink(), 500);
poll();
