// The balancer's live page: asks for JSON once a second and draws it. No build step, no outside resources.
//
// In order: words and numbers, colours, heat maps, bars, the line, tables, the unit, the tabs, the clockwork.
// Text from the balancer enters the document only as text nodes, never as markup.

const POLL_MS = 1_000; // one status answer is a few kB
const BACK_OFF_MAX_MS = 10_000; // a returning balancer is seen within ten seconds
const ANSWER_MAX_MS = 4_000; // an answer that takes longer counts as none
const REFRESH_MS = 10_000; // plans and heat are asked again at least this often, else only when the unit changed
const HISTORY_MS = 10 * 60_000; // the line keeps ten minutes ...
const HISTORY_MAX = 1_200; // ... and at most this many points a unit
const PLANS_LIMIT = 50;

const IMBALANCES = [
  ["expert", "Experts"],
  ["prefill_tokens", "Prefill tokens"],
  ["prefill_attention", "Prefill attention"],
  ["decode_kv", "Decode KV"],
  ["decode_requests", "Decode requests"],
];

const $ = (id) => document.getElementById(id);

// ---- words and numbers ----

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const orDash = (value, text) => (isNumber(value) ? text(value) : "–");
const ratio = (value) => orDash(value, (v) => v.toFixed(3));
const whole = (value) => orDash(value, (v) => Math.round(v).toLocaleString("en-US"));
const plural = (n, one, many = `${one}s`) => `${whole(n)} ${n === 1 ? one : many}`;

/** 12,345 as it is, larger numbers with three digits and k, M or G. */
function count(value) {
  if (!isNumber(value)) return "–";
  if (Math.abs(value) < 10_000) return Number.isInteger(value) ? whole(value) : value.toFixed(1);
  const step = ["", "k", "M", "G", "T"];
  let power = 0;
  while (Math.abs(value) >= 999.5 && power < step.length - 1) [value, power] = [value / 1000, power + 1];
  return `${value.toPrecision(3)} ${step[power]}`;
}

/** The same for round numbers on an axis: no zeros after the point. */
const tickText = (value) => count(value).replace(/(\.\d*?)0+(?= |$)/, "$1").replace(/\.(?= |$)/, "");

/** Bytes with binary prefixes and three digits. */
function bytes(value) {
  if (!isNumber(value)) return "–";
  const step = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (value >= 1023.5 && power < step.length - 1) [value, power] = [value / 1024, power + 1];
  return `${power === 0 ? value : value.toPrecision(value >= 1000 ? 4 : 3)} ${step[power]}`;
}

const milliseconds = (us) => orDash(us, (v) => (v < 1000 ? `${Math.round(v)} µs` : `${(v / 1000).toPrecision(3)} ms`));
const clock = (ms) => orDash(ms, (v) => new Date(v).toLocaleTimeString("en-GB"));
const ago = (ms) => (ms < 90_000 ? `${Math.round(ms / 1000)} s` : `${Math.round(ms / 60_000)} min`);

/** 0,1,2,5 as "0–2, 5". */
function ranges(ranks) {
  const runs = [];
  for (const rank of [...ranks].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last && rank === last[1] + 1) last[1] = rank;
    else runs.push([rank, rank]);
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(", ");
}

/** Sets text only where it differs: screen readers and selections are left in peace. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function empty(id, words) {
  say($(id), words ?? "");
  $(id).hidden = !words;
}

const sum = (values) => values.reduce((a, b) => a + b, 0);
const maxOverMean = (values) => (sum(values) > 0 ? (Math.max(...values) * values.length) / sum(values) : NaN);

// ---- colours: from deep blue over teal to yellow, on a curve in OKLab ----
// Lightness rises evenly, so the order survives grey print and every colour deficiency; the ends lie on the
// blue-yellow axis, which the common deficiencies keep.

const DEEP_BLUE = [0.27, -0.015, -0.125];
const TEAL = [0.6, -0.13, -0.06]; // the curve's control point: its lightness is the mean of the ends'
const YELLOW = [0.93, -0.035, 0.165];

/** The colour at `t` in 0..1 as [r, g, b], 0..255 each (OKLab to sRGB after B. Ottosson). */
function colour(t) {
  const u = 1 - t;
  const [L, a, b] = DEEP_BLUE.map((from, i) => u * u * from + 2 * u * t * TEAL[i] + t * t * YELLOW[i]);
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return linear.map((c) => {
    const clamped = Math.min(1, Math.max(0, c));
    const encoded = clamped <= 0.0031308 ? 12.92 * clamped : 1.055 * clamped ** (1 / 2.4) - 0.055;
    return Math.round(255 * encoded);
  });
}

