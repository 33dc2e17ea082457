// Every tensor of the newest step, largest norm first; a click on a heading sorts, on a name draws it.

import { h, number } from "./dom.js";

const SHOWN = 100;
const COLUMNS = [
  ["norm", "norm"], ["norm_after", "after clipping"], ["max_abs", "largest"], ["mean", "mean"],
  ["clipped_count", "clipped"], ["zero_count", "zeros"], ["nonfinite_count", "not finite"], ["numel", "elements"],
];

export function tensorsCard(answer, view, onChange) {
  const card = h("section", { class: "card wide" });
  if (!answer || !answer.items.length) {
    card.append(h("h2", {}, "Tensors"), h("p", { class: "soft" }, "This run reports no tensors."));
    return card;
  }
  const items = [...answer.items].sort(byColumn(view.sort, view.descending));
  const shown = view.all ? items : items.slice(0, SHOWN);
  card.append(h("h2", {}, `Tensors at step ${number(answer.step)}`),
    h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, heading("name", "tensor", view, onChange, ""), COLUMNS.map(([key, title]) => heading(key, title, view, onChange, "number")))),
      h("tbody", {}, shown.map((item) => row(item, onChange))))));
  if (items.length > shown.length) {
    card.append(h("button", { onclick: () => onChange({ all: true }) }, `show all ${number(items.length)}`));
  }
  return card;
}

function heading(key, title, view, onChange, kind) {
  const sorted = view.sort === key;
  const order = sorted ? (view.descending ? "descending" : "ascending") : "none";
  const arrow = sorted ? (view.descending ? " ↓" : " ↑") : "";
  const press = () => onChange({ sort: key, descending: sorted ? !view.descending : key !== "name" });
  return h("th", { scope: "col", class: kind, "aria-sort": order }, h("button", { onclick: press }, title + arrow));
}

function row(item, onChange) {
  return h("tr", {},
    h("td", { class: "name" }, h("button", { class: "link", title: "draw its norm", onclick: () => onChange({ tensor: item.name }) }, item.name)),
    COLUMNS.map(([key]) => h("td", { class: `number${key === "nonfinite_count" && item[key] ? " bad" : ""}` }, number(item[key]))));
}

function byColumn(key, descending) {
  const sign = descending ? -1 : 1;
  return (a, b) => {
    const [p, q] = [a[key] ?? -Infinity, b[key] ?? -Infinity];
    return p < q ? -sign : p > q ? sign : 0;
  };
}
