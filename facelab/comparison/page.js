"use strict";

addEventListener("error", (event) => {
  const box = document.getElementById("faults");
  box.hidden = false;
  box.append(`${event.message}\n`);
});

const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = 8;
const DASHES = ["", "7 3", "2 2.5", "9 3 2 3", "4 2", "13 4", "1 3", "6 2 2 2 2 2"];
const PLUS = "M-1.4-4.6h2.8v3.2h3.2v2.8h-3.2v3.2h-2.8v-3.2h-3.2v-2.8h3.2Z";
const MARKS = [
  "M-3.8 0a3.8 3.8 0 1 0 7.6 0a3.8 3.8 0 1 0-7.6 0Z", "M-3.4-3.4h6.8v6.8h-6.8Z", "M0-4.6L4.4 3.3h-8.8Z", "M0-5L4.3 0L0 5L-4.3 0Z",
  "M0 4.6L4.4-3.3h-8.8Z", PLUS, PLUS, "M-5-1.7h10v3.4h-10Z",
];
const TURNED = 6; // index of the mark that is a plus rotated into a cross
const NORMALISERS = { box: "nme_box", ioc: "nme_ioc" };
const DIVISORS = { box: "normalised by the size of the true box", ioc: "normalised by the distance of the outer eye corners" };

// Elements

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function shape(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const title = (text) => shape("title", {}, text);
const colour = (slot) => `var(--c${slot % COLOURS})`;
const dash = (slot) => DASHES[(slot + Math.floor(slot / COLOURS)) % DASHES.length];

function mark(slot, x, y, text = "") {
  const turn = slot % MARKS.length === TURNED ? " rotate(45)" : "";
  const node = shape("path", { d: MARKS[slot % MARKS.length], transform: `translate(${round(x)} ${round(y)})${turn}`, fill: colour(slot) });
  if (text) node.append(title(text));
  return node;
}

function line(slot, points, attributes = {}) {
  const d = points.map(([x, y], i) => `${i ? "L" : "M"}${round(x)} ${round(y)}`).join("");
  return shape("path", { d, class: "line", stroke: colour(slot), "stroke-dasharray": dash(slot), ...attributes });
}

function swatch(slot) {
  const svg = shape("svg", { viewBox: "0 0 34 12", "aria-hidden": "true" });
  svg.append(line(slot, [[0, 6], [34, 6]]), mark(slot, 17, 6));
  return svg;
}

// Numbers

const round = (value) => Math.round(value * 10) / 10;
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const percent = (value) => (100 * value).toFixed(2);
const shown = (value, { factor, decimals }) => (factor * value).toFixed(decimals);
const withUnit = (text, { unit }) => [text, unit].filter(Boolean).join(" ");
const signed = (value) => `${value < 0 ? "−" : "+"}${percent(Math.abs(value))}`;

function niceStep(span, count) {
  const rough = span / count, power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
}

function scale(values, from, to, { zero = false, log = "auto", ticks = 5, pad = 0 } = {}) {
  let low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const isLog = low > 0 && !zero && (log === true || (log === "auto" && high / low > 8));
  if (zero) low = Math.min(0, low);
  if (isLog) {
    low *= 0.9; high *= 1.1;
    const at = (value) => from + ((Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low))) * (to - from);
    const marks = [];
    const steps = high / low > 60 ? [1, 3] : high / low > 4 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const step of steps) if (step * 10 ** power >= low && step * 10 ** power <= high) marks.push(step * 10 ** power);
    return { at, marks, log: true, end: high };
  }
  if (pad) { const room = pad * (high - low); low -= room; high += room; }
  if (high === low) { high += Math.abs(high) * 0.1 || 1; low -= zero ? 0 : Math.abs(low) * 0.1 || 1; }
  const step = niceStep(high - low, ticks);
  if (!zero || low < 0) low = Math.floor(low / step + 1e-9) * step;
  high = Math.ceil(high / step - 1e-9) * step;
  const at = (value) => from + ((value - low) / (high - low)) * (to - from);
  const marks = [];
  for (let i = 0; low + i * step <= high + step * 1e-6; i++) marks.push(low + i * step);
  return { at, marks, log: false, end: high };
}

const tickText = (value, factor) => String(Number((value * factor).toPrecision(4))).replace("-", "−");

// Figures

const LEFT = 44, RIGHT = 12, TOP = 22, BOTTOM = 34;

