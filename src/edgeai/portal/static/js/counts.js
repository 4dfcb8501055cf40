// The number of examples of a dataset over time, drawn by uPlot. Each number holds until the next one: steps, no slopes.
import { HEIGHT, axis, colour, spread } from "./plots.js";
import { moment, number } from "./words.js";

let plot = null;
let shown = "";

function figureIn(host) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.append("examples", document.createElement("output"));
  figure.append(caption);
  host.replaceChildren(figure);
  return figure;
}

function words(data, place) {
  return `${moment(new Date(data.time[place] * 1000).toISOString())}: ${number(data.samples[place])}`;
}

function draw(host, data) {
  const figure = figureIn(host);
  const reading = figure.querySelector("output");
  const last = data.samples.length - 1;
  const x = [...data.time, Math.max(data.time[last], Date.now() / 1000)]; // the last number holds until now
  figure.setAttribute("role", "img");
  figure.setAttribute("aria-label", `Number of examples over time: first ${number(data.samples[0])}, last ${number(data.samples[last])}. The table below has every number.`);
  reading.textContent = words(data, last);
  plot = new uPlot({
    width: Math.max(200, figure.clientWidth),
    height: HEIGHT,
    padding: [10, 8, 0, 0],
    cursor: { y: false, points: { size: 7 } },
    legend: { show: false },
    scales: { x: { time: true, range: (_, low, high) => (x[0] === x.at(-1) ? [x[0] - 60, x[0] + 60] : [low, high]) }, y: { range: spread } },
    axes: [axis(null, 34), axis((_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? number(tick) : "")), 58)],
    series: [{}, { label: "examples", stroke: colour("accent"), width: 2, paths: uPlot.paths.stepped({ align: 1 }), points: { show: data.samples.length < 40, filter: () => [...data.time.keys()], size: 5, fill: colour("accent") } }],
    hooks: { setCursor: [({ cursor }) => (reading.textContent = words(data, Math.min(cursor.idx ?? last, last)))] },
  }, [x, [...data.samples, data.samples[last]]], figure);
}

function show() {
  const told = document.getElementById("counts-data");
  const host = document.getElementById("counts");
  if (!told || !host || told.dataset.counts === shown) return;
  const data = JSON.parse(told.dataset.counts);
  if (!data.time.length) return;
  shown = told.dataset.counts;
  plot?.destroy();
  draw(host, data);
}

function redraw() {
  shown = "";
  show();
}

export function startCounts() {
  show();
  document.addEventListener("edgeai:shown", show);
  document.addEventListener("edgeai:theme", redraw);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    const figure = document.querySelector("#counts figure");
    if (figure) plot?.setSize({ width: Math.max(200, figure.clientWidth), height: HEIGHT });
  });
}
