// An engine as it runs: asked once a second, judged by the supervisor (`findings` of the status document), shown as it answers.

import {Chart, History} from "./charts.js";
import {Commands} from "./dialog.js";
import {ORDERS} from "./orders.js";
import {Quarantine} from "./quarantine.js";
import {Slots} from "./slots.js";
import {Sources} from "./sources.js";
import {Producers, Shards} from "./tables.js";
import {
  $, attribute, bytes, clock, exact, keyed, lineColor, make, micro, part, plural, prose, rate, reasons, set, short, span, sum, zone,
} from "./words.js";

const EVERY = 1000,
  PATIENCE = 3000,
  SLOTS_EVERY = 5,
  OTHERS_EVERY = 30,
  QUARANTINE_EVERY = 10;

const history = new History();
let last = null,
  answered = null,
  slots = null,
  slotsKey = "",
  slotsAt = 0,
  listed = null,
  listedKey = "",
  listedAt = 0,
  othersAt = -Infinity,
  filled = false,
  due = null,
  turn = 0;

/** A header is bytes: those of UTF-8, which is what the supervisor compares. */
const header = text => String.fromCharCode(...new TextEncoder().encode(text));

async function ask(path, options = {}) {
  const {token, patience = PATIENCE, ...rest} = options,
    headers = {...rest.headers};
  if (token ?? commands.token) headers.Authorization = `Bearer ${header(token ?? commands.token)}`;
  const answer = await fetch(path, {cache: "no-store", ...rest, headers, signal: AbortSignal.timeout(patience)}),
    body = await answer.json();
  if (!answer.ok) throw new Error([body.error || answer.statusText, body.hint].filter(Boolean).join(". "));
  return body;
}

const send = (path, body, token) =>
  ask(path, {
    method: "POST",
    body: JSON.stringify(body),
    headers: {"Content-Type": "application/json"},
    token,
    patience: 3.6e6,
  });

// ---- the verdict ---------------------------------------------------------------------------------------------------------

const HEADS = {good: "Healthy", info: "Healthy", warning: "Needs attention", error: "Failing"},
  MARKS = {error: "✕ ", warning: "! ", info: ""};

function verdict(level, head, text, findings) {
  attribute($("verdict"), "data-level", level);
  set($("verdict-word"), head);
  set($("verdict-sum"), text);
  keyed(
    $("findings"),
    findings,
    each => `${each.kind}.${each.shard}`,
    () => {
      const line = make(
        "li",
        {},
        make("p", {}, make("b"), make("span")),
        make(
          "div",
          {kind: "row"},
          make("span"),
          make("code", {kind: "shell"}),
          make("button", {type: "button", "data-order": "finding"}),
        ),
      );
      line.querySelector("button").addEventListener("click", () => act(line.finding));
      return line;
    },
    (line, each) => {
      line.finding = each;
      const [word, text] = line.firstChild.childNodes,
        [advice, shell, button] = line.lastChild.children;
      set(
        word,
        {error: "✕ Error: ", warning: "! Warning: ", info: "Note: "}[each.level],
        each.level === "info" ? "soft" : each.level,
      );
      prose(text, each.text);
      prose(advice, each.advice || "");
      set(shell, each.command || "");
      shell.hidden = !each.command;
      button.hidden = !each.order && each.kind !== "quarantine";
      set(button, each.kind === "quarantine" ? "Show them" : each.order ? label(each.order) : "");
    },
  );
}

const nameOf = order => (order.name === "scale" && order.body.shards === "auto" ? "auto" : order.name);
const label = order => `${ORDERS[nameOf(order)].verb(order.body)} …`;

function act(finding) {
  if (finding.order) commands.open(nameOf(finding.order), finding.order.body);
  else {
    $("quarantine").scrollIntoView();
    ($("quarantine-some").hidden ? $("token") : $("replay")).focus();
  }
}

let spoken = "";
/** A screen reader hears of a new verdict, and not of every figure. */
function speak(key, text) {
  if (key !== spoken) set($("announce"), text);
  spoken = key;
}

