// Shards and producers: rows stay the same elements, so that the focus and a selection stay.

import {
  $, attribute, bytes, clock, exact, keyed, make, micro, named, part, plural, prose, rate, reasons, set, short, span, sum,
} from "./words.js";

const BAD = ["failed", "stuck", "dead"],
  NORMAL = ["busy", "idle"],
  MINUTE = 60,
  MOST = 200;

/** Headers by which the rows are sorted. columns: {title, key (of what it is sorted by), kind}. */
export class Sorted {
  constructor(head, columns, first, changed) {
    [this.key, this.down] = [first, false];
    this.cells = columns.map(({title, key, kind = "", hint}) => {
      const cell = make("th", {scope: "col", kind, title: hint});
      if (!key) {
        cell.append(title);
        return cell;
      }
      const button = make("button", {type: "button", text: title});
      button.addEventListener("click", () => {
        [this.key, this.down] = [key, this.key === key ? !this.down : key !== first];
        this.#mark(columns);
        changed();
      });
      cell.append(button);
      return cell;
    });
    head.append(...this.cells);
    this.#mark(columns);
  }

  #mark(columns) {
    columns.forEach(({key, title}, i) => {
      attribute(this.cells[i], "aria-sort", key && key === this.key ? (this.down ? "descending" : "ascending") : null);
      if (key) set(this.cells[i].firstChild, key === this.key ? `${title} ${this.down ? "▾" : "▴"}` : title);
    });
  }

  sort(rows, value) {
    return [...rows].sort((a, b) => {
      const [left, right] = [value(a, this.key), value(b, this.key)];
      return (this.down ? -1 : 1) * (left < right ? -1 : left > right ? 1 : 0);
    });
  }
}

function bar() {
  return make("span", {kind: "bar", "aria-hidden": "true"}, make("i"), make("u", {hidden: true}));
}

function fill(shown, ratio, peak) {
  shown.firstChild.style.width = `${(100 * ratio).toFixed(1)}%`;
  attribute(shown, "class", ratio >= 0.8 ? "bar full" : "bar");
  const mark = shown.lastChild;
  mark.hidden = peak === undefined;
  if (peak !== undefined) mark.style.left = `calc(${(100 * peak).toFixed(1)}% - 2px)`;
}

export function wordOf(shard) {
  return shard.state === "draining" || shard.state === "provisioning" ? shard.state : shard.condition;
}

const SHARDS = [
  {title: "Shard", key: "id", kind: "left"},
  {title: "State", key: "ill", kind: "left", hint: "what its worker is doing"},
  {title: "Events/s", key: "rate"},
  {title: "Fullest lane", key: "fill_ratio", kind: "left", hint: "the mark is the most of the last minute"},
  {title: "Busy", key: "busy", kind: "some", hint: "part of its time in the handler"},
  {title: "p50", key: "recent_p50_us", kind: "more", hint: "from push to handled, half of the last events"},
  {title: "p99", key: "recent_p99_us", kind: "some", hint: "from push to handled, 99 of 100 of the last events"},
  {title: "In flight", key: "in_flight", kind: "some"},
  {title: "Slots", key: "slots", kind: "more"},
  {title: "CPU", key: "cpu", kind: "more", hint: "part of one core"},
  {title: "Memory", key: "rss_bytes", kind: "more"},
  {title: "Crashes", key: "crashes", kind: "some"},
];

const logLine = each =>
  `${clock(Date.parse(each.ts) / 1000)} ${(each.level || "").toUpperCase()} ${each.message}` +
  (each.exception ? `\n    ${each.exception.replaceAll("\n", "\n    ")}` : "");

export class Shards {
  #open = new Set();
  #lanes = new Map();
  #peaks = new Map();
  #document = null;

