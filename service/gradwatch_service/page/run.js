// One run: its norm with the threshold in force and the recommended one, loss, clipping, incidents, tensors.

import { get, getOrNull } from "./api.js";
import { chart } from "./chart.js";
import { ago, badge, h, number, percent } from "./dom.js";
import { incidentsCard } from "./incidents.js";
import { tensorsCard } from "./tensors.js";

export function runView(main, run) {
  const path = `/runs/${encodeURIComponent(run)}`;
  const view = { start: null, end: null, tensor: null, sort: "norm", descending: true, all: false };
  const head = h("div", {}), body = h("div", { class: "grid" });
  main.replaceChildren(head, body);
  let seen = "";
  let asked = 0;
  let data = null;

  function change(values) {
    Object.assign(view, values);
    if ("sort" in values || "all" in values) draw(); // what is here already, in another order
    else refresh(true).catch(() => {});
  }

  async function refresh(force = false) {
    const mine = ++asked;
    const summary = await get(path);
    if (mine !== asked) return;
    head.replaceChildren(...heading(summary, view, change));
    const now = JSON.stringify([summary.last_step, summary.steps, summary.analysed_step, summary.state, summary.open_incidents]);
    if (now === seen && !force) return;
    const loaded = await load(path, summary, view);
    if (mine !== asked) return;
    data = loaded;
    seen = now;
    draw();
  }

  function draw() {
    if (!data) return;
    const focus = document.activeElement?.closest?.("th")?.cellIndex;
    body.replaceChildren(...cards(data, view, change));
    // Redrawing replaces the pressed heading: the keyboard stays where it was.
    if (focus !== undefined) body.querySelectorAll("th")[focus]?.querySelector("button")?.focus();
  }

  return refresh;
}

async function load(path, summary, view) {
  const range = { start: view.start, end: view.end, points: 400 };
  const series = (metric, tensor = null) => getOrNull(`${path}/series`, { metric, tensor, ...range });
  const limit = normLimit(summary.policy);
  const [norm, inForce, loss, clipped, rate, incidents, tensors, recommended, element, tensor] = await Promise.all([
    series("global_norm"), limit ? series(limit) : null, series("loss"), series("clip_fraction"), series("learning_rate"),
    getOrNull(`${path}/incidents`, { limit: 100 }), getOrNull(`${path}/tensors`, {}),
    getOrNull(`${path}/recommendation`, { policy: "norm" }), getOrNull(`${path}/recommendation`, { policy: "value" }),
    view.tensor ? series("norm", view.tensor) : null,
  ]);
  return { norm, inForce, loss, clipped, rate, incidents: incidents?.items ?? [], tensors, recommended, element, tensor };
}

// The scalar that holds the limit of the global norm: a chain reports its parts as threshold, threshold_2 ...
// An elementwise limit is another quantity and is not drawn over the norm.
export function normLimit(policy) {
  const parts = policy?.kind === "chain" ? policy.policies ?? policy.parts ?? [] : policy ? [policy] : [];
  const at = parts.findIndex((part) => /norm|adaptive|autoclip|zclip|quantile/.test(part.base?.kind ?? part.kind ?? ""));
  if (at < 0) return null;
  return at === 0 ? "threshold" : `threshold_${at + 1}`;
}

function heading(summary, view, change) {
  const dropped = Object.entries(summary.dropped ?? {}).filter(([, count]) => count > 0);
  const fact = (title, value) => h("li", {}, `${title} `, h("b", {}, value));
  const tags = Object.entries(summary.tags ?? {});
  const narrowed = view.start !== null;
  return [
    h("h1", {}, summary.name || summary.run, " ", badge(summary.state)),
    h("ul", { class: "facts" },
      fact("run", summary.run), fact("project", summary.project ?? "–"), fact("attempt", number(summary.attempt)),
      fact("steps", number(summary.steps)), fact("newest step", number(summary.last_step)), fact("analysed to", number(summary.analysed_step)),
      fact("last report", ago(summary.last_report_at)),
      dropped.map(([reason, count]) => h("li", { class: "warn" }, `dropped (${reason}) `, h("b", {}, number(count)))),
      tags.map(([name, value]) => fact(name, String(value)))),
    h("div", { class: "bar" }, h("span", { class: "soft" }, narrowed ? `steps ${number(view.start)}–${number(view.end)}` : "drag over a chart to narrow the steps"),
      narrowed ? h("button", { onclick: () => change({ start: null, end: null }) }, "all steps") : null),
  ];
}

function cards(data, view, change) {
  const onSelect = (start, end) => change({ start, end });
  const markers = data.incidents.filter((i) => i.status !== "retracted").map((i) => i.opened_step);
  const lines = data.inForce?.start_step.length ? [{ kind: "threshold", title: "threshold in force", series: data.inForce }] : [];
  const levels = [];
  const advice = data.recommended;
  if (advice && advice.threshold !== null) levels.push({ kind: "recommended", title: `recommended (${advice.status})`, value: advice.threshold, interval: advice.interval });
  if (advice && advice.spike_threshold) levels.push({ kind: "spike", title: "alarm", value: advice.spike_threshold });
  return [
    chart({ title: "Global gradient norm (before clipping)", series: data.norm, lines, levels, markers, log: true, onSelect }),
    chart({ title: "Loss", series: data.loss, markers, onSelect }),
    chart({ title: "Share of elements clipped", series: data.clipped, markers, onSelect }),
    view.tensor
      ? chart({ title: `Norm of ${view.tensor}`, series: data.tensor, markers, log: true, onSelect })
      : chart({ title: "Learning rate", series: data.rate, markers, log: true, onSelect }),
    recommendation("Recommended norm threshold", advice),
    recommendation("Recommended elementwise threshold", data.element),
    incidentsCard(data.incidents),
    tensorsCard(data.tensors, view, change),
  ];
}

function recommendation(title, advice) {
  const card = h("section", { class: "card" }, h("h2", {}, title));
  if (!advice || advice.threshold === null) {
    const why = advice?.reasons?.join(", ").replaceAll("_", " ");
    card.append(h("p", { class: "soft" }, why ? `None yet: ${why}.` : "None yet."));
    return card;
  }
  const [low, high] = advice.interval ?? [null, null];
  const between = low === null ? "" : ` (between ${number(low)} and ${number(high)})`;
  const from = advice.steps_used ? `, from ${number(advice.steps_used)} steps` : "";
  card.append(h("p", {}, h("b", {}, number(advice.threshold)), between, ` · ${advice.status}${from}`), h("p", {}, advice.reason));
  const test = advice.backtest;
  if (test && Number.isFinite(test.clipped_share) && Number.isFinite(test.norm_removed_share)) {
    card.append(h("p", { class: "soft" }, `On the last ${number(test.steps)} steps it would have clipped ${percent(test.clipped_share)} of them and removed ${percent(test.norm_removed_share)} of the norm.`));
  }
  return card;
}