const RAMP = Array.from({ length: 256 }, (_, i) => colour(i / 255));

/** One scale for both maps: from the least cell to the 99.5 % quantile, so that one outlier does not darken the rest. */
function scaleOf(cells) {
  const sorted = Float64Array.from(cells).sort();
  const low = Math.max(0, Math.floor(sorted[0] * 10) / 10);
  const high = Math.max(1.1, low + 0.1, Math.ceil(sorted[Math.floor((sorted.length - 1) * 0.995)] * 10) / 10);
  return { low, high, clipped: sorted.at(-1) > high };
}

const rampIndex = (scale, value) =>
  Math.round(255 * Math.min(1, Math.max(0, (value - scale.low) / (scale.high - scale.low))));

function drawLegend(scale) {
  const canvas = $("legend-ramp");
  const context = canvas.getContext("2d");
  const image = context.createImageData(256, 1);
  RAMP.forEach((rgb, i) => image.data.set([...rgb, 255], i * 4));
  context.putImageData(image, 0, 0);
  say($("legend-low"), `load over the layer’s mean  ${scale.low.toFixed(1)}`);
  say($("legend-high"), `${scale.clipped ? "≥ " : ""}${scale.high.toFixed(1)}`);
  $("legend-mean").style.left = `${(100 * rampIndex(scale, 1)) / 255}%`;
}

// ---- heat maps ----

/** The least "nice" step that keeps labels `room` pixels apart. */
const tickStep = (steps, pixelsPerCell, room) => steps.find((s) => s * pixelsPerCell >= room) ?? steps.at(-1);

/** A layer x rank map on a canvas; one cell a pixel in an image that is then enlarged. */
class HeatMap {
  static left = 40; // room for layer numbers
  static top = 4; // room for the cursor
  static bottom = 20; // room for rank numbers

  constructor(canvas) {
    this.canvas = canvas;
    this.data = null;
  }

  /** `rows[layer][rank]` is a ratio to the layer's mean. */
  set(rows, scale) {
    const [layers, ranks] = [rows.length, rows[0].length];
    const image = new ImageData(ranks, layers);
    rows.forEach((row, layer) =>
      row.forEach((value, rank) => image.data.set([...RAMP[rampIndex(scale, value)], 255], (layer * ranks + rank) * 4)),
    );
    const cells = new OffscreenCanvas(ranks, layers);
    cells.getContext("2d").putImageData(image, 0, 0);
    this.data = { layers, ranks, cells };
  }

  draw(cursor) {
    if (!this.data) return;
    const { canvas, data } = this;
    const dpr = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * dpr), Math.round(canvas.clientHeight * dpr)];
    if (width === 0) return;
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const left = Math.round(HeatMap.left * dpr);
    // Cells of one size where that costs at most an eighth of the room, else cells that differ by a pixel.
    const fit = (room, cells) => {
      const even = Math.floor(room / cells);
      return even * cells >= room * 0.875 ? even : room / cells;
    };
    const cw = fit(width - left - 1, data.ranks);
    const top = Math.round(HeatMap.top * dpr);
    const ch = fit(height - top - Math.round(HeatMap.bottom * dpr), data.layers);
    this.at = { left: left / dpr, top: top / dpr, cw: cw / dpr, ch: ch / dpr };

    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    context.drawImage(data.cells, left, top, cw * data.ranks, ch * data.layers);

    const style = getComputedStyle(document.body);
    context.fillStyle = style.getPropertyValue("--soft");
    context.font = `${11 * dpr}px ${style.fontFamily}`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const layerStep = tickStep([1, 2, 5, 10, 20, 50, 100], ch / dpr, 24);
    for (let layer = 0; layer < data.layers; layer += layerStep) {
      context.fillText(layer, left - 5 * dpr, top + Math.max(3 * dpr, (layer + 0.5) * ch));
    }
    context.textAlign = "center";
    const rankStep = tickStep([1, 2, 4, 8, 16, 32, 64, 128, 256], cw / dpr, 30);
    const under = top + ch * data.layers + 10 * dpr;
    for (let rank = 0; rank < data.ranks; rank += rankStep) context.fillText(rank, left + (rank + 0.5) * cw, under);
    context.textAlign = "right";
    context.fillText("rank", left - 5 * dpr, under);
    context.save();
    context.translate(7 * dpr, top + (ch * data.layers) / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText("layer", 0, 0);
    context.restore();

    if (cursor) {
      const edge = Math.max(2, 2 * dpr);
      const box = [left + cursor.rank * cw - edge, top + cursor.layer * ch - edge, cw + 2 * edge, ch + 2 * edge];
      context.lineWidth = edge;
      context.strokeStyle = style.getPropertyValue("--panel");
      context.strokeRect(box[0] - 1, box[1] - 1, box[2] + 2, box[3] + 2);
      context.strokeStyle = style.getPropertyValue("--ink");
      context.strokeRect(...box);
    }
  }

  /** The cell under a pointer event, if any. */
  cellAt(event) {
    if (!this.data || !this.at) return null;
    const rank = Math.floor((event.offsetX - this.at.left) / this.at.cw);
    const layer = Math.floor((event.offsetY - this.at.top) / this.at.ch);
    const inside = rank >= 0 && rank < this.data.ranks && layer >= 0 && layer < this.data.layers;
    return inside ? { layer, rank } : null;
  }
}

