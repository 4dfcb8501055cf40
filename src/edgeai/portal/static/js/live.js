// Follows /api/v1/live and keeps the page's live part as the server shows it.
//
// An event says that something on the page has changed; then the page is read again and morphed in (htmx), at most twice a
// second. So there is one place that says what a page looks like: its template. When the portal cannot be reached nothing on
// the page is current: every state becomes unknown, the notice counts the seconds, and the page is read until it answers.
import { age, agesAreFresh, growAges, localise } from "./words.js";

const PACE_MS = 500;
const QUIET_MS = 12_000; // the overview changes every second: silence is a broken connection
const LOOK_MS = 15_000;
const WAITS_MS = [300, 700, 1500, 3000];

const live = document.getElementById("live");
const main = document.getElementById("main");
const health = document.getElementById("health");
const notice = document.getElementById("notice");
const topics = main.dataset.topics;
const refreshesOn = new Set(topics.split(",").map((topic) => topic.split(":")[0]).filter((topic) => topic !== "Overview" || main.dataset.page === "overview"));

let source = null;
let heard = performance.now();
let seen = ""; // number of the last change: what the server shows must not be older
let lostAt = null;
let failures = 0;
let timer = null;
let reading = false;
let dirty = false;
let readAt = -PACE_MS;
let over = false;

/** Tell other modules of an event: `edgeai:change` with {kind, topic, name, object}. */
function tell(name, detail) {
  document.dispatchEvent(new CustomEvent(`edgeai:${name}`, { detail }));
}

function open(sequence) {
  close();
  seen = ""; // numbers of a portal that has been restarted say nothing
  source = new EventSource(`/api/v1/live?brief=true&since=${sequence}&topics=${encodeURIComponent(topics)}`);
  for (const kind of ["set", "deleted"]) {
    source.addEventListener(kind, (event) => take(kind, event));
  }
  source.addEventListener("reset", recover);
  source.onerror = recover; // not left to the browser: the page may have to be read again first
}

function close() {
  source?.close();
  source = null;
}

function take(kind, event) {
  const change = JSON.parse(event.data);
  heard = performance.now();
  seen = event.lastEventId || seen;
  if (change.topic === "Overview" && change.object) showHealth(change.object.live, change.object.coordinator);
  if (live && refreshesOn.has(change.topic)) refreshSoon();
  tell("change", { kind, ...change });
}

function showHealth(cloud, coordinator) {
  const known = cloud.known && coordinator.known;
  const wasKnown = health.dataset.tone === "ok";
  health.textContent = known ? "Live" : "Not current";
  health.dataset.tone = known ? "ok" : "bad";
  if (known !== wasKnown && live) refreshSoon();
  if (known) notice.hidden = true;
  if (!live) return;
  for (const element of notice.querySelectorAll(".age[data-age]")) {
    const life = cloud.known ? coordinator : cloud;
    if (life.age_s !== null) element.textContent = age(life.age_s);
  }
}

/** Read the page again, soon. */
export function refreshSoon() {
  dirty = true;
  if (reading || timer !== null || over) return;
  timer = setTimeout(() => {
    timer = null;
    refresh();
  }, Math.max(0, readAt + PACE_MS - performance.now()));
}

/** Read the page again. Returns whether it could be read. */
async function refresh() {
  if (over) return true;
  if (reading) {
    dirty = true;
    return true;
  }
  reading = true;
  dirty = false;
  readAt = performance.now();
  try {
    const text = await read();
    if (text === null) return false;
    await show(text);
    return true;
  } finally {
    reading = false;
    if (dirty) refreshSoon();
  }
}

/** Of this page, with the rounds that are unfolded: only of those the server writes who did what. */
function address() {
  const here = new URL(location.href);
  const unfolded = [...document.querySelectorAll(".round[open]")].map((round) => round.id.slice("round-".length));
  if (unfolded.length) here.searchParams.set("open", unfolded.join(","));
  return here;
}

/** The page as the server shows it now; null if it cannot be read. */
async function read() {
  let answer;
  try {
    const headers = { Accept: "text/html", "X-Part": "live", ...(seen ? { "X-Seen": seen } : {}) };
    answer = await fetch(address(), { headers, signal: AbortSignal.timeout(LOOK_MS) });
  } catch {
    lose("the portal does not answer");
    return null;
  }
  if (answer.redirected && new URL(answer.url).pathname === "/login") {
    end();
    return null;
  }
  if (answer.status >= 500) {
    lose("the portal cannot see the cloud");
    return null;
  }
  return answer.text();
}

