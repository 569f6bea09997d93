// The servers, a row for each, and the gateway as a whole above them.

import { byId, element, keyed, say, set } from "./dom.js";
import { sparkline } from "./sparkline.js";
import { ago, count, latency, moment, percent, plain, rate, span, stage } from "./words.js";

const RECENT = 5; // steps that a rate is told of

/** What happened in the steps that are told, from the oldest to the newest: `{}` where nothing did. */
export function stepsOf(gateway, trend) {
  const first = gateway.last_step - gateway.steps + 1;
  return Array.from({ length: gateway.steps }, (_, index) => trend?.[first + index] ?? {});
}

const sum = (steps, word) => steps.reduce((total, step) => total + (step[word] ?? 0), 0);

/** The time within which this share of the calls were answered, in seconds; null where there were none. */
export function quantile(steps, bounds, share) {
  const counts = Array.from({ length: bounds.length + 1 }, (_, index) => sum(steps, `le${index}`));
  let rest = counts.reduce((total, one) => total + one, 0) * share;
  if (rest === 0) return null;
  const index = counts.findIndex((one) => (rest -= one) <= 0);
  if (index === -1 || index >= bounds.length) return bounds[bounds.length - 1];
  const [lower, upper] = [bounds[index - 1] ?? 0, bounds[index]];
  return upper + (rest / counts[index]) * (upper - lower);
}

/** The figures of a server, or of all, from what happened in each step. */
export function figuresOf(gateway, steps) {
  const [hits, spares, misses] = ["hit", "spare", "miss"].map((word) => sum(steps, word));
  const seconds = gateway.step_seconds;
  return {
    rate: sum(steps.slice(-RECENT), "calls") / (RECENT * seconds),
    rates: steps.map((step) => (step.calls ?? 0) / seconds),
    median: quantile(steps, gateway.bounds, 0.5),
    tail: quantile(steps, gateway.bounds, 0.95),
    tails: steps.map((step) => quantile([step], gateway.bounds, 0.95)),
    hitRate: hits + spares + misses ? (hits + spares) / (hits + spares + misses) : null,
    calls: sum(steps, "calls"),
    failed: sum(steps, "failed"),
  };
}

const highest = (values) => values.reduce((most, value) => (value > (most ?? 0) ? value : most), null);

/** The steps of all servers as those of one; none where there is no server. */
export function together(all) {
  return (all[0] ?? []).map((_, index) => {
    const whole = {};
    for (const steps of all) {
      for (const [word, value] of Object.entries(steps[index])) whole[word] = (whole[word] ?? 0) + value;
    }
    return whole;
  });
}

export function drawServers({ gateway, servers }) {
  const names = Object.keys(servers);
  const steps = new Map(names.map((name) => [name, stepsOf(gateway, gateway.trends?.[name])]));
  drawTotals(gateway, Object.values(servers), figuresOf(gateway, together([...steps.values()])));
  const rows = names.map((name) => [name, { ...servers[name], ...figuresOf(gateway, steps.get(name)) }]);
  keyed(byId("servers"), rows, serverRow);
}

function drawTotals(gateway, servers, figures) {
  const total = (word) => servers.reduce((whole, server) => whole + (server[word] ?? 0), 0);
  const state = (word) => servers.reduce((whole, server) => whole + (server.channel_states[word] ?? 0), 0);
  say(byId("total-rate"), rate(figures.rate));
  say(byId("total-median"), latency(figures.median));
  say(byId("total-tail"), latency(figures.tail));
  say(byId("total-hits"), percent(figures.hitRate));
  say(byId("total-failed"), count(figures.failed));
  set(byId("total-failed"), "data-tone", figures.failed ? "bad" : null);
  say(byId("total-inflight"), count(total("inflight")));
  say(byId("total-workflows"), count(total("workflows")));
  say(byId("total-attached"), `${count(total("attached"))} attached`);
  say(byId("total-active"), count(state("active")));
  say(byId("total-idle"), `${count(state("idle"))} idle`);
}

function serverRow(name) {
  const cell = (label, ...children) => element("td", { "data-label": label, role: "cell" }, ...children);
  const [state, hits, inflight, active, rest, workflows, reuse, calls, tail] = Array.from({ length: 9 }, () =>
    element("span"),
  );
  const [rates, tails] = [sparkline("rates"), sparkline("tails")];
  const link = element("a", { href: `#/?server=${encodeURIComponent(name)}` }, name);
  const row = element(
    "tr",
    { role: "row" },
    element("th", { scope: "row", role: "rowheader" }, link),
    cell("State", state),
    cell("Calls/s", calls, rates.node),
    cell("p95", tail, tails.node),
    cell("Hit rate", hits),
    cell("In flight", inflight),
    cell("Channels", active, rest),
    cell("Workflows", workflows),
    cell("Reuse", reuse),
  );
  const failure = element("td", { colspan: 9, role: "cell" });
  const below = element("tr", { class: "failure", role: "row" }, failure);
  const group = element("tbody", { role: "rowgroup" }, row, below);
  rest.className = "aside";
  const draw = (server) => {
    state.className = "state";
    set(state, "data-state", server.state);
    say(state, server.state);
    say(calls, rate(server.rate));
    rates.draw(server.rates, `calls a second, up to ${rate(Math.max(...server.rates))} in the last five minutes`);
    say(tail, latency(server.tail));
    tails.draw(server.tails, `p95 in the last five minutes, up to ${latency(highest(server.tails))}`);
    say(hits, percent(server.hitRate));
    say(inflight, count(server.inflight));
    set(inflight, "data-tone", server.inflight ? null : "none");
    say(active, count(server.channel_states.active));
    say(rest, besides(server.channel_states));
    say(workflows, count(server.workflows));
    say(reuse, server.reuse);
    say(failure, failureOf(server));
    below.hidden = !server.last_failure;
    set(group, "data-state", server.state);
  };
  return { node: group, draw };
}

/** The channels of a server that are not active. */
function besides(states) {
  const [idle, opening, draining] = [states.idle, states.opening, states.draining].map((value) => value ?? 0);
  const more = [opening && `${count(opening)} opening`, draining && `${count(draining)} draining`].filter(Boolean);
  return [` / ${count(idle)} idle`, ...more].join(", ");
}

/** What failed last with a server, since when, and for how long nobody tries again. */
function failureOf(server) {
  const failure = server.last_failure;
  if (!failure) return "";
  const since = server.state === "failing" ? `since ${moment(failure.since)}` : ago(failure.at);
  const wait = server.circuit?.state === "open" ? server.circuit.retry_after : 0;
  const alone = wait ? ` Left alone for another ${span(wait)}.` : "";
  return `${stage(failure.stage)} ${since}: ${plain(failure.message)}.${alone}`;
}
