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
    return element("label", {}, input, element("span", {}, text, element("b")));
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

/** category -> level -> decimals, of the scores that are shown. */
const decimals = new Map(
  data.categories.map((name) => {
    const { low, high } = cards.get(name);
    const scores = data.cases.filter((item) => item.category === name);
    const of = (key) => {
      const values = scores.map((item) => item[key]).filter((value) => value !== null);
      return decimalsOf(Math.min(...values), Math.max(...values));
    };
    return [name, { single: of("single_score"), image: of("image_score"), pixel: decimalsOf(low, high) }];
  }),
);
const format = (value, category, level) => value.toFixed(decimals.get(category)[level]);

// ---- Theme, command, table -----------------------------------------------------------------------------------------

/** A file opened from disk may be denied storage. */
function remembered(theme) {
  try {
    if (theme) localStorage.setItem("clip-ad-theme", theme);
    return localStorage.getItem("clip-ad-theme");
  } catch {
    return null;
  }
}

function setUpTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const update = () => {
    $("theme").textContent = isDark() ? "Light" : "Dark";
    $("theme").setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    drawCharts();
  };
  if (remembered()) root.dataset.theme = remembered();
  $("theme").hidden = false;
  $("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered(root.dataset.theme);
    update();
  });
  system.addEventListener("change", update);
  update();
}

function setUpCopy() {
  const say = (text) => ($("copied").textContent = text);
  $("copy").hidden = false;
  $("copy").addEventListener("click", async () => {
    getSelection().selectAllChildren($("command"));
    try {
      await navigator.clipboard.writeText($("command").textContent);
      say("Copied");
    } catch {
      say("Selected: copy it with Ctrl+C"); // without the permission the selection remains
    }
  });
}

function setUpTable() {
  const table = $("metrics");
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      // Names begin at A, figures at the highest; the mean stands in the foot and stays there.
      const first = column ? "descending" : "ascending";
      const second = column ? "ascending" : "descending";
      const order = header.ariaSort === first ? second : first;
      for (const other of headers) other.ariaSort = other === header ? order : "none";
      sortRows(table.tBodies[0], column, order === "ascending" ? 1 : -1);
    });
  });
  for (const link of table.querySelectorAll("tbody a")) {
    link.addEventListener("click", () => chooseCategory(link.textContent));
  }
}

/** Sort by a column; rows without a value stay last in both directions. */
function sortRows(body, column, sign) {
  const value = (row) => Number(row.cells[column].dataset.value ?? NaN);
  const name = (row) => row.cells[0].textContent;
  const compare = (a, b) => {
    if (column === 0) return sign * name(a).localeCompare(name(b), undefined, { numeric: true });
    if (Number.isNaN(value(a)) || Number.isNaN(value(b))) return Number.isNaN(value(a)) - Number.isNaN(value(b));
    return sign * (value(a) - value(b));
  };
  body.append(...[...body.rows].sort(compare));
}

// ---- Decisions -----------------------------------------------------------------------------------------------------

const imageLevels = ["single", "image"].filter((level) =>
  data.cases.some((item) => item[`${level}_score`] !== null) || [...curves.values()].some((levels) => levels[level]),
);
let scoreLevel = "single"; // which score decides about images: the one that is known of an image alone comes first

const scoreOf = (item) => item[`${scoreLevel}_score`];
const thresholdOf = (item) => thresholds.get(item.category).get(scoreLevel);

/** What the threshold makes of an image, in words; null where there is no threshold. */
function outcomeOf(item) {
  if (scoreOf(item) === null || thresholdOf(item) === undefined) return null;
  const isAnomalous = scoreOf(item) >= thresholdOf(item);
  if (item.label === null) return isAnomalous ? "decided anomalous" : "decided normal";
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
  $("threshold").addEventListener("input", () => moveThreshold(curveOf().threshold.length - 1 - $("threshold").value));
  $("threshold").addEventListener("change", chooseCases); // not while it moves: images would jump about
  $("best").addEventListener("click", () => {
    const best = cards.get(view.category).thresholds[view.level];
    thresholds.get(view.category).set(view.level, best);
    showThreshold();
    chooseCases();
  });
  showCurves(categories[0]);
}

