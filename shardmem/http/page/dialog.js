// The dialog that every command goes through, the token, and who may do what.

import {ORDERS, late} from "./orders.js";
import {$, attribute, clock, make, set} from "./words.js";

const COMMANDS = ["scale", "auto", "drain", "move", "rebalance", "reload", "stop"];

/** access: what may be done here ("all", "token", "read"; null: no answer). send: gives a command. allow: asks again what may
    be done, with the token as it is now. look: asks for everything again. */
export class Commands {
  #order = null;
  #values = {};
  #since = null;
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
      if (!$("dialog").open) this.#order = null; // told later: it may be open again by now
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
      return (
        "This page is read-only: the engine was started without http_token. What the buttons do can be done in a shell; " +
        "each names the command."
      );
    return "The supervisor does not answer, so no command can be sent.";
  }

  show(document) {
    this.#document = document;
    this.#engine = document.engine.name;
    this.#refresh(false);
    this.#progress();
  }

  open(name, preset = {}) {
    if (this.#since !== null) return $("dialog").showModal(); // one at a time: this is how far it is
    if (!this.#document) return;
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
    set($("dialog-do"), order.verb(this.#values), order.danger ? "primary danger" : "primary");
    set($("dialog-why"), why);
    $("dialog-why").hidden = !why;
    $("dialog-token").hidden = !why || this.access !== "token";
    $("dialog-do").disabled = Boolean(why) || !$("dialog").firstElementChild.checkValidity();
  }

  #progress() {
    if (this.#since === null) return;
    const moving = this.#document.handoffs.length,
      coming = this.#document.shards.filter(each => each.state === "provisioning").length;
    set($("dialog-do"), `Running … ${Math.round((performance.now() - this.#since) / 1000)} s`);
    if (coming) set($("dialog-progress"), "Workers are starting.");
    else if (moving) set($("dialog-progress"), "Slots are moving.");
  }

  async #carryOut() {
    const order = this.#order,
      values = {...this.#values};
    if (!order || this.#since !== null) return;
    this.#since = performance.now();
    for (const input of $("dialog-fields").querySelectorAll("input, select")) input.disabled = true;
    $("dialog-do").disabled = true;
    set($("dialog-progress"), "The command is running.");
    set($("dialog-close"), "Close: it keeps running");
    $("dialog-close").focus();
    let text,
      kind = "good";
    try {
      const answer = await this.send(order.path, order.body(values), this.token);
      [text, kind] = answer.done === false ? [late(answer), "warning"] : [order.done(answer), kind];
    } catch (error) {
      [text, kind] = [error.message, "error"];
    }
    this.#since = null;
    const head = `${order.verb(values)}: ${kind === "good" ? "done. " : "not done. "}`;
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
