// The tables of plans and agents.

import { $, bytes, clock, count, empty, isNumber, milliseconds, plural, ranges, ratio, say, sum, whole } from "./words.js";

/** Plans that are asked for, and shown. */
export const PLANS_LIMIT = 50;

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

export function showPlans(plans) {
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

export function showAgents(agents, unit) {
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
