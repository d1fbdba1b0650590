// Commands: what each will do in words before it is done, the same for a shell, how far it is, and what was done.

import {$, attribute, clock, exact, make, plural, set, span, sum} from "./words.js";

const active = document => document.shards.filter(each => each.state === "active");
const milli = s => (s < 1 ? `${(1000 * s).toFixed(0)} ms` : span(s));
const quoted = text => (/^[\w,.:-]+$/.test(text) ? text : `'${text}'`);
const chosen = ids => (ids ? plural(ids.length, "event") : "every event");

/** What was done, from the answer to a command that moves slots. */
function moves(done) {
  const ways = new Map();
  for (const each of done.moved)
    ways.set(`${each.from} to shard ${each.to}`, (ways.get(`${each.from} to shard ${each.to}`) || 0) + 1);
  return [
    ...[...ways].map(([way, count]) => `${plural(count, "slot")} went from shard ${way}`),
    done.moved.length ? "" : "no slot had to move",
    `it took ${milli(done.seconds.total)}`,
    ...done.late.map(text => `late: ${text}`),
  ]
    .filter(Boolean)
    .join("; ");
}

/** title, verb: of the dialog and its button. fields: what is asked. says: what will happen. body: what is sent. shell: its arguments
    after `shardmem`. done: the answer in words. */
export const ORDERS = {
  scale: {
    title: "Change the number of shards",
    button: "Scale …",
    path: "scale",
    verb: values => `Run ${plural(Number(values.shards), "shard")}`,
    fields: (document, preset) => [
      {
        name: "shards",
        label: "Number of shards",
        type: "number",
        min: 1,
        max: Math.min(document.engine.max_shards, document.engine.slots),
        value: preset.shards ?? active(document).length,
      },
    ],
    says: (values, document) => {
      const now = active(document).length,
        wanted = Number(values.shards);
      return (
        (wanted > now
          ? `${plural(wanted - now, "worker")} will be started, and slots move to them.`
          : wanted < now
            ? `The slots of ${plural(now - wanted, "shard")} go to the others; then they are removed.`
            : "As many as there are now: slots are evened out.") +
        ` Events go on flowing, none is lost or reordered.${document.auto_scale ? " From then on the number is yours: the policy no longer changes it, until you hand it back." : ""}`
      );
    },
    body: values => ({shards: Number(values.shards)}),
    shell: (values, name) => `scale ${Number(values.shards)} --engine ${name}`,
    done: answer => `${plural(answer.shards.length, "shard")} run: ${answer.shards.join(", ")}; ${moves(answer)}`,
  },
  auto: {
    title: "Let the policy scale",
    button: "Scale by itself",
    path: "scale",
    verb: () => "Let the policy scale",
    says: () =>
      "The policy decides on the number of shards from now on, by how busy they are and how full their lanes. It gives its reason for every change.",
    body: () => ({shards: "auto"}),
    shell: (values, name) => `scale auto --engine ${name}`,
    done: () => "the policy decides on the number of shards",
  },
  drain: {
    title: "Drain a shard",
    button: "Drain …",
    path: "drain",
    verb: values => `Drain shard ${values.shard}`,
    fields: (document, preset) => [
      {
        name: "shard",
        label: "Shard",
        options: active(document).map(each => [each.id, `shard ${each.id}, ${plural(each.slots, "slot")}`]),
        value: preset.shard,
      },
    ],
    says: (values, document) => {
      const shard = document.shards.find(each => String(each.id) === String(values.shard));
      return shard
        ? `Its ${plural(shard.slots, "slot")} go to the other shards, what is in its lanes is handled, then its worker ends and the shard is removed. Nothing is lost or reordered.${document.auto_scale ? " The policy may add another one later." : ""}`
        : "";
    },
    body: values => ({shard: Number(values.shard)}),
    shell: (values, name) => `drain ${values.shard} --engine ${name}`,
    done: answer => `shard ${answer.drained} is drained and removed; ${moves(answer)}`,
  },
  move: {
    title: "Move slots",
    button: "Move slots …",
    path: "move",
    verb: () => "Move them",
    fields: (document, preset) => [
      {
        name: "slots",
        label: "Slots, like 17,40-60",
        type: "text",
        pattern: "[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*",
        value: preset.slots ?? "",
      },
      {
        name: "to",
        label: "To",
        options: active(document).map(each => [each.id, `shard ${each.id}, ${plural(each.slots, "slot")}`]),
        value: preset.to,
      },
    ],
    says: (values, document) =>
      `They are handed over to shard ${values.to} while events flow: what is in the lanes of the old owner is handled first, so nothing is lost, repeated or reordered.${document.auto_scale ? " The strategy may move them on when the load asks for it." : ""}`,
    body: values => ({slots: values.slots, to: Number(values.to)}),
    shell: (values, name) => `move ${quoted(values.slots || "SLOTS")} --to ${values.to} --engine ${name}`,
    done: moves,
  },
  rebalance: {
    title: "Even out the slots",
    button: "Rebalance",
    path: "rebalance",
    verb: () => "Rebalance",
    says: () => "Slots are moved until the load of the shards is even, as few as possible. Events go on flowing.",
    body: () => ({}),
    shell: (values, name) => `rebalance --engine ${name}`,
    done: moves,
  },
  reload: {
    title: "Fresh workers",
    button: "Reload",
    path: "reload",
    verb: () => "Replace all workers",
    says: document =>
      "The configuration is read again, and every worker is replaced by a fresh one, one after the other, without a pause. Failed shards are started again. If one cannot start, the rest stays as it is.",
    body: () => ({}),
    shell: (values, name) => `reload --engine ${name}`,
    done: answer =>
      `${answer.reloaded.map(each => (each.from === each.to ? `shard ${each.from} was started again` : `shard ${each.from} was replaced by shard ${each.to}`)).join(", ")}${answer.not_applied.length ? `; these cannot change while the engine runs: ${answer.not_applied.join(", ")}` : ""}; it took ${milli(answer.seconds.total)}`,
  },
  stop: {
    title: "Stop the engine",
    button: "Stop …",
    path: "stop",
    verb: values => (values.now ? "Stop now" : "Drain and stop"),
    fields: (document, preset) => [
      {name: "now", label: "Do not drain: leave what is not handled in shared memory", type: "checkbox", value: preset.now},
    ],
    says: (values, document) =>
      (values.now
        ? `Workers end after the batch in hand. ${plural(document.accounting.in_flight, "event")} in flight stay in shared memory for the next run.`
        : `Producers are refused from now on. The ${plural(document.accounting.in_flight, "event")} in flight are handled, then the engine ends.`) +
      " This page will have nobody to ask then; it cannot start the engine again.",
    body: values => (values.now ? {now: true} : {}),
    shell: (values, name) => `stop ${name}${values.now ? " --now" : ""}`,
    done: () => "the engine is ending",
  },
  replay: {
    title: "Replay events",
    button: "Replay",
    path: "quarantine/replay",
    verb: values => `Replay ${chosen(values.ids)}`,
    says: values =>
      `${values.ids ? plural(values.ids.length, "event") : "Every event that was not replayed"} will be pushed into the engine again, as new: behind what their keys got since. Mend the handler first, or they come back.`,
    body: values => (values.ids ? {ids: values.ids} : {all: true}),
    shell: (values, name) => `quarantine replay ${values.ids ? values.ids.join(" ") : "--all"} --engine ${name}`,
    done: answer => said(answer, "replayed"),
  },
  purge: {
    title: "Throw events away",
    button: "Purge",
    path: "quarantine/purge",
    verb: values => `Throw ${chosen(values.ids)} away`,
    says: values =>
      `${values.ids ? plural(values.ids.length, "event") : "Every event in the quarantine, those that were replayed too,"} will be gone for good. There is no way back.`,
    body: values => (values.ids ? {ids: values.ids} : {all: true}),
    shell: (values, name) => `quarantine purge ${values.ids ? values.ids.join(" ") : "--all"} --engine ${name}`,
    done: answer => said(answer, "purged"),
  },
};

