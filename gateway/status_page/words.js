// Numbers and fixed words as people read them.

const whole = new Intl.NumberFormat("en");
const DASH = "–";

export const count = (value) => whole.format(value ?? 0);

/** Calls in a second. */
export function rate(value) {
  if (value === 0) return "0";
  if (value < 0.1) return "< 0.1";
  return value < 10 ? value.toFixed(1) : whole.format(Math.round(value));
}

/** A share of 1. All is only said of all, and nothing of none. */
export function percent(share) {
  if (share === null) return DASH;
  const value = share > 0.9995 && share < 1 ? 99.9 : share * 100;
  return `${value === 100 || value === 0 ? value : value.toFixed(1)} %`;
}

/** How long a call took, in seconds. */
export function latency(seconds) {
  if (seconds === null) return DASH;
  if (seconds <= 0.001) return "≤ 1 ms";
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 10 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
}

/** A length of time. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 120) return `${Math.floor(Math.max(0, seconds))} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86_400)} d`;
}

export const ago = (at) => `${span(Date.now() / 1000 - at)} ago`;

/** A moment, as the clock on the wall says it; with the day, where that was another one. */
export function moment(at) {
  const date = new Date(at * 1000);
  const isToday = date.toDateString() === new Date().toDateString();
  const time = date.toLocaleTimeString("en-GB");
  return isToday ? time : `${date.toLocaleDateString("en-CA")} ${time}`;
}

/** What somebody else wrote, without what would reorder or hide the text around it. */
export const plain = (text) => String(text ?? "").replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}]/gu, " ").slice(0, 500);

/** The same as a sentence. */
export const sentence = (text) => plain(text).replace(/^./u, (first) => first.toUpperCase());

const HAPPENED = {
  created: "Began",
  reset: "Began anew",
  taken_over: "Taken over from another worker",
  attached: "Its client opened a stream",
  left: "Its client closed a stream",
  cut: "A connection of its client was cut",
  resumed: "Its client came back",
  moved: "Moved to another transport",
  lost: "The session with the server was lost",
  reopened: "The session with the server was opened anew",
  ended: "Ended",
};

const TRANSPORTS = { http: "HTTP", sse: "SSE", websocket: "WebSocket" };
const STAGES = {
  credential: "No credential",
  connect: "Not connected",
  handshake: "No handshake",
  session: "A session was lost",
};

/** A fixed word that the gateway uses, without its joints. */
export const spaced = (word) => plain(word).replaceAll("_", " ");

const named = (words) => (word) => (Object.hasOwn(words, word) ? words[word] : spaced(word));
export const happened = named(HAPPENED);
export const transport = named(TRANSPORTS);
export const stage = named(STAGES);
