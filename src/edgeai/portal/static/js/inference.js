// A joint inference service: its offload curves, and its counters of the last hour. The numbers come from the API.
import { HEIGHT, axis, colour } from "./plots.js";
import { moment, number } from "./words.js";

const EVERY_MS = 5000;
const drawn = new Map();
const share = (value) => (value === null || value === undefined ? "unknown" : `${number(value * 100)} %`);
const seconds = (value) => (value === null || value === undefined ? "unknown" : `${number(value * 1000)} ms`);
const plain = (value) => (value === null || value === undefined ? "unknown" : number(value));

/** The charts of the last hour. `told`: where that is known and a value is not, there was nothing of the kind. */
function ofHour(history) {
  const line = (label, name, stroke = "accent", dash) => ({ label, values: history[name], stroke, width: stroke === "accent" ? 2 : 1.5, dash });
  const idle = ["sent", "edge", "cloud"];
  const found = [
    ["rate", "inferences per second", plain, [line("inferences", "inferences_per_s")]],
    ["sent", "share sent to the cloud", share, [line("sent", "share_sent")]],
    ["failing", "late, and fell back, per second", plain, [line("fell back", "fell_back_per_s"), line("late", "late_per_s", "quiet", [5, 4])]],
    ["edge", "answers of the edge", seconds, [line("p50", "edge_p50_s"), line("p99", "edge_p99_s", "quiet", [5, 4])]],
    ["cloud", "answers of the cloud", seconds, [line("p50", "cloud_p50_s"), line("p99", "cloud_p99_s", "quiet", [5, 4])]],
    ["waiting", "requests that wait", plain, [line("at replicas", "waiting_at_replicas"), line("at edges", "waiting_at_edges", "quiet", [5, 4])]],
    ["replicas", "replicas heard", plain, [line("replicas", "replicas")]],
  ];
  return found.map(([id, title, write, lines]) => ({ id: `hour-${id}`, title, write, lines, told: idle.includes(id) ? history.inferences_per_s : null, time: true, x: history.at, at: (value) => moment(value * 1000) }));
}

function ofCurve(curve, place) {
  const column = (name) => curve.points.map((point) => point[name]);
  const lines = [
    { label: "would be sent", values: column("sent"), stroke: "accent", width: 2 },
    { label: "the cloud would change", values: column("changed"), stroke: "quiet", width: 1.5, dash: [5, 4] },
  ];
  if (curve.budget < 1) lines.push({ label: "budget", values: curve.points.map(() => curve.budget), stroke: "quiet", width: 1, dash: [2, 3], level: true });
  return { id: `curve-${place}`, title: curve.axis, write: share, lines, x: column("threshold"), mark: curve.threshold, at: number };
}

function figureOf(chart) {
  const figure = document.createElement("figure");
  figure.dataset.chart = chart.id;
  const caption = document.createElement("figcaption");
  caption.append(chart.title, document.createElement("output"));
  figure.append(caption);
  figure.setAttribute("role", "img");
  return figure;
}

/** An upright line at the threshold in use. */
function marked(plot, chart) {
  if (chart.mark === null || chart.mark === undefined) return;
  const { ctx, bbox } = plot;
  const x = plot.valToPos(chart.mark, "x", true);
  ctx.save();
  ctx.strokeStyle = colour("quiet");
  ctx.beginPath();
  ctx.moveTo(x, bbox.top);
  ctx.lineTo(x, bbox.top + bbox.height);
  ctx.stroke();
  ctx.restore();
}

