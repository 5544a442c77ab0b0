// Bars per rank, and the line of the imbalance over time.

import { $, ago, count, isNumber, maxOverMean, ratio, say, sum, tickStep, tickText } from "./words.js";

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
export class Bars {
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
export function drawLine(points) {
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
