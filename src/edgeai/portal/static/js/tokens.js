// The administrators' page of tokens: making one, and showing its secret this once.
import { ask, confirmed, say } from "./actions.js";
import { refreshSoon } from "./live.js";

export function startTokens() {
  const form = document.getElementById("token-form");
  if (!form) return;
  const name = document.getElementById("token-name");
  const role = document.getElementById("token-role");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wanted = { name: name.value, role: role.value };
    const asked = { title: `Make the token ${wanted.name}?`, text: `Whoever holds it comes in as ${wanted.role}, until it is revoked.`, yes: "Make it" };
    await confirmed(asked, async () => {
      const made = await ask("POST", "/api/v1/tokens", { body: JSON.stringify(wanted) });
      document.getElementById("token-made-name").textContent = made.name;
      document.getElementById("token-secret").textContent = made.token;
      document.getElementById("token-made").hidden = false;
      form.reset();
      say(`${made.name} is made`);
      refreshSoon();
    });
  });
}