/** Show a category's curves, at the level that was shown before if the category has it. */
function showCurves(category, level = view.level) {
  const levels = levelsOf(category);
  if (!levels.length) return;
  view.category = category;
  view.level = levels.includes(level) ? level : levels[0];
  $("curve-category").value = category;
  fillSegments($("levels"), levels.map((name) => [name, LEVELS[name]]), view.level, (chosen) => {
    if (chosen !== "pixel") setScoreLevel(chosen);
    showCurves(category, chosen);
  });
  const points = curveOf();
  $("threshold-control").hidden = !points;
  if (points) $("threshold").max = points.threshold.length - 1;
  $("best").hidden = cards.get(category).thresholds[view.level] === undefined;
  drawCharts();
  showThreshold();
}

function moveThreshold(index) {
  thresholds.get(view.category).set(view.level, curveOf().threshold[index]);
  showThreshold();
}

/** Say what the threshold of the shown curve gives, and move the marks. */
function showThreshold() {
  const points = curveOf();
  if (!points) return $("readout").replaceChildren();
  const index = indexOfThreshold();
  const [threshold, recall, fpr, precision] = ["threshold", "recall", "fpr", "precision"].map((key) => points[key][index]);
  const f1 = recall + precision > 0 ? (2 * recall * precision) / (recall + precision) : 0;
  const tiles = [["Threshold", format(threshold, view.category, view.level), threshold]];
  tiles.push(["Recall", percent(recall), recall], ["False-positive rate", percent(fpr), fpr]);
  tiles.push(["Precision", percent(precision), precision], ["F1", percent(f1), f1]);
  if (view.level === "pixel") {
    if (points.pro) tiles.push(["Recall of regions", percent(points.pro[index]), points.pro[index]]);
  } else {
    const { anomalous, normal } = cards.get(view.category);
    const hits = Math.round(recall * anomalous);
    const alarms = Math.round(fpr * normal);
    tiles.push(["Hits", hits], ["Misses", anomalous - hits], ["False alarms", alarms], ["Correct normals", normal - alarms]);
  }
  $("readout").replaceChildren(
    ...tiles.map(([name, text, exact]) => element("span", { title: exact ?? "" }, `${name} `, element("b", {}, String(text)))),
  );
  $("threshold").value = points.threshold.length - 1 - index;
  $("threshold").setAttribute("aria-valuetext", `${tiles[0][1]}, recall ${percent(recall)}, false-positive rate ${percent(fpr)}`);
  moveMarks(index);
  updateDecisions();
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
  const diagonal = { type: "line", x0: 0, y0: 0, x1: 1, y1: 1, line: { color: colour("control"), width: 1, dash: "dot" } };
  // AUPRO integrates up to a false-positive rate of 0.3.
  const limit = { type: "rect", x0: 0, x1: 0.3, y0: 0, y1: 1, fillcolor: colour("accent"), opacity: 0.1, line: { width: 0 } };
  const charts = [
    { title: "ROC", x: "fpr", y: "recall", xTitle: fpr, yTitle: "Recall", shapes: [diagonal] },
    { title: "Precision-recall", x: "recall", y: "precision", xTitle: "Recall", yTitle: "Precision", shapes: [] },
    { title: "PRO", x: "fpr", y: "pro", xTitle: `${fpr} (AUPRO: up to 0.3)`, yTitle: "Recall of regions", shapes: [limit] },
  ];
  return charts.filter(({ y }) => points?.[y]).map((chart) => withCurve(chart, points));
}

/** A chart with its curve and, as its second trace, the mark that the threshold moves. */
function withCurve(chart, points) {
  const { x, y, xTitle, yTitle, shapes } = chart;
  const curve = { x: points[x], y: points[y], mode: "lines", line: { color: colour("accent"), width: 2 } };
  curve.hovertemplate = `${xTitle} %{x:.3f}<br>${yTitle} %{y:.3f}<extra></extra>`;
  const mark = { mode: "markers", x: [], y: [], hoverinfo: "skip" };
  mark.marker = { size: 12, color: colour("anomalous"), line: { color: colour("panel"), width: 2 } };
  const layout = layoutOf(xTitle, yTitle, shapes);
  layout.xaxis.range = layout.yaxis.range = [-0.02, 1.02];
  return { ...chart, traces: [curve, mark], layout, keys: [] };
}