const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** Both maps with one scale, one cursor and one line of words. */
const heat = {
  maps: [new HeatMap($("heat-measured")), new HeatMap($("heat-boot"))],
  rows: null,
  cursor: null,

  show(answer) {
    // Ratios to each layer's own mean; a layer without load is even by definition.
    const toMean = (rows) =>
      rows.map((row) => {
        const mean = sum(row) / row.length;
        return row.map((load) => (mean > 0 ? load / mean : 1));
      });
    this.rows = [toMean(answer.measured), toMean(answer.boot)];
    const scale = scaleOf(this.rows.flat(2));
    drawLegend(scale);
    this.maps.forEach((map, i) => map.set(this.rows[i], scale));
    [$("heat-measured-max"), $("heat-boot-max")].forEach((element, i) => {
      const mean = sum(this.rows[i].map((row) => Math.max(...row))) / this.rows[i].length;
      say(element, `max / mean ${ratio(mean)}`);
      element.title = "the most loaded rank over the mean, averaged over the layers";
    });
    this.draw();
  },

  clear() {
    this.rows = this.cursor = null;
    for (const map of this.maps) map.data = null;
    say($("heat-readout"), "");
  },

  draw() {
    if (!this.rows) return;
    const [layers, ranks] = [this.rows[0].length, this.rows[0][0].length];
    if (this.cursor && (this.cursor.layer >= layers || this.cursor.rank >= ranks)) this.cursor = null;
    for (const map of this.maps) map.draw(this.cursor);
    if (!this.cursor) return say($("heat-readout"), "Point at a cell, or move with the arrow keys, to read it.");
    const { layer, rank } = this.cursor;
    const [measured, boot] = this.rows.map((rows) => rows[layer][rank].toFixed(3));
    say($("heat-readout"), `layer ${layer}, rank ${rank}: ${measured} × the mean with Evenkeel, ${boot} × without`);
  },

  listen() {
    for (const map of this.maps) {
      const { canvas } = map;
      const move = (cursor) => {
        this.cursor = cursor;
        this.draw();
      };
      canvas.addEventListener("pointermove", (event) => move(map.cellAt(event)));
      canvas.addEventListener("pointerleave", () => move(null));
      canvas.addEventListener("blur", () => move(null));
      canvas.addEventListener("keydown", (event) => {
        const step = ARROWS[event.key];
        if (!step || !map.data) return;
        event.preventDefault();
        const clamp = (value, cells) => Math.min(cells - 1, Math.max(0, value));
        const from = this.cursor ?? { layer: 0, rank: 0 };
        const moved = this.cursor
          ? { layer: clamp(from.layer + step[0], map.data.layers), rank: clamp(from.rank + step[1], map.data.ranks) }
          : from;
        move(moved);
      });
      new ResizeObserver(() => this.draw()).observe(canvas);
    }
  },
};

// ---- bars and the line ----

/** An SVG element with attributes and, perhaps, text. */
function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** The least of 1, 2, 2.5, 5 x 10^n that is not below `value`. */
function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value * (1 - 1e-9)) * power;
}

/** One bar per rank, the mean as a dashed line, the highest bar marked; pointer and arrow keys read a bar. */
class Bars {
  static left = 44;
  static right = 62; // room for the mean's label
  static bottom = 18;
  static top = 8;

  constructor(id, title, noun) {
    Object.assign(this, { id, title, noun, element: $(id), values: [], gauges: [], cursor: null });
    const listen = (type, to) => this.element.addEventListener(type, to);
    listen("pointermove", (event) => this.move(this.barAt(event)));
    listen("pointerleave", () => this.move(null));
    listen("blur", () => this.move(null));
    listen("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || !this.values.length) return;
      event.preventDefault();
      const next = this.cursor === null ? 0 : this.cursor + step;
      this.move(Math.min(this.values.length - 1, Math.max(0, next)));
    });
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /** `gauges` ordered by rank, `values` one for each; empty where nothing is known. */
  show(gauges, values) {
    Object.assign(this, { gauges, values });
    const imbalance = maxOverMean(values);
    say($(`${this.id}-title`), this.title + (isNumber(imbalance) ? `, max / mean ${ratio(imbalance)}` : ""));
    this.draw();
  }

