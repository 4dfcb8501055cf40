// The keyboard: g and a letter go somewhere, / finds, ? helps, j and k walk through rows. Escape leaves a field or window.
const PLACES = { o: "/", t: "/tasks", e: "/edges", m: "/models", d: "/datasets", a: "/apply" };
const SECOND_KEY_MS = 1500;
let firstAt = -Infinity;

function typing(element) {
  return element.matches?.("textarea, select, [contenteditable], input:not([type=checkbox], [type=file], [type=button])");
}

function walk(step) {
  const links = [...document.querySelectorAll("#live [data-row] th a, #live .board a, #live .round > summary")].filter((link) => link.offsetParent);
  const place = links.indexOf(document.activeElement);
  const next = links[place < 0 ? (step > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, place + step))];
  next?.focus();
}

function find() {
  const visible = [document.getElementById("find"), document.getElementById("search")].find((field) => field?.offsetParent);
  if (visible) {
    visible.focus();
    visible.select();
  } else location.assign("/search");
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const target = event.target;
  if (event.key === "Escape") {
    document.querySelector(".menu[open]")?.removeAttribute("open");
    if (typing(target)) target.blur();
    return;
  }
  if (typing(target) || document.querySelector("dialog[open]")) return;
  const second = performance.now() - firstAt < SECOND_KEY_MS;
  firstAt = -Infinity;
  if (second && PLACES[event.key]) location.assign(PLACES[event.key]);
  else if (event.key === "g") firstAt = performance.now();
  else if (event.key === "/") find();
  else if (event.key === "?") document.getElementById("keys").showModal();
  else if (event.key === "j") walk(1);
  else if (event.key === "k") walk(-1);
  else return;
  event.preventDefault();
});

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-open]");
  if (opener) document.getElementById(opener.dataset.open).showModal();
  const closer = event.target.closest("[data-close]");
  if (closer) document.getElementById(closer.dataset.close).close();
  const menu = document.querySelector(".menu[open]");
  if (menu && (opener || !menu.contains(event.target))) menu.removeAttribute("open");
});
