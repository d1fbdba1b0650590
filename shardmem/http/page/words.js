// Elements and words. Texts from anywhere go in as text: the page makes no markup of any, and its policy forbids it.

export const $ = id => document.getElementById(id);

export function make(name, options = {}, ...children) {
  const {text, kind, ...attributes} = options,
    made = document.createElement(name);
  if (kind) made.className = kind;
  for (const [key, value] of Object.entries(attributes))
    if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

/** Only what changes is written: a screen reader is told of every write, and a selection is lost by it. */
export function set(node, text, kind) {
  if (node.textContent !== String(text)) node.textContent = text;
  if (kind !== undefined && node.className !== kind) node.className = kind;
}

const told = new WeakMap();
/** A sentence of the supervisor: what stands in backticks is code. */
export function prose(node, text) {
  if (told.get(node) === text) return;
  told.set(node, text);
  const parts = text.split("`");
  node.replaceChildren(...(parts.length % 2 ? parts.map((each, i) => (i % 2 ? make("code", {text: each}) : each)) : [text]));
}

export function attribute(node, name, value) {
  if (value === null || value === undefined) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** The children of `parent`, one for each item, in order; the child of a key stays the same element, and keeps the focus. */
export function keyed(parent, items, keyOf, create, update) {
  const there = new Map([...parent.children].map(child => [child.dataset.key, child]));
  let after = null;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = there.get(key);
    if (!child) {
      child = create(item);
      child.dataset.key = key;
    }
    there.delete(key);
    update(child, item);
    const place = after ? after.nextElementSibling : parent.firstElementChild;
    if (place !== child) parent.insertBefore(child, place);
    after = child;
  }
  for (const child of there.values()) child.remove();
}

/** [name, text] pairs as a <dl>. */
export function named(list, pairs) {
  keyed(
    list,
    pairs,
    ([name]) => name,
    ([name]) => make("div", {}, make("dt", {text: name}), make("dd")),
    (box, [, text]) => set(box.lastChild, text),
  );
}

const number = new Intl.NumberFormat("en");
export const exact = n => number.format(n);
export const plural = (n, one, many = `${one}s`) => `${exact(n)} ${n === 1 ? one : many}`;

export function short(n) {
  if (n === null || n === undefined) return "–";
  for (const [size, unit] of [
    [1e9, "G"],
    [1e6, "M"],
    [1e4, "k"],
  ])
    if (n >= size) {
      const scaled = n / (unit === "k" ? 1e3 : size);
      return `${scaled.toFixed(scaled < 10 ? 2 : scaled < 100 ? 1 : 0)} ${unit}`;
    }
  return n > 0 && n < 10 && n % 1 ? n.toFixed(1) : exact(Math.round(n));
}

export const rate = n => (n === null || n === undefined ? "–" : `${short(n)}/s`);
export const part = x => (x === null || x === undefined ? "–" : `${(100 * x).toFixed(0)} %`);

export function micro(us) {
  if (us === null || us === undefined) return "–";
  const [value, unit] = us < 999.5 ? [us, "µs"] : us < 999500 ? [us / 1e3, "ms"] : [us / 1e6, "s"];
  return `${value.toFixed(unit === "µs" || value >= 99.5 ? 0 : 1)} ${unit}`;
}

export function bytes(n) {
  if (n === null || n === undefined) return "–";
  for (const [size, unit] of [
    [2 ** 30, "GiB"],
    [2 ** 20, "MiB"],
    [2 ** 10, "KiB"],
  ])
    if (n >= size) return `${(n / size).toFixed(n / size < 100 ? 1 : 0)} ${unit}`;
  return `${n} B`;
}

export function span(s) {
  if (s === null || s === undefined) return "–";
  return s < 9.95
    ? `${s.toFixed(1)} s`
    : s < 90
      ? `${s.toFixed(0)} s`
      : s < 5400
        ? `${(s / 60).toFixed(0)} min`
        : s < 172800
          ? `${(s / 3600).toFixed(1)} h`
          : `${(s / 86400).toFixed(0)} d`;
}

export const clock = at => new Date(at * 1000).toLocaleTimeString("en-GB");
export const sum = values => values.reduce((total, each) => total + each, 0);
export const reasons = counts =>
  Object.entries(counts)
    .filter(([, n]) => n)
    .sort()
    .map(([why, n]) => `${why} ${exact(n)}`)
    .join(", ");

/** 0, 1, 2, 5 -> "0-2", "5". */
export function ranges(numbers) {
  const found = [];
  for (const n of numbers) {
    const last = found[found.length - 1];
    if (last && last[1] === n - 1) last[1] = n;
    else found.push([n, n]);
  }
  return found.map(([low, high]) => (low === high ? `${low}` : `${low}-${high}`));
}

const dark = matchMedia("(prefers-color-scheme: dark)");

/** A line in the colour of a shard: seen on the card, light or dark, and apart from its neighbours. */
export const lineColor = shard =>
  `hsl(${(shard * 137.508 + 215) % 360} ${dark.matches ? "75% 68%" : "75% 36%"})`;

/** The time zone of every time on the page, as in "UTC+2, Europe/Berlin". */
export function zone() {
  const minutes = -new Date().getTimezoneOffset(),
    hours = `${Math.floor(Math.abs(minutes) / 60)}${minutes % 60 ? `:${Math.abs(minutes % 60)}` : ""}`,
    name = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const offset = minutes ? `UTC${minutes < 0 ? "−" : "+"}${hours}` : "UTC";
  return name && name !== "UTC" ? `${offset}, ${name}` : offset;
}
