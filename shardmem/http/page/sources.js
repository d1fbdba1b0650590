// What feeds the engine from outside: each source, and its partitions when it is opened. Their names need the token.

import {$, attribute, exact, keyed, make, plural, reasons, set, short, span} from "./words.js";

const SOURCES = [
  {title: "Source", kind: "left"},
  {title: "State", kind: "left"},
  {title: "Behind", hint: "of a broker: events that are there and not committed; of files: bytes that were not read"},
  {title: "Committed", kind: "some", hint: "since it wrote down how far it has been handled"},
  {title: "Events", kind: "some", hint: "pushed by its process"},
  {title: "Partitions", kind: "some"},
  {title: "", kind: "left"},
];
const PARTITIONS = ["Partition", "State", "At", "Committed", "Behind", ""];
const BAD = ["failed", "misconfigured", "died"],
  GOOD = ["running", "ended"];
const MOST = 200;

const inBytes = source => source.group === null && source.kind !== "outbox";
const unit = source => (inBytes(source) ? "byte" : source.kind === "outbox" ? "message" : "event");
const behind = (n, source) => (n === null ? "–" : plural(n, unit(source)));
const lagOf = source => (inBytes(source) ? source.lag_bytes : source.lag_events);

export class Sources {
  #open = new Set();
  #document = null;
  #named = false;

  /** command(name, preset): opens the dialog. */
  constructor(command) {
    this.command = command;
    $("source-table").tHead.rows[0].append(
      ...SOURCES.map(({title, kind, hint}) => make("th", {scope: "col", text: title, kind, title: hint})),
    );
  }

  /** access: what may be done here; with all of it, names are shown. */
  show(document, access) {
    [this.#document, this.#named] = [document, access === "all"];
    $("sources").hidden = $("to-sources").hidden = !document.sources.length;
    this.#draw();
  }

  #draw() {
    const {sources} = this.#document,
      rows = sources.flatMap(source => (this.#open.has(source.name) ? [{source}, {source, detail: true}] : [{source}]));
    keyed(
      $("source-table").tBodies[0],
      rows,
      row => `${row.detail ? "detail" : "row"}${row.source.name}`,
      row => (row.detail ? this.#newDetail() : this.#newRow(row.source)),
      (line, row) => (row.detail ? this.#detail(line, row.source) : this.#row(line, row.source)),
    );
  }

  #newRow({name}) {
    const button = make("button", {type: "button", "aria-expanded": "false", "aria-label": `Source ${name}, partitions`});
    button.addEventListener("click", () => {
      if (!this.#open.delete(name)) this.#open.add(name);
      this.#draw();
    });
    const why = make("td", {kind: "left why"}, make("span", {kind: "word"}), make("small"));
    return make(
      "tr",
      {},
      make("th", {scope: "row", kind: "left"}, button),
      why,
      ...SOURCES.slice(2, 6).map(({kind}) => make("td", {kind})),
      make("td", {kind: "left"}, this.#pause({source: name}), this.#resume({source: name})),
    );
  }

  #pause(preset) {
    return this.#order("source/pause", "Pause …", preset);
  }

  #resume(preset) {
    return this.#order("source/resume", "Resume …", preset);
  }

  #order(name, text, preset) {
    const button = make("button", {type: "button", text, "data-order": name});
    button.addEventListener("click", () => this.command(name, preset));
    return button;
  }

  #row(line, source) {
    const [head, why, lag, committed, events, partitions, orders] = line.cells,
      open = this.#open.has(source.name),
      button = head.firstChild,
      some = Object.values(source.partitions).filter(each => each.state === "paused").length;
    attribute(button, "aria-expanded", open);
    set(button, `${open ? "▾" : "▸"} ${source.name}`);
    set(
      why.firstChild,
      source.state,
      `word ${BAD.includes(source.state) ? "error" : GOOD.includes(source.state) ? "good" : "warning"}`,
    );
    set(
      why.lastChild,
      [
        source.kind,
        source.error,
        source.waits_for && `waits: ${source.waits_for}`,
        source.remote_error && `state is not uploaded: ${source.remote_error}`,
        source.skipped ? `no events: ${reasons(source.reasons)}` : "",
      ]
        .filter(Boolean)
        .join("; "),
    );
    set(lag, behind(lagOf(source), source));
    set(committed, source.last_commit_age_s === null ? "never" : `${span(source.last_commit_age_s)} ago`);
    set(events, short(source.events));
    set(partitions, exact(Object.keys(source.partitions).length) + (some && !source.paused ? `, ${exact(some)} paused` : ""));
    const [pause, resume] = orders.children;
    pause.hidden = source.paused;
    resume.hidden = !source.paused && !some;
  }

  #newDetail() {
    const table = make(
      "table",
      {},
      make("caption", {kind: "unseen", text: "Its partitions"}),
      make("thead", {}, make("tr", {}, ...PARTITIONS.map(text => make("th", {scope: "col", text})))),
      make("tbody"),
    );
    return make("tr", {kind: "detail"}, make("td", {colspan: SOURCES.length}, make("p", {kind: "soft"}), table));
  }

  #detail(line, source) {
    const [note, table] = line.firstChild.children,
      all = Object.entries(source.partitions);
    set(
      note,
      [
        source.group === null || !this.#named ? "" : `Group ${source.group}.`,
        all.length ? "" : "It has no partition now.",
        all.length > MOST ? `${exact(all.length - MOST)} partitions are not shown.` : "",
        this.#named ? "" : "The names of partitions are not shown without the token.",
      ]
        .filter(Boolean)
        .join(" "),
    );
    table.hidden = !all.length;
    keyed(
      table.tBodies[0],
      all.slice(0, MOST),
      ([name]) => name,
      ([name]) => {
        const preset = {source: source.name, partitions: [name]},
          seek = this.#order("source/seek", "Seek …", {source: source.name, partition: name});
        return make(
          "tr",
          {},
          make("th", {scope: "row", kind: "left", text: name}),
          ...PARTITIONS.slice(1, 5).map((_, i) => make("td", {kind: i ? "" : "left"})),
          make("td", {kind: "left"}, this.#pause(preset), this.#resume(preset), seek),
        );
      },
      ({cells}, [name, each]) => {
        set(cells[1], each.state);
        set(cells[2], exact(each.offset) + (each.at ? `, ${each.at}` : ""));
        set(cells[3], each.committed === null ? "nothing" : exact(each.committed));
        set(cells[4], behind(each.lag, source));
        const [pause, resume, seek] = cells[5].children;
        pause.hidden = each.state === "paused" || !this.#named;
        resume.hidden = each.state !== "paused" || source.paused || !this.#named;
        seek.hidden = !this.#named;
      },
    );
  }
}
