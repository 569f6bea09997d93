// What is shown: where the address leads, who may see it, and whether it is still so.

import { byId, say, set } from "./dom.js";
import { merge } from "./merge.js";
import { drawServers } from "./servers.js";
import { Connection } from "./stream.js";
import { count, moment } from "./words.js";
import { drawWorkflow } from "./workflow.js";
import { drawWorkflows, Search } from "./workflows.js";

const TYPING = 200;

let seen = null; // what the gateway has told on the stream that is open
let search = new Search();
let handle = ""; // of the workflow whose page is open
let lostSince = 0;

const connection = new Connection({
  onEvent(name, value) {
    seen = name === "snapshot" ? value : merge(seen, value);
    draw();
  },
  onState: drawConnection,
});

// Where the address leads.

const WORKFLOW = /^#\/workflows\/([^/?]+)$/;
const TABLE = /^#\/(?:\?(.*))?$/;

function route() {
  const workflow = WORKFLOW.exec(location.hash);
  const table = TABLE.exec(location.hash || "#/");
  if (!workflow && !table) return; // a place on the page
  const was = handle;
  handle = workflow ? decoded(workflow[1]) : "";
  if (table && search.address !== (location.hash || "#/")) search = new Search(table[1]);
  show(handle ? "workflow" : "overview");
  if (seen && (was || handle) && was !== handle) delete seen.workflow;
  if (was !== handle) window.scrollTo(0, 0);
  if (handle && was !== handle) byId("workflow-name").focus();
  ask();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function ask() {
  connection.open(handle ? `?${new URLSearchParams({ workflow: handle })}` : search.query);
}

function look(change) {
  change();
  history.replaceState(null, "", search.address);
  ask();
}

// What is drawn.

function show(name) {
  for (const view of ["overview", "workflow", "sign-in"]) byId(view).hidden = view !== name;
}

function draw() {
  show(handle ? "workflow" : "overview");
  drawServers(seen);
  if (handle) drawWorkflow(seen, handle);
  else drawWorkflows(seen, search);
  drawGateway(seen.gateway);
  const failing = Object.values(seen.servers).filter((server) => server.state === "failing").length;
  document.title = failing ? `(${failing} failing) trunkline` : "trunkline";
}

function drawGateway(gateway) {
  const missing = gateway.missing_workers?.length ?? 0;
  const workers = gateway.workers > 1 || missing ? `, ${count(gateway.workers)} workers` : "";
  const silent = missing ? `, ${count(missing)} without an answer` : "";
  say(byId("gateway"), `${gateway.version}, up since ${moment(gateway.started)}${workers}${silent}`);
  set(byId("gateway"), "data-tone", missing ? "bad" : null);
}

function drawConnection(state, why) {
  const node = byId("connection");
  if (state === "refused") return signIn();
  // A gateway that drains ends the stream each time that it has said so: it is lost only once it is asked in vain.
  const drains = seen?.gateway.state === "draining" && (state === "live" || (state === "lost" && !lostSince));
  if (state === "lost" && !lostSince) lostSince = Date.now() / 1000;
  if (state === "connecting" && lostSince) return; // it is still lost, and being tried
  if (state === "live") lostSince = 0;
  const shown = drains ? "draining" : state;
  set(node, "data-state", shown);
  say(node, shown === "lost" ? why || `not connected since ${moment(lostSince)}` : shown);
  set(document.body, "data-stale", shown === "lost" && seen ? "" : null);
}

// Who may see it.

function signIn() {
  seen = null;
  show("sign-in");
  set(byId("connection"), "data-state", "refused");
  say(byId("connection"), "not signed in");
  say(byId("gateway"), "");
  byId("refusal").hidden = !connection.token;
  connection.token = "";
  byId("sign-out").hidden = true;
  byId("token").focus();
}

byId("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  connection.token = byId("token").value.trim();
  byId("token").value = "";
  byId("sign-out").hidden = false;
  ask();
});

byId("sign-out").addEventListener("click", () => {
  connection.close();
  connection.token = "";
  signIn();
});

// What is looked for.

let typing = 0;
byId("q").addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => look(() => (search = new Search(changed("q", event.target.value.trim())))), TYPING);
});
for (const name of ["server", "state"]) {
  byId(name).addEventListener("change", (event) => look(() => (search = new Search(changed(name, event.target.value)))));
}
byId("clear").addEventListener("click", () => {
  look(() => (search = new Search()));
  byId("q").value = "";
  byId("q").focus();
});
byId("forward").addEventListener("click", () => look(() => search.forward(seen.page.next)));
byId("back").addEventListener("click", () => look(() => search.back()));

function changed(name, word) {
  return new URLSearchParams({ ...search.words, [name]: word }).toString();
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, select, textarea");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !byId("overview").hidden) {
    event.preventDefault();
    byId("q").focus();
  } else if (event.key === "Escape" && handle) location.hash = search.address;
});

// Light and dark: as the system has it, until somebody chooses.

const dark = matchMedia("(prefers-color-scheme: dark)");
let chosen = kept("theme");

/** What is kept in this browser; null where it keeps nothing, as with cookies switched off. */
function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function keep(name, word) {
  try {
    localStorage.setItem(name, word);
  } catch {
    // It holds until the page is left.
  }
}

const isDark = () => (chosen ? chosen === "dark" : dark.matches);

function drawTheme() {
  set(document.documentElement, "data-theme", chosen);
  set(byId("theme"), "aria-pressed", String(isDark()));
}

byId("theme").addEventListener("click", () => {
  chosen = isDark() ? "light" : "dark";
  keep("theme", chosen);
  drawTheme();
});
dark.addEventListener("change", drawTheme);

// A page that nobody sees asks for nothing.

document.addEventListener("visibilitychange", () => {
  if (document.hidden) connection.close();
  else if (byId("sign-in").hidden) connection.retry();
});
addEventListener("online", () => connection.retry());
addEventListener("hashchange", route);

drawTheme();
// The page came with a 401: asking again without a token would be told the same.
if (performance.getEntriesByType("navigation")[0]?.responseStatus === 401) signIn();
else route();
