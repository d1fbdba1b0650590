// Events that kept failing. Keys, payloads and tracebacks are users' data: they need the token, and stay text.

import {$, attribute, bytes, clock, exact, keyed, make, named, plural, set} from "./words.js";

const TITLES = ["", "Id", "When", "Shard", "Key", "Reason", "Attempts", "Size"],
  KINDS = ["left", "left", "left", "some", "left why", "left why", "some", "more"];

const shown = value =>
  value === null || value === undefined
    ? "none"
    : typeof value === "string"
      ? JSON.stringify(value)
      : typeof value === "object" && "base64" in value
        ? `base64 ${value.base64}`
        : String(value);
const cut = (text, most) => (text.length > most ? `${text.slice(0, most)}…` : text);

export class Quarantine {
  #open = new Map();
  #chosen = new Set();
  #listed = null;

  constructor(ask, command) {
    [this.ask, this.command] = [ask, command];
    $("quarantine-table").tHead.rows[0].append(
      ...TITLES.map((text, i) =>
        make("th", {scope: "col", kind: KINDS[i]}, ...(i ? [text] : [make("span", {kind: "unseen", text: "Chosen"})])),
      ),
    );
    for (const name of ["replay", "purge"]) {
      $(name).dataset.order = name;
      $(name).addEventListener("click", () =>
        command(name, this.#chosen.size ? {ids: [...this.#chosen].sort((a, b) => a - b)} : {}),
      );
    }
  }

  /** listed: the answer of GET /quarantine; null: it may not be read here. */
  show(document, access, listed) {
    const fault = listed?.error;
    const {quarantine_held: held, name} = document.engine;
    this.#listed = listed = listed?.events ? listed : null;
    const words = [
      held === null
        ? "The quarantine file cannot be read by the supervisor."
        : held
          ? `${plural(held, "event")} kept failing or killing the handler and ${held === 1 ? "is" : "are"} in quarantine.`
          : "Empty: no event is in quarantine.",
    ];
    if (held && access === "token") words.push("Keys and payloads are users' data: enter the http_token above to see them.");
    if (held && access === "read")
      words.push(
        `Keys and payloads are not shown without http_token; in a shell: shardmem quarantine list ${name}`,
      );
    if (fault) words.push(`They cannot be listed: ${fault}`);
    if (listed && listed.count > listed.events.length)
      words.push(`The latest ${exact(listed.events.length)} of ${exact(listed.count)} are listed.`);
    if (listed && listed.limit)
      words.push(`There is room for ${exact(listed.limit)}; when it is full, a shard stops rather than drop an event.`);
    set($("quarantine-sum"), words.join(" "), held ? "warning" : "soft");
    $("quarantine-some").hidden = !listed?.events.length;
    if (listed) this.#draw();
  }

  #draw() {
    const {events} = this.#listed,
      there = new Set(events.map(each => each.id));
    for (const id of this.#chosen) if (!there.has(id)) this.#chosen.delete(id);
    for (const id of this.#open.keys()) if (!there.has(id)) this.#open.delete(id);
    this.#choice();
    const rows = events.flatMap(event => (this.#open.has(event.id) ? [{event}, {event, detail: true}] : [{event}]));
    keyed(
      $("quarantine-table").tBodies[0],
      rows,
      row => `${row.detail ? "detail" : "row"}${row.event.id}`,
      row => (row.detail ? this.#newDetail() : this.#newRow(row.event)),
      (line, row) => (row.detail ? this.#detail(line, row.event) : this.#row(line, row.event)),
    );
  }

  #choice() {
    const count = this.#chosen.size;
    for (const [name, word] of [
      ["replay", "Replay"],
      ["purge", "Purge"],
    ])
      set($(name), count ? `${word} ${plural(count, "event")} …` : `${word} all …`);
    set($("quarantine-chosen"), count ? "" : "Choose events for fewer than all.");
  }

  #newRow(event) {
    const choose = make("input", {type: "checkbox", "aria-label": `Choose event ${event.id}`});
    choose.addEventListener("change", () => {
      if (choose.checked) this.#chosen.add(event.id);
      else this.#chosen.delete(event.id);
      this.#choice();
    });
    const button = make("button", {type: "button", "aria-expanded": "false", "aria-label": `Event ${event.id}, whole`});
    button.addEventListener("click", async () => {
      if (!this.#open.delete(event.id)) {
        this.#open.set(event.id, null);
        this.#draw();
        try {
          this.#open.set(event.id, await this.ask(`quarantine/${event.id}`));
        } catch (error) {
          this.#open.set(event.id, {error: error.message});
        }
      }
      this.#draw();
    });
    return make(
      "tr",
      {},
      make("td", {kind: "left"}, choose),
      make("th", {scope: "row", kind: "left"}, button),
      ...KINDS.slice(2).map(kind => make("td", {kind})),
    );
  }

  #row(line, event) {
    const [choose, id, ...rest] = line.cells,
      open = this.#open.has(event.id);
    choose.firstChild.checked = this.#chosen.has(event.id);
    attribute(id.firstChild, "aria-expanded", open);
    set(id.firstChild, `${open ? "▾" : "▸"} ${event.id}`);
    const when = new Date(event.at * 1000).toLocaleDateString("en-CA") + " " + clock(event.at);
    [
      event.replayed_at ? `${when}, replayed ${clock(event.replayed_at)}` : when,
      event.shard,
      cut(shown(event.key), 60),
      cut(event.reason.split("\n")[0] || event.kind, 160),
      event.attempts,
      bytes(event.bytes),
    ].forEach((text, i) => set(rest[i], text));
  }

  #newDetail() {
    return make(
      "tr",
      {kind: "detail"},
      make(
        "td",
        {colspan: TITLES.length},
        make("dl", {kind: "facts"}),
        make("h3", {text: "Key"}),
        make("pre"),
        make("h3", {text: "Traceback"}),
        make("pre"),
        make("h3", {text: "Payload"}),
        make("pre"),
      ),
    );
  }

  #detail(line, event) {
    const whole = this.#open.get(event.id),
      [facts, , key, , trace, , payload] = line.firstChild.children;
    const told = [
      ["slot", event.slot],
      ["producer (seat)", event.producer],
      ["sequence", exact(event.sequence)],
      ["what happened", event.kind],
      ["attempts", event.attempts],
      ["size", bytes(event.bytes)],
    ];
    named(facts, told);
    set(key, shown(event.key));
    set(trace, whole === null ? "…" : whole.error || whole.traceback || event.reason || "none was written");
    set(
      payload,
      whole === null ? "…" : whole.record ? JSON.stringify(whole.record, null, 1) : cut(shown(whole.payload), 20000),
    );
  }
}
