// JSON merge patches (RFC 7396): what `/api/events` tells after its first event.

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** What a patch makes of a value. Nothing is changed in place, so that what was drawn can be compared with what is. */
export function merge(target, patch) {
  if (!isObject(patch)) return patch;
  // Without a prototype, no name that a server may have means anything else.
  const merged = Object.assign(Object.create(null), isObject(target) ? target : {});
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete merged[name];
    else merged[name] = merge(merged[name], value);
  }
  return merged;
}
