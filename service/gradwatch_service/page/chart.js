// One chart: the band from the smallest to the largest value of each bucket with the mean inside it, so
// that a spike is never averaged away; lines to compare with; a selection that narrows the steps.

import { h, number, short } from "./dom.js";
import { linearTicks, logTicks } from "./ticks.js";

const WIDTH = 640, HEIGHT = 220, LEFT = 56, RIGHT = 12, TOP = 10, BOTTOM = 26;

export function chart({ title, series, lines = [], levels = [], markers = [], log = false, onSelect = null }) {
  const card = h("section", { class: "card" }, h("h2", {}, title));
  if (!series || !series.start_step.length) {
    card.append(h("p", { class: "soft" }, "Not reported by this run."));
    return card;
  }
  const x = stepAxis(series);
  const y = valueAxis(series, lines, levels, log);
  const svg = h("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": describe(title, series) });
  svg.append(...y.grid, ...x.labels);
  for (const level of levels.filter((l) => l.interval)) svg.append(interval(level, y));
  for (const step of markers) if (x.holds(step)) svg.append(h("line", { class: "marker", x1: x.at(step), x2: x.at(step), y1: TOP, y2: HEIGHT - BOTTOM }));
  svg.append(...bands(series, x, y), ...paths(series, "mean", "mean", x, y));
  for (const line of lines) svg.append(...paths(line.series, "mean", line.kind, x, y));
  for (const level of levels) svg.append(h("line", { class: level.kind, x1: LEFT, x2: WIDTH - RIGHT, y1: y.at(level.value), y2: y.at(level.value) }));
  svg.append(...nonfinite(series, x));
  const readout = h("div", { class: "readout" }, latest(series));
  follow(svg, series, x, readout, onSelect);
  card.append(svg, readout, legend(series, lines, levels, markers));
  return card;
}

