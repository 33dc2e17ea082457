// What went wrong: when, where, why, and what to do next.

import { badge, h, number, tone } from "./dom.js";

export function incidentsCard(incidents) {
  const card = h("section", { class: "card wide" }, h("h2", {}, "Incidents"));
  if (!incidents.length) card.append(h("p", { class: "soft" }, "None."));
  card.append(...incidents.map(entry));
  return card;
}

function entry(incident) {
  const steps = incident.last_step > incident.opened_step
    ? `steps ${number(incident.opened_step)}–${number(incident.last_step)}` : `step ${number(incident.opened_step)}`;
  const others = (incident.tensors ?? []).filter((name) => name !== incident.first_tensor);
  const more = others.length > 8 ? `, and ${number(others.length - 8)} more` : "";
  return h("article", { class: `incident ${tone(incident.severity)}` },
    h("p", {}, h("b", {}, incident.kind), " ", badge(incident.severity), ` ${incident.status}, ${steps}`,
      incident.provisional ? " (provisional: a delivery is missing)" : ""),
    h("p", {}, incident.verdict),
    incident.why ? h("p", {}, h("b", {}, "why: "), incident.why) : null,
    incident.next ? h("p", {}, h("b", {}, "next: "), incident.next) : null,
    others.length ? h("p", { class: "soft" }, `also in ${others.slice(0, 8).join(", ")}${more}`) : null);
}