function histogramChart({ edges, ...counts }) {
  const x = edges.slice(1).map((edge, index) => (edge + edges[index]) / 2);
  const width = edges.slice(1).map((edge, index) => edge - edges[index]);
  const kinds = [["normal", "normal"], ["anomalous", "anomalous"], ["unlabelled", "accent"]].filter(([kind]) => counts[kind].some(Boolean));
  const traces = kinds.map(([kind, name]) => ({
    type: "bar", x, y: counts[kind], width, marker: { color: colour(name) }, opacity: 0.65,
    hovertemplate: `%{y} ${kind}, score %{x:.4g}<extra></extra>`,
  }));
  const keys = kinds.map(([kind, name]) => {
    const key = element("span", { className: "key" }, kind === "unlabelled" ? "without label" : kind);
    key.style.setProperty("--colour", `var(--${name})`);
    return key;
  });
  return { title: "Single-image scores", traces, layout: layoutOf("Score of the image alone", "Images", []), keys };
}

function layoutOf(xTitle, yTitle, shapes) {
  const axis = { gridcolor: colour("line"), zeroline: false, fixedrange: true };
  return {
    margin: { l: 48, r: 12, t: 10, b: 42 }, showlegend: false, hovermode: "closest", dragmode: false, barmode: "overlay",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", shapes,
    font: { family: "system-ui, sans-serif", size: 12, color: colour("muted") },
    xaxis: { ...axis, title: { text: xTitle, standoff: 6 } }, yaxis: { ...axis, title: { text: yTitle, standoff: 6 } },
  };
}

let charts = []; // those on the page, each with the element that plotly draws in

/** Draw the charts of the chosen category and level anew. */
function drawCharts() {
  if (!view.category) return;
  const points = curveOf();
  charts = curveChartsOf(points);
  if (view.level !== "pixel" && histograms.has(view.category)) charts.push(histogramChart(histograms.get(view.category)));
  for (const chart of charts) {
    chart.plot = element("div", { className: "plot", role: "img", ariaLabel: `${chart.title}, ${view.category}` });
  }
  // All of them stand before one is drawn: plotly takes the width that it finds.
  $("charts").replaceChildren(
    ...charts.map(({ title, keys, plot }) => element("figure", {}, element("figcaption", {}, title, ...keys), plot)),
  );
  for (const { plot, traces, layout, y } of charts) {
    Plotly.newPlot(plot, traces, layout, { displayModeBar: false, responsive: true });
    if (y) plot.on("plotly_click", (event) => {
      moveThreshold(event.points[0].pointIndex);
      chooseCases();
    });
  }
  $("curve-hint").textContent = hintOf(points);
  if (points) moveMarks(indexOfThreshold());
}

function hintOf(points) {
  const hints = [];
  if (points) hints.push("An image or pixel is decided anomalous when its score is at or above the threshold.");
  if (view.level === "image") {
    hints.push(`The fused score (${data.fusion}) depends on all test images of the category; the histogram is of the score of each image alone.`);
  }
  return hints.join(" ");
}

