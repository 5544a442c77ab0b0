// Drives the balancer's page in a real browser against the mock. Run it through ./run.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";
import { MARKUP, startMock } from "./mock.mjs";

const WAIT_MS = 20_000; // a slow machine is no failure; a page that never gets there is

/** Each test gets a fresh mock and page, and the page's console must stay free of errors. */
const tests = [];
const test = (name, options, body) => tests.push({ name, options, body });

const text = (page, selector) => page.locator(selector).innerText();
const until = (page, condition, argument) => page.waitForFunction(condition, argument, { timeout: WAIT_MS });
const untilText = (page, id, words) => until(page, ([i, w]) => document.getElementById(i)?.textContent.includes(w), [id, words]);
const heatDrawn = (page) => untilText(page, "heat-window", "last complete window");
const answer = async (mock, path) => (await fetch(mock.url + path)).json();

/** How many colours the plot area of a canvas shows, and a hash of its pixels. */
const pixels = (page, id) =>
  page.evaluate((canvasId) => {
    const canvas = document.getElementById(canvasId);
    const { data } = canvas.getContext("2d").getImageData(45, 0, canvas.width - 45, canvas.height - 24);
    const colours = new Set();
    let hash = 0;
    for (let i = 0; i < data.length; i += 4) {
      const rgb = (data[i] << 16) | (data[i + 1] << 8) | data[i + 2];
      colours.add(rgb);
      hash = (Math.imul(hash, 31) + rgb) | 0;
    }
    return { colours: colours.size, hash };
  }, id);

test("both heat maps are drawn, and they differ", { hash: "#decode" }, async ({ page }) => {
  await heatDrawn(page);
  const [measured, boot] = [await pixels(page, "heat-measured"), await pixels(page, "heat-boot")];
  assert.ok(measured.colours > 5, `the measured map has ${measured.colours} colours`);
  assert.ok(boot.colours > 100, `the boot map has ${boot.colours} colours`);
  assert.notEqual(measured.hash, boot.hash);
});

test("the header and the unit's facts are the balancer's figures", {}, async ({ page, mock }) => {
  await heatDrawn(page);
  const { version, term, agents, units } = await answer(mock, "api/v1/status");
  const connected = agents.filter((agent) => agent.connected).length;
  assert.equal(await text(page, "#version"), version);
  assert.equal(await text(page, "#term"), term);
  assert.equal(await text(page, "#agents-count"), `${connected} of ${agents.length} connected`);
  assert.equal(await text(page, "#f-epoch"), `${units[0].head.epoch}`);
  assert.equal(await text(page, "#f-digest"), units[0].head.digest.slice(0, 12));
  assert.equal(await text(page, "#f-shape"), "58 × 256");
  assert.equal(await text(page, "#tile-expert"), units[0].imbalance.expert.toFixed(3));
  assert.equal(await text(page, "#tile-decode_kv"), "not measured");
  assert.equal(await page.locator("#tabs [role=tab]").count(), units.length);
});

test("bars show each rank, and max over mean is in the title", { hash: "#decode" }, async ({ page, mock }) => {
  await heatDrawn(page);
  const unit = (await answer(mock, "api/v1/status")).units[1];
  for (const [id, key] of [["kv", "kv_used_tokens"], ["requests", "requests"]]) {
    const values = unit.rank_gauges.map((gauge) => gauge[key]);
    const imbalance = (Math.max(...values) * values.length) / values.reduce((a, b) => a + b, 0);
    assert.equal(await page.locator(`#${id} rect`).count(), unit.ranks);
    assert.ok((await text(page, `#${id}-title`)).endsWith(`max / mean ${imbalance.toFixed(3)}`));
  }
  await page.focus("#kv");
  await page.keyboard.press("ArrowRight");
  await untilText(page, "kv-readout", "rank 0 on decode-0");
});

test("a cell is read by pointer and by arrow keys", { hash: "#v2lite" }, async ({ page, mock }) => {
  await heatDrawn(page);
  const heat = await answer(mock, "api/v1/units/v2lite/heat");
  const over = (rows, layer, rank) => {
    const mean = rows[layer].reduce((a, b) => a + b, 0) / rows[layer].length;
    return (rows[layer][rank] / mean).toFixed(3);
  };
  const words = (layer, rank) =>
    `layer ${layer}, rank ${rank}: ${over(heat.measured, layer, rank)} × the mean with Evenkeel, ${over(heat.boot, layer, rank)} × without`;
  await page.hover("#heat-boot", { position: { x: 45, y: 7 } });
  assert.equal(await text(page, "#heat-readout"), words(0, 0));
  await page.mouse.move(0, 0);
  await page.focus("#heat-measured");
  for (const key of ["ArrowDown", "ArrowDown", "ArrowRight"]) await page.keyboard.press(key);
  assert.equal(await text(page, "#heat-readout"), words(1, 1));
});

test("plans and agents are listed in words", { hash: "#decode" }, async ({ page, mock }) => {
  await heatDrawn(page);
  const { plans } = await answer(mock, "api/v1/units/decode/plans?limit=50");
  const rows = page.locator("#plans tr");
  assert.equal(await rows.count(), plans.length);
  const at = plans.findIndex((plan) => plan.kind === "moves");
  const words = await rows.nth(at).innerText();
  const { moves, bytes, imbalance_before: before, imbalance_after: after } = plans[at];
  for (const part of [`${moves}`, `${(bytes / 2 ** 30).toPrecision(3)} GiB`, `${before.toFixed(3)} → ${after.toFixed(3)}`]) {
    assert.ok(words.includes(part), `${part} is missing in ${words}`);
  }
  assert.equal(await page.locator("#agents tr").count(), 18);
  assert.match(await page.locator("#agents tr").nth(11).innerText(), /88–95\s+not connected\s+4 \(2 behind\)/);
});

