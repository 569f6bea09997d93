// One workflow: how it stands, what the pool did for it and why, and what happened to it.

import { byId, element, keyed, say, set } from "./dom.js";
import { ago, count, happened, moment, plain, sentence, span, spaced, transport } from "./words.js";

export function drawWorkflow({ workflow: told }, handle) {
  if (!told) return;
  const isFound = Boolean(told.workflow);
  say(byId("workflow-name"), isFound ? told.workflow.workflow : handle);
  byId("workflow-found").hidden = !isFound;
  byId("workflow-missing").hidden = isFound;
  if (!isFound) return drawMissing(told);
  const state = byId("workflow-state");
  set(state, "data-state", told.workflow.state);
  say(state, told.workflow.state);
  drawPairs(byId("facts"), factsOf(told));
  drawReasons(told);
  drawTimeline(told.timeline);
}

function drawMissing(told) {
  say(byId("missing-why"), plain(told.error));
  const candidates = (told.candidates ?? []).map((handle) => [handle, handle]);
  keyed(byId("candidates"), candidates, (handle) => {
    const link = element("a", { href: `#/workflows/${encodeURIComponent(handle)}`, class: "code" });
    return { node: element("li", {}, link), draw: (words) => say(link, words) };
  });
}

function factsOf({ workflow, channel, ended }) {
  const facts = {
    Server: workflow.server,
    Principal: workflow.principal,
    Transport: transport(workflow.transport),
    Revision: workflow.revision,
    "Came with": workflow.keyed ? "a key of its own" : "its session id",
    Reuse: workflow.reuse,
    "In flight": count(workflow.inflight),
  };
  if (!ended) facts.Idle = span(workflow.idle);
  if (workflow.worker) facts.Worker = String(workflow.worker);
  if (!channel) return { ...facts, Channel: ended ? "none: it has ended" : String(workflow.channel) };
  const shared = channel.shared_with ? `, shared with ${count(channel.shared_with)} more` : "";
  const beside = channel.sessions > 1 ? `, one of ${count(channel.sessions)}` : "";
  return {
    ...facts,
    Channel: `${channel.state}, open for ${span(channel.age)}${shared}${beside}`,
  };
}

function drawPairs(list, pairs) {
  keyed(list, Object.entries(pairs), (name) => {
    const value = element("dd");
    return { node: element("div", {}, element("dt", {}, name), value), draw: (words) => say(value, plain(words)) };
  });
}

function reasonsOf({ ended, origin, initialize, pool, asked }) {
  const reasons = {};
  if (ended) reasons.Ended = { result: ended.cause, says: `${ended.says} (${ago(ended.at)})` };
  if (origin) {
    const before = origin.before ? ` (before it: ${origin.before})` : "";
    reasons["Began anew"] = { result: origin.cause || "unknown", says: origin.says + before };
  }
  if (initialize) reasons.Initialize = initialize;
  if (asked === "call" && pool) reasons["Last call"] = pool;
  return reasons;
}

function drawReasons(told) {
  keyed(byId("reasons"), Object.entries(reasonsOf(told)), (name) => {
    const [result, says] = [element("span", { class: "result" }), element("span")];
    const node = element("div", {}, element("dt", {}, name), element("dd", {}, result, says));
    const draw = (reason) => {
      set(result, "data-result", reason.result);
      say(result, spaced(reason.result));
      say(says, sentence(reason.says));
    };
    return { node, draw };
  });
}

function drawTimeline(events) {
  const newestFirst = events.map((event, index) => [index, event]).reverse();
  keyed(byId("timeline"), newestFirst, () => {
    const [when, what] = [element("time"), element("span", { class: "what" })];
    const [detail, since] = [element("span", { class: "aside" }), element("span", { class: "aside since" })];
    const node = element("li", {}, when, element("span", {}, what, detail), since);
    const draw = (event) => {
      set(node, "data-what", event.what);
      set(when, "datetime", new Date(event.at * 1000).toISOString());
      say(when, moment(event.at));
      say(what, happened(event.what));
      say(detail, event.detail ? ` ${transport(event.detail)}` : "");
      say(since, ago(event.at));
    };
    return { node, draw };
  });
}