async function show(text) {
  if (main.dataset.page === "problem" && lostAt !== null) {
    location.reload(); // what this page should have been is there now
    return;
  }
  const page = new DOMParser().parseFromString(text, "text/html");
  for (const name of ["csrf-token", "sequence"]) {
    const now = page.querySelector(`meta[name="${name}"]`);
    if (now) document.querySelector(`meta[name="${name}"]`).content = now.content;
  }
  const told = page.getElementById("notice");
  if (told && live) {
    notice.innerHTML = told.innerHTML; // escaped by the template
    notice.hidden = told.hidden;
    const pill = page.getElementById("health");
    health.textContent = pill.textContent;
    health.dataset.tone = pill.dataset.tone;
  }
  if (live) await htmx.swap({ sourceElement: live, target: live, text, select: "#live", swap: "outerMorph" });
  found();
}

document.addEventListener("htmx:before:swap", (event) => {
  for (const task of event.detail.tasks ?? []) localise(task.fragment);
});
document.addEventListener("htmx:after:swap", () => {
  agesAreFresh();
  tell("shown");
});

/** Close the stream and read the page until it answers; then follow on from there. */
async function recover() {
  if (over) return;
  close();
  clearTimeout(timer);
  timer = null;
  while (reading) await pause(50);
  const answered = await refresh();
  if (over) return;
  if (answered) {
    heard = performance.now();
    if (!document.hidden) open(document.querySelector('meta[name="sequence"]').content);
    return;
  }
  failures += 1;
  setTimeout(recover, WAITS_MS[Math.min(failures, WAITS_MS.length) - 1]);
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function lose(why) {
  if (lostAt === null) {
    lostAt = heard;
    document.documentElement.dataset.link = "lost";
    health.dataset.tone = "bad";
    for (const element of document.querySelectorAll("#live [data-state] > .word")) {
      element.textContent = "Unknown";
      element.parentElement.dataset.state = "unknown";
    }
    for (const element of document.querySelectorAll("#live .fleeting")) {
      element.textContent = "?"; // the last good value is no value
      if (element.parentElement.matches(".tally")) element.parentElement.dataset.state = "unknown";
      if (element.matches(".count")) element.dataset.tone = "unknown";
    }
  }
  health.textContent = "Not current";
  sayLost(why);
}

let lostWhy = "";
function sayLost(why = lostWhy) {
  lostWhy = why;
  if (lostAt === null || over) return;
  notice.hidden = false;
  notice.replaceChildren(
    Object.assign(document.createElement("strong"), { textContent: "Not current: " }),
    `${why}, last heard ${age((performance.now() - lostAt) / 1000)} ago. Everything below is unknown until it is back; this page keeps trying by itself.`,
  );
}

function found() {
  failures = 0;
  if (lostAt === null) return;
  lostAt = null;
  delete document.documentElement.dataset.link;
  if (!live) notice.hidden = true;
  if (!live) Object.assign(health, { textContent: "Live" }).dataset.tone = "ok";
  tell("found");
}

function end() {
  close();
  lose("your session has ended");
  over = true; // the notice stays as it is from here on
  const link = Object.assign(document.createElement("a"), { href: `/login?next=${encodeURIComponent(location.pathname + location.search)}`, textContent: "Log in again" });
  notice.replaceChildren("Your session has ended. ", link, " to go on; what is shown below is not current.");
  health.textContent = "Logged out";
}

/** A hidden page costs nothing: a browser allows only six streams to one host. */
function onVisibility() {
  if (document.hidden) close();
  else recover();
}

export function start() {
  if (live) localise(live);
  agesAreFresh();
  open(document.querySelector('meta[name="sequence"]').content);
  document.addEventListener("visibilitychange", onVisibility);
  document.addEventListener("toggle", (event) => event.target.matches?.(".round[open]") && refresh(), true);
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", (event) => event.persisted && recover());
  setInterval(() => {
    growAges();
    sayLost();
    if (source && lostAt === null && performance.now() - heard > QUIET_MS) recover();
  }, 1000);
}
