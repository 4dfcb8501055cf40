// A worker's log in a window: its end first, then what is added, while the window is open. Always as text.
const LOOK_MS = 1000;
const SHOWN_CHARACTERS = 400_000;
// Colours and cursor movements of terminals.
const ESCAPES = /\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007]*(?:\u0007|\u001b\\))/g;

export function startLog() {
  const dialog = document.getElementById("log");
  if (!dialog) return;
  const text = document.getElementById("log-text");
  const state = document.getElementById("log-state");
  const follow = document.getElementById("log-follow");
  let offset = null;
  let run = 0;

  async function read(address, mine) {
    const answer = await fetch(offset === null ? address : `${address}?offset=${offset}`);
    const found = await answer.json();
    if (mine !== run) return;
    if (!answer.ok) {
      state.textContent = answer.status === 404 ? "There is no log yet" : `Unknown: ${found.detail}`;
      return;
    }
    if (offset === null && found.offset > 0) text.textContent = "… (the beginning is on its edge)\n";
    offset = found.next_offset;
    if (found.text) {
      const whole = text.textContent + found.text.replaceAll(ESCAPES, "");
      text.textContent = whole.slice(-SHOWN_CHARACTERS);
      if (follow.checked) text.scrollTop = text.scrollHeight;
    }
    const empty = text.textContent === "" ? "Nothing has been written yet" : "";
    state.textContent = found.ended ? empty || "The worker has ended" : empty || "Live";
  }

  async function keepReading(address) {
    run += 1;
    const mine = run;
    while (mine === run && dialog.open) {
      try {
        if (!document.hidden) await read(address, mine);
      } catch {
        if (mine === run) state.textContent = "Unknown: the portal does not answer";
      }
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-log]");
    if (!button) return;
    offset = null;
    text.textContent = "";
    state.textContent = "Reading from its edge…";
    document.getElementById("log-title").textContent = `Log of ${button.dataset.worker}`;
    dialog.showModal();
    keepReading(button.dataset.log);
  });
  text.addEventListener("scroll", () => {
    follow.checked = text.scrollHeight - text.scrollTop - text.clientHeight < 30;
  });
  follow.addEventListener("change", () => {
    if (follow.checked) text.scrollTop = text.scrollHeight;
  });
}
