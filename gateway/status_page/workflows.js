// The table of workflows: a page of them at a time, as the gateway finds them.

import { byId, element, keyed, say, set } from "./dom.js";
import { count, span, transport } from "./words.js";

const LIMIT = 50;

/** What is looked for, and which page of it is shown. It stands in the address, so that it can be kept and shared. */
export class Search {
  #before = []; // where the pages before this one began
  constructor(text = "") {
    const asked = new URLSearchParams(text);
    this.words = Object.fromEntries(["q", "server", "state"].map((name) => [name, asked.get(name) ?? ""]));
    this.after = "";
  }

  get isEmpty() {
    return Object.values(this.words).every((word) => !word);
  }

  get first() {
    return this.#before.length * LIMIT + 1;
  }

  /** What the gateway is asked for. */
  get query() {
    const asked = new URLSearchParams({ limit: LIMIT, ...this.words, after: this.after });
    return `?${asked}`;
  }

  /** Where the page stands that shows this. */
  get address() {
    const kept = new URLSearchParams(Object.entries(this.words).filter(([, word]) => word));
    return kept.size ? `#/?${kept}` : "#/";
  }

  forward(next) {
    this.#before.push(this.after);
    this.after = next;
  }

  back() {
    this.after = this.#before.pop() ?? "";
  }
}

export function drawWorkflows({ gateway, servers, page }, search) {
  drawFilters(Object.keys(servers), search);
  if (!page) return;
  const order = page.order ?? [];
  byId("workflow-table").hidden = !order.length;
  set(byId("workflow-table"), "data-workers", gateway.workers > 1 ? "many" : "one");
  keyed(byId("workflow-rows"), order.map((handle) => [handle, page.rows[handle]]), workflowRow);
  const last = search.first + order.length - 1;
  const total = page.total ?? 0;
  say(byId("range"), order.length ? `${count(search.first)}–${count(last)} of ${count(total)}` : "none");
  byId("back").disabled = search.first === 1;
  byId("forward").disabled = !page.next;
  drawEmptiness(order.length === 0, search, Object.keys(servers));
}

function drawFilters(names, search) {
  const choices = [["", "All servers"], ...names.map((name) => [name, name])];
  keyed(byId("server"), choices, (value) => {
    const node = element("option", { value });
    return { node, draw: (words) => say(node, words) };
  });
  for (const [name, word] of Object.entries(search.words)) {
    const field = byId(name);
    if (field.value !== word && document.activeElement !== field) field.value = word;
  }
}

function drawEmptiness(isEmpty, search, names) {
  byId("nothing-found").hidden = !isEmpty || search.isEmpty;
  byId("nothing-yet").hidden = !isEmpty || !search.isEmpty;
  const base = location.href.replace(/[?#].*/, "").replace(/\/$/, "");
  say(byId("try-it"), `${base}/servers/${names[0] ?? "NAME"}/mcp`);
}

function workflowRow(handle) {
  const cells = new Map();
  const cell = (name, kind = "") => {
    cells.set(name, element("td", { class: kind }));
    return cells.get(name);
  };
  const state = element("span", { class: "state" });
  const name = element("a", { href: `#/workflows/${handle}` }, handle);
  const row = element("tr", {}, element("th", { scope: "row", class: "code" }, name));
  row.append(cell("principal", "code wide"), cell("server"), cell("transport", "wide"));
  row.append(element("td", {}, state), cell("inflight", "number"), cell("idle", "number"));
  row.append(cell("reuse", "wide"), cell("channel", "wide"), cell("worker", "number wide worker"));
  const draw = (workflow) => {
    set(state, "data-state", workflow.state);
    say(state, workflow.state);
    for (const word of ["principal", "server", "reuse", "channel"]) say(cells.get(word), String(workflow[word]));
    say(cells.get("transport"), transport(workflow.transport));
    say(cells.get("inflight"), count(workflow.inflight));
    say(cells.get("idle"), span(workflow.idle));
    say(cells.get("worker"), String(workflow.worker ?? ""));
    set(cells.get("inflight"), "data-tone", workflow.inflight ? "busy" : "none");
    set(cells.get("channel"), "data-tone", workflow.channel === "lost" ? "bad" : null);
  };
  return { node: row, draw };
}
