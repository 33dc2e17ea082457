// All runs: state, newest step, open incidents; found by name, narrowed by state.

import { get } from "./api.js";
import { ago, badge, h, number } from "./dom.js";

const STATES = ["warming_up", "healthy", "exploding", "vanishing", "oscillating", "nonfinite", "silent", "finished", "failed", "interrupted"];

export function runsView(main) {
  const wanted = { q: "", state: "", cursor: null };
  const table = h("div", { class: "scroll" });
  const search = h("input", {
    type: "search", placeholder: "part of a name", "aria-label": "find runs by name",
    oninput: () => { wanted.q = search.value; wanted.cursor = null; refresh().catch(() => {}); },
  });
  const state = h("select", { "aria-label": "state", onchange: () => { wanted.state = state.value; wanted.cursor = null; refresh().catch(() => {}); } },
    h("option", { value: "" }, "every state"), STATES.map((word) => h("option", { value: word }, word.replace("_", " "))));
  main.replaceChildren(h("h1", {}, "Runs"), h("div", { class: "bar" }, search, state), table);
  let asked = 0;

  async function refresh() {
    const mine = ++asked;
    const page = await get("/runs", { limit: 50, q: wanted.q, state: wanted.state, cursor: wanted.cursor });
    if (mine !== asked) return; // a newer question is on its way
    table.replaceChildren(page.items.length ? list(page) : empty());
  }

  function list(page) {
    const next = page.next_cursor && h("button", { onclick: () => { wanted.cursor = page.next_cursor; refresh().catch(() => {}); } }, "older runs");
    const first = wanted.cursor && h("button", { onclick: () => { wanted.cursor = null; refresh().catch(() => {}); } }, "newest runs");
    return h("div", {},
      h("table", {}, h("thead", {}, h("tr", {}, ["run", "state", "project"].map((t) => h("th", { scope: "col" }, t)),
        ["steps", "newest step", "open incidents", "last report"].map((t) => h("th", { scope: "col", class: "number" }, t)))),
      h("tbody", {}, page.items.map(row))),
      h("div", { class: "bar" }, first, next));
  }

  function empty() {
    if (wanted.q || wanted.state) return h("p", {}, "No run matches.");
    return h("div", { class: "card" }, h("p", {}, "No run yet. One line in a training loop starts one:"),
      h("pre", {}, `watch = gradwatch.watch(model, optimizer, clip=gradwatch.clip.norm(1.0), url="${location.origin}")`));
  }

  return refresh;
}

function row(run) {
  return h("tr", {},
    h("td", { class: "name" }, h("a", { href: `#/runs/${encodeURIComponent(run.run)}` }, run.name || run.run),
      run.name && run.name !== run.run ? h("div", { class: "soft" }, run.run) : null),
    h("td", {}, badge(run.state)),
    h("td", { class: "name" }, run.project ?? ""),
    h("td", { class: "number" }, number(run.steps)),
    h("td", { class: "number" }, number(run.last_step)),
    h("td", { class: "number" }, number(run.open_incidents)),
    h("td", { class: "number" }, ago(run.last_report_at)));
}
