// Elements from data. Every string becomes a text node or an attribute value, never markup, so a run
// named "<img onerror=...>" is shown as written.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "line", "rect", "text", "g", "circle", "title"]);

export function h(tag, attributes = {}, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en");
  return short(value, digits);
}

// The label of an axis: 1e12 rather than 1,000,000,000,000.
export function short(value, digits = 3) {
  const size = Math.abs(value);
  if (size === 0 || (size >= 1e-3 && size < 1e5)) return String(Number(value.toPrecision(digits)));
  return value.toExponential(digits - 1).replace(/\.?0*e\+?/, "e");
}

export function percent(value) {
  return value === null || value === undefined ? "–" : `${number(100 * value)} %`;
}

export function ago(seconds) {
  if (seconds === null || seconds === undefined) return "never";
  const past = Math.max(0, Date.now() / 1000 - seconds);
  if (past < 90) return `${Math.round(past)} s ago`;
  if (past < 5400) return `${Math.round(past / 60)} min ago`;
  if (past < 172800) return `${Math.round(past / 3600)} h ago`;
  return new Date(seconds * 1000).toISOString().slice(0, 10);
}

const TONES = {
  healthy: "good", finished: "good", warming_up: "quiet", silent: "warn", interrupted: "warn",
  oscillating: "warn", vanishing: "bad", exploding: "bad", nonfinite: "bad", failed: "bad",
  critical: "bad", warning: "warn", info: "quiet",
};

export const tone = (word) => TONES[word] ?? "quiet";

export const badge = (word) => h("span", { class: `state ${tone(word)}` }, String(word).replace("_", " "));