function stepAxis(series) {
  const first = series.start_step[0];
  const last = Math.max(series.end_step.at(-1), first + 1);
  const at = (step) => LEFT + ((step - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
  const labels = linearTicks(first, last, 6).filter(Number.isInteger).map((step) =>
    h("text", { x: at(step), y: HEIGHT - 8, "text-anchor": step === first ? "start" : "middle" }, number(step)));
  const step = (pixel) => Math.round(first + ((pixel - LEFT) / (WIDTH - LEFT - RIGHT)) * (last - first));
  return { at, step, labels, holds: (s) => s >= first && s <= last };
}

function valueAxis(series, lines, levels, log) {
  const seen = [series.min, series.max, ...lines.map((l) => l.series.mean), levels.map((l) => l.value)].flat();
  const values = seen.filter((v) => v !== null && Number.isFinite(v) && (!log || v > 0));
  let low = values.length ? Math.min(...values) : log ? 0.1 : 0;
  let high = values.length ? Math.max(...values) : 1;
  if (high <= low) [low, high] = log ? [low / 2, low * 2] : low === 0 ? [0, 1] : [low - Math.abs(low) / 2, low + Math.abs(low) / 2];
  else if (log) [low, high] = [low * 0.9, high * 1.1];
  else [low, high] = [low > 0 && low < 0.5 * high ? 0 : low, high + (high - low) * 0.05];
  const scale = log ? Math.log : (v) => v;
  const height = HEIGHT - TOP - BOTTOM;
  const at = (v) => {
    const held = Math.min(Math.max(v, low), high); // a zero has no logarithm: it lies on the lower edge
    return TOP + (1 - (scale(held) - scale(low)) / (scale(high) - scale(low))) * height;
  };
  const grid = (log ? logTicks(low, high) : linearTicks(low, high)).flatMap((v) => [
    h("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: at(v), y2: at(v) }),
    h("text", { x: LEFT - 6, y: at(v) + 4, "text-anchor": "end" }, short(v)),
  ]);
  return { at, grid };
}

// Runs of buckets with a value: a gap in the data is a gap in the line.
function stretches(values) {
  const found = [];
  let current = [];
  values.forEach((value, i) => {
    if (value !== null) current.push(i);
    else if (current.length) { found.push(current); current = []; }
  });
  if (current.length) found.push(current);
  return found;
}

const middle = (series, i) => (series.start_step[i] + series.end_step[i]) / 2;

function paths(series, column, kind, x, y) {
  return stretches(series[column]).map((part) => {
    const points = part.map((i) => `${x.at(middle(series, i)).toFixed(1)} ${y.at(series[column][i]).toFixed(1)}`);
    return h("path", { class: kind, d: `M${points.join("L")}` });
  });
}

function bands(series, x, y) {
  return stretches(series.mean).map((part) => {
    const side = (column) => part.map((i) => `${x.at(middle(series, i)).toFixed(1)} ${y.at(series[column][i]).toFixed(1)}`);
    return h("path", { class: "band", d: `M${[...side("max"), ...side("min").reverse()].join("L")}Z` });
  });
}

function nonfinite(series, x) {
  return (series.nonfinite_count ?? []).flatMap((count, i) =>
    count ? [h("rect", { class: "nonfinite", x: x.at(middle(series, i)) - 1.5, y: HEIGHT - BOTTOM - 5, width: 3, height: 8 })] : []);
}

function interval(level, y) {
  const [low, high] = level.interval;
  return h("rect", { class: "interval", x: LEFT, width: WIDTH - LEFT - RIGHT, y: y.at(high), height: Math.max(1, y.at(low) - y.at(high)) });
}

function bucketText(series, i) {
  const [start, end] = [series.start_step[i], series.end_step[i]];
  const where = start === end ? `step ${number(start)}` : `steps ${number(start)}–${number(end)}`;
  const bad = series.nonfinite_count?.[i] ? `, ${number(series.nonfinite_count[i])} not finite` : "";
  if (series.mean[i] === null) return `${where}: no finite value${bad}`;
  const spread = series.count[i] > 1 ? ` (${number(series.min[i])} to ${number(series.max[i])})` : "";
  return `${where}: ${number(series.mean[i])}${spread}${bad}`;
}

const latest = (series) => bucketText(series, series.start_step.length - 1);

function describe(title, series) {
  const values = series.max.filter((v) => v !== null);
  const top = values.length ? `, largest ${number(Math.max(...values))}` : "";
  return `${title}; newest ${latest(series)}${top}`;
}

function legend(series, lines, levels, markers) {
  const entries = [["mean", "mean, with the band from smallest to largest"]];
  for (const line of lines) entries.push([line.kind, `${line.title} ${number(line.series.mean.findLast((v) => v !== null))}`]);
  for (const level of levels) entries.push([level.kind, `${level.title} ${number(level.value)}`]);
  if (markers.length) entries.push(["marker", "incident"]);
  const sample = (kind) => h("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, h("line", { class: kind, x1: 0, x2: 26, y1: 5, y2: 5 }));
  return h("div", { class: "legend" }, entries.map(([kind, text]) => h("span", {}, sample(kind), text)));
}

function follow(svg, series, x, readout, onSelect) {
  const cursor = h("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const selection = h("rect", { class: "select", y: TOP, height: HEIGHT - TOP - BOTTOM, visibility: "hidden" });
  svg.append(selection, cursor);
  let from = null;
  const pixel = (event) => {
    const box = svg.getBoundingClientRect();
    return Math.min(Math.max(((event.clientX - box.left) / box.width) * WIDTH, LEFT), WIDTH - RIGHT);
  };
  const move = (event) => {
    const px = pixel(event);
    const step = x.step(px);
    let i = series.end_step.findIndex((end) => end >= step);
    if (i < 0) i = series.end_step.length - 1;
    readout.textContent = bucketText(series, i);
    for (const side of ["x1", "x2"]) cursor.setAttribute(side, px);
    cursor.setAttribute("visibility", "visible");
    if (from === null) return;
    selection.setAttribute("x", Math.min(from, px));
    selection.setAttribute("width", Math.abs(px - from));
    selection.setAttribute("visibility", "visible");
  };
  const release = (event) => {
    if (from === null) return;
    const [a, b] = [x.step(from), x.step(pixel(event))].sort((p, q) => p - q);
    from = null;
    selection.setAttribute("visibility", "hidden");
    if (b > a) onSelect(a, b);
  };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); readout.textContent = latest(series); });
  if (!onSelect) return;
  svg.addEventListener("pointerdown", (event) => { from = pixel(event); svg.setPointerCapture(event.pointerId); });
  svg.addEventListener("pointerup", release);
  svg.addEventListener("pointercancel", () => { from = null; selection.setAttribute("visibility", "hidden"); });
}