  barAt(event) {
    const bounds = this.element.getBoundingClientRect();
    const pitch = (bounds.width - Bars.left - Bars.right) / this.values.length;
    const at = Math.floor((event.clientX - bounds.left - Bars.left) / pitch);
    return at >= 0 && at < this.values.length ? at : null;
  }

  move(cursor) {
    if (cursor === this.cursor) return;
    this.cursor = cursor;
    this.draw();
  }

  draw() {
    const { element, values } = this;
    const [width, height] = [element.clientWidth, element.clientHeight];
    if (!width) return;
    if (!values.length) {
      element.replaceChildren();
      return say($(`${this.id}-readout`), "");
    }
    const floor = height - Bars.bottom;
    const mean = sum(values) / values.length;
    const highest = values.indexOf(Math.max(...values));
    const ceiling = roundUp(values[highest]);
    const y = (value) => floor - (value / ceiling) * (floor - Bars.top);
    const right = width - Bars.right;
    const pitch = (right - Bars.left) / values.length;
    const gap = pitch >= 12 ? 3 : pitch >= 3 ? 1 : 0;
    const parts = [];
    for (const tick of [0, ceiling / 2, ceiling]) {
      parts.push(svg("line", { class: "rule", x1: Bars.left, x2: right, y1: y(tick), y2: y(tick) }));
      parts.push(svg("text", { x: Bars.left - 6, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick)));
    }
    values.forEach((value, i) => {
      const name = i === this.cursor ? "bar at" : i === highest ? "bar highest" : "bar";
      const [x, end] = [Math.round(Bars.left + i * pitch), Math.round(Bars.left + (i + 1) * pitch) - gap];
      parts.push(svg("rect", { class: name, x, width: Math.max(1, end - x), y: y(value), height: Math.max(0, floor - y(value)) }));
    });
    const step = tickStep([1, 2, 4, 8, 16, 32, 64, 128, 256], pitch, 26);
    for (let i = 0; i < values.length; i += step) {
      parts.push(svg("text", { x: Bars.left + (i + 0.5) * pitch, y: height - 4, "text-anchor": "middle" }, this.gauges[i].rank));
    }
    parts.push(svg("text", { x: Bars.left - 6, y: height - 4, "text-anchor": "end" }, "rank"));
    parts.push(svg("line", { class: "mean", x1: Bars.left, x2: right + 6, y1: y(mean), y2: y(mean) }));
    parts.push(svg("text", { class: "strong", x: right + 10, y: y(mean) - 2 }, "mean"));
    parts.push(svg("text", { class: "strong", x: right + 10, y: y(mean) + 11 }, count(mean)));
    element.replaceChildren(...parts);

    const at = this.cursor ?? highest;
    const { rank, node } = this.gauges[at];
    const over = mean > 0 ? `, ${(values[at] / mean).toFixed(3)} × the mean` : "";
    const lead = this.cursor === null ? "highest: " : "";
    say($(`${this.id}-readout`), `${lead}rank ${rank} on ${node}: ${count(values[at])} ${this.noun}${over}`);
  }
}

