// A line of what happened lately: no axes, since the number beside it says where it ends.

import { drawing, set } from "./dom.js";

const HEIGHT = 22;
const ROOM = 2; // above the highest and below the lowest

/** An empty one; `draw(values, words)` gives it its line, where null is a moment without a value. */
export function sparkline(kind) {
  const area = drawing("path", { class: "area" });
  const line = drawing("path", { class: "line" });
  const svg = drawing("svg", { class: `spark ${kind}`, role: "img", preserveAspectRatio: "none" }, area, line);
  const draw = (values, words) => {
    const peak = Math.max(...values.map((value) => value ?? 0)) || 1;
    const place = (value) => (HEIGHT - ROOM - (value / peak) * (HEIGHT - 2 * ROOM)).toFixed(1);
    set(svg, "viewBox", `0 0 ${values.length - 1} ${HEIGHT}`);
    set(svg, "aria-label", words);
    const runs = runsOf(values);
    set(line, "d", runs.map((run) => `M${run.map(([x, value]) => `${x},${place(value)}`).join("L")}`).join(""));
    set(area, "d", runs.map((run) => areaUnder(run, place)).join(""));
  };
  return { node: svg, draw };
}

/** The stretches of values without a gap, as lists of [index, value]. A value that stands alone is made visible. */
function runsOf(values) {
  const runs = [];
  let run = null;
  values.forEach((value, index) => {
    if (value === null) run = null;
    else if (run) run.push([index, value]);
    else runs.push((run = [[index, value]]));
  });
  return runs.map((one) => (one.length > 1 ? one : [[one[0][0] - 0.5, one[0][1]], [one[0][0] + 0.5, one[0][1]]]));
}

function areaUnder(run, place) {
  const [first, last] = [run[0][0], run[run.length - 1][0]];
  return `M${first},${HEIGHT}L${run.map(([x, value]) => `${x},${place(value)}`).join("L")}L${last},${HEIGHT}Z`;
}