  /** ask: a path's document. command(name, preset): opens the dialog. */
  constructor(ask, command) {
    [this.ask, this.command] = [ask, command];
    this.order = new Sorted($("shard-table").tHead.rows[0], SHARDS, "id", () => this.#draw());
  }

  show(document) {
    const now = Date.now() / 1000;
    this.#document = document;
    for (const shard of document.shards) {
      const peaks = (this.#peaks.get(shard.id) || []).filter(([at]) => at > now - MINUTE);
      this.#peaks.set(shard.id, [...peaks, [now, shard.fill_ratio]]);
    }
    this.#draw();
    for (const shard of this.#open) this.#fetch(shard);
  }

  async #fetch(shard) {
    try {
      this.#lanes.set(shard, (await this.ask(`lanes/${shard}`)).lanes);
    } catch {
      this.#lanes.delete(shard);
    }
    if (this.#document) this.#draw();
  }

  #draw() {
    const ill = shard => (BAD.includes(wordOf(shard)) ? 0 : NORMAL.includes(wordOf(shard)) ? 2 : 1);
    const shards = this.order.sort(this.#document.shards, (shard, key) => (key === "ill" ? ill(shard) : (shard[key] ?? -1)));
    for (const id of this.#open) if (!shards.some(each => each.id === id)) this.#open.delete(id);
    const rows = shards.flatMap(shard => (this.#open.has(shard.id) ? [{shard}, {shard, detail: true}] : [{shard}]));
    keyed(
      $("shard-table").tBodies[0],
      rows,
      row => `${row.detail ? "detail" : "row"}${row.shard.id}`,
      row => (row.detail ? this.#newDetail(row.shard) : this.#newRow(row.shard)),
      (line, row) => (row.detail ? this.#detail(line, row.shard) : this.#row(line, row.shard)),
    );
  }

  #newRow(shard) {
    const button = make(
      "button",
      {type: "button", "aria-expanded": "false", "aria-label": `Shard ${shard.id}, details`},
      `▸ ${shard.id}`,
    );
    button.addEventListener("click", () => {
      if (!this.#open.delete(shard.id)) {
        this.#open.add(shard.id);
        this.#fetch(shard.id);
      }
      this.#draw();
    });
    const why = make("td", {kind: "left why"}, make("span", {kind: "word"}), make("small"));
    const lane = make("td", {kind: "left"}, bar(), make("span"));
    return make(
      "tr",
      {},
      make("th", {scope: "row", kind: "left"}, button),
      why,
      make("td"),
      lane,
      ...SHARDS.slice(4).map(({kind}) => make("td", {kind})),
    );
  }

  #row(line, shard) {
    const [head, why, events, lane, ...rest] = line.cells,
      word = wordOf(shard),
      open = this.#open.has(shard.id),
      button = head.firstChild;
    attribute(button, "aria-expanded", open);
    set(button, `${open ? "▾" : "▸"} ${shard.id}`);
    set(why.firstChild, word, `word ${BAD.includes(word) ? "error" : NORMAL.includes(word) ? "good" : "warning"}`);
    const ill = !NORMAL.includes(shard.condition);
    prose(
      why.lastChild,
      [
        ill ? shard.reason || shard.error : "",
        shard.broken_lanes.length ? `${plural(shard.broken_lanes.length, "broken lane")}` : "",
        ill && shard.last_exit ? `last exit: ${shard.last_exit}` : "",
      ]
        .filter(Boolean)
        .join("; "),
    );
    set(events, short(shard.rate));
    fill(lane.firstChild, shard.fill_ratio, Math.max(...this.#peaks.get(shard.id).map(([, value]) => value)));
    set(lane.lastChild, ` ${part(shard.fill_ratio)}`);
    const texts = [
      part(shard.busy),
      micro(shard.recent_p50_us),
      micro(shard.recent_p99_us),
      short(shard.in_flight),
      exact(shard.slots),
      part(shard.cpu),
      bytes(shard.rss_bytes),
      exact(shard.crashes),
    ];
    texts.forEach((text, i) => set(rest[i], text));
  }

  #newDetail(shard) {
    const facts = make("dl", {kind: "facts"}),
      lanes = make(
        "table",
        {},
        make("caption", {kind: "unseen", text: `Lanes of shard ${shard.id}`}),
        make(
          "thead",
          {},
          make(
            "tr",
            {},
            ...["Producer (pid)", "Seat", "Fill", "In flight", "Accepted", "Handled"].map((text, i) =>
              make("th", {scope: "col", text, kind: i > 2 && i !== 3 ? "some" : ""}),
            ),
          ),
        ),
        make("tbody"),
      );
    const buttons = make(
      "p",
      {kind: "row"},
      ...[
        ["drain", `Drain shard ${shard.id}`, {shard: shard.id}],
        ["move", `Move slots to shard ${shard.id}`, {to: shard.id}],
        ["cordon", `Cordon shard ${shard.id}`, {shard: shard.id}],
        ["uncordon", `Uncordon shard ${shard.id}`, {shard: shard.id}],
      ].map(([name, text, preset]) => {
        const button = make("button", {type: "button", text, "data-order": name});
        button.addEventListener("click", () => this.command(name, preset));
        return button;
      }),
    );
    const told = make("pre", {kind: "shell", hidden: true, tabindex: "0", "aria-live": "polite"});
    for (const [text, path, lines] of [
      ["Its log", `log/${shard.id}`, ({records}) => records.map(logLine).join("\n") || "nothing was logged"],
      ["Its stacks", `stacks/${shard.id}`, ({text}) => text],
    ]) {
      const button = make("button", {type: "button", text});
      button.addEventListener("click", () => this.#inside(told, path, lines));
      buttons.append(button);
    }
    return make(
      "tr",
      {kind: "detail"},
      make("td", {colspan: SHARDS.length}, facts, make("p", {kind: "soft"}), lanes, buttons, told),
    );
  }

  /** What the worker says of itself; needs the token. */
  async #inside(told, path, lines) {
    told.hidden = false;
    try {
      set(told, lines(await this.ask(path, {patience: 10000})));
    } catch (error) {
      set(told, error.message);
    }
  }

  #detail(line, shard) {
    const [facts, note, lanes, buttons] = line.firstChild.children,
      cordoned = this.#document.cordoned.includes(shard.id),
      found = this.#lanes.get(shard.id) || [];
    for (const button of buttons.children)
      if (button.dataset.order?.endsWith("cordon")) button.hidden = cordoned !== (button.dataset.order === "uncordon");
    const told = [
      ["what it does", (shard.reason || shard.condition) + (cordoned ? "; cordoned: it takes no more slots" : "")],
      ["worker", shard.alive ? `pid ${shard.pid}, up ${span(shard.uptime_s)}` : "none"],
      ["life", `${shard.incarnation}, ${plural(shard.crashes, "crash", "crashes")}`],
      ["last exit", shard.last_exit || "none so far"],
      ["slots", exact(shard.slots)],
      ["handled", `${exact(shard.handled)} of ${exact(shard.accepted)} accepted`],
      ["in flight", exact(shard.in_flight) + (shard.oldest_s === null ? "" : `, the oldest for ${span(shard.oldest_s)}`)],
      ["quarantined", exact(shard.quarantined)],
      ["batches", exact(shard.batches)],
      ...(shard.checkpoints
        ? [["checkpoints", `${exact(shard.checkpoints)}, the last ${span(shard.checkpoint_age_s)} ago, in ${micro(1e6 * shard.last_checkpoint_s)}`]]
        : []),
      ["events in a batch, p50, p99", `${short(shard.batch_rows_p50)}, ${short(shard.batch_rows_p99)}`],
      ["busy, CPU", `${part(shard.busy)}, ${part(shard.cpu)} of a core`],
      ["memory", bytes(shard.rss_bytes)],
      ["p50, p99 of the last", `${micro(shard.recent_p50_us)}, ${micro(shard.recent_p99_us)}`],
      ["p50, p99 of all", `${micro(shard.latency_p50_us)}, ${micro(shard.latency_p99_us)}`],
      ...(shard.error ? [["error", shard.error]] : []),
    ];
    named(facts, told);
    set(
      note,
      this.#lanes.has(shard.id)
        ? found.length
          ? `${plural(found.length, "lane")}, one for each producer that has pushed to it:`
          : "No producer has pushed to it."
        : "Its lanes are not known.",
    );
    lanes.hidden = !found.length;
    keyed(
      lanes.tBodies[0],
      [...found].sort((a, b) => b.fill_ratio - a.fill_ratio).slice(0, MOST),
      lane => lane.seat,
      () =>
        make(
          "tr",
          {},
          make("th", {scope: "row", kind: "left"}),
          make("td"),
          make("td", {kind: "left"}, bar(), make("span")),
          make("td"),
          make("td", {kind: "some"}),
          make("td", {kind: "some"}),
        ),
      ({cells}, lane) => {
        set(
          cells[0],
          lane.broken ? "corrupt, no longer read" : lane.alive ? lane.pid : "has left",
          lane.broken ? "left error" : "left",
        );
        set(cells[1], lane.seat);
        fill(cells[2].firstChild, lane.fill_ratio);
        set(cells[2].lastChild, ` ${part(lane.fill_ratio)}`);
        [lane.in_flight, lane.accepted, lane.handled].forEach((value, i) => set(cells[3 + i], exact(value)));
      },
    );
  }
}

const PRODUCERS = [
  {title: "Producer (pid)", key: "pid", kind: "left"},
  {title: "Seat", key: "seat", kind: "some"},
  {title: "Pushes/s", key: "rate"},
  {title: "Waits for room", key: "blocked", kind: "left", hint: "part of its time since the last look"},
  {title: "Waited", key: "blocked_s", kind: "left some wrap"},
  {title: "Refused", key: "lost", kind: "left why"},
  {title: "Pushed", key: "sequence", kind: "some"},
];

export class Producers {
  constructor() {
    this.order = new Sorted($("producer-table").tHead.rows[0], PRODUCERS, "pid", () => this.last && this.show(this.last));
  }

  show(document) {
    this.last = document;
    const alive = document.producers.filter(each => each.alive),
      left = document.producers.length - alive.length;
    const lost = sum(document.producers.filter(each => !each.alive).map(each => sum(Object.values(each.refused))));
    const rows = this.order
      .sort(alive, (each, key) => (key === "lost" ? sum(Object.values(each.refused)) : each[key]))
      .slice(0, MOST);
    keyed(
      $("producer-table").tBodies[0],
      rows,
      each => `${each.seat}.${each.incarnation}`,
      () =>
        make(
          "tr",
          {},
          make("th", {scope: "row", kind: "left"}),
          ...PRODUCERS.slice(1).map(({kind, key}) =>
            key === "blocked" ? make("td", {kind}, bar(), make("span")) : make("td", {kind}),
          ),
        ),
      ({cells}, each) => {
        [each.client ? `${each.client} (${each.pid})` : each.pid, each.seat, rate(each.rate)].forEach((text, i) => set(cells[i], text));
        fill(cells[3].firstChild, each.blocked);
        set(cells[3].lastChild, ` ${part(each.blocked)}`);
        [
          `${span(each.blocked_s)} in ${plural(each.blocked_count, "wait")}`,
          reasons(each.refused) || "none",
          exact(each.sequence),
        ].forEach((text, i) => set(cells[4 + i], text));
      },
    );
    $("producer-table").hidden = !alive.length;
    set(
      $("producers-none"),
      [
        alive.length ? "" : "No producer is connected.",
        alive.length > MOST ? `${alive.length - MOST} more are not shown.` : "",
        left ? `${plural(left, "producer")} left${lost ? `, ${exact(lost)} events of theirs were refused` : ""}.` : "",
      ]
        .filter(Boolean)
        .join(" "),
    );
  }
}
