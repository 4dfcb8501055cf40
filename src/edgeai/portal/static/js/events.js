// Every event of a task, in order: read page by page from its history when the list is opened, then followed.
import { moment } from "./words.js";

const PAGE = 200;

export function startEvents() {
  const list = document.getElementById("events");
  if (!list) return;
  const rows = list.querySelector("tbody");
  const more = list.querySelector("[data-more]");
  const state = list.querySelector("[data-state-of-events]");
  let last = 0;
  let complete = false;
  let reading = false;
  let again = false;

  async function read() {
    if (reading) {
      again = true;
      return;
    }
    reading = true;
    try {
      const answer = await fetch(`${list.dataset.events}?limit=${PAGE}&after=${last}`);
      const found = await answer.json();
      if (!answer.ok) throw new Error(found.detail);
      rows.append(...found.items.map(row));
      last = found.items.at(-1)?.sequence ?? last;
      complete = found.next === null;
      more.hidden = complete;
      state.textContent = complete ? `${rows.children.length} events, all there are` : `${rows.children.length} events, and more`;
    } catch (error) {
      state.textContent = `The events cannot be read: ${error.message}. Close and open this list to try again.`;
    } finally {
      reading = false;
    }
    if (again && complete) {
      again = false;
      read();
    }
  }

  list.addEventListener("toggle", () => list.open && read());
  more.addEventListener("click", read);
  document.addEventListener("edgeai:change", ({ detail }) => list.open && complete && detail.topic === "Timeline" && read());
  document.addEventListener("edgeai:found", () => list.open && complete && read());
}

function row(event) {
  const line = document.createElement("tr");
  const from = [event.node, event.worker].filter(Boolean).join(" / ");
  const { task_uid: _, ...body } = event.body; // the same in every line
  const says = JSON.stringify(body).slice(1, -1).replaceAll(/"([A-Za-z_]+)":/g, "$1: ").replaceAll(",", ", ");
  const cells = [["Sequence", event.sequence, "n"], ["When", moment(event.time * 1000)], ["Event", event.kind], ["From", from], ["Says", says, "", "says"]];
  for (const [label, text, name = "", inner = ""] of cells) {
    const cell = document.createElement("td");
    cell.dataset.label = label;
    cell.className = name;
    const place = inner ? cell.appendChild(Object.assign(document.createElement("span"), { className: inner })) : cell;
    place.textContent = text;
    line.append(cell);
  }
  line.children[1].title = new Date(event.time * 1000).toISOString();
  return line;
}