function judge(document) {
  const {findings, shards, engine, latency} = document,
    level = findings.some(each => each.level === "error")
      ? "error"
      : findings.some(each => each.level === "warning")
        ? "warning"
        : "good";
  const fullest = Math.max(0, ...shards.map(each => each.fill_ratio)),
    point = history.points[history.points.length - 1];
  const working = shards.filter(each => each.alive).length,
    text =
      `${plural(working, "shard handles", "shards handle")} ${point.handled === null ? "events" : `${short(point.handled)} events/s`}; ` +
      `the fullest lane is ${part(fullest)} full` +
      (latency.p99_us === null ? "." : `; 99 of 100 events are handled within ${micro(latency.p99_us)}.`);
  verdict(
    level,
    engine.state === "running" ? HEADS[level] : `${HEADS[level]}: the engine is ${engine.state}`,
    text,
    findings,
  );
  speak(
    level +
      findings
        .filter(each => each.level !== "info")
        .map(each => each.kind + each.shard)
        .join(),
    `${HEADS[level]}. ${findings
      .filter(each => each.level !== "info")
      .map(each => each.text)
      .join(" ")}`,
  );
  window.document.title = `${level === "good" ? "" : MARKS[level]}${engine.name} · shardmem`;
}

// ---- the parts -----------------------------------------------------------------------------------------------------------

const range = () => Number($("range").value);
const of = (...keys) => keys.map(([key, name]) => ({key, name, of: point => point[key] ?? null})),
  fixed = (...keys) => {
    const series = of(...keys);
    return () => series;
  };
const MOST_LINES = 24;

/** A line for each shard that there was, in the colour that it has everywhere. */
function ofShards(points) {
  const ids = [...new Set(points.flatMap(each => Object.keys(each.shards || {})))].sort((a, b) => a - b);
  return ids.slice(0, MOST_LINES).map(id => ({
    key: id,
    name: `shard ${id}`,
    color: lineColor(Number(id)),
    of: point => point.shards?.[id]?.rate ?? null,
  }));
}

const charts = [
  {title: "Throughput", format: rate, least: 10, series: fixed(["accepted", "accepted"], ["handled", "handled"])},
  {title: "Handled by shard", format: rate, least: 10, series: ofShards},
  {
    title: "Push to handled",
    note: "powers of ten",
    format: micro,
    least: 1000,
    log: true,
    series: fixed(["p99", "p99"], ["p50", "p50"]),
  },
  {
    title: "Fill of lanes",
    format: part,
    least: 1,
    most: 1,
    series: fixed(["fullest", "fullest lane"], ["mean", "mean of shards"]),
  },
].map(each => new Chart($("plots"), history, each, range, plots));

function plots() {
  for (const chart of charts) chart.draw();
  const shown = history.shown;
  set($("moment"), shown && history.cursor !== null ? `at ${clock(shown.at)}` : "now");
}

function remember(document) {
  const now = Date.now() / 1000,
    before = last?.accounting,
    after = document.accounting,
    seconds = now - answered;
  const per = key => (before && seconds < 3.5 && after[key] >= before[key] ? (after[key] - before[key]) / seconds : null);
  const fills = document.shards.map(each => each.fill_ratio);
  history.add(document.engine.name, {
    at: now,
    accepted: per("accepted"),
    handled: per("handled"),
    p50: document.latency.p50_us,
    p99: document.latency.p99_us,
    fullest: Math.max(0, ...fills),
    mean: fills.length ? sum(fills) / fills.length : 0,
    shards: Object.fromEntries(document.shards.map(each => [each.id, {rate: each.rate}])),
  });
}

function boxes(list, told) {
  keyed(
    list,
    told,
    ([name]) => name,
    ([name]) => make("div", {}, make("dt", {text: name}), make("dd")),
    (box, [, value, hint, kind = ""]) => {
      set(box.lastChild, value, kind);
      box.title = hint;
    },
  );
}

function machineOf({machine, engine, shards}) {
  const known = shards.filter(each => each.cpu !== null);
  boxes($("machine"), [
    ["CPU of workers", known.length ? `${sum(known.map(each => each.cpu)).toFixed(2)} cores` : "–", "of all shards together"],
    ["load, cores", `${machine.load_1m === null ? "–" : machine.load_1m.toFixed(1)} of ${machine.cores}`, "of the last minute"],
    ["memory of workers", bytes(sum(shards.map(each => each.rss_bytes || 0))), "resident, shared memory included"],
    ["memory free", `${bytes(machine.memory_free_bytes)}`, `of ${bytes(machine.memory_size_bytes)}`],
    ["/dev/shm used", bytes(engine.shm_bytes), "behind the segments of this engine"],
    ["/dev/shm free", bytes(engine.shm_free_bytes), `of ${bytes(engine.shm_size_bytes)}`],
    ...(engine.state_bytes === null
      ? []
      : [["state", bytes(engine.state_bytes), `saved ${span(engine.state_age_s)} ago`]]),
  ]);
}

