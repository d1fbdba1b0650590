// The engines of this machine on one page: which one is ill and why, how much each handles, and the way to its page.

import {$, attribute, exact, keyed, make, plural, prose, set, short, span, zone} from "./words.js";

const EVERY = 2000,
  PATIENCE = 5000,
  KEPT = 60,
  MOST = 3,
  COLUMNS = 7;
const WORST = ["error", "warning", "info"],
  WORDS = {error: "error", warning: "warning", info: "good"};
const SVG = "http://www.w3.org/2000/svg";
const rates = new Map();

/** The same host as this page, by whatever name it was reached, and the port of the other. */
function elsewhere(url) {
  const there = new URL("./", location.href);
  there.port = new URL(url).port;
  return there.href;
}

function trend() {
  const svg = document.createElementNS(SVG, "svg"),
    line = document.createElementNS(SVG, "polyline");
  for (const [name, value] of [["viewBox", "0 0 100 20"], ["preserveAspectRatio", "none"], ["aria-hidden", "true"], ["class", "trend"]])
    svg.setAttribute(name, value);
  line.setAttribute("class", "line line0");
  line.setAttribute("vector-effect", "non-scaling-stroke");
  svg.append(line);
  return svg;
}

function draw(svg, kept) {
  const most = Math.max(1, ...kept),
    first = 100 - (kept.length - 1) * (100 / (KEPT - 1));
  attribute(
    svg.firstChild,
    "points",
    kept.map((each, i) => `${(first + (i * 100) / (KEPT - 1)).toFixed(1)},${(18.5 - (17 * each) / most).toFixed(1)}`).join(" "),
  );
}

function newRow(each) {
  return make(
    "tr",
    {},
    make(
      "th",
      {scope: "row", kind: "left engine"},
      each.http ? make("a", {href: elsewhere(each.http)}) : make("span"),
      make("small", {kind: "soft"}),
    ),
    make("td", {kind: "left"}, make("span")),
    make("td"),
    make("td", {kind: "left some"}, trend()),
    make("td", {kind: "some"}),
    make("td", {kind: "some"}),
    make("td", {kind: "some"}),
  );
}

/** What is wrong with it, below its row and as wide as the table. */
function newNotes() {
  return make("tr", {kind: "notes"}, make("td", {kind: "left", colspan: COLUMNS}, make("ul")));
}

const told = each => (each.error ? [each.error] : each.findings);

function fillNotes({cells}, each) {
  const said = told(each),
    more = said.length - MOST;
  keyed(
    cells[0].firstChild,
    [...said.slice(0, MOST), ...(more > 0 ? [`and ${plural(more, "more finding", "more findings")}`] : [])],
    text => text,
    () => make("li"),
    prose,
  );
}

function fill({cells}, each) {
  const [name, about] = cells[0].children;
  set(name, each.name);
  set(about, [each.handler, each.http ? "" : "no http_port: shardmem top"].filter(Boolean).join(" · "));
  set(
    cells[1].firstChild,
    each.state === "running" ? each.verdict : each.state,
    `word ${each.state === "running" ? WORDS[each.level] : each.level === "error" ? "error" : "warning"}`,
  );
  set(cells[2], short(each.rate));
  draw(cells[3].firstChild, rates.get(each.name));
  set(cells[4], short(each.in_flight));
  set(cells[5], span(each.oldest_s));
  set(cells[6], each.shards === null ? "–" : exact(each.shards));
}

let spoken = "";

function show(engines) {
  for (const {name, rate} of engines) rates.set(name, [...(rates.get(name) || []), rate || 0].slice(-KEPT));
  const host = engines.find(each => each.host)?.host,
    count = level => engines.filter(each => each.level === level).length,
    level = WORST.find(each => count(each)) || "info";
  set($("name"), host ? `Engines on ${host}` : "Engines of this machine");
  document.title = `${{error: "✕ ", warning: "! "}[level] || ""}engines${host ? ` on ${host}` : ""} · shardmem`;
  set($("about"), `${plural(engines.length, "engine")} · times in ${zone()}`);
  attribute($("verdict"), "data-level", WORDS[level]);
  set(
    $("verdict-word"),
    level === "error"
      ? `${plural(count("error"), "engine is failing", "engines are failing")}`
      : level === "warning"
        ? `${plural(count("warning"), "engine needs attention", "engines need attention")}`
        : engines.length === 1
          ? "The engine is healthy"
          : `All ${exact(engines.length)} engines are healthy`,
  );
  const sum = key => engines.reduce((total, each) => total + (each[key] || 0), 0);
  set($("verdict-sum"), `${short(sum("rate"))} events/s in all, ${short(sum("in_flight"))} in flight.`);
  const verdict = $("verdict-word").textContent;
  if (verdict !== spoken) set($("announce"), verdict);
  spoken = verdict;
  const rows = [...engines]
    .sort((a, b) => WORST.indexOf(a.level) - WORST.indexOf(b.level) || a.name.localeCompare(b.name))
    .flatMap(each => [{each, notes: false}, ...(told(each).length ? [{each, notes: true}] : [])]);
  keyed(
    $("engine-table").tBodies[0],
    rows,
    ({each, notes}) => `${each.name} ${each.http} ${notes}`,
    ({each, notes}) => (notes ? newNotes() : newRow(each)),
    (row, {each, notes}) => (notes ? fillNotes : fill)(row, each),
  );
}

function gone(error) {
  attribute($("verdict"), "data-level", "error");
  set($("verdict-word"), "No answer from the supervisor that serves this page");
  set($("verdict-sum"), `What is below is old (${error.message}). This page keeps asking; in a shell: shardmem ls`);
  set($("announce"), $("verdict-word").textContent);
}

async function look() {
  try {
    const answer = await fetch("engines", {cache: "no-store", signal: AbortSignal.timeout(PATIENCE)}),
      body = await answer.json();
    if (!answer.ok) throw new Error(body.error || answer.statusText);
    show(body.engines);
  } catch (error) {
    gone(error);
  }
  setTimeout(look, EVERY);
}

look();