/** Move the marks of all charts to a point of the curve. */
function moveMarks(index) {
  const points = curveOf();
  for (const { plot, x, y } of charts) {
    if (y) {
      Plotly.restyle(plot, { x: [[points[x][index]]], y: [[points[y][index]]] }, [1]);
    } else if (view.level === "single") {
      const at = points.threshold[index];
      const line = { type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", line: { color: colour("ink"), width: 1.5 } };
      Plotly.relayout(plot, { shapes: [line] });
    }
  }
}

// ---- Pictures ------------------------------------------------------------------------------------------------------

const pictures = new Map();

/** The pictures of a category: id -> [image, heat map, outline]. They are read when the first one is shown. */
function picturesOf(category) {
  if (!pictures.has(category)) {
    const block = document.querySelector(`script[data-pictures="${data.categories.indexOf(category)}"]`);
    pictures.set(category, JSON.parse(block.textContent));
    block.remove(); // its text is as large as what was read
  }
  return pictures.get(category);
}

function outlineOf(path) {
  const make = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const svg = make("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(make("path", { d: path }), make("path", { d: path })); // dark below light: seen on any image
  return svg;
}

/** Image, heat map and outline, one upon the other. */
function frameOf(item) {
  const [image, heatMap, outline] = picturesOf(item.category)[item.id] ?? ["", "", ""];
  const frame = element("span", { className: "frame" });
  frame.style.setProperty("--aspect", item.width / item.height || 1);
  if (!image && !heatMap) frame.append("No picture: the file was gone");
  if (image) frame.append(element("img", { src: `data:image/jpeg;base64,${image}`, alt: "" }));
  if (heatMap) frame.append(element("img", { src: `data:image/png;base64,${heatMap}`, alt: "", className: "heat" }));
  if (outline) frame.append(outlineOf(outline));
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
  "decided anomalous": "Decided anomalous", "decided normal": "Decided normal",
};
const RANKS = {
  "worst miss": "Worst misses", "worst false alarm": "Worst false alarms", "best hit": "Best hits",
  "closest to the threshold": "Closest to the threshold", "worst map": "Worst maps", "best map": "Best maps",
};
// What to sort by: its name, and the key; images without a key come last.
const SORTS = {
  error: ["Error, worst first", (item) => -errorOf(item), (item) => errorOf(item) !== null],
  high: ["Score, highest first", (item) => -scoreOf(item), (item) => scoreOf(item) !== null],
  low: ["Score, lowest first", scoreOf, (item) => scoreOf(item) !== null],
  pixel: ["Pixel AP, lowest first", (item) => item.pixel_ap, (item) => item.pixel_ap !== null],
  name: ["File name", (item) => `${item.category}/${item.image_path}`, () => true],
  rank: ["Rank", (item) => item.ranks[filter.rank], (item) => filter.rank in item.ranks],
};
const filter = { category: "", rank: "", outcome: "", sort: "" };
const buttons = new Map(); // case -> its card's button; a card is made once
let chosen = []; // the cases that pass the filters, in order
let made = 0; // so many of them have a card on the page

function setUpGallery() {
  const has = ([, [, , isKnown]]) => data.cases.some(isKnown);
  const ranks = Object.keys(RANKS).filter((rank) => data.cases.some((item) => rank in item.ranks));
  const sorts = Object.entries(SORTS).filter((sort) => sort[0] !== "rank" && has(sort)).map(([key, [text]]) => [key, text]);
  filter.sort = sorts[0][0];
  fill($("gallery-category"), [["", "All"], ...data.categories.map((name) => [name, name])].slice(cards.size > 1 ? 0 : 1), cards.size > 1 ? "" : data.categories[0]);
  fill($("gallery-rank"), [["", "All"], ...ranks.map((rank) => [rank, RANKS[rank]])], "");
  fill($("gallery-sort"), sorts, filter.sort);
  fill($("gallery-score"), imageLevels.map((level) => [level, LEVELS[level]]), scoreLevel);
  filter.category = $("gallery-category").value;
  $("gallery-controls").hidden = false;
  $("gallery-category").addEventListener("change", (event) => chooseCategory(event.target.value));
  $("gallery-rank").addEventListener("change", (event) => {
    filter.rank = event.target.value;
    filter.sort = filter.rank ? "rank" : sorts[0][0];
    fill($("gallery-sort"), filter.rank ? [["rank", "Rank"], ...sorts] : sorts, filter.sort);
    chooseCases();
  });
  $("gallery-sort").addEventListener("change", (event) => {
    filter.sort = event.target.value;
    chooseCases();
  });
  $("gallery-score").addEventListener("change", (event) => {
    setScoreLevel(event.target.value);
    if (view.category && view.level !== "pixel") showCurves(view.category, scoreLevel);
  });
  $("more").addEventListener("click", () => {
    const first = made;
    addCards();
    buttons.get(chosen[first]).focus();
  });
  setUpControls();
  setUpViewer();
  setUpOutcomes();
  chooseCases();
}

function setScoreLevel(level) {
  scoreLevel = level;
  if (!$("gallery-score")) return;
  $("gallery-score").value = level;
  setUpOutcomes();
  chooseCases();
}

function chooseCategory(category) {
  filter.category = category;
  $("gallery-category").value = category;
  if (category) showCurves(category);
  chooseCases();
}

/** The outcomes that the data can have: without labels there are decisions, without a threshold there is nothing. */
function setUpOutcomes() {
  const decided = data.cases.filter((item) => outcomeOf(item) !== null);
  const options = Object.entries(OUTCOMES).filter(([outcome]) =>
    decided.some((item) => (item.label === null) === outcome.startsWith("decided")),
  );
  if (!options.some(([outcome]) => outcome === filter.outcome)) filter.outcome = "";
  fillSegments($("outcomes"), [["", "All"], ...options], filter.outcome, (outcome) => {
    filter.outcome = outcome;
    chooseCases();
  });
}

/** Opacity and outline: one setting for gallery and dialog. */
function setUpControls() {
  const ranges = document.querySelectorAll("[data-heat]");
  const boxes = document.querySelectorAll("[data-outline]");
  const setHeat = (value) => {
    document.documentElement.style.setProperty("--heat", value);
    for (const range of ranges) range.value = value;
  };
  for (const range of ranges) range.addEventListener("input", () => setHeat(range.value));
  for (const box of boxes) {
    box.addEventListener("change", () => {
      document.documentElement.classList.toggle("no-outline", !box.checked);
      for (const other of boxes) other.checked = box.checked;
    });
  }
  setHeat(0.7);
}

/** Filter and sort the cases, and show the first of them. */
function chooseCases() {
  if (!$("cards")) return;
  const [, key, isKnown] = SORTS[filter.sort];
  const compare = (a, b) => {
    if (!isKnown(a) || !isKnown(b)) return isKnown(b) - isKnown(a);
    const [first, second] = [key(a), key(b)];
    return typeof first === "string" ? first.localeCompare(second, undefined, { numeric: true }) : first - second;
  };
  chosen = casesBeforeOutcome().filter((item) => !filter.outcome || outcomeOf(item) === filter.outcome).sort(compare);
  made = 0;
  $("cards").replaceChildren();
  showLegend($("legend"), filter.category);
  addCards();
  updateDecisions();
}

function casesBeforeOutcome() {
  return data.cases.filter(
    (item) => (!filter.category || item.category === filter.category) && (!filter.rank || filter.rank in item.ranks),
  );
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
  const all = data.cases.length;
  $("gallery-count").textContent = `${chosen.length} of ${all} image${all === 1 ? "" : "s"} match${chosen.length === 1 ? "es" : ""}`;
}

const shortName = (path) => path.split("/").slice(-2).join("/");

function cardOf(item) {
  const file = element("span", { className: "file", title: `${item.category}: ${item.image_path}` }, shortName(item.image_path));
  const caption = element("span", { className: "caption" }, element("span", { className: "score" }), element("span"), file);
  const button = element("button", { type: "button" }, frameOf(item), caption);
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
  $("previous").disabled = place <= 0;
  $("next").disabled = place === chosen.length - 1;
  $("viewer-picture").replaceChildren(frameOf(item));
  $("viewer-facts").replaceChildren(
    ...factsOf(item).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))),
  );
  showLegend($("viewer-legend"), item.category);
  if (!$("viewer").open) $("viewer").showModal();
}

/** All that is known of a case; what it lacks is left out. */
function factsOf(item) {
  const facts = [
    ["Category", item.category], ["Label", ["normal", "anomalous"][item.label]], ["Decision", outcomeOf(item)],
    ["Threshold", thresholdOf(item)], ["Single-image score", item.single_score], ["Fused score", item.image_score],
    ...Object.entries(item.terms), ["Pixel AP in the image", item.pixel_ap],
    ["Marked by the mask", item.mask_share === null ? null : `${Number((100 * item.mask_share).toPrecision(3))}%`],
    ["Size", `${item.width} × ${item.height}`],
    ...Object.entries(item.ranks).map(([name, rank]) => [RANKS[name] ?? name, `no. ${rank}`]),
  ];
  return facts.filter(([, value]) => value !== null && value !== undefined);
}

// ---- Start ---------------------------------------------------------------------------------------------------------

setUpCopy();
if ($("metrics")) setUpTable();
if ($("cards")) setUpGallery();
setUpTheme();
if ($("curves")) requestAnimationFrame(setUpCurves); // the images first: plotting takes a moment