function tiles({accounting: a, producers, shards}) {
  const refused = sum(Object.values(a.refused)),
    shed = sum(Object.values(a.shed)),
    ages = shards.map(each => each.oldest_s).filter(each => each !== null),
    oldest = ages.length ? Math.max(...ages) : null;
  const told = [
    ["offered", short(a.offered), "accepted and refused"],
    ["accepted", short(a.accepted), "a push returned for them"],
    ["refused", short(refused), reasons(a.refused), refused ? "warning" : ""],
    ["handled", short(a.handled), "the handler returned for them"],
    ["in flight", short(a.in_flight), "accepted and not yet handled"],
    ["oldest of them", oldest === null ? "–" : span(oldest), "pushed so long ago"],
    ["quarantined", short(a.quarantined), "put in quarantine, ever", a.quarantined ? "warning" : ""],
    ["skipped", short(a.skipped), "came again, and the state holds them already"],
    ["shed", short(shed), reasons(a.shed) || "accepted and then given up: to make room, or another host's", shed ? "warning" : ""],
    ["producers", exact(producers.filter(each => each.alive).length), "connected now"],
    ["shards", exact(shards.length), ""],
  ];
  boxes($("tiles"), told);
}

function timeline(document, now) {
  const decisions = document.decisions
    .filter(each => each.kind !== "none")
    .map(each => ({
      at: now - each.age_s,
      kind: "decision",
      level: "info",
      shard: null,
      count: each.count,
      text: `The policy: ${each.kind} ${each.count || ""}: ${each.reason}${each.times > 1 ? ` (${exact(each.times)} times)` : ""}`,
      id: `decision ${Math.round(now - each.since_s)}`,
    }));
  const events = (document.history).map(each => ({...each, id: `${each.at} ${each.kind} ${each.shard} ${each.text}`}));
  keyed(
    $("timeline"),
    [...events, ...decisions].sort((a, b) => b.at - a.at),
    each => each.id,
    () => make("li", {}, make("time", {kind: "soft"}), make("span"), make("span")),
    (line, each) => {
      const [time, level, text] = line.children;
      attribute(time, "datetime", new Date(each.at * 1000).toISOString());
      attribute(time, "title", new Date(each.at * 1000).toLocaleString());
      set(time, clock(each.at));
      set(
        level,
        each.level === "error"
          ? "✕ error"
          : each.level === "warning"
            ? "! warning"
            : each.kind === "decision"
              ? "decision"
              : "event",
        each.level === "info" ? "soft" : each.level,
      );
      prose(text, each.shard === null ? each.text : `Shard ${each.shard}: ${each.text}`);
    },
  );
  if (!$("timeline").childElementCount)
    $("timeline").append(make("li", {text: "Nothing has happened yet.", "data-key": ""}));
}

/** The way to the page of all engines of this machine, if there are others. */
function others(engines, mine) {
  const rest = engines.filter(each => each.name !== mine),
    ill = rest.filter(each => each.level === "error").length;
  $("others").hidden = !rest.length;
  set($("others"), `${plural(rest.length, "other engine")} on this machine${ill ? `, ${ill} of them failing` : ""}`);
}

function show(document) {
  const {engine, supervisor} = document,
    now = Date.now() / 1000,
    lately = document.decisions[document.decisions.length - 1];
  set($("name"), engine.name);
  set(
    $("about"),
    [
      engine.state,
      engine.host && `on ${engine.host}`,
      engine.handler,
      engine.version && `shardmem ${engine.version}`,
      `supervisor ${supervisor.pid}, up ${span(supervisor.uptime_s)}`,
      engine.schema.kind,
      engine.schema.key && `by ${engine.schema.key}`,
      `times in ${zone()}`,
    ]
      .filter(Boolean)
      .join(" · "),
  );
  remember(document);
  judge(document);
  tiles(document);
  machineOf(document);
  plots();
  shards.show(document);
  set(
    $("policy"),
    `${document.auto_scale ? "Scaled by the policy" : document.elastic ? "Scaled manually" : "Fixed"}, ${document.shards.length} of at most ${engine.max_shards} shards.` +
      (lately && (document.elastic || lately.advice === "up") ? ` Last decision: ${lately.reason}.` : ""),
  );
  producers.show(document);
  sources.show(document, commands.access);
  if (slots) map.show(document, slots);
  quarantine.show(document, commands.access, listed);
  timeline(document, now);
  commands.show(document);
}

