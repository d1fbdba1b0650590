// Figures over time: kept across a reload of the page, gaps stay gaps, and a crosshair goes by mouse and by keys.

import {attribute, clock, keyed, make, set} from "./words.js";

const KEEP = 3600,
  FINE = 900, // seconds of which every point is kept; before that, one in five
  missed = (before, after) => after.at - before.at > 2.4 * Math.max(before.every ?? 1, after.every ?? 1) + 1.1,
  STORE = "shardmem-history",
  SVG = "http://www.w3.org/2000/svg";
const DASHES = ["none", "7 3", "2 3"]; // whoever sees no colours tells neighbours apart by them
const LEFT = 58,
  RIGHT = 10,
  TOP = 10,
  BOTTOM = 22;

export class History {
  points = []; // {at: seconds since 1970, and a value or null of each series}
  cursor = null; // the moment that is looked at; null: now
  #engine = null;

  constructor() {
    try {
      ({engine: this.#engine, points: this.points} = JSON.parse(sessionStorage.getItem(STORE)) || {
        engine: null,
        points: [],
      });
    } catch {
      this.points = [];
    }
    addEventListener("pagehide", () => this.keep());
  }

  keep() {
    try {
      sessionStorage.setItem(STORE, JSON.stringify({engine: this.#engine, points: this.points}));
    } catch {
      /* full: it is not worth an error */
    }
  }

  add(engine, point) {
    if (engine !== this.#engine) {
      this.#engine = engine;
      this.points = [];
    }
    this.points.push(point);
    while (this.points.length && this.points[0].at < point.at - KEEP) this.points.shift();
    if (this.points.length > 2 * FINE) this.#thin(point.at - FINE);
  }

  /** What the supervisor has kept, where this page was not there. */
  fill(engine, points, every) {
    if (engine !== this.#engine) [this.#engine, this.points] = [engine, []];
    const mine = this.points.map(each => each.at),
      fresh = points.filter(({at}) => !mine.some(each => Math.abs(each - at) < every));
    this.points = [...this.points, ...fresh.map(each => ({...each, every}))].sort((a, b) => a.at - b.at);
  }

  #thin(before) {
    let last = -Infinity;
    this.points = this.points.filter(each => {
      if (each.at < before && each.at - last < 4.5) return false;
      last = each.at;
      if (each.at < before) each.every = 5;
      return true;
    });
  }

  /** The point that is shown: the one nearest to the cursor, or the last. */
  get shown() {
    if (this.cursor === null) return this.points[this.points.length - 1];
    return this.points.reduce(
      (best, each) => (Math.abs(each.at - this.cursor) < Math.abs(best.at - this.cursor) ? each : best),
      this.points[0],
    );
  }
}

/** Round numbers from 0 to at least `most`. */
export function ticks(most) {
  const power = 10 ** Math.floor(Math.log10(most / 4)),
    step = [1, 2, 5, 10].map(each => each * power).find(each => each * 4 >= most);
  const found = [0];
  while (found[found.length - 1] < most) found.push(Number((step * found.length).toPrecision(12)));
  return found;
}

/** Powers of ten, from the one below `least` to the one above `most`. */
export function powers(least, most) {
  const found = [10 ** Math.floor(Math.log10(least))];
  while (found[found.length - 1] < most) found.push(Number((found[found.length - 1] * 10).toPrecision(3)));
  return found;
}

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** format: a value as text with its unit. series: of the points, [{key, name, of, color}]: `of` takes the value out of a point; of two
    without a colour, the first is drawn solid, the second dashed. least, most: the axis
    goes at least so far, and no further. log: it goes by powers of ten, because one slow moment would flatten all others. */
export class Chart {
  constructor(host, history, {title, format, series, least, most, log, note}, range, moved) {
    Object.assign(this, {history, title, format, seriesOf: series, least, most, log, range, moved});
    this.legend = make("p", {kind: "legend"});
    this.plot = make("div", {
      kind: "plot",
      role: "slider",
      tabindex: "0",
      "aria-label": `${title}, at a moment`,
      "aria-valuemin": "0",
      "aria-valuemax": "0",
      "aria-valuenow": "0",
      "aria-valuetext": "now",
    });
    this.svg = shape("svg", {"aria-hidden": "true"});
    this.plot.append(this.svg);
    host.append(make("figure", {}, make("figcaption", {}, make("h3", {text: title}, ...(note ? [make("small", {kind: "soft", text: ` ${note}`})] : [])), this.legend), this.plot));
    this.plot.addEventListener("pointermove", event => this.#point(event.offsetX));
    this.plot.addEventListener("pointerdown", event => this.#point(event.offsetX));
    this.plot.addEventListener("pointerleave", () => document.activeElement !== this.plot && this.#look(null));
    this.plot.addEventListener("keydown", event => this.#key(event));
    this.plot.addEventListener("blur", () => this.#look(null));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  #look(at) {
    this.history.cursor = at;
    this.moved();
  }

  #told(series, shown) {
    keyed(
      this.legend,
      series,
      each => each.key,
      each => {
        const swatch = shape("svg", {viewBox: "0 0 32 10", "aria-hidden": "true"});
        swatch.append(shape("path", {d: "M1 5H31"}));
        return make("span", {}, swatch, ` ${each.name} `, make("span"));
      },
      (line, each) => {
        this.#dress(line.querySelector("path"), each, series.indexOf(each));
        set(line.lastChild, shown ? this.format(each.of(shown)) : "–");
      },
    );
  }

  #dress(path, each, i) {
    path.setAttribute("class", each.color ? "line shard" : `line line${i}`);
    if (each.color) {
      path.setAttribute("stroke", each.color);
      path.setAttribute("stroke-dasharray", DASHES[each.key % DASHES.length]);
    }
  }

  #seen() {
    const {points} = this.history,
      to = points.length ? points[points.length - 1].at : 1;
    const span = points.length ? Math.min(this.range(), Math.max(60, to - points[0].at)) : 60; // a young page has little to show
    return {from: to - span, to, span, points: points.filter(each => each.at >= to - span)};
  }

  #point(x) {
    const {from, to, points} = this.#seen(),
      width = this.plot.clientWidth - LEFT - RIGHT;
    if (points.length) this.#look(from + Math.min(1, Math.max(0, (x - LEFT) / width)) * (to - from));
  }

  #key(event) {
    const {points} = this.#seen(),
      steps = {
        ArrowLeft: -1,
        ArrowDown: -1,
        ArrowRight: 1,
        ArrowUp: 1,
        PageDown: -30,
        PageUp: 30,
        Home: -Infinity,
        End: Infinity,
      };
    if (event.key === "Escape") this.#look(null);
    else if (event.key in steps && points.length) {
      const now = points.indexOf(this.history.shown),
        there = Math.min(points.length - 1, Math.max(0, now + steps[event.key]));
      this.#look(points[there].at);
      const {at} = points[there];
      attribute(this.plot, "aria-valuemin", Math.floor(points[0].at));
      attribute(this.plot, "aria-valuemax", Math.ceil(points[points.length - 1].at));
      attribute(this.plot, "aria-valuenow", Math.round(at));
      attribute(
        this.plot,
        "aria-valuetext",
        `${clock(at)}: ${this.seriesOf(points)
          .map(each => `${each.name} ${this.format(each.of(points[there]))}`)
          .join(", ")}`,
      );
      event.preventDefault();
    }
  }

  draw() {
    const {from, to, span, points} = this.#seen(),
      {clientWidth: width, clientHeight: height} = this.plot,
      shown = this.history.shown;
    const series = this.seriesOf(points);
    this.#told(series, shown);
    if (!width || !points.length) return;
    const values = points.flatMap(each => series.map(({of}) => of(each))).filter(each => each !== null);
    const highest = Math.min(this.most ?? Infinity, Math.max(this.least, ...values));
    const marks = this.log ? powers(Math.max(1, Math.min(this.least / 10, ...values)), highest) : ticks(highest);
    const [low, top] = [marks[0], marks[marks.length - 1]];
    const share = value => (this.log ? Math.log(Math.max(value, low) / low) / Math.log(top / low) : value / top);
    const x = at => LEFT + ((width - LEFT - RIGHT) * (at - from)) / span,
      y = value => TOP + (height - TOP - BOTTOM) * (1 - Math.min(1, share(value)));
    const drawn = [];
    for (const mark of marks)
      drawn.push(
        shape("line", {class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark)}),
        shape("text", {x: LEFT - 6, y: y(mark) + 4, "text-anchor": "end"}, this.format(mark).replace(/\.0(?= )/, "")),
      );
    const wanted = span / Math.max(2, Math.floor((width - LEFT) / 80)),
      step = [10, 15, 30, 60, 120, 180, 300, 600].find(each => each >= wanted) || 900;
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
      const label = clock(at);
      drawn.push(shape("line", {class: "grid", x1: x(at), x2: x(at), y1: TOP, y2: height - BOTTOM}));
      if (x(at) > LEFT + 16 && x(at) < width - 20)
        drawn.push(shape("text", {x: x(at), y: height - 6, "text-anchor": "middle"}, step < 60 ? label : label.slice(0, 5)));
    }
    points.forEach((each, i) => {
      if (i && missed(points[i - 1], each))
        drawn.push(
          shape("rect", {
            class: "gap",
            x: x(points[i - 1].at),
            y: TOP,
            width: x(each.at) - x(points[i - 1].at),
            height: height - TOP - BOTTOM,
          }),
        );
    });
    series.forEach((one, i) => {
      let path = "",
        last = null;
      for (const each of points) {
        const value = one.of(each);
        if (value === null) continue; // a rate needs two looks: one that is missing is no gap yet
        path +=
          last !== null && !missed(last, each)
            ? `L${x(each.at).toFixed(1)} ${y(value).toFixed(1)}`
            : `M${x(each.at).toFixed(1)} ${y(value).toFixed(1)}h.1`;
        last = each;
      }
      const line = shape("path", {d: path || "M0 0"});
      this.#dress(line, one, i);
      drawn.push(line);
    });
    if (this.history.cursor !== null && shown.at >= from) {
      drawn.push(shape("line", {class: "cross", x1: x(shown.at), x2: x(shown.at), y1: TOP, y2: height - BOTTOM}));
      series.forEach(({of, color}, i) => {
        if (of(shown) !== null && !color)
          drawn.push(shape("circle", {class: `dot${i}`, r: 4, cx: x(shown.at), cy: y(of(shown))}));
      });
    }
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...drawn);
  }
}
