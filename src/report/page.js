"use strict";
// The report page: sorts the table, moves the threshold, draws the curves and shows the images.
// It asks for nothing outside this file. Text from the data only ever becomes text (never HTML).

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("description").textContent);
// Maps, because a category may be called "constructor", and objects would put "10" before "2".
const cards = new Map(Object.entries(data.cards));
const curves = new Map(Object.entries(data.curves));
const histograms = new Map(Object.entries(data.histograms));
// What the slider moves: category -> level -> threshold. It begins at the best F1.
const thresholds = new Map(data.categories.map((name) => [name, new Map(Object.entries(cards.get(name).thresholds))]));
const LEVELS = { single: "Single-image score", image: "Fused score", pixel: "Pixels" };

/** Make an element with text or other elements in it. */
function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Fill a select with [value, text] pairs; one alone is no choice, and the label goes. */
function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => element("option", { value, textContent: text })));
  select.value = chosen;
  select.closest("label").hidden = options.length < 2;
}

/** Fill a fieldset with radio buttons of [value, text]. */
function fillSegments(fieldset, options, chosen, choose) {
  const labels = options.map(([value, text]) => {
    const input = element("input", { type: "radio", name: fieldset.id, value, checked: value === chosen });
    input.addEventListener("change", () => choose(value));
    return element("label", {}, input, element("span", {}, `${text} `, element("b")));
  });
  fieldset.replaceChildren(fieldset.querySelector("legend"), ...labels);
  fieldset.hidden = options.length < 2;
}

// ---- Numbers -------------------------------------------------------------------------------------------------------

const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** Decimals that tell values of this range apart: scores of SDP differ in the third or fourth. */
function decimalsOf(low, high) {
  return high > low ? Math.min(12, Math.max(2, 2 - Math.floor(Math.log10(high - low)))) : 4;
}

// Category -> level -> decimals of its scores.
const decimals = new Map(
  data.categories.map((name) => {
    const own = data.cases.filter((item) => item.category === name);
    const of = (scores) => decimalsOf(
      scores.reduce((a, b) => Math.min(a, b), Infinity), scores.reduce((a, b) => Math.max(a, b), -Infinity),
    );
    const [single, image] = ["single_score", "image_score"].map((key) => of(own.map((item) => item[key])));
    return [name, { single, image, pixel: decimalsOf(cards.get(name).low, cards.get(name).high) }];
  }),
);
const format = (value, category, level) => {
  const size = Math.abs(value); // of tiny and huge values digits count, not decimals
  return size && (size < 1e-6 || size >= 1e6) ? value.toPrecision(4) : value.toFixed(decimals.get(category)[level]);
};

// ---- Theme, command, table -----------------------------------------------------------------------------------------

function setUpTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  $("theme").hidden = false;
  $("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    drawCharts();
  });
  system.addEventListener("change", drawCharts);
}

function setUpCopy() {
  $("copy").hidden = false;
  $("copy").addEventListener("click", async () => {
    getSelection().selectAllChildren($("command"));
    try {
      await navigator.clipboard.writeText($("command").textContent);
      $("copied").textContent = "Copied";
    } catch {
      $("copied").textContent = "Selected: copy it with Ctrl+C"; // without the permission the selection remains
    }
  });
}

function setUpTable() {
  const table = $("metrics");
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      // Names begin at A, figures at the highest; the mean stands in the foot and stays there.
      const orders = column ? ["descending", "ascending"] : ["ascending", "descending"];
      const order = orders[header.ariaSort === orders[0] ? 1 : 0];
      for (const other of headers) other.ariaSort = other === header ? order : "none";
      sortRows(table.tBodies[0], column, order === "ascending" ? 1 : -1);
    });
  });
  for (const link of table.querySelectorAll("tbody a")) {
    link.addEventListener("click", () => chooseCategory(data.categories[link.dataset.category]));
  }
}

/** Sort by a column; rows without a value stay last in both directions. */
function sortRows(body, column, sign) {
  const name = (row) => row.cells[0].textContent;
  const value = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    if (column === 0) return sign * name(a).localeCompare(name(b), undefined, { numeric: true });
    if (!value(a) || !value(b)) return !value(a) - !value(b);
    return sign * (value(a) - value(b));
  };
  body.append(...[...body.rows].sort(compare));
}