test("tabs switch by click and by key, and the unit is in the fragment", {}, async ({ page, mock }) => {
  await heatDrawn(page);
  assert.equal(await text(page, "#tabs [aria-selected=true]"), await text(page, "#tabs button:nth-child(1)"));
  const before = await pixels(page, "heat-boot");
  await page.click("#tabs button:nth-child(2)");
  await untilText(page, "f-role", "decode");
  assert.equal(await page.evaluate(() => location.hash), "#decode");
  await heatDrawn(page);
  assert.notEqual((await pixels(page, "heat-boot")).hash, before.hash);
  await page.keyboard.press("ArrowRight");
  await untilText(page, "f-shape", "26 × 64");
  assert.equal(await page.evaluate(() => location.hash), "#v2lite");
  await page.goto(`${mock.url}#prefill`);
  await untilText(page, "f-shape", "58 × 256");
});

test("new windows arrive without moving the panels", { windowMs: 1_500 }, async ({ page }) => {
  await heatDrawn(page);
  await page.evaluate(() => {
    window.shifts = 0;
    const add = (list) => list.getEntries().forEach((entry) => (window.shifts += entry.value));
    new PerformanceObserver(add).observe({ type: "layout-shift" });
  });
  const [windows, map] = [await text(page, "#heat-window"), await pixels(page, "heat-measured")];
  await until(page, (old) => document.getElementById("heat-window").textContent !== old, windows);
  const next = await text(page, "#heat-window");
  await until(page, (old) => document.getElementById("heat-window").textContent !== old, next);
  assert.notEqual((await pixels(page, "heat-measured")).hash, map.hash);
  assert.equal(await page.evaluate(() => window.shifts), 0);
});

test("before the first window each panel says so", { scenario: "waiting" }, async ({ page, mock }) => {
  await untilText(page, "heat-empty", "No load window is complete yet");
  await untilText(page, "plans-empty", "No plan is committed yet");
  await untilText(page, "kv-empty", "No rank has reported");
  assert.equal(await text(page, "#tile-expert"), "not measured");
  assert.ok(!mock.paths.some((path) => path.endsWith("/heat")), "no map is asked for before there is one");
});

test("without a unit the page says how one appears", { scenario: "empty" }, async ({ page }) => {
  await page.waitForSelector("#no-units:not([hidden])", { timeout: WAIT_MS });
  assert.ok(!(await page.isVisible("#unit")));
});

test("markup in names stays text", { scenario: "hostile" }, async ({ page }) => {
  await untilText(page, "f-decision", MARKUP);
  assert.ok((await text(page, "#tabs [aria-selected=true]")).startsWith(MARKUP));
  assert.equal(await page.locator("img").count(), 0);
  assert.notEqual(await page.title(), "owned");
});

test("light and dark follow the reader's setting", {}, async ({ page }) => {
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await paper();
  await page.emulateMedia({ colorScheme: "dark" });
  assert.notEqual(await paper(), light);
});

const mayLoseServer = { hash: "#decode", quiet: false };
test("a balancer that goes is named, asked less often, and found again", mayLoseServer, async ({ page, mock }) => {
  await heatDrawn(page);
  assert.equal(await text(page, "#link"), "live");
  let tries = 0;
  page.on("request", (request) => (tries += request.url().endsWith("/status")));
  await mock.close();
  await untilText(page, "link", "no answer since");
  assert.ok(await page.isVisible("#retry"));
  assert.match(await page.title(), /no answer/);
  assert.equal(await page.locator("#plans tr").count() > 0, true, "the last figures stay");
  await untilText(page, "link-detail", "next try in 4 s");
  assert.ok(tries <= 4, `${tries} tries within the first back-off steps`);
  const again = await startMock({ port: mock.port });
  try {
    await page.click("#retry");
    await untilText(page, "link", "live");
    assert.equal(await page.evaluate(() => document.body.dataset.link), "live");
  } finally {
    await again.close();
  }
});

async function runOne(browser, { options, body }) {
  const { scenario = "busy", windowMs = 0, hash = "", quiet = true } = options;
  const mock = await startMock({ scenario, windowMs });
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
  try {
    const page = await context.newPage();
    const complaints = [];
    page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
    page.on("pageerror", (error) => complaints.push(error.message));
    page.on("request", (request) => {
      const { protocol, hostname } = new URL(request.url());
      if (protocol !== "data:" && hostname !== "127.0.0.1") complaints.push(`a request left for ${request.url()}`);
    });
    await page.goto(mock.url + hash);
    await body({ page, mock });
    const unwanted = complaints.filter((words) => quiet || !/ERR_CONNECTION|ERR_EMPTY_RESPONSE/.test(words));
    assert.deepEqual(unwanted, [], "the console stays free of errors, and no request leaves this machine");
  } finally {
    await context.close();
    await mock.close();
  }
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  chromiumSandbox: false, // root cannot have the sandbox; the only page loaded is ours, from loopback
});
let failed = 0;
for (const one of tests) {
  try {
    await runOne(browser, one);
    console.log(`ok    ${one.name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${one.name}\n      ${error.message.split("\n").join("\n      ")}`);
  }
}
await browser.close();
console.log(`${tests.length - failed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;
