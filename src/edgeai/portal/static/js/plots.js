// Metrics of a task per round, and the throughput on the overview, drawn by uPlot. The numbers come with the page.
import { number, size } from "./words.js";

export const HEIGHT = 170;
const SPARK_POINTS = 90;
const LEAST_SPREAD = 1e-4; // of the larger value: numbers are written with four digits
const drawn = new Map();

export function colour(name) {
  // Resolved through a real element: a custom property keeps its light-dark() unresolved.
  const probe = Object.assign(document.createElement("i"), { hidden: true });
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export function axis(values, width) {
  return { stroke: colour("quiet"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "11px Inter, system-ui, sans-serif", size: width, gap: 4, ...(values ? { values } : {}) };
}

/** Where the y axis begins and ends. Values that read alike are drawn alike: uPlot takes seconds for ticks a billionth apart. */
export function spread(_, low, high) {
  if (low === null) return [0, 1];
  const alike = high - low < LEAST_SPREAD * Math.max(Math.abs(low), Math.abs(high));
  return uPlot.rangeNum(alike ? high : low, high, 0.1, true);
}

/** The charts that the numbers of a task ask for: one for each metric, then bytes and seconds. */
function charts(plots) {
  const names = [...new Set([...Object.keys(plots.validated), ...Object.keys(plots.submitted)])].sort();
  const found = names.slice(0, 6).map((name) => ({
    id: `metric-${name}`,
    title: name,
    write: number,
    lines: [
      { label: plots.labels?.validated ?? "on held-out data", values: plots.validated[name], stroke: "accent", width: 2, points: true },
      { label: plots.labels?.submitted ?? "reported with the updates", values: plots.submitted[name], stroke: "quiet", width: 1.5, dash: [5, 4] },
    ].filter((line) => line.values?.some((value) => value !== null)),
  }));
  if (!plots.seconds) return found.filter((chart) => chart.lines.length); // a job has neither
  found.push({
    id: "bytes", title: "bytes", write: size,
    lines: [{ label: "up", sign: "↑", values: plots.bytes_up, stroke: "accent", width: 2 }, { label: "down", sign: "↓", values: plots.bytes_down, stroke: "quiet", width: 1.5 }],
  });
  found.push({ id: "seconds", title: "seconds", write: (value) => `${number(value)} s`, lines: [{ label: "took", values: plots.seconds, stroke: "accent", width: 2 }] });
  return found.filter((chart) => chart.lines.length);
}

/** A place for each chart, all of them before the first is measured. */
function places(host, wanted) {
  const figures = wanted.map((chart) => {
    const figure = document.createElement("figure");
    figure.dataset.chart = chart.id;
    const caption = document.createElement("figcaption");
    caption.append(chart.title, document.createElement("output"));
    figure.append(caption);
    return figure;
  });
  host.replaceChildren(...figures);
  return figures;
}

function draw(figure, chart, x) {
  const reading = figure.querySelector("output");
  const plot = new uPlot({
    width: Math.max(200, figure.clientWidth),
    height: HEIGHT,
    padding: [10, 8, 0, 0],
    cursor: { y: false, points: { size: 7 } },
    legend: { show: false },
    scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 0.5, high + 0.5] : [low, high]) }, y: { range: spread } },
    axes: [
      { ...axis((_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick : "")), 26), incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] },
      axis((_, ticks) => ticks.map(chart.write), 58),
    ],
    series: [{}, ...chart.lines.map((line) => ({ label: line.label, stroke: colour(line.stroke), width: line.width, dash: line.dash, spanGaps: true, points: { show: line.points ?? x.length < 3, size: 5, fill: colour(line.stroke) } }))],
    hooks: { setCursor: [() => read(figure)], setData: [() => read(figure)] },
  }, [x, ...chart.lines.map((line) => line.values)], figure);
  drawn.set(chart.id, { figure, plot, chart, reading, x });
  read(figure);
}

/** What the cursor points at, or the last round, in words. */
function read(figure) {
  const found = drawn.get(figure.dataset.chart);
  if (!found) return;
  const { plot, chart, reading } = found;
  const place = plot.cursor.idx ?? found.x.length - 1;
  const words = chart.lines.map((line) => (line.sign ?? "") + chart.write(line.values[place]));
  reading.textContent = `round ${found.x[place]}: ${words.join(" · ")}`;
  figure.setAttribute("role", "img");
  figure.setAttribute("aria-label", `${chart.title} per round. Last: ${chart.lines.map((line) => `${line.label} ${chart.write(line.values.at(-1))}`).join(", ")}`);
}

function showPlots() {
  const told = document.getElementById("plot-data");
  const host = document.getElementById("plots");
  if (!told || !host) return;
  const plots = JSON.parse(told.dataset.plots);
  if (!plots.x.length) return;
  const wanted = charts(plots);
  const same = drawn.size === wanted.length && wanted.every((chart) => drawn.get(chart.id)?.chart.lines.length === chart.lines.length);
  if (!same || (drawn.values().next().value?.x.length < 3) !== plots.x.length < 3) {
    for (const { plot } of drawn.values()) plot.destroy();
    drawn.clear();
    const figures = places(host, wanted);
    wanted.forEach((chart, place) => draw(figures[place], chart, plots.x));
    return;
  }
  for (const chart of wanted) {
    const found = drawn.get(chart.id);
    if (JSON.stringify([found.x, found.chart.lines]) === JSON.stringify([plots.x, chart.lines])) continue;
    found.x = plots.x;
    found.chart = chart;
    found.plot.setData([plots.x, ...chart.lines.map((line) => line.values)]);
    read(found.figure);
  }
}

function redraw() {
  for (const { plot } of drawn.values()) plot.destroy();
  drawn.clear();
  document.getElementById("plots")?.replaceChildren();
  showPlots();
  spark?.destroy();
  spark = null;
  showSpark();
}

// --- the overview's throughput

const past = [];
let spark = null;

function showSpark() {
  const host = document.getElementById("spark");
  if (!host || past.length < 2) return;
  const data = [past.map((point) => point.at), past.map((point) => point.facts), past.map((point) => point.signals)];
  if (spark) {
    spark.setData(data);
    return;
  }
  const stroke = colour("accent");
  const line = { width: 1.5, points: { show: false } };
  spark = new uPlot({
    width: host.clientWidth, height: 36, padding: [2, 0, 0, 0], cursor: { show: false }, legend: { show: false },
    scales: { y: { range: (_, low, high) => [0, Math.max(1, high)] } },
    axes: [{ show: false }, { show: false }],
    series: [{}, { ...line, stroke, fill: stroke.replace("rgb(", "rgba(").replace(")", ", 0.12)") }, { ...line, stroke: colour("line-strong") }],
  }, data, host);
}

export function startPlots() {
  showPlots();
  document.addEventListener("edgeai:shown", showPlots);
  document.addEventListener("edgeai:theme", redraw);
  document.addEventListener("edgeai:change", ({ detail }) => {
    if (detail.topic !== "Overview" || !detail.object) return;
    const { throughput, as_of: at } = detail.object;
    past.push({ at, facts: throughput.facts_per_s, signals: throughput.signals_per_s });
    past.splice(0, past.length - SPARK_POINTS);
    showSpark();
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    for (const { plot, figure } of drawn.values()) plot.setSize({ width: Math.max(200, figure.clientWidth), height: HEIGHT });
    const host = document.getElementById("spark");
    if (host) spark?.setSize({ width: host.clientWidth, height: 36 });
  });
}