// ---- Decisions -----------------------------------------------------------------------------------------------------

let scoreLevel = "single"; // which score decides about images: the one that is known of an image alone comes first

const scoreOf = (item) => item[`${scoreLevel}_score`];
const thresholdOf = (item) => thresholds.get(item.category).get(scoreLevel);

/** What the threshold makes of an image, in words; null where there is no threshold. */
function outcomeOf(item) {
  if (scoreOf(item) === null || thresholdOf(item) === undefined) return null;
  const isAnomalous = scoreOf(item) >= thresholdOf(item);
  if (item.label === null) return isAnomalous ? "predicted anomalous" : "predicted normal";
  if (item.label) return isAnomalous ? "hit" : "miss";
  return isAnomalous ? "false alarm" : "correct normal";
}

/** How far a score lies on the wrong side of its threshold; below 0 on the right side. */
function errorOf(item) {
  if (item.label === null || scoreOf(item) === null || thresholdOf(item) === undefined) return null;
  return item.label ? thresholdOf(item) - scoreOf(item) : scoreOf(item) - thresholdOf(item);
}

// ---- Curves --------------------------------------------------------------------------------------------------------

const view = { category: null, level: null };
const levelsOf = (category) => {
  const drawn = Object.keys(LEVELS).filter((level) => curves.get(category)?.[level]);
  return drawn.length || !histograms.has(category) ? drawn : ["single"]; // scores have a histogram without a curve
};
const curveOf = () => curves.get(view.category)?.[view.level];

/** The point of the curve that is nearest to the threshold. */
function indexOfThreshold() {
  const threshold = thresholds.get(view.category).get(view.level);
  const points = curveOf().threshold;
  let best = 0;
  points.forEach((point, index) => {
    if (Math.abs(point - threshold) < Math.abs(points[best] - threshold)) best = index;
  });
  return best;
}

function setUpCurves() {
  const categories = data.categories.filter((name) => levelsOf(name).length);
  $("curves").hidden = false;
  fill($("curve-category"), categories.map((name) => [name, name]), categories[0]);
  $("curve-category").addEventListener("change", (event) => showCurves(event.target.value));
  // Thresholds descend along a curve, and ascend along the slider.
  $("threshold").addEventListener("input", ({ target }) => moveThreshold(target.max - target.value));
  $("threshold").addEventListener("change", () => chooseCases()); // not while it moves: images would jump about
  $("best").addEventListener("click", () => {
    thresholds.get(view.category).set(view.level, cards.get(view.category).thresholds[view.level]);
    moveThreshold(indexOfThreshold(), true);
  });
  // Plotly takes a second to start: the page is there first, and whoever never scrolls here does not wait.
  const start = (entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    document.head.append(element("script", { textContent: $("plotly").textContent }));
    $("plotly").remove();
    drawCharts();
  };
  showCurves(categories[0]);
  new IntersectionObserver(start, { rootMargin: "400px" }).observe($("curves"));
}

/** Show a category's curves, at the level that was shown before if the category has it. */
function showCurves(category, level = view.level) {
  const levels = levelsOf(category);
  if (!levels.length) return;
  view.category = category;
  view.level = levels.includes(level) ? level : levels[0];
  $("curve-category").value = category;
  fillSegments($("levels"), levels.map((name) => [name, LEVELS[name]]), view.level, (chosen) => {
    view.level = chosen;
    if (chosen !== "pixel") setScoreLevel(chosen);
    showLevel();
  });
  showLevel();
}

function showLevel() {
  const points = curveOf();
  $("threshold-control").hidden = !points;
  if (points) $("threshold").max = points.threshold.length - 1;
  $("best").hidden = cards.get(view.category).thresholds[view.level] === undefined;
  drawCharts();
  showThreshold();
}

/** Move the threshold to a point of the curve; when it stays there, filter and sort the images by it. */
function moveThreshold(index, stays = false) {
  const points = curveOf().threshold;
  thresholds.get(view.category).set(view.level, points[Math.min(index, points.length - 1)]);
  showThreshold();
  if (stays) chooseCases();
}

