// What changes something: asked about in a window first, sent to the REST API, and said whether it was done.
const dialog = document.getElementById("confirm");
const yes = document.getElementById("confirm-yes");
const failed = document.getElementById("confirm-error");

/** Ask the REST API. Throws an Error with its sentence, `problem` and `status`. */
export async function ask(method, address, { body, type = "application/json" } = {}) {
  const headers = { "X-CSRF-Token": document.querySelector('meta[name="csrf-token"]').content };
  if (body !== undefined) headers["Content-Type"] = type;
  let answer;
  try {
    answer = await fetch(address, { method, headers, body });
  } catch {
    throw new Error("The portal does not answer. Nothing is known about whether this was done: look again when it is back.");
  }
  const json = answer.headers.get("content-type")?.includes("json");
  const found = json ? await answer.json() : await answer.text();
  if (answer.ok) return found;
  const problem = json ? found : { detail: `The portal answers ${answer.status}` };
  throw Object.assign(new Error(sentence(problem, answer.status)), { problem, status: answer.status });
}

function sentence(problem, status) {
  const text = problem.detail || problem.title || `The portal answers ${status}`;
  if (status === 401) return `${text}. Your session has ended: load the page again.`;
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Ask a person. `work` is done while the window is open; what it throws is shown there. Resolves to whether it was done. */
export function confirmed({ title, text, yes: word, danger = false, more = null }, work) {
  document.getElementById("confirm-title").textContent = title;
  document.getElementById("confirm-text").textContent = text;
  document.getElementById("confirm-more").replaceChildren(...(more ? [more] : []));
  failed.hidden = true;
  yes.textContent = word;
  yes.classList.toggle("danger", danger);
  yes.disabled = false;
  dialog.returnValue = "";
  dialog.showModal();
  (danger ? document.getElementById("confirm-no") : yes).focus();
  return new Promise((resolve) => {
    yes.onclick = async () => {
      yes.disabled = true;
      failed.hidden = true;
      try {
        await work();
        dialog.close("done");
      } catch (error) {
        failed.textContent = error.message;
        failed.hidden = false;
        yes.disabled = false;
      }
    };
    dialog.onclose = () => resolve(dialog.returnValue === "done");
  });
}

/** A word at the edge of the page, for a while. */
export function say(text) {
  const toast = Object.assign(document.createElement("div"), { className: "toast", textContent: text });
  document.getElementById("toasts").append(toast);
  setTimeout(() => toast.remove(), 6000);
}

async function act(button) {
  const { action, to, body, title, text, yes: word, done, then } = button.dataset;
  const did = await confirmed({ title, text, yes: word, danger: action === "DELETE" }, () => ask(action, to, { body }));
  if (!did) return;
  if (then) {
    sessionStorage.setItem("edgeai-said", done);
    location.assign(then);
  } else say(done);
}

export function startActions() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-action]");
    if (button) act(button);
    const copy = event.target.closest("[data-copy]");
    if (copy) navigator.clipboard.writeText(document.querySelector(copy.dataset.copy).textContent).then(() => say("Copied"), () => say("The browser does not allow copying here"));
  });
  const said = sessionStorage.getItem("edgeai-said");
  if (said) {
    sessionStorage.removeItem("edgeai-said");
    say(said);
  }
  document.addEventListener("input", (event) => keepAddress(event.target.closest("form[data-keeps-address]")));
}

/** What a list is narrowed to stays in its address: reloading and following read the same. */
function keepAddress(form) {
  if (!form) return;
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
  history.replaceState(history.state, "", `${form.getAttribute("action")}${query.size ? `?${query}` : ""}`);
}
