// The map of slots: whose each is, which are on their way, which are hot. A number in a cell, a legend that picks out a shard,
// a cursor that reads a slot aloud, and the same as text, so that nothing is told by colour alone.

import {$, attribute, exact, keyed, make, part, plural, ranges, set, span} from "./words.js";

const dark = matchMedia("(prefers-color-scheme: dark)"),
  NOBODY = 65535,
  NAMED = 14,
  LARGEST = 30,
  SMALLEST = 4,
  TALLEST = 340;

const color = shard =>
  shard === NOBODY
    ? "transparent"
    : dark.matches
      ? `hsl(${(shard * 137.508 + 215) % 360} 48% ${30 + (shard % 3) * 5}%)`
      : `hsl(${(shard * 137.508 + 215) % 360} 68% ${80 - (shard % 3) * 5}%)`;

export class Slots {
  #owners = [];
  #moving = new Map();
  #hot = new Map();
  #at = null;
  #picked = null;
  #columns = 1;
  #cell = 1;

  constructor(command) {
    const map = $("slot-map");
    this.canvas = map.firstElementChild;
    map.addEventListener("keydown", event => this.#key(event));
    map.addEventListener("focus", () => this.#go(this.#at ?? 0));
    this.canvas.addEventListener("pointermove", event => this.#go(this.#under(event), false));
    this.canvas.addEventListener("pointerdown", event => this.#go(this.#under(event)));
    $("slot-move").addEventListener("click", () => command("move", {slots: String(this.#at)}));
    dark.addEventListener("change", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe(map);
  }

  /** owners: the shard of every slot. */
  show(document, owners) {
    const moving = new Map(document.handoffs.map(each => [each.slot, each])),
      hot = new Map(document.hot_slots.map(each => [each.slot, each]));
    const same =
      owners === this.#owners &&
      moving.size === 0 &&
      this.#moving.size === 0 &&
      [...hot.keys()].join() === [...this.#hot.keys()].join();
    [this.#owners, this.#moving, this.#hot] = [owners, moving, hot];
    if (same) return;
    this.#lists(document);
    this.#draw();
    if (this.#at !== null) this.#say();
  }

  #lists(document) {
    const slots = new Map();
    this.#owners.forEach((shard, slot) => (slots.has(shard) ? slots.get(shard).push(slot) : slots.set(shard, [slot])));
    const owners = [...slots].sort(([a], [b]) => a - b),
      name = shard => (shard === NOBODY ? "no shard" : `shard ${shard}`);
    if (this.#picked !== null && !slots.has(this.#picked)) this.#picked = null;
    set(
      $("slots-sum"),
      [
        `${plural(this.#owners.length, "slot")}, hash buckets of keys; each is one shard's.`,
        this.#moving.size ? `${exact(this.#moving.size)} moving, drawn in two colours.` : "None is moving.",
        this.#hot.size ? "Hot ones have a ring." : "",
      ].join(" "),
    );
    keyed(
      $("owners"),
      owners,
      ([shard]) => shard,
      ([shard]) => {
        const button = make(
          "button",
          {type: "button", "aria-pressed": "false"},
          make("i", {"aria-hidden": "true"}),
          make("span"),
        );
        button.addEventListener("click", () => {
          this.#picked = this.#picked === shard ? null : shard;
          this.#lists(document);
          this.#draw();
        });
        return make("li", {}, button);
      },
      (chip, [shard, its]) => {
        const button = chip.firstChild;
        button.firstChild.style.background = color(shard);
        set(button.lastChild, `${name(shard)}: ${exact(its.length)}`);
        attribute(button, "aria-pressed", this.#picked === shard);
      },
    );
    const groups = new Map();
    for (const each of this.#moving.values()) {
      const key = `${each.from} → ${each.to}, ${each.phase}`,
        group = groups.get(key) || {count: 0, oldest: 0, late: 0, each};
      groups.set(key, {
        count: group.count + 1,
        oldest: Math.max(group.oldest, each.age_s),
        late: group.late + each.late,
        each,
      });
    }
    keyed(
      $("moving"),
      [...groups],
      ([key]) => key,
      () => make("li"),
      (line, [, {count, oldest, late, each}]) =>
        set(
          line,
          `${plural(count, "slot")} from shard ${each.from} to shard ${each.to}: ${each.phase} for ${span(oldest)}` +
            (late ? `; ${exact(late)} late` : ""),
          late ? "error" : "",
        ),
    );
    keyed(
      $("hot"),
      [...this.#hot.values()].sort((a, b) => b.share - a.share).slice(0, 10),
      each => each.slot,
      () => make("li"),
      (line, each) =>
        set(
          line,
          `Hot: slot ${each.slot} on shard ${each.shard} has ${part(each.share)} of all load` +
            (each.alone ? ", and is the only slot of its shard with much traffic" : ""),
        ),
    );
    keyed(
      $("owner-list").lastElementChild,
      owners,
      ([shard]) => shard,
      ([shard]) => make("div", {}, make("dt", {text: name(shard)}), make("dd")),
      (box, [, its]) => set(box.lastChild, ranges(its).join(", ")),
    );
  }

  #draw() {
    const count = this.#owners.length,
      wide = $("slot-map").clientWidth;
    if (!count || !wide) return;
    // The fewest columns, a power of two, with which the map is not taller than a hand; of small cells, as many as there can be.
    const cellOf = columns => Math.min(LARGEST, Math.floor(wide / columns));
    this.#columns = 16;
    while (cellOf(this.#columns) * Math.ceil(count / this.#columns) > TALLEST && cellOf(this.#columns * 2) >= SMALLEST)
      this.#columns *= 2;
    this.#cell = Math.max(SMALLEST, cellOf(this.#columns));
    const cell = this.#cell,
      columns = this.#columns,
      scale = devicePixelRatio || 1,
      canvas = this.canvas,
      edge = cell >= 8 ? 1 : cell >= 6 ? 0.5 : 0;
    const width = columns * cell,
      height = Math.ceil(count / columns) * cell,
      style = getComputedStyle(document.body);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d"),
      ink = style.getPropertyValue("--ink"),
      paper = style.getPropertyValue("--card");
    pen.scale(scale, scale);
    pen.font = `${Math.min(12, cell * 0.55)}px system-ui, sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    this.#owners.forEach((shard, slot) => {
      const x = (slot % columns) * cell,
        y = Math.floor(slot / columns) * cell,
        size = cell - edge,
        move = this.#moving.get(slot);
      pen.globalAlpha =
        this.#picked === null || this.#picked === shard || (move && (move.from === this.#picked || move.to === this.#picked))
          ? 1
          : 0.18;
      pen.fillStyle = color(move ? move.from : shard);
      pen.fillRect(x, y, size, size);
      if (move) {
        pen.fillStyle = color(move.to);
        pen.beginPath();
        pen.moveTo(x + size, y);
        pen.lineTo(x + size, y + size);
        pen.lineTo(x, y + size);
        pen.fill();
        pen.strokeStyle = ink;
        pen.lineWidth = Math.min(2, cell / 6);
        pen.strokeRect(x + 1, y + 1, size - 2, size - 2);
      }
      if (cell >= NAMED && !move && shard !== NOBODY) {
        pen.fillStyle = ink;
        pen.fillText(shard, x + size / 2, y + size / 2 + 1);
      }
      if (this.#hot.has(slot)) {
        pen.strokeStyle = ink;
        pen.lineWidth = Math.max(1.5, cell / 10);
        pen.beginPath();
        pen.arc(x + size / 2, y + size / 2, Math.max(2, size / 2 - 1.5), 0, 7);
        pen.stroke();
      }
    });
    pen.globalAlpha = 1;
    if (this.#at !== null) {
      const x = (this.#at % columns) * cell,
        y = Math.floor(this.#at / columns) * cell;
      pen.lineWidth = 2;
      pen.strokeStyle = paper;
      pen.strokeRect(x - 1.5, y - 1.5, cell + 2, cell + 2);
      pen.strokeStyle = ink;
      pen.strokeRect(x + 0.5, y + 0.5, cell - 2, cell - 2);
    }
  }

  #under(event) {
    return Math.min(
      this.#owners.length - 1,
      Math.floor(event.offsetY / this.#cell) * this.#columns +
        Math.min(this.#columns - 1, Math.floor(event.offsetX / this.#cell)),
    );
  }

  #key(event) {
    const columns = this.#columns,
      steps = {
        ArrowLeft: -1,
        ArrowRight: 1,
        ArrowUp: -columns,
        ArrowDown: columns,
        PageUp: -8 * columns,
        PageDown: 8 * columns,
        Home: -Infinity,
        End: Infinity,
      };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.#go(Math.min(this.#owners.length - 1, Math.max(0, (this.#at ?? 0) + steps[event.key])));
  }

  #go(slot) {
    if (slot < 0 || slot === this.#at || !this.#owners.length) return;
    this.#at = slot;
    this.#say();
    this.#draw();
  }

  #say() {
    const slot = this.#at,
      shard = this.#owners[slot],
      move = this.#moving.get(slot),
      hot = this.#hot.get(slot);
    const text =
      `Slot ${slot}: ` +
      (move
        ? `on its way from shard ${move.from} to shard ${move.to}, ${move.phase}${move.late ? ", late" : ""}`
        : shard === NOBODY
          ? "owned by no shard"
          : `shard ${shard}`) +
      (hot ? `; hot, ${part(hot.share)} of all load` : "");
    set($("slot-said"), text);
    $("slot-move").hidden = false;
    set($("slot-move"), `Move slot ${slot}`);
    attribute($("slot-map"), "aria-valuemax", this.#owners.length - 1);
    attribute($("slot-map"), "aria-valuenow", slot);
    attribute($("slot-map"), "aria-valuetext", text);
  }
}