/** Draw an empty plot with axes, grid and labels, and return its elements and scales for the series. */
function plot(figure, { x, y, left = LEFT, height = null }) {
  const width = widthOf(figure);
  height ??= Math.round(Math.min(300, Math.max(210, 0.46 * width)));
  const X = scale(x.values, left, width - RIGHT, x), Y = scale(y.values, height - BOTTOM, TOP, y);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": figure.dataset.title });
  for (const value of Y.marks) {
    const at = round(Y.at(value));
    svg.append(shape("line", { x1: left, x2: width - RIGHT, y1: at, y2: at, class: "gridline" }));
    svg.append(shape("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, tickText(value, y.factor ?? 1)));
  }
  svg.append(shape("text", { x: 0, y: 11 }, y.label + (Y.log ? " (log scale)" : "")));
  bottomAxis(svg, X, left, width - RIGHT, height - BOTTOM, x);
  figure.append(svg);
  return { svg, X: X.at, Y: Y.at, end: X.end, width, height, left };
}

const widthOf = (figure) => Math.max(260, Math.round(figure.clientWidth || 440));

function bottomAxis(svg, X, from, to, y, { label, factor = 1 }) {
  svg.append(shape("line", { x1: from, x2: to, y1: y, y2: y, class: "axis" }));
  let last = -Infinity;
  for (const value of X.marks) {
    const at = round(X.at(value)), text = tickText(value, factor);
    svg.append(shape("line", { x1: at, x2: at, y1: y, y2: y + 4, class: "axis" }));
    if (at - last < text.length * 6.5 + 8) continue;
    svg.append(shape("text", { x: at, y: y + 16, "text-anchor": "middle" }, text));
    last = at;
  }
  svg.append(shape("text", { x: to, y: y + 31, "text-anchor": "end" }, label + (X.log ? " (log scale)" : "")));
}

function series(svg, row, ...children) {
  const group = shape("g", { "data-row": row.place }, ...children);
  svg.append(group);
  return group;
}

function missing(figure, what, rows) {
  if (rows.length) figure.append(element("p", {}, `${what}: ${rows.join(", ")}.`));
}

/** Select points of a curve for marks, at different positions for each slot. */
function spread(points, slot, count) {
  const stride = points.length / count;
  return Array.from({ length: count }, (_, i) => points[Math.min(points.length - 1, Math.floor(stride * (i + ((slot * 3) % 8) / 8)))]);
}

function drawCurves(figure, section, name) {
  const found = [];
  for (const row of section.drawn())
    for (const place of row.runs) {
      const run = section.runs[place], curve = run.curves?.[name];
      if (!curve) continue;
      const xs = section.options.x === "step" ? curve[0] : curve[0].map((step) => (step + 1) / run.rate);
      const points = xs.map((x, i) => [x, curve[1][i]]).filter(([, y]) => known(y));
      if (points.length) found.push({ row, run, points });
    }
  if (!found.length) return figure.append(element("p", {}, "None of the drawn runs logged this metric."));
  const all = found.flatMap(({ points }) => points), unit = DATA.units[name] ?? { unit: name.startsWith("val/") ? "value" : "loss", factor: 1 };
  const { svg, X, Y } = plot(figure, {
    x: { values: all.map(([x]) => x), zero: true, label: section.options.x, log: false },
    y: { values: all.map(([, y]) => y), label: unit.unit, factor: unit.factor },
  });
  for (const { row, run, points } of found) {
    const at = points.map(([x, y]) => [X(x), Y(y)]);
    const first = run === section.runs[row.runs[0]]; // only the first of several seeds has marks
    const marks = !first ? [] : at.length <= 25 && found.length <= COLOURS ? at : spread(at, row.slot, Math.min(3, at.length));
    series(svg, row, line(row.slot, at, { opacity: row.runs.length > 1 ? 0.7 : 1, "stroke-width": at.length > 60 ? 1.2 : 1.6 }), ...marks.map(([x, y]) => mark(row.slot, x, y)), title(run.name));
  }
}

function drawDistribution(figure, section, normaliser) {
  const found = [], without = [];
  for (const row of section.drawn()) {
    const sets = row.runs.map((place) => section.errors(place, normaliser)).filter((errors) => errors?.length);
    if (sets.length) found.push({ row, sets }); else without.push(row.label);
  }
  if (found.length) {
    const high = (errors) => errors[Math.ceil(0.95 * errors.length) - 1];
    const tails = found.flatMap(({ sets }) => sets.map(high)).sort((a, b) => a - b);
    const end = Math.min(tails.at(-1), 3 * tails[0]) || 0.1;
    const { svg, X, Y, end: last, height } = plot(figure, {
      x: { values: [0, end], zero: true, log: false, label: "error of a face, %", factor: 100 },
      y: { values: [0, 1], zero: true, label: "share of faces, %", factor: 100 },
    });
    if (normaliser === "ioc" && last > 0.08) {
      svg.append(shape("line", { x1: X(0.08), x2: X(0.08), y1: TOP, y2: height - BOTTOM, class: "front" }));
      const [dx, anchor] = X(0.08) < 170 ? [5, "start"] : [-5, "end"];
      svg.append(shape("text", { x: X(0.08) + dx, y: height - BOTTOM - 6, "text-anchor": anchor }, "failure above 8 %"));
    }
    for (const { row, sets } of found)
      for (const errors of sets) {
        const at = [];
        let count = 0;
        for (let i = 0; i <= 160; i++) {
          const x = (last * i) / 160;
          while (count < errors.length && errors[count] <= x) count++;
          at.push([X(x), Y(count / errors.length)]);
        }
        const heights = [0, 1, 2].map((i) => Y((i + (row.slot % COLOURS) / COLOURS + 0.1) / 3));
        const marks = (errors === sets[0] ? heights : []).map((height) => at.find(([, y]) => y <= height)).filter(Boolean);
        series(svg, row, line(row.slot, at, { opacity: sets.length > 1 ? 0.7 : 1 }), ...marks.map(([x, y]) => mark(row.slot, x, y)), title(row.label));
      }
  }
  missing(figure, section.small ? "Errors of single faces are missing, or omitted to keep the page small" : "Errors of single faces are missing", without);
}

function drawGroup(figure, section, group) {
  const rows = section.drawn();
  const value = (row, metric) => row.metrics[metric] ?? [null, null, null];
  const values = rows.flatMap((row) => group.items.flatMap(([, , metric]) => value(row, metric))).filter(known);
  if (!values.length) return figure.append(element("p", {}, "None of the drawn runs has these metrics."));
  const step = rows.length > 1 ? Math.min(9, 60 / rows.length) : 0, band = Math.max(24, step * rows.length + 8);
  const top = 4, bottom = top + band * group.items.length;
  const widest = Math.max(...group.items.map(([label, count]) => label.length + count.length + 3));
  const width = widthOf(figure), left = Math.min(0.5 * width, widest * 6.2 + 10);
  const X = scale(values, left, width - RIGHT, { pad: 0.04, log: false, ticks: width < 360 ? 4 : 6 });
  const svg = shape("svg", { viewBox: `0 0 ${width} ${bottom + BOTTOM}`, role: "img", "aria-label": figure.dataset.title });
  for (const value of X.marks) svg.append(shape("line", { x1: round(X.at(value)), x2: round(X.at(value)), y1: top, y2: bottom, class: "gridline" }));
  bottomAxis(svg, X, left, width - RIGHT, bottom, { label: [group.metric, group.unit].filter(Boolean).join(", "), factor: group.factor });
  group.items.forEach(([label, count], i) => {
    const middle = top + band * (i + 0.5);
    if (i) svg.append(shape("line", { x1: 0, x2: width - RIGHT, y1: top + band * i, y2: top + band * i, class: "gridline" }));
    svg.append(shape("text", { x: 0, y: middle + 4, class: "strong" }, label));
    svg.append(shape("text", { x: left - 10, y: middle + 4, "text-anchor": "end" }, count));
  });
  rows.forEach((row, j) => {
    const drawn = [];
    group.items.forEach(([label, , metric], i) => {
      const [mean, low, high] = value(row, metric);
      if (!known(mean)) return;
      const y = top + band * (i + 0.5) + (j - (rows.length - 1) / 2) * step;
      if (known(low))
        drawn.push(shape("line", { x1: X.at(low), x2: X.at(high), y1: y, y2: y, stroke: colour(row.slot), "stroke-width": 1.4 }));
      drawn.push(mark(row.slot, X.at(mean), y, `${row.label}, ${label}: ${withUnit(shown(mean, group), group)}${known(low) ? `, ${shown(low, group)} to ${shown(high, group)}` : ""}`));
    });
    series(svg, row, ...drawn);
  });
  figure.append(svg);
}

function drawCost(figure, section, cost) {
  const metric = NORMALISERS[section.options.error];
  const points = section.rows.map((row, i) => ({ row, x: cost.values[i], y: row.metrics[metric]?.[0], ends: row.metrics[metric]?.slice(1).filter(known) ?? [] }));
  const shown = points.filter(({ x, y }) => known(x) && known(y));
  if (shown.length) {
    const { svg, X, Y, width, left } = plot(figure, {
      x: { values: shown.map(({ x }) => x), label: `${cost.title}, ${cost.unit}`, pad: 0.06 },
      y: { values: shown.flatMap(({ y, ends }) => [y, ...ends]), label: `${metric}, %`, factor: 100, log: false, pad: 0.06 },
    });
    const front = cost.fronts[metric].map((place) => points[place]);
    const steps = front.flatMap(({ x, y }, i) => (i ? [[X(x), Y(front[i - 1].y)], [X(x), Y(y)]] : [[X(x), Y(y)]]));
    svg.append(line(0, steps, { class: "front", stroke: "currentColor", "stroke-dasharray": "3 3" }));
    const taken = shown.map(({ x, y }) => ({ x0: X(x) - 6, x1: X(x) + 6, y0: Y(y) - 6, y1: Y(y) + 6 }));
    for (const { row, x, y, ends } of shown.sort((a, b) => known(a.row.slot) - known(b.row.slot))) {
      const text = `${row.label}: ${percent(y)} % at ${x} ${cost.unit}`;
      if (!known(row.slot)) { svg.append(shape("circle", { cx: X(x), cy: Y(y), r: 2.6, class: "rest" }, title(text))); continue; }
      const bar = ends.length ? [shape("line", { x1: X(x), x2: X(x), y1: Y(ends[0]), y2: Y(ends[1]), stroke: colour(row.slot) })] : [];
      series(svg, row, ...bar, mark(row.slot, X(x), Y(y), text));
    }
    for (const { row, x, y } of front) placeLabel(svg, withoutSeeds(row.label), X(x), Y(y), taken, left, width);
  }
  missing(figure, `Not measured${cost.title.startsWith("MACs") ? "" : " on this machine"}`, section.named(points.filter(({ x }) => !known(x)).map(({ row }) => row)));
}

const withoutSeeds = (label) => label.replace(/ \(\d+ seeds\)$/, "");
const fullName = (row, run) => (run.name.includes(withoutSeeds(row.label)) ? run.name : `${run.name}: ${withoutSeeds(row.label)}`);

/** Write a name beside a point without covering anything; omit it if there is no space. */
function placeLabel(svg, text, x, y, taken, left, right) {
  const short = text.length > 40 ? `${text.slice(0, 39)}…` : text, width = short.length * 5.9;
  for (const [dx, dy] of [[8, -7], [9, 4], [-9 - width, 4], [-8 - width, 16], [8, 16], [-8 - width, -7], [-width / 2, -11], [-width / 2, 20]]) {
    const box = { x0: x + dx, x1: x + dx + width, y0: y + dy - 10, y1: y + dy + 3 };
    if (box.x0 < left || box.x1 > right || box.y0 < TOP - 8) continue;
    if (taken.some((other) => box.x0 < other.x1 && other.x0 < box.x1 && box.y0 < other.y1 && other.y0 < box.y1)) continue;
    taken.push(box);
    svg.append(shape("text", { x: round(box.x0), y: round(y + dy), class: "strong" }, short));
    return;
  }
}

// Comparison of two runs face by face

/** Return a generator of reproducible random numbers in [0, 1) (mulberry32). */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Compute the mean difference on common faces, its 95 % interval, and twice the share of resamples on the other side of zero. */
function pairedBootstrap(a, b, resamples) {
  const differences = [];
  let better = 0;
  for (let i = 0; i < a.length; i++) {
    if (Number.isNaN(a[i]) || Number.isNaN(b[i])) continue;
    differences.push(a[i] - b[i]);
    better += a[i] < b[i];
  }
  const count = differences.length, random = generator(1), means = [];
  const mean = differences.reduce((sum, value) => sum + value, 0) / count;
  for (let draw = 0; draw < resamples; draw++) {
    let sum = 0;
    for (let i = 0; i < count; i++) sum += differences[Math.floor(random() * count)];
    means.push(sum / count);
  }
  means.sort((first, second) => first - second);
  const end = (q) => means[Math.ceil(q * resamples) - 1];
  const beyond = 1 + Math.min(means.filter((value) => value <= 0).length, means.filter((value) => value >= 0).length);
  return { mean, low: end(0.025), high: end(0.975), p: Math.min(1, (2 * beyond) / (resamples + 1)), count, better: better / count, means };
}

function drawPair(box, section) {
  const [a, b] = [...box.querySelectorAll("select")].map((select) => section.raw(Number(select.value), section.options.error));
  const output = box.querySelector("output"), figure = box.querySelector("figure");
  figure.replaceChildren();
  const found = pairedBootstrap(a, b, DATA.resamples);
  if (!Number.isFinite(found.mean)) { output.textContent = "The difference is undefined: there is no common face, or an error is infinite."; return; }
  output.textContent =
    `A − B = ${signed(found.mean)} percentage points of ${NORMALISERS[section.options.error]}, 95 % interval ${signed(found.low)} to ${signed(found.high)}, ` +
    `p ${found.p.toFixed(3)}. On ${found.count} common faces; A has the smaller error on ${(100 * found.better).toFixed(0)} % of them.`;
  const span = Math.max(Math.abs(found.means[0]), Math.abs(found.means.at(-1))) || 1e-4;
  const low = Math.min(0, found.means[0]), high = Math.max(0, found.means.at(-1)), bins = 48, counts = new Array(bins).fill(0);
  for (const value of found.means) counts[Math.min(bins - 1, Math.floor(((value - found.means[0]) / (found.means.at(-1) - found.means[0] || span)) * bins))]++;
  const { svg, X, height } = plot(figure, {
    x: { values: [low, high], label: "A − B, percentage points", factor: 100, log: false },
    y: { values: [0, 1], zero: true, label: "", ticks: 1, factor: 0 },
    height: 150, left: 26,
  });
  svg.querySelectorAll(".gridline").forEach((node) => node.remove());
  svg.querySelectorAll("text[text-anchor=end]").forEach((node) => node.textContent === "0" && node.remove());
  const peak = Math.max(...counts), base = height - BOTTOM, first = found.means[0], step = (found.means.at(-1) - first || span) / bins;
  counts.forEach((count, i) => {
    const x0 = X(first + i * step), x1 = X(first + (i + 1) * step), tall = ((base - TOP) * count) / peak;
    if (count) svg.append(shape("rect", { x: round(x0), y: round(base - tall), width: Math.max(0.6, x1 - x0 - 0.5), height: round(tall), class: "bars" }));
  });
  svg.append(shape("line", { x1: X(found.low), x2: X(found.high), y1: base - 4, y2: base - 4, stroke: "var(--ink)", "stroke-width": 2.5 }));
  svg.append(shape("line", { x1: X(0), x2: X(0), y1: TOP - 6, y2: base, class: "axis" }));
  svg.append(shape("text", { x: X(0), y: TOP - 10, "text-anchor": X(0) < 60 ? "start" : "end" }, "no difference"));
}

// Section with a table and its figures

class Section {
  constructor(root, data) {
    Object.assign(this, data);
    this.root = root;
    this.options = { x: "epoch", error: "box" };
    this.cache = new Map();
    this.rows.forEach((row, place) => { row.place = place; row.slot = place < DATA.drawn ? place : null; });
    this.boxes = [...root.querySelectorAll("input[data-row]")];
    this.build();
    this.prepareTable();
    this.draw();
  }

  drawn() { return this.rows.filter((row) => known(row.slot)).sort((a, b) => a.slot - b.slot); }

  named(rows) { return rows.length > 12 ? [...rows.slice(0, 12).map((row) => row.label), `${rows.length - 12} more`] : rows.map((row) => row.label); }

  /** Return the errors of a run in the order of the table's faces; NaN for a missing face. */
  raw(place, normaliser) {
    const text = this.runs[place].errors?.[normaliser];
    if (!text) return null;
    const key = `${place} ${normaliser}`;
    if (!this.cache.has(key)) this.cache.set(key, new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer));
    return this.cache.get(key);
  }

  errors(place, normaliser) {
    const key = `${place} ${normaliser} sorted`;
    if (!this.cache.has(key)) this.cache.set(key, this.raw(place, normaliser)?.filter((value) => !Number.isNaN(value)).sort());
    return this.cache.get(key);
  }

  build() {
    const place = this.root.querySelector(".figures");
    const monitors = [...new Set(this.runs.flatMap((run) => Object.keys(run.curves ?? {})))].sort();
    const hasErrors = this.runs.some((run) => run.errors);
    this.legend = element("ul", { "aria-label": "drawn runs" });
    const bar = element("div", { class: "legend" }, this.legend);
    if (monitors.length) bar.append(this.radios("x", "x axis of curves", ["epoch", "step"]));
    if (hasErrors || this.costs.length) bar.append(this.radios("error", "normalised by", ["box", "ioc"]));
    place.append(bar);
    this.figures = [];
    const add = (heading, entries, words = "") => {
      if (!entries.length) return;
      const grid = element("div", { class: "grid" });
      place.append(element("h3", {}, heading), ...(words ? [element("p", { class: "quiet note" }, words)] : []), grid);
      for (const [name, about, draw] of entries) {
        const figure = element("figure", { "data-title": `${name}, ${about}` });
        grid.append(figure);
        this.figures.push(() => {
          figure.replaceChildren(element("figcaption", {}, element("b", {}, name), " ", element("span", {}, about)));
          draw(figure);
        });
      }
    };
    add("Training", monitors.map((name) => [name, name.startsWith("val/") ? "on the validation faces" : "of training batches", (figure) => drawCurves(figure, this, name)]));
    add("Distribution of errors", !hasErrors ? [] : Object.keys(NORMALISERS).map((name) => [NORMALISERS[name], DIVISORS[name], (figure) => drawDistribution(figure, this, name)]));
    add("Error by part of the faces", this.groups.map((group) => [group.title, group.what, (figure) => drawGroup(figure, this, group)]), "Mean error of each part, with its number of faces. Bars: mean ± standard deviation over seeds, or the 95 % interval of a single run.");
    add("Error against cost", this.costs.map((cost) => [cost.title, cost.about, (figure) => drawCost(figure, this, cost)]), "Each point is a row of the table; grey rows are not selected. Dashed: the Pareto front, the rows for which no other row is both cheaper and better.");
    if (this.rows.some((row) => Object.keys(row.metrics).length) && !this.costs.length)
      place.append(element("p", { class: "quiet note" }, "Error against MACs and latency: no run has counted MACs or a measured latency."));
    this.buildPair(place);
    const faults = this.runs.flatMap((run) => run.faults.map((fault) => `${run.name}: ${fault}`));
    if (faults.length) place.append(element("p", { class: "quiet note" }, `Files that could not be read: ${faults.join("; ")}`));
    const bare = this.runs.filter((run) => !run.curves || !Object.keys(run.curves).length).map((run) => run.name);
    if (monitors.length && bare.length) place.append(element("p", { class: "quiet note" }, `Runs without curves: ${bare.slice(0, 12).join(", ")}${bare.length > 12 ? ` and ${bare.length - 12} more` : ""}.`));
    for (const type of ["mouseover", "focusin", "mouseleave", "focusout"]) bar.addEventListener(type, (event) => this.highlight(event), type === "mouseleave");
  }

  radios(name, words, values) {
    const set = element("fieldset", {}, element("legend", {}, words));
    for (const value of values) {
      const input = element("input", { type: "radio", name: `${name}-${this.root.id}`, value });
      input.checked = this.options[name] === value;
      input.addEventListener("change", () => { this.options[name] = value; this.draw(); });
      set.append(element("label", {}, input, ` ${value === "ioc" ? "eye corners" : value}`));
    }
    return set;
  }

  buildPair(place) {
    const runs = this.rows.flatMap((row) => row.runs.filter((run) => this.runs[run].errors).map((run) => ({ row, run })));
    if (runs.length < 2) return;
    const other = runs.findIndex(({ row }) => row !== runs[0].row);
    const choice = (letter, chosen) => {
      const select = element("select", {}, ...runs.map(({ row, run }) => element("option", { value: run }, fullName(row, this.runs[run]))));
      select.selectedIndex = chosen;
      select.addEventListener("change", () => drawPair(this.pair, this));
      return element("label", {}, letter, select);
    };
    this.pair = element("div", { class: "pair" }, choice("A", 0), choice("B", Math.max(1, other)), element("output"), element("figure", { "data-title": "differences of the resamples" }));
    const words = `Paired bootstrap: each of ${DATA.resamples} resamples draws the same faces for both runs. p is twice the share of resamples in which the difference is zero or has the opposite sign. The bar is the 95 % interval.`;
    place.append(element("h3", {}, "Comparison of two runs face by face"), this.pair, element("p", { class: "quiet note" }, words));
  }

  highlight(event) {
    const item = event.type === "mouseover" || event.type === "focusin" ? event.target.closest("li[data-row]") : null;
    this.root.classList.toggle("hot", Boolean(item));
    this.root.querySelectorAll("[data-row].hot").forEach((node) => node.classList.remove("hot"));
    if (item) this.root.querySelectorAll(`[data-row="${item.dataset.row}"]`).forEach((node) => node.classList.add("hot"));
  }

  draw() {
    this.legend.replaceChildren(...this.drawn().map((row) => element("li", { "data-row": row.place, tabindex: 0 }, swatch(row.slot), element("span", {}, row.label))));
    if (!this.drawn().length) this.legend.append(element("li", {}, element("span", { class: "quiet" }, "no run is drawn")));
    for (const box of this.boxes) {
      const { slot } = this.rows[box.dataset.row];
      box.checked = known(slot);
      box.parentNode.querySelector("svg")?.remove();
      box.after(known(slot) ? swatch(slot) : shape("svg", { viewBox: "0 0 34 12", "aria-hidden": "true" }));
    }
    for (const figure of this.figures) figure();
    if (this.pair) drawPair(this.pair, this);
  }

  choose(row, on) {
    if (!on) row.slot = null;
    else if (!known(row.slot)) {
      const taken = new Set(this.rows.map((each) => each.slot));
      for (row.slot = 0; taken.has(row.slot); ) row.slot++;
    }
  }

  prepareTable() {
    const table = this.boxes[0]?.closest("table");
    if (!table) return;
    const bodies = [...table.tBodies], count = this.root.querySelector("[data-count]");
    for (const box of this.boxes) box.addEventListener("change", () => { this.choose(this.rows[box.dataset.row], box.checked); this.draw(); });
    for (const button of table.querySelectorAll(".more"))
      button.addEventListener("click", () => {
        const open = button.getAttribute("aria-expanded") !== "true";
        button.setAttribute("aria-expanded", open);
        button.closest("tbody").querySelectorAll(".single").forEach((row) => { row.hidden = !open; });
      });
    for (const button of table.querySelectorAll("[data-sort]")) button.addEventListener("click", () => sortTable(table, button.closest("th")));
    this.root.querySelector("input[type=search]")?.addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const body of bodies) body.hidden = !words.every((word) => body.textContent.toLowerCase().includes(word));
      const left = bodies.filter((body) => !body.hidden).length;
      count.textContent = left === bodies.length ? `${left} rows` : `${left} of ${bodies.length} rows`;
    });
    for (const button of this.root.querySelectorAll("[data-draw]"))
      button.addEventListener("click", () => {
        const shown = new Set(bodies.filter((body) => !body.hidden).map((body) => Number(body.querySelector("input").dataset.row)));
        const wanted = { none: () => false, shown: (row) => shown.has(row.place), best: (row) => row.place < DATA.drawn }[button.dataset.draw];
        for (const row of this.rows) this.choose(row, false);
        for (const row of this.rows) this.choose(row, wanted(row));
        this.draw();
      });
  }
}

function sortTable(table, heading) {
  const place = [...heading.parentNode.children].indexOf(heading);
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const cell of heading.parentNode.children) cell.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const text = (body) => body.rows[0].cells[place].firstChild?.textContent ?? "";
  const number = (body) => (text(body) === "inf" ? Infinity : text(body) === "-" ? NaN : Number(text(body)));
  const bodies = [...table.tBodies];
  const numeric = bodies.every((body) => text(body) === "-" || text(body) === "inf" || !Number.isNaN(number(body)));
  const compare = numeric
    ? (a, b) => Number.isNaN(number(a)) - Number.isNaN(number(b)) || (down ? number(b) - number(a) : number(a) - number(b)) || 0
    : (a, b) => (down ? -1 : 1) * text(a).localeCompare(text(b), undefined, { numeric: true });
  table.append(...bodies.sort(compare));
}

const SECTIONS = [...document.querySelectorAll("[data-section]")].map((root) => new Section(root, DATA.sections[root.dataset.section]));
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  requestAnimationFrame(() => SECTIONS.forEach((section) => section.draw()));
});
