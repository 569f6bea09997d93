// The document, changed no more than what it shows has: what has the focus keeps it, and nothing is made of strings.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** A new element; a child that is a string becomes text. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function drawing(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [attribute, value] of Object.entries(attributes)) set(node, attribute, value);
  node.append(...children);
  return node;
}

/** Give an attribute this value; take it away where that is null or false. */
export function set(node, attribute, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(attribute);
  else if (node.getAttribute(attribute) !== String(value)) node.setAttribute(attribute, value);
}

export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const children = new WeakMap(); // by parent: by key, what `keyed` made

/**
 * Let a parent have one child for each `[key, value]`, in this order. `make(key)` makes one that is missing, as
 * `{ node, draw }`; `draw(value)` then shows the value, whether it is new or not.
 */
export function keyed(parent, entries, make) {
  const wanted = new Map(entries);
  const made = children.get(parent) ?? new Map();
  children.set(parent, made);
  for (const [key, { node }] of made) {
    if (wanted.has(key)) continue;
    node.remove();
    made.delete(key);
  }
  let place = parent.firstElementChild;
  for (const [key, value] of wanted) {
    if (!made.has(key)) made.set(key, make(key));
    const { node, draw } = made.get(key);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
    draw(value);
  }
}
