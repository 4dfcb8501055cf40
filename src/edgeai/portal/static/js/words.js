// Numbers and times as portal/formats.py writes them, for what only the browser knows: the reader's clock and time zone.

const PARTS = [[60, "min", 1, "s"], [3600, "h", 60, "min"], [86400, "d", 3600, "h"]];
const DAY_MS = 86_400_000;

/** How long ago, in whole seconds, with two parts at most. */
export function age(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  const [length, large, unit, small] = PARTS.find(([part]) => whole < part * 60) ?? PARTS.at(-1);
  const rest = Math.floor((whole % length) / unit);
  return rest ? `${Math.floor(whole / length)} ${large} ${rest} ${small}` : `${Math.floor(whole / length)} ${large}`;
}

/** A metric, with four significant digits. */
export function number(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  return Math.abs(value) < 1000 ? String(Number(value.toPrecision(4))) : Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
}

/** Bytes for people. */
export function size(count) {
  let value = count;
  for (const unit of ["B", "kB", "MB", "GB", "TB"]) {
    if (value < 999.5) return `${unit === "B" || value >= 9.95 ? Math.round(value) : value.toFixed(1)} ${unit}`;
    value /= 1000;
  }
  return `${Math.round(value)} PB`;
}

/** The reader's own time: of today only the hour, of other days the date as well. */
export function moment(iso) {
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return iso;
  const clock = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  const today = at.toDateString() === new Date().toDateString();
  if (today) return clock;
  const day = at.toLocaleDateString([], { day: "numeric", month: "short", year: Math.abs(Date.now() - at) > 300 * DAY_MS ? "numeric" : undefined });
  return `${day} ${clock}`;
}

/** Write the reader's time into everything below `root` that names a moment. */
export function localise(root) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const iso = element.getAttribute("datetime");
    element.textContent = moment(iso);
    element.title = iso;
  }
}

let written = performance.now();

/** Ages that the server has just written count from now. */
export function agesAreFresh() {
  written = performance.now();
}

/** Let ages grow: an age that stands still would be a lie. */
export function growAges() {
  const passed = (performance.now() - written) / 1000;
  for (const element of document.querySelectorAll("#live .age[data-age]")) {
    const text = age(Number(element.dataset.age) + passed);
    if (element.textContent !== text) element.textContent = text;
  }
}
