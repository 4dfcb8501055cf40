// Light, dark, or what the system says: the button goes round.
const KEY = "edgeai-theme";
const root = document.documentElement;
const button = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
}

function name() {
  button.setAttribute("aria-label", isDark() ? "Switch to light" : "Switch to dark");
}

function changed() {
  name();
  document.dispatchEvent(new CustomEvent("edgeai:theme"));
}

button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try {
    // What the system says anyway is not remembered, so that it can change its mind.
    if (isDark() === dark.matches) localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, root.dataset.theme);
  } catch {
    // Storage can be forbidden; the choice holds for this page.
  }
  changed();
});
dark.addEventListener("change", changed);
name();
