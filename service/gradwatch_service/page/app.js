// Which view, when to refresh it, and the question for a token.

import { Refused, setToken } from "./api.js";
import { h } from "./dom.js";
import { runView } from "./run.js";
import { runsView } from "./runs.js";

const EVERY = 2000; // milliseconds; a hidden page asks nothing

const main = document.getElementById("main");
const connection = document.getElementById("connection");
let refresh = null;
let busy = false;

function open() {
  const parts = location.hash.split("/");
  const run = parts[1] === "runs" && parts[2] ? decodeURIComponent(parts[2]) : null;
  document.title = run ? `${run} · gradwatch` : "gradwatch";
  refresh = run ? runView(main, run) : runsView(main);
  tick();
}

async function tick() {
  if (busy || document.hidden || !refresh) return;
  busy = true;
  const current = refresh;
  try {
    await current();
    say("live", false);
  } catch (error) {
    if (current === refresh) failed(error);
  } finally {
    busy = false;
    if (current !== refresh) tick(); // another view was opened meanwhile
  }
}

function failed(error) {
  if (error instanceof Refused) return askForToken(error.message);
  if (error.status === 404 || error.status === 422) {
    refresh = null;
    main.replaceChildren(h("h1", {}, "Not here"), h("p", {}, error.message), h("p", {}, h("a", { href: "#/" }, "all runs")));
    return;
  }
  say(error instanceof TypeError ? "service not reachable, trying again" : error.message, true);
}

function askForToken(reason) {
  refresh = null;
  say("", false);
  const field = h("input", { type: "password", autocomplete: "off", "aria-label": "token", required: true });
  const form = h("form", { class: "card", onsubmit: (event) => { event.preventDefault(); setToken(field.value.trim()); open(); } },
    h("h1", {}, "This service asks for a token"), h("p", { class: "soft" }, reason),
    h("p", {}, "One with the scope read is enough. It stays in this tab."),
    h("div", { class: "bar" }, field, h("button", { type: "submit" }, "open")));
  main.replaceChildren(form);
  field.focus();
}

function say(text, isProblem) {
  if (connection.textContent !== text) connection.textContent = text;
  connection.className = isProblem ? "problem" : "";
}

addEventListener("hashchange", open);
document.addEventListener("visibilitychange", tick);
setInterval(tick, EVERY);
open();