/** The polled expert imbalance of one unit over time, with a mark where the epoch changed. */
function drawLine(points) {
  const element = $("line");
  const [width, height] = [element.clientWidth, element.clientHeight];
  if (!width) return;
  if (!points.length) return element.replaceChildren();
  const [left, right, top, floor] = [44, width - 8, 14, height - 20];
  const [first, last] = [points[0].at, points.at(-1).at];
  const span = Math.max(60_000, last - first);
  const ceiling = 1 + roundUp(Math.max(0.01, Math.max(...points.map((p) => p.value)) - 1));
  const x = (at) => right - ((last - at) / span) * (right - left);
  const y = (value) => floor - ((Math.max(1, value) - 1) / (ceiling - 1)) * (floor - top);
  const parts = [];
  for (const tick of [1, (1 + ceiling) / 2, ceiling]) {
    parts.push(svg("line", { class: "rule", x1: left, x2: right, y1: y(tick), y2: y(tick) }));
    parts.push(svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(Math.round(tick * 1e4) % 10 ? 4 : 3)));
  }
  const labels = [[left, "start", `${ago(span)} ago`], [(left + right) / 2, "middle", `${ago(span / 2)} ago`], [right, "end", "now"]];
  for (const [at, anchor, text] of labels) parts.push(svg("text", { x: at, y: height - 4, "text-anchor": anchor }, text));
  let labelled = -Infinity;
  points.forEach((point, i) => {
    if (i === 0 || point.epoch === points[i - 1].epoch) return;
    const at = x(point.at);
    parts.push(svg("line", { class: "epoch", x1: at, x2: at, y1: top, y2: floor }));
    if (at - labelled < 30) return;
    labelled = at;
    parts.push(svg("text", { x: at, y: top - 4, "text-anchor": "middle" }, point.epoch));
  });
  const path = points.map((p, i) => `${i ? "L" : "M"}${x(p.at).toFixed(1)} ${y(p.value).toFixed(1)}`).join("");
  parts.push(svg("path", { class: "curve", d: path }));
  parts.push(svg("circle", { class: "now", r: 3.5, cx: x(last), cy: y(points.at(-1).value) }));
  element.replaceChildren(...parts);
}

// ---- tables ----

/** A cell: text, perhaps a class and a title. */
function cell(text, className = "", title = "") {
  const td = document.createElement("td");
  td.textContent = text;
  if (className) td.className = className;
  if (title) td.title = title;
  return td;
}

/** Rebuilds a table's body only when its words change, so that a selection survives a poll. */
function fill(id, rows) {
  const body = $(id);
  const words = JSON.stringify(rows);
  if (body.words === words) return;
  body.words = words;
  body.replaceChildren(
    ...rows.map((row) => {
      const tr = document.createElement("tr");
      tr.append(...row.map((parts) => cell(...parts)));
      return tr;
    }),
  );
}

function showPlans(plans) {
  const rows = plans.map((plan) => [
    [whole(plan.epoch), "n", plan.digest],
    [plan.kind ?? "–"],
    [clock(plan.committed_ms), "", isNumber(plan.committed_ms) ? new Date(plan.committed_ms).toISOString() : ""],
    [whole(plan.moves), "n"],
    [plan.bytes === 0 ? "0" : bytes(plan.bytes), "n", isNumber(plan.bytes) ? `${whole(plan.bytes)} bytes` : ""],
    [whole(plan.layers_reweighted), "n"],
    [`${ratio(plan.imbalance_before)} → ${ratio(plan.imbalance_after)}`, "n"],
    [ratio(plan.imbalance_bound), "n dim"],
    [isNumber(plan.from_step) ? `${whole(plan.from_step)}–${whole(plan.to_step)}` : "–", "n"],
  ]);
  fill("plans", rows);
  const total = sum(plans.map((plan) => plan.bytes || 0));
  const shown = plans.length >= PLANS_LIMIT ? `the last ${PLANS_LIMIT}` : plural(plans.length, "plan");
  say($("plans-sub"), plans.length ? `${shown}, ${bytes(total)} moved` : "");
  empty("plans-empty", plans.length ? null : "No plan is committed yet: the unit runs the placement it booted with.");
}

function showAgents(agents, unit) {
  const gauges = new Map();
  for (const gauge of unit.rank_gauges ?? []) {
    if (!gauges.has(gauge.node)) gauges.set(gauge.node, []);
    gauges.get(gauge.node).push(gauge);
  }
  const total = (list, key) => (list.length ? sum(list.map((g) => g[key] ?? 0)) : NaN);
  const head = unit.head?.epoch;
  const rows = agents.map((agent) => {
    const own = gauges.get(agent.node) ?? [];
    const behind = isNumber(head) && isNumber(agent.applied_epoch) ? head - agent.applied_epoch : 0;
    return [
      [agent.node],
      [ranges(agent.ranks ?? []), "n-left"],
      agent.connected ? ["connected"] : ["not connected", "alert"],
      [whole(agent.applied_epoch) + (behind > 0 ? ` (${behind} behind)` : ""), behind > 0 ? "n alert" : "n"],
      [count(total(own, "kv_used_tokens")), "n"],
      [count(total(own, "requests")), "n"],
      [milliseconds(own.length ? Math.max(...own.map((g) => g.step_us_p99 ?? 0)) : NaN), "n"],
    ];
  });
  fill("agents", rows);
  const connected = agents.filter((agent) => agent.connected).length;
  say($("agents-sub"), agents.length ? `${connected} of ${agents.length} of this unit connected` : "");
  empty("agents-empty", agents.length ? null : "No agent has connected for this unit since the balancer started.");
}

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
