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

// Axes

const round = (value) => Math.round(value * 10) / 10;
const known = (value) => value !== null && value !== undefined;

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
  if (!pad) { low = Math.floor(low / step + 1e-9) * step; high = Math.ceil(high / step - 1e-9) * step; }
  const at = (value) => from + ((value - low) / (high - low)) * (to - from);
  const marks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++) marks.push(i * step);
  return { at, marks, log: false, end: high };
}

const tickText = (value) => String(Number(value.toPrecision(4))).replace("-", "−");

// Figures

const LEFT = 44, RIGHT = 12, TOP = 22, BOTTOM = 34;

/** Draw an empty plot with axes, grid and labels, and return its elements and scales for the series. */
function plot(figure, { x, y }) {
  const width = widthOf(figure), height = Math.round(Math.min(300, Math.max(210, 0.46 * width)));
  const X = scale(x.values, LEFT, width - RIGHT, x), Y = scale(y.values, height - BOTTOM, TOP, y);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": figure.dataset.title });
  for (const value of Y.marks) {
    const at = round(Y.at(value));
    svg.append(shape("line", { x1: LEFT, x2: width - RIGHT, y1: at, y2: at, class: "gridline" }));
    svg.append(shape("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, tickText(value)));
  }
  svg.append(shape("text", { x: 0, y: 11 }, y.label + (Y.log ? " (log scale)" : "")));
  bottomAxis(svg, X, LEFT, width - RIGHT, height - BOTTOM, x.label);
  figure.append(svg);
  return { svg, X: X.at, Y: Y.at, end: X.end, width, height };
}

const widthOf = (figure) => Math.max(260, Math.round(figure.clientWidth || 440));

function bottomAxis(svg, X, from, to, y, label) {
  svg.append(shape("line", { x1: from, x2: to, y1: y, y2: y, class: "axis" }));
  let last = -Infinity;
  for (const value of X.marks) {
    const at = round(X.at(value)), text = tickText(value);
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
      const run = section.runs[place], [steps, values] = run.curves[name] ?? [];
      if (!values) continue;
      const xs = section.options.x === "step" ? section.steps[steps] : section.steps[steps].map((step) => (step + 1) / run.rate);
      const points = xs.map((x, i) => [x, values[i]]).filter(([, y]) => known(y));
      if (points.length) found.push({ row, run, points });
    }
  if (!found.length) return figure.append(element("p", {}, "None of the drawn runs logged this metric."));
  const all = found.flatMap(({ points }) => points);
  const { svg, X, Y } = plot(figure, {
    x: { values: all.map(([x]) => x), zero: true, label: section.options.x, log: false },
    y: { values: all.map(([, y]) => y), label: DATA.curves[name].axis },
  });
  for (const { row, run, points } of found) {
    const at = points.map(([x, y]) => [X(x), Y(y)]);
    const first = run === section.runs[row.runs[0]]; // only the first of several seeds has marks
    const marks = !first ? [] : at.length <= 25 && found.length <= COLOURS ? at : spread(at, row.slot, Math.min(3, at.length));
    series(svg, row, line(row.slot, at, { opacity: row.runs.length > 1 ? 0.7 : 1, "stroke-width": at.length > 60 ? 1.2 : 1.6 }), ...marks.map(([x, y]) => mark(row.slot, x, y)), title(run.name));
  }
}

/** Draw cumulative distributions: element i of a run's errors is the error that i % of its faces do not exceed. */
function drawDistribution(figure, section, { metric, axis, failure }) {
  const found = [], without = [];
  for (const row of section.drawn()) {
    const sets = row.runs.map((place) => section.runs[place].errors?.[metric]).filter(Boolean);
    if (sets.length) found.push({ row, sets }); else without.push(row);
  }
  if (found.length) {
    const tails = found.flatMap(({ sets }) => sets.map((errors) => errors[95])).filter(known).sort((a, b) => a - b);
    const { svg, X, Y, end, height } = plot(figure, {
      x: { values: [0, Math.min(tails.at(-1), 3 * tails[0]) || 10], zero: true, log: false, label: axis },
      y: { values: [0, 100], zero: true, label: "share of faces, %" },
    });
    if (failure && end > failure.at) {
      const x = X(failure.at), [dx, anchor] = x < 170 ? [5, "start"] : [-5, "end"];
      svg.append(shape("line", { x1: x, x2: x, y1: TOP, y2: height - BOTTOM, class: "front" }));
      svg.append(shape("text", { x: x + dx, y: height - BOTTOM - 6, "text-anchor": anchor }, failure.text));
    }
    for (const { row, sets } of found)
      for (const errors of sets) {
        const points = [[0, 0], ...errors.map((error, share) => [error, share]).filter(([error]) => known(error))];
        const past = points.findIndex(([error]) => error > end); // the curve ends between this point and the one before
        if (past > 0) {
          const [[x0, y0], [x1, y1]] = points.slice(past - 1);
          points.splice(past, Infinity, [end, y0 + ((end - x0) / (x1 - x0)) * (y1 - y0)]);
        }
        const at = points.map(([x, y]) => [X(x), Y(y)]);
        const heights = [0, 1, 2].map((i) => Y((100 * (i + (row.slot % COLOURS) / COLOURS + 0.1)) / 3));
        const marks = (errors === sets[0] ? heights : []).map((height) => at.find(([, y]) => y <= height)).filter(Boolean);
        series(svg, row, line(row.slot, at, { opacity: sets.length > 1 ? 0.7 : 1 }), ...marks.map(([x, y]) => mark(row.slot, x, y)), title(row.label));
      }
  }
  missing(figure, "Errors of single faces are missing", section.named(without));
}

/** Draw a line of each detector for the chosen faces: the precision (place 0) or the recall (1). */
function drawDetections(figure, section, place) {
  const { x, y, range, log } = DATA.detections.figures[place], { metric, tips } = DATA.detections.faces[section.options.faces];
  const found = [], without = [];
  for (const row of section.drawn()) {
    const lines = row.runs.map((run) => section.runs[run].detections?.[metric]?.[place]).filter(Boolean);
    if (lines.length) found.push({ row, lines }); else without.push(row);
  }
  if (found.length) {
    const { svg, X, Y } = plot(figure, {
      x: { values: range, zero: !log, log, label: x },
      y: { values: [0, 100], zero: true, label: y },
    });
    for (const { row, lines } of found) {
      const words = tips[place].filter((name) => row.metrics[name]).map((name) => `${name} ${row.metrics[name][3]}`);
      for (const [xs, ys] of lines) {
        const at = xs.map((value, i) => [X(value), Y(ys[i])]);
        const marks = lines[0][0] === xs && at.length ? spread(at, row.slot, 3) : [];
        series(svg, row, line(row.slot, at, { opacity: lines.length > 1 ? 0.7 : 1 }), ...marks.map(([x, y]) => mark(row.slot, x, y)), title([row.label, words.join(", ")].filter(Boolean).join(": ")));
      }
    }
  }
  missing(figure, "Curves are missing", section.named(without));
}

/** Draw values with intervals: a band per item, and in it a mark for each entry [value, low, high, text] of each row. */
function drawIntervals(figure, rows, items, axis, entriesOf, { zero = false } = {}) {
  const step = rows.length > 1 ? Math.min(9, 60 / rows.length) : 0, band = Math.max(24, step * rows.length + 8);
  const found = rows.map((row) => items.map((item) => entriesOf(row, item).filter(([value]) => known(value))));
  const values = found.flat(2).flatMap((entry) => entry.slice(0, 3)).filter(known);
  if (!values.length) return figure.append(element("p", {}, "None of the drawn runs has these numbers."));
  const top = 4, bottom = top + band * items.length;
  const widest = Math.max(...items.map(([label, count]) => label.length + count.length + 3));
  const width = widthOf(figure), left = Math.min(0.5 * width, widest * 6.2 + 10);
  const X = scale(zero ? [0, ...values] : values, left, width - RIGHT, { pad: 0.04, log: false, ticks: width < 360 ? 4 : 6 });
  const svg = shape("svg", { viewBox: `0 0 ${width} ${bottom + BOTTOM}`, role: "img", "aria-label": figure.dataset.title });
  for (const value of X.marks) svg.append(shape("line", { x1: round(X.at(value)), x2: round(X.at(value)), y1: top, y2: bottom, class: "gridline" }));
  if (zero) svg.append(shape("line", { x1: X.at(0), x2: X.at(0), y1: top, y2: bottom, class: "front" }));
  bottomAxis(svg, X, left, width - RIGHT, bottom, axis);
  items.forEach(([label, count], i) => {
    const middle = top + band * (i + 0.5);
    if (i) svg.append(shape("line", { x1: 0, x2: width - RIGHT, y1: top + band * i, y2: top + band * i, class: "gridline" }));
    svg.append(shape("text", { x: 0, y: middle + 4, class: "strong" }, label));
    svg.append(shape("text", { x: left - 10, y: middle + 4, "text-anchor": "end" }, count));
  });
  rows.forEach((row, j) => {
    const drawn = found[j].flatMap((entries, i) => entries.flatMap(([value, low, high, text]) => {
      const y = round(top + band * (i + 0.5) + (j - (rows.length - 1) / 2) * step);
      const bar = known(low) ? [shape("line", { x1: X.at(low), x2: X.at(high), y1: y, y2: y, stroke: colour(row.slot), "stroke-width": 1.4 })] : [];
      return [...bar, mark(row.slot, X.at(value), y, [row.label, items[i][0], text].filter(Boolean).join(": "))];
    }));
    series(svg, row, ...drawn);
  });
  figure.append(svg);
}

function drawCost(figure, section, cost) {
  const { metric, axis } = DATA.errors[section.options.error];
  const points = section.rows.map((row, i) => ({ row, x: cost.values[i], cost: cost.texts[i], entry: row.metrics[metric] ?? [] }));
  const shown = points.filter(({ x, entry: [y] }) => known(x) && known(y));
  if (shown.length) {
    const { svg, X, Y, width } = plot(figure, {
      x: { values: shown.map(({ x }) => x), label: cost.axis, pad: 0.06 },
      y: { values: shown.flatMap(({ entry }) => entry.slice(0, 3)).filter(known), label: axis, log: false, pad: 0.06 },
    });
    const front = cost.fronts[metric].map((place) => points[place]);
    const steps = front.flatMap(({ x, entry: [y] }, i) => [...(i ? [[X(x), Y(front[i - 1].entry[0])]] : []), [X(x), Y(y)]]);
    svg.append(line(0, steps, { class: "front", stroke: "currentColor", "stroke-dasharray": "3 3" }));
    const taken = shown.map(({ x, entry: [y] }) => ({ x0: X(x) - 6, x1: X(x) + 6, y0: Y(y) - 6, y1: Y(y) + 6 }));
    for (const { row, x, cost, entry: [y, low, high, text] } of shown.sort((a, b) => known(a.row.slot) - known(b.row.slot))) {
      const words = `${row.label}: ${text} at ${cost}`;
      if (!known(row.slot)) { svg.append(shape("circle", { cx: X(x), cy: Y(y), r: 2.6, class: "rest" }, title(words))); continue; }
      const bar = known(low) ? [shape("line", { x1: X(x), x2: X(x), y1: Y(low), y2: Y(high), stroke: colour(row.slot) })] : [];
      series(svg, row, ...bar, mark(row.slot, X(x), Y(y), words));
    }
    for (const { row, x, entry: [y] } of front) placeLabel(svg, withoutSeeds(row.label), X(x), Y(y), taken, LEFT, width);
  }
  missing(figure, cost.missing, section.named(points.filter(({ x }) => !known(x)).map(({ row }) => row)));
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

const NUMBERS = 3; // value, low and high before the texts of the cells

function tableOfPair({ columns, lines }, [line, entries]) {
  const cells = (name, texts) => texts.map((text, i) => element(name, i && i < texts.length - 1 ? { class: "number" } : {}, text));
  const body = entries.map((entry) => element("tr", {}, ...cells("td", entry.slice(NUMBERS))));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...cells("th", columns))), element("tbody", {}, ...body));
  return [element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Differences" }, table), element("p", { class: "quiet note" }, lines[line])];
}

/** Write the table of runs A and B, and draw the differences of all drawn runs from B. */
function drawPair(section, [a, b], output, grid) {
  const { pairs } = section, of = pairs.of[b.value], chosen = of[a.value];
  output.replaceChildren(...(chosen ? tableOfPair(pairs, chosen) : [element("p", {}, "A and B are the same run.")]));
  const figures = pairs.metrics.map(([metric]) => element("figure", { "data-title": `${metric}, differences from B` }, element("figcaption", {}, element("b", {}, metric), " ", element("span", {}, "drawn runs minus B"))));
  grid.replaceChildren(...figures); // all before the first is drawn, because their number determines their width
  pairs.metrics.forEach(([metric, axis], i) => {
    const entries = ({ runs }) => runs.flatMap((run) => of[run]?.[1] ?? []).filter((entry) => entry[NUMBERS] === metric);
    const described = (row) => entries(row).map(([value, low, high, , text, interval, unit, p]) => [value, low, high, `${text} ${unit} (${interval}), p ${p}`]);
    drawIntervals(figures[i], section.drawn(), [["", ""]], axis, described, { zero: true });
  });
}

// Section with a table and its figures

class Section {
  constructor(root, data) {
    Object.assign(this, data);
    this.root = root;
    this.options = { x: "epoch", error: 0, faces: 0 };
    this.rows.forEach((row, place) => { row.place = place; row.slot = place < DATA.drawn ? place : null; });
    this.boxes = [...root.querySelectorAll("input[data-row]")];
    this.build();
    this.prepareTable();
    this.draw();
  }

  drawn() { return this.rows.filter((row) => known(row.slot)).sort((a, b) => a.slot - b.slot); }

  named(rows) { return rows.length > 12 ? [...rows.slice(0, 12).map((row) => row.label), `${rows.length - 12} more`] : rows.map((row) => row.label); }

  build() {
    const place = this.root.querySelector(".figures");
    const monitors = [...new Set(this.runs.flatMap((run) => Object.keys(run.curves)))].sort();
    const hasErrors = this.runs.some((run) => run.errors), detected = this.runs.map((run) => run.detections ?? {});
    const faces = DATA.detections.faces.map(({ metric, short }, i) => [i, short, metric]).filter(([, , metric]) => detected.some((lines) => lines[metric]));
    this.legend = element("ul", { "aria-label": "drawn runs" });
    const bar = element("div", { class: "legend" }, this.legend);
    if (monitors.length) bar.append(this.radios("x", "x axis of curves", [["epoch", "epoch"], ["step", "step"]]));
    if (faces.length > 1) bar.append(this.radios("faces", "faces of precision and recall", faces));
    if (this.costs.length) bar.append(this.radios("error", "cost figures normalised by", DATA.errors.map(({ short }, i) => [i, short])));
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
    add("Training", monitors.map((name) => [name, DATA.curves[name].about, (figure) => drawCurves(figure, this, name)]));
    add("Distribution of errors", !hasErrors ? [] : DATA.errors.map((error) => [error.metric, error.about, (figure) => drawDistribution(figure, this, error)]));
    add("Precision and recall", !faces.length ? [] : DATA.detections.figures.map(({ title, about }, i) => [title, about, (figure) => drawDetections(figure, this, i)]), DATA.detections.remark);
    add("By part of the faces", this.groups.map((group) => [group.title, group.about, (figure) => drawIntervals(figure, this.drawn(), group.items, group.axis, (row, [, , metric]) => [row.metrics[metric] ?? []])]), "The metric of each part, with its number of faces. Bars: mean ± standard deviation over seeds, or the 95 % interval of a single run.");
    add("Error against cost", this.costs.map((cost) => [cost.title, cost.about, (figure) => drawCost(figure, this, cost)]), "Each point is a row of the table; grey rows are not selected. Dashed: the Pareto front, the rows for which no other row is both cheaper and better.");
    if (this.rows.some((row) => DATA.errors.some(({ metric }) => row.metrics[metric])) && !this.costs.length)
      place.append(element("p", { class: "quiet note" }, "Error against MACs and latency: no run has counted MACs or a measured latency."));
    this.buildPair(place);
    const faults = this.runs.flatMap((run) => run.faults.map((fault) => `${run.name}: ${fault}`));
    if (faults.length) place.append(element("p", { class: "quiet note" }, `Files that could not be read: ${faults.join("; ")}`));
    const bare = this.runs.filter((run) => !Object.keys(run.curves).length).map((run) => run.name);
    if (monitors.length && bare.length) place.append(element("p", { class: "quiet note" }, `Runs without curves: ${bare.slice(0, 12).join(", ")}${bare.length > 12 ? ` and ${bare.length - 12} more` : ""}.`));
    for (const type of ["mouseover", "focusin", "mouseleave", "focusout"]) bar.addEventListener(type, (event) => this.highlight(event), type === "mouseleave");
  }

  radios(name, words, values) {
    const set = element("fieldset", {}, element("legend", {}, words));
    for (const [value, label] of values) {
      const input = element("input", { type: "radio", name: `${name}-${this.root.id}` });
      input.checked = this.options[name] === value;
      input.addEventListener("change", () => { this.options[name] = value; this.draw(); });
      set.append(element("label", {}, input, ` ${label}`));
    }
    return set;
  }

  buildPair(place) {
    const { of, remark } = this.pairs;
    if (!of) return;
    const runs = this.rows.flatMap((row) => row.runs.map((run) => ({ row, run }))), others = runs.filter(({ run }) => of[run]);
    const compared = runs.filter(({ run }) => others.some((other) => of[other.run][run]));
    const output = element("div"), grid = element("div", { class: "grid" });
    const choice = (letter, options, chosen) => {
      const select = element("select", {}, ...options.map(({ row, run }) => element("option", { value: run }, fullName(row, this.runs[run]))));
      select.selectedIndex = Math.max(0, options.indexOf(chosen));
      select.addEventListener("change", () => draw());
      return select;
    };
    const [b] = others, a = compared.find(({ row, run }) => row !== b.row && of[b.run][run]) ?? compared.find(({ run }) => run !== b.run);
    const selects = [choice("A", compared, a), choice("B", others, b)];
    const draw = () => drawPair(this, selects, output, grid);
    const labels = selects.map((select, i) => element("label", {}, "AB"[i], select));
    place.append(element("h3", {}, "Comparison of two runs face by face"), element("div", { class: "pair" }, ...labels, output), element("p", { class: "quiet note" }, remark), grid);
    this.figures.push(draw);
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
      if (box.slot === slot) continue;
      box.slot = slot;
      box.checked = known(slot);
      box.parentNode.querySelector("svg")?.remove();
      box.after(known(slot) ? swatch(slot) : shape("svg", { viewBox: "0 0 34 12", "aria-hidden": "true" }));
    }
    for (const figure of this.figures) figure();
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