/** Say what the threshold of the shown curve gives, and move the marks. */
function showThreshold() {
  const points = curveOf();
  const tiles = points ? tilesOf(points, indexOfThreshold()) : [];
  const tile = ([name, text, exact]) => element("span", { title: exact ?? "" }, `${name} `, element("b", {}, text));
  $("readout").replaceChildren(...tiles.map(tile));
  if (points) {
    $("threshold").value = $("threshold").max - indexOfThreshold();
    const [threshold, recall, fpr] = tiles.map(([, text]) => text);
    $("threshold").setAttribute("aria-valuetext", `${threshold}, recall ${recall}, false-positive rate ${fpr}`);
  }
  moveMarks();
  updateDecisions();
}

/** What a point of the curve says: name, text and exact value. */
function tilesOf(points, index) {
  const at = (key) => points[key][index];
  const [threshold, recall, fpr, precision] = [at("threshold"), at("recall"), at("fpr"), at("precision")];
  const f1 = recall + precision > 0 ? (2 * recall * precision) / (recall + precision) : 0;
  const rates = [["Recall", recall], ["False-positive rate", fpr], ["Precision", precision], ["F1", f1]];
  if (points.pro) rates.push(["Per-region overlap", at("pro")]);
  const tiles = rates.map(([name, value]) => [name, percent(value), value]);
  tiles.unshift(["Threshold", format(threshold, view.category, view.level), threshold]);
  if (view.level === "pixel") return tiles;
  const { anomalous, normal } = cards.get(view.category);
  const [hits, alarms] = [Math.round(recall * anomalous), Math.round(fpr * normal)];
  const counts = { Hits: hits, Misses: anomalous - hits, "False alarms": alarms, "Correct normals": normal - alarms };
  return [...tiles, ...Object.entries(counts).map(([name, count]) => [name, String(count)])];
}

