// Before anything is painted: the reader's choice of light or dark. The only script that is not a module.
try {
  const chosen = localStorage.getItem("edgeai-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage can be forbidden; then the system decides.
}
