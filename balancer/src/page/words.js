// Numbers as words, and the few ways in which text enters the document: as text nodes only, never as markup.

export const $ = (id) => document.getElementById(id);

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
export const orDash = (value, text) => (isNumber(value) ? text(value) : "–");
export const ratio = (value) => orDash(value, (v) => v.toFixed(3));
export const whole = (value) => orDash(value, (v) => Math.round(v).toLocaleString("en-US"));
export const plural = (n, one, many = `${one}s`) => `${whole(n)} ${n === 1 ? one : many}`;

/** 12,345 as it is, larger numbers with three digits and k, M or G. */
export function count(value) {
  if (!isNumber(value)) return "–";
  if (Math.abs(value) < 10_000) return Number.isInteger(value) ? whole(value) : value.toFixed(1);
  const step = ["", "k", "M", "G", "T"];
  let power = 0;
  while (Math.abs(value) >= 999.5 && power < step.length - 1) [value, power] = [value / 1000, power + 1];
  return `${value.toPrecision(3)} ${step[power]}`;
}

/** The same for round numbers on an axis: no zeros after the point. */
export const tickText = (value) => count(value).replace(/(\.\d*?)0+(?= |$)/, "$1").replace(/\.(?= |$)/, "");

/** The least "nice" step that keeps labels `room` pixels apart. */
export const tickStep = (steps, pixelsPerCell, room) => steps.find((s) => s * pixelsPerCell >= room) ?? steps.at(-1);

/** Bytes with binary prefixes and three digits. */
export function bytes(value) {
  if (!isNumber(value)) return "–";
  const step = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (value >= 1023.5 && power < step.length - 1) [value, power] = [value / 1024, power + 1];
  return `${power === 0 ? value : value.toPrecision(value >= 1000 ? 4 : 3)} ${step[power]}`;
}

export const milliseconds = (us) => orDash(us, (v) => (v < 1000 ? `${Math.round(v)} µs` : `${(v / 1000).toPrecision(3)} ms`));
export const clock = (ms) => orDash(ms, (v) => new Date(v).toLocaleTimeString("en-GB"));
export const ago = (ms) => (ms < 90_000 ? `${Math.round(ms / 1000)} s` : `${Math.round(ms / 60_000)} min`);

/** 0,1,2,5 as "0–2, 5". */
export function ranges(ranks) {
  const runs = [];
  for (const rank of [...ranks].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last && rank === last[1] + 1) last[1] = rank;
    else runs.push([rank, rank]);
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(", ");
}

/** Sets text only where it differs: screen readers and selections are left in peace. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function empty(id, words) {
  say($(id), words ?? "");
  $(id).hidden = !words;
}

export const sum = (values) => values.reduce((a, b) => a + b, 0);
export const maxOverMean = (values) => (sum(values) > 0 ? (Math.max(...values) * values.length) / sum(values) : NaN);