function said(answer, what) {
  const count = Array.isArray(answer[what]) ? answer[what].length : (answer[what] ?? 0);
  return `${plural(count, "event")} ${what}${answer.left?.length ? `; ${plural(answer.left.length, "event")} not, and stay: ${answer.why}` : ""}`;
}

const COMMANDS = ["scale", "auto", "drain", "move", "rebalance", "reload", "stop"];

/** The dialog. access: what may be done here ("all", "token", "read"), and `allow(token)` asks anew. */
export class Commands {
  #order = null;
  #values = {};
  #since = null;
  #running = 0;
  #engine = "";
  #document = null;

  constructor(send, allow, look) {
    Object.assign(this, {send, allow, look, access: null});
    this.token = sessionStorage.getItem("shardmem-token") || "";
    for (const name of COMMANDS) {
      const button = make("button", {
        type: "button",
        text: ORDERS[name].button,
        "data-order": name,
        "aria-describedby": "access",
      });
      button.addEventListener("click", () => this.open(name));
      $("orders").append(button);
    }
    for (const input of [$("token"), $("dialog-token-input")]) {
      input.value = this.token;
      input.addEventListener("input", () => this.#token(input.value));
    }
    $("token-form").addEventListener("submit", event => event.preventDefault());
    const form = $("dialog").firstElementChild;
    form.addEventListener("input", () => this.#refresh());
    form.addEventListener("submit", event => {
      event.preventDefault();
      this.#carryOut();
    });
    $("dialog-close").addEventListener("click", () => $("dialog").close());
    $("dialog").addEventListener("close", () => {
      this.#order = null;
    });
  }

  #token(text) {
    this.token = text;
    sessionStorage.setItem("shardmem-token", text);
    for (const input of [$("token"), $("dialog-token-input")]) if (input.value !== text) input.value = text;
    this.allow();
  }

  /** What may be done; said next to the buttons, in the dialog, and by the buttons themselves. */
  may(access) {
    this.access = access;
    const why = this.why();
    set(
      $("access"),
      why || "Each asks before it does anything, and names the command that does the same in a shell.",
      why ? "warning" : "soft",
    );
    $("token-form").hidden = access === "read" || access === null;
    for (const button of document.querySelectorAll("[data-order]")) attribute(button, "aria-disabled", why ? "true" : null);
    this.#refresh();
  }

  /** Why nothing can be done here; empty: it can. */
  why() {
    if (this.access === "all") return "";
    if (this.access === "token")
      return this.token
        ? "That is not the http_token of this engine, so nothing can be changed from here."
        : "To change anything from here, enter the http_token of the engine. Reading needs none.";
    if (this.access === "read")
      return "This page is for reading: the engine was started without http_token. What the buttons do can be done in a shell; each names the command.";
    return "The supervisor does not answer, so nothing can be asked of it.";
  }

  show(document) {
    this.#document = document;
    this.#engine = document.engine.name;
    this.#refresh(false);
    this.#progress();
  }

  open(name, preset = {}) {
    if (!this.#document || this.#running) return this.#running ? $("dialog").showModal() : undefined;
    const order = (this.#order = ORDERS[name]);
    this.#values = {...preset};
    set($("dialog-title"), order.title);
    $("dialog-fields").replaceChildren(
      ...(order.fields?.(this.#document, preset) || []).map(({name, label, options, value, ...rest}) => {
        const input = options
          ? make("select", {name}, ...options.map(([key, text]) => make("option", {value: key, text})))
          : make("input", {name, required: rest.type !== "checkbox", autocomplete: "off", ...rest});
        if (rest.type === "checkbox") input.checked = Boolean(value);
        else if (value !== undefined) input.value = value;
        return make("label", {}, label, input);
      }),
    );
    for (const part of [$("dialog-progress"), $("dialog-says")]) set(part, "");
    set($("dialog-close"), "Cancel");
    $("dialog-do").hidden = false;
    $("dialog").showModal();
    this.#refresh();
    ($("dialog-fields").querySelector("input, select") || $("dialog-close")).focus();
  }

  #refresh(all = true) {
    const order = this.#order,
      why = this.why();
    if (!order || !this.#document || this.#since !== null || $("dialog-do").hidden) return;
    for (const input of $("dialog-fields").querySelectorAll("input, select"))
      this.#values[input.name] = input.type === "checkbox" ? input.checked : input.value;
    set($("dialog-shell"), `shardmem ${order.shell(this.#values, this.#engine)}`);
    if (all) set($("dialog-says"), order.says(this.#values, this.#document));
    set($("dialog-do"), order.verb(this.#values));
    set($("dialog-why"), why);
    $("dialog-why").hidden = !why;
    $("dialog-token").hidden = !why || this.access !== "token";
    $("dialog-do").disabled = Boolean(why) || !$("dialog").firstElementChild.checkValidity();
  }

  #progress() {
    if (this.#since === null) return;
    const moving = this.#document.handoffs.length,
      coming = this.#document.shards.filter(each => each.state === "provisioning").length;
    const left =
      this.#document.engine.state === "draining" ? `, ${plural(this.#document.accounting.in_flight, "event")} left` : "";
    this.progress = `under way for ${Math.round((performance.now() - this.#since) / 1000)} s${coming ? `, ${plural(coming, "worker")} starting` : ""}${moving ? `, ${plural(moving, "slot")} in motion` : ""}${left}`;
    set($("dialog-do"), `Under way … ${Math.round((performance.now() - this.#since) / 1000)} s`);
    if (coming || moving || left)
      set(
        $("dialog-progress"),
        coming ? "Workers are starting." : moving ? "Slots are in motion." : "What is left is being handled.",
      );
  }

  async #carryOut() {
    const order = this.#order,
      values = {...this.#values};
    if (!order || this.why() || this.#since !== null) return;
    this.#since = performance.now();
    this.#running = 1;
    for (const input of $("dialog-fields").querySelectorAll("input, select")) input.disabled = true;
    $("dialog-do").disabled = true;
    set($("dialog-progress"), "It is under way.");
    set($("dialog-close"), "Close: it goes on");
    $("dialog-close").focus();
    let text,
      kind = "good";
    try {
      text = order.done(await this.send(order.path, order.body(values), this.token));
    } catch (error) {
      [text, kind] = [error.message, "error"];
    }
    [this.#since, this.#running] = [null, 0];
    const head = `${order.verb(values)}: ${kind === "error" ? "not done. " : "done. "}`;
    $("said").prepend(
      make(
        "li",
        {},
        make("span", {kind: "soft", text: `${clock(Date.now() / 1000)} `}),
        make("span", {text: head + text, kind}),
      ),
    );
    while ($("said").childElementCount > 10) $("said").lastElementChild.remove();
    set($("dialog-progress"), head + text, kind);
    $("dialog-do").hidden = true;
    set($("dialog-close"), "Close");
    if (!$("dialog").open) set($("announce"), head + text);
    this.look();
  }
}