function draw(figure, chart) {
  const found = { figure, chart };
  drawn.set(chart.id, found);
  found.plot = new uPlot({
    width: Math.max(200, figure.clientWidth),
    height: HEIGHT,
    padding: [10, 8, 0, 0],
    cursor: { y: false, points: { size: 7 } },
    legend: { show: false },
    scales: { x: { time: Boolean(chart.time) }, y: { range: (_, low, high) => [0, Math.max(high ?? 0, chart.write === share ? 0.05 : 0) || 1] } },
    axes: [axis(chart.time ? (_, ticks) => ticks.map((tick) => moment(tick * 1000).slice(-8, -3)) : null, 26), axis((_, ticks) => ticks.map(chart.write), 58)],
    series: [{}, ...chart.lines.map((line) => ({ label: line.label, stroke: colour(line.stroke), width: line.width, dash: line.dash, spanGaps: false, points: { show: line.level ? false : undefined, size: 4, fill: colour(line.stroke) } }))],
    hooks: { setCursor: [() => read(found)], setData: [() => read(found)], draw: [(plot) => marked(plot, found.chart)] },
  }, [chart.x, ...chart.lines.map((line) => line.values)], figure);
  read(found);
}

function words(chart, place) {
  const label = (line) => (chart.lines.length > 1 ? `${line.label} ` : "");
  const said = (value) => (value === null && typeof chart.told?.[place] === "number" ? "none" : chart.write(value));
  return chart.lines.map((line) => label(line) + said(line.values[place])).join(" · ");
}

/** What the cursor points at in words; else the last point, or of a curve the threshold in use. */
function read({ figure, chart, plot }) {
  const near = chart.mark === null || chart.mark === undefined ? chart.x.length - 1 : chart.x.reduce((best, value, place) => (Math.abs(value - chart.mark) < Math.abs(chart.x[best] - chart.mark) ? place : best), 0);
  const place = plot?.cursor.idx ?? near;
  figure.querySelector("output").textContent = `${chart.at(chart.x[place])}: ${words(chart, place)}`;
  figure.setAttribute("aria-label", `${chart.title}. ${chart.time ? "Last" : `At ${chart.at(chart.x[near])}`}: ${words(chart, near)}`);
}

function show(host, charts) {
  if (!host || !charts.length) return;
  const there = [...host.querySelectorAll("figure")];
  const same = there.length === charts.length && charts.every((chart) => there.includes(drawn.get(chart.id)?.figure) && drawn.get(chart.id).chart.lines.length === chart.lines.length);
  if (same) {
    for (const chart of charts) {
      const found = drawn.get(chart.id);
      if (JSON.stringify([found.chart.x, found.chart.mark, found.chart.lines]) === JSON.stringify([chart.x, chart.mark, chart.lines])) continue;
      found.chart = chart;
      found.plot.setData([chart.x, ...chart.lines.map((line) => line.values)]);
    }
    return;
  }
  const figures = charts.map(figureOf);
  for (const chart of charts) drawn.get(chart.id)?.plot.destroy();
  host.replaceChildren(...figures);
  charts.forEach((chart, place) => draw(figures[place], chart));
}

let latest = null;

function showAll() {
  if (!latest) return;
  latest.curves.forEach((curve, place) => curve.points.length && show(document.querySelector(`[data-curve="${place}"]`), [ofCurve(curve, place)]));
  const { history } = latest;
  const watched = document.querySelector("[data-watched]");
  if (watched) watched.textContent = `heard by this portal since ${moment(history.since * 1000)}; a gap: nothing was heard`;
  if (history.at.length > 1) show(document.getElementById("hour"), ofHour(history));
}

async function follow() {
  const host = document.getElementById("inference");
  if (!host || document.visibilityState === "hidden") return;
  try {
    const answer = await fetch(host.dataset.inference);
    if (!answer.ok) return; // the page says what is away
    latest = await answer.json();
    showAll();
  } catch {
    // the next one will say
  }
}

export function startInference() {
  if (!document.getElementById("inference")) return;
  follow();
  setInterval(follow, EVERY_MS);
  document.addEventListener("edgeai:shown", showAll);
  document.addEventListener("edgeai:theme", () => {
    for (const { plot, figure } of drawn.values()) {
      plot.destroy();
      figure.remove();
    }
    drawn.clear();
    showAll();
  });
  addEventListener("resize", () => {
    for (const { plot, figure } of drawn.values()) plot.setSize({ width: Math.max(200, figure.clientWidth), height: HEIGHT });
  });
}
