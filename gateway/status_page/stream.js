// The connection with the gateway: server-sent events by `fetch`, since an EventSource can carry no token in a header.

const SILENCE = 40_000; // the gateway says something every 15 seconds
const PAUSES = [500, 1_000, 2_000, 4_000, 5_000];

/** A function to be fed the text of a stream as it comes, which calls `onEvent(name, data)` for each event. */
export function eventParser(onEvent) {
  let rest = "";
  let name = "";
  let data = [];
  return (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data.push(line.slice(6));
      else if (line === "" && data.length) {
        onEvent(name, data.join("\n"));
        name = "";
        data = [];
      }
    }
  };
}

/**
 * One stream at a time, opened again whenever it ends.
 *
 * `onEvent(name, value)` hears what it tells; `onState(state, detail)` how it stands: `connecting`, `live`, `lost` (with
 * why, where the gateway said so), or `refused` (it wants a token, or another one), after which nothing more is tried.
 */
export class Connection {
  #onEvent;
  #onState;
  #query = "";
  #failures = 0;
  #current = null; // what ends the stream that is open, or being opened
  #timer = 0;
  token = ""; // in memory alone

  constructor({ onEvent, onState }) {
    this.#onEvent = onEvent;
    this.#onState = onState;
  }

  /** Ask for this from now on. */
  open(query) {
    this.#query = query;
    this.#failures = 0;
    this.#connect();
  }

  /** Try at once, if nothing is open; whoever waits does not want to see a pause to its end. */
  retry() {
    if (this.#current === null) this.#connect();
  }

  close() {
    clearTimeout(this.#timer);
    this.#current?.abort();
    this.#current = null;
  }

  async #connect() {
    this.close();
    const current = (this.#current = new AbortController());
    this.#onState("connecting");
    const why = await this.#listen(current).catch(() => "");
    current.abort();
    if (this.#current !== current) return; // another one has taken its place
    this.#current = null;
    if (why === "refused") return this.#onState("refused");
    this.#onState("lost", why);
    const pause = PAUSES[Math.min(this.#failures, PAUSES.length - 1)];
    this.#failures += 1;
    this.#timer = setTimeout(() => this.#connect(), pause * (0.75 + Math.random() / 2));
  }

  /** Listen until the stream ends; why, where the gateway said so. */
  async #listen(current) {
    const headers = { Accept: "text/event-stream" };
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    let watchdog = setTimeout(() => current.abort(), SILENCE);
    const answer = await fetch(`api/events${this.#query}`, { headers, signal: current.signal, cache: "no-store" });
    if (answer.status === 401) return "refused";
    if (!answer.ok) return reasonIn(await answer.text());
    const parse = eventParser((name, data) => {
      this.#failures = 0;
      this.#onEvent(name, JSON.parse(data));
      this.#onState("live");
    });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      clearTimeout(watchdog);
      if (done) return "";
      watchdog = setTimeout(() => current.abort(), SILENCE);
      parse(value);
    }
  }
}

/** What a refusal says, in JSON or in plain text. */
function reasonIn(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return text.slice(0, 200);
  }
}
