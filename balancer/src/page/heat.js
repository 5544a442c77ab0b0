// The layer x rank heat maps: their colours, the maps, and the one cursor that both share.

import { $, ratio, say, sum, tickStep } from "./words.js";

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
export const heat = {
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