/** Resolve a colour of the style sheet: plotly knows no variables. */
function colour(name) {
  const probe = document.body.appendChild(element("i"));
  probe.style.color = `var(--${name})`;
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

/** The curves of a level: what is along x and y, and what else the chart shows. */
function curveChartsOf(points) {
  const fpr = "False-positive rate";
  const square = { x0: 0, y0: 0, x1: 1, y1: 1 };
  const chance = { ...square, type: "line", line: { color: colour("control"), width: 1, dash: "dot" } };
  // AUPRO integrates up to a false-positive rate of 0.3.
  const limit = { ...square, type: "rect", x1: 0.3, fillcolor: colour("accent"), opacity: 0.1, line: { width: 0 } };
  const roc = { title: "ROC", x: "fpr", y: "recall", xTitle: fpr, yTitle: "Recall", shapes: [chance] };
  const pr = { title: "Precision-recall", x: "recall", y: "precision", xTitle: "Recall", shapes: [] };
  pr.yTitle = "Precision";
  const pro = { title: "PRO", x: "fpr", y: "pro", yTitle: "Per-region overlap", shapes: [limit] };
  pro.xTitle = `${fpr} (AUPRO: up to 0.3)`;
  return [roc, pr, pro].filter(({ y }) => points?.[y]).map((chart) => withCurve(chart, points));
}

/** A chart with its curve and, as its second trace, the mark that the threshold moves. */
function withCurve(chart, points) {
  const { x, y, xTitle, yTitle, shapes } = chart;
  // Over the false-positive rate a curve ends where everything is found; its last point may be there already.
  const [xs, ys] = x === "fpr" ? [[...points[x], 1], [...points[y], 1]] : [points[x], points[y]];
  const curve = { x: xs, y: ys, mode: "lines", line: { color: colour("accent"), width: 2 } };
  curve.hovertemplate = `${xTitle} %{x:.3f}<br>${yTitle} %{y:.3f}<extra></extra>`;
  const mark = { mode: "markers", x: [], y: [], hoverinfo: "skip", cliponaxis: false };
  mark.marker = { size: 12, color: colour("anomalous"), line: { color: colour("panel"), width: 2 } };
  const layout = layoutOf(xTitle, yTitle, shapes);
  layout.xaxis.range = layout.yaxis.range = [-0.02, 1.02];
  return { ...chart, traces: [curve, mark], layout, keys: [] };
}

function histogramChart({ edges, ...counts }) {
  const x = edges.slice(1).map((edge, index) => (edge + edges[index]) / 2);
  const width = edges.slice(1).map((edge, index) => edge - edges[index]);
  const kinds = ["normal", "anomalous", "unlabelled"].filter((kind) => counts[kind].some(Boolean));
  const traces = kinds.map((kind) => ({
    type: "bar", x, y: counts[kind], width, marker: { color: colour(kind) }, opacity: 0.65,
    hovertemplate: `%{y} ${kind}, score %{x:.4g}<extra></extra>`,
  }));
  const keys = kinds.map((kind) => element("span", { className: `key ${kind}` }, kind));
  const layout = layoutOf("Score of the image alone", "Images", []);
  const margin = 0.03 * (edges.at(-1) - edges[0]); // the threshold may stand at the first edge
  layout.xaxis.range = [edges[0] - margin, edges.at(-1) + margin];
  layout.yaxis.tickformat = "d";
  if (Math.max(...Object.values(counts).flat()) < 6) layout.yaxis.dtick = 1; // no half images
  return { title: "Single-image scores", traces, layout, keys };
}

function layoutOf(xTitle, yTitle, shapes) {
  const axis = { gridcolor: colour("line"), zeroline: false, fixedrange: true };
  return {
    xaxis: { ...axis, title: { text: xTitle, standoff: 6 } },
    yaxis: { ...axis, title: { text: yTitle, standoff: 6 } },
    font: { family: "system-ui, sans-serif", size: 12, color: colour("muted") },
    margin: { l: 48, r: 12, t: 10, b: 42 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false, hovermode: "closest", dragmode: false, barmode: "overlay", shapes,
  };
}

let charts = []; // those on the page, each with the element that plotly draws in

/** Draw the charts of the chosen category and level anew. */
function drawCharts() {
  if (!view.category) return;
  const points = curveOf();
  charts = curveChartsOf(points);
  const histogram = histograms.get(view.category);
  if (view.level !== "pixel" && histogram) charts.push(histogramChart(histogram));
  for (const chart of charts) {
    chart.plot = element("div", { className: "plot", role: "img", ariaLabel: `${chart.title}, ${view.category}` });
  }
  // All of them stand before one is drawn: plotly takes the width that it finds.
  $("charts").replaceChildren(
    ...charts.map(({ title, keys, plot }) => element("figure", {}, element("figcaption", {}, title, ...keys), plot)),
  );
  if ($("fused-hint")) $("fused-hint").hidden = view.level !== "image";
  if (!window.Plotly) return;
  for (const { plot, traces, layout, y } of charts) {
    Plotly.newPlot(plot, traces, layout, { displayModeBar: false, responsive: true });
    if (y) plot.on("plotly_click", (event) => moveThreshold(event.points[0].pointIndex, true));
  }
  moveMarks();
}

/** Move the marks of all charts to the threshold. */
function moveMarks() {
  const points = curveOf();
  const index = points && indexOfThreshold();
  const at = thresholds.get(view.category).get("single"); // there may be one without a curve
  for (const { plot, x, y } of window.Plotly ? charts : []) {
    if (y) {
      Plotly.restyle(plot, { x: [[points[x][index]]], y: [[points[y][index]]] }, [1]);
    } else if (view.level === "single" && at !== undefined) {
      const line = { color: colour("ink"), width: 1.5 };
      Plotly.relayout(plot, { shapes: [{ type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", line }] });
    }
  }
}

// ---- Pictures ------------------------------------------------------------------------------------------------------

const pictures = new Map();

/** The pictures of a category: id -> [image, heat map, outline, marked]. They are read when the first one is shown. */
function picturesOf(category) {
  if (!pictures.has(category)) {
    const block = document.querySelector(`script[data-pictures="${data.categories.indexOf(category)}"]`);
    pictures.set(category, JSON.parse(block.textContent));
    block.remove(); // its text is as large as what was read
  }
  return pictures.get(category);
}

function outlineOf(path, className) {
  const make = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const svg = make("svg", {
    class: className, viewBox: "0 0 1000 1000", preserveAspectRatio: "none", "aria-hidden": "true",
  });
  svg.append(make("path", { d: path }), make("path", { d: path })); // dark below light: seen on any image
  return svg;
}

/** Image, heat map and outlines, one upon the other. */
function frameOf(item) {
  const [image, heatMap, outline, marked] = picturesOf(item.category)[item.id] ?? ["", "", "", ""];
  const frame = element("span", { className: "frame" });
  frame.style.setProperty("--aspect", item.width / item.height || 1);
  if (!image && !heatMap) frame.append("No picture: the file was gone");
  if (image) frame.append(element("img", { src: `data:image/jpeg;base64,${image}`, alt: "" }));
  if (heatMap) frame.append(element("img", { src: `data:image/png;base64,${heatMap}`, alt: "", className: "heat" }));
  if (marked) frame.append(outlineOf(marked, "marked"));
  if (outline) frame.append(outlineOf(outline, "outline"));
  return frame;
}

/** The colours of the heat maps, with the values at their ends. */
function showLegend(node, category) {
  const { low, high } = cards.get(category) ?? {};
  const text = (value, otherwise) => (value === undefined ? otherwise : format(value, category, "pixel"));
  const bar = element("i");
  bar.style.setProperty("--palette", `linear-gradient(to right, ${data.palette.join(", ")})`);
  node.replaceChildren(
    element("span", { title: low ?? "" }, text(low, "lowest value of its category")), bar,
    element("span", { title: high ?? "" }, text(high, "highest value of its category")),
    element("span", { className: "unseen" }, "colours of the heat maps, from low to high"),
  );
}

// ---- Gallery -------------------------------------------------------------------------------------------------------

const PAGE = 60; // cards that are made at a time
const OUTCOMES = {
  miss: "Misses", "false alarm": "False alarms", hit: "Hits", "correct normal": "Correct normals",
  "predicted anomalous": "Predicted anomalous", "predicted normal": "Predicted normal",
};
const RANKS = {
  "worst miss": "Worst misses", "worst false alarm": "Worst false alarms", "best hit": "Best hits",
  "highest score": "Highest scores", "closest to the threshold": "Closest to the threshold",
  "worst map": "Worst maps", "best map": "Best maps",
};
// What to sort by: its name, the value of an image, and the direction; images without a value come last.
const SORTS = {
  error: ["Error, worst first", errorOf, -1],
  high: ["Score, highest first", scoreOf, -1],
  low: ["Score, lowest first", scoreOf, 1],
  pixel: ["Pixel AP, lowest first", (item) => item.pixel_ap, 1],
  name: ["File name", (item) => `${item.category}/${item.image_path}`, 1],
  rank: ["Rank", (item) => item.ranks[filter.rank] ?? null, 1],
};
const filter = { category: "", rank: "", outcome: "", sort: "" };
const buttons = new Map(); // case -> its card's button; a card is made once
let chosen = []; // the cases that pass the filters, in order
let made = 0; // so many of them have a card on the page

function setUpGallery() {
  const ranks = Object.keys(RANKS).filter((rank) => data.cases.some((item) => rank in item.ranks));
  const sorts = Object.entries(SORTS)
    .filter(([, [, value]]) => data.cases.some((item) => value(item) !== null))
    .map(([key, [text]]) => [key, text]);
  const levels = ["single", "image"].filter((level) => data.cases.some((item) => item[`${level}_score`] !== null));
  const all = data.categories.length > 1 ? [["", "All"]] : [];
  Object.assign(filter, { category: all.length ? "" : data.categories[0], sort: sorts[0][0] });
  fill($("gallery-category"), [...all, ...data.categories.map((name) => [name, name])], filter.category);
  fill($("gallery-rank"), [["", "All"], ...ranks.map((rank) => [rank, RANKS[rank]])], "");
  fill($("gallery-sort"), sorts, filter.sort);
  fill($("gallery-score"), levels.map((level) => [level, LEVELS[level]]), scoreLevel);
  $("gallery-category").addEventListener("change", ({ target }) => chooseCategory(target.value));
  $("gallery-sort").addEventListener("change", ({ target }) => chooseCases({ sort: target.value }));
  $("gallery-rank").addEventListener("change", ({ target }) => {
    const sort = target.value ? "rank" : sorts[0][0];
    fill($("gallery-sort"), target.value ? [["rank", "Rank"], ...sorts] : sorts, sort);
    chooseCases({ rank: target.value, sort });
  });
  $("gallery-score").addEventListener("change", ({ target }) => {
    setScoreLevel(target.value);
    if (view.category && view.level !== "pixel") showCurves(view.category, scoreLevel);
  });
  $("more").addEventListener("click", () => {
    const first = made;
    addCards();
    buttons.get(chosen[first]).focus();
  });
  $("gallery-controls").hidden = false;
  setUpControls();
  setUpViewer();
  setScoreLevel(scoreLevel);
}

/** Decide by another score: what there is to decide may differ. */
function setScoreLevel(level) {
  scoreLevel = level;
  if (!$("cards")) return;
  $("gallery-score").value = level;
  // Without labels there are decisions, without a threshold there is nothing.
  const decided = data.cases.filter((item) => outcomeOf(item) !== null);
  const options = Object.entries(OUTCOMES).filter(([outcome]) =>
    decided.some((item) => (item.label === null) === outcome.startsWith("predicted")),
  );
  const outcome = options.some(([key]) => key === filter.outcome) ? filter.outcome : "";
  fillSegments($("outcomes"), [["", "All"], ...options], outcome, (other) => chooseCases({ outcome: other }));
  chooseCases({ outcome });
}

function chooseCategory(category) {
  $("gallery-category").value = category;
  if (category) showCurves(category);
  chooseCases({ category });
}

/** Opacity and outlines: one setting for gallery and dialog. */
function setUpControls() {
  const ranges = document.querySelectorAll("[data-heat]");
  const setHeat = (value) => {
    document.documentElement.style.setProperty("--heat", value);
    for (const range of ranges) range.value = value;
  };
  for (const range of ranges) range.addEventListener("input", () => setHeat(range.value));
  for (const name of ["outline", "marked"]) {
    const boxes = document.querySelectorAll(`[data-${name}]`);
    for (const box of boxes) {
      box.addEventListener("change", () => {
        document.documentElement.classList.toggle(`no-${name}`, !box.checked);
        for (const other of boxes) other.checked = box.checked;
      });
    }
  }
  setHeat(0.7);
}

/** Change the filters or the order, and show the first cases. */
function chooseCases(change = {}) {
  if (!$("cards")) return;
  Object.assign(filter, change);
  const [, value, sign] = SORTS[filter.sort];
  const natural = { numeric: true }; // 2.png before 10.png
  const compare = (a, b) => {
    const [first, second] = [value(a), value(b)];
    if (first === null || second === null) return (first === null) - (second === null);
    return sign * (typeof first === "string" ? first.localeCompare(second, undefined, natural) : first - second);
  };
  chosen = casesBeforeOutcome().filter((item) => !filter.outcome || outcomeOf(item) === filter.outcome).sort(compare);
  made = 0;
  $("cards").replaceChildren();
  showLegend($("legend"), filter.category);
  addCards();
  updateDecisions();
}

function casesBeforeOutcome() {
  const { category, rank } = filter;
  return data.cases.filter((item) => (!category || item.category === category) && (!rank || rank in item.ranks));
}

function addCards() {
  const added = chosen.slice(made, made + PAGE);
  for (const item of added) {
    if (!buttons.has(item)) buttons.set(item, cardOf(item));
    $("cards").append(element("li", {}, buttons.get(item)));
    updateCard(item);
  }
  made += added.length;
  const left = chosen.length - made;
  $("more").hidden = !left;
  $("more").textContent = `Show ${Math.min(PAGE, left)} more of ${left}`;
  $("gallery-count").textContent = made ? `Images 1 to ${made} of ${chosen.length}` : "No image passes these filters.";
}

function cardOf(item) {
  const name = item.image_path.split("/").slice(-2).join("/");
  const file = element("span", { className: "file", title: `${item.category}: ${item.image_path}` }, name);
  const score = element("span", { className: "score" });
  const caption = element("span", { className: "caption" }, score, element("span"), file);
  const button = element("button", { type: "button" }, element("span", { className: "stage" }, frameOf(item)), caption);
  button.addEventListener("click", () => showCase(item));
  return button;
}

/** Write score and decision of a card, which change with threshold and kind of score. */
function updateCard(item) {
  const [score, badge] = buttons.get(item).querySelector(".caption").children;
  const outcome = outcomeOf(item) ?? ["normal", "anomalous"][item.label] ?? "";
  score.textContent = scoreOf(item) === null ? "–" : format(scoreOf(item), item.category, scoreLevel);
  score.title = scoreOf(item) ?? "no score of this kind";
  badge.textContent = outcome;
  badge.className = outcome ? `badge ${outcome.replaceAll(" ", "-")}` : "";
}

/** After the threshold has moved: the cards' decisions, and how many images each decision has. */
function updateDecisions() {
  if (!$("cards")) return;
  chosen.slice(0, made).forEach(updateCard);
  const counts = new Map();
  const cases = casesBeforeOutcome();
  for (const item of cases) counts.set(outcomeOf(item), (counts.get(outcomeOf(item)) ?? 0) + 1);
  for (const input of $("outcomes").querySelectorAll("input")) {
    input.nextSibling.querySelector("b").textContent = input.value ? (counts.get(input.value) ?? 0) : cases.length;
  }
}

// ---- An image at full size -----------------------------------------------------------------------------------------

let shown = null;

function setUpViewer() {
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => $("viewer").close());
  $("viewer").addEventListener("click", (event) => event.target === $("viewer") && $("viewer").close());
  $("viewer").addEventListener("close", () => buttons.get(shown)?.focus());
  $("viewer").addEventListener("keydown", (event) => {
    if (event.target.type === "range") return; // there the arrows move the slider
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
}

function step(by) {
  const next = chosen[chosen.indexOf(shown) + by];
  if (!next) return;
  while (chosen.indexOf(next) >= made) addCards(); // so that there is a card to return to
  showCase(next);
}

function showCase(item) {
  shown = item;
  const place = chosen.indexOf(item);
  $("viewer-title").textContent = item.image_path;
  $("viewer-place").textContent = `${place + 1} of ${chosen.length}`;
  $("previous").ariaDisabled = place <= 0; // not disabled: it would lose the focus, and with it the arrow keys
  $("next").ariaDisabled = place === chosen.length - 1;
  $("viewer-picture").replaceChildren(frameOf(item));
  const row = ([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value)));
  $("viewer-facts").replaceChildren(...factsOf(item).map(row));
  showLegend($("viewer-legend"), item.category);
  if (!$("viewer").open) $("viewer").showModal();
}

/** All that is known of a case; what it lacks is left out. */
function factsOf(item) {
  const facts = [
    ["Category", item.category], ["Label", ["normal", "anomalous"][item.label]], ["Decision", outcomeOf(item)],
    ["Threshold", thresholdOf(item)], ["Single-image score", item.single_score], ["Fused score", item.image_score],
    ...Object.entries(item.terms), ["Pixel AP", item.pixel_ap],
    ["Marked by the mask", item.label && item.mask_share !== null ? `${(100 * item.mask_share).toPrecision(3)}%` : null],
    ["Size", item.width * item.height > 1 ? `${item.width} × ${item.height} pixels` : null], // else the file is gone
    ...Object.entries(item.ranks).map(([name, rank]) => [RANKS[name] ?? name, `no. ${rank}`]),
  ];
  return facts.filter(([, value]) => value !== null && value !== undefined);
}

// ---- Start ---------------------------------------------------------------------------------------------------------

setUpTheme();
setUpCopy();
if ($("metrics")) setUpTable();
if ($("cards")) setUpGallery();
if ($("curves")) setUpCurves();