// ---- asking --------------------------------------------------------------------------------------------------------------

async function allow() {
  try {
    commands.may((await ask("access")).access);
  } catch {
    commands.may(null);
  }
  [listed, listedKey] = [null, ""];
  look();
}

async function look() {
  clearTimeout(due);
  const mine = ++turn;
  try {
    const document = await ask("status"),
      now = Date.now() / 1000;
    if (commands.access === null) commands.may((await ask("access")).access);
    const key = document.shards.map(each => `${each.id}:${each.slots}`).join();
    if (!slots || key !== slotsKey || document.handoffs.length || now - slotsAt > SLOTS_EVERY) {
      const {owners} = await ask("slots");
      if (!slots || owners.join() !== slots.join()) slots = owners;
      [slotsKey, slotsAt] = [key, now];
    }
    const held = `${document.engine.quarantine_held}.${document.accounting.quarantined}`;
    if (commands.access === "all" && (held !== listedKey || now - listedAt > QUARANTINE_EVERY)) {
      try {
        listed = await ask("quarantine");
      } catch (error) {
        listed = {error: error.message};
      }
      [listedKey, listedAt] = [held, now];
    }
    if (!filled) {
      const kept = await ask("series");
      history.fill(document.engine.name, kept.points, kept.every_s);
      filled = true;
    }
    if (now - othersAt > OTHERS_EVERY) {
      othersAt = now;
      ask("engines").then(({engines}) => others(engines, document.engine.name), () => {});
    }
    if (mine !== turn) return;
    fresh();
    show(document);
    [last, answered] = [document, now];
  } catch (error) {
    if (mine !== turn) return;
    gone(error);
  }
  due = setTimeout(look, EVERY);
}

const headings = () => document.querySelectorAll("main > section:not(#verdict) h2");

function fresh() {
  if (!$("main").classList.contains("stale")) return;
  $("main").classList.remove("stale");
  for (const age of document.querySelectorAll(".age")) age.remove();
}

/** No answer: the last state stays, marked with its age, and the page keeps asking. */
function gone(error) {
  const silent = error.name === "TimeoutError",
    since = answered && Date.now() / 1000 - answered,
    name = last?.engine.name || "the engine";
  const findings = [
    {
      level: "error",
      kind: "gone",
      shard: null,
      text: silent
        ? "The supervisor has not responded for 3 s: it hangs, or its process is suspended."
        : error instanceof TypeError
          ? "No process listens on this port: the supervisor has exited, or the engine was stopped."
          : `The supervisor answers with an error: ${error.message}`,
      advice: "Workers and producers keep running without it. See the engine's state in shared memory:",
      command: `shardmem status${last ? ` ${name}` : ""}`,
      order: null,
    },
    {
      level: "info",
      kind: "again",
      shard: null,
      text: "`shardmem run` with the same settings takes the engine over; live workers are adopted, no event is lost.",
      advice:
        "With http_port = 0 it may answer on another port; `shardmem status` shows it. This page keeps asking once a second.",
      command: null,
      order: null,
    },
  ];
  verdict(
    "error",
    "No answer from the supervisor",
    since === null
      ? "The supervisor has not answered since this page was opened."
      : `The state below is ${span(since)} old, from ${clock(answered)}.`,
    findings,
  );
  speak("gone", "No answer from the supervisor. What is shown is old.");
  document.title = `✕ ${last ? name : "no answer"} · shardmem`;
  if (commands.access !== null) commands.may(null);
  if (!last) return;
  $("main").classList.add("stale");
  for (const heading of headings()) {
    if (!heading.querySelector(".age")) heading.append(make("span", {kind: "age"}));
    set(heading.querySelector(".age"), `as of ${clock(answered)}, ${span(since)} ago`);
  }
}

const commands = new Commands(send, allow, look),
  open = (name, preset) => commands.open(name, preset);
const shards = new Shards(ask, open),
  producers = new Producers(),
  sources = new Sources(open),
  map = new Slots(open),
  quarantine = new Quarantine(ask, open);
$("range").addEventListener("change", plots);
setInterval(() => history.keep(), 15000);
look();
