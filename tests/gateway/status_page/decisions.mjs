// What the script of the status page decides without a browser. Run by test_document.py.

import assert from "node:assert/strict";
import test from "node:test";
import { pathToFileURL } from "node:url";

const part = (name) => import(pathToFileURL(`${process.env.STATUS_PAGE}/${name}.js`));
const { merge } = await part("merge");
const { eventParser } = await part("stream");
const { figuresOf, quantile, stepsOf, together } = await part("servers");
const { latency, percent, plain, rate, span, happened } = await part("words");
const { Search } = await part("workflows");

const bare = (value) => JSON.parse(JSON.stringify(value));

test("a patch changes what it names, and nothing in place", () => {
  const before = { a: 1, b: { c: 2, d: 3 }, e: [1] };
  const after = merge(before, { a: null, b: { c: 4 }, e: [2], f: { g: null, h: 5 } });
  assert.deepEqual(bare(after), { b: { c: 4, d: 3 }, e: [2], f: { h: 5 } });
  assert.deepEqual(before, { a: 1, b: { c: 2, d: 3 }, e: [1] });
});

test("a server may have any name", () => {
  const merged = merge({}, JSON.parse('{"__proto__": {"polluted": 1}, "constructor": {"x": 1}}'));
  assert.equal({}.polluted, undefined);
  assert.deepEqual(Object.keys(merged), ["__proto__", "constructor"]);
  assert.equal(happened("constructor"), "constructor");
});

test("events are read however the stream is cut", () => {
  const text = ': hello\n\nevent: snapshot\ndata: {"a":\ndata: 1}\n\nretry: 1000\n\nevent: change\ndata: {}\n\n';
  for (const size of [1, 2, 7, text.length]) {
    const events = [];
    const feed = eventParser((...event) => events.push(event));
    for (let at = 0; at < text.length; at += size) feed(text.slice(at, at + size));
    assert.deepEqual(events, [["snapshot", '{"a":\n1}'], ["change", "{}"]]);
  }
});

test("a quantile lies within its bucket", () => {
  const bounds = [0.001, 0.01, 0.1];
  assert.equal(quantile([{}, {}], bounds, 0.95), null);
  assert.equal(quantile([{ le1: 10 }], bounds, 1), 0.01);
  assert.ok(Math.abs(quantile([{ le1: 5 }, { le1: 5 }], bounds, 0.5) - 0.0055) < 1e-9);
  assert.ok(Math.abs(quantile([{ le0: 90, le2: 10 }], bounds, 0.95) - 0.055) < 1e-9);
  assert.equal(quantile([{ le3: 1 }], bounds, 0.95), 0.1);
});

test("figures are of the steps that are told", () => {
  const gateway = { last_step: 100, steps: 10, step_seconds: 2, bounds: [0.001, 0.01] };
  const trend = { 90: { calls: 1000 }, 96: { calls: 10, hit: 9, miss: 1, le0: 10 }, 100: { calls: 10, hit: 10, failed: 2, le1: 10 } };
  const steps = stepsOf(gateway, trend);
  assert.equal(steps.length, 10);
  const figures = figuresOf(gateway, steps);
  assert.deepEqual([figures.rate, figures.hitRate, figures.failed, figures.rates.at(-1)], [2, 0.95, 2, 5]);
  assert.deepEqual(figures.tails.slice(0, 5), [null, null, null, null, null]);
  assert.deepEqual([figuresOf(gateway, stepsOf(gateway)).hitRate, figuresOf(gateway, stepsOf(gateway)).tail], [null, null]);
});

test("where no server is there, the figures say so", () => {
  const gateway = { last_step: 100, steps: 10, step_seconds: 2, bounds: [0.001, 0.01] };
  const figures = figuresOf(gateway, together([]));
  assert.deepEqual([figures.rate, figures.calls, figures.failed], [0, 0, 0]);
  assert.deepEqual([figures.hitRate, figures.median, figures.tail], [null, null, null]);
});

test("numbers as people read them", () => {
  assert.deepEqual([0, 0.05, 0.5, 12.4, 12345].map(rate), ["0", "< 0.1", "0.5", "12", "12,345"]);
  assert.deepEqual([null, 0, 0.5, 0.99999, 1].map(percent), ["–", "0 %", "50.0 %", "99.9 %", "100 %"]);
  assert.deepEqual([null, 0.0005, 0.0023, 0.043, 1.26, 30].map(latency), ["–", "≤ 1 ms", "2.3 ms", "43 ms", "1.3 s", "30 s"]);
  assert.deepEqual([null, -1, 5.9, 150, 9000, 200_000].map(span), ["–", "0 s", "5 s", "2 min", "2 h", "2 d"]);
});

test("what others write cannot reorder or hide the text around it", () => {
  assert.equal(plain("a\u202Eb\u0000c\u200Bd\ne"), "a b c d e");
  assert.equal(plain("x".repeat(1000)).length, 500);
});

test("a search stands in the address, and pages lead back", () => {
  const search = new Search("q=ab&server=x&other=1");
  assert.equal(search.address, "#/?q=ab&server=x");
  assert.equal(search.query, "?limit=50&q=ab&server=x&state=&after=");
  search.forward("50");
  search.forward("2.7");
  assert.deepEqual([search.first, new URLSearchParams(search.query).get("after")], [101, "2.7"]);
  search.back();
  search.back();
  assert.deepEqual([search.first, new Search().isEmpty, search.isEmpty], [1, true, false]);
});
