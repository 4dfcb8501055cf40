// The editor of a manifest: line numbers, errors at their line, what would change before it changes.
import { ask, confirmed, say } from "./actions.js";

const BIGGEST = 256 * 1024;
const COMING = { created: "will be created", configured: "will change", unchanged: "is unchanged" }; // what has not been done yet

export function startApply() {
  const form = document.getElementById("apply");
  if (!form) return;
  const [text, gutter, problems, state, file, name] = ["text", "gutter", "problems", "state", "file", "name"].map((part) => document.getElementById(`apply-${part}`));

  function number() {
    const lines = Math.max(1, text.value.split("\n").length);
    while (gutter.children.length > lines) gutter.lastChild.remove();
    for (let line = gutter.children.length + 1; line <= lines; line += 1) gutter.append(Object.assign(document.createElement("li"), { textContent: line }));
    gutter.scrollTop = text.scrollTop;
  }

  function clear() {
    problems.replaceChildren();
    state.textContent = "";
    for (const line of gutter.querySelectorAll(".wrong")) line.classList.remove("wrong");
  }

  function put(value, from = "") {
    text.value = value;
    name.textContent = from;
    clear();
    number();
    text.scrollTop = 0;
  }

  function goTo(line) {
    const lines = text.value.split("\n");
    const start = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
    text.focus();
    text.setSelectionRange(start, start + (lines[line - 1] ?? "").length);
    text.scrollTop = Math.max(0, (line - 8) * 20);
  }

  function refuse(error) {
    const wrong = error.problem?.errors?.length ? error.problem.errors : [{ detail: error.message }];
    for (const { line, field, detail } of wrong) {
      const item = document.createElement("li");
      if (line) {
        const link = Object.assign(document.createElement("button"), { type: "button", textContent: `Line ${line}` });
        link.addEventListener("click", () => goTo(line));
        item.append(link, ": ");
        gutter.children[line - 1]?.classList.add("wrong");
      }
      if (field) item.append(Object.assign(document.createElement("code"), { textContent: field }), " ");
      item.append(detail);
      problems.append(item);
    }
    const first = wrong.find((one) => one.line);
    if (first) goTo(first.line);
  }

  function send(dry) {
    return ask("POST", `/api/v1/apply${dry ? "?dryRun=true" : ""}`, { body: text.value, type: "application/yaml" });
  }

  function changes(items) {
    const list = Object.assign(document.createElement("ul"), { className: "changes" });
    for (const item of items) {
      const line = document.createElement("li");
      line.append(Object.assign(document.createElement("span"), { textContent: `${item.kind} ${item.name}` }), Object.assign(document.createElement("b"), { textContent: COMING[item.action] ?? item.action }));
      list.append(line);
    }
    return list;
  }

  function counted(items) {
    const changed = items.filter((item) => item.action !== "unchanged").length;
    return changed === 0 ? "Nothing would change" : `${changed} of ${items.length} would change`;
  }

  async function check() {
    clear();
    if (!text.value.trim()) {
      refuse(new Error("There is nothing to apply yet: paste a manifest, open a file or insert the example."));
      return null;
    }
    state.textContent = "Checking…";
    try {
      const { items } = await send(true);
      state.textContent = `Fine. ${counted(items)}.`;
      return items;
    } catch (error) {
      state.textContent = "";
      refuse(error);
      return null;
    }
  }

  async function apply() {
    const items = await check();
    if (items === null) return;
    let written = [];
    const did = await confirmed({ title: "Apply this manifest?", text: `${counted(items)}.`, yes: "Apply", more: changes(items) }, async () => {
      written = (await send(false)).items;
    });
    if (!did) return;
    const task = written.find((item) => !["Model", "Dataset", "EdgeNode"].includes(item.kind));
    if (task) {
      sessionStorage.setItem("edgeai-said", `${task.name} is applied`);
      location.assign(`/tasks/${task.kind.toLowerCase()}s/${task.name}`);
    } else {
      state.textContent = "";
      say(`Applied: ${written.map((item) => `${item.name} ${item.action}`).join(", ")}`);
    }
  }

  async function open(chosen) {
    if (!chosen) return;
    if (chosen.size > BIGGEST) {
      clear();
      refuse(new Error(`${chosen.name} has more than 256 KiB: a manifest may not.`));
      return;
    }
    put(await chosen.text(), chosen.name);
  }

  async function load(from) {
    const [kinds, one] = from.split("/");
    try {
      put(await ask("GET", `/api/v1/${encodeURIComponent(kinds)}/${encodeURIComponent(one ?? "")}/manifest`), `${one}, as applied`);
    } catch (error) {
      refuse(error);
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    apply();
  });
  document.getElementById("apply-check").addEventListener("click", check);
  document.getElementById("apply-example").addEventListener("click", () => put(document.getElementById("apply-sample").textContent, "the example: change names and paths"));
  text.addEventListener("input", () => {
    clear();
    number();
  });
  text.addEventListener("scroll", () => {
    gutter.scrollTop = text.scrollTop;
  });
  file.addEventListener("change", () => open(file.files[0]).then(() => (file.value = "")));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    form.addEventListener(kind, (event) => {
      event.preventDefault();
      form.classList.toggle("dropping", kind === "dragover");
      if (kind === "drop") open(event.dataTransfer.files[0]);
    });
  }
  number();
  const from = new URLSearchParams(location.search).get("from");
  if (from) load(from);
  else if (!text.value) text.focus();
}
